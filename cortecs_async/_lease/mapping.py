"""`inst.map`: call an async function for every item of a stream, with limited concurrency.

Each call runs in its own task, and another task reads the items. A task group around a `yield` would cancel
the wrong code, and on asyncio it would also cancel each `await` in cleanup code (see `UserTask`). The caller
holds a plain object that can be dropped at any point.
"""

from __future__ import annotations

import contextlib
import contextvars
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from functools import partial
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
from attrs import define, field

from .._aio.eventloop import loop_runner
from .._aio.feeds import Feed
from .._aio.synchronization import Broadcast
from .._aio.tasks import TaskResult, UserTask, check_awaitable
from .._errors import InvalidArgumentError, add_note
from .._hints import hinted
from .._logging import Event, log

T = TypeVar("T")
R = TypeVar("R")

# Seconds that an ending lease and a cancelled `aclose` wait for cancelled calls.
_JOIN_TIMEOUT = 5.0


class Maps:
    """An endpoint's maps, which are cancelled when its lease ends."""

    def __init__(self) -> None:
        self.over: bool = False
        self.runs: set[_Run[Any, Any]] = set()

    def stop(self) -> None:
        """Cancel all maps soon and prevent new ones."""
        self.over = True
        for run in list(self.runs):
            run.stop_soon()

    async def join(self) -> None:
        """Wait up to 5 seconds until all maps have ended, shielded from cancellation."""
        with anyio.move_on_after(_JOIN_TIMEOUT, shield=True):
            for run in list(self.runs):
                await run.wait_until_over()


_MAPS: WeakKeyDictionary[object, Maps] = WeakKeyDictionary()


def maps_of(endpoint: object) -> Maps:
    """Return the maps of an endpoint, which must be hashable."""
    return _MAPS.setdefault(endpoint, Maps())


