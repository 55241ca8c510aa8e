"""Which event loop is running, and its clock. Also the type of the wall clock."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

WallClock = Callable[[], float]
"""Returns Unix time in seconds. Journals use it, because another process can compare it with its clock."""


def in_trio() -> bool:
    """Return whether this code runs on trio, without importing it."""
    trio = sys.modules.get("trio")
    return trio is not None and bool(trio.lowlevel.in_trio_task())


def current_loop() -> object:
    """Return the running event loop, for comparison only."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        return trio.lowlevel.current_trio_token()
    return asyncio.get_running_loop()


def loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop, which other threads may read too."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        return trio.lowlevel.current_clock().current_time
    return asyncio.get_running_loop().time
