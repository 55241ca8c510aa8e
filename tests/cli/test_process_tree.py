"""The processes that a command of `run` starts end with it, in real processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import anyio
import pytest
from _command_line import PROGRAM, call_command, environment
from _polls import poll_often
from _processes import is_alive, until
from _world import MODEL

from cortecs_async._cli import child_process, process_tree
from cortecs_async._cli.child_process import ChildProcess
from cortecs_async._cli.process_tree import ProcessTree
from cortecs_async._recovery.reaper_process import BOOTSTRAP
from cortecs_async.emulator import Emulator

# A daemon: its parent ends, and it has a session of its own. Writes its id.
DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "deaf" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(sys.argv[1], "w") as file:
            file.write(f"{os.getpid()}\\n")
        time.sleep(60)
    os._exit(0)
os.wait()
while not (os.path.exists(sys.argv[1]) and open(sys.argv[1]).read().endswith("\\n")):
    time.sleep(0.01)
"""


# Starts another daemon like itself when it gets SIGTERM, and ends.
HEIR = """
import os, signal, sys, time

def fork(number, frame):
    if os.fork():
        os._exit(0)

signal.signal(signal.SIGTERM, fork)
if os.fork():
    os._exit(0)
while True:
    time.sleep(60)
"""

# What a shell does for an entrypoint: starts something in the background, and becomes another program.
ENTRYPOINT = """
import os, subprocess, sys
for number in range(2):
    if os.fork() == 0:
        child = subprocess.Popen(["sleep", "60"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        os.write(1, f"{child.pid}\\n".encode())  # at once: the other one writes to the same pipe
        os.closerange(0, 3)
        if number:
            child.wait()
        os._exit(0)
os.execv(sys.executable, [sys.executable, "-P", "-c", *sys.argv[1:]])
"""


def process(pid: int, parent: int, *, start: str = "1", is_zombie: bool = False) -> process_tree._Process:
    return process_tree._Process(pid, start, parent, is_zombie)


@pytest.fixture(autouse=True)
def _short_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_DRAIN_TIME", 0.2)


def exists(pid: int) -> bool:
    """Return whether there is such a process, or a zombie."""
    return Path(f"/proc/{pid}").exists()


def daemon(note: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", "-c", DAEMON, str(note), *arguments]


@pytest.mark.sockets
def test_nothing_that_the_command_started_remains_after_run(
    served: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poll_often(monkeypatch)
    note = tmp_path / "note"
    done = call_command("run", MODEL, *daemon(note))
    assert done.exit_code == 0
    assert not is_alive(int(note.read_text()))
    assert "Terminated 1 process left running by the command.\n" in done.stderr
    assert served.existing == ()


@pytest.mark.sockets
async def test_a_daemon_that_ignores_sigterm_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child_process, "GRACE_PERIOD", 0.1)
    note = tmp_path / "note"
    async with ChildProcess(daemon(note, "deaf"), os.environ) as child:
        assert await child.wait() == 0
    assert not is_alive(int(note.read_text()))
    assert (child.left_behind, child.unkillable) == (1, ())


@pytest.mark.sockets
async def test_a_block_that_fails_ends_the_whole_tree(tmp_path: Path) -> None:
    note = tmp_path / "note"
    script = f"(sleep 60 & echo $! > {note}; wait) & wait"
    with pytest.raises(KeyError):
        async with ChildProcess(["sh", "-c", script], os.environ):
            await until(lambda: note.exists() and note.read_text().endswith("\n"))
            raise KeyError
    assert not is_alive(int(note.read_text()))


@pytest.mark.sockets
async def test_the_last_lines_of_a_pipe_are_written(tmp_path: Path) -> None:
    note = tmp_path / "note"
    async with ChildProcess(["sh", "-c", f"(sleep 0.1; echo done > {note}) & exit 3"], os.environ) as child:
        assert await child.wait() == 3
    assert note.read_text() == "done\n"
    assert child.left_behind == 0


@pytest.mark.sockets
async def test_other_children_and_reapers_are_not_touched(tmp_path: Path) -> None:
    note = tmp_path / "note"
    # What a reaper of the command looks like: the program of ours, with a sleep in place of its work.
    helper = f"import time; time.sleep(60)\n{BOOTSTRAP}"
    script = f"{sys.executable} -I -S -c '{helper}' & echo $! > {note}"
    with subprocess.Popen(["sleep", "60"]) as other:  # noqa: ASYNC220
        async with ChildProcess(["sh", "-c", script], os.environ) as child:
            await child.wait()
        reaper = int(note.read_text())
        assert is_alive(other.pid)
        assert is_alive(reaper)
        assert child.left_behind == 0
        os.kill(reaper, 9)
        other.kill()


@pytest.mark.sockets
async def test_daemons_that_end_meanwhile_leave_no_zombie(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cortecs_async._cli.process_tree._REAP_INTERVAL", 0.02)
    note = tmp_path / "note"
    script = f"(sh -c 'echo $$ > {note}' &) ; sleep 60"
    async with ChildProcess(["sh", "-c", script], os.environ) as child, anyio.create_task_group() as tasks:
        tasks.start_soon(child.wait)
        await until(lambda: note.exists() and note.read_text().endswith("\n"))
        await until(lambda: not exists(int(note.read_text())))
        tasks.cancel_scope.cancel()


@pytest.mark.sockets
async def test_a_process_that_forks_at_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "GRACE_PERIOD", 0.3)
    async with ChildProcess([sys.executable, "-I", "-S", "-c", HEIR], os.environ) as child:
        assert await child.wait() == 0
    assert (child.left_behind, child.unkillable) == (1, ())


@pytest.mark.sockets
def test_processes_from_before_the_command_are_not_touched(
    served: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [sys.executable, "-P", "-c", ENTRYPOINT, PROGRAM, "run", MODEL, "sleep", "0.1"]
    env = {**os.environ, **environment(served, tmp_path)}
    done = subprocess.run(arguments, env=env, capture_output=True, text=True, timeout=60, check=False)
    before = [int(line) for line in done.stdout.split()]
    try:
        assert done.returncode == 0, done.stderr
        assert len(before) == 2
        assert all(map(is_alive, before))
        assert "left running" not in done.stderr
    finally:
        for pid in before:
            os.kill(pid, 9)


@pytest.mark.sockets
async def test_processes_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_tree, "_HAS_PROC", False)
    note = tmp_path / "note"
    script = f"sh -c 'echo $$ > {note}; exec sleep 60' & wait"
    with anyio.fail_after(10):
        with pytest.raises(KeyError):
            async with ChildProcess(["sh", "-c", script], os.environ) as child:
                await until(lambda: note.exists() and note.read_text().endswith("\n"))
                raise KeyError
        assert not is_alive(int(note.read_text()))
        async with ChildProcess(["true"], os.environ) as child:
            assert await child.wait() == 0
    assert (child.left_behind, child.unkillable) == (0, ())


def test_a_signal_reaches_no_other_process_with_the_same_id() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        process_tree._send(process(other.pid, os.getpid(), start="0"), 9)
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.05)
        (same,) = (each for each in process_tree._processes() if each.pid == other.pid)
        process_tree._send(same, 9)
        assert other.wait(10) == -9


