"""An `http_client` of httpx2, which openai 3 and others install: it behaves like one of httpx."""

from __future__ import annotations

import gzip
import json
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from _grids import BACKENDS, grid
from _leaks import leaks
from _scripted import API, CLIENT_ID, SECRET, TOKEN, Answer, Service, ok
from _world import HARDWARE, MODEL

from cortecs_async import AsyncCortecs, ConfigurationError, RetryPolicy
from cortecs_async._http.connections import kind_of
from cortecs_async.emulator import serve_emulator
from cortecs_async.errors import CortecsError

LIBRARIES = {"httpx": httpx, "httpx2": httpx2}


def client_of(library: Any, service: Service, **options: Any) -> Any:
    """Return a client of either library whose requests the scripted service answers."""

    async def respond(request: Any) -> Any:
        sent = httpx.Request(
            request.method, str(request.url), headers=request.headers.raw, content=request.content
        )
        try:
            found = await service(sent)
        except httpx.TransportError as error:
            raise getattr(library, type(error).__name__)(str(error), request=request) from None
        return library.Response(found.status_code, headers=found.headers.raw, content=found.content)

    return library.AsyncClient(transport=library.MockTransport(respond), **options)


@asynccontextmanager
async def connected(library: Any, service: Service, **options: Any) -> AsyncIterator[AsyncCortecs]:
    async with (
        client_of(library, service) as http,
        AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http, **options) as client,
    ):
        yield client


SCRIPTS: dict[str, list[Answer]] = {
    "no connection": [Answer(failure=httpx.ConnectError)],
    "no connection in time": [Answer(failure=httpx.ConnectTimeout)],
    "no free connection": [Answer(failure=httpx.PoolTimeout)],
    "a proxy that fails": [Answer(failure=httpx.ProxyError)],
    "a lost connection": [Answer(failure=httpx.ReadError)],
    "a cut response": [Answer(failure=httpx.RemoteProtocolError)],
    "no response in time": [Answer(failure=httpx.ReadTimeout)],
    "a slow response": [Answer(delay=1000.0)],
    "a redirect elsewhere": [Answer(status=307, headers={"Location": "https://elsewhere.test/"})],
    "a redirect to no URL": [Answer(status=307, headers={"Location": "https://[/"})],
    "no capacity": [Answer(status=503, json={"message": "No capacity"})],
    "too many requests": [Answer(status=429, headers={"Retry-After": "1000"})],
    "a refused token": [Answer(status=401)],
    "HTML": [Answer(content=b"<html>")],
    "unreadable compression": [Answer(content=b"{}", headers={"Content-Encoding": "br"})],
}


async def outcome(library: Any, script: str, *, method: str) -> tuple[Any, ...]:
    """Return what a failing request does with a client of this library."""
    service = Service()
    service.on(
        *{"list": ("GET", "/instances/"), "start": ("POST", "/instances/start")}[method], *SCRIPTS[script]
    )
    retry_policy = RetryPolicy(max_retries=2, initial_backoff=0.0)
    async with connected(library, service, retry_policy=retry_policy) as client:
        began = anyio.current_time()
        with pytest.raises(CortecsError) as caught:
            await (client.instances.list() if method == "list" else client.instances.start("a/b"))
        seconds = anyio.current_time() - began
    assert leaks(caught.value, SECRET, TOKEN) == []
    return (
        type(caught.value),
        str(caught.value),
        getattr(caught.value, "outcome_unknown", None),
        service.routes,
        seconds,
    )


@grid(strength=1, script=SCRIPTS, method=["list", "start"], anyio_backend=BACKENDS)
async def test_failures_are_the_same(script: str, method: str) -> None:
    assert await outcome(httpx2, script, method=method) == await outcome(httpx, script, method=method)


async def test_what_is_sent_is_the_same() -> None:
    sent = []
    for library in (httpx, httpx2):
        service = Service()
        service.on("GET", "/instances/instance-1", Answer(status=307, headers={"Location": "/v1/x"}))
        service.on("GET", "/x", ok())
        options = {"default_headers": {"X-Team": "blue"}, "timeout": 5.0}
        async with connected(library, service, **options) as client:
            assert (await client.instances.get("instance-1")).instance_id == "instance-1"
        sent.append(
            [
                (each.method, str(each.url), each.content, sorted(each.headers.items()))
                for each in service.requests
            ]
        )
    for _, _, _, headers in sent[1]:
        assert "gzip, deflate" in dict(headers)["accept-encoding"]
    assert sent[0] == sent[1]


async def test_a_compressed_response_is_read() -> None:
    service = Service()
    body = gzip.compress(json.dumps({"instances": []}).encode())

    async def respond(request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(200, json={"access_token": TOKEN})
        return httpx2.Response(200, content=body, headers={"Content-Encoding": "gzip"})

    async with (
        httpx2.AsyncClient(transport=httpx2.MockTransport(respond)) as http,
        AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http) as client,
    ):
        assert await client.instances.list() == ()
    assert service.requests == []


class Broken(httpx2.AsyncBaseTransport):
    """Raises an error that is not one of HTTP, with the request among the locals of its frame."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.method == "POST":
            return httpx2.Response(200, json={"access_token": TOKEN})
        raise_it(dict(request.headers))
        raise AssertionError


def raise_it(headers: dict[str, str]) -> None:
    assert TOKEN in str(headers)
    raise RuntimeError("broken")


async def test_another_error_of_the_callers_client_shows_no_token() -> None:
    async with (
        httpx2.AsyncClient(transport=Broken()) as http,
        AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http) as client,
    ):
        with pytest.raises(RuntimeError, match="broken") as caught:
            await client.instances.list()
    # The frames remain, to find the bug with, but without their locals.
    (frame,) = [
        each for each, _ in traceback.walk_tb(caught.value.__traceback__) if each.f_code.co_name == "raise_it"
    ]
    assert frame.f_locals == {}
    assert leaks(caught.value) == []


@pytest.mark.parametrize(
    "given",
    [httpx.Client, httpx2.Client, object, str, lambda: httpx.AsyncClient],
    ids=["httpx.Client", "httpx2.Client", "object", "str", "class"],
)
def test_anything_else_is_refused_at_once(given: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=r"http_client must be an httpx\.AsyncClient or an httpx2\.Async"
    ):
        AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=given())


def test_without_httpx2_errors_of_httpx_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "httpx2")
    assert kind_of(httpx.ReadError("x")) is not None
    assert kind_of(httpx2.ReadError("x")) is None


@pytest.mark.sockets
async def test_a_lease_and_a_batch_over_sockets(tmp_path: Path) -> None:
    async with serve_emulator(step_seconds=0.0) as emu, httpx2.AsyncClient() as http:
        async with AsyncCortecs(
            emu.client_id,
            emu.client_secret,
            api_base_url=emu.api_base_url,
            guard="off",
            journal="off",
            http_client=http,
        ) as client:
            async with client.instance(MODEL, HARDWARE) as inst:
                assert inst.instance_id in emu.existing
            assert emu.existing == ()
            line = {"custom_id": "a", "method": "POST", "url": "/v1/chat/completions"}
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 3}
            (tmp_path / "in.jsonl").write_text(json.dumps({**line, "body": body}))
            report = await client.run_batch(
                tmp_path / "in.jsonl", tmp_path / "out.jsonl", MODEL, HARDWARE, api_key=emu.api_key
            )
            assert report.succeeded == 1
