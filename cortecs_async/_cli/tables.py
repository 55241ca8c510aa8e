"""Consoles and tables drawn with rich. Import this module where something is drawn: rich is slow to load."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .output import COLUMN_GAP, UNLIMITED, best_effort, cell_text, replace_unencodable, wrap


def stdout_console() -> Console:
    """Return a console for standard output. Without a terminal, it has no colors and does not wrap."""
    is_terminal = sys.stdout.isatty()
    replace_unencodable()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else UNLIMITED)


def stderr_console() -> Console:
    """Return a console for standard error, which may disappear."""
    return Console(file=best_effort(sys.stderr), highlight=False, soft_wrap=not sys.stderr.isatty())


def make_table(
    width: int,
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    optional: Sequence[str] = (),
    wrapped: Sequence[str] = (),
) -> Table:
    """Make a table. None becomes a dash. Only words longer than a line are broken.

    Args:
        width: The maximum width of the table in characters.
        columns: The headings.
        rows: The cells.
        optional: Columns to leave out, in this order, until the others fit.
        wrapped: Columns whose cells can then wrap to several lines. If the others still do not fit, each row
            becomes several lines with one cell each.
    """
    # As Text, so that markup from the service, such as [red], has no effect.
    texts = [[Text(cell_text(cell)) for cell in row] for row in rows]
    rows_by_name = [dict(zip(columns, row, strict=True)) for row in texts]
    shown, removable = list(columns), list(optional)
    while True:
        cells = {name: [name, *(row[name].plain for row in rows_by_name)] for name in shown}
        widest = {name: max(map(cell_len, cells[name])) for name in shown}
        narrowest = {
            name: max(cell_len(word) for cell in cells[name] for word in cell.split() or [""])
            if name in wrapped
            else widest[name]
            for name in shown
        }
        gaps = COLUMN_GAP * (len(shown) - 1)
        if sum(widest.values()) + gaps <= width:
            break
        if not removable:
            if sum(narrowest.values()) + gaps > width and len(shown) > 1:
                return _stack(width, shown, rows_by_name)
            break
        shown.remove(removable.pop(0))
    headers = (
        Column(name, overflow="fold", no_wrap=name not in wrapped, min_width=narrowest[name])
        for name in shown
    )
    table = Table(*headers, box=None, pad_edge=False, header_style="bold")
    for row in rows_by_name:
        table.add_row(*(row[name] for name in shown))
    if sum(widest.values()) + gaps > width:
        table.width = width  # wraps the cells
    return table


def _stack(width: int, columns: Sequence[str], rows: Iterable[Mapping[str, Text]]) -> Table:
    """Make a table of one column, with one cell per line, for rows wider than the terminal."""
    table = Table(Column(overflow="fold"), box=None, pad_edge=False, show_header=False, width=width)
    for row in rows:
        first, *others = columns
        table.add_row(Text(row[first].plain, "bold"))
        for name in others:
            table.add_row(Text(wrap(f"{name}: {row[name].plain}", width, "  ", "    ")))
    return table
