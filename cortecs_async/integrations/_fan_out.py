"""A batch on many machines against instances that one program leases: the part common to Ray and Dask.

The driver leases the instances, sends chunks of items to workers, and collects the results. Workers only send
requests to the instances and own nothing, so if a worker is lost, another one does its chunk again.
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
from ._worker import Failure, Result

logger = logging.getLogger("cortecs_async.fleet")

T = TypeVar("T")

Submit = Callable[[InstanceHandle, list[Any]], Awaitable[list[Result]]]
"""Runs a chunk on some worker. Once cancelled, its results are no longer needed."""

# Seconds that an instance rests after a chunk without a single answer; doubled after each further one.
_FIRST_REST = 2.0
_LONGEST_REST = 30.0

# Seconds without an answer, from the first failure on, after which an instance counts as failed, as in
# `run_batch`. Less if the instance has never answered, because then the workers' key is usually wrong.
_SILENCE_TIMEOUT = 180.0
_INITIAL_SILENCE_TIMEOUT = 20.0


@frozen(kw_only=True)
class Outcome(Generic[T]):
    """The result of one item.

    Attributes:
        item: The item.
        value: What `work` returned for it.
        error: Why there is no value; None if there is one.
    """

    item: T
    value: Any = None
    error: Failure | None = None


@define(eq=False)
class _Task(Generic[T]):
    item: T
    attempts: int = 0


@define(eq=False)
class _InstanceHealth:
    """Tracks whether an instance answers: when to send the next chunk, and when to give up."""

    instance_id: str
    resume_at: float = 0.0
    error: EndpointError | None = None
    _rests: int = 0
    _has_answered: bool = False
    _silent_since: float | None = None

    def record_answer(self) -> None:
        """Note that at least one item of a chunk was answered."""
        self._has_answered, self._silent_since, self._rests = True, None, 0

    def record_silence(self, failure: Failure) -> None:
        """Note that no item of a chunk was answered. Raise if the instance has not answered for too long."""
        now = anyio.current_time()
        if self._silent_since is None:
            self._silent_since = now
        silence = now - self._silent_since
        if silence > (_SILENCE_TIMEOUT if self._has_answered else _INITIAL_SILENCE_TIMEOUT):
            raise EndpointError(
                f"instance {self.instance_id} has not answered for {silence:.0f} s: {failure}",
                instance_id=self.instance_id,
            )
        if now >= self.resume_at:  # chunks that fail together count as one
            self.resume_at = now + min(_FIRST_REST * 2.0**self._rests, _LONGEST_REST)
            self._rests += 1


@define(eq=False)
class _Queue(Generic[T]):
    """The items to do and their outcomes. Every change wakes those who wait for one."""

    limit: int
    """The most items to read ahead, to have in progress, and to keep as outcomes that were not taken yet."""
    unread: bool = True
    new: deque[_Task[T]] = field(factory=deque)
    retries: deque[_Task[T]] = field(factory=deque)
    in_progress: int = 0
    outcomes: deque[Outcome[T]] = field(factory=deque)
    _changed: asyncio.Event = field(factory=asyncio.Event)

    @property
    def is_done(self) -> bool:
        return not (self.unread or self.new or self.retries or self.in_progress)

    async def wait_for_change(self) -> None:
        await self._changed.wait()

    def notify(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def read(self, items: Iterable[T] | AsyncIterable[T]) -> None:
        """Read the items, up to the limit ahead.

        In one task for all items: an async generator that is cancelled together with its reader is finished.
        """
        source = items if isinstance(items, AsyncIterable) else _as_async(items)
        async for item in source:
            self.new.append(_Task(item))
            self.notify()
            while len(self.new) >= self.limit:
                await self.wait_for_change()
        self.unread = False
        self.notify()

    def take(self, size: int) -> list[_Task[T]]:
        """Take up to `size` items, failed ones first. Empty if there are none at the moment."""
        chunk: list[_Task[T]] = []
        while len(chunk) < size and (self.retries or self.new) and len(self.outcomes) < self.limit:
            chunk.append(self.retries.popleft() if self.retries else self.new.popleft())
        if chunk:
            self.in_progress += len(chunk)
            self.notify()
        return chunk

    def put_back(self, chunk: Sequence[_Task[T]]) -> None:
        """Put back a chunk that was not done. This does not count as an attempt."""
        self.in_progress -= len(chunk)
        self.retries.extendleft(reversed(chunk))
        self.notify()

    def complete(self, chunk: Sequence[_Task[T]], results: Sequence[Result], max_attempts: int) -> None:
        """Turn the results of a chunk into outcomes, or into retries where another attempt may succeed."""
        self.in_progress -= len(chunk)
        for task, result in zip(chunk, results, strict=True):
            if result.failure is not None and result.failure.is_trouble:
                task.attempts += 1
                if task.attempts < max_attempts:
                    self.retries.append(task)
                    continue
            self.outcomes.append(Outcome(item=task.item, value=result.value, error=result.failure))
        self.notify()


class FanOut(AsyncIterator[Outcome[T]], Generic[T]):
    """What `fan_out` returns: an async context manager and an async iterator of outcomes, as they come.

    Entering begins to lease. The iteration ends once every item has an outcome and all instances are
    released. However you leave the block, running chunks are cancelled and all instances are released.
    Outcomes that you do not take hold up the work, so memory does not grow with the number of items.
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
                raise InvalidArgumentError(f"{name} must be a whole number of at least 1, not {number!r}")
        self._leases = list(leases)
        if not self._leases:
            raise InvalidArgumentError("fan_out needs at least one lease: [client.instance(...), ...]")
        self._submit = submit
        self._items = items
        self._chunk_size = chunk_size
        self._chunks_per_instance = chunks_per_instance
        self._max_attempts = max_attempts
        self._queue: _Queue[T] = _Queue(chunk_size * chunks_per_instance * len(self._leases))
        self._num_alive = len(self._leases)
        self._starting: set[anyio.CancelScope] = set()
        self._error: BaseException | None = None
        self._scope = anyio.CancelScope()
        self._main: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Begin to start the instances.

        Raises:
            InvalidArgumentError: If it was entered before.
        """
        if self._main is not None:
            raise InvalidArgumentError("this fan-out was entered before: call fan_out(...) again")
        # Not a task group around the caller's block, which would put the caller's exception into a group.
        self._main = asyncio.create_task(self._run())
        self._main.add_done_callback(lambda _: self._queue.notify())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel running chunks, and return once all instances are released.

        Raises:
            CortecsError: If a release failed, unless the block has raised already.
        """
        if self._main is None:
            return
        self._scope.cancel()
        cancellation: asyncio.CancelledError | None = None
        # Without the shield, a cancelled scope of anyio would cancel this at every turn of the loop.
        with anyio.CancelScope(shield=True):
            while not self._main.done():
                try:
                    await asyncio.wait([self._main])
                except asyncio.CancelledError as error:
                    cancellation = error
        if cancellation is not None:
            raise cancellation
        failure = None if self._main.cancelled() else self._main.exception()
        if exc is None and failure is not None:
            raise failure

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome[T]:
        """Return the next outcome.

        Raises:
            CortecsError: The error of the last instance to end, or of a release that failed.
            Exception: Any error of `work` or the items, or of Ray or Dask if they cannot run a chunk.
            InvalidArgumentError: Outside the block.
            StopAsyncIteration: At the end.
        """
        if self._main is None:
            raise InvalidArgumentError("take the outcomes in `async with fan_out(...) as outcomes:`")
        while not self._queue.outcomes:
            if self._main.done():
                self._main.result()
                raise StopAsyncIteration
            await self._queue.wait_for_change()
        outcome = self._queue.outcomes.popleft()
        self._queue.notify()
        return outcome

    async def _run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._read)
                for lease in self._leases:
                    tasks.start_soon(self._serve, lease)
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        """Stop all tasks with this error. Raising it in a task would create an exception group."""
        self._error = self._error or error
        self._scope.cancel()

    async def _read(self) -> None:
        try:
            await self._queue.read(self._items)
        except Exception as error:  # noqa: BLE001  (see `_fail`)
            self._fail(error)
        while not self._queue.is_done:
            await self._queue.wait_for_change()
        # Instances that are still starting are no longer needed.
        for scope in self._starting:
            scope.cancel()

    async def _serve(self, lease: InstanceLease) -> None:
        """Hold an instance while there is work. If it ends early, the others take over its chunks."""
        try:
            with anyio.CancelScope() as scope:
                self._starting.add(scope)
                async with lease:
                    self._starting.discard(scope)
                    await self._use(lease.handle)
        except CortecsError as error:
            self._num_alive -= 1
            if isinstance(error, TeardownError):
                self._error = self._error or error
            if self._num_alive or self._queue.is_done:
                logger.warning("a fan-out continues with %d instances: %s", self._num_alive, error)
            else:
                self._fail(error)
        except Exception as error:  # noqa: BLE001  (see `_fail`)
            self._fail(error)

    async def _use(self, inst: InstanceHandle) -> None:
        health = _InstanceHealth(inst.instance_id)
        async with anyio.create_task_group() as tasks:
            for _ in range(self._chunks_per_instance):
                tasks.start_soon(self._send_chunks, inst, health, tasks.cancel_scope)
        if health.error is not None:
            raise health.error

    async def _send_chunks(
        self, inst: InstanceHandle, health: _InstanceHealth, instance_scope: anyio.CancelScope
    ) -> None:
        try:
            while not self._queue.is_done:
                if health.resume_at > anyio.current_time():
                    with anyio.CancelScope(deadline=health.resume_at):
                        await self._queue.wait_for_change()
                elif chunk := self._queue.take(self._chunk_size):
                    await self._send(chunk, inst, health)
                else:
                    await self._queue.wait_for_change()
        except EndpointError as error:
            health.error = error
            instance_scope.cancel()
        except Exception as error:  # noqa: BLE001  (see `_fail`)
            self._fail(error)

    async def _send(self, chunk: list[_Task[T]], inst: InstanceHandle, health: _InstanceHealth) -> None:
        try:
            results = await self._submit(inst, [task.item for task in chunk])
            failures = [result.failure for result in results if result.failure and result.failure.is_trouble]
            if len(failures) < len(results):
                health.record_answer()
            else:
                health.record_silence(failures[0])
        except BaseException:
            self._queue.put_back(chunk)
            raise
        self._queue.complete(chunk, results, self._max_attempts)


async def _as_async(items: Iterable[T]) -> AsyncIterator[T]:
    for item in items:
        yield item
