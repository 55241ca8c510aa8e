"""Read single values of the service's JSON: text on one line, numbers, times, and undocumented objects.

Each function returns the value as its domain class declares it, or raises `MismatchError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any


class MismatchError(ValueError):
    """A value does not have the documented type. The message never contains the value."""

    def __init__(self, expected: str, value: Any) -> None:
        found = "null" if value is None else f"a value of type {type(value).__name__}"
        super().__init__(f"expected {expected}, but got {found}")


def read_str(value: Any) -> str:
    # Not str(value): the number 5 must not become the id "5".
    if not isinstance(value, str):
        raise MismatchError("a string", value)
    return one_line(value)


def one_line(text: str) -> str:
    """Return the text without line breaks, control characters, and characters that reorder text.

    Each is replaced, because dropping it could turn the id of one instance into another's.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else " " if each.isspace() else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


def read_int(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise MismatchError("a whole number", value)


def read_float(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise MismatchError("a finite number", value)
    return number


def read_mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MismatchError("an object", value)
    return _cleaned_mapping(value)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, dict):
        return _cleaned_mapping(value)
    return [_cleaned(each) for each in value] if isinstance(value, list) else value


def _cleaned_mapping(value: dict[str, Any]) -> dict[str, Any]:
    return {one_line(name): _cleaned(each) for name, each in value.items()}


def read_datetime(value: Any) -> datetime | None:
    # Timestamps are only displayed. A wrong value must not make the whole entry invalid, because it could
    # then not be stopped.
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


READERS: dict[Any, Callable[[Any], object]] = {
    str: read_str,
    int: read_int,
    float: read_float,
    bool: bool,
    datetime: read_datetime,
    Mapping[str, Any]: read_mapping,
}
