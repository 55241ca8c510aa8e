"""Test that no error, traceback with locals, log record or repr shows the client secret or the access token.

This includes responses of the service that echo them, in any encoding.
"""

from __future__ import annotations

import functools
import html
import json
import logging
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from _grids import BACKENDS, alternating, grid, on_one_backend
from _leaks import SECRETS, encodings, leaks
from _scripted import API, CLIENT_ID, SECRET, TOKEN, Answer, Service, ok, token

from cortecs_async import (
    APIStatusError,
    AsyncCortecs,
    ConfigurationError,
    CortecsError,
    Credentials,
    InstanceHandle,
    Secret,
)
from cortecs_async._secrets import Redactor

# --- the detector ---------------------------------------------------------------------------------


async def failure_of(call: Awaitable[object]) -> Exception:
    try:
        await call
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("no error")


def test_the_detector_finds_leaks() -> None:
    secret = SECRET
    namespace: dict[str, Any] = {}
    exec(compile("def leak(value):\n    raise KeyError", "elsewhere.py", "exec"), namespace)  # noqa: S102
    with pytest.raises(KeyError) as caught:
        namespace["leak"]({"key": [secret]})
    assert any("leak value" in each for each in leaks(caught.value))
    inner = ValueError(f"x{TOKEN}x")
    outer = RuntimeError()
    outer.__context__ = inner
    assert leaks(outer)
    assert not leaks(RuntimeError("fine"))


# --- errors ---------------------------------------------------------------------------------------

BOTH = f"{SECRET} and {TOKEN}"


def echo(text: str = BOTH, status: int = 400, **options: Any) -> Answer:
    return Answer(status=status, content=text.encode(), **options)


class LeakyError(httpx.ReadError):
    """A transport error whose text contains secrets, like that of an invalid header."""

    def __init__(self, message: str, *, request: httpx.Request) -> None:
        super().__init__(f"refused: {request.headers.raw!r} {request.content!r}", request=request)


