"""`cortecs-async models`, `hardware` and `balance`: what you can rent, and your balance."""

from __future__ import annotations

import click

from ..types import HardwareType, ModelPreview
from .options import json_option
from .output import format_money, print_json, print_list, sanitize
from .runtime import call_api


@click.command()
@json_option()
def models(as_json: bool) -> None:
    """List the models that you can start. Needs no credentials."""
    found = call_api(lambda client: client.models.list())
    print_list(found, ("model", "name", "hardware"), _model_row, empty="No models.", as_json=as_json)


@click.command()
@click.option("--available", is_flag=True, help="List only hardware that is available now.")
@json_option()
def hardware(available: bool, as_json: bool) -> None:
    """List the hardware types and their prices. Needs no credentials.

    The price fields of the service are undocumented. "per minute" is read from a field that names the minute,
    or else the hour; the details show all fields as the service sends them.
    """
    found = call_api(
        lambda client: client.hardware_types.list_available() if available else client.hardware_types.list()
    )
    empty = "No hardware is available now." if available else "No hardware types."
    print_list(found, ("hardware", "per minute", "details"), _hardware_row, empty=empty, as_json=as_json)


@click.command()
@json_option()
def balance(as_json: bool) -> None:
    """Show the balance of the account."""
    found = call_api(lambda client: client.user.balance())
    if as_json:
        print_json(found)
    else:
        click.echo(sanitize(format_money(found.current_balance, found.currency)))


def _model_row(model: ModelPreview) -> tuple[object, ...]:
    return model.hf_name or model.model_id, model.screen_name, ", ".join(model.hardware_configs)


def _hardware_row(hardware_type: HardwareType) -> tuple[object, ...]:
    price = hardware_type.price_per_minute
    details = {**hardware_type.hardware_info, **hardware_type.price_info}
    return (
        hardware_type.hardware_type_id,
        None if price is None else f"{price:g} {hardware_type.currency}".rstrip(),
        ", ".join(f"{name}: {value}" for name, value in details.items()),
    )
