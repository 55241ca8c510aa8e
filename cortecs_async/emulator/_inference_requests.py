"""Read the bodies of inference requests. Options that the emulator does not support are rejected."""

from collections.abc import Mapping
from typing import Any, Final

import attrs

from cortecs_async.emulator._generation import Message, ToolCall, tokenize
from cortecs_async.emulator._jsonschema.schema import Document
from cortecs_async.emulator._messages import (
    ApiError,
    as_integer,
    boolean_field,
    integer_field,
    required_string,
    string_field,
)
from cortecs_async.emulator._tools import Toolbox, read_toolbox

# The first is OpenAI's limit. The second is the largest of any model on offer.
_MAX_INPUTS: Final = 2048
_MAX_DIMENSIONS: Final = 4096


@attrs.frozen
class Options:
    """The options shared by chats and completions."""

    model: str
    max_tokens: int | None
    n: int
    stop: tuple[str, ...]
    stream: bool
    include_usage: bool


@attrs.frozen
class ChatRequest:
    options: Options
    messages: tuple[Message, ...]
    toolbox: Toolbox
    as_json: bool
    document: Document | None
    """The JSON schema that the answer must match."""


@attrs.frozen
class CompletionRequest:
    options: Options
    prompts: tuple[str, ...]
    echo: bool


@attrs.frozen
class EmbeddingsRequest:
    model: str
    inputs: tuple[str, ...]
    prompt_tokens: tuple[int, ...]
    """The number of tokens of each input."""
    as_base64: bool
    dimensions: int | None


def read_chat(body: Mapping[str, Any]) -> ChatRequest:
    max_tokens = integer_field(body, "max_completion_tokens", least=1)
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a non-empty list.")
    response_format = body.get("response_format")
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if response_format is not None and kind not in ("text", "json_object", "json_schema"):
        raise ApiError(400, "response_format must have the type text, json_object, or json_schema.")
    return ChatRequest(
        options=_options(body, max_tokens),
        messages=tuple(_message(message) for message in messages),
        toolbox=read_toolbox(body),
        as_json=kind == "json_object",
        document=_document(response_format) if response_format and kind == "json_schema" else None,
    )


def _document(response_format: Mapping[str, Any]) -> Document:
    json_schema = response_format.get("json_schema")
    if not isinstance(json_schema, dict):
        raise ApiError(400, "response_format needs a json_schema object.")
    required_string(json_schema, "name")
    boolean_field(json_schema, "strict")
    return Document(json_schema.get("schema"))


def read_completion(body: Mapping[str, Any]) -> CompletionRequest:
    prompt = body.get("prompt")
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, list) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise ApiError(
            400, "prompt must be a string or a list of strings (the emulator does not support token ids)."
        )
    return CompletionRequest(_options(body, None), tuple(prompts), boolean_field(body, "echo"))


def read_embeddings(body: Mapping[str, Any]) -> EmbeddingsRequest:
    inputs = _inputs(body.get("input"))
    encoding = string_field(body, "encoding_format")
    if encoding not in {None, "float", "base64"}:
        raise ApiError(400, "encoding_format must be float or base64.")
    return EmbeddingsRequest(
        model=required_string(body, "model"),
        inputs=tuple(each if isinstance(each, str) else f"tokens {each}" for each in inputs),
        prompt_tokens=tuple(len(tokenize(each) if isinstance(each, str) else each) for each in inputs),
        as_base64=encoding == "base64",
        dimensions=integer_field(body, "dimensions", least=1, most=_MAX_DIMENSIONS),
    )


def _inputs(value: Any) -> list[str | list[int]]:
    if isinstance(value, str) or _are_tokens(value):
        value = [value]
    if (
        not isinstance(value, list)
        or not 1 <= len(value) <= _MAX_INPUTS
        or not (all(isinstance(each, str) and each for each in value) or all(map(_are_tokens, value)))
    ):
        raise ApiError(
            400,
            "input must be a string, a list of strings, a list of token ids, or a list of such "
            f"lists. None can be empty, and a list can have at most {_MAX_INPUTS}.",
        )
    return [each if isinstance(each, str) else [int(token) for token in each] for each in value]


def _are_tokens(value: Any) -> bool:
    if not isinstance(value, list) or not value:
        return False
    return all(as_integer(token) is not None and token >= 0 for token in value)


def _options(body: Mapping[str, Any], max_tokens: int | None) -> Options:
    old_max_tokens = integer_field(body, "max_tokens", least=1)
    stream = boolean_field(body, "stream")
    stream_options = body.get("stream_options")
    if stream_options is not None:
        if not isinstance(stream_options, dict):
            raise ApiError(400, "stream_options must be an object.")
        if not stream:
            raise ApiError(400, "stream_options is only allowed with stream.")
    return Options(
        model=required_string(body, "model"),
        max_tokens=old_max_tokens if max_tokens is None else max_tokens,
        n=integer_field(body, "n", least=1, most=128) or 1,
        stop=_stop(body.get("stop")),
        stream=stream,
        include_usage=boolean_field(stream_options or {}, "include_usage"),
    )


def _stop(value: Any) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(strings, list) or not all(isinstance(each, str) and each for each in strings):
        raise ApiError(400, "stop must be a non-empty string or a list of non-empty strings.")
    return tuple(strings)


def _message(value: Any) -> Message:
    if not isinstance(value, dict):
        raise ApiError(400, "Every message must be an object.")
    calls = value.get("tool_calls")
    if calls is not None and not isinstance(calls, list):
        raise ApiError(400, "tool_calls must be a list.")
    return Message(
        required_string(value, "role"),
        _content(value.get("content")),
        tuple(_call(call) for call in calls or ()),
        string_field(value, "tool_call_id"),
        string_field(value, "name"),
    )


def _call(value: Any) -> ToolCall:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        raise ApiError(400, "Every tool call must be an object with a function.")
    arguments = string_field(function, "arguments") or ""
    return ToolCall(required_string(value, "id"), required_string(function, "name"), tokenize(arguments))


def _content(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if not isinstance(value, list):
        raise ApiError(400, "content must be a string or a list of parts.")
    # The models in the catalog only read text. A real server with such a model rejects images too.
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in value):
        raise ApiError(400, "Every content part must be an object of type text.")
    return "".join(required_string(part, "text") for part in value)
