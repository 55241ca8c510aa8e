"""The string formats that the emulated model can write."""

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Final

import attrs


@attrs.frozen
class Format:
    """A string format, with functions to check and to write a string."""

    pattern: str
    """Good enough to check existing strings, such as a default. Written strings match in any case."""
    write: Callable[[int], str]
    """Writes a string for a number. It is different for each number below a few hundred."""

    def matches(self, value: str) -> bool:
        return re.fullmatch(self.pattern, value, re.ASCII) is not None


def _date(number: int) -> str:
    return str(dt.date(2025, 1, 1) + dt.timedelta(days=number))


def _time(number: int) -> str:
    return f"{number // 60 % 24:02}:{number % 60:02}:00Z"


_DATE: Final = r"\d{4}-(0[1-9]|1[0-2])-(0[1-9]|[12]\d|3[01])"
_TIME: Final = r"([01]\d|2[0-3]):[0-5]\d:[0-5]\d(\.\d+)?(Z|[+-]([01]\d|2[0-3]):[0-5]\d)"
_OCTET: Final = r"(25[0-5]|2[0-4]\d|1?\d?\d)"
_HOST: Final = r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*"

# These names and addresses are reserved for examples, so messages sent there never arrive.
FORMATS: Final[Mapping[str, Format]] = {
    "date": Format(_DATE, _date),
    "date-time": Format(f"{_DATE}[Tt ]{_TIME}", lambda number: f"{_date(number)}T00:00:00Z"),
    "time": Format(_TIME, _time),
    "duration": Format(r"P(?=\w)(\d+[YMWD])*(T(\d+[HMS])+)?", lambda number: f"P{number + 1}D"),
    "email": Format(rf"[\w.+-]+@{_HOST}", lambda number: f"someone{number or ''}@example.com"),
    "hostname": Format(_HOST, lambda number: f"host{number or ''}.example.com"),
    "ipv4": Format(rf"({_OCTET}\.){{3}}{_OCTET}", lambda number: f"192.0.2.{number % 255 + 1}"),
    "ipv6": Format(r"[0-9A-Fa-f:]*:[0-9A-Fa-f:.]*", lambda number: f"2001:db8::{number + 1:x}"),
    "uri": Format(
        r"[A-Za-z][A-Za-z0-9+.-]*:[^\s<>\"{}|\\^`]+", lambda number: f"https://example.com/{number or ''}"
    ),
    "uuid": Format(
        r"[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}",
        lambda number: f"00000000-0000-4000-8000-{number:012x}",
    ),
    # These allow any string.
    **dict.fromkeys(("binary", "password", "path"), Format(r"(?s:.*)", lambda number: f"emulated-{number}")),
}
