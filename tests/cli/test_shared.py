"""`up`, `url`, `ps`, and `down`: instances shared by name, with a fake client and in real processes."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import pytest
from _command_line import PROGRAM, Terminal, call_command, environment, serving
from _console import sections, typed
from _processes import Program, until
from _world import HARDWARE, MODEL
from attrs import evolve

import cortecs_async
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._cli import process_tree, shared
from cortecs_async._cli.instances import _Row
from cortecs_async._cli.owners import describe_owner, short_owner_words
from cortecs_async._cli.top.view import Snapshot, owner_text
from cortecs_async._cli.wording import to_command_line
from cortecs_async._recovery.reaper_process import BOOTSTRAP as REAPER
from cortecs_async._sharing.owner_process import BOOTSTRAP as OWNER
from cortecs_async.emulator import Emulator
from cortecs_async.errors import LifecycleError, MissingCredentialsError
from cortecs_async.types import Owner, SharedInfo

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

URL = "https://host.test/v1"

KEPT = SharedInfo(
    name="dev",
    state="kept",
    model="org/model",
    hardware_type_id="NVIDIA_L40S_1",
    instance_id="instance-1",
    base_url=URL,
    is_kept=True,
    owner_pid=5,
    started_at=1000.0,
    expires_at=4600.0,
    cost=0.5,
    currency="EUR",
)
STARTING = SharedInfo(name="dev", state="starting", model="org/model", owner_pid=5)


class FakeClient:
    """A client with the shared instances of a test. It is its own shared lease.

    Attributes:
        before: The shared instances until `shared` is called.
        after: The shared instances from then on.
        on_enter: Called on entry to the block.
        problem: What `release_shared` raises.
        needs_credentials: Whether it has none and is not anonymous.
        calls: What was called.
    """

    def __init__(self, *before: SharedInfo, after: tuple[SharedInfo, ...] | None = None) -> None:
        self.infos = before
        self.after = before if after is None else after
        self.on_enter: Callable[[], None] = lambda: None
        self.problem: Exception | None = None
        self.needs_credentials = False
        self.calls: list[tuple[Any, ...]] = []

    def __call__(self, *, guard: str, anonymous: bool = False) -> Self:
        assert guard == "off"  # the owner process has the reaper
        if self.needs_credentials and not anonymous:
            raise MissingCredentialsError("No credentials.", missing=("client_id",))
        return self

    async def shared_instances(self) -> tuple[SharedInfo, ...]:
        return self.infos

    async def release_shared(self, name: str, **options: Any) -> SharedInfo | None:
        self.calls.append(("release", name, options))
        if self.problem is not None:
            raise self.problem
        return next((each for each in self.infos if each.name == name), None)

    def shared(self, *arguments: Any, **options: Any) -> Self:
        self.calls.append(("shared", *arguments, options))
        return self

    async def keep(self) -> None:
        self.calls.append(("keep",))

    async def __aenter__(self) -> Self:
        if self.calls:  # as a shared lease
            self.infos = self.after
            self.on_enter()
            await anyio.lowlevel.checkpoint()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeClient]:
    def use(*before: SharedInfo, **options: Any) -> FakeClient:
        client = FakeClient(*before, **options)
        monkeypatch.setattr(cortecs_async, "AsyncCortecs", client)
        return client

    return use


Fake = Callable[..., FakeClient]

UP = ("up", "dev", MODEL, "--max-lifetime", "1h")


# --- up -----------------------------------------------------------------------------------------------------


def test_up_keeps_the_instance_and_prints_its_url(fake: Fake) -> None:
    client = fake(after=(KEPT,))
    shown = call_command(*UP, "--hardware", "a,b", "--linger", "0", "--workers", "2")
    assert (shown.exit_code, shown.stdout) == (0, f"{URL}\n")
    (_, *arguments, options), kept = client.calls
    assert arguments == ["dev", MODEL, ["a", "b"]]
    assert options.pop("on_progress") is not None
    assert options == {
        "require_key": False,
        "max_price_per_hour": None,
        "capacity_timeout": None,
        "num_workers": 2,
        "context_length": None,
        "billing_interval": "per_minute",
        "project": None,
        "max_lifetime": 3600.0,
        "max_cost": None,
        "ready": "status",
        "start_timeout": 900.0,
        "teardown_timeout": 120.0,
        "idle_timeout": None,
        "linger": 0.0,
    }
    assert kept == ("keep",)
    assert "dev is running: instance-1, NVIDIA_L40S_1\n" in shown.stderr
    assert re.search(r"deletes it: 1970-01-01 .*\n.*cortecs-async down dev\n", shown.stderr)


def test_up_has_the_defaults_of_client_shared_so_that_programs_can_join(fake: Fake) -> None:
    client = fake(after=(KEPT,))
    assert call_command(*UP).exit_code == 0
    options = client.calls[0][-1]
    assert (options["linger"], options["ready"], options["start_timeout"]) == (300.0, "status", 900.0)


def test_up_as_json(fake: Fake) -> None:
    fake(after=(KEPT,))
    printed = json.loads(call_command(*UP, "--json").stdout)
    assert (printed["name"], printed["base_url"], printed["state"]) == ("dev", URL, "kept")


def test_up_needs_a_limit(fake: Fake) -> None:
    client = fake()
    shown = call_command(*UP[:3])
    assert shown.exit_code == 2
    assert "Pass --max-lifetime or --max-cost to limit it." in shown.stderr
    assert client.calls == []


@pytest.mark.parametrize("linger", ["-1", "soon"])
def test_an_invalid_linger_is_a_usage_error(fake: Fake, linger: str) -> None:
    fake()
    shown = call_command(*UP, f"--linger={linger}")
    assert (shown.exit_code, f'duration "{linger}" is invalid' in shown.stderr) == (2, True)


@pytest.mark.parametrize("after", [(), (evolve(KEPT, state="releasing", base_url=None),)])
def test_an_instance_that_ends_before_its_url_is_printed_is_an_error(
    fake: Fake, after: tuple[SharedInfo, ...]
) -> None:
    fake(after=after)
    shown = call_command(*UP)
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert '"dev" is no longer running.' in shown.stderr


def test_a_failed_print_says_that_the_instance_is_billed(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    fake(after=(KEPT,))
    monkeypatch.setattr(shared, "_print", fail)
    monkeypatch.setattr(shared, "print_warning", print)
    with pytest.raises(OSError, match="disk full"):
        call_command(*UP, standalone_mode=False)


LINGERING = evolve(KEPT, state="lingering", is_kept=False)


@pytest.mark.parametrize(
    ("before", "after", "is_released", "words"),
    [
        ((), (STARTING,), True, "No instances were left behind."),
        ((), (LINGERING,), True, "No instances were left behind."),
        ((), (), False, "No instances were left behind."),
        ((evolve(STARTING, state="releasing"),), (STARTING,), True, "No instances were left behind."),
        # Others want it.
        ((), (evolve(STARTING, holders=(7,)),), False, "dev is starting and is billed."),
        ((), (KEPT,), False, "dev is kept and is billed."),
        ((LINGERING,), (LINGERING,), False, "dev is lingering and is billed."),
    ],
)
def test_an_interrupted_up_leaves_nothing_that_nobody_else_wants(
    fake: Fake,
    before: tuple[SharedInfo, ...],
    after: tuple[SharedInfo, ...],
    words: str,
    *,
    is_released: bool,
) -> None:
    client = fake(*before, after=after)
    client.on_enter = lambda: signal.raise_signal(signal.SIGTERM)
    shown = call_command(*UP)
    assert shown.exit_code == 143
    # Not by force: another process may have joined meanwhile.
    assert client.calls[1:] == ([("release", "dev", {})] if is_released else [])
    assert words in shown.stderr
    assert ("cortecs-async down dev" in shown.stderr) == ("billed" in words)


def test_an_interrupted_up_says_if_the_release_was_refused(fake: Fake) -> None:
    client = fake(after=(STARTING,))
    client.on_enter = lambda: signal.raise_signal(signal.SIGTERM)
    client.problem = LifecycleError("process 7 uses it", instance_id="")
    shown = call_command(*UP)
    assert shown.exit_code == 143
    assert "process 7 uses it\nRun `cortecs-async ps` to check.\n" in shown.stderr
    assert "left behind" not in shown.stderr


# --- url ----------------------------------------------------------------------------------------------------


def test_url_prints_only_the_url(fake: Fake) -> None:
    fake(KEPT)
    shown = call_command("url", "dev")
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, f"{URL}\n", "")


def test_url_prints_lines_for_a_shell(fake: Fake) -> None:
    fake(evolve(KEPT, model="org/m; rm -rf ~"))
    shown = call_command("url", "dev", "--env")
    assert shown.stdout == f"export OPENAI_BASE_URL={URL}\nexport OPENAI_MODEL='org/m; rm -rf ~'\n"


@pytest.mark.parametrize(
    ("state", "advice"),
    [
        ("starting", "Run `cortecs-async up dev` again"),
        ("releasing", "Start it again"),
        ("unresponsive", "run `cortecs-async down --force dev`"),
    ],
)
def test_url_of_an_instance_that_is_not_running_is_an_error(fake: Fake, state: Any, advice: str) -> None:
    fake(SharedInfo(name="dev", state=state))
    shown = call_command("url", "dev")
    assert (shown.exit_code, shown.stdout) == (1, "")
    assert f'"dev" has no URL, because it is {state}.' in shown.stderr
    assert advice in shown.stderr


@pytest.mark.parametrize("command", ["url", "down"])
@pytest.mark.parametrize(
    ("typed_name", "names", "words"),
    [
        ("dve", ["dev", "prod"], 'There is no shared instance "dve". Did you mean dev?\n'),
        ("xyz", ["dev", "prod"], 'There is no shared instance "xyz". Known names: dev, prod.\n'),
        ("dev", [], 'There is no shared instance "dev".\n'),
        ("\x1b[31m", [], 'There is no shared instance "\ufffd[31m".\n'),
    ],
)
def test_an_unknown_name_is_an_error_with_the_known_ones(
    fake: Fake, command: str, typed_name: str, names: list[str], words: str
) -> None:
    fake(*(evolve(KEPT, name=each) for each in names))
    shown = call_command(command, typed_name)
    assert (shown.exit_code, shown.stderr) == (1, f"Error: {words}")


def test_a_name_in_several_accounts_needs_a_profile(fake: Fake) -> None:
    fake(KEPT, KEPT).needs_credentials = True
    shown = call_command("url", "dev")
    assert (shown.exit_code, "Pass --profile to choose one." in shown.stderr) == (1, True)


# --- ps -----------------------------------------------------------------------------------------------------


def test_ps_shows_who_uses_each_instance_and_what_it_costs(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", lambda: 1000.0 + 3 * 3600)
    fake(
        evolve(KEPT, state="running", holders=(7, 8)),
        SharedInfo(name="frozen", state="unresponsive", owner_pid=9),
        evolve(STARTING, name="new", model="org/\x1b[31mmodel", holders=(7,)),
    )
    first, second, third = (
        re.split(r"\s{2,}", line.rstrip()) for line in call_command("ps").stdout.splitlines()[1:]
    )
    assert [*first[:7], *first[8:]] == [
        *("dev", "running", "org/model", "instance-1", "2", "7 8", "3h00m"),
        *("0.50 EUR", URL),
    ]
    assert first[7].startswith("1970-01-01 ")
    assert second == ["frozen", "unresponsive", *["-"] * 8]
    assert third[:6] == ["new", "starting", "org/\ufffd[31mmodel", "-", "1", "7"]


def test_ps_as_json_has_all_fields(fake: Fake) -> None:
    fake(KEPT)
    (printed,) = json.loads(call_command("ps", "--json").stdout)
    assert printed["started_at"] == "1970-01-01T00:16:40+00:00"
    assert (printed["holders"], printed["is_kept"], printed["owner_pid"]) == ([], True, 5)


def test_ps_needs_no_credentials_and_no_service() -> None:
    shown = call_command("ps")
    assert (shown.exit_code, shown.stdout, shown.stderr) == (0, "", "No shared instances.\n")
    assert call_command("ps", "--json").stdout == "[]\n"


def test_without_credentials_those_of_all_accounts_are_listed(fake: Fake) -> None:
    fake(KEPT).needs_credentials = True
    assert call_command("url", "dev").stdout == f"{URL}\n"


# --- down ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "line"),
    [(KEPT, "dev  deleted instance-1\n"), (STARTING, "dev  released\n")],
)
def test_down_prints_what_it_has_deleted(fake: Fake, info: SharedInfo, line: str) -> None:
    client = fake(info)
    shown = call_command("down", "dev", "--timeout", "5m")
    assert (shown.exit_code, shown.stdout) == (0, line)
    assert client.calls == [("release", "dev", {"force": False, "teardown_timeout": 300.0})]


def test_down_by_force_of_a_frozen_owner_claims_no_deletion(fake: Fake) -> None:
    client = fake(SharedInfo(name="dev", state="unresponsive", owner_pid=9))
    shown = call_command("down", "dev", "--force")
    assert (shown.exit_code, shown.stdout) == (0, "")
    assert "was killed. The reaper deletes the instance soon." in shown.stderr
    assert client.calls[0][2]["force"] is True


def test_an_interrupted_down_says_how_to_check(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    async def wait(*_: object, **__: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        await anyio.sleep_forever()

    monkeypatch.setattr(fake(KEPT), "release_shared", wait)
    shown = call_command("down", "dev")
    assert shown.exit_code == 143
    assert "dev may still be running. Run `cortecs-async ps` to check." in shown.stderr


def test_the_refusals_of_the_library_name_options() -> None:
    refused = "dev was not released, because process 7 uses it. Pass force=True to end their blocks too."
    assert to_command_line(refused).endswith("uses it. Pass --force to delete it anyway.")
    assert to_command_line("does not respond. Pass force=True to kill it.").endswith(
        "Pass --force to kill it."
    )
    assert to_command_line("arguments: linger is 0 s, not 5 s; num_workers is 1, not 2") == (
        "arguments: --linger is 0 s, not 5 s; --workers is 1, not 2"
    )
    assert to_command_line("ready is 'answer', not 'status'") == "--ready is 'answer', not 'status'"


# --- completion ---------------------------------------------------------------------------------------------


def test_names_are_completed_without_credentials(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(KEPT, evolve(STARTING, name="dev-2"), evolve(KEPT, name="prod")).needs_credentials = True
    found = shared._complete(None, None, "dev")  # type: ignore[arg-type]
    assert [(each.value, each.help) for each in found] == [
        ("dev", "kept org/model"),
        ("dev-2", "starting org/model"),
    ]


def test_a_state_directory_that_cannot_be_used_completes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / "file"))
    assert shared._complete(None, None, "") == []  # type: ignore[arg-type]


# --- owners -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "name", "words", "short"),
    [
        ("process", "dev", "this machine, pid 7 (shared as dev)", "shared dev"),
        ("process", "a-long-name", "this machine, pid 7 (shared as a-long-name)", "shared a-long-n…"),
        ("orphan", "dev", "left behind by this machine, pid 7 (shared as dev)", "left behind"),
    ],
)
def test_the_owner_of_a_shared_instance_shows_its_name(kind: Any, name: str, words: str, short: str) -> None:
    owner = Owner(kind=kind, owner=f"{socket.gethostname()}, process 7", started_at=1.0, shared=name)
    assert (describe_owner(owner), short_owner_words(owner)) == (words, short)


def instance() -> Instance:
    return Instance(
        instance_id="instance-1",
        base_url=None,
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status="running"),
    )


def test_ls_has_the_name_in_json_and_top_says_how_to_release_it() -> None:
    owner = Owner(kind="process", owner="box, process 7", started_at=1.0, shared="dev")
    assert _Row(instance(), {"instance-1": owner}).fields()["shared"] == "dev"
    assert _Row(instance(), {"instance-1": evolve(owner, shared="")}).fields()["shared"] is None
    assert _Row(instance(), {}).fields()["shared"] is None
    text = owner_text(instance(), Snapshot(owners={"instance-1": owner}))
    assert text == ("another machine (box), pid 7 (shared as dev): `cortecs-async down dev` releases it")


@pytest.mark.parametrize("program", [REAPER, OWNER])
def test_run_does_not_terminate_the_helpers_that_outlive_a_command(
    monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    monkeypatch.setattr(process_tree, "command_line_of", lambda _: ("python", "-c", program, "x"))
    assert process_tree._is_helper(1)
    monkeypatch.setattr(process_tree, "command_line_of", lambda _: ("python", "-c", "print()"))
    assert not process_tree._is_helper(1)


# --- real processes -----------------------------------------------------------------------------------------


def environment_of(emulator: Emulator, state_dir: Path) -> dict[str, str]:
    """Return the environment for a program. The path of a socket must not be as long as that of a test."""
    return {**environment(emulator, state_dir), "CORTECS_STATE_DIR": str(state_dir)}


def _without_variables(text: str) -> list[str]:
    """Return the lines without spaces, numbers, and ages, which differ in each run."""
    lines = (re.sub(r"\d+(\.\d+)?", "N", " ".join(line.split())) for line in text.splitlines())
    return [re.sub(r"\bN[smh](Nm)?\b", "AGE", line) for line in lines if line]


@pytest.mark.sockets
def test_the_transcript_of_the_page(tmp_path: Path, state_dir: Path) -> None:
    with serving() as emulator:
        env = {**environment_of(emulator, state_dir), "TZ": "UTC"}
        output, compared = "", 0
        for step in sections(PAGE)["up, url, ps, and down"]:
            if step.kind == "text":
                assert _without_variables(output) == _without_variables(step.text)
                compared += 1
            elif step.text == "cortecs-async ps\n":
                # As in a terminal, because a pipe gets all columns.
                with Terminal(PROGRAM, "ps", env=env) as terminal:
                    assert terminal.wait() == 0
                    output = terminal.text
            else:
                # Its pipes are closed, although the owner process is still running.
                output = typed(step.text, tmp_path, env)
        assert compared == 4
        assert (len(emulator.ledger), emulator.existing) == (1, ())


@pytest.mark.sockets
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_up_leaves_no_instance_and_no_process(
    tmp_path: Path, state_dir: Path, number: signal.Signals, status: int
) -> None:
    with serving(step_seconds=600) as emulator:
        env = environment_of(emulator, state_dir)
        with Program(PROGRAM, *UP, env=env, log=tmp_path / "log") as program:
            anyio.run(until, lambda: emulator.billing)
            program.send(number)
            assert program.process.wait(timeout=60) == status
        assert "No instances were left behind." in program.output
        assert emulator.existing == ()
        assert list((state_dir / "shared").glob("*.sock")) == []


HOLDER = """
import sys
import time
import anyio
from cortecs_async import AsyncCortecs

