"""Requests and responses as plain data, independent of the transport (ASGI or httpx)."""

import html
import json
from collections.abc import Mapping
from typing import Any, Literal, NoReturn

import attrs

JSON_TYPE = "application/json"
HTML_TYPE = "text/html; charset=utf-8"
# The formats of an error's body.
ErrorBody = Literal["message", "error", "openai", "html", "empty"]
# The parameters in a path, by name.
Params = Mapping[str, str]


@attrs.frozen
class Request:
    method: str
    path: str
    """Without the query, percent-decoded."""
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes

    @property
    def bearer_token(self) -> str | None:
        """The token of a bearer `Authorization` header, or None if there is none."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None


@attrs.frozen
class Response:
    """One response, before any fault."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = attrs.field(factory=dict)
    """The headers of the response itself; the transport adds its own."""
    events: tuple[bytes, ...] | None = None
    """The chunks of a streamed response, sent one by one instead of `body`."""
    instance_id: str = ""
    """The instance that sends the answer. Its load delays the response. If it stops, a stream is cut off."""


class ApiError(ValueError):
    """The emulated service rejects a request without changing its state. Any code reading requests raises it.

    Only inference sends the code, a reason for programs. `body` is the format of the body if it differs from
    the route's other errors.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
        body: ErrorBody | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers: Mapping[str, str] = {} if headers is None else headers
        self.body = body


def json_response(
    status: int,
    value: Any,
    headers: Mapping[str, str] | None = None,
    *,
    instance_id: str = "",
) -> Response:
    return Response(
        status,
        json.dumps(value).encode(),
        {"content-type": JSON_TYPE, **(headers or {})},
        instance_id=instance_id,
    )


def error_response(error: ApiError, body: ErrorBody) -> Response:
    """Build the response for an error, in this format unless the error has its own."""
    shape = error.body or body
    if shape == "empty":
        return Response(error.status, headers=dict(error.headers))
    if shape == "html":
        title = f"Error {error.status}"
        page = f"<!doctype html><title>{title}</title><h1>{title}</h1><p>{html.escape(error.message)}"
        return Response(error.status, page.encode(), {"content-type": HTML_TYPE, **error.headers})
    if shape == "openai":
        value = _openai_error(error.status, error.message, error.code)
    else:
        value = {shape: error.message}
    return json_response(error.status, value, error.headers)


def _openai_error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """Build the error body of an OpenAI-compatible endpoint."""
    kinds = {
        401: "authentication_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "service_unavailable_error",
    }
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def json_object(request: Request) -> dict[str, Any]:
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise ApiError(400, f"The body must be {JSON_TYPE}, not {content_type or 'untyped'}.")
    try:
        value = json.loads(request.body, parse_constant=_reject_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "The body is not valid JSON.") from error
    if not isinstance(value, dict):
        raise ApiError(400, "The body must be a JSON object.")
    return value


def _reject_constant(name: str) -> NoReturn:
    # Python parses NaN and Infinity, which are not JSON.
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def string_field(body: Mapping[str, Any], name: str) -> str | None:
    """Return a string from the body, or None if it is absent or null."""
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise ApiError(400, f"{name} must be a string.")


def required_string(body: Mapping[str, Any], name: str) -> str:
    value = string_field(body, name)
    if value is None:
        raise ApiError(400, f"{name} is required.")
    return value


def as_integer(value: Any) -> int | None:
    """Return a value as an integer, or None if it is not one. As in JSON Schema, 8.0 counts, but not true."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def integer_field(body: Mapping[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    """Return an integer from the body, or None if it is absent or null."""
    if body.get(name) is None:
        return None
    value = as_integer(body[name])
    if value is None:
        raise ApiError(400, f"{name} must be an integer.")
    if value < least or (most is not None and value > most):
        allowed = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ApiError(400, f"{name} must be {allowed}.")
    return value


def boolean_field(body: Mapping[str, Any], name: str) -> bool:
    """Return a boolean from the body, or False if it is absent or null."""
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise ApiError(400, f"{name} must be a boolean.")
    return value
