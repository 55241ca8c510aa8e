"""What tests/ecosystem does with a fleet of Ray's and with one of Dask's, on real sockets and processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from _processes import Program, kill, until
from _world import MODEL

from cortecs_async import AsyncCortecs, InstanceHandle
from cortecs_async.emulator import Emulator, serve_emulator
from cortecs_async.integrations.jsonl import answer

PAGE = Path(__file__).parent.parent / "docs" / "fleets.md"

FanOutTo = Callable[..., Any]
"""`fan_out(work, items, leases, **options)` of a cluster that runs."""

# Seconds for what takes a part of one on a machine that has nothing else to do.
PATIENCE = 60.0


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
    """An emulator that workers can reach, and a client."""
    async with (
        serve_emulator(**{"step_seconds": 0.01, **options}) as emulator,
        AsyncCortecs(
            emulator.client_id, emulator.client_secret, api_base_url=emulator.api_base_url
        ) as client,
    ):
        yield emulator, client


def request(number: int, **body: Any) -> dict[str, Any]:
    """A request of a batch."""
    body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 3, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


# What runs on the workers.


async def tell_where(inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Answers, and says which process it was, a child of which, and against which instance."""
    where = {"pid": os.getpid(), "parent": os.getppid(), "instance_id": inst.instance_id}
    return [
        each if isinstance(each, Exception) else {**where, "answer": each}
        for each in await answer(inst, requests)
    ]


