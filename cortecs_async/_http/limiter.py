"""How many requests of a client are under way at once, and whose turn is next."""

from __future__ import annotations

import enum
from collections import deque

import anyio


class Priority(enum.Enum):
    """What a request is for, the most urgent first."""

    POLL = "a look"  # never waits: a client has few of these at a time, and many wait for each
    RELEASE = "a release"  # of what is billed until it is through
    CALL = "a call"


class PriorityLimiter:
    """Lets so many requests through at a time; the others wait, in the order of their urgency.

    A fifth is kept for releases, and one at least, so that calls which hang cannot hold them up.

    Args:
        size: Requests at a time, looks not counted.
    """

    def __init__(self, size: int) -> None:
        self._busy = 0
        calls = max(1, size - max(1, size // 5))
        self._room = {Priority.RELEASE: max(size, calls + 1), Priority.CALL: calls}
        self._queues: dict[Priority, deque[anyio.Event]] = {priority: deque() for priority in self._room}

    async def acquire(self, priority: Priority) -> None:
        """Waits for its turn; `leave` must follow."""
        if priority is Priority.POLL:
            return
        if self._busy < self._room[priority]:
            self._busy += 1
            return
        turn = anyio.Event()
        self._queues[priority].append(turn)
        try:
            await turn.wait()
        except BaseException:
            # Cancelled just when it was let through, perhaps.
            if turn.is_set():
                self.release(priority)
            else:
                self._queues[priority].remove(turn)
            raise

    def release(self, priority: Priority) -> None:
        """It is through."""
        if priority is Priority.POLL:
            return
        self._busy -= 1
        for waiting, queue in self._queues.items():
            while queue and self._busy < self._room[waiting]:
                self._busy += 1
                queue.popleft().set()
