"""Our own connections, on httpx and on aiohttp: they send and read the same, and the next request works."""

from __future__ import annotations

import functools
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
import respx
from _scripted import API, CLIENT_ID, SECRET, TOKEN

from cortecs_async import AsyncCortecs, errors
from cortecs_async._http.exchange import AiohttpExchange, Exchange, HttpxExchange, Request
from cortecs_async._http.messages import Call

TRANSPORTS = pytest.mark.parametrize(
    ("anyio_backend", "transport"), [("asyncio", "httpx"), ("trio", "httpx"), ("asyncio", "aiohttp")]
)

MODELS = json.dumps({"models": []}).encode()


def raw(status: str, body: bytes = b"", *headers: str, version: str = "1.1") -> bytes:
    lines = [f"HTTP/{version} {status}", *headers]
    if not any(each.lower().startswith(("transfer-encoding", "content-length")) for each in headers):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


OK = raw("200 OK", MODELS)


class Server:
    """Sends raw responses, one after another, and then `OK` to all requests.

    Attributes:
        heads: The heads of the requests.
        bodies: Their bodies.
        connections: The number of opened connections.
    """

    def __init__(self, responses: Sequence[bytes]) -> None:
        self._responses = list(responses)
        self.heads: list[list[str]] = []
        self.bodies: list[bytes] = []
        self.connections = 0
        self.arrived = anyio.Event()

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        data = b""
        async with stream:
            while True:
                while b"\r\n\r\n" not in data:
                    try:
                        data += await stream.receive()
                    except (anyio.EndOfStream, anyio.BrokenResourceError):
                        return
                head, _, data = data.partition(b"\r\n\r\n")
                lines = head.decode().split("\r\n")
                length = int(
                    {k.lower(): v for k, v in (x.split(": ") for x in lines[1:])}.get("content-length", 0)
                )
                while len(data) < length:
                    data += await stream.receive()
                body, data = data[:length], data[length:]
                self.heads.append(lines)
                self.bodies.append(body)
                self.arrived.set()
                response = self._responses.pop(0) if self._responses else OK
                if not response:
                    await anyio.sleep_forever()
                await stream.send(response)
                if b"HTTP/1.0" in response or b"Connection: close" in response:
                    return

    @property
    def lines(self) -> list[str]:
        return [head[0] for head in self.heads]

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of the requests."""
        return [dict(line.split(": ") for line in head[1:]) for head in self.heads]


@asynccontextmanager
async def served(
    transport: Any, *responses: bytes, **options: Any
) -> AsyncIterator[tuple[Server, AsyncCortecs, str]]:
    """Yield a server, a client of it without credentials, and the server's origin."""
    server = Server(responses)
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, server.serve)
        origin = f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}"
        options = {"anonymous": True, "max_retries": 0, "timeout": 20.0, **options}
        async with AsyncCortecs(api_base_url=f"{origin}/v1", transport=transport, **options) as client:
            yield server, client, origin
        tasks.cancel_scope.cancel()


GOOD = {
    "with a length": raw("200 OK", MODELS),
    "in chunks": raw("200 OK", b"5\r\n" + MODELS[:5] + b"\r\n%x\r\n" % (len(MODELS) - 5) + MODELS[5:]
                     + b"\r\n0\r\n\r\n", "Transfer-Encoding: chunked"),
    "gzip": raw("200 OK", gzip.compress(MODELS), "Content-Encoding: gzip"),
    "deflate": raw("200 OK", zlib.compress(MODELS), "Content-Encoding: deflate"),
    "until the connection is closed": raw(
        "200 OK", MODELS, "X-Ends: Content-Length", version="1.0"
    ).replace(b"\r\nContent-Length: %d" % len(MODELS), b""),
    "and closed": raw("200 OK", MODELS, "Connection: close"),
    "after another status": raw("103 Early Hints").replace(b"\r\nContent-Length: 0", b"") + OK,
    "with other bytes in a header": raw("200 OK", MODELS, "X-Request-Id: \xe9\xff"),
}  # fmt: skip


