"""One task's wait for one instance. `Poller` serves all waits of a client."""

from __future__ import annotations

import copy

from attrs import define, field

from .._aio.synchronization import Broadcast
from .._errors import CortecsError, DecodeError
from .._http.retry import is_transient_error
from .domain import Instance
from .intervals import StepTimes

# Seconds for which all readings must agree that an instance is missing before it counts as gone: reading lags
# behind writing, and the service's replicas may disagree.
ABSENCE_SPAN = 5.0


@define(eq=False)
class Subscription:
    """One task's wait for one instance: the latest reading, and whether the task has taken it.

    Attributes:
        since: The time the wait began, in seconds of `anyio.current_time`; the poll interval depends on it.
        due: The time the next poll is due, on the same clock.
        trust_list: Whether the list alone proves that the instance is gone; see `Poller.subscribe`.
        absence: Seconds for which it must be missing before it counts as gone.
        missing_since: The time the current run of readings without the instance began, on the same clock.
        interval: Seconds between polls, or None to use the policy.
        request_number: The number of the last request by this id; initially, of the last one by any id.
        reading: The latest reading, or None if the instance is gone.
        is_news: Whether the task has not taken the reading yet.
        error: The error that ends the wait.
        failing_since: The time the current run of failures began, on the same clock.
        changed: Notified when there is news or an error, or when this task must become the leader.
    """

    instance_id: str
    since: float
    due: float
    trust_list: bool = False
    absence: float = ABSENCE_SPAN
    missing_since: float | None = None
    interval: float | None = None
    request_number: int = 0
    reading: Instance | None = None
    has_reading: bool = False
    step_times: StepTimes = field(factory=StepTimes)
    is_news: bool = False
    error: CortecsError | None = None
    failing_since: float | None = None
    changed: Broadcast = field(factory=Broadcast)

    def publish(self, reading: Instance | None, *, now: float) -> None:
        """Store a new reading and notify the task if it differs from the last one.

        A missing instance is stored only once readings have agreed for `absence` seconds.
        """
        self.failing_since = None
        if reading is not None:
            self.missing_since = None
        elif self.missing_since is None:
            self.missing_since = now
        if reading is None and not self.is_missing(now):
            return
        if not self.has_reading or reading != self.reading:
            self.step_times.record(reading, now)
            self.reading, self.has_reading, self.is_news = reading, True, True
            self.changed.notify()

    def is_missing(self, now: float) -> bool:
        """Return whether the instance was missing from all readings of the last `absence` seconds."""
        # The sum of the pauses may be slightly less than the span.
        return self.missing_since is not None and now - self.missing_since > self.absence - 1e-6

    def record_failure(self, error: CortecsError, *, now: float, max_outage: float) -> None:
        """End the wait if the error is permanent, or if polling has failed for `max_outage` seconds."""
        if self.failing_since is None:
            self.failing_since = now
        if isinstance(error, DecodeError):
            self.missing_since = None  # an instance whose entry cannot be parsed exists
        if not is_transient_error(error) or now - self.failing_since > max_outage:
            self.error = copy.copy(error)  # the task may add notes to it
            self.changed.notify()
