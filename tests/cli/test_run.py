"""`cortecs-async run -- COMMAND`: the instance, the command and the signals, in real processes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import pytest
from _command_line import PROGRAM, Terminal, call_command, environment, serving
from _polls import poll_often
from _processes import Program, is_alive, until
from _world import HARDWARE, MODEL
from click.testing import Result

from cortecs_async._cli import child_process
from cortecs_async._cli.child_process import CannotRunError, ChildProcess
from cortecs_async.emulator import Emulator, Fault

pytestmark = pytest.mark.sockets

Call = Callable[..., Result]

# A program for the OpenAI API, without anything of cortecs.
SCRIPT = """
import os
import openai

client = openai.OpenAI()
answer = client.chat.completions.create(
    model=os.environ["OPENAI_MODEL"], messages=[{"role": "user", "content": "Why is the sky blue?"}]
)
print(answer.choices[0].message.content)
"""

# Prints the signals that it gets. Ends on SIGTERM, or after a line of input.
LISTENER = """
import os, select, signal, sys

# Not signal.pause() or input() alone: a signal that arrives just before would wait for the next.
wakes, waker = os.pipe()
os.set_blocking(waker, False)
signal.set_wakeup_fd(waker)

def got(number, frame):
    os.write(1, b"got %d\\n" % number)  # a signal could interrupt `print` in `print`
    if number == signal.SIGTERM:
        sys.exit(5)

for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(each, got)
print("hangup", "ignored" if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN else "heard", flush=True)
if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
    signal.signal(signal.SIGHUP, got)
print("group", os.getpgrp() == os.getpgid(os.getppid()), flush=True)
print("ready", flush=True)
sources = [wakes, 0] if sys.stdin.isatty() else [wakes]
while 0 not in (ready := select.select(sources, [], [])[0]):
    os.read(wakes, 1)
