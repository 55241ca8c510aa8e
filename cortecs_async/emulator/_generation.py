"""Generate the emulated model's texts and embeddings, and count tokens. Deterministic; no model runs."""

import hashlib
import json
import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Final, Literal

import attrs

# A word with the whitespace before it, one other character, or whitespace at the end.
_TOKEN: Final = re.compile(r"\s*\w+|\s*[^\w\s]|\s+\Z")
# Invented, and short enough to read.
_DEFAULT_DIMENSIONS: Final = 8
# Tokens that roles and separators add to a chat message in common chat templates.
_TOKENS_PER_MESSAGE: Final = 4


@attrs.frozen
class ToolCall:
    call_id: str
    name: str
    tokens: tuple[str, ...]

    @property
    def arguments(self) -> str:
        """The arguments, as JSON."""
        return "".join(self.tokens)


@attrs.frozen
class Message:
    """One chat message, with its content as text."""

    role: str
    content: str
    calls: tuple[ToolCall, ...] = ()
    """The tools that the assistant called in this message."""
    tool_call_id: str | None = None
    """In a message from a tool: the id of the call that it answers."""
    name: str | None = None


@attrs.frozen
class Choice:
    """One choice of an answer: text, or tool calls."""

    tokens: tuple[str, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def token_count(self) -> int:
        """The number of tokens, including tool calls."""
        return len(self.tokens) + sum(len(call.tokens) for call in self.calls)


def tokenize(text: str) -> tuple[str, ...]:
    """Split a text into the emulator's tokens. Joined, they form the text again."""
    return tuple(_TOKEN.findall(text))


def count_prompt_tokens(messages: Sequence[Message]) -> int:
    texts = [message.content for message in messages]
    texts += [text for message in messages for call in message.calls for text in (call.name, call.arguments)]
    return _TOKENS_PER_MESSAGE * len(messages) + sum(len(tokenize(text)) for text in texts)


def text_choice(text: str, *, limit: int, stop: Sequence[str]) -> Choice:
    """Cut a text at the first stop string and at `limit` tokens."""
    ends = [end for end in (text.find(stop_string) for stop_string in stop) if end >= 0]
    tokens = tokenize(text[: min(ends)] if ends else text)
    return Choice(tokens[:limit], "length" if len(tokens) > limit else "stop")


def chat_text(
    model_name: str, user_text: str, tool_results: Sequence[tuple[str, str]], number: int, *, as_json: bool
) -> str:
    """Generate the answer to a chat; `number` counts the choices from 0.

    Each of `tool_results` is the name of a tool and what it returned since the user's last message.
    """
    if as_json:
        answer: dict[str, Any] = {
            "emulator": True,
            "model": model_name,
            "you_said": user_text,
            "choice": number + 1,
        }
        if tool_results:
            answer["tools_said"] = [{"tool": name, "said": text} for name, text in tool_results]
        return json.dumps(answer, ensure_ascii=False)
    parts = [
        f"This is the cortecs_async emulator in place of {model_name}; no model was run{_choice(number)}.",
        f'You said: "{user_text}"' if user_text else "You said nothing.",
        *(f'{name} said: "{text}"' for name, text in tool_results),
    ]
    return " ".join(parts)


def completion_text(model_name: str, prompt: str, number: int) -> str:
    """Generate a continuation of a prompt; `number` counts the choices of that prompt from 0."""
    return f' [the cortecs_async emulator in place of {model_name}{_choice(number)}, continuing "{prompt}"]'


def _choice(number: int) -> str:
    return f" (choice {number + 1})" if number else ""


def embedding(text: str, dimensions: int | None) -> bytes:
    """Embed a text as a unit vector of little-endian 32-bit floats.

    The vector comes from a hash of the text, so it shows only whether two texts are the same. With more
    dimensions, the vector begins with the direction of the shorter vector for the same text.
    """
    size = dimensions or _DEFAULT_DIMENSIONS
    digest = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(4 * size)
    # Odd numbers around zero, so that no coordinate is zero and callers do not divide by zero.
    raw = [2 * word + 1 - 2**32 for word in struct.unpack(f"<{size}I", digest)]
    length = math.hypot(*raw)
    return struct.pack(f"<{size}f", *(value / length for value in raw))
