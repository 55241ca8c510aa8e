"""An instance shared by name between real processes, which are killed at any step."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from _processes import PROC, Program, is_alive, kill, read, reapers_of, until
from _world import HARDWARE, MODEL, client_of

from cortecs_async import AsyncCortecs, errors
from cortecs_async.emulator import Emulator, Fault, serve_emulator

pytestmark = pytest.mark.sockets

# Credentials in code, which the owner must get without its environment.
MEMBER = """
import anyio, os, sys
from cortecs_async import AsyncCortecs

async def main():
    url, client_id, secret, linger, seconds = sys.argv[1:6]
    async with AsyncCortecs(client_id, secret, api_base_url=url) as client:
        options = {"max_lifetime": "1h", "linger": float(linger)}
        async with client.shared("bot", *sys.argv[6:8], **options) as inst:
            print("in", inst.instance_id, flush=True)
            await anyio.sleep(float(seconds))
        print("out", flush=True)

anyio.run(main)
"""

CLOSES_ITS_LOOP = """
import asyncio, gc, sys, time
from cortecs_async import AsyncCortecs

async def work(entered):
    client = AsyncCortecs(*sys.argv[2:4], api_base_url=sys.argv[1])
    async with client.shared("bot", *sys.argv[6:8], max_lifetime="1h", linger=0):
        entered.set()
        await asyncio.sleep(1000)

