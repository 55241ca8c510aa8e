"""Processes that share an instance by name, and its owner process, as part of a simulated world.

The owner is a process of the world with the real `SharedServer`, a client, a journal, and a reaper. The other
processes run the real `SharedLease` and `Membership`. Only the Unix socket, the file lock, and the start of
the owner process are simulated. A kill closes all connections of a process at once, as the kernel does.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
from anyio.abc import ByteStream, TaskGroup
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from attrs import define, evolve, frozen
from hypothesis import strategies as st

from cortecs_async import InstanceLease, errors
from cortecs_async._aio.eventloop import LoopBinding
from cortecs_async._client.shared_owner import new_server
from cortecs_async._credentials import Sources
from cortecs_async._secrets import Hidden
from cortecs_async._sharing.lease import SharedLease, SharedOptions
from cortecs_async._sharing.membership import Membership
from cortecs_async._sharing.protocol import Hello

from . import data
from .actors import Actor, ProcessActor, current_actor
from .data import EIGHT_B, Backend, Kill, Lease, Process, World
from .history import LeaseHistory, reports_a_leftover
from .network import current_lease
from .run import Simulation, simulate

HARDWARE = "NVIDIA_H100_1"

NAME, VERSION, HEARTBEAT = "name", "1", 5.0
MAX_LIFETIME, TEARDOWN_TIMEOUT = 3000.0, 120.0

# Seconds by which a moment may differ from the moment in another process.
_TOLERANCE = 1.0


@frozen
class Holder:
    """A process that uses the shared instance.

    Attributes:
        joins_at: The time when it enters its block, in seconds.
        stays: Seconds in the block.
        killed_after: Seconds from `joins_at` until it is killed. None if it is not.
        killed_at_step: The number of sent and received chunks at which it is killed. None if it is not.
        cancelled_after: Seconds from `joins_at` until its block is cancelled. None if it is not.
        attempts: How often it enters, if the instance is lost.
    """

    joins_at: float = 0.0
    stays: float = 20.0
    killed_after: float | None = None
    killed_at_step: int | None = None
    cancelled_after: float | None = None
    attempts: int = 1


@frozen
class SharedWorld(World):
    """A world with one shared instance.

    Attributes:
        holders: The processes that use it.
        linger: The argument of `shared`, in seconds.
        startup: Seconds until an owner process serves.
    """

    processes: tuple[Process, ...] = (Process((Lease(max_lifetime=MAX_LIFETIME),)),)
    holders: tuple[Holder, ...] = (Holder(),)
    linger: float = 0.0
    startup: float = 0.5


class Connection(ByteStream):
    """One side of a connection."""

    def __init__(
        self,
        actor: HolderActor | OwnerActor,
        incoming: MemoryObjectReceiveStream[bytes],
        outgoing: MemoryObjectSendStream[bytes],
    ) -> None:
        self._actor = actor
        self._incoming, self._outgoing = incoming, outgoing
        actor.connections.append(self)

    async def receive(self, max_bytes: int = 65536) -> bytes:
        chunk = await self._incoming.receive()
        self._actor.step()
        return chunk

    async def send(self, item: bytes) -> None:
        self._actor.step()
        await self._outgoing.send(item)

    async def send_eof(self) -> None:
        self._outgoing.close()

    async def aclose(self) -> None:
        self.close()

    def close(self) -> None:
        self._incoming.close()
        self._outgoing.close()


class HolderActor(Actor):
    """A process that uses the shared instance.

    Attributes:
        blocks: Its blocks so far.
    """

    def __init__(self, world: SharingSimulation, plan: Holder) -> None:
        kills = [] if plan.killed_at_step is None else [Kill(step=plan.killed_at_step)]
        super().__init__(world, world.machines[0], kills)
        self.plan = plan
        self.connections: list[Connection] = []
        self.blocks: list[Block] = []
        self._scope = anyio.CancelScope()

    def step(self) -> None:
        """Count a chunk, and die if it is time."""
        if self.is_alive:
            self.steps += 1
            if self.steps == self.plan.killed_at_step:
                self.kill()

    def _end(self) -> None:
        for each in self.connections:
            each.close()
        self._scope.cancel()

    async def run(self) -> None:
        current_actor.set(self)
        plan = self.plan
        await anyio.sleep(plan.joins_at)
        if plan.killed_after is not None:
            self.world.tasks.start_soon(self._kill_later, plan.killed_after)
        with self._scope, anyio.move_on_after(plan.cancelled_after or math.inf):
            for _ in range(plan.attempts):
                try:
                    await self._use()
                except errors.CortecsError as error:
                    self.blocks[-1].error = error
                except (anyio.ClosedResourceError, anyio.BrokenResourceError):
                    if self.is_alive:
                        raise
                else:
                    break

    async def _kill_later(self, seconds: float) -> None:
        await anyio.sleep(seconds)
        self.kill()

    async def _use(self) -> None:
        assert isinstance(self.world, SharingSimulation)
        block = Block(self, anyio.current_time())
        self.blocks.append(block)
        lease = new_shared_lease(self.world, self)
        try:
            async with lease:
                block.instance_id, block.began_at = lease.instance_id, anyio.current_time()
                if block.instance_id not in self.world.emulator.billing:
                    self.world.problem("the block of a holder began without a running instance")
                try:
                    await anyio.sleep(self.plan.stays)
                finally:
                    block.body_ended_at = anyio.current_time()
        finally:
            # Without `linger`, the last process leaves once the instance is released.
            block.body_ended_at = min(block.body_ended_at, anyio.current_time())


@define(eq=False)
class Block:
    """A block of a process that shares an instance."""

    holder: HolderActor
    entered_at: float
    began_at: float = math.inf
    body_ended_at: float = math.inf
    instance_id: str = ""
    error: errors.CortecsError | None = None

    @property
    def ended_at(self) -> float:
        """The time when its body ended, or its process was killed."""
        return min(self.body_ended_at, self.holder.killed_at)


class OwnerActor(ProcessActor):
    """An owner process.

    Attributes:
        connections: The connections that it has not closed, and others.
        history: Its lease.
        started_at: The time when it was started.
        stopped_listening_at: The time when it gave up the lock.
        ended_at: The time when it exited or was killed.
    """

    def __init__(self, world: SharingSimulation, index: int, kills: Iterable[Kill]) -> None:
        lease = Lease(spec=evolve(data.StartSpec(), hardware=HARDWARE), max_lifetime=MAX_LIFETIME)
        super().__init__(world, index, Process((lease,)), [*kills])
        self.connections: list[Connection] = []
        self.history = LeaseHistory(index, 0, lease, anyio.current_time())
        self.started_at = anyio.current_time()
        self.stopped_listening_at = self.ended_at = math.inf
        self.has_exited = anyio.Event()
        self._connect, self._accept = anyio.create_memory_object_stream[Connection](math.inf)
        self._scope = anyio.CancelScope()

    def connect(self, holder: HolderActor) -> Connection:
        """Return the holder's side of a new connection."""
        there, here = (anyio.create_memory_object_stream[bytes](math.inf) for _ in range(2))
        self._connect.send_nowait(Connection(self, there[1], here[0]))
        return Connection(holder, here[1], there[0])

    def _end(self) -> None:
        super()._end()
        self._exit()
        self._scope.cancel()

    def _exit(self) -> None:
        """Do what the kernel does."""
        self.ended_at = min(self.ended_at, anyio.current_time())
        self.remove_files()
        self._connect.close()
        self._accept.close()
        for each in self.connections:
            each.close()
        self.has_exited.set()

    # What a `ConnectionListener` does.

    async def run(self, listener: Any, connections: TaskGroup) -> None:
        async for each in self._accept:
            connections.start_soon(self._server.serve_connection, each)

    def remove_files(self) -> None:
        assert isinstance(self.world, SharingSimulation)
        if self.world.owner is self:
            self.stopped_listening_at = anyio.current_time()
            self.world.owner = None

    async def main(self, startup: float) -> None:
        """Do what `shared_owner.main` does."""
        current_actor.set(self)
        current_lease.set(self.history)
        world = self.world
        try:
            with self._scope:
                await anyio.sleep(startup)
                client = self.make_client(guard="required")
                for kill in [
                    each for each in world.plan.kills if each.step is None and each.process == self.index
                ]:
                    world.tasks.start_soon(world._kill_later, kill, self.index)
                job = {
                    "name": NAME,
                    "spec": spec_of(world),
                    "version": VERSION,
                    "heartbeat": HEARTBEAT,
                    "project": None,
                    "inference_key": "",
                }
                self._server = server = new_server(client, Hidden(job), self.index, 0.0)
                new_lease = server.new_lease
                server.new_lease = lambda on_progress: ObservedLease(  # type: ignore[assignment,return-value]
                    new_lease(on_progress), self.history, world
                )
                await server.serve(self, None)  # type: ignore[arg-type]
            await self.aclose()
        except Exception:
            if self.is_alive:
                raise
        finally:
            if self._client is not None:
                self._client._closed = True
            if self.is_alive:
                self.history.left_at = min(self.history.left_at, anyio.current_time())
                self._exit()