print("read", input(), flush=True)
"""

LISTEN = [sys.executable, "-I", "-S", "-c", LISTENER]


@pytest.fixture
def emu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    with serving() as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator
        assert emulator.billing == ()


@pytest.fixture
def slow() -> Iterator[Emulator]:
    with serving(step_seconds=600) as emulator:
        yield emulator


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Iterator[Call]:
    poll_often(monkeypatch)
    before = {each: signal.getsignal(each) for each in child_process._FORWARDED}
    yield call_command
    assert {each: signal.getsignal(each) for each in child_process._FORWARDED} == before


def program(emulator: Emulator, tmp_path: Path, *arguments: str, before: str = "") -> Program:
    return Program(
        before + PROGRAM, "run", *arguments, env=environment(emulator, tmp_path), log=tmp_path / "log"
    )


def wait_for(condition: Callable[[], object]) -> None:
    anyio.run(until, condition)


@pytest.mark.parametrize("where", ["2>/dev/full", "2> >(exec true)"])
def test_command_runs_although_stderr_cannot_be_written(emu: Emulator, tmp_path: Path, where: str) -> None:
    arguments = [sys.executable, "-P", "-c", PROGRAM, "run", MODEL, "--", "touch", str(tmp_path / "made")]
    done = subprocess.run(
        ["bash", "-c", f'"$@" {where}', "bash", *arguments],
        env=environment(emu, tmp_path),
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    assert (tmp_path / "made").exists()
    assert emu.existing == ()


def test_plain_openai_script_talks_to_the_instance(emu: Emulator, tmp_path: Path) -> None:
    pytest.importorskip("openai")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM, "run", MODEL, HARDWARE, "--", sys.executable, str(script)],
        env=environment(emu, tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    # Standard output has only what the command wrote.
    assert re.fullmatch(r'This is the .* You said: "Why is the sky blue\?"\n', done.stdout)
    (entry,) = emu.ledger
    assert (entry.hardware_type_id, entry.status) == (HARDWARE, "deleted")
    assert "5/5 Running" in done.stderr
    assert re.search(
        rf"^{entry.instance_id}: \d+ s, billed as 1 minute, about 0\.05 EUR$", done.stderr, re.MULTILINE
    )
    assert emu.existing == ()


def test_the_command_starts_once_the_model_has_answered(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(endpoint_lag=1.0) as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        done = call("run", MODEL, "true")
        assert (done.exit_code, emulator.existing) == (0, ())
        assert "waiting for the endpoint to answer (502 Bad Gateway)" in done.stderr
        statuses = [each.status for each in emulator.requests if each.route == "chat"]
        assert statuses == [502] * (len(statuses) - 1) + [200]
        assert len(statuses) > 1
        before = len(emulator.requests)
        assert call("run", "--ready", "status", MODEL, "true").exit_code == 0
        assert "chat" not in {each.route for each in emulator.requests[before:]}


def test_a_rejected_key_starts_no_command(
    emu: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", "sk-wrong-and-secret")
    done = call("run", MODEL, "touch", str(tmp_path / "started"))
    assert done.exit_code == 125
    assert "rejected the inference API key from CORTECS_API_KEY" in done.stderr
    assert "sk-wrong" not in done.output
    assert not (tmp_path / "started").exists()
    assert emu.existing == ()


def test_environment_of_the_command(
    emu: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", emu.api_key)
    monkeypatch.setenv("KEPT", "yes")
    show = "import json, os, sys; json.dump([dict(os.environ), sys.argv], sys.stdout)"
    done = call(
        "run",
        MODEL,
        "--workers",
        "2",
        "--context-length",
        "4096",
        "--",
        sys.executable,
        "-c",
        show,
        "-h",
        "--",
    )
    assert done.exit_code == 0
    seen, arguments = json.loads(capfd.readouterr().out)
    assert arguments == ["-c", "-h", "--"]
    assert re.fullmatch("[0-9a-f]{32}", seen.pop("CORTECS_RUN"))
    (entry,) = emu.ledger
    assert entry.num_workers == 2
    assert {name: seen.get(name) for name in sorted(seen) if name.startswith(("OPENAI_", "CORTECS_"))} == {
        "CORTECS_API_BASE_URL": emu.api_base_url,
        "CORTECS_API_KEY": emu.api_key,
        "CORTECS_CONFIG_FILE": os.devnull,
        "CORTECS_INSTANCE_ID": entry.instance_id,
        "CORTECS_MODEL": MODEL,
        "CORTECS_STATE_DIR": os.environ["CORTECS_STATE_DIR"],
        "OPENAI_API_KEY": emu.api_key,
        "OPENAI_BASE_URL": f"{emu.root_url}/inference/{entry.instance_id}/v1",
        "OPENAI_MODEL": MODEL,
    }
    assert emu.client_secret not in seen.values()
    assert seen["KEPT"] == "yes"


@pytest.mark.parametrize(("command", "status"), [("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)])
def test_exit_code_is_that_of_the_command(emu: Emulator, call: Call, command: str, status: int) -> None:
    done = call("-q", "run", MODEL, "--", "sh", "-c", command)
    assert (done.exit_code, done.stderr) == (status, "")
    assert emu.existing == ()
    assert len(emu.ledger) == 1


def test_nothing_is_started_without_a_reaper(
    emu: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    done = call("run", MODEL, "--", "true")
    assert done.exit_code == 125
    assert "The reaper" in done.stderr
    assert emu.ledger == ()


def test_verbose_prints_nothing_twice(emu: Emulator, call: Call) -> None:
    done = call("-v", "run", MODEL, "--", "true")
    (entry,) = emu.ledger
    assert len(re.findall(r" at http://", done.stderr)) == 1
    assert len(re.findall(r"billed as 1 minute", done.stderr)) == 1
    assert entry.instance_id in done.stderr


def test_nothing_is_started_for_a_command_that_cannot_run(emu: Emulator, call: Call, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not executable")
    for command, status in [("no-such-command", 127), (str(tmp_path / "no"), 127), (str(plain), 126)]:
        done = call("run", MODEL, "--", command)
        assert (done.exit_code, done.stdout) == (status, "")
        assert done.stderr.startswith(f"cortecs-async run: {command}: ")
    assert call("run", MODEL, "--", str(tmp_path)).exit_code == 126
    assert emu.requests == ()


def test_command_on_the_path_that_is_not_executable(
    emu: Emulator, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "plain").write_text("not executable")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert call("run", MODEL, "--", "plain").exit_code == 126


def test_command_that_passes_the_check_but_fails_to_start(emu: Emulator, call: Call, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("#!/no/such/interpreter\n")
    script.chmod(0o755)
    assert call("run", MODEL, "--", str(script)).exit_code == 127
    script.write_bytes(b"\x7fELF and nothing else")
    done = call("run", MODEL, "--", str(script))
    assert done.exit_code == 126
    assert "Exec format error" in done.stderr
    assert len(emu.ledger) == 2
    assert emu.existing == ()


def test_nothing_is_started_without_an_inference_key(
    emu: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    done = call("run", MODEL, "--", "true")
    assert done.exit_code == 125
    assert "CORTECS_API_KEY or OPENAI_API_KEY" in done.stderr
    assert emu.requests == ()


@pytest.mark.parametrize("arguments", [[MODEL], [MODEL, "--"], [MODEL, HARDWARE], ["--", "true"]])
def test_missing_command_or_model_is_a_usage_error(call: Call, arguments: list[str]) -> None:
    done = call("run", *arguments)
    assert done.exit_code == 2
    assert "Usage: " in done.stderr


def test_usage_shows_where_the_command_goes(call: Call) -> None:
    shown = call("run", "--help").stdout
    assert "run [OPTIONS] MODEL [HARDWARE] [--] COMMAND [ARGS]..." in shown
    assert re.search(
        r"125 +the instance did not start, was lost, reached a limit, or could not be\n? +deleted\n +126 ",
        shown,
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["no-such-model"], "no-such-model"),
        ([MODEL, HARDWARE, "--max-cost", "0.01"], "is less than one billing interval"),
    ],
)
def test_failed_lease_exits_with_125(emu: Emulator, call: Call, arguments: list[str], expected: str) -> None:
    done = call("run", *arguments, "--", "true")
    assert done.exit_code == 125
    assert expected in done.stderr
    assert emu.ledger == ()


def test_hardware_by_preference_and_price(emu: Emulator, call: Call) -> None:
    emu.set_capacity(HARDWARE, 0)
    done = call("run", MODEL, f"{HARDWARE},NVIDIA_L40S_1", "true")
    assert done.exit_code == 0, done.stderr
    assert "Hardware: NVIDIA_L40S_1, second choice: NVIDIA_H100_1 was not available\n" in done.stderr
    done = call("run", MODEL, "cheapest", "--max-price-per-hour", "2", "true")
    assert "Hardware: NVIDIA_L4_1, cheapest of 2 available\n" in done.stderr
    done = call("start", MODEL, "cheapest")
    assert f"It is billed until you stop it: cortecs-async stop {done.stdout.strip()}\n" in done.stderr
    assert "Hardware: NVIDIA_L4_1, cheapest of 3 available\n" in done.stderr
    emu.delete_instance(done.stdout.strip())
    done = call("run", MODEL, HARDWARE, "--capacity-timeout", "1s", "--", "true")
    assert done.exit_code == 125
    assert "waiting for capacity: NVIDIA_H100_1" in done.stderr
    assert "No capacity for NVIDIA_H100_1 within --capacity-timeout 1 s." in done.stderr
    assert emu.existing == ()


def test_start_that_times_out_exits_with_125(
    slow: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slow.env().items():
        monkeypatch.setenv(name, value)
    done = call("run", MODEL, "--start-timeout", "0.2s", "--", "true")
    assert done.exit_code == 125
    assert slow.existing == ()


def test_failed_release_exits_with_125_although_the_command_worked(emu: Emulator, tmp_path: Path) -> None:
    emu.add_fault(Fault("status", route="stop", times=None))
    with program(emu, tmp_path, MODEL, "--teardown-timeout", "0.2s", "--", "true") as running:
        assert running.process.wait(timeout=30) == 125
        assert emu.billing[0] in running.output
        emu.clear_faults()
        wait_for(lambda: not emu.existing)  # the reaper finishes it


def test_reuse_leaves_the_instance_as_it_was(emu: Emulator, call: Call) -> None:
    there = emu.start_instance(MODEL, HARDWARE)
    done = call("run", MODEL, HARDWARE, "--reuse", "--", "true")
    assert done.exit_code == 0
    assert emu.billing == (there,)
    emu.stop_instance(there)


class TestSignals:
    def test_each_signal_is_forwarded_once(self, emu: Emulator, tmp_path: Path) -> None:
        with program(emu, tmp_path, MODEL, "--", *LISTEN) as running:
            wait_for(lambda: running.has_printed("ready"))
            assert running.has_printed("group True")
            assert running.has_printed("hangup heard")
            for number in (signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM):
                running.send(number)
                wait_for(functools.partial(running.has_printed, f"got {number}"))
            assert running.process.wait(timeout=30) == 5
            assert running.numbers("got") == [signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGTERM]
        assert emu.existing == ()

    def test_ignored_sighup_stays_ignored(self, emu: Emulator, tmp_path: Path) -> None:
        before = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        with program(emu, tmp_path, MODEL, "--", *LISTEN, before=before) as running:
            wait_for(lambda: running.has_printed("ready"))
            assert running.has_printed("hangup ignored")
            running.send(signal.SIGHUP)
            running.send(signal.SIGTERM)
            assert running.process.wait(timeout=30) == 5
            assert running.numbers("got") == [signal.SIGTERM]

    def test_ctrl_c_reaches_the_command_once(self, emu: Emulator, tmp_path: Path) -> None:
        with Terminal(PROGRAM, "run", MODEL, "--", *LISTEN, env=environment(emu, tmp_path)) as terminal:
            terminal.until(lambda text: "ready" in text)
            terminal.press("\x03")
            terminal.until(lambda text: "got 2" in text)
            terminal.press("a line\n")  # the command can still read from the terminal
            assert terminal.wait() == 0
            assert "read a line" in terminal.text
            assert terminal.text.count("got") == 1
        assert emu.existing == ()

    @pytest.mark.parametrize("step_seconds", [0.01, 600])
    def test_closed_window_leaves_no_instance(self, tmp_path: Path, step_seconds: float) -> None:
        with serving(step_seconds=step_seconds) as emu:
            command = ("run", MODEL, "--", "sh", "-c", "echo here; exec sleep 60")
            with Terminal(PROGRAM, *command, env=environment(emu, tmp_path)) as terminal:
                terminal.until(lambda text: ("here" if step_seconds < 1 else "1/5 Reserving") in text)
                terminal.hang_up()
                assert terminal.process.wait(timeout=30) == 129
                # Deleted by `run` itself, not by the reaper later.
                assert emu.existing == ()
            assert len(emu.ledger) == 1

    @pytest.mark.parametrize(
        ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)]
    )
    def test_signal_during_the_start_cancels_it_and_leaves_nothing(
        self, slow: Emulator, tmp_path: Path, number: signal.Signals, status: int
    ) -> None:
        with program(slow, tmp_path, MODEL, "--", "echo", "never") as running:
            wait_for(lambda: "1/5" in running.output)
            assert len(slow.billing) == 1
            running.send(number)
            assert running.process.wait(timeout=30) == status
            assert "No instances were left behind." in running.output
            assert "never" not in running.output
            assert "Traceback" not in running.output
        assert slow.existing == ()

    @pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
    def test_signal_during_the_release_changes_only_the_exit_code(
        self, tmp_path: Path, number: signal.Signals, status: int
    ) -> None:
        with serving(stop_seconds=0.5) as emu:
            with program(emu, tmp_path, MODEL, "--", "true") as running:
                wait_for(lambda: "Releasing" in running.output)
                wait_for(lambda: any(each.route == "stop" for each in emu.requests))
                running.send(number)
                running.send(number)
                assert running.process.wait(timeout=30) == status
                # Deleted by `run` itself, not by the reaper later.
                assert emu.existing == ()


class TestLoss:
    def test_command_gets_sigterm_at_the_limit(self, emu: Emulator, call: Call, tmp_path: Path) -> None:
        note = tmp_path / "note"
        done = call(
            *("run", MODEL, "--max-lifetime", "1s", "--", "sh", "-c"),
            f"trap 'echo told > {note}; exit 0' TERM; while :; do sleep 0.05; done",
        )
        assert done.exit_code == 125
        assert "reached --max-lifetime 1 s" in done.stderr
        assert note.read_text() == "told\n"
        assert emu.existing == ()

    def test_command_that_ignores_sigterm_is_killed(
        self, emu: Emulator, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(child_process, "GRACE_PERIOD", 0.1)
        note = tmp_path / "note"
        done = call(
            *("run", MODEL, "--max-lifetime", "0.7s", "--", "sh", "-c"),
            f"trap '' TERM; echo $$ > {note}; exec sleep 60",
        )
        assert done.exit_code == 125
        assert not is_alive(int(note.read_text()))
        assert emu.existing == ()

    def test_suspended_command_gets_sigterm(self, emu: Emulator, call: Call) -> None:
        began = time.monotonic()
        done = call("run", MODEL, "--max-lifetime", "0.7s", "--", "sh", "-c", "kill -STOP $$")
        assert done.exit_code == 125
        assert time.monotonic() - began < child_process.GRACE_PERIOD

    def test_lost_instance_ends_the_command(
        self, emu: Emulator, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        poll_often(monkeypatch, lost_interval=0.05)
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)

        def lose() -> None:
            pipe.read_text()  # returns once the command has written
            emu.delete_instance(emu.existing[0])

        with BackgroundThread(lose):
            done = call("run", MODEL, "--", "sh", "-c", f"echo > {pipe}; exec sleep 60")
        assert done.exit_code == 125
        assert "Releasing" in done.stderr


class BackgroundThread:
    def __init__(self, work: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=work)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join(timeout=30)


async def test_signal_before_the_start_is_forwarded(monkeypatch: pytest.MonkeyPatch) -> None:
    real = subprocess.Popen

    def popen(*args: object, **options: object) -> object:
        signal.raise_signal(signal.SIGTERM)
        return real(*args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(subprocess, "Popen", popen)
    before = signal.getsignal(signal.SIGTERM)
    async with ChildProcess(["sleep", "60"], os.environ) as child:
        assert await child.wait() == 143
    assert signal.getsignal(signal.SIGTERM) is before


async def test_exception_in_the_block_ends_the_process() -> None:
    with pytest.raises(KeyError):
        async with ChildProcess(["sleep", "60"], os.environ) as child:
            assert child._process is not None
            pid = child._process.pid
            assert is_alive(pid)
            raise KeyError
    assert not is_alive(pid)


async def test_cancelled_wait_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "GRACE_PERIOD", 0.1)
    with anyio.move_on_after(0.2) as scope:
        async with ChildProcess(["sh", "-c", "trap '' TERM; exec sleep 60"], os.environ) as child:
            await child.wait()
    assert scope.cancelled_caught
    assert child._process is not None
    assert not is_alive(child._process.pid)


async def test_failed_start_restores_the_handlers() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(CannotRunError):
        async with ChildProcess(["/no/such/command"], os.environ):
            pass
    assert signal.getsignal(signal.SIGINT) is before
