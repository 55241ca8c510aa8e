"""Parse and write single lines of the OpenAI Batch file format. Pure.

vLLM's `run_batch` uses the same format. A line of the input is a request: `custom_id`, `method`, `url` and
`body`. A line of the output is its answer: `custom_id`, `response` and `error`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

from .._errors import BatchFileError
from .._http.body import MAX_DEPTH, is_too_deep

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_ID_PREFIX = "batch_req_"

# Larger token counts are ignored, because they would overflow the sums.
_MAX_TOKENS = 1 << 53

# Characters that are kept of an error response that is not JSON.
_EXCERPT = 2000


def _reject_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Python's default accepts NaN and infinities, which other readers of the output do not.
_DECODER = json.JSONDecoder(parse_constant=_reject_constant)

# Shared, because creating one takes as long as using it. Parsed JSON has no circles to check for.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


@define(eq=False)
class Request:
    """A request of the input, and its failed attempts so far.

    Attributes:
        number: Its line, counted from 1.
        request_id: A digest of what is sent. It is the `id` of the answer, and shows which input an output
            belongs to.
        failures: Failed attempts of any cause, not counting rejections because of load.
        own_failures: Failures that count against the limit of retries.
        timeouts: Attempts that timed out.
        rejections: Attempts rejected because the endpoint had too many requests.
        endpoint_has_answered: Returns whether the endpoint has answered another request since the last of
            these failures, so that this request is at fault; None before the first.
    """

    number: int
    custom_id: str
    path: str
    body: bytes = field(repr=False)
    request_id: str
    failures: int = 0
    own_failures: int = 0
    timeouts: int = 0
    rejections: int = 0
    endpoint_has_answered: Callable[[], bool] | None = None

    @property
    def key(self) -> bytes:
        return digest_custom_id(self.custom_id)


@define
class Usage:
    """Tokens, as the endpoint counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


@define(eq=False)
class AnswerLine:
    """A line to write to the output. Error lines have no `usage`."""

    request: Request
    text: bytes
    usage: Usage | None = None


@frozen
class ParsedAnswer:
    """What a line of the output says. `key` is a digest of the custom_id."""

    key: bytes
    request_id: str
    succeeded: bool


def digest_custom_id(custom_id: str) -> bytes:
    """Return a digest of a custom_id. With 128 bits, collisions are not a concern."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@frozen
class RequestParser:
    """Parses lines of the input. `path` is for error messages."""

    _path: str
    _model: str
    override_model: bool = field(kw_only=True)

    def parse(self, number: int, raw: bytes) -> tuple[Request, dict[str, Any]] | None:
        """Return the request of a line, and its body; None for a blank line."""
        line = raw.strip()
        if not line:
            return None
        try:
            return self._parse(number, line)
        except _LineError as error:
            raise BatchFileError(str(error), path=self._path, line=number) from None

    def _parse(self, number: int, line: bytes) -> tuple[Request, dict[str, Any]]:
        data = _parse_object(line)
        if is_too_deep(line, data):
            raise _LineError(f"the JSON is nested too deeply (more than {MAX_DEPTH} levels)")
        custom_id, url, body = data.get("custom_id"), data.get("url"), data.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise _LineError("custom_id must be a non-empty string")
        if data.get("method", "POST") != "POST":
            raise _LineError(f"method must be POST, not {data['method']!r}")
        if url not in URLS:
            raise _LineError(f"url must be one of {', '.join(URLS)}, not {url!r}")
        if not isinstance(body, dict):
            raise _LineError("body must be a JSON object")
        if body.get("stream"):
            raise _LineError("batches do not support streaming; remove `stream` from the body")
        model = body.get("model", self._model)
        if model not in (self._model, self._model.replace("/", "--", 1)) and not self.override_model:
            raise _LineError(
                f"the request names the model {model!r}, but this batch runs {self._model}; "
                f"pass override_model=True (--override-model) to send it to {self._model}"
            )
        body["model"] = self._model
        try:
            encoded = _ENCODER.encode(body).encode()
        except ValueError:
            raise _LineError("the body contains a number that is not valid JSON (NaN or infinity)") from None
        digest = hashlib.blake2b(url.encode() + b"\n" + encoded, digest_size=16).hexdigest()
        return Request(number, custom_id, url.removeprefix("/v1"), encoded, _ID_PREFIX + digest), body


def parse_answer(path: str, number: int, raw: bytes) -> ParsedAnswer:
    try:
        data = _parse_object(raw)
    except _LineError as error:
        raise foreign_output_error(str(error), path, number) from None
    custom_id, request_id, response = data.get("custom_id"), data.get("id"), data.get("response")
    if not isinstance(custom_id, str) or not isinstance(request_id, str) or "response" not in data:
        raise foreign_output_error("id, custom_id and response are required", path, number)
    status = response.get("status_code") if isinstance(response, dict) else None
    succeeded = isinstance(status, int) and 200 <= status < 300 and not data.get("error")
    return ParsedAnswer(digest_custom_id(custom_id), request_id, succeeded)


def foreign_output_error(problem: str, path: str, number: int) -> BatchFileError:
    message = f"not a line of a batch output: {problem}. Choose another output file."
    return BatchFileError(message, path=path, line=number)


def format_answer(request: Request, status: int, request_id: str | None, body: bytes) -> AnswerLine:
    """Return the output line for a response of the endpoint.

    Raises:
        ValueError: A success is not a JSON object, and so not an answer.
    """
    try:
        # Keep the response as received, not encoded again. Line breaks in valid JSON are whitespace.
        text = _decode(body).strip().replace("\r", " ").replace("\n", " ")
        data = _DECODER.decode(text)
        if is_too_deep(body, data):
            data = None
    except (ValueError, RecursionError):
        text, data = "", None
    if not isinstance(data, dict):
        if status < 300:
            raise ValueError("not a JSON object")
        excerpt = body.decode("utf-8", "replace")[:_EXCERPT]
        text = json.dumps({"error": {"message": excerpt or f"status {status}", "code": None}})
    usage = _read_usage(data) if status < 300 and isinstance(data, dict) else None
    encoded_id = _ENCODER.encode(request_id or request.request_id)
    response = f'{{"status_code":{status},"request_id":{encoded_id},"body":{text}}}'
    return _answer_line(request, response, "null", usage)


def format_error(request: Request, code: str, message: str) -> AnswerLine:
    return _answer_line(request, "null", json.dumps({"code": code, "message": message}))


def _answer_line(request: Request, response: str, error: str, usage: Usage | None = None) -> AnswerLine:
    custom_id = _ENCODER.encode(request.custom_id)
    text = f'{{"id":"{request.request_id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'
    return AnswerLine(request, text.encode(), usage)


def _read_usage(data: Mapping[str, Any]) -> Usage:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Usage(*(each if isinstance(each, int) and 0 <= each < _MAX_TOKENS else 0 for each in counts))


class _LineError(ValueError):
    """What is wrong with a line."""


def _decode(data: bytes) -> str:
    # The codec `utf-8-sig` is written in Python, and takes as long as parsing the JSON.
    return data.removeprefix(codecs.BOM_UTF8).decode()


def _parse_object(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(_decode(line))
    except UnicodeDecodeError:
        raise _LineError("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise _LineError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _LineError("the JSON is nested too deeply, or a number in it is too long") from None
    if not isinstance(data, dict):
        raise _LineError("not a JSON object")
    return data
