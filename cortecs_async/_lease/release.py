"""Handing back what a lease holds: find it if need be, tear it down, and close its entry in the books."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import anyio
from attrs import define

from .._aio.clock import loop_clock
from .._aio.tasks import run_uncancellable
from .._api.instances import Instances, Origin
from .._api.teardown import Goal, Teardown
from .._api.validation import check_named_id
from .._errors import (
    AmbiguousStartError,
    ClientClosedError,
    CortecsError,
    InvalidArgumentError,
    TeardownError,
)
from .._recovery.promises import Promises
from .._telemetry import LeaseInfo, Report
from .endpoint import InstanceHandle
from .start_state import StartState
from .starter import Starter
from .state import HeldInstance, LeaseServices, OnExit


def goal_of(on_exit: OnExit, origin: Origin) -> Goal | None:
    """What a lease owes at its end. An instance that was there before is left as it was found."""
    match origin:
        case Origin.FOUND:
            return None
        case Origin.RESTARTED:
            return None if on_exit == "keep" else Goal.STOPPED
        case Origin.STARTED:
            return {"delete": Goal.GONE, "stop": Goal.STOPPED, "keep": None}[on_exit]


class _Step(enum.Enum):
    FIND = enum.auto()
    TEAR_DOWN = enum.auto()
    CLOSE = enum.auto()
    DONE = enum.auto()


def _nothing() -> None:
    """Nobody wants to know."""


@define(eq=False)
class Release:
    """One release; can be taken up again after an interruption, with the same deadline.

    Attributes:
        instances: Where the requests of the teardown go, unretried.
        starter: Finds what a start without an answer has made.
        keeper: The books.
        holding: What to hand back.
        on_exit: What becomes of it.
        deadline: In seconds of `anyio.current_time`.
        settle: Seconds after its start in which an instance that is missing may just not be readable yet.
        on_work: Called before something is found or torn down, again after an interruption. Must not raise.
    """

    instances: Instances
    starter: Starter
    promises: Promises
    held: HeldInstance
    on_exit: OnExit
    deadline: float
    settle: float = 0.0
    on_work: Callable[[], None] = _nothing
    failure: CortecsError | None = None
    _teardown: Teardown | None = None
    _step: _Step = _Step.FIND

    @property
    def goal(self) -> Goal | None:
        """Where it ends; None when nothing is owed."""
        return None if self.held.instance_id is None else goal_of(self.on_exit, self.held.origin)

    @property
    def stopped_at(self) -> float | None:
        """When the instance was last told to stop, in seconds of `anyio.current_time`."""
        return None if self._teardown is None else self._teardown.stopped_at

    async def run(self) -> None:
        """Works until it is done or its time is up; what could not be done is in `failure`."""
        if self.goal is not None or self.held.instance_id is None:
            self.on_work()
        if self._step is _Step.FIND:
            await self._find()
            self._step = _Step.TEAR_DOWN
        if self._step is _Step.TEAR_DOWN:
            await self._tear_down()
            self._step = _Step.CLOSE
        if self._step is _Step.CLOSE:
            self._close()
            self._step = _Step.DONE
        # A journal that is a little behind does no harm: what is gone is looked up in vain.
        await self.promises.flush()

    async def _find(self) -> None:
        start = self.held.attempt
        if start is None or start.state not in {StartState.SENT, StartState.UNKNOWN}:
            return
        with anyio.CancelScope(deadline=self.deadline) as time:
            try:
                await self.starter.resolve(start, eager=True)
            except (AmbiguousStartError, ClientClosedError) as error:
                self.failure = error
        if time.cancelled_caught:
            self.failure = CortecsError(
                f"whether a start of {start.args.hf_name} made an instance could not be told in time. IT MAY "
                "BE BILLED: the reaper goes on looking, and `python -m cortecs_async sweep` does."
            )
        if self.failure is not None:
            start.resolved(StartState.GIVEN_UP)

    async def _tear_down(self) -> None:
        goal, instance_id = self.goal, self.held.instance_id
        if goal is None or instance_id is None:
            return
        began = self.held.billed_from
        if self._teardown is None:
            self._teardown = Teardown(
                instances=self.instances,
                instance_id=instance_id,
                goal=goal,
                deadline=self.deadline,
                settled_at=-math.inf if began is None else began + self.settle,
            )
        self.instances.releasing.add(instance_id)
        try:
            await self._teardown.run()
        except TeardownError as error:
            self.failure = error
        finally:
            self.instances.releasing.discard(instance_id)

    def _close(self) -> None:
        key = self.held.open_key
        if key is None:
            return
        if self.failure is None:
            if self.goal is Goal.GONE and self.held.instance_id is not None:
                self.instances.claims.ids.discard(self.held.instance_id)
            # An instance that stays on purpose was handed over when the block began.
            if self.goal is not None or self.held.instance_id is None:
                self.promises.record_gone(key)
        elif not isinstance(self.failure, AmbiguousStartError):
            self.promises.record_abandoned(key)


async def release_acquired(services: LeaseServices, handle: InstanceHandle | str, timeout: float) -> None:
    """Stops and deletes an instance, and returns when it is read to be gone, whatever becomes of the caller.

    Raises:
        InvalidArgumentError: for what is no handle and no id, or a handle of another account.
        TeardownError: when it could not be done in `timeout` seconds.
        RequestError: when the service refuses to list instances.
    """
    account = handle.account if isinstance(handle, InstanceHandle) else None
    instance_id = check_named_id(handle.instance_id if isinstance(handle, InstanceHandle) else handle)
    info = LeaseInfo(operation="release", instance_id=instance_id)
    report = Report(services.observer, lambda: info, loop_clock())
    returning = _AcquiredRelease(services, instance_id, account, anyio.current_time() + timeout, report)
    services.http.hold()
    try:
        ended = await run_uncancellable(returning.run, resume=True)
        report.leave(ended.error)
        ended.interruption = ended.interruption or report.interruption
        ended.unwrap()
    finally:
        await services.http.release()


@define(eq=False)
class _AcquiredRelease:
    """One release; can be taken up again after an interruption."""

    services: LeaseServices
    instance_id: str
    account: str | None
    deadline: float
    report: Report
    release: Release | None = None

    async def run(self) -> None:
        """Works until it is done."""
        services = self.services
        if self.release is None:
            # And with the list the token, which tells the account.
            listed = {each.instance_id for each in await services.instances.list_now()}
            key = services.promises.store.key_of(self.instance_id)
            if self.instance_id not in listed:
                if self.account not in {None, services.promises.account}:
                    raise InvalidArgumentError(
                        f"instance {self.instance_id} was acquired with other credentials, "
                        "and these do not show it"
                    )
                if key is not None:
                    services.promises.record_gone(key)
                return
            # Promised, so that it happens even when this process is killed meanwhile.
            key = services.promises.record_created(key, self.instance_id, goal="gone")
            self.release = Release(
                instances=services.releasing,
                starter=services.starter,
                promises=services.promises,
                held=HeldInstance(instance_id=self.instance_id, origin=Origin.STARTED, key=key),
                on_exit="delete",
                deadline=self.deadline,
                on_work=self.report.tear_down,
            )
        await services.promises.flush()
        await self.release.run()
        if self.release.failure is not None:
            raise self.release.failure
