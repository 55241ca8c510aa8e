"""Requests to the endpoint of one instance, over the fastest transport that there is.

aiohttp by itself takes a third of the CPU of the same over httpx, and a batch is made of nothing else
(benchmarks: batch). Where it is not installed, and on trio, it is httpx.
"""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Literal, Protocol, Self, get_args
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies, proxy_bypass

import anyio
from attrs import define, evolve, field, frozen

from .._aio.eventloop import in_trio
from .._config import Settings
from .._errors import ConfigurationError, InvalidArgumentError
from .._http.connections import Connections, HTTPClient, kind_of, tls_context, trusts_environment
from .._http.messages import Failure, FailureKind
from .._http.retry import parse_retry_after
from .._secrets import Redactor, Secret
from .._version import __version__

BatchTransport = Literal["auto", "aiohttp", "httpx"]

_CONNECT_TIMEOUT = 10.0
_TIMEOUTS = {"connect": _CONNECT_TIMEOUT, "read": None, "write": None, "pool": None}

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json",
    "User-Agent": f"cortecs-async/{__version__}",
}

# aiohttp warns of larger ones that are given as bytes.
_LARGE = 1 << 20


@define
class Reply:
    """An answer, whatever its status."""

    status: int
    body: bytes = field(repr=False)
    request_id: str | None = None
    retry_after: float | None = None