@pytest.mark.sockets
@TRANSPORTS
async def test_the_headers_of_a_response_are_the_same_on_all_transports(transport: str) -> None:
    headers = ("X-A: 1", "x-a: 2", "X-B: \xe9", "Retry-After: 1", "Retry-After: 2")
    async with served(transport, raw("200 OK", MODELS, *headers)) as (_, client, _):
        calls = client.with_options()
        await calls.models.list()
        assert calls.last_response is not None
        received = calls.last_response.headers
    assert received["X-A"] == received["x-a"] == "1, 2"
    assert received["x-b"] == "\xe9"
    assert dict(received)["retry-after"] == "1, 2"


@pytest.mark.sockets
@TRANSPORTS
@pytest.mark.parametrize("kind", GOOD)
async def test_a_response_is_read(transport: str, kind: str) -> None:
    async with served(transport, GOOD[kind], GOOD[kind]) as (server, client, _):
        for _ in range(3):
            assert await client.models.list() == ()
        closes = b"HTTP/1.0" in GOOD[kind] or b"Connection: close" in GOOD[kind]
        assert server.connections == (3 if closes else 1)


BAD: dict[str, tuple[bytes, type[Exception], str]] = {
    "no content": (raw("204 No Content").replace(b"\r\nContent-Length: 0", b""), errors.DecodeError, "shape"),
    "an empty body": (raw("200 OK"), errors.DecodeError, "shape"),
    "a wrong encoding": (
        raw("200 OK", MODELS, "Content-Encoding: gzip"), errors.DecodeError, "not correctly compressed",
    ),
    "another encoding": (
        raw("200 OK", MODELS, "Content-Encoding: br"), errors.DecodeError, "unsupported encoding 'br'",
    ),
    "two encodings": (
        raw("200 OK", MODELS, "Content-Encoding: gzip, gzip"), errors.DecodeError, "unsupported encoding",
    ),
    "too much": (
        raw("200 OK", gzip.compress(b" " * (17 << 20)), "Content-Encoding: gzip"),
        errors.DecodeError, "16 MiB",
    ),
    "cut": (raw("200 OK", MODELS[:5], f"Content-Length: {len(MODELS)}", "Connection: close"),
            errors.TransportError, "complete response"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\nConnection: close", errors.TransportError, "complete response"),
    "an error": (
        raw("500 X", b"\xe9", "Content-Type: text/plain; charset=\xe9\xff"), errors.APIStatusError, "500",
    ),
    "a redirect without a place": (raw("302 Found"), errors.TransportError, "was redirected"),
    "a redirect to no URL": (
        raw("302 Found", b"", "Location: http://host:port/"), errors.TransportError, "not a URL",
    ),
    "a redirect elsewhere": (
        raw("302 Found", b"", "Location: http://127.0.0.1:1/v1/models/"),
        errors.TransportError, "was redirected",
    ),
    "not modified": (
        raw("304 Not Modified").replace(b"\r\nContent-Length: 0", b""),
        errors.TransportError, "was redirected",
    ),
}  # fmt: skip


@pytest.mark.sockets
@TRANSPORTS
@pytest.mark.parametrize("kind", BAD)
async def test_a_bad_response_is_a_typed_error_and_the_next_request_works(transport: str, kind: str) -> None:
    response, error, text = BAD[kind]
    async with served(transport, response) as (server, client, _):
        with pytest.raises(error, match=text):
            await client.models.list()
        assert await client.models.list() == ()
        assert len(server.heads) == 2


@pytest.mark.sockets
@TRANSPORTS
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/v1/other?a=b%20c", "other?a=b%20c", "{origin}/v1/other?a=b%20c"])
async def test_a_redirect_is_followed(transport: str, status: int, location: str) -> None:
    async with served(transport) as (server, client, origin):
        # The path of the request is /v1/models/.
        place = location.format(origin=origin).replace("other", "../other", location.startswith("other"))
        server._responses.append(raw(f"{status} Moved", b"away", f"Location: {place}"))
        assert await client.models.list() == ()
        assert server.lines == ["GET /v1/models/ HTTP/1.1", "GET /v1/other?a=b%20c HTTP/1.1"]
        assert server.headers[0] == server.headers[1]
        assert server.connections == 1


@respx.mock(base_url=API)
async def test_a_redirect_without_a_place_is_not_followed(respx_mock: respx.MockRouter) -> None:
    route = respx_mock.get("/models/").respond(302)
    async with AsyncCortecs(anonymous=True, api_base_url=API) as client:
        with pytest.raises(errors.TransportError, match="was redirected"):
            await client.models.list()
    assert route.call_count == 1


@pytest.mark.sockets
@TRANSPORTS
async def test_redirects_in_a_circle_end(transport: str) -> None:
    around = raw("307 X", b"", "Location: ")
    async with served(transport, *[around] * 10) as (server, client, _):
        with pytest.raises(errors.TransportError, match="was redirected"):
            await client.models.list()
        assert len(server.heads) == 4


@pytest.mark.sockets
async def test_both_transports_send_the_same(anyio_backend_name: str) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("aiohttp works on asyncio only")
    pytest.importorskip("aiohttp")
    token = raw("200 OK", json.dumps({"access_token": TOKEN}).encode(), "Set-Cookie: a=b")
    sent = []
    for transport in ("httpx", "aiohttp"):
        options = {"client_id": CLIENT_ID, "client_secret": SECRET, "default_headers": {"X-Team": "blue"}}
        async with served(transport, token, anonymous=False, **options) as (server, client, origin):
            for call in (
                Call(method="POST", path="/instances/stop", json={"instance_id": "ä"}),
                Call(method="DELETE", path="/instances/ä b", params={"c": "ö"}),
            ):
                await client._wiring.http.request(call)
            headers = [
                {name.lower(): value.replace(origin[7:], "host") for name, value in each.items()}
                for each in server.headers
            ]
            # aiohttp adds one to a DELETE.
            assert headers[2].pop("content-length", "0") == "0"
            sent.append((server.lines, server.bodies, headers))
    assert sent[0] == sent[1]
    lines, bodies, headers = sent[0]
    assert lines == [
        "POST /v1/oauth2/token HTTP/1.1",
        "POST /v1/instances/stop HTTP/1.1",
        "DELETE /v1/instances/%C3%A4%20b?c=%C3%B6 HTTP/1.1",
    ]
    assert bodies[1:] == ['{"instance_id":"ä"}'.encode(), b""]
    assert json.loads(bodies[0])["client_secret"] == SECRET
    assert headers[1] == {
        "host": "host",
        "connection": "keep-alive",
        "accept": "application/json",
        "accept-encoding": "gzip, deflate",
        "user-agent": headers[0]["user-agent"],
        "x-team": "blue",
        "authorization": f"Bearer {TOKEN}",
        "content-type": "application/json",
        "content-length": str(len(bodies[1])),
    }
    assert {"content-type", "cookie"}.isdisjoint(headers[2])


@pytest.mark.sockets
@TRANSPORTS
async def test_a_cancelled_request_leaves_nothing_behind(transport: str) -> None:
    never = raw("200 OK", b"{", f"Content-Length: {len(MODELS)}")
    for response in (b"", never):
        async with served(transport, response) as (server, client, _):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(client.models.list)
                with anyio.fail_after(20):
                    await server.arrived.wait()
                tasks.cancel_scope.cancel()
            assert await client.models.list() == ()
            assert server.connections == 2


@pytest.mark.sockets
@TRANSPORTS
async def test_a_response_that_takes_too_long_is_a_timeout(transport: str) -> None:
    async with served(transport, b"", timeout=0.3) as (_, client, _):
        with pytest.raises(errors.RequestTimeoutError, match=r"no response within 0\.3 s"):
            await client.models.list()


@pytest.mark.sockets
@TRANSPORTS
async def test_a_post_without_a_body_has_a_length(transport: str) -> None:
    async with served(transport) as (server, client, origin):
        exchange = client._wiring.http._transport.connections.pools[0].exchange
        for method, length in (("POST", "0"), ("GET", None)):
            await exchange.send(Request(method=method, url=origin, headers=httpx.Headers({"Host": "a"})))
            names = {name.lower(): value for name, value in server.headers[-1].items()}
            assert names["host"] == "a"
            assert names.get("content-length") == length


class TestWatched:
    """What observes httpx sees our requests too."""

    @respx.mock(base_url=API)
    async def test_by_the_log(self, respx_mock: respx.MockRouter, caplog: pytest.LogCaptureFixture) -> None:
        respx_mock.get("/models/").respond(json={"models": []})
        async with AsyncCortecs(anonymous=True, api_base_url=API) as client:
            with caplog.at_level(logging.WARNING, logger="httpx"):
                await client.models.list()
            assert [each for each in caplog.records if each.name == "httpx"] == []
            with caplog.at_level(logging.INFO, logger="httpx"):
                await client.models.list()
        (record,) = [each for each in caplog.records if each.name == "httpx"]
        assert record.getMessage() == f'HTTP Request: GET {API}/models/ "HTTP/1.1 200 OK"'

    @respx.mock(base_url=API)
    async def test_by_a_tracing_library(
        self, respx_mock: respx.MockRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        respx_mock.get("/models/").respond(json={"models": []})
        seen = []
        send = httpx.AsyncClient.send

        async def traced(client: httpx.AsyncClient, request: httpx.Request, **options: Any) -> httpx.Response:
            seen.append(str(request.url))
            return await send(client, request, **options)

        async with AsyncCortecs(anonymous=True, api_base_url=API) as client:
            await client.models.list()
            assert seen == []
            # With and without the marks of `functools.wraps`.
            for replacement in (traced, functools.wraps(send)(traced)):
                monkeypatch.setattr(httpx.AsyncClient, "send", replacement)
                assert await client.models.list() == ()
        assert seen == [f"{API}/models/"] * 2

    @respx.mock(base_url=API)
    async def test_by_a_library_that_answers_requests(
        self, respx_mock: respx.MockRouter, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def answered(_: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, json={"models": []}, request=request)

        # As vcrpy did before version 8.
        monkeypatch.setattr(httpx.AsyncClient, "_send_single_request", answered)
        async with AsyncCortecs(anonymous=True, api_base_url=API) as client:
            assert await client.models.list() == ()
        assert not respx_mock.calls

    async def test_by_the_hooks_of_the_callers_client(self) -> None:
        seen = []

        async def hook(message: httpx.Request | httpx.Response) -> None:
            seen.append(type(message))

        hooks = {"request": [hook], "response": [hook]}
        transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"models": []}))
        async with (
            httpx.AsyncClient(transport=transport, event_hooks=hooks) as http,
            AsyncCortecs(anonymous=True, api_base_url=API, http_client=http) as client,
        ):
            assert await client.models.list() == ()
        assert seen == [httpx.Request, httpx.Response]


async def test_the_parameters_of_the_callers_client_are_added(anyio_backend_name: str) -> None:
    seen = []

    def respond(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.query.decode())
        if request.url.path.endswith("/old"):
            return httpx.Response(302, headers={"Location": "/new?page=2"})
        return httpx.Response(200, json={"access_token": TOKEN, "expires_in": 3600})

    async with (
        httpx.AsyncClient(transport=httpx.MockTransport(respond), params={"tenant": "a"}) as http,
        AsyncCortecs(CLIENT_ID, SECRET, api_base_url=API, http_client=http) as client,
    ):
        await client.request("GET", "/models/", params={"q": "b c"})
        await client.request("GET", "/old")
    assert seen == ["tenant=a", "tenant=a&q=b+c", "tenant=a", "tenant=a&page=2"]


async def test_each_library_has_its_exchange(anyio_backend_name: str) -> None:
    pytest.importorskip("aiohttp")
    exchanges: list[Exchange] = []
    for transport in ("httpx", "aiohttp"):
        async with AsyncCortecs(anonymous=True, api_base_url=API, transport=transport) as client:
            exchanges.append(client._wiring.http._transport.connections.pools[0].exchange)
    assert [type(each) for each in exchanges] == [HttpxExchange, AiohttpExchange]
