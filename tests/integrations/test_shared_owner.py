"""The owner of a shared instance: how it starts in the folder of an app, how it is lost, and how it heals."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from _processes import Program, is_alive, reapers_of, until
from _world import HARDWARE, MODEL, service
from anyio.streams.stapled import StapledObjectStream

from cortecs_async import InstanceHandle, errors
from cortecs_async._environment import import_path
from cortecs_async._sharing import connector, owner_process
from cortecs_async._sharing.meeting_point import MeetingPoint
from cortecs_async.emulator import serve_emulator
from cortecs_async.integrations import _shared_server
from cortecs_async.integrations._managed import Unavailable
from cortecs_async.integrations.web import NotReadyError, SharedInstance

HANDLE = InstanceHandle(instance_id="i", base_url="https://host.test/v1", model="org/model", account="a")


def not_ready(instance: SharedInstance) -> NotReadyError:
    with pytest.raises(NotReadyError) as caught:
        instance.handle()
    return caught.value


def shared_of(heartbeat: float = 0.1, **options: Any) -> SharedInstance:
    """Return a shared instance whose owner sends a line more often."""
    shared = SharedInstance(MODEL, HARDWARE, **options)
    shared._spec["heartbeat"] = heartbeat
    return shared


# --- the start ----------------------------------------------------------------------------------------------

# As `uvicorn app:app` does: the app's folder comes first, but only after the server has been imported.
APP = """
import anyio, os, sys
from cortecs_async.integrations.web import SharedInstance

async def main():
    async with SharedInstance(*sys.argv[1:3]) as shared:
        if sys.argv[3]:
            os.chdir(sys.argv[3])
        sys.path.insert(0, "")
        await shared.wait()
        print("runs", flush=True)

import anyio._backends._asyncio
anyio.run(main)
"""


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials, without which a shared instance cannot be entered."""
    monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret")


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_folder_of_an_app_may_contain_modules_named_as_those_of_the_standard_library(
    state_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    for name in filter(importlib.util.find_spec, sys.stdlib_module_names):  # those of this system
        (folder / f"{name}.py").write_text(f"raise ImportError('{name} of the app')")
    async with serve_emulator(step_seconds=0.02) as emu:
        env = {**emu.env(), "CORTECS_STATE_DIR": str(state_dir)}
        with Program(APP, MODEL, HARDWARE, str(folder), env=env, log=tmp_path / "log") as program:
            await until(lambda: program.has_ended)
            assert program.has_printed("runs"), program.output
        assert (len(emu.ledger), emu.existing) == (1, ())


def owner_path(monkeypatch: pytest.MonkeyPatch, path: list[str]) -> list[str]:
    """Return the `sys.path` of an owner, given that of the process that starts it."""
    monkeypatch.setattr(sys, "path", path)
    program = owner_process.BOOTSTRAP.partition("import importlib")[0] + "print(*sys.path, sep='\\n')"
    command = [
        sys.executable,
        "-E",
        "-P",
        "-S",
        "-c",
        program,
        "1",
        "2",
        "{}",
        "module",
        *import_path(),
    ]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()


@pytest.mark.sockets
@pytest.mark.proofs
def test_the_standard_library_comes_first_and_then_the_path_of_the_process(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = sys.path.copy()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "app.pyz").touch()
    found = owner_path(monkeypatch, ["", "app.pyz", *own, "/nowhere"])
    library = found.index(os.path.dirname(os.__file__))  # noqa: PTH120  (as in `sys.path`)
    assert library < found.index(str(tmp_path))
    # The order of the process decides which of two versions of a package is imported.
    assert [each for each in found if each in {str(tmp_path), f"{tmp_path}/app.pyz", "/nowhere"}] == [
        str(tmp_path),
        f"{tmp_path}/app.pyz",
        "/nowhere",
    ]
    assert set(filter(os.path.isabs, own)) <= set(found)


def test_a_removed_working_directory_is_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "removed"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    monkeypatch.setattr(sys, "path", ["", "relative", "/absolute"])
    assert import_path() == ["/absolute"]


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import sys; sys.exit(3)", "the owner process exited with status 3"),
        (
            "print('more', file=__import__('sys').stderr); raise SystemExit('no vault')",
            "the owner process exited with status 1: no vault",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "the owner process was killed by SIGKILL",
        ),
        (
            "import os; raise SystemExit(os.environ['CORTECS_CLIENT_SECRET'] + ' by pass%2Fword')",
            "the owner process exited with status 1: *** by ***",
        ),
        # A long output is cut, and nothing remains of a secret at the cut.
        (
            "import os; raise SystemExit((os.environ['CORTECS_CLIENT_SECRET'] + '  ') * 999 + '\\nend')",
            "the owner process exited with status 1: end",
        ),
    ],
)
async def test_an_owner_that_dies_before_it_speaks_is_reported_with_its_last_line(
    monkeypatch: pytest.MonkeyPatch, program: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "emulator-secret")
    monkeypatch.setenv("VAULT_TOKEN", "short")  # 16 secrets and more are hidden
    for number in range(20):
        monkeypatch.setenv(f"SOME_KEY_{number}", f"some-key-{number}")
    monkeypatch.setenv("https_proxy", "http://user:pass%2Fword@proxy.test")
    monkeypatch.setattr(owner_process, "BOOTSTRAP", program)
    caplog.set_level("INFO", "cortecs_async.web")
    async with SharedInstance(MODEL, HARDWARE, pause=0.1) as shared:
        await until(lambda: not_ready(shared).reason == "failed")
        assert not_ready(shared).detail == f"the instance has no owner process: {reason}"
        # Strangers see neither.
        assert str(not_ready(shared)) == "The model could not be started"
    assert "secret" not in caplog.text.replace("CORTECS_CLIENT_SECRET", "")


