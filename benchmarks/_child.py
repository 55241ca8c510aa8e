"""Run one task in a fresh process and print its result as JSON: `python _child.py TASK ARGUMENT...`.

The tasks are `leases SIDE COUNT`, `memory KIND COUNT`, `bare COUNT`, `chat SIDE COUNT CONCURRENCY`, and
`hold`, which holds a lease until it is killed. The environment variables of the SDK point at the emulator.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import importlib
import itertools
import json
import os
import pkgutil
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
from _measure import children_cpu, freeze_memory, memory_of
from _server import MODEL

from cortecs_async import AsyncCortecs

OURS = {"ours": "httpx", "ours, aiohttp": "aiohttp"}
"""The names of our sides in the report, and their transports."""

PEER = "cortecs-py"

_CONCURRENCIES = (2, 5, 10, 20)


@attrs.frozen
class Clocks:
    """The clocks at one moment. The monotonic clock is the same in every process."""

    monotonic: float = attrs.field(factory=time.monotonic)
    cpu: float = attrs.field(factory=lambda: time.process_time() + children_cpu())


def leases(side: str, count: int) -> dict[str, Any]:
    """Start `count` leases in parallel, release them when all are running, and return what that costs."""
    return peer_leases(count) if side == PEER else asyncio.run(our_leases(OURS[side], count))


def cost(before: Clocks, released: Clocks, memory_before: int) -> dict[str, Any]:
    """Return the cost of a run until now: times in seconds, memory in kB."""
    return {
        "began": before.monotonic,
        "released": released.monotonic,
        "elapsed": released.monotonic - before.monotonic,
        "cpu": Clocks().cpu - before.cpu,
        "memory": memory_of(field="VmHWM") - memory_before,
    }


async def our_leases(transport: Any, count: int) -> dict[str, Any]:
    """Measure our client with its defaults, which include the reaper and the journal."""
    import_everything()
    async with AsyncCortecs(transport=transport) as client:
        assert await client.models.list()
    freeze_memory()
    memory_before = memory_of(field="VmHWM")
    before = Clocks()
    async with AsyncCortecs(transport=transport) as client:
        all_running = asyncio.Event()
        entered = 0

        async def lease() -> None:
            nonlocal entered
            async with client.instance(MODEL):
                entered += 1
                if entered == count:
                    all_running.set()
                await all_running.wait()

        async with asyncio.TaskGroup() as tasks:
            for _ in range(count):
                tasks.create_task(lease())
        released = Clocks()
    # After the client is closed, so that the CPU time of its reaper counts.
    return cost(before, released, memory_before)


def import_everything() -> None:
    """Import all modules that a lease may need, because neither side's imports count."""
    for package in ("_aio", "_api", "_client", "_http", "_lease", "_recovery"):
        path = importlib.import_module(f"cortecs_async.{package}").__path__
        for module in pkgutil.walk_packages(path, f"cortecs_async.{package}."):
            with contextlib.suppress(ImportError):  # optional dependencies
                importlib.import_module(module.name)


def peer_leases(count: int) -> dict[str, Any]:
    """Measure the vendor's client as its users call it: one client, one thread per lease, its own polling."""
    from cortecs_py import Cortecs  # noqa: PLC0415  (only this side has it in memory)

    client = Cortecs()

    def release(instance: Any) -> None:
        client.stop(instance.instance_id)
        client.delete(instance.instance_id)

    freeze_memory()
    memory_before = memory_of(field="VmHWM")
    before = Clocks()
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        instances = list(threads.map(client.start, [MODEL] * count))
        list(threads.map(release, instances))
    return cost(before, Clocks(), memory_before)


async def hold() -> None:
    """Hold a lease until this process is killed, and report when it is running and sends no requests."""
    async with AsyncCortecs() as client, client.instance(MODEL):
        # By then, the first status check is done. The next one is ten seconds later.
        await asyncio.sleep(3)
        print("running", flush=True)
        await asyncio.Event().wait()


async def waiting_memory(kind: str, count: int) -> dict[str, Any]:
    """Return the bytes per lease while `count` leases wait for their instances."""
    async with AsyncCortecs() as client:

        async def wait() -> None:
            async with client.instance(MODEL):
                raise AssertionError("no instance ever runs here")

        async def begin(number: int) -> list[asyncio.Task[None]]:
            tasks = [asyncio.create_task(wait()) for _ in range(number)]
            # Poll the service, because a lease reports nothing while it waits.
            while len(await client.instances.list()) < number:  # noqa: ASYNC110
                await asyncio.sleep(0.2)
            # Wait for the first polls. After them, nothing changes.
            await asyncio.sleep(1.2)
            return tasks

        async def end(tasks: list[asyncio.Task[None]]) -> None:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            assert not await client.instances.list()

        # Load all that the client has only once: modules, converters, the reaper, and its connections.
        await end(await begin(150))
        if kind == "tracemalloc":
            tracemalloc.start()
        before = allocated(kind)
        tasks = await begin(count)
        samples = []
        for _ in range(5):
            # At different moments, because a response may be arriving.
            await asyncio.sleep(0.23)
            samples.append(allocated(kind))
        await end(tasks)
        return {"bytes": (statistics.median(samples) - before) / count}


def allocated(kind: str) -> int:
    """Return the bytes that this process holds."""
    gc.collect()
    if kind == "tracemalloc":
        return tracemalloc.get_traced_memory()[0]
    return memory_of() * 1024


