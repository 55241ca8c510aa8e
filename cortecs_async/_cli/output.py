"""Output for people and for programs: notes, errors, times, amounts, tables and JSON."""

from __future__ import annotations

import contextlib
import json
import math
import sys
from collections.abc import Callable, Generator, Iterable, Sequence
from datetime import datetime
from typing import IO, Any, TextIO, TypeVar, cast

import attrs
import click
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from .. import CortecsError, Instance, Progress
from ..errors import APIStatusError, InstanceGoneError, StartTimeoutError
from ..integrations.rich import ProvisioningBar

T = TypeVar("T")

# Columns of standard output when it is not a terminal, so that no line is wrapped.
_UNLIMITED = 100_000

# Hints for errors on the command line.
_HINTS: tuple[tuple[type[CortecsError], str], ...] = (
    (InstanceGoneError, "Run `cortecs-async ls` to list your instances."),
    (StartTimeoutError, "Pass --start-timeout to allow more time."),
)

# The published reference names only "stopped". The others are inferred.
_FINAL_STATUSES = frozenset({"stopped", "failed", "error", "terminated", "deleted"})


def sanitize(value: T) -> T:
    """Replace control characters in a text, or in all texts of a data class, so that a terminal obeys none.

    Line ends stay.
    """
    kind: Any = type(value)
    changed: Any = value
    if isinstance(value, str):
        changed = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in value)
    elif isinstance(value, tuple):
        changed = tuple(sanitize(each) for each in value)
    elif attrs.has(kind):
        changes = {each.name: sanitize(getattr(value, each.name)) for each in attrs.fields(kind)}
        changed = attrs.evolve(changed, **changes)
    return cast("T", changed)


def one_line(value: object) -> str:
    """Format a value on one line, such as for a row of a table."""
    return sanitize(str(value)).replace("\n", " ")


def format_time(time: float | datetime) -> str:
    """Format a Unix timestamp in local time, or a datetime in its own time zone."""
    if time == math.inf:
        return "never"
    try:
        moment = time if isinstance(time, datetime) else datetime.fromtimestamp(time).astimezone()
    except (ValueError, OverflowError, OSError):  # beyond the range of dates
        return "in the far future" if cast("float", time) > 0 else "in the far past"
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}".rstrip()


def format_money(amount: float, currency: str) -> str:
    """Format an amount of money. The currency may be empty."""
    return f"{amount:.2f} {currency}".rstrip()


def count(number: int, noun: str) -> str:
    """Format a count: `1 instance`, `2 instances`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def step_text(instance: Instance) -> str | None:
    """Format the step of a start, by the worker that is furthest. None if the service reports no step."""
    step = Progress(instance=instance, elapsed=0.0).leading
    if not step.num_steps:
        return step.description or None
    return f"{step.current_step}/{step.num_steps} {step.description}".rstrip()


def has_ended(instance: Instance) -> bool:
    """Return whether the instance has stopped or failed. Only a restart brings it back."""
    return instance.status.lower() in _FINAL_STATUSES


def error_text(error: CortecsError) -> str:
    """Format an error with its notes and a hint for the command line; -v adds the response of the service."""
    lines = [str(error)]
    if isinstance(error, APIStatusError) and error.body and is_verbose():
        lines.append(f"response: {one_line(error.body)}")
    lines += [hint for kind, hint in _HINTS if isinstance(error, kind)]
    return sanitize("\n".join([*lines, *getattr(error, "__notes__", [])]))


def stdout_console() -> Console:
    """Return a console for standard output. Off a terminal it has no colors and never wraps a line."""
    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else _UNLIMITED)


def stderr_console() -> Console:
    """Return a console for standard error, which may disappear."""
    stream = cast("IO[str]", _BestEffortStream(sys.stderr))
    return Console(file=stream, highlight=False, soft_wrap=not sys.stderr.isatty())


class _BestEffortStream:
    """A stream that ignores write errors.

    Closing the terminal window or the other end of a pipe must not end what reports there, such as a lease.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def is_quiet() -> bool:
    return _has_option("quiet")


