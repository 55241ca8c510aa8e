"""A single poller for all waits of a client.

The service does not send notifications, so waiting means polling. One waiting task, the leader, sends the
requests for all: `GET /instances/{id}` for one instance, `GET /instances/` for several. Instances that are
missing from the list are also requested by id, a limited number in each poll. When the leader is done or
cancelled, the next task becomes the leader. So there is no background task and no idle request.
"""

from __future__ import annotations

import math
from typing import Protocol

import anyio
from anyio.lowlevel import checkpoint

from .._aio.eventloop import LoopBinding
from .._aio.synchronization import Backoff, Broadcast
from .._errors import (
    APIStatusError,
    BadRequestError,
    CortecsError,
    DecodeError,
    InvalidArgumentError,
    NotFoundError,
    RateLimitError,
    RequestTimeoutError,
)
from .._http.retry import is_transient_error
from .._logging import Event, log
from .._poll_policy import PollPolicy
from .domain import Instance
from .expected import ExpectedInstances
from .intervals import pause_after, poll_interval
from .listing import ListedIds, Listing
from .subscription import ABSENCE_SPAN, Subscription

# Seconds. A longer `Retry-After` must not suspend all waits, which include teardowns.
_MAX_RETRY_AFTER = 60.0

# Requests by id in one poll, for instances missing from the list. The others follow in the next polls.
_MAX_REQUESTS_BY_ID = 20

# Seconds to wait after a list: per listed instance, and at most. With thousands, a list is expensive, and one
# of the waits is always due. A change may be noticed half a second later.
_PAUSE_PER_INSTANCE, _MAX_PAUSE = 0.0002, 0.5

# Lists of fewer instances are cheap, and polls after them are not delayed.
_MIN_LONG_LIST = 200

# Statuses, in lower case, that an instance does not leave without a request. Only "stopped" is documented;
# the others are common names. For any other status, a wait continues until its deadline.
TERMINAL_STATUSES = frozenset({"stopped", "failed", "error", "terminated", "deleted"})

# By instance id: the instance, the error of the request for it, or None if it does not exist.
Readings = dict[str, Instance | CortecsError | None]


class Source(Protocol):
    """Fetches instances. Requests are not retried: the next poll repeats them."""

    async def read_one(self, instance_id: str) -> Instance:
        """Send `GET /instances/{id}`."""
        ...

    async def read_all(self) -> Listing[Instance]:
        """Send `GET /instances/`."""
        ...


