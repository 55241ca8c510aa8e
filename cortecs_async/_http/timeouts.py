"""The timeouts of attempts that are always repeated: short at first, then twice as long each time.

A hanging request then costs only seconds, and a slow service still gets the time it needs.
"""

from __future__ import annotations

from collections.abc import Hashable

from .messages import Call, Failure, FailureKind, Reply

# Seconds for the first attempt.
FIRST_TIMEOUT = 3.0

# Maximum number of requests with known timeouts. Entries for deleted instances are not removed one by one.
_MAX_KNOWN = 1000


class AttemptTimeouts:
    """The timeouts of a client's requests, by method, path, and instance."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}

    def next(self, call: Call, limit: float) -> float:
        """Return the seconds for the next attempt, at most `limit`."""
        return min(self._seconds.get(_key(call), FIRST_TIMEOUT), limit)

    def record(self, call: Call, outcome: Reply | Failure, *, timeout: float, seconds: float) -> None:
        """Adapt the timeout of the next attempt to the outcome of an attempt that took `seconds`."""
        is_timeout = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMED_OUT
        needed = 2 * (timeout if is_timeout else seconds)
        if needed > FIRST_TIMEOUT:
            if len(self._seconds) >= _MAX_KNOWN:
                self._seconds.clear()
            self._seconds[_key(call)] = needed
        else:
            self._seconds.pop(_key(call), None)


def _key(call: Call) -> Hashable:
    # A hanging stop must not be repeated forever because stops of other instances are quick.
    return call.method, call.path, None if call.json is None else call.json.get("instance_id")
