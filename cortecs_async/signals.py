"""Signals as cancellation, for programs that nothing else shuts down in order."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any, Self

from ._aio.eventloop import in_trio
from ._aio.scopes import CancellableBlock
from ._errors import ConfigurationError


class cancel_on_sigterm:  # noqa: N801  (used as a function is)
    """Turns SIGTERM into a cancellation of the block: `async with cancel_on_sigterm():`.

    Without it, SIGTERM ends a Python program on the spot; the reaper then hands its instances back, seconds
    later and without a receipt. With it, the block is cancelled, what it holds is released in order, and
    `SystemExit` ends the program with status 143, as a shell reports a program that SIGTERM has ended. More
    of the same signal change nothing: only SIGKILL is faster, and the reaper is there for that.

    Put it around everything, in the main thread. Not under a server that has handlers of its own (uvicorn,
    hypercorn, gunicorn): those end their lifespan in order, and an instance that is held there with it.

    Args:
        *signals: Others than SIGTERM, such as `signal.SIGHUP`.
    """

    def __init__(self, *signals: signal.Signals) -> None:
        self._signals = signals or (signal.SIGTERM,)
        self._block = CancellableBlock()
        self._received: int | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._soon: Callable[[Callable[[], object]], object] = _nowhere

    async def __aenter__(self) -> Self:
        """Begins to listen.

        Raises:
            ConfigurationError: outside the main thread, where Python delivers no signals.
        """
        if threading.current_thread() is not threading.main_thread():
            raise ConfigurationError("cancel_on_sigterm() works in the main thread only")
        if in_trio():
            import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

            self._soon = trio.lowlevel.current_trio_token().run_sync_soon
        else:
            self._soon = asyncio.get_running_loop().call_soon_threadsafe
        self._block.enter()
        self._before = {each: signal.signal(each, self._receive) for each in self._signals}
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Listens no more.

        Raises:
            SystemExit: with 128 + the signal's number, when one came and the block raised nothing else.
        """
        outcome, interrupted = await self._block.leave(exc)
        for each, handler in self._before.items():
            signal.signal(each, handler)
        if self._received is not None and (interrupted or outcome is None):
            raise SystemExit(128 + self._received)
        if outcome is not None and outcome is not exc:
            raise outcome

    def _receive(self, number: int, _: FrameType | None) -> None:
        if self._received is None:
            self._received = number
            # The handler runs between two instructions of whatever runs just then: the loop must do it.
            self._soon(self._block.cancel)


def _nowhere(work: Callable[[], object]) -> None:
    """Before the block there is no loop to tell."""
