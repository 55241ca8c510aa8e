"""Wait until an instance is usable, stopped, or gone.

`polling.py` fetches the state, and this module evaluates it.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable

import anyio

from .._errors import InstanceGoneError, LifecycleError, StartFailedError, StartTimeoutError
from .._hints import hinted
from .._poll_policy import PollPolicy
from .domain import Instance, Progress
from .polling import TERMINAL_STATUSES, Poller
from .subscription import ABSENCE_SPAN, Subscription
from .unknown_names import no_instance_message

ProgressCallback = Callable[[Progress], Awaitable[None] | None]
"""Callback for every change while an instance starts. It can be async. If it raises, starting fails."""


def has_ended(instance: Instance | None) -> bool:
    """Return whether the instance is gone or has a terminal status."""
    return instance is None or instance.status.lower() in TERMINAL_STATUSES


async def wait_until_running(
    poller: Poller,
    instance_id: str,
    policy: PollPolicy,
    *,
    timeout: float | None,
    settle: float = 0.0,
    known: Instance | None = None,
    began: float | None = None,
    on_progress: ProgressCallback | None = None,
) -> Instance:
    """Wait until the instance runs and has a base URL.

    For `settle` seconds, "stopped" is ignored, because the service may still return the state from before the
    start. `timeout`, in seconds, and the elapsed time count from `began`, in seconds of `anyio.current_time`,
    or from now if it is None. `on_progress` is called with every change, and with `known`.

    Raises:
        StartFailedError: if the instance has a terminal status.
        InstanceGoneError: if the instance does not exist.
        StartTimeoutError: if the timeout elapsed, or nothing changed for `policy.stall_timeout` seconds.
        RequestError: if the service rejected the request or could not be reached for `policy.max_outage`.
    """
    changed_at = anyio.current_time()
    settled_at = changed_at + settle
    began = changed_at if began is None else began
    deadline = began + (math.inf if timeout is None else timeout)
    stall = math.inf if policy.stall_timeout is None else policy.stall_timeout
    subscription = poller.subscribe(instance_id, known=known)
    latest, has_reading, is_news = known, known is not None, known is not None
    is_settled = settle <= 0
    while True:
        now = anyio.current_time()
        if is_news and latest is not None and on_progress is not None:
            with anyio.CancelScope(deadline=deadline):
                await report_progress(on_progress, Progress(instance=latest, elapsed=now - began))
            now = anyio.current_time()
        if has_reading:
            if latest is None:
                raise _gone(instance_id, poller)
            if latest.is_usable:
                return latest
            if is_settled and has_ended(latest):
                raise StartFailedError(
                    f"Instance {instance_id} did not start: its status is {latest.status!r}",
                    instance_id=instance_id,
                )
        if now >= min(deadline, changed_at + stall):
            raise _timed_out(instance_id, latest, waited=now - began, unchanged=now - changed_at)
        if not is_settled and now >= settled_at:
            # From now on "stopped" counts, but not if it was fetched earlier: wait for the next reading.
            is_settled = True
            has_reading = subscription.has_reading = False
        wake_at = min(deadline, changed_at + stall, math.inf if is_settled else settled_at)
        is_news = False
        with anyio.CancelScope(deadline=wake_at):
            reading = await poller.next(subscription)
            has_reading = True
            if reading != latest or latest is None:
                latest, is_news = reading, True
                changed_at = anyio.current_time()


async def wait_until(
    poller: Poller,
    instance_id: str,
    reached: Callable[[Instance | None], bool],
    *,
    trust_list: bool = False,
    absence: float = ABSENCE_SPAN,
) -> Instance | None:
    """Wait without a timeout until `reached` accepts a reading. Return the reading, or None if missing.

    Raises:
        RequestError: if the service rejected the request or could not be reached for `max_outage` seconds.
    """
    subscription = poller.subscribe(instance_id, trust_list=trust_list, absence=absence)
    while True:
        instance = await poller.next(subscription)
        if reached(instance):
            return instance


async def report_progress(callback: ProgressCallback, progress: Progress) -> None:
    """Call `on_progress`, which can be async."""
    result = callback(progress)
    if inspect.isawaitable(result):
        await result


def _gone(instance_id: str, poller: Poller) -> LifecycleError:
    return InstanceGoneError(no_instance_message(instance_id, poller.listed), instance_id=instance_id)


START_TIMEOUT_ADVICE = "Increase start_timeout, or try another hardware type."


def _timed_out(
    instance_id: str, latest: Instance | None, *, waited: float, unchanged: float
) -> LifecycleError:
    state = "its status is unknown"
    if latest is not None:
        step = Progress(instance=latest, elapsed=waited).leading
        state = f"its status is {latest.status!r}"
        if step.num_steps:
            state += f" at step {step.current_step} of {step.num_steps} ({step.description})"
        state += f", unchanged for {unchanged:.0f} s"
    return StartTimeoutError(
        f"Instance {instance_id} was not running after {waited:.0f} s: {state}. {START_TIMEOUT_ADVICE}",
        instance_id=instance_id,
    )


@hinted
class InstanceWatch:
    """The changes to an instance, for `async for`. Returned by `client.instances.watch`.

    The iteration ends when the instance is gone. It raises `InstanceGoneError` if the instance never existed.
    If several changes arrive while your code is busy, you get only the newest. You do not need to close it.

    Example:
        watch = client.instances.watch(instance_id)
        instance = await anext(watch)
        print(instance.status)
    """

    def __init__(self, poller: Poller, instance_id: str) -> None:
        self._poller = poller
        self._instance_id = instance_id
        self._subscription: Subscription | None = None
        self._was_seen = False
        self._has_ended = False

    def __aiter__(self) -> InstanceWatch:
        return self

    async def __anext__(self) -> Instance:
        """Return the next changed snapshot.

        Raises:
            InstanceGoneError: if the instance never existed.
            CortecsError: if the request fails.
        """
        if self._has_ended:
            raise StopAsyncIteration
        if self._subscription is None:
            self._subscription = self._poller.subscribe(self._instance_id)
        instance = await self._poller.next(self._subscription)
        if instance is not None:
            self._was_seen = True
            return instance
        self._has_ended = True
        if self._was_seen:
            raise StopAsyncIteration
        raise _gone(self._instance_id, self._poller)
