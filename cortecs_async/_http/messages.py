"""A request and its answer, as the resources and the transport speak of them."""

from __future__ import annotations

import enum
import http.client
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from .._config import Settings
from .._errors import DecodeError, RequestError, RequestTimeoutError, TransportError, error_class_for
from .limiter import Priority

T = TypeVar("T")


@frozen(kw_only=True)
class Call:
    """A request as the resources describe it; `path` is below the API base URL and already checked."""

    method: str
    path: str
    # Bodies can hold the client secret.
    json: Mapping[str, Any] | None = field(default=None, repr=False)
    params: Mapping[str, str] | None = None
    authenticated: bool = True
    # False for the poller, whose next tick is its retry.
    retried: bool = True
    priority: Priority = Priority.CALL
    # Instead of the client's: its time, retries and headers.
    settings: Settings | None = field(default=None, repr=False)

    # Given for what must not be lost to a cancellation: once sent, an attempt is seen to its end, and this is
    # told of it before the cancellation goes on. Between attempts it can be cancelled as usual.
    witness: Witness | None = field(default=None, repr=False)

    @property
    def has_effect(self) -> bool:
        """True when it changes something that outlives it; fetching a token does not."""
        return self.authenticated and self.method != "GET"


class OnRetry(Protocol):
    """Called before a failed request is sent again, with seconds in `wait`."""

    def __call__(self, method: str, path: str, failure: Failure, *, attempt: int, wait: float) -> None: ...


class Witness(Protocol):
    """Who must know of every attempt of a request, whatever becomes of its caller."""

    def sending(self) -> None:
        """An attempt is about to be sent."""
        ...

    def settled(self, outcome: Reply | Failure) -> None:
        """It has ended. Not called when the loop itself was broken off."""
        ...


@frozen(kw_only=True)
class Reply:
    """A success answer.

    Attributes:
        data: The JSON, or None for an empty body.
        request_id: The answer's `x-request-id`, where there is one.
        attempts: How often the request was sent.
        headers: The answer's, whatever the case of their names; nothing in them has been looked at.
    """

    call: Call
    status: int
    data: Any = field(repr=False)
    request_id: str | None = None
    attempts: int = 1
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    def decode(self, decoder: Callable[[Any], T]) -> T:
        """What the decoder makes of the data.

        Raises:
            DecodeError: when it is not of the documented shape.
        """
        try:
            return decoder(self.data)
        except ShapeError as error:
            problem = str(error)
        unknown = self.call.has_effect
        raise DecodeError(
            f"{self.call.method} {self.call.path} answered {self.status} with JSON of another shape than "
            f"documented: {problem}. The service may have changed: look for a newer cortecs-async."
            f"{start_warning(self.call.method, self.call.path, unknown=unknown)}",
            method=self.call.method,
            path=self.call.path,
            attempts=self.attempts,
            outcome_unknown=unknown,
        )


EXCHANGE_PATH = "/oauth2/token"

_EXCHANGE_HINT = (
    "Check client_id and client_secret (CORTECS_CLIENT_ID, CORTECS_CLIENT_SECRET), and api_base_url."
)


def start_warning(method: str, path: str, *, unknown: bool) -> str:
    """What to add to the message when a start may have worked all the same."""
    if unknown and is_start(method, path):
        return " An instance may have been started all the same: client.instances.list() tells."
    return ""


def to_error(method: str, path: str, failure: Failure, *, attempts: int, unknown: bool) -> RequestError:
    """The error for a request that is given up: what was asked, what came back, what to do.

    Args:
        method: HTTP method.
        path: Path below the API base URL.
        failure: How the last attempt failed.
        attempts: How often it was sent.
        unknown: True when one of the attempts may have worked.
    """
    what = f"{method} {path}"
    tries = f" (sent {attempts} times)" if attempts > 1 else ""
    common: dict[str, Any] = {
        "method": method,
        "path": path,
        "attempts": attempts,
        "outcome_unknown": unknown,
    }
    warning = start_warning(method, path, unknown=unknown)
    match failure.kind:
        case FailureKind.STATUS:
            status = failure.status or 0
            error_class = error_class_for(status)
            phrase = http.client.responses.get(status, "(no standard status)")
            said = f": {failure.body!r}" if failure.body else ""
            seen = f" [request id {failure.request_id}]" if failure.request_id else ""
            later = f" Retry after {failure.retry_after:g} s." if failure.retry_after is not None else ""
            advice = _EXCHANGE_HINT if path == EXCHANGE_PATH and 400 <= status < 500 else error_class.hint
            hint = f" {advice}" if advice else ""
            return error_class(
                f"{what} answered {status} {phrase}{said}{seen}{tries}.{hint}{later}{warning}",
                status_code=status,
                body=failure.body,
                request_id=failure.request_id,
                retry_after=failure.retry_after,
                **common,
            )
        case FailureKind.UNREADABLE:
            return DecodeError(
                f"{what} answered {failure.status} with a body that is not JSON: {failure.body!r}{tries}."
                f" Something between here and the service may have answered in its place.{warning}",
                **common,
            )
        case FailureKind.REDIRECTED:
            return TransportError(
                f"{what} was redirected ({failure.status}) to {failure.detail!r}, and not followed: "
                f"credentials go only to the host of api_base_url. If the service has moved, change that."
                f"{warning}",
                **common,
            )
        case FailureKind.TIMED_OUT:
            return RequestTimeoutError(f"{what} timed out{tries}: {failure.detail}.{warning}", **common)
        case FailureKind.NOT_SENT:
            return TransportError(
                f"{what} could not be sent{tries}: {failure.detail}. Check api_base_url and the network.",
                **common,
            )
        case FailureKind.LOST:
            return TransportError(f"{what} lost its connection{tries}: {failure.detail}.{warning}", **common)


class ShapeError(ValueError):
    """JSON that is not of the documented shape; the HTTP layer makes a DecodeError of it."""


class FailureKind(enum.Enum):
    """How an attempt failed."""

    NOT_SENT = "not sent"  # no connection: the service never saw it
    LOST = "lost"  # sent, and then no whole answer
    TIMED_OUT = "timed out"  # sent, and no whole answer in time
    UNREADABLE = "unreadable"  # a success status whose body is not JSON
    REDIRECTED = "redirected"  # to where the request must not follow
    STATUS = "status"  # an error status


@frozen(kw_only=True)
class Failure:
    """An attempt that gave no usable answer.

    Attributes:
        kind: How it failed.
        detail: For people; holds no secrets.
        status: The HTTP status, where one was read.
        retry_after: Seconds that the service asked to wait.
        body: Redacted excerpt of the answer.
        request_id: The answer's request id.
    """

    kind: FailureKind
    detail: str = ""
    status: int | None = None
    retry_after: float | None = None
    body: str = ""
    request_id: str | None = None


def is_start(method: str, path: str) -> bool:
    """True for the request that begins to cost something."""
    return (method, path) == ("POST", "/instances/start")
