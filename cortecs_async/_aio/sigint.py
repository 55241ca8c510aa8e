"""Ctrl-C on asyncio while something must be released: it always cancels, even if pressed repeatedly.

`asyncio.run` cancels the main task at the first Ctrl-C. At the next one, it raises KeyboardInterrupt in
whatever code the event loop is running. Between two task steps, this loses the wake-up the loop was about to
deliver: the waiting task never runs again, `asyncio.run` waits for that task forever, and the reaper waits
for this process to exit.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
from types import FrameType
from typing import Any, TypeGuard

# Seconds after which an event loop that has not handled a Ctrl-C counts as blocked by a task's code.
BLOCKED = 1.0


class SigintGuard:
    """Handles Ctrl-C in one run of an event loop while something must be released. Counts its holders.

    Every Ctrl-C cancels the main task, not only the first. A cancellation does not reach a task whose code
    blocks the loop. So if the loop has not handled a Ctrl-C within a second, the next one raises
    KeyboardInterrupt in that code.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, previous: functools.partial[Any]) -> None:
        self._loop = loop
        self._previous = previous
        self._main: asyncio.Task[Any] = previous.keywords["main_task"]
        self._runner: Any = previous.func.__self__  # type: ignore[attr-defined]  # a method's
        self._holders = 0
        self._unhandled_since: float | None = None

    @classmethod
    def acquire(cls) -> SigintGuard | None:
        """Start handling Ctrl-C, because something must be released.

        Returns:
            The guard to `release` afterward, or None if `asyncio.run` does not handle Ctrl-C here.
        """
        if threading.current_thread() is not threading.main_thread():
            return None
        handler = signal.getsignal(signal.SIGINT)
        current = getattr(handler, "__self__", None)
        if not isinstance(current, SigintGuard):
            if not _is_of_runner(handler):
                return None
            current = cls(asyncio.get_running_loop(), handler)
            signal.signal(signal.SIGINT, current.handle)
        elif current._loop.is_closed():
            # A lease from an earlier run was never exited. This run does not have a handler.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return None
        current._holders += 1
        return current

    def release(self) -> None:
        """End an `acquire`, after a release or when the release is left to the reaper."""
        self._holders -= 1
        # The garbage collector calls this in any thread; only the main thread can set signal handlers.
        if self._holders or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) == self.handle:
            # The runner removes its own handler when the main task has ended, but not this one.
            signal.signal(signal.SIGINT, signal.default_int_handler if self._main.done() else self._previous)

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self._loop.is_closed():
            signal.signal(number, signal.default_int_handler)
            signal.default_int_handler(number, frame)
        now = time.monotonic()
        is_blocked = self._unhandled_since is not None and now - self._unhandled_since >= BLOCKED
        # Without a current task, the loop is only slow and would lose a wake-up.
        if is_blocked and asyncio.current_task(self._loop) is not None:
            raise KeyboardInterrupt
        first = self._runner._interrupt_count == 0  # noqa: SLF001  (the next one would be raised)
        if first and not self._main.done():
            # The runner counts it in order to raise KeyboardInterrupt when the main task ends.
            self._previous(number, frame)
        else:
            self._loop.call_soon_threadsafe(self._cancel_again)
        if self._unhandled_since is None:
            self._unhandled_since = now
            self._loop.call_soon_threadsafe(self._mark_handled)

    def _mark_handled(self) -> None:
        self._unhandled_since = None

    def _cancel_again(self) -> None:
        self._main.cancel()
        # If more than one is counted, the runner attributes the cancellation to other code.
        if self._main.cancelling() > 1:
            self._main.uncancel()


def _is_of_runner(handler: object) -> TypeGuard[functools.partial[Any]]:
    """Return whether `asyncio.Runner` handles Ctrl-C as in Python 3.11 to 3.13."""
    if not isinstance(handler, functools.partial) or "main_task" not in handler.keywords:
        return False
    runner = getattr(handler.func, "__self__", None)
    return isinstance(runner, asyncio.Runner) and hasattr(runner, "_interrupt_count")
