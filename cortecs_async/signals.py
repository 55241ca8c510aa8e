"""Turn signals into a cancellation, for programs that do not handle shutdown themselves."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from ._aio.eventloop import loop_runner
from ._aio.scopes import CancellableBlock
from ._aio.wakeup import woken_by_signals
from ._errors import ConfigurationError
from ._hints import hinted


@hinted
class cancel_on_sigterm:  # noqa: N801  (used as a function is)
    """Cancels its block when SIGTERM arrives: `async with cancel_on_sigterm():`.

    By default, SIGTERM ends a Python program immediately. The reaper then releases its instances, a few
    seconds later and without a receipt. In this block, SIGTERM cancels the block, its instances are
    released, and `SystemExit` ends the program with status 143, which shells report for SIGTERM. Further
    signals change nothing. SIGKILL still ends the program immediately, and leaves the release to the
    reaper.

    Use it around the whole program, in the main thread. Do not use it in a server with its own signal
    handlers (uvicorn, hypercorn, gunicorn): release instances in the server's lifespan instead.

    Args:
        *signals: Signals to handle instead of SIGTERM, such as `signal.SIGHUP`.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals or (signal.SIGTERM,)
        self._block = CancellableBlock()
        self._received: int | None = None
        self._previous_handlers: dict[signal.Signals, Any] = {}
        self._wakeup = contextlib.ExitStack()
        self._run_in_loop: Callable[[Callable[[], object]], object] = lambda _: None

    async def __aenter__(self) -> Self:
        """Begin to handle the signals.

        Raises:
            ConfigurationError: outside the main thread, where Python delivers no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("cancel_on_sigterm() works in the main thread only")
        self._run_in_loop = loop_runner()
        self._wakeup.enter_context(woken_by_signals())
        self._block.enter()
        self._previous_handlers = {each: signal.signal(each, self._receive) for each in self._signals}
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Restore the previous signal handlers.

        Raises:
            SystemExit: with 128 + the number of the signal, if one arrived and the block raised no other
            error.
        """
        outcome, interrupted = await self._block.leave(exc)
        for each, handler in self._previous_handlers.items():
            signal.signal(each, handler)
        self._wakeup.close()
        if self._received is not None and (interrupted or outcome is None):
            raise SystemExit(128 + self._received)
        if outcome is not None and outcome is not exc:
            raise outcome

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            # A signal handler can interrupt any code, so the event loop must cancel the block.
            self._run_in_loop(self._block.cancel)
