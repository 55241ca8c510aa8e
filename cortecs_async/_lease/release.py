"""Release what a lease holds: find it if its start is unresolved, tear it down, and close its record."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable

import anyio
from attrs import define

from .._aio.eventloop import loop_clock
from .._aio.tasks import run_uncancellable
from .._api.instances import Instances, Origin
from .._api.teardown import Goal, Teardown
from .._api.validation import check_body_id
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
from .options import OnExit
from .starter import Starter, StartState
from .state import HeldInstance, LeaseServices


def goal_of(on_exit: OnExit, origin: Origin) -> Goal | None:
    """Return the state to leave the instance in; None to leave it alone, as it was found."""
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
    """Default callback: do nothing."""


@define(eq=False)
class Release:
    """One release. After an interruption, call `run` again to continue; the deadline stays the same.

    Attributes:
        instances: Sends the requests of the teardown, without retries.
        starter: Finds the instance of a start whose outcome is unknown.
        promises: Where the release is recorded.
        held: What to release.
        on_exit: Whether to delete, stop or keep the instance.
        deadline: In seconds of `anyio.current_time`.
        settle: Seconds after its start in which a missing instance may just not be listed yet.
        on_work: Called before the work begins, and again after an interruption. Must not raise.
        failure: Why the release failed.
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
        """The state to leave the instance in; None if there is nothing to do."""
        return None if self.held.instance_id is None else goal_of(self.on_exit, self.held.origin)

    @property
    def stopped_at(self) -> float | None:
        """When the instance was last told to stop, in seconds of `anyio.current_time`."""
        return None if self._teardown is None else self._teardown.stopped_at

    async def run(self) -> None:
        """Release the instance by the deadline; if that fails, set `failure`."""
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
        # Not strict: if the journal misses a release, the next sweep only finds that the instance is gone.
        await self.promises.flush()

    async def _find(self) -> None:
        start = self.held.attempt
        if start is None or not start.is_open:
            return
        with anyio.CancelScope(deadline=self.deadline) as time:
            try:
                await self.starter.resolve(start, eager=True)
            except (AmbiguousStartError, ClientClosedError) as error:
                self.failure = error
        if time.cancelled_caught:
            self.failure = CortecsError(
                f"it is unknown whether a start of {start.args.hf_name} created an instance. IT MAY BE "
                "BILLED: the reaper keeps looking for it, and so does `python -m cortecs_async sweep`."
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
            # An instance that stays was handed over when the block began.
            if self.goal is not None or self.held.instance_id is None:
                self.promises.record_gone(key)
        elif not isinstance(self.failure, AmbiguousStartError):
            self.promises.record_abandoned(key)


async def release_acquired(services: LeaseServices, handle: InstanceHandle | str, timeout: float) -> None:
    """Stop and delete an acquired instance, in a task that the caller cannot cancel.

    Raises:
        InvalidArgumentError: if `handle` is neither a handle nor an id, or belongs to another account.
        TeardownError: if the instance is not confirmed deleted within `timeout` seconds.
        RequestError: if the service rejects the request for the list.
    """
    account = handle.account if isinstance(handle, InstanceHandle) else None
    instance_id = check_body_id(handle.instance_id if isinstance(handle, InstanceHandle) else handle)
    info = LeaseInfo(operation="release", instance_id=instance_id)
    report = Report(services.observer, lambda: info, loop_clock())
    acquired = _AcquiredRelease(services, instance_id, account, anyio.current_time() + timeout, report)
    services.http.hold()
    try:
        ended = await run_uncancellable(acquired.run, resume=True)
        report.leave(ended.error)
        ended.interruption = ended.interruption or report.interruption
        ended.unwrap()
    finally:
        await services.http.release()


@define(eq=False)
class _AcquiredRelease:
    """One release of an acquired instance. After an interruption, call `run` again to continue."""

    services: LeaseServices
    instance_id: str
    account: str | None
    deadline: float
    report: Report
    release: Release | None = None

    async def run(self) -> None:
        """List the instances, record the promise, and release the instance."""
        services = self.services
        if self.release is None:
            # The list also fetches the token, which sets the account.
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
            # Recorded first, so that it also happens if this process is killed.
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
