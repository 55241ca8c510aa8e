"""Clocks that include time during which the machine is suspended.

On Linux, the monotonic clock, which event loops use, stops during a suspension, but an instance is still
billed. The wall clock jumps when it is set. Keep imports small, because the reaper loads this module.
"""

from __future__ import annotations

import sys
import time

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Callable

# The macOS manual, clock_gettime(3): this one continues "while the system is asleep" and is not adjusted.
_NAME = "CLOCK_MONOTONIC_RAW" if sys.platform == "darwin" else "CLOCK_BOOTTIME"
_BOOTTIME: int | None = getattr(time, _NAME, None)


def boottime() -> float:
    """Return the seconds since the machine was started, including time spent suspended.

    On systems other than Linux and macOS, this is the monotonic clock.
    """
    if sys.platform == "win32" or _BOOTTIME is None:
        return time.monotonic()
    return time.clock_gettime(_BOOTTIME)


class _Suspension:
    """Counts the seconds the machine has been suspended since this process began."""

    def __init__(self) -> None:
        self._offset = boottime() - time.monotonic()
        self._seconds = 0.0

    def __call__(self) -> float:
        seconds = boottime() - time.monotonic() - self._offset
        # The two clocks are not read at the same time, so a small difference is ignored.
        if seconds - self._seconds > _MIN_SUSPENSION:
            self._seconds = seconds
        return self._seconds


# Seconds. A smaller difference between the two clocks is not a suspension.
_MIN_SUSPENSION = 0.5

suspended: Callable[[], float] = _Suspension()
"""Return the seconds the machine has been suspended since this process began."""


class SteadyClock:
    """Unix time that does not jump when the wall clock is set.

    It agrees with the wall clock when it is created. From then on, it counts seconds of `boottime`.
    """

    def __init__(self) -> None:
        self._offset = time.time() - boottime()

    def __call__(self) -> float:
        """Return the Unix time in seconds."""
        return boottime() + self._offset

    def from_wall_clock(self, moment: float) -> float:
        """Convert a wall clock time, by the wall clock's current setting, to this clock."""
        return moment + self() - time.time()
