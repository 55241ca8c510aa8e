"""`cortecs-async models`, `hardware` and `balance`: what there is to rent, and the money for it."""

from __future__ import annotations

import click

from ..types import HardwareType
from .options import json_option
from .output import ask, clean, print_json, print_table, say

_JSON = json_option("As JSON, with everything that the service says.")


@click.command()
@_JSON
def models(as_json: bool) -> None:
    """List the models that can be started. Needs no credentials."""
    found = ask(lambda client: client.models.list())
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

    The service does not document how it names its prices: the price of a minute is read where a key names
    the minute, or else the hour. All that it says is shown beside, as it comes.
    """
    found = ask(
        lambda client: client.hardware_types.list_available() if available else client.hardware_types.list()
    )
    if as_json:
        print_json(found)
        return
    if not found:
        say("nothing is free at the moment" if available else "the service lists no hardware type")
        return
    print_table(("hardware", "per minute", "details"), map(_row, found))


@click.command()
@_JSON
def balance(as_json: bool) -> None:
    """Show what the account has left."""
    found = ask(lambda client: client.user.balance())
    if as_json:
        print_json(found)
    else:
        click.echo(clean(f"{found.current_balance:.2f} {found.currency}"))


def _row(hardware_type: HardwareType) -> tuple[object, ...]:
    price = hardware_type.price_per_minute
    details = {**hardware_type.hardware_info, **hardware_type.price_info}
    return (
        hardware_type.hardware_type_id,
        None if price is None else f"{price:g} {hardware_type.currency}".rstrip(),
        ", ".join(f"{name}: {value}" for name, value in details.items()),
    )
