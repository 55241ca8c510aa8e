"""A line of the OpenAI Batch file format, each way. Pure.

The format is that of OpenAI's Batch API, which vLLM's `run_batch` shares: a request a line, with `custom_id`,
`method`, `url` and `body`; an answer a line, with `custom_id`, `response` and `error`.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

from attrs import define, field, frozen

from .._errors import BatchFileError

URLS = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")

_PREFIX = "batch_req_"

# Lists and objects in each other: more than any API has, and less than Python can write from anywhere.
_DEEPEST = 200

# More tokens than that are none: they would not fit into what adds them up.
_MOST_TOKENS = 1 << 53

# Of a response that is no JSON as much as tells what it is.
_EXCERPT = 2000


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Python's own would take NaN and infinities, which nobody else can read in the output.
_DECODER = json.JSONDecoder(parse_constant=_refuse)

# The same for every line: to make one takes as long as to use it. What was parsed has no circles.
_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False)


@define(eq=False)
class Request:
    """A request of the input.

    Attributes:
        number: Its line, counted from 1.
        custom_id: As the input gives it.
        path: Below the endpoint's base URL.
        body: What is sent.
        request_id: Tells this request from every other by what it asks. It is the `id` of the answer, so that
            an output tells which input it belongs to.
        tries: Attempts that failed so far, whoever was to blame.
        failures: Those that count against the limit of retries.
        time_outs: How many attempts timed out.
        put_off: Attempts so far that the endpoint put off, because there were too many.
        is_own_fault: Whether the last of all these failures was, as is known by now; None before the first.
    """

    number: int
    custom_id: str
    path: str
    body: bytes = field(repr=False)
    request_id: str
    tries: int = 0
    failures: int = 0
    time_outs: int = 0
    put_off: int = 0
    is_own_fault: Callable[[], bool] | None = None

    @property
    def key(self) -> bytes:
        """A digest of the custom_id."""
        return key_of(self.custom_id)


@frozen
class Answer:
    """A line of the output.

    Attributes:
        key: A digest of the custom_id.
        request_id: See `Request`.
        succeeded: False for an error line.
    """

    key: bytes
    request_id: str
    succeeded: bool


@define
class Usage:
    """Tokens, as the endpoint counted them."""

    prompt_tokens: int = 0
    completion_tokens: int = 0


def key_of(custom_id: str) -> bytes:
    """A digest of a custom_id: 128 bits, so that no two of any number of requests have the same."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


class RequestReader:
    """Reads lines of the input.

    Args:
        path: The input's name, for errors.
        model: The model that is served.
        override_model: Ask for this model, whatever the line says.
    """

    def __init__(self, path: str, model: str, *, override_model: bool) -> None:
        self._path = path
        self._model = model
        self._names = (model, model.replace("/", "--", 1))
        self._override = override_model

    def read(self, number: int, raw: bytes) -> tuple[Request, dict[str, Any]] | None:
        """The request of a line, and its body; None for a blank line.

        Raises:
            BatchFileError: for what is no request, or none that can be answered here.
        """
        line = raw.strip()
        if not line:
            return None
        try:
            return self._read(number, line)
        except _UnfitError as problem:
            raise BatchFileError(str(problem), path=self._path, line=number) from None

    def _read(self, number: int, line: bytes) -> tuple[Request, dict[str, Any]]:
        data = _parse(line)
        if line.count(b"{") + line.count(b"[") > _DEEPEST and _is_deep(data):
            raise _UnfitError("the body is too deep")
        custom_id, url, body = data.get("custom_id"), data.get("url"), data.get("body")
        if not isinstance(custom_id, str) or not custom_id:
            raise _UnfitError("custom_id must be a string that is not empty")
        if data.get("method", "POST") != "POST":
            raise _UnfitError(f"method must be POST, not {data['method']!r}")
        if url not in URLS:
            raise _UnfitError(f"url must be one of {', '.join(URLS)}, not {url!r}")
        if not isinstance(body, dict):
            raise _UnfitError("body must be a JSON object")
        if body.get("stream"):
            raise _UnfitError("a batch cannot stream: leave `stream` out of the body")
        asked = body.get("model", self._model)
        if asked not in self._names and not self._override:
            raise _UnfitError(
                f"it asks for the model {asked!r}, and this batch runs {self._model}; "
                "override_model=True (--override-model) sends it there all the same"
            )
        body["model"] = self._model
        try:
            sent = _ENCODER.encode(body).encode()
        except ValueError:
            raise _UnfitError("the body has a number that JSON does not know (NaN or infinity)") from None
        return Request(number, custom_id, url.removeprefix("/v1"), sent, _identify(url, sent)), body


