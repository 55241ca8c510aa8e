"""`cortecs-async models`, `hardware` and `balance`: what there is to rent, and the money for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from .. import AsyncCortecs
from ..types import Balance, HardwareType, ModelPreview
from ._common import clean, print_json, print_table, run, say

_JSON = click.option(
    "--json", "as_json", is_flag=True, help="As JSON, with everything that the service says."
)


@click.command()
@_JSON
def models(as_json: bool) -> None:
    """List the models that can be started. Needs no credentials."""
    found = run(_models)
    if as_json:
        print_json(found)
        return
    if not found:
        say("the service lists no model")
        return
    print_table(
        ("model", "name", "hardware"),
        (
            (each.hf_name or each.model_id, each.screen_name, ", ".join(each.hardware_configs))
            for each in found
        ),
    )


@click.command()
@click.option("--available", is_flag=True, help="Only what has free capacity now.")
@_JSON
def hardware(available: bool, as_json: bool) -> None:
    """List the hardware types and their prices. Needs no credentials.

    The service does not document how it names its prices: a column is filled where a key names the minute
    or the hour, and everything else is shown as it comes.
    """
    found = run(_hardware, available)
    if as_json:
        print_json(found)
        return
    if not found:
        say("nothing is free at the moment" if available else "the service lists no hardware type")
        return
    print_table(("hardware", "per minute", "per hour", "details"), (_row(each) for each in found))


@click.command()
@_JSON
def balance(as_json: bool) -> None:
    """Show what the account has left."""
    found = run(_balance)
    if as_json:
        print_json(found)
    else:
        click.echo(clean(f"{found.current_balance:.2f} {found.currency}"))


def _row(hardware_type: HardwareType) -> tuple[object, ...]:
    info = hardware_type.price_info
    minute, hour = _price_key(info, "minute"), _price_key(info, "hour")
    rest = {name: value for name, value in info.items() if name not in {minute, hour}}
    return (
        hardware_type.hardware_type_id,
        None if minute is None else f"{info[minute]:g}",
        None if hour is None else f"{info[hour]:g}",
        ", ".join(f"{name}: {value}" for name, value in {**hardware_type.hardware_info, **rest}.items()),
    )


def _price_key(info: Mapping[str, Any], unit: str) -> str | None:
    """The key of the price of a unit of time; None when there is none, or more than one."""
    found = [
        name
        for name, value in info.items()
        if unit in name.lower() and isinstance(value, (int, float)) and not isinstance(value, bool)
    ]
    return found[0] if len(found) == 1 else None


async def _models() -> tuple[ModelPreview, ...]:
    async with AsyncCortecs(guard="off") as client:
        return await client.models.list()


async def _hardware(available: bool) -> tuple[HardwareType, ...]:
    async with AsyncCortecs(guard="off") as client:
        return await (client.hardware_types.list_available() if available else client.hardware_types.list())


async def _balance() -> Balance:
    async with AsyncCortecs(guard="off") as client:
        return await client.user.balance()
