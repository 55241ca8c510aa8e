"""What the commands share: settings, output for people and for programs, errors, exit statuses."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Generator, Iterable, Sequence
from datetime import datetime
from typing import IO, Any, NoReturn, TextIO, TypeVar, cast

import anyio
import attrs
import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import AsyncCortecs, CortecsError, Instance, Progress
from ..errors import InstanceGoneError, StartTimeoutError
from ..integrations.rich import ProvisioningBar

T = TypeVar("T")

# Columns of a line that is no terminal's, and between two columns of a table.
_UNLIMITED = 100_000
_GAP = 2

# What the library says to programs, said to people: a line more.
_HINTS: tuple[tuple[type[CortecsError], str], ...] = (
    (InstanceGoneError, "`cortecs-async ls` shows what there is"),
    (StartTimeoutError, "--start-timeout allows more time"),
)

# Beyond "stopped" the published reference names no status that is an end. The others are inferred.
_ENDS = frozenset({"stopped", "failed", "error", "terminated", "deleted"})

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def set_up_logging(verbosity: int) -> None:
    """Shows the log of the SDK on standard error.

    Args:
        verbosity: -1 for what is critical, 0 for warnings, 1 for what happens, 2 for every request.
    """
    level = {-1: logging.CRITICAL, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = _Log()
    logger = logging.getLogger("cortecs_async")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False
    # Who wants quiet still wants to know that nobody is there to hand instances back.
    logging.getLogger("cortecs_async.guard").setLevel(logging.WARNING if verbosity < 0 else logging.NOTSET)


def leave_log_level_to_environment() -> None:
    """Where no option says how much is shown, CORTECS_LOG may: the first client reads it."""
    if os.environ.get("CORTECS_LOG"):
        logging.getLogger("cortecs_async").setLevel(logging.NOTSET)


class _Log(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Not bound to a stream: a live bar takes the place of standard error while it is drawn.
        with contextlib.suppress(OSError):
            click.echo(clean(self.format(record)), err=True)


def clean(text: str) -> str:
    """Text of the service's, harmless on a terminal: line ends stay, other control characters do not."""
    return "".join(each if each.isprintable() or each == "\n" else "\ufffd" for each in text)


def cleaned(value: T) -> T:
    """The same data with all of its text clean: for those who show it in their own way."""
    kind: Any = type(value)
    changed: Any = value
    if isinstance(value, str):
        changed = clean(value)
    elif isinstance(value, tuple):
        changed = tuple(cleaned(each) for each in value)
    elif attrs.has(kind):
        changed = attrs.evolve(
            changed, **{each.name: cleaned(getattr(value, each.name)) for each in attrs.fields(kind)}
        )
    return cast("T", changed)


def moment(unix: float) -> str:
    """A Unix timestamp as people read it; also one that is further off than dates go."""
    if unix == math.inf:
        return "never"
    try:
        return f"{datetime.fromtimestamp(unix).astimezone():%Y-%m-%d %H:%M:%S %Z}".rstrip()
    except (ValueError, OverflowError, OSError):
        return "in the far future" if unix > 0 else "in the far past"


def output() -> Console:
    """Standard output, with colours only on a terminal that has them, and never cut to a width elsewhere."""
    is_terminal = sys.stdout.isatty()
    return Console(highlight=False, soft_wrap=not is_terminal, width=None if is_terminal else _UNLIMITED)


def errors() -> Console:
    """Standard error, for everything that is not the result."""
    forgiving = cast("IO[str]", _Forgiving(sys.stderr))
    return Console(file=forgiving, highlight=False, soft_wrap=not sys.stderr.isatty())


class _Forgiving:
    """Standard error that may go away: a window that is closed, a pipe that nobody reads any more.

    That must not end what is shown on it, a lease for example.
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
    """Whether only results and errors were asked for."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("quiet"))


def is_verbose() -> bool:
    """Whether the log says what happens."""
    context = click.get_current_context(silent=True)
    return context is not None and bool(context.find_root().params.get("verbose"))


def say(text: str) -> None:
    """A line for people on standard error, unless they asked for quiet."""
    if not is_quiet():
        insist(text)


