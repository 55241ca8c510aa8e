"""Find the instance of a start request whose outcome is unknown, in the process that sent it.

Lists are fetched until a new, matching instance appears that no other start request could have created.
`starter` searches after each lost response, and `release` searches when a block ends before its start request
has an outcome. `recovery` does the same for dead processes.
"""

from __future__ import annotations

import math

import anyio
from attrs import define, evolve, frozen

from .._aio.clock import suspended
from .._aio.synchronization import SingleFlight
from .._api.domain import Instance
from .._api.instances import Instances
from .._api.intervals import poll_interval
from .._api.listing import Listing
from .._api.matching import Ambiguous, Contested, Disagreement, Outcome, UnresolvedStart, agreed
from .._api.recent_lists import RecentLists
from .._api.subscription import ABSENCE_SPAN
from .._config import Settings
from .._errors import AmbiguousStartError, APIStatusError, ClientClosedError, CortecsError
from .._http.retry import is_transient_error
from .._logging import Event, log
from .._recovery.claims import ForeignClaims
from .._recovery.promises import Promises
from .start_state import StartAttempt, StartState

# Seconds. A longer `Retry-After` in the response to a list request must not suspend a release.
_MAX_RETRY_AFTER = 20.0

# Extra seconds to wait while a new instance may belong to another process's start.
_CONTESTED_GRACE = 60.0

# Seconds between two lists while they disagree.
_AGREEMENT_INTERVAL = 1.0

# Seconds to search for the instance of an earlier start request on exit, if there is a candidate.
_LATE_SEARCH = 30.0


@frozen
class _View:
    """A list, the time its request began, and the instances other starts claimed before that."""

    instances: Listing[Instance]
    began: float
    claims: ForeignClaims


