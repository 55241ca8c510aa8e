"""`cortecs-async models`, `hardware` and `balance`: what you can rent, and the money for it."""

from __future__ import annotations

import click

from ..types import HardwareType
from .options import json_option
from .output import format_money, print_json, print_note, print_table, sanitize
from .runtime import call_api


@click.command()
@json_option()
def models(as_json: bool) -> None:
    """List the models that you can start. Needs no credentials."""
    found = call_api(lambda client: client.models.list())
    if as_json:
        print_json(found)
    elif found:
        rows = (
            (each.hf_name or each.model_id, each.screen_name, ", ".join(each.hardware_configs))
            for each in found
        )
        print_table(("model", "name", "hardware"), rows)
    else:
        print_note("No models.")


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
    if as_json:
        print_json(found)
    elif found:
        print_table(("hardware", "per minute", "details"), map(_row, found))
    else:
        print_note("No hardware is available now." if available else "No hardware types.")


@click.command()
@json_option()
def balance(as_json: bool) -> None:
    """Show the balance of the account."""
    found = call_api(lambda client: client.user.balance())
    if as_json:
        print_json(found)
    else:
        click.echo(sanitize(format_money(found.current_balance, found.currency)))


def _row(hardware_type: HardwareType) -> tuple[object, ...]:
    price = hardware_type.price_per_minute
    details = {**hardware_type.hardware_info, **hardware_type.price_info}
    return (
        hardware_type.hardware_type_id,
        None if price is None else f"{price:g} {hardware_type.currency}".rstrip(),
        ", ".join(f"{name}: {value}" for name, value in details.items()),
    )
