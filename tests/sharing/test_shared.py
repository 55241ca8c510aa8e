"""An instance shared by name, on virtual time: several blocks, one owner, and no sockets or processes."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World, client_of
from anyio.abc import TaskGroup
from anyio.streams.stapled import StapledObjectStream
from attrs import asdict

from cortecs_async import AsyncCortecs, Progress, errors
from cortecs_async._client import shared_start
from cortecs_async._client.shared_owner import new_server
from cortecs_async._secrets import Hidden
from cortecs_async._sharing import lines
from cortecs_async._sharing.connector import SilenceMonitor
from cortecs_async._sharing.info import decode_info
from cortecs_async._sharing.lease import SharedLease
from cortecs_async._sharing.meeting_point import MeetingPoint
from cortecs_async._sharing.protocol import Hello
from cortecs_async._sharing.server import SharedServer
from cortecs_async.emulator import Emulator, Fault

LIMITS: dict[str, Any] = {"max_lifetime": "10h"}


class Silent(SilenceMonitor):
    """A monitor of an owner that always answers."""

    def __init__(self) -> None:
        return

    def heard(self) -> None:
        return

    def missed(self) -> None:
        return


class Accepting:
    """The listening socket of an owner."""

    def __init__(self) -> None:
        self.connections: TaskGroup
        self.is_ready = anyio.Event()

    async def run(self, _: object, connections: TaskGroup) -> None:
        self.connections = connections
        self.is_ready.set()
        await anyio.sleep_forever()

    def remove_files(self) -> None:
        return


class Machine:
    """The lock, the sockets, and the owner processes of one name. Every block connects to the same owner.

    Attributes:
        owners: Every owner process so far.
    """

    def __init__(self, tasks: TaskGroup, owner_client: AsyncCortecs) -> None:
        self.owners: list[SharedServer] = []
        self._tasks = tasks
        self._client = owner_client
        self._accepting: Accepting | None = None
        self._scope = anyio.CancelScope()
        self._streams: list[Any] = []

    async def connect(self, job: Callable[[], Any]) -> StapledObjectStream[bytes]:
        if self._accepting is None:
            data = Hidden(json.loads((await job()).reveal()))
            if self._accepting is None:
                self._accepting = Accepting()
                server = new_server(self._client, data, 4321, 0.0)
                self.owners.append(server)
                self._tasks.start_soon(self._run, server, self._accepting)
        await self._accepting.is_ready.wait()
        to_owner, from_member = anyio.create_memory_object_stream[bytes](1000)
        to_member, from_owner = anyio.create_memory_object_stream[bytes](1000)
        self._streams += [to_owner, from_member, to_member, from_owner]
        ours: Any = Stream(to_member, from_member)
        self._accepting.connections.start_soon(self.owners[-1].serve_connection, ours)
        return Stream(to_owner, from_owner)

    async def _run(self, server: SharedServer, accepting: Accepting) -> None:
        self._scope = anyio.CancelScope()
        with self._scope:
            await server.serve(accepting, None)  # type: ignore[arg-type]
        self._accepting = None

    def kill_owner(self) -> None:
        """End the owner without a farewell."""
        self._scope.cancel()

    def close(self) -> None:
        """Close all streams."""
        for each in self._streams:
            each.close()

    @property
    def is_owned(self) -> bool:
        return self._accepting is not None


class Stream(StapledObjectStream[bytes]):
    async def send(self, item: bytes) -> None:
        try:
            await super().send(item)
        except anyio.ClosedResourceError:
            raise anyio.BrokenResourceError from None


class Connector:
    """Stands in for `OwnerConnector`."""

    machine: Machine

    def __init__(self, _: object, __: object, ___: object, ____: object, job: Callable[[], Any]) -> None:
        self._job = job

    def check(self) -> None:
        return

    async def connect(self) -> StapledObjectStream[bytes]:
        return await self.machine.connect(self._job)

    async def owner_exit(self) -> None:
        return

    def monitor(self) -> SilenceMonitor:
        return Silent()

    def describe_owner(self) -> str:
        return "process id 4321"


Sharing = Callable[..., Any]


@pytest.fixture
def sharing(world: World, monkeypatch: pytest.MonkeyPatch) -> Sharing:
    """Open a machine with processes: `async with sharing() as (emu, machine, client)`."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Emulator, Machine, AsyncCortecs]]:
        async with world(**options) as (emu, owner_client), anyio.create_task_group() as tasks:
            machine = Connector.machine = Machine(tasks, owner_client)
            monkeypatch.setattr(shared_start, "OwnerConnector", Connector)
            async with client_of(emu, guard="off", journal="off") as client:
                yield emu, machine, client
            tasks.cancel_scope.cancel()
        machine.close()

    return opened


