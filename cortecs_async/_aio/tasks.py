"""Run work to completion in its own task, even if the caller is cancelled.

In a cancelled anyio scope, every await in a `finally` is cancelled too. A shield prevents that, but not a
second `task.cancel()`. Work in its own task, which no other code knows about, is safe from both. The caller
waits for this task and keeps waiting after each cancellation.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast

import anyio

from .._errors import InvalidArgumentError, add_note
from .._logging import Event, log
from .eventloop import in_trio
from .scopes import CancellableBlock
from .sigint import SigintGuard

T = TypeVar("T")


class TaskResult(Generic[T]):
    """The outcome of the work: a value or an error.

    The interruption is the cancellation or KeyboardInterrupt the caller received while it waited. The caller
    must raise it.
    """

    def __init__(
        self,
        value: T | None = None,
        error: BaseException | None = None,
        interruption: BaseException | None = None,
    ) -> None:
        self.value: T | None = value
        self.error: BaseException | None = error
        self.interruption: BaseException | None = interruption

    def unwrap(self) -> T:
        """Return the value, or raise the interruption or the error, in this order."""
        if self.interruption is not None:
            raise self.interruption
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


async def run_uncancellable(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> TaskResult[T]:
    """Run `work` in its own task and return only when it has ended. The work must limit its own time.

    With `restart_if_cancelled`, `work` is called again if its task is cancelled or a KeyboardInterrupt is
    raised in it. Use this only for work that can continue where it stopped.
    """
    if in_trio():
        return await _on_trio(work, restart_if_cancelled=restart_if_cancelled)
    sigint_guard = SigintGuard.acquire()
    try:
        return await _on_asyncio(work, restart_if_cancelled=restart_if_cancelled)
    finally:
        if sigint_guard is not None:
            sigint_guard.release()


def enable_ki_protection(*functions: Callable[..., object]) -> None:
    """On trio, keep Ctrl-C out of the frames of these functions. It is still raised where they wait."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        for function in (*functions, _on_trio):
            trio.lowlevel.enable_ki_protection(function)


def redeliver_cancellation(interruption: BaseException, cause: BaseException) -> None:
    """Keep an interruption from being lost when `cause` is raised instead of it.

    On Python 3.13 and later, asyncio delivers the cancellation again at the next await, as its own task
    groups do. Before 3.13, `asyncio.timeout` could not undo such a cancellation, which would then hit later
    code. So the cancellation, like a KeyboardInterrupt, is only added to `cause` as a note.
    """
    if isinstance(interruption, asyncio.CancelledError) and sys.version_info >= (3, 13):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            task.uncancel()
            task.cancel()
            return
    add_note(cause, f"{interruption!r} was received while the instance was being released")


class DetachedTask(Generic[T]):
    """Runs work in its own task, even after the caller of `run` is cancelled. `cancel` stops the work."""

    def __init__(self, work: Callable[[], Awaitable[T]]) -> None:
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()

    @property
    def is_running(self) -> bool:
        return (self._task is not None or self._scope is not None) and not self._ended.is_set()

    async def run(self) -> T:
        """Start the work and wait for its result. Can be called once."""
        if in_trio():
            return await self._run_on_trio()
        work = _supervise(self._work, restart_if_cancelled=False)
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._end)
        # At its end, `asyncio.run` cancels every task that it knows.
        asyncio._unregister_task(self._task)  # noqa: SLF001  (documented for extensions of asyncio)
        await self._ended.wait()
        return self._task.result()

    async def join(self) -> None:
        """Wait until the work has ended, if it was started."""
        if self.is_running:
            await self._ended.wait()

    async def cancel(self) -> None:
        """Cancel the work and return when it has ended."""
        if self._task is not None:
            self._task.cancel()
        if self._scope is not None:
            self._scope.cancel()
        await self.join()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # asyncio logs an error that is never read, as after a cancellation of `run`
        self._ended.set()

    async def _run_on_trio(self) -> T:
        import trio  # noqa: PLC0415  (optional, but installed if this code runs)

        result: TaskResult[T] = TaskResult()
        self._scope = scope = anyio.CancelScope(shield=True)

        async def supervise() -> None:
            try:
                with scope:
                    result.value = await self._work()
            except BaseException as error:  # noqa: BLE001  (trio would crash; the caller raises it)
                result.error = error
            self._ended.set()

        try:
            trio.lowlevel.spawn_system_task(supervise, context=contextvars.copy_context())
        except RuntimeError:
            # When `trio.run` finalizes generators at its end, it accepts no more system tasks.
            await supervise()
        await self._ended.wait()
        return result.unwrap()


def check_awaitable(name: str, function: object, returned: Any) -> Awaitable[Any]:
    """Return the value a user's function returned if it is awaitable.

    Raises:
        InvalidArgumentError: if it is not awaitable, so that a plain function is not mistaken for one that
            raises TypeError.
    """
    if inspect.isawaitable(returned):
        return returned
    shown = getattr(function, "__name__", type(function).__name__)
    raise InvalidArgumentError(
        f"{name} must be an async function, but {shown} returned {type(returned).__name__}. "
        "Define it with `async def`."
    )


