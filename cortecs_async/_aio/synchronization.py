"""Shared calls (`SingleFlight`), notifications (`Broadcast`), locks (`Mutex`), and pauses (`Backoff`)."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

import anyio

from .._errors import CortecsError
from .eventloop import loop_runner

T = TypeVar("T")


class _Flight(Generic[T]):
    """A call in progress and its outcome: a result, an error, or neither if it was cancelled."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.done = anyio.Event()
        self.results: list[T] = []
        self.error: Exception | None = None


class SingleFlight(Generic[T]):
    """Makes one call for all tasks that need its result at the same time.

    The first task makes the call, and the others wait for it. If the first task is cancelled, the next one
    makes the call again.
    """

    def __init__(self, call: Callable[[], Awaitable[T]]) -> None:
        self._call = call
        self._flight: _Flight[T] | None = None

    async def get(self, *, since: float | None = None) -> T:
        """Return the result of a call in progress, or of a new one.

        Args:
            since: Do not accept a call that began before this time, in seconds of `anyio.current_time`.

        Raises:
            Exception: the error of the call; a `CortecsError` is copied for each task.
        """
        while (flight := self._flight) is not None:
            await flight.done.wait()
            if since is not None and flight.began < since:
                continue
            if flight.error is not None:
                raise copy.copy(flight.error) if isinstance(flight.error, CortecsError) else flight.error
            if flight.results:
                return flight.results[0]
        return await self._fly()

    async def _fly(self) -> T:
        flight = self._flight = _Flight[T](anyio.current_time())
        try:
            result = await self._call()
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.results.append(result)
            return result
        finally:
            self._flight = None
            flight.done.set()


class Broadcast:
    """Wakes all tasks that are currently waiting. Unlike `anyio.Event`, it can be used again."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None  # only while a task waits, so that `notify` is cheap

    def notify(self) -> None:
        """Wake the tasks that are waiting now. Tasks that wait later wait for the next call."""
        event, self._event = self._event, None
        if event is not None:
            event.set()

    async def wait(self) -> None:
        """Wait for the next `notify`."""
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()


class ThreadBroadcast:
    """Lets other threads wake tasks of any event loop."""

    def __init__(self) -> None:
        self._wake_ups: set[Callable[[], object]] = set()

    def notify(self) -> None:
        """Make the waiting tasks check their conditions again. Call this in any thread."""
        for wake_up in self._wake_ups.copy():
            with contextlib.suppress(RuntimeError):  # its event loop has ended
                wake_up()

    async def wait_for(self, condition: Callable[[], bool]) -> None:
        """Wait until the condition is true. Call `notify` after each change that can make it true."""
        while True:
            event = anyio.Event()
            wake_up = partial(loop_runner(), event.set)
            # Before the check, so that no change is missed.
            self._wake_ups.add(wake_up)
            try:
                if condition():
                    return
                await event.wait()
            finally:
                self._wake_ups.discard(wake_up)


class Mutex:
    """A lock that is released even if a coroutine that waits for it or holds it is closed.

    anyio locks are owned by a task. A coroutine that is closed in a different task, or while it takes a free
    lock, keeps the lock forever.
    """

    def __init__(self) -> None:
        self._is_held = False
        self._released = Broadcast()

    async def __aenter__(self) -> None:
        while self._is_held:
            await self._released.wait()
        self._is_held = True

    async def __aexit__(self, *_: object) -> None:
        self._is_held = False
        self._released.notify()


class Backoff:
    """Exponential backoff: pauses double with each failure, from `first` up to `limit` seconds."""

    def __init__(self, first: float, limit: float) -> None:
        self.first: float = first
        self.limit: float = limit
        self.failures: int = 0  # in a row

    def next(self) -> float:
        """Count a failure and return the seconds to wait after it."""
        self.failures += 1
        return exponential(self.failures - 1, first=self.first, limit=self.limit)

    def reset(self) -> None:
        """Start again with the first pause, after a success."""
        self.failures = 0


def exponential(failures: int, *, first: float, limit: float) -> float:
    """Return `first` seconds, doubled for each earlier failure, but at most `limit`."""
    # The exponent is capped because 2.0 ** 1025 overflows.
    return min(limit, first * 2.0 ** min(failures, 64))