@pytest.mark.sockets
async def test_a_server_without_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owner_process, "_STDERR", 999)  # as after it was closed
    monkeypatch.setattr(owner_process, "BOOTSTRAP", "raise SystemExit('no vault')")
    async with SharedInstance(MODEL, HARDWARE, pause=0.1) as shared:
        await until(lambda: "no vault" in not_ready(shared).detail)


@pytest.mark.sockets
async def test_it_is_entered_once_and_left_in_any_task(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch) as emu:
        shared = SharedInstance(MODEL, HARDWARE)
        refused: list[str] = []

        async def enter() -> None:
            try:
                await shared.__aenter__()
            except errors.InvalidArgumentError as error:
                refused.append(str(error))

        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(enter)
        assert len(refused) == 1
        assert "already entered" in refused[0]
        with anyio.fail_after(60):
            await shared.wait()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(shared.__aexit__, None, None, None)
        assert (len(emu.ledger), emu.existing) == (1, ())


# --- an owner that does not respond -------------------------------------------------------------------------


class Owner:
    """The owner's end of a connection, and the process that is connected to it. There are no sockets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, is_starting: bool = False) -> None:
        self.shared = SharedInstance(MODEL, HARDWARE)
        self.killed: list[int] = []
        place = self.shared._meeting_point
        lock = place.try_lock()
        assert lock is not None
        place.note_owner(lock, 4321, is_starting=is_starting)
        os.close(lock)
        monkeypatch.setattr(connector, "kill_frozen", lambda pid, _: self.killed.append(pid))
        to_process, from_owner = anyio.create_memory_object_stream[bytes](100)
        to_owner, from_process = anyio.create_memory_object_stream[bytes](100)
        self.streams = (to_process, from_process)
        self.stream: Any = StapledObjectStream(to_owner, from_owner)

    async def send(self, message: Any) -> None:
        await self.streams[0].send(_shared_server.encode(message))
        await anyio.wait_all_tasks_blocked()


async def test_a_silent_owner_is_noticed_then_killed_and_heals_if_it_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    owner = Owner(monkeypatch)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.shared._receive, owner.stream)
        await owner.send(HANDLE)
        for _ in range(20):
            await anyio.sleep(4.9)
            assert owner.shared._state == HANDLE
            await owner.send(HANDLE)
        await anyio.sleep(14.9)
        assert owner.shared._state == HANDLE
        await anyio.sleep(0.2)
        state = owner.shared._state
        assert isinstance(state, Unavailable)
        assert (state.reason, "4321" in state.detail) == ("unresponsive", True)
        await owner.send(HANDLE)
        assert owner.shared._state == HANDLE
        await anyio.sleep(59.9)
        assert owner.killed == []
        await anyio.sleep(0.2)
        assert owner.killed == [4321]
        await anyio.sleep(60)
        assert owner.killed == [4321, 4321]  # at first, the kill may fail
        tasks.cancel_scope.cancel()
    for each in (*owner.streams, owner.stream):
        await each.aclose()


@pytest.mark.parametrize(("is_starting", "seconds"), [(True, 300), (False, 60)])
async def test_an_owner_that_starts_slowly_is_not_killed(
    monkeypatch: pytest.MonkeyPatch, *, is_starting: bool, seconds: float
) -> None:
    """An owner that has begun to serve may have an instance, so a new worker waits for it no longer."""
    owner = Owner(monkeypatch, is_starting=is_starting)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(owner.shared._receive, owner.stream)
        await anyio.sleep(seconds - 0.1)
        assert owner.killed == []
        await anyio.sleep(0.2)
        assert owner.killed == [4321]
        tasks.cancel_scope.cancel()
    for each in (*owner.streams, owner.stream):
        await each.aclose()


def test_an_owner_corrects_a_late_note_of_its_starter() -> None:
    place = SharedInstance(MODEL, HARDWARE)._meeting_point
    lock = place.try_lock()
    assert lock is not None
    place.address.touch()
    place.note_owner(lock, os.getpid(), is_starting=True)
    assert (place.owner_pid(), place.owner_is_starting()) == (os.getpid(), True)
    assert place.restore(lock) == (lock, None)
    assert (place.owner_pid(), place.owner_is_starting()) == (os.getpid(), False)
    os.close(lock)


async def test_an_owner_whose_process_id_is_not_known_is_not_killed(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    owner = Owner(monkeypatch)
    place = owner.shared._meeting_point
    lock = place.try_lock()
    assert lock is not None
    os.pwrite(lock, b"text", 0)
    place.note_owner(lock, 4321)
    os.close(lock)
    assert place.address.with_suffix(".lock").read_text() == "text"
    with anyio.move_on_after(200):
        await owner.shared._receive(owner.stream)
    assert owner.killed == []
    for each in (*owner.streams, owner.stream):
        await each.aclose()


def test_only_an_owner_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    killed: list[int] = []
    monkeypatch.setattr(os, "kill", lambda pid, _: killed.append(pid))
    owner_process.kill_frozen(os.getpid(), "{}")  # another program
    owner_process.kill_frozen(2**22 + 1, "{}")  # no program
    # The owner of another instance, whose id another container has noted for its own owner.
    monkeypatch.setattr(Path, "read_bytes", lambda _: owner_command("{}"))
    owner_process.kill_frozen(4321, '{"model_id": "other"}')
    owner_process.kill_frozen(4321, "/not-\udcff-utf8/n.sock")
    assert killed == []
    owner_process.kill_frozen(4321, "{}")
    assert killed == [4321]


def owner_command(spec: str) -> bytes:
    """Return the command line of an owner, as in /proc."""
    arguments = ("python", "-c", owner_process.BOOTSTRAP, "3", "4", spec, "module", "/app", "")
    return b"\0".join(each.encode() for each in arguments)


def test_several_processes_may_kill_the_same_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_bytes", lambda _: owner_command("{}"))
    monkeypatch.setattr(os, "kill", raise_process_lookup_error)
    owner_process.kill_frozen(4321, "{}")


def raise_process_lookup_error(*_: object) -> None:
    raise ProcessLookupError


@pytest.mark.sockets
async def test_a_frozen_owner_is_noticed_and_heals(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch) as emu:
        async with shared_of(0.3) as shared:
            with anyio.fail_after(60):
                handle = await shared.wait()
            pid = shared._meeting_point.owner_pid()
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: isinstance(shared._state, Unavailable), 3)
            assert not_ready(shared).reason == "unresponsive"
            os.kill(pid, signal.SIGCONT)
            with anyio.fail_after(3):
                assert await shared.wait() == handle
        assert (len(emu.ledger), emu.existing) == (1, ())


@pytest.mark.sockets
@pytest.mark.parametrize("when", ["in the block", "while leaving"])
async def test_an_owner_that_stays_frozen_is_killed_and_its_instance_released(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    async with service(monkeypatch) as emu:
        async with shared_of(0.3) as shared:
            with anyio.fail_after(60):
                handle = await shared.wait()
            pid = shared._meeting_point.owner_pid()
            assert pid is not None
            # While it starts, it has more time.
            assert not shared._meeting_point.owner_is_starting()
            reapers = reapers_of(pid)
            os.kill(pid, signal.SIGSTOP)
            if when == "in the block":
                await until(lambda: not is_alive(pid))
                with anyio.fail_after(60):
                    assert (await shared.wait()) != handle
        await until(lambda: emu.existing == (), 60)
        await until(lambda: not any(map(is_alive, reapers)))


# --- reports ------------------------------------------------------------------------------------------------


@pytest.mark.sockets
async def test_a_report_reaches_the_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch) as emu:
        shared, other = SharedInstance(MODEL, HARDWARE), SharedInstance(MODEL, HARDWARE)
        async with shared, other:
            with anyio.fail_after(60):
                handle = await shared.wait()
                await other.wait()
            shared.report(ConnectionError("odd"), handle)
            await anyio.sleep(0.5)
            assert shared.handle() == handle
            emu.stop_instance(handle.instance_id)
            shared.report(ConnectionError("refused"), handle)
            # Without a report, it would take up to ten seconds.
            with anyio.fail_after(4):
                await other.state_after(handle)
                await shared.state_after(handle)
            with anyio.fail_after(60):
                assert (await shared.wait()) == (await other.wait()) != handle
        assert (len(emu.ledger), emu.existing) == (2, ())


@pytest.mark.sockets
async def test_what_the_owner_cannot_read_does_not_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch) as emu:
        async with SharedInstance(MODEL, HARDWARE) as shared:
            with anyio.fail_after(60):
                handle = await shared.wait()
            async with await anyio.connect_unix(shared._meeting_point.address) as stream:
                await stream.send(b'junk\n[]\n{}\n{"report": []}\n\xff\n' + b"x" * 100_000 + b"\n{")
            await anyio.sleep(0.5)
            assert shared.handle() == handle
        assert (len(emu.ledger), emu.existing) == (1, ())


@pytest.mark.sockets
async def test_a_shared_instance_that_was_idle_starts_again_when_a_process_needs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with service(monkeypatch) as emu:
        async with SharedInstance(MODEL, HARDWARE, idle_timeout=0.5) as shared:
            with anyio.fail_after(60):
                first = await shared.wait()
                state = await shared.state_after(first)
                while not (isinstance(state, Unavailable) and state.reason == "idle"):
                    state = await shared.state_after(state)
                assert (await shared.wait()).instance_id != first.instance_id
        assert (len(emu.ledger) >= 2, emu.existing) == (True, ())


# --- files that are removed ---------------------------------------------------------------------------------


@pytest.mark.sockets
@pytest.mark.parametrize("removed", [".sock", ".lock", "the directory"])
async def test_removed_files_are_restored(monkeypatch: pytest.MonkeyPatch, removed: str) -> None:
    async with service(monkeypatch) as emu:
        async with shared_of(pause=0.1) as shared:
            with anyio.fail_after(60):
                handle = await shared.wait()
            address = shared._meeting_point.address
            if removed == "the directory":
                shutil.rmtree(address.parent)
            else:
                address.with_suffix(removed).unlink()
            await until(lambda: address.exists() and address.with_suffix(".lock").exists())
            async with shared_of(pause=0.1) as other:
                with anyio.fail_after(60):
                    assert await other.wait() == handle
            assert shared.handle() == handle
        assert (len(emu.ledger), emu.existing) == (1, ())
        await until(lambda: not address.exists())


@pytest.mark.sockets
def test_a_lock_that_another_process_has_taken_is_left_to_it(state_dir: Path) -> None:
    place = MeetingPoint(state_dir / "shared" / "name.sock")
    first = place.try_lock()
    assert first is not None
    assert place.try_lock() is None
    place.listen().close()
    assert place.restore(first) == (first, None)
    place.address.unlink()
    place.address.with_suffix(".lock").unlink()
    second = place.try_lock()
    assert second is not None
    assert place.restore(first) == (first, None)
    os.close(second)
    # It has ended, and the first is the owner again.
    third, listener = place.restore(first)
    assert listener is not None
    listener.close()
    assert place.try_lock() is None
    os.close(third)
