"""What is measured in a fresh process: `python _child.py TASK ARGUMENT...` prints what it found as JSON.

The environment says where the emulator is. The tasks are `leases SIDE COUNT`, `memory KIND COUNT`,
`bare COUNT` and `answers SIDE COUNT CONCURRENCY`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
from _measure import children_cpu, memory_of, settle_memory
from _server import MODEL

from cortecs_async import AsyncCortecs

OURS = {"ours": "httpx", "ours, aiohttp": "aiohttp"}
"""The name of a side, and the transport that it has."""

PEER = "cortecs-py"

_CONCURRENCIES = (2, 5, 10, 20)


@attrs.frozen
class Moment:
    """The clocks at one moment. The first is the same in every process."""

    monotonic: float = attrs.field(factory=time.monotonic)
    cpu: float = attrs.field(factory=lambda: time.process_time() + children_cpu())


def leases(side: str, count: int) -> dict[str, Any]:
    """So many leases at once from start to gone, all held until all are up."""
    return peer_leases(count) if side == PEER else asyncio.run(our_leases(OURS[side], count))


def found(moments: list[Moment], before: int) -> dict[str, Any]:
    """What all of it took, by phase: times are seconds, memory is in kB."""
    begun, up, down, end = moments
    return {
        "times": [begun.monotonic, up.monotonic, down.monotonic],
        "wall": down.monotonic - begun.monotonic,
        "cpu": end.cpu - begun.cpu,
        "down_wall": down.monotonic - up.monotonic,
        "down_cpu": down.cpu - up.cpu,
        "memory": memory_of(what="VmHWM") - before,
    }


async def our_leases(transport: Any, count: int) -> dict[str, Any]:
    """Ours, as it is by default: with the reaper and the journal."""
    # Imports are not what a lease costs: the peer's come with its module, ours with the first request.
    async with AsyncCortecs(transport=transport) as client:
        assert await client.models.list()
    settle_memory()
    before = memory_of(what="VmHWM")
    moments = [Moment()]
    async with AsyncCortecs(transport=transport) as client, asyncio.TaskGroup() as tasks:
        up = asyncio.Event()
        entered = 0

        async def one() -> None:
            nonlocal entered
            async with client.instance(MODEL):
                entered += 1
                if entered == count:
                    up.set()
                await up.wait()

        running = [tasks.create_task(one()) for _ in range(count)]
        await up.wait()
        moments.append(Moment())
        await asyncio.gather(*running)
        moments.append(Moment())
    # With the reaper, which has ended by now.
    moments.append(Moment())
    return found(moments, before)


def peer_leases(count: int) -> dict[str, Any]:
    """The vendor's client as it is used: one client, a thread a lease, its own polling."""
    from cortecs_py import Cortecs  # noqa: PLC0415  (only this side is to have it in memory)

    client = Cortecs()

    def release(instance: Any) -> None:
        client.stop(instance.instance_id)
        client.delete(instance.instance_id)

    settle_memory()
    before = memory_of(what="VmHWM")
    moments = [Moment()]
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        instances = list(threads.map(client.start, [MODEL] * count))
        moments.append(Moment())
        list(threads.map(release, instances))
        moments.append(Moment())
    moments.append(Moment())
    return found(moments, before)


def memory(kind: str, count: int) -> dict[str, Any]:
    """Bytes that a waiting lease has."""
    return {"bytes": asyncio.run(waiting_memory(kind, count)) / count}


async def waiting_memory(kind: str, count: int) -> float:
    """Bytes that so many leases have which all wait for their instance."""
    async with AsyncCortecs() as client:

        async def wait() -> None:
            async with client.instance(MODEL):
                raise AssertionError("no instance runs here")

        async def begin(number: int) -> list[asyncio.Task[None]]:
            tasks = [asyncio.create_task(wait()) for _ in range(number)]
            # Asked as somebody else would: a lease says nothing while it waits.
            while len(await client.instances.list()) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            # For the first looks, after which nothing changes any more.
            await asyncio.sleep(1.2)
            return tasks

        async def end(tasks: list[asyncio.Task[None]]) -> None:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            assert not await client.instances.list()

        # What the client itself has: modules, converters, the reaper, and as many connections as it ever has.
        await end(await begin(150))
        if kind == "tracemalloc":
            tracemalloc.start()
        before = held(kind)
        tasks = await begin(count)
        samples = []
        for _ in range(5):
            # At different moments: an answer may just be on its way.
            await asyncio.sleep(0.23)
            samples.append(held(kind))
        await end(tasks)
        return statistics.median(samples) - before


def held(kind: str) -> int:
    """Bytes that this process has."""
    gc.collect()
    if kind == "tracemalloc":
        return tracemalloc.get_traced_memory()[0]
    return memory_of() * 1024


