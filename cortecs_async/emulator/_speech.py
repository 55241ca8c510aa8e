"""What the emulated models say, and how it is counted: deterministic, and honest that no model ran."""

import hashlib
import json
import math
import re
import struct
from collections.abc import Sequence
from typing import Any, Final, Literal

import attrs

# A word with the white space before it, one other character, or white space at the end.
_PIECES: Final = re.compile(r"\s*\w+|\s*[^\w\s]|\s+\Z")
# An invention, short enough to be read.
_DIMENSIONS: Final = 8
# Roles and separators of one chat message, counted as the usual chat templates come to.
_TOKENS_PER_MESSAGE: Final = 4


@attrs.frozen
class Message:
    """One chat message, its content as text."""

    role: str
    content: str
    calls: tuple["ToolCall", ...] = ()
    """The tools that the assistant called with it."""
    tool_call_id: str | None = None
    """Whose answer it is, from a tool."""
    name: str | None = None


@attrs.frozen
class ToolCall:
    """One call of a tool, its arguments in the pieces in which they are counted and streamed."""

    call_id: str
    name: str
    pieces: tuple[str, ...]

    @property
    def text(self) -> str:
        """The arguments, as JSON."""
        return "".join(self.pieces)


@attrs.frozen
class Choice:
    """One answer, in the pieces in which it is counted and streamed."""

    pieces: tuple[str, ...]
    finish_reason: Literal["stop", "length", "tool_calls"]
    calls: tuple[ToolCall, ...] = ()

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.pieces)

    @property
    def tokens(self) -> int:
        """How long it is."""
        return len(self.pieces) + sum(len(call.pieces) for call in self.calls)


def split(text: str) -> tuple[str, ...]:
    """Cut a text into the emulator's tokens; joined they are the text again."""
    return tuple(_PIECES.findall(text))


def count_messages(messages: Sequence[Message]) -> int:
    """The prompt tokens of a chat."""
    texts = [message.content for message in messages]
    texts += [text for message in messages for call in message.calls for text in (call.name, call.text)]
    return _TOKENS_PER_MESSAGE * len(messages) + sum(len(split(text)) for text in texts)


def choose(text: str, *, limit: int, stop: Sequence[str]) -> Choice:
    """Cut a text at the first stop string and at ``limit`` tokens."""
    ends = [end for end in (text.find(mark) for mark in stop) if end >= 0]
    pieces = split(text[: min(ends)] if ends else text)
    return Choice(pieces[:limit], "length" if len(pieces) > limit else "stop")


def chat_text(
    model_name: str, said: str, results: Sequence[tuple[str, str]], number: int, *, as_json: bool
) -> str:
    """What the emulator says to a chat.

    Args:
        model_name: Whose place it takes.
        said: What the user said last.
        results: What tools have answered since, each with the tool's name.
        number: Counts the choices from 0.
        as_json: Whether to say it as a JSON object.
    """
    if as_json:
        answer: dict[str, Any] = {
            "emulator": True,
            "model": model_name,
            "you_said": said,
            "choice": number + 1,
        }
        if results:
            answer["tools_said"] = [{"tool": name, "said": text} for name, text in results]
        return json.dumps(answer, ensure_ascii=False)
    heard = f'You said: "{said}"' if said else "You said nothing."
    variant = f" (choice {number + 1})" if number else ""
    parts = [
        f"This is the cortecs_async emulator in place of {model_name}, no model was run{variant}.",
        heard,
        *(f'{name} said: "{text}"' for name, text in results),
    ]
    return " ".join(parts)


def completion_text(model_name: str, prompt: str, number: int) -> str:
    """What the emulator writes after a prompt; ``number`` counts the choices of that prompt from 0."""
    variant = f" (choice {number + 1})" if number else ""
    return f' [the cortecs_async emulator in place of {model_name}{variant}, continuing "{prompt}"]'


def vector(text: str, dimensions: int | None) -> bytes:
    """Where a text lies in the emulator's space: a unit vector of little-endian 32-bit floats.

    Drawn from the text's hash, it says nothing but whether two texts are the same. A longer vector of a text
    points where the shorter one does, as far as that goes.
    """
    size = dimensions or _DIMENSIONS
    digest = hashlib.shake_128(text.encode("utf-8", "surrogatepass")).digest(4 * size)
    # Odd numbers around zero: no coordinate vanishes, so that none is divided by zero.
    raw = [2 * word + 1 - 2**32 for word in struct.unpack(f"<{size}I", digest)]
    length = math.hypot(*raw)
    return struct.pack(f"<{size}f", *(value / length for value in raw))
