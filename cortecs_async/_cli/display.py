"""Tables and startup progress. rich is slow to import, so it is imported only where it draws something."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import TYPE_CHECKING, TypeVar

from .output import COLUMN_GAP, cell_text, is_quiet, print_json, print_note, replace_unencodable, sanitize

if TYPE_CHECKING:
    from .. import Progress

T = TypeVar("T")


@contextlib.contextmanager
def start_progress() -> Generator[Callable[[Progress], None] | None]:
    """Show startup progress on standard error. Yields an `on_progress`, or None with --quiet."""
    if is_quiet():
        yield None
        return
    from ..integrations.rich import ProvisioningBar  # noqa: PLC0415  (slow to import)
    from .tables import stderr_console  # noqa: PLC0415  (slow to import)

    with ProvisioningBar(stderr_console()) as bar:
        yield lambda progress: bar(sanitize(progress))


def print_list(
    found: Sequence[T],
    columns: Sequence[str],
    row: Callable[[T], Iterable[object]],
    *,
    optional: Sequence[str] = (),
    wrapped: Sequence[str] = (),
    empty: str,
    as_json: bool,
) -> None:
    """Print objects on standard output, as JSON or as a table. `empty` is a note for an empty table."""
    if as_json:
        print_json(found)
    elif found:
        print_table(columns, map(row, found), optional=optional, wrapped=wrapped)
    else:
        print_note(empty)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Iterable[object]],
    *,
    optional: Sequence[str] = (),
    wrapped: Sequence[str] = (),
) -> None:
    """Print a table on standard output: with `make_table` on a terminal, otherwise with `plain_table`."""
    if has_terminal_output():
        from .tables import make_table, stdout_console  # noqa: PLC0415  (slow to import)

        console = stdout_console()
        console.print(make_table(console.width, columns, rows, optional=optional, wrapped=wrapped))
    else:
        replace_unencodable()
        # Not with click, which ignores an encoding without umlauts.
        sys.stdout.write(f"{plain_table(columns, rows)}\n")
        sys.stdout.flush()


def plain_table(columns: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a table as text without colors and line breaks, as rich draws it with unlimited width."""
    lines = [[*columns], *([cell_text(cell) for cell in row] for row in rows)]
    widths = [max(map(_cell_len, column)) for column in zip(*lines, strict=True)]
    gap = " " * COLUMN_GAP
    return "\n".join(
        gap.join(cell + " " * (width - _cell_len(cell)) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell_len(text: str) -> int:
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415  (only for wide characters)

    return cell_len(text)


def has_terminal_output() -> bool:
    """Return whether standard output is a terminal, or should be treated like one (see rich's manual)."""
    variables = os.environ.get("FORCE_COLOR"), os.environ.get("TTY_COMPATIBLE") == "1"
    return sys.stdout.isatty() or any(variables)
