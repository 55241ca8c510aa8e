"""TCP keep-alive on all connections that wait for long answers: NAT gateways forget silent ones."""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import anyio
import pytest
from _processes import PROC

from cortecs_async import AsyncCortecs
from cortecs_async._batch.sender import SenderConfig
from cortecs_async._secrets import Secret
from cortecs_async.emulator import Emulator, serve_emulator

pytestmark = [
    pytest.mark.sockets,
    pytest.mark.skipif(not (PROC / "self" / "fd").exists(), reason="reads /proc"),
]

OPTIONS = {
    "SO_KEEPALIVE": (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    "TCP_KEEPIDLE": (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
}


def connections_to(port: int) -> list[dict[str, int]]:
    """Return the options of all connections of this process to a port of this machine."""
    found = []
    for path in list((PROC / "self" / "fd").iterdir()):
        try:
            with socket.socket(fileno=os.dup(int(path.name))) as each:
                if each.getpeername() == ("127.0.0.1", port):
                    found.append({option: each.getsockopt(*key) for option, key in OPTIONS.items()})
        except OSError:
            continue  # not a socket, not connected, or already closed
    return found


@asynccontextmanager
async def served(**options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
    async with serve_emulator(step_seconds=0.0) as emu:
        async with AsyncCortecs(
            emu.client_id,
            emu.client_secret,
            api_base_url=emu.api_base_url,
            guard="off",
            journal="off",
            **options,
        ) as client:
            yield emu, client


def port_of(emu: Emulator) -> int:
    return int(emu.root_url.rpartition(":")[2])


@pytest.mark.parametrize(
    ("anyio_backend", "transport"), [("asyncio", "httpx"), ("trio", "httpx"), ("asyncio", "aiohttp")]
)
async def test_on_the_connections_of_a_client(anyio_backend: str, transport: str) -> None:
    async with served(transport=transport) as (emu, client):
        await client.models.list()
        found = connections_to(port_of(emu))
    assert found == [{"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60}]


@pytest.mark.parametrize(
    ("anyio_backend", "transport"), [("asyncio", "httpx"), ("trio", "httpx"), ("asyncio", "aiohttp")]
)
async def test_on_the_connections_of_a_batch(anyio_backend: str, transport: Any) -> None:
    async with served() as (emu, client):
        config = SenderConfig(
            settings=client._settings, transport=transport, http_client=None, key=Secret("key"), timeout=20.0
        )
        async with aclosing(config.sender(emu.api_base_url)) as sender:
            with anyio.fail_after(20.0):
                await sender.post("/chat/completions", b"{}")
            found = connections_to(port_of(emu))
    assert found == [{"SO_KEEPALIVE": 1, "TCP_KEEPIDLE": 60}]