async def bare(count: int) -> dict[str, Any]:
    """Requests a second of bare httpx: a small GET, and start, stop and delete of so many instances."""
    import httpx  # noqa: PLC0415  (the other tasks leave its import to those that they measure)

    url = os.environ["CORTECS_API_BASE_URL"]
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with httpx.AsyncClient(base_url=url, limits=limits, timeout=60) as client:
        body = {
            "grant_type": "client_credentials",
            "client_id": os.environ["CORTECS_CLIENT_ID"],
            "client_secret": os.environ["CORTECS_CLIENT_SECRET"],
        }
        token = (await client.post("/oauth2/token", json=body)).raise_for_status().json()["access_token"]
        client.headers["Authorization"] = f"Bearer {token}"

        async def get(_: object) -> None:
            assert json.loads((await client.get("/user/balance")).raise_for_status().content)["currency"]

        async def start(_: object) -> str:
            answer = await client.post("/instances/start", json={"model_id": MODEL.replace("/", "--")})
            instance_id: str = json.loads(answer.raise_for_status().content)["instance"]["instance_id"]
            return instance_id

        async def stop(instance_id: str) -> None:
            answer = await client.post("/instances/stop", json={"instance_id": instance_id})
            assert json.loads(answer.raise_for_status().content)["instance"]

        async def delete(instance_id: str) -> None:
            answer = await client.delete(f"/instances/{instance_id}")
            assert json.loads(answer.raise_for_status().content)["instance_id"] == instance_id

        await spread_over(20, get, range(200))
        rates: dict[int, list[float]] = {concurrency: [] for concurrency in _CONCURRENCIES}
        for _ in range(3):
            for concurrency, found in rates.items():
                begun = time.perf_counter()
                await spread_over(concurrency, get, range(200))
                found.append(200 / (time.perf_counter() - begun))
        medians = {concurrency: statistics.median(found) for concurrency, found in rates.items()}
        best = max(medians, key=lambda concurrency: medians[concurrency])
        begun = time.perf_counter()
        ids = await spread_over(best, start, range(count))
        await spread_over(best, stop, ids)
        await spread_over(best, delete, ids)
        mixed = 3 * count / (time.perf_counter() - begun)
    return {"concurrency": best, "get": medians[best], "mix": mixed}


async def spread_over(concurrency: int, work: Callable[[Any], Awaitable[Any]], items: Any) -> list[Any]:
    """Does the work for all items, so many at a time; what came of it, in no order."""
    iterator = iter(items)

    async def worker() -> list[Any]:
        return [await work(item) for item in iterator]

    results = await asyncio.gather(*(worker() for _ in range(concurrency)))
    return list(itertools.chain(*results))


def answers(side: str, count: int, concurrency: int) -> dict[str, Any]:
    """Answers so many requests; CPU seconds for all of it, and the most memory in kB."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        prompts = map("hello {}".format, range(count))
        if side.startswith("batch"):
            with source.open("w") as file:
                file.writelines(itertools.starmap(batch_line, enumerate(prompts)))
        settle_memory()
        begun = Moment()
        match side:
            case "batch":
                asyncio.run(by_batch(source, count, concurrency, "aiohttp"))
            case "batch, httpx":
                asyncio.run(by_batch(source, count, concurrency, "httpx"))
            case "bare aiohttp":
                asyncio.run(by_aiohttp(list(prompts), concurrency))
            case _:
                asyncio.run(by_openai(list(prompts), concurrency))
        return {"cpu": Moment().cpu - begun.cpu, "memory": memory_of(what="VmHWM")}


def batch_line(number: int, prompt: str) -> str:
    """A line of an input."""
    request = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": body_of(prompt)}) + "\n"


def body_of(prompt: str) -> dict[str, Any]:
    """A chat completion."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}


async def by_batch(source: Path, count: int, concurrency: int, transport: Any) -> None:
    """`client.run_batch`: from a file to a file, durable."""
    async with AsyncCortecs() as client:
        report = await client.run_batch(
            source, source.with_suffix(".out"), MODEL, concurrency=concurrency, transport=transport
        )
        assert report.succeeded == count


async def by_aiohttp(prompts: Sequence[str], concurrency: int) -> None:
    """As few lines of aiohttp as it takes: from memory to memory."""
    import aiohttp  # noqa: PLC0415  (the other sides leave it to what they measure)

    async with AsyncCortecs() as client, client.instance(MODEL) as inst:
        url = f"{inst.base_url}/chat/completions"
        headers = {"Authorization": f"Bearer {inst.openai_kwargs()['api_key']}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

            async def ask(prompt: str) -> str:
                async with session.post(url, json=body_of(prompt)) as answer:
                    text: str = (await answer.json())["choices"][0]["message"]["content"]
                    return text

            assert len(await spread_over(concurrency, ask, prompts)) == len(prompts)


async def by_openai(prompts: Sequence[str], concurrency: int) -> None:
    """`AsyncOpenAI`, a task a request, and a semaphore, as the tutorials have it."""
    semaphore = asyncio.Semaphore(concurrency)
    async with AsyncCortecs() as client, client.instance(MODEL) as inst, inst.openai() as llm:

        async def ask(prompt: str) -> str | None:
            async with semaphore:
                messages: Any = body_of(prompt)["messages"]
                answer = await llm.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
                return answer.choices[0].message.content

        assert all(await asyncio.gather(*map(ask, prompts)))


def main() -> None:
    """Runs a task."""
    match sys.argv[1:]:
        case ["leases", side, count]:
            result = leases(side, int(count))
        case ["memory", kind, count]:
            result = memory(kind, int(count))
        case ["bare", count]:
            result = asyncio.run(bare(int(count)))
        case ["answers", side, count, concurrency]:
            result = answers(side, int(count), int(concurrency))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
