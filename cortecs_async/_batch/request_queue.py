"""The queue of unanswered requests, shared by all instances of a batch, and the base of all queues.

The queue reads the input ahead as workers take requests. Requests that come back, from a lost instance or for
another attempt, go ahead of new ones. Only after a timeout do they go last. Suspects (see `suspects`) are
kept for a test.
"""

from __future__ import annotations

import heapq
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Generic, TypeVar

import anyio
from attrs import define, field
from typing_extensions import override

from .._aio import threads
from .._aio.synchronization import Broadcast
from .._errors import BatchFileError
from .format import Request, RequestParser
from .index import is_done
from .outcome import FailedAttempt
from .reader import file_errors, read_input

T = TypeVar("T")

# Lines to read ahead, and bytes to read at a time.
_MAX_BUFFER_BYTES = 8 << 20
_MAX_BUFFER_LINES = 2048
_CHUNK_BYTES = 1 << 20

# Failed requests that can wait for another attempt. With more of them, no new request is taken.
_MAX_RETRIES = 512
_MAX_RETRY_BYTES = 16 << 20

# With this many requests left, a batch is nearly finished.
_FEW = 8

# With this many suspects, no new requests are sent until the suspects are tested. Fewer are tested once there
# is no other work, because a test waits until the requests in flight have ended.
_MAX_SUSPECTS = 64


@define(eq=False)
class WorkQueue(Generic[T]):
    """Hands out items to workers. Items can come back and then go ahead of new ones.

    Attributes:
        changed: Wakes waiting tasks at every change.
        finished: Set once all items are done.
    """

    _is_read: bool = field(default=False, init=False)
    _returned: deque[T] = field(factory=deque, init=False)
    _delayed: list[tuple[float, int, T]] = field(factory=list, init=False)
    _order: Iterator[int] = field(factory=itertools.count, init=False)
    _in_progress: int = field(default=0, init=False)
    changed: Broadcast = field(factory=Broadcast, init=False)
    finished: anyio.Event = field(factory=anyio.Event, init=False)

    @property
    def is_finished(self) -> bool:
        has_returned = self._returned or self._delayed
        return self._is_read and not (has_returned or self._in_progress or self._has_more())

    async def wait_for_change(self) -> None:
        """Wait until an item may be available or all items are done."""
        with anyio.CancelScope(deadline=self._delayed[0][0] if self._delayed else float("inf")):
            await self.changed.wait()

    def get_nowait(self) -> T | None:
        item = self._next()
        if item is not None:
            self._in_progress += 1
        return item

    def task_done(self) -> None:
        self._in_progress -= 1
        if self.is_finished:
            self.notify()

    def put_back(self, item: T) -> None:
        """Put back an item after an interrupted attempt."""
        self._returned.append(item)
        self._requeued(item)

    def retry_later(self, item: T, seconds: float) -> None:
        heapq.heappush(self._delayed, (anyio.current_time() + seconds, next(self._order), item))
        self._requeued(item)

    def notify(self) -> None:
        self.changed.notify()
        if self.is_finished:
            self.finished.set()

    def _requeued(self, item: T) -> None:  # noqa: ARG002  (for subclasses)
        self._in_progress -= 1
        self.notify()

    def _next_returned(self) -> T | None:
        """Take an item that has come back."""
        if self._delayed and self._delayed[0][0] <= anyio.current_time():
            return heapq.heappop(self._delayed)[2]
        return self._returned.popleft() if self._returned else None

    def _next(self) -> T | None:
        """Take the next item, if one is available."""
        raise NotImplementedError

    def _has_more(self) -> bool:
        """Return whether there are any items besides the ones that came back."""
        raise NotImplementedError


