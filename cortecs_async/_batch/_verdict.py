"""What follows from an attempt: an answer, another attempt, or a question about the instance. Pure."""

from __future__ import annotations

import json
import random

from attrs import frozen

from .._retry import Failure, Kind
from ._format import Request, Usage, answered, unanswered
from ._sender import Reply

# Seconds to wait after the first failure, twice as many after each more, and the most.
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0

# Attempts that do not count, because they say nothing of the request. Only so that none goes on for ever.
MOST_PASSED = 100

# Of these it is said by a model server what is wrong with the request.
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})


@frozen
class Settled:
    """A line for the output.

    Attributes:
        line: The line.
        usage: The tokens of an answer; None for an error line.
        is_doubtful: True for an error line that a dead instance would cause as well.
    """

    line: bytes
    usage: Usage | None = None
    is_doubtful: bool = False


@frozen
class Again:
    """Another attempt.

    Attributes:
        wait: Seconds until then.
        detail: Why, for people.
        counts: Whether this attempt is one of those that are limited.
        is_overload: Whether it says that there is too much at once.
        is_outage: Whether it says that the endpoint is not there at all.
    """

    wait: float
    detail: str
    counts: bool = False
    is_overload: bool = False
    is_outage: bool = False


@frozen
class Refused:
    """The endpoint does not take the key, or not for this."""

    status: int
    line: bytes
    detail: str


Verdict = Settled | Again | Refused


def judge(outcome: Reply | Failure, request: Request, *, max_retries: int, rng: random.Random) -> Verdict:
    """What follows.

    Args:
        outcome: Of the attempt.
        request: With the attempts before.
        max_retries: How many of those that count may fail before it is an error line.
        rng: Source of the jitter.
    """
    if isinstance(outcome, Reply) and outcome.status < 300:
        try:
            line, usage = answered(request, outcome.status, outcome.request_id, outcome.body)
        except ValueError:
            outcome = Failure(
                kind=Kind.UNREADABLE, detail=f"status {outcome.status} with a body that is no JSON"
            )
        else:
            return Settled(line, usage or Usage())
    if isinstance(outcome, Failure):
        return _judge_failure(outcome, request, max_retries, rng)
    status = outcome.status
    detail = f"status {status}"
    if status in {429, 503} and request.passed < MOST_PASSED:
        wait = _backoff(request.passed, rng) if outcome.retry_after is None else outcome.retry_after
        return Again(min(wait, _LONGEST_WAIT), detail, is_overload=True)
    if (status == 408 or status >= 500) and status not in {429, 503} and request.failures < max_retries:
        return Again(_backoff(request.failures, rng), detail, counts=True)
    line, _ = answered(request, status, outcome.request_id, outcome.body)
    if status in {401, 403}:
        return Refused(status, line, detail)
    is_clear = status in _ABOUT_THE_REQUEST and _is_of_openai(outcome.body)
    return Settled(line, is_doubtful=not is_clear)


def _judge_failure(failure: Failure, request: Request, max_retries: int, rng: random.Random) -> Verdict:
    if failure.kind is Kind.NOT_SENT and request.passed < MOST_PASSED:
        return Again(_backoff(request.passed, rng), failure.detail, is_outage=True)
    if failure.kind is not Kind.NOT_SENT and request.failures < max_retries:
        is_overload = failure.kind is Kind.TIMED_OUT
        return Again(_backoff(request.failures, rng), failure.detail, counts=True, is_overload=is_overload)
    code = failure.kind.value.replace(" ", "_")
    return Settled(unanswered(request, code, failure.detail), is_doubtful=True)


def _backoff(before: int, rng: random.Random) -> float:
    return min(_FIRST_WAIT * 2.0 ** min(before, 10), _LONGEST_WAIT) * rng.uniform(0.5, 1.0)


def _is_of_openai(body: bytes) -> bool:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    return (
        isinstance(data, dict) and isinstance(data.get("error"), dict) and bool(data["error"].get("message"))
    )
