"""The queue of unanswered requests, which all instances of a batch share.

The queue reads the input ahead as workers take requests. Requests that come back, from a lost instance or for
another attempt, go before new ones.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import anyio
from attrs import define, field

from .._aio import threads
from .._aio.synchronization import Broadcast
from .._errors import BatchFileError
from .format import Request, RequestParser
from .index import is_done
from .output import file_errors, read_lines

# Lines that are read ahead, and how many bytes are read at a time.
_MAX_BUFFER_BYTES = 8 << 20
_MAX_BUFFER_LINES = 2048
_CHUNK_BYTES = 1 << 20

# Failed requests that may wait for another attempt. With more of them, no new request is taken.
_MAX_RETRIES = 512
_MAX_RETRY_BYTES = 16 << 20


@define(eq=False)
class RequestQueue:
    """Hands out the unanswered requests of an input.

    Args:
        source: The input.
        parser: Parses its lines.
        done: A bit for each line, set if the line is answered already.
        status: The status of the input when `done` was computed.
    """

    _source: Path
    _parser: RequestParser
    _done: bytearray
    _status: os.stat_result
    _buffer: deque[tuple[int, bytes]] = field(factory=deque)
    _buffer_bytes: int = 0
    _is_read: bool = False
    _returned: deque[Request] = field(factory=deque)
    _delayed: list[tuple[float, int, Request]] = field(factory=list)
    _order: Iterator[int] = field(factory=itertools.count)
    _last: deque[Request] = field(factory=deque)
    _retry_bytes: int = 0  # of the three before
    _in_progress: int = 0
    _changed: Broadcast = field(factory=Broadcast)
    _drained: Broadcast = field(factory=Broadcast)
    finished: anyio.Event = field(factory=anyio.Event)

    @property
    def is_finished(self) -> bool:
        waiting = self._buffer or self._returned or self._delayed or self._last
        return self._is_read and not (waiting or self._in_progress)

    async def wait_for_change(self) -> None:
        """Wait until a request may be available, or all are answered."""
        with anyio.CancelScope(deadline=self._delayed[0][0] if self._delayed else float("inf")):
            await self._changed.wait()

    def get_nowait(self) -> Request | None:
        request = self._next()
        if request is not None:
            self._in_progress += 1
        return request

    def task_done(self) -> None:
        self._in_progress -= 1
        if self.is_finished:
            self._notify()

    def put_back(self, request: Request) -> None:
        """Put back a request whose attempt was interrupted."""
        self._returned.append(request)
        self._requeued(request)

    def retry_later(self, request: Request, seconds: float) -> None:
        heapq.heappush(self._delayed, (anyio.current_time() + seconds, next(self._order), request))
        self._requeued(request)

    def retry_last(self, request: Request) -> None:
        """Retry a request after all others, because its attempts are slow and mostly fail."""
        self._last.append(request)
        self._requeued(request)

    def _requeued(self, request: Request) -> None:
        self._in_progress -= 1
        self._retry_bytes += len(request.body)
        self._notify()

    async def read(self) -> None:
        """Read the input ahead until its end."""
        lines = self._lines()
        while chunk := await threads.run_in_thread(lambda: _read_chunk(lines)):
            self._buffer.extend(chunk)
            self._buffer_bytes += sum(len(line) for _, line in chunk)
            self._notify()
            while self._buffer_bytes > _MAX_BUFFER_BYTES or len(self._buffer) > _MAX_BUFFER_LINES:
                await self._drained.wait()
        self._is_read = True
        self._notify()

    def _next(self) -> Request | None:
        if self._delayed and self._delayed[0][0] <= anyio.current_time():
            request = heapq.heappop(self._delayed)[2]
        elif self._returned:
            request = self._returned.popleft()
        elif (new := self._next_new()) is not None or not self._last:
            return new
        else:
            request = self._last.popleft()
        self._retry_bytes -= len(request.body)
        return request

    def _next_new(self) -> Request | None:
        if len(self._delayed) + len(self._last) >= _MAX_RETRIES or self._retry_bytes >= _MAX_RETRY_BYTES:
            return None
        while self._buffer:
            number, line = self._buffer.popleft()
            self._buffer_bytes -= len(line)
            if self._buffer_bytes <= _MAX_BUFFER_BYTES // 2 and len(self._buffer) <= _MAX_BUFFER_LINES // 2:
                self._drained.notify()
            if (found := self._parser.parse(number, line)) is not None:
                return found[0]
        return None

    def _notify(self) -> None:
        self._changed.notify()
        if self.is_finished:
            self.finished.set()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            with file_errors("cannot be read", self._source):
                self._check_unchanged()
                for number, _, line in read_lines(self._source):
                    # The bits end with the last request; blank lines may follow.
                    if not line.isspace() and not is_done(self._done, number):
                        yield number, line
                self._check_unchanged()
        except IndexError:
            # It has more lines than before.
            raise self._changed_error() from None

    def _check_unchanged(self) -> None:
        now, then = self._source.stat(), self._status
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (then.st_ino, then.st_size, then.st_mtime_ns):
            raise self._changed_error()

    def _changed_error(self) -> BatchFileError:
        return BatchFileError(
            "the input has changed since the batch started; run the batch again", path=str(self._source)
        )


def _read_chunk(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        chunk.append((number, line))
        size += len(line)
        if size >= _CHUNK_BYTES or len(chunk) >= _MAX_BUFFER_LINES // 2:
            break
    return chunk
