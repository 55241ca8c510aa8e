"""Estimate a batch's prompt tokens, and compute an upper bound of its completion tokens. Pure functions.

No tokenizer is used, so the number of prompt tokens is an estimate. The number of completion tokens is an
upper bound, because no answer is longer than its limit or the context.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from attrs import define

from .._lease.inference import Endpoint

# In bytes of UTF-8. English has about four characters per token. Other scripts have fewer, but each character
# takes more bytes.
_BYTES_PER_TOKEN = 4

# Larger numbers of tokens and answers are ignored, because they would overflow the sums.
_MAX_NUMBER = 1 << 53

# vLLM accepts several names for each side of `/score`.
_SCORE_NAMES = (("text_1", "queries", "data_1"), ("text_2", "documents", "items", "data_2"))

# The types of text parts. A part of any other type is an attachment.
_TEXT_TYPES = frozenset({
    *("text", "input_text", "output_text", "refusal", "thinking", "reasoning", "reasoning_text"),
    *("summary_text", "message", "function", "function_call", "function_call_output"),
    *("tool_call", "tool_result"),
})  # fmt: skip

# A part with one of these fields is an attachment, whatever its type.
_ATTACHMENTS = frozenset({
    *("image_url", "audio_url", "video_url", "input_audio", "image_embeds", "audio_embeds", "image", "file"),
})  # fmt: skip

# Fields that describe a message or a part and do not count as text.
_NOT_TEXT = frozenset({"type", "role", "id", "call_id", "tool_call_id", "status", "cache_control"})

# Fields with definitions that the server writes into the prompt.
_DEFINITIONS = ("tools", "functions")


@define
class Sizes:
    """The sizes of all requests in an input.

    Attributes:
        total: The number of requests.
        prompt: Estimated tokens in all prompts.
        attachments: Images, audio, and other parts of prompts that `prompt` does not include.
        limited: The sum of all answers' limits.
        unlimited: The number of answers without a limit.
        is_bounded: Whether the number of answers is known.
        longest: The largest estimate for one prompt and its answer in tokens, and the line of that request.
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
        """Return an upper bound for the tokens of all answers together, or None if there is none.

        An answer without a limit can fill the context. Its prompt is not subtracted, because its size is
        only an estimate.
        """
        if not self.is_bounded or (self.unlimited and context_length is None):
            return None
        return self.limited + self.unlimited * (context_length or 0)


def _answers_per_prompt(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """Return the number of answers to each prompt, or None if it is not known."""
    if not endpoint.limit_keys:
        return 0
    if endpoint.path == "/responses":
        # The server runs all other tools and lets the model answer again after each call.
        tools = body.get("tools")
        tools = tools if isinstance(tools, list) else []
        return 1 if all(_type_of(tool) in ("function", "custom") for tool in tools) else None
    answers = 1
    # The server generates `best_of` answers and returns the best `n`.
    for name in ("n", "best_of"):
        if body.get(name) is not None:
            number = _read_number(body[name])
            if number is None:
                return None
            answers = max(answers, number)
    return answers


def _limit(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    """Return the limit of one answer in tokens, or None if the request does not set one."""
    if not endpoint.limit_keys:
        return 0
    # The highest, because servers differ in the one that applies if several are set.
    limit: int | None = None
    for name in endpoint.limit_keys:
        if (number := _read_number(body.get(name))) is not None and (limit is None or number > limit):
            limit = number
    return limit


def _read_number(value: Any) -> int | None:
    """Return a whole number as servers read it, even from 8.0 or "8", or None if it is not usable."""
    is_text = isinstance(value, str) and value.strip().isdecimal() and len(value) < 20
    if is_text or (isinstance(value, float) and value.is_integer()):
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_NUMBER:
        return value
    return None


def _prompts(endpoint: Endpoint, body: Mapping[str, Any]) -> list[tuple[int, int]]:
    """Return the bytes and the attachments of each prompt that must fit into the context by itself."""
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
    """Measure a prompt, or each prompt of a list. A list of numbers is a single prompt, given as tokens."""
    if isinstance(value, list) and not any(isinstance(each, int) for each in value):
        return [_measure(each) for each in value]
    return [_measure(value)]


def _pairs(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return the sizes of all pairs. A single first text is paired with every second text."""
    if len(first) == 1:
        first = first * len(second)
    return [(one[0] + other[0], one[1] + other[1]) for one, other in zip(first, second, strict=False)]


def _measure(*values: Any) -> tuple[int, int]:
    """Return the bytes of text in a prompt and the number of its attachments."""
    size = attachments = 0
    # Not recursive, because JSON can be deeply nested.
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
