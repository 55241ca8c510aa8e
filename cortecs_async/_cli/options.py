"""Options shared by several commands: durations, amounts, and the arguments of start requests."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar, cast

import click

# The name of the parameter of --json in all commands.
JSON = "as_json"

F = TypeVar("F", bound=Callable[..., Any])


def duration(value: str) -> float:
    """Parse a duration, for the `type` of an option. Return seconds."""
    from .._durations import parse_duration  # noqa: PLC0415  (only to parse one)

    try:
        seconds = parse_duration(value)
    except ValueError as error:
        raise click.BadParameter(f'duration "{value}" {error}') from None
    if not seconds:
        raise click.BadParameter(
            f'duration "{value}" is invalid (examples: 90s, 15m, 2h); it must be more than 0'
        )
    return seconds


def duration_or_zero(value: str) -> float:
    """Parse a duration that may be 0, for the `type` of an option. Return seconds."""
    return 0.0 if value.strip() in {"0", "0s"} else duration(value)


def amount(value: str) -> float:
    """Parse an amount of money, for the `type` of an option."""
    try:
        money = float(value)
    except ValueError:
        money = math.nan
    if not 0 < money < math.inf:
        raise click.BadParameter(f'amount "{value}" is invalid (examples: 5, 2.50)')
    return money


workers_option = click.option(
    "--workers",
    "num_workers",
    type=click.IntRange(1, 8),
    default=1,
    help="Number of workers, each on its own GPUs and billed separately.",
)
context_length_option = click.option(
    "--context-length", type=click.IntRange(min=1), help="Maximum context length, in tokens."
)
start_timeout_option = click.option(
    "--start-timeout",
    type=duration,
    default="15m",
    help="Fail if an instance is not running after this time.",
)
max_lifetime_option = click.option(
    "--max-lifetime", type=duration, help="Delete an instance after this time, such as 90s or 1h30m."
)


max_price_option = click.option(
    "--max-price-per-hour",
    type=amount,
    help="Do not use hardware that costs more per hour, in the account's currency.",
)
capacity_timeout_option = click.option(
    "--capacity-timeout",
    type=duration,
    help="If no hardware is available, wait for up to this time. Waiting costs nothing.",
)
idle_timeout_option = click.option(
    "--idle-timeout", type=duration, help="Delete an instance after this time without a request."
)
project_option = click.option(
    "--project", help="Record the cost for this project.  [default: CORTECS_PROJECT]"
)
hardware_help = "Hardware type, several separated by commas (the first available is used), or cheapest."


Hardware = str | list[str] | None
"""The value of --hardware: one type, or several in order of preference."""


def hardware(value: str | None) -> Hardware:
    """Parse the value of --hardware, for the `type` of an option."""
    types = [each.strip() for each in (value or "").split(",")]
    if value is not None and not all(types):
        raise click.BadParameter(
            f'hardware "{value}" is invalid (examples: NVIDIA_L40S_1,NVIDIA_H100_1, cheapest)'
        )
    return types if len(types) > 1 else value


def ready_option(default: str) -> Callable[[F], F]:
    return click.option(
        "--ready",
        type=click.Choice(["status", "models", "answer"]),
        default=default,
        help="Consider the instance ready once its status is running (status), its endpoint responds "
        "(models), or its model has answered a test request (answer).",
    )


def profile_name(value: str) -> str:
    """Check the name of a profile, for the `type` of an option."""
    from .._profiles import PROFILE_NAME  # noqa: PLC0415  (slow to import)

    if not PROFILE_NAME.fullmatch(value):
        raise click.BadParameter(f'profile "{value}" is invalid: use letters, digits, - and _')
    return value


def json_option(help_text: str = "Print JSON with all fields.") -> Callable[[F], F]:
    return click.option("--json", JSON, is_flag=True, help=help_text)


def start_options(command: F) -> F:
    """Add the arguments that select an instance and what it may cost, without its lifetime."""

    @click.argument("model")
    @click.argument("hardware", required=False, type=hardware)
    @click.option("--hardware", "hardware_type", type=hardware, metavar="TEXT", help=hardware_help)
    @max_price_option
    @capacity_timeout_option
    @workers_option
    @context_length_option
    @click.option(
        "--billing-interval",
        type=click.Choice(["per_minute", "per_hour"]),
        default="per_minute",
        help="Bill per minute or per hour. Partial intervals are rounded up.",
    )
    @project_option
    @functools.wraps(command)
    def with_hardware(*args: Any, hardware: Hardware, hardware_type: Hardware, **options: Any) -> object:
        if hardware and hardware_type and hardware != hardware_type:
            raise click.UsageError(
                f'hardware is specified twice: "{hardware}" and "{hardware_type}". Pass it once.'
            )
        return command(*args, hardware=hardware or hardware_type, **options)

    return cast("F", with_hardware)


def limit_options(command: F) -> F:
    max_cost_option = click.option(
        "--max-cost",
        type=amount,
        help="Delete the instance before it costs more than this, in the account's currency.",
    )
    return max_lifetime_option(max_cost_option(command))
