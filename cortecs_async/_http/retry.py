"""What may be repeated, and when. Pure: no clock, no I/O, the randomness handed in.

The service has no idempotency key. A `start` whose answer is lost may have started a billed instance, and a
second one would start another: it is repeated only when it is certain that the first did nothing. The other
requests of the API can be repeated: a GET changes nothing, and a `stop`, `delete` or `restart` names its
instance. Of a POST or PATCH that is not in the published API nobody knows: it is treated as a start.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from .._config import RetryPolicy
from .messages import Failure, FailureKind


def counts_as_retry(failure: Failure) -> bool:
    """Whether an attempt that failed so is one of those that `max_retries` allows."""
    return failure.status != 429


# 501 and 505 say that the service will never do this.
_NEVER = frozenset({501, 505})


def is_transient_status(status: int) -> bool:
    """True for error statuses that may be gone the next time."""
    return status in {408, 429} or (status >= 500 and status not in _NEVER)


def is_transient(failure: Failure) -> bool:
    """True for failures that may be gone the next time."""
    match failure.kind:
        case FailureKind.STATUS:
            return is_transient_status(failure.status or 0)
        case FailureKind.REDIRECTED:
            return False
        case _:
            return True


def may_have_taken_effect(method: str, failure: Failure) -> bool:
    """True when the service may have done what was asked: nothing that was read says that it did not."""
    if method == "GET" or failure.kind is FailureKind.NOT_SENT:
        return False
    if failure.kind is FailureKind.STATUS:
        # A 4xx is a refusal. Not 408, which a proxy gives for a request that it has passed on.
        return failure.status is None or failure.status >= 500 or failure.status == 408
    return True


def can_repeat(method: str, path: str, failure: Failure) -> bool:
    """True when sending the request again cannot do more than sending it once."""
    if not is_transient(failure):
        return False
    return is_idempotent(method, path) or not may_have_taken_effect(method, failure)


# The POSTs of the published API that may be sent twice.
_IDEMPOTENT_POSTS = frozenset(
    {"/oauth2/token", "/instances/restart", "/instances/stop", "/instances/stop-all"}
)


def is_idempotent(method: str, path: str) -> bool:
    """True when to send it twice is to send it once: by its method (RFC 9110, 9.2.2), or known to be."""
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
    """Seconds to wait before the next attempt, or None to give up.

    Args:
        method: HTTP method.
        path: Path below the API base URL.
        failure: How the last attempt failed.
        attempt: Attempts made so far, at least 1.
        counted: How many of them failed otherwise than with 429. "Too many requests" is no failure but an
            appointment: where half of all answers are that, one request in sixty would be given up.
        elapsed: Seconds since the first attempt began.
        policy: The limits.
        rng: Source of the jitter.
    """
    if policy.max_retries == 0 or counted > policy.max_retries or not can_repeat(method, path, failure):
        return None
    asked = failure.retry_after or 0.0
    if asked > policy.max_retry_after:
        return None
    wait = asked + backoff(attempt, policy=policy, rng=rng)
    return wait if elapsed + wait < policy.total_timeout else None


def backoff(attempt: int, *, policy: RetryPolicy, rng: random.Random) -> float:
    """Exponential with full jitter: anywhere from 0 to the doubled bound, so that callers spread out."""
    # The exponent is capped because 2.0 ** 1025 overflows.
    bound = min(policy.max_backoff, policy.initial_backoff * 2.0 ** min(attempt - 1, 64))
    return rng.uniform(0.0, bound)


def parse_retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds from a Retry-After header in either form (RFC 9110, 10.2.3), or None.

    A date counts from the answer's own Date header where there is one, so that a wrong clock here does
    no harm.
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
    except (ValueError, OverflowError):  # the second for a year or zone of twenty digits
        return None
    # The form of asctime has no zone, and means UTC (RFC 9110, 5.6.7).
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