async def bare(count: int) -> dict[str, Any]:
    """Return the requests per second of bare httpx: small GETs, and the requests of `count` leases."""
    import httpx  # noqa: PLC0415  (in the other tasks, the import belongs to what they measure)

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
            response = await client.post("/instances/start", json={"model_id": MODEL.replace("/", "--")})
            instance_id: str = json.loads(response.raise_for_status().content)["instance"]["instance_id"]
            return instance_id

        async def stop(instance_id: str) -> None:
            response = await client.post("/instances/stop", json={"instance_id": instance_id})
            assert json.loads(response.raise_for_status().content)["instance"]

        async def delete(instance_id: str) -> None:
            response = await client.delete(f"/instances/{instance_id}")
            assert json.loads(response.raise_for_status().content)["instance_id"] == instance_id

        await run_concurrently(20, get, range(200))
        rates: dict[int, list[float]] = {concurrency: [] for concurrency in _CONCURRENCIES}
        for _ in range(3):
            for concurrency, samples in rates.items():
                began = time.perf_counter()
                await run_concurrently(concurrency, get, range(200))
                samples.append(200 / (time.perf_counter() - began))
        medians = {concurrency: statistics.median(samples) for concurrency, samples in rates.items()}
        best = max(medians, key=lambda concurrency: medians[concurrency])
        began = time.perf_counter()
        ids = await run_concurrently(best, start, range(count))
        await run_concurrently(best, stop, ids)
        await run_concurrently(best, delete, ids)
        mixed = 3 * count / (time.perf_counter() - began)
    return {"concurrency": best, "get": medians[best], "mix": mixed}


async def run_concurrently(concurrency: int, work: Callable[[Any], Awaitable[Any]], items: Any) -> list[Any]:
    """Call `work` for every item, and return the results in no particular order."""
    iterator = iter(items)

    async def worker() -> list[Any]:
        return [await work(item) for item in iterator]

    results = await asyncio.gather(*(worker() for _ in range(concurrency)))
    return list(itertools.chain(*results))


def chat(side: str, count: int, concurrency: int | Literal["auto"]) -> dict[str, Any]:
    """Send `count` chat completions, and return the CPU seconds and the peak memory in kB."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "in.jsonl")
        prompts = map("hello {}".format, range(count))
        if side.startswith("batch"):
            with source.open("w") as file:
                file.writelines(itertools.starmap(batch_line, enumerate(prompts)))
        freeze_memory()
        before = Clocks()
        match side:
            case "batch":
                asyncio.run(with_batch(source, count, concurrency, "aiohttp"))
            case "batch, httpx":
                asyncio.run(with_batch(source, count, concurrency, "httpx"))
            case "bare aiohttp":
                asyncio.run(with_aiohttp(list(prompts), int(concurrency)))
            case _:
                asyncio.run(with_openai(list(prompts), int(concurrency)))
        return {"cpu": Clocks().cpu - before.cpu, "memory": memory_of(field="VmHWM")}


def batch_line(number: int, prompt: str) -> str:
    """Return a line of a batch's input."""
    request = {"custom_id": f"request-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**request, "body": chat_body(prompt)}) + "\n"


def chat_body(prompt: str) -> dict[str, Any]:
    """Return the body of a chat completion."""
    return {"model": MODEL, "messages": [{"role": "user", "content": prompt}], "max_tokens": 8}


async def with_batch(source: Path, count: int, concurrency: int | Literal["auto"], transport: Any) -> None:
    """Send the requests with `client.run_batch`, from a file to a file."""
    async with AsyncCortecs() as client:
        report = await client.run_batch(
            source,
            source.with_suffix(".out"),
            MODEL,
            concurrency=concurrency,
            transport=transport,
            ready="status",  # without a test request, which the other sides do not send either
        )
        assert report.succeeded == count


async def with_aiohttp(prompts: Sequence[str], concurrency: int) -> None:
    """Send the requests with as little code around aiohttp as possible, from memory to memory."""
    import aiohttp  # noqa: PLC0415  (for the other sides, the import belongs to what they measure)

    async with AsyncCortecs() as client, client.instance(MODEL) as inst:
        url = f"{inst.base_url}/chat/completions"
        headers = {"Authorization": f"Bearer {inst.openai_kwargs()['api_key']}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), headers=headers) as session:

            async def ask(prompt: str) -> str:
                async with session.post(url, json=chat_body(prompt)) as response:
                    text: str = (await response.json())["choices"][0]["message"]["content"]
                    return text

            assert len(await run_concurrently(concurrency, ask, prompts)) == len(prompts)


async def with_openai(prompts: Sequence[str], concurrency: int) -> None:
    """Send the requests as in tutorials: with `AsyncOpenAI`, one task per request, and a semaphore."""
    semaphore = asyncio.Semaphore(concurrency)
    async with AsyncCortecs() as client, client.instance(MODEL) as inst, inst.openai() as llm:

        async def ask(prompt: str) -> str | None:
            async with semaphore:
                messages: Any = chat_body(prompt)["messages"]
                completion = await llm.chat.completions.create(model=MODEL, messages=messages, max_tokens=8)
                return completion.choices[0].message.content

        assert all(await asyncio.gather(*map(ask, prompts)))


def main() -> None:
    """Run the task on the command line."""
    match sys.argv[1:]:
        case ["leases", side, count]:
            result = leases(side, int(count))
        case ["memory", kind, count]:
            result = asyncio.run(waiting_memory(kind, int(count)))
        case ["hold"]:
            asyncio.run(hold())
            raise AssertionError("it was not killed")
        case ["bare", count]:
            result = asyncio.run(bare(int(count)))
        case ["chat", side, count, concurrency]:
            result = chat(side, int(count), "auto" if concurrency == "auto" else int(concurrency))
        case _:
            raise SystemExit(__doc__)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
