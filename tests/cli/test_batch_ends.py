"""How `batch` ends, as a process: signals at every moment, the last lines, and exit statuses."""

from __future__ import annotations

import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _command_line import PROGRAM, environment, serving
from _processes import until
from _world import MODEL

from cortecs_async.emulator import Emulator, Fault

NOISE = ("Traceback", "KeyboardInterrupt", "Aborted", "Exception ignored", "never retrieved")


class Process:
    """`cortecs-async batch` on an emulator, in a folder of its own."""

    def __init__(self, emulator: Emulator, folder: Path, *options: str, program: str = PROGRAM) -> None:
        self.emulator, self.target = emulator, folder / "out.jsonl"
        arguments = ("batch", "in.jsonl", "-o", "out.jsonl", "--model", MODEL, "--concurrency", "2", *options)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", program, *arguments],
            cwd=folder,
            env=environment(emulator, folder),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    @property
    def lines(self) -> int:
        """The lines of the output so far."""
        return len(self.target.read_text().splitlines()) if self.target.exists() else 0

    def until(self, condition: Callable[[Process], object]) -> None:
        deadline = time.monotonic() + 30
        while not condition(self):
            assert self._process.poll() is None, self.end()
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def send(self, number: signal.Signals) -> None:
        if self._process.poll() is None:
            self._process.send_signal(number)

    def end(self) -> tuple[int, str, str]:
        """Wait for the end. Return the status, and standard output and error without what is expected."""
        out, err = self._process.communicate(timeout=60)
        assert not [noise for noise in NOISE if noise in err], err
        return self._process.returncode, out, err


def write(folder: Path, count: int) -> None:
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 3}
    requests = ({"custom_id": f"r{n}", "url": "/v1/chat/completions", "body": body} for n in range(count))
    (folder / "in.jsonl").write_text("".join(json.dumps(request) + "\n" for request in requests))


