"""Requests, responses, and failures, as exchanged by the resources and the transport.

The classes are plain: programs that log local variables would show the tokens and bodies in a tuple or in a
generated representation, and attrs would take about half a millisecond to create each at import.
"""

from __future__ import annotations

import enum
import http.client
import json
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

from .._aio.tasks import DetachedTask
from .._config import Settings
from .._credentials import Sources
from .._errors import DecodeError, RequestError, RequestTimeoutError, TransportError, error_class_for
from .limiter import Priority

T = TypeVar("T")


class Call:
    """A request as described by the resources. It is copied before it is changed.

    Attributes:
        path: Path below the API base URL, already validated.
        retried: False for the poller, which polls again anyway.
        settings: Timeout, retries, and headers, if they differ from the client's.
        witness: Receives the outcome of each attempt. Cancelling the caller does not affect an attempt that
            was sent. Between attempts, the request can be cancelled as usual.
    """

    def __init__(
        self,
        *,
        method: str,
        path: str,
        json: Mapping[str, Any] | None = None,
        params: Mapping[str, str] | None = None,
        authenticated: bool = True,
        retried: bool = True,
        priority: Priority = Priority.CALL,
        settings: Settings | None = None,
        witness: Witness | None = None,
    ) -> None:
        self.method = method
        self.path = path
        self.json = json
        self.params = params
        self.authenticated = authenticated
        self.retried = retried
        self.priority = priority
        self.settings = settings
        self.witness = witness

    @property
    def has_effect(self) -> bool:
        """Whether the request changes anything in the service. Fetching a token does not."""
        return self.authenticated and self.method != "GET"


class OnRetry(Protocol):
    """A callback invoked before a failed request is retried, after `wait` seconds."""

    def __call__(self, method: str, path: str, failure: Failure, *, attempt: int, wait: float) -> None: ...


class Witness(Protocol):
    """Receives every attempt at a request and its outcome, even if the caller is cancelled."""

    def sending(self, request: DetachedTask[Reply | Failure], /) -> bool:
        """Record that an attempt is about to be sent.

        Returns:
            Whether the witness takes over the `request` if the caller is cancelled. The witness must then
            cancel it once the outcome is no longer needed. Otherwise the caller waits for the outcome.
        """
        ...

    def settled(self, outcome: Reply | Failure) -> None:
        """Record the outcome of the attempt, even if it was cancelled."""


