"""The client secret and the access token show nowhere: not in errors, tracebacks with locals, logs or reprs.

Also not when the service says them back, in whatever spelling.
"""

from __future__ import annotations

import html
import json
import logging
import pickle
import traceback
import urllib.parse
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import anyio
import httpcore
import httpx
import pytest
from _grids import BACKENDS, alternating, grid, on_one_backend
from _scripted import API, CLIENT_ID, SECRET, TOKEN, Answer, Service, ok, token

from cortecs_async import APIStatusError, AsyncCortecs, ConfigurationError, CortecsError, Credentials, Secret
from cortecs_async._secrets import Redactor

HERE = Path(__file__).parent
HUSH = (SECRET, TOKEN)


# --- where a secret could show --------------------------------------------------------------------


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and everything that hangs on it."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        waiting += [each.__cause__, each.__context__]
        if isinstance(each, BaseExceptionGroup):
            waiting += each.exceptions


def frames(error: BaseException) -> Iterator[FrameType]:
    """All frames of its traceback but this test's own, which may know the secrets."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if Path(frame.f_code.co_filename).parent != HERE:
            yield frame


def shown(value: object) -> str:
    try:
        return repr(value)
    except Exception as error:  # noqa: BLE001  (an object that is only half made)
        return f"no repr: {error}"


def told(error: BaseException) -> Iterator[tuple[str, str]]:
    """Everything that an error report could show of an error: where, and what."""
    for each in chain(error):
        name = type(each).__name__
        yield f"{name}: str", str(each)
        yield f"{name}: repr", repr(each)
        yield f"{name}: args", repr(each.args)
        yield f"{name}: vars", repr(vars(each))
        yield f"{name}: format", "".join(traceback.format_exception(each))
        for frame in frames(each):
            for variable, value in frame.f_locals.items():
                # As Sentry and pytest show locals: the repr, containers opened up.
                yield f"{name}: {frame.f_code.co_qualname} {variable}", shown(value)
        if isinstance(each, CortecsError):
            yield f"{name}: pickle", repr(pickle.dumps(each, 0))


def spellings(secret: str) -> set[str]:
    escaped = json.dumps(secret)[1:-1]
    return {
        secret,
        escaped,
        escaped.replace("/", "\\/"),
        urllib.parse.quote(secret, safe=""),
        html.escape(secret),
        secret[: len(secret) // 2],  # the part that remains if a text is cut before it is redacted
    }


def leaks(error: BaseException, *secrets: str) -> list[str]:
    hidden = {each for secret in secrets or HUSH for each in spellings(secret)}
    return [f"{where}: {what[:200]}" for where, what in told(error) if any(each in what for each in hidden)]


async def failure_of(call: Awaitable[object]) -> Exception:
    try:
        await call
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError("no error")


def test_this_detector_detects() -> None:
    # The rest of this file says "nothing found", so: is anything found where there is something?
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


class Chatty(httpx.ReadError):
    """A transport error whose text has secrets in it, as that of a refused header has."""

    def __init__(self, message: str, *, request: httpx.Request) -> None:
        super().__init__(f"refused: {request.headers.raw!r} {request.content!r}", request=request)


LIST = ("GET", "/instances/")
TROUBLE: dict[str, tuple[tuple[str, str], list[Any]]] = {
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
    "in an odd charset": (
        LIST,
        [Answer(status=400, content=BOTH.encode(), headers={"Content-Type": "text/plain; charset=hex"})],
    ),
    "in the request id": (LIST, [Answer(status=400, headers={"X-Request-Id": BOTH})]),
    "in a redirect": (
        LIST,
        [Answer(status=302, headers={"Location": f"https://evil.test/?{SECRET}&{TOKEN}"})],
    ),
    "in a redirect that is none": (
        LIST,
        [Answer(status=302, headers={"Location": f"data:{SECRET},{TOKEN}"})],
    ),
    "in no JSON": (LIST, [Answer(content=f"<html>{BOTH}".encode())]),
    "in another shape": (LIST, [Answer(json={"instances": BOTH})]),
    "in another shape, deeper": (LIST, [Answer(json={"instances": [{"instance_id": [BOTH]}]})]),
    "in an empty answer": (LIST, [Answer()]),
    "in an error of the transport": (LIST, [Answer(failure=Chatty)]),
    "a timeout": (LIST, [Answer(delay=1000.0)]),
    "a connect error": (LIST, [Answer(failure=httpx.ConnectError)]),
    "an exchange refused": (("POST", "/oauth2/token"), [echo(SECRET, status=401)]),
    "an exchange refused in JSON": (
        ("POST", "/oauth2/token"),
        [Answer(status=400, json={"client_secret": SECRET})],
    ),
    "an exchange that fails": (("POST", "/oauth2/token"), [echo(SECRET, status=500)]),
    "an exchange redirected": (
        ("POST", "/oauth2/token"),
        [Answer(status=307, headers={"Location": f"https://evil.test/{SECRET}"})],
    ),
    "an exchange cut off in the token": (
        ("POST", "/oauth2/token"),
        [Answer(content=f'{{"access_token": "{TOKEN}", "expi'.encode())],
    ),
    "an exchange of another shape": (
        ("POST", "/oauth2/token"),
        [Answer(json={"token": TOKEN, "echo": SECRET})],
    ),
    "an exchange with a list": (("POST", "/oauth2/token"), [Answer(json=[TOKEN, SECRET])]),
    "an exchange with a broken token": (("POST", "/oauth2/token"), [token(f"{TOKEN}\r\nX: 1")]),
    "an exchange with an umlaut": (("POST", "/oauth2/token"), [token(f"{TOKEN}ä")]),
    "an exchange with a surrogate": (("POST", "/oauth2/token"), [token(f"{TOKEN}\ud800")]),
    "an exchange that times out": (("POST", "/oauth2/token"), [Answer(delay=1000.0)]),
    "an exchange that is lost": (("POST", "/oauth2/token"), [Answer(failure=Chatty)]),
}


@grid(strength=1, case=TROUBLE, max_retries=[0, 2], anyio_backend=BACKENDS)
async def test_no_error_shows_a_secret(case: str, max_retries: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    service = Service()
    route, answers = TROUBLE[case]
    service.on(*route, *answers)
    async with service.client(max_retries=max_retries) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, CortecsError)
    assert leaks(error) == []
    assert not any(secret in caplog.text for secret in HUSH)


@alternating("case", ["an exchange refused", "an exchange cut off in the token", "in no JSON"])
async def test_nor_the_copies_for_those_who_waited(case: str) -> None:
    service = Service()
    route, answers = TROUBLE[case]
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
SPELLINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "json": lambda text: json.dumps({"client_secret": text}),
    "unicode json": lambda text: json.dumps({"client_secret": text}, ensure_ascii=False),
    "php json": lambda text: json.dumps({"client_secret": text}).replace("/", "\\/"),
    "quoted": lambda text: urllib.parse.quote(text, safe=""),
    "form": lambda text: urllib.parse.urlencode({"client_secret": text}),
    "html": html.escape,
}


@pytest.mark.parametrize("secret", ODD_SECRETS)
def test_every_spelling_is_redacted(secret: str) -> None:
    redactor = Redactor()
    redactor.remember(Secret(secret))
    for name, spell in SPELLINGS.items():
        text = redactor.redact(f"refused: {spell(secret)}")
        assert text.startswith("refused: "), name
        assert not any(each in text for each in spellings(secret)), name
        assert "***" in text, name


@grid(strength=1, secret=ODD_SECRETS, spelling=SPELLINGS, anyio_backend=BACKENDS)
async def test_an_echo_in_any_spelling(secret: str, spelling: str) -> None:
    service = Service()
    service.on("POST", "/oauth2/token", echo(f"refused: {SPELLINGS[spelling](secret)}", status=401))
    async with service.client(client_secret=secret) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, APIStatusError)
    assert "refused" in error.body
    assert leaks(error, secret) == []
    # Nor with its blanks folded.
    assert " ".join(secret.split()) not in f"{error} {error.body}"


async def test_one_secret_that_begins_with_another() -> None:
    asked = iter(["short", "short-and-then-more"])

    async def provide() -> Credentials:
        return Credentials(client_id="a", client_secret=next(asked))

    service = Service()
    service.on("GET", "/instances/", Answer(status=401))
    service.on("POST", "/oauth2/token", token("short-t"), echo("short-and-then-more", status=401))
    async with service.client(credential_provider=provide) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, APIStatusError)
    assert "and-then-more" not in f"{error} {error.body}"


@on_one_backend
async def test_the_secret_is_remembered_however_many_tokens_there_were() -> None:
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


class TestUnusableCredentials:
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
    async def test_from_a_provider(self, odd: Any) -> None:
        async def provide() -> Any:
            return odd

        async with Service().client(credential_provider=provide) as client:
            error = await failure_of(client.instances.list())
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @alternating("secret", [f"{SECRET}\udcff", SECRET.encode()], ids=ascii)
    async def test_from_the_caller(self, secret: Any) -> None:
        async with Service().client(client_secret=secret) as client:
            error = await failure_of(client.instances.list())
        assert isinstance(error, ConfigurationError)
        assert leaks(error) == []

    @pytest.mark.parametrize(
        "bad",
        [
            {"api_base_url": "nonsense"},
            {"max_retries": -1},
            {"timeout": 0},
            {"default_headers": {"Host": "x"}},
        ],
    )
    def test_with_other_bad_settings(self, bad: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(ConfigurationError) as caught:
            AsyncCortecs(CLIENT_ID, SECRET, **bad)
        assert leaks(caught.value) == []
        monkeypatch.setenv("CORTECS_CLIENT_ID", CLIENT_ID)
        monkeypatch.setenv("CORTECS_CLIENT_SECRET", SECRET)
        with pytest.raises(ConfigurationError) as caught:
            AsyncCortecs(**bad)
        assert leaks(caught.value) == []


async def test_a_start_that_is_refused_shows_nothing_either() -> None:
    service = Service()
    service.on("POST", "/instances/start", echo())
    service.on("POST", "/instances/stop", Answer(failure=Chatty), echo())
    service.on("GET", "/instances/instance-1", echo(status=404))
    async with service.client() as client:
        for call in (client.instances.start("a/b"), client.instances.stop("instance-1")):
            assert leaks(await failure_of(call)) == []


# --- reprs ----------------------------------------------------------------------------------------


async def test_reprs_of_everything_the_client_is_made_of() -> None:
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
        assert not any(secret in text for secret in (*HUSH, "k3y-of-the-caller"))
    assert API in repr(client)
    assert "closed" in repr(client)


def test_credentials_and_secret() -> None:
    assert SECRET not in repr(Credentials(client_id=CLIENT_ID, client_secret=SECRET))
    assert SECRET not in f"{Secret(SECRET)} {Secret(SECRET)!r}"


# --- the whole HTTP stack, but for the network ----------------------------------------------------


class Wire(httpcore.AsyncNetworkBackend):
    """A network that answers every request by its path, or hangs where it is told to."""

    def __init__(self, answer: Callable[[str], bytes], *, hang_in: str = "", hang_on: str = "") -> None:
        self.answer = answer
        self.hang_in = hang_in
        self.hang_on = hang_on
        self.sent = b""

    async def connect_tcp(self, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        return _Stream(self)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._request = b""

    async def _hang(self, where: str) -> None:
        line = self._request.split(b"\r\n", 1)[0].decode()
        if self._wire.hang_in == where and self._wire.hang_on in line:
            await anyio.sleep(1000.0)

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._request += buffer
        self._wire.sent += buffer
        await self._hang("write")

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        await self._hang("read")
        if not self._request:
            return b""
        path = self._request.split(b" ", 2)[1].decode()
        self._request = b""
        return self._wire.answer(path)

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


def plain_answer(path: str) -> bytes:
    if path.endswith("/oauth2/token"):
        return raw(200, json.dumps({"access_token": TOKEN, "expires_in": 3600}).encode())
    if path.endswith("/instances/"):
        return raw(200, b'{"instances": []}')
    return raw(400, BOTH.encode())


@asynccontextmanager
async def over(wire: Wire, **options: Any) -> AsyncIterator[AsyncCortecs]:
    transport = httpx.AsyncHTTPTransport()
    transport._pool = httpcore.AsyncConnectionPool(network_backend=wire)
    async with httpx.AsyncClient(transport=transport) as http_client:
        async with AsyncCortecs(
            CLIENT_ID, SECRET, api_base_url="http://localhost/v1", http_client=http_client, **options
        ) as client:
            yield client


async def test_no_log_record_of_any_logger_shows_a_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for name in ("httpx", "httpcore", "cortecs_async"):
        caplog.set_level(logging.DEBUG, logger=name)
    wire = Wire(plain_answer)
    async with over(wire, max_retries=1) as client:
        await client.instances.list()
        await failure_of(client.user.balance())
        await failure_of(client.instances.start("a/b"))
        await failure_of(client.instances.stop("instance-1"))
    # They did go over the wire, and the loggers did speak.
    assert SECRET.encode() in wire.sent
    assert f"Bearer {TOKEN}".encode() in wire.sent
    assert {"httpx", "httpcore.http11"} <= {record.name for record in caplog.records}
    for record in caplog.records:
        text = f"{record.getMessage()} {record.args!r} {record.msg!r} {vars(record)!r}"
        assert not any(secret in text for secret in HUSH), record


BROKEN = {
    "nothing": b"",
    "garbage": b"\0\1\2 no HTTP\r\n\r\n",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b'HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{"instances": [',
    "a lying length": b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
    "bad chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    "an endless header": b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000,
}


@grid(kind=BROKEN, where=["/oauth2/token", "/instances/start"], anyio_backend=BACKENDS)
async def test_a_broken_wire(kind: str, where: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    wire = Wire(lambda path: BROKEN[kind] if path.endswith(where) else plain_answer(path))
    async with over(wire, max_retries=1) as client:
        error = await failure_of(client.instances.start("a/b"))
    assert isinstance(error, CortecsError)
    assert leaks(error) == []
    assert not any(secret in caplog.text for secret in HUSH)
    # A start that met it is sent once, and may have worked; one that has no token was never sent.
    starts = wire.sent.count(b"POST /v1/instances/start")
    assert starts == (1 if where == "/instances/start" else 0)
    assert getattr(error, "outcome_unknown", None) is bool(starts)


@grid(hang_in=["read", "write"], hang_on=["/oauth2/token", "/instances/"], anyio_backend=BACKENDS)
async def test_the_clients_own_timeout(hang_in: str, hang_on: str) -> None:
    async with over(Wire(plain_answer, hang_in=hang_in, hang_on=hang_on), max_retries=0) as client:
        error = await failure_of(client.instances.list())
    assert isinstance(error, TimeoutError)
    assert leaks(error) == []


@grid(hang_in=["read", "write"], hang_on=["/oauth2/token", "/instances/"], anyio_backend=BACKENDS)
async def test_the_callers_cancellation(hang_in: str, hang_on: str) -> None:
    # It passes through the frames of the HTTP stack, whose locals hold what is being sent.
    async with over(Wire(plain_answer, hang_in=hang_in, hang_on=hang_on)) as client:
        with pytest.raises(TimeoutError) as caught:
            with anyio.fail_after(5.0):
                await client.instances.list()
    assert leaks(caught.value) == []
