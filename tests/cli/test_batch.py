"""`cortecs-async batch`: exit statuses, receipt, estimate, errors and progress."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from _command_line import PROGRAM, Terminal, call_command, environment, serving
from _polls import poll_often
from _world import HARDWARE, MODEL
from attrs import evolve
from click.testing import Result
from rich.console import Console

from cortecs_async import AsyncCortecs, CortecsError
from cortecs_async._cli import cli
from cortecs_async._cli.batch import _report_facts
from cortecs_async._cli.batch_display import LineDisplay, format_duration, format_number
from cortecs_async._cli.batch_live import LiveDisplay
from cortecs_async._cli.program import command_line, quote, remember_arguments
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.errors import CapacityTimeoutError, InstanceLostError
from cortecs_async.types import (
    BatchProgress,
    BatchReport,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    Progress,
    Receipt,
    WorkerStatus,
)

Call = Callable[..., Result]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Call `batch` in a folder with an input of ten requests."""
    poll_often(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write(tmp_path, 10)
    return lambda *options, **more: call_command(
        *more.get("before", ()), "batch", "in.jsonl", "-o", "out.jsonl", "--model", MODEL, *options
    )


def write(folder: Path, count: int, **body: Any) -> None:
    with (folder / "in.jsonl").open("w") as file:
        for each in range(count):
            full = {"messages": [{"role": "user", "content": f"hello {each}"}], "max_tokens": 3, **body}
            request = {"custom_id": f"r{each}", "method": "POST", "url": "/v1/chat/completions", "body": full}
            file.write(json.dumps(request) + "\n")


def ids(folder: Path) -> list[str]:
    return [json.loads(line)["custom_id"] for line in (folder / "out.jsonl").read_text().splitlines()]


@pytest.mark.sockets
def test_batch_answers_all_and_prints_a_receipt(served: Emulator, call: Call, tmp_path: Path) -> None:
    done = call("--hardware", HARDWARE, "--ordered")
    assert done.exit_code == 0
    assert ids(tmp_path) == [f"r{each}" for each in range(10)]
    assert served.existing == ()
    for row in (
        "answered      10 of 10",
        "failed        0",
        "output        out.jsonl",
        "left running  nothing",
    ):
        assert row in done.stdout
    assert "cost          about 0.05 EUR" in done.stdout
    assert "5/5 Running" in done.stderr
    assert "10 of 10, 0 failed" in done.stderr
    again = call("--hardware", HARDWARE)
    assert again.exit_code == 0
    assert "no instance was started" in again.stdout
    assert len(served.ledger) == 1


@pytest.mark.sockets
def test_quiet_prints_nothing(served: Emulator, call: Call) -> None:
    done = call(before=["-q"])
    assert (done.exit_code, done.output) == (0, "")


@pytest.mark.sockets
def test_receipt_as_json(served: Emulator, call: Call) -> None:
    report = json.loads(call("--json", "--instances", "2").stdout)
    assert (report["total"], report["succeeded"], report["failed"]) == (10, 10, 0)
    assert len(report["receipts"]) in {1, 2}
    assert report["cost"] > 0
    assert report["currency"] == "EUR"


@pytest.mark.sockets
def test_error_lines_have_their_own_exit_code(served: Emulator, call: Call) -> None:
    served.add_fault(Fault("status", route="chat", status=400, skip=1))
    done = call()
    assert done.exit_code == 3
    assert "answered      9 of 10" in done.stdout
    assert "failed        1, each with an error line" in done.stdout
    assert call().exit_code == 3
    done = call("--retry-failed")
    assert (done.exit_code, served.existing) == (0, ())


@pytest.mark.sockets
def test_dry_run_starts_nothing(served: Emulator, call: Call, tmp_path: Path) -> None:
    done = call("--dry-run", "--instances", "2", "--workers", "2")
    assert done.exit_code == 0
    assert served.ledger == ()
    assert not (tmp_path / "out.jsonl").exists()
    for row in (
        "requests            10, 10 remaining",
        "hardware            NVIDIA_L40S_1, available now",
        "answers             at most 30 tokens in total",
        "within the context of 32,000",
        "price               0.12 EUR per minute, 7.20 per hour",
        "balance             1000.00 EUR",
        "at 500 tokens/s     0:00, 0.12 EUR",
    ):
        assert row in done.stdout
    plan = json.loads(call("--dry-run", "--json").stdout)
    assert plan["left"] == 10


@pytest.mark.sockets
def test_dry_run_warns_of_a_request_longer_than_the_context(
    served: Emulator, call: Call, tmp_path: Path
) -> None:
    write(tmp_path, 2, max_tokens=5000)
    assert "MORE THAN the context of 1,000" in call("--dry-run", "--context-length", "1000").stdout


@pytest.mark.sockets
def test_dry_run_bounds_what_can_be_written(served: Emulator, call: Call, tmp_path: Path) -> None:
    write(tmp_path, 2, max_tokens=5, n=4)
    assert "answers             at most 40 tokens in total\n" in call("--dry-run").stdout
    write(tmp_path, 2, max_tokens=None, n=2)
    done = call("--dry-run", "--context-length", "1000").stdout
    assert "at most 4,000 tokens in total; 4 are limited only by the context" in done
    write(tmp_path, 2, n="many")
    assert "no upper bound is known\n" in call("--dry-run").stdout
    image = {"type": "image_url", "image_url": {"url": "https://example.com/cat.png"}}
    write(tmp_path, 2, messages=[{"role": "user", "content": [image]}])
    done = call("--dry-run").stdout
    assert "attachments         2, with an unknown number of tokens" in done
    assert "not counting attachments, within the context" in done


@pytest.mark.parametrize(
    ("options", "text", "expected"),
    [
        ([], "{", "in.jsonl, line 1: not valid JSON"),
        ([], None, "in.jsonl: cannot be read: No such file"),
        (["-o", "no/such/out.jsonl"], "\n", "no/such/out.jsonl: cannot be written: No such file"),
        (["-o", "in.jsonl"], "\n", "in.jsonl: the output is the same file as the input"),
    ],
)
@pytest.mark.sockets
def test_file_error_starts_nothing(
    served: Emulator, call: Call, tmp_path: Path, options: list[str], text: str | None, expected: str
) -> None:
    if text is None:
        (tmp_path / "in.jsonl").unlink()
    else:
        (tmp_path / "in.jsonl").write_text(text)
    done = call(*options)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"Error: {expected}")
    _, more = done.stderr.splitlines()
    assert more == "More: cortecs-async help BatchFileError"
    assert served.requests == ()


