"""Scenarios that tests/ecosystem runs on Ray and on Dask, with real sockets and processes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import threading
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
"""`fan_out(work, items, leases, **options)` on a running cluster."""

# Seconds for steps that take less than one on an idle machine.
TIMEOUT = 60.0


@asynccontextmanager
async def service(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
    """Serve an emulator that workers can reach, and a client."""
    async with (
        serve_emulator(**{"step_seconds": 0.01, **options}) as emulator,
        AsyncCortecs(
            emulator.client_id, emulator.client_secret, api_base_url=emulator.api_base_url
        ) as client,
    ):
        yield emulator, client


def request(number: int, **body: Any) -> dict[str, Any]:
    """Return a batch request."""
    body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 3, **body}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


# Functions that run on the workers.


async def answer_with_process(inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Answer requests, and return the process, its parent, and the instance with each answer."""
    where = {"pid": os.getpid(), "parent": os.getppid(), "instance_id": inst.instance_id}
    return [
        result if isinstance(result, Exception) else {**where, "answer": result}
        for result in await answer(inst, requests)
    ]


async def wait_to_be_killed(folder: Path, inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Answer requests, but wait to be killed on the first attempt of the first request."""
    if requests[0]["custom_id"] == "r0" and not (folder / "killed").exists():
        await wait_for_cancellation(folder, inst, requests)
    return await answer_with_process(inst, requests)


async def wait_for_cancellation(
    folder: Path, inst: InstanceHandle, requests: list[dict[str, Any]]
) -> list[Any]:
    """Write a file with this process id, and another file when cancelled."""
    (folder / f"victim-{os.getpid()}").touch()
    try:
        await asyncio.sleep(TIMEOUT)
    finally:
        (folder / "cancelled").touch()
    return []


async def fail(inst: InstanceHandle, requests: list[dict[str, Any]]) -> list[Any]:
    """Raise an exception."""
    raise LookupError(f"failed with {len(requests)} requests")


class Unpicklable(Exception):  # noqa: N818
    """An exception that cannot be unpickled, because it takes two arguments."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)


class Broken:
    """A value that can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


async def misbehave(inst: InstanceHandle, items: list[str]) -> Any:
    """Return or raise the result that each item names."""
    match items[0]:
        case "unpicklable":
            raise Unpicklable(503, "too busy")
        case "nothing":
            return None
        case "generator":
            return (item for item in items)
        case "short":
            return []
        case "lock":
            return [threading.Lock()]
        case "broken":
            return [Broken()]
    return items


# The scenarios.


async def answer_all(fan_out: FanOutTo, count: int = 200) -> set[tuple[int, int]]:
    """All requests have an outcome, and one is an error. Return the processes and their parents."""
    async with service(answer_seconds=0.02) as (emulator, client):
        requests = [request(each, **({"max_tokens": 10**9} if each == 7 else {})) for each in range(count)]
        leases = [client.instance(MODEL) for _ in range(2)]
        found = await outcomes_of(fan_out(answer_with_process, requests, leases, chunk_size=10))
        assert emulator.existing == ()
        check_once(found, count)
        (failed,) = (each for each in found if each.error is not None)
        assert failed.item["custom_id"] == "r7"
        assert (failed.error.code, failed.error.status) == ("BadRequestError", 400)
        done = [each.value for each in found if each.error is None]
        assert {each["instance_id"] for each in done} == {entry.instance_id for entry in emulator.ledger}
        return {(each["pid"], each["parent"]) for each in done}


async def run_custom_work(fan_out: FanOutTo) -> None:
    """The function on the page works."""
    names = {"__name__": "__main__"}  # as in a program: pickled by value, not by its name
    exec(block_of("async def summarize"), names)  # noqa: S102
    async with service() as (emulator, client):
        documents = ["a sky", "a blade of grass", "a sea"]
        found = await outcomes_of(fan_out(names["summarize"], documents, [client.instance(MODEL)]))
        assert emulator.existing == ()
        assert sorted(each.item for each in found) == sorted(documents)
        assert all(f"Summarize in one sentence: {each.item}" in each.value for each in found)


async def lose_a_worker(fan_out: FanOutTo, folder: Path, kill_it: Callable[[int], None] = kill) -> None:
    """A worker is killed while it works. Every item still has one outcome."""
    async with service() as (emulator, client):
        work = partial(wait_to_be_killed, folder)
        leases = [client.instance(MODEL)]

        async def kill_the_victim() -> None:
            (pid,) = await waiting_processes(folder)
            (folder / "killed").touch()
            await anyio.to_thread.run_sync(kill_it, pid)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(kill_the_victim)
            found = await outcomes_of(fan_out(work, map(request, range(100)), leases, chunk_size=10))
        assert emulator.existing == ()
        check_once(found, 100)
        assert [each.error for each in found if each.error] == []
        (victim,) = await waiting_processes(folder)
        assert all(each.value["pid"] != victim for each in found if each.item["custom_id"] == "r0")


async def lose_an_instance(fan_out: FanOutTo) -> None:
    """One of two instances is stopped. The other one runs its chunks."""
    async with service(answer_seconds=0.1, parallel=4) as (emulator, client):
        leases = [client.instance(MODEL) for _ in range(2)]
        found = []
        lost = ""
        async with fan_out(answer_with_process, map(request, range(200)), leases, chunk_size=5) as outcomes:
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


async def raise_in_work(fan_out: FanOutTo) -> None:
    """An exception from `work` ends everything and is raised unchanged."""
    async with service() as (emulator, client):
        with pytest.raises(LookupError, match="failed with 10 requests"):
            await outcomes_of(
                fan_out(fail, map(request, range(100)), [client.instance(MODEL)], chunk_size=10)
            )
        assert emulator.existing == ()
        assert len(emulator.ledger) == 1


async def return_nonsense(fan_out: FanOutTo) -> None:
    """A result that cannot be sent to the driver becomes its item's error."""
    async with service() as (emulator, client):
        kinds = ["value", "nothing", "generator", "short", "lock", "broken", "unpicklable"]
        found = await outcomes_of(fan_out(misbehave, kinds, [client.instance(MODEL)], chunk_size=1))
        assert emulator.existing == ()
        codes = {each.item: each.error and each.error.code for each in found}
        assert codes == {
            "value": None,
            "nothing": "TypeError",
            "generator": "TypeError",
            "short": "TypeError",
            "lock": "PicklingError",
            "broken": "UnpicklingError",
            "unpicklable": "Unpicklable",
        }
        (unpicklable,) = (each for each in found if each.item == "unpicklable")
        assert str(unpicklable.error) == "Unpicklable: too busy"


async def cancel(fan_out: FanOutTo, folder: Path) -> None:
    """The driver is cancelled while tasks are running."""
    async with service() as (emulator, client):
        work = partial(wait_for_cancellation, folder)
        driver = asyncio.create_task(
            outcomes_of(fan_out(work, map(request, range(100)), [client.instance(MODEL)], chunk_size=10))
        )
        await waiting_processes(folder)
        driver.cancel()
        with pytest.raises(asyncio.CancelledError):
            await driver
        assert emulator.existing == ()


async def time_out(fan_out: FanOutTo, folder: Path) -> None:
    """The driver times out."""
    async with service() as (emulator, client):
        work = partial(wait_for_cancellation, folder)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2):
                await outcomes_of(fan_out(work, [request(0)], [client.instance(MODEL)]))
        assert emulator.existing == ()


