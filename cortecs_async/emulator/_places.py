"""Who is served when: the bookings of one instance that works on so many answers at once and no more.

Nothing runs here. Every answer takes the same time, so that what waits in order is worked on at times that
are known on arrival: the caller sleeps until its answer is ready, on whatever event loop it is.
"""

from collections import deque

import attrs

from cortecs_async.emulator._answers import Refusal


@attrs.frozen(eq=False)
class Place:
    """One answer's turn."""

    begins: float
    ends: float


@attrs.define
class Places:
    """The bookings of one instance. Not thread-safe: whoever holds it locks it."""

    seconds: float
    """How long each answer takes."""
    parallel: int
    queue: int | None
    _booked: deque[Place] = attrs.field(factory=deque)
    """Those whose end lies ahead, in the order of their ends."""
    _vacant: deque[Place] = attrs.field(factory=deque)
    """Those of them that callers gave up before their turn, in the order of their begins."""

    def book(self, now: float) -> Place:
        """Take the next place.

        One that was given up goes to the first who comes, who so overtakes those that wait already: they
        sleep until the times that they were told.

        Raises:
            Refusal: 429 when the queue is full.
        """
        while self._booked and self._booked[0].ends <= now:
            self._booked.popleft()
        while self._vacant and self._vacant[0].begins < now:
            self._vacant.popleft()
        taken = len(self._booked) - len(self._vacant)
        if self.queue is not None and taken >= self.parallel + self.queue:
            raise Refusal(
                429,
                f"{taken} requests are being answered or wait already.",
                code="queue_full",
                headers={"retry-after": "1"},
            )
        if self._vacant:
            return self._vacant.popleft()
        ahead = self._booked[-self.parallel].ends if len(self._booked) >= self.parallel else now
        place = Place(ahead, ahead + self.seconds)
        self._booked.append(place)
        return place

    def give_up(self, place: Place, now: float) -> None:
        """Leave the queue. What is being worked on already is worked on to its end."""
        if place.begins <= now or place not in self._booked:
            return
        at = sum(other.begins <= place.begins for other in self._vacant)
        self._vacant.insert(at, place)
        # At the end nobody waits behind: those places are as if they had never been.
        while self._booked and self._vacant and self._booked[-1] is self._vacant[-1]:
            self._booked.pop()
            self._vacant.pop()
