"""Search for the instances of unresolved starts, for `recover`.

An instance is attributed to a start request once that is certain, and a start request is closed once it is
certain that its instance will not appear. Both need more than one list: reads lag behind writes, replicas may
disagree, and a service that was down may process earlier requests late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import anyio
from attrs import define, field

from .._aio.eventloop import WallClock, current_time
from .._aio.synchronization import Backoff
from .._api.domain import Instance
from .._api.instances import Instances
from .._api.listing import Listing
from .._api.matching import (
    LATE_WINDOW,
    Ambiguous,
    Contested,
    Disagreement,
    Outcome,
    UnresolvedStart,
    agreed,
)
from .._api.recent_lists import RecentLists
from .._api.subscription import ABSENCE_SPAN
from .._errors import RateLimitError
from .claims import ForeignClaims, unresolved_start_of
from .pending import PendingPromise, RecoveryResult, RecoveryState, age_of

# Before an instance is attributed to a start request, minimum seconds since the search began, and minimum
# seconds for which the instance was listed: another candidate may appear, and the process that started the
# instance may not have recorded it yet.
_MIN_SEARCH, _MIN_LISTED = 10.0, 5.0

# The minimum duration of an outage in seconds, and the seconds after it in which the service may still
# process requests received before.
_MIN_OUTAGE, _AFTER_OUTAGE = 10.0, 60.0

# Seconds after the request from which an instance is attributed to a start request only if its timestamp or
# tag confirms it, because someone else may have started an identical one since then.
_MAX_UNCONFIRMED_AGE = 3600.0

# Additional seconds to wait while the instance may belong to a start request in progress.
_CONTESTED_GRACE = 60.0

# Seconds between two lists: a tenth of the seconds since the last request, but at least the first number and
# at most the second. After failures, at most the third. While lists disagree, at most the fourth.
_LIST_INTERVAL, _SLOW_LIST_INTERVAL, _MAX_LIST_INTERVAL, _AGREEMENT_INTERVAL = 0.5, 5.0, 10.0, 1.0

# In seconds. A response with a longer `Retry-After` must not suspend the search.
_MAX_RETRY_AFTER = 60.0


@define(eq=False, kw_only=True)
class Search:
    """Searches for the instances of an account's unresolved starts.

    The first attributes are the same as in `Recovery`.

    Attributes:
        pending: The promises without an instance. A promise is removed once it is decided.
        claimed: The instances of all promises. Each found instance is added.
        results: The outcome of each promise whose instance is not found is added here.
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
    # Longer than the pause between lists, so that a single list without the instance decides nothing.
    _recent: RecentLists = field(factory=lambda: RecentLists(3 * _SLOW_LIST_INTERVAL))
    _began: float = 0.0
    # The time when the current run of lists began, and the time when the current run of failures began.
    _listed_since: float | None = None
    _failing_since: float | None = None
    # Whether the last lists disagree about an instance.
    _disagree: bool = False
    # The wait in seconds that the service asked for, if its last response was a 429.
    _retry_after: float | None = None
    # The time until which an instance may appear for reasons other than the time since the request.
    _appears_until: float = 0.0

    async def run(self) -> None:
        """Search until every promise is decided, or the timeout elapses."""
        began = self._began = current_time()
        deadline = began + self.timeout
        final_at = {
            each: began + LATE_WINDOW - age_of(each.promise, self.wall_clock()) for each in self.pending
        }
        backoff = Backoff(first=2 * _LIST_INTERVAL, limit=_MAX_LIST_INTERVAL)
        while self.pending:
            now = current_time()
            age = min(age_of(each.promise, self.wall_clock()) for each in self.pending)
            pause = min(max(_LIST_INTERVAL, age / 10), _SLOW_LIST_INTERVAL)
            earlier = self.foreign_claims()
            listing = await self._list(now)
            if listing is not None:
                backoff.reset()
                self._decide(listing, earlier, final_at, now)
                pause = min(pause, _AGREEMENT_INTERVAL) if self._disagree else pause
            elif self._retry_after is not None:
                pause = max(pause, self._retry_after)
            else:
                pause = backoff.next()
            if self.pending and now >= deadline:
                state: RecoveryState = "left" if listing is None else "unsettled"
                self.results.update({pending: RecoveryResult(state=state) for pending in self.pending})
                return
            if self.pending:
                await anyio.sleep(max(min(pause, deadline - current_time()), 0.0))

    async def _list(self, now: float) -> Listing[Instance] | None:
        self._retry_after = None
        try:
            listing = await self.instances.list()
        except RateLimitError as error:
            # The service works, so this is not an outage and does not interrupt a series of lists.
            self._retry_after = min(error.retry_after or 0.0, _MAX_RETRY_AFTER)
            return None
        except Exception as error:  # noqa: BLE001  (also those of a credential provider or a transport)
            self.note(f"instances cannot be listed: {error}")
            self._listed_since = None
            self._failing_since = now if self._failing_since is None else self._failing_since
            return None
        if self._listed_since is None:
            self._listed_since = now
            is_outage = self._failing_since is not None and now - self._failing_since >= _MIN_OUTAGE
            grace = _AFTER_OUTAGE if is_outage else 0.0 if self._appears_until else ABSENCE_SPAN
            self._appears_until = max(self._appears_until, now + grace)
        self._failing_since = None
        return self._recent.add(listing, now)

    def _decide(
        self,
        listing: Listing[Instance],
        earlier: ForeignClaims,
        final_at: Mapping[PendingPromise, float],
        now: float,
    ) -> None:
        """Record certain outcomes while no other process decides."""
        self._disagree = False
        with self.decision_lock():
            claims = self.foreign_claims().with_earlier(earlier)
            self._drop_decided()
            # Repeated each time, because a living owner may learn that the service does not return tags.
            starts = {each: unresolved_start_of(each.state, each.promise) for each in self.pending}
            outcomes = match_starts(starts, listing, self.claimed, claims=claims, now=self.wall_clock())
            ends = {each: max(final_at[each], self._appears_until) for each in self.pending}
            found = list(self._record(outcomes, ends, now))
        for pending, instance in found:
            del self.pending[pending]
            self.claimed.add(instance.instance_id)
            self.on_found(pending, instance.instance_id)
        for pending in self.pending.keys() & self.results.keys():
            del self.pending[pending]

    def _drop_decided(self) -> None:
        """Leave out the promises whose instance another process has found, such as the owner."""
        for pending in list(self.pending):
            promise = pending.state.promises.get(pending.promise.key)
            if promise is None:
                del self.pending[pending]
                self.results[pending] = RecoveryResult(state="gone")
            elif promise.instance_id is not None:
                del self.pending[pending]
                self.claimed.add(promise.instance_id)
                # The process that found it may fail to release it.
                self.on_found(pending, promise.instance_id)

    def _record(
        self, outcomes: Mapping[PendingPromise, Outcome], ends: Mapping[PendingPromise, float], now: float
    ) -> Iterator[tuple[PendingPromise, Instance]]:
        """Record the outcomes that are now certain and yield the instances to release.

        `ends` is the time at which each search stops. An instance that appears later is left alone.
        """
        is_early = now < self._began + _MIN_SEARCH
        # Not after a single list.
        is_certain = self._listed_since is not None and now >= self._listed_since + ABSENCE_SPAN
        for pending, outcome in outcomes.items():
            promise, end = pending.promise, ends[pending]
            if isinstance(outcome, Instance) and self._recent.first_listed_at(outcome) > end:
                outcome = None  # noqa: PLW2901
            outcome = agreed(outcome, self._recent, seconds=_MIN_LISTED)  # noqa: PLW2901
            if isinstance(outcome, Disagreement):
                self._disagree = True
            elif isinstance(outcome, Instance):
                if is_early:
                    continue
                created = {"kind": "CREATED", "entry": promise.key, "instance_id": outcome.instance_id}
                pending.report({**created, "goal": "gone"})
                pending.report({"kind": "SEEN", "entry": promise.key})
                yield pending, outcome
            elif not is_certain or now < end + (_CONTESTED_GRACE if isinstance(outcome, Contested) else 0.0):
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
    """Return the instance created by each unresolved start of a dead process, if it is certain.

    `claimed` are the instances of other promises of these processes, and `claims` the claims of other
    processes. `now` is the Unix time in seconds by this machine's clock. The result is None if the start
    request could not have created any visible instance.
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
