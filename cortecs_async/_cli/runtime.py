"""The runtime of the commands: logging, event loop, exit statuses, signals, and optional packages."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import Any, NoReturn, TypeVar

import anyio
import click

from .. import AsyncCortecs, CortecsError
from .._extras import install_command
from .output import LibraryError, print_note, sanitize
from .wording import to_command_line

T = TypeVar("T")

FAILED = 1
INTERRUPTED = 130


def set_up_logging(verbosity: int) -> None:
    """Show the log on standard error. -1: only critical messages, 0: warnings, 1: info, 2: all requests."""
    level = {-1: logging.CRITICAL, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logger = logging.getLogger("cortecs_async")
    logger.handlers[:] = [_StderrHandler()]
    logger.setLevel(level)
    logger.propagate = False
    # Even --quiet shows a warning if there is no reaper to release instances.
    logging.getLogger("cortecs_async.guard").setLevel(logging.WARNING if verbosity < 0 else logging.NOTSET)


def allow_log_level_from_environment() -> None:
    """Let CORTECS_LOG set the log level. The first client reads it."""
    if os.environ.get("CORTECS_LOG"):
        logging.getLogger("cortecs_async").setLevel(logging.NOTSET)


class _StderrHandler(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Looks up `sys.stderr` each time, because a live display replaces it while it is drawn.
        with contextlib.suppress(OSError):
            click.echo(sanitize(to_command_line(self.format(record))), err=True)


def run_async(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run a coroutine function. An SDK error becomes one message and exit status 1."""

    async def run() -> T:
        try:
            return await main(*args)
        finally:
            # While the event loop shuts down, a KeyboardInterrupt could be raised anywhere in asyncio.
            if is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return anyio.run(run)
    except CortecsError as error:
        raise LibraryError(error) from None
    except KeyboardInterrupt:
        exit_interrupted()
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)


def call_api(request: Callable[[AsyncCortecs], Awaitable[T]], *, anonymous: bool = False) -> T:
    """Send a request that does not start an instance, and return its result."""

    async def main() -> T:
        async with AsyncCortecs(guard="off", anonymous=anonymous) as client:
            return await request(client)

    return run_async(main)


def exit_interrupted() -> NoReturn:
    with contextlib.suppress(KeyboardInterrupt):
        print_note("Interrupted.")
    sys.exit(INTERRUPTED)


def termination_signals() -> tuple[signal.Signals, ...]:
    """Return the signals for `cancel_on_sigterm`. SIGHUP is left out if it is ignored, as under `nohup`."""
    if sys.platform == "win32":
        return (signal.SIGTERM,)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


def import_optional(module: str, extra: str) -> ModuleType:
    """Import a module that needs optional packages. If one is missing, exit and suggest the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise click.ClickException(
            f"This command needs {error.name or module}. Install it with: {install_command(extra)}"
        ) from None
