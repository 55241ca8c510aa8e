"""Background tasks for an event loop, without a task group."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import anyio

from .._logging import Event, log
from .eventloop import LoopBinding, in_trio
from .synchronization import Broadcast


class BackgroundTask:
    """A background task, without a task group. Call `stop` to cancel it. Its errors are logged.

    The task is cancelled when the event loop ends. Work that must finish uses `run_uncancellable`. Any task
    can stop it and wait until it has ended, whereas a task group can be left only by the task that entered
    it.

    Args:
        work: The function to run.
        on_end: Called when the work has ended, even if it was cancelled before it began.
    """

    def __init__(
        self, work: Callable[[], Awaitable[None]], on_end: Callable[[], object] | None = None
    ) -> None:
        self._work = work
        self._on_end = on_end
        self._task: asyncio.Task[None] | None = None
        self._scope: anyio.CancelScope | None = None
        self._ended = anyio.Event()
        if in_trio():
            import trio  # noqa: PLC0415  (optional, but installed if this code runs)

            self._scope = anyio.CancelScope()
            trio.lowlevel.spawn_system_task(self._run_on_trio, context=contextvars.copy_context())
        else:
            self._task = asyncio.get_running_loop().create_task(self._run())
            # Not in `_run`, which never begins if it is stopped immediately.
            self._task.add_done_callback(lambda _: self._end())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
        if self._scope is not None:
            self._scope.cancel()

    async def join(self) -> None:
        """Wait until the work has ended."""
        await self._ended.wait()

    def _end(self) -> None:
        self._ended.set()
        if self._on_end is not None:
            self._on_end()

    async def _run(self) -> None:
        try:
            await self._work()
        except Exception:  # noqa: BLE001  (a callback may raise anything)
            log(Event.BACKGROUND_FAILED, exc_info=True, work=getattr(self._work, "__qualname__", self._work))

    async def _run_on_trio(self) -> None:
        assert self._scope is not None  # noqa: S101  (for the type checker)
        try:
            with self._scope:
                await self._run()
        finally:
            self._end()


class UnawaitedTasks:
    """Runs work in a client's event loop, for code that cannot await. `join` waits for it."""

    def __init__(self, loop: LoopBinding) -> None:
        self._loop = loop
        # The event loop of each task.
        self._running: dict[object, object] = {}
        self._ended = Broadcast()

    def start_soon(
        self, work: Callable[[], Awaitable[None]], if_loop_ended: Callable[[], object] = lambda: None
    ) -> None:
        """Start `work` soon. If it cannot begin because the event loop has ended, call `if_loop_ended`.

        Can be called in any thread, even by the garbage collector.
        """
        start = _Start(work, if_loop_ended)

        def end() -> None:
            self._running.pop(start.number, None)
            self._ended.notify()
            start.give_up()

        def begin() -> None:
            try:
                BackgroundTask(start.run, end)
            except RuntimeError:  # trio no longer accepts system tasks at its end
                end()

        self._running[start.number] = self._loop.bound
        if not self._loop.call_soon(begin):
            end()

    async def join(self) -> None:
        """Wait until all work has ended, except work that a different event loop did not finish."""
        while self._loop.bound in self._running.values():
            await self._ended.wait()


class _Start:
    """Work scheduled to begin soon. If it is dropped before that, its event loop was closed."""

    def __init__(self, work: Callable[[], Awaitable[None]], if_loop_ended: Callable[[], object]) -> None:
        self.number = object()
        self._work = work
        self._if_loop_ended = if_loop_ended
        self._has_begun = False

    async def run(self) -> None:
        self._has_begun = True
        await self._work()

    def give_up(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._if_loop_ended()

    def __del__(self) -> None:
        self.give_up()
