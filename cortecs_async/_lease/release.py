"""Release a lease's instance: find it if its start is unresolved, tear it down, and close its record."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import anyio
from attrs import define, field

from .._aio.eventloop import loop_clock
from .._aio.synchronization import Mutex
from .._aio.tasks import run_uncancellable
from .._api.listing import existing_ids
from .._api.teardown import Goal, Teardown
from .._api.validation import check_body_id
from .._api.waiting import has_ended, wait_until
from .._errors import (
    AmbiguousStartError,
    ClientClosedError,
    CortecsError,
    InvalidArgumentError,
    TeardownError,
    add_note,
)
from .._logging import Event, log
from .._recovery.cost_lines import CostOutcome, bill_of, line_of_promise
from .._recovery.promises import Promises
from .._recovery.records import Record
from .._telemetry import LeaseInfo, Report
from .handle import InstanceHandle
from .options import OnExit
from .start_state import StartState
from .state import HeldInstance, LeaseServices, LeaseState, Origin


@define(eq=False)
class Release:
    """A single release operation. After an interruption, call `run` again to continue with the same deadline.

    Attributes:
        deadline: The deadline in seconds of `anyio.current_time`.
        on_work: Called before the work begins and again after an interruption. Must not raise.
        record_cost: Called once with this release and the key of the promise, before the promise is closed.
        failure: The error if the release failed.
    """

    services: LeaseServices
    held: HeldInstance
    on_exit: OnExit
    deadline: float
    on_work: Callable[[], None]
    record_cost: Callable[[Release, str], None]
    failure: CortecsError | None = None
    _teardown: Teardown | None = None
    # Returns the failure, with a sentence that says who releases the instance.
    _explain: Callable[[str], CortecsError] | None = None
    # The teardowns for earlier requests, by the keys of their records. Kept, because a search does not find
    # an instance twice.
    _late: dict[str, Teardown] = field(factory=dict)
    _is_closed: bool = False
    _has_recorded_cost: bool = False
    # Held by a run that continues although its caller was closed.
    _lock: Mutex = field(factory=Mutex)

    @property
    def goal(self) -> Goal | None:
        """The state to leave the instance in, or None to leave it alone or if there is no instance."""
        if self.held.instance_id is None:
            return None
        match self.held.origin:
            case Origin.FOUND:
                return None
            case Origin.RESTARTED:
                return None if self.on_exit == "keep" else Goal.STOPPED
            case Origin.STARTED:
                return {"delete": Goal.GONE, "stop": Goal.STOPPED, "keep": None}[self.on_exit]

    @property
    def stopped_at(self) -> float | None:
        """The time the service last accepted a stop request, in seconds of `anyio.current_time`."""
        return None if self._teardown is None else self._teardown.stopped_at

    @property
    def loss(self) -> str | None:
        """How the instance was lost before its release, such as 'disappeared', or None if it was not lost."""
        return None if self._teardown is None or self.failure is not None else self._teardown.loss

    async def run(self) -> None:
        """Release the instance by the deadline; if that fails, set `failure`."""
        async with self._lock:
            await self._run_once()

    async def _run_once(self) -> None:
        if self.goal is not None or self.held.instance_id is None:
            self.on_work()
        if not self._is_closed:
            # Records that are only queued would be lost if the process were killed now.
            await self.services.promises.flush()
            # Once these are done, another call of them does nothing.
            await self._find()
            await self.services.promises.flush()
            await self._end_restart()
            await self._tear_down()
            self._close()
            await self._find_not_seen()
            # Not strict: if the journal misses a release, the next sweep finds that nothing is left to do.
            await self.services.promises.flush()
            if self._explain is not None:
                # Only the flush shows whether the journal and the reaper have the record.
                self.failure = self._explain(self.services.promises.who_releases())
            self._is_closed = True

    async def _find(self) -> None:
        start = self.held.attempt
        if start is None or not start.is_open:
            return
        failure: CortecsError | None = None
        with anyio.CancelScope(deadline=self.deadline):
            try:
                await self.services.starter.search.resolve(start, to_release=True)
            except (AmbiguousStartError, ClientClosedError) as error:
                failure = error
        # The response counts as long as the connection is open.
        await start.end_request()
        if start.state is StartState.NOT_STARTED and start.key is not None:
            key, start.key = start.key, None
            await self.services.promises.close(key)
        if start.is_open:
            if failure is None:
                self._explain = partial(_unresolved_start, start.args.hf_name)
                failure = self._explain(self.services.promises.who_releases())
            start.give_up()
            if self.held.key is not None and start.key is not None:
                # There is also a previously restarted instance, with its own record.
                self.services.promises.record_abandoned(start.key)
        self.failure = failure

    async def _end_restart(self) -> None:
        """Wait for the effect of a restart that is still in progress, because its caller was cancelled."""
        restart, instance_id = self.held.restart, self.held.instance_id
        if restart is None or instance_id is None or self.held.origin is not Origin.RESTARTED:
            return
        poller = self.services.instances.poller
        with anyio.CancelScope(deadline=self.deadline):
            await restart.end(lambda: wait_until(poller, instance_id, lambda each: not has_ended(each)))
        if restart.is_refused() and (key := restart.disown()) is not None:
            await self.services.promises.close(key)

    async def _tear_down(self) -> None:
        goal, instance_id = self.goal, self.held.instance_id
        if goal is None or instance_id is None:
            return
        if self._teardown is None:
            self._teardown = self._teardown_of(instance_id, goal)
            # The teardown still sends another request to the service.
            self._teardown.inactive_since = self.held.missing_since
        await self._run(self._teardown)

    async def _find_not_seen(self) -> None:
        """Release the instances of earlier start requests, if they have appeared by now."""
        start = self.held.attempt
        if start is None or not start.not_seen or self.held.instance_id is None:
            return
        with anyio.CancelScope(deadline=self.deadline):
            for key in list(start.not_seen):
                if key not in self._late:
                    instance = await self.services.starter.search.find_late(key, start)
                    if instance is None:
                        continue
                    self._late[key] = self._teardown_of(instance.instance_id, Goal.GONE)
                late = self._late[key]
                if await self._run(late):
                    _record_promise(self.services.promises, key, late.instance_id, late.stopped_at, "failed")
                    self.services.promises.record_gone(key)
                    start.not_seen.remove(key)

    def _teardown_of(self, instance_id: str, goal: Goal) -> Teardown:
        return Teardown(
            instances=self.services.releasing,
            instance_id=instance_id,
            goal=goal,
            deadline=self.deadline,
            visible_at=self.services.instances.poller.expected.visible_at(instance_id),
        )

    async def _run(self, teardown: Teardown) -> bool:
        """Run a teardown and return whether it succeeded."""
        instance_id, releasing = teardown.instance_id, self.services.releasing.releasing
        releasing.add(instance_id)
        try:
            await teardown.run()
        except TeardownError as error:
            self.failure = error
            self._explain = teardown.error
            return False
        finally:
            releasing.discard(instance_id)
        return True

    def _close(self) -> None:
        key, promises = self.held.open_key, self.services.promises
        if key is None:
            return
        if self.goal is not None and not self._has_recorded_cost:
            self._has_recorded_cost = True
            self.record_cost(self, key)
        if self.failure is None:
            if self.goal is Goal.GONE and self.held.instance_id is not None:
                self.services.releasing.claims.ids.discard(self.held.instance_id)
            # An instance that is kept was handed over when the block began.
            if self.goal is not None or self.held.instance_id is None:
                promises.record_gone(key)
            else:
                promises.record_kept(key)
        elif not isinstance(self.failure, AmbiguousStartError):
            promises.record_abandoned(key)


def _unresolved_start(model: str, who_releases: str) -> CortecsError:
    return CortecsError(
        f"A start request for {model} may have created an instance. IT MAY BE BILLED. {who_releases}."
    )


def close_receipt(state: LeaseState, release: Release, failure: BaseException | None) -> None:
    """Set the final receipt and log the outcome of the release."""
    held = state.held
    state.close(release.stopped_at, released=failure is None and release.goal is not None)
    model = state.info().model
    if failure is not None:
        # Other errors, such as KeyboardInterrupt, do not mention the instance.
        if not isinstance(failure, CortecsError):
            add_note(failure, f"MAY STILL BE BILLED: {held.name}")
        log(
            Event.LEASE_NOT_RELEASED,
            instance_id=held.instance_id,
            model=model,
            error_type=type(failure).__name__,
            name=held.name,
            error=failure,
        )
    elif release.goal is not None and (final := state.final) is not None:
        log(
            Event.LEASE_ENDED,
            instance_id=held.instance_id,
            model=model,
            goal=release.goal.value,
            seconds=final.seconds,
            cost=final.cost,
            currency=final.currency,
            name=held.name,
            receipt=final,
        )


async def release_acquired(services: LeaseServices, handle: InstanceHandle | str, timeout: float) -> None:
    """Stop and delete an acquired instance, in a task that the caller cannot cancel."""
    account = handle.account if isinstance(handle, InstanceHandle) else None
    instance_id = check_body_id(handle.instance_id if isinstance(handle, InstanceHandle) else handle)
    info = LeaseInfo(operation="release", instance_id=instance_id)
    report = Report(services.observer, lambda: info, loop_clock())
    deadline = anyio.current_time() + timeout
    release: Release | None = None

    async def run() -> None:
        nonlocal release
        if release is None:
            # The list also fetches the token, which sets the account.
            existing = existing_ids(await services.instances.list_now())
            if instance_id not in existing and account not in {None, services.promises.account}:
                raise InvalidArgumentError(
                    f"Instance {instance_id} was acquired with different credentials, and the current "
                    "ones cannot see it. Use the credentials it was acquired with."
                )
            key = services.promises.store.key_of(instance_id)
            bill = await _unfinished_bill(services.promises, instance_id)
            # Recorded first, so that it also happens if this process is killed.
            key = services.promises.record_created(key, instance_id, goal="gone", bill=bill)
            held = HeldInstance(instance_id=instance_id, origin=Origin.STARTED, key=key)
            release = Release(
                services,
                held,
                "delete",
                deadline,
                report.tear_down,
                partial(_record_acquired, services.promises),
            )
        await release.run()
        if release.failure is not None:
            raise release.failure

    services.http.hold()
    try:
        ended = await run_uncancellable(run, restart_if_cancelled=True)
        report.leave(ended.error)
        ended.interruption = ended.interruption or report.interruption
        ended.unwrap()
    finally:
        await services.http.release()


async def _unfinished_bill(promises: Promises, instance_id: str) -> Record | None:
    """Return the bill of an instance that a lease is known to have left running."""
    if not promises.uses_journal:
        return None
    find = partial(promises.store.ledger.find_unfinished, promises.api, instance_id)
    found = await promises.system.off_loop(find)
    return None if found is None else bill_of(found)


def _record_acquired(promises: Promises, release: Release, key: str) -> None:
    outcome: CostOutcome = "released" if release.failure is None else "unreleased"
    _record_promise(promises, key, release.held.instance_id or "", release.stopped_at, outcome)


def _record_promise(
    promises: Promises, key: str, instance_id: str, stopped_at: float | None, outcome: CostOutcome
) -> None:
    """Record the cost of an instance that no lease holds. `stopped_at` is on the loop's clock."""
    promise = promises.store.state.promises.get(key)
    if promise is None:
        return  # the reaper has released the instance and recorded its cost
    now = promises.system.wall_clock()
    line = line_of_promise(
        promise,
        instance_id,
        ended_at=now if stopped_at is None else now - (anyio.current_time() - stopped_at),
        is_end_known=stopped_at is not None,
        outcome=outcome,
        written_by="lease",
    )
    promises.record_cost(line)
