"""File work beside the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
from attrs import define, field

T = TypeVar("T")

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar("cortecs_async_batch")


@define(eq=False)
class Stopped:
    """Tells a thread that nobody waits for it any more."""

    event: threading.Event = field(factory=threading.Event)

    def check(self) -> None:
        """Ends the work of the thread.

        Raises:
            RuntimeError: which nobody sees.
        """
        if self.event.is_set():
            raise RuntimeError("nobody waits for this any more")


async def in_thread(work: Callable[[], T], *, abandon: bool = False) -> T:
    """Runs what blocks.

    Args:
        work: What to do.
        abandon: Do not wait for it when the caller is cancelled.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        # Not that of everybody, whose threads may all be busy while an instance is billed.
        limiter = anyio.CapacityLimiter(8)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=abandon, limiter=limiter)


async def run_stoppable(work: Callable[[Stopped], T]) -> T:
    """Runs long work, which ends soon after its caller is cancelled."""
    stopped = Stopped()
    try:
        return await in_thread(lambda: work(stopped), abandon=True)
    finally:
        stopped.event.set()
