"""Schedule an instance's work on inference requests, given how many it works on in parallel.

This module does not run any work. Every answer takes the same time, so the time of each is known when its
request arrives, and the caller sleeps until then on its own event loop.
"""

from collections import deque

import attrs

from cortecs_async.emulator._messages import ApiError


@attrs.frozen(eq=False)
class Slot:
    """The time for working on one answer."""

    begins: float
    ends: float


@attrs.define
class InferenceQueue:
    """The slots of one instance. Not thread-safe: the caller must hold a lock."""

    seconds: float
    """Seconds per answer."""
    parallel: int
    queue: int | None
    _reserved: deque[Slot] = attrs.field(factory=deque)
    """Slots that have not ended, in order of their ends."""
    _vacant: deque[Slot] = attrs.field(factory=deque)
    """The ones among them that were released before they began, in order of their beginnings."""

    def reserve(self, now: float) -> Slot:
        """Reserve the next slot.

        A released slot goes to the next caller, ahead of any waiting callers, because their
        times are fixed.
        """
        while self._reserved and self._reserved[0].ends <= now:
            self._reserved.popleft()
        while self._vacant and self._vacant[0].begins < now:
            self._vacant.popleft()
        taken = len(self._reserved) - len(self._vacant)
        if self.queue is not None and taken >= self.parallel + self.queue:
            raise ApiError(
                429,
                f"{taken} requests are in progress or queued.",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        if self._vacant:
            return self._vacant.popleft()
        begins = self._reserved[-self.parallel].ends if len(self._reserved) >= self.parallel else now
        slot = Slot(begins, begins + self.seconds)
        self._reserved.append(slot)
        return slot

    def release(self, slot: Slot, now: float) -> None:
        """Leave the queue. Work in progress is completed."""
        if slot.begins <= now or slot not in self._reserved:
            return
        index = sum(other.begins <= slot.begins for other in self._vacant)
        self._vacant.insert(index, slot)
        # No caller waits behind a vacant slot at the end, so it can be dropped.
        while self._reserved and self._vacant and self._reserved[-1] is self._vacant[-1]:
            self._reserved.pop()
            self._vacant.pop()
