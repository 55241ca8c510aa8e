"""A block whose code can be cancelled from outside, and nothing else of its task.

On asyncio this is what `asyncio.timeout` does. An anyio cancel scope would do as well, but it ties the exit
to the task and the order of the entry, which fixtures and exit stacks do not always keep. On trio there is no
other way, and nothing else is expected.
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import anyio

from .eventloop import in_trio


class CancellableBlock:
    """One block."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._is_inside = False
        self._scope: anyio.CancelScope | None = None
        self._task: asyncio.Task[Any] | None = None
        self._cancelling = 0

    def enter(self) -> None:
        """The block begins, in this task."""
        self._is_inside = True
        if in_trio():
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
        else:
            self._task = asyncio.current_task()
            self._cancelling = self._task.cancelling() if self._task is not None else 0

    def cancel(self) -> None:
        """Cancels the code in the block; does nothing once it has ended."""
        if not self._is_inside or self.is_cancelled:
            return
        self.is_cancelled = True
        if self._scope is not None:
            self._scope.cancel()
        elif self._task is not None:
            self._task.cancel()

    async def leave(self, raised: BaseException | None) -> tuple[BaseException | None, bool]:
        """The block has ended.

        Returns:
            What goes out of it, and whether the interruption was what ended it: then nothing goes out.
        """
        self._is_inside = False
        if self._scope is not None:
            return self._leave_scope(self._scope, raised)
        task = self._task
        if not self.is_cancelled or task is None or task is not asyncio.current_task():
            return raised, False
        others = task.uncancel() > self._cancelling
        if isinstance(raised, asyncio.CancelledError):
            # Somebody else's cancellation, when there is one as well, outranks ours.
            return (raised, False) if others else (None, True)
        if sys.version_info < (3, 13):
            # Ours may not have been delivered yet, and would come at the next await.
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if others:
                    task.cancel()
        return raised, False

    def _leave_scope(
        self, scope: anyio.CancelScope, raised: BaseException | None
    ) -> tuple[BaseException | None, bool]:
        try:
            swallowed = scope.__exit__(
                type(raised) if raised is not None else None,
                raised,
                raised.__traceback__ if raised is not None else None,
            )
        except RuntimeError as error:
            if error is raised:
                return raised, False
            # Entered in another task, or not left in order: that is the caller's, and the release goes on.
            return raised or error, False
        except BaseException as changed:  # noqa: BLE001  (of a group, what is left without our cancellation)
            return changed, False
        return (None, True) if swallowed and raised is not None else (raised, False)
