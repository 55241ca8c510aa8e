"""Answers on their way to the disk: what gathers while one group is written is the next group."""

from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
from attrs import define

from .._aio import threads
from .format import Request, Usage
from .output import Output

# Seconds in which a group gathers: to wake a thread for each answer would take as long as the answer itself.
_GATHER = 0.05

# Answers that wait for the disk, at the most: with a slow one, those who ask wait.
_MOST = 4096
_MOST_BYTES = 32 << 20


@define(eq=False)
class Line:
    """An answer.

    Attributes:
        request: What it answers.
        text: For the output.
        usage: Its tokens; None for an error line.
    """

    request: Request
    text: bytes
    usage: Usage | None


class AnswerWriter:
    """Writes answers, in groups.

    Args:
        output: Where to.
        on_written: Called with each group when it is on the disk, and where each of its lines begins.
    """

    def __init__(self, output: Output, on_written: Callable[[list[Line], list[int]], None]) -> None:
        self._output = output
        self._on_written = on_written
        self._waiting: list[Line] = []
        self._bytes = 0
        self._news = anyio.Event()
        self._room = anyio.Event()
        self._writing = anyio.Lock()

    def put(self, line: Line) -> None:
        """Takes an answer."""
        self._waiting.append(line)
        self._bytes += len(line.text)
        self._news.set()

    @property
    def is_full(self) -> bool:
        """Whether too much waits for the disk."""
        return len(self._waiting) >= _MOST or self._bytes >= _MOST_BYTES

    async def wait_for_room(self) -> None:
        """Waits while it is full."""
        while self.is_full:
            await self._room.wait()

    async def run(self) -> None:
        """Writes until it is cancelled.

        Raises:
            BatchWriteError: when it cannot write.
        """
        while True:
            await self._news.wait()
            await anyio.sleep(_GATHER)
            await self.flush()

    async def flush(self) -> None:
        """Writes what there is.

        Raises:
            BatchWriteError: when it cannot write.
        """
        # The lock for the order in which groups are counted.
        async with self._writing:
            lines, self._waiting, self._bytes = self._waiting, [], 0
            self._news = anyio.Event()
            if not lines:
                return
            texts = [line.text for line in lines]
            begin = await self._write(lines, texts)
            room, self._room = self._room, anyio.Event()
            room.set()
            begins: list[int] = []
            for text in texts:
                begins.append(begin)
                begin += len(text)
            self._on_written(lines, begins)

    async def _write(self, lines: list[Line], texts: list[bytes]) -> int:
        claim = threading.Lock()

        def write() -> int:
            return self._output.append(texts) if claim.acquire(blocking=False) else 0

        begin = 0
        try:
            with anyio.CancelScope(shield=True):
                begin = await threads.run_in_thread(write)
        except BaseException:
            # A second cancellation of asyncio comes through. Either the thread has begun, and writes them to
            # the end; or it never will, and they are for the next group.
            if claim.acquire(blocking=False):
                self._waiting[:0] = lines
                self._bytes += sum(map(len, texts))
            raise
        return begin
