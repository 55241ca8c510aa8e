"""The runtime of the commands: event loop, exit statuses, signals, and optional packages."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

import cortecs_async

from .output import LibraryError, print_note

if TYPE_CHECKING:
    from .. import AsyncCortecs
    from ..signals import cancel_on_sigterm

T = TypeVar("T")

FAILED = 1
INTERRUPTED = 130


def run_async(main: Callable[..., Awaitable[T]], *args: Any) -> T:
    """Run a coroutine function. An SDK error becomes one message and exit status 1."""

    async def run() -> T:
        try:
            return await main(*args)
        finally:
            # While the event loop shuts down, a KeyboardInterrupt could be raised anywhere in asyncio.
            if is_main and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
                signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

    import anyio  # noqa: PLC0415  (slow to import)

    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        return anyio.run(run)
    except cortecs_async.CortecsError as error:
        raise LibraryError(error) from None
    except KeyboardInterrupt:
        exit_interrupted()
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)


def call_api(request: Callable[[AsyncCortecs], Awaitable[T]], *, anonymous: bool = False) -> T:
    """Send a request that does not start an instance, and return its result."""

    async def main() -> T:
        async with cortecs_async.AsyncCortecs(guard="off", anonymous=anonymous) as client:
            return await request(client)

    return run_async(main)


def exit_interrupted() -> NoReturn:
    with contextlib.suppress(KeyboardInterrupt):
        print_note("Interrupted.")
    sys.exit(INTERRUPTED)


def cancel_on_signals(*more: signal.Signals) -> cancel_on_sigterm:
    """Return a context manager that cancels its block on a termination signal or one of `more` signals."""
    from ..signals import cancel_on_sigterm  # noqa: PLC0415  (loads an event loop)

    return cancel_on_sigterm(*more, *termination_signals())


def termination_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM and SIGHUP. SIGHUP is left out if it is ignored, as under `nohup`."""
    if sys.platform == "win32":
        return (signal.SIGTERM,)
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if ignored else (signal.SIGTERM, signal.SIGHUP)


def import_optional(module: str, extra: str) -> ModuleType:
    """Import a module that needs optional packages. If one is missing, exit and suggest the extra."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        from .._extras import install_command  # noqa: PLC0415  (only for an error)

        raise click.ClickException(
            f"This command needs {error.name or module}. Install it with: {install_command(extra)}"
        ) from None