def is_verbose() -> bool:
    return _has_option("verbose")


def _has_option(name: str) -> bool:
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get(name))


def print_note(text: str) -> None:
    """Print a line on standard error, unless --quiet was given."""
    if not is_quiet():
        print_warning(text)


def print_warning(text: str) -> None:
    """Print a line on standard error, even with --quiet: a failure, or an instance that is still billed."""
    # If the terminal has disappeared, the release must still continue.
    with contextlib.suppress(OSError):
        click.echo(sanitize(text), err=True)


def print_nothing_left(cancelled: BaseException) -> None:
    """Print that a cancelled start left no instance behind, if that is so."""
    # A failed release is noted on the cancellation, and is in the log already.
    if not hasattr(cancelled, "__notes__"):
        print_note("No instance was left behind.")


@contextlib.contextmanager
def start_progress() -> Generator[Callable[[Progress], None] | None]:
    """Show the progress of a start on standard error. Yields an `on_progress`; None with --quiet."""
    if is_quiet():
        yield None
        return
    with ProvisioningBar(stderr_console()) as bar:
        yield lambda progress: bar(sanitize(progress))


def print_json(value: object) -> None:
    click.echo(to_json(value, indent=2))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return data classes and plain values as JSON in which control characters are escaped."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_to_plain)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def _to_plain(value: Any) -> object:
    # `json` calls this for objects that it cannot write itself, including those in the result.
    return value.isoformat() if isinstance(value, datetime) else attrs.asdict(value, recurse=False)


def print_facts(facts: Iterable[tuple[str, object]], *, err: bool = False) -> None:
    """Print names and values, one pair a line. Leaves out None and empty texts.

    With `err`, print them on standard error, and ignore that it cannot be written.
    """
    shown = [(name, one_line(value)) for name, value in facts if value not in {None, ""}]
    width = max(len(name) for name, _ in shown)
    with contextlib.suppress(*([OSError] if err else [])):
        for name, value in shown:
            click.echo(f"{click.style(f'{name:{width}}', bold=True)}  {value}", err=err)


def print_list(
    found: Sequence[T],
    columns: Sequence[str],
    row: Callable[[T], Iterable[object]],
    *,
    optional: Sequence[str] = (),
    empty: str,
    as_json: bool,
) -> None:
    """Print objects on standard output, as JSON or as a table. `empty` is a note for an empty table."""
    if as_json:
        print_json(found)
    elif found:
        console = stdout_console()
        console.print(make_table(console.width, columns, map(row, found), optional=optional))
    else:
        print_note(empty)


def make_table(
    width: int, columns: Sequence[str], rows: Iterable[Iterable[object]], *, optional: Sequence[str] = ()
) -> Table:
    """Make a table. None becomes a dash.

    Args:
        width: The widest that the table may be, in characters.
        columns: The headings. The id in the first column is never wrapped, because people copy it.
        rows: The cells.
        optional: Columns to leave out, in this order, until the others fit.
    """
    # As Text, so that markup from the service, such as [red], has no effect.
    texts = [[Text("-" if cell is None else one_line(cell)) for cell in row] for row in rows]
    rows_by_name = [dict(zip(columns, row, strict=True)) for row in texts]
    unlimited = Console(width=_UNLIMITED)
    shown, removable = list(columns), list(optional)
    while True:
        headers = (Column(name, overflow="fold", no_wrap=name == columns[0]) for name in shown)
        table = Table(*headers, box=None, pad_edge=False, header_style="bold")
        for row in rows_by_name:
            table.add_row(*(row[name] for name in shown))
        if unlimited.measure(table).maximum <= width:
            return table
        if not removable:
            table.width = width  # wraps the cells
            return table
        shown.remove(removable.pop(0))