def shared(client: AsyncCortecs, **options: Any) -> SharedLease:
    return client.shared("bot", MODEL, HARDWARE, **{**LIMITS, **options})


async def settled(condition: Callable[[], object], seconds: float = 60.0) -> None:
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (no event tells)
            await anyio.sleep(0.1)


# --- joining and leaving ------------------------------------------------------------------------------------


async def test_twenty_blocks_share_one_instance(sharing: Sharing) -> None:
    async with sharing(step_seconds=30.0) as (emu, machine, client):
        handles: set[object] = set()
        barrier = anyio.Event()

        async def work() -> None:
            async with shared(client) as inst:
                handles.add(inst.handle)
                await barrier.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(work)
            await settled(lambda: handles, 600)
            async with shared(client) as inst:  # joins at once
                assert {inst.handle} == handles
                assert (inst.model, inst.instance_id, inst.name) == (MODEL, emu.existing[0], "bot")
                assert machine.owners[0]._info_now().holders == (os.getpid(),) * 21
            barrier.set()
        assert (len(machine.owners), len(emu.ledger)) == (1, 1)


async def test_the_instance_lingers_and_a_new_block_revives_it(sharing: Sharing) -> None:
    async with sharing() as (emu, machine, client):
        async with shared(client, linger="5m"):
            began = anyio.current_time()
        assert anyio.current_time() == began  # leaving does not wait
        await anyio.sleep(299)
        assert machine.owners[0]._info_now().state == "lingering"
        async with shared(client, linger="5m"):
            assert machine.owners[0]._info_now().state == "running"
        await anyio.sleep(299)
        assert len(emu.existing) == 1
        await settled(lambda: not machine.is_owned, 10)
        assert (emu.existing, len(emu.ledger)) == ((), 1)


async def test_without_linger_the_last_block_waits_for_the_release(sharing: Sharing) -> None:
    async with sharing(stop_seconds=20.0) as (emu, _, client):
        async with shared(client, linger=0) as inst:
            async with shared(client, linger=0):
                began = anyio.current_time()
            assert anyio.current_time() == began  # another block uses it
            assert emu.existing == (inst.instance_id,)
        assert emu.existing == ()
        with pytest.raises(errors.InvalidArgumentError, match="has ended, or this process has left it"):
            inst.openai_kwargs(api_key="key")


@pytest.mark.parametrize("linger", [0, 600])
async def test_a_cancelled_wait_leaves(sharing: Sharing, linger: float) -> None:
    async with sharing(step_seconds=100.0) as (emu, machine, client):
        with anyio.move_on_after(60):
            async with shared(client, linger=linger):
                raise AssertionError
        if linger:
            assert len(emu.existing) == 1
            async with shared(client, linger=linger):
                assert len(emu.ledger) == 1  # the start went on
        else:
            assert emu.existing == ()
            assert not machine.is_owned


async def test_a_block_that_comes_during_the_release_starts_a_new_instance(sharing: Sharing) -> None:
    async with sharing(stop_seconds=30.0) as (emu, machine, client):

        async def come() -> None:
            await anyio.sleep(5)
            async with shared(client, linger=0) as inst:
                assert emu.existing == (inst.instance_id,)

        async with anyio.create_task_group() as tasks:
            async with shared(client, linger=0):
                pass_on = anyio.Event()
                tasks.start_soon(come)
                await anyio.sleep(4)
                pass_on.set()
        assert (len(machine.owners), emu.existing) == (2, ())