UNUSABLE_KEYS = {
    "": "CORTECS_API_KEY",
    "sk-1\nsk-2": "line break",
    "sk-\u00fc": "HTTP header",
    '"sk-1"': "a space or a quotation mark",
    "Bearer sk-1": "a space or a quotation mark",
    "hush-hush": "is your client secret",
}


@pytest.mark.parametrize("key", UNUSABLE_KEYS)
@pytest.mark.parametrize("command", ["batch", "batch --dry-run", "run"])
def test_nothing_is_started_without_a_usable_inference_key(
    call: Call, monkeypatch: pytest.MonkeyPatch, key: str, command: str
) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "hush-hush")
    monkeypatch.setenv("OPENAI_API_KEY", key)
    # There is no service, so a request would be another error.
    monkeypatch.setattr(AsyncCortecs, "__init__", lambda *_, **__: pytest.fail("a client was created"))
    if command == "run":
        done = call_command("run", MODEL, "--", "true")
        assert done.exit_code == 125
    else:
        done = call(*command.split()[1:])
        assert done.exit_code == 1
    assert UNUSABLE_KEYS[key] in done.stderr
    assert not key or key not in done.output


@pytest.mark.sockets
def test_rejected_key_is_never_printed(served: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-and-secret")
    done = call(before=["-vv"])
    assert done.exit_code == 1
    assert "rejected the inference API key from OPENAI_API_KEY" in done.stderr
    assert "sk-wrong-and-secret" not in done.output
    assert served.existing == ()


@pytest.mark.sockets
def test_prompts_are_planned_with_their_defaults(served: Emulator, call: Call, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("Why is the sky blue?\n\nWhy is grass green?\n")
    options = ["--text", "--system", "x" * 400, "--max-tokens", "7", "--temperature", "0"]
    plan = json.loads(call(*options, "--dry-run", "--json").stdout)
    assert (plan["total"], plan["prompt_tokens"], plan["max_completion_tokens"]) == (2, 209, 14)
    assert served.ledger == ()


@pytest.mark.parametrize("value", ["0", "many", "-1", "1.5"])
def test_invalid_concurrency_is_a_usage_error(call: Call, value: str) -> None:
    done = call("--concurrency", value)
    assert done.exit_code == 2
    assert f'concurrency "{value}" is invalid (examples: auto, 1, 64)' in done.output


@pytest.mark.sockets
def test_closed_window_ends_it_like_sighup(tmp_path: Path) -> None:
    write(tmp_path, 400)
    arguments = ("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", MODEL)
    with serving(answer_seconds=0.2) as emulator:
        env = environment(emulator, tmp_path)
        with Terminal(PROGRAM, *arguments, "--concurrency", "2", env=env) as terminal:
            terminal.until(lambda text: "of 400" in text)
            terminal.hang_up()
            assert terminal.process.wait(timeout=30) == 129
        assert emulator.existing == ()


@pytest.mark.sockets
def test_bars_are_drawn_on_a_terminal(tmp_path: Path) -> None:
    write(tmp_path, 160)
    arguments = ("batch", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl"), "--model", MODEL)
    with serving(step_seconds=0.2, answer_seconds=0.05) as emulator:
        with Terminal(
            PROGRAM, *arguments, "--concurrency", "16", env=environment(emulator, tmp_path), columns=80
        ) as terminal:
            assert terminal.wait() == 0
            shown = terminal.text
        assert emulator.existing == ()
    assert "━" in shown
    assert "3/5" in shown
    assert "answers/s" in shown
    assert "16 in parallel on 1 instance" in shown
    assert "EUR so far" in shown
    assert "160 of 160 · 100%" in shown


@pytest.mark.parametrize("width", [80, 120])
def test_bars_fit_on_the_terminal(width: int) -> None:
    console = Console(width=width, force_terminal=True, record=True, file=io.StringIO())
    view = LiveDisplay(console)
    step = InitProgress(current_step=3, num_steps=5, description="Downloading the weights of the model")
    for each in ("instance-10001", "instance-10002"):
        view.provisioning(
            Progress(
                instance=Instance(
                    instance_id=each,
                    instance_args=InstanceArgs(model_id="a--b"),
                    instance_status=InstanceStatus(status="pending"),
                    worker_statuses=(WorkerStatus(init_progress=step),),
                ),
                elapsed=1.0,
            )
        )
    view.progress(evolve(progress(done=12_345), total=1_000_000, failed=99, rate=123_456.7))
    console.print(view._render())
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) == 5
    assert "12,444 of 1,000,000 · 1% · 99 failed" in lines[2]


@pytest.mark.parametrize("view", [LineDisplay, LiveDisplay])
def test_an_instance_counts_as_running_once_its_endpoint_answers(
    view: type[LineDisplay | LiveDisplay],
) -> None:
    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    step = InitProgress(current_step=5, num_steps=5, description="Running")
    instance = Instance(
        instance_id="one",
        base_url="http://localhost/v1",
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status="running"),
        worker_statuses=(WorkerStatus(init_progress=step),),
    )
    display = view(console)
    display.provisioning(Progress(instance=instance, elapsed=1.0, probe="502 Bad Gateway"))
    if isinstance(display, LiveDisplay):
        console.print(display._render())
    assert "waiting for the endpoint to answer (502 Bad Gateway)" in console.export_text()
    display.provisioning(Progress(instance=instance, elapsed=9.0))
    shown = console.export_text()
    assert ("5/5 Running  9 s" if view is LineDisplay else "✓ one is running a/b after 9 s") in shown


@pytest.mark.sockets
def test_full_disk_is_a_one_line_error_and_the_instance_is_released(tmp_path: Path) -> None:
    write(tmp_path, 80)
    # The limit also applies to bytecode. Python would cache it truncated, and the next run could not import
    # it.
    limited = """
import resource, signal, sys
sys.dont_write_bytecode = True
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
"""
    arguments = ("batch", "in.jsonl", "-o", "out.jsonl", "--model", MODEL, "--concurrency", "8")
    with serving(answer_seconds=0.05) as emulator:
        options: dict[str, Any] = {
            "cwd": tmp_path,
            # Without coverage, because the limit would apply to its files too.
            "env": environment(emulator, tmp_path),
            "capture_output": True,
            "text": True,
        }
        done = subprocess.run([sys.executable, "-c", limited + PROGRAM, *arguments], check=False, **options)
        assert done.returncode == 1
        assert "Error: out.jsonl cannot be written: File too large" in done.stderr
        assert "Traceback" not in done.stderr
        assert emulator.existing == ()
        left = len(ids(tmp_path))
        assert 0 < left < 80
        done = subprocess.run([sys.executable, "-c", PROGRAM, *arguments], check=False, **options)
        assert done.returncode == 0, done.stderr
    assert sorted(ids(tmp_path)) == sorted(f"r{each}" for each in range(80))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0, "0:00"), (59.6, "1:00"), (61, "1:01"), (3599.9, "1:00:00"), (90061, "25:01:01")],
)
def test_format_duration(seconds: float, shown: str) -> None:
    assert format_duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0, "0.0"), (12.34, "12.3"), (1234.5, "1,234"), (45_678, "45.7k")]
)
def test_format_number(value: float, shown: str) -> None:
    assert format_number(value) == shown