def read_answer(path: str, number: int, raw: bytes) -> Answer:
    """What a line of the output answers.

    Raises:
        BatchFileError: when it is no line of a batch's output.
    """
    try:
        data = _parse(raw)
    except _UnfitError as problem:
        raise BatchFileError(f"no line of a batch's output: {problem}", path=path, line=number) from None
    custom_id, request_id, response = data.get("custom_id"), data.get("id"), data.get("response")
    if not isinstance(custom_id, str) or not isinstance(request_id, str) or "response" not in data:
        raise BatchFileError(
            "no line of a batch's output: it must have id, custom_id and response", path=path, line=number
        )
    status = response.get("status_code") if isinstance(response, dict) else None
    succeeded = isinstance(status, int) and 200 <= status < 300 and not data.get("error")
    return Answer(key_of(custom_id), request_id, succeeded)


def answered(
    request: Request, status: int, request_id: str | None, body: bytes
) -> tuple[bytes, Usage | None]:
    """The line for an answer of the endpoint, and the tokens that it counted.

    Raises:
        ValueError: when a success is no JSON object: it is no answer then.
    """
    try:
        # The answer is kept as it came, not as Python would write it. Line breaks between the parts of a JSON
        # text mean nothing, and within one there are none.
        text = _decode(body).strip().replace("\r", " ").replace("\n", " ")
        data = _DECODER.decode(text)
    except (ValueError, RecursionError):
        text, data = "", None
    if not isinstance(data, dict):
        if status < 300:
            raise ValueError("no JSON object")
        shown = body.decode("utf-8", "replace")[:_EXCERPT]
        text = json.dumps({"error": {"message": shown or f"status {status}", "code": None}})
    usage = _read_usage(data) if status < 300 and isinstance(data, dict) else None
    said = _ENCODER.encode(request_id or request.request_id)
    response = f'{{"status_code":{status},"request_id":{said},"body":{text}}}'
    return _line(request, response, "null"), usage


def unanswered(request: Request, code: str, message: str) -> bytes:
    """The line for a request that got no answer."""
    return _line(request, "null", json.dumps({"code": code, "message": message}))


def _line(request: Request, response: str, error: str) -> bytes:
    custom_id = _ENCODER.encode(request.custom_id)
    return (
        f'{{"id":"{request.request_id}","custom_id":{custom_id},"response":{response},"error":{error}}}\n'
    ).encode()


def _identify(url: str, body: bytes) -> str:
    return _PREFIX + hashlib.blake2b(url.encode() + b"\n" + body, digest_size=16).hexdigest()


def _read_usage(data: Mapping[str, Any]) -> Usage:
    usage = data.get("usage")
    if not isinstance(usage, dict):
        return Usage()
    counts = (usage.get("prompt_tokens"), usage.get("completion_tokens"))
    return Usage(*(each if isinstance(each, int) and 0 <= each < _MOST_TOKENS else 0 for each in counts))


def _is_deep(data: object) -> bool:
    level = [data]
    for _ in range(_DEEPEST):
        level = [
            inner
            for each in level
            if isinstance(each, (dict, list))
            for inner in (each.values() if isinstance(each, dict) else each)
        ]
    return bool(level)


class _UnfitError(ValueError):
    """What is wrong with a line."""


def _decode(data: bytes) -> str:
    # Python's codec for this is no C, and takes as long as the JSON.
    return data.removeprefix(codecs.BOM_UTF8).decode()


def _parse(line: bytes) -> dict[str, Any]:
    try:
        data = json.loads(_decode(line))
    except UnicodeDecodeError:
        raise _UnfitError("it is not UTF-8") from None
    except json.JSONDecodeError as error:
        raise _UnfitError(f"it is not JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise _UnfitError("it is JSON beyond what Python reads: too deep, or a number too long") from None
    if not isinstance(data, dict):
        raise _UnfitError("it is not a JSON object")
    return data
