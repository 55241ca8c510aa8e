"""Classify the outcome of a single attempt. This module uses neither clock nor I/O.

A single failure does not show its cause: if an instance fails or its server restarts, it responds with 404 or
502, or not at all. `health` decides whether the endpoint is down, and `suspects` whether the request is at
fault.
"""

from __future__ import annotations

import enum
import json
import random

from attrs import evolve, frozen

from .._aio.synchronization import exponential
from .._http.messages import Failure, FailureKind
from .._lease.inference import ENDPOINTS, is_refusal
from .answers import AnswerLine, format_answer, format_error
from .format import Request
from .sender import Reply

# Seconds to wait after the first failure, doubled after each additional one, and their maximum.
FIRST_DELAY = 0.5
MAX_DELAY = 30.0

# The first delay after an error inside a successful response, which overloaded gateways send.
_FIRST_ANSWERED_ERROR_DELAY = 2.0

# Maximum seconds for which one `Retry-After` is honored.
_MAX_RETRY_AFTER = 300.0

# The statuses with which a model server rejects an invalid request.
_REQUEST_ERRORS = frozenset({400, 413, 422})

# Of these statuses, the following concern the request whatever the body is: the request is too large or not
# understood. But a proxy may have sent the response, so it does not show that the server runs.
_CLEAR_REQUEST_ERRORS = frozenset({413, 422})

_rng = random.Random()  # noqa: S311  (jitter)


class FailureReason(enum.Enum):
    """The reason why an attempt failed, judging by its own outcome."""

    RATE_LIMITED = enum.auto()  # 429: the endpoint is up
    UNAVAILABLE = enum.auto()  # 503: rate limited, or the endpoint is not up
    KEY_REJECTED = enum.auto()
    ANSWERED_ERROR = enum.auto()  # an error inside a successful response: the endpoint is up
    REFUSED = enum.auto()  # the request is at fault; a proxy may have said so
    NOT_SENT = enum.auto()  # proves nothing about the request
    TIMED_OUT = enum.auto()
    LOST = enum.auto()  # the server may have died: the connection was cut, here or behind a proxy
    OTHER = enum.auto()  # the endpoint or the request is at fault; answers to other requests will show which


@frozen
class FailedAttempt:
    """An attempt that did not get an answer.

    Attributes:
        detail: The reason, for messages.
        line: The error line to write if the request is not retried.
        retry_after: Seconds to wait, as requested by the endpoint.
    """

    reason: FailureReason
    detail: str
    line: AnswerLine
    retry_after: float = 0.0


_REASONS = {
    FailureKind.NOT_SENT: FailureReason.NOT_SENT,
    FailureKind.TIMED_OUT: FailureReason.TIMED_OUT,
    FailureKind.LOST: FailureReason.LOST,
}

_REASONS_OF_STATUS = {
    401: FailureReason.KEY_REJECTED,
    403: FailureReason.KEY_REJECTED,
    429: FailureReason.RATE_LIMITED,
    503: FailureReason.UNAVAILABLE,
    # A proxy lost its connection to the server. 520 to 527 come from Cloudflare.
    **dict.fromkeys((502, 504, *range(520, 528)), FailureReason.LOST),
}


def classify(outcome: Reply | Failure, request: Request) -> AnswerLine | FailedAttempt:
    """Return the line that ends the request, or the failure of the attempt."""
    if isinstance(outcome, Failure):
        line = format_error(request, outcome.kind.value.replace(" ", "_"), outcome.detail)
        return FailedAttempt(_REASONS.get(outcome.kind, FailureReason.OTHER), outcome.detail, line)
    status = outcome.status
    try:
        line = format_answer(request, status, outcome.request_id, outcome.body)
    except ValueError:
        detail = f"status {status}, but the body is not a JSON object"
        return classify(Failure(kind=FailureKind.UNREADABLE, detail=detail), request)
    if line.problem is not None:
        return FailedAttempt(FailureReason.ANSWERED_ERROR, line.problem, line)
    if status < 300 or (status in _REQUEST_ERRORS and is_refusal(outcome.body)):
        return line
    if status in _CLEAR_REQUEST_ERRORS:
        return FailedAttempt(FailureReason.REFUSED, f"status {status}", line)
    reason = _REASONS_OF_STATUS.get(status, FailureReason.OTHER)
    has_retry_after = reason in {FailureReason.RATE_LIMITED, FailureReason.UNAVAILABLE}
    retry_after = min(outcome.retry_after or 0.0, _MAX_RETRY_AFTER) if has_retry_after else 0.0
    return FailedAttempt(reason, f"status {status}", line, retry_after)


def stopped_server(failed: FailedAttempt) -> FailedAttempt:
    """Return the failure of a request that stopped the server each time."""
    message = f"the server stopped each time it received this request: {failed.detail}"
    return evolve(failed, line=format_error(failed.line.request, "endpoint_failed", message))


def answered_error_delay(failures: int) -> float:
    """Return the seconds to wait after an error inside a success, given the number of earlier ones."""
    return jitter(exponential(failures, first=_FIRST_ANSWERED_ERROR_DELAY, limit=MAX_DELAY))


def retry_delay(failures: int) -> float:
    """Return the seconds to wait before sending a request again, given the number of its earlier failures."""
    return jitter(exponential(failures, first=FIRST_DELAY, limit=MAX_DELAY))


def jitter(seconds: float) -> float:
    return seconds * _rng.uniform(0.5, 1.0)


def probe_request(path: str, model: str) -> Request:
    """Return a request of the same kind that a healthy endpoint answers quickly."""
    body = json.dumps({"model": model, **ENDPOINTS[path].probe}).encode()
    return Request(number=0, custom_id="", path=path, body=body, request_id="")
