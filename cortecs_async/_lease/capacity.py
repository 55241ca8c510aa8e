"""Wait until hardware is available.

All leases of a client that wait share one poll of the list of available hardware, and one turn: when a poll
lists a type that a lease waits for, the lease that has waited longest may send its start request, and the
others keep waiting. One of the waiting tasks sends each poll, so there is no background task and no idle
request. A lease that waits has not sent anything that must be released.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager

import anyio
from attrs import define

from .._aio.synchronization import Broadcast, SingleFlight
from .._api.resources import HardwareTypes
from .._errors import APIStatusError
from .._logging import Event, log

# Seconds between two polls: a tenth of the shortest wait, within these limits.
_MIN_INTERVAL, _MAX_INTERVAL = 5.0, 30.0
_GROWTH = 0.1

# The interval is reduced by up to this share at random, so that many programs do not poll together.
_JITTER = 0.2

# Seconds. A longer `Retry-After` must not suspend all waits.
_MAX_RETRY_AFTER = 120.0

# Seconds after which a turn no longer keeps the others waiting, because its start request may hang.
_MAX_TURN = 60.0


@define(eq=False)
class Waiter:
    """A lease that waits for capacity.

    Attributes:
        wanted: The hardware types it waits for, in order of preference.
        workers: How many GPU sets it needs.
        since: The time the wait began, in seconds of `anyio.current_time`.
        is_waiting: Whether its task is in `CapacityQueue.wait_for_turn`.
        has_seen_list: Whether a poll has succeeded during the wait.
        failure: The error of the last poll, or None if it succeeded.
    """

    wanted: tuple[str, ...]
    workers: int
    since: float
    is_waiting: bool = False
    has_seen_list: bool = False
    failure: Exception | None = None


@define
class _Refusal:
    workers: int
    until: float


class CapacityQueue:
    """The available hardware, and the leases of one client that wait for it, in order of arrival.

    Args:
        hardware_types: The list to poll.
        check_open: Raises an error if the client is closed.
        rng: The source of the jitter.
    """

    def __init__(
        self,
        hardware_types: HardwareTypes,
        check_open: Callable[[], object] = bool,
        rng: random.Random | None = None,
    ) -> None:
        self._hardware_types = hardware_types
        self._check_open = check_open
        self._rng = rng or random.Random()  # noqa: S311  (jitter)
        self._reading = SingleFlight(self._read)
        self._waiters: dict[Waiter, None] = {}
        self._changed = Broadcast()
        self._listed: frozenset[str] = frozenset()
        # By hardware type: start requests that were refused although it was listed.
        self._refused: dict[str, _Refusal] = {}
        self._next_poll = math.inf
        self._is_polling = False
        self._holder: Waiter | None = None
        self._turn_ends = -math.inf

    async def available(self) -> frozenset[str] | None:
        """Return the hardware types that are listed as available, or None if the list cannot be fetched.

        The request is sent once. Leases that need it at the same time share it.
        """
        try:
            return await self._reading.get()
        except Exception as error:  # noqa: BLE001  (a transport may raise anything, and a start request shows it)
            _log_failure(error)
            return None

    @property
    def is_empty(self) -> bool:
        """Whether no lease waits."""
        return not self._waiters

    def is_waited_for(self, names: Sequence[str]) -> bool:
        """Return whether another lease waits for any of these hardware types."""
        return any(not set(names).isdisjoint(each.wanted) for each in self._waiters)

    @contextmanager
    def joined(self, wanted: Sequence[str], workers: int) -> Generator[Waiter]:
        """Join the end of the queue for the duration of a block."""
        now = anyio.current_time()
        waiter = Waiter(tuple(wanted), workers, since=now)
        self._waiters[waiter] = None
        self._schedule(now + self._interval(now))
        try:
            yield waiter
        finally:
            del self._waiters[waiter]
            if not self._waiters:
                # The next lease to wait must not rely on an old list.
                self._listed, self._refused, self._next_poll = frozenset(), {}, math.inf
            self.end_turn(waiter)

    async def wait_for_turn(self, waiter: Waiter) -> tuple[str, ...]:
        """Wait until a poll lists hardware that the lease wants, and no other lease is before it.

        The lease then has the turn until `end_turn`.

        Returns:
            The listed hardware types that it wants, in order of preference.

        Raises:
            ClientClosedError: if the client was closed during the wait.
        """
        waiter.is_waiting = True
        try:
            while True:
                self._check_open()
                if offer := self._offer_to(waiter):
                    break
                pause = self._next_poll - anyio.current_time()
                if pause <= 0 and not self._is_polling:
                    await self._poll()
                    continue
                with anyio.move_on_after(math.inf if self._is_polling else pause):
                    await self._changed.wait()
            self._holder, self._turn_ends = waiter, anyio.current_time() + _MAX_TURN
            return offer
        finally:
            waiter.is_waiting = False
            # If this task was cancelled, another one must poll, or has the turn.
            self._changed.notify()

    def end_turn(self, waiter: Waiter) -> None:
        if self._holder is waiter:
            self._holder = None
        self._changed.notify()

    def refused(self, hardware: str, workers: int, retry_after: float | None) -> None:
        """Record that there was no capacity for a start request, although the hardware was listed.

        Until the next poll, only leases that need fewer workers try the same hardware.
        """
        until = anyio.current_time() + min(retry_after or 0.0, _MAX_RETRY_AFTER)
        known = self._refused.get(hardware)
        if known is not None:
            workers, until = min(workers, known.workers), max(until, known.until)
        self._refused[hardware] = _Refusal(workers, until)

    def _offer_to(self, waiter: Waiter) -> tuple[str, ...]:
        if self._holder is not None and anyio.current_time() < self._turn_ends:
            return ()
        for each in self._waiters:
            if each.is_waiting and (offer := self._open_to(each)):
                return offer if each is waiter else ()
        return ()

    def _open_to(self, waiter: Waiter) -> tuple[str, ...]:
        return tuple(
            each
            for each in waiter.wanted
            if each in self._listed
            and (each not in self._refused or waiter.workers < self._refused[each].workers)
        )

    def _schedule(self, at: float) -> None:
        if at < self._next_poll:
            self._next_poll = at
            self._changed.notify()

    def _interval(self, now: float) -> float:
        shortest = min((now - each.since for each in self._waiters), default=0.0)
        interval = min(max(_MIN_INTERVAL, _GROWTH * shortest), _MAX_INTERVAL)
        return interval * self._rng.uniform(1 - _JITTER, 1.0)

    async def _poll(self) -> None:
        self._is_polling = True
        try:
            listed = await self._reading.get(since=anyio.current_time())
        except Exception as error:  # noqa: BLE001  (a transport may raise anything, perhaps only once)
            _log_failure(error)
            for each in self._waiters:
                each.failure = error
            retry_after = error.retry_after if isinstance(error, APIStatusError) else None
            self._polled(min(retry_after or 0.0, _MAX_RETRY_AFTER))
        else:
            now = anyio.current_time()
            self._listed = listed
            self._refused = {name: each for name, each in self._refused.items() if each.until > now}
            for each in self._waiters:
                each.has_seen_list, each.failure = True, None
            self._polled(0.0)
        finally:
            # If this task was cancelled, the poll is still due, and another one sends it.
            self._is_polling = False
            self._changed.notify()

    def _polled(self, pause: float) -> None:
        now = anyio.current_time()
        self._next_poll = now + max(self._interval(now), pause)

    async def _read(self) -> frozenset[str]:
        listing = await self._hardware_types.list_available_once()
        # An entry that cannot be parsed is available too.
        unreadable = (each.entry_id for each in listing.unreadable if each.entry_id is not None)
        return frozenset((*(each.hardware_type_id for each in listing), *unreadable))


def _log_failure(error: Exception) -> None:
    log(
        Event.LEASE_CAPACITY_UNREADABLE,
        error_type=type(error).__name__,
        request_id=getattr(error, "request_id", None),
        error=error,
    )
