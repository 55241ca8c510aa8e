"""An instance beside an app, on virtual time, and one for several real processes."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import signal
import socket
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import httpx
import pytest
from _processes import PROC, Program, is_alive, kill, read, reapers_of, until
from _world import HARDWARE, MODEL, World
from anyio.abc import SocketStream

from cortecs_async import AsyncCortecs, Credentials, InstanceHandle, errors
from cortecs_async._state_directory import StateFolder
from cortecs_async.emulator import Emulator, Fault, serve_emulator
from cortecs_async.integrations import _shared, _shared_server, web
from cortecs_async.integrations._background import Unavailable
from cortecs_async.integrations.web import BackgroundInstance, NotReadyError, SharedInstance


def not_ready(instance: BackgroundInstance | SharedInstance) -> NotReadyError:
    with pytest.raises(NotReadyError) as caught:
        instance.handle()
    return caught.value


# --- beside an app ------------------------------------------------------------------------------------------


async def test_it_is_entered_at_once_and_released_at_the_end(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            assert anyio.current_time() < 1
            assert not_ready(instance).headers == {"Retry-After": "10"}
            await anyio.sleep(90)
            error = not_ready(instance)
            assert error.status_code == 503
            assert str(error).startswith("the instance is being started: ")
            handle = await instance.wait()
            assert anyio.current_time() >= 240
            assert handle == instance.handle()
            assert (handle.instance_id, handle.model) == (emu.existing[0], MODEL)
            assert len(emu.billing) == 1
        assert emu.existing == ()


async def test_leaving_during_the_start_releases_the_instance(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE):
            await anyio.sleep(90)
            assert len(emu.existing) == 1
        assert emu.existing == ()
        assert anyio.current_time() < 100


@pytest.mark.parametrize(
    ("how", "age", "confirming"),
    [
        ("stop_instance", 4.0, 0.5),
        # Missing for 5 s for the block, and once more for the teardown.
        ("delete_instance", 64.0, 5.0 + 0.5 + 5.5),
        # And not before it is a minute old.
        ("delete_instance", 4.0, 60.0 + 10.0),
    ],
)
async def test_a_lost_instance_is_replaced_at_once(
    world: World, how: str, age: float, confirming: float
) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            first = await instance.wait()
            await anyio.sleep(age - anyio.current_time())
            getattr(emu, how)(first.instance_id)
            lost_at = anyio.current_time()
            with anyio.fail_after(120):
                await instance.state_after(first)
            assert not_ready(instance).headers
            second = await instance.wait()
            assert second.instance_id != first.instance_id
            # Noticed within the polling interval, confirmed, replaced without a pause, and started.
            assert anyio.current_time() - lost_at <= 10 + confirming + 5
            assert emu.existing == (second.instance_id,)
        assert emu.existing == ()


async def test_a_rejected_start_is_tried_again_after_a_pause(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="start", status=402, times=2))
        async with BackgroundInstance(client, MODEL, HARDWARE, pause=300.0) as instance:
            await anyio.sleep(100)
            error = not_ready(instance)
            assert "402" in str(error)
            assert error.headers == {"Retry-After": "300"}
            await anyio.sleep(300)
            assert "402" in str(not_ready(instance))
            assert emu.ledger == ()
            await instance.wait()
            assert 600 <= anyio.current_time() < 620
        assert emu.existing == ()


async def test_a_failing_credential_provider_does_not_end_the_app(world: World) -> None:
    problems = [OSError("no vault")]

    async def provide() -> Credentials:
        if problems:
            raise problems.pop()
        return Credentials(client_id="emulator-client", client_secret="emulator-secret")

    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=emu.transport()) as http,
        AsyncCortecs(
            credential_provider=provide,
            api_base_url=emu.api_base_url,
            http_client=http,
            guard="off",
            journal="off",
        ) as client,
    ):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await anyio.sleep(1)
            assert "no vault" in str(not_ready(instance))
            assert (await instance.wait()).instance_id in emu.existing


async def test_nothing_is_started_after_a_limit_is_used_up(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=600.0) as instance:
            await instance.wait()
            await anyio.sleep(700)
            error = not_ready(instance)
            assert "max_lifetime" in str(error)
            assert (error.retry_after, error.headers) == (None, {})
            with pytest.raises(NotReadyError, match="max_lifetime"):
                await instance.wait()
            await anyio.sleep(10_000)
            assert (emu.existing, len(emu.ledger)) == ((), 1)


async def test_max_lifetime_limits_the_sum_of_all_instances(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=1000.0) as instance:
            first = await instance.wait()
            await anyio.sleep(600)
            emu.delete_instance(first.instance_id)
            await anyio.sleep(300)
            assert instance.handle() != first
            await anyio.sleep(200)
            assert "max_lifetime" in str(not_ready(instance))
            assert emu.existing == ()
            assert anyio.current_time() < 1150


async def test_max_cost_limits_the_sum_of_all_instances(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_cost=1.0) as instance:
            first = await instance.wait()
            await anyio.sleep(130)
            emu.delete_instance(first.instance_id)
            await instance.state_after(first)
            assert await instance.wait() != first
            await anyio.sleep(10_000)
            assert "max_cost" in str(not_ready(instance))
        assert len(emu.ledger) == 2
        assert emu.total_cost <= 1.0
        assert emu.existing == ()


async def test_an_ambiguous_start_is_not_repeated(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await anyio.sleep(0.1)
            emu.start_instance(MODEL, HARDWARE)
            await anyio.sleep(1000)
            error = not_ready(instance)
            assert error.retry_after is None
            assert len(emu.ledger) == 2


async def test_an_exception_of_the_block_is_raised_unchanged(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client):
        with pytest.raises(KeyError) as caught:
            async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
                await instance.wait()
                raise problem
        assert caught.value is problem
        assert emu.existing == ()


async def test_a_cancelled_block_releases_the_instance(world: World) -> None:
    async with world(stop_seconds=5.0) as (emu, client):
        with anyio.move_on_after(100) as scope:
            async with BackgroundInstance(client, MODEL, HARDWARE):
                await anyio.sleep(10_000)
        assert scope.cancelled_caught
        assert emu.existing == ()
        await anyio.sleep(1)


async def test_misuse(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE)
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            instance.handle()
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            await instance.wait()
        async with instance:
            with pytest.raises(errors.InvalidArgumentError, match="already entered"):
                await instance.__aenter__()
            await instance.wait()
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            instance.handle()
        with pytest.raises(errors.InvalidArgumentError, match="num_workers"):
            await BackgroundInstance(client, MODEL, HARDWARE, num_workers=9).__aenter__()
        assert len(emu.ledger) == 1


async def test_it_can_be_entered_again(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=600)
        for _ in range(3):
            async with instance:
                await instance.wait()
                await anyio.sleep(400)
        assert (len(emu.ledger), emu.existing) == (3, ())


# --- for several processes ----------------------------------------------------------------------------------


@asynccontextmanager
async def service(monkeypatch: pytest.MonkeyPatch, **options: Any) -> AsyncIterator[Emulator]:
    async with serve_emulator(**{"step_seconds": 0.02, **options}) as emu:
        for name, value in emu.env().items():
            monkeypatch.setenv(name, value)
        yield emu


def owners(state_dir: Path) -> list[int]:
    """Return the ids of the owner processes that use this state directory."""
    found = []
    for each in PROC.iterdir():
        if each.name.isdigit() and b"integrations._shared_server" in read(int(each.name), "cmdline"):
            environment = read(int(each.name), "environ").split(b"\0")
            if f"CORTECS_STATE_DIR={state_dir}".encode() in environment and is_alive(int(each.name)):
                found.append(int(each.name))
    return found


@pytest.mark.sockets
async def test_processes_share_one_instance_until_the_last_has_left(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    async with service(monkeypatch, stop_seconds=0.5) as emu:
        several = [SharedInstance(MODEL, HARDWARE) for _ in range(3)]
        async with several[0]:
            async with several[1], several[2]:
                with anyio.fail_after(60):
                    handles = {await each.wait() for each in several}
                assert [each.instance_id for each in handles] == list(emu.existing)
                (owner,) = owners(state_dir)
                # All users of the machine can read it.
                assert b"emulator-secret" not in read(owner, "cmdline")
                os.kill(owner, signal.SIGTERM)  # as a service manager does, to all of its processes
            assert emu.billing
            assert several[0].handle() in handles
        # Leaving waited for the release.
        assert (len(emu.ledger), emu.existing) == (1, ())
        await until(lambda: not owners(state_dir))


@pytest.mark.sockets
async def test_a_cancelled_block_waits_for_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch, stop_seconds=0.5) as emu:
        began = 0.0
        with anyio.CancelScope() as scope:
            async with SharedInstance(MODEL, HARDWARE) as shared:
                with anyio.fail_after(60):
                    await shared.wait()
                began = anyio.current_time()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert 0.5 < anyio.current_time() - began < 60
        assert (len(emu.ledger), emu.existing) == (1, ())


# One backend is enough: the code under test runs in the owner process, which is the same for both.
@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_owner_keeps_the_instance_for_linger_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(running: anyio.Event, leave: anyio.Event, left: anyio.Event) -> None:
        async with SharedInstance(MODEL, HARDWARE, linger=1.5) as shared:
            seen.append(await shared.wait())
            running.set()
            await leave.wait()
        left.set()

    seen: list[InstanceHandle] = []
    first = anyio.Event(), anyio.Event(), anyio.Event()
    second = anyio.Event(), anyio.Event(), anyio.Event()
    async with service(monkeypatch) as emu:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, *first)
                await first[0].wait()
                # The last one to leave waits for another one.
                first[1].set()
                await anyio.wait_all_tasks_blocked()
                assert not first[2].is_set()
                tasks.start_soon(work, *second)
                await second[0].wait()
                await first[2].wait()
                assert len(emu.billing) == 1
                began = anyio.current_time()
                second[1].set()
                await second[2].wait()
                assert anyio.current_time() - began > 1
        assert seen[0] == seen[1]
        assert (len(emu.ledger), emu.existing) == (1, ())


@pytest.mark.sockets
async def test_a_killed_owner_is_replaced(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    async with service(monkeypatch) as emu:
        shared, other = SharedInstance(MODEL, HARDWARE), SharedInstance(MODEL, HARDWARE)
        async with shared, other:
            with anyio.fail_after(60):
                first = await shared.wait()
                await other.wait()
            (owner,) = owners(state_dir)
            reapers = reapers_of(owner)
            kill(owner)
            await until(lambda: isinstance(shared._state, Unavailable))
            assert not_ready(shared).headers
            with anyio.fail_after(60):
                second = await shared.wait()
                await until(lambda: other._state == second)
            assert second.instance_id != first.instance_id
            # The reaper of the dead owner releases the first instance.
            await until(lambda: emu.existing == (second.instance_id,), 60)
        assert (len(emu.ledger), emu.existing) == (2, ())
        await until(lambda: not any(map(is_alive, reapers)))


WORKER = """
import os, signal, sys, anyio
from cortecs_async.integrations.web import SharedInstance

