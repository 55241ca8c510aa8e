"""A service that cannot be reached: what the error says, what is logged meanwhile, and a wrong base URL."""

from __future__ import annotations

import errno
import logging
import socket
import ssl
from typing import Any

import anyio
import httpx
import pytest
from _grids import alternating
from _scripted import API, Answer, Service, ok

from cortecs_async import AsyncCortecs, errors
from cortecs_async._http.reasons import connection_problem

REFUSED = Answer(failure=httpx.ConnectError)
EMPTY_LIST = Answer(json={"instances": []})


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


async def test_an_outage_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.on("GET", "/instances/", *[REFUSED] * 4, EMPTY_LIST)
    down = f"Cannot reach {API}: ConnectError: the script says so. Retrying."
    async with service.client() as client:
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(client.instances.list)
        assert anyio.current_time() - began < 10
        assert warnings(caplog) == [down]
        # One that affects only a part of the service, or not every time, is one outage.
        service.on("GET", "/models/", Answer(json={"models": []}))
        for _ in range(5):
            service.on("GET", "/instances/", REFUSED, EMPTY_LIST)
            await client.instances.list()
            await client.models.list()
            await anyio.sleep(50)
        assert warnings(caplog) == [down]
        await anyio.sleep(120)
        service.on("GET", "/instances/", REFUSED, EMPTY_LIST)
        await client.instances.list()
    assert warnings(caplog) == [down] * 2


@alternating(
    "failure,expected",
    [
        (Answer(status=502), [f"{API} returns 502 Bad Gateway. Retrying."]),
        (Answer(delay=50.0), [f"{API} does not respond: no response within 30 s. Retrying."]),
        (Answer(failure=httpx.ReadError), []),
        (Answer(status=429), []),
    ],
)
async def test_what_else_counts_as_an_outage(
    *, caplog: pytest.LogCaptureFixture, failure: Answer, expected: list[str]
) -> None:
    service = Service()
    service.on("GET", "/instances/", *[failure] * 3, EMPTY_LIST)
    async with service.client() as client:
        await client.instances.list()
    assert warnings(caplog) == expected


async def test_one_bad_response_is_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.on("GET", "/instances/", Answer(status=502), EMPTY_LIST)
    async with service.client() as client:
        await client.instances.list()
    assert warnings(caplog) == []


async def test_a_poll_that_recovers_logs_no_outage(caplog: pytest.LogCaptureFixture) -> None:
    service = Service()
    service.on("GET", "/instances/instance-1", ok(status="pending"), REFUSED, ok())
    async with service.client() as client:
        await client.instances.wait_until_running("instance-1")
    assert [vars(each)["cortecs_event"] for each in caplog.records if each.levelno >= logging.WARNING] == [
        "watch.failed"
    ]


@pytest.mark.parametrize("status", [404, 405])
@pytest.mark.parametrize("route", ["POST /oauth2/token", "GET /instances/", "GET /models/"])
async def test_a_missing_list_means_a_wrong_base_url(status: int, route: str) -> None:
    service = Service()
    service.on(*route.split(), Answer(status=status, content=b"<html>nginx</html>"))  # type: ignore[arg-type]
    async with service.client() as client:
        with pytest.raises(errors.APIStatusError) as caught:
            await (client.models.list() if "models" in route else client.instances.list())
    assert f"{route} returned {status} " in str(caught.value)
    assert f"The base URL {API} looks wrong: check api_base_url (CORTECS_API_BASE_URL)." in str(caught.value)


@pytest.mark.parametrize("body", [b"<html>Welcome</html>", b'{"object": "list", "data": []}'])
async def test_another_site_means_a_wrong_base_url(body: bytes) -> None:
    service = Service()
    service.on("GET", "/models/", Answer(content=body))
    async with service.client(max_retries=0) as client:
        with pytest.raises(errors.DecodeError, match=r"[Cc]heck api_base_url \(CORTECS_API_BASE_URL\)"):
            await client.models.list()


def caused_by(cause: BaseException) -> Exception:
    """Return an error of httpx with a cause, as it comes out of its layers."""
    error = httpx.ConnectError("secret")
    error.__cause__ = OSError("All connection attempts failed")
    error.__cause__.__cause__ = cause
    return error


UNTRUSTED = ssl.SSLCertVerificationError(1, "secret")
UNTRUSTED.verify_message = "self-signed certificate"
NO_TLS = ssl.SSLError(1, "secret")
NO_TLS.reason = "WRONG_VERSION_NUMBER"


class OfAiohttp(ssl.SSLError):
    """An error without Python's attributes, as `aiohttp.ClientConnectorSSLError`."""

    __module__ = "aiohttp.client_exceptions"

    @property
    def reason(self) -> str:  # type: ignore[override]
        raise AttributeError


WRAPPED = OfAiohttp()
WRAPPED.__cause__ = NO_TLS


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (caused_by(ConnectionRefusedError(errno.ECONNREFUSED, "secret")), "connection refused"),
        (
            caused_by(ExceptionGroup("", [OSError(0, "?"), OSError(errno.ECONNREFUSED, "secret")])),
            "connection refused",
        ),
        (caused_by(socket.gaierror(-2, "secret")), "host name not found"),
        (caused_by(OSError(errno.EHOSTUNREACH, "secret")), "no route to the host"),
        (caused_by(UNTRUSTED), "TLS certificate not trusted: self-signed certificate"),
        (caused_by(NO_TLS), "TLS failed: wrong version number"),
        (caused_by(WRAPPED), "TLS failed: wrong version number"),
        (httpx.ConnectTimeout(""), "timed out while connecting"),
        (
            httpx.ProxyError("407 Proxy Authentication Required"),
            "the proxy rejected the connection: 407 Proxy Authentication Required",
        ),
        (httpx.ConnectError("unknown"), ""),
    ],
)
def test_the_reason_in_plain_words(error: Exception, expected: str) -> None:
    assert connection_problem(error) == expected


def test_a_circle_of_causes_ends() -> None:
    first, second = OSError("a"), OSError("b")
    first.__context__, second.__context__ = second, first
    assert connection_problem(first) == ""


@pytest.mark.sockets
@pytest.mark.parametrize("transport", ["httpx", "aiohttp"])
async def test_a_name_that_does_not_exist(transport: str, anyio_backend_name: str) -> None:
    if transport == "aiohttp":
        pytest.importorskip("aiohttp")
        if anyio_backend_name == "trio":
            pytest.skip("aiohttp works on asyncio only")
    url = "https://no-such-host.invalid/api/v1"
    options: dict[str, Any] = {"api_base_url": url, "anonymous": True, "transport": transport}
    async with AsyncCortecs(**options, max_retries=0) as client:
        with pytest.raises(errors.TransportError, match=f"Cannot reach {url} \\(host name not found\\)"):
            await client.models.list()


@pytest.mark.sockets
async def test_a_proxy_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HTTPS_PROXY", f"http://me:passw0rd@127.0.0.1:{free.getsockname()[1]}")
        async with AsyncCortecs(anonymous=True, max_retries=0) as client:
            with pytest.raises(errors.TransportError) as caught:
                await client.models.list()
    assert "(connection refused, through the proxy in HTTPS_PROXY)" in str(caught.value)
    assert "passw0rd" not in str(caught.value)