class Reply:
    """A successful response.

    Attributes:
        data: The JSON, or None for an empty body.
        request_id: The response's `x-request-id`, if it has one.
        attempts: How many times the request was sent.
        headers: Unchecked; their names are case-insensitive.
    """

    def __init__(
        self,
        *,
        call: Call,
        status: int,
        data: Any,
        request_id: str | None = None,
        attempts: int = 1,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.call = call
        self.status = status
        self.data = data
        self.request_id = request_id
        self.attempts = attempts
        self.headers = headers

    def decode(self, decoder: Callable[[Any], T]) -> T:
        """Decode the data. Turn a `ShapeError` from the decoder into a `DecodeError`."""
        try:
            return decoder(self.data)
        except ShapeError as error:
            problem = str(error)
        unknown = self.call.has_effect
        raise DecodeError(
            f"{self.call.method} {self.call.path} returned {self.status} with JSON that does not have the "
            f"documented shape: {problem}. Check {_BASE_URL}. If it is correct, the service may have "
            "changed. Install a newer version of cortecs-async."
            f"{start_warning(self.call.method, self.call.path, unknown=unknown)}",
            method=self.call.method,
            path=self.call.path,
            attempts=self.attempts,
            outcome_unknown=unknown,
        )


EXCHANGE_PATH = "/oauth2/token"
START_PATH = "/instances/start"

_BASE_URL = "api_base_url (CORTECS_API_BASE_URL)"

# Paths without user input: a 404 means a wrong base URL.
_FIXED_PATHS = frozenset({
    *(EXCHANGE_PATH, "/instances/", "/models/", "/hardware-types/", "/hardware-types/available"),
    "/user/balance",
})  # fmt: skip

# Hints used only if the service does not state a reason.
_VAGUE_HINTS = frozenset({400, 404, 422})


def start_warning(method: str, path: str, *, unknown: bool) -> str:
    """Return the text to add to an error message when a start request may have worked."""
    if unknown and is_start(method, path):
        return " An instance may have been started: check client.instances.list()."
    return ""


def outage(failure: Failure, url: str, *, counted: int) -> str:
    """Return the text to log while a request waits for a service that is down, or an empty string.

    A response such as 502 counts from the second in a row, because a single one is often followed by a
    success.
    """
    if failure.is_unreachable:
        return f"Cannot reach {url}: {failure.detail}"
    if failure.kind is FailureKind.TIMED_OUT:
        return f"{url} does not respond: {failure.detail}"
    status = failure.status or 0
    return f"{url} returns {status} {status_phrase(status)}" if status >= 500 and counted > 1 else ""


def status_phrase(status: int) -> str:
    return http.client.responses.get(status, "(not a standard status)")


def to_error(
    method: str, path: str, failure: Failure, *, url: str, sources: Sources, attempts: int, unknown: bool
) -> RequestError:
    """Return the error for a request that is not retried: the request, what happened, and what to do.

    `failure` comes from the last attempt; `url` is the base URL; `sources` are the origins of the URL and the
    credentials; `unknown` is whether any of the attempts may have worked.
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
    place = sources.url_place(url)
    match failure.kind:
        case FailureKind.STATUS:
            return _status_error(
                request + " returned", failure, url, sources, tries=tries, warning=warning, **common
            )
        case FailureKind.UNREADABLE:
            problem = failure.detail or "is not JSON"
            error = DecodeError(
                f"{request} returned {failure.status} with a body that {problem}{tries}. "
                f"{url} may not be the cortecs API: check {place}, and make sure that no proxy "
                f"responded instead.{warning}",
                **common,
            )
            if failure.body:
                error.add_note(f"cortecs_async: The body begins with {failure.body!r}")
            return error
        case FailureKind.REDIRECTED:
            return TransportError(
                f"{request} was redirected ({failure.status}) to {failure.detail!r}. The redirect was not "
                "followed, because credentials are sent only to the host of api_base_url. If the service has "
                f"moved, change api_base_url.{warning}",
                **common,
            )
        case FailureKind.TIMED_OUT:
            return RequestTimeoutError(
                f"{request} to {url} timed out{tries}: {failure.detail}.{warning}", **common
            )
        case FailureKind.NOT_SENT:
            text = f"{request} could not be sent{tries}: {failure.detail}."
            if failure.is_unreachable:
                after = f" after {attempts} attempts" if attempts > 1 else ""
                text = f"Cannot reach {url}{after} ({failure.detail}). Check the network and {place}."
            return TransportError(text, **common)
        case FailureKind.LOST:
            detail = failure.detail.rstrip(".")
            return TransportError(
                f"{request} to {url} did not receive a complete response{tries}: {detail}.{warning}",
                **common,
            )


def _status_error(
    returned: str,
    failure: Failure,
    url: str,
    sources: Sources,
    *,
    tries: str,
    warning: str,
    path: str,
    **common: Any,
) -> RequestError:
    status = failure.status or 0
    error_class = error_class_for(status)
    phrase = status_phrase(status)
    if failure.reason:
        phrase += f": {failure.reason.rstrip('.')}"
    request_id = f" [request id {failure.request_id}]" if failure.request_id else ""
    hint = "" if failure.reason and status in _VAGUE_HINTS else error_class.hint
    if path in _FIXED_PATHS and status in {404, 405}:
        hint = f"The base URL {url} looks wrong: check {sources.url_place(url)}."
    elif path == EXCHANGE_PATH and 400 <= status < 500:
        hint = sources.credentials_advice(url)
    advice = f" {hint}" if hint else ""
    later = f" Retry after {failure.retry_after:g} s." if failure.retry_after is not None else ""
    return error_class(
        f"{returned} {status} {phrase}{request_id}{tries}.{advice}{later}{warning}",
        path=path,
        status_code=status,
        body=failure.body,
        request_id=failure.request_id,
        retry_after=failure.retry_after,
        **common,
    )


_STANDARD_PHRASES = frozenset(phrase.lower() for phrase in http.client.responses.values())


def error_reason(body: bytes, status: int = 500) -> str:
    """Return the error text in a JSON error from the service, or an empty string.

    According to the API reference, it is in `message` or `error`. The OpenAI API has an object in `error`.
    Web frameworks use `detail`. That text is read only for a status that always rejects the request, because
    a proxy may use it too.
    """
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    if not isinstance(data, dict):
        return ""
    error = data.get("error")
    texts = [data.get("message"), error.get("message") if isinstance(error, dict) else error]
    if 400 <= status < 500 and status != 408:
        texts.append(_detail(data.get("detail")))
    text = next((each for each in texts if isinstance(each, str) and each.strip()), "")
    text = " ".join("".join(each for each in text if each.isprintable() or each.isspace()).split())
    # A gateway's own text, such as "Service Unavailable" after it forwarded the request.
    return "" if text.rstrip(".").lower() in _STANDARD_PHRASES else text


def _detail(detail: Any) -> Any:
    """Return `detail` as one text. FastAPI sends a list of objects with `msg` and `loc`."""
    if not isinstance(detail, list):
        return detail
    problems = [each for each in detail if isinstance(each, dict) and isinstance(each.get("msg"), str)]
    return "; ".join(": ".join([*map(str, _as_list(each.get("loc"))[-1:]), each["msg"]]) for each in problems)


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


class ShapeError(ValueError):
    """JSON that does not have the documented shape. The HTTP layer turns it into a DecodeError."""


class FailureKind(enum.Enum):
    """The way an attempt failed."""

    NOT_SENT = "not sent"  # the service never received it
    LOST = "lost"  # sent, but no complete response
    TIMED_OUT = "timed out"  # sent, but no complete response in time
    UNREADABLE = "unreadable"  # a success status whose body is not JSON
    REDIRECTED = "redirected"  # to a place the request must not be sent to
    STATUS = "status"  # an error status


class Failure:
    """An attempt without a usable response.

    Attributes:
        detail: Details for display, without secrets.
        is_unreachable: Whether no connection could be opened.
        status: HTTP status, if one was received.
        retry_after: Seconds the service asked to wait.
        body: Redacted excerpt of the response body.
        reason: The service's error text, from the JSON of its response (`error_reason`). An empty string for
            any other body, such as HTML from a proxy.
    """

    def __init__(
        self,
        *,
        kind: FailureKind,
        detail: str = "",
        is_unreachable: bool = False,
        status: int | None = None,
        retry_after: float | None = None,
        body: str = "",
        reason: str = "",
        request_id: str | None = None,
    ) -> None:
        self.kind = kind
        self.detail = detail
        self.is_unreachable = is_unreachable
        self.status = status
        self.retry_after = retry_after
        self.body = body
        self.reason = reason
        self.request_id = request_id


def is_start(method: str, path: str) -> bool:
    """Return whether this request starts an instance, which is billed."""
    return (method, path) == ("POST", START_PATH)
