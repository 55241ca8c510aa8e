"""Decide from the outcomes of requests whether an endpoint is down. No clock, no I/O.

An endpoint may be down if it fails too often in a row, or fails with no request in flight that could show the
cause. Then the batch sends only probes to it, one at a time, until it answers one. A probe is a small request
that every healthy endpoint answers.
"""

from __future__ import annotations

from attrs import define, field

from .._aio.synchronization import Backoff
from .outcome import FIRST_DELAY, MAX_DELAY, FailedAttempt, FailureReason, jitter

# Maximum seconds between two probes of an endpoint that may be down.
_MAX_PROBE_DELAY = 5.0

# Seconds that an endpoint may be down before its instance is given up. If the endpoint has never accepted the
# key, the limit is shorter, because retrying rarely helps.
OUTAGE_TIMEOUT = 180.0
KEY_TIMEOUT = 10.0

# Maximum seconds by which all `Retry-After` headers together extend these timeouts.
_MAX_EXTENSION = 300.0

# Rejections further apart than this, in seconds, prove nothing about the time between them.
_MAX_REJECTION_GAP = 60.0

# An endpoint may be down after as many failures in a row as its concurrency, but at least this many.
_MIN_FAILURES = 4


@define(eq=False)
class EndpointHealth:
    """The known state of one endpoint. Times are seconds on any one clock.

    Attributes:
        last_success: The time of its last answer.
        resume_at: The time from which requests can be sent again, after `Retry-After`.
        down_since: The time since which it may be down, or None if it is up.
    """

    last_success: float = float("-inf")
    resume_at: float = float("-inf")
    down_since: float | None = None
    _failures: int = 0  # in a row
    _extension: float = 0.0  # seconds of `Retry-After` since the last success
    _rejected_since: float | None = None
    _last_rejection: float = float("-inf")
    _rejection_extension: float = 0.0  # seconds of `Retry-After` since then
    _probes: Backoff = field(factory=lambda: Backoff(first=FIRST_DELAY, limit=MAX_DELAY))

    def record_success(self, now: float) -> None:
        self.last_success = now
        self.down_since = None
        self._failures = 0
        self._extension = 0.0
        self._probes.reset()

    def record_answer(self, now: float) -> None:
        """Record the answer to a request that is not a probe."""
        self.record_success(now)
        self._rejected_since = None

    def record_rejection(self, now: float) -> None:
        """Record that a request was rejected because of the load. Call `record_retry_after` afterward."""
        is_new = now - max(self._last_rejection, self.resume_at) > _MAX_REJECTION_GAP
        if self._rejected_since is None or is_new:
            self._rejected_since = now
            self._rejection_extension = 0.0
        self._last_rejection = now

    def record_end(self, now: float, began: float) -> None:
        """Record that an attempt failed for a reason other than a rejection.

        A long attempt may have caused the rejections during it, because it used up the capacity.
        """
        if now - began > _MAX_REJECTION_GAP:
            self._rejected_since = None

    def rejected_seconds(self, now: float) -> float:
        """Return the seconds during which requests have been rejected and none answered."""
        return 0.0 if self._rejected_since is None else now - self._rejected_since

    def rejects_all(self, now: float) -> bool:
        """Return whether requests have been rejected for too long, even if probes are answered."""
        timeout = OUTAGE_TIMEOUT + min(self._rejection_extension, _MAX_EXTENSION)
        return self.rejected_seconds(now) > timeout

    def record_retry_after(self, failed: FailedAttempt, now: float) -> None:
        """Do not send requests until the `Retry-After` of a failure has elapsed."""
        resume_at = now + failed.retry_after
        if resume_at > self.resume_at:
            pause = resume_at - max(self.resume_at, now)
            self._extension += pause
            self._rejection_extension += pause
            self.resume_at = resume_at

    def record_failure(self, now: float, *, concurrency: int, is_unclear: bool) -> None:
        """Record a failed attempt, and regard the endpoint as down if there are too many.

        `is_unclear` means that the cause of the failure is unknown and no request in flight can show it.
        """
        self._failures += 1
        if is_unclear or self._failures >= max(concurrency, _MIN_FAILURES):
            self.doubt(now)

    def doubt(self, now: float) -> None:
        """Regard the endpoint as down until it answers."""
        if self.down_since is None:
            self.down_since = now

    def next_probe_delay(self) -> float:
        return min(jitter(self._probes.next()), _MAX_PROBE_DELAY)

    def down_seconds(self, now: float) -> float:
        return 0.0 if self.down_since is None else now - self.down_since

    def has_timed_out(self, reason: FailureReason, now: float) -> bool:
        """Return whether the endpoint has been down for too long. Called after each failed probe."""
        is_new_key = reason is FailureReason.KEY_REJECTED and self.last_success == float("-inf")
        timeout = KEY_TIMEOUT if is_new_key else OUTAGE_TIMEOUT
        return self.down_seconds(now) > timeout + min(self._extension, _MAX_EXTENSION)
