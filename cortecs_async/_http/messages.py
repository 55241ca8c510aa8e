"""Requests, responses and failures, as the resources and the transport exchange them."""

from __future__ import annotations

import enum
import http.client
import json
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

from attrs import field, frozen

from .._aio.tasks import DetachedTask
from .._config import Settings
from .._errors import DecodeError, RequestError, RequestTimeoutError, TransportError, error_class_for
from .limiter import Priority

T = TypeVar("T")


@frozen(kw_only=True)
class Call:
    """A request as the resources describe it.

    Attributes:
        path: Path below the API base URL, already validated.
        retried: False for the poller, which polls again anyway.
        settings: Timeout, retries and headers, if they are not the client's.
        witness: Receives the outcome of each attempt. A cancellation of the caller does not reach an attempt
            that is sent. Between attempts, the request can be cancelled as usual.
    """

    method: str
    path: str
    json: Mapping[str, Any] | None = field(default=None, repr=False)  # may hold the client secret
    params: Mapping[str, str] | None = None
    authenticated: bool = True
    retried: bool = True
    priority: Priority = Priority.CALL
    settings: Settings | None = field(default=None, repr=False)
    witness: Witness | None = field(default=None, repr=False)

    @property
    def has_effect(self) -> bool:
        """Whether it changes something on the service. Fetching a token does not."""
        return self.authenticated and self.method != "GET"


class OnRetry(Protocol):
    """Called before a failed request is retried, with the seconds until then in `wait`."""

    def __call__(self, method: str, path: str, failure: Failure, *, attempt: int, wait: float) -> None: ...


class Witness(Protocol):
    """Receives every attempt of a request and its outcome, even if the caller is cancelled."""

    def sending(self, request: DetachedTask[Reply | Failure], /) -> bool:
        """Note that an attempt is about to be sent.

        Returns:
            Whether the witness takes over the `request` if the caller is cancelled. It must then cancel it
            once the outcome is no longer needed. Otherwise the caller waits for the outcome.
        """
        ...

    def settled(self, outcome: Reply | Failure) -> None:
        """Note the outcome of the attempt, also if it was cancelled."""


@frozen(kw_only=True)
class Reply:
    """A successful response.

    Attributes:
        data: The JSON, or None for an empty body.
        request_id: The response's `x-request-id`, if it has one.
        attempts: How often the request was sent.
        headers: Unchecked; their names are case-insensitive.
    """

    call: Call
    status: int
    data: Any = field(repr=False)
    request_id: str | None = None
    attempts: int = 1
    headers: Mapping[str, str] = field(factory=dict, repr=False)

    def decode(self, decoder: Callable[[Any], T]) -> T:
        """Decode the data. Turn a `ShapeError` of the decoder into a `DecodeError`."""
        try:
            return decoder(self.data)
        except ShapeError as error:
            problem = str(error)
        unknown = self.call.has_effect
        raise DecodeError(
            f"{self.call.method} {self.call.path} returned {self.status} with JSON that does not have the "
            f"documented shape: {problem}. The service may have changed: check for a newer cortecs-async."
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
    """Return what to add to the message of an error when a start may have worked."""
    if unknown and is_start(method, path):
        return " An instance may have been started: check client.instances.list()."
    return ""


def to_error(method: str, path: str, failure: Failure, *, attempts: int, unknown: bool) -> RequestError:
    """Return the error for a request that is not retried: the request, what happened, and what to do.

    The failure is that of the last attempt; `unknown` is whether any of them may have worked.
    """
    request = f"{method} {path}"
    tries = f" ({attempts} attempts)" if attempts > 1 else ""
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
            phrase = http.client.responses.get(status, "(not a standard status)")
            if failure.reason:
                phrase += f": {failure.reason.rstrip('.')}"
            request_id = f" [request id {failure.request_id}]" if failure.request_id else ""
            hint = _EXCHANGE_HINT if path == EXCHANGE_PATH and 400 <= status < 500 else error_class.hint
            advice = f" {hint}" if hint else ""
            later = f" Retry after {failure.retry_after:g} s." if failure.retry_after is not None else ""
            return error_class(
                f"{request} returned {status} {phrase}{request_id}{tries}.{advice}{later}{warning}",
                status_code=status,
                body=failure.body,
                request_id=failure.request_id,
                retry_after=failure.retry_after,
                **common,
            )
        case FailureKind.UNREADABLE:
            problem = failure.detail or "is not JSON"
            error = DecodeError(
                f"{request} returned {failure.status} with a body that {problem}{tries}. "
                "A proxy may have responded instead of the service: check api_base_url and the network."
                f"{warning}",
                **common,
            )
            if failure.body:
                error.add_note(f"cortecs_async: the body begins with {failure.body!r}")
            return error
        case FailureKind.REDIRECTED:
            return TransportError(
                f"{request} was redirected ({failure.status}) to {failure.detail!r}. The redirect was not "
                "followed, because credentials are sent only to the host of api_base_url. If the service has "
                f"moved, change api_base_url.{warning}",
                **common,
            )
        case FailureKind.TIMED_OUT:
            return RequestTimeoutError(f"{request} timed out{tries}: {failure.detail}.{warning}", **common)
        case FailureKind.NOT_SENT:
            return TransportError(
                f"{request} could not be sent{tries}: {failure.detail}. Check api_base_url and the network.",
                **common,
            )
        case FailureKind.LOST:
            return TransportError(
                f"{request} received no complete response{tries}: {failure.detail}.{warning}", **common
            )


_STANDARD_PHRASES = frozenset(phrase.lower() for phrase in http.client.responses.values())


def error_reason(body: bytes) -> str:
    """Return the error text in a JSON error of the service, or an empty string.

    The API reference puts it in `message` or `error`. An object in `error` is the form of OpenAI's API.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(data, dict):
        return ""
    error = data.get("error")
    texts = [data.get("message"), error.get("message") if isinstance(error, dict) else error]
    text = next((each for each in texts if isinstance(each, str) and each.strip()), "")
    text = " ".join("".join(each for each in text if each.isprintable() or each.isspace()).split())
    # A gateway's own words, such as "Service Unavailable" after it has passed the request on.
    return "" if text.rstrip(".").lower() in _STANDARD_PHRASES else text


class ShapeError(ValueError):
    """JSON that does not have the documented shape. The HTTP layer turns it into a DecodeError."""


class FailureKind(enum.Enum):
    """How an attempt failed."""

    NOT_SENT = "not sent"  # the service never received it
    LOST = "lost"  # sent, but no complete response
    TIMED_OUT = "timed out"  # sent, but no complete response in time
    UNREADABLE = "unreadable"  # a success status whose body is not JSON
    REDIRECTED = "redirected"  # to where the request must not go
    STATUS = "status"  # an error status


@frozen(kw_only=True)
class Failure:
    """An attempt without a usable response.

    Attributes:
        detail: Details for people, without secrets.
        status: HTTP status, if one was read.
        retry_after: Seconds that the service asked to wait.
        body: Redacted excerpt of the response body.
        reason: The error text of the service, from the JSON of its response (`error_reason`). Empty for any
            other body, such as the HTML of a proxy.
    """

    kind: FailureKind
    detail: str = ""
    status: int | None = None
    retry_after: float | None = None
    body: str = ""
    reason: str = ""
    request_id: str | None = None


def is_start(method: str, path: str) -> bool:
    """Return whether this request starts an instance, which is billed."""
    return (method, path) == ("POST", "/instances/start")
