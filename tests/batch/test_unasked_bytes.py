"""Test answers of many forms, and endpoints that send more than was asked for, on real sockets."""

from __future__ import annotations

import asyncio
import gzip
import queue
import re
import threading
import zlib
from collections.abc import Generator, Iterable
from contextlib import aclosing, contextmanager, suppress
from typing import Any

import anyio
import pytest
from attrs import define, field

from cortecs_async._batch.sender import Reply, Sender, SenderConfig
from cortecs_async._config import resolve_settings
from cortecs_async._http.messages import Failure, FailureKind
from cortecs_async._secrets import Hidden, Secret


def tiers(names: Iterable[str], *smoke: str) -> list[Any]:
    """Return parameters of which only some are in the default tier."""
    return [
        pytest.param(name, marks=pytest.mark.smoke if name in smoke else pytest.mark.sockets)
        for name in names
    ]


WAYS = pytest.mark.parametrize(
    ("transport", "anyio_backend"), [("aiohttp", "asyncio"), ("httpx", "asyncio"), ("httpx", "trio")]
)

# Seconds until an endpoint sends more than its answer, and between two requests.
SOON = 0.0  # in another write
LATER = 0.02
IDLE = 0.05


def response(body: bytes, *headers: bytes, version: bytes = b"1.1") -> bytes:
    lines = [b"HTTP/%b 200 OK" % version, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


STALE = response(b'{"echo": "another"}')


@define
class Endpoint:
    """Answers each request with its own body, in the form of `parts`.

    Attributes:
        parts: Returns what is sent for a body: bytes, seconds to wait, or None to close the connection.
        connections: The connections so far.
    """

    parts: Any
    connections: int = 0
    port: int = 0
    writers: list[asyncio.StreamWriter] = field(factory=list)
    stop: Any = field(factory=threading.Event)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        while True:
            try:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: *(\d+)", head)
                assert length is not None
                body = await reader.readexactly(int(length[1]))
            except (asyncio.IncompleteReadError, ConnectionError):
                break
            for part in self.parts(body):
                if part is None:
                    writer.close()
                    return
                if isinstance(part, float):
                    await asyncio.sleep(part)
                else:
                    writer.write(part)
        writer.close()

    @contextmanager
    def running(self) -> Generator[Endpoint]:
        """Serve in a thread, so that the client may run on trio."""
        ready: queue.Queue[int] = queue.Queue()

        async def run() -> None:
            server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
            ready.put(server.sockets[0].getsockname()[1])
            await asyncio.to_thread(self.stop.wait)
            server.close()
            for writer in self.writers:
                writer.close()
                with suppress(ConnectionError):
                    await writer.wait_closed()

        thread = threading.Thread(target=lambda: asyncio.run(run()))
        thread.start()
        try:
            self.port = ready.get()
            yield self
        finally:
            self.stop.set()
            thread.join()


def new_sender(transport: Any, port: int, *, timeout: float = 20.0) -> Sender:
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
        settings=settings, transport=transport, http_client=None, key=Secret("the-key"), timeout=timeout
    )
    return config.sender(f"http://127.0.0.1:{port}/v1")


def question(number: int) -> bytes:
    return b'{"echo": "%d", "padding": "%b"}' % (number, b"x" * 200)


UNASKED = {
    "a response with the answer": lambda body: [response(body) + STALE],
    "a response with the end of the answer": lambda body: [response(body)[:-9], LATER, body[-9:] + STALE],
    "a response later": lambda body: [response(body), LATER, STALE],
    "a response at once, but apart": lambda body: [response(body), SOON, STALE],
    "two responses later": lambda body: [response(body), LATER, STALE + STALE],
    "part of a response with the answer": lambda body: [response(body) + STALE[:-9]],
    "part of a response later": lambda body: [response(body), LATER, STALE[:25]],
    "anything with the answer": lambda body: [response(body) + b"\0anything"],
    "anything later": lambda body: [response(body), LATER, b"anything"],
}


@WAYS
@pytest.mark.parametrize(
    "kind", tiers(UNASKED, "a response with the answer", "a response later", "part of a response later")
)
async def test_unasked_bytes_are_no_answer(transport: Any, kind: str) -> None:
    with Endpoint(UNASKED[kind]).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port)) as sender:
            for number in range(4):
                outcome = await sender.post("/chat/completions", question(number))
                if isinstance(outcome, Reply):
                    assert outcome.body == question(number)
                else:
                    # The parser of aiohttp gives up the answer too.
                    assert (transport, kind) == ("aiohttp", "anything with the answer")
                await anyio.sleep(IDLE)
    assert endpoint.connections == 4


def first(form: Any) -> Any:
    """Return the parts of an endpoint whose first answer has another form."""
    forms = iter([form])

    def parts(body: bytes) -> Any:
        form = next(forms, FORMS["at once"])
        return form(body)

    return parts


