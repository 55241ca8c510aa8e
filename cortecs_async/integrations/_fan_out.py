"""Run a batch on many machines, on instances that one program leases. The common part of Ray and Dask.

The driver leases the instances, sends chunks of items to workers, and collects the results. Workers only send
requests to the instances and own nothing, so if a worker is lost, another worker repeats its chunk.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import anyio
from anyio.abc import TaskGroup

from .. import CortecsError, InstanceHandle, InstanceLease, InvalidArgumentError, TeardownError
from .._aio.feeds import Feed
from .._aio.tasks import TaskResult, UserTask, is_cancellation
from .._batch.outcome import retry_delay
from .._hints import hinted
from .._lease.endpoint import counted
from ..errors import EndpointError
from ._fan_out_queue import FanOutInstance, FanOutQueue, Outcome, Task
from ._worker import Result

logger = logging.getLogger("cortecs_async.fleet")

T = TypeVar("T")

Submit = Callable[[InstanceHandle, list[Any]], Awaitable[list[Result]]]
"""Runs a chunk on some worker. After a cancellation, the results are no longer needed."""

# Seconds for the items to clean up, once all instances are released.
_CLOSE_TIMEOUT = 5.0

# Seconds that the instances may be down before all attempts of the last items count, because no other items
# are left that could show whether an instance responds.
_LAST_ITEMS_TIMEOUT = 30.0


@hinted
class FanOut(AsyncIterator[Outcome[T]], Generic[T]):
    """A batch on a cluster, returned by `fan_out`. Enter it with `async with` and iterate over the outcomes.

    Outcomes come in the order in which the items are finished. If you do not take them, the work pauses, so
    memory does not grow with the number of items. The iteration ends once every item has an outcome and all
    instances are released.

    Entering the block starts reading the items. The first lease starts with the first item. Each further
    lease starts when more items are waiting than the instances so far have room for. However you leave the
    block, running chunks are cancelled, all instances are released, and the iterator of the items is closed.

    Example:
        async def shout(inst, items):
            return [item.upper() for item in items]  # here you send requests to inst.base_url

        leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
        async with fan_out(shout, ["sky", "grass"], leases) as outcomes:
            async for outcome in outcomes:
                print(outcome.item, outcome.value)
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
        self._leases = [] if isinstance(leases, InstanceLease) else list(leases)
        if not self._leases:
            raise InvalidArgumentError("Pass fan_out a list of leases: [client.instance(...), ...]")
        self._submit = submit
        self._feed = Feed("a fan-out", items)
        self._chunk_size = chunk_size
        self._chunks_per_instance = chunks_per_instance
        self._max_attempts = max_attempts
        self._queue: FanOutQueue[T] = FanOutQueue(chunk_size * chunks_per_instance * len(self._leases))
        self._num_left = len(self._leases)
        self._starting: set[anyio.CancelScope] = set()
        self._in_use: set[FanOutInstance] = set()
        self._error: BaseException | None = None
        self._scope = anyio.CancelScope()
        self._reader = UserTask(
            self._feed.name, self._read, self._end_reading, lambda _: self._has_read.set()
        )
        self._has_read = anyio.Event()
        self._main: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start reading the items.

        Raises:
            InvalidArgumentError: If the block was entered before.
        """
        if self._main is not None:
            raise InvalidArgumentError("This fan-out was already entered. Call fan_out(...) again.")
        # Not a task group around the caller's block, which would put the caller's exception into a group.
        self._reader.start()
        self._main = asyncio.create_task(self._run())
        self._main.add_done_callback(lambda _: self._queue.notify())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel running chunks, stop reading the items, and return once all instances are released.

        The iterator of the items gets 5 more seconds to clean up.

        Raises:
            CortecsError: If a release failed. If the block raised, a note is added to its exception instead.
            Exception: Likewise, if the iterator of the items raises while it is closed.
        """
        if self._main is None:
            return
        self._stop()
        cancellation: asyncio.CancelledError | None = None
        # Without the shield, a cancelled scope of anyio would cancel this at every turn of the event loop.
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
        if exc is not None and failure is not None and failure is not exc:
            exc.add_note(f"cortecs_async: Ending the fan-out raised {failure!r}")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Outcome[T]:
        """Return the next outcome.

        Raises:
            CortecsError: The error of the last instance, or of a failed release.
            Exception: Any error from `work` or the items, or from Ray or Dask if they cannot run a chunk.
            InvalidArgumentError: Outside the block.
            StopAsyncIteration: At the end.
        """
        if self._main is None:
            raise InvalidArgumentError("Take the outcomes inside `async with fan_out(...) as outcomes:`.")
        while not self._queue.outcomes:
            if self._main.done():
                self._main.result()
                raise StopAsyncIteration
            await self._queue.changed.wait()
        outcome = self._queue.outcomes.popleft()
        self._queue.notify()
        return outcome

    async def to_list(self) -> list[Outcome[T]]:
        """Return a list of all outcomes not taken yet.

        Raises:
            Exception: The same errors as the iteration.

        Example:
            async def shout(inst, items):
                return [item.upper() for item in items]

            leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
            async with fan_out(shout, ["sky", "grass"], leases) as outcomes:
                print(await outcomes.to_list())
        """
        return [outcome async for outcome in self]

    async def _run(self) -> None:
        with self._scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._lease, tasks)
                await self._queue.finished.wait()
                # Instances that are still starting are no longer needed.
                for scope in self._starting:
                    scope.cancel()
        with anyio.move_on_after(_CLOSE_TIMEOUT):
            await self._has_read.wait()
        if self._error is not None:
            raise self._error

    def _fail(self, error: BaseException) -> None:
        """Stop all tasks with this error. Raising it in a task would create an exception group."""
        self._error = self._error or error
        self._stop()

    def _stop(self) -> None:
        self._scope.cancel()
        self._reader.cancel()

    async def _read(self) -> None:
        await self._queue.read(self._feed)

    async def _end_reading(self, read: TaskResult[None]) -> None:
        if read.error is None and not self._scope.cancel_called:
            self._queue.end_reading()
        error = await self._feed.close(None if read.interruption else read.error)
        if error is not None and self._main is not None and self._main.done():
            logger.error("Closing the items of a fan-out raised an error after it ended", exc_info=error)
        elif error is not None and self._error is not None:
            self._error.add_note(f"cortecs_async: Closing {self._feed.name} raised {error!r}")
        elif error is not None or read.interruption is not None:
            self._error = error
            self._stop()

    async def _lease(self, tasks: TaskGroup) -> None:
        """Start a lease whenever there are items that the running instances have no room for."""
        for lease in self._leases:
            while self._queue.is_full or self._queue.num_waiting <= self._room:
                if self._queue.is_finished:
                    return
                await self._queue.changed.wait()
            scope = anyio.CancelScope()
            self._starting.add(scope)
            tasks.start_soon(self._serve, lease, scope)

    @property
    def _room(self) -> int:
        """The number of items the instances can still take once they run, even if they are down."""
        chunks = self._chunks_per_instance * (len(self._starting) + len(self._in_use))
        return self._chunk_size * (chunks - sum(inst.chunks for inst in self._in_use))

    async def _serve(self, lease: InstanceLease, scope: anyio.CancelScope) -> None:
        """Hold an instance while there is work. If it ends early, other leases take over its chunks."""
        try:
            with scope:
                async with lease:
                    self._starting.discard(scope)
                    await self._use(lease.handle)
        except CortecsError as error:
            self._num_left -= 1
            if isinstance(error, TeardownError):
                self._error = self._error or error
            if self._num_left or self._queue.is_finished:
                logger.warning("Continuing a fan-out with %d of its leases: %s", self._num_left, error)
            else:
                self._fail(error)
        except Exception as error:  # noqa: BLE001  (see `_fail`)
            self._fail(error)
        finally:
            self._starting.discard(scope)
            self._queue.notify()

    async def _use(self, handle: InstanceHandle) -> None:
        inst = FanOutInstance(handle)
        self._in_use.add(inst)
        try:
            async with anyio.create_task_group() as tasks:
                for _ in range(self._chunks_per_instance):
                    tasks.start_soon(self._send_chunks, inst, tasks.cancel_scope)
        finally:
            self._in_use.discard(inst)
            self._queue.notify()
        if inst.error is None:
            return
        if inst.is_key_rejected and all(each.health.down_since is not None for each in self._in_use):
            self._fail(inst.error)  # the next instance would reject it too
        raise inst.error

    async def _send_chunks(self, inst: FanOutInstance, instance_scope: anyio.CancelScope) -> None:
        try:
            while not self._queue.is_finished:
                probe_at = math.inf if inst.is_probing else inst.probe_at
                if inst.health.down_since is not None and probe_at > anyio.current_time():
                    with anyio.CancelScope(deadline=probe_at):
                        await self._queue.changed.wait()
                elif chunk := self._queue.take(self._chunk_size):
                    await self._send(chunk, inst)
                elif self._queue.is_full:
                    await self._queue.changed.wait()
                else:
                    await self._queue.wait_for_change()
        except EndpointError as error:
            inst.error = error
            instance_scope.cancel()
        except Exception as error:  # noqa: BLE001  (see `_fail`)
            self._fail(error)

    async def _send(self, chunk: list[Task[T]], inst: FanOutInstance) -> None:
        began, is_probe = anyio.current_time(), inst.health.down_since is not None
        inst.chunks += 1
        inst.is_probing |= is_probe
        try:
            try:
                submit = counted(inst.handle, self._submit)
                results = await submit(inst.handle, [task.item for task in chunk])
            except asyncio.CancelledError as error:
                # A Ray or Dask future may have been cancelled, for example because the cluster shut down.
                if is_cancellation(error):
                    raise
                raise RuntimeError("A chunk was cancelled by code outside its fan-out") from error
            finally:
                inst.chunks -= 1
                inst.is_probing &= not is_probe
            now = anyio.current_time()
            failures = [result.failure for result in results if result.failure and result.failure.is_trouble]
            if len(failures) < len(results):
                inst.health.record_success(now)
            else:
                inst.record_silence(failures[0], began, now)
        except BaseException as error:
            # After any other error from `work`, the fan-out ends, and no sender may call `work` again.
            if isinstance(error, EndpointError) or not isinstance(error, Exception):
                for task in chunk:
                    self._queue.put_back(task)
            raise
        # One delay for all of them, so that they stay one chunk.
        delay = retry_delay(max(task.failures for task in chunk))
        for task, result in zip(chunk, results, strict=True):
            if self._may_be_retried(task, result, inst, began, now):
                self._queue.retry_later(task, delay)
            else:
                self._queue.complete(task, result)
        self._queue.notify()

    def _may_be_retried(
        self, task: Task[T], result: Result, inst: FanOutInstance, began: float, now: float
    ) -> bool:
        if result.failure is None or not result.failure.is_trouble:
            return False
        answered_others = inst.health.last_success >= (began if task.failed_at is None else task.failed_at)
        task.failed_at = now
        task.failures += 1
        task.own_failures += answered_others
        has_control = self._queue.has_new or any(each.health.down_since is None for each in self._in_use)
        is_blamed = not has_control and inst.health.down_seconds(now) >= _LAST_ITEMS_TIMEOUT
        return (task.failures if is_blamed else task.own_failures) < self._max_attempts