async def test_a_cancelled_wait_does_not_wait_for_the_release_of_the_previous_instance(
    sharing: Sharing,
) -> None:
    async with sharing(stop_seconds=60.0) as (emu, machine, client), anyio.create_task_group() as tasks:
        tasks.start_soon(_enter, shared(client, linger=0))
        await settled(lambda: machine.owners and machine.owners[0]._info_now().state == "releasing", 600)
        began = anyio.current_time()
        with anyio.move_on_after(5):
            await _enter(shared(client, linger=0))
        assert anyio.current_time() - began == 5
        assert len(emu.existing) == 1


async def test_an_owner_without_processes_starts_nothing(sharing: Sharing) -> None:
    """The process that has started it was killed before it connected."""
    async with sharing() as (emu, machine, client):
        lease = shared(client)
        connector: Any = lease._membership._connector
        stream = await connector.connect()
        await stream.aclose()
        await settled(lambda: not machine.is_owned)
        assert emu.ledger == ()


# --- errors and ends ----------------------------------------------------------------------------------------


async def test_a_refused_start_reaches_every_waiting_block(sharing: Sharing) -> None:
    async with sharing() as (emu, machine, client):
        emu.add_fault(Fault("status", route="start", status=402, times=1))
        caught: list[errors.InsufficientBalanceError] = []

        async def work() -> None:
            with pytest.raises(errors.InsufficientBalanceError) as error:
                async with shared(client):
                    raise AssertionError
            caught.append(error.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(work)
        assert len(caught) == 3
        assert {(each.status_code, each.path, each.method) for each in caught} == {
            (402, "/instances/start", "POST")
        }
        assert (len(machine.owners), emu.existing) == (1, ())
        async with shared(client):  # the next one tries again
            assert len(emu.existing) == 1


@pytest.mark.parametrize(
    ("how", "options", "error"),
    [
        ("stop_instance", {}, errors.InstanceLostError),
        ("", {"max_lifetime": "1h"}, errors.LeaseExpiredError),
        ("", {"max_cost": 3.0}, errors.LeaseExpiredError),
        ("", {"idle_timeout": "10m"}, errors.LeaseIdleError),
    ],
)
async def test_the_end_of_the_instance_ends_every_block(
    sharing: Sharing, how: str, options: Any, error: type[errors.LifecycleError]
) -> None:
    async with sharing() as (emu, machine, client):
        ended: list[errors.LifecycleError] = []
        ended_by: list[str] = []

        async def work() -> None:
            with pytest.raises(error) as caught:
                async with shared(client, **options) as inst:
                    if how and not ended_by:
                        ended_by.append(inst.instance_id)
                        getattr(emu, how)(inst.instance_id)
                    await anyio.sleep_forever()
            assert emu.existing == ()
            ended.append(caught.value)

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(work)
        assert type(ended[0]) is type(ended[1]) is error
        assert str(ended[0]) == str(ended[1])
        assert ended[0].instance_id
        assert not machine.is_owned


async def test_requests_of_any_process_keep_the_instance(sharing: Sharing) -> None:
    options = {"idle_timeout": "2m"}
    async with sharing() as (emu, _, client):
        async with shared(client, **options) as idle, shared(client, **options) as active:
            for _ in range(20):
                await anyio.sleep(60)
                active.touch()
            assert emu.existing == (idle.instance_id,)
            # A long request counts while it is in flight.
            async for _ in active.map(anyio.sleep, [600.0]):
                assert emu.existing == (idle.instance_id,)
        # Without blocks, nothing counts.
        await anyio.sleep(130)
        assert emu.existing == ()


async def test_an_exception_of_the_block_is_not_replaced(sharing: Sharing) -> None:
    async with sharing() as (emu, _, client):
        own = KeyError("own")
        with pytest.raises(KeyError) as caught:
            async with shared(client, linger=0) as inst:
                emu.stop_instance(inst.instance_id)
                try:
                    await anyio.sleep_forever()
                finally:
                    raise own
        assert caught.value is own
        assert any("became 'stopped'" in note for note in own.__notes__)
        assert emu.existing == ()


async def test_on_loss_concerns_one_block(sharing: Sharing) -> None:
    async with sharing() as (emu, _, client):
        async with shared(client, on_loss="ignore") as inst:
            with pytest.raises(errors.InstanceLostError):
                async with shared(client) as other:
                    emu.stop_instance(other.instance_id)
                    await anyio.sleep_forever()
            with pytest.raises(errors.InvalidArgumentError):
                inst.openai_kwargs(api_key="key")


async def test_a_failed_release_is_raised_from_the_last_block(sharing: Sharing) -> None:
    async with sharing() as (emu, _, client):
        with pytest.raises(errors.TeardownError):
            async with shared(client, linger=0, teardown_timeout=10):
                emu.add_fault(Fault("status", route="stop", status=500, times=1000))
                emu.add_fault(Fault("status", route="delete", status=500, times=1000))


@pytest.mark.parametrize("when", ["starting", "running", "releasing"])
async def test_a_killed_owner_ends_every_block(sharing: Sharing, when: str) -> None:
    async with sharing(step_seconds=10.0, stop_seconds=20.0) as (_, machine, client):

        async def work() -> None:
            expected = errors.TeardownError if when == "releasing" else errors.InstanceLostError
            with pytest.raises(expected, match="Its reaper releases the instance"):
                async with shared(client, linger=0):
                    if when == "running":
                        await anyio.sleep_forever()

        async with anyio.create_task_group() as tasks:
            for _ in range(1 if when == "releasing" else 2):
                tasks.start_soon(work)
            await settled(lambda: machine.owners)
            server = machine.owners[0]
            await settled(lambda: server._info_now().state == when, 300)
            await anyio.wait_all_tasks_blocked()
            machine.kill_owner()


# --- arguments ----------------------------------------------------------------------------------------------


async def test_other_arguments_are_an_error_that_shows_both(sharing: Sharing) -> None:
    async with sharing() as (emu, machine, client):
        async with shared(client):
            with pytest.raises(errors.InvalidArgumentError) as caught:
                async with shared(client, max_lifetime="2h", project="docs"):
                    raise AssertionError
            assert str(caught.value) == (
                "The shared instance 'bot' is already running with other arguments "
                f"(process {os.getpid()}): max_lifetime is 36000 s, not 7200 s; "
                "project is None, not 'docs'. Pass the same arguments, or use another name."
            )
            # Other spellings are the same arguments.
            async with client.shared("bot", MODEL.replace("/", "--"), [HARDWARE], max_lifetime=36000):
                assert machine.owners[0]._info_now().holders == (os.getpid(),) * 2
        assert len(emu.ledger) == 1


async def test_another_version_is_an_error(sharing: Sharing, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sharing() as (_, _, client), shared(client):
        monkeypatch.setattr(shared_start, "__version__", "0.0.1")
        with pytest.raises(errors.ConfigurationError, match=r"and this process has 0\.0\.1"):
            async with shared(client):
                raise AssertionError


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("", {}, "1 to 60 letters"),
        ("a/b", {}, "1 to 60 letters"),
        ("a" * 61, {}, "1 to 60 letters"),
        ("bot", {"max_lifetime": None}, "Pass max_lifetime or max_cost"),
        ("bot", {"linger": -1}, "linger"),
        ("bot", {"idle_timeout": 0}, "idle_timeout"),
    ],
)
async def test_invalid_arguments_are_refused_before_anything_starts(
    name: str, options: Any, message: str, world: World
) -> None:
    async with world() as (emu, _), client_of(emu) as client:
        with pytest.raises(errors.InvalidArgumentError, match=message):
            client.shared(name, MODEL, **{**LIMITS, **options})


