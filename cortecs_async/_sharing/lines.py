"""Lines of JSON on a connection between an owner process and a process that uses its instance."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import anyio
from anyio.abc import ByteReceiveStream, SocketAttribute

# Maximum bytes of an unfinished line. The start of a longer one is dropped, so the rest is unreadable.
_LONGEST_LINE = 1 << 20


class LineReader:
    """Reads lines from a stream. A cancelled `next_lines` loses nothing."""

    def __init__(self, stream: ByteReceiveStream) -> None:
        self._stream = stream
        self._rest = b""

    async def next_lines(self) -> list[bytes]:
        """Wait for data and return the lines that are complete now.

        Raises:
            EndOfStream: If the other process has closed its side.
            BrokenResourceError: If the connection broke.
        """
        connection = self._stream.extra(SocketAttribute.raw_socket, None)  # noqa: S610  (anyio's, not Django's)
        if connection is not None:
            # If `receive` is cancelled just when data arrives, asyncio reports an error. This wait does not.
            await anyio.wait_readable(connection)
        *lines, rest = (self._rest + await self._stream.receive()).split(b"\n")
        self._rest = rest[-_LONGEST_LINE:]
        return lines


def encode(message: dict[str, Any]) -> bytes:
    """Encode a message as a line."""
    return json.dumps(message).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Decode a line. An unreadable one is an empty message, because it must not end the reader."""
    with contextlib.suppress(ValueError, RecursionError):
        message = json.loads(line)
        if isinstance(message, dict):
            return message
    return {}