async def main():
    async with SharedInstance(sys.argv[1], sys.argv[2]) as shared:
        print("entered", flush=True)
        await shared.wait()
        if os.fork() == 0:
            # Like a worker of a process pool, this child outlives its parent.
            print("child", os.getpid(), flush=True)
            signal.pause()
        print("runs", flush=True)
        await anyio.sleep(600)

anyio.run(main)
"""


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_forked_children_of_killed_processes_do_not_keep_the_instance(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, tmp_path: Path
) -> None:
    async with service(monkeypatch) as emu:
        env = {**emu.env(), "CORTECS_STATE_DIR": str(state_dir)}
        with contextlib.ExitStack() as stack:
            programs = [
                stack.enter_context(Program(WORKER, MODEL, HARDWARE, env=env, log=tmp_path / f"{number}"))
                for number in range(2)
            ]
            await until(lambda: all(each.has_printed("runs") for each in programs), 60)
            assert len(emu.ledger) == 1
            children = [number for each in programs for number in each.numbers("child")]
            try:
                programs[0].send(signal.SIGKILL)
                await until(lambda: programs[0].has_ended)
                assert emu.billing
                programs[1].send(signal.SIGKILL)
                await until(lambda: emu.existing == (), 60)
                assert all(map(is_alive, children))
            finally:
                for each in children:
                    kill(each)
        await until(lambda: not owners(state_dir))
        assert len(emu.ledger) == 1


@pytest.mark.sockets
async def test_an_owner_that_does_not_start(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    async with shared:
        await until(lambda: "no owner process" in str(not_ready(shared)))
        monkeypatch.setattr(sys, "executable", "/nowhere/at/all")
        await until(lambda: "/nowhere/at/all" in str(not_ready(shared)))
    assert owners(state_dir) == []


async def test_invalid_arguments_and_environments_are_rejected_on_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state_dir: Path
) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="num_workers"):
        await SharedInstance(MODEL, HARDWARE, num_workers=9).__aenter__()
    with pytest.raises(errors.InvalidArgumentError, match="pause"):
        SharedInstance(MODEL, HARDWARE, pause=0)
    with pytest.raises(errors.InvalidArgumentError, match="linger"):
        SharedInstance(MODEL, HARDWARE, linger=-1)
    monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(errors.ConfigurationError, match="too long"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()
    (tmp_path / "file").touch()
    monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(errors.ConfigurationError, match="CORTECS_STATE_DIR"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()
    monkeypatch.setattr(_shared, "fcntl", None)
    with pytest.raises(errors.ConfigurationError, match="file locks"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()


@pytest.mark.parametrize("suffix", [".lock", ".sock"])
@pytest.mark.parametrize("kind", ["pipe", "link", "file of the user"])
async def test_what_is_not_its_own_is_neither_used_nor_removed(
    tmp_path: Path, state_dir: Path, kind: str, suffix: str
) -> None:
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    path, data = shared._path(suffix), tmp_path / "data"
    with StateFolder(path.parent, create=True):
        data.write_bytes(b"text")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(data)
        else:
            path.write_bytes(b"text")
    if suffix == ".sock":
        async with shared:
            await anyio.sleep(1.0)
            assert f"{path.name} is not a socket" in str(not_ready(shared))
    elif kind != "file of the user":
        with pytest.raises(errors.ConfigurationError, match=r"lock is not a regular file.*CORTECS_STATE_DIR"):
            await shared.__aenter__()
    assert data.read_bytes() == b"text"
    assert path.lstat()
    assert owners(state_dir) == []


class Stream:
    """A stream of a unix socket, as far as it is needed here."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw

    def extra(self, _: object) -> socket.socket:
        return self.raw

    async def aclose(self) -> None:
        self.raw.close()


