"""`ls`, `show`, `start`, `restart`, `stop`, `rm`, `watch`, `models`, `hardware` and `balance`."""

from __future__ import annotations

import functools
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import click
import pytest
from _command_line import PROGRAM, Terminal, call_command, environment, serving
from _polls import poll_often
from _processes import Program, until
from _world import HARDWARE, MODEL
from click.testing import Result

import cortecs_async
from cortecs_async import AsyncCortecs, InstanceHandle, PollPolicy
from cortecs_async._api import teardown
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._cli import cli, watch
from cortecs_async._cli.options import amount, duration
from cortecs_async._cli.output import has_ended, sanitize, to_json
from cortecs_async._cli.tables import make_table
from cortecs_async.emulator import Emulator, Fault

Call = Callable[..., Result]


@contextmanager
def connected(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Iterator[Emulator]:
    """Serve an emulator that the commands of this process connect to."""
    with serving(**options) as emulator:
        for name, value in emulator.env().items():
            monkeypatch.setenv(name, value)
        yield emulator


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
    """An emulator whose starts do not finish during a test."""
    with connected(monkeypatch, step_seconds=600) as emulator:
        yield emulator


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch) -> Call:
    poll_often(monkeypatch)
    return call_command


@pytest.mark.sockets
class TestReading:
    def test_empty_account_is_a_note_on_stderr_or_an_empty_json_list(
        self, served: Emulator, call: Call
    ) -> None:
        shown = call("ls")
        assert (shown.exit_code, shown.stdout, shown.stderr) == (0, "", "No instances.\n")
        assert call("-q", "ls").stderr == ""
        assert json.loads(call("ls", "--json").stdout) == []

    def test_pipe_gets_one_line_per_instance(self, slow: Emulator, call: Call) -> None:
        slow.start_instance(MODEL, HARDWARE, num_workers=2)
        stopped = slow.start_instance(MODEL, HARDWARE)
        slow.stop_instance(stopped)
        head, *lines = call("ls").stdout.splitlines()
        assert head.split() == [
            "id",
            "model",
            "hardware",
            "workers",
            "status",
            "step",
            "started",
            "owner",
            "base",
            "url",
        ]
        assert re.split(r"\s{2,}", lines[0].strip()) == [
            slow.existing[0],
            MODEL,
            HARDWARE,
            "2",
            "pending",
            "1/5 Reserving the GPUs",
            "-",
            "unmanaged",
            "-",
        ]
        assert len(lines) == 2
        (only,) = json.loads(call("ls", "--status", "Stopped", "--json").stdout)
        assert only["instance_id"] == stopped
        assert only["instance_status"]["status"] == "stopped"
        assert call("ls", "--status", "running").stderr == 'No instances with status "running".\n'

    def test_show_prints_one_fact_per_line(self, slow: Emulator, call: Call) -> None:
        instance_id = slow.start_instance(MODEL, HARDWARE, context_length=4096)
        shown = call("show", instance_id).stdout
        assert re.search(r"^context +4096$", shown, re.MULTILINE)
        assert "base url" not in shown
        assert json.loads(call("show", instance_id, "--json").stdout)["instance_id"] == instance_id

    def test_error_has_no_traceback(self, served: Emulator, call: Call) -> None:
        shown = call("show", "unknown-id")
        assert shown.exit_code == 1
        assert shown.stdout == ""
        message, more = shown.stderr.splitlines()
        assert message.startswith("Error: There is no instance unknown-id.")
        assert more == "More: cortecs-async help BadRequestError"

    def test_models_hardware_and_balance(self, served: Emulator, call: Call) -> None:
        assert re.search(rf"^{MODEL} .*{HARDWARE}", call("models").stdout, re.MULTILINE)
        assert {each["hf_name"] for each in json.loads(call("models", "--json").stdout)} >= {MODEL}
        line = next(each for each in call("hardware").stdout.splitlines() if each.startswith(HARDWARE))
        assert re.search(r"_1 +NVIDIA H100 +80 GB +0\.05 EUR +yes +gpu: NVIDIA H100, .*currency: EUR", line)
        assert call("balance").stdout == "1000.00 EUR\n"
        assert json.loads(call("balance", "--json").stdout) == {"current_balance": 1000.0, "currency": "EUR"}

    def test_available_hardware_only(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        with connected(monkeypatch, capacity={HARDWARE: 0}):
            assert HARDWARE in call("hardware").stdout
            assert HARDWARE not in call("hardware", "--available").stdout

    def test_unknown_price_fields_are_shown_as_they_are(self, served: Emulator, call: Call) -> None:
        body = {"hardware_types": [{"hardware_type_id": "X", "price_info": {"tier": "gold", "usd": 2}}]}
        served.add_fault(Fault("status", route="hardware_types", status=200, body=body))
        line = next(each for each in call("hardware").stdout.splitlines() if each.startswith("X"))
        shown = "tier: gold, usd: 2"
        assert re.split(r"\s{2,}", line.strip()) == ["X", "-", "-", shown, "no", shown]


@pytest.mark.sockets
class TestStart:
    def test_start_prints_the_id_and_warns_of_billing(self, slow: Emulator, call: Call) -> None:
        shown = call("start", MODEL, HARDWARE, "--workers", "2", "--billing-interval", "per_hour")
        assert shown.exit_code == 0
        (instance_id,) = slow.billing
        assert shown.stdout == f"{instance_id}\n"
        assert f"is billed until you stop it: cortecs-async stop {instance_id}" in shown.stderr
        assert "`cortecs-async run`" in shown.stderr
        (entry,) = slow.ledger
        assert (entry.num_workers, entry.billing_interval) == (2, "per_hour")
        assert call("-q", "start", MODEL).stderr == ""

    def test_wait_shows_the_steps_until_it_is_running(self, served: Emulator, call: Call) -> None:
        shown = call("start", MODEL, HARDWARE, "--wait", "--json")
        assert json.loads(shown.stdout)["instance_status"]["status"] == "running"
        assert "5/5 Running" in shown.stderr
        assert f"{served.billing[0]} is running at http://" in shown.stderr

    def test_wait_that_times_out_names_the_instance(self, slow: Emulator, call: Call) -> None:
        shown = call("start", MODEL, "--wait", "--timeout", "0.1")
        assert shown.exit_code == 1
        assert slow.billing == (shown.stdout.strip(),)
        assert shown.stderr.endswith(
            "Increase --start-timeout, or try another hardware type.\n"
            f"{slow.billing[0]} was not deleted. To delete it: cortecs-async rm --stop {slow.billing[0]}\n"
            "More: cortecs-async help StartTimeoutError\n"
        )

    def test_lost_response_warns_that_an_instance_may_have_been_started(
        self, served: Emulator, call: Call
    ) -> None:
        served.add_fault(Fault("drop", route="start", when="after", times=None))
        shown = call("start", MODEL)
        assert shown.exit_code == 1
        assert "An instance may have been started. Run `cortecs-async ls` to check." in shown.stderr

    def test_ctrl_c_while_waiting_warns_of_billing(self, slow: Emulator, tmp_path: Path) -> None:
        with Terminal(PROGRAM, "start", MODEL, "--wait", env=environment(slow, tmp_path)) as terminal:
            terminal.until(lambda text: "1/5 Reserving" in text)
            terminal.press("\x03")
            assert terminal.wait() == 130
            (left,) = slow.billing
            assert f"{left} is still starting and is billed until you stop it.\nInterrupted." in terminal.text
            assert "Traceback" not in terminal.text

    def test_ctrl_c_warns_of_billing_even_with_quiet_and_json(self, slow: Emulator, tmp_path: Path) -> None:
        arguments = ("-q", "start", MODEL, "--wait", "--json")
        with Terminal(PROGRAM, *arguments, env=environment(slow, tmp_path)) as terminal:
            terminal.until(
                lambda _: slow.billing and any(each.route in {"list", "get"} for each in slow.requests)
            )
            terminal.press("\x03")
            assert terminal.wait() == 130
            (left,) = slow.billing
            assert f"{left} is still starting and is billed until you stop it.\n" in terminal.text
            shown = terminal.text[terminal.text.index("{") : terminal.text.rindex("}") + 1]
            assert json.loads(shown)["instance_id"] == left

    @pytest.mark.parametrize("command", ["start", "restart"])
    def test_sigterm_while_waiting_warns_of_billing(
        self, slow: Emulator, tmp_path: Path, command: str
    ) -> None:
        what = MODEL
        if command == "restart":
            what = slow.start_instance(MODEL, HARDWARE)
            slow.stop_instance(what)
        log = tmp_path / "log"
        with Program(PROGRAM, command, what, "--wait", env=environment(slow, tmp_path), log=log) as running:
            anyio.run(until, lambda: "1/5 Reserving" in running.output)
            running.send(signal.SIGTERM)
            assert running.process.wait(timeout=30) == 143
            (left,) = slow.billing
            assert f"{left} is still starting and is billed until you stop it.\n" in running.output

    @pytest.mark.parametrize("command", ["start", "restart"])
    def test_cancelled_request_warns_that_it_may_have_worked(
        self, slow: Emulator, tmp_path: Path, command: str
    ) -> None:
        # A request that was sent is awaited before the cancellation.
        slow.add_fault(Fault("delay", route=command, when="after", seconds=1.5))
        what = MODEL
        if command == "restart":
            what = slow.start_instance(MODEL, HARDWARE)
            slow.stop_instance(what)
        log = tmp_path / "log"
        with Program(PROGRAM, "-q", command, what, env=environment(slow, tmp_path), log=log) as running:
            anyio.run(until, lambda: slow.billing)
            running.send(signal.SIGINT)
            assert running.process.wait(timeout=30) == 130
            assert re.search(r" may have been (re)?started\. Run `cortecs-async (ls|show)", running.output)

    @pytest.mark.parametrize("options", [[], ["--json"]])
    def test_limit_beyond_the_range_of_dates_still_prints_the_id(
        self, call: Call, monkeypatch: pytest.MonkeyPatch, options: list[str]
    ) -> None:
        handle = InstanceHandle(
            instance_id="i", base_url="https://x.test/v1", model="m", account="a", expires_at=4e11
        )

        async def acquire(*_: object, **__: object) -> InstanceHandle:
            return handle

        monkeypatch.setattr(AsyncCortecs, "acquire", acquire)
        monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret")
        shown = call("start", MODEL, HARDWARE, "--max-cost", "100000000", *options)
        assert shown.exit_code == 0
        assert (InstanceHandle.from_json(shown.stdout) == handle) if options else (shown.stdout == "i\n")
        assert "deletes it: in the far future" in shown.stderr

    def test_hardware_as_an_option(self, slow: Emulator, call: Call) -> None:
        assert call("start", MODEL, "--hardware", HARDWARE).exit_code == 0
        assert call("start", MODEL, HARDWARE, "--hardware", HARDWARE).exit_code == 0
        assert [each.hardware_type_id for each in slow.ledger] == [HARDWARE, HARDWARE]
        for command in (["start", MODEL, HARDWARE], ["run", MODEL, HARDWARE]):
            shown = call(*command, "--hardware", "OTHER", *(["--", "true"] if command[0] == "run" else []))
            assert shown.exit_code == 2
            assert f'hardware is specified twice: "{HARDWARE}" and "OTHER"' in shown.stderr
        assert len(slow.ledger) == 2

    def test_limit_is_enforced_by_a_background_process(self, served: Emulator, tmp_path: Path) -> None:
        # Longer than the command takes on a busy machine.
        arguments = ("start", MODEL, HARDWARE, "--max-lifetime", "10s", "--json")
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM, *arguments],
            env=environment(served, tmp_path),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        handle = InstanceHandle.from_json(done.stdout)
        assert served.billing == (handle.instance_id,)
        assert re.search(r"background process on this machine deletes it: \d{4}-\d\d-\d\d ", done.stderr)
        anyio.run(until, lambda: not served.existing)
        (entry,) = served.ledger
        assert 9.0 < entry.seconds < 18.0

    def test_interrupted_start_with_a_limit_leaves_nothing(self, slow: Emulator, tmp_path: Path) -> None:
        arguments = ("start", MODEL, "--max-lifetime", "1h")
        with Terminal(PROGRAM, *arguments, env=environment(slow, tmp_path)) as terminal:
            terminal.until(lambda text: "1/5 Reserving" in text)
            terminal.press("\x03")
            assert terminal.wait() == 130
            assert "No instances were left behind.\nInterrupted." in terminal.text
        assert slow.existing == ()

    @pytest.mark.parametrize("command", [["start", MODEL], ["restart", "i"]])
    @pytest.mark.parametrize("option", ["--start-timeout", "--timeout"])
    def test_timeout_without_wait_is_a_usage_error(self, call: Call, command: list[str], option: str) -> None:
        shown = call(*command, option, "5")
        assert shown.exit_code == 2
        assert "--start-timeout needs --wait." in shown.stderr

    def test_restart(self, served: Emulator, call: Call) -> None:
        instance_id = call("-q", "start", MODEL, "--wait").stdout.strip()
        assert call("restart", instance_id).exit_code == 1
        served.stop_instance(instance_id)
        shown = call("restart", instance_id, "--wait")
        assert shown.stdout == f"{instance_id}\n"
        assert f"cortecs-async stop {instance_id}" in shown.stderr
        assert served.billing == (instance_id,)


