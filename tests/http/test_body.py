"""The size and depth of responses: each is read, and never more than the limit is kept in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import Callable

import httpx
import pytest
from _grids import BACKENDS, grid
from _scripted import Service, instance
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._http.body import MAX_BODY, MAX_DEPTH, BodyError, BodyReader, is_too_deep
from cortecs_async.errors import DecodeError, ServiceUnavailableError


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


ENCODERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "identity": bytes,
    "gzip": gzip.compress,
    "X-GZip": gzip.compress,
    "deflate": zlib.compress,
    " deflate": raw_deflate,
}


@given(st.binary(max_size=3000), st.sampled_from(sorted(ENCODERS)), st.integers(2, 4000))
def test_every_encoding_in_chunks_of_any_size(data: bytes, encoding: str, size: int) -> None:
    reader = BodyReader(encoding, limit=len(data))
    sent = ENCODERS[encoding](data)
    for begin in range(0, len(sent), size):
        reader.feed(sent[begin : begin + size])
    assert reader.body() == data


@pytest.mark.parametrize("encoding", ENCODERS)
def test_a_byte_more_than_the_limit_is_too_much(encoding: str) -> None:
    reader = BodyReader(encoding, limit=1 << 20)
    reader.feed(ENCODERS[encoding](b"x" * (1 << 20)))
    reader = BodyReader(encoding, limit=1 << 20)
    with pytest.raises(BodyError, match="is larger than 1 MiB"):
        reader.feed(ENCODERS[encoding](b"x" * ((1 << 20) + 1)))


def test_a_bomb_takes_no_more_memory_than_the_limit() -> None:
    bomb = gzip.compress(b"\0" * (256 << 20))
    reader = BodyReader("gzip", limit=1 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(BodyError, match="larger"):
            reader.feed(bomb)
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", "x" * 1000])
def test_an_unsupported_encoding_is_named(encoding: str) -> None:
    with pytest.raises(BodyError, match="has the unsupported encoding") as caught:
        BodyReader(encoding, limit=10)
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_is_not_compressed_is_an_error(encoding: str) -> None:
    with pytest.raises(BodyError, match="is not correctly compressed"):
        BodyReader(encoding, limit=10).feed(b"\xff\xff\xff\xff no compression")


def nested(levels: int) -> bytes:
    return b"[" * levels + b"1" + b"]" * levels


def test_depth() -> None:
    assert not is_too_deep(nested(MAX_DEPTH), json.loads(nested(MAX_DEPTH)))
    assert is_too_deep(nested(MAX_DEPTH + 1), json.loads(nested(MAX_DEPTH + 1)))
    objects = b'{"a":' * (MAX_DEPTH + 1) + b"1" + b"}" * (MAX_DEPTH + 1)
    assert is_too_deep(objects, json.loads(objects))
    wide = b"[" + b"[],{}," * 10_000 + b"0]"
    assert not is_too_deep(wide, json.loads(wide))


TOO_LARGE = gzip.compress(b" " * MAX_BODY + b"{}")
BAD = {
    "too large": (TOO_LARGE, {"Content-Encoding": "gzip"}, "a body that is larger than 16 MiB"),
    "too deep": (nested(MAX_DEPTH + 1), {}, "a body that is nested too deeply"),
    "far too deep": (nested(200_000), {}, "a body that is not JSON"),
    "brotli": (b"\x0b\x02\x80{}", {"Content-Encoding": "br"}, "has the unsupported encoding 'br'"),
    "gzip twice": (b"x", {"Content-Encoding": "gzip, gzip"}, "has the unsupported encoding 'gzip, gzip'"),
    "not gzip": (b"x" * 50, {"Content-Encoding": "gzip"}, "a body that is not correctly compressed"),
}


class Streamed(httpx.AsyncByteStream):
    """A body that arrives in chunks, as from a socket."""

    def __init__(self, content: bytes) -> None:
        self.content = content

    async def __aiter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        for begin in range(0, len(self.content), 1 << 16):
            yield self.content[begin : begin + (1 << 16)]


def answer(content: bytes, headers: dict[str, str], status: int = 200) -> Callable[[httpx.Request], object]:
    async def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(status, stream=Streamed(content), headers=headers)

    return respond


ROUTES = {
    "list": ("GET", "/instances/"),
    "get": ("GET", "/instances/instance-1"),
    "models": ("GET", "/models/"),
    "token": ("POST", "/oauth2/token"),
}


@grid(strength=1, kind=BAD, route=ROUTES, anyio_backend=BACKENDS)
async def test_a_response_that_cannot_be_read_is_a_typed_error(kind: str, route: str) -> None:
    content, headers, problem = BAD[kind]
    service = Service()
    service.on(*ROUTES[route], answer(content, headers))  # type: ignore[arg-type]
    async with service.client(max_retries=0) as client:
        with pytest.raises(DecodeError, match=problem):
            if route == "models":
                await client.models.list()
            elif route == "get":
                await client.instances.get("instance-1")
            else:
                await client.instances.list()


@grid(strength=1, kind=BAD, anyio_backend=BACKENDS)
async def test_an_error_whose_body_cannot_be_read_is_that_error(kind: str) -> None:
    content, headers, _ = BAD[kind]
    service = Service()
    service.on("GET", "/models/", answer(content, headers, 503))  # type: ignore[arg-type]
    async with service.client(max_retries=0) as client:
        with pytest.raises(ServiceUnavailableError) as caught:
            await client.models.list()
    assert len(caught.value.body) <= 300


async def test_a_start_whose_response_cannot_be_read_may_have_worked() -> None:
    service = Service()
    service.on("POST", "/instances/start", answer(TOO_LARGE, {"Content-Encoding": "gzip"}))  # type: ignore[arg-type]
    async with service.client() as client:
        with pytest.raises(DecodeError) as caught:
            await client.instances.start("a/b")
    assert caught.value.outcome_unknown


async def test_a_body_that_a_hook_of_the_caller_has_read_is_used() -> None:
    async def read(response: httpx.Response) -> None:
        await response.aread()

    service = Service()
    listed = json.dumps({"instances": [instance()]}).encode()
    service.on(
        "GET",
        "/instances/",
        answer(gzip.compress(listed), {"Content-Encoding": "gzip"}),  # type: ignore[arg-type]
    )
    async with service.http_client(event_hooks={"response": [read]}) as http:
        async with service.client(http_client=http) as client:
            assert len(await client.instances.list()) == 1


async def test_the_texts_of_an_error_have_no_control_characters() -> None:
    body = json.dumps({"message": "no \x1b[31mcapacity\nFAKE LOG LINE\x85\u202e"}).encode()

    async def respond(_: httpx.Request) -> httpx.Response:
        return httpx.Response(503, content=body, headers=[(b"X-Request-Id", b"a\x1b[0m\x85b\x9bc")])

    service = Service()
    service.on("GET", "/models/", respond)
    async with service.client(max_retries=0) as client:
        with pytest.raises(ServiceUnavailableError) as caught:
            await client.models.list()
    for text in (str(caught.value), caught.value.body, caught.value.request_id or ""):
        assert text.isprintable()
