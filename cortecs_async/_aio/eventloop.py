"""The running event loop and its clock, and the type of the wall clock."""

from __future__ import annotations

import asyncio
import selectors
import sys
from collections.abc import Callable
from typing import Any

import anyio
from typing_extensions import override

from .._errors import ConfigurationError
from .clock import boottime, suspended

WallClock = Callable[[], float]
"""Returns Unix time in seconds. Journals use it, because other processes can compare it with their clocks."""


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


def loop_runner() -> Callable[[Callable[[], object]], object]:
    """Return a function that other threads and signal handlers call to run something in this event loop."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        return trio.lowlevel.current_trio_token().run_sync_soon
    return asyncio.get_running_loop().call_soon_threadsafe


def current_time() -> float:
    """Return the running event loop's time in seconds, plus the time the machine was suspended."""
    now = anyio.current_time()
    is_included = not in_trio() and isinstance(asyncio.get_running_loop(), BoottimeEventLoop)
    return now if is_included else now + suspended()


class LoopBinding:
    """Binds a client to the event loop that uses it first. In a different one, its waits would never end."""

    def __init__(self) -> None:
        self._bound: dict[str, object] = {}

    def unbind(self) -> None:
        """Allow a different event loop to use the client, which has no connections in its current one."""
        self._bound.clear()

    @property
    def bound(self) -> object:
        """The event loop of the client, or None before its first use."""
        return self._bound.get("loop")

    def call_soon(self, callback: Callable[[], object]) -> bool:
        """Call `callback` in the client's event loop, from any thread. Return False if it is not running."""
        loop: Any = self.bound
        try:
            if isinstance(loop, asyncio.AbstractEventLoop):
                if not loop.is_running():
                    return False
                loop.call_soon_threadsafe(callback)
            elif loop is not None:
                loop.run_sync_soon(callback)
        except RuntimeError:  # it has just ended
            return False
        return loop is not None

    def check(self) -> None:
        """Bind the client to the running event loop, if it is not bound yet.

        Raises:
            ConfigurationError: if it is bound to a different one.
        """
        loop = current_loop()
        # Atomic, because two threads may use the client for the first time simultaneously.
        if self._bound.setdefault("loop", loop) is not loop:
            raise ConfigurationError(
                "This AsyncCortecs belongs to a different event loop. Create a separate client in each "
                "`asyncio.run`, each thread, and each process after a fork."
            )


def loop_clock() -> Callable[[], float]:
    """Return the clock of the running event loop, which other threads can read too."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        return trio.lowlevel.current_clock().current_time
    return asyncio.get_running_loop().time


# Seconds after which the loop below reads its clock again, because waiting for I/O does not count suspended
# time.
_MAX_SELECT = 10.0


class BoottimeEventLoop(asyncio.SelectorEventLoop):
    """An event loop whose timers include time during which the machine is suspended."""

    def __init__(self) -> None:
        super().__init__(_BoundedSelector())

    @override
    def time(self) -> float:
        return boottime()


class _BoundedSelector(selectors.DefaultSelector):
    @override
    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        return super().select(_MAX_SELECT if timeout is None else min(timeout, _MAX_SELECT))
