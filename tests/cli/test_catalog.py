"""`models` and `hardware`, `ls --status`, and the owners and times that commands show."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
from datetime import UTC, datetime

import pytest
from _command_line import call_command
from _world import HARDWARE, MODEL
from hypothesis import example, given
from hypothesis import strategies as st
from rich.console import Console

from cortecs_async import AsyncCortecs, InstanceHandle
from cortecs_async._cli import account as catalog
from cortecs_async._cli.display import plain_table, print_table
from cortecs_async._cli.output import UNLIMITED, format_time, print_warning, to_json, wrap_for_stderr
from cortecs_async._cli.owners import describe_owner, program_name, short_owner_words
from cortecs_async._cli.tables import make_table
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.types import Orphan, Owner

NOW = 1772366400.0  # 2026-03-01, 12:00 UTC


def lines(*arguments: str) -> list[list[str]]:
    done = call_command(*arguments)
    assert done.exit_code == 0, done.stderr
    return [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]


@pytest.mark.parametrize(
    ("status", "suggestion"),
    [
        ("runing", "Did you mean running?"),
        ("STOPED", "Did you mean stopped?"),
        ("blue", "Known statuses: pending, running, stopping, stopped, "),
    ],
)
def test_an_unknown_status_is_an_error_that_suggests(account: Emulator, status: str, suggestion: str) -> None:
    account.start_instance(MODEL, HARDWARE)
    done = call_command("ls", "--status", status)
    assert (done.exit_code, done.stdout) == (2, "")
    assert f'Unknown status "{status}". {suggestion}' in done.stderr


def test_a_status_of_a_newer_service_can_be_listed(account: Emulator) -> None:
    listed = {
        "instance_id": "i",
        "instance_args": {"model_id": "a--b"},
        "instance_status": {"status": "Hibernating"},
    }
    account.add_fault(Fault("status", route="list", status=200, body={"instances": [listed]}))
    assert lines("ls", "--status", "hibernating")[1][0] == "i"


def test_a_model_shows_the_hardware_that_it_runs_on(account: Emulator) -> None:
    head, *rows = lines("models", MODEL)
    assert head == ["hardware", "GPU", "memory", "context", "per minute", "available"]
    assert ["NVIDIA_L4_1", "NVIDIA L4", "24 GB", "16,384", "0.015 EUR", "yes"] in rows
    assert [row[0] for row in rows if row[0].endswith("*")] == ["NVIDIA_L40S_1*"]
    (model,) = json.loads(call_command("models", MODEL, "--json").stdout)
    assert model["hf_name"] == MODEL


def test_hardware_without_capacity_is_marked(account: Emulator) -> None:
    others = {"hardware_types": [{"hardware_type_id": "NVIDIA_L4_1"}]}
    account.add_fault(Fault("status", route="available", status=200, body=others, times=None))
    assert next(row for row in lines("hardware") if row[0] == HARDWARE)[4] == "no"
    assert f"{HARDWARE} (unavailable)" in next(row for row in lines("models") if row[0] == MODEL)[2]


@pytest.mark.parametrize(
    ("fields", "memory"),
    [
        ({"vram_gb": 24}, "24 GB"),
        ({"gpuMemoryGiB": 80}, None),
        ({"gpu_memory_gib": 80}, "80 GiB"),
        ({"vram": "24 GB"}, "24 GB"),
        ({"vram": 24}, None),
        ({"memory_gb": 512}, None),
        ({"vram_gb": 24, "gpu_memory_gb": 48}, None),
        ({"vram_gb_per_gpu": 24}, None),
        ({"vram_gb": True}, None),
    ],
)
def test_memory_is_read_from_clear_names_only(fields: dict[str, object], memory: str | None) -> None:
    assert catalog._memory(fields) == memory


def test_a_table_stacks_rows_that_are_wider_than_the_terminal() -> None:
    table = make_table(16, ("id", "b"), [["x" * 10, "yy " * 6]])
    cells = [str(each) for column in table.columns for each in column.cells]
    assert cells == ["x" * 10, "  b: yy yy yy yy\n    yy yy"]


def test_a_wrapped_column_breaks_no_word_and_no_other_column() -> None:
    table = make_table(20, ("id", "b"), [["x" * 10, "yyyy zzzz"]], wrapped=["b"])
    assert [column.min_width for column in table.columns] == [10, 4]
    assert table.width == 20


CELL = st.none() | st.integers() | st.text(max_size=8)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4))
@example([("é漢字", "[red]x[/]", None), ("e\u0301\u200d", "\t\x1b[31m", "a\nb"), ("", " ", "\U0001f600")])
def test_a_pipe_gets_the_text_that_rich_draws(rows: list[tuple[object, ...]]) -> None:
    columns, out = ("id", "wide column", "x"), io.StringIO()
    console = Console(file=out, highlight=False, soft_wrap=True, width=UNLIMITED)
    console.print(make_table(UNLIMITED, columns, rows, optional=("x",), wrapped=("id",)))
    assert f"{plain_table(columns, rows)}\n" == out.getvalue()


@pytest.mark.parametrize(("variable", "value"), [("FORCE_COLOR", "1"), ("TTY_COMPATIBLE", "1")])
def test_a_pipe_gets_the_style_of_a_terminal_on_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str, value: str
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    print_table(("id",), [("i",)])
    monkeypatch.setenv(variable, value)
    print_table(("id",), [("i",)])
    assert capsys.readouterr().out == "id\ni \n\x1b[1mid\x1b[0m\ni \n"


def test_a_long_line_wraps_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "12")
    assert wrap_for_stderr("rm --force-it now please") == "rm --force-it now please"
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert wrap_for_stderr("a\nrm --force-it now") == "a\nrm\n--force-it\nnow"


@pytest.mark.parametrize(
    ("kind", "host", "words", "short"),
    [
        ("mine", "here", "this command", "this top"),
        ("process", "box", "another machine (box), pid 7", "pid 7"),
        ("held", "here", "this machine, until released", "acquired"),
        ("orphan", "here", "left behind by this machine, pid 7", "left behind"),
    ],
)
def test_owners_in_plain_words(kind: str, host: str, words: str, short: str) -> None:
    name = socket.gethostname() if host == "here" else host
    owner = Owner(kind=kind, owner=f"{name}, process 7", started_at=NOW)  # type: ignore[arg-type]
    assert (describe_owner(owner), short_owner_words(owner)) == (words, short)
    assert (describe_owner(None), short_owner_words(None)) == ("unmanaged", "unmanaged")


def test_a_living_owner_shows_its_program_and_no_arguments() -> None:
    owner = Owner(kind="process", owner=f"{socket.gethostname()}, process {os.getpid()}", started_at=NOW)
    assert re.fullmatch(rf"this machine, pid {os.getpid()} \(.+\)", describe_owner(owner))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("/usr/bin/python3.12 -X dev train.py --key secret", "python3.12 train.py"),
        ("python -m app.main secret", "python -m app.main"),
        ("python -Wignore -c print(1)", "python -c"),
        ("/opt/bin/tool --key secret", "tool"),
        ("python", "python"),
        ("", ""),
    ],
)
def test_a_program_is_named_without_its_arguments(line: str, name: str) -> None:
    assert program_name(tuple(line.split())) == name


def test_ls_and_show_name_the_owner(account: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    async def owners(_: AsyncCortecs) -> dict[str, Owner]:
        return {one: Owner(kind="held", owner="box, process 7", started_at=NOW)}

    monkeypatch.setattr(AsyncCortecs, "owners", owners)
    one, two = (account.start_instance(MODEL, HARDWARE) for _ in range(2))
    by_id = {row[0]: row for row in lines("ls")[1:]}
    assert "another machine (box), until released" in by_id[one]
    assert "unmanaged" in by_id[two]
    assert "owner     another machine (box), until released" in call_command("show", one).stdout
    listed = {each["instance_id"]: each for each in json.loads(call_command("ls", "--json").stdout)}
    assert (listed[one]["owner_kind"], listed[one]["owner"]) == ("held", "box, process 7")
    assert (listed[two]["owner_kind"], listed[two]["owner"]) == ("unmanaged", None)
    shown = json.loads(call_command("show", one, "--json").stdout)
    assert (shown.keys(), shown["owner"]) == (listed[one].keys(), "box, process 7")


def test_times_are_local_for_people_and_iso_8601_in_json(monkeypatch: pytest.MonkeyPatch) -> None:
    local = datetime.fromtimestamp(NOW, UTC).astimezone()
    assert (
        format_time(NOW) == format_time(datetime.fromtimestamp(NOW, UTC)) == f"{local:%Y-%m-%d %H:%M:%S %Z}"
    )
    orphan = Orphan(
        state="found",
        instance_id="i",
        model="m",
        candidates=(),
        started_at=NOW,
        owner="box, process 7",
        api_base_url="https://x.test/v1",
    )
    assert json.loads(to_json(orphan))["started_at"] == "2026-03-01T12:00:00+00:00"
    handle = InstanceHandle(
        instance_id="i", base_url="https://x.test/v1", model="m", account="a", expires_at=NOW
    )
    assert json.loads(to_json(handle))["expires_at"] == "2026-03-01T12:00:00+00:00"
    assert InstanceHandle.from_json(to_json(handle)) == handle


def test_a_warning_stays_one_line_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    print_warning("word " * 100)
    assert len(capsys.readouterr().err.splitlines()) == 1
