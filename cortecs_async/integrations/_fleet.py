"""A batch on many machines against instances that one program leases: what Ray and Dask have in common.

The driver leases, hands out chunks of items and collects what became of them. Workers do nothing but
inference, and hold nothing: whatever happens to one of them, its chunk is done again by another.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Sequence
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from attrs import define, field, frozen

from .. import CortecsError, InstanceHandle, InstanceLease, InvalidArgumentError, TeardownError
from ..errors import EndpointError
from ._chunk import Failure, Result

logger = logging.getLogger("cortecs_async.fleet")

T = TypeVar("T")

Submit = Callable[[InstanceHandle, list[Any]], Awaitable[list[Result]]]
"""Has a chunk done somewhere. Once it is cancelled, nobody wants the results any more."""

# Seconds that an instance rests after a chunk of which nothing was answered; twice as many after each more.
_FIRST_REST = 2.0
_LONGEST_REST = 30.0

# Seconds without an answer, from the first failure on, after which an instance is given up: as long as
# `run_batch` waits, and less where there never was one, for mostly the workers have the wrong key then.
_LONGEST_SILENCE = 180.0
_LONGEST_SILENCE_AT_FIRST = 20.0


@frozen(kw_only=True)
class Outcome(Generic[T]):
    """What became of an item.

    Attributes:
        item: The item.
        value: What `work` gave for it.
        error: Why there is no value; None when there is one.
    """

    item: T
    value: Any = None
    error: Failure | None = None


@define(eq=False)
class _Task(Generic[T]):
    item: T
    attempts: int = 0


@define(eq=False)
class _Pulse:
    """Whether an instance answers."""

    instance_id: str
    resume_at: float = 0.0
    error: EndpointError | None = None
    _rests: int = 0
    _has_answered: bool = False
    _silent_since: float | None = None

    def answered(self) -> None:
        """Something was answered."""
        self._has_answered, self._silent_since, self._rests = True, None, 0

    def failed(self, failure: Failure) -> None:
        """Nothing of a chunk was answered.

        Raises:
            EndpointError: when that has been so for too long.
        """
        now = anyio.current_time()
        if self._silent_since is None:
            self._silent_since = now
        silence = now - self._silent_since
        if silence > (_LONGEST_SILENCE if self._has_answered else _LONGEST_SILENCE_AT_FIRST):
            raise EndpointError(
                f"instance {self.instance_id} has answered nothing for {silence:.0f} s: {failure}",
                instance_id=self.instance_id,
            )
        if now >= self.resume_at:  # of chunks that fail together, one counts
            self.resume_at = now + min(_FIRST_REST * 2.0**self._rests, _LONGEST_REST)
            self._rests += 1


@define(eq=False)
class _Work(Generic[T]):
    """What is to do and what is done; whoever waits for a change of it is told."""

    most: int
    """Items that are read ahead, and outcomes that wait to be taken, at most; and what runs meanwhile."""
    fresh: deque[_Task[T]] = field(factory=deque)
    again: deque[_Task[T]] = field(factory=deque)
    ready: deque[Outcome[T]] = field(factory=deque)
    is_read: bool = False
    under_way: int = 0
    _news: asyncio.Event = field(factory=asyncio.Event)

    @property
    def is_over(self) -> bool:
        return self.is_read and not (self.fresh or self.again or self.under_way)

    async def change(self) -> None:
        await self._news.wait()

    def tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    async def read(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        """Reads ahead, in a task of its own: a generator that is cancelled with its reader gives no more."""
        source = items if isinstance(items, AsyncIterable) else _as_async(items)
        async for item in source:
            self.fresh.append(_Task(item))
            self.tell()
            while len(self.fresh) >= self.most:
                await self.change()
        self.is_read = True
        self.tell()

    def take(self, size: int) -> list[_Task[T]]:
        """A chunk: what failed before, filled up with what was never tried. Empty when there is none now."""
        chunk: list[_Task[T]] = []
        while len(chunk) < size and (self.again or self.fresh) and len(self.ready) < self.most:
            chunk.append(self.again.popleft() if self.again else self.fresh.popleft())
        if chunk:
            self.under_way += len(chunk)
            self.tell()
        return chunk

    def give_back(self, chunk: Sequence[_Task[T]]) -> None:
        """It was not done, and that says nothing of it."""
        self.under_way -= len(chunk)
        self.again.extendleft(reversed(chunk))
        self.tell()

    def settle(self, chunk: Sequence[_Task[T]], results: Sequence[Result], max_attempts: int) -> None:
        """It was done."""
        self.under_way -= len(chunk)
        for task, result in zip(chunk, results, strict=True):
            if result.failure is not None and result.failure.is_trouble:
                task.attempts += 1
                if task.attempts < max_attempts:
                    self.again.append(task)
                    continue
            self.ready.append(Outcome(item=task.item, value=result.value, error=result.failure))
        self.tell()


class FanOut(AsyncIterator[Outcome[T]], Generic[T]):
    """What `fan_out` gives: in an `async with`, an async iterator of the outcomes, as they come.

    Entering begins to lease. The iteration ends when there is an outcome for every item and all instances are
    handed back; leaving the block earlier, in whatever way, cancels what runs, and hands them back as well.
    Outcomes that nobody takes hold up the work, so that any number of items needs the same memory.
    """

    def __init__(
        self,
        submit: Submit,
        items: Iterable[T] | AsyncIterable[T],
        leases: Iterable[InstanceLease],
        *,
        chunk_size: int,
        chunks_per_instance: int,
        max_attempts: int,
    ) -> None:
        for name, number in (
            ("chunk_size", chunk_size),
            ("chunks_per_instance", chunks_per_instance),
            ("max_attempts", max_attempts),
        ):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise InvalidArgumentError(f"{name} must be a whole number from 1, not {number!r}")
        self._leases = list(leases)
        if not self._leases:
            raise InvalidArgumentError("a fan-out needs leases: [client.instance(...), ...]")
        self._submit = submit
        self._items = items
        self._chunk_size = chunk_size
        self._chunks_per_instance = chunks_per_instance
        self._max_attempts = max_attempts
        self._work: _Work[T] = _Work(chunk_size * chunks_per_instance * len(self._leases))
        self._left = len(self._leases)
        self._starting: set[anyio.CancelScope] = set()
        self._error: BaseException | None = None
        self._scope = anyio.CancelScope()
        self._main: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begins.

        Raises:
            InvalidArgumentError: when it was entered before.
        """
        if self._main is not None:
            raise InvalidArgumentError("a fan-out serves one `async with`: call fan_out(...) again")
        # Not a task group around the caller's block, which would make a group of the caller's exception.
        self._main = asyncio.create_task(self._run())
        self._main.add_done_callback(lambda _: self._work.tell())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancels what runs, and returns when all instances are handed back.

        Raises:
            CortecsError: what was wrong with a release, unless the block raised already.
        """
        main = self._main
        interruption: asyncio.CancelledError | None = None
        if main is None:
            return
        self._scope.cancel()
        while not main.done():
            try:
                await asyncio.wait([main])
            except asyncio.CancelledError as error:
                interruption = error
        if interruption is not None:
            raise interruption
        failure = None if main.cancelled() else main.exception()
        if exc is None and failure is not None:
            raise failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome[T]:
        """The next outcome.

        Raises:
            CortecsError: what ended the last of the instances, or was wrong with a release.
            Exception: what `work` or the items raised, or what kept Ray or Dask from doing a chunk.
            InvalidArgumentError: outside the block.
            StopAsyncIteration: at the end.
        """
        if self._main is None:
            raise InvalidArgumentError("take the outcomes in `async with fan_out(...) as outcomes:`")
        while not self._work.ready:
            if self._main.done():
                self._main.result()
                raise StopAsyncIteration
            await self._work.change()
        outcome = self._work.ready.popleft()
        self._work.tell()
        return outcome

    async def _run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                for lease in self._leases:
                    tasks.start_soon(self._serve, lease)
        if self._error is not None:
            raise self._error

    def _stop(self, error: BaseException) -> None:
        self._error = self._error or error
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            await self._work.read(self._items)
        except Exception as error:  # noqa: BLE001  (the caller raises it, and not in a group)
            self._stop(error)
        while not self._work.is_over:
            await self._work.change()
        # The others were faster.
        for scope in self._starting:
            scope.cancel()

    async def _serve(self, lease: InstanceLease) -> None:
        """Has an instance as long as there is work. When it goes, the others do what it had."""
        try:
            with anyio.CancelScope() as scope:
                self._starting.add(scope)
                async with lease:
                    self._starting.discard(scope)
                    await self._use(lease.handle)
        except CortecsError as error:
            self._left -= 1
            if isinstance(error, TeardownError):
                self._error = self._error or error
            if self._left or self._work.is_over:
                logger.warning("a fan-out goes on with %d instances: %s", self._left, error)
            else:
                self._stop(error)
        except Exception as error:  # noqa: BLE001  (as above)
            self._stop(error)

    async def _use(self, inst: InstanceHandle) -> None:
        pulse = _Pulse(inst.instance_id)
        async with anyio.create_task_group() as tasks:
            for _ in range(self._chunks_per_instance):
                tasks.start_soon(self._feed, inst, pulse, tasks.cancel_scope)
        if pulse.error is not None:
            raise pulse.error

    async def _feed(self, inst: InstanceHandle, pulse: _Pulse, instance: anyio.CancelScope) -> None:
        try:
            while not self._work.is_over:
                if pulse.resume_at > anyio.current_time():
                    with anyio.CancelScope(deadline=pulse.resume_at):
                        await self._work.change()
                elif chunk := self._work.take(self._chunk_size):
                    await self._do(chunk, inst, pulse)
                else:
                    await self._work.change()
        except EndpointError as error:
            pulse.error = error
            instance.cancel()
        except Exception as error:  # noqa: BLE001  (as above)
            self._stop(error)

    async def _do(self, chunk: list[_Task[T]], inst: InstanceHandle, pulse: _Pulse) -> None:
        try:
            results = await self._submit(inst, [task.item for task in chunk])
            failures = [each.failure for each in results if each.failure and each.failure.is_trouble]
            if len(failures) < len(results):
                pulse.answered()
            else:
                pulse.failed(failures[0])
        except BaseException:
            self._work.give_back(chunk)
            raise
        self._work.settle(chunk, results, self._max_attempts)


async def _as_async(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item
