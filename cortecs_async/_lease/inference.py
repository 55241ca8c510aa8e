"""The requests that the endpoint of an instance accepts, and the required fields of their answers.

They are vLLM's `run_batch` endpoints (chat, embeddings, score, rerank), plus completions and responses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from attrs import frozen

# Maximum characters that a message repeats of an error inside an answer.
_MAX_MESSAGE = 500

# The keys under which an error's JSON holds the message. Servers differ.
_ERROR_KEYS = ("error", "errors", "detail", "message", "msg", "title")

# The statuses of a response that is not an answer. A list, because a status may be unhashable.
_UNANSWERED = ["failed", "cancelled", "queued", "in_progress"]

# The `finish_reason` of a choice that the server did not finish.
_UNFINISHED = ["error", "abort"]


@frozen(eq=False, kw_only=True)
class Endpoint:
    """One kind of request.

    Attributes:
        path: The path of the endpoint, below a `base_url` that ends in `/v1`.
        probe: A small body that every healthy server answers.
        limit_keys: The fields that limit the tokens of an answer. The tuple is empty for endpoints without
            text.
        limit_key: The field among them that `max_tokens=` sets.
        conversation_key: The field that can hold messages, including a system message.
        instructions_key: The field for a system prompt that is not a message.
        defaults: Values with the same meaning as leaving the field out (see `canonical`).
        answer_key: The field of a successful body that holds the list of results.
        content_keys: Each entry of that list must have one of these fields.
        may_be_empty: Whether that list can be empty.
        usage_keys: The fields of `usage` with the token counts of the prompt and the answer.
    """

    path: str
    probe: Mapping[str, Any]
    limit_keys: tuple[str, ...] = ()
    limit_key: str = ""
    conversation_key: str = ""
    instructions_key: str = ""
    defaults: Mapping[str, Any]
    answer_key: str
    content_keys: tuple[str, ...] = ()
    may_be_empty: bool = False
    usage_keys: tuple[str, str] = ("prompt_tokens", "completion_tokens")


# Only defaults that OpenAI's API reference documents and that are the same on every server and model.
# `temperature`, `top_p`, and `max_tokens` are missing, because vLLM reads their defaults from the model's
# generation_config.json.
_NOT_STREAMED = {"stream": False}
_PLAIN_SAMPLING = {**_NOT_STREAMED, "n": 1, "frequency_penalty": 0, "presence_penalty": 0}

_ALL = (
    Endpoint(
        path="/chat/completions",
        probe={"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
        limit_keys=("max_completion_tokens", "max_tokens"),
        limit_key="max_tokens",
        conversation_key="messages",
        defaults={**_PLAIN_SAMPLING, "logprobs": False, "response_format": {"type": "text"}},
        answer_key="choices",
        content_keys=("message", "text"),
    ),
    Endpoint(
        path="/completions",
        probe={"prompt": "Hi", "max_tokens": 1},
        limit_keys=("max_tokens",),
        limit_key="max_tokens",
        defaults={**_PLAIN_SAMPLING, "echo": False},
        answer_key="choices",
        content_keys=("text", "message"),
    ),
    Endpoint(
        path="/responses",
        probe={"input": "Hi", "max_output_tokens": 16},  # OpenAI's minimum
        limit_keys=("max_output_tokens",),
        limit_key="max_output_tokens",
        conversation_key="input",
        instructions_key="instructions",
        defaults={**_NOT_STREAMED, "background": False},
        answer_key="output",
        may_be_empty=True,  # if reasoning used up the token limit
        usage_keys=("input_tokens", "output_tokens"),
    ),
    Endpoint(
        path="/embeddings",
        probe={"input": "Hi"},
        defaults={**_NOT_STREAMED, "encoding_format": "float"},
        answer_key="data",
        content_keys=("embedding",),
    ),
    Endpoint(
        path="/score",
        probe={"text_1": "Hi", "text_2": "Hi"},
        defaults=_NOT_STREAMED,
        answer_key="data",
        content_keys=("score",),
    ),
    Endpoint(
        path="/rerank",
        probe={"query": "Hi", "documents": ["Hi"]},
        defaults=_NOT_STREAMED,
        answer_key="results",
        content_keys=("relevance_score", "score"),
        may_be_empty=True,  # some servers return nothing if `top_n` is 0
        usage_keys=("total_tokens", "completion_tokens"),  # older servers return only the total
    ),
)

ENDPOINTS: Final[Mapping[str, Endpoint]] = {each.path: each for each in _ALL}

# vLLM's `run_batch` also accepts the last three, and its server treats them like the others.
ENDPOINT_OF_URL: Final[Mapping[str, Endpoint]] = {
    **{f"/v1{path}": each for path, each in ENDPOINTS.items()},
    "/score": ENDPOINTS["/score"],
    "/rerank": ENDPOINTS["/rerank"],
    "/v2/rerank": ENDPOINTS["/rerank"],
}


def find_problem(data: Mapping[str, Any], endpoints: Sequence[Endpoint] = _ALL) -> str | None:
    """Return the reason a successful response's body is not an answer of one of these endpoints, or None."""
    error = data.get("error")
    if error or data.get("object") == "error":
        return f"the response is an error: {_describe(error or data)}"
    for endpoint in endpoints:
        answer = data.get(endpoint.answer_key)
        if isinstance(answer, list) and (answer or endpoint.may_be_empty):
            break
    else:
        return f"the response has no {_field(each.answer_key for each in endpoints)}"
    if endpoint.answer_key == "output" and data.get("status") in _UNANSWERED:
        return f"the response has status {data['status']}"
    content_keys = {
        key for each in endpoints if each.answer_key == endpoint.answer_key for key in each.content_keys
    }
    for entry in answer:
        # Gateways report failures of the server behind them in an entry.
        if isinstance(entry, dict) and (entry.get("error") or entry.get("finish_reason") in _UNFINISHED):
            return f"the response is an error: {_describe(entry.get('error') or entry)}"
        if content_keys and not (
            isinstance(entry, dict) and any(_has_content(entry.get(key)) for key in content_keys)
        ):
            return f"the response has no {_field(sorted(content_keys))}"
    return None


def is_refusal(body: bytes) -> bool:
    """Return whether this error comes from the model server rather than a proxy in front of it."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        return False
    if isinstance(data, str):
        return bool(data.strip())
    errors = data if isinstance(data, list) else [data]
    return any(
        isinstance(each, dict) and any(_has_text(each.get(key)) for key in _ERROR_KEYS) for each in errors
    )


def _has_text(value: object, depth: int = 4) -> bool:
    """Return whether this is a message, or contains one.

    OpenAI and vLLM send an object with a `message`, and FastAPI sends a list of objects with a `msg`. Others
    send a string, or an object with the messages for each field.
    """
    if isinstance(value, str):
        return bool(value.strip())
    if depth == 0:
        return False
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(_has_text(each, depth - 1) for each in entries)


def _field(names: Iterable[str]) -> str:
    return f"{' or '.join(f'`{each}`' for each in dict.fromkeys(names))} field"


def _has_content(value: Any) -> bool:
    return value is not None and value not in ([], {})


def _describe(error: Any) -> str:
    text = str(error.get("message") or error if isinstance(error, dict) else error)
    return text if len(text) <= _MAX_MESSAGE else text[:_MAX_MESSAGE] + "…"