def test_the_user_at_the_other_end_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = socket.socketpair(socket.AF_UNIX)
    stream, mine = cast("SocketStream", Stream(ends[0])), os.geteuid()
    assert _shared_server.is_of_this_user(stream)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4321)
        assert not _shared_server.is_of_this_user(stream)
    # As on a system without both, and as on macOS.
    monkeypatch.delattr(socket, "SO_PEERCRED")
    assert _shared_server.is_of_this_user(stream)
    found: list[tuple[int, int]] = [(mine, 0), (4321, 0), (mine, -1)]

    def getpeereid(_: int, uid: Any, __: Any) -> int:
        uid._obj.value, status = found[0]
        return status

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace(getpeereid=getpeereid))
    for expected in (True, False, False):
        assert _shared_server.is_of_this_user(stream) is expected
        del found[0]
    for each in ends:
        each.close()


async def test_the_owner_closes_the_connection_of_another_user(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = socket.socketpair(socket.AF_UNIX)
    monkeypatch.setattr(_shared_server, "is_of_this_user", lambda _: False)
    async with world() as (_, client):
        server = _shared_server.SharedInstanceServer(BackgroundInstance(client, MODEL), 0.0)
        await server._serve_connection(cast("SocketStream", Stream(first)))
        assert server.users == 0
    assert second.recv(1) == b""  # the end
    second.close()


@pytest.mark.sockets
async def test_a_socket_of_another_user_gets_no_connection(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    with StateFolder(state_dir / "shared", create=True) as folder:
        lock = folder.open(shared._path(".lock").name, os.O_RDWR | os.O_CREAT)
        fcntl.flock(lock, fcntl.LOCK_EX)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(shared._path(".sock")))
            listener.listen()
            monkeypatch.setattr(_shared_server, "is_of_this_user", lambda _: False)
            async with shared:
                await until(lambda: "a process of another user listens" in str(not_ready(shared)))
        os.close(lock)


@pytest.mark.sockets
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_system_knows_the_user_of_a_process() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0cortecs-async-{uuid.uuid4()}")
        listener.listen()
        child = os.fork()
        if child == 0:
            os.setuid(4321)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(listener.getsockname())
                connection.recv(1)
            os._exit(0)
        accepted, _ = listener.accept()
        assert not _shared_server.is_of_this_user(cast("SocketStream", Stream(accepted)))
        accepted.close()
        os.waitpid(child, 0)


def test_public_names_show_the_public_module_and_can_be_pickled() -> None:
    for name in web.__all__:
        found = getattr(web, name)
        assert found.__module__ == web.__name__
        assert pickle.loads(pickle.dumps(found)) is found  # noqa: S301


def test_which_processes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(*args: str, **options: float) -> Path:
        return SharedInstance(MODEL, *args, **options)._path(".sock")  # type: ignore[arg-type]

    same = place(HARDWARE, max_cost=5)
    assert place(HARDWARE, max_cost=5) == same
    apart = [place(HARDWARE), place(HARDWARE, max_cost=6), SharedInstance(MODEL, name="b")._path(".sock")]
    monkeypatch.setenv("CORTECS_CLIENT_ID", "another")
    apart.append(place(HARDWARE, max_cost=5))
    assert len({same, *apart}) == 5