class UserTask(Generic[T]):
    """Runs user code in its own task, without a task group. `cancel` cancels it once.

    A cancelled anyio scope cancels its tasks in every iteration of the loop. On asyncio, whose users do not
    expect this, each `await` in a `finally` would be cancelled too. So this uses `Task.cancel` on asyncio and
    a scope on trio: see `CancellableBlock`.

    Args:
        name: The name of the code, for the error if it raises a CancelledError that `cancel` did not cause.
        work: The user's code.
        then: Called in the same task with the outcome of the work. From then on, `cancel` has no effect. If
            other code cancelled the task, for example at the end of the event loop, the outcome has an error
            and an interruption.
        on_end: Called at the end of the task, even if it was cancelled before its first step.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[], Awaitable[T]],
        then: Callable[[TaskResult[T]], Awaitable[None]],
        on_end: Callable[[UserTask[T]], None],
    ) -> None:
        self._name = name
        self._work = work
        self._then = then
        self._on_end = on_end
        self._block = CancellableBlock()
        self._is_cancelled = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, in a copy of the current context."""
        if in_trio():
            import trio  # noqa: PLC0415  (optional, but installed if this code runs)

            trio.lowlevel.spawn_system_task(self._run_on_trio, context=contextvars.copy_context())
        else:
            self._task = task = asyncio.get_running_loop().create_task(self._run())
            # A task that is cancelled before its first step never runs its own `finally`.
            task.add_done_callback(lambda _: self._end())
        _USER_TASKS.add(self)

    def cancel(self) -> None:
        self._is_cancelled = True
        self._block.cancel()

    async def _run_on_trio(self) -> None:
        try:
            await self._run()
        finally:
            self._end()

    async def _run(self) -> None:
        result: TaskResult[T] = TaskResult()
        if not self._is_cancelled:
            self._block.enter()
            try:
                result.value = await self._work()
            except GeneratorExit:  # the event loop is gone: nothing can be awaited
                raise
            except BaseException as error:  # noqa: BLE001  (trio would crash; the caller raises it)
                result.error = error
            result.error, _ = await self._block.leave(result.error)
            if is_cancellation(result.error):
                result.interruption = result.error
            result.error = explain_cancelled_error(self._name, result.error)
        await self._then(result)

    def _end(self) -> None:
        _USER_TASKS.discard(self)
        self._on_end(self)


# An event loop holds its tasks weakly.
_USER_TASKS: set[UserTask[Any]] = set()


def is_cancellation(error: BaseException | None) -> bool:
    """Return whether an error raised by code in this task cancels the task.

    On asyncio, code can raise CancelledError without a cancellation, for example when it waits for a
    cancelled future.
    """
    if not isinstance(error, anyio.get_cancelled_exc_class()):
        return False
    task = None if in_trio() else asyncio.current_task()
    return task is None or task.cancelling() > 0


def explain_cancelled_error(name: str, error: BaseException | None) -> BaseException | None:
    """Return an error of the user's code, or a RuntimeError in place of a cancellation.

    Otherwise, it would look as if the caller of the user's code had been cancelled.
    """
    if not isinstance(error, (asyncio.CancelledError, anyio.get_cancelled_exc_class())):
        return error
    explained = RuntimeError(f"{name[:1].upper()}{name[1:]} raised {type(error).__name__}")
    explained.__cause__ = error
    return explained


async def _supervise(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> T:
    while True:
        try:
            return await work()
        except (asyncio.CancelledError, KeyboardInterrupt):
            # A KeyboardInterrupt (see sigint.py) can hit any code. Under `asyncio.run`, an earlier Ctrl-C has
            # already cancelled the main task, so nothing is lost by continuing.
            if not restart_if_cancelled:
                raise
            log(Event.LEASE_INTERRUPTED, consequence="the release continues until it is done")


async def _on_asyncio(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> TaskResult[T]:
    interruption: BaseException | None = None
    task = asyncio.get_running_loop().create_task(_supervise(work, restart_if_cancelled=restart_if_cancelled))
    # At its end, `asyncio.run` cancels every task that it knows. It must not know this one, because work that
    # cannot continue would be lost, and other work would be called again and send its request twice. It does
    # know the caller's task, which waits for the work, so the loop keeps running.
    asyncio._unregister_task(task)  # noqa: SLF001  (documented for extensions of asyncio)
    # Without the shield, a cancelled anyio scope would cancel this in every iteration of the loop.
    with anyio.CancelScope(shield=True):
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError as cancelled:
                interruption = cancelled
    if task.cancelled():
        return TaskResult(error=asyncio.CancelledError(), interruption=interruption)
    if error := task.exception():
        return TaskResult(error=error, interruption=interruption)
    return TaskResult(value=task.result(), interruption=interruption)


async def _on_trio(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> TaskResult[T]:
    import trio  # noqa: PLC0415  (optional, but installed if this code runs)

    result: TaskResult[T] = TaskResult()
    done = trio.Event()

    async def supervise() -> None:
        # A system task, because Ctrl-C is never raised in one. It is shielded, because trio cancels system
        # tasks when the main task ends and then waits for them.
        with trio.CancelScope(shield=True):
            try:
                result.value = await work()
            except BaseException as error:  # noqa: BLE001  (trio would crash; the caller raises it)
                result.error = error
        done.set()

    try:
        trio.lowlevel.spawn_system_task(supervise, context=contextvars.copy_context())
    except RuntimeError:
        # When `trio.run` finalizes generators at its end, it accepts no more system tasks.
        await supervise()
    with trio.CancelScope(shield=True):
        while not done.is_set():
            try:
                await done.wait()
            except KeyboardInterrupt as interrupt:
                # A release continues without its caller, because trio waits for system tasks. Other work
                # needs the caller, which releases what the work creates.
                if result.interruption is not None and restart_if_cancelled:
                    raise
                log(
                    Event.LEASE_INTERRUPTED,
                    consequence="the release continues; interrupt again to exit now"
                    if restart_if_cancelled
                    else "a step that cannot be interrupted is finished first",
                )
                result.interruption = interrupt
    return result
