"""One poller for every wait of a client.

The service has no push, so waiting is asking. However many tasks wait, one of them (the leader) asks for
all: `GET /instances/{id}` when one instance is of interest, `GET /instances/` when several are. What the list
lacks is looked up by its id as well, a bounded number at each look. A leader that is cancelled or satisfied
hands over to the next waiter, so there is no background task to start, leak or stop, and nothing is asked
when nobody waits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from typing import Protocol

import anyio
from attrs import define, field

from .._config import PollPolicy
from .._errors import (
    APIStatusError,
    BadRequestError,
    CortecsError,
    DecodeError,
    InvalidArgumentError,
    NotFoundError,
    RequestTimeoutError,
    TransportError,
)
from .._http.retry import is_transient_status
from .._logging import Event, log
from .domain import Instance, Progress

# Seconds. An answer that asks for more must not blind every wait of the client, its teardowns among them.
_MAX_RETRY_AFTER = 60.0

# Instances that the list lacks, looked up at one tick. What is left comes to its turn at the next.
_MAX_LOOKUPS = 20


# Numbers beyond are none of steps.
_MOST_STEPS = 10_000


def poll_interval(elapsed: float, policy: PollPolicy, *, distance: float | None = None) -> float:
    """Seconds until the next look.

    Args:
        elapsed: Seconds waited so far.
        policy: The limits.
        distance: Seconds between now and the time at which the end is expected, before or after it: the
            nearer, the sooner; None when nothing is expected. Never later than without it.
    """
    reach = elapsed if distance is None else min(elapsed, distance)
    return min(max(policy.min_interval, policy.growth * reach), policy.max_interval)


@define
class Steps:
    """When the steps of a start were seen, and when they let its end be expected.

    What a step is, and that they take equally long, is not documented: so nothing but the pace of looking
    depends on it, and that within its limits.
    """

    _first: tuple[int, float] | None = None  # a step, and when it was seen first
    _last: tuple[int, float] | None = None
    _count: int = 0

    def note(self, instance: Instance | None, now: float) -> None:
        """Takes a reading made at `now`."""
        if instance is None or instance.is_usable:
            self._first = self._last = None
            return
        leading = Progress(instance=instance, elapsed=0.0).leading
        if not 0 <= leading.current_step <= leading.num_steps <= _MOST_STEPS:
            self._first = self._last = None
            return
        self._count = leading.num_steps
        if self._last is None or leading.current_step < self._last[0]:
            self._first = self._last = (leading.current_step, now)
        elif leading.current_step > self._last[0]:
            self._last = (leading.current_step, now)

    def distance(self, now: float) -> float | None:
        """Seconds between now and the expected end; None before two steps were seen."""
        if self._first is None or self._last is None or self._first[0] == self._last[0]:
            return None
        done, seen = self._last
        each = (seen - self._first[1]) / (done - self._first[0])
        # It runs with the last step, or with its end.
        left = max(self._count - done, 1 if done == self._count else 0)
        return abs(seen + each * left - now)


Readings = dict[str, Instance | CortecsError | None]


class Source(Protocol):
    """Where readings come from; requests made here are not retried, since the next tick is the retry."""

    async def read_one(self, instance_id: str) -> Instance:
        """`GET /instances/{id}`."""
        ...

    async def read_all(self) -> Iterable[Instance]:
        """`GET /instances/`."""
        ...


def is_transient_error(error: CortecsError) -> bool:
    """True when asking again later may help."""
    if isinstance(error, APIStatusError):
        return is_transient_status(error.status_code)
    return isinstance(error, (TransportError, DecodeError))


@define(eq=False)
class Subscription:
    """One waiter's view of one instance: the newest reading, and whether it was taken yet.

    Attributes:
        instance_id: The instance of interest.
        since: When the wait began, in seconds of `anyio.current_time`; the pace depends on it.
        due: When the next look is due.
        trust_list: True when absence from the list alone proves that the instance is gone: after an
            accepted delete. Otherwise a `GET` of the instance must say so too.
        interval: Seconds between looks, for a wait that is no hurry; None leaves the pace to the policy.
        looked_up: Number of the last look at it by its id, where the list lacks it, or of the last at all
            when it came.
    """

    instance_id: str
    since: float
    due: float
    trust_list: bool = False
    interval: float | None = None
    looked_up: int = 0
    reading: Instance | None = None
    has_reading: bool = False
    steps: Steps = field(factory=Steps)
    fresh: bool = False
    error: CortecsError | None = None
    failing_since: float | None = None
    wake: anyio.Event = field(factory=anyio.Event)

    def publish(self, reading: Instance | None, *, now: float) -> None:
        """Keeps the newest reading; an unchanged one is no news."""
        self.failing_since = None
        if not self.has_reading or reading != self.reading:
            self.steps.note(reading, now)
            self.reading, self.has_reading, self.fresh = reading, True, True
            self.wake.set()

    def fail(self, error: CortecsError) -> None:
        """Ends the wait with an error, a copy of its own: it may be given notes."""
        self.error = copy.copy(error)
        self.wake.set()

    def record_failure(self, error: CortecsError, *, now: float, max_outage: float) -> None:
        """Ends the wait only when waiting longer does not help, or did not for `patience` seconds."""
        if self.failing_since is None:
            self.failing_since = now
        if not is_transient_error(error) or now - self.failing_since > max_outage:
            self.fail(error)


class Poller:
    """Serves all waits of one client."""

    def __init__(self, source: Source, policy: PollPolicy) -> None:
        self._source = source
        self._policy = policy
        # In order of arrival, so that leadership is handed on in constant time.
        self._waiters: dict[Subscription, None] = {}
        self._has_leader = False
        self._kick = anyio.Event()
        self._next_tick = math.inf
        self._not_before = -math.inf
        self._failures = 0
        self._lookups = 0

    def subscribe(
        self,
        instance_id: str,
        *,
        known: Instance | None = None,
        trust_list: bool = False,
        interval: float | None = None,
    ) -> Subscription:
        """Begins a wait.

        Args:
            instance_id: The instance of interest.
            known: A snapshot that the waiter has already: only what differs from it is news, and the first
                look is not made at once.
            trust_list: See `Subscription`.
            interval: See `Subscription`.
        """
        now = anyio.current_time()
        pause = interval or poll_interval(0.0, self._policy)
        subscription = Subscription(
            instance_id=instance_id,
            since=now,
            due=now if known is None else now + pause,
            trust_list=trust_list,
            interval=interval,
            looked_up=self._lookups,
            reading=known,
            has_reading=known is not None,
        )
        subscription.steps.note(known, now)
        return subscription

    async def next(self, subscription: Subscription) -> Instance | None:
        """The next changed reading, or None when the instance is gone. Changes in between are skipped.

        Raises:
            CortecsError: what asking raised, when waiting longer would not help.
            InvalidArgumentError: when another task waits on the same subscription.
        """
        if subscription in self._waiters:
            raise InvalidArgumentError("one watch serves one task at a time: call watch() once for each")
        self._waiters[subscription] = None
        if subscription.due < self._next_tick:
            self._next_tick = max(subscription.due, self._not_before)
            self._kick.set()
        try:
            while True:
                if subscription.error is not None:
                    error, subscription.error = subscription.error, None
                    raise error
                if subscription.fresh:
                    subscription.fresh = False
                    return subscription.reading
                if self._has_leader:
                    await subscription.wake.wait()
                    subscription.wake = anyio.Event()
                else:
                    await self._lead()
        finally:
            del self._waiters[subscription]
            if not self._waiters:
                self._failures = 0
            # This waiter may have been cancelled just when leadership was handed to it.
            self._hand_over()

    async def _lead(self) -> None:
        self._has_leader = True
        try:
            await self._until_due()
            await self._tick()
        finally:
            self._has_leader = False
            self._hand_over()

    def _hand_over(self) -> None:
        if self._has_leader:
            return
        for subscription in self._waiters:
            if not subscription.fresh and subscription.error is None:
                subscription.wake.set()
                return

    async def _until_due(self) -> None:
        self._next_tick = max(min(each.due for each in self._waiters), self._not_before)
        try:
            while (pause := self._next_tick - anyio.current_time()) > 0:
                self._kick = anyio.Event()
                with anyio.move_on_after(pause):
                    # A newcomer may be due earlier.
                    await self._kick.wait()
        finally:
            self._next_tick = math.inf

    async def _tick(self) -> None:
        began = anyio.current_time()
        waiting = list(self._waiters)
        try:
            readings = await self._read(waiting)
            self._publish(readings, began)
            # Last, because an answer that does not come must not hold up the news of the others.
            missing = [each for each in waiting if each.instance_id not in readings]
            if missing:
                self._publish(await self._look_up(missing), began)
        except CortecsError as error:
            self._failed(error)
            return
        if self._failures:
            log(Event.WATCH_RECOVERED, failures=self._failures)
        self._failures = 0
        for each in missing:
            # Those that were not looked up come to their turn later.
            each.due = anyio.current_time() + self._pause(each, anyio.current_time())

    def _publish(self, readings: Readings, began: float) -> None:
        now = anyio.current_time()
        for subscription in self._waiters:
            # Whoever came while the answer was under way may know better than an answer from before.
            if subscription.since > began or subscription.instance_id not in readings:
                continue
            reading = readings[subscription.instance_id]
            if isinstance(reading, CortecsError):
                subscription.record_failure(reading, now=now, max_outage=self._policy.max_outage)
            else:
                subscription.publish(reading, now=now)
            subscription.due = now + self._pause(subscription, now)

    def _pause(self, subscription: Subscription, now: float) -> float:
        if subscription.interval is not None:
            return subscription.interval
        distance = subscription.steps.distance(now)
        return poll_interval(now - subscription.since, self._policy, distance=distance)

    async def _read(self, waiting: list[Subscription]) -> Readings:
        """What one request tells; nothing of an instance that it does not tell about."""
        wanted = {subscription.instance_id for subscription in waiting}
        trusting = {subscription.instance_id for subscription in waiting if subscription.trust_list}
        if len(wanted) == 1 and not trusting:
            (instance_id,) = wanted
            instance = await self._read_one(instance_id)
            if instance is not None:
                return {instance_id: instance}
            # Which status an unknown id gives is not documented: it is gone when the list agrees.
            return {instance_id: (await self._read_listed()).get(instance_id)}
        listed = await self._read_listed()
        known = listed.keys() | trusting
        return {instance_id: listed.get(instance_id) for instance_id in wanted & known}

    async def _look_up(self, missing: list[Subscription]) -> Readings:
        """Asks for these by their ids, as many as one tick may, those first that have waited longest."""
        turns = sorted(missing, key=lambda each: each.looked_up)
        chosen = list(dict.fromkeys(each.instance_id for each in turns))[:_MAX_LOOKUPS]
        limit = self._policy.max_interval
        readings: Readings = {each: _too_slow(each, limit) for each in chosen}
        failures: list[Exception] = []

        async def look_up(instance_id: str) -> None:
            # What goes wrong with one must not keep the others from what the list says of them.
            try:
                readings[instance_id] = await self._read_one(instance_id)
            except CortecsError as error:
                readings[instance_id] = error
            except Exception as error:  # noqa: BLE001  (a transport's own, raised below without a group)
                failures.append(error)

        with anyio.move_on_after(limit):
            async with anyio.create_task_group() as tasks:
                for instance_id in chosen:
                    tasks.start_soon(look_up, instance_id)
        if failures:
            raise failures[0]
        for each in turns:
            if each.instance_id in readings:
                self._lookups += 1
                each.looked_up = self._lookups
        return readings

    async def _read_one(self, instance_id: str) -> Instance | None:
        try:
            return await self._source.read_one(instance_id)
        except (BadRequestError, NotFoundError, InvalidArgumentError):
            # The last: an id that cannot stand in a path. The list can still show it.
            return None

    async def _read_listed(self) -> dict[str, Instance]:
        return {instance.instance_id: instance for instance in await self._source.read_all()}

    def _failed(self, error: CortecsError) -> None:
        now = anyio.current_time()
        self._failures += 1
        for subscription in self._waiters:
            subscription.record_failure(error, now=now, max_outage=self._policy.max_outage)
        if not is_transient_error(error):
            return
        asked = error.retry_after if isinstance(error, APIStatusError) else None
        pause = max(
            min(asked or 0.0, _MAX_RETRY_AFTER),
            min(self._policy.min_interval * 2.0 ** min(self._failures, 16), self._policy.max_interval),
        )
        log(
            Event.WATCH_FAILED,
            wait=pause,
            failures=self._failures,
            error_type=type(error).__name__,
            request_id=getattr(error, "request_id", None),
            error=error,
        )
        self._not_before = now + pause


def _too_slow(instance_id: str, limit: float) -> CortecsError:
    path = f"/instances/{instance_id}"
    return RequestTimeoutError(f"GET {path} took longer than {limit:g} s", method="GET", path=path)
