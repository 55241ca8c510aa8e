"""Parse and format single lines of a batch's output. Pure functions.

Each line answers one request, in the format of OpenAI's Batch API: `custom_id`, `response`, and `error`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from attrs import define, frozen

from .._errors import BatchFileError
from .._http.body import is_too_deep
from .._lease.inference import ENDPOINTS, Endpoint, find_problem
from .format import ENCODER, LineError, Request, decode, digest_custom_id, encode_utf8, parse_object

# Larger token counts are ignored, because they would overflow the sums.
_MAX_TOKENS = 1 << 53

# Characters to keep of an error response that is not JSON.
_EXCERPT = 2000

# A string, which is kept, or a constant that Python writes even though it is not JSON.
_STRING_OR_CONSTANT = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*")|NaN|-?Infinity', re.DOTALL)


class _ConstantError(Exception):
    """The text has a constant that is not JSON."""


def _reject_constant(_: str) -> None:
    raise _ConstantError


_STRICT_DECODER = json.JSONDecoder(parse_constant=_reject_constant)
_LENIENT_DECODER = json.JSONDecoder(strict=False)


@define
class Usage:
    """Token counts, as reported by the endpoint."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@define(eq=False)
class AnswerLine:
    """A line to write to the output. Error lines have no `usage`.

    `problem` is set on an error line with a success status. It describes the fault in the body.
    """

    request: Request
    text: bytes
    usage: Usage | None = None
    problem: str | None = None


@frozen
class ParsedAnswer:
    """The content of an output line. `key` is a digest of the custom_id."""

    key: bytes
    request_id: str
    succeeded: bool


def parse_answer(path: str, number: int, raw: bytes) -> ParsedAnswer:
    try:
        data = parse_object(raw)
    except LineError as error:
        raise foreign_output_error(str(error), path, number) from None
    custom_id, request_id, response = data.get("custom_id"), data.get("id"), data.get("response")
    if not isinstance(custom_id, str) or not isinstance(request_id, str) or "response" not in data:
        raise foreign_output_error("id, custom_id, and response are required", path, number)
    succeeded = not data.get("error") and isinstance(response, dict) and _is_success(response)
    return ParsedAnswer(digest_custom_id(custom_id), request_id, succeeded)


def _is_success(response: Mapping[str, Any]) -> bool:
    status, body = response.get("status_code"), response.get("body")
    # The body is checked too, because earlier versions wrote every 2xx as a success.
    is_answer = isinstance(body, dict) and find_problem(body) is None
    return isinstance(status, int) and 200 <= status < 300 and is_answer


def foreign_output_error(problem: str, path: str, number: int) -> BatchFileError:
    message = f"not a line of batch output: {problem}. Choose another output file."
    return BatchFileError(message, path=path, line=number)


def format_answer(request: Request, status: int, request_id: str | None, body: bytes) -> AnswerLine:
    """Return the output line for a response from the endpoint.

    If the status is a success, but the body is an error or has no content, the line has a `problem`.

    Raises:
        ValueError: The status is a success, but the body is not a JSON object.
    """
    endpoint = ENDPOINTS[request.path]
    found = _read_answer(body)
    if found is None and status < 300:
        found = _read_answer(_mend_answer(body))
    problem = usage = None
    if found is None:
        if status < 300:
            raise ValueError("not a JSON object")
        excerpt = body.decode("utf-8", "replace")[:_EXCERPT]
        text = ENCODER.encode({"error": {"message": excerpt or f"status {status}", "code": None}})
    else:
        text, data = found
        if status < 300 and (problem := find_problem(data, (endpoint,))) is None:
            usage = _read_usage(data, endpoint)
    response = _format_response(request, status, request_id, text)
    error = "null" if problem is None else _format_reason("error_in_answer", problem)
    return _answer_line(request, response, error, usage, problem)


def _format_response(request: Request, status: int, request_id: str | None, text: str) -> str:
    encoded_id = ENCODER.encode(request_id or request.request_id)
    return f'{{"status_code":{status},"request_id":{encoded_id},"body":{text}}}'


def _replace_constants(text: str) -> str:
    # Python servers write NaN and infinities, which other readers of the output do not accept.
    return _STRING_OR_CONSTANT.sub(lambda match: match[1] or "null", text)


def _read_answer(body: bytes) -> tuple[str, dict[str, Any]] | None:
    """Return a body as one line of JSON, and its data, or None if the body is not a JSON object.

    The text stays as received, except for line breaks and constants that are not JSON.
    """
    try:
        # Line breaks in valid JSON are whitespace.
        text = decode(body).strip().replace("\r", " ").replace("\n", " ")
        try:
            data, end = _STRICT_DECODER.raw_decode(text)
        except _ConstantError:
            text = _replace_constants(text)
            data, end = _STRICT_DECODER.raw_decode(text)
    except (ValueError, RecursionError):
        return None
    is_answer = end == len(text) and isinstance(data, dict) and not is_too_deep(body, data)
    return (text, data) if is_answer else None


def _mend_answer(body: bytes) -> bytes:
    """Return a body with invalid UTF-8, or with control characters in strings, as JSON; otherwise b""."""
    try:
        data = _LENIENT_DECODER.decode(body.decode("utf-8", "replace").strip())
    except (ValueError, RecursionError):
        return b""
    return encode_utf8(json.dumps(data, separators=(",", ":"), ensure_ascii=False))


def format_value(request: Request, value: Any) -> AnswerLine:
    """Return the output line for a value from the caller's own code.

    Raises:
        TypeError, ValueError: The value is not JSON.
    """
    text = _replace_constants(json.dumps(value, separators=(",", ":"), ensure_ascii=False))
    return _answer_line(request, _format_response(request, 200, None, text), "null")


def format_error(request: Request, code: str, message: str) -> AnswerLine:
    return _answer_line(request, "null", _format_reason(code, message))


def _format_reason(code: str, message: str) -> str:
    return ENCODER.encode({"code": code, "message": message})


def _answer_line(
    request: Request, response: str, error: str, usage: Usage | None = None, problem: str | None = None
) -> AnswerLine:
    custom_id = ENCODER.encode(request.custom_id)
    text = f'{{"id":"{request.request_id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'
    return AnswerLine(request, encode_utf8(text), usage, problem)


def _read_usage(data: Mapping[str, Any], endpoint: Endpoint) -> Usage:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    prompt, completion = endpoint.usage_keys
    return Usage(_read_count(usage.get(prompt)), _read_count(usage.get(completion)))


def _read_count(value: Any) -> int:
    return value if isinstance(value, int) and 0 <= value < _MAX_TOKENS else 0