async def wait_to_be_killed(folder: Path, inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Answers, but with the first request it waits for its end the first time."""
    if requests[0]["custom_id"] == "r0" and not (folder / "killed").exists():
        await wait_for_ever(folder, inst, requests)
    return await tell_where(inst, requests)


async def wait_for_ever(folder: Path, inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Says that it is there, and when it is cancelled."""
    (folder / f"victim-{os.getpid()}").touch()
    try:
        await asyncio.sleep(PATIENCE)
    finally:
        (folder / "cancelled").touch()
    return []


async def fail(inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Has a mistake in it."""
    raise LookupError(f"a mistake of {len(requests)}")


# The scenarios.


async def answer_all(fan_out: FanOutTo, count: int = 200) -> set[tuple[int, int]]:
    """All answered, on all instances, one with an error; the processes that did it, with their parents."""
    async with service(answer_seconds=0.02) as (emulator, client):
        requests = [request(each, **({"max_tokens": 10**9} if each == 7 else {})) for each in range(count)]
        leases = [client.instance(MODEL) for _ in range(2)]
        found = await outcomes_of(fan_out(tell_where, requests, leases, chunk_size=10))
        assert emulator.existing == ()
        check_once(found, count)
        (failed,) = (each for each in found if each.error is not None)
        assert failed.item["custom_id"] == "r7"
        assert (failed.error.code, failed.error.status) == ("BadRequestError", 400)
        done = [each.value for each in found if each.error is None]
        assert {each["instance_id"] for each in done} == {entry.instance_id for entry in emulator.ledger}
        return {(each["pid"], each["parent"]) for each in done}


async def do_work_of_ones_own(fan_out: FanOutTo) -> None:
    """The function that the page shows."""
    names = {"__name__": "__main__"}  # as in a program: it is sent as it is, and not by its name
    exec(block_of("async def summarize"), names)  # noqa: S102
    async with service() as (emulator, client):
        documents = ["a sky", "a blade of grass", "a sea"]
        found = await outcomes_of(fan_out(names["summarize"], documents, [client.instance(MODEL)]))
        assert emulator.existing == ()
        assert sorted(each.item for each in found) == sorted(documents)
        assert all(f"Summarize in one sentence: {each.item}" in each.value for each in found)


async def lose_a_worker(fan_out: FanOutTo, folder: Path, kill_it: Callable[[int], None] = kill) -> None:
    """A worker is killed in the middle of its work: every item has one outcome."""
    async with service() as (emulator, client):
        work = partial(wait_to_be_killed, folder)
        leases = [client.instance(MODEL)]

        async def kill_the_victim() -> None:
            (pid,) = await victims(folder)
            (folder / "killed").touch()
            await anyio.to_thread.run_sync(kill_it, pid)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_the_victim)
            found = await outcomes_of(fan_out(work, map(request, range(100)), leases, chunk_size=10))
        assert emulator.existing == ()
        check_once(found, 100)
        assert [each.error for each in found if each.error] == []
        (victim,) = await victims(folder)
        assert all(each.value["pid"] != victim for each in found if each.item["custom_id"] == "r0")


async def lose_an_instance(fan_out: FanOutTo) -> None:
    """One of two instances is stopped: the other does what it had."""
    async with service(answer_seconds=0.1, parallel=4) as (emulator, client):
        leases = [client.instance(MODEL) for _ in range(2)]
        found = []
        lost = ""
        async with fan_out(tell_where, map(request, range(200)), leases, chunk_size=5) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if not lost and len({each.value["instance_id"] for each in found}) == 2:
                    lost = outcome.value["instance_id"]
                    emulator.stop_instance(lost)
        assert emulator.existing == ()
        assert lost
        check_once(found, 200)
        assert [each.error for each in found if each.error] == []
        assert len(emulator.ledger) == 2


async def fail_in_a_task(fan_out: FanOutTo) -> None:
    """A mistake in `work` ends everything, and comes out as it is."""
    async with service() as (emulator, client):
        with pytest.raises(LookupError, match="a mistake of 10"):
            await outcomes_of(
                fan_out(fail, map(request, range(100)), [client.instance(MODEL)], chunk_size=10)
            )
        assert emulator.existing == ()
        assert len(emulator.ledger) == 1


async def cancel(fan_out: FanOutTo, folder: Path) -> None:
    """The driver is cancelled while tasks run."""
    async with service() as (emulator, client):
        work = partial(wait_for_ever, folder)
        driver = asyncio.create_task(
            outcomes_of(fan_out(work, map(request, range(100)), [client.instance(MODEL)], chunk_size=10))
        )
        await victims(folder)
        driver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driver
        assert emulator.existing == ()


async def run_out_of_time(fan_out: FanOutTo, folder: Path) -> None:
    """The driver has a time-out."""
    async with service() as (emulator, client):
        work = partial(wait_for_ever, folder)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await outcomes_of(fan_out(work, [request(0)], [client.instance(MODEL)]))
        assert emulator.existing == ()


async def run_tasks_of_ones_own(program: str, folder: Path, **env: str) -> None:
    """The program of the page without `fan_out`."""
    async with service() as (emulator, _):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(folder / "state"), **env}
        with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
            await until(lambda: driver.has_ended, PATIENCE)
            assert driver.process.returncode == 0, driver.output
            assert "Why is grass green?" in driver.output
        assert emulator.existing == ()
        assert len(emulator.ledger) == 1


async def kill_the_driver(program: str, folder: Path, **env: str) -> None:
    """The program of the page: killed, ended, and run to its end. Nothing is left, asked twice or lost."""
    count = 400
    (folder / "requests.jsonl").write_text(
        "".join(json.dumps(request(each)) + "\n" for each in range(count)), encoding="utf-8"
    )
    answers = folder / "answers.jsonl"

    def is_in_mid_run() -> bool:
        return answers.exists() and answers.read_bytes().count(b"\n") > known

    async with service(answer_seconds=0.2, parallel=8) as (emulator, _):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(folder / "state"), **env}
        known = 0
        for number in (signal.SIGKILL, signal.SIGTERM):
            with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
                await until(lambda: is_in_mid_run() or driver.has_ended, PATIENCE)
                assert not driver.has_ended, driver.output
                assert len(emulator.billing) == 2
                driver.send(number)
                await until(lambda: driver.has_ended, PATIENCE)
                if number is signal.SIGTERM:
                    assert driver.process.returncode == 128 + number, driver.output
                    assert emulator.existing == ()
                await until(lambda: not emulator.existing and not driver.has_left_a_reaper, PATIENCE)
            known = answers.read_bytes().count(b"\n")
            assert known < count
        with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
            await until(lambda: driver.has_ended, PATIENCE)
            assert driver.process.returncode == 0, driver.output
            assert driver.has_said("0 left")
        assert emulator.existing == ()
        asked = sum(each.route == "chat" for each in emulator.requests)
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert Counter(line["custom_id"] for line in lines) == {f"r{each}": 1 for each in range(count)}
    assert all(line["response"]["status_code"] == 200 for line in lines)
    # Two instances with two chunks of 32 each, twice, may have been under way, or not taken yet.
    assert asked <= count + 2 * 2 * 128


# What they need.


async def outcomes_of(fan_out: Any) -> list[Any]:
    """All of them."""
    async with fan_out as outcomes:
        return [outcome async for outcome in outcomes]


async def victims(folder: Path) -> set[int]:
    """The processes that wait for their end, when there is one."""

    def found() -> set[int]:
        return {int(path.name.partition("-")[2]) for path in folder.glob("victim-*")}

    await until(found, PATIENCE)
    return found()


def check_once(found: list[Any], count: int) -> None:
    """Each request has one outcome."""
    assert Counter(each.item["custom_id"] for each in found) == {f"r{each}": 1 for each in range(count)}


def block_of(words: str) -> str:
    """The one Python block of the page that has these words."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return str(found)
