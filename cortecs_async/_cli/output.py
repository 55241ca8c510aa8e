"""Output for people and for programs: notes, errors, times, amounts, tables, and JSON."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Generator, Iterable
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, TextIO, TypeVar, cast

import click

from .options import JSON
from .wording import to_command_line

if TYPE_CHECKING:
    from .. import CortecsError, Instance
    from ..errors import MissingCredentialsError

T = TypeVar("T")

# Spaces between two columns of a table.
COLUMN_GAP = 2

# Columns of standard output when it is not a terminal, so that no line is wrapped.
UNLIMITED = 100_000

# The published reference lists "pending", "running", and "stopped". "stopping" comes before "stopped".
STATUSES = ("pending", "running", "stopping", "stopped")

# The published reference lists only "stopped". The other statuses are assumed.
FINAL_STATUSES = frozenset({"stopped", "failed", "error", "terminated", "deleted"})


def sanitize(value: T) -> T:
    """Replace control characters in text, or in all text of a data class, so that a terminal ignores them.

    Line breaks stay.
    """
    kind: Any = type(value)
    changed: Any = value
    if isinstance(value, str):
        changed = "".join(char if char.isprintable() or char == "\n" else "\ufffd" for char in value)
        return cast("T", changed)
    import attrs  # noqa: PLC0415  (slow to import; with a data class, it is loaded already)

    if isinstance(value, tuple):
        changed = tuple(sanitize(each) for each in value)
    elif attrs.has(kind):
        changes = {each.name: sanitize(getattr(value, each.name)) for each in attrs.fields(kind)}
        changed = attrs.evolve(changed, **changes)
    return cast("T", changed)


def one_line(value: object) -> str:
    """Format a value on one line, such as for a row of a table."""
    return sanitize(str(value)).replace("\n", " ")


def wrap(text: str, width: int, indent: str = "", next_indent: str | None = None) -> str:
    """Wrap a text at spaces. A word longer than a line stays whole."""
    import textwrap  # noqa: PLC0415  (only for help and terminals)

    return textwrap.fill(
        text,
        max(width, 1),
        initial_indent=indent,
        subsequent_indent=indent if next_indent is None else next_indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def wrap_for_stderr(text: str) -> str:
    """Wrap the lines that are wider than the terminal, if standard error is one."""
    width = _terminal_width(sys.stderr)
    return "\n".join(line if len(line) <= width else wrap(line, width) for line in text.split("\n"))


def _terminal_width(stream: TextIO) -> int:
    if not stream.isatty():
        return UNLIMITED
    import shutil  # noqa: PLC0415  (slow to import)

    return shutil.get_terminal_size().columns


@contextlib.contextmanager
def wrap_errors() -> Generator[None]:
    """Wrap click's messages for a narrow terminal."""
    try:
        yield
    except click.ClickException as error:
        prefix = "Error:_"  # click writes it, with a space, before the first word
        text = wrap_for_stderr(prefix + error.format_message()).removeprefix(prefix)
        setattr(error, "format_message", lambda: text)  # noqa: B010  (mypy rejects the assignment)
        raise


def format_time(time: float | datetime) -> str:
    """Format a Unix timestamp or a datetime in local time, with the time zone."""
    if time == math.inf:
        return "never"
    try:
        moment = (time if isinstance(time, datetime) else datetime.fromtimestamp(time, UTC)).astimezone()
    except (ValueError, OverflowError, OSError):  # outside the range of dates
        return "in the far future" if cast("float", time) > 0 else "in the far past"
    return f"{moment:%Y-%m-%d %H:%M:%S %Z}".rstrip()


def format_money(amount: float, currency: str) -> str:
    """Format an amount of money. The currency may be empty."""
    return f"{amount:.2f} {currency}".rstrip()


def count(number: int, noun: str) -> str:
    """Format a count: `1 instance`, `2 instances`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def step_text(instance: Instance) -> str | None:
    """Format the startup step that the fastest worker has reached, or None if the service reports no step."""
    from .. import Progress  # noqa: PLC0415  (loaded with the instance)

    step = Progress(instance=instance, elapsed=0.0).leading
    if not step.num_steps:
        return step.description or None
    return f"{step.current_step}/{step.num_steps} {step.description}".rstrip()


def has_ended(instance: Instance) -> bool:
    """Return whether the instance has stopped or failed. Only a restart makes it run again."""
    return instance.status.lower() in FINAL_STATUSES


def error_text(error: CortecsError) -> str:
    """Format an error with its notes for the command line. -v adds the service's response."""
    from ..errors import APIStatusError, MissingCredentialsError  # noqa: PLC0415  (loaded with the error)

    text = _missing_text(error) if isinstance(error, MissingCredentialsError) else str(error)
    lines = [to_command_line(text)]
    if isinstance(error, APIStatusError) and error.body and is_verbose():
        lines.append(f"response: {one_line(error.body)}")
    notes = getattr(error, "__notes__", [])
    return sanitize("\n".join([*lines, *map(to_command_line, notes)]))


