"""The web apps of the docs under real servers: uvicorn, gunicorn and hypercorn, with one worker or more.

Needs the dependency group `web`; `nox -s web` installs it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _processes import PROC, is_alive, kill, read, reapers_of, until
from _sections import blocks

from cortecs_async.emulator import Emulator, serve_emulator

pytestmark = pytest.mark.sockets

PAGE = Path(__file__).parent.parent.parent / "docs" / "web.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)

# Text that only one of the programs contains.
MARKS = {
    "fastapi": "StreamingResponse(",
    "starlette": '[Route("/ready", ready), Route("/ask", ask)]',
    "litestar": "from litestar import",
    "background": "BackgroundInstance(",
    "plain": "openai.AsyncOpenAI()",
}

# Each response has an instance of its own, which a generator holds.
OWN_LEASE = """
from contextlib import asynccontextmanager

from fastapi import FastAPI
from fastapi.responses import StreamingResponse

from cortecs_async import AsyncCortecs


@asynccontextmanager
async def lifespan(app):
    async with AsyncCortecs(guard="required") as app.state.client:
        yield


app = FastAPI(lifespan=lifespan)


@app.get("/health")
async def health():
    return {}


@app.get("/stream")
async def stream(text: str):
    async def pieces():
        async with (
            app.state.client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst,
            inst.openai() as llm,
        ):
            messages = [{"role": "user", "content": text}]
            answer = await llm.chat.completions.create(model=inst.model, messages=messages, stream=True)
            async for chunk in answer:
                yield chunk.choices[0].delta.content or ""

    return StreamingResponse(pieces(), media_type="text/plain")
