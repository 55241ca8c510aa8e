"""Recognize errors of requests to an endpoint, whichever HTTP client or framework raises them."""

from __future__ import annotations

from .._errors import CortecsError

# Names in openai, httpx, aiohttp, Pydantic AI and in packages built on them for a request that received no
# response.
_CONNECTION_ERRORS = frozenset({
    *("APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError"),
    "ModelConnectionError",
})  # fmt: skip

# Names in tenacity and instructor for the end of retries, whose last error is the cause.
_RETRIES = frozenset({"RetryError", "InstructorRetryException"})

# The name in starlette, litestar, werkzeug and aiohttp for the response of a server: it is the user's own.
_SERVER_ERROR = "HTTPException"


def is_endpoint_error(error: BaseException | None) -> bool:
    """Return whether an endpoint responded with an error, or not at all. In a group, all must be of this."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_endpoint_error, error.exceptions))
    if error is None or isinstance(error, CortecsError):
        return False
    if not _RETRIES.isdisjoint(_names(error)):
        return is_endpoint_error(error.__cause__)
    return status_of(error) is not None or is_connection_error(error)


def is_connection_error(error: BaseException) -> bool:
    """Return whether a request received no response."""
    return isinstance(error, ConnectionError) or not _CONNECTION_ERRORS.isdisjoint(_names(error))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the response that this error stands for; None if there is none."""
    if _SERVER_ERROR in _names(error):
        return None
    # openai and those built on it; aiohttp; httpx.
    response = _attribute(error, "response")
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code")):
        status = _attribute(holder, name)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  (a property of anyone's exception)
        return None


def _names(error: BaseException) -> set[str]:
    return {each.__name__ for each in type(error).__mro__}
