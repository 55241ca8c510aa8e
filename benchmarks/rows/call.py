"""Measure a call, compared with the bare request that it sends."""

from __future__ import annotations

import asyncio
import json
import os

import aiohttp
import httpx
from _measure import Samples, alternate, quotients
from _report import Row, ratio, spread_table
from _server import MODEL, Server
from cortecs_py import Cortecs

from cortecs_async import AsyncCortecs

BARE = "bare httpx"
OURS = "ours"
OURS_AIOHTTP = "ours, transport aiohttp"
PEER = "cortecs-py"
BARE_AIOHTTP = "bare aiohttp"

_ROUNDS, _BATCH, _WARM_UP = 120, 20, 5


async def measured(server: Server) -> Samples:
    """Return the CPU seconds of a `GET /instances/{id}` whose response is decoded, by round."""
    async with (
        AsyncCortecs(guard="off", journal="off") as client,
        AsyncCortecs(guard="off", journal="off", transport="aiohttp") as client_aiohttp,
        httpx.AsyncClient() as bare,
        aiohttp.ClientSession() as bare_aiohttp,
    ):
        instance_id = (await client.instances.start(MODEL)).instance_id
        url = f"{server.url}/instances/{instance_id}"
        token = (await bare.post(f"{server.url}/oauth2/token", json=server.token_request)).json()
        headers = {"Authorization": f"Bearer {token['access_token']}"}
        peer = Cortecs()

        async def with_httpx() -> None:
            assert json.loads((await bare.get(url, headers=headers)).content)["instance"]

        async def with_aiohttp() -> None:
            async with bare_aiohttp.get(url, headers=headers) as response:
                assert json.loads(await response.read())["instance"]

        async def with_peer() -> None:
            # This blocks the event loop, which has nothing else to do.
            assert peer.get_instance(instance_id).instance_id == instance_id

        async def ours() -> None:
            assert (await client.instances.get(instance_id)).instance_id == instance_id

        async def ours_aiohttp() -> None:
            assert (await client_aiohttp.instances.get(instance_id)).instance_id == instance_id

        sides = {
            BARE: with_httpx,
            OURS: ours,
            OURS_AIOHTTP: ours_aiohttp,
            PEER: with_peer,
            BARE_AIOHTTP: with_aiohttp,
        }
        before = server.counts().get("get", 0)
        samples = await alternate(sides, rounds=_ROUNDS, batch=_BATCH, warm_up=_WARM_UP)
        assert server.counts()["get"] - before == len(sides) * (_ROUNDS + _WARM_UP) * _BATCH
        await client.instances.stop(instance_id)
        await client.instances.delete(instance_id)
    assert server.existing() == 0
    return samples


def row() -> Row:
    """Measure `client.instances.get`."""
    with Server() as server:
        os.environ.update(server.env)
        samples = asyncio.run(measured(server))
    ratios = [
        ratio(f"{OURS} / {BARE}", quotients(samples, OURS, BARE), 1.15),
        ratio(f"{OURS_AIOHTTP} / {BARE}", quotients(samples, OURS_AIOHTTP, BARE)),
        ratio(f"{PEER} / {BARE}", quotients(samples, PEER, BARE)),
        ratio(f"{BARE_AIOHTTP} / {BARE}", quotients(samples, BARE_AIOHTTP, BARE)),
        ratio(f"{OURS} / {PEER}", quotients(samples, OURS, PEER)),
        ratio(f"{OURS_AIOHTTP} / {BARE_AIOHTTP}", quotients(samples, OURS_AIOHTTP, BARE_AIOHTTP), 1.7),
    ]
    return Row(
        name="call",
        title="A call",
        text=f"""
            `client.instances.get(...)`, which returns a typed instance, compared with the same request and
            `json.loads`. The calls run one after another, in batches of {_BATCH}, on one connection.
            cortecs-py opens a connection per request.

            More expensive: every client on httpx, ours included, takes more CPU time than bare aiohttp. Our
            client adds these to its transport: the token, the limit of `max_connections` requests, the
            deadline, retries, and decoding into validated types.
        """,
        ratios=ratios,
        tables=[spread_table("side", "CPU per call, µs", samples, 1e6)],
    )
