"""The limit on a client's concurrent requests, and the order in which further requests wait."""

from __future__ import annotations

import enum
from collections import deque

import anyio


class Priority(enum.Enum):
    """The purpose of a request, most urgent first."""

    POLL = "poll"  # never waits: a client has few of these at a time, and many tasks wait for each
    RELEASE = "release"  # the instance is billed until the release is done
    CALL = "call"


class PriorityLimiter:
    """Limits concurrent requests. Further requests wait in order of priority.

    A fifth of the slots, but at least one, is reserved for releases, so that hanging calls cannot delay them.
    Polls do not need a slot.
    """

    def __init__(self, size: int) -> None:
        self._busy = 0
        calls = max(1, size - max(1, size // 5))
        self._limits = {Priority.RELEASE: max(size, calls + 1), Priority.CALL: calls}
        self._queues: dict[Priority, deque[anyio.Event]] = {priority: deque() for priority in self._limits}

    async def acquire(self, priority: Priority) -> None:
        """Wait for a slot. Call `release` afterward."""
        if priority is Priority.POLL:
            return
        if self._busy < self._limits[priority]:
            self._busy += 1
            return
        slot = anyio.Event()
        self._queues[priority].append(slot)
        try:
            await slot.wait()
        except BaseException:
            # It may have received its slot at the time of the cancellation.
            if slot.is_set():
                self.release(priority)
            else:
                self._queues[priority].remove(slot)
            raise

    def release(self, priority: Priority) -> None:
        if priority is Priority.POLL:
            return
        self._busy -= 1
        for waiting, queue in self._queues.items():
            while queue and self._busy < self._limits[waiting]:
                self._busy += 1
                queue.popleft().set()
