"""Every message that docs/errors.md quotes is what the code prints.

To add a message of a command, add a `console` block to the page, and its files or faults to `PREPARED`. To
add one of a program, add a `text` block, and a function to `PROGRAMS` that provokes it.
"""

from __future__ import annotations

import ast
import os
import re
import signal
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from _examples import run_examples
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, __version__, errors
from cortecs_async._http import reasons
from cortecs_async._sharing.protocol import refusal_error, refuse
from cortecs_async.emulator import Emulator, Fault, serve_emulator

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
SECTIONS = dict(re.findall(r"^##+ (.*)\n((?:(?!^##).*\n)*)", PAGE.read_text(), re.MULTILINE))
MORE = "More: "  # begins the line that most blocks leave out
HOST = "https://cortecs.example"


def blocks(language: str) -> dict[str, list[str]]:
    """Return the blocks of each section that has any."""
    found = {
        title: re.findall(rf"^```{language}\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
        for title, body in SECTIONS.items()
    }
    return {title: each for title, each in found.items() if each}


def shown(text: str) -> str:
    text = re.sub(r"(waiting for capacity: \w+  )\d\.\d s", r"\g<1>0.3 s", text)
    return re.sub(r"emulator-request-\d+", "7f3a", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- commands -----------------------------------------------------------------------------------------------


def remove_variables(*names: str) -> None:
    """Remove variables of the environment, which the fixture restores."""
    for name in names:
        os.environ.pop(name, None)


PREPARED: dict[str, Callable[[Emulator], object]] = {
    "Missing credentials": lambda _: remove_variables("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"),
    "Missing inference API key": lambda _: remove_variables("CORTECS_API_KEY", "OPENAI_API_KEY"),
    "Rejected credentials": lambda emu: emu.add_fault(
        Fault("status", route="token", status=401, body={"message": "Invalid client credentials."})
    ),
    "Unknown price": lambda emu: emu.set_price_info("NVIDIA_L4_1", {"price": "on request"}),
    "Balance used up": lambda emu: emu.add_fault(
        Fault("status", route="start", status=402, body={"message": "The balance is used up."})
    ),
}


@pytest.mark.sockets
@pytest.mark.parametrize("title", blocks("console"))
def test_a_command_prints_what_the_page_says(
    title: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("click")
    from _command_line import call_command  # noqa: PLC0415  (optional)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("cortecs_async._http.retry.backoff", lambda *_, **__: 0.0)
    with serve_emulator(step_seconds=0.0, capacity={"NVIDIA_H100_4": 0}) as emu:
        root = emu.api_base_url.removesuffix("/api/v1")
        anyio.run(start_one, emu)
        for name, value in {**emu.env(), "CORTECS_API_KEY": "key-of-a-test"}.items():
            monkeypatch.setenv(name, value)
        if title in PREPARED:
            PREPARED[title](emu)
        for block in blocks("console")[title]:
            for command, expected in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE):
                setting, _, rest = command.partition("cortecs-async ")
                with pytest.MonkeyPatch.context() as patch:
                    if setting:
                        name, value = setting.strip().split("=", 1)
                        patch.setenv(name, value.replace(HOST, root))
                    printed = call_command(*rest.split()).output
                printed = re.sub(r"^Usage: .*?\n\n", "", printed, flags=re.DOTALL)
                if MORE not in expected:
                    printed = re.sub(rf"^{MORE}.*\n", "", printed, flags=re.MULTILINE)
                printed = shown(printed.replace(root, HOST))
                assert one_line(printed) == one_line(expected), printed


async def start_one(emu: Emulator) -> None:
    async with client_of(emu, guard="off", journal="off") as client:
        await client.instances.start(MODEL, HARDWARE)


# --- programs -----------------------------------------------------------------------------------------------


async def too_slow(_: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, start_timeout=120):
        pass


async def not_ready(_: Emulator, client: AsyncCortecs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CORTECS_API_KEY", "emulator-key")
        async with client.instance(MODEL, HARDWARE, start_timeout=120, ready="answer"):
            pass


async def expired(_: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, max_lifetime=600):
        await anyio.sleep_forever()


async def idle(_: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, idle_timeout=600):
        await anyio.sleep_forever()


async def lost(emu: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE) as inst:
        emu.stop_instance(inst.instance_id)
        await anyio.sleep_forever()


async def not_released(emu: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
        emu.add_fault(Fault("status", route="stop", body=b"", times=None))
        emu.add_fault(Fault("status", route="delete", body=b"", times=None))
        client._wiring.promises.uses_reaper = True  # as with the defaults: the page shows its sentence


async def ambiguous(emu: Emulator, client: AsyncCortecs) -> None:
    emu.add_fault(Fault("drop", route="start", when="after"))
    raised: list[errors.CortecsError] = []

    async def lease() -> None:
        try:
            async with client.instance(MODEL, HARDWARE):
                pass
        except errors.CortecsError as error:
            raised.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lease)
        await anyio.sleep(0.1)
        emu.start_instance(MODEL, HARDWARE)  # a colleague's
    raise raised[0]


async def shared_differently(_: Emulator, __: AsyncCortecs) -> None:
    async with AsyncCortecs(client_id="id", client_secret="secret") as client:
        there, here = (client.shared("bot", MODEL, max_lifetime=each)._membership for each in ("8h", "1h"))
    refused = refuse(here._hello, __version__, there._hello.spec)
    assert refused is not None
    raise refusal_error("bot", here._hello, refused["refused"], "process 4321")


async def wrong_key(_: Emulator, __: AsyncCortecs) -> None:
    wrong: Any = {"api_key": "k"}
    AsyncCortecs(**wrong)


async def on_windows(_: Emulator, client: AsyncCortecs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cortecs_async._recovery.reaper_check.sys", SimpleNamespace(platform="win32"))
        async with client.instance(MODEL, HARDWARE):
            pass


PROGRAMS: dict[str, tuple[dict[str, Any], Callable[[Emulator, AsyncCortecs], Awaitable[None]]]] = {
    "`AsyncCortecs(api_key=...)`": ({}, wrong_key),
    "No reaper on Windows": ({"guard": "auto"}, on_windows),
    "Start timeout": ({"step_seconds": 60.0}, too_slow),
    "The endpoint does not answer": ({"endpoint_lag": 3600.0}, not_ready),
    "Rejected inference API key": ({"api_key": "another"}, not_ready),
    "Lease expired": ({"step_seconds": 1.0}, expired),
    "Lease idle": ({"step_seconds": 1.0}, idle),
    "Instance lost": ({"step_seconds": 1.0}, lost),
    "Instance not released": ({"step_seconds": 1.0}, not_released),
    "Shared with other arguments": ({}, shared_differently),
    "Ambiguous start": ({"step_seconds": 1.0}, ambiguous),
}


def test_each_message_of_a_program_has_a_test() -> None:
    assert blocks("text").keys() - {"All errors"} == PROGRAMS.keys()


@pytest.mark.parametrize("title", PROGRAMS)
async def test_a_program_raises_what_the_page_says(world: World, title: str) -> None:
    options, program = PROGRAMS[title]
    (expected,) = blocks("text")[title]
    async with world(**options) as (emu, client):
        with pytest.raises((errors.CortecsError, TypeError)) as caught:
            await program(emu, client)
    printed = shown("".join(traceback.format_exception_only(caught.value)))
    assert one_line(printed) == one_line(expected), printed


def test_every_reason_is_in_the_page() -> None:
    table = set(re.findall(r"^\| ([^|`]+?) \|", SECTIONS["The service cannot be reached"], re.MULTILINE))
    assert table >= set(reasons._BY_ERRNO.values())


# --- the rest of the page -----------------------------------------------------------------------------------


@pytest.mark.sockets
def test_the_example_runs(served: Emulator, capsys: pytest.CaptureFixture[str]) -> None:
    run_examples(PAGE, errors=errors)
    assert re.match(r"400 \S+ \{", capsys.readouterr().out)


def test_every_error_is_in_the_page() -> None:
    # Below the tree, `automodule` shows the docstrings.
    named = set(re.findall(r"\w+Error\b", SECTIONS["All errors"]))
    assert named >= {name for name in vars(errors) if name.endswith("Error")} | {"NotReadyError"}
    assert ".. automodule:: cortecs_async.errors\n" in SECTIONS["All errors"]


def table_of_statuses() -> list[tuple[set[int], set[str]]]:
    """Return the statuses of each row of the table, and the commands in it."""
    rows = re.findall(r"^\| ([\d, ]+) \| (.*?) \|", SECTIONS["Exit statuses"], re.MULTILINE)
    return [
        ({int(each) for each in first.split(",")}, set(re.findall(r"`(\w+)`", who))) for first, who in rows
    ]


def test_every_exit_status_is_in_the_page() -> None:
    click = pytest.importorskip("click")
    from cortecs_async._cli import batch, child_process, run, runtime  # noqa: PLC0415  (optional)

    signals = {128 + number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}
    statuses = {
        *(0, runtime.FAILED, click.UsageError.exit_code, *signals, runtime.INTERRUPTED),
        *(batch.SOME_REQUESTS_FAILED, child_process.NOT_EXECUTABLE),
        *(child_process.NOT_FOUND, run.LEASE_FAILED),
    }
    assert set[int]().union(*(found for found, _ in table_of_statuses())) == statuses


def test_no_command_exits_in_another_way() -> None:
    # One that is new belongs into the table.
    exits = set[str]()
    for path in (Path(errors.__file__).parent / "_cli").rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        exits |= {ast.unparse(each) for each in calls if ast.unparse(each.func) in {"sys.exit", "os._exit"}}
    assert exits == {
        "sys.exit(0)",
        "sys.exit(FAILED)",
        "sys.exit(HUNG_UP)",
        "sys.exit(INTERRUPTED)",
        "sys.exit(LEASE_FAILED)",
        "sys.exit(error.exit_code)",  # NOT_EXECUTABLE or NOT_FOUND
        "sys.exit(run_async(_batch, options, _new_display(), as_json))",  # FAILED or SOME_REQUESTS_FAILED
        "sys.exit(run_async(_run, command, model, hardware, options))",  # LEASE_FAILED, or the program's
        "os._exit(INTERRUPTED)",
        "os._exit(self._exit_code)",  # 128 and a signal
    }


def test_the_table_has_the_statuses_that_the_help_of_a_command_lists() -> None:
    pytest.importorskip("click")
    from cortecs_async._cli import cli  # noqa: PLC0415  (optional)

    rows = table_of_statuses()
    for name in cli.summaries:
        for status, _ in vars(cli.load(name)).get("_tables", {}).get("Exit statuses", ()):
            assert status == "n" or any(
                int(status) in found and (name in who or not who or status == "0") for found, who in rows
            ), (name, status)