@define(eq=False, kw_only=True, slots=False)
class StartSearch:
    """Searches for the instances of one client's starts."""

    instances: Instances
    promises: Promises
    settings: Settings

    def __attrs_post_init__(self) -> None:
        self._claims = self.instances.claims
        self._searching = SingleFlight(self._read)

    async def resolve(self, start: StartAttempt, *, to_release: bool) -> Instance | None:
        """Find the instance of an unresolved start. Return None if none has appeared in time.

        If the request is still in progress because its caller was cancelled, this also ends when the response
        arrives. Then `start` has the outcome.

        Args:
            start: The start request.
            to_release: Adopt the instance once it has been listed for a few seconds, because it is released
                anyway, and continue after any error. Otherwise, wait until the deadline.

        Raises:
            AmbiguousStartError: if it is unclear which instance the start request created.
            RequestError: if the instances cannot be listed, unless `to_release`.
        """
        assert start.unresolved is not None  # noqa: S101  (set before it was sent)
        if start.key is not None:
            self.promises.record_unanswered(start.key)
        began, recent = anyio.current_time(), start.recent
        while True:
            outcome: Outcome = None
            seconds = math.inf
            view = await self._view(start, to_release=to_release)
            if view is not None:
                view = evolve(view, instances=recent.add(view.instances, anyio.current_time()))
                # Not after a single list, because the time may already be up when a release begins.
                span = min(ABSENCE_SPAN, start.window)
                over_at = max(start.visible_until, recent.began + span)
                is_over = view.began >= over_at
                # Not immediately, because another candidate may appear.
                seconds = span if is_over or to_release else math.inf
                outcome = await self._decide(
                    start.key,
                    view,
                    recent,
                    seconds=seconds,
                    # While the machine was suspended, other people may have started identical ones.
                    unconfirmed=suspended() - start.suspended_before <= start.policy.adoption_window,
                )
                if not start.is_open:
                    self._correct(start)
                    return None
                if isinstance(outcome, Instance):
                    log(Event.LEASE_ADOPTED, instance_id=outcome.instance_id, model=start.args.hf_name)
                    start.adopted = True
                    start.started(outcome)
                    return outcome
                if isinstance(outcome, Contested):
                    is_over = view.began >= over_at + _CONTESTED_GRACE
                if is_over and isinstance(outcome, (Ambiguous, Contested)):
                    error = self._ambiguous(start, outcome)
                    await self.promises.flush()
                    raise error
                if is_over and outcome is None:
                    await self._give_up(start)
                    return None
            disagree = isinstance(outcome, Disagreement) and not math.isinf(seconds)
            if await start.wait_for_response(self._pause(anyio.current_time() - began, disagree=disagree)):
                return None

    def _pause(self, elapsed: float, *, disagree: bool) -> float:
        pause = poll_interval(elapsed, self.settings.poll)
        return min(pause, max(_AGREEMENT_INTERVAL, self.settings.poll.min_interval)) if disagree else pause

    def _correct(self, start: StartAttempt) -> None:
        """Record the instance in the response again, in case a different one was chosen after it."""
        if start.key is not None and start.instance_id is not None:
            self.promises.record_created(start.key, start.instance_id, goal="gone")

    async def find_late(self, key: str, start: StartAttempt) -> Instance | None:
        """Search once more for the instance of an earlier request that did not appear in time."""
        began, recent = anyio.current_time(), self.recent_lists()
        # The reaper may have found it, and after a while an instance more likely belongs to another user.
        while self.promises.is_late(key) and anyio.current_time() <= began + _LATE_SEARCH:
            view = await self._view(start, to_release=True)
            if view is None:
                return None
            view = evolve(view, instances=recent.add(view.instances, anyio.current_time()))
            outcome = await self._decide(key, view, recent, seconds=ABSENCE_SPAN)
            if not isinstance(outcome, Disagreement):
                return outcome if isinstance(outcome, Instance) else None
            await anyio.sleep(self.settings.poll.min_interval)
        return None

    async def _decide(
        self,
        key: str | None,
        view: _View,
        recent: RecentLists,
        *,
        seconds: float,
        unconfirmed: bool = True,
    ) -> Outcome:
        """Decide which instance a start request created and claim it.

        The decision is open while the lists of the last `seconds` disagree. Without `unconfirmed`, an
        instance is ambiguous unless its timestamp or its tag confirms it.
        """
        assert key is not None  # noqa: S101  (set before it was sent)
        listing = view.instances
        unclaimed = self._claims.without_claimed(listing)

        def decide(unresolved: UnresolvedStart, claims: ForeignClaims) -> Outcome:
            outcome = claims.match(unresolved, unclaimed, listed_at=listing.date)
            if isinstance(outcome, Instance) and not (
                unconfirmed
                or unresolved.is_confirmed_by(outcome, listing.date)
                or unresolved.has_tag_of(outcome)
            ):
                outcome = Ambiguous((outcome.instance_id,))
            return agreed(outcome, recent, seconds=seconds)

        return await self.promises.decide(key, view.claims, decide)

    def recent_lists(self) -> RecentLists:
        """Return an empty store for the lists of one search."""
        # Longer than any pause between two lists, so that a single list without an instance is not decisive.
        return RecentLists(ABSENCE_SPAN + self.settings.poll.max_interval)

    async def _give_up(self, start: StartAttempt) -> None:
        """Leave the search to the reaper and `sweep`."""
        assert start.key is not None  # noqa: S101  (set before it was sent)
        start.resolved(StartState.NOT_SEEN)
        start.not_seen.append(start.key)
        log(Event.LEASE_START_NOT_SEEN, model=start.args.hf_name)
        self.promises.record_abandoned(start.key)
        start.key = None
        await self.promises.flush()

    async def _view(self, start: StartAttempt, *, to_release: bool) -> _View | None:
        """Return a list fetched while no start request for the model was in progress, or None.

        In such a list, each new instance is claimed or belongs to an unresolved start.
        """
        model_id = start.args.model_id
        generation = self._claims.idle_generation(model_id)
        if generation is None:
            return None
        claims = await self.promises.foreign_claims(start.key)
        try:
            instances, began = await self._searching.get(since=anyio.current_time())
        except ClientClosedError:
            raise
        except Exception as error:
            # A release continues even after errors from a credential provider or a transport.
            if not to_release and not (isinstance(error, CortecsError) and is_transient_error(error)):
                raise
            log(
                Event.LEASE_LOOK_FAILED,
                model=start.args.hf_name,
                error_type=type(error).__name__,
                error=error,
            )
            retry_after = error.retry_after if isinstance(error, APIStatusError) else None
            await start.wait_for_response(min(retry_after or 0.0, _MAX_RETRY_AFTER))
            return None
        if self._claims.idle_generation(model_id) != generation:
            return None
        return _View(instances, began, claims)

    def _ambiguous(self, start: StartAttempt, outcome: Ambiguous | Contested) -> AmbiguousStartError:
        candidates = outcome.candidates
        start.resolved(StartState.AMBIGUOUS)
        if start.key is not None:
            self.promises.record_ambiguous(start.key, candidates)
        several = len(candidates) > 1
        matches = "several new instances match" if several else "a new instance matches"
        billed = "ONE OF THEM MAY BE YOURS AND BILLED" if several else "IT MAY BE YOURS AND BILLED"
        return AmbiguousStartError(
            f"The response to the start request for {start.args.hf_name} was lost, and {matches} it: "
            f"{', '.join(candidates)}. No instance was touched. {billed}: check client.instances.list() and "
            "stop yours.",
            candidates=candidates,
        )

    async def _read(self) -> tuple[Listing[Instance], float]:
        """Return a new list and the time its request began, without retries: a search repeats it."""
        began = anyio.current_time()
        return await self.instances.read_all(), began
