"""Many requests at once."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
from collections.abc import Awaitable, Callable

import httpx
from _measure import settle_memory
from _report import Row, Table, ratio
from _server import Server

from cortecs_async import AsyncCortecs

# How many at once, and how many rounds.
_SCHEDULE = {10: 7, 50: 7, 100: 5, 200: 4}
_LEAST_REQUESTS = 300
# Enough of them that the end, when fewer and fewer are under way, is a small part of it.
_REQUESTS_EACH = 3

Pace = tuple[float, float]


async def pace(work: Callable[[], Awaitable[object]], concurrency: int, requests: int) -> Pace:
    """Requests a second, and CPU seconds a request."""
    left = iter(range(requests))

    async def worker() -> None:
        for _ in left:
            await work()

    wall, cpu = time.perf_counter(), time.process_time()
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    return requests / (time.perf_counter() - wall), (time.process_time() - cpu) / requests


async def measured(server: Server, concurrency: int, *, reverse: bool) -> dict[str, Pace]:
    """One round: the paces of bare httpx and of ours.

    With new clients, because the pace of a pool depends on the order in which its connections came to be.
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
        settle_memory()
        requests = max(_LEAST_REQUESTS, _REQUESTS_EACH * concurrency)
        return {
            name: await pace(sides[name], concurrency, requests) for name in sorted(sides, reverse=reverse)
        }


def row() -> Row:
    """Requests a second over concurrency."""
    ratios, lines = [], []
    with Server() as server:
        os.environ.update(server.env)
        for concurrency, rounds in _SCHEDULE.items():
            paces = [
                asyncio.run(measured(server, concurrency, reverse=bool(number % 2)))
                for number in range(rounds)
            ]
            label = f"ours / bare httpx, {concurrency} at once: CPU a request"
            ratios.append(ratio(label, [each["ours"][1] / each["bare httpx"][1] for each in paces]))
            for name in ("bare httpx", "ours"):
                rate, cpu = (statistics.median(each) for each in zip(*(x[name] for x in paces), strict=True))
                lines.append((f"{concurrency}", name, f"{rate:.0f}", f"{cpu * 1e6:.0f}", str(rounds)))
    return Row(
        name="pool",
        title="Many requests at once",
        text="""
            `client.user.balance()` beside the same request in one `httpx.AsyncClient` whose pool is not
            bounded, so many at once without a pause.

            The more connections one pool of httpx has, the dearer is each request, because it looks
            through all of them whenever a request begins or ends. So ours spreads its requests over small
            pools, and bounds how many are under way.
        """,
        ratios=ratios,
        tables=[Table(("at once", "side", "requests a second", "CPU a request, µs", "rounds"), lines)],
    )
