"""Runs work to its end in a task of its own, whatever becomes of the caller.

A plain `finally` loses its awaits to an anyio scope, and a shielded scope loses them to a second
`task.cancel()`. A task that nobody else knows, and a caller that waits for it again and again, lose nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar, cast

import anyio
from attrs import define

from .._logging import Event, log
from .eventloop import in_trio
from .sigint import SigintGuard

T = TypeVar("T")


@define
class TaskResult(Generic[T]):
    """How the work ended, and what reached the caller meanwhile.

    Attributes:
        value: What it returned.
        error: What it raised instead.
        interruption: The cancellation or KeyboardInterrupt that the caller got while it waited. The caller
            owes it to its own caller.
    """

    value: T | None = None
    error: BaseException | None = None
    interruption: BaseException | None = None

    def unwrap(self) -> T:
        """The value.

        Raises:
            BaseException: the interruption, else the error.
        """
        if self.interruption is not None:
            raise self.interruption
        if self.error is not None:
            raise self.error
        return cast("T", self.value)


async def run_uncancellable(work: Callable[[], Awaitable[T]], *, resume: bool) -> TaskResult[T]:
    """Runs `work` in a task of its own and returns only when that has ended.

    Args:
        work: What to do. It must bound its own time.
        resume: Call `work` again when its task is cancelled, as `asyncio.run` does with every task when it
            ends. Only for work that can be taken up where it stopped.
    """
    if in_trio():
        return await _on_trio(work, resume=resume)
    interrupts = SigintGuard.acquire()
    try:
        return await _on_asyncio(work, resume=resume)
    finally:
        if interrupts is not None:
            interrupts.release()


def enable_ki_protection(*functions: Callable[..., object]) -> None:
    """On trio, keeps Ctrl-C out of the frames of these functions; where they wait, it is still raised."""
    if in_trio():
        import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

        for function in (*functions, _on_trio):
            trio.lowlevel.enable_ki_protection(function)


def redeliver_cancellation(interruption: BaseException, cause: BaseException) -> None:
    """Keeps an interruption from being lost when `cause` goes out instead of it.

    From Python 3.13, asyncio delivers it again at the next await, as its own task groups do. Before, a
    cancellation that `asyncio.timeout` takes back could not be taken back there, and would hit whatever comes
    after it; so it is only noted, as is a KeyboardInterrupt.
    """
    if isinstance(interruption, asyncio.CancelledError) and sys.version_info >= (3, 13):
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            task.uncancel()
            task.cancel()
            return
    cause.add_note(f"cortecs_async: while the instance was released came {interruption!r}")


class BackgroundTask:
    """Work beside the caller, with no task group around it. `stop` it; what it raises is logged.

    Args:
        work: What to do. It must not be needed for a release: the end of the loop ends it.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self._work = work
        self._task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        if in_trio():
            import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

            self._scope = anyio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run, context=contextvars.copy_context())
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())

    def stop(self) -> None:
        """Ends it, soon."""
        if self._task is not None:
            self._task.cancel()
        if self._scope is not None:
            self._scope.cancel()

    async def _run(self) -> None:
        with self._scope or contextlib.nullcontext():
            try:
                await self._work()
            except Exception:  # noqa: BLE001  (a callback's own)
                log(Event.LEASE_UNWATCHED, exc_info=True)


async def _supervise(work: Callable[[], Awaitable[T]], *, resume: bool) -> T:
    while True:
        try:
            return await work()
        except (asyncio.CancelledError, KeyboardInterrupt):
            # A Ctrl-C that is raised (see _interrupts.py) hits whatever code runs just then. Under
            # `asyncio.run` the first has cancelled the main task, so that nothing is lost by going on.
            if not resume:
                raise
            log(Event.LEASE_INTERRUPTED, consequence="the release continues until it is done")


async def _on_asyncio(work: Callable[[], Awaitable[T]], *, resume: bool) -> TaskResult[T]:
    interruption: BaseException | None = None
    while True:
        task = asyncio.get_running_loop().create_task(_supervise(work, resume=resume))
        if not resume:
            # `asyncio.run` cancels every task that it knows when it ends. Work that cannot be taken up again
            # must not be among them; the caller's task is, and waits for it, so that the loop stays.
            asyncio._unregister_task(task)  # noqa: SLF001  (documented for extensions of asyncio)
        # The shield keeps anyio's scopes out, which would otherwise cancel at every turn of the loop.
        with anyio.CancelScope(shield=True):
            while not task.done():
                try:
                    await asyncio.wait([task])
                except asyncio.CancelledError as cancelled:
                    interruption = cancelled
        if not task.cancelled():
            break
        if not resume:
            return TaskResult(error=asyncio.CancelledError(), interruption=interruption)
        # Cancelled before its first step, it never came to its own `except`.
    if error := task.exception():
        return TaskResult(error=error, interruption=interruption)
    return TaskResult(value=task.result(), interruption=interruption)


async def _on_trio(work: Callable[[], Awaitable[T]], *, resume: bool) -> TaskResult[T]:
    import trio  # noqa: PLC0415  (optional: it is there, or this would not run)

    ended: TaskResult[T] = TaskResult()
    done = trio.Event()

    async def supervise() -> None:
        # A system task, because Ctrl-C is never raised in one; shielded, because trio cancels those when
        # the main task ends, and then waits for them.
        with trio.CancelScope(shield=True):
            try:
                ended.value = await work()
            except BaseException as error:  # noqa: BLE001  (trio would crash; the caller raises it)
                ended.error = error
        done.set()

    try:
        trio.lowlevel.spawn_system_task(supervise, context=contextvars.copy_context())
    except RuntimeError:
        # At the end of `trio.run`, where generators are finalized, there is no room for system tasks.
        await supervise()
    with trio.CancelScope(shield=True):
        while not done.is_set():
            try:
                await done.wait()
            except KeyboardInterrupt as interrupt:
                # A release goes on without its caller, because trio waits for system tasks. Other work needs
                # the caller: to release what it brings about.
                if ended.interruption is not None and resume:
                    raise
                log(
                    Event.LEASE_INTERRUPTED,
                    consequence="the release continues; interrupt again to leave at once"
                    if resume
                    else "a step that must not be left half done is finished first",
                )
                ended.interruption = interrupt
    return ended
