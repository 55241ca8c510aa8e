"""The times of promises, when the wall clock is set while they are open."""

from __future__ import annotations

import time
from collections.abc import Callable

from .._aio.clock import boottime
from .records import Record

# In seconds. A smaller change of the wall clock is not a jump.
_TOLERANCE = 1.0

_TIMES = ("at", "expires_at", "idle_at")


class PromiseClock:
    """Converts times between the wall clock now and the wall clock when a promise was made.

    Attributes:
        steady: The clock that does not jump.
        offsets: By key: the wall clock minus the steady clock when a promise's first times were read.
    """

    def __init__(self, wall_clock: Callable[[], float]) -> None:
        self._wall = wall_clock
        # A clock other than the system's does not jump.
        self.steady: Callable[[], float] = boottime if wall_clock is time.time else wall_clock
        self.offsets: dict[str, float] = {}

    def register(self, record: Record) -> Record:
        """Return a new record with its times by the clock of its promise, for the state."""
        key = str(record.get("entry"))
        if record["kind"] == "GONE":
            self.offsets.pop(key, None)
        elif "at" in record:
            self.offsets[key] = self._offset()
        elif "idle_at" in record:
            return _shifted(record, -self._shift(key))
        return record

    def by_wall_clock(self, record: Record) -> Record:
        """Return a record of the state with its times by the wall clock now, as the reaper expects them."""
        return _shifted(record, self._shift(str(record.get("entry"))))

    def _offset(self) -> float:
        return self._wall() - self.steady()

    def _shift(self, key: str) -> float:
        offset = self._offset()
        return offset - self.offsets.get(key, offset)


def _shifted(record: Record, shift: float) -> Record:
    times = {name: record[name] + shift for name in _TIMES if record.get(name) is not None}
    return {**record, **times} if abs(shift) > _TOLERANCE else record
