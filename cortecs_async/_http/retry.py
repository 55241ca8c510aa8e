"""The rules for retrying requests. Pure functions without a clock or I/O; randomness is an argument.

The service does not support idempotency keys. A `start` whose response is lost may have started a billed
instance, and repeating it would start a second one. So a `start` is retried only if the first one definitely
had no effect. The API's other requests can be retried: a GET does not change anything, and a `stop`,
`delete`, or `restart` identifies its instance. A POST or PATCH that is not in the published API is treated
like a start request.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .._aio.synchronization import exponential
from .._config import RetryPolicy
from .._errors import APIStatusError, CortecsError, DecodeError, TransportError
from .messages import Failure, FailureKind


def counts_as_retry(failure: Failure) -> bool:
    """Return whether a failed attempt counts against `max_retries`."""
    return failure.status != 429


# Not Implemented, and HTTP Version Not Supported.
_PERMANENT_5XX = frozenset({501, 505})


def is_transient_status(status: int) -> bool:
    """Return whether a request with this error status may succeed if it is sent again."""
    return status in {408, 429} or (status >= 500 and status not in _PERMANENT_5XX)


def is_transient(failure: Failure) -> bool:
    """Return whether a request that failed in this way may succeed if it is sent again."""
    if failure.kind is FailureKind.STATUS:
        return is_transient_status(failure.status or 0)
    return failure.kind is not FailureKind.REDIRECTED


# Internal Server Error and Gateway Timeout: the service failed, or the gateway stopped waiting for it, during
# the request. A text in the body does not change that.
_FAILED_INSIDE = frozenset({500, 504})


def may_have_taken_effect(method: str, failure: Failure) -> bool:
    """Return whether the service may have processed the request."""
    if method == "GET" or failure.kind is FailureKind.NOT_SENT:
        return False
    if failure.kind is FailureKind.STATUS and failure.status not in _FAILED_INSIDE:
        # A 4xx, or any status with an error in the API's JSON format, such as 503 "no capacity", rejects the
        # request. Any other 5xx or 408 may come from a proxy that forwarded the request.
        return not failure.reason and (
            failure.status is None or failure.status >= 500 or failure.status == 408
        )
    return True


def is_transient_error(error: CortecsError) -> bool:
    """Return whether the same request may work later."""
    if isinstance(error, APIStatusError):
        return is_transient_status(error.status_code)
    return isinstance(error, (TransportError, DecodeError))


def can_repeat(method: str, path: str, failure: Failure) -> bool:
    """Return whether it is safe to send the request again."""
    if not is_transient(failure):
        return False
    if is_idempotent(method, path):
        return True
    # 503 means "no capacity" as often as "down", so the caller decides whether to retry.
    return failure.status != 503 and not may_have_taken_effect(method, failure)


# POSTs of the published API that are safe to send twice.
_IDEMPOTENT_POSTS = frozenset(
    {"/oauth2/token", "/instances/restart", "/instances/stop", "/instances/stop-all"}
)


def is_idempotent(method: str, path: str) -> bool:
    """Return whether sending the request twice has the same effect as sending it once (RFC 9110, 9.2.2)."""
    return method not in {"POST", "PATCH"} or (method == "POST" and path in _IDEMPOTENT_POSTS)


def next_wait(
    method: str,
    path: str,
    failure: Failure,
    *,
    attempt: int,
    counted: int,
    elapsed: float,
    policy: RetryPolicy,
    rng: random.Random,
) -> float | None:
    """Return the seconds to wait before the next attempt, or None to give up.

    `attempt` is the number of attempts so far. `counted` is the number of attempts that failed with anything
    but 429: if 429s counted and half of all responses were 429, one request in sixty would fail. `elapsed` is
    the number of seconds since the first attempt began.
    """
    if policy.max_retries == 0 or counted > policy.max_retries or not can_repeat(method, path, failure):
        return None
    retry_after = failure.retry_after or 0.0
    if retry_after > policy.max_retry_after:
        return None
    wait = retry_after + backoff(attempt, policy=policy, rng=rng)
    return wait if elapsed + wait < policy.total_timeout else None


def backoff(attempt: int, *, policy: RetryPolicy, rng: random.Random) -> float:
    """Return the seconds to wait: random, up to an exponential bound ("full jitter")."""
    bound = exponential(attempt - 1, first=policy.initial_backoff, limit=policy.max_backoff)
    return rng.uniform(0.0, bound)


def parse_retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Return the seconds in a Retry-After header in either format (RFC 9110, 10.2.3), or None.

    A date is compared with the response's Date header, if it has one, in case the local clock is wrong.
    """
    value = headers.get("retry-after", "").strip()
    if not value:
        return None
    if value.isascii() and value.isdigit():
        return float(value.lstrip("0")[:12] or "0")
    moment = _parse_date(value)
    if moment is None:
        return None
    return max((moment - (_parse_date(headers.get("date", "")) or now)).total_seconds(), 0.0)


def _parse_date(value: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, OverflowError):  # the second one for a year or a zone with twenty digits
        return None
    # A date in asctime format does not have a zone and means UTC (RFC 9110, 5.6.7).
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
