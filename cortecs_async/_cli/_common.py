"""What the commands share: settings, output for people and for programs, errors, exit statuses."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import anyio
import attrs
import click
from dotenv import dotenv_values
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from .. import CortecsError

T = TypeVar("T")

# The only variables that are taken from a .env file: what this command line reads. A file that lies about in
# a working directory must not set anything else, such as the PATH of a command that is run.
_TAKEN = ("CORTECS_", "OPENAI_API_KEY")

FAILED = 1
USAGE = 2
INTERRUPTED = 130


def load_env_file(path: Path | None) -> None:
    """Sets what a .env file says of this account and the environment does not.

    Args:
        path: The file; None for `.env` in the working directory, where there is one.

    Raises:
        click.ClickException: when it cannot be read.
    """
    try:
        values = dotenv_values(path or Path(".env"), interpolate=False)
    except (OSError, UnicodeDecodeError) as error:
        raise click.ClickException(f"{path or '.env'} cannot be read: {error}") from None
    for name, value in values.items():
        if value and name.startswith(_TAKEN):
            os.environ.setdefault(name, value)


def set_up_logging(verbosity: int) -> None:
    """Shows the log of the SDK on standard error.

    Args:
        verbosity: -1 for what is critical, 0 for warnings, 1 for what happens, 2 for every request.
    """
    level = {-1: logging.CRITICAL, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    handler = RichHandler(
        console=errors(), show_time=False, show_path=False, show_level=False, markup=False, highlighter=None
    )
    logger = logging.getLogger("cortecs_async")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def output() -> Console:
    """Standard output, with colours only on a terminal that has them, and never cut to a width elsewhere."""
    return Console(highlight=False, soft_wrap=not sys.stdout.isatty())


def errors() -> Console:
    """Standard error, for everything that is not the result."""
    return Console(stderr=True, highlight=False, soft_wrap=not sys.stderr.isatty())


def say(text: str) -> None:
    """A line for people on standard error, unless they asked for quiet."""
    context = click.get_current_context(silent=True)
    if context is None or not context.find_root().params.get("quiet"):
        click.echo(text, err=True)


def run(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Runs a coroutine, and turns what it raises into one line and an exit status."""
    try:
        return anyio.run(main, *args)
    except CortecsError as error:
        raise click.ClickException("\n".join([str(error), *getattr(error, "__notes__", [])])) from None
    except KeyboardInterrupt:
        interrupted()


def interrupted() -> NoReturn:
    """Ends after Ctrl-C, as a shell expects it."""
    say("interrupted")
    sys.exit(INTERRUPTED)


def print_json(value: object) -> None:
    """Data classes and plain values as JSON on standard output."""
    click.echo(json.dumps(to_plain(value), indent=2, ensure_ascii=False))


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


def print_table(columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """A table on standard output; None is shown as a dash."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*("-" if each is None else str(each) for each in row))
    output().print(table)
