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


@attrs.frozen
class Choice:
    """One answer, in the pieces in which it is counted and streamed."""

    pieces: tuple[str, ...]
    finish_reason: Literal["stop", "length"]

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.pieces)


def split(text: str) -> tuple[str, ...]:
    """Cut a text into the emulator's tokens; joined they are the text again."""
    return tuple(_PIECES.findall(text))


def count_messages(messages: Sequence[Message]) -> int:
    """The prompt tokens of a chat."""
    return sum(len(split(message.content)) + _TOKENS_PER_MESSAGE for message in messages)


def choose(text: str, *, limit: int, stop: Sequence[str]) -> Choice:
    """Cut a text at the first stop string and at ``limit`` tokens."""
    ends = [end for end in (text.find(mark) for mark in stop) if end >= 0]
    pieces = split(text[: min(ends)] if ends else text)
    return Choice(pieces[:limit], "length" if len(pieces) > limit else "stop")


def chat_text(model_name: str, messages: Sequence[Message], number: int, *, as_json: bool) -> str:
    """What the emulator says to a chat; ``number`` counts the choices from 0."""
    said = next((message.content for message in reversed(messages) if message.role == "user"), "")
    if as_json:
        answer: dict[str, Any] = {
            "emulator": True,
            "model": model_name,
            "you_said": said,
            "choice": number + 1,
        }
        return json.dumps(answer, ensure_ascii=False)
    heard = f'You said: "{said}"' if said else "You said nothing."
    variant = f" (choice {number + 1})" if number else ""
    return f"This is the cortecs_async emulator in place of {model_name}, no model was run{variant}. {heard}"


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