def test_a_line_every_ten_seconds_without_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    view = LineDisplay(Console(width=20))
    for second in range(25):
        now = 100.0 + second
        view.progress(progress(done=second))
    rest = "1.0 answers/s, 5.0 tokens/s, 8 in parallel on 1 instance"
    assert capsys.readouterr().out.splitlines() == [
        f"10 of 100, 0 failed, {rest}, 0:10 elapsed, 0.25 EUR so far, about 1:30 left",
        f"20 of 100, 0 failed, {rest}, 0:20 elapsed, 0.25 EUR so far, about 1:20 left",
    ]


RECEIPT = Receipt(
    instance_id="instance-1",
    seconds=61.0,
    billing_interval="per_minute",
    intervals=2,
    num_workers=1,
    cost=0.5,
    currency="EUR",
    released=True,
)
LOST = InstanceLostError("instance instance-1 was lost", instance_id="instance-1")
REFUSED = CapacityTimeoutError("No capacity for A within 4 s. Nothing was started.", instance_id="")
REFUSED.add_note("cortecs_async: No hardware type could be used. A answered 503.")
UNRESOLVED = CortecsError("A start request may have created an instance")


@pytest.mark.parametrize(
    ("receipts", "error", "incidents", "expected"),
    [
        ([RECEIPT], LOST, (), {"cost": "about 0.50 EUR", "left running": "nothing", "left": "58"}),
        ([evolve(RECEIPT, cost=None)], LOST, (), {"cost": "unknown", "left running": "nothing"}),
        ([], LOST, (), {"cost": "none, because no instance was started", "left running": "nothing"}),
        ([], REFUSED, (), {"cost": "none, because no instance was started", "left running": "nothing"}),
        ([RECEIPT], LOST, (str(REFUSED),), {"left running": "nothing"}),
        ([], UNRESOLVED, (), {"left running": "only the instances and start requests listed above"}),
        (
            [RECEIPT],
            LOST,
            ("was lost",),
            {"left running": "only the instances and start requests listed above"},
        ),
        ([RECEIPT], LOST, ("instance-1 was lost",), {"left running": "nothing"}),
        (
            [RECEIPT, evolve(RECEIPT, released=False, instance_id="instance-2")],
            LOST,
            (),
            {
                "cost": "about 1.00 EUR",
                "left running": "instance-2 MAY STILL BE BILLED. "
                "To release: cortecs-async rm --stop instance-2",
            },
        ),
    ],
)
def test_the_facts_of_an_early_end(
    receipts: list[Receipt], error: CortecsError, incidents: tuple[str, ...], expected: dict[str, str]
) -> None:
    report = BatchReport(
        output="out.jsonl",
        total=100,
        succeeded=40,
        failed=2,
        resumed=10,
        receipts=tuple(receipts),
        incidents=incidents,
    )
    with click.Context(cli) as context:
        remember_arguments(context, ("batch", "in file.jsonl", "--retry-failed"))
        found = dict(_report_facts(report, error))
    assert found["answered"] == "40 of 100"
    assert found["failed"] == "2, each with an error line"
    assert {name: found.get(name) for name in expected} == expected
    assert ("cost" in found) == (bool(receipts) or error in {LOST, REFUSED})
    assert found["to continue"] == "cortecs-async batch 'in file.jsonl'"


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("/usr/bin/cortecs-async", "cortecs-async -q batch 'in file.jsonl'"),
        ("/lib/cortecs_async/__main__.py", "python3 -m cortecs_async -q batch 'in file.jsonl'"),
    ],
)
def test_the_command_that_continues_is_the_one_that_was_typed(
    monkeypatch: pytest.MonkeyPatch, program: str, expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "..."])
    with click.Context(cli) as context:
        remember_arguments(context, ("-q", "batch", "in file.jsonl", "--retry-failed"))
        assert command_line(without="--retry-failed") == expected
        assert command_line("-x") == f"{expected} --retry-failed -x"
        remember_arguments(context, ("-q", "batch", "--", "in file.jsonl"))
        assert command_line("-x") == expected.replace("batch", "batch -x --")


