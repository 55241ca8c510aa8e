"""Cancel a lease's block when its instance is lost, its lifetime ends, or it is idle."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from functools import partial
from operator import itemgetter

import anyio
from attrs import define, field

from .._aio.background import BackgroundTask
from .._aio.scopes import CancellableBlock
from .._api.domain import Instance
from .._errors import InstanceLostError, LeaseExpiredError, LeaseIdleError, LifecycleError, add_note
from .._logging import Event, log
from .activity import Activity
from .endpoint_errors import is_endpoint_error
from .loss import until_lost
from .state import LeaseState

# Seconds after which the clock is read again, because the machine may have been suspended.
_MAX_SLEEP = 10.0


@define(eq=False)
class Watchdog:
    """Cancels a lease's block when its instance is lost, it expires, or it is idle.

    Attributes:
        instance: The latest snapshot. The lease shows it once the block has ended.
        verdict: The reason to cancel the block: the instance was lost, or the lease expired or was idle. None
            if nothing happened.
    """

    _state: LeaseState
    instance: Instance
    # Releases the instance of a block that cannot be cancelled. Weak, so that a dropped lease is released.
    _release_early: weakref.WeakMethod[Callable[[], None]]
    verdict: LifecycleError | None = None
    _block: CancellableBlock = field(factory=CancellableBlock)
    _was_cancelled: bool = True
    _background: list[BackgroundTask] = field(factory=list)
    _is_over: bool = False
    # The limit that was reached when the block ended.
    _passed: tuple[type[LifecycleError], str] | None = None

    def enter(self) -> None:
        self._block.enter()
        if self._state.options.on_loss == "cancel":
            self._background.append(BackgroundTask(self._watch_instance))
        if math.isfinite(self._state.lifetime):
            self._background.append(BackgroundTask(self._watch_lifetime))
        if self._state.activity is not None:
            self._state.activity.begin()
            self._background.append(BackgroundTask(partial(self._watch_activity, self._state.activity)))

    async def leave(self, raised: BaseException | None) -> BaseException | None:
        """End the block and return the exception to raise from it."""
        for each in self._background:
            each.stop()
        # On trio, a task that is stopped before its first step still takes it.
        self._is_over, self._passed = True, self._passed_limit()
        if self._state.activity is not None:
            self._state.activity.end()
        if self.verdict is None and self._passed is not None and self._state.options.on_exit == "keep":
            # After a hang, the reaper may have released the instance already.
            self._set_verdict(*self._passed)
            self._was_cancelled = False
        outcome, interrupted = await self._block.leave(raised)
        if self.verdict is None:
            return outcome
        is_ended_by_caller = isinstance(raised, GeneratorExit) or (raised is None and not self._was_cancelled)
        if interrupted or is_ended_by_caller:
            return self.verdict
        is_consequence = isinstance(self.verdict, InstanceLostError) or not self._was_cancelled
        if is_consequence and is_endpoint_error(raised):
            self.verdict.__cause__ = raised
            return self.verdict
        if outcome is not None and outcome is raised:
            # The block raised its own exception, which the caller expects.
            add_note(outcome, f"{self.verdict}")
        return outcome

    async def _watch_lifetime(self) -> None:
        # In parts, because the timers of an event loop stop while the machine is suspended.
        while (remaining := self._state.expires_at - self._state.now()) > 0:  # noqa: ASYNC110  (no event tells)
            await anyio.sleep(min(remaining, _MAX_SLEEP))
        self._end(LeaseExpiredError, f"reached {self._state.limit}")

    async def _watch_activity(self, activity: Activity) -> None:
        # Checked before it counts the requests in flight: after a hang, the reaper has already acted.
        while (remaining := activity.idle_at - self._state.now()) > 0:
            activity.check()
            await anyio.sleep(min(remaining, activity.check_interval))
        self._end(LeaseIdleError, _idle(activity))

    def _passed_limit(self) -> tuple[type[LifecycleError], str] | None:
        """Return the limit that was reached first, if any, as the error and its text."""
        activity, now = self._state.activity, self._state.now()
        limits = [(self._state.expires_at, LeaseExpiredError, f"reached {self._state.limit}")]
        if activity is not None:
            limits.append((activity.idle_at, LeaseIdleError, _idle(activity)))
        at, error, what = min(limits, key=itemgetter(0))
        return (error, what) if at <= now else None

    async def _watch_instance(self) -> None:
        how = await until_lost(self._state, self.instance, self._update)
        self._end(InstanceLostError, f"{how} while the block was running")

    def _update(self, instance: Instance) -> None:
        self.instance = instance

    def _end(self, error: type[LifecycleError], what: str) -> None:
        if self.verdict is None and not self._is_over:
            # After a hang, the reaper has released the instance, which is then no loss.
            self._set_verdict(*(self._passed_limit() or (error, what)))
            self._was_cancelled = self._block.cancel()
            if not self._was_cancelled and (release := self._release_early()) is not None:
                release()

    def _set_verdict(self, error: type[LifecycleError], what: str) -> LifecycleError:
        instance_id = self.instance.instance_id
        self.verdict = verdict = error(f"Instance {instance_id} {what}", instance_id=instance_id)
        if issubclass(error, LeaseExpiredError):
            log(Event.LEASE_EXPIRED, instance_id=instance_id, reason=verdict)
        else:
            log(Event.LEASE_LOST, instance_id=instance_id, reason=verdict)
        return verdict

    def found_lost(self, how: str, raised: BaseException | None) -> BaseException | None:
        """Record that the instance was lost before its release. Return the exception to raise.

        An endpoint error usually arrives before the next poll. Any other exception comes from user code.
        """
        if self.verdict is not None:
            return raised
        lost = InstanceLostError, f"{how} while the block was running"
        verdict = self._set_verdict(*(self._passed or lost))
        if self._state.options.on_loss == "cancel" and is_endpoint_error(raised):
            verdict.__cause__ = raised
            return verdict
        if raised is not None:
            add_note(raised, f"{verdict}")
        return raised


def _idle(activity: Activity) -> str:
    return (
        f"had no request for idle_timeout={activity.timeout:g} s. Increase idle_timeout, or call "
        "inst.touch() when you use the instance in a way that the client does not see"
    )
