"""Calls an async function for every item of a stream, so many at once and no more.

The calls run in a task of their own, with a task group inside it: a group around a `yield` would cancel the
wrong code, and what the caller holds is a plain object that can be dropped at any point.
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

from .._aio.eventloop import in_trio
from .._errors import InvalidArgumentError

T = TypeVar("T")
R = TypeVar("R")

LEAVE_SECONDS = 5.0
"""How long the end of a lease waits for calls that do not mind their cancellation."""


class Maps:
    """The maps of one endpoint, which end with it."""

    def __init__(self) -> None:
        self.over: bool = False
        self.runs: set[_Run[Any, Any]] = set()

    def stop(self) -> None:
        """Ends all of them, soon, and lets none begin any more."""
        self.over = True
        for run in list(self.runs):
            run.stop_soon()

    async def join(self) -> None:
        """Waits until they have ended, whatever becomes of the caller meanwhile, but not for ever."""
        with anyio.move_on_after(LEAVE_SECONDS, shield=True):
            for run in list(self.runs):
                await run.wait_until_over()


_MAPS: WeakKeyDictionary[object, Maps] = WeakKeyDictionary()
# An event loop knows its tasks weakly; somebody must hold them until they have ended.
_RUNNING: set[_Run[Any, Any]] = set()


def maps_of(endpoint: object) -> Maps:
    """The maps of an endpoint, which must be hashable."""
    return _MAPS.setdefault(endpoint, Maps())


class Results(AsyncIterator[R], Generic[R]):
    """The results of a map, to be had with `async for`.

    Nothing runs before the first is asked for. Leaving early cancels what runs: soon when the last reference
    goes (a `break` from `async for ... in inst.map(...)` is enough); after `aclose` or `async with` it has
    ended. Several tasks may take from the same map.
    """

    def __init__(self, run: _Run[Any, R], maps: Maps) -> None:
        self._run = run
        self._maps = maps
        self._closed = False
        self._context = contextvars.copy_context()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> R:
        """The next result.

        Raises:
            Exception: what the function or the items raised; all that runs is cancelled then, and has ended.
            InvalidArgumentError: when the lease was left before this.
            StopAsyncIteration: at the end.
        """
        run = self._run
        await anyio.lowlevel.checkpoint_if_cancelled()
        while not self._closed:
            if not run.started:
                self._start()
            if run.has_next():
                value, error = run.take()
                if error is None:
                    return cast("R", value)
                if run.gives_back(error):
                    return cast("R", error)
                await self._fail(error)
            if run.exhausted():
                if run.source_error is not None:
                    await self._fail(run.source_error)
                break
            if run.over:
                raise InvalidArgumentError("this map was cancelled: its lease or its event loop has ended")
            await run.news.wait()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Cancels what still runs, and returns when it has ended. To close twice is harmless."""
        self._closed = True
        if self._run.started:
            self._run.stop()
            self._run.news.fire()
            await self._run.wait_until_over()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def _start(self) -> None:
        if self._maps.over:
            raise InvalidArgumentError("the lease of this map was left: take the results inside its block")
        self._maps.runs.add(self._run)
        self._context.run(self._run.start, self._maps)

    async def _fail(self, error: BaseException) -> None:
        await self.aclose()
        try:
            if isinstance(error, StopAsyncIteration):
                # It would end the caller's loop as if all had gone well.
                raise RuntimeError("the function of a map raised StopAsyncIteration") from error  # noqa: TRY004
            raise error
        finally:
            # Its traceback holds this frame.
            del error

    def __del__(self) -> None:
        # Its constructor may not have come that far.
        run: _Run[Any, R] | None = getattr(self, "_run", None)
        if run is not None and run.started and not run.over:
            run.stop_soon()


def start_map(
    fn: Callable[[T], Awaitable[R]],
    items: Iterable[T] | AsyncIterable[T],
    *,
    limit: Callable[[], int],
    ordered: bool,
    return_exceptions: bool,
    maps: Maps,
) -> Results[R]:
    """A map that begins when its first result is asked for.

    Args:
        fn: What to call.
        items: Its arguments.
        limit: How many calls may run now; asked before each item. As many more results may wait to be taken.
        ordered: Whether results come in the order of the items or as they are ready.
        return_exceptions: Whether an exception of `fn` is a result.
        maps: Those that it belongs to.

    Raises:
        InvalidArgumentError: when `fn` cannot be called, `items` not iterated, or `maps` are over.
    """
    if not callable(fn):
        raise InvalidArgumentError(f"map calls an async function for each item, and {fn!r} cannot be called")
    if maps.over:
        raise InvalidArgumentError("the lease was left: call map inside its block")
    source: AsyncIterator[T] | Iterator[T]
    try:
        source = items.__aiter__() if isinstance(items, AsyncIterable) else iter(items)
    except TypeError:
        raise InvalidArgumentError(f"map needs an iterable or async iterable, not {items!r}") from None
    return Results(_Run(fn, source, limit, ordered=ordered, return_exceptions=return_exceptions), maps)