async def test_what_another_process_cannot_use_is_refused(world: World) -> None:
    async def provide() -> Any:
        raise AssertionError

    async with world() as (_, client):
        with pytest.raises(errors.ConfigurationError, match="cannot use your http_client"):
            shared(client)
    async with AsyncCortecs(credential_provider=provide) as client:
        with pytest.raises(errors.ConfigurationError, match="client_id and client_secret or a profile"):
            shared(client)
    async with AsyncCortecs(anonymous=True) as client:
        with pytest.raises(errors.ConfigurationError, match="client_id and client_secret or a profile"):
            shared(client)


# --- the rest -----------------------------------------------------------------------------------------------


async def test_progress_reaches_every_block(sharing: Sharing) -> None:
    async with sharing(step_seconds=30.0) as (_, _, client):
        first: list[Progress] = []
        second: list[Progress] = []
        async with anyio.create_task_group() as tasks:
            for each in (first, second):
                tasks.start_soon(_enter, shared(client, on_progress=each.append))
        assert len(first) > 2
        assert [each.description for each in first] == [each.description for each in second]
        assert len({each.fraction for each in first}) == len(first)


async def _enter(lease: SharedLease) -> None:
    async with lease:
        pass


async def test_a_kept_instance_needs_no_process(sharing: Sharing) -> None:
    async with sharing() as (emu, machine, client):
        async with shared(client, linger=0, max_lifetime="5h") as inst:
            await inst.keep()
        await anyio.sleep(3600)
        assert machine.owners[0]._info_now().state == "kept"
        async with shared(client, linger=0, max_lifetime="5h"):
            pass
        assert machine.owners[0]._info_now().state == "kept"
        await anyio.sleep(4 * 3600)
        assert (emu.existing, len(emu.ledger)) == ((), 1)


