"""Ctrl-C on a real process with real sockets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import anyio
import pytest
from _grids import BACKENDS, grid
from _processes import until

from cortecs_async.emulator import Emulator, Fault, serve_emulator

pytestmark = pytest.mark.sockets

PROGRAM = """
import sys
import anyio
from cortecs_async import AsyncCortecs
from cortecs_async.signals import cancel_on_sigterm

async def main():
    async with cancel_on_sigterm(), AsyncCortecs() as client:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1"):
            print("body", flush=True)
            await anyio.sleep(60)

anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["asyncio", "trio"])
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(emu: Emulator, backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", PROGRAM, backend],
        # The state directory of this test: journals of other programs could claim its instances.
        env={
            **emu.env(),
            "PYTHONPATH": ":".join(sys.path),
            "CORTECS_STATE_DIR": os.environ["CORTECS_STATE_DIR"],
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def asked_for(emu: Emulator, route: str) -> None:
    await until(lambda: any(record.route == route for record in emu.requests))


async def ended(process: subprocess.Popen[str]) -> str:
    with anyio.fail_after(30):
        _, stderr = await anyio.to_thread.run_sync(process.communicate)
    return stderr


@pytest.mark.parametrize("when", ["start", "get", "body"])
async def test_ctrl_c_hands_the_instance_back(backend: str, when: str) -> None:
    async with serve_emulator(step_seconds=0.02 if when == "body" else 1.0) as emu:
        process = run(emu, backend)
        if when == "body":
            assert process.stdout is not None
            assert await anyio.to_thread.run_sync(process.stdout.readline) == "body\n"
        else:
            await asked_for(emu, when)
        process.send_signal(signal.SIGINT)
        stderr = await ended(process)
        assert "KeyboardInterrupt" in stderr
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_two_ctrl_c_while_the_start_is_in_flight(backend: str) -> None:
    async with serve_emulator(step_seconds=0.02) as emu:
        emu.add_fault(Fault("delay", route="start", when="after", seconds=1.0))
        process = run(emu, backend)
        await asked_for(emu, "start")
        process.send_signal(signal.SIGINT)
        await anyio.to_thread.run_sync(settle)
        process.send_signal(signal.SIGINT)
        assert "KeyboardInterrupt" in await ended(process)
        assert len(emu.ledger) == 1
        assert emu.existing == ()


def settle() -> None:
    """Long enough for a signal to be handled, so that two are not taken for one."""
    threading.Event().wait(0.2)


async def test_a_second_ctrl_c_during_the_release_does_not_break_it(backend: str) -> None:
    async with serve_emulator(step_seconds=0.02, stop_seconds=0.5) as emu:
        process = run(emu, backend)
        assert process.stdout is not None
        assert await anyio.to_thread.run_sync(process.stdout.readline) == "body\n"
        process.send_signal(signal.SIGINT)
        await asked_for(emu, "stop")
        process.send_signal(signal.SIGINT)
        stderr = await ended(process)
        assert "KeyboardInterrupt" in stderr
        assert emu.existing == ()


@grid(strength=1, backend=BACKENDS, number=[signal.SIGINT, signal.SIGTERM])
async def test_an_instance_is_gone_before_a_container_is_killed_although_its_start_hangs(
    backend: str, number: signal.Signals
) -> None:
    async with serve_emulator(step_seconds=0.02) as emu:
        emu.add_fault(Fault("delay", route="start", when="after", seconds=100.0))
        process = run(emu, backend)
        await asked_for(emu, "start")
        process.send_signal(number)
        # Container runtimes kill ten seconds after the signal.
        await until(lambda: not emu.existing, 8.0)
        await ended(process)
        assert process.returncode == (143 if number == signal.SIGTERM else -signal.SIGINT)
        assert len(emu.ledger) == 1
