"""Waiting until an instance is usable, stopped or gone: judged here, polled by `_watch`."""

from __future__ import annotations

import enum
import inspect
import math
from collections.abc import Awaitable, Callable

import anyio

from .._config import PollPolicy
from .._errors import (
    InstanceGoneError,
    LifecycleError,
    StartFailedError,
    StartTimeoutError,
)
from .domain import Instance, Progress
from .polling import Poller, Subscription

ProgressCallback = Callable[[Progress], Awaitable[None] | None]
"""Called with every change while an instance starts; may be async. What it raises ends the start."""

# Beyond "stopped" the published reference names no status that ends a start. The others are what services of
# this kind call it (inferred); a status that is in no list is waited through until the deadline.
TERMINAL_STATUSES = frozenset({"stopped", "failed", "error", "terminated", "deleted"})


class Readiness(enum.Enum):
    """What a reading means to somebody who waits for the instance to run."""

    USABLE = enum.auto()
    WAIT = enum.auto()
    FAILED = enum.auto()
    GONE = enum.auto()


def assess_reading(instance: Instance | None, *, settled: bool) -> Readiness:
    """What a reading means; bad news is not believed before things have `settled`."""
    if instance is not None and instance.is_usable:
        return Readiness.USABLE
    if not settled:
        return Readiness.WAIT
    if instance is None:
        return Readiness.GONE
    return Readiness.FAILED if instance.status.lower() in TERMINAL_STATUSES else Readiness.WAIT


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
    """Waits until the instance runs and has a base URL.

    Args:
        poller: The client's poller.
        instance_id: Which one.
        policy: For its `stall_timeout`.
        timeout: Seconds; None for no limit.
        settle: Seconds for which "stopped" and "missing" are not believed.
        known: A snapshot that the caller has already.
        began: When the caller began, in seconds of `anyio.current_time`: `timeout` and the elapsed time count
            from there. Default: now.
        on_progress: Called with every change, `known` included.

    Raises:
        StartFailedError: when it reached a terminal status.
        InstanceGoneError: when it does not exist.
        StartTimeoutError: when the time is up, or nothing changed for `policy.stall_timeout` seconds.
        RequestError: when the service could not be asked for longer than `policy.max_outage`, or refuses.
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
                await call_back(on_progress, Progress(instance=latest, elapsed=now - began))
            now = anyio.current_time()
        if has_reading:
            verdict = assess_reading(latest, settled=is_settled)
            if verdict is Readiness.USABLE and latest is not None:
                return latest
            if verdict is Readiness.GONE:
                raise _gone(instance_id)
            if verdict is Readiness.FAILED and latest is not None:
                raise StartFailedError(
                    f"instance {instance_id} became {latest.status!r} instead of running",
                    instance_id=instance_id,
                )
        if now >= min(deadline, changed_at + stall):
            raise _too_late(instance_id, latest, waited=now - began, unchanged=now - changed_at)
        if not is_settled and now >= settled_at:
            # From now on bad news is believed, but not old news: the next reading counts, changed or not.
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
    poller: Poller, instance_id: str, reached: Callable[[Instance | None], bool], *, trust_list: bool = False
) -> Instance | None:
    """Waits, without a limit of its own, for a reading that `reached` says yes to; None means gone.

    Raises:
        RequestError: when the service refuses, or could not be asked for longer than `max_outage`.
    """
    subscription = poller.subscribe(instance_id, trust_list=trust_list)
    while True:
        instance = await poller.next(subscription)
        if reached(instance):
            return instance


async def call_back(callback: ProgressCallback, progress: Progress) -> None:
    """Calls a callback that may be async."""
    result = callback(progress)
    if inspect.isawaitable(result):
        await result


def _gone(instance_id: str) -> LifecycleError:
    return InstanceGoneError(
        f"there is no instance {instance_id!r}: client.instances.list() shows what there is",
        instance_id=instance_id,
    )


def _too_late(
    instance_id: str, latest: Instance | None, *, waited: float, unchanged: float
) -> LifecycleError:
    state = "nothing was read of it"
    if latest is not None:
        step = Progress(instance=latest, elapsed=waited).leading
        state = f"it is {latest.status!r}"
        if step.num_steps:
            state += f" at step {step.current_step} of {step.num_steps} ({step.description})"
    return StartTimeoutError(
        f"instance {instance_id} was not running after {waited:.0f} s: {state}, unchanged for "
        f"{unchanged:.0f} s. Allow more time (start_timeout), or another hardware type may start sooner.",
        instance_id=instance_id,
    )


class InstanceWatch:
    """What `instances.watch` gives: an async iterator with one item a change.

    It ends when the instance is gone, and raises `InstanceGoneError` when it was never there. Changes that
    come while the consumer is busy are folded into the newest. There is nothing to close.
    """

    def __init__(self, poller: Poller, instance_id: str) -> None:
        self._poller = poller
        self._instance_id = instance_id
        self._subscription: Subscription | None = None
        self._seen = False
        self._ended = False

    def __aiter__(self) -> InstanceWatch:
        return self

    async def __anext__(self) -> Instance:
        """The next changed snapshot.

        Raises:
            InstanceGoneError: when there never was such an instance.
            CortecsError: when the service cannot be asked.
        """
        if self._ended:
            raise StopAsyncIteration
        if self._subscription is None:
            self._subscription = self._poller.subscribe(self._instance_id)
        instance = await self._poller.next(self._subscription)
        if instance is not None:
            self._seen = True
            return instance
        self._ended = True
        if self._seen:
            raise StopAsyncIteration
        raise InstanceGoneError(
            f"there is no instance {self._instance_id!r}: client.instances.list() shows what there is",
            instance_id=self._instance_id,
        )