@hinted
class Results(AsyncIterator[R], Generic[R]):
    """The results of `inst.map`: iterate over them with `async for`.

    No call begins before you request the first result. Several tasks can take results from the same map.

    If you stop early, the running calls are cancelled. After a `break` from the `async for` loop, this
    happens soon. `aclose` and `async with` cancel them immediately and return once all calls have ended and
    the items are closed.

    On asyncio, each call is cancelled once, so its cleanup code can `await`. On trio, the calls stay in a
    cancelled scope, so shield cleanup code that awaits.

    Example:
        async def ask(question):
            return f"an answer to {question}"  # here you call the model

        async for answer in inst.map(ask, ["Why is the sky blue?", "Why is grass green?"]):
            print(answer)
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
            Exception: if the function or the items raise. By then, the other calls have been cancelled and
                have ended.
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
                await self._fail(error)
            if run.exhausted():
                if run.source_error is not None:
                    await self._fail(run.source_error)
                break
            if run.over:
                raise InvalidArgumentError("This map was cancelled because its lease or event loop ended")
            await run.changed.wait()
        raise StopAsyncIteration

    @property
    def concurrency(self) -> int:
        """Maximum number of calls to run in parallel. You can change it at any time.

        A lower number does not cancel calls: it takes effect once enough of them have ended.

        Raises:
            InvalidArgumentError: if you set it to anything but a whole number of at least 1.
        """
        return self._run.concurrency

    @concurrency.setter
    def concurrency(self, concurrency: int) -> None:
        self._run.change_concurrency(concurrency)

    async def to_list(self) -> list[R]:
        """Return all remaining results as a list. If that fails, the map is closed.

        Raises:
            InvalidArgumentError: if the map was closed before its end.
            Exception: as during iteration.

        Example:
            async def double(number):
                return 2 * number

            assert await inst.map(double, [1, 2, 3]).to_list() == [2, 4, 6]
        """
        async with self:
            results = [result async for result in self]
            if self._closed and not self._run.exhausted():
                raise InvalidArgumentError("This map was closed before all results were taken")
            return results

    async def aclose(self) -> None:
        """Cancel the running calls, close the items, and wait until all have ended. Repeated calls are fine.

        If this is cancelled during a long cleanup, it waits for up to 5 more seconds.

        Raises:
            Exception: if the items raise while they are closed.

        Example:
            results = inst.map(asyncio.sleep, [0, 60])
            await anext(results)
            await results.aclose()  # cancels the other call
        """
        await self._close(None)

    async def _close(self, cause: BaseException | None) -> None:
        """Close the map as `aclose` does.

        If the caller raises `cause`, an error from the items is added to it as a note.
        """
        self._closed = True
        run = self._run
        if not run.started:
            return
        run.stop()
        run.changed.notify()
        try:
            await run.wait_until_over()
        except anyio.get_cancelled_exc_class():
            with anyio.move_on_after(_JOIN_TIMEOUT, shield=True):
                await run.wait_until_over()
            raise
        error, run.close_error = run.close_error, None
        if error is None:
            return
        if cause is not None:
            add_note(cause, f"Closing the items of the map raised {error!r}")
            return
        try:
            raise error
        finally:
            # Its traceback holds this frame.
            del error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._close(exc)

    async def _fail(self, error: BaseException) -> None:
        await self._close(error)
        try:
            if isinstance(error, StopAsyncIteration):
                # A StopAsyncIteration would end the caller's loop without an error.
                raise RuntimeError("The map function raised StopAsyncIteration") from error  # noqa: TRY004
            raise error
        finally:
            del error  # as above

    def __del__(self) -> None:
        # The constructor may have failed.
        run: _Run[Any, R] | None = getattr(self, "_run", None)
        if run is not None and run.started and not run.over:
            run.is_dropped = True
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
    """Return the results of a map, which begins when the first result is requested."""
    maps = maps_of(endpoint)
    if not callable(fn):
        raise InvalidArgumentError(f"fn must be an async function, not {fn!r}")
    if maps.over:
        raise InvalidArgumentError("The lease has ended. Call map inside its `async with` block.")
    _check_concurrency(concurrency)
    return Results(_Run(fn, Feed("a map", items), maps, concurrency, ordered, return_exceptions))


def _check_concurrency(concurrency: int) -> None:
    if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
        raise InvalidArgumentError(f"concurrency must be a whole number of at least 1, not {concurrency!r}")


@define(eq=False)
class _Run(Generic[T, R]):
    """A map's running calls. They do not refer to `Results`, which can be dropped at any time."""

    _fn: Callable[[T], Awaitable[R]] | None
    _feed: Feed[T]
    _maps: Maps
    concurrency: int
    _ordered: bool
    _return_exceptions: bool
    started: bool = False
    over: bool = False
    changed: Broadcast = field(factory=Broadcast)  # a result is ready, or the map has ended
    source_error: BaseException | None = None  # of the items, to be raised after the results before it
    close_error: BaseException | None = None  # of the items, after the map was stopped or has failed
    is_dropped: bool = False
    _room: Broadcast = field(factory=Broadcast)
    _ended: Broadcast = field(factory=Broadcast)
    # The results not yet taken, by position: a value and None, or no value and the error to raise.
    _done: dict[int, tuple[R | BaseException | None, BaseException | None]] = field(factory=dict)
    _begun: int = 0
    _running: int = 0
    _completed: int = 0
    _taken: int = 0
    _all_begun: bool = False
    _failed: bool = False
    _is_fn_wrong: bool = False  # it is not async: an error of the program, never a result
    _stopped: bool = False
    _tasks: set[UserTask[Any]] = field(factory=set)
    _call_soon: Callable[..., object] = field(init=False)

    def start(self) -> None:
        """Start reading the items, in the caller's context."""
        if self._maps.over:
            raise InvalidArgumentError(
                "The lease has ended. Iterate over the results inside its `async with` block."
            )
        self._maps.runs.add(self)
        self._call_soon = loop_runner()
        self.started = True
        self._start_task(UserTask(self._feed.name, self._read, self._end_reading, self._end_task))

    def stop(self) -> None:
        """Cancel the calls, each once. Call this on the event loop."""
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()

    def stop_soon(self) -> None:
        """Cancel the calls. Call this from any thread: the garbage collector runs anywhere."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the calls have ended with it
            self._call_soon(self.stop)

    def change_concurrency(self, concurrency: int) -> None:
        _check_concurrency(concurrency)
        self.concurrency = concurrency
        self._room.notify()

    async def wait_until_over(self) -> None:
        while not self.over:
            await self._ended.wait()

    def has_next(self) -> bool:
        return self._taken in self._done

    def take(self) -> tuple[R | BaseException | None, BaseException | None]:
        taken = self._done.pop(self._taken)
        self._taken += 1
        self._room.notify()
        return taken

    def exhausted(self) -> bool:
        return self._all_begun and self._taken == self._begun

    def _start_task(self, task: UserTask[Any]) -> None:
        self._tasks.add(task)
        task.start()

    def _end_task(self, task: UserTask[Any]) -> None:
        self._tasks.discard(task)
        if self._tasks:
            return
        self.over = True
        # The function may refer to this object.
        self._fn = None
        self._maps.runs.discard(self)
        self.changed.notify()
        self._ended.notify()
        if self.is_dropped and self.close_error is not None:
            error_type = type(self.close_error).__name__
            log(Event.MAP_ITEMS_NOT_CLOSED, error=self.close_error, error_type=error_type)

    async def _read(self) -> None:
        while True:
            while not (self._has_room() or self._is_ending()):
                await self._room.wait()
            # After a failure, later results are never taken.
            if self._is_ending():
                return
            try:
                item = await self._feed.next()
            except StopAsyncIteration:
                return
            if self._is_ending():
                return
            call = partial(self._call, cast("Callable[[T], Awaitable[R]]", self._fn), item)
            end = partial(self._end_call, self._begun)
            self._begun += 1
            self._running += 1
            self._start_task(UserTask("the map function", call, end, self._end_task))
            del item, call, end

    def _call(self, fn: Callable[[T], Awaitable[R]], item: T) -> Awaitable[R]:
        returned = fn(item)
        self._is_fn_wrong = self._is_fn_wrong or not inspect.isawaitable(returned)
        return check_awaitable("fn", fn, returned)

    def _is_ending(self) -> bool:
        return self._failed or self._stopped

    def _has_room(self) -> bool:
        limit = self.concurrency
        return self._running < limit and self._begun - self._taken < 2 * limit

    async def _end_reading(self, read: TaskResult[None]) -> None:
        if read.interruption is not None:
            self._failed = True
        error = await self._feed.close(None if read.interruption else read.error)
        if self._is_ending():
            self.close_error = error
        else:
            self.source_error = error
            self._all_begun = True
            self.changed.notify()

    async def _end_call(self, index: int, called: TaskResult[R]) -> None:
        if self._stopped:
            return
        self._running -= 1
        value: R | BaseException | None = called.value
        error = called.error
        if isinstance(error, Exception) and self._return_exceptions and not self._is_fn_wrong:
            value, error = error, None
        self._done[index if self._ordered else self._completed] = value, error
        self._completed += 1
        self._failed = self._failed or error is not None
        self._room.notify()
        if self.has_next():
            self.changed.notify()