def test_the_tree_has_all_descendants_but_zombies_other_children_and_helpers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    me = os.getpid()
    listed = [process(1, 0), process(2, me), process(3, me)]
    monkeypatch.setattr(process_tree, "_processes", lambda: listed)
    lines = {5: ("python", "-c", BOOTSTRAP)}
    monkeypatch.setattr(process_tree, "command_line_of", lambda pid: lines.get(pid, ("sleep",)))
    monkeypatch.setattr(ProcessTree, "_has_token", lambda _, pid: pid in {4, 5, 6})
    tree = ProcessTree()
    tree.close()
    tree.add(3)
    adopted = [process(4, me, is_zombie=True), process(5, me), process(6, me), process(7, me)]
    grandchildren = [process(10 + pid, pid) for pid in (1, 2, 3, 5, 6, 7)]
    listed += [*adopted, *grandchildren]
    assert tree.living() == (3, 6, 13, 16)
    # The command has ended: its child was adopted, and the id of the command belongs to another process.
    listed[2:] = [process(3, me, start="2"), process(13, me)]
    assert tree.living() == (13,)


def test_the_command_of_a_run_in_a_run_belongs_to_both() -> None:
    outer, inner = ProcessTree(), ProcessTree()
    outer.close()
    env = inner.mark(outer.mark({"KEPT": "1"}))
    assert env["KEPT"] == "1"
    with subprocess.Popen(["sleep", "60"], env=env) as command:
        both = outer._has_token(command.pid), inner._has_token(command.pid)
        command.kill()
    assert both == (True, True)
    assert not outer._has_token(os.getpid())


def test_without_other_children_every_adopted_process_belongs_to_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    me = os.getpid()
    listed = [process(2, me)]
    monkeypatch.setattr(process_tree, "_processes", lambda: listed)
    helper = ("python", "-c", BOOTSTRAP)
    monkeypatch.setattr(process_tree, "command_line_of", lambda pid: helper if pid == 2 else ("ssh-agent",))
    # The environment of a process that protects its memory cannot be read.
    monkeypatch.setattr(ProcessTree, "_has_token", lambda *_: False)
    tree = ProcessTree()
    tree.close()
    listed += [process(4, me)]
    assert tree.living() == (4,)
    # The first process of a container adopts the orphans of all others.
    monkeypatch.setattr(os, "getpid", lambda: 1)
    listed = [process(2, 1)]
    tree = ProcessTree()
    tree.close()
    listed += [process(4, 1)]
    assert tree.living() == ()


@pytest.mark.sockets
async def test_a_signal_ends_the_wait_for_the_rest_of_the_command() -> None:
    with anyio.fail_after(4):  # the wait is five seconds
        async with ChildProcess(["sh", "-c", "sleep 60 & wait"], os.environ) as child:
            os.kill(os.getpid(), signal.SIGTERM)
            assert await child.wait() == 128 + signal.SIGTERM
    assert child.left_behind == 1


@pytest.mark.sockets
async def test_ctrl_c_after_the_command_ends_the_wait_for_the_rest() -> None:
    async def press() -> None:
        os.kill(os.getpid(), signal.SIGINT)  # runs in the first await of the end

    with anyio.fail_after(4):
        async with anyio.create_task_group() as tasks:
            async with ChildProcess(["sh", "-c", "sleep 60 & exit 4"], os.environ) as child:
                assert await child.wait() == 4
                tasks.start_soon(press)
    assert child.left_behind == 1
