"""The demo, the emulator, `orphans` and `sweep`, missing extras and the progress bar, in real processes."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from _command_line import call_command
from _processes import reapers_of
from attrs import evolve
from click.testing import CliRunner
from rich.console import Console

from cortecs_async import AsyncCortecs, Progress, __version__
from cortecs_async._api.domain import InitProgress, Instance, InstanceArgs, InstanceStatus, WorkerStatus
from cortecs_async._cli import cli
from cortecs_async._cli.batch_display import LineDisplay
from cortecs_async._cli.batch_live import LiveDisplay
from cortecs_async._cli.run import is_hardware
from cortecs_async._extras import install_command
from cortecs_async._lease.hardware import waiting_progress
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.journal import JournalFile
from cortecs_async.emulator import Emulator
from cortecs_async.integrations.rich import ProvisioningBar

COMMAND = [sys.executable, "-m", "cortecs_async"]


def run(*args: str, timeout: float = 60, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *args], capture_output=True, text=True, timeout=timeout, check=False, **options
    )


@pytest.mark.sockets
def test_demo_runs_a_lease_and_prints_a_receipt() -> None:
    done = run("demo", "--step-seconds", "0.05", "--prompt", "What is [/] a lease?")
    assert done.returncode == 0, done.stderr
    assert "embedded emulator" in done.stdout
    assert "5/5 Running" in done.stdout
    assert 'You said: "What is [/] a lease?"' in done.stdout
    assert "nothing; no instance exists or is billed" in done.stdout
    assert re.search(r"cost\s+0\.05 EUR", done.stdout)
    assert done.stderr == ""
    # Commands that run as they are printed.
    steps = re.findall(r"-m cortecs_async (\w+)", done.stdout.partition("What to try next")[2])
    assert steps == ["emulator", "models", "help", "doctor"]
    assert set(steps) <= cli.summaries.keys()


@pytest.mark.sockets
def test_demo_draws_a_bar_on_a_terminal() -> None:
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "demo", "--step-seconds", "0.1"],
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"},
    )
    os.close(slave)
    shown = b""
    try:
        while chunk := os.read(master, 4096):
            shown += chunk
    except OSError:
        pass  # Linux raises it when the other end is closed
    finally:
        os.close(master)
    assert process.wait(timeout=30) == 0
    text = shown.decode()
    assert "━" in text
    assert "5/5 Running" in text
    assert text.index("5/5 Running") < text.index("You said")


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("number", "status", "expected"), [(signal.SIGINT, 130, "Interrupted.\n"), (signal.SIGTERM, 143, "")]
)
def test_demo_can_be_interrupted(number: signal.Signals, status: int, expected: str) -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--step-seconds", "5"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while "1/5" not in process.stdout.readline():
        pass
    # The emulator ends with the process, so a reaper could not reach it.
    assert reapers_of(process.pid) == ()
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == status
    assert stderr == f"No instances were left behind.\n{expected}"


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_export_lines_of_the_emulator_configure_a_client(monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen(  # noqa: ASYNC220  (nothing else runs on this loop)
        [
            *(*COMMAND, "emulator", "--port", "0", "--step-seconds", "0", "--capacity", "NVIDIA_H100_1=1"),
            *("--model", "org/one=NVIDIA_H100_1:4096", "--model", "org/one=NVIDIA_L4_1:1024"),
            *("--model", "org/two"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for _ in range(5):
            name, value = re.fullmatch(r"export (\w+)=(\S+)\n", process.stdout.readline()).groups()  # type: ignore[union-attr]
            monkeypatch.setenv(name, value)
        async with (
            AsyncCortecs() as client,
            client.instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1") as inst,
        ):
            assert inst.openai_kwargs()["base_url"].startswith("http://127.0.0.1:")
            free = {each.hardware_type_id for each in await client.hardware_types.list_available()}
            assert "NVIDIA_H100_1" not in free
            one = await client.models.get("org/one")
            lengths = {name: each.max_context_length for name, each in one.hardware_configs.items()}
            assert lengths == {"NVIDIA_H100_1": 4096, "NVIDIA_L4_1": 1024}
            assert len((await client.models.get("org/two")).hardware_configs) > 2
    finally:
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "Ctrl-C" in stderr


def test_emulator_rejects_a_public_address() -> None:
    result = CliRunner().invoke(cli, ["emulator", "--host", "0.0.0.0", "--port", "0"])  # noqa: S104
    assert result.exit_code == 1
    assert "reachable from other machines" in result.output


@pytest.mark.sockets
def test_port_in_use_is_a_one_line_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = CliRunner().invoke(cli, ["emulator", "--port", str(port)])
    assert result.exit_code == 1
    assert result.output == f"Error: Port {port} is in use. Pass another --port, or 0 to pick a free one.\n"


def test_options_reach_the_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    served: list[tuple[tuple[float, ...], float, float]] = []

    def record(emulator: Any, **_: Any) -> None:
        settings = emulator._settings
        served.append((settings.list_lag, settings.clock_skew, settings.endpoint_lag))

    monkeypatch.setattr("cortecs_async.emulator.run_emulator", record)
    for arguments in ([], ["--list-lag", "3", "--clock-skew", "-600", "--endpoint-lag", "9"]):
        result = CliRunner().invoke(cli, ["emulator", *arguments])
        assert (result.exit_code, result.output) == (0, "")
    assert served == [((0.0,), 0.0, 0.0), ((3.0,), -600.0, 9.0)]


def test_an_impossible_clock_skew_is_a_one_line_error() -> None:
    result = CliRunner().invoke(cli, ["emulator", "--clock-skew", "nan"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: 'clock_skew' must be >= ")


@pytest.mark.parametrize("capacity", ["NVIDIA_H100_1", "=3", "NVIDIA_H100_1=many"])
def test_invalid_capacity_is_a_usage_error(capacity: str) -> None:
    result = CliRunner().invoke(cli, ["emulator", "--capacity", capacity])
    assert result.exit_code == 2
    assert f"Invalid value for '--capacity': capacity \"{capacity}\" is invalid" in result.output
    assert "NVIDIA_H100_1=4" in result.output


@pytest.mark.parametrize("model", ["org/a=", "org/a=NVIDIA_H100_1", "org/a=:8", "org/a=NVIDIA_H100_1:many"])
def test_invalid_model_is_a_usage_error(model: str) -> None:
    result = CliRunner().invoke(cli, ["emulator", "--model", model])
    assert result.exit_code == 2
    assert f"Invalid value for '--model': model \"{model}\" is invalid" in result.output
    assert "org/name=NVIDIA_H100_1:32768" in result.output


@pytest.mark.parametrize("config", ["", "=NVIDIA_H100_1:8"])
@pytest.mark.parametrize("other", ["", "=NVIDIA_H100_1:9"])
def test_model_with_the_same_hardware_twice_is_a_usage_error(config: str, other: str) -> None:
    result = CliRunner().invoke(cli, ["emulator", "--model", f"org/a{config}", "--model", f"org/a{other}"])
    assert result.exit_code == 2
    assert 'model "org/a" is specified twice for the same hardware' in result.output


@pytest.mark.parametrize("model", ["a", "org/a=NVIDIA_H100_1:0", "org/a=NVIDIA_B200_1:8"])
def test_invalid_model_of_the_emulator_is_a_one_line_error(model: str) -> None:
    result = CliRunner().invoke(cli, ["emulator", "--port", "0", "--model", model])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert len(result.output.splitlines()) == 1


def test_help_lists_the_commands() -> None:
    shown = call_command("--help").stdout
    assert "demo" in shown
    assert "emulator" in shown


@pytest.mark.sockets
def test_version() -> None:
    assert run("--version").stdout == f"cortecs-async, version {__version__}\n"


@pytest.mark.sockets
@pytest.mark.parametrize(
    ("missing", "args", "extra"),
    [
        ("click", ["demo"], "demo"),
        ("click", ["top"], "tui"),
        ("click", ["emulator"], "cli,emulator"),
        ("click", ["models"], "cli"),
        ("rich", ["demo"], "demo"),
        ("dotenv", ["--env-file", os.devnull, "models"], "cli"),
        ("openai", ["demo"], "demo"),
        ("starlette", ["demo"], "demo"),
        ("uvicorn", ["emulator", "--port", "0"], "emulator"),
    ],
)
def test_missing_package_names_the_extra(missing: str, args: list[str], extra: str) -> None:
    # With a None in sys.modules, Python cannot import the module.
    program = (
        "import sys, runpy; "
        f"sys.modules[{missing!r}] = None; sys.argv = ['cortecs-async', *{args!r}]; "
        "runpy.run_module('cortecs_async', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert install_command(extra) in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.sockets
def test_bar_without_rich_names_the_extra() -> None:
    program = "import sys; sys.modules['rich'] = None; import cortecs_async.integrations.rich"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert "ImportError: The progress bar needs rich" in done.stderr


def progress(instance_id: str, step: int, *, status: str = "pending", num_steps: int = 5) -> Progress:
    worker = WorkerStatus(
        init_progress=InitProgress(current_step=step, num_steps=num_steps, description=f"[{step}]")
        if num_steps
        else None
    )
    instance = Instance(
        instance_id=instance_id,
        base_url="http://localhost/v1" if status == "running" else None,
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status=status),
        worker_statuses=(worker,),
    )
    return Progress(instance=instance, elapsed=float(step))


def test_bar_disappears_once_all_instances_run(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(force_terminal=True, width=100)
    with ProvisioningBar(console) as bar:
        bar(progress("one", 1))
        bar(progress("two", 2))
        bar(progress("one", 5, status="running"))
        console.print("still drawn above the bar")
        bar(progress("two", 5, status="running"))
        console.print("after the bar")
        bar(progress("three", 1))
    shown = capsys.readouterr().out
    assert shown.index("two") < shown.index("after the bar") < shown.rindex("three")


def test_bar_stays_while_the_endpoint_is_tested(capsys: pytest.CaptureFixture[str]) -> None:
    with ProvisioningBar(Console(force_terminal=True, width=100)) as bar:
        for probe in ("", "502 Bad Gateway", "connection lost"):
            bar(evolve(progress("one", 5, status="running"), probe=probe))
        assert "✓" not in capsys.readouterr().out
        bar(progress("one", 5, status="running"))
        assert capsys.readouterr().out.count("✓") == 1


def test_bar_prints_a_line_per_change_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with ProvisioningBar(Console(width=20)) as bar:
        bar(progress("one", 2))
        bar(progress("one", 0, num_steps=0))
        bar(evolve(progress("one", 5, status="running"), probe="502 Bad Gateway"))
    assert capsys.readouterr().out.splitlines() == [
        "one  pending  2/5 [2]  2.0 s",
        "one  pending  pending  0.0 s",
        "one  running  waiting for the endpoint to answer (502 Bad Gateway)  5.0 s",
    ]


WAITING = waiting_progress(InstanceArgs(model_id="a--b"), ["NVIDIA_H100_1"], 130.0)


def test_the_wait_for_capacity_is_a_line_or_a_bar_until_there_is_an_instance(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with ProvisioningBar(Console(width=20)) as bar:
        bar(WAITING)
    assert capsys.readouterr().out == "waiting for capacity: NVIDIA_H100_1 (2 min)  130.0 s\n"
    console = Console(force_terminal=True, width=120)
    with ProvisioningBar(console) as bar:
        bar(WAITING)
        bar(progress("one", 5, status="running"))
        console.print("after the bar")
        assert not bar._tasks
    assert "waiting for capacity: NVIDIA_H100_1 (2 min)" in capsys.readouterr().out
    lines = LineDisplay(Console(width=20))
    lines.provisioning(WAITING)
    assert capsys.readouterr().out == "waiting for capacity: NVIDIA_H100_1 (2 min)  130 s\n"
    live = LiveDisplay(console)
    live.provisioning(WAITING)
    live.provisioning(progress("one", 2))
    assert [*live._starting] == ["one"]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("NVIDIA_H100_1", True),
        ("NVIDIA_L40S_1,NVIDIA_H100_1", True),
        ("cheapest", True),
        ("NVIDIA_L40S_1,python", False),
        ("python", False),
    ],
)
def test_words_that_select_hardware(word: str, *, expected: bool) -> None:
    assert is_hardware(word) is expected


@pytest.mark.sockets
class TestOrphans:
    PROGRAM = """
