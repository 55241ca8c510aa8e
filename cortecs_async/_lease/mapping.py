"""`inst.map`: call an async function for every item of a stream, with limited concurrency.

The calls run in a task group inside a task of their own. A task group around a `yield` would cancel the wrong
code, and the caller holds a plain object that can be dropped at any point.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup
from attrs import define, field

from .._aio.eventloop import in_trio
from .._aio.synchronization import Broadcast
from .._errors import InvalidArgumentError

T = TypeVar("T")
R = TypeVar("R")

# Seconds that the end of a lease waits for calls that ignore cancellation.
_JOIN_TIMEOUT = 5.0


class Maps:
    """The maps of one endpoint, which are cancelled with its lease."""

    def __init__(self) -> None:
        self.over: bool = False
        self.runs: set[_Run[Any, Any]] = set()

    def stop(self) -> None:
        """Cancel all maps soon, and let no new one begin."""
        self.over = True
        for run in list(self.runs):
            run.stop_soon()

    async def join(self) -> None:
        """Wait until all maps have ended, for 5 seconds at most, shielded from cancellation."""
        with anyio.move_on_after(_JOIN_TIMEOUT, shield=True):
            for run in list(self.runs):
                await run.wait_until_over()


_MAPS: WeakKeyDictionary[object, Maps] = WeakKeyDictionary()
# An event loop holds its tasks weakly.
_RUNNING: set[_Run[Any, Any]] = set()


def maps_of(endpoint: object) -> Maps:
    """Return the maps of an endpoint, which must be hashable."""
    return _MAPS.setdefault(endpoint, Maps())


class Results(AsyncIterator[R], Generic[R]):
    """The results of a map, for `async for`.

    No call begins before you request the first result. If you stop early, the running calls are cancelled:
    soon after the last reference is dropped (`break` from `async for ... in inst.map(...)` is enough), or
    immediately with `aclose` or `async with`, which return when all calls have ended. Several tasks may take
    results from the same map.
    """

    def __init__(self, run: _Run[Any, R]) -> None:
        self._run = run
        self._closed = False
        self._context = contextvars.copy_context()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        """Return the next result.

        Raises:
            Exception: if the function or the items raise. The other calls have been cancelled and have ended.
            InvalidArgumentError: if the lease has ended.
            StopAsyncIteration: if there are no more results.
        """
        run = self._run
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._closed:
            if not run.started:
                self._context.run(run.start)
            if run.has_next():
                value, error = run.take()
                if error is None:
                    return cast("R", value)
                if run.returns_error(error):
                    return cast("R", error)
                await self._fail(error)
            if run.exhausted():
                if run.source_error is not None:
                    await self._fail(run.source_error)
                break
            if run.over:
                raise InvalidArgumentError("this map was cancelled because its lease or event loop ended")
            await run.changed.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancel the running calls and wait until they have ended. You can call it again."""
        self._closed = True
        if self._run.started:
            self._run.stop()
            self._run.changed.notify()
            await self._run.wait_until_over()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _fail(self, error: BaseException) -> None:
        await self.aclose()
        try:
            if isinstance(error, StopAsyncIteration):
                # It would end the caller's loop without an error.
                raise RuntimeError("the function of a map raised StopAsyncIteration") from error  # noqa: TRY004
            raise error
        finally:
            # Its traceback holds this frame.
            del error

    def __del__(self) -> None:
        # The constructor may have failed.
        run: _Run[Any, R] | None = getattr(self, "_run", None)
        if run is not None and run.started and not run.over:
            run.stop_soon()


def new_map(
    endpoint: object,
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    concurrency: int,
    *,
    ordered: bool,
    return_exceptions: bool,
) -> Results[R]:
    """Return the results of a map that begins when the first result is requested."""
    maps = maps_of(endpoint)
    if not callable(fn):
        raise InvalidArgumentError(f"fn must be an async function, not {fn!r}")
    if maps.over:
        raise InvalidArgumentError("the lease has ended. Call map inside its `async with` block")
    source: AsyncIterator[T] | Iterator[T]
    try:
        source = items.__aiter__() if isinstance(items, AsyncIterable) else iter(items)
    except TypeError:
        raise InvalidArgumentError(f"map needs an iterable or async iterable, not {items!r}") from None
    return Results(_Run(fn, source, maps, concurrency, ordered, return_exceptions))