class Sender(Protocol):
    """Sends requests to one endpoint."""

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        """Sends a request once. Failures are values: an exception would take along what holds the key."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


def choose_transport(wanted: BatchTransport, given: HTTPClient | None) -> Literal["aiohttp", "httpx"]:
    """The transport that there will be.

    Args:
        wanted: By the caller.
        given: A client of the caller's own: it may be there for its proxies or certificates.

    Raises:
        ConfigurationError: when it is aiohttp that is wanted, and cannot be had.
        InvalidArgumentError: for another word.
    """
    if wanted not in get_args(BatchTransport):
        raise InvalidArgumentError(f"transport must be 'auto', 'aiohttp' or 'httpx', not {wanted!r}")
    if wanted == "httpx" or (wanted == "auto" and (given is not None or in_trio())):
        return "httpx"
    if in_trio():
        raise ConfigurationError("transport='aiohttp' is for asyncio: on trio leave it out")
    try:
        importlib.import_module("aiohttp")
    except ImportError:
        if wanted == "auto":
            return "httpx"
        raise ConfigurationError(
            "transport='aiohttp' needs it installed: pip install 'cortecs-async[aiohttp]'"
        ) from None
    return "aiohttp"


@frozen(kw_only=True)
class Access:
    """How endpoints are reached.

    Attributes:
        settings: The client's.
        transport: What carries the requests.
        given: The caller's own HTTP client.
        key: For inference.
        timeout: Seconds for one attempt.
    """

    settings: Settings
    transport: Literal["aiohttp", "httpx"]
    given: HTTPClient | None
    key: Secret
    timeout: float

    def sender(self, base_url: str) -> Sender:
        """A sender to an endpoint; to be entered."""
        there = evolve(self, settings=evolve(self.settings, api_base_url=base_url.rstrip("/")))
        proxy = _proxy_of(there.settings)
        # aiohttp knows only the plain ones.
        if self.transport == "httpx" or (proxy is not None and not proxy.reveal().startswith("http://")):
            return _OverHttpx(there)
        return _OverAiohttp(there, proxy)


class _Base:
    """What both have in common."""

    def __init__(self, access: Access) -> None:
        self._settings = access.settings
        self._access = access
        self._timeout = access.timeout
        self._redactor = Redactor()
        self._redactor.remember(access.key)

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        """See `Sender`."""
        try:
            return await self._post(self._settings.api_base_url + path, body)
        except anyio.get_cancelled_exc_class() as cancelled:
            # The locals of the HTTP stack's frames hold the key and the body.
            cancelled.__traceback__ = None
            raise
        except Exception as error:  # noqa: BLE001  (see below)
            # What is no failure of HTTP, such as a host that is none, is a failure all the same: an exception
            # would take along the frames that hold the key.
            kind = self._kind_of(error) or FailureKind.NOT_SENT
            if kind is FailureKind.TIMED_OUT:
                return Failure(kind=kind, detail=f"no answer within {self._timeout:g} s")
            said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return Failure(kind=kind, detail=self._redactor.redact(said))

    async def _post(self, url: str, body: bytes) -> Reply:
        raise NotImplementedError

    def _kind_of(self, error: Exception) -> FailureKind | None:
        raise NotImplementedError

    def _authorization(self) -> str:
        return f"Bearer {self._access.key.reveal()}"

    def _sort(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        if status >= 300:
            # An endpoint may repeat what it refuses: the key.
            body = self._redactor.redact(body.decode("utf-8", "replace")).encode()
        request_id = headers.get("x-request-id")
        retry_after = parse_retry_after(headers, now=datetime.now(UTC)) if status >= 300 else None
        return Reply(status, body, request_id, retry_after)


def _proxy_of(settings: Settings) -> Secret | None:
    """The proxy that the environment names for these; its URL may have a password."""
    if not trusts_environment(settings):
        return None
    url = urlsplit(settings.api_base_url)
    proxies = getproxies()
    proxy = Secret(proxies.get(url.scheme) or proxies.get("all") or "")
    del proxies  # a traceback that shows locals would show it
    # With the port and without: both may be what is excepted.
    if not proxy.reveal() or proxy_bypass(url.netloc) or proxy_bypass(url.hostname or ""):
        return None
    return proxy if "://" in proxy.reveal() else Secret(f"http://{proxy.reveal()}")


class _OverAiohttp(_Base):
    def __init__(self, access: Access, proxy: Secret | None) -> None:
        super().__init__(access)
        self._proxy: str | None = None
        self._login: dict[str, str] | None = None
        if proxy is not None:
            url = urlsplit(proxy.reveal())
            login, _, host = url.netloc.rpartition("@")
            # Without the login, which aiohttp would tell in its errors.
            self._proxy = url._replace(netloc=host).geturl()
            if login:
                # Of the headers for a proxy, aiohttp makes Proxy-Authorization of this one.
                encoded = base64.b64encode(unquote(login).encode()).decode()
                self._login = {"Authorization": f"Basic {encoded}"}
                del encoded
            del url, login
        self._aiohttp: Any = importlib.import_module("aiohttp")
        self._session: Any = None
        # Not among the session's headers, which aiohttp shows to proxies as well.
        self._key = {"Authorization": self._authorization()}

    async def __aenter__(self) -> Self:
        aiohttp = self._aiohttp
        self._session = aiohttp.ClientSession(
            # How many are under way is decided before.
            connector=aiohttp.TCPConnector(limit=0, ssl=tls_context(self._settings)),
            headers=_HEADERS,
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=self._timeout, sock_connect=_CONNECT_TIMEOUT),
            # For each request it would look for a proxy, and read ~/.netrc, where it may find another key.
            trust_env=False,
        )
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._session.close()

    async def _post(self, url: str, body: bytes) -> Reply:
        data = body if len(body) < _LARGE else io.BytesIO(body)
        async with self._session.post(
            url,
            data=data,
            headers=self._key,
            proxy=self._proxy,
            proxy_headers=self._login,
            allow_redirects=False,
        ) as response:
            return self._sort(response.status, response.headers, await response.read())

    def _kind_of(self, error: Exception) -> FailureKind | None:
        aiohttp = self._aiohttp
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return FailureKind.NOT_SENT
        if isinstance(error, TimeoutError):
            return FailureKind.TIMED_OUT
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return FailureKind.LOST
        return None


class _OverHttpx(_Base):
    def __init__(self, access: Access) -> None:
        super().__init__(access)
        self._connections = Connections(evolve(self._settings, transport="httpx"), access.given)
        self._headers = {**_HEADERS, "Authorization": self._authorization()}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._connections.aclose()

    async def _post(self, url: str, body: bytes) -> Reply:
        pool = self._connections.checkout()
        pool.busy += 1
        try:
            request = pool.client.build_request(
                "POST", url, content=body, headers=self._headers, extensions={"timeout": _TIMEOUTS}
            )
            with anyio.fail_after(self._timeout):
                response = await pool.client.send(request, auth=None, follow_redirects=False)
        finally:
            pool.busy -= 1
        return self._sort(response.status_code, response.headers, response.content)

    def _kind_of(self, error: Exception) -> FailureKind | None:
        return FailureKind.TIMED_OUT if isinstance(error, TimeoutError) else kind_of(error)