"""

# The programs that are not in docs/web.md.
OTHERS = {"own lease": OWN_LEASE, "flask": blocks("migrating.md", "Synchronous programs")[0]}

# Seconds for a server with several workers to start on a busy machine.
TIMEOUT = 90.0

UVICORN = ["uvicorn", "app:app", "--port", "{port}"]


@pytest.fixture
def anyio_backend() -> str:
    """The backend of the tests; the servers have their own."""
    return "asyncio"


class Clock:
    """The machine's clock, which a test puts forward to make the instance run."""

    ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class World:
    """An emulator whose instances take hours to start, and a program of the page under a server."""

    def __init__(self, emu: Emulator, clock: Clock, process: subprocess.Popen[bytes], log: Path) -> None:
        self.emu = emu
        self.clock = clock
        self.process = process
        self.log = log
        self.http = httpx.AsyncClient(timeout=TIMEOUT)

    async def get(self, path: str) -> httpx.Response:
        """Send a request on a new connection, so that any worker may answer."""
        return await self.http.get(path, headers={"Connection": "close"})

    async def settled(self, path: str, *statuses: int) -> httpx.Response:
        """Return the first response with one of these statuses."""
        with anyio.fail_after(TIMEOUT):
            while True:
                try:
                    answer = await self.get(path)
                except httpx.TransportError:
                    assert self.process.poll() is None, self.log.read_text()
                else:
                    if answer.status_code in statuses:
                        return answer
                await anyio.sleep(0.05)

    async def runs(self) -> str:
        """Put the clock forward until the instance is running, and return its id."""
        await until(lambda: self.emu.billing, TIMEOUT)
        self.clock.ahead += 6 * 3600
        return str((await self.settled("/ready", 200)).json()["instance_id"])

    async def ends(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send the server a signal, and return its exit status."""
        self.process.send_signal(number)
        with anyio.fail_after(TIMEOUT):
            return await anyio.to_thread.run_sync(self.process.wait, abandon_on_cancel=True)


def processes(state_dir: Path, word: bytes = b"") -> list[int]:
    """Return the living processes with this state directory, and with `word` in their command line."""
    wanted = f"CORTECS_STATE_DIR={state_dir}".encode()
    pids = [int(each.name) for each in PROC.iterdir() if each.name.isdigit()]
    return [
        pid
        for pid in pids
        if wanted in read(pid, "environ").split(b"\0") and word in read(pid, "cmdline") and is_alive(pid)
    ]


def owner(state_dir: Path) -> int:
    (found,) = processes(state_dir, b"integrations._shared_server")
    return found


def started(command: list[str], folder: Path, env: dict[str, str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("wb") as output:
        return subprocess.Popen(
            [sys.executable, "-m", *command],
            env=env,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )


@pytest.fixture
def serve(tmp_path: Path, state_dir: Path) -> Callable[..., Any]:
    """Serve a program of the page: `async with serve("fastapi", [...]) as world`."""

    @asynccontextmanager
    async def served(framework: str, command: list[str] = UVICORN, **options: Any) -> AsyncIterator[World]:
        if (program := OTHERS.get(framework)) is None:
            (program,) = [each for each in PROGRAMS if MARKS[framework] in each]
        if "linger" in options:
            program = program.replace("max_cost=50", "max_cost=50, linger=" + options.pop("linger"))
        (tmp_path / "app.py").write_text(program)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        clock = Clock()
        settings = {"step_seconds": 3600.0, "token_lifetime": 10_000_000.0, **options}
        log = tmp_path / "log"
        async with serve_emulator(Emulator(clock=clock, **settings)) as emu:
            env = {
                "PATH": os.environ["PATH"],
                **emu.env(),
                "CORTECS_STATE_DIR": str(state_dir),
                "PYTHONPATH": os.pathsep.join(sys.path),
            }
            process = started([each.format(port=port) for each in command], tmp_path, env, log)
            world = World(emu, clock, process, log)
            world.http.base_url = httpx.URL(f"http://127.0.0.1:{port}")
            try:
                async with world.http:
                    yield world
                assert emu.existing == ()
            finally:
                for pid in {process.pid, *processes(state_dir)}:
                    kill(pid)
                process.wait()

    return served


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "litestar"])
async def test_ready_at_once_and_released_at_sigterm(serve: Callable[..., Any], framework: str) -> None:
    async with serve(framework) as world:
        answer = await world.settled("/ready", 503)
        assert answer.headers["retry-after"] == "10"
        assert answer.json()["detail"] == "The model is starting, which takes a few minutes"
        assert (await world.get("/ask?text=hi")).status_code == 503

        instance_id = await world.runs()
        assert world.emu.existing == (instance_id,)
        answer = await world.get("/ask?text=Why is the sky blue?")
        assert answer.status_code == 200
        assert "Why is the sky blue?" in answer.json()["answer"]

        # uvicorn ends the lifespan, and then raises the signal that it received.
        assert await world.ends() == -signal.SIGTERM
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


async def test_sigterm_while_the_instance_starts(serve: Callable[..., Any]) -> None:
    async with serve("fastapi") as world:
        await world.settled("/ready", 503)
        assert (await world.get("/health")).status_code == 200
        await until(lambda: world.emu.billing, TIMEOUT)
        await world.ends()
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


async def test_no_capacity_is_reported(serve: Callable[..., Any]) -> None:
    async with serve("fastapi", capacity={"NVIDIA_H100_1": 0}) as world:
        with anyio.fail_after(TIMEOUT):
            answer = await world.settled("/ready", 503)
            while "capacity" not in answer.json()["detail"]:
                answer = await world.settled("/ready", 503)
        assert answer.headers["retry-after"] == "30"
        await world.ends()
        assert world.emu.ledger == ()


THREE = [*UVICORN, "--workers", "3"]


def workers(world: World) -> list[int]:
    """Return the living worker processes of uvicorn that have started."""
    found = re.findall(r"Started server process \[(\d+)\]", world.log.read_text())
    return [int(each) for each in found if is_alive(int(each))]


async def up(world: World, number: int = 3) -> str:
    """Wait for the workers and their instance, and return its id."""
    await until(lambda: len(workers(world)) == number, TIMEOUT)
    return await world.runs()


async def test_workers_share_one_and_are_replaced(serve: Callable[..., Any], state_dir: Path) -> None:
    async with serve("fastapi", THREE) as world:
        instance_id = await up(world)
        answers = [await world.get("/ready") for _ in range(20)]
        assert {each.json()["instance_id"] for each in answers} == {instance_id}
        # One of them is the parent of the owner.
        for each in workers(world):
            kill(each)
            await until(lambda gone=each: gone not in workers(world))  # type: ignore[misc]
            await until(lambda: len(workers(world)) == 3, TIMEOUT)
        assert (await world.settled("/ready", 200)).json()["instance_id"] == instance_id
        assert await world.ends() == 0
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())
        await until(lambda: not processes(state_dir))


async def test_a_killed_owner_is_replaced(serve: Callable[..., Any], state_dir: Path) -> None:
    async with serve("fastapi", THREE) as world:
        first = await up(world)
        kill(owner(state_dir))
        assert (await world.settled("/ready", 503)).headers["retry-after"]
        await until(lambda: len(world.emu.ledger) == 2, TIMEOUT)
        # The reaper of the dead owner releases it.
        await until(lambda: first not in world.emu.existing, TIMEOUT)
        assert await world.runs() != first
        assert await world.ends() == 0
        assert (len(world.emu.ledger), world.emu.existing) == (2, ())


async def test_everything_is_killed(serve: Callable[..., Any], state_dir: Path) -> None:
    async with serve("fastapi", THREE) as world:
        await up(world)
        (reaper,) = reapers_of(owner(state_dir))
        for each in {world.process.pid, *processes(state_dir)} - {reaper}:
            kill(each)
        await until(lambda: world.emu.existing == (), TIMEOUT)
        await until(lambda: not is_alive(reaper))


async def test_the_parent_is_killed(serve: Callable[..., Any], state_dir: Path) -> None:
    async with serve("fastapi", THREE) as world:
        instance_id = await up(world)
        kill(world.process.pid)
        # uvicorn's workers outlive their parent and continue to serve, so they keep the instance.
        assert (await world.settled("/ready", 200)).json()["instance_id"] == instance_id
        for each in workers(world):
            os.kill(each, signal.SIGTERM)
        await until(lambda: world.emu.existing == (), TIMEOUT)
        await until(lambda: not processes(state_dir, b"integrations._shared_server"))


async def test_a_lost_instance_is_replaced(serve: Callable[..., Any]) -> None:
    async with serve("fastapi") as world:
        await world.settled("/ready", 503)
        first = await world.runs()
        world.emu.delete_instance(first)
        assert (await world.settled("/ready", 503)).headers["retry-after"]
        await until(lambda: len(world.emu.ledger) == 2, TIMEOUT)
        second = await world.runs()
        assert second != first
        assert (await world.get("/ask?text=again")).status_code == 200
        await world.ends()


async def test_workers_that_come_and_go_in_order(serve: Callable[..., Any]) -> None:
    async with serve(
        "starlette", [*UVICORN, "--workers", "2", "--limit-max-requests", "20"], linger="30"
    ) as world:
        await world.settled("/ready", 503)
        instance_id = await world.runs()
        started = "Started server process"
        with anyio.fail_after(TIMEOUT):
            while world.log.read_text().count(started) < 5:
                assert (await world.settled("/ready", 200)).json()["instance_id"] == instance_id
        assert await world.ends() == 0
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


async def test_streams(serve: Callable[..., Any]) -> None:
    async with serve("fastapi", token_seconds=0.2, parallel=1) as world:
        await world.settled("/ready", 503)
        instance_id = await world.runs()
        text = "word " * 20
        answer = await world.get(f"/stream?text={text}")
        assert text.strip() in answer.text

        # A client that disconnects ends its stream, but not the lease. The instance handles one request at a
        # time, and can handle the next one.
        async with world.http.stream("GET", f"/stream?text={text * 50}") as response:
            await anext(response.aiter_bytes())
        with anyio.fail_after(30):
            assert (await world.get("/ask?text=next")).status_code == 200
        assert world.emu.existing == (instance_id,)

        # A stream is cut when its instance is lost.
        with pytest.raises(httpx.RemoteProtocolError):
            async with world.http.stream("GET", f"/stream?text={text * 50}") as response:
                async for _ in response.aiter_bytes():
                    if world.emu.existing:
                        world.emu.delete_instance(instance_id)
        await world.settled("/ready", 503)
        await world.ends()


async def hang_up_while_a_worker_is_killed(world: World, count: int) -> None:
    """Request streams, of which half are left at random moments, and kill one of the two workers."""
    chance = random.Random(0)
    ended: list[str] = []

    async def ask(http: httpx.AsyncClient, patience: float | None) -> None:
        outcome = "hung up"
        with anyio.move_on_after(patience):
            try:
                answer = await http.get("/stream?text=" + "word " * 20)
                outcome = "answered" if "word word" in answer.text else answer.text
            except httpx.TransportError:
                outcome = "cut"  # by the end of its worker
        ended.append(outcome)

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(base_url=world.http.base_url, timeout=TIMEOUT, limits=limits) as http,
        anyio.create_task_group() as clients,
    ):
        for number in range(count):
            clients.start_soon(ask, http, chance.uniform(0, 5) if number % 2 else None)
        await until(lambda: "hung up" in ended, TIMEOUT)
        kill(workers(world)[0])
    assert len(ended) == count
    # On a busy machine, the worker that is killed may have had all clients that do not hang up.
    assert {"hung up", "cut"} <= set(ended) <= {"answered", "hung up", "cut"}


async def test_leases_in_generators_whose_clients_hang_up(serve: Callable[..., Any]) -> None:
    options = {"step_seconds": 0.05, "token_seconds": 0.1, "capacity": {"NVIDIA_L40S_1": 1000}}
    async with serve("own lease", [*UVICORN, "--workers", "2"], **options) as world:
        await world.settled("/health", 200)
        await until(lambda: len(workers(world)) == 2, TIMEOUT)
        await hang_up_while_a_worker_is_killed(world, 60)
        # Those of the killed worker are released by its reaper.
        await until(lambda: not world.emu.existing, 10)
        assert len(world.emu.ledger) > 30
        await world.ends()
        log = world.log.read_text()
        assert "Not released" not in log
        assert "BILLED" not in log


async def test_clients_that_hang_up_while_a_worker_is_killed(
    serve: Callable[..., Any], state_dir: Path
) -> None:
    async with serve("fastapi", [*UVICORN, "--workers", "2"], token_seconds=0.1) as world:
        instance_id = await up(world, 2)
        await hang_up_while_a_worker_is_killed(world, 200)

        # The instance has been kept, and does not work for clients that have gone.
        await until(lambda: len(workers(world)) == 2, TIMEOUT)
        with anyio.fail_after(30):
            assert (await world.settled("/ask?text=next", 200)).json()["answer"]
        assert world.emu.existing == (instance_id,)
        began = anyio.current_time()
        await world.ends()
        await until(lambda: not processes(state_dir), 10)
        assert anyio.current_time() - began < 10
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())
        # Nothing is said to be left that is not.
        log = world.log.read_text()
        assert "Not released" not in log
        assert "BILLED" not in log


async def test_a_reported_instance_is_replaced_at_once(serve: Callable[..., Any]) -> None:
    async with serve("fastapi", THREE) as world:
        first = await up(world)
        await world.settled("/ask?text=hi", 200)
        world.emu.stop_instance(first)
        # The request fails, and the app reports it.
        assert (await world.get("/ask?text=hi")).status_code == 502
        with anyio.fail_after(4):
            answer = await world.settled("/ask?text=hi", 503)
        assert "starting" in answer.json()["detail"] or "restarted" in answer.json()["detail"]
        await until(lambda: len(world.emu.ledger) == 2, TIMEOUT)
        assert await world.runs() != first
        await world.ends()


@pytest.mark.parametrize(
    "command",
    [
        ["gunicorn", "app:app", "-k", "uvicorn_worker.UvicornWorker", "-w", "3", "-b", "127.0.0.1:{port}"],
        ["hypercorn", "app:app", "-w", "3", "-b", "127.0.0.1:{port}"],
        ["hypercorn", "app:app", "-w", "3", "-b", "127.0.0.1:{port}", "-k", "trio"],
    ],
    ids=["gunicorn", "hypercorn", "hypercorn-trio"],
)
async def test_other_servers(serve: Callable[..., Any], command: list[str]) -> None:
    async with serve("fastapi", command) as world:
        await world.settled("/ready", 503)
        instance_id = await world.runs()
        answers = [await world.settled("/ready", 200) for _ in range(20)]
        assert {each.json()["instance_id"] for each in answers} == {instance_id}
        assert (await world.get("/ask?text=hi")).status_code == 200
        assert await world.ends() == 0
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


async def test_beside_a_single_process(serve: Callable[..., Any]) -> None:
    async with serve("background") as world:
        assert (await world.settled("/ready", 503)).headers["retry-after"] == "10"
        await world.runs()
        assert await world.ends() == -signal.SIGTERM
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


@pytest.mark.parametrize(
    ("framework", "server"),
    [
        ("plain", [*UVICORN, "--workers", "2"]),
        ("flask", ["gunicorn", "app:app", "--workers", "4", "-b", "127.0.0.1:{port}"]),
    ],
)
async def test_run_around_the_server(serve: Callable[..., Any], framework: str, server: list[str]) -> None:
    limits = ["meta-llama/Llama-3.1-8B-Instruct", "NVIDIA_H100_1", "--max-cost", "50"]
    command = ["cortecs_async", "run", *limits, "--", sys.executable, "-m", *server]
    async with serve(framework, command, step_seconds=0.05) as world:
        answer = await world.settled("/ask?text=hi", 200)
        assert "hi" in answer.json()["answer"]
        assert await world.ends() == 0
        assert (len(world.emu.ledger), world.emu.existing) == (1, ())


def test_every_program_of_the_page_is_run_here() -> None:
    assert len(PROGRAMS) == PAGE.read_text().count("```python") == len(MARKS)
    assert all(sum(mark in each for each in PROGRAMS) == 1 for mark in MARKS.values())
