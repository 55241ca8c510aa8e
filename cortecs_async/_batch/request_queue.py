"""The requests that are left: read as they are needed, and shared by all instances of a batch."""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import anyio

from .._aio import threads
from .._errors import BatchFileError
from .format import Request, RequestReader
from .index import is_done
from .output import read_lines

# What is read ahead, in bytes, and how many lines at a time.
_AHEAD = 8 << 20
_CHUNK = 1 << 20
_MOST_LINES = 2048

# Requests that wait for another attempt, and their bytes: with more of them, none is read that is new.
_MOST_WAITING = 512
_MOST_WAITING_BYTES = 16 << 20


class RequestQueue:
    """The requests that are left.

    Whoever is free takes the next one. What comes back, from an instance that was lost or after a failure, is
    taken before what was never tried.

    Args:
        source: The input.
        reader: Reads its lines.
        done: A bit for each line, set where there is an answer already.
        status: The input's, when it was looked through.
    """

    def __init__(self, source: Path, reader: RequestReader, done: bytearray, status: os.stat_result) -> None:
        self._source = source
        self._reader = reader
        self._done = done
        self._status = status
        self._ahead: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._is_read = False
        self._returned: deque[Request] = deque()
        self._later: list[tuple[float, int, Request]] = []
        self._order = itertools.count()
        self._at_last: deque[Request] = deque()
        self._waiting_bytes = 0
        self._open = 0
        self._news = anyio.Event()
        self._end = anyio.Event()
        self._hunger = anyio.Event()

    @property
    def is_finished(self) -> bool:
        """Whether everything is answered."""
        waiting = self._ahead or self._returned or self._later or self._at_last
        return self._is_read and not (waiting or self._open)

    async def wait_for_more(self) -> None:
        """Waits until there may be another one, or everything is answered."""
        # One that is under way can come back.
        news = self._news
        with anyio.CancelScope(deadline=self._later[0][0] if self._later else float("inf")):
            await news.wait()

    async def wait_until_over(self) -> None:
        """Waits until everything is answered."""
        await self._end.wait()

    def get_nowait(self) -> Request | None:
        """The next request, if there is one at hand."""
        request = self._next()
        if request is not None:
            self._open += 1
        return request

    def task_done(self) -> None:
        """One is answered."""
        self._open -= 1
        if self.is_finished:
            self._tell()

    def put_back(self, request: Request) -> None:
        """One was not answered, and it is not to blame."""
        self._open -= 1
        self._returned.append(request)
        self._tell()

    def postpone(self, request: Request, seconds: float) -> None:
        """One is to be tried again, not before so many seconds."""
        self._open -= 1
        self._waiting_bytes += len(request.body)
        heapq.heappush(self._later, (anyio.current_time() + seconds, next(self._order), request))
        self._tell()

    def put_last(self, request: Request) -> None:
        """One is to be tried again when there is nothing else to do: it takes long, mostly for nothing."""
        self._open -= 1
        self._waiting_bytes += len(request.body)
        self._at_last.append(request)
        self._tell()

    async def read(self) -> None:
        """Reads ahead until there is nothing more to read.

        Raises:
            BatchFileError: when the input has changed, or cannot be read.
        """
        lines = self._lines()
        while chunk := await threads.run_in_thread(lambda: _chunk(lines)):
            self._ahead.extend(chunk)
            self._bytes += sum(len(line) for _, line in chunk)
            self._tell()
            while self._bytes > _AHEAD or len(self._ahead) > _MOST_LINES:
                self._hunger = anyio.Event()
                await self._hunger.wait()
        self._is_read = True
        self._tell()

    def _next(self) -> Request | None:
        if self._later and self._later[0][0] <= anyio.current_time():
            return self._wait_no_more(heapq.heappop(self._later)[2])
        if self._returned:
            return self._returned.popleft()
        if (request := self._next_new()) is not None or not self._at_last:
            return request
        return self._wait_no_more(self._at_last.popleft())

    def _wait_no_more(self, request: Request) -> Request:
        self._waiting_bytes -= len(request.body)
        return request

    def _next_new(self) -> Request | None:
        waiting = len(self._later) + len(self._at_last)
        if waiting >= _MOST_WAITING or self._waiting_bytes >= _MOST_WAITING_BYTES:
            return None
        while self._ahead:
            number, line = self._ahead.popleft()
            self._bytes -= len(line)
            if self._bytes <= _AHEAD // 2 and len(self._ahead) <= _MOST_LINES // 2:
                self._hunger.set()
            if (found := self._reader.read(number, line)) is not None:
                return found[0]
        return None

    def _tell(self) -> None:
        self._news.set()
        self._news = anyio.Event()
        if self.is_finished:
            self._end.set()

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        try:
            self._check_same()
            for number, _, line in read_lines(self._source):
                # The bits end with the last request, and blank lines may follow.
                if not line.isspace() and not is_done(self._done, number):
                    yield number, line
            self._check_same()
        except OSError as error:
            said = f"cannot be read any more: {error.strerror}"
            raise BatchFileError(said, path=str(self._source)) from None
        except IndexError:
            # It has more lines than it had.
            self._refuse()

    def _check_same(self) -> None:
        now, then = self._source.stat(), self._status
        if (now.st_ino, now.st_size, now.st_mtime_ns) != (then.st_ino, then.st_size, then.st_mtime_ns):
            self._refuse()

    def _refuse(self) -> None:
        raise BatchFileError("it has changed since it was looked through", path=str(self._source)) from None


def _chunk(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        chunk.append((number, line))
        size += len(line)
        if size >= _CHUNK or len(chunk) >= _MOST_LINES // 2:
            break
    return chunk
