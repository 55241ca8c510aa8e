"""Makes the typed error of a request that is given up."""

from __future__ import annotations

import http.client
from typing import Any

from ._errors import DecodeError, RequestError, RequestTimeoutError, TransportError, error_class_for
from ._retry import Failure, Kind, is_start

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
        case Kind.STATUS:
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
        case Kind.UNREADABLE:
            return DecodeError(
                f"{what} answered {failure.status} with a body that is not JSON: {failure.body!r}{tries}."
                f" Something between here and the service may have answered in its place.{warning}",
                **common,
            )
        case Kind.REDIRECTED:
            return TransportError(
                f"{what} was redirected ({failure.status}) to {failure.detail!r}, and not followed: "
                f"credentials go only to the host of api_base_url. If the service has moved, change that."
                f"{warning}",
                **common,
            )
        case Kind.TIMED_OUT:
            return RequestTimeoutError(f"{what} timed out{tries}: {failure.detail}.{warning}", **common)
        case Kind.NOT_SENT:
            return TransportError(
                f"{what} could not be sent{tries}: {failure.detail}. Check api_base_url and the network.",
                **common,
            )
        case Kind.LOST:
            return TransportError(f"{what} lost its connection{tries}: {failure.detail}.{warning}", **common)
