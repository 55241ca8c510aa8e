"""The timeouts of attempts that are repeated in any case: short at first, then twice as long each time.

One request that hangs then costs seconds, and a service that is slow still gets the time that it needs.
"""

from __future__ import annotations

from collections.abc import Hashable

from .messages import Call, Failure, FailureKind, Reply

# Seconds for the first attempt.
FIRST_TIMEOUT = 3.0

# Requests whose timeouts are known at most: those of instances that are gone are not removed one by one.
_MAX_KNOWN = 1000


class AttemptTimeouts:
    """The timeouts of a client's requests, by what they do."""

    def __init__(self) -> None:
        self._seconds: dict[Hashable, float] = {}

    def next(self, call: Call, limit: float) -> float:
        """Return the seconds for the next attempt: at most `limit`."""
        return min(self._seconds.get(_key(call), FIRST_TIMEOUT), limit)

    def record(self, call: Call, outcome: Reply | Failure, *, timeout: float, seconds: float) -> None:
        """Adapt the timeout of the next attempt to the outcome of one that took `seconds`."""
        is_timeout = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMED_OUT
        needed = 2 * (timeout if is_timeout else seconds)
        if needed > FIRST_TIMEOUT:
            if len(self._seconds) >= _MAX_KNOWN:
                self._seconds.clear()
            self._seconds[_key(call)] = needed
        else:
            self._seconds.pop(_key(call), None)


def _key(call: Call) -> Hashable:
    # A stop that hangs must not be repeated forever because those of other instances are quick.
    return call.method, call.path, None if call.json is None else call.json.get("instance_id")
