"""File work beside the event loop."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import anyio.to_thread
from attrs import define, field

T = TypeVar("T")


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
    return await anyio.to_thread.run_sync(work, abandon_on_cancel=abandon)


async def run_stoppable(work: Callable[[Stopped], T]) -> T:
    """Runs long work, which ends soon after its caller is cancelled."""
    stopped = Stopped()
    try:
        return await in_thread(lambda: work(stopped), abandon=True)
    finally:
        stopped.event.set()
