"""The messages that a parent sends to its reaper, as lines.

A line is marshalled data in hexadecimal. `json` would import `re`, and the two together take as long as the
rest of the reaper's start. Both ends run the same interpreter, and only the parent can write to the pipe.
"""

from __future__ import annotations

import marshal

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .records import Record

# A format that every supported interpreter reads, in case the one on disk was upgraded in the meantime.
_VERSION = 4


def encode_messages(messages: Iterable[Record]) -> bytes:
    """Encode messages as lines.

    Raises:
        ValueError: If a message contains anything but the types that JSON has.
    """
    return b"".join(marshal.dumps(each, _VERSION).hex().encode() + b"\n" for each in messages)


def decode_messages(data: bytes) -> list[Record]:
    """Return the messages in complete lines. Leave out unreadable lines."""
    return [message for line in data.split(b"\n") if (message := _decode_line(line)) is not None]


def _decode_line(line: bytes) -> Record | None:
    try:
        message = marshal.loads(bytes.fromhex(line.decode("ascii")))  # noqa: S302  (from the parent)
    except (ValueError, EOFError, TypeError):
        return None
    return message if isinstance(message, dict) else None