class ObservedLease:
    """A lease of an owner whose history is recorded."""

    def __init__(self, lease: InstanceLease, history: LeaseHistory, world: Simulation) -> None:
        self._lease, self._history, self._world = lease, history, world

    async def __aenter__(self) -> Self:
        history = self._history
        history.entered_at = anyio.current_time()
        self._world.histories.append(history)
        try:
            await self._lease.__aenter__()
        except BaseException as error:
            history.exit_error, history.left_at = error, anyio.current_time()
            raise
        history.body_at, history.instance_id = anyio.current_time(), self._lease.instance_id
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        history = self._history
        history.body_ended_at, history.body_error = anyio.current_time(), error
        try:
            await self._lease.__aexit__(kind, error, trace)
            history.exit_error = error
        except BaseException as raised:
            history.exit_error = raised
            raise
        finally:
            history.left_at = anyio.current_time()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lease, name)


class WorldConnector:
    """Connects a holder to the owner of the world, which it starts if there is none."""

    def __init__(self, world: SharingSimulation, holder: HolderActor) -> None:
        self._world, self._holder = world, holder
        self._owner: OwnerActor | None = None

    async def connect(self) -> ByteStream:
        await anyio.lowlevel.checkpoint()
        if not self._holder.is_alive:
            raise OSError("killed")
        world = self._world
        if world.owner is None:
            self._owner = world.start_owner()
        assert world.owner is not None
        return world.owner.connect(self._holder)

    async def owner_exit(self) -> tuple[str, list[str]] | None:
        owner = self._owner
        if owner is None:
            return None
        with anyio.move_on_after(1.0):
            await owner.has_exited.wait()
            self._owner = None
            return "exited", []
        return None

    def monitor(self) -> Any:
        return _Monitor()

    def describe_owner(self) -> str:
        return "the owner"


