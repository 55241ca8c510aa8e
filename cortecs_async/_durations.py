"""Durations: seconds, a `timedelta`, or a string as on the command line, such as "90s", "15m", or "1h30m".

The maximum is ten years. The number infinity means no limit.
"""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Any

from ._errors import InvalidArgumentError

Duration = float | timedelta | str

# For messages about arguments.
EXAMPLES = "seconds, '1h30m', or timedelta(hours=2)"

_NUMBER = r"([0-9]+(?:\.[0-9]+)?)"
_UNITS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_TEXT = "".join(rf"(?:{_NUMBER}{unit})?" for unit in _UNITS)

# Longer durations are typing errors and would lead to times out of range for dates.
_MAX_SECONDS = 3650 * 86400.0
_TOO_LONG = "is longer than ten years"


def parse_duration(text: str) -> float:
    """Return the seconds in a string such as "90s", "1h30m", or "90", which means seconds.

    Raises:
        ValueError: if the string is not a duration. The message completes 'duration "..." '.
    """
    normal = text.strip().lower()
    # A bare number means seconds, but not after a unit: "1h30" is ambiguous.
    match = re.fullmatch(_TEXT, f"{normal}s" if re.fullmatch(_NUMBER, normal) else normal)
    parts = match.groups(default="0") if match and normal else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, _UNITS.values(), strict=False))
    if not parts or math.isinf(seconds):
        raise ValueError("is invalid (examples: 90s, 15m, 2h)")
    if seconds > _MAX_SECONDS:
        raise ValueError(_TOO_LONG)
    return seconds


def as_seconds(value: Duration) -> float:
    """Convert a duration to seconds. Return anything else unchanged, for a check that knows its name."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        try:
            return parse_duration(value)
        except ValueError:
            return value  # type: ignore[return-value]  # pyright: ignore[reportReturnType]
    return value


def is_number(value: Any) -> bool:
    """Return whether a value is a number. True and NaN do not count."""
    # An integer may be too large for a float.
    is_nan = isinstance(value, float) and math.isnan(value)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not is_nan


def duration_problem(value: Any, *, at_least: float | None = None) -> str | None:
    """Return what is wrong with a duration, to follow its name. Infinity is valid: it means no limit.

    Args:
        value: The value as it was typed.
        at_least: The minimum number of seconds, or None to allow anything positive.
    """
    if isinstance(value, str):
        try:
            parse_duration(value)
        except ValueError as error:
            return f'"{value}" {error}'
    seconds = as_seconds(value)
    if not is_number(seconds) or (seconds <= 0 if at_least is None else seconds < at_least):
        bound = "a positive duration" if at_least is None else f"a duration of at least {at_least:g} s"
        return f"must be {bound} ({EXAMPLES}), not {value!r}"
    return _TOO_LONG if _MAX_SECONDS < seconds < math.inf else None


def check_seconds(name: str, value: Any, *, at_least: float | None = None) -> float:
    """Return a duration in seconds, which must be positive, or at least `at_least` seconds.

    Raises:
        InvalidArgumentError: if it is not a duration or longer than ten years; infinity means no limit.
    """
    if problem := duration_problem(value, at_least=at_least):
        raise InvalidArgumentError(f"{name} {problem}")
    return as_seconds(value)
