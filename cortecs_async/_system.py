"""What a client takes from its machine: the time of day, and threads for what blocks. Tests replace it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import frozen

from ._detached import in_trio

T = TypeVar("T")

WallClock = Callable[[], float]
"""Returns Unix time in seconds: what promises are dated by, so that the next process can read them."""

# Few: what they do is serialised anyway. Threads of our own, because the user's may all be busy; and not
# anyio's on asyncio, which keep the task that first used them, and with it a lease that nobody leaves, alive.
_executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cortecs-books")
_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("cortecs_async_books")


class OffLoop(Protocol):
    """Runs what blocks without blocking the event loop, and returns what it returns."""

    async def __call__(self, work: Callable[[], T], /) -> T: ...


async def off_loop(work: Callable[[], T], /) -> T:
    """Runs what blocks in a thread; where there are no threads any more, as at the very end, here."""
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


@frozen
class System:
    """The machine, as the journal's side of a client sees it.

    Attributes:
        wall_clock: Unix time in seconds.
        off_loop: Runs what blocks.
    """

    wall_clock: WallClock = time.time
    off_loop: OffLoop = off_loop


def _after_fork() -> None:
    global _executor  # noqa: PLW0603  (its threads are not in the child)
    _executor = ThreadPoolExecutor(max_workers=4, thread_name_prefix="cortecs-books")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
