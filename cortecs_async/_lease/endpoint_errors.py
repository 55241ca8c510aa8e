"""Recognize errors of requests to an endpoint, whichever HTTP client or framework raises them."""

from __future__ import annotations

from .._errors import CortecsError, add_note

# The names used by openai, httpx, aiohttp, Pydantic AI, and packages built on them for a request without a
# response.
_CONNECTION_ERRORS = frozenset({
    *("APIConnectionError", "TransportError", "ClientConnectionError", "ClientPayloadError"),
    "ModelConnectionError",
})  # fmt: skip

# The names used by tenacity and instructor when retries are exhausted. The cause is the last error.
_RETRIES = frozenset({"RetryError", "InstructorRetryException"})

# The name in starlette, litestar, werkzeug, and aiohttp for a server's response: the user's own server.
_SERVER_ERROR = "HTTPException"


def is_endpoint_error(error: BaseException | None) -> bool:
    """Return whether an endpoint responded with an error or not at all; in a group, for all errors."""
    if isinstance(error, BaseExceptionGroup):
        return all(map(is_endpoint_error, error.exceptions))
    if error is None or isinstance(error, CortecsError):
        return False
    if not _RETRIES.isdisjoint(_names(error)):
        return is_endpoint_error(error.__cause__)
    return status_of(error) is not None or is_connection_error(error)


def is_connection_error(error: BaseException) -> bool:
    """Return whether a request did not get a response."""
    return isinstance(error, ConnectionError) or not _CONNECTION_ERRORS.isdisjoint(_names(error))


def status_of(error: BaseException) -> int | None:
    """Return the HTTP status of the response that caused this error, or None if there is none."""
    if _SERVER_ERROR in _names(error):
        return None
    # openai and packages built on it; aiohttp; httpx.
    response = _attribute(error, "response")
    for holder, name in ((error, "status_code"), (error, "status"), (response, "status_code")):
        status = _attribute(holder, name)
        if isinstance(status, int) and status >= 400:
            return status
    return None


def _attribute(holder: object, name: str) -> object:
    try:
        return getattr(holder, name, None)
    except Exception:  # noqa: BLE001  (a property of any exception)
        return None


def _names(error: BaseException) -> set[str]:
    return {each.__name__ for each in type(error).__mro__}


def note_rejected_key(error: BaseException | None, origin: str) -> None:
    """Add a note to an error if the endpoint rejected the inference API key.

    Args:
        error: The error of the block, if any.
        origin: The origin of the key, or an empty string if no key was used.
    """
    if error is not None and origin and status_of(error) == 401:
        add_note(
            error,
            f"The endpoint rejected the inference API key from {origin}. Create one on cortecs.ai. "
            "The client secret is not an inference API key.",
        )
