"""What goes through a proxy, and whose: that of the environment, or that of the caller's own client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import httpx
import pytest

from cortecs_async import AsyncCortecs, errors

pytestmark = pytest.mark.sockets


@asynccontextmanager
async def a_proxy() -> AsyncIterator[tuple[str, list[bytes]]]:
    """Its URL, and the first line of what each connection asks for, which it refuses."""
    asked: list[bytes] = []

    async def refuse(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            login = base64.b64encode(b"someone:passw0rd")
            assert b"proxy-authorization: basic " + login.lower() in head.lower()
            asked.append(head.split(b"\r\n")[0])
            await stream.send(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n")

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, refuse)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)
        yield f"http://someone:passw0rd@127.0.0.1:{port}", asked
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
async def test_the_environments(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    async with a_proxy() as (url, asked):
        monkeypatch.setenv(name, url)
        async with AsyncCortecs(anonymous=True, max_retries=0) as client:
            with pytest.raises(errors.TransportError) as caught:
                await client.models.list()
    assert asked == [b"CONNECT cortecs.ai:443 HTTP/1.1"]
    assert "passw0rd" not in str(caught.value)
    assert not caught.value.outcome_unknown


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_environments_on_aiohttp(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp")
    async with a_proxy() as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", url)
        async with AsyncCortecs(anonymous=True, max_retries=0, transport="aiohttp") as client:
            with pytest.raises(
                errors.TransportError, match="the proxy rejected the connection: 403"
            ) as caught:
                await client.models.list()
    assert asked == [b"CONNECT cortecs.ai:443 HTTP/1.1"]
    assert "passw0rd" not in str(caught.value)
    assert not caught.value.outcome_unknown


async def test_the_callers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_proxy() as (other, theirs), a_proxy() as (url, asked):
        monkeypatch.setenv("HTTPS_PROXY", other)
        async with (
            httpx.AsyncClient(proxy=url) as http,
            AsyncCortecs(anonymous=True, max_retries=0, http_client=http) as client,
        ):
            with pytest.raises(errors.TransportError) as caught:
                await client.models.list()
    assert asked == [b"CONNECT cortecs.ai:443 HTTP/1.1"]
    assert theirs == []
    assert "passw0rd" not in str(caught.value)
