"""Decide what the outcome of an attempt says about its request and about the endpoint. No clock, no I/O.

A single failure does not show its cause: an instance that fails, or whose server restarts, responds with 404,
502 or not at all. The request is at fault if the endpoint has answered another one since the request last
failed. Otherwise the endpoint is suspect: the batch only sends probes to it, one at a time. A probe is a
small request that every healthy endpoint answers.
"""

from __future__ import annotations

import enum
import json
import random
from typing import Any

from attrs import define, field, frozen

from .._aio.synchronization import Backoff, exponential
from .._http.messages import Failure, FailureKind
from .format import AnswerLine, Request, format_answer, format_error
from .sender import Reply

# Seconds to wait after the first failure, doubled after each further one, and the most.
_FIRST_DELAY = 0.5
_MAX_DELAY = 30.0

# Seconds between two probes of a suspect endpoint, at most.
_MAX_PROBE_DELAY = 5.0

# Seconds for which one `Retry-After` is honored, and by which all of them extend the timeouts below, at most.
_MAX_RETRY_AFTER = 300.0
_MAX_EXTENSION = 300.0

# Seconds that an endpoint may stay suspect before its instance is given up. A key that it has never accepted
# gets less time, because retrying rarely helps.
OUTAGE_TIMEOUT = 180.0
KEY_TIMEOUT = 10.0

# This many failures in a row make an endpoint suspect, even if the concurrency is lower.
_MIN_FAILURES = 4

# The statuses with which a model server rejects an invalid request.
_REQUEST_ERRORS = frozenset({400, 413, 422})

_rng = random.Random()  # noqa: S311  (jitter)

_PROBE_BODIES: dict[str, dict[str, Any]] = {
    "/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/completions": {"prompt": "Hi", "max_tokens": 1},
    "/embeddings": {"input": "Hi"},
}


class FailureReason(enum.Enum):
    """Why an attempt failed, judging by its own outcome."""

    RATE_LIMITED = enum.auto()  # 429: the endpoint is up
    UNAVAILABLE = enum.auto()  # 503: rate limited, or the endpoint is not up
    KEY_REJECTED = enum.auto()
    OTHER = enum.auto()  # the endpoint or the request; other answers will show which


@frozen
class FailedAttempt:
    """An attempt without an answer.

    Attributes:
        detail: The reason, for people.
        line: The error line to write if the request is not tried again.
        retry_after: Seconds that the endpoint asked to wait.
        is_timeout: Whether the attempt timed out.
    """

    reason: FailureReason
    detail: str
    line: AnswerLine
    retry_after: float = 0.0
    is_timeout: bool = False


def classify(outcome: Reply | Failure, request: Request) -> AnswerLine | FailedAttempt:
    """Return the line that ends the request, or why the attempt failed."""
    if isinstance(outcome, Failure):
        line = format_error(request, outcome.kind.value.replace(" ", "_"), outcome.detail)
        is_timeout = outcome.kind is FailureKind.TIMED_OUT
        return FailedAttempt(FailureReason.OTHER, outcome.detail, line, is_timeout=is_timeout)
    status = outcome.status
    try:
        line = format_answer(request, status, outcome.request_id, outcome.body)
    except ValueError:
        detail = f"status {status}, but the body is not a JSON object"
        return classify(Failure(kind=FailureKind.UNREADABLE, detail=detail), request)
    if status < 300 or (status in _REQUEST_ERRORS and _is_model_server_error(outcome.body)):
        return line
    reason = {
        401: FailureReason.KEY_REJECTED,
        403: FailureReason.KEY_REJECTED,
        429: FailureReason.RATE_LIMITED,
        503: FailureReason.UNAVAILABLE,
    }.get(status, FailureReason.OTHER)
    has_retry_after = reason in {FailureReason.RATE_LIMITED, FailureReason.UNAVAILABLE}
    retry_after = min(outcome.retry_after or 0.0, _MAX_RETRY_AFTER) if has_retry_after else 0.0
    return FailedAttempt(reason, f"status {status}", line, retry_after)


def _is_model_server_error(body: bytes) -> bool:
    """Return whether this is an error object as OpenAI, vLLM and FastAPI send it for a bad request."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict):
        return False
    error = data.get("error", data if data.get("object") == "error" else None)
    return bool(isinstance(error, dict) and error.get("message")) or isinstance(data.get("detail"), list)


def retry_delay(failures: int) -> float:
    """Return the seconds to wait before a request is sent again, given its number of earlier failures."""
    return _jitter(exponential(failures, first=_FIRST_DELAY, limit=_MAX_DELAY))


def _jitter(seconds: float) -> float:
    return seconds * _rng.uniform(0.5, 1.0)


def probe_request(path: str, model: str) -> Request:
    """Return a request of the same kind that a healthy endpoint answers quickly."""
    body = json.dumps({"model": model, **_PROBE_BODIES[path]}).encode()
    return Request(number=0, custom_id="", path=path, body=body, request_id="")


@define(eq=False)
class EndpointHealth:
    """What is known about one endpoint. Times are seconds of any one clock.

    Attributes:
        last_success: When it last answered.
        resume_at: When requests may be sent to it again, after `Retry-After`.
        suspect_since: When it became suspect; None if it is not.
    """

    last_success: float = float("-inf")
    resume_at: float = float("-inf")
    suspect_since: float | None = None
    _failures: int = 0  # in a row
    _extension: float = 0.0  # seconds of `Retry-After` since the last success
    _probes: Backoff = field(factory=lambda: Backoff(first=_FIRST_DELAY, limit=_MAX_DELAY))

    def record_success(self, now: float) -> None:
        self.last_success = now
        self.suspect_since = None
        self._failures = 0
        self._extension = 0.0
        self._probes.reset()

    def record_retry_after(self, failed: FailedAttempt, now: float) -> None:
        """Send no requests until the `Retry-After` of a failure has elapsed."""
        resume_at = now + failed.retry_after
        if resume_at > self.resume_at:
            self._extension += resume_at - max(self.resume_at, now)
            self.resume_at = resume_at

    def record_failure(self, now: float, *, concurrency: int, is_unclear: bool) -> None:
        """Record a failed attempt, and make the endpoint suspect if there is reason to.

        `is_unclear` means that the cause of the failure is unknown, and no request in flight can show it.
        """
        self._failures += 1
        if self.suspect_since is None and (is_unclear or self._failures >= max(concurrency, _MIN_FAILURES)):
            self.suspect_since = now

    def next_probe_delay(self) -> float:
        return min(_jitter(self._probes.next()), _MAX_PROBE_DELAY)

    def suspect_seconds(self, now: float) -> float:
        return 0.0 if self.suspect_since is None else now - self.suspect_since

    def has_timed_out(self, failed: FailedAttempt, now: float) -> bool:
        """Return whether the endpoint has been suspect for too long, after another failed probe."""
        is_new_key = failed.reason is FailureReason.KEY_REJECTED and self.last_success == float("-inf")
        timeout = KEY_TIMEOUT if is_new_key else OUTAGE_TIMEOUT
        return self.suspect_seconds(now) > timeout + min(self._extension, _MAX_EXTENSION)