import asyncio
from cortecs_async import AsyncCortecs
async def main():
    async with AsyncCortecs(guard="off") as client:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1"):
            print("body", flush=True)
            await asyncio.sleep(60)
asyncio.run(main())
"""

    def test_instance_of_a_killed_program_is_listed_and_swept(
        self, served: Emulator, state_dir: Path
    ) -> None:
        foreign = served.start_instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1")
        with subprocess.Popen(
            [sys.executable, "-c", self.PROGRAM], stdout=subprocess.PIPE, text=True
        ) as left:
            assert left.stdout is not None
            assert left.stdout.readline() == "body\n"
            mine = next(each for each in served.billing if each != foreign)
            assert call_command("orphans").stderr == "No orphaned instances.\n"
            left.kill()
        for command in (["orphans"], ["sweep", "--dry-run"]):
            done = call_command(*command)
            assert done.exit_code == 1, done.stderr
            assert re.search(rf"found\s+{mine}.*process {left.pid}", done.stdout)
            assert done.stderr == ""  # no advice to run what it is
            assert served.billing == (foreign, mine)
        (listed,) = json.loads(call_command("orphans", "--json").stdout)
        assert (listed["state"], listed["instance_id"]) == ("found", mine)
        done = call_command("sweep")
        assert done.exit_code == 0, done.stderr
        assert re.search(rf"released\s+{mine}", done.stdout)
        assert served.existing == (foreign,)
        assert call_command("sweep").stderr == "No orphaned instances.\n"
        assert json.loads(call_command("sweep", "--json").stdout) == []
        assert list((state_dir / "journal").iterdir()) == []

    def test_what_a_reaper_has_is_listed_and_swept_with_force(
        self, served: Emulator, state_dir: Path
    ) -> None:
        mine = served.start_instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1")
        account = fingerprint(served.api_base_url, served.client_id)
        created = {"kind": "CREATED", "entry": "1", "account": account, "api": served.api_base_url}
        records: list[dict[str, Any]] = [
            {"kind": "OWNER", "format": 1, "host": "host", "pid": 7},
            {**created, "at": 5.0, "args": {}, "instance_id": mine, "goal": "gone"},
            {"kind": "ORPHANED"},
        ]
        reaper = JournalFile.create(state_dir / "journal", records)
        for command in (["orphans"], ["sweep"]):
            done = call_command(*command)
            assert done.exit_code == 1, done.stderr
            assert re.search(rf"releasing\s+{mine}.*host, process 7", done.stdout)
            assert "sweep --force" in done.stdout
        assert served.billing == (mine,)
        done = call_command("sweep", "--force")
        assert done.exit_code == 0, done.stderr
        assert re.search(rf"released\s+{mine}", done.stdout)
        assert served.existing == ()
        reaper.close()

    def test_missing_credentials_are_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("CORTECS_API_BASE_URL", "http://127.0.0.1:9/v1")
        done = call_command("sweep")
        assert done.exit_code == 1
        assert "CORTECS_CLIENT_ID" in done.stderr
