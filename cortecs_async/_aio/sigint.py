"""Ctrl-C on asyncio while something is to be released: a cancellation, however often it is pressed.

`asyncio.run` takes the first Ctrl-C as a cancellation of the main task, and raises KeyboardInterrupt out of
the event loop at the next, wherever it is just then. Between two steps of tasks, the wake-up that the loop
was about to deliver is lost with that. The task that waits for it never runs again, `asyncio.run` waits for
it without end, and as the process lives, the reaper waits too.
"""

from __future__ import annotations

import asyncio
import functools
import signal
import threading
import time
from types import FrameType
from typing import Any, TypeGuard

# Seconds after which a loop that has taken no notice of a Ctrl-C is taken to be blocked by a task's code.
BLOCKED = 1.0


class SigintGuard:
    """Counts what must be released in one run of an event loop, and takes its Ctrl-C meanwhile.

    The first cancels the main task, as it would anyway, and so does every other. A task whose code blocks the
    loop is out of reach of a cancellation: a Ctrl-C of which the loop takes no notice for a second makes the
    next one a KeyboardInterrupt in that code.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, before: functools.partial[Any]) -> None:
        self._loop = loop
        self._before = before
        self._main: asyncio.Task[Any] = before.keywords["main_task"]
        self._runner: Any = before.func.__self__  # type: ignore[attr-defined]  # a method's
        self._holders = 0
        self._untaken_since: float | None = None

    @classmethod
    def acquire(cls) -> SigintGuard | None:
        """Something is to be released.

        Returns:
            What to `let_go` of when it is. None where Ctrl-C is not `asyncio.run`'s.
        """
        if threading.current_thread() is not threading.main_thread():
            return None
        handler = signal.getsignal(signal.SIGINT)
        current = getattr(handler, "__self__", None)
        if not isinstance(current, SigintGuard):
            if not _is_runners(handler):
                return None
            current = cls(asyncio.get_running_loop(), handler)
            signal.signal(signal.SIGINT, current.handle)
        elif current._loop.is_closed():
            # Of a lease that was never left. This run has no handler for that; the next one will.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            return None
        current._holders += 1
        return current

    def release(self) -> None:
        """It is released, or left to the reaper."""
        self._holders -= 1
        # The garbage collector calls this in any thread; signals are the main thread's.
        if self._holders or threading.current_thread() is not threading.main_thread():
            return
        if signal.getsignal(signal.SIGINT) == self.handle:
            # The runner takes its handler away when the main task has ended, but does not know this one.
            signal.signal(signal.SIGINT, signal.default_int_handler if self._main.done() else self._before)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Handles SIGINT."""
        if self._loop.is_closed():
            signal.signal(number, signal.default_int_handler)
            signal.default_int_handler(number, frame)
        now = time.monotonic()
        is_blocked = self._untaken_since is not None and now - self._untaken_since >= BLOCKED
        # Between two tasks it would be the loop that is only slow, and loses a wake-up.
        if is_blocked and asyncio.current_task(self._loop) is not None:
            raise KeyboardInterrupt
        first = self._runner._interrupt_count == 0  # noqa: SLF001  (the next would be raised)
        if first and not self._main.done():
            # It counts, to make a KeyboardInterrupt of the cancellation in the end.
            self._before(number, frame)
        else:
            self._loop.call_soon_threadsafe(self._cancel_again)
        if self._untaken_since is None:
            self._untaken_since = now
            self._loop.call_soon_threadsafe(self._taken)

    def _taken(self) -> None:
        self._untaken_since = None

    def _cancel_again(self) -> None:
        self._main.cancel()
        # Counted once: the runner takes more than one for the cancellation of somebody else.
        if self._main.cancelling() > 1:
            self._main.uncancel()


def _is_runners(handler: object) -> TypeGuard[functools.partial[Any]]:
    """Whether `asyncio.Runner` handles Ctrl-C, in the way that Python 3.11 to 3.13 do."""
    if not isinstance(handler, functools.partial) or "main_task" not in handler.keywords:
        return False
    runner = getattr(handler.func, "__self__", None)
    return isinstance(runner, asyncio.Runner) and hasattr(runner, "_interrupt_count")