@define(eq=False)
class _Run(Generic[T, R]):
    """The running calls of a map. They hold no reference to `Results`, which can be dropped at any time."""

    _fn: Callable[[T], Awaitable[R]] | None
    _source: AsyncIterator[T] | Iterator[T] | None
    _maps: Maps
    _concurrency: int
    _ordered: bool
    _return_exceptions: bool
    started: bool = False
    over: bool = False
    changed: Broadcast = field(factory=Broadcast)  # a result is ready, or the map has ended
    source_error: BaseException | None = None
    _room: Broadcast = field(factory=Broadcast)
    _ended: Broadcast = field(factory=Broadcast)
    # Results not yet taken, by position.
    _done: dict[int, tuple[R | None, BaseException | None]] = field(factory=dict)
    _begun: int = 0
    _running: int = 0
    _completed: int = 0
    _taken: int = 0
    _all_begun: bool = False
    _failed: bool = False
    _stopped: bool = False
    _scope: anyio.CancelScope = field(init=False)
    _call_soon: Callable[..., object] = field(init=False)
    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, in the context of the caller."""
        if self._maps.over:
            raise InvalidArgumentError(
                "the lease has ended. Iterate over the results inside its `async with` block"
            )
        self._maps.runs.add(self)
        self._scope = anyio.CancelScope()
        if in_trio():
            import trio  # noqa: PLC0415  (optional, but installed if this code runs)

            self._call_soon = trio.lowlevel.current_trio_token().run_sync_soon
            trio.lowlevel.spawn_system_task(self._main, context=contextvars.copy_context())
        else:
            loop = asyncio.get_running_loop()
            self._call_soon = loop.call_soon_threadsafe
            self._task = loop.create_task(self._main())
            # A task that is cancelled before its first step never runs its own `finally`.
            self._task.add_done_callback(lambda _: self._end())
        self.started = True
        _RUNNING.add(self)

    def stop(self) -> None:
        """Cancel the calls. Call this on the event loop."""
        self._stopped = True
        self._scope.cancel()

    def stop_soon(self) -> None:
        """Cancel the calls. Call this from any thread: the garbage collector runs anywhere."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the calls have ended with it
            self._call_soon(self.stop)

    async def wait_until_over(self) -> None:
        while not self.over:
            await self._ended.wait()

    def has_next(self) -> bool:
        return self._taken in self._done

    def take(self) -> tuple[R | None, BaseException | None]:
        taken = self._done.pop(self._taken)
        self._taken += 1
        self._room.notify()
        return taken

    def returns_error(self, error: BaseException) -> bool:
        return self._return_exceptions and isinstance(error, Exception)

    def exhausted(self) -> bool:
        return self._all_begun and self._taken == self._begun

    async def _main(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    await self._feed(tasks)
        finally:
            self._end()

    def _end(self) -> None:
        self.over = True
        # They may refer to this object.
        self._fn = self._source = None
        _RUNNING.discard(self)
        self._maps.runs.discard(self)
        self.changed.notify()
        self._ended.notify()

    async def _feed(self, tasks: TaskGroup) -> None:
        while True:
            while not (self._has_room() or self._failed or self._stopped):
                await self._room.wait()
            # After a failure, later results are never taken.
            if self._failed or self._stopped:
                return
            try:
                item = await self._next_item()
            except (StopIteration, StopAsyncIteration):
                break
            except anyio.get_cancelled_exc_class():
                raise
            except BaseException as error:  # noqa: BLE001  (trio would crash; the caller raises it)
                self.source_error = error
                break
            self._running += 1
            tasks.start_soon(self._work, self._begun, item)
            self._begun += 1
        self._all_begun = True
        self.changed.notify()

    def _has_room(self) -> bool:
        limit = self._concurrency
        return self._running < limit and self._begun - self._taken < 2 * limit

    async def _next_item(self) -> T:
        if isinstance(self._source, AsyncIterator):
            return await self._source.__anext__()
        try:
            return next(cast("Iterator[T]", self._source))
        except StopIteration:
            # StopIteration cannot leave a coroutine.
            raise StopAsyncIteration from None

    async def _work(self, index: int, item: T) -> None:
        value: R | None = None
        failure: BaseException | None = None
        try:
            value = await cast("Callable[[T], Awaitable[R]]", self._fn)(item)
        except anyio.get_cancelled_exc_class() as error:
            # On asyncio, it may also come from a future that was cancelled inside the call.
            if self._stopped or in_trio():
                raise
            failure = error
        except BaseException as error:  # noqa: BLE001  (as above)
            failure = error
        self._running -= 1
        self._done[index if self._ordered else self._completed] = value, failure
        self._completed += 1
        if failure is not None and not self.returns_error(failure):
            self._failed = True
        self._room.notify()
        if self.has_next():
            self.changed.notify()