LIST = ("GET", "/instances/")
FAILURES: dict[str, tuple[tuple[str, str], list[Any]]] = {
    **{
        f"status {status}": (LIST, [echo(status=status)])
        for status in (400, 402, 403, 404, 409, 418, 422, 429, 500, 503)
    },
    "401 twice": (LIST, [echo(status=401)]),
    "in JSON": (
        LIST,
        [Answer(status=400, json={"message": BOTH, "echo": {"authorization": f"Bearer {TOKEN}"}})],
    ),
    "with line breaks": (LIST, [echo(f"\n{SECRET}\r\n\t{TOKEN}\n")]),
    "at the edge of the excerpt": (LIST, [echo("x" * 290 + BOTH)]),
    "across the edge": (LIST, [echo("x" * (300 - len(SECRET) // 2) + BOTH)]),
    "across the end of what is decoded": (
        LIST,
        [Answer(status=400, content=b" " * ((16 << 10) - len(SECRET) // 2) + BOTH.encode() + b" " * 10_000)],
    ),
    "with zero bytes": (LIST, [Answer(status=400, content=BOTH.encode("utf-16-le"))]),
    "in UTF-16": (
        LIST,
        [
            Answer(
                status=400,
                content=BOTH.encode("utf-16"),
                headers={"Content-Type": "text/plain; charset=utf-16"},
            )
        ],
    ),
    "in an unsupported charset": (
        LIST,
        [Answer(status=400, content=BOTH.encode(), headers={"Content-Type": "text/plain; charset=hex"})],
    ),
    "in the request id": (LIST, [Answer(status=400, headers={"X-Request-Id": BOTH})]),
    "in a redirect": (
        LIST,
        [Answer(status=302, headers={"Location": f"https://evil.test/?{SECRET}&{TOKEN}"})],
    ),
    "in an invalid redirect": (
        LIST,
        [Answer(status=302, headers={"Location": f"data:{SECRET},{TOKEN}"})],
    ),
    "in HTML": (LIST, [Answer(content=f"<html>{BOTH}".encode())]),
    "in an unexpected shape": (LIST, [Answer(json={"instances": BOTH})]),
    "in an unexpected shape, nested": (LIST, [Answer(json={"instances": {"instance_id": [BOTH]}})]),
    "in an empty response": (LIST, [Answer()]),
    "in an error of the transport": (LIST, [Answer(failure=LeakyError)]),
    "a timeout": (LIST, [Answer(delay=1000.0)]),
    "a connect error": (LIST, [Answer(failure=httpx.ConnectError)]),
    "a token request refused": (("POST", "/oauth2/token"), [echo(SECRET, status=401)]),
    "a token request refused in JSON": (
        ("POST", "/oauth2/token"),
        [Answer(status=400, json={"client_secret": SECRET})],
    ),
    "a token request that fails": (("POST", "/oauth2/token"), [echo(SECRET, status=500)]),
    "a token request redirected": (
        ("POST", "/oauth2/token"),
        [Answer(status=307, headers={"Location": f"https://evil.test/{SECRET}"})],
    ),
    "a token response cut off in the token": (
        ("POST", "/oauth2/token"),
        [Answer(content=f'{{"access_token": "{TOKEN}", "expi'.encode())],
    ),
    "a token response of an unexpected shape": (
        ("POST", "/oauth2/token"),
        [Answer(json={"token": TOKEN, "echo": SECRET})],
    ),
    "a token response with a list": (("POST", "/oauth2/token"), [Answer(json=[TOKEN, SECRET])]),
    "a token response with a line break in the token": (
        ("POST", "/oauth2/token"),
        [token(f"{TOKEN}\r\nX: 1")],
    ),
    "a token response with an umlaut": (("POST", "/oauth2/token"), [token(f"{TOKEN}ä")]),
    "a token response with a surrogate": (("POST", "/oauth2/token"), [token(f"{TOKEN}\ud800")]),
    "a token request that times out": (("POST", "/oauth2/token"), [Answer(delay=1000.0)]),
    "a token request that is lost": (("POST", "/oauth2/token"), [Answer(failure=LeakyError)]),
}


@grid(strength=1, case=FAILURES, max_retries=[0, 2], anyio_backend=BACKENDS)
async def test_no_error_shows_a_secret(case: str, max_retries: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service()
    route, answers = FAILURES[case]
    service.on(*route, *answers)
    async with service.client(max_retries=max_retries) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, CortecsError)
    assert leaks(error) == []
    assert not any(secret in caplog.text for secret in SECRETS)


async def test_no_unreadable_entry_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service()
    nested = {"instance_id": [BOTH], BOTH: BOTH}
    service.on(*LIST, Answer(json={"instances": [nested]}))
    service.on("GET", "/instances/instance-1", Answer(json={"instance": nested}))
    async with service.client() as client:
        listing = await client.instances.list()
        error = await failure_of(client.instances.get("instance-1"))
    (entry,) = listing.unreadable
    assert entry.entry_id is None
    assert isinstance(error, CortecsError)
    assert leaks(error) == []
    assert not any(secret in f"{listing!r} {caplog.text}" for secret in SECRETS)


async def test_no_entry_that_cannot_be_read_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service()
    odd = [BOTH, [BOTH], {"instance_id": [BOTH]}, {"instance_id": "a", "instance_args": {"model_id": [BOTH]}}]
    service.on(*LIST, Answer(json={"instances": odd}))
    async with service.client() as client:
        instances = await client.instances.list()
    assert len(instances.unreadable) == len(odd)
    assert not any(secret in f"{caplog.text} {instances!r}" for secret in SECRETS)


@alternating("case", ["a token request refused", "a token response cut off in the token", "in HTML"])
async def test_no_copy_of_an_error_for_concurrent_callers_shows_a_secret(case: str) -> None:
    service = Service()
    route, answers = FAILURES[case]
    service.on(*route, *answers)
    errors: list[Exception] = []

    async def one(client: AsyncCortecs) -> None:
        errors.append(await failure_of(client.instances.list()))

    async with service.client(max_retries=0) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(one, client)
    assert len(errors) == 5
    assert [found for error in errors for found in leaks(error)] == []


ODD_SECRETS = [
    'quo"te-secret',
    "slash/slash/secret",
    "back\\slash-secret",
    "per%cent+plus&amp=secret",
    "<angle>-secret'",
    "ümläut-secret",
    "two  blanks\tand a tab-secret",
    "$pecial.*(regex)[secret",
]
ENCODINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda text: json.dumps({"client_secret": text}),
    "unicode json": lambda text: json.dumps({"client_secret": text}, ensure_ascii=False),
    "php json": lambda text: json.dumps({"client_secret": text}).replace("/", "\\/"),
    "quoted": lambda text: urllib.parse.quote(text, safe=""),
    "form": lambda text: urllib.parse.urlencode({"client_secret": text}),
    "html": html.escape,
}


@pytest.mark.parametrize("secret", ODD_SECRETS)
def test_every_encoding_is_redacted(secret: str) -> None:
    redactor = Redactor()
    redactor.remember(Secret(secret))
    for name, encode in ENCODINGS.items():
        text = redactor.redact(f"refused: {encode(secret)}")
        assert text.startswith("refused: "), name
        assert not any(each in text for each in encodings(secret)), name
        assert "***" in text, name


@grid(strength=1, secret=ODD_SECRETS, encoding=ENCODINGS, anyio_backend=BACKENDS)
async def test_an_echo_in_any_encoding_is_redacted(secret: str, encoding: str) -> None:
    service = Service()
    service.on("POST", "/oauth2/token", echo(f"refused: {ENCODINGS[encoding](secret)}", status=401))
    async with service.client(client_secret=secret) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, APIStatusError)
    assert "refused" in error.body
    assert leaks(error, secret) == []
    # Nor with its whitespace collapsed.
    assert " ".join(secret.split()) not in f"{error} {error.body}"


async def test_a_secret_that_begins_with_another_is_redacted() -> None:
    secrets = iter(["short", "short-and-then-more"])

    async def provide() -> Credentials:
        return Credentials(client_id="a", client_secret=next(secrets))

    service = Service()
    service.on("GET", "/instances/", Answer(status=401))
    service.on("POST", "/oauth2/token", token("short-t"), echo("short-and-then-more", status=401))
    async with service.client(credential_provider=provide) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, APIStatusError)
    assert "and-then-more" not in f"{error} {error.body}"


@on_one_backend
async def test_the_secret_is_redacted_after_many_tokens() -> None:
    service = Service()
    service.on("POST", "/oauth2/token", *[token(f"{TOKEN}-{number}", 100) for number in range(62)])
    service.on("GET", "/instances/", Answer(json={"instances": []}))
    service.on("GET", "/user/balance", echo(f"{SECRET} {TOKEN}"))
    async with service.client() as client:
        for _ in range(60):
            await client.instances.list()
            error = await failure_of(client.user.balance())
            assert isinstance(error, APIStatusError)
            assert SECRET not in f"{error} {error.body}"
            await anyio.sleep(200.0)
    assert service.token_requests == 60


class TestInvalidCredentials:
    @alternating(
        "odd",
        [
            (CLIENT_ID, SECRET),
            {"client_secret": SECRET},
            SECRET,
            Credentials(client_id=CLIENT_ID, client_secret=f"{SECRET}\udcff"),
            Credentials(client_id=CLIENT_ID, client_secret=SECRET.encode()),  # type: ignore[arg-type]
            Credentials(client_id=5, client_secret=SECRET),  # type: ignore[arg-type]
        ],
        ids=repr,
    )
    async def test_of_a_provider_are_not_shown(self, odd: Any) -> None:
        async def provide() -> Any:
            return odd

        async with Service().client(credential_provider=provide) as client:
            error = await failure_of(client.instances.list())
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @alternating("secret", [f"{SECRET}\udcff", SECRET.encode()], ids=ascii)
    async def test_of_the_caller_are_not_shown(self, secret: Any) -> None:
        with pytest.raises(ConfigurationError) as caught:
            async with Service().client(client_secret=secret):
                raise AssertionError("created")
        assert leaks(caught.value) == []

    @pytest.mark.parametrize(
        "bad",
        [
            {"api_base_url": "nonsense"},
            {"max_retries": -1},
            {"timeout": 0},
            {"default_headers": {"Host": "x"}},
        ],
    )
    def test_with_other_invalid_settings_are_not_shown(
        self, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(ConfigurationError) as caught:
            AsyncCortecs(CLIENT_ID, SECRET, **bad)
        assert leaks(caught.value) == []
        monkeypatch.setenv("CORTECS_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", SECRET)
        with pytest.raises(ConfigurationError) as caught:
            AsyncCortecs(**bad)
        assert leaks(caught.value) == []


PASSWORD = "passw0rd-of-the-caller"
TWO_LINES = f"{PASSWORD}\n{PASSWORD}"
HANDLE = InstanceHandle(instance_id="i", base_url="https://endpoint.test/v1", model="m", account="a")


def client_with(**options: Any) -> AsyncCortecs:
    return AsyncCortecs(**{"client_id": CLIENT_ID, "client_secret": SECRET, **options})


def with_headers(headers: Any) -> object:
    client = client_with()
    client._closed = True
    return client.with_options(headers=headers)


INVALID: dict[str, Callable[[], object]] = {
    "openai_kwargs": lambda: HANDLE.openai_kwargs(api_key=TWO_LINES),
    "openai_kwargs, not ASCII": lambda: HANDLE.openai_kwargs(api_key=f"{PASSWORD}ä"),
    "openai_kwargs, bytes": lambda: HANDLE.openai_kwargs(api_key=PASSWORD.encode()),  # type: ignore[arg-type]
    "openai": lambda: HANDLE.openai(api_key=TWO_LINES),
    "openai, an option": lambda: HANDLE.openai(api_key=PASSWORD, nonsense={"X-Key": PASSWORD}),
    "langchain": lambda: HANDLE.langchain(api_key=TWO_LINES, default_headers={"X-Key": PASSWORD}),
    "pydantic_ai": lambda: HANDLE.pydantic_ai(api_key=TWO_LINES),
    "api_base_url": lambda: client_with(api_base_url=f"https://user:{PASSWORD}@api.test"),
    "api_base_url, a query": lambda: client_with(api_base_url=f"ftp://api.test?key={PASSWORD}"),
    "api_base_url, no URL": lambda: client_with(api_base_url=f"https://user:{PASSWORD}@[::1"),
    "api_base_url, two lines": lambda: client_with(api_base_url=TWO_LINES),
    "api_base_url, an object": lambda: client_with(api_base_url=httpx.URL(f"https://u:{PASSWORD}@api.test")),
    "api_base_url, bytes": lambda: client_with(api_base_url=PASSWORD.encode()),
    "default_headers": lambda: client_with(default_headers={"X-Key": TWO_LINES}),
    "default_headers, a list": lambda: client_with(default_headers=[("X-Key", PASSWORD)]),
    "headers and a bad timeout": lambda: client_with(default_headers={"X-Key": PASSWORD}, timeout=0),
    "headers and a bad guard": lambda: client_with(default_headers={"X-Key": PASSWORD}, guard="x"),
    "headers of a call": lambda: with_headers({"X-Key": TWO_LINES}),
    "client_secret": lambda: client_with(client_secret=TWO_LINES),
    "client_secret, bytes": lambda: client_with(client_secret=PASSWORD.encode()),
}


@pytest.mark.parametrize("case", INVALID)
def test_no_frame_shows_an_invalid_argument_that_is_secret(case: str) -> None:
    expected = TypeError if case == "openai, an option" else ConfigurationError
    with pytest.raises(expected) as caught:
        INVALID[case]()
    assert leaks(caught.value, SECRET, PASSWORD) == []


@pytest.mark.parametrize("name", ["CORTECS_API_BASE_URL", "CORTECS_CLIENT_SECRET"])
def test_no_frame_shows_an_invalid_variable_that_is_secret(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTECS_CLIENT_ID", CLIENT_ID)
    monkeypatch.setenv(name, f"https://user:{PASSWORD}@api.test\n{PASSWORD}")
    with pytest.raises(ConfigurationError, match="contains a line break") as caught:
        AsyncCortecs()
    assert leaks(caught.value, PASSWORD) == []


async def test_no_frame_of_a_batch_shows_an_invalid_key(tmp_path: Path) -> None:
    async with Service().client() as client:
        error = await failure_of(
            client.run_batch(tmp_path / "in.jsonl", tmp_path / "out.jsonl", "a/b", api_key=TWO_LINES)
        )
    assert isinstance(error, ConfigurationError)
    assert "contains a line break" in str(error)
    assert leaks(error, PASSWORD) == []


async def test_a_refused_start_or_stop_shows_no_secret() -> None:
    service = Service()
    service.on("POST", "/instances/start", echo())
    service.on("POST", "/instances/stop", Answer(failure=LeakyError), echo())
    service.on("GET", "/instances/instance-1", echo(status=404))
    async with service.client() as client:
        for call in (client.instances.start("a/b"), client.instances.stop("instance-1")):
            assert leaks(await failure_of(call)) == []


# --- reprs ----------------------------------------------------------------------------------------


async def test_no_repr_of_the_client_and_its_parts_shows_a_secret() -> None:
    service = Service()
    service.on("GET", "/instances/instance-1", ok())
    async with service.client(default_headers={"X-Key": "k3y-of-the-caller"}) as client:
        await client.instances.get("instance-1")
        reprs = [
            repr(client),
            str(client),
            repr(client._settings),
            repr(vars(client)),
            repr(vars(client._wiring.http)),
            repr(vars(client._wiring.http._transport)),
        ]
        reprs += [repr(vars(client._wiring.http._tokens)), repr(client._wiring.http._tokens._token)]
        reprs += [repr(vars(each)) for each in (client.instances, client.models, client.user)]
        reprs += [repr(client.instance("a/b"))]
    for text in reprs:
        assert not any(secret in text for secret in (*SECRETS, "k3y-of-the-caller"))
    assert API in repr(client)
    assert "closed" in repr(client)


class BrokenTransport(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        raise KeyError(request.method)


async def test_no_error_shows_the_headers_or_the_provider_of_the_caller() -> None:
    async def provide(key: str) -> Credentials:
        return Credentials(client_id=CLIENT_ID, client_secret=key)

    async with (
        httpx.AsyncClient(transport=BrokenTransport()) as http,
        AsyncCortecs(
            credential_provider=functools.partial(provide, SECRET),
            default_headers={"X-Key": "k3y-of-the-caller"},
            api_base_url=API,
            http_client=http,
            max_retries=0,
        ) as client,
    ):
        error = await failure_of(client.models.list())
    assert isinstance(error, KeyError)
    assert leaks(error, SECRET, "k3y-of-the-caller") == []


def test_no_repr_of_credentials_shows_the_secret() -> None:
    assert SECRET not in repr(Credentials(client_id=CLIENT_ID, client_secret=SECRET))
    assert SECRET not in f"{Secret(SECRET)} {Secret(SECRET)!r}"


# --- the whole HTTP stack without the network -----------------------------------------------------


class Network(httpcore.AsyncNetworkBackend):
    """A network that responds to every request by its path, or hangs in a `read` or `write`."""

    def __init__(self, respond: Callable[[str], bytes], *, hang_in: str = "", hang_on: str = "") -> None:
        self.respond = respond
        self.hang_in = hang_in
        self.hang_on = hang_on
        self.sent = b""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(self)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, network: Network) -> None:
        self._network = network
        self._request = b""

    async def _hang(self, where: str) -> None:
        line = self._request.split(b"\r\n", 1)[0].decode()
        if self._network.hang_in == where and self._network.hang_on in line:
            await anyio.sleep(1000.0)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._request += buffer
        self._network.sent += buffer
        await self._hang("write")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await self._hang("read")
        if not self._request:
            return b""
        path = self._request.split(b" ", 2)[1].decode()
        self._request = b""
        return self._network.respond(path)

    async def aclose(self) -> None:
        pass

    def get_extra_info(self, info: str) -> Any:
        return None


def raw(status: int, data: bytes, *headers: str) -> bytes:
    lines = [
        f"HTTP/1.1 {status} X",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        *headers,
    ]
    return "\r\n".join([*lines, "", ""]).encode() + data


def plain_response(path: str) -> bytes:
    if path.endswith("/oauth2/token"):
        return raw(200, json.dumps({"access_token": TOKEN, "expires_in": 3600}).encode())
    if path.endswith("/instances/"):
        return raw(200, b'{"instances": []}')
    return raw(400, BOTH.encode())


@asynccontextmanager
async def client_over(network: Network, **options: Any) -> AsyncIterator[AsyncCortecs]:
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(network_backend=network)
    async with httpx.AsyncClient(transport=transport) as http_client:
        async with AsyncCortecs(
            CLIENT_ID, SECRET, api_base_url="http://localhost/v1", http_client=http_client, **options
        ) as client:
            yield client


async def test_no_log_record_of_any_logger_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "cortecs_async"):
        caplog.set_level(logging.DEBUG, logger=name)
    network = Network(plain_response)
    async with client_over(network, max_retries=1) as client:
        await client.instances.list()
        await failure_of(client.user.balance())
        await failure_of(client.instances.start("a/b"))
        await failure_of(client.instances.stop("instance-1"))
    # The secrets were sent, and the loggers were active.
    assert SECRET.encode() in network.sent
    assert f"Bearer {TOKEN}".encode() in network.sent
    assert {"httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    for record in caplog.records:
        text = f"{record.getMessage()} {record.args!r} {record.msg!r} {vars(record)!r}"
        assert not any(secret in text for secret in SECRETS), record


BROKEN = {
    "nothing": b"",
    "garbage": b"\0\1\2 no HTTP\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"instances": [',
    "a wrong length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
}


@grid(kind=BROKEN, where=["/oauth2/token", "/instances/start"], anyio_backend=BACKENDS)
async def test_no_error_of_a_broken_response_shows_a_secret(
    kind: str, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    network = Network(lambda path: BROKEN[kind] if path.endswith(where) else plain_response(path))
    async with client_over(network, max_retries=1) as client:
        error = await failure_of(client.instances.start("a/b"))
    assert isinstance(error, CortecsError)
    assert leaks(error) == []
    assert not any(secret in caplog.text for secret in SECRETS)
    # A start with a broken response is sent once, and may have worked. Without a token it is not sent.
    starts = network.sent.count(b"POST /v1/instances/start")
    assert starts == (1 if where == "/instances/start" else 0)
    assert getattr(error, "outcome_unknown", None) is bool(starts)


@grid(hang_in=["read", "write"], hang_on=["/oauth2/token", "/instances/"], anyio_backend=BACKENDS)
async def test_no_timeout_of_the_client_shows_a_secret(hang_in: str, hang_on: str) -> None:
    async with client_over(
        Network(plain_response, hang_in=hang_in, hang_on=hang_on), max_retries=0
    ) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, TimeoutError)
    assert leaks(error) == []


@grid(hang_in=["read", "write"], hang_on=["/oauth2/token", "/instances/"], anyio_backend=BACKENDS)
async def test_no_cancellation_of_the_caller_shows_a_secret(hang_in: str, hang_on: str) -> None:
    # It passes through frames of the HTTP stack whose locals contain the request.
    async with client_over(Network(plain_response, hang_in=hang_in, hang_on=hang_on)) as client:
        with pytest.raises(TimeoutError) as caught:
            with anyio.fail_after(5.0):
                await client.instances.list()
    assert leaks(caught.value) == []
