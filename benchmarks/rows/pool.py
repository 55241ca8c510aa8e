"""Measure requests in parallel."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
from _measure import freeze_memory
from _report import Row, Table, ratio
from _server import Server

from cortecs_async import AsyncCortecs

# Requests in parallel: rounds.
_SCHEDULE = {10: 7, 100: 5}
_MIN_REQUESTS = 300
# Requests per worker: enough that the end, when fewer workers are busy, hardly counts.
_REQUESTS_PER_WORKER = 3

Pace = tuple[float, float]


async def pace(work: Callable[[], Awaitable[object]], concurrency: int, requests: int) -> Pace:
    """Return the requests per second, and the CPU seconds per request."""
    numbers = iter(range(requests))

    async def worker() -> None:
        for _ in numbers:
            await work()

    began, cpu_before = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return requests / (time.perf_counter() - began), (time.process_time() - cpu_before) / requests


async def measured(server: Server, concurrency: int, *, reverse: bool) -> dict[str, Pace]:
    """Return the paces of bare httpx and of our client in one round.

    The clients are new, because the pace of a pool depends on the order in which it opened its connections.
    """
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        AsyncCortecs(guard="off", journal="off") as client,
        httpx.AsyncClient(limits=limits, timeout=60) as bare,
    ):
        token = (await bare.post(f"{server.url}/oauth2/token", json=server.token_request)).json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        url = f"{server.url}/user/balance"

        async def with_httpx() -> None:
            assert json.loads((await bare.get(url, headers=headers)).content)["currency"]

        async def ours() -> None:
            assert (await client.user.balance()).currency

        sides = {"bare httpx": with_httpx, "ours": ours}
        for work in sides.values():
            await pace(work, concurrency, 2 * concurrency)
        freeze_memory()
        requests = max(_MIN_REQUESTS, _REQUESTS_PER_WORKER * concurrency)
        return {
            name: await pace(sides[name], concurrency, requests) for name in sorted(sides, reverse=reverse)
        }


def row() -> Row:
    """Measure several concurrencies."""
    ratios, lines = [], []
    with Server() as server:
        os.environ.update(server.env)
        for concurrency, rounds in _SCHEDULE.items():
            paces = [
                asyncio.run(measured(server, concurrency, reverse=bool(number % 2)))
                for number in range(rounds)
            ]
            label = f"ours / bare httpx, {concurrency} in parallel: CPU per request"
            ratios.append(ratio(label, [each["ours"][1] / each["bare httpx"][1] for each in paces]))
            for name in ("bare httpx", "ours"):
                rate, cpu = (
                    statistics.median(each) for each in zip(*(pace[name] for pace in paces), strict=True)
                )
                lines.append((f"{concurrency}", name, f"{rate:.0f}", f"{cpu * 1e6:.0f}", str(rounds)))
    return Row(
        name="pool",
        title="Requests in parallel",
        text="""
            `client.user.balance()` in parallel without pauses, compared with the same request in one
            `httpx.AsyncClient` whose pool has no limits.

            A request gets more expensive with each connection in a pool of httpx, because the pool searches
            all of its connections whenever a request starts or ends. Our client therefore spreads its
            requests over small pools, and limits how many it sends in parallel.
        """,
        ratios=ratios,
        tables=[
            Table(("in parallel", "side", "requests per second", "CPU per request, µs", "rounds"), lines)
        ],
    )
