"""What follows from an attempt: an answer, or another attempt, and what it says of the endpoint. Pure."""

from __future__ import annotations

import enum
import json
import random

from attrs import define, frozen

from .._http.messages import Failure, FailureKind
from .format import Request, Usage, answered, unanswered
from .sender import Reply

# Seconds to wait after the first failure, twice as many after each more, and the most.
_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0

# Seconds that an endpoint is believed when it asks to come again later.
_LONGEST_RETRY_AFTER = 300.0

# What an endpoint says of a request that it has read.
_ABOUT_THE_REQUEST = frozenset({400, 413, 422})


class FailureReason(enum.Enum):
    """What a failed attempt is about, unless something else tells who is to blame."""

    TOO_MANY = "too many requests"  # the endpoint is there
    NOT_READY = "not ready"  # 503: too many as well, or it is not there yet, or no longer
    KEY = "the key"
    OUTAGE = "an outage"  # or the request itself: what else is answered meanwhile tells


@define
class Settled:
    """A line for the output.

    Attributes:
        line: The line.
        usage: The tokens of an answer; None for an error line.
    """

    line: bytes
    usage: Usage | None = None


@frozen
class Failed:
    """An attempt without an answer.

    Attributes:
        trouble: What it is about.
        detail: For people.
        line: The error line, should it be for good.
        retry_after: Seconds that the endpoint asked to wait.
        is_time_out: Whether it took all the time that an attempt may.
    """

    reason: FailureReason
    detail: str
    line: bytes
    retry_after: float = 0.0
    is_time_out: bool = False


def classify(outcome: Reply | Failure, request: Request) -> Settled | Failed:
    """What follows from an attempt."""
    if isinstance(outcome, Failure):
        code = outcome.kind.value.replace(" ", "_")
        line = unanswered(request, code, outcome.detail)
        is_time_out = outcome.kind is FailureKind.TIMED_OUT
        return Failed(FailureReason.OUTAGE, outcome.detail, line, is_time_out=is_time_out)
    status = outcome.status
    if status < 300:
        try:
            line, usage = answered(request, status, outcome.request_id, outcome.body)
        except ValueError:
            detail = f"status {status} with a body that is no JSON"
            return classify(Failure(kind=FailureKind.UNREADABLE, detail=detail), request)
        return Settled(line, usage or Usage())
    line, _ = answered(request, status, outcome.request_id, outcome.body)
    if status in _ABOUT_THE_REQUEST and _is_of_a_model_server(outcome.body):
        return Settled(line)
    trouble = {
        401: FailureReason.KEY,
        403: FailureReason.KEY,
        429: FailureReason.TOO_MANY,
        503: FailureReason.NOT_READY,
    }.get(status, FailureReason.OUTAGE)
    asks_to_wait = trouble in {FailureReason.TOO_MANY, FailureReason.NOT_READY}
    retry_after = min(outcome.retry_after or 0.0, _LONGEST_RETRY_AFTER) if asks_to_wait else 0.0
    return Failed(trouble, f"status {status}", line, retry_after)


def backoff(before: int, rng: random.Random) -> float:
    """Seconds to wait, after so many failures before this one."""
    return min(_FIRST_WAIT * 2.0 ** min(before, 10), _LONGEST_WAIT) * rng.uniform(0.5, 1.0)


def _is_of_a_model_server(body: bytes) -> bool:
    """Whether this is how OpenAI, vLLM or FastAPI say what is wrong with a request."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if not isinstance(data, dict):
        return False
    error = data.get("error", data if data.get("object") == "error" else None)
    return bool(isinstance(error, dict) and error.get("message")) or isinstance(data.get("detail"), list)
