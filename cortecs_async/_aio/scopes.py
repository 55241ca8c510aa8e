"""A block of code that can be cancelled from outside without cancelling the rest of its task.

On asyncio this works like `asyncio.timeout`. Anyio's cancel scopes must be left in the task that entered them
and in reverse order, which fixtures and exit stacks do not always do. Trio only has its cancel scopes, and
its users expect these rules.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections.abc import Callable
from typing import Any

import anyio

from .eventloop import in_trio


class CancellableBlock:
    """A block of code that can be cancelled from outside."""

    def __init__(self) -> None:
        self.is_cancelled = False
        self._is_inside = False
        self._scope: anyio.CancelScope | None = None
        # Weak, because this block may belong to a lease that is the result of an ended task.
        self._task: Callable[[], asyncio.Task[Any] | None] = lambda: None
        self._cancelling = 0

    def enter(self) -> None:
        """Begin the block, in this task."""
        self._is_inside = True
        if in_trio():
            self._scope = anyio.CancelScope()
            self._scope.__enter__()
        elif (task := asyncio.current_task()) is not None:
            self._task = weakref.ref(task)
            self._cancelling = task.cancelling()

    def cancel(self) -> bool:
        """Cancel the code in the block. Do nothing once the block has ended.

        Returns:
            Whether this is possible. It is not if the task that entered the block has ended, for example a
            fixture's.
        """
        if self._is_inside and not self.is_cancelled:
            self.is_cancelled = True
            if self._scope is not None:
                self._scope.cancel()
            else:
                task = self._task()
                return task is not None and task.cancel()
        return True

    async def leave(self, raised: BaseException | None) -> tuple[BaseException | None, bool]:
        """End the block, which `raised` has left.

        Returns:
            The exception to raise instead, and whether `cancel` ended the block, in which case it is None.
        """
        self._is_inside = False
        in_flight = sys.exception()
        if raised is None and self.is_cancelled and isinstance(in_flight, anyio.get_cancelled_exc_class()):
            # A wrapper such as anyio's portal leaves the block in a `finally` without passing on the
            # exception.
            raised = in_flight
        if self._scope is not None:
            return self._leave_scope(self._scope, raised)
        task = self._task()
        if not self.is_cancelled or task is None or task is not asyncio.current_task():
            return raised, False
        others = task.uncancel() > self._cancelling
        if isinstance(raised, asyncio.CancelledError):
            # Another cancellation takes precedence over ours.
            return (raised, False) if others else (None, True)
        if sys.version_info < (3, 13):
            # Our cancellation may not have been delivered yet and would then arrive at the next await.
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
            # The caller left the block in a different task or in the wrong order. The release continues.
            return raised or error, False
        except BaseException as changed:  # noqa: BLE001  (an exception group without our cancellation)
            return changed, False
        return (None, True) if swallowed and raised is not None else (raised, False)
