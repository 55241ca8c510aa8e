"""The times at which promises are due, for the reaper.

The reaper needs the earliest one after each message. It must not go through all promises each time, because
a program with thousands of leases sends thousands of messages.
"""

from __future__ import annotations

from _heapq import heapify, heappop, heappush  # `heapq` itself takes longer to import

# The heap is rebuilt once it has this many outdated entries more than twice the number of promises.
_MIN_OUTDATED = 64


class DueTimes:
    """The Unix times at which promises are due, by their keys."""

    def __init__(self) -> None:
        self._times: dict[str, float] = {}
        # Also contains outdated times, which are dropped once they come first.
        self._heap: list[tuple[float, str]] = []

    def set(self, key: str, due_at: float | None) -> None:
        """Set the time at which a promise is due. Pass None if it is not due at any time."""
        if due_at == self._times.get(key):
            return
        if due_at is None:
            del self._times[key]
            return
        self._times[key] = due_at
        heappush(self._heap, (due_at, key))
        if len(self._heap) > 2 * len(self._times) + _MIN_OUTDATED:
            self._heap = [(time, each) for each, time in self._times.items()]
            heapify(self._heap)

    def earliest(self) -> float | None:
        """Return the time at which the first promise is due, or None."""
        while self._heap and self._times.get(self._heap[0][1]) != self._heap[0][0]:
            heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> list[str]:
        """Remove and return the keys of the promises that are due at a Unix time."""
        taken: list[str] = []
        while (due_at := self.earliest()) is not None and due_at <= now:
            taken.append(self._heap[0][1])
            self.set(taken[-1], None)
        return taken
