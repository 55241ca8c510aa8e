"""Parse single lines of a batch's input. Pure functions.

Each line is a request, either in the format of OpenAI's Batch API, which vLLM's `run_batch` uses too
(`custom_id`, `method`, `url`, and `body`), or in a short form: a prompt or a list of messages.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import json
import re
from typing import Any

from attrs import define, field, frozen

from .._errors import BatchFileError
from .._http.body import MAX_DEPTH, is_too_deep
from .._lease.inference import ENDPOINT_OF_URL, ENDPOINTS, Endpoint
from .canonical import identify, identify_legacy

# Characters of an invalid value that an error message repeats.
_MAX_VALUE = 60

# Lines as most programs write them. Their bodies are sent without encoding them again, which would take as
# long as all other steps together.
_TEXT = r'"([^"\\\x00-\x1f]+)"'
_USUAL_LINE = re.compile(
    rf'\{{ ?"custom_id": ?{_TEXT}, ?"method": ?"POST", ?"url": ?{_TEXT}, ?"body": ?(?=\{{)'
)

# The required keys of a line in the format of the Batch API.
_BATCH_KEYS = ("custom_id", "url", "body")

_CHAT_URL = "/v1/chat/completions"

_TEXT_HINT = ". If each line is a prompt, pass text=True (--text)."


_DECODER = json.JSONDecoder()
# Shared, because creating an encoder takes as long as using it. Parsed JSON has no circular references.
ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False, ensure_ascii=False)


@define(eq=False)
class Request:
    """A request in the input, and its failed attempts so far.

    Attributes:
        number: The line of the request, counted from 1.
        request_id: A digest of the content. It becomes the `id` of the answer, and shows which input an
            output belongs to.
        failures: Failed attempts for which the request could be the cause.
        own_failures: Failures while the endpoint answered other requests in flight, and error bodies with a
            success status. They count against the limit of retries.
        joint_failures: Failures in which all other requests in flight failed too.
        undecided: Failures not yet known to be own or joint failures.
        solo_failures: Failures in tests with no other requests in flight.
        timeouts: Attempts that timed out while the endpoint answered other requests.
        rejections: Attempts rejected because the endpoint had too many requests.
        unsent: Attempts that failed without a connection.
        failed_at: The time of the last failure, or None if there is none.
        rejected_alone_since: The time when it was first rejected in a test on its own, or None if it was not.
    """

    number: int
    custom_id: str
    path: str
    body: bytes = field(repr=False)
    request_id: str
    failures: int = 0
    own_failures: int = 0
    joint_failures: int = 0
    undecided: int = 0
    solo_failures: int = 0
    timeouts: int = 0
    rejections: int = 0
    unsent: int = 0
    failed_at: float | None = None
    rejected_alone_since: float | None = None

    @property
    def key(self) -> bytes:
        return digest_custom_id(self.custom_id)

    @property
    def legacy_id(self) -> str:
        """The `request_id` that earlier versions of this package wrote."""
        return identify_legacy(ENDPOINTS[self.path], self.body)


def digest_custom_id(custom_id: str) -> bytes:
    """Return a digest of a custom_id. At 128 bits, collisions are not a concern."""
    return hashlib.blake2b(custom_id.encode("utf-8", "surrogatepass"), digest_size=16).digest()


@frozen(kw_only=True)
class BodyDefaults:
    """Fields to add to bodies that do not set them, if their endpoint supports them."""

    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None

    def apply(self, endpoint: Endpoint, body: dict[str, Any]) -> None:
        """Add the fields that the body does not set. A null field counts as not set."""
        if self.system is not None:
            self._add_system(self.system, endpoint, body)
        if endpoint.limit_key:
            if self.max_tokens is not None and all(body.get(key) is None for key in endpoint.limit_keys):
                body[endpoint.limit_key] = self.max_tokens
            if self.temperature is not None and body.get("temperature") is None:
                body["temperature"] = self.temperature

    def _add_system(self, text: str, endpoint: Endpoint, body: dict[str, Any]) -> None:
        messages = body.get(endpoint.conversation_key)
        if isinstance(messages, list) and any(_is_system_message(each) for each in messages):
            return
        if endpoint.instructions_key:
            if body.get(endpoint.instructions_key) is None:
                body[endpoint.instructions_key] = text
        elif isinstance(messages, list):
            body[endpoint.conversation_key] = [{"role": "system", "content": text}, *messages]


def _is_system_message(message: Any) -> bool:
    return isinstance(message, dict) and message.get("role") in ("system", "developer")


@frozen
class RequestParser:
    """Parses lines of the input.

    Args:
        path: The path of the input, for error messages.
        model: The endpoint's name for the model. If it is empty, bodies keep their own model.
        override_model: Whether to accept requests that specify a different model.
        is_text: Whether every line is a prompt instead of JSON.
        defaults: Fields to add to bodies, if any.
    """

    path: str
    _model: str
    override_model: bool = field(kw_only=True)
    is_text: bool = field(default=False, kw_only=True)
    defaults: BodyDefaults | None = field(default=None, kw_only=True)

    def parse(self, number: int, raw: bytes) -> tuple[Request, dict[str, Any]] | None:
        """Return a line's request and its body, or None for a blank line."""
        try:
            return self._parse_text(number, raw) if self.is_text else self._parse_json(number, raw.strip())
        except LineError as error:
            raise BatchFileError(str(error), path=self.path, line=number) from None

    def _parse_text(self, number: int, raw: bytes) -> tuple[Request, dict[str, Any]] | None:
        try:
            text = decode(raw)
        except UnicodeDecodeError:
            raise LineError("not valid UTF-8") from None
        if text.isspace() or not text:
            return None
        body = {"messages": _user_message(text.rstrip("\r\n"))}
        return self._new_request(number, f"line-{number}", ENDPOINT_OF_URL[_CHAT_URL], body)

    def _parse_json(self, number: int, line: bytes) -> tuple[Request, dict[str, Any]] | None:
        if not line:
            return None
        if (found := _read_usual_line(line)) is not None:
            custom_id, url, body, written = found
            data: object = [body]
        else:
            try:
                data = parse_object(line)
            except LineError as error:
                hint = "" if line.lstrip(codecs.BOM_UTF8)[:1] in b"{[" else _TEXT_HINT
                raise LineError(f"{error}{hint}") from None
            custom_id, url, body, written = "", "", {}, ""
        if is_too_deep(line, data):
            raise LineError(f"the JSON is nested too deeply (more than {MAX_DEPTH} levels)")
        if isinstance(data, dict):
            custom_id, url, body = _read_fields(number, data)
        endpoint = ENDPOINT_OF_URL.get(url)
        if endpoint is None:
            raise LineError(f"url must be one of {', '.join(ENDPOINT_OF_URL)}, not {_shorten(url)}")
        return self._new_request(number, custom_id, endpoint, body, written)

    def _new_request(
        self,
        number: int,
        custom_id: str,
        endpoint: Endpoint,
        body: dict[str, Any],
        written: str = "",
    ) -> tuple[Request, dict[str, Any]]:
        """Return a request and its body. `written` is the text of the body. If empty, the body is encoded."""
        for key in ("stream", "background"):
            if body.get(key):
                raise LineError(f"batches do not support `{key}`. Remove it from the body.")
        if self._model:
            written = self._set_model(body, written)
        if self.defaults is not None:
            self.defaults.apply(endpoint, body)
            written = ""
        try:
            request_id = identify(endpoint, body)
            encoded = encode_utf8(written or ENCODER.encode(body))
        except ValueError:
            raise LineError("the body contains a number that is not valid JSON (NaN or infinity)") from None
        return Request(number, custom_id, endpoint.path, encoded, request_id), body

    def _set_model(self, body: dict[str, Any], written: str) -> str:
        """Set the model of a body. Return the text to send, or "" if the body must be encoded."""
        if "model" not in body:
            written = f'{written[:-1]},"model":{ENCODER.encode(self._model)}}}' if written and body else ""
        elif (model := body["model"]) != self._model:
            written = ""
            is_same = model is None or model == self._model.replace("/", "--", 1)
            if not is_same and not self.override_model:
                raise LineError(
                    f"the request is for model {_shorten(model)}, but this batch uses {self._model}. "
                    f"Pass override_model=True (--override-model) to send it to {self._model}."
                )
        body["model"] = self._model
        return written


