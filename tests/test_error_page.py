"""Every message that docs/errors.md quotes is what the code prints.

To add a message of a command, add a `console` block to the page, and its files or faults to `PREPARED`. To
add one of a program, add a `text` block, and a function to `PROGRAMS` that provokes it.
"""

from __future__ import annotations

import json
import os
import re
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import AsyncCortecs, errors
from cortecs_async._http import reasons
from cortecs_async.emulator import Emulator, Fault, serve_emulator

PAGE = Path(__file__).parent.parent / "docs" / "errors.md"
SECTIONS = dict(re.findall(r"^### (.*)\n((?:(?!^##).*\n)*)", PAGE.read_text(), re.MULTILINE))
HOST = "https://cortecs.example"
PORT = "8080"
CONFIG_DIRECTORY = "/home/ada/.config/cortecs"


def blocks(language: str) -> dict[str, list[str]]:
    """Return the blocks of each section that has any."""
    found = {
        title: re.findall(rf"^```{language}\n(.*?)^```", body, re.MULTILINE | re.DOTALL)
        for title, body in SECTIONS.items()
    }
    return {title: each for title, each in found.items() if each}


def shown(text: str) -> str:
    return re.sub(r"emulator-request-\d+", "7f3a", text)


def one_line(text: str) -> str:
    return " ".join(text.split())


# --- commands -----------------------------------------------------------------------------------------------


def write_requests(*bodies: dict[str, str]) -> None:
    """Write an input of a batch, whose requests have the same id and these fields in their bodies."""
    messages = [{"role": "user", "content": "Why is the sky blue?"}]
    request = {"custom_id": "sky", "method": "POST", "url": "/v1/chat/completions"}
    lines = [json.dumps({**request, "body": {"messages": messages, **body}}) for body in bodies]
    Path("prompts.jsonl").write_text("\n".join(lines))


def remove_variables(*names: str) -> None:
    """Remove variables of the environment, which the fixture restores."""
    for name in names:
        os.environ.pop(name, None)


def write_config(mode: int) -> None:
    """Write a config file with a profile to the working directory."""
    file = Path("config.toml").absolute()
    remove_variables("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET")
    file.write_text('[profiles.work]\nclient_id = "a"\nclient_secret = "b"\n')
    file.chmod(mode)
    os.environ["CORTECS_CONFIG_FILE"] = str(file)


PREPARED: dict[str, Callable[[Emulator], object]] = {
    "There are no credentials": lambda _: remove_variables("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"),
    "There is no inference API key": lambda _: remove_variables("CORTECS_API_KEY", "OPENAI_API_KEY"),
    "There is no such profile": lambda _: write_config(0o600),
    "The config file cannot be used": lambda _: write_config(0o644),
    "The service rejects your credentials": lambda emu: emu.add_fault(
        Fault("status", route="token", status=401, body={"message": "Invalid client credentials."})
    ),
    "The balance is used up": lambda emu: emu.add_fault(
        Fault("status", route="start", status=402, body={"message": "The balance is used up."})
    ),
    "Two requests have the same custom_id": lambda _: write_requests({}, {}),
    "The input names another model": lambda _: write_requests({"model": "gpt-4o"}),
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
                    printed = call_command(*rest.replace(PORT, root.rpartition(":")[2]).split()).output
                printed = re.sub(r"^Usage: .*?\n\n", "", printed, flags=re.DOTALL)
                printed = shown(printed.replace(root, HOST).replace(root.rpartition(":")[2], PORT))
                printed = printed.replace(str(tmp_path), CONFIG_DIRECTORY)
                assert one_line(printed) == one_line(expected), printed


async def start_one(emu: Emulator) -> None:
    async with client_of(emu, guard="off", journal="off") as client:
        await client.instances.start(MODEL, HARDWARE)


# --- programs -----------------------------------------------------------------------------------------------


async def too_slow(_: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, start_timeout=120):
        pass


async def expired(_: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, max_lifetime=600):
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


async def closed(_: Emulator, client: AsyncCortecs) -> None:
    await client.aclose()
    await client.instances.list()


async def wrong_key(_: Emulator, __: AsyncCortecs) -> None:
    wrong: Any = {"api_key": "k"}
    AsyncCortecs(**wrong)


async def no_key(_: Emulator, client: AsyncCortecs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("CORTECS_API_KEY", "OPENAI_API_KEY"):
            patch.delenv(name, raising=False)
        client.instance(MODEL, HARDWARE, require_key=True)


async def on_windows(_: Emulator, client: AsyncCortecs) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cortecs_async._recovery.reaper_check.sys", SimpleNamespace(platform="win32"))
        async with client.instance(MODEL, HARDWARE):
            pass


async def awaited(_: Emulator, client: AsyncCortecs) -> None:
    wrong: Any = client.instance(MODEL, HARDWARE)
    await wrong


PROGRAMS: dict[str, tuple[dict[str, Any], Callable[[Emulator, AsyncCortecs], Awaitable[None]]]] = {
    "`AsyncCortecs(api_key=...)`": ({}, wrong_key),
    "There is no inference API key": ({}, no_key),
    "The reaper does not run on Windows": ({"guard": "auto"}, on_windows),
    "`await client.instance(...)`": ({}, awaited),
    "The instance was not running in time": ({"step_seconds": 60.0}, too_slow),
    "The lease has reached its limit": ({"step_seconds": 1.0}, expired),
    "The instance was lost": ({"step_seconds": 1.0}, lost),
    "The instance could not be released": ({"step_seconds": 1.0}, not_released),
    "It is not clear which instance is yours": ({"step_seconds": 1.0}, ambiguous),
    "The client is closed": ({}, closed),
}


def test_each_message_of_a_program_has_a_test() -> None:
    assert blocks("text").keys() == PROGRAMS.keys()


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
