"""The display of data: one line for `str`, and a table for notebooks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any


class Row:
    """Data that a notebook shows as a table with one row. A list of rows is one table."""

    __slots__ = ()

    def _columns(self) -> Mapping[str, object]:
        """Return the cells of the row by column title."""
        raise NotImplementedError

    def _repr_html_(self) -> str:
        return html_table([self._columns()])


def html_table(rows: Iterable[Mapping[str, object]]) -> str:
    """Return rows with the same columns as an HTML table, with everything escaped."""
    cells = list(rows)
    if not cells:
        return "<p>none</p>"
    import html  # noqa: PLC0415  (slow to import)

    head = "".join(f"<th>{html.escape(title)}</th>" for title in cells[0])
    body = "".join(f"<tr>{''.join(map(_cell, row.values()))}</tr>" for row in cells)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


class Share(float):
    """A share from 0 to 1, shown as a bar in tables."""

    __slots__ = ()


def _cell(value: object) -> str:
    import html  # noqa: PLC0415

    if isinstance(value, Share):
        return f'<td><progress value="{value:.3f}" max="1"></progress></td>'
    shown = "" if value is None else f"{value:%Y-%m-%d %H:%M:%S}" if isinstance(value, datetime) else value
    return f"<td>{html.escape(str(shown))}</td>"


def duration_text(seconds: float) -> str:
    """Format a duration as the client accepts it, such as `1m30s`, or an empty string if infinite."""
    if not math.isfinite(seconds):
        return ""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole % 60:02}s" if minutes else f"{whole}s"


def time_text(moment: float) -> str:
    """Format a Unix time in UTC, or an empty string if it is out of range for dates."""
    try:
        return f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):
        return ""


def money_text(amount: float | None, currency: str) -> str:
    """Format a cost, or an empty string if it is unknown."""
    return "" if amount is None else f"{amount:.2f} {currency}".rstrip()


def price_text(price: float | None, currency: str) -> str:
    """Format a price, which can be less than a cent, or an empty string if it is unknown."""
    return "" if price is None else f"{price:.4g} {currency}".rstrip()


def joined(*parts: Any) -> str:
    """Join the nonempty parts with commas."""
    return ", ".join(str(each) for each in parts if each)
