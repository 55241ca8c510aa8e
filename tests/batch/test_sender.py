"""Test that senders honor the environment: proxies, NO_PROXY, ~/.netrc."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from attrs import define, field

from cortecs_async._batch.sender import Reply, SenderConfig
from cortecs_async._config import resolve_settings
from cortecs_async._http.messages import Failure, FailureKind
from cortecs_async._secrets import Hidden, Secret

pytestmark = [pytest.mark.sockets, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

TRANSPORTS = pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
ENDPOINT = "http://endpoint.test/v1"
LOGIN = "Basic " + base64.b64encode("someone:p@ss!wörd".encode()).decode()


@define
class Proxy:
    """Answers every request itself, and records it."""

    answer: bytes = b"200 OK"
    port: int = 0
    requests: list[tuple[str, dict[str, str]]] = field(factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        await reader.readexactly(int(headers.get("content-length", "0")))
        self.requests.append((head[0], headers))
        status = b"407 No" if head[0].startswith("CONNECT") else self.answer
        writer.write(b"HTTP/1.1 %s\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}" % status)
        await writer.drain()
        writer.close()


@asynccontextmanager
async def a_proxy(answer: bytes = b"200 OK") -> AsyncIterator[Proxy]:
    proxy = Proxy(answer)
    async with await asyncio.start_server(proxy.serve, "127.0.0.1", 0) as server:
        proxy.port = server.sockets[0].getsockname()[1]
        yield proxy


async def post(transport: Literal["aiohttp", "httpx"], base_url: str = ENDPOINT) -> Reply | Failure:
    settings = resolve_settings(
        client_id="id",
        client_secret=Secret("secret"),
        credential_provider=None,
        profile=None,
        anonymous=False,
        api_base_url=Hidden("https://api.test"),
        timeout=30.0,
        max_retries=None,
        retry_policy=None,
        poll_policy=None,
        default_headers=Hidden(None),
        allow_insecure_http=False,
        max_connections=10,
        transport="httpx",
        tag_starts=False,
    )
    config = SenderConfig(
        settings=settings, transport=transport, http_client=None, key=Secret("the-key"), timeout=20.0
    )
    async with aclosing(config.sender(base_url)) as sender:
        return await sender.post("/chat/completions", b'{"model":"m"}')


@TRANSPORTS
@pytest.mark.parametrize("name", ["HTTP_PROXY", "ALL_PROXY", "http_proxy"])
async def test_the_environments_proxy_is_used(
    transport: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_proxy() as proxy:
        monkeypatch.setenv(name, f"http://someone:p%40ss!w%C3%B6rd@127.0.0.1:{proxy.port}")
        outcome = await post(transport)
    assert isinstance(outcome, Reply)
    assert outcome.status == 200
    [(line, headers)] = proxy.requests
    assert line == "POST http://endpoint.test/v1/chat/completions HTTP/1.1"
    assert headers["authorization"] == "Bearer the-key"
    assert headers["proxy-authorization"] == LOGIN


@TRANSPORTS
async def test_a_redirect_is_not_followed(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A redirect must not send the inference key to another host."""
    async with a_proxy(b"307 Elsewhere\r\nlocation: http://elsewhere.test/v1/chat/completions") as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        await post(transport)
    [(line, _)] = proxy.requests
    assert line == "POST http://endpoint.test/v1/chat/completions HTTP/1.1"


@TRANSPORTS
@pytest.mark.parametrize(
    ("base_url", "exceptions"),
    [
        (ENDPOINT, "endpoint.test"),
        ("http://endpoint.test:8000/v1", "endpoint.test:8000"),
        ("http://127.0.0.1:9/v1", ""),
    ],
)
async def test_no_proxy_is_honored(
    transport: Any, base_url: str, exceptions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with a_proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        monkeypatch.setenv("NO_PROXY", exceptions)
        outcome = await post(transport, base_url)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.NOT_SENT
    assert proxy.requests == []


@TRANSPORTS
async def test_a_login_in_netrc_does_not_replace_the_key(
    transport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".netrc").write_text("default login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    async with a_proxy() as proxy:
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.port}")
        outcome = await post(transport)
    assert isinstance(outcome, Reply)
    [(_, headers)] = proxy.requests
    assert headers["authorization"] == "Bearer the-key"
    assert "proxy-authorization" not in headers


@TRANSPORTS
async def test_a_proxy_does_not_see_the_key(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with a_proxy() as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://someone:p%40ss!w%C3%B6rd@127.0.0.1:{proxy.port}")
        outcome = await post(transport, "https://endpoint.test/v1")
    assert isinstance(outcome, Failure)
    [(line, headers)] = proxy.requests
    assert line == "CONNECT endpoint.test:443 HTTP/1.1"
    assert headers["proxy-authorization"] == LOGIN
    assert "the-key" not in str(headers)
    assert "p%40ss" not in repr(outcome)
    assert "p@ss!wörd" not in repr(outcome)


@TRANSPORTS
async def test_the_password_of_a_proxy_is_not_shown(transport: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://someone:passw0rd@127.0.0.1:9")
    outcome = await post(transport)
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.NOT_SENT
    assert "passw0rd" not in repr(outcome)


async def test_other_kinds_of_proxy_use_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "https://someone:passw0rd@127.0.0.1:9")
    outcome = await post("aiohttp")
    assert isinstance(outcome, Failure)
    assert "passw0rd" not in repr(outcome)
    assert outcome.detail.startswith("ConnectError")  # aiohttp has another name for it
