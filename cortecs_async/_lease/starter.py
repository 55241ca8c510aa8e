"""Start an instance without losing it, even if the response to the start is lost.

The service has no idempotency key, so a start whose outcome is unknown is never simply repeated. For each
attempt:

1. List what exists (the baseline), and record the intent in journal and reaper.
2. Send the start. `StartAttempt` receives the outcome, even if the task that sent it is cancelled.
3. If the service rejects the start, or it was not sent, nothing was started: close the record, durably, and
   retry as `RetryPolicy` allows.
4. If the outcome is unknown, list until a new instance with the same arguments appears, and adopt it. If
   several could be ours, raise AmbiguousStartError. If none appears in time, the start may be sent again. The
   record of the first one stays open, because its instance may still appear: the reaper and `sweep` search
   for it, and so does the release of the lease, once.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import anyio
from attrs import define, evolve, field, frozen

from .._aio.synchronization import SingleFlight
from .._api.domain import Instance, InstanceArgs
from .._api.instances import Instances
from .._api.intervals import poll_interval
from .._api.listing import Listing, RecentLists, existing_ids
from .._api.matching import Ambiguous, Contested, Disagreement, Outcome, UnresolvedStart, agreed
from .._api.polling import ABSENCE_SPAN
from .._api.resources import Models
from .._config import Settings
from .._errors import AmbiguousStartError, ClientClosedError, CortecsError, RequestError
from .._http.limiter import Priority, PriorityLimiter
from .._http.messages import Failure
from .._http.retry import counts_as_retry, is_transient, is_transient_error, next_wait
from .._logging import Event, log
from .._recovery.claims import ForeignClaims
from .._recovery.promises import Promises
from .._telemetry import Observer
from .start_state import StartAttempt, StartState
from .tags import StartTags

# How many seconds old a list may be to serve as a baseline, so that a stream of starts shares lists.
_BASELINE_MAX_AGE = 1.0

# Seconds to wait longer while a new instance may belong to a start of another process.
_CONTESTED_GRACE = 60.0

# Seconds between two lists while they disagree.
_AGREEMENT_INTERVAL = 1.0

# Seconds for which the end of a block searches for the instance of an earlier start, if there is a candidate.
_LATE_SEARCH = 30.0


@define(eq=False)
class _Listing:
    instances: Listing[Instance]
    began: float
    baseline: str | None = None  # its name in the journal, once it is used


@frozen
class _View:
    """A list, and what other starts claimed before it was read."""

    listing: _Listing
    instances: Listing[Instance]
    claims: ForeignClaims


@define(eq=False, kw_only=True, slots=False)
class Starter:
    """Starts the instances of one client's leases."""

    instances: Instances
    models: Models
    promises: Promises
    settings: Settings
    observer: Observer
    _rng: random.Random = field(factory=random.Random)
    _recent: _Listing | None = None

    def __attrs_post_init__(self) -> None:
        self._claims = self.instances.claims
        self._listing = SingleFlight(self._list)
        self._tags = StartTags(self.models, self._rng, enabled=self.settings.tag_starts)
        # Twice the number of parallel requests, so that the next starts have their baseline in time.
        self._slots = PriorityLimiter(2 * self.settings.max_connections)

    def prepare(self, args: InstanceArgs, on_started: Callable[[Instance], None]) -> StartAttempt:
        return StartAttempt(args=args, policy=self.settings.retry, claims=self._claims, on_started=on_started)

    async def start(self, start: StartAttempt) -> Instance:
        """Start an instance; if the response is lost, find the instance.

        Raises:
            AmbiguousStartError: if it is not clear which instance the start created.
            JournalError: or `GuardError`, if one is required and missing. Nothing was sent.
            RequestError: if nothing was started or, with `outcome_unknown`, if that is not known.
        """
        attempt = counted = 0
        spent = 0.0  # seconds of attempts and pauses, not counting waits for a slot
        while True:
            attempt += 1
            try:
                return await self._attempt(start)
            except RequestError as error:
                if start.failure is None:
                    raise  # by the list, before anything was sent
                counted += counts_as_retry(start.failure)
                if start.state is not StartState.UNKNOWN:
                    spent += anyio.current_time() - start.sent_at
                    # Not in the transport, because each attempt needs a new baseline.
                    wait = self.wait_before_retry(
                        "/instances/start", start.failure, attempt=attempt, counted=counted, elapsed=spent
                    )
                    if wait is None:
                        raise
                    log(
                        Event.LEASE_START_RETRY,
                        model=start.args.hf_name,
                        attempt=attempt,
                        wait=wait,
                        status=start.failure.status,
                        request_id=start.failure.request_id,
                        error=error,
                    )
                    await anyio.sleep(wait)
                    spent += wait
                    continue
                log(
                    Event.LEASE_START_UNANSWERED,
                    model=start.args.hf_name,
                    status=start.failure.status,
                    request_id=start.failure.request_id,
                    error=error,
                )
                if found := await self.resolve(start, to_release=False):
                    return found
                # 503 means "no capacity" as often as "down", so the caller decides whether to try again.
                may_repeat = start.failure.status != 503 and is_transient(start.failure)
                if counted > self.settings.retry.max_retries or not may_repeat:
                    raise
                log(Event.LEASE_START_REPEATED, model=start.args.hf_name)

    def wait_before_retry(
        self, path: str, failure: Failure, *, attempt: int, counted: int, elapsed: float
    ) -> float | None:
        """Return the seconds until a rejected start or restart may be sent again, or None to give up.

        See `next_wait`.
        """
        policy, rng = self.settings.retry, self._rng
        wait = next_wait(
            "POST", path, failure, attempt=attempt, counted=counted, elapsed=elapsed, policy=policy, rng=rng
        )
        if wait is not None:
            self.observer.retry("POST", path, failure, attempt=attempt, wait=wait)
        return wait

    async def _attempt(self, start: StartAttempt) -> Instance:
        """List the baseline, record the intent, and send the start.

        Takes a slot first. Otherwise the baseline could be outdated by the time a connection is free.
        """
        start.failure, start.state = None, StartState.NOT_STARTED
        start.recent = self._recent_lists()
        await self._acquire_slot(start.args.model_id)
        try:
            # Before the baseline, which must not be old when the start is sent.
            tag = await self._tags.new_tag(start.args)
            listing = await self._baseline()
            # The journal drops a baseline that no open start uses. Without it, every instance looks new.
            if listing.baseline is None or not self.promises.store.has_baseline(listing.baseline):
                listing.baseline = self.promises.baseline(existing_ids(listing.instances))
            start.key = await self.promises.record_intent(
                start.args, listing.baseline, service_at=listing.instances.date, tag=tag
            )
            if tag is not None and not self._tags.enabled:
                # Meanwhile, another start has shown that the service returns no tags.
                tag = None
                self.promises.untag()
                await self.promises.flush()
            start.unresolved = self.promises.unresolved_start(start.key)
            sent = start.args if tag is None else evolve(start.args, context_length=tag)
            instance = await self.instances.start_once(sent, start)
        except GeneratorExit:
            if start.key is not None and start.state is StartState.NOT_STARTED:
                self.promises.close_soon(start.key)
            raise
        except BaseException:
            if start.key is not None and start.state is StartState.NOT_STARTED:
                key, start.key = start.key, None
                await self.promises.close(key)
            raise
        finally:
            self._slots.release(Priority.CALL)
        if tag is not None and not self._tags.is_returned(tag, instance):
            self.promises.untag()
        return instance

    async def _acquire_slot(self, model_id: str) -> None:
        """Take a slot while no start of the model is unresolved: the instances of both would match."""
        while True:
            while self._claims.unresolved.get(model_id):  # noqa: ASYNC110  (rare, and bounded)
                await anyio.sleep(self.settings.poll.min_interval)
            await self._slots.acquire(Priority.CALL)
            if not self._claims.unresolved.get(model_id):
                return
            self._slots.release(Priority.CALL)

    async def resolve(self, start: StartAttempt, *, to_release: bool) -> Instance | None:
        """Find the instance of a start whose outcome is unknown. Return None if none has appeared in time.

        Args:
            start: The start.
            to_release: Adopt the instance when it has been listed for a few seconds, because it is released
                anyway, and continue after any error. Otherwise wait until the time is over.

        Raises:
            AmbiguousStartError: if it is not clear which instance the start created.
            RequestError: if the instances cannot be listed, unless `to_release`.
        """
        start.interrupted()
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
                # Not after a single list: a release may begin when the time is over already.
                span = min(ABSENCE_SPAN, start.window)
                over_at = max(start.visible_until, recent.began + span)
                is_over = view.listing.began >= over_at
                # Not at once, because another candidate may appear.
                seconds = span if is_over or to_release else math.inf
                outcome = await self._decide(start.key, view, recent, seconds=seconds)
                if isinstance(outcome, Instance):
                    log(Event.LEASE_ADOPTED, instance_id=outcome.instance_id, model=start.args.hf_name)
                    start.adopted = True
                    start.started(outcome)
                    return outcome
                if isinstance(outcome, Contested):
                    is_over = view.listing.began >= over_at + _CONTESTED_GRACE
                if is_over and isinstance(outcome, (Ambiguous, Contested)):
                    error = self._ambiguous(start, outcome)
                    await self.promises.flush()
                    raise error
                if is_over and outcome is None:
                    await self._give_up(start)
                    return None
            pause = poll_interval(anyio.current_time() - began, self.settings.poll)
            if isinstance(outcome, Disagreement) and not math.isinf(seconds):
                pause = min(pause, max(_AGREEMENT_INTERVAL, self.settings.poll.min_interval))
            await anyio.sleep(pause)

    async def find_late(self, key: str, start: StartAttempt) -> Instance | None:
        """Search once more for the instance of an earlier request that did not appear in time."""
        began, recent = anyio.current_time(), self._recent_lists()
        # The reaper may have found it, and after a while an instance is more likely another user's.
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

    async def _decide(self, key: str | None, view: _View, recent: RecentLists, *, seconds: float) -> Outcome:
        """Decide which instance a start created, and claim it.

        It is open as long as the lists of the last `seconds` disagree.
        """
        assert key is not None  # noqa: S101  (set before it was sent)
        listing = view.instances
        unclaimed = self._claims.without_claimed(listing)

        def decide(unresolved: UnresolvedStart, claims: ForeignClaims) -> Outcome:
            outcome = claims.match(unresolved, unclaimed, listed_at=listing.date)
            return agreed(outcome, recent, seconds=seconds)

        return await self.promises.decide(key, view.claims, decide)

    def _recent_lists(self) -> RecentLists:
        # Longer than any pause between two lists, so that one list that lacks an instance decides nothing.
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
        """Return a list that was read while no start of the model was in progress; None if there is none.

        In such a list, each new instance is claimed or belongs to an unresolved start.
        """
        model_id = start.args.model_id
        generation = self._claims.idle_generation(model_id)
        if generation is None:
            return None
        claims = await self.promises.foreign_claims(start.key)
        try:
            listing = await self._listing.get(since=anyio.current_time())
        except ClientClosedError:
            raise
        except Exception as error:
            # A release also continues after errors of a credential provider or a transport.
            if not to_release and not (isinstance(error, CortecsError) and is_transient_error(error)):
                raise
            log(
                Event.LEASE_LOOK_FAILED,
                model=start.args.hf_name,
                error_type=type(error).__name__,
                error=error,
            )
            return None
        if self._claims.idle_generation(model_id) != generation:
            return None
        return _View(listing, listing.instances, claims)

    def _ambiguous(self, start: StartAttempt, outcome: Ambiguous | Contested) -> AmbiguousStartError:
        candidates = outcome.candidates
        start.resolved(StartState.AMBIGUOUS)
        if start.key is not None:
            self.promises.record_ambiguous(start.key, candidates)
        several = len(candidates) > 1
        matches = "several new instances match" if several else "a new instance matches"
        billed = "ONE OF THEM MAY BE YOURS AND BILLED" if several else "IT MAY BE YOURS AND BILLED"
        return AmbiguousStartError(
            f"the response to a start of {start.args.hf_name} was lost, and {matches} it: "
            f"{', '.join(candidates)}. None was touched. {billed}: check client.instances.list(), and stop "
            "yours.",
            candidates=candidates,
        )

    async def _baseline(self) -> _Listing:
        """Return a recent list, or join a request in progress, or read a new list."""
        recent = self._recent
        if recent is not None and recent.began >= anyio.current_time() - _BASELINE_MAX_AGE:
            return recent
        return await self._listing.get()

    async def _list(self) -> _Listing:
        began = anyio.current_time()
        self._recent = _Listing(await self.instances.list_now(), began)
        return self._recent