loop = asyncio.new_event_loop()
entered = asyncio.Event()
task = loop.create_task(work(entered))
loop.run_until_complete(entered.wait())
loop.close()
del task, loop
gc.collect()
print("closed", flush=True)
time.sleep(1000)
"""


class Machine:
    """Processes that share an instance, and what they share."""

    def __init__(self, emu: Emulator, state_dir: Path, tmp_path: Path, stack: ExitStack) -> None:
        self.emu = emu
        self._state_dir = state_dir
        self._tmp_path = tmp_path
        self._stack = stack
        self.programs: list[Program] = []

    def start(self, source: str = MEMBER, *, linger: float = 0.0, seconds: float = 1000.0) -> Program:
        emu, number = self.emu, len(self.programs)
        arguments = (emu.api_base_url, emu.client_id, emu.client_secret, str(linger), str(seconds))
        program = Program(
            *(source, *arguments, MODEL, HARDWARE),
            env={"CORTECS_STATE_DIR": str(self._state_dir)},
            log=self._tmp_path / f"log{number}",
        )
        self.programs.append(self._stack.enter_context(program))
        return program

    def owners(self) -> list[int]:
        """Return the ids of the owner processes."""
        found = [int(each.name) for each in PROC.iterdir() if each.name.isdigit()]
        return [pid for pid in found if self._is_owner(pid)]

    def _is_owner(self, pid: int) -> bool:
        environment = read(pid, "environ").split(b"\0")
        return (
            b"cortecs_async._client.shared_owner" in read(pid, "cmdline")
            and f"CORTECS_STATE_DIR={self._state_dir}".encode() in environment
            and is_alive(pid)
        )

    def client(self) -> AsyncCortecs:
        return client_of(self.emu, state_dir=self._state_dir)

    async def until_gone(self, started: int = 1) -> None:
        """Wait until nothing is left, and check how many instances were started."""
        await until(lambda: self.emu.existing == () and not self.owners(), 60)
        assert len(self.emu.ledger) == started


@asynccontextmanager
async def machine(state_dir: Path, tmp_path: Path, **options: Any) -> AsyncIterator[Machine]:
    with ExitStack() as stack:
        async with serve_emulator(**{"step_seconds": 0.05, **options}) as emu:
            found = Machine(emu, state_dir, tmp_path, stack)
            try:
                yield found
            finally:
                for pid in found.owners():
                    stack.enter_context(_killed(pid))


async def until_holders(client: AsyncCortecs, pids: set[int]) -> None:
    """Wait until exactly these processes share the instance."""
    with anyio.fail_after(60):
        while [{*each.holders} for each in await client.shared_instances()] != [pids]:  # noqa: ASYNC110
            await anyio.sleep(0.05)


def files(state_dir: Path) -> list[str]:
    """Return the names of the files of shared instances."""
    return [each.name for each in (state_dir / "shared").iterdir()]


@contextmanager
def _killed(pid: int) -> Iterator[None]:
    for each in (*reapers_of(pid), pid):
        kill(each)
    yield


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_twenty_processes_start_one_instance(state_dir: Path, tmp_path: Path) -> None:
    async with machine(state_dir, tmp_path, step_seconds=0.3) as all_:
        for _ in range(20):
            all_.start()
        await until(lambda: all("in " in each.output for each in all_.programs), 120)
        assert len(all_.emu.ledger) == 1
        (owner,) = all_.owners()
        # All users of the machine can read these.
        for name in ("cmdline", "environ"):
            assert all_.emu.client_secret.encode() not in read(owner, name)
        async with all_.client() as client:
            (info,) = await client.shared_instances()
            assert sorted(info.holders) == sorted(each.pid for each in all_.programs)
            assert (info.state, info.instance_id, info.owner_pid) == ("running", all_.emu.existing[0], owner)
            with pytest.raises(errors.LifecycleError, match=f"{all_.programs[0].pid}"):
                await client.release_shared("bot")
        for each in all_.programs:
            kill(each.pid)
        await all_.until_gone()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("victim", ["the first process", "a waiter", "the owner"])
async def test_a_kill_while_the_instance_starts(state_dir: Path, tmp_path: Path, victim: str) -> None:
    # It never runs, so the order of the steps does not depend on the speed of the machine.
    async with machine(state_dir, tmp_path, step_seconds=1000) as all_, all_.client() as client:
        first = all_.start()
        await until(lambda: all_.emu.existing, 60)
        second = all_.start()
        await until_holders(client, {first.pid, second.pid})
        if victim == "the owner":
            (owner,) = all_.owners()
            kill(owner)
            await until(lambda: first.has_ended and second.has_ended, 60)
            for each in (first, second):
                assert "InstanceLostError: The owner process of the shared instance 'bot'" in each.output
        else:
            killed, other = (first, second) if victim == "the first process" else (second, first)
            kill(killed.pid)
            await until_holders(client, {other.pid})
            assert len(all_.emu.existing) == 1
            kill(other.pid)
        await all_.until_gone()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_kill_while_it_is_used(state_dir: Path, tmp_path: Path) -> None:
    async with machine(state_dir, tmp_path) as all_:
        first, second = all_.start(linger=1), all_.start(linger=1)
        await until(lambda: "in " in first.output and "in " in second.output, 60)
        kill(first.pid)
        async with all_.client() as client:
            await until_holders(client, {second.pid})
            assert len(all_.emu.existing) == 1
            (owner,) = all_.owners()
            reapers = reapers_of(owner)
            kill(owner)
            await until(lambda: second.has_ended, 60)
            assert "InstanceLostError: The owner process of the shared instance 'bot'" in second.output
            await all_.until_gone()
            await until(lambda: not any(map(is_alive, reapers)))
            # The files of the dead owner are recognized and removed, and nothing else.
            (state_dir / "shared" / "n-mine.sock").touch()
            assert await client.shared_instances() == ()
            assert files(state_dir) == ["n-mine.sock"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_frozen_owner(state_dir: Path, tmp_path: Path) -> None:
    async with machine(state_dir, tmp_path) as all_:
        program = all_.start()
        await until(lambda: "in " in program.output, 60)
        (owner,) = all_.owners()
        os.kill(owner, signal.SIGSTOP)
        async with all_.client() as client:
            (info,) = await client.shared_instances()
            assert (info.name, info.state, info.owner_pid) == ("bot", "unresponsive", owner)
            with pytest.raises(errors.LifecycleError, match=r"does not respond. Pass force=True to kill it"):
                await client.release_shared("bot")
            await client.release_shared("bot", force=True)
        await until(lambda: program.has_ended, 60)
        assert "InstanceLostError" in program.output
        await all_.until_gone()


@pytest.mark.smoke
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_it_outlives_its_processes_until_it_is_released(state_dir: Path, tmp_path: Path) -> None:
    async with machine(state_dir, tmp_path) as all_, all_.client() as client:
        options: dict[str, Any] = {"max_lifetime": "1h", "linger": 60}
        async with client.shared("bot", MODEL, HARDWARE, **options) as inst:
            await inst.keep()
        (info,) = await client.shared_instances()
        assert (info.state, info.is_kept, info.base_url) == ("kept", True, inst.base_url)
        released = await client.release_shared("bot")
        assert released is not None
        assert (released.instance_id, all_.emu.existing) == (inst.instance_id, ())
        assert await client.release_shared("bot") is None
        # A block that is still there ends if it must.
        with pytest.raises(errors.InstanceLostError, match=f"was released by process {os.getpid()}"):
            async with client.shared("bot", MODEL, HARDWARE, **options):
                await client.release_shared("bot", force=True)
                await anyio.sleep(60)
        await all_.until_gone(2)
        assert files(state_dir) == []


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_release_whose_owner_is_killed_is_not_reported_as_done(
    state_dir: Path, tmp_path: Path
) -> None:
    async with machine(state_dir, tmp_path) as all_, all_.client() as client:
        async with client.shared("bot", MODEL, HARDWARE, max_lifetime="1h") as inst:
            await inst.keep()
        (info,) = await client.shared_instances()
        owner = info.owner_pid
        assert owner is not None
        all_.emu.add_fault(Fault("delay", route="stop", seconds=60.0))

        async def kill_owner() -> None:
            await until(lambda: any(each.route == "stop" for each in all_.emu.requests), 60)
            kill(owner)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_owner)
            with pytest.raises(errors.TeardownError, match="exited before it confirmed") as caught:
                await client.release_shared("bot")
            assert caught.value.instance_id == inst.instance_id
        await all_.until_gone()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_owner_does_not_keep_the_output_of_a_process_that_has_exited(
    state_dir: Path, tmp_path: Path
) -> None:
    async with machine(state_dir, tmp_path) as all_:
        arguments = (all_.emu.api_base_url, all_.emu.client_id, all_.emu.client_secret, "1000", "0")
        with anyio.fail_after(60):
            # This reads stdout and stderr until no process has them.
            result = await anyio.run_process(
                [sys.executable, "-P", "-c", MEMBER, *arguments, MODEL, HARDWARE],
                env={
                    "PATH": os.defpath,
                    "CORTECS_STATE_DIR": str(state_dir),
                    "PYTHONPATH": os.pathsep.join(sys.path),
                },
            )
        assert result.stdout.endswith(b"out\n")
        async with all_.client() as client:
            (info,) = await client.shared_instances()
            assert info.state == "lingering"
            await client.release_shared("bot")
        await all_.until_gone()


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_that_has_closed_its_event_loop_does_not_count(
    state_dir: Path, tmp_path: Path
) -> None:
    async with machine(state_dir, tmp_path) as all_:
        program = all_.start(CLOSES_ITS_LOOP)
        await until(lambda: "closed" in program.output, 60)
        await all_.until_gone()
        assert not program.has_ended