def test_a_program_that_is_not_on_the_path_is_named_by_its_own(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = tmp_path / "my env" / "cortecs-async"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    with click.Context(cli) as context:
        remember_arguments(context, ("batch",))
        monkeypatch.setenv("PATH", "/nowhere")
        assert command_line() == f"'{program}' batch"
        monkeypatch.setenv("PATH", str(program.parent))
        assert command_line() == "cortecs-async batch"


@pytest.mark.parametrize("name", ["a b", "it's", "tab\there", "\u00a0\u3000", "\udcff", "$'x'", "\n"])
def test_a_quoted_word_is_read_by_a_shell(name: str) -> None:
    done = subprocess.run(["bash", "-c", f"printf %s {quote(name)}"], capture_output=True, check=True)
    assert os.fsdecode(done.stdout) == name
    assert quote(name).isprintable()


def test_the_command_that_continues_with_standard_input_says_so() -> None:
    report = BatchReport(output="out.jsonl", total=2, succeeded=1, failed=0, resumed=0)
    with click.Context(cli) as context:
        context.params["input"] = Path("-")
        remember_arguments(context, ("batch", "-"))
        found = dict(_report_facts(report, LOST))
    assert found["to continue"] == "cortecs-async batch -  # with the same standard input"


def progress(done: int) -> BatchProgress:
    return BatchProgress(
        total=100,
        succeeded=done,
        failed=0,
        resumed=0,
        instances=1,
        running=8,
        concurrency=8,
        prompt_tokens=0,
        completion_tokens=0,
        elapsed=float(done),
        rate=1.0,
        tokens_per_second=5.0,
        cost=0.25,
        currency="EUR",
    )