async def test_the_answer_to_a_release_agrees_with_what_is_done(sharing: Sharing) -> None:
    """A process joins while the owner still sends the answer."""
    hello = Hello(wish="release", version="1", pid=1)
    async with sharing() as (emu, machine, client), anyio.create_task_group() as tasks:
        async with shared(client):
            pass
        to_owner, from_member = anyio.create_memory_object_stream[bytes](10)
        to_member, from_owner = anyio.create_memory_object_stream[bytes]()
        with to_owner, from_member, to_member, from_owner:
            stream: Any = Stream(to_member, from_member)
            tasks.start_soon(machine.owners[0].serve_connection, stream)
            await to_owner.send(lines.encode(asdict(hello)))
            await anyio.wait_all_tasks_blocked()
            tasks.start_soon(_enter, shared(client))
            await anyio.wait_all_tasks_blocked()
            info = decode_info(lines.decode(await from_owner.receive()))
            assert info is not None
            assert info.holders == ()
        await settled(lambda: len(emu.ledger) == 2)
        assert emu.ledger[0].instance_id not in emu.existing


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_block_is_entered_once_and_a_dropped_one_leaves(sharing: Sharing) -> None:
    async with sharing() as (_, machine, client):
        lease = shared(client)
        async with lease:
            with pytest.raises(errors.InvalidArgumentError, match="already entered"):
                await lease.__aenter__()
        dropped = shared(client)
        await dropped.__aenter__()
        assert machine.owners[0]._info_now().holders
        del dropped
        gc.collect()
        await settled(lambda: not machine.owners[0]._info_now().holders)


async def test_the_name_is_in_the_owners_journal_and_in_owners(sharing: Sharing) -> None:
    async with sharing() as (emu, machine, client), shared(client):
        found = await machine._client.owners()
        assert found[emu.existing[0]].shared == "bot"
        assert str(found[emu.existing[0]]).endswith("shared as bot")


# --- files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "left"), [(b"", []), (b"12 name=bot", []), (b"notes", ["n.lock"]), (b"12\n", ["n.lock"])]
)
def test_only_a_lock_that_is_understood_is_removed(state_dir: Path, content: bytes, left: list[str]) -> None:
    place = MeetingPoint(state_dir / "shared" / "n.sock", "bot")
    lock = place.try_lock()
    assert lock is not None
    os.pwrite(lock, content, 0)
    place.listen().close()
    place.remove(lock)
    os.close(lock)
    assert [each.name for each in place.address.parent.iterdir()] == left
