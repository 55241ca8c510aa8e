"""Search for the instances of unresolved starts, for `recover`.

An instance is attributed to a start when that is certain, and a start is closed when it is certain that its
instance will not appear. Both need more than one list: reading lags behind writing, replicas may disagree,
and a service that was down may carry out late what it received before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import anyio
from attrs import define, field

from .._aio.eventloop import WallClock
from .._aio.synchronization import Backoff
from .._api.domain import Instance
from .._api.instances import Instances
from .._api.listing import Listing, RecentLists
from .._api.matching import LATE_WINDOW, Ambiguous, Contested, Outcome, UnresolvedStart
from .._api.polling import ABSENCE_SPAN
from .claims import ForeignClaims, unresolved_start_of
from .pending import PendingPromise, RecoveryResult, RecoveryState, age_of

# Seconds after the search began, and seconds for which an instance must have been listed, before it is
# attributed to a start: another candidate may appear, and a process that has just started it may not have
# recorded it yet.
_MIN_SEARCH, _MIN_LISTED = 10.0, 5.0

# Seconds after an outage in which the service may still carry out what it received before.
_AFTER_OUTAGE = 60.0

# Seconds after the request from which an instance is attributed to a start only if its timestamp or its tag
# confirms it: someone else may have started an equal one since.
_MAX_UNCONFIRMED_AGE = 3600.0

# Seconds to wait longer while the instance may belong to a start that is in progress.
_CONTESTED_GRACE = 60.0

# Seconds between two lists: a tenth of those since the last request, from the first number to the second.
# After failures, at most the third.
_LIST_INTERVAL, _SLOW_LIST_INTERVAL, _MAX_LIST_INTERVAL = 0.5, 5.0, 10.0


@define(eq=False, kw_only=True)
class Search:
    """Searches for the instances of unresolved starts of one account.

    The first attributes are those of `Recovery`.

    Attributes:
        pending: The promises without an instance. A promise is removed when it is decided.
        claimed: The instances of all promises. Each one that is found is added.
        results: Receives the outcome of each promise whose instance is not found.
        on_found: Called with a promise and the id of its instance.
    """

    instances: Instances
    foreign_claims: Callable[[], ForeignClaims]
    decision_lock: Callable[[], AbstractContextManager[None]]
    note: Callable[[str], None]
    timeout: float
    wall_clock: WallClock
    pending: dict[PendingPromise, None]
    claimed: set[str]
    results: dict[PendingPromise, RecoveryResult]
    on_found: Callable[[PendingPromise, str], object]
    # Longer than the pause between two lists, so that one list that lacks an instance decides nothing.
    _recent: RecentLists = field(factory=lambda: RecentLists(ABSENCE_SPAN + _SLOW_LIST_INTERVAL))
    _began: float = 0.0
    _first_listed_at: float | None = None
    _had_outage: bool = False

    async def run(self) -> None:
        """Search until every promise is decided, or the timeout elapses."""
        began = self._began = anyio.current_time()
        deadline = began + self.timeout
        final_at = {
            each: began + LATE_WINDOW - age_of(each.promise, self.wall_clock()) for each in self.pending
        }
        backoff = Backoff(first=2 * _LIST_INTERVAL, limit=_MAX_LIST_INTERVAL)
        while self.pending:
            now = anyio.current_time()
            age = min(age_of(each.promise, self.wall_clock()) for each in self.pending)
            pause = min(max(_LIST_INTERVAL, age / 10), _SLOW_LIST_INTERVAL)
            earlier = self.foreign_claims()
            listing = await self._list(now)
            if listing is not None:
                backoff.reset()
                self._decide(listing, earlier, final_at, now)
            else:
                pause = backoff.next()
            if self.pending and now >= deadline:
                state: RecoveryState = "left" if listing is None else "unsettled"
                self.results.update({pending: RecoveryResult(state=state) for pending in self.pending})
                return
            if self.pending:
                await anyio.sleep(max(min(pause, deadline - anyio.current_time()), 0.0))

    async def _list(self, now: float) -> Listing[Instance] | None:
        try:
            listing = await self.instances.list()
        except Exception as error:  # noqa: BLE001  (also those of a credential provider or a transport)
            self.note(f"instances cannot be listed: {error}")
            self._first_listed_at, self._had_outage = None, True
            return None
        if self._first_listed_at is None:
            self._first_listed_at = now
        return self._recent.add(listing, now)

    def _decide(
        self,
        listing: Listing[Instance],
        earlier: ForeignClaims,
        final_at: Mapping[PendingPromise, float],
        now: float,
    ) -> None:
        """Record what is certain, while no other process decides."""
        with self.decision_lock():
            self._drop_decided()
            # Each time, because the owner, if it lives, may learn that the service returns no tags.
            starts = {each: unresolved_start_of(each.state, each.promise) for each in self.pending}
            claims = self.foreign_claims().with_earlier(earlier)
            outcomes = match_starts(starts, listing, self.claimed, claims=claims, now=self.wall_clock())
            # Not after a single list, and not right after an outage.
            since = now if self._first_listed_at is None else self._first_listed_at
            certain_at = since + (_AFTER_OUTAGE if self._had_outage else ABSENCE_SPAN)
            overdue = {each: now - max(final_at[each], certain_at) for each in self.pending}
            found = list(self._record(outcomes, overdue, is_early=now < self._began + _MIN_SEARCH))
        for pending, instance in found:
            del self.pending[pending]
            self.claimed.add(instance.instance_id)
            self.on_found(pending, instance.instance_id)
        for pending in self.pending.keys() & self.results.keys():
            del self.pending[pending]

    def _drop_decided(self) -> None:
        """Leave out the promises that someone else has fulfilled, or is fulfilling, such as the owner."""
        for pending in list(self.pending):
            promise = pending.state.promises.get(pending.promise.key)
            if promise is None or promise.instance_id is not None:
                del self.pending[pending]
                found = None if promise is None else promise.instance_id
                self.results[pending] = RecoveryResult(state="gone", instance_id=found)

    def _record(
        self,
        outcomes: Mapping[PendingPromise, Outcome],
        overdue: Mapping[PendingPromise, float],
        *,
        is_early: bool,
    ) -> Iterator[tuple[PendingPromise, Instance]]:
        """Record what is certain, and yield the instances to release.

        `overdue` is, for each search, the number of seconds since its end; negative before.
        """
        for pending, outcome in outcomes.items():
            promise = pending.promise
            if isinstance(outcome, Instance):
                if is_early or not self._recent.is_listed_for(outcome, seconds=_MIN_LISTED):
                    continue
                created = {"kind": "CREATED", "entry": promise.key, "instance_id": outcome.instance_id}
                pending.report({**created, "goal": "gone"})
                yield pending, outcome
            elif overdue[pending] < (_CONTESTED_GRACE if isinstance(outcome, Contested) else 0.0):
                continue
            elif outcome is None:
                pending.record_gone()
                self.results[pending] = RecoveryResult(state="gone")
            else:
                candidates = outcome.candidates
                pending.report({"kind": "AMBIGUOUS", "entry": promise.key, "candidates": list(candidates)})
                self.results[pending] = RecoveryResult(state="ambiguous", candidates=candidates)


def match_starts(
    unresolved: Mapping[PendingPromise, UnresolvedStart],
    listing: Listing[Instance],
    claimed: set[str],
    *,
    claims: ForeignClaims,
    now: float,
) -> dict[PendingPromise, Outcome]:
    """Return the instance that each unresolved start of a dead process created, if that is certain.

    `claimed` are the instances of other promises of these processes, and `claims` those of other processes;
    `now` is the Unix time in seconds by the clock of this machine. The result is None if no visible instance
    can have been created by the start.
    """
    unclaimed = [each for each in listing if each.instance_id not in claimed]
    others = [*unresolved.values(), *claims.unresolved, *claims.in_progress]
    outcomes: dict[PendingPromise, Outcome] = {}
    for pending, start in unresolved.items():
        outcome = claims.match(start, unclaimed, unresolved.values(), listed_at=listing.date)
        if isinstance(outcome, Instance) and age_of(pending.promise, now) > _MAX_UNCONFIRMED_AGE:
            is_confirmed = start.is_confirmed_by(outcome, listing.date) or start.has_tag_of(outcome)
            outcome = outcome if is_confirmed else Ambiguous((outcome.instance_id,))
        if outcome is None:
            # The evidence against these may be wrong, so the promise is not closed.
            doubtful = tuple(
                each.instance_id
                for each in unclaimed
                if each.instance_id not in claims.ids
                and start.fits(each)
                and start.is_contradicted_by(each, listing.date)
                and not any(other.can_have_created(each, listing.date) for other in others)
            )
            outcome = Ambiguous(doubtful) if doubtful else None
        outcomes[pending] = outcome
    return outcomes