def run_again(emulator: Emulator, folder: Path, command: str) -> str:
    """Run the command that continues, and return what it prints."""
    program, *arguments = shlex.split(command)
    assert program == "cortecs-async"
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, *arguments],
        cwd=folder,
        env=environment(emulator, folder),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def facts(text: str) -> dict[str, str]:
    """Return the names and values of the last lines."""
    pairs = (line.partition("  ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def has_stopped(process: Process) -> bool:
    return any(each.route == "stop" for each in process.emulator.requests)


MOMENTS: dict[str, tuple[Callable[[Process], object], ...]] = {
    "starting": (lambda process: process.emulator.existing,),
    "answering": (lambda process: process.lines >= 5,),
    "releasing": (lambda process: process.lines >= 5, has_stopped, has_stopped, has_stopped),
}


@pytest.mark.sockets
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_ends_the_batch_with_the_command_that_continues(
    tmp_path: Path, moment: str, number: signal.Signals, code: int
) -> None:
    write(tmp_path, 24)
    slow = {"starting": {"step_seconds": 0.3}, "answering": {}, "releasing": {"stop_seconds": 0.6}}[moment]
    with serving(answer_seconds=0.1, **slow) as emulator:
        process = Process(emulator, tmp_path, "--ordered")
        for condition in MOMENTS[moment]:
            process.until(condition)
            process.send(number)
        exit_code, out, err = process.end()
        assert (exit_code, out, emulator.existing) == (code, "", ())
        last = facts(err.partition("Interrupted.\n")[2])
        done = process.lines
        assert (last["answered"], last["failed"], last["left"]) == (f"{done} of 24", "0", str(24 - done))
        assert last["left running"] == "nothing"
        # The price list may not have arrived yet.
        assert last["cost"].startswith("about 0.") or (moment, last["cost"]) == ("starting", "unknown")
        assert facts(run_again(emulator, tmp_path, last["to continue"]))["answered"] == "24 of 24"


@pytest.mark.sockets
def test_the_command_that_continues_moves_saved_answers_back(tmp_path: Path) -> None:
    write(tmp_path, 24)
    with serving(answer_seconds=0.1) as emulator:
        process = Process(emulator, tmp_path)
        process.until(lambda each: each.lines >= 5)
        process.target.unlink()
        exit_code, out, err = process.end()
        assert (exit_code, out, emulator.existing) == (1, "", ())
        last = facts(err)
        move, _, command = last["to continue"].partition(" && ")
        subprocess.run(shlex.split(move), cwd=tmp_path, check=True)
        saved = process.lines
        # Answers that could not be written any more are saved too, but were not counted.
        assert 5 <= int(last["answered"].partition(" ")[0]) <= saved
        again = facts(run_again(emulator, tmp_path, command))
        assert (again["answered"], again["resumed"]) == ("24 of 24", f"{saved} from earlier runs")


# Programs that get Ctrl-C at an exact moment near the end.
INTERRUPT = "import os, signal\ninterrupt = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
PATCH = """
def before(owner, name):
    real = getattr(owner, name)
    def patched(*args, **options):
        interrupt()
        return real(*args, **options)
    setattr(owner, name, patched)
"""
SLOW_SORT = """
import time
from cortecs_async._batch.output import Output

def sort(_output, _last, _offsets, check):
    interrupt()
    while True:
        time.sleep(0.01)
        check()

Output.sort = sort
"""
THREAD = """
import threading, time

def interrupt_after_main():
    threading.main_thread().join()
    interrupt()
    time.sleep(1.0)

threading.Thread(target=interrupt_after_main).start()
"""
LATE = {
    "sorting": (SLOW_SORT, 130),
    "last lines": ("import cortecs_async._cli.batch\nbefore(cortecs_async._cli.batch, 'print_facts')", 130),
    "event loop": ("import asyncio\nbefore(asyncio.Runner, 'close')", 130),
}
EXITS = {"threads": THREAD, "exit": "import atexit\natexit.register(interrupt)"}


@pytest.mark.sockets
@pytest.mark.parametrize("moment", LATE)
def test_ctrl_c_at_the_end_is_no_traceback(tmp_path: Path, moment: str) -> None:
    write(tmp_path, 5)
    prelude, code = LATE[moment]
    with serving() as emulator:
        program = f"{INTERRUPT}{PATCH}{prelude}\n{PROGRAM}"
        exit_code, out, err = Process(emulator, tmp_path, "--ordered", program=program).end()
        assert (exit_code, emulator.existing) == (code, ())
    last = facts(err if moment == "sorting" else out)
    assert (last["answered"], last["left running"]) == ("5 of 5", "nothing")


@pytest.mark.smoke
@pytest.mark.parametrize("moment", EXITS)
def test_ctrl_c_while_python_exits_does_not_change_the_exit_code(moment: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"{INTERRUPT}{EXITS[moment]}\n{PROGRAM}", "--version"],
        env=environment(None, tmp_path),
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("options", "emulated", "fault", "message"),
    [
        (("--max-lifetime", "1s"), {"answer_seconds": 0.3}, None, "--max-lifetime 1 s"),
        (("--hardware", "NVIDIA_L40S_1"), {"capacity": {"NVIDIA_L40S_1": 0}}, None, "capacity"),
        ((), {}, Fault("status", route="chat", status=400, skip=1), None),
    ],
)
def test_the_last_lines_after_an_error(
    tmp_path: Path,
    options: tuple[str, ...],
    emulated: dict[str, Any],
    fault: Fault | None,
    message: str | None,
) -> None:
    write(tmp_path, 40)
    with serving(**emulated) as emulator:
        if fault is not None:
            emulator.add_fault(fault)
        process = Process(emulator, tmp_path, *options)
        exit_code, out, err = process.end()
        assert emulator.existing == ()
        done = process.lines
    command = f"cortecs-async batch in.jsonl -o out.jsonl --model {MODEL} --concurrency 2"
    if message is None:
        assert exit_code == 3
        assert facts(out)["to retry"] == f"{command} --retry-failed"
        assert "to continue" not in facts(out)
    else:
        assert exit_code == 1
        head, _, tail = err.partition("Error: ")
        assert message in tail
        assert "answered" not in head
        last = facts(tail)
        assert (last["answered"], last["left"]) == (f"{done} of 40", str(40 - done))
        assert last["left running"] == "nothing"
        assert last["to continue"] == shlex.join([*shlex.split(command), *options])


@pytest.mark.sockets
def test_an_instance_that_could_not_be_released_is_in_the_last_lines(tmp_path: Path) -> None:
    write(tmp_path, 2)
    release_quickly = (
        "from cortecs_async import AsyncCortecs\nreal = AsyncCortecs.run_batch\n"
        "AsyncCortecs.run_batch = lambda *args, **options: real(*args, **options, teardown_timeout=0.5)\n"
    )
    with serving() as emulator:
        for route in ("stop", "delete"):
            emulator.add_fault(Fault("status", route=route, status=500, times=None))
        process = Process(emulator, tmp_path, program=release_quickly + PROGRAM)
        exit_code, _, err = process.end()
        (left,) = emulator.existing
        emulator.clear_faults()
        anyio.run(until, lambda: not emulator.existing)  # or its reaper would try for hours
    assert exit_code == 1
    expected = f"{left} MAY STILL BE BILLED. To release: cortecs-async rm --stop {left}"
    assert facts(err)["left running"] == expected


@pytest.mark.sockets
def test_quiet_prints_no_last_lines(tmp_path: Path) -> None:
    write(tmp_path, 60)
    with serving(answer_seconds=0.1) as emulator:
        process = Process(emulator, tmp_path, program=f"import sys\nsys.argv.insert(1, '-q')\n{PROGRAM}")
        process.until(lambda each: each.lines >= 5)
        process.send(signal.SIGINT)
        assert process.end() == (130, "", "")
        assert emulator.existing == ()