class _Signal:
    """Wakes all that wait now. Who wakes looks again."""

    def __init__(self) -> None:
        self._event: anyio.Event | None = None

    async def wait(self) -> None:
        if self._event is None:
            self._event = anyio.Event()
        await self._event.wait()

    def fire(self) -> None:
        event, self._event = self._event, None
        if event is not None:
            event.set()


class _Run(Generic[T, R]):
    """The running side. It does not know the `Results`, so that those can be dropped while it runs."""

    def __init__(
        self,
        fn: Callable[[T], Awaitable[R]],
        source: AsyncIterator[T] | Iterator[T],
        limit: Callable[[], int],
        *,
        ordered: bool,
        return_exceptions: bool,
    ) -> None:
        self._fn: Callable[[T], Awaitable[R]] | None = fn
        self._source: AsyncIterator[T] | Iterator[T] | None = source
        self._limit = limit
        self._ordered = ordered
        self._return_exceptions = return_exceptions
        self.started: bool = False
        self.over: bool = False
        self.news: _Signal = _Signal()
        """A result, or the end."""
        self.source_error: BaseException | None = None
        self._room = _Signal()
        self._ended = _Signal()
        self._done: dict[int, tuple[R | None, BaseException | None]] = {}
        """What was not taken yet, by its turn."""
        self._begun = self._running = self._completed = self._taken = 0
        self._fed = False
        self._failed = False
        self._stopped = False
        self._maps: Maps | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self, maps: Maps) -> None:
        """Begins, in the context of the caller."""
        self._maps = maps
        self._scope = anyio.CancelScope()
        if in_trio():
            import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

            self._call_soon: Callable[..., object] = trio.lowlevel.current_trio_token().run_sync_soon
            trio.lowlevel.spawn_system_task(self._main, context=contextvars.copy_context())
        else:
            loop = asyncio.get_running_loop()
            self._call_soon = loop.call_soon_threadsafe
            self._task = loop.create_task(self._main())
            # A task that is cancelled before its first step never comes to its own `finally`.
            self._task.add_done_callback(lambda _: self._end())
        self.started = True
        _RUNNING.add(self)

    def stop(self) -> None:
        """Cancels it; to be called on its event loop."""
        self._stopped = True
        self._scope.cancel()

    def stop_soon(self) -> None:
        """Cancels it, from any thread and at any time: garbage is collected anywhere."""
        with contextlib.suppress(RuntimeError):  # its loop has ended, and it with that
            self._call_soon(self.stop)

    async def wait_until_over(self) -> None:
        while not self.over:
            await self._ended.wait()

    def has_next(self) -> bool:
        return self._taken in self._done

    def take(self) -> tuple[R | None, BaseException | None]:
        taken = self._done.pop(self._taken)
        self._taken += 1
        self._room.fire()
        return taken

    def gives_back(self, error: BaseException) -> bool:
        """Whether an error is a result."""
        return self._return_exceptions and isinstance(error, Exception)

    def exhausted(self) -> bool:
        return self._fed and self._taken == self._begun

    async def _main(self) -> None:
        try:
            with self._scope:
                async with anyio.create_task_group() as tasks:
                    await self._feed(tasks)
        finally:
            self._end()

    def _end(self) -> None:
        self.over = True
        # They may lead back to this.
        self._fn = self._source = None
        _RUNNING.discard(self)
        if self._maps is not None:
            self._maps.runs.discard(self)
        self.news.fire()
        self._ended.fire()

    async def _feed(self, tasks: TaskGroup) -> None:
        while True:
            while not (self._has_room() or self._failed or self._stopped):
                await self._room.wait()
            # After a failure nobody takes what comes later.
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
        self._fed = True
        self.news.fire()

    def _has_room(self) -> bool:
        limit = max(1, self._limit())
        return self._running < limit and self._begun - self._taken < 2 * limit

    async def _next_item(self) -> T:
        if isinstance(self._source, AsyncIterator):
            return await self._source.__anext__()
        try:
            return next(cast("Iterator[T]", self._source))
        except StopIteration:
            # Which cannot leave a coroutine.
            raise StopAsyncIteration from None

    async def _work(self, index: int, item: T) -> None:
        value: R | None = None
        failure: BaseException | None = None
        try:
            value = await cast("Callable[[T], Awaitable[R]]", self._fn)(item)
        except anyio.get_cancelled_exc_class() as error:
            # On asyncio one may come from within, from a future that somebody cancelled, say.
            if self._stopped or in_trio():
                raise
            failure = error
        except BaseException as error:  # noqa: BLE001  (as above)
            failure = error
        self._running -= 1
        self._done[index if self._ordered else self._completed] = value, failure
        self._completed += 1
        if failure is not None and not self.gives_back(failure):
            self._failed = True
        self._room.fire()
        if self.has_next():
            self.news.fire()