def _read_usual_line(line: bytes) -> tuple[str, str, dict[str, Any], str] | None:
    """Return the custom_id, the url, the body, and the body's text if it can be sent unchanged.

    Return None for a line that `parse_object` must parse.
    """
    try:
        text = decode(line)
        if (envelope := _USUAL_LINE.match(text)) is None:
            return None
        body, end = _DECODER.raw_decode(text, envelope.end())
    except (ValueError, RecursionError):
        return None
    if text[end:].lstrip(" ") != "}":
        return None
    written = text[envelope.end() : end]
    # Escapes can be three times as long as UTF-8.
    return envelope[1], envelope[2], body, "" if "\\u" in written else written


def _misspelled(data: dict[str, Any]) -> str:
    """Return a key that is probably a misspelled `prompt` or `messages`, if there is one."""
    for key in data:
        if near := difflib.get_close_matches(key.lower(), ("prompt", "messages"), n=1, cutoff=0.75):
            return f"unknown key {_shorten(key)} (did you mean {near[0]}?); "
    return ""


def _read_fields(number: int, data: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return the custom_id, url, and body of a line in any format."""
    is_batch_format = "url" in data or "body" in data or "method" in data
    if not is_batch_format and ("prompt" in data or "messages" in data):
        return _read_short_fields(number, data)
    if missing := [key for key in _BATCH_KEYS if key not in data]:
        names = f"{', '.join(missing[:-1])} and {missing[-1]} are" if missing[1:] else f"{missing[0]} is"
        if is_batch_format:
            raise LineError(f"{names} missing")
        raise LineError(f"{_misspelled(data)}a line needs prompt or messages, or custom_id, url, and body")
    custom_id, url, body = data["custom_id"], data["url"], data["body"]
    _check_custom_id(custom_id)
    if data.get("method", "POST") != "POST":
        raise LineError(f"method must be POST, not {_shorten(data['method'])}")
    if not isinstance(url, str):
        raise LineError(f"url must be a string, not {_shorten(url)}")
    if not isinstance(body, dict):
        raise LineError(f"body must be a JSON object, not {_shorten(body)}")
    return custom_id, url, body


def _read_short_fields(number: int, data: dict[str, Any]) -> tuple[str, str, dict[str, Any]]:
    """Return the custom_id, url, and body of a line that has `prompt` or `messages`."""
    other_id = data.pop("id", f"line-{number}")
    custom_id = data.pop("custom_id", other_id)
    # Data sets often use numbers as ids.
    if type(custom_id) is int:
        custom_id = str(custom_id)
    _check_custom_id(custom_id)
    if "prompt" not in data:
        if not isinstance(data["messages"], list):
            raise LineError(f"messages must be a list, not {_shorten(data['messages'])}")
        return custom_id, _CHAT_URL, data
    if "messages" in data:
        raise LineError("a line has either prompt or messages, not both")
    prompt = data.pop("prompt")
    if not isinstance(prompt, str):
        raise LineError(f"prompt must be a string, not {_shorten(prompt)}")
    return custom_id, _CHAT_URL, {"messages": _user_message(prompt), **data}


def _user_message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _check_custom_id(custom_id: Any) -> None:
    if not isinstance(custom_id, str) or not custom_id:
        raise LineError(f"custom_id must be a non-empty string, not {_shorten(custom_id)}")


def _shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE else text[:_MAX_VALUE] + "…"


class LineError(ValueError):
    """A line is invalid. The message states the reason."""


def decode(data: bytes) -> str:
    # Not with the codec `utf-8-sig`, which is written in Python and takes as long as parsing the JSON.
    return data.removeprefix(codecs.BOM_UTF8).decode()


def parse_object(line: bytes) -> dict[str, Any]:
    try:
        text = decode(line).strip()
        data, end = _DECODER.raw_decode(text)
    except UnicodeDecodeError:
        raise LineError("not valid UTF-8") from None
    except json.JSONDecodeError as error:
        raise LineError(f"not valid JSON: {error.msg} at column {error.colno}") from None
    except (ValueError, RecursionError):
        raise LineError("the JSON is nested too deeply, or a number in it is too long") from None
    if end != len(text):
        raise LineError(f"not valid JSON: extra text at column {end + 1}")
    if not isinstance(data, dict):
        hint = ". Write one object per line, without [ ] around them." if isinstance(data, list) else ""
        raise LineError(f"not a JSON object{hint}")
    return data


def encode_utf8(text: str) -> bytes:
    """Encode JSON as UTF-8. Lone surrogates, which UTF-8 cannot encode, are escaped."""
    return text.encode("utf-8", "backslashreplace")