@pytest.mark.sockets
class TestStopping:
    @pytest.fixture
    def slow_to_stop(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Emulator]:
        with connected(monkeypatch, stop_seconds=0.3) as emulator:
            yield emulator

    def test_stop_waits_until_the_instance_is_stopped(self, slow_to_stop: Emulator, call: Call) -> None:
        instance_id = slow_to_stop.start_instance(MODEL, HARDWARE)
        shown = call("stop", instance_id)
        assert (shown.exit_code, shown.stdout) == (0, f"{instance_id}  stopped\n")
        assert slow_to_stop.billing == ()

    def test_no_wait_returns_at_once(self, slow_to_stop: Emulator, call: Call) -> None:
        instance_id = slow_to_stop.start_instance(MODEL, HARDWARE)
        assert call("stop", instance_id, "--no-wait").stdout == f"{instance_id}  stopping\n"

    def test_stop_that_times_out_fails(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        with connected(monkeypatch, stop_seconds=600) as served:
            instance_id = served.start_instance(MODEL, HARDWARE)
            shown = call("stop", instance_id, "--timeout", "0.2s")
            assert (shown.exit_code, shown.stdout) == (1, "")
            assert "is stopping after 0.2 s. It may be billed until it is stopped." in shown.stderr

    def test_ctrl_c_prints_the_status(self, tmp_path: Path) -> None:
        with serving(stop_seconds=600) as served:
            instance_id = served.start_instance(MODEL, HARDWARE)
            log = tmp_path / "log"
            with Program(
                PROGRAM, "-q", "stop", instance_id, env=environment(served, tmp_path), log=log
            ) as running:
                anyio.run(until, lambda: any(each.route in {"list", "get"} for each in served.requests))
                running.send(signal.SIGINT)
                assert running.process.wait(timeout=30) == 130
                assert running.has_printed(f"{instance_id} was asked to stop and is stopping.")

    def test_stop_waits_for_an_instance_that_is_already_stopping(
        self, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with connected(monkeypatch, stop_seconds=3.0) as served:  # longer than two commands take
            instance_id = served.start_instance(MODEL, HARDWARE)
            assert call("stop", "--no-wait", instance_id).stdout == f"{instance_id}  stopping\n"
            assert call("stop", "--no-wait", instance_id).stdout == f"{instance_id}  stopping\n"
            assert call("stop", "--all", "--yes").stdout == f"{instance_id}  stopped\n"

    def test_instance_deleted_meanwhile_is_gone(self, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
        with connected(monkeypatch, stop_seconds=600) as served:
            instance_id = served.start_instance(MODEL, HARDWARE)
            served.add_fault(Fault("status", route="list", status=200, body={"instances": []}, times=None))
            served.add_fault(Fault("status", route="get", status=404, times=None))
            assert call("stop", instance_id).stdout == f"{instance_id}  gone\n"


class TestStopAndRemove:
    def test_a_failure_does_not_affect_the_others(self, account: Emulator, call: Call) -> None:
        one, two, three = (account.start_instance(MODEL, HARDWARE) for _ in range(3))
        account.stop_instance(two)
        shown = call("stop", one, "unknown-id", two, one)
        assert shown.exit_code == 1
        assert shown.stdout == f"{one}  stopped\n{two}  already stopped\n"
        assert shown.stderr == (
            "There is no instance unknown-id. `cortecs-async ls` lists your instances.\n"
            "More: cortecs-async help BadRequestError\n"
        )
        alone = call("stop", "unknown-id")
        assert (alone.exit_code, alone.stderr) == (1, f"Error: {shown.stderr}")
        assert account.billing == (three,)

    def test_rm_rejects_instances_that_are_not_stopped(self, account: Emulator, call: Call) -> None:
        one, two = (account.start_instance(MODEL, HARDWARE) for _ in range(2))
        account.stop_instance(two)
        shown = call("rm", one, two, "unknown-id")
        assert shown.exit_code == 1
        assert shown.stdout == f"{two}  deleted\n"
        assert re.search(rf"^{one}  is \w+\. Pass --stop to stop it first\.$", shown.stderr, re.MULTILINE)
        said = "There is no instance unknown-id. `cortecs-async ls` lists your instances."
        assert f"\n{said}" in f"\n{shown.stderr}"
        assert account.billing == (one,)
        assert call("rm", "--stop", one).stdout == f"{one}  deleted\n"
        assert account.existing == ()

    @pytest.mark.parametrize(
        "faults",
        [
            (Fault("omit", route="list", skip=1),),
            (
                Fault("omit", route="list", skip=1),
                Fault("status", route="stop", status=404),
                Fault("omit", route="get"),
                Fault("omit", route="list", skip=2),
            ),
        ],
        ids=["a list", "everything"],
    )
    def test_rm_stop_does_not_believe_one_moment_without_the_instance(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch, faults: tuple[Fault, ...]
    ) -> None:
        monkeypatch.setattr(teardown, "ABSENCE_SPAN", 0.05)
        instance_id = account.start_instance(MODEL, HARDWARE)
        for fault in faults:
            account.add_fault(fault)
        assert call("rm", "--stop", instance_id).stdout == f"{instance_id}  deleted\n"
        assert account.existing == ()
        assert account.unmet_faults == ()

    def test_rm_stop_of_an_instance_that_no_reading_shows_is_not_called_deleted(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(teardown, "ABSENCE_SPAN", 0.05)
        instance_id = account.start_instance(MODEL, HARDWARE)
        account.add_fault(Fault("status", route="stop", status=500, times=None))
        account.add_fault(Fault("omit", route="get", times=None))
        account.add_fault(Fault("omit", route="list", skip=1, times=None))
        shown = call("rm", "--stop", "--timeout", "1.5", instance_id)
        assert shown.exit_code == 1
        assert shown.stdout == ""
        assert shown.stderr.startswith(f"Error: Instance {instance_id} could not be deleted in time (")
        # Neither a reaper nor a journal of this account.
        assert shown.stderr.endswith(
            "IT MAY STILL BE BILLED. Delete it with `cortecs-async rm --stop`.\n"
            "More: cortecs-async help TeardownError\n"
        )
        assert account.billing == (instance_id,)

    def test_rm_stop_deletes_an_instance_that_cannot_be_read(self, account: Emulator, call: Call) -> None:
        instance_id = account.start_instance(MODEL, HARDWARE)
        odd = {"instance_id": instance_id, "instance_args": None, "instance_status": {"status": "running"}}
        for route in ("list", "get", "stop"):
            times = 1 if route == "list" else None
            account.add_fault(
                Fault("garbage", route=route, body={"instances": [odd], "instance": odd}, times=times)
            )
        shown = call("rm", "--stop", instance_id)
        assert shown.stdout == f"{instance_id}  deleted\n"
        assert f"{instance_id} exists but could not be parsed" in shown.stderr
        assert shown.exit_code == 0
        assert account.existing == ()

    @pytest.mark.parametrize("command", [("stop",), ("rm", "--stop")])
    def test_all_exits_with_1_if_an_instance_that_cannot_be_read_is_left(
        self, account: Emulator, call: Call, command: tuple[str, ...]
    ) -> None:
        account.start_instance(MODEL, HARDWARE)
        account.add_entry({"instance_id": "odd", "instance_args": None})
        shown = call(*command, "--all", "--yes")
        assert shown.exit_code == 1
        assert "odd exists but could not be parsed" in shown.stderr
        assert account.billing == ()

    @pytest.mark.parametrize("command", ["stop", "rm"])
    def test_all_needs_a_confirmation(self, account: Emulator, call: Call, command: str) -> None:
        instance_id = account.start_instance(MODEL, HARDWARE)
        verb = "stop"
        if command == "rm":
            verb = "delete"
            account.stop_instance(instance_id)
        shown = call(command, "--all", input="y\n")
        assert shown.exit_code == 1
        assert f"{instance_id}  " in shown.stderr
        assert f"not a terminal. Pass --yes to {verb} 1 instance." in shown.stderr
        assert account.existing == (instance_id,)
        assert (instance_id in account.billing) is (command == "stop")
        assert call(command, "--all", "--yes").exit_code == 0
        assert account.billing == ()
        assert call(command, "--all").exit_code == 0

    @pytest.mark.sockets
    @pytest.mark.parametrize(
        ("keys", "status", "expected"),
        [("y\n", 0, "deleted"), ("\n", 1, "Nothing was changed."), ("\x03", 130, "")],
    )
    def test_all_asks_on_a_terminal(
        self, served: Emulator, tmp_path: Path, keys: str, status: int, expected: str
    ) -> None:
        instance_id = served.start_instance(MODEL, HARDWARE)
        with Terminal(PROGRAM, "rm", "--all", "--force", env=environment(served, tmp_path)) as terminal:
            terminal.until(lambda text: "[y/N]" in text)
            question = "Delete 1 instance? --all includes instances of other people and programs. [y/N]"
            assert question in terminal.text
            assert served.billing == (instance_id,)
            if keys == "\x03":
                terminal.press_until(keys, "Interrupted.")
            else:
                terminal.press(keys)
            assert terminal.wait() == status
            assert expected in terminal.text
        assert (served.existing == ()) is (status == 0)

    def test_all_spares_instances_started_after_the_list(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shown = account.start_instance(MODEL, HARDWARE)
        later: list[str] = []

        def confirm(*_: object, **__: object) -> bool:
            later.append(account.start_instance(MODEL, HARDWARE))
            return True

        monkeypatch.setattr(click, "confirm", confirm)
        monkeypatch.setattr("cortecs_async._cli.instances._is_terminal", lambda: True)
        assert call("stop", "--all").stdout == f"{shown}  stopped\n"
        assert account.billing == tuple(later)

    def test_rm_all_without_force_skips_running_instances(self, account: Emulator, call: Call) -> None:
        one, two = (account.start_instance(MODEL, HARDWARE) for _ in range(2))
        account.stop_instance(two)
        shown = call("rm", "--all", "--yes")
        assert shown.stdout == f"{two}  deleted\n"
        assert "Skipped 1 instance not yet stopped. Pass --stop to delete all." in shown.stderr
        assert account.billing == (one,)

    def test_force_succeeds_for_an_instance_that_does_not_exist(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(teardown, "ABSENCE_SPAN", 0.05)
        one = account.start_instance(MODEL, HARDWARE)
        shown = call("rm", "-f", "unknown-id", one)
        assert (shown.exit_code, shown.stdout) == (0, f"unknown-id  gone\n{one}  deleted\n")
        assert account.existing == ()

    def test_force_believes_several_readings_and_not_one_list(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(teardown, "ABSENCE_SPAN", 0.05)
        one = account.start_instance(MODEL, HARDWARE)
        account.add_fault(Fault("omit", route="list"))
        assert call("rm", "--force", one).exit_code == 0
        assert account.existing == ()

    def test_rm_of_a_stopped_instance_has_a_time_limit(
        self, account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        one = account.start_instance(MODEL, HARDWARE)
        account.stop_instance(one)
        account.add_fault(Fault("status", route="delete", status=503, times=None))
        shown = call("rm", "--timeout", "0.1", one)
        assert shown.exit_code == 1
        assert shown.stderr.endswith(
            f"{one}  was not confirmed deleted within 0.1 s. Run `cortecs-async show {one}` to check.\n"
        )

    @pytest.mark.parametrize("arguments", [["stop"], ["rm"], ["stop", "i", "--all"], ["rm", "i", "--all"]])
    def test_ids_or_all_but_not_both(self, call: Call, arguments: list[str]) -> None:
        assert call(*arguments).exit_code == 2


@pytest.mark.sockets
class TestWatch:
    def test_a_line_per_change_until_all_are_running(self, served: Emulator, call: Call) -> None:
        one = call("-q", "start", MODEL).stdout.strip()
        shown = call("watch", one, "--until-running")
        assert shown.exit_code == 0
        last = shown.stdout.splitlines()[-1]
        assert re.fullmatch(rf"{one}  running  5/5 Running  http://\S+/v1  [0-9.]+ s", last)

    def test_exits_when_all_are_stopped(self, served: Emulator, call: Call) -> None:
        one, two = (served.start_instance(MODEL, HARDWARE) for _ in range(2))
        served.stop_instance(one)
        served.stop_instance(two)
        lines = [json.loads(line) for line in call("watch", "--json").stdout.splitlines()]
        assert {(each["instance_id"], each["status"]) for each in lines} == {
            (one, "stopped"),
            (two, "stopped"),
        }
        assert all(each["instance"]["instance_id"] == each["instance_id"] for each in lines)
        assert call("watch", one, "--until-running").exit_code == 1

    def test_time_limit_names_what_is_not_there_yet(self, account: Emulator) -> None:
        one, two = (account.start_instance(MODEL, HARDWARE) for _ in range(2))
        account.stop_instance(two)
        shown = call_command("watch", "--timeout", "0.3", "--json")
        assert shown.exit_code == 1
        last = {each["instance_id"]: each for each in map(json.loads, shown.stdout.splitlines())}
        assert re.fullmatch(r"timed out after 0\.3 s; still \w+\.", last[one]["error"])
        assert (last[two]["status"], last[two]["error"]) == ("stopped", None)

    def test_unknown_instance_does_not_affect_the_others(self, served: Emulator, call: Call) -> None:
        one = served.start_instance(MODEL, HARDWARE)
        shown = call("watch", "unknown-id", one, "--until-running", "--json")
        assert shown.exit_code == 1
        last = {each["instance_id"]: each for each in map(json.loads, shown.stdout.splitlines())}
        assert last[one]["status"] == "running"
        assert (last["unknown-id"]["status"], last["unknown-id"]["instance"]) == ("error", None)
        assert "There is no instance unknown-id." in last["unknown-id"]["error"]
        assert "More:" not in shown.stderr
        watched = call("watch", "unknown-id")
        assert watched.stderr == "More: cortecs-async help InstanceGoneError\n"
        said = (
            r"unknown-id  error  There is no instance unknown-id\. `cortecs-async ls` lists your instances\."
        )
        assert re.fullmatch(rf"{said}  [0-9.]+ s\n", watched.stdout)

    def test_unreachable_service_is_an_error_at_once(
        self, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        policy = PollPolicy(max_outage=0, min_interval=0.05)
        client = functools.partial(
            AsyncCortecs,
            "i",
            "s",
            api_base_url=f"http://127.0.0.1:{port}/v1",
            max_retries=0,
            poll_policy=policy,
        )
        monkeypatch.setattr(cortecs_async, "AsyncCortecs", client)
        shown = call("-q", "watch", "instance-10001")
        assert (shown.exit_code, shown.stdout) == (1, "")
        assert shown.stderr.startswith("Error: ")

    def test_no_instances_to_watch(self, served: Emulator, call: Call) -> None:
        shown = call("watch")
        assert (shown.exit_code, shown.stderr) == (0, "No instances.\n")

    def test_elapsed_time_advances_on_a_terminal(self, slow: Emulator, tmp_path: Path) -> None:
        instance_id = slow.start_instance(MODEL, HARDWARE)
        with Terminal(PROGRAM, "watch", env=environment(slow, tmp_path)) as terminal:
            terminal.until(lambda text: re.search(rf"{instance_id} .* 1/5 Reserving the GPUs +1 s", text))
            slow.delete_instance(instance_id)
            assert terminal.wait() == 0
            assert re.search(rf"{instance_id} +{MODEL} +gone", terminal.text)

    def test_ctrl_c_ends_it(self, slow: Emulator, tmp_path: Path) -> None:
        slow.start_instance(MODEL, HARDWARE)
        with Terminal(PROGRAM, "watch", env=environment(slow, tmp_path)) as terminal:
            terminal.until(lambda text: "1/5" in text)
            terminal.press("\x03")
            assert terminal.wait() == 130
            assert "Traceback" not in terminal.text

    def test_closed_pipe_ends_it_quietly(self, slow: Emulator, tmp_path: Path) -> None:
        first = slow.start_instance(MODEL, HARDWARE)
        with subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, "watch", "--json"],
            env=environment(slow, tmp_path),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            assert first.encode() in process.stdout.readline()
            process.stdout.close()
            slow.stop_instance(first)
            assert process.stderr.read() == b""
            assert process.wait(timeout=30) == 1


@pytest.mark.sockets
class TestUntrustedText:
    EVIL = "\x1b]0;owned\x07[red]x[/]\u202e\x9b2J"

    def test_control_characters_from_the_service_are_replaced(self, served: Emulator, call: Call) -> None:
        listed = [
            {
                "instance_id": self.EVIL,
                "instance_args": {"model_id": self.EVIL},
                "instance_status": {"status": self.EVIL},
                "worker_statuses": [
                    {"init_progress": {"current_step": 1, "num_steps": 2, "description": self.EVIL}}
                ],
            }
        ]
        for command in (["ls"], ["ls", "--json"], ["stop", "--all", "--yes"], ["rm", "--all"]):
            served.clear_faults()
            served.add_fault(
                Fault("status", route="list", status=200, body={"instances": listed}, times=None)
            )
            shown = call(*command)
            text = shown.stdout + shown.stderr
            assert "[red]x[/]" in text or command == ["rm", "--all"]
            assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
        served.clear_faults()
        served.add_fault(Fault("status", route="balance", status=418, body=self.EVIL, times=None))
        assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", call("balance").stderr)

    def test_json_escapes_control_characters(self) -> None:
        for text in (self.EVIL, "\ud800", "é\u2028\U000e0001"):
            shown = to_json({"text": text})
            assert json.loads(shown) == {"text": text}
            assert shown.isprintable()

    def test_no_secret_is_printed(
        self, served: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", "very-secret-indeed")
        shown = call("-vv", "ls")
        assert shown.exit_code == 1
        assert "very-secret-indeed" not in shown.output

    def test_vv_logs_every_request(self, served: Emulator, call: Call) -> None:
        assert re.search(r"^GET /instances/: 200 in \d\.\d\d s$", call("-vv", "ls").stderr, re.MULTILINE)
        assert "GET" not in call("-v", "ls").stderr


def test_line_break_in_a_text_of_the_service_starts_no_line(
    account: Emulator, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = "a\nb"
    listed = {
        "instance_id": evil,
        "base_url": evil,
        "instance_args": {"model_id": evil, "hardware_type_id": evil},
        "instance_status": {"status": "stopped"},
        "worker_statuses": [
            {"init_progress": {"current_step": 1, "num_steps": 2, "description": evil}},
        ],
    }
    body = {"instances": [listed]}
    account.add_fault(Fault("status", route="list", status=200, body=body, times=None))
    account.add_fault(Fault("status", route="get", status=200, body={"instance": listed}, times=None))
    account.add_fault(Fault("status", route="stop", status=200, body={"instance": listed}, times=None))
    _, line = call("ls").stdout.splitlines()
    assert line.split() == [
        "a",
        "b",
        "a",
        "b",
        "a",
        "b",
        "1",
        "stopped",
        "1/2",
        "a",
        "b",
        "-",
        "unmanaged",
        "a",
        "b",
    ]
    facts = [line.split()[0] for line in call("show", "i").stdout.splitlines()]
    assert facts == ["id", "status", "model", "hardware", "workers", "base", "step", "owner"]
    assert call("stop", evil).stdout == "a b  stopped\n"
    assert call("rm", "--all").stderr.splitlines()[0] == "a b  stopped  a b"
    account.clear_faults()
    body = {"instances": [{**listed, "instance_id": "i"}]}
    account.add_fault(Fault("status", route="list", status=200, body=body, times=None))
    (change,) = call("watch").stdout.splitlines()
    assert re.fullmatch(r"i  stopped  1/2 a b  a b  \d\.\d s", change)


def test_verbose_prints_the_response_below_an_error(account: Emulator, call: Call) -> None:
    body = f'{{"detail": "no\x1b[2J tea",\n "secret": "{account.client_secret}"}}'
    account.add_fault(Fault("status", route="balance", status=418, body=body, times=None))
    assert "tea" not in call("balance").stderr
    shown = call("-v", "balance")
    assert shown.exit_code == 1
    _, response, _ = shown.stderr.splitlines()
    assert response == 'response: {"detail": "no[2J tea", "secret": "***"}'
    account.clear_faults()
    # One without a body, and the output of `stop` for each instance.
    account.add_fault(Fault("status", route="balance", status=418, body="", times=None))
    assert "response:" not in call("-v", "balance").stderr
    account.add_fault(Fault("status", route="stop", status=400, body="busy", times=None))
    shown = call("-v", "stop", account.start_instance(MODEL, HARDWARE))
    assert "\nresponse: busy\nMore: " in shown.stderr


def test_sanitize_covers_all_fields() -> None:
    instance = Instance(
        instance_id="a\x1b",
        instance_args=InstanceArgs(model_id="b\x07", num_workers=3),
        instance_status=InstanceStatus(status="c\n"),
    )
    shown = sanitize(instance)
    assert (shown.instance_id, shown.instance_args.model_id, shown.status) == ("a\ufffd", "b\ufffd", "c\n")
    assert shown.instance_args.num_workers == 3
    assert sanitize("ü 漢") == "ü 漢"


def test_narrow_table_leaves_out_optional_columns() -> None:
    columns, rows = ("id", "b", "c"), [["x" * 10, "y" * 10, "z" * 10]]
    for width, optional, expected in [
        (34, ["c", "b"], "id b c"),
        (33, ["c", "b"], "id b"),
        (33, ["b", "c"], "id c"),
        (21, ["c", "b"], "id"),
        (5, ["c", "b"], "id"),
    ]:
        shown = make_table(width, columns, rows, optional=optional)
        assert " ".join(str(each.header) for each in shown.columns) == expected
        assert "".join(str(each) for column in shown.columns for each in column.cells) == "".join(
            {"id": "x" * 10, "b": "y" * 10, "c": "z" * 10}[name] for name in expected.split()
        )


def test_narrow_watch_table_shows_the_whole_status() -> None:
    row = ["instance-10001", MODEL, "running", "5/5 Running", "12 s", "http://127.0.0.1/v1"]
    table = make_table(44, watch._COLUMNS, [row], optional=watch._OPTIONAL_COLUMNS, wrapped=["step"])
    assert [str(each.header) for each in table.columns] == ["id", "status", "step", "elapsed"]


def test_has_ended() -> None:
    over = []
    for status in ("Stopped", "failed", "stopping", "running"):
        args, now = InstanceArgs(model_id="a--b"), InstanceStatus(status=status)
        if has_ended(Instance(instance_id="i", instance_args=args, instance_status=now)):
            over.append(status)
    assert over == ["Stopped", "failed"]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("45", 45),
        ("0.5", 0.5),
        ("90s", 90),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1H30M", 5400),
        ("1d2h3m4s", 93784),
        ("1.5h", 5400),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "0", "0s", "-5", "1h30", "h", "5x", "30m1h", "nan", "inf", "1e3", "5 s", "9" * 400, "1ms"]
)
def test_invalid_durations(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"is invalid \(examples: 90s, 15m, 2h\)"):
        duration(text)


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("0", "2h); it must be more than 0"),
        ("0h0s", "2h); it must be more than 0"),
        ("", "2h)"),
        ("5x", "2h)"),
    ],
)
def test_a_duration_of_zero_names_the_reason(text: str, end: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        duration(text)
    assert caught.value.message.endswith(end)


def test_duration_longer_than_ten_years() -> None:
    with pytest.raises(click.BadParameter, match="longer than ten years"):
        duration("99999999d")
    assert duration("3650d") == 3650 * 86400


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much", ""])
def test_invalid_amounts(text: str) -> None:
    with pytest.raises(click.BadParameter):
        amount(text)
    assert amount("2.50") == 2.5


@pytest.mark.sockets
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script_names_the_command(call: Call, shell: str) -> None:
    shown = call("completion", shell)
    assert "_CORTECS_ASYNC_COMPLETE" in shown.stdout
    assert "cortecs-async" in shown.stdout


@pytest.mark.sockets
def test_completion_needs_no_service(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", PROGRAM],
        env={
            **environment(None, tmp_path),
            "_CORTECS_ASYNC_COMPLETE": "bash_complete",
            "COMP_WORDS": "cortecs-async run model --max",
            "COMP_CWORD": "3",
        },
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    options = ["--max-price-per-hour", "--max-lifetime", "--max-cost"]
    assert done.stdout.split() == [f"plain,{each}" for each in options]
    assert done.stderr == ""


PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def test_page_documents_every_command_and_only_real_options() -> None:
    page = PAGE.read_text()
    titles = set(re.findall(r"\w+", " ".join(re.findall(r"^## (.*)$", page, re.MULTILINE))))
    assert cli.summaries.keys() <= titles
    lines = re.findall(r"^(?:eval \"\$\()?cortecs-async (?:--env-file \S+ )?(\w+)(.*)$", page, re.MULTILINE)
    assert {name for name, _ in lines} >= {"run", "start", "stop", "rm", "watch", "ls"}
    for name, rest in lines:
        known = {each for param in cli.load(name).params for each in param.opts} | {"--help"}
        given = set(re.findall(r"--[a-z-]+", rest.partition(" -- ")[0]))
        assert given <= known, name