async def run_custom_tasks(program: str, folder: Path, **env: str) -> None:
    """The program on the page without `fan_out` works."""
    async with service() as (emulator, _):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(folder / "state"), **env}
        with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
            await until(lambda: driver.has_ended, TIMEOUT)
            assert driver.process.returncode == 0, driver.output
            assert "Why is grass green?" in driver.output
        assert emulator.existing == ()
        assert len(emulator.ledger) == 1


async def kill_the_driver(program: str, folder: Path, **env: str) -> None:
    """Kill the program on the page, terminate it, and run it to its end: no leak, no repetition, no loss."""
    count = 400
    (folder / "requests.jsonl").write_text(
        "".join(json.dumps(request(each)) + "\n" for each in range(count)), encoding="utf-8"
    )
    answers = folder / "answers.jsonl"

    def has_new_answers() -> bool:
        return answers.exists() and answers.read_bytes().count(b"\n") > known

    async with service(answer_seconds=0.2, parallel=8) as (emulator, _):
        env = {**emulator.env(), "CORTECS_STATE_DIR": str(folder / "state"), **env}
        known = 0
        for number in (signal.SIGKILL, signal.SIGTERM):
            with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
                await until(lambda: has_new_answers() or driver.has_ended, TIMEOUT)
                assert not driver.has_ended, driver.output
                assert len(emulator.billing) == 2
                driver.send(number)
                await until(lambda: driver.has_ended, TIMEOUT)
                if number is signal.SIGTERM:
                    assert driver.process.returncode == 128 + number, driver.output
                    assert emulator.existing == ()
                await until(lambda: not emulator.existing and not driver.has_left_a_reaper, TIMEOUT)
            known = answers.read_bytes().count(b"\n")
            assert known < count
        with Program(program, env=env, log=folder / "output", cwd=folder) as driver:
            await until(lambda: driver.has_ended, TIMEOUT)
            assert driver.process.returncode == 0, driver.output
            assert driver.has_printed("0 left")
        assert emulator.existing == ()
        asked = sum(each.route == "chat" for each in emulator.requests)
    lines = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert Counter(line["custom_id"] for line in lines) == {f"r{each}": 1 for each in range(count)}
    assert all(line["response"]["status_code"] == 200 for line in lines)
    # In both runs, two chunks of 32 on each of two instances may have been in progress or not yet taken.
    assert asked <= count + 2 * 2 * 128


# Helpers.


async def outcomes_of(fan_out: Any) -> list[Any]:
    """Return all outcomes."""
    async with fan_out as outcomes:
        return [outcome async for outcome in outcomes]


async def waiting_processes(folder: Path) -> set[int]:
    """Return the processes waiting to be killed, as soon as there is one."""

    def found() -> set[int]:
        return {int(path.name.partition("-")[2]) for path in folder.glob("victim-*")}

    await until(found, TIMEOUT)
    return found()


def check_once(found: list[Any], count: int) -> None:
    """Check that each request has one outcome."""
    assert Counter(each.item["custom_id"] for each in found) == {f"r{each}": 1 for each in range(count)}


def block_of(words: str) -> str:
    """Return the only Python block on the page that contains these words."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = (block for block in blocks if words in block)
    return str(found)
