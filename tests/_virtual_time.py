"""Virtual time on asyncio: an event loop whose clock is a number.

If nothing is ready, the loop's selector advances the clock to the next timer instead of waiting for it. So an
hour of polling takes no time, and every run has the same times. On trio,
`trio.testing.MockClock(autojump_threshold=0)` does the same. `conftest.py` gives one or the other to every
async test.

As in trio, the clock does not wait for work outside the event loop: while an anyio worker thread, a
subprocess, or a remote peer is busy, the clock jumps to the next timer. Tests that need these are marked
`sockets` and run on real time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

DEADLOCK_AFTER = 5.0
"""Real seconds that a loop without timers waits for sockets, threads, and signals before it is a deadlock."""


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector event loop on virtual time, for anyio's backend option `loop_factory`.

    Args:
        deadlock_after: Real seconds to wait for sockets, threads, and signals if no timer is set.
    """

    def __init__(self, *, deadlock_after: float = DEADLOCK_AFTER) -> None:
        # Set this first, because the constructor of the base class may use the clock.
        self._virtual_selector = _VirtualTimeSelector(deadlock_after)
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        """Return the virtual seconds since the loop was created."""
        return self._virtual_selector.now

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[*Ts], T], *args: *Ts
    ) -> asyncio.Future[T]:
        # asyncio looks up addresses in a thread. The clock must wait for it, or connecting would time out.
        future = super().run_in_executor(executor, func, *args)
        self._virtual_selector.threads += 1
        future.add_done_callback(self._virtual_selector.thread_done)
        return future

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        # Without the timeout of Python 3.12, which would expire immediately on virtual time.
        await super().shutdown_default_executor()


class _VirtualTimeSelector(selectors.BaseSelector):
    """A selector that waits on virtual time and reports real readiness. asyncio waits nowhere else."""

    def __init__(self, deadlock_after: float) -> None:
        self.now = 0.0
        self.threads = 0
        self._deadlock_after = deadlock_after
        self._real = selectors.DefaultSelector()

    def thread_done(self, _: object) -> None:
        self.threads -= 1

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        # Check for readiness before the clock jumps, so that a local response arrives before its timeout.
        ready = self._real.select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None or self.threads:
            return self._wait_on_real_time()
        # asyncio passes `when - now`, so this is exactly the time of the timer.
        self.now += max(0.0, timeout)
        return []

    def _wait_on_real_time(self) -> list[tuple[selectors.SelectorKey, int]]:
        ready = self._real.select(self._deadlock_after)
        if not ready:
            raise RuntimeError(
                f"deadlock in virtual time: at {self.now} s every task waits, and no timer, socket, thread "
                f"or signal woke the event loop within {self._deadlock_after} s of real time"
            )
        return ready

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return self._real.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return self._real.modify(fileobj, events, data)

    def close(self) -> None:
        self._real.close()

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return self._real.get_map()
