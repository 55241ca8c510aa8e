"""Threads for blocking work, and the wall clock. Tests replace both."""

from __future__ import annotations

import _thread
import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from .eventloop import WallClock, in_trio

T = TypeVar("T")

# A few threads are enough, because the journal serializes their work. The default executor's threads may all
# be busy with the user's work. Anyio's threads on asyncio keep alive the task that first used them, and with
# it a lease that is never exited.
_executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cortecs-journal")
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("cortecs_async_journal")
_batch_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("cortecs_async_batch")


class OffLoop(Protocol):
    """Run blocking work without blocking the event loop, and return its result."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


async def off_loop(work: Callable[[], T], /) -> T:
    """Run blocking work in a thread, or in this thread if none can start, as at interpreter shutdown."""
    if not in_trio():
        try:
            future = asyncio.get_running_loop().run_in_executor(_executor, work)
        except RuntimeError:
            return work()
        return await future
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(4)
        _limiter.set(limiter)
    try:
        return await anyio.to_thread.run_sync(work, limiter=limiter)
    except RuntimeError:
        return work()


def in_background(work: Callable[[], None], /) -> None:
    """Run blocking work in a thread without waiting for it.

    The garbage collector may call this anywhere, so it takes no lock, as `threading.Thread` would. At
    interpreter shutdown, no thread can start, and the work is not done.
    """
    with contextlib.suppress(RuntimeError):
        _thread.start_new_thread(work, ())


class System(NamedTuple):
    """The clock and the threads a client uses for its journal."""

    wall_clock: WallClock = time.time
    off_loop: OffLoop = off_loop
    in_background: Callable[[Callable[[], None]], None] = in_background


def _after_fork() -> None:
    global _executor  # noqa: PLW0603  (the child does not have its threads)
    _executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cortecs-journal")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


class StopFlag:
    """Stops a thread whose caller was cancelled."""

    def __init__(self) -> None:
        self.event: threading.Event = threading.Event()

    def check(self) -> None:
        """End the thread with an error, which is not passed to any caller, if its caller was cancelled."""
        if self.event.is_set():
            raise RuntimeError("The caller of this thread was cancelled")


async def run_in_thread(work: Callable[[], T], *, abandon: bool = False) -> T:
    """Run blocking work in a thread. With `abandon`, do not wait for it if the caller is cancelled."""
    try:
        limiter = _batch_limiter.get()
    except LookupError:
        # Not anyio's shared limiter: other code may use all of its threads while an instance is billed.
        limiter = anyio.CapacityLimiter(8)
        _batch_limiter.set(limiter)
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=abandon, limiter=limiter)


async def run_stoppable(work: Callable[[StopFlag], T]) -> T:
    """Run long work in a thread. It must call `check` often so that it ends soon after a cancellation."""
    stopped = StopFlag()
    try:
        return await run_in_thread(lambda: work(stopped), abandon=True)
    finally:
        stopped.event.set()
