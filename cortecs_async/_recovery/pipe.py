"""The messages between a parent and its reaper, as lines.

A line to the reaper is marshalled data in hexadecimal. `json` would import `re`, and the two together take as
long as the rest of the reaper's start. Both ends run the same interpreter, and only the parent can write to
the pipe. A line to the parent is JSON. Most of them are acknowledgments, which are formatted without `json`.
"""

from __future__ import annotations

import _thread
import marshal
import sys

from .._platform import NO_REAPER, os
from .records import encode

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


class ParentPipe:
    """The pipe from the reaper to its parent. Sending never blocks.

    Messages from different threads never mix. If the pipe is full because the parent is suspended, messages
    are kept until there is room.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._unsent = b""
        self._lock = _thread.allocate_lock()
        if sys.platform == "win32":
            raise OSError(NO_REAPER)
        os.set_blocking(fd, False)

    def send(self, message: Record) -> None:
        """Send a message, or keep it for `flush`."""
        # An acknowledgment is the one message that every reaper sends, so it does without `json`.
        line = b'{"ack":%d}\n' % message["ack"] if "ack" in message else encode([message])
        with self._lock:
            self._unsent += line
        self.flush()

    def flush(self) -> bool:
        """Send as much as there is room for. Return whether anything is left."""
        with self._lock:
            try:
                while self._unsent:
                    self._unsent = self._unsent[os.write(self._fd, self._unsent) :]
            except BlockingIOError:
                return True
            except OSError:
                self._unsent = b""  # the parent is dead
            return False