class Poller:
    """Polls for all waits of one client.

    Attributes:
        loop: The event loop of the waits.
        expected: Instances that readings may not show yet.
        listed: The ids in the last list.
        latest: The last list, or None before the first one.
    """

    def __init__(self, source: Source, policy: PollPolicy) -> None:
        self._source = source
        self._policy = policy
        self._waiters: dict[Subscription, None] = {}
        # The waits without news or an error, in order of arrival. The first one becomes the next leader, so
        # no search is necessary.
        self._candidates: dict[Subscription, None] = {}
        self._has_leader = False
        self._next_poll = math.inf
        self._rescheduled = Broadcast()
        self._paused_until = -math.inf
        self._backoff = Backoff(first=2 * policy.min_interval, limit=policy.max_interval)
        # A 429 without `Retry-After` is not a failure of the service.
        self._rate_limit_backoff = Backoff(first=policy.min_interval, limit=2 * policy.min_interval)
        self._requests_by_id = 0
        self.loop: LoopBinding = LoopBinding()
        self.expected: ExpectedInstances = ExpectedInstances()
        self.listed: frozenset[str] = frozenset()
        self.latest: ListedIds | None = None

    def subscribe(
        self,
        instance_id: str,
        *,
        known: Instance | None = None,
        trust_list: bool = False,
        absence: float = ABSENCE_SPAN,
        interval: float | None = None,
    ) -> Subscription:
        """Begin a wait.

        Args:
            instance_id: The instance.
            known: A snapshot the task already has. Only a reading that differs from it is news, and the first
                poll waits for the usual interval.
            trust_list: Whether one list proves that the instance is gone, as after an accepted delete.
                Otherwise, `GET /instances/{id}` must agree for `absence` seconds.
            absence: Seconds for which it must be missing before it counts as gone.
            interval: Seconds between polls, or None to use the policy.
        """
        now = anyio.current_time()
        subscription = Subscription(
            instance_id=instance_id,
            since=now,
            due=now if known is None else now + (interval or poll_interval(0.0, self._policy)),
            trust_list=trust_list,
            absence=0.0 if trust_list else absence,
            interval=interval,
            request_number=self._requests_by_id,
            reading=known,
            has_reading=known is not None,
        )
        subscription.step_times.record(known, now)
        return subscription

    async def next(self, subscription: Subscription) -> Instance | None:
        """Wait for the next changed reading. Changes before the newest one are skipped.

        Returns:
            The instance, or None when it is gone.

        Raises:
            CortecsError: if a request fails permanently, or for longer than `max_outage`.
            InvalidArgumentError: if another task waits on the same subscription.
            ConfigurationError: if the client belongs to a different event loop.
        """
        self.loop.check()
        if subscription in self._waiters:
            raise InvalidArgumentError("Another task is already using this watch. Call watch() in each task.")
        self._waiters[subscription] = None
        if subscription.due < self._next_poll:
            self._next_poll = max(subscription.due, self._paused_until)
            self._rescheduled.notify()
        try:
            while True:
                if subscription.error is not None:
                    error, subscription.error = subscription.error, None
                    raise error
                if subscription.is_news:
                    subscription.is_news = False
                    return subscription.reading
                self._candidates[subscription] = None
                if self._has_leader:
                    await subscription.changed.wait()
                else:
                    await self._lead()
        finally:
            del self._waiters[subscription]
            self._candidates.pop(subscription, None)
            if not self._waiters:
                self._reset_backoff()
            # This task may have been cancelled just before it would have become the leader.
            self._wake_next_leader()

    async def _lead(self) -> None:
        self._has_leader = True
        try:
            await self._wait_until_due()
            await checkpoint()  # tasks that are about to wait share the request
            await self._poll()
        finally:
            self._has_leader = False
            idle = (each for each in self._waiters if not each.is_news and each.error is None)
            self._candidates = dict.fromkeys(idle)

    def _wake_next_leader(self) -> None:
        if self._candidates and not self._has_leader:
            next(iter(self._candidates)).changed.notify()

    async def _wait_until_due(self) -> None:
        self._next_poll = max(min(each.due for each in self._waiters), self._paused_until)
        try:
            while (pause := self._next_poll - anyio.current_time()) > 0:
                with anyio.move_on_after(pause):
                    await self._rescheduled.wait()
        finally:
            self._next_poll = math.inf

    async def _poll(self) -> None:
        began, waiting = anyio.current_time(), list(self._waiters)
        try:
            readings = await self._read(waiting)
            self._publish(readings, began)
            # Last, so that a slow response does not delay the news of the other instances.
            missing = [each for each in waiting if each.instance_id not in readings]
            if missing:
                self._publish(await self._read_by_id(missing), began)
        except CortecsError as error:
            self._record_failure(error)
            return
        if failures := self._backoff.failures + self._rate_limit_backoff.failures:
            log(Event.WATCH_RECOVERED, failures=failures)
        self._reset_backoff()
        now = anyio.current_time()
        for each in missing:
            each.due = now + self._pause(each, now, now)

    def _publish(self, readings: Readings, began: float) -> None:
        now = anyio.current_time()
        for instance_id, reading in readings.items():
            if isinstance(reading, Instance) and reading.status.lower() not in TERMINAL_STATUSES:
                self.expected.note_active(instance_id)
        for subscription in self._waiters:
            # A task that subscribed after the request was sent may already have newer data.
            if subscription.since > began or subscription.instance_id not in readings:
                continue
            reading = readings[subscription.instance_id]
            if isinstance(reading, CortecsError):
                subscription.record_failure(reading, now=now, max_outage=self._policy.max_outage)
            elif subscription.absence <= 0 or not self.expected.may_be_outdated(
                subscription.instance_id, reading, now
            ):
                subscription.publish(reading, now=now)
            subscription.due = now + self._pause(subscription, now, began)

    def _pause(self, each: Subscription, now: float, began: float) -> float:
        """Return the seconds until the next poll, after a reading that was requested at `began`."""
        if each.missing_since is not None and not each.is_missing(now):
            return max(each.absence / 2, self._policy.min_interval)
        distance = each.step_times.distance(now)
        interval = each.interval or poll_interval(now - each.since, self._policy, distance=distance)
        return interval if len(self._waiters) > 1 else pause_after(interval, now - began)

    async def _read(self, waiting: list[Subscription]) -> Readings:
        """Fetch the instances with one request, if possible. Leave out the ones that need a request by id."""
        wanted = {subscription.instance_id for subscription in waiting}
        trusting = {subscription.instance_id for subscription in waiting if subscription.trust_list}
        if len(wanted) == 1 and not trusting:
            (instance_id,) = wanted
            unreadable: DecodeError | None = None
            try:
                if (instance := await self._read_one(instance_id)) is not None:
                    return {instance_id: instance}
            except DecodeError as error:
                unreadable = error
            # The status code for an unknown id is undocumented. The instance is missing if the list agrees.
            reading = (await self._read_listed()).get(instance_id)
            if reading is None and unreadable is not None:
                raise unreadable  # it may exist, and be hidden in lists
            return {instance_id: reading}
        listed = await self._read_listed()
        return {each: listed.get(each) for each in wanted & (listed.keys() | trusting)}

    async def _read_by_id(self, missing: list[Subscription]) -> Readings:
        """Request instances by id, up to the limit of one poll, starting with the longest wait."""
        in_turn = sorted(missing, key=lambda each: each.request_number)
        chosen = list(dict.fromkeys(each.instance_id for each in in_turn))[:_MAX_REQUESTS_BY_ID]
        timeout = self._policy.max_interval
        readings: Readings = {}
        failures: list[Exception] = []

        async def read(instance_id: str) -> None:
            # A failure for one instance must not discard the readings of the others.
            try:
                readings[instance_id] = await self._read_one(instance_id)
            except CortecsError as error:
                readings[instance_id] = error
            except Exception as error:  # noqa: BLE001  (a transport's own, raised below without a group)
                failures.append(error)

        for instance_id in chosen:
            path = f"/instances/{instance_id}"
            message = f"GET {path} took longer than {timeout:g} s"
            readings[instance_id] = RequestTimeoutError(message, method="GET", path=path)
        with anyio.move_on_after(timeout):
            async with anyio.create_task_group() as tasks:
                for instance_id in chosen:
                    tasks.start_soon(read, instance_id)
        if failures:
            raise failures[0]
        for each in in_turn:
            if each.instance_id in readings:
                self._requests_by_id += 1
                each.request_number = self._requests_by_id
        return readings

    async def _read_one(self, instance_id: str) -> Instance | None:
        try:
            return await self._source.read_one(instance_id)
        except (BadRequestError, NotFoundError, InvalidArgumentError):
            # InvalidArgumentError: the id is not allowed in a path. The list may still show it.
            return None

    async def _read_listed(self) -> Readings:
        """Return the listed instances, and an error for each existing one whose entry cannot be parsed."""
        began = anyio.current_time()
        listing = await self._source.read_all()
        self.latest = ListedIds.of(listing, began)
        self.listed = self.latest.ids
        if len(listing) >= _MIN_LONG_LIST:
            pause = min(_PAUSE_PER_INSTANCE * len(listing), _MAX_PAUSE)
            self._paused_until = max(self._paused_until, anyio.current_time() + pause)
        readings: Readings = {each.instance_id: each for each in listing}
        for entry in listing.unreadable:
            if entry.entry_id is not None:
                problem = f"Instance {entry.entry_id} exists, but its entry in the list could not be parsed"
                readings[entry.entry_id] = DecodeError(problem, method="GET", path="/instances/")
        return readings

    def _reset_backoff(self) -> None:
        for backoff in (self._backoff, self._rate_limit_backoff):
            backoff.reset()

    def _record_failure(self, error: CortecsError) -> None:
        now = anyio.current_time()
        for subscription in self._waiters:
            subscription.record_failure(error, now=now, max_outage=self._policy.max_outage)
        pause = (self._rate_limit_backoff if isinstance(error, RateLimitError) else self._backoff).next()
        if not is_transient_error(error):
            return
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        pause = max(pause, min(retry_after or 0.0, _MAX_RETRY_AFTER))
        log(
            Event.WATCH_FAILED,
            wait=pause,
            failures=self._backoff.failures + self._rate_limit_backoff.failures,
            error_type=type(error).__name__,
            request_id=getattr(error, "request_id", None),
            error=error,
        )
        self._paused_until = now + pause
