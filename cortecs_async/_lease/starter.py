"""Starting an instance so that it cannot be lost: promised first, and found again when no answer comes.

The service has no idempotency key. A start whose answer is lost is never repeated before it is known that it
did nothing: its instance is looked for among those that were not there before.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable

import anyio
from attrs import define, field, frozen

from .._api.domain import Instance, InstanceArgs
from .._api.instances import Instances
from .._api.matching import Ambiguous, UnresolvedStart, match_start
from .._api.polling import is_transient_error, poll_interval
from .._config import PollPolicy, RetryPolicy
from .._errors import AmbiguousStartError, ClientClosedError, CortecsError, RequestError
from .._http.limiter import Priority, PriorityLimiter
from .._http.messages import Failure
from .._http.retry import counts_as_retry, is_transient, next_wait
from .._logging import Event, log
from .._recovery.claims import ForeignClaims
from .._recovery.promises import Promises
from .._telemetry import Observer
from .start_state import StartAttempt, StartState

# Seconds for which a list tells what exists before a start, so that starts that come in a stream share it.
_FRESH = 1.0

# Seconds more to wait while an instance may be that of a start of another process.
_RIVALRY = 60.0


@define(eq=False)
class _Listing:
    instances: tuple[Instance, ...]
    began: float
    name: str | None = None  # in the books, once it is the baseline of a start


@frozen
class _Verdict:
    outcome: Instance | Ambiguous | None
    is_final: bool  # or may another process still explain it


@define(eq=False)
class _Flight:
    began: float
    done: anyio.Event = field(factory=anyio.Event)
    listing: _Listing | None = None
    error: Exception | None = None


class Starter:
    """Starts for the leases of one client."""

    def __init__(
        self,
        instances: Instances,
        promises: Promises,
        retry: RetryPolicy,
        poll: PollPolicy,
        *,
        max_connections: int,
        observer: Observer,
    ) -> None:
        self._instances = instances
        self._promises = promises
        self._retry = retry
        self._poll = poll
        self._claims = instances.claims
        self._observer = observer
        self._flight: _Flight | None = None
        self._recent: _Listing | None = None
        self._rng = random.Random()  # noqa: S311  (jitter)
        # Twice as many as can be sent at once: so the next have noted what exists when the first are done.
        self._turns = PriorityLimiter(2 * max_connections)

    def prepare(self, args: InstanceArgs, on_started: Callable[[Instance], None]) -> StartAttempt:
        """A start that has not begun."""
        return StartAttempt(args=args, policy=self._retry, claims=self._claims, on_started=on_started)

    async def start(self, start: StartAttempt) -> Instance:
        """Starts, and finds what a lost answer hid.

        Raises:
            AmbiguousStartError: when that cannot be told from what others have started.
            JournalError: or `GuardError`, before anything is sent, when one is required and missing.
            RequestError: when nothing was started; or, with `outcome_unknown`, when nobody can tell.
        """
        attempt = counted = 0
        spent = 0.0  # seconds of attempts and pauses, without those in which others had their turn
        while True:
            attempt += 1
            try:
                return await self._attempt(start)
            except RequestError as error:
                if start.failure is None:
                    raise  # of the list before it
                counted += counts_as_retry(start.failure)
                if start.state is not StartState.UNKNOWN:
                    spent += anyio.current_time() - start.sent_at
                    wait = self._pause(start.failure, attempt=attempt, counted=counted, spent=spent)
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
                    self._observer.retry(
                        "POST", "/instances/start", start.failure, attempt=attempt, wait=wait
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
                found = await self.resolve(start, eager=False)
                if found is not None:
                    return found
                if counted > self._retry.max_retries or not _may_try_again(start.failure):
                    error.outcome_unknown = False
                    error.add_note("cortecs_async: its instance was looked for, and none has appeared")
                    raise
                log(Event.LEASE_START_REPEATED, model=start.args.hf_name)
            finally:
                if start.state is StartState.NOT_STARTED:
                    self._close(start)

    def _pause(self, failure: Failure, *, attempt: int, counted: int, spent: float) -> float | None:
        """Seconds until a start that did nothing is sent again; None when it is given up.

        Here and not in the transport: each attempt must know what exists just before it.
        """
        return next_wait(
            "POST",
            "/instances/start",
            failure,
            attempt=attempt,
            counted=counted,
            elapsed=spent,
            policy=self._retry,
            rng=self._rng,
        )

    async def _attempt(self, start: StartAttempt) -> Instance:
        """Notes what exists, promises, and sends.

        In a turn: else what it has noted could be long out of date when a connection is free, and what others
        have started meanwhile would be taken for its own.
        """
        start.failure = None
        await self._enter(start.args.model_id)
        try:
            listing = await self._baseline()
            # Of an earlier start, it may have been dropped since, and to an empty one everything is new.
            if listing.name is None or not self._promises.has_baseline(listing.name):
                listing.name = self._promises.baseline(each.instance_id for each in listing.instances)
            start.key = await self._promises.record_intent(start.args, listing.name)
            start.unresolved = self._promises.unknown(start.key)
            return await self._instances.start_once(start.args, start)
        finally:
            self._turns.release(Priority.CALL)

    async def _enter(self, model_id: str) -> None:
        while True:
            while self._claims.unresolved.get(model_id):  # noqa: ASYNC110  (rare, and bounded)
                # A new one would be taken for that of a start that is being looked for.
                await anyio.sleep(self._poll.min_interval)
            await self._turns.acquire(Priority.CALL)
            if not self._claims.unresolved.get(model_id):
                return
            self._turns.release(Priority.CALL)

    async def resolve(self, start: StartAttempt, *, eager: bool) -> Instance | None:
        """What a start without an answer has made; None when nothing.

        Args:
            start: The start.
            eager: Take its instance as soon as it is seen, for a release. Otherwise only once nothing more
                can appear that might be it.

        Raises:
            AmbiguousStartError: when it cannot be told.
            RequestError: when the service refuses to say, unless `eager`, which asks until it is cancelled.
        """
        start.interrupted()
        assert start.unresolved is not None  # noqa: S101  (set before it was sent)
        if start.key is not None:
            self._promises.record_unanswered(start.key)
        began = anyio.current_time()
        while True:
            listing = await self._look(start, eager=eager)
            if listing is not None:
                others = await self._promises.foreign_claims()
                verdict = self._judge(start.unresolved, listing, others)
                # What another process of this machine has just started may be no candidate in a moment.
                is_over = listing.began >= start.visible_until + (0.0 if verdict.is_final else _RIVALRY)
                if isinstance(verdict.outcome, Instance) and verdict.is_final and (eager or is_over):
                    log(
                        Event.LEASE_ADOPTED,
                        instance_id=verdict.outcome.instance_id,
                        model=start.args.hf_name,
                    )
                    start.adopted = True
                    start.started(verdict.outcome)
                    return verdict.outcome
                if is_over and verdict.outcome is None:
                    start.resolved(StartState.NOT_STARTED)
                    self._close(start)
                    return None
                if is_over:
                    self._give_up(start, verdict.outcome)
            await anyio.sleep(poll_interval(anyio.current_time() - began, self._poll))

    def _judge(self, mine: UnresolvedStart, listing: _Listing, others: ForeignClaims) -> _Verdict:
        free = self._claims.without_claimed(listing.instances, others.ids)
        peers = self._claims.unresolved.get(mine.args.model_id, [])
        starts = sorted([*peers, *others.unanswered], key=lambda each: each.order)
        outcome = match_start(mine, starts, free)
        rivals = [*others.starting, *others.orphaned_starts]
        is_rivalled = any(start.fits(instance) for start in rivals for instance in free)
        return _Verdict(outcome, is_final=outcome is None or not is_rivalled)

    async def _look(self, start: StartAttempt, *, eager: bool) -> _Listing | None:
        """A list in which everything new belongs to somebody known or to an unknown start."""
        model_id = start.args.model_id
        sky = self._claims.idle_generation(model_id)
        if sky is None:
            return None
        try:
            listing = await self._list(since=anyio.current_time())
        except ClientClosedError:
            raise
        except Exception as error:
            # Among them a credential provider's or a transport's own: a release outlasts those.
            if not eager and not (isinstance(error, CortecsError) and is_transient_error(error)):
                raise
            log(
                Event.LEASE_LOOK_FAILED,
                model=start.args.hf_name,
                error_type=type(error).__name__,
                error=error,
            )
            return None
        return listing if self._claims.idle_generation(model_id) == sky else None

    def _give_up(self, start: StartAttempt, outcome: Ambiguous | Instance | None) -> None:
        candidates = outcome.candidates if isinstance(outcome, Ambiguous) else ()
        if isinstance(outcome, Instance):
            candidates = (outcome.instance_id,)
        start.resolved(StartState.AMBIGUOUS)
        start.candidates = candidates
        if start.key is not None:
            self._promises.record_ambiguous(start.key, candidates)
        raise AmbiguousStartError(
            f"a start of {start.args.hf_name} got no answer, and it cannot be told which instance it made: "
            f"{', '.join(candidates)} appeared since. None was touched. ONE OF THEM MAY BE YOURS, AND IS "
            "BILLED: see client.instances.list() and stop what nobody else has started.",
            candidates=candidates,
        )

    def _close(self, start: StartAttempt) -> None:
        if start.key is not None:
            self._promises.record_gone(start.key)
            start.key = None

    async def _baseline(self) -> _Listing:
        """What exists. A list of a moment ago will do, and so does one that is under way."""
        recent = self._recent
        if recent is not None and recent.began >= anyio.current_time() - _FRESH:
            return recent
        return await self._list(since=None)

    async def _list(self, *, since: float | None) -> _Listing:
        """A list that others share who want one at the same time.

        Args:
            since: It must have been asked for at this time or later; None takes one that is under way.
        """
        while True:
            flight = self._flight
            if flight is None:
                return await self._fly()
            await flight.done.wait()
            if since is not None and flight.began < since:
                continue
            if flight.listing is not None:
                return flight.listing
            if flight.error is not None and since is None:
                raise copy.copy(flight.error) if isinstance(flight.error, CortecsError) else flight.error
            # Who asked was cancelled: the next one asks.

    async def _fly(self) -> _Listing:
        flight = self._flight = _Flight(anyio.current_time())
        try:
            flight.listing = self._recent = _Listing(await self._instances.list_now(), flight.began)
        except Exception as error:
            flight.error = error
            raise
        else:
            return flight.listing
        finally:
            self._flight = None
            flight.done.set()


def _may_try_again(failure: Failure | None) -> bool:
    # 503 says "no capacity" as often as "down": the caller decides.
    return failure is not None and is_transient(failure) and failure.status != 503