def insist(text: str) -> None:
    """A line for people on standard error, whatever they asked for: what goes on being billed."""
    # A terminal that has gone away must not end what still has to be released.
    with contextlib.suppress(OSError):
        click.echo(clean(text), err=True)


def say_what_is_left(cancelled: BaseException) -> None:
    """Tells those who interrupted a start that nothing is, if that is so."""
    # A release that failed is noted on the cancellation, and is in the log already.
    if not hasattr(cancelled, "__notes__"):
        say("nothing is left of what was started")


@contextlib.contextmanager
def provisioning() -> Generator[Callable[[Progress], None] | None]:
    """What to give as `on_progress`: a bar on standard error, or nothing for those who want quiet."""
    if is_quiet():
        yield None
        return
    with ProvisioningBar(errors()) as bar:
        yield lambda progress: bar(cleaned(progress))


def ending_signals() -> tuple[signal.Signals, ...]:
    """What asks a command to end in order, for `cancel_on_sigterm`: not a SIGHUP that `nohup` ignores."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


def reason(error: CortecsError) -> str:
    """What an error says, with what was noted on it since."""
    hints = [hint for kind, hint in _HINTS if isinstance(error, kind)]
    return clean("\n".join([str(error), *hints, *getattr(error, "__notes__", [])]))


def is_over(instance: Instance) -> bool:
    """Whether it has come to an end, from which only a restart brings it back."""
    return instance.status.lower() in _ENDS


def run(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Runs a coroutine, and turns what it raises into one line and an exit status."""
    try:
        return anyio.run(main, *args)
    except CortecsError as error:
        raise click.ClickException(reason(error)) from None
    except KeyboardInterrupt:
        interrupted()


def ask(question: Callable[[AsyncCortecs], Awaitable[T]]) -> T:
    """The answer of the service to a question that starts nothing."""

    async def main() -> T:
        async with AsyncCortecs(guard="off") as client:
            return await question(client)

    return run(main)


def interrupted() -> NoReturn:
    """Ends after Ctrl-C, as a shell expects it."""
    say("interrupted")
    sys.exit(INTERRUPTED)


def print_json(value: object) -> None:
    """Data classes and plain values as JSON on standard output."""
    click.echo(to_json(value, indent=2))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Data classes and plain values as JSON text, in which what a terminal would obey is escaped."""
    text = json.dumps(to_plain(value), indent=indent, ensure_ascii=False)
    return "".join(each if each.isprintable() or each == "\n" else json.dumps(each)[1:-1] for each in text)


def to_plain(value: object) -> Any:
    """What `json` can write."""
    kind: Any = type(value)
    if attrs.has(kind):
        return {each.name: to_plain(getattr(value, each.name)) for each in attrs.fields(kind)}
    if isinstance(value, dict):
        return {str(name): to_plain(each) for name, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_plain(each) for each in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return value


def print_table(
    columns: Sequence[str], rows: Iterable[Iterable[object]], *, optional: Sequence[str] = ()
) -> None:
    """A table on standard output, of any width where that is no terminal. See `make_table`."""
    console = output()
    console.print(make_table(console.width, columns, rows, optional=optional))


def make_table(
    width: int, columns: Sequence[str], rows: Iterable[Iterable[object]], *, optional: Sequence[str] = ()
) -> Table:
    """A table; None is shown as a dash.

    Args:
        width: How wide it may be.
        columns: Their headings. The first is never broken: it is what people copy.
        rows: The cells.
        optional: Columns that are left out, in this order, where not all have room.
    """
    # As Text, so that [red] in what the service says is no markup.
    texts = [[Text("-" if each is None else clean(str(each))) for each in row] for row in rows]
    widths = {
        name: max([cell_len(name), *(row[at].cell_len for row in texts)]) + _GAP
        for at, name in enumerate(columns)
    }
    for name in optional:
        if sum(widths.values()) - _GAP > width:
            del widths[name]
    natural = sum(widths.values()) - _GAP
    table = Table(box=None, pad_edge=False, header_style="bold", width=width if natural > width else None)
    for name in widths:
        table.add_column(name, overflow="fold", no_wrap=name == columns[0])
    for row in texts:
        table.add_row(*(text for name, text in zip(columns, row, strict=True) if name in widths))
    return table