class _Monitor:
    def heard(self) -> None: ...
    def missed(self) -> None: ...


def spec_of(world: Simulation) -> dict[str, Any]:
    assert isinstance(world.plan, SharedWorld)
    return {
        "model_id": EIGHT_B,
        "hardware_type_id": HARDWARE,
        "context_length": None,
        "num_workers": 1,
        "billing_interval": "per_minute",
        "max_lifetime": MAX_LIFETIME,
        "teardown_timeout": TEARDOWN_TIMEOUT,
        "linger": world.plan.linger,
    }


def new_shared_lease(world: SharingSimulation, holder: HolderActor) -> SharedLease:
    assert isinstance(world.plan, SharedWorld)

    def new_membership(on_end: Any) -> Membership:
        return Membership(
            WorldConnector(world, holder),
            Hello(wish="hold", version=VERSION, pid=id(holder), spec=spec_of(world)),
            name=NAME,
            heartbeat=HEARTBEAT,
            answer_timeout=330.0 + TEARDOWN_TIMEOUT,
            idle_timeout=None,
            on_end=on_end,
        )

    return SharedLease(
        SharedOptions(
            name=NAME,
            linger=world.plan.linger,
            teardown_timeout=TEARDOWN_TIMEOUT,
            on_loss="cancel",
            on_progress=None,
            sources=Sources(),
            loop=LoopBinding(),
            check_open=lambda: None,
            new_membership=new_membership,
        )
    )


