"""Options that several commands share: durations, money, and what a start takes."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

F = TypeVar("F", bound=Callable[..., Any])

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_DURATION = re.compile(rf"(?:{_NUMBER}d)?(?:{_NUMBER}h)?(?:{_NUMBER}m)?(?:{_NUMBER}s)?")
_SECONDS = (86400.0, 3600.0, 60.0, 1.0)

# Ten years: beyond that it is a slip of the hand, and further on dates come to their end.
_LONGEST = 3650 * 86400.0


class _Duration(click.ParamType[float]):
    name = "DURATION"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        text = str(value).strip().lower()
        # A bare number is seconds; behind a unit ("1h30") it could be anything, so it is refused there.
        match = _DURATION.fullmatch(f"{text}s" if re.fullmatch(_NUMBER, text) else text)
        parts = match.groups(default="0") if match else ()
        seconds = sum(float(part) * unit for part, unit in zip(parts, _SECONDS, strict=False))
        if not 0 < seconds < math.inf:
            self.fail(f"{value!r} is no duration such as 90s, 15m, 2h, 1h30m or 45 (seconds)", param, ctx)
        if seconds > _LONGEST:
            self.fail(f"{value!r} is more than ten years", param, ctx)
        return seconds


class _Money(click.ParamType[float]):
    name = "AMOUNT"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            amount = float(str(value))
        except ValueError:
            amount = math.nan
        if not 0 < amount < math.inf:
            self.fail(f"{value!r} is no positive amount", param, ctx)
        return amount


DURATION = _Duration()
MONEY = _Money()


def json_option(help_text: str = "As JSON.") -> Callable[[F], F]:
    """`--json`, for programs."""
    return click.option("--json", "as_json", is_flag=True, help=help_text)


def start_options(command: F) -> F:
    """What every start takes: model, hardware, workers, context, billing."""

    @functools.wraps(command)
    def with_hardware(*args: Any, hardware: str | None, hardware_type: str | None, **options: Any) -> object:
        if hardware and hardware_type and hardware != hardware_type:
            raise click.UsageError(f"which hardware, {hardware} or {hardware_type}?")
        return command(*args, hardware=hardware or hardware_type, **options)

    result = cast("F", with_hardware)
    for decorate in reversed((
        click.argument("model"),
        click.argument("hardware", required=False),
        click.option("--hardware", "hardware_type", help="The same as the argument, as `batch` has it."),
        click.option(
            "--workers",
            type=click.IntRange(1, 8),
            default=1,
            show_default=True,
            help="Each has a GPU set to itself, and is billed for it.",
        ),
        click.option("--context-length", type=click.IntRange(min=1), help="Longest context, in tokens."),
        click.option(
            "--billing-interval",
            type=click.Choice(["per_minute", "per_hour"]),
            default="per_minute",
            show_default=True,
            help="Each interval begun is billed.",
        ),
    )):  # fmt: skip
        result = decorate(result)
    return result


def limit_options(command: F) -> F:
    """What ends an instance by itself."""
    for decorate in reversed((
        click.option("--max-lifetime", type=DURATION, help="How long the instance may live: 90s, 1h30m."),
        click.option("--max-cost", type=MONEY, help="How much it may cost, in the account's currency."),
    )):  # fmt: skip
        command = decorate(command)
    return command