@define(eq=False)
class RequestQueue(WorkQueue[Request]):
    """Hands out the unanswered requests of an input.

    Args:
        source: The input.
        parser: Parses its lines.
        done: A bit for each line. It is set if the line is already answered.
        status: The status of the input when `done` was computed.

    Attributes:
        undecided: Requests in progress waiting for a verdict on their failures, each with its last failure.
    """

    _source: Path
    _parser: RequestParser
    _done: bytearray
    _status: os.stat_result
    _buffer: deque[tuple[int, bytes]] = field(factory=deque)
    _buffer_bytes: int = 0
    _last: deque[Request] = field(factory=deque)
    _suspects: list[Request] = field(factory=list)
    _is_testing: bool = False
    _retry_bytes: int = 0  # of `_returned`, `_delayed`, `_last` and `_suspects`
    undecided: dict[Request, FailedAttempt] = field(factory=dict)
    _drained: Broadcast = field(factory=Broadcast)

    def retry_last(self, request: Request) -> None:
        """Retry a request after all others, because its attempts are slow and mostly fail."""
        self._last.append(request)
        self._requeued(request)

    def add_suspect(self, request: Request) -> None:
        """Keep a request for a test with no other requests in flight."""
        self._suspects.append(request)
        self._requeued(request)

    @property
    def is_nearly_finished(self) -> bool:
        waiting = len(self._returned) + len(self._delayed) + len(self._last) + len(self._suspects)
        return self._is_read and not self._buffer and self._in_progress + waiting <= _FEW

    def has_test(self) -> bool:
        """Return whether there are suspects and no instance is testing."""
        return bool(self._suspects) and not self._is_testing

    def begin_test(self) -> None:
        """Let no other instance test suspects until `end_test`."""
        self._is_testing = True

    def take_suspects(self) -> list[Request]:
        """Return all suspects. From now on, they are in progress."""
        suspects, self._suspects = self._suspects, []
        self._in_progress += len(suspects)
        self._retry_bytes -= sum(len(request.body) for request in suspects)
        return suspects

    def end_test(self, untested: Iterable[Request]) -> None:
        """End a test. Suspects left untested can be tested on any instance."""
        self._is_testing = False
        for request in untested:
            self.add_suspect(request)
        self.notify()

    @override
    def _requeued(self, item: Request) -> None:
        self._retry_bytes += len(item.body)
        super()._requeued(item)

    @override
    def _has_more(self) -> bool:
        return bool(self._buffer or self._last or self._suspects)

    async def read(self) -> None:
        """Read ahead until the end of the input."""
        lines = read_unanswered(self._source, self._parser.path, self._done, self._status)
        while chunk := await threads.run_in_thread(lambda: _read_chunk(lines)):
            self._buffer.extend(chunk)
            self._buffer_bytes += sum(len(line) for _, line in chunk)
            self.notify()
            while self._buffer_bytes > _MAX_BUFFER_BYTES or len(self._buffer) > _MAX_BUFFER_LINES:
                await self._drained.wait()
        self._is_read = True
        self.notify()

    @override
    def _next(self) -> Request | None:
        request = self._next_returned()
        if request is None:
            if (new := self._next_new()) is not None or not self._last:
                return new
            request = self._last.popleft()
        self._retry_bytes -= len(request.body)
        return request

    def _next_new(self) -> Request | None:
        waiting = len(self._delayed) + len(self._last) + len(self._suspects) + len(self.undecided)
        if waiting >= _MAX_RETRIES or self._retry_bytes >= _MAX_RETRY_BYTES:
            return None
        if len(self._suspects) >= _MAX_SUSPECTS and not self._is_testing:
            return None
        while self._buffer:
            number, line = self._buffer.popleft()
            self._buffer_bytes -= len(line)
            if self._buffer_bytes <= _MAX_BUFFER_BYTES // 2 and len(self._buffer) <= _MAX_BUFFER_LINES // 2:
                self._drained.notify()
            if (found := self._parser.parse(number, line)) is not None:
                return found[0]
        return None


def read_unanswered(
    source: Path, name: str, done: bytearray, status: os.stat_result
) -> Iterator[tuple[int, bytes]]:
    """Yield the number and text of each line of an input that is not `done`. `name` is for error messages.

    Raises:
        BatchFileError: The input cannot be read, or its status is no longer the `status` from when `done` was
            computed.
    """
    try:
        with file_errors("cannot be read", name):
            _check_unchanged(source, name, status)
            for line in read_input(source, name):
                if not is_done(done, line.number):
                    yield line.number, line.text
            _check_unchanged(source, name, status)
    except IndexError:
        # The input has more lines than before.
        raise _changed_error(name) from None


def _check_unchanged(source: Path, name: str, then: os.stat_result) -> None:
    now = source.stat()
    if (now.st_ino, now.st_size, now.st_mtime_ns) != (then.st_ino, then.st_size, then.st_mtime_ns):
        raise _changed_error(name)


def _changed_error(name: str) -> BatchFileError:
    return BatchFileError("the input has changed since the batch started. Run the batch again.", path=name)


def _read_chunk(lines: Iterator[tuple[int, bytes]]) -> list[tuple[int, bytes]]:
    chunk: list[tuple[int, bytes]] = []
    size = 0
    for number, line in lines:
        chunk.append((number, line))
        size += len(line)
        if size >= _CHUNK_BYTES or len(chunk) >= _MAX_BUFFER_LINES // 2:
            break
    return chunk