class LibraryError(click.ClickException):
    """A library error, shown as a command's message. The last line tells how to get help for it.

    Args:
        error: The error.
        text: The text to print instead of its message.
    """

    def __init__(self, error: CortecsError, text: str | None = None) -> None:
        super().__init__(error_text(error) if text is None else text)
        self._names = help_names(error)  # now, because no command is running when this is shown

    def show(self, file: IO[Any] | None = None) -> None:
        super().show(file)
        _print_help_names(self._names)


def print_help_lines(*errors: CortecsError) -> None:
    """Print how to get help for each error class, once per class, below the error messages."""
    _print_help_names(help_names(*errors))


def help_names(*errors: CortecsError) -> tuple[str, ...]:
    """Return the error classes to list below the messages: none with --quiet, and none for programs."""
    if is_quiet() or _has_option(JSON):
        return ()
    from ..errors import CortecsError  # noqa: PLC0415  (loaded with the errors)

    # The help for the base class explains nothing.
    return tuple(dict.fromkeys(type(each).__name__ for each in errors if type(each) is not CortecsError))


def _print_help_names(names: Iterable[str]) -> None:
    from .program import program  # noqa: PLC0415  (only for an error)

    for name in names:
        with contextlib.suppress(OSError):
            click.secho(f"More: {program()} help {name}", dim=True, err=True)


def _missing_text(error: MissingCredentialsError) -> str:
    """List the missing credentials. Messages about one of the two, or about a profile, stay as they are."""
    if error.profile or len(error.missing) != 2:
        return str(error)
    variables = " and ".join(f"CORTECS_{name.upper()}" for name in error.missing)
    return (
        f"Missing credentials. Set {variables}, or run `cortecs-async login`. Create them on your account "
        "page on cortecs.ai. No account? Try `cortecs-async demo`."
    )


def best_effort(stream: TextIO) -> IO[str]:
    """Return a stream that ignores write errors."""
    return cast("IO[str]", _BestEffortStream(stream))


class _BestEffortStream:
    """A stream that ignores write errors.

    Closing the terminal window or the other end of a pipe must not end work in progress, such as a lease.
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
    """Print a line on standard error, unless --quiet is set."""
    if not is_quiet():
        print_warning(text)


def print_warning(text: str) -> None:
    """Print a line on standard error, even with --quiet, about a failure or an instance still billed."""
    # If the terminal has disappeared, the release must still continue.
    with contextlib.suppress(OSError):
        click.echo(wrap_for_stderr(sanitize(text)), err=True)


def print_nothing_left(cancelled: BaseException) -> None:
    """Print that a cancelled start left no instance behind, if that is so."""
    # A failed release is a note on the cancellation and already in the log.
    if not hasattr(cancelled, "__notes__"):
        print_note("No instances were left behind.")


def print_json(value: object) -> None:
    click.echo(to_json(value, indent=2))


def to_json(value: object, *, indent: int | None = None) -> str:
    """Return data classes and plain values as JSON with escaped control characters."""
    import json  # noqa: PLC0415  (slow to import)

    text = json.dumps(value, indent=indent, ensure_ascii=False, default=_to_plain)
    return "".join(char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text)


def _to_plain(value: Any) -> object:
    # `json` calls this for objects that it cannot write itself, including those in the result.
    if isinstance(value, datetime):
        return value.isoformat()
    import attrs  # noqa: PLC0415  (loaded with the data class)

    fields = attrs.asdict(value, recurse=False)
    return {name: _iso_time(each) if name.endswith("_at") else each for name, each in fields.items()}


def _iso_time(time: object) -> object:
    """Return a Unix timestamp in the service's format: ISO 8601 with the offset from UTC."""
    if not isinstance(time, (int, float)):
        return time
    try:
        return datetime.fromtimestamp(time, UTC)
    except (ValueError, OverflowError, OSError):  # outside the range of dates
        return time


def print_facts(facts: Iterable[tuple[str, object]], *, err: bool = False) -> None:
    """Print names and values, one pair per line, wrapped on a terminal. Leave out None and empty text.

    With `err`, print them on standard error and ignore write errors.
    """
    shown = [(name, one_line(value)) for name, value in facts if value not in {None, ""}]
    width = max(len(name) for name, _ in shown)
    columns = _terminal_width(sys.stderr if err else sys.stdout)
    with contextlib.suppress(*([OSError] if err else [])):
        for name, value in shown:
            # Commands are for copying.
            left = UNLIMITED if name.startswith("to ") else columns - width - 2
            lines = wrap(value, left).replace("\n", f"\n{'':{width + 2}}")
            click.echo(f"{click.style(f'{name:{width}}', bold=True)}  {lines}", err=err)


def cell_text(cell: object) -> str:
    """Return the text of a table's cell. None becomes a dash."""
    return "-" if cell is None else one_line(cell)


def replace_unencodable() -> None:
    """Let a name with a character that the encoding does not have not end the command."""
    if callable(reconfigure := getattr(sys.stdout, "reconfigure", None)):
        reconfigure(errors="replace")