class SharingSimulation(Simulation):
    """A run of a `SharedWorld`.

    Attributes:
        owner: The owner that holds the lock, if there is one.
        holders: The processes that use the instance.
    """

    def __init__(self, backend: Backend, world: World, folder: Path) -> None:
        super().__init__(backend, world, folder)
        self.owner: OwnerActor | None = None
        self.holders: list[HolderActor] = []

    @property
    def owners(self) -> list[OwnerActor]:
        return [each for each in self.processes if isinstance(each, OwnerActor)]

    def start_owner(self) -> OwnerActor:
        assert isinstance(self.plan, SharedWorld)
        index = len(self.processes)
        owner = self.owner = OwnerActor(
            self, index, [each for each in self.plan.kills if each.process == index]
        )
        self.processes.append(owner)
        self.tasks.start_soon(owner.main, self.plan.startup)
        return owner

    def kill(self, kill: Kill) -> None:
        if kill.process < len(self.processes):
            super().kill(kill)

    async def _run_processes(self) -> None:
        assert isinstance(self.plan, SharedWorld)
        self.holders = [HolderActor(self, plan) for plan in self.plan.holders]
        async with anyio.create_task_group() as tasks:
            for each in self.holders:
                tasks.start_soon(each.run)
        with anyio.move_on_after(MAX_LIFETIME + TEARDOWN_TIMEOUT):
            for owner in self.owners:
                await owner.has_exited.wait()
        self._check_sharing()
        self.outcome.tally["with a kill"] += any(not each.is_alive for each in self.holders)

    def _check_sharing(self) -> None:
        blocks = [block for holder in self.holders for block in holder.blocks if block.instance_id]
        for owner in self.owners:
            if math.isinf(owner.ended_at):
                self.problem(f"the owner {owner.index} still runs")
                continue
            self._check_owner(
                owner, [each for each in blocks if each.instance_id == owner.history.instance_id]
            )
        for one, other in zip(self.owners, self.owners[1:], strict=False):
            if one.stopped_listening_at > other.started_at:
                self.problem("there are two owners")
        self._check_number()

    def _check_owner(self, owner: OwnerActor, blocks: list[Block]) -> None:
        """Check that an owner releases its instance after `linger`, and not before."""
        assert isinstance(self.plan, SharedWorld)
        history = owner.history
        if history.body_at is None or history.body_ended_at is None or not owner.is_alive or not blocks:
            return
        error = history.exit_error
        has_ended = error is not None or any(each.error is not None for each in blocks)
        unused_at = max(each.ended_at for each in blocks)
        waited = history.body_ended_at - unused_at
        if not has_ended and waited < self.plan.linger - _TOLERANCE:
            self.problem(f"the owner {owner.index} released its instance {waited:g} s after it was last used")
        # A holder that joins late, or leaves while it waits, uses it without a block.
        latest = max(
            [unused_at, *(each.ended_at for each in self._all_blocks() if each.entered_at <= owner.ended_at)]
        )
        if history.body_ended_at > latest + self.plan.linger + _TOLERANCE:
            self.problem(f"the owner {owner.index} kept its instance {waited:g} s after it was last used")

    def _all_blocks(self) -> list[Block]:
        return [block for holder in self.holders for block in holder.blocks]

    def _check_number(self) -> None:
        """Check that there is no second one, unless the first one's owner was killed or gave it up."""
        ledger = {each.instance_id: each for each in self.emulator.ledger}
        starts = [each for each in self.starts if each.instance_id is not None]
        for one in starts:
            for other in starts:
                owner = self.processes[one.lease.process]
                gone_at = ledger[one.instance_id or ""].deleted_at
                if (
                    one.lease.process < other.lease.process
                    and (gone_at is None or gone_at > other.executed_at)
                    and owner.killed_at > other.executed_at
                    and not reports_a_leftover(one.lease.exit_error)
                ):
                    self.problem(f"{other.instance_id} was started while {one.instance_id} existed")


def simulate_sharing(backend: Backend, world: SharedWorld) -> Any:
    """Run a world with a shared instance, inside `virtual_world`."""
    return simulate(backend, world, SharingSimulation)


_seconds = data._seconds

_holders = st.builds(
    Holder,
    joins_at=st.just(0.0) | _seconds(3) | _seconds(120),
    stays=_seconds(5) | _seconds(60),
    killed_after=data._one_in(4, _seconds(20) | _seconds(90)),
    killed_at_step=data._one_in(6, st.integers(1, 12)),
    cancelled_after=data._one_in(5, _seconds(20) | _seconds(90)),
    attempts=st.sampled_from([1, 1, 3]),
)
_owner_kills = st.builds(
    Kill,
    what=st.sampled_from(["process", "process", "process", "reaper"]),
    process=st.sampled_from([0, 0, 0, 1]),
    step=st.none() | st.integers(1, 60),
    after=_seconds(20) | _seconds(90),
)

shared_worlds: st.SearchStrategy[SharedWorld] = st.builds(
    SharedWorld,
    holders=data._several(_holders, [1, 2, 3, 5]),
    linger=st.sampled_from([0.0, 0.0, 10.0, 45.0]),
    startup=st.sampled_from([0.0, 0.5, 4.0]),
    kills=data._several(_owner_kills, [0, 0, 1, 1, 2]),
    faults=data._several(data._faults, [0, 0, 1, 1, 2]),
    foreign=data._several(data._foreign, [0, 0, 1]),
    service=data._services,
    seed=st.integers(0, 3),
)
