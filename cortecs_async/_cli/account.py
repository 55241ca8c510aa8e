"""`cortecs-async models`, `hardware` and `balance`: show what you can rent, and your balance."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .command import cli_command
from .display import print_list
from .options import json_option
from .output import format_money, print_json, print_note, sanitize
from .runtime import call_api

if TYPE_CHECKING:
    from .. import AsyncCortecs
    from ..types import HardwareType, Model, ModelPreview

# Words in a `hardware_info` key for the memory of the GPUs, besides its unit.
_MEMORY_WORDS = {"vram", "gpu", "memory", "mem", "total", "size", "in"}
_MEMORY_UNITS = {"gb": "GB", "gib": "GiB", "mb": "MB", "mib": "MiB"}


class _Catalog(NamedTuple):
    """The hardware types and their current availability."""

    hardware: Mapping[str, HardwareType]
    available: Collection[str]

    def prices(self, hardware_ids: Iterable[str]) -> list[tuple[float, str]]:
        """Return the known prices per minute of hardware types with their currencies, lowest first."""
        found = [self.hardware[each] for each in hardware_ids if each in self.hardware]
        return sorted(
            (each.price_per_minute, each.currency) for each in found if each.price_per_minute is not None
        )

    def row(self, hardware_id: str) -> tuple[object, ...]:
        """Return the cells for GPU, memory, price per minute, and availability."""
        found = self.hardware.get(hardware_id)
        if found is None:
            return None, None, None, "no"
        price = found.price_per_minute
        # A price that cannot be parsed is shown as sent by the service.
        shown = _facts(found.price_info) if price is None else _price(price, found.currency)
        available = "yes" if hardware_id in self.available else "no"
        return _gpu(found), _memory(found.hardware_info), shown or None, available


@cli_command(
    examples=("cortecs-async models", "cortecs-async models meta-llama/Llama-3.1-8B-Instruct"),
)
@click.argument("names", metavar="[MODEL]...", nargs=-1)
@json_option()
def models(names: tuple[str, ...], as_json: bool) -> None:
    """List the models that you can start, or the hardware that a model runs on.

    No credentials are needed. Prices are per worker on the cheapest hardware. Hardware that is currently
    unavailable is marked. With MODEL, each line shows a hardware type and its maximum context
    length. An asterisk marks the recommended type, which is used if you leave out HARDWARE.
    """
    if names:
        _print_models(names, as_json=as_json)
        return
    found, catalog = call_api(_list_models, anonymous=True)
    columns = ("model", "per minute", "hardware")

    def row(model: ModelPreview) -> tuple[object, ...]:
        ids = model.hardware_configs
        price = next(iter(catalog.prices(ids)), None)
        marked = (each if each in catalog.available else f"{each} (unavailable)" for each in ids)
        return model.hf_name or model.model_id, price and _price(*price), ", ".join(marked)

    print_list(found, columns, row, wrapped=("hardware",), empty="No models.", as_json=as_json)


@cli_command(examples=("cortecs-async hardware", "cortecs-async hardware --available --json"))
@click.option("--available", is_flag=True, help="List only hardware that is available now.")
@json_option()
def hardware(available: bool, as_json: bool) -> None:
    """List the hardware types, their prices, and whether they are available now.

    No credentials are needed. The service does not document its price and hardware fields. Only fields
    with clear names are shown; --json prints all fields as the service sends them.
    """
    catalog = call_api(_read_catalog, anonymous=True)
    found = [
        each
        for each in catalog.hardware.values()
        if not available or each.hardware_type_id in catalog.available
    ]
    empty = "No hardware is available now." if available else "No hardware types."
    columns = ("hardware", "GPU", "memory", "per minute", "available", "details")
    print_list(
        found,
        columns,
        lambda each: (each.hardware_type_id, *catalog.row(each.hardware_type_id), _details(each)),
        optional=("details", "GPU"),
        empty=empty,
        as_json=as_json,
    )


@cli_command(examples=("cortecs-async balance", "cortecs-async balance --json"))
@json_option()
def balance(as_json: bool) -> None:
    """Show the account balance."""
    found = call_api(lambda client: client.user.balance())
    if as_json:
        print_json(found)
    else:
        click.echo(sanitize(format_money(found.current_balance, found.currency)))


async def _read_catalog(client: AsyncCortecs) -> _Catalog:
    types = await client.hardware_types.list()
    available = await client.hardware_types.list_available()
    every = {each.hardware_type_id: each for each in (*types, *available)}
    return _Catalog(every, {each.hardware_type_id for each in available})


async def _list_models(client: AsyncCortecs) -> tuple[tuple[ModelPreview, ...], _Catalog]:
    return await client.models.list(), await _read_catalog(client)


def _print_models(names: tuple[str, ...], *, as_json: bool) -> None:
    async def read(client: AsyncCortecs) -> tuple[list[Model], _Catalog]:
        found = [await client.models.get(name) for name in dict.fromkeys(names)]
        return found, await _read_catalog(client)

    found, catalog = call_api(read, anonymous=True)
    if as_json:
        print_json(found)
        return
    for model in found:
        if len(found) > 1:
            click.echo(sanitize(f"{model.hf_name or model.model_id}:"))

        def row(hardware_id: str, model: Model = model) -> tuple[object, ...]:
            mark = "*" if hardware_id == model.recommended_config else ""
            gpu, memory, price, free = catalog.row(hardware_id)
            context = model.hardware_configs[hardware_id].max_context_length
            return f"{hardware_id}{mark}", gpu, memory, context and f"{context:,}", price, free

        columns = ("hardware", "GPU", "memory", "context", "per minute", "available")
        ids = tuple(model.hardware_configs)
        print_list(ids, columns, row, optional=("GPU", "memory"), empty="No hardware.", as_json=False)
    if any(model.recommended_config in model.hardware_configs for model in found):
        print_note("* recommended: used if you leave out HARDWARE.")


def _price(price: float, currency: str) -> str:
    return f"{price:.3g} {currency}".rstrip()


def _gpu(hardware_type: HardwareType) -> str | None:
    """Return the GPU's name, if the service sends it."""
    value = hardware_type.hardware_info.get("gpu")
    return value if isinstance(value, str) else None


def _memory(hardware_info: Mapping[str, Any]) -> str | None:
    """Return the memory of the GPUs, or None unless a field with a clear name and unit contains it."""
    found = set[str]()
    for key, value in hardware_info.items():
        words = {*re.split(r"[\s_./-]+", re.sub("(?<=[a-z])(?=[A-Z])", " ", key).lower())}
        units = words & _MEMORY_UNITS.keys()
        # "memory" alone may mean the machine's memory.
        is_clear = "vram" in words or ("gpu" in words and bool(words & {"memory", "mem"}))
        if not is_clear or not words - units <= _MEMORY_WORDS or isinstance(value, bool):
            continue
        if isinstance(value, str) and value:
            found.add(value)
        elif isinstance(value, (int, float)) and len(units) == 1:
            found.add(f"{value:g} {_MEMORY_UNITS[units.pop()]}")
    return found.pop() if len(found) == 1 else None


def _facts(fields: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {value}" for name, value in fields.items())


def _details(hardware_type: HardwareType) -> str:
    return _facts({**hardware_type.hardware_info, **hardware_type.price_info})
