"""What goes in and out of the emulator's core: plain data, whatever carries it (ASGI or httpx)."""

import json
from collections.abc import Mapping
from typing import Any, NoReturn

import attrs

JSON_TYPE = "application/json"


@attrs.frozen
class Call:
    """One request, read to its end."""

    method: str
    path: str
    """Without the query, percent-decoded."""
    query: tuple[tuple[str, str], ...]
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes


@attrs.frozen
class Answer:
    """One answer, before the wire (or a fault) has had its way with it."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = attrs.field(factory=dict)
    """Its own: what carries it may add some."""
    events: tuple[bytes, ...] | None = None
    """The pieces of a streamed answer, sent one by one instead of ``body``."""
    instance_id: str | None = None
    """The instance that speaks, whose load delays the answer; a stream is cut when it stops serving."""

    @property
    def whole_body(self) -> bytes:
        """The body in one piece, streamed or not."""
        return self.body if self.events is None else b"".join(self.events)


class Refusal(ValueError):  # noqa: N818 - an answer, not an error of the emulator
    """The emulated service says no; nothing was changed.

    Attributes:
        status: The HTTP status that says so.
        message: The reason, for people.
        code: A machine-readable reason (inference only).
        headers: Headers of the answer.
    """

    def __init__(
        self, status: int, message: str, *, code: str | None = None, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.headers: Mapping[str, str] = {} if headers is None else headers


def json_answer(
    status: int,
    value: Any,
    headers: Mapping[str, str] | None = None,
    *,
    instance_id: str | None = None,
) -> Answer:
    """Build a JSON answer."""
    return Answer(
        status,
        json.dumps(value).encode(),
        {"content-type": JSON_TYPE, **(headers or {})},
        instance_id=instance_id,
    )


def error_answer(refusal: Refusal, *, inference: bool) -> Answer:
    """Put a refusal into the shape of its side: Cortecs' ``message`` or OpenAI's ``error``."""
    if inference:
        return json_answer(
            refusal.status, openai_error(refusal.status, refusal.message, refusal.code), refusal.headers
        )
    return json_answer(refusal.status, {"message": refusal.message}, refusal.headers)


def openai_error(status: int, message: str, code: str | None = None) -> dict[str, Any]:
    """The error body of an OpenAI-compatible endpoint."""
    kinds = {
        401: "authentication_error",
        404: "not_found_error",
        429: "rate_limit_error",
        503: "service_unavailable_error",
    }
    kind = kinds.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def json_object(call: Call) -> dict[str, Any]:
    """Read the call's body as a JSON object.

    Raises:
        Refusal: 400 when the content type is not JSON, or the body is not a JSON object.
    """
    content_type = call.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != JSON_TYPE:
        raise Refusal(400, f"The body must be {JSON_TYPE}, not {content_type or 'untyped'}.")
    try:
        value = json.loads(call.body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "The body is not valid JSON.") from error
    if not isinstance(value, dict):
        raise Refusal(400, "The body must be a JSON object.")
    return value


def _no_constant(name: str) -> NoReturn:
    # Python reads NaN and Infinity, JSON knows neither.
    msg = f"{name} is not JSON"
    raise ValueError(msg)


def string_field(body: Mapping[str, Any], name: str) -> str | None:
    """A string of the body; None when it is absent or null.

    Raises:
        Refusal: 400 for another type.
    """
    value = body.get(name)
    if value is None or isinstance(value, str):
        return value
    raise Refusal(400, f"{name} must be a string.")


def required_string(body: Mapping[str, Any], name: str) -> str:
    """A string that the body must have.

    Raises:
        Refusal: 400 when it is absent, null or of another type.
    """
    value = string_field(body, name)
    if value is None:
        raise Refusal(400, f"{name} is required.")
    return value


def integer_field(body: Mapping[str, Any], name: str, *, least: int, most: int | None = None) -> int | None:
    """An integer of the body; None when it is absent or null. ``8.0`` is an integer, as in JSON Schema.

    Raises:
        Refusal: 400 for another type or outside ``least`` to ``most``.
    """
    value = body.get(name)
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool):
        raise Refusal(400, f"{name} must be an integer.")
    if value < least or (most is not None and value > most):
        reach = f"at least {least}" if most is None else f"from {least} to {most}"
        raise Refusal(400, f"{name} must be {reach}.")
    return value


def boolean_field(body: Mapping[str, Any], name: str) -> bool:
    """A boolean of the body; False when it is absent or null.

    Raises:
        Refusal: 400 for another type.
    """
    value = body.get(name)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise Refusal(400, f"{name} must be a boolean.")
    return value