@WAYS
@pytest.mark.parametrize("when", ["with the answer", "at once, but apart"])
@pytest.mark.smoke
async def test_after_unasked_bytes_no_connection_is_used_again(transport: Any, when: str) -> None:
    with Endpoint(first(UNASKED[f"a response {when}"])).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port)) as sender:
            for number in range(4):
                outcome = await sender.post("/chat/completions", question(number))
                assert isinstance(outcome, Reply)
                assert outcome.body == question(number)
                await anyio.sleep(IDLE)
    assert endpoint.connections == 4


@WAYS
@pytest.mark.smoke
async def test_a_connection_is_not_used_again_after_a_408(transport: Any) -> None:
    timed_out = b"HTTP/1.1 408 Request Timeout\r\ncontent-length: 0\r\n\r\n"
    with Endpoint(first(lambda _: [timed_out])).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port)) as sender:
            statuses = []
            for number in range(3):
                outcome = await sender.post("/chat/completions", question(number))
                assert isinstance(outcome, Reply)
                statuses.append(outcome.status)
                await anyio.sleep(IDLE)
    assert (statuses, endpoint.connections) == ([408, 200, 200], 2)


@WAYS
@pytest.mark.smoke
async def test_there_are_not_more_connections_than_requests(transport: Any) -> None:
    with Endpoint(FORMS["at once"]).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port)) as sender:

            async def ask() -> None:
                for number in range(10):
                    assert isinstance(await sender.post("/chat/completions", question(number)), Reply)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask)
    assert endpoint.connections == 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.smoke
async def test_bytes_before_the_first_request_are_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(STALE)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        async with aclosing(new_sender("aiohttp", server.sockets[0].getsockname()[1])) as sender:
            connector: Any = vars(sender)["_connector"]
            connect = connector.connect

            async def connect_slowly(*args: Any) -> Any:
                connection = await connect(*args)
                await asyncio.sleep(LATER)
                return connection

            monkeypatch.setattr(connector, "connect", connect_slowly)
            outcome = await sender.post("/chat/completions", question(1))
    assert isinstance(outcome, Failure)
    assert outcome.kind is FailureKind.LOST


FORMS = {
    "at once": lambda body: [response(body)],
    "in parts": lambda body: (
        [each for byte in response(body)[:90] for each in (bytes([byte]), 0.0)] + [response(body)[90:]]
    ),
    "after interim responses": lambda body: [b"HTTP/1.1 100 Continue\r\n\r\n" * 2, LATER, response(body)],
    "compressed": lambda body: [response(gzip.compress(body), b"content-encoding: gzip")],
    "deflated": lambda body: [response(zlib.compress(body), b"content-encoding: deflate")],
    "in chunks": lambda body: [
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n",
        *(b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:9], body[9:])),
        LATER,
        b"0\r\n\r\n",
    ],
}

CLOSING_FORMS = {
    "until the end": lambda body: [b"HTTP/1.1 200 OK\r\n\r\n", body, LATER, None],
    "once": lambda body: [response(body, b"connection: close"), None],
    "in HTTP/1.0": lambda body: [response(body, version=b"1.0"), None],
}


@WAYS
@pytest.mark.parametrize("form", tiers([*FORMS, *CLOSING_FORMS], "after interim responses", "once"))
async def test_answers_in_every_form_are_read(transport: Any, form: str) -> None:
    with Endpoint({**FORMS, **CLOSING_FORMS}[form]).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port)) as sender:
            for number in range(3):
                reply = await sender.post("/chat/completions", question(number))
                assert isinstance(reply, Reply)
                assert reply.status == 200
                assert reply.body == question(number)
                await anyio.sleep(LATER)
    assert endpoint.connections == (1 if form in FORMS else 3)


FAULTS = {
    "no answer": (lambda body: [None], FailureKind.LOST),
    "half of the head": (lambda body: [STALE[:20], None], FailureKind.LOST),
    "half of the body": (lambda body: [response(body)[:-9], None], FailureKind.LOST),
    "an invalid chunk": (
        lambda body: [b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", LATER, None],
        FailureKind.LOST,
    ),
    "not HTTP": (lambda body: [b"SSH-2.0-server\r\n\r\n"], FailureKind.LOST),
    "an unknown encoding": (lambda body: [response(body, b"content-encoding: br")], FailureKind.UNREADABLE),
    "an invalid encoding": (lambda body: [response(body, b"content-encoding: gzip")], FailureKind.UNREADABLE),
    "nothing": (lambda body: [], FailureKind.TIMED_OUT),
    "nothing after the head": (lambda body: [response(body)[:-9]], FailureKind.TIMED_OUT),
}


@WAYS
@pytest.mark.parametrize("fault", tiers(FAULTS))
async def test_faults_are_told_apart(transport: Any, fault: str) -> None:
    parts, kind = FAULTS[fault]
    timeout = 0.3 if kind is FailureKind.TIMED_OUT else 20.0
    with Endpoint(parts).running() as endpoint:
        async with aclosing(new_sender(transport, endpoint.port, timeout=timeout)) as sender:
            for _ in range(2):
                outcome = await sender.post("/chat/completions", question(1))
                assert isinstance(outcome, Failure)
                assert outcome.kind is kind, outcome
    if kind is not FailureKind.UNREADABLE:
        # A connection with half an answer is not used again.
        assert endpoint.connections == 2