async def main():
    async with AsyncCortecs() as client:
        async with client.shared("dev", sys.argv[1], sys.argv[2], max_lifetime="1h") as inst:
            print("uses", inst.base_url, flush=True)
            await anyio.sleep_forever()

anyio.run(main)
"""


@pytest.mark.sockets
def test_a_program_joins_what_up_has_started_and_down_spares_it(tmp_path: Path, state_dir: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-P", "-c", PROGRAM, *arguments]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)

    with serving() as emulator:
        env = environment_of(emulator, state_dir)
        url = run("up", "dev", MODEL, HARDWARE, "--max-lifetime", "1h").stdout.strip()
        with Program(HOLDER, MODEL, HARDWARE, env=env, log=tmp_path / "log") as program:
            anyio.run(until, lambda: program.has_printed(f"uses {url}"))
            refused = run("down", "dev")
            assert (refused.returncode, refused.stdout) == (1, "")
            assert f"process {program.pid} uses it. Pass --force to delete it anyway." in refused.stderr
            (listed,) = json.loads(run("ps", "--json").stdout)
            assert (listed["state"], listed["holders"]) == ("running", [program.pid])
            done = run("down", "--force", "dev")
            assert (done.returncode, done.stdout) == (0, f"dev  deleted {listed['instance_id']}\n")
            assert emulator.existing == ()
            anyio.run(until, lambda: program.has_ended)
            assert "was released by process" in program.output
        assert len(emulator.ledger) == 1
