"""The program of a process: leases one after another, in parallel, and nested in each other's bodies."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from attrs import define, field

from cortecs_async import AsyncCortecs, InstanceLease, errors

from .data import REQUEST_TIMEOUT, Cancel, Lease
from .history import LeaseHistory
from .network import current_lease

if TYPE_CHECKING:
    from .actors import ProcessActor
    from .run import Simulation

PRICE_TIMEOUT = 10.0
# Seconds for one request with retries. `release` lists the instances before its own time begins.
TOTAL_TIMEOUT = 180.0
# Seconds of virtual time that file operations and the order of events may add to a limit.
SLACK = 1.0


# Seconds between two attempts of a caller that waits for capacity.
CAPACITY_PAUSE = 20.0


class BodyError(Exception):
    """The exception of a failing body."""


@define(eq=False)
class Node:
    """A lease, and the groups of leases in its body."""

    plan: Lease
    groups: list[list[Node]] = field(factory=list)


def outline(leases: Sequence[Lease]) -> list[list[Node]]:
    """Return groups of parallel leases. The groups run one after another."""
    roots: list[list[Node]] = []
    path: list[list[list[Node]]] = [roots]
    for plan in leases:
        depth = min(plan.depth, len(path) - 1)
        groups = path[depth]
        node = Node(plan)
        if plan.parallel and groups:
            groups[-1].append(node)
        else:
            groups.append([node])
        path[depth + 1 :] = [node.groups]
    return roots


def _has_siblings(groups: Sequence[Sequence[Node]]) -> bool:
    return any(len(group) > 1 or _has_siblings(group[0].groups) for group in groups)


class Program:
    """A run of a process's program.

    Attributes:
        cancelled_at: The time when it was cancelled.
        continued_at: The time when it continued after its leases.
        end: The exception with which it ended.
        ended_at: The time when it ended.
    """

    def __init__(self, world: Simulation, actor: ProcessActor, client: AsyncCortecs) -> None:
        self.world = world
        self.actor = actor
        self.plan = actor.plan
        self.roots = outline(actor.plan.leases)
        self.began_at = anyio.current_time()
        self.cancelled_at: float | None = None
        self.continued_at: float | None = None
        self.end: BaseException | None = None
        self.ended_at = math.inf
        self._client = client

    async def run(self) -> None:
        """Run it until it ends or is killed."""
        if self.world.backend == "asyncio":
            await self._run_as_task()
        else:
            try:
                # Inside: the scope removes cancellations from a group, and only the rest is an Exception.
                with anyio.CancelScope() as scope:
                    self.actor.cancel = scope.cancel
                    await self._with_cancel()
            except Exception as error:  # noqa: BLE001  (checked at the end)
                self.end = error
        self.ended_at = anyio.current_time()

    async def _run_as_task(self) -> None:
        task = asyncio.ensure_future(self._with_cancel())
        self.actor.cancel = task.cancel
        cancel = self.plan.cancel
        if cancel is not None and cancel.method == "task":
            for pause in (cancel.after, *cancel.again):
                await asyncio.wait([task], timeout=pause)
                if not task.done():
                    self._record_cancel()
                    task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            self.end = task.exception()

    async def _with_cancel(self) -> None:
        cancel = self.plan.cancel
        if cancel is None or (cancel.method == "task" and self.world.backend == "asyncio"):
            await self._with_client()
        else:
            await self._run_cancelled(cancel, self._with_client, self._record_cancel)

    def _record_cancel(self) -> None:
        if self.cancelled_at is None:
            self.cancelled_at = anyio.current_time()

    async def _with_client(self) -> None:
        if self.plan.cancels_client:
            async with self._client:
                await self._run_groups(self.roots)
        else:
            await self._run_groups(self.roots)
        at = anyio.current_time()
        await anyio.lowlevel.checkpoint()
        # A cancelled program does not reach this point.
        self.continued_at = at

    async def _run_cancelled(
        self,
        cancel: Cancel,
        body: Callable[[], Awaitable[None]],
        on_cancelled: Callable[[], None],
        inside: Sequence[Sequence[Node]] = (),
    ) -> None:
        """Run `body`, cancel it after a while unless it has ended, and catch the cancellation.

        An anyio scope around an `asyncio.timeout` around an anyio task group does not catch its own
        cancellation, whatever the tasks do. Therefore, parallel leases use only scopes.
        """
        if cancel.method == "timeout" and self.world.backend == "asyncio" and not _has_siblings(inside):
            limit = asyncio.timeout(cancel.after)
            try:
                async with limit:
                    await body()
            except TimeoutError as error:
                if not limit.expired() or type(error) is not TimeoutError:
                    raise
            if limit.expired():
                on_cancelled()
            return
        with anyio.move_on_after(cancel.after) as scope:
            await body()
        if scope.cancelled_caught:
            on_cancelled()

    async def _run_groups(self, groups: Sequence[Sequence[Node]]) -> None:
        for group in groups:
            if len(group) == 1:
                await self._caller(group[0])
            elif self.plan.native and self.world.backend == "asyncio" and sys.version_info >= (3, 13):
                # Before 3.13, a failed group leaves its task marked as cancelled, which disturbs anyio.
                async with asyncio.TaskGroup() as native:
                    for node in group:
                        native.create_task(self._caller(node))
            else:
                async with anyio.create_task_group() as tasks:
                    for node in group:
                        tasks.start_soon(self._caller, node)

    async def _caller(self, node: Node) -> None:
        await anyio.sleep(node.plan.delay)
        cancel = node.plan.cancel
        try:
            if cancel is None:
                await self._attempts(node)
            else:
                armed_at = anyio.current_time()
                await self._run_cancelled(
                    cancel,
                    lambda: self._attempts(node),
                    lambda: self._check_cancelled(node, armed_at),
                    inside=node.groups,
                )
        except Exception:
            if not node.plan.handled:
                raise

    async def _attempts(self, node: Node) -> None:
        for _ in range(node.plan.attempts - 1):
            try:
                await self._lease(node)
            except errors.ServiceUnavailableError:
                await anyio.sleep(CAPACITY_PAUSE)
            else:
                return
        await self._lease(node)

    async def _lease(self, node: Node) -> None:
        actor = self.actor
        history = LeaseHistory(actor.index, actor.machine.index, node.plan, anyio.current_time())
        self.world.histories.append(history)
        outer = current_lease.set(history)
        try:
            if node.plan.on_exit is None:
                await self._acquire(node, history)
            else:
                await self._with_lease(node, history)
        except BaseException as error:
            history.exit_error = error
            raise
        finally:
            history.left_at = anyio.current_time()
            current_lease.reset(outer)

    async def _with_lease(self, node: Node, history: LeaseHistory) -> None:
        plan = node.plan
        lease = self._client.instance(
            plan.spec.model,
            plan.hardware_type_id,
            num_workers=plan.spec.workers,
            on_exit=plan.on_exit or "delete",
            start_timeout=plan.start_timeout,
            teardown_timeout=plan.teardown_timeout,
            max_price_per_hour=plan.max_price_per_hour,
            capacity_timeout=plan.capacity_timeout,
            ready=plan.ready,
            idle_timeout=plan.idle_timeout,
            project=plan.project,
        )
        async with lease:
            await self._observed_body(node, history, lease.instance_id, lease)

    async def _acquire(self, node: Node, history: LeaseHistory) -> None:
        plan = node.plan
        handle = await self._client.acquire(
            plan.spec.model,
            plan.hardware_type_id,
            num_workers=plan.spec.workers,
            start_timeout=plan.start_timeout,
            teardown_timeout=plan.teardown_timeout,
            max_lifetime=plan.max_lifetime,
            max_price_per_hour=plan.max_price_per_hour,
            capacity_timeout=plan.capacity_timeout,
            ready=plan.ready,
            project=plan.project,
        )
        await self._observed_body(node, history, handle.instance_id, None)
        if plan.releases or plan.max_lifetime is None:
            await self._client.release(handle, teardown_timeout=plan.teardown_timeout)
            history.has_released = True

    async def _observed_body(
        self, node: Node, history: LeaseHistory, instance_id: str, lease: InstanceLease | None
    ) -> None:
        try:
            await self._body(node, history, instance_id, lease)
        except BaseException as error:
            history.body_error = error
            raise
        finally:
            history.body_ended_at = anyio.current_time()

    async def _body(
        self, node: Node, history: LeaseHistory, instance_id: str, lease: InstanceLease | None
    ) -> None:
        plan, billing = node.plan, self.world.emulator.billing
        history.body_at, history.instance_id = anyio.current_time(), instance_id
        history.used_at = history.body_at
        if instance_id not in billing:
            history.problems.append("its body began without a running instance")
        await self._use(plan.sleep_before, history, lease)
        if plan.hangs:
            await self._hang(plan.hangs, history)
        await self._run_groups(node.groups)
        await self._use(plan.sleep_after, history, lease)
        may_expire = plan.on_exit is None and plan.max_lifetime is not None
        # The reaper ends the instance of a program that hangs for too long.
        may_expire |= plan.idle_timeout is not None and any(each.hangs for each in self.plan.leases)
        if instance_id not in self.world.emulator.billing and not may_expire:
            history.problems.append("its instance ended before its body")
        if plan.fails:
            raise BodyError

    async def _use(self, seconds: float, history: LeaseHistory, lease: InstanceLease | None) -> None:
        """Sleep, and use the instance meanwhile."""
        plan = history.plan
        if lease is None or plan.use == "nothing":
            await anyio.sleep(seconds)
            return
        until = anyio.current_time() + seconds
        while (remaining := until - anyio.current_time()) > 0:
            pause = min(remaining, plan.use_interval)
            history.used_at = anyio.current_time()
            if plan.use == "touch":
                lease.touch()
                await anyio.sleep(pause)
            else:

                async def call(seconds: float) -> None:
                    try:
                        await anyio.sleep(seconds)
                    finally:
                        history.used_at = anyio.current_time()

                async for _ in lease.map(call, [pause]):
                    pass

    async def _hang(self, seconds: float, history: LeaseHistory) -> None:
        """Block the event loop of the process. A cancellation arrives only afterward."""
        until = anyio.current_time() + seconds
        history.hung_at, history.hung_until = anyio.current_time(), until
        self.actor.hang(seconds)
        cancellation: BaseException | None = None
        while self.actor.is_alive and (remaining := until - anyio.current_time()) > 0:
            try:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(min(remaining, 1.0))
            except anyio.get_cancelled_exc_class() as error:
                cancellation = error  # on asyncio, which has no shields
        if cancellation is not None:
            raise cancellation

    def _check_cancelled(self, node: Node, armed_at: float) -> None:
        assert node.plan.cancel is not None
        if not self.actor.is_alive:
            return
        limit = armed_at + node.plan.cancel.after + most_seconds_after_cancel(node)
        if (late := anyio.current_time() - limit) > 0:
            self.world.problem(f"a lease of process {self.actor.index} ended {late:g} s too late")


def most_seconds_to_start(plan: Lease) -> float:
    """Return the maximum seconds from entering a lease to its body."""
    return (plan.capacity_timeout or 0.0) + plan.start_timeout + REQUEST_TIMEOUT + PRICE_TIMEOUT


def most_seconds_to_release(plan: Lease) -> float:
    """Return the maximum seconds of a release."""
    return plan.teardown_timeout + SLACK + (TOTAL_TIMEOUT if plan.on_exit is None else 0.0)


def most_seconds_after_cancel(node: Node) -> float:
    """Return the maximum seconds from a lease's cancellation to its end: a start, then the releases."""
    inner = max((most_seconds_after_cancel(each) for group in node.groups for each in group), default=0.0)
    return inner + REQUEST_TIMEOUT + most_seconds_to_release(node.plan) + node.plan.hangs


def most_seconds(groups: Sequence[Sequence[Node]]) -> float:
    """Return the maximum seconds that groups take."""
    return sum(max(_most_seconds_of(node) for node in group) for group in groups)


def _most_seconds_of(node: Node) -> float:
    plan = node.plan
    attempt = most_seconds_to_start(plan) + most_seconds_to_release(plan)
    body = plan.sleep_before + plan.hangs + most_seconds(node.groups) + plan.sleep_after
    return plan.delay + plan.attempts * (attempt + CAPACITY_PAUSE) + body
