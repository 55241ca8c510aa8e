"""Start an instance without losing it, even if the response to the start request is lost.

The service does not support idempotency keys, so a start request with an unknown outcome is never repeated
blindly. For each attempt:

1. List the existing instances (the baseline) and record the intent in the journal and the reaper.
2. Send the start request. `StartAttempt` receives the outcome, even if the task that sent it is cancelled.
3. If the service rejects the start request, or it was not sent, nothing was started: close the record durably
   and retry as `RetryPolicy` allows.
4. If the outcome is unknown, list until a new instance with the same arguments appears, and adopt it. If
   several could be ours, raise AmbiguousStartError. If none appears in time, the start request can be sent
   again. The record of the first one stays open, because its instance may still appear: the reaper and
   `sweep` search for it, and the lease's release searches once.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import anyio
from attrs import define, evolve, field

from .._aio.closing import is_closed_coroutine
from .._aio.synchronization import SingleFlight
from .._api.domain import Instance, InstanceArgs
from .._api.instances import Instances
from .._api.listing import ListedIds
from .._api.resources import Models
from .._config import Settings
from .._errors import RequestError
from .._http.limiter import Priority, PriorityLimiter
from .._http.messages import Failure
from .._http.retry import counts_as_retry, is_transient, next_wait
from .._logging import Event, log
from .._recovery.promises import Promises
from .._telemetry import Observer
from .start_search import StartSearch
from .start_state import StartAttempt, StartState
from .tags import StartTags

# Maximum age in seconds of a list that serves as a baseline, so that many start requests in a row share
# lists.
_BASELINE_MAX_AGE = 1.0


@define(eq=False, kw_only=True, slots=False)
class Starter:
    """Starts the instances of one client's leases."""

    instances: Instances
    models: Models
    promises: Promises
    settings: Settings
    observer: Observer
    _rng: random.Random = field(factory=random.Random)

    def __attrs_post_init__(self) -> None:
        self._claims = self.instances.claims
        self._listing = SingleFlight(self._list)
        self.search: StartSearch = StartSearch(
            instances=self.instances, promises=self.promises, settings=self.settings
        )
        self._tags = StartTags(self.models, self._rng, enabled=self.settings.tag_starts)
        # Twice the number of parallel requests, so that the next starts have their baselines in time.
        self._slots = PriorityLimiter(2 * self.settings.max_connections)

    def prepare(self, args: InstanceArgs, on_started: Callable[[Instance], None]) -> StartAttempt:
        return StartAttempt(args=args, policy=self.settings.retry, claims=self._claims, on_started=on_started)

    async def start(self, start: StartAttempt) -> Instance:
        """Start an instance. If the response is lost, find the instance.

        Raises:
            AmbiguousStartError: if it is unclear which instance the start request created.
            JournalError: if the journal is required but missing. Nothing was sent.
            GuardError: if the reaper is required but missing. Nothing was sent.
            RequestError: if nothing was started or, with `outcome_unknown`, if that is uncertain.
        """
        self.promises.arm()
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
                if found := await self.search.resolve(start, to_release=False):
                    return found
                # 503 means "no capacity" as often as "down", so the caller decides whether to try again.
                may_repeat = start.failure.status != 503 and is_transient(start.failure)
                if counted > self.settings.retry.max_retries or not may_repeat:
                    raise
                log(Event.LEASE_START_REPEATED, model=start.args.hf_name)

    def wait_before_retry(
        self, path: str, failure: Failure, *, attempt: int, counted: int, elapsed: float
    ) -> float | None:
        """Return the seconds until a rejected start or restart request can be sent again, or None to give up.

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
        """List the baseline, record the intent, and send the start request.

        This takes a slot first. Otherwise, the baseline could be outdated by the time a connection is free.
        """
        start.failure, start.state = None, StartState.NOT_STARTED
        start.recent = self.search.recent_lists()
        await self._acquire_slot(start.args.model_id)
        try:
            # Before the baseline, which must be recent when the start request is sent.
            tag = await self._tags.new_tag(start.args)
            listed = await self._baseline()
            # The journal drops a baseline that no open start uses. Without a baseline, every instance looks
            # new.
            if listed.baseline is None or not self.promises.store.has_baseline(listed.baseline):
                listed.baseline = self.promises.baseline(listed.ids)
            start.key = await self.promises.record_intent(
                start.args,
                listed.baseline,
                service_at=listed.date,
                tag=tag,
                bill=start.bill(start.args),
            )
            if tag is not None and not self._tags.enabled:
                # In the meantime, another start request has shown that the service does not return tags.
                tag = None
                self.promises.untag()
                await self.promises.flush()
            start.unresolved = self.promises.unresolved_start(start.key)
            sent = start.args if tag is None else evolve(start.args, context_length=tag)
            instance = await self.instances.start_once(sent, start)
        except BaseException as error:
            if start.key is not None and start.state is StartState.NOT_STARTED:
                key, start.key = start.key, None
                if is_closed_coroutine(error):
                    self.promises.close_soon(key)
                else:
                    await self.promises.close(key)
            start.interrupted()
            raise
        finally:
            self._slots.release(Priority.CALL)
        if tag is not None and not self._tags.is_returned(tag, instance):
            self.promises.untag()
        return instance

    async def _acquire_slot(self, model_id: str) -> None:
        """Take a slot while no start of the model is unresolved, because its instance would match too."""
        while True:
            while self._claims.unresolved.get(model_id):  # noqa: ASYNC110  (rare, and bounded)
                await anyio.sleep(self.settings.poll.min_interval)
            await self._slots.acquire(Priority.CALL)
            if not self._claims.unresolved.get(model_id):
                return
            self._slots.release(Priority.CALL)

    async def _baseline(self) -> ListedIds:
        """Return a recent list, which may be a poll's, join a request in progress, or fetch a new list."""
        latest = self.instances.poller.latest
        if latest is not None and latest.began >= anyio.current_time() - _BASELINE_MAX_AGE:
            return latest
        return await self._listing.get()

    async def _list(self) -> ListedIds:
        began = anyio.current_time()
        latest = self.instances.poller.latest = ListedIds.of(await self.instances.list_now(), began)
        return latest
