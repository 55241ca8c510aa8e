"""SIGTERM as cancellation, and the programs of docs/deployment.md, as real processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from _world import HARDWARE, MODEL, World, client_of

from cortecs_async import errors
from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.signals import cancel_on_sigterm

PAGE = Path(__file__).parents[2] / "docs" / "deployment.md"


def raised(number: signal.Signals) -> None:
    signal.raise_signal(number)


async def test_the_block_is_cancelled_released_and_the_program_ends(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(SystemExit) as caught:
            async with cancel_on_sigterm():
                async with client.instance(MODEL, HARDWARE):
                    raised(signal.SIGTERM)
                    raised(signal.SIGTERM)
                    await anyio.sleep(10_000)
        assert caught.value.code == 143
        assert emu.existing == ()
        assert anyio.current_time() < 100


async def test_a_second_one_does_not_break_the_release(world: World) -> None:
    async with world(stop_seconds=10.0) as (emu, client), anyio.create_task_group() as tasks:

        async def again() -> None:
            await anyio.sleep(8.0)
            raised(signal.SIGTERM)

        with pytest.raises(SystemExit):
            async with cancel_on_sigterm():
                async with client.instance(MODEL, HARDWARE):
                    tasks.start_soon(again)
                    raised(signal.SIGTERM)
                    await anyio.sleep(10_000)
        assert emu.existing == ()


async def test_other_signals_and_what_was_there_before() -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)
    with pytest.raises(SystemExit) as caught:
        async with cancel_on_sigterm(signal.SIGTERM, signal.SIGHUP):
            raised(signal.SIGHUP)
            await anyio.sleep(10_000)
    assert caught.value.code == 128 + signal.SIGHUP
    async with cancel_on_sigterm():
        assert signal.getsignal(signal.SIGTERM) != before[0]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGHUP)) == before


async def test_the_blocks_own_exception_goes_first() -> None:
    problem = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        async with cancel_on_sigterm():
            raised(signal.SIGTERM)
            raise problem
    assert caught.value is problem
    await anyio.sleep(1)


async def test_a_block_that_ends_just_then_ends_the_program_too() -> None:
    with pytest.raises(SystemExit):
        async with cancel_on_sigterm():
            raised(signal.SIGTERM)
    await anyio.sleep(1)


@pytest.mark.smoke
async def test_a_signal_that_another_thread_receives_ends_the_wait() -> None:
    """As one does that arrives just before the event loop begins to wait."""
    receive = threading.Timer(0.1, lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM))
    began = anyio.current_time()
    with pytest.raises(SystemExit):
        async with cancel_on_sigterm():
            receive.start()
            await anyio.sleep(30)
    assert anyio.current_time() - began < 15


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_event_loops_own_signal_handlers_work_beside_it() -> None:
    loop = asyncio.get_running_loop()
    received: list[str] = []
    async with cancel_on_sigterm():
        loop.add_signal_handler(signal.SIGUSR1, received.append, "inside")
        raised(signal.SIGUSR1)
        await anyio.sleep(1)
    async with cancel_on_sigterm():
        raised(signal.SIGUSR1)
        await anyio.sleep(1)
    raised(signal.SIGUSR1)
    await anyio.sleep(1)
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert received == ["inside"] * 3


@pytest.mark.sockets
async def test_beside_the_main_thread_it_is_refused() -> None:
    async def enter() -> None:
        async with cancel_on_sigterm():
            pytest.fail("entered")

    caught: list[BaseException] = []

    def run() -> None:
        try:
            anyio.run(enter)
        except errors.ConfigurationError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(10)
    assert len(caught) == 1


# --- the programs of the page -------------------------------------------------------------------------------


@contextmanager
def program(emu: Emulator, which: str, state_dir: Path, **env: str) -> Iterator[subprocess.Popen[str]]:
    (code,) = [
        each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if which in each
    ]
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env={
            **emu.env(),
            "PYTHONPATH": ":".join(sys.path),
            "CORTECS_STATE_DIR": str(state_dir),
            "PATH": os.environ["PATH"],
            **env,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_bare_program(state_dir: Path) -> None:
    async with serve_emulator(step_seconds=0.02) as emu:
        with program(emu, "async with cancel_on_sigterm", state_dir) as process, anyio.fail_after(30):
            assert process.stdout is not None
            assert "running" in await anyio.to_thread.run_sync(process.stdout.readline)
            process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(process.wait) == 143
        assert len(emu.ledger) == 1
        assert emu.existing == ()


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_server(state_dir: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with serve_emulator(step_seconds=0.02) as emu, httpx.AsyncClient() as http:
        with program(emu, "uvicorn.run", state_dir, PORT=str(port)) as process, anyio.fail_after(30):
            answer: httpx.Response | None = None
            while answer is None:
                try:
                    answer = await http.get(f"http://127.0.0.1:{port}/")
                except httpx.ConnectError:
                    await anyio.sleep(0.02)  # the server does not say when it listens
            assert answer.json()["base_url"].endswith("/v1")
            assert len(emu.billing) == 1
            process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(process.wait)
        assert emu.existing == ()


@pytest.mark.sockets
async def test_the_cell_of_a_notebook(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = [
        each for each in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL) if "acquire(" in each
    ]
    indented = code.replace("\n", "\n    ")
    names: dict[str, object] = {}
    exec(f"async def cell(client):\n    {indented}", names)  # noqa: S102  (the page's own)
    async with (
        serve_emulator(step_seconds=0.01) as emu,
        client_of(emu) as client,
    ):
        cell = names["cell"]
        assert callable(cell)
        await cell(client)
        assert len(emu.ledger) == 1
        assert emu.existing == ()
    assert "/v1" in capsys.readouterr().out


def test_every_program_of_the_page_is_run_here() -> None:
    assert PAGE.read_text().count("```python") == 3
