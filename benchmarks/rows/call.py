"""A call beside the request that it makes."""

from __future__ import annotations

import asyncio
import json
import os

import aiohttp
import httpx
from _measure import Samples, alternate, quotients, spread
from _report import Row, Table, ratio
from _server import MODEL, Server
from cortecs_py import Cortecs

from cortecs_async import AsyncCortecs

BARE = "bare httpx"
OURS = "ours"
OURS_FASTER = "ours, transport aiohttp"
PEER = "cortecs-py"
FLOOR = "bare aiohttp"

_ROUNDS, _BATCH, _WARM_UP = 120, 20, 5


async def measured(server: Server) -> Samples:
    """CPU seconds a `GET /instances/{id}`, its answer decoded."""
    async with (
        AsyncCortecs(guard="off", journal="off") as client,
        AsyncCortecs(guard="off", journal="off", transport="aiohttp") as faster,
        httpx.AsyncClient() as bare,
        aiohttp.ClientSession() as floor,
    ):
        instance_id = (await client.instances.start(MODEL)).instance_id
        url = f"{server.url}/instances/{instance_id}"
        token = (await bare.post(f"{server.url}/oauth2/token", json=server.token_request)).json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        peer = Cortecs()

        async def with_httpx() -> None:
            assert json.loads((await bare.get(url, headers=headers)).content)["instance"]

        async def with_aiohttp() -> None:
            async with floor.get(url, headers=headers) as answer:
                assert json.loads(await answer.read())["instance"]

        async def with_peer() -> None:
            # It blocks the loop, in which there is nothing else to do.
            assert peer.get_instance(instance_id).instance_id == instance_id

        async def ours() -> None:
            assert (await client.instances.get(instance_id)).instance_id == instance_id

        async def ours_faster() -> None:
            assert (await faster.instances.get(instance_id)).instance_id == instance_id

        sides = {
            BARE: with_httpx,
            OURS: ours,
            OURS_FASTER: ours_faster,
            PEER: with_peer,
            FLOOR: with_aiohttp,
        }
        before = server.counts().get("get", 0)
        samples = await alternate(sides, rounds=_ROUNDS, batch=_BATCH, warm_up=_WARM_UP)
        assert server.counts()["get"] - before == len(sides) * (_ROUNDS + _WARM_UP) * _BATCH
        await client.instances.stop(instance_id)
        await client.instances.delete(instance_id)
    assert server.existing() == 0
    return samples


def row() -> Row:
    """`client.instances.get` beside the others."""
    with Server() as server:
        os.environ.update(server.env)
        samples = asyncio.run(measured(server))
    ratios = [
        ratio(f"{OURS} / {BARE}", quotients(samples, OURS, BARE), 1.15),
        ratio(f"{OURS_FASTER} / {BARE}", quotients(samples, OURS_FASTER, BARE)),
        ratio(f"{PEER} / {BARE}", quotients(samples, PEER, BARE)),
        ratio(f"{FLOOR} / {BARE}", quotients(samples, FLOOR, BARE)),
        ratio(f"{OURS} / {PEER}", quotients(samples, OURS, PEER)),
        ratio(f"{OURS_FASTER} / {FLOOR}", quotients(samples, OURS_FASTER, FLOOR)),
    ]
    lines = []
    for name, values in samples.items():
        found = spread(values)
        lines.append(
            (
                name,
                f"{found.median * 1e6:.0f}",
                f"{found.low * 1e6:.0f} to {found.high * 1e6:.0f}",
                str(found.rounds),
            )
        )
    return Row(
        name="call",
        title="A call",
        text="""
            `client.instances.get(...)`, which returns a typed instance, beside the same request with
            nothing but `json.loads` around it. One call after the other, on a connection that is kept
            (cortecs-py opens one for each request), 20 in a batch.

            Slower than a peer: every client on httpx, ours too, takes more than bare aiohttp. What ours
            adds to its transport is the token, the turn among at most `max_connections` requests, the
            deadline, the retry and the decoding into checked types.
        """,
        ratios=ratios,
        tables=[Table(("side", "CPU a call, µs", "quartiles", "rounds"), lines)],
    )
