"""Estimate the prompt tokens of a batch, and bound its completion tokens. Pure.

There is no tokenizer here, so the tokens of a prompt are an estimate. The tokens of the answers are an upper
bound: no answer is longer than its limit, or than the context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from .endpoints import Endpoint

# Bytes of UTF-8. English has about four characters per token. Other scripts have fewer, but each takes more
# bytes.
_BYTES_PER_TOKEN = 4

# Larger numbers of tokens and answers are ignored, because they would overflow the sums.
_MAX_NUMBER = 1 << 53

# vLLM has several names for each side of `/score`.
_SCORE_NAMES = (("text_1", "queries", "data_1"), ("text_2", "documents", "items", "data_2"))

# The types of parts that contain text. A part of any other type is an attachment.
_TEXT_TYPES = frozenset({
    *("text", "input_text", "output_text", "refusal", "thinking", "reasoning", "reasoning_text"),
    *("summary_text", "message", "function", "function_call", "function_call_output"),
    *("tool_call", "tool_result"),
})  # fmt: skip

# A part with one of these fields is an attachment, whatever its type is.
_ATTACHMENTS = frozenset({
    *("image_url", "audio_url", "video_url", "input_audio", "image_embeds", "audio_embeds", "image", "file"),
})  # fmt: skip

# Fields that describe a message or a part, and do not count as text.
_NOT_TEXT = frozenset({"type", "role", "id", "call_id", "tool_call_id", "status", "cache_control"})

# The fields with definitions that the server writes into the prompt.
_DEFINITIONS = ("tools", "functions")


@define
class Sizes:
    """The sizes of all requests of an input.

    Attributes:
        total: Requests.
        prompt: Estimated tokens of all prompts.
        attachments: Images, audio and other parts of prompts, which are not in `prompt`.
        limited: The sum of the limits of all answers that have one.
        unlimited: Answers without a limit.
        is_bounded: False if the number of answers is not known.
        longest: The most estimated tokens of one prompt and its answer, and the line of that request.
    """

    total: int = 0
    prompt: int = 0
    attachments: int = 0
    limited: int = 0
    unlimited: int = 0
    is_bounded: bool = True
    longest: tuple[int, int] = (0, 0)

    def add(self, number: int, endpoint: Endpoint, body: Mapping[str, Any]) -> None:
        """Add the request on line `number`."""
        longest = prompts = 0
        for size, attachments in _prompts(endpoint, body):
            tokens = size // _BYTES_PER_TOKEN
            self.prompt += tokens
            self.attachments += attachments
            longest, prompts = max(longest, tokens), prompts + 1
        answers, limit = _answers_per_prompt(endpoint, body), _limit(endpoint, body)
        if answers is None:
            self.is_bounded = False
        elif limit is None:
            self.unlimited += prompts * answers
        else:
            self.limited += prompts * answers * limit
        self.total += 1
        self.longest = max(self.longest, (longest + (limit or 0), number))

    def max_completion_tokens(self, context_length: int | None) -> int | None:
        """Return an upper bound of the tokens of all answers together; None if there is none.

        An answer without a limit can fill the context. Its prompt is not subtracted, because its size is
        only an estimate.
        """
        if not self.is_bounded or (self.unlimited and context_length is None):
            return None
        return self.limited + self.unlimited * (context_length or 0)


def _answers_per_prompt(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """Return how many answers each prompt gets; None if that is not known."""
    if not endpoint.limit_keys:
        return 0
    if endpoint.path == "/responses":
        # All other tools are run by the server, which lets the model answer again after each call.
        tools = body.get("tools")
        tools = tools if isinstance(tools, list) else []
        return 1 if all(_type_of(tool) in ("function", "custom") for tool in tools) else None
    answers = 1
    # The server generates `best_of` answers, and returns the best `n`.
    for name in ("n", "best_of"):
        if body.get(name) is not None:
            number = _read_number(body[name])
            if number is None:
                return None
            answers = max(answers, number)
    return answers


def _limit(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """Return the limit of one answer in tokens; None if the request sets none."""
    if not endpoint.limit_keys:
        return 0
    # The highest, because servers differ in which one applies if there are several.
    limit: int | None = None
    for name in endpoint.limit_keys:
        if (number := _read_number(body.get(name))) is not None and (limit is None or number > limit):
            limit = number
    return limit


def _read_number(value: Any) -> int | None:
    """Return a whole number as servers read it: also from 8.0 and "8". None if it is not usable."""
    is_text = isinstance(value, str) and value.strip().isdecimal() and len(value) < 20
    if is_text or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER:
        return value
    return None


def _prompts(endpoint: Endpoint, body: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the bytes and the attachments of each prompt that must fit the context by itself."""
    if endpoint.path == "/rerank":
        return _pairs([_measure(body.get("query"))], _several(body.get("documents")))
    if endpoint.path == "/score":
        return _pairs(*(_several(_first(body, names)) for names in _SCORE_NAMES))
    if endpoint.path in ("/completions", "/embeddings") and "messages" not in body:
        return _several(body.get("prompt" if endpoint.path == "/completions" else "input"))
    definitions = sum(_json_size(body[name]) for name in _DEFINITIONS if body.get(name))
    size, attachments = _measure(body.get("messages"), body.get("instructions"), body.get("input"))
    return [(definitions + size, attachments)]


def _first(body: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((body[name] for name in names if name in body), None)


def _several(value: Any) -> list[tuple[int, int]]:
    """Measure a prompt, or each prompt of a list. A list of numbers is one prompt, given as tokens."""
    if isinstance(value, list) and not any(isinstance(each, int) for each in value):
        return [_measure(each) for each in value]
    return [_measure(value)]


def _pairs(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the sizes of all pairs: one by one, or if there is one first text, with every second one."""
    if len(first) == 1:
        first = first * len(second)
    return [(one[0] + other[0], one[1] + other[1]) for one, other in zip(first, second, strict=False)]


def _measure(*values: Any) -> tuple[int, int]:
    """Return the bytes of the texts in a prompt, and the number of its attachments."""
    size = attachments = 0
    # Not recursive, because JSON may be deep.
    stack = list(values)
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            size += len(each) if each.isascii() else len(each.encode("utf-8", "surrogatepass"))
        elif isinstance(each, list):
            stack += each
        elif isinstance(each, dict):
            if _type_of(each) in _TEXT_TYPES and _ATTACHMENTS.isdisjoint(each):
                stack += [part for name, part in each.items() if name not in _NOT_TEXT]
            else:
                attachments += 1
        elif isinstance(each, int) and not isinstance(each, bool):
            # A token, given as a number.
            size += _BYTES_PER_TOKEN
    return size, attachments


def _type_of(value: Any) -> str:
    kind = value.get("type", "text") if isinstance(value, dict) else ""
    return kind if isinstance(kind, str) else ""


def _json_size(value: Any) -> int:
    return len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass"))
