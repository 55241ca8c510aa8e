"""The clock of the event loop, and the wall clock, which other processes can compare with theirs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .eventloop import in_trio

WallClock = Callable[[], float]
"""Returns Unix time in seconds. Journals use it, because another process can compare it with its clock."""


def loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop, which other threads may read too."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

        return trio.lowlevel.current_clock().current_time
    return asyncio.get_running_loop().time
