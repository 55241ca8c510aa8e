"""Send one prepared request and read its response, with httpx or aiohttp.

`AsyncClient.send` spends CPU time on cookies, hooks, authentication, and redirects, which our requests do not
use. So on our own connections, requests go directly to the transport below the client, unless a tracing
library or the log needs `send`. The caller's own client is used as it is.
"""

from __future__ import annotations

import base64
import functools
import socket
import ssl
from collections.abc import AsyncIterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, cast

import httpx

from .._logging import is_httpx_logged
from .body import MAX_BODY, BodyError, read_body

if TYPE_CHECKING:
    import aiohttp

# Keep silent connections alive: NAT gateways drop them after minutes (AWS: 350 s), and a model's answer may
# take longer. The first probe is sent after a minute, then one every minute. The names differ between
# systems.
KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *(
        (socket.IPPROTO_TCP, getattr(socket, name), value)
        # macOS calls the first one TCP_KEEPALIVE.
        for name, value in (
            *(("TCP_KEEPIDLE", 60), ("TCP_KEEPALIVE", 60)),
            *(("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5)),
        )
        if hasattr(socket, name)
    ),
]

# Methods whose requests have a Content-Length even without a body.
_METHODS_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})

# The methods of `httpx.AsyncClient` that libraries replace to see its requests or to answer them: tracing
# libraries the first one, and vcrpy before version 8 the second one.
_REPLACED_METHODS = ("send", "_send_single_request")

# Maximum number of parsed URLs to keep. Most requests have one of a few URLs.
_MAX_URLS = 256

_REDIRECTS = frozenset({301, 302, 303, 307, 308})

HTTPX_VERSION: str = httpx.__version__

Headers = httpx.Headers


class Request:
    """A request to send once.

    Attributes:
        headers: All headers except Content-Length. The caller's own client adds its headers to them.
        body: JSON, or None.
        connect_timeout: Seconds to open a connection.
        pool_timeout: Seconds to wait for a free connection.
    """

    def __init__(
        self,
        *,
        method: str,
        url: str,
        headers: Headers,
        body: bytes | None = None,
        connect_timeout: float | None = None,
        pool_timeout: float | None = None,
    ) -> None:
        self.method = method
        self.url = url
        self.headers = headers
        self.body = body
        self.connect_timeout = connect_timeout
        self.pool_timeout = pool_timeout

    @property
    def extensions(self) -> dict[str, Any]:
        """The timeouts in httpx's format."""
        timeouts = {"connect": self.connect_timeout, "pool": self.pool_timeout, "read": None, "write": None}
        return {"timeout": timeouts}


class Response:
    """A response, and its decompressed body or the reason the body is invalid."""

    def __init__(
        self, *, status: int, headers: Mapping[str, str], body: bytes | None, problem: str = ""
    ) -> None:
        self.status = status
        self.headers = headers  # their names are case-insensitive
        self.body = body
        self.problem = problem


class Exchange(Protocol):
    """Sends requests and returns the responses. Raises the errors of its HTTP library."""

    async def send(self, request: Request, /) -> Response: ...

    async def aclose(self) -> None: ...


class HttpxExchange:
    """Sends requests with httpx.

    Args:
        client: Our own client, or the caller's.
        transport: The transport of our own client, or None for the caller's client.
    """

    def __init__(self, client: httpx.AsyncClient, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self.client = client
        self._transport = transport

    async def send(self, request: Request, /) -> Response:
        if self._transport is None or _is_watched():
            response = await self.client.send(
                self.build(request), auth=None, follow_redirects=False, stream=True
            )
        else:
            response = await self._transport.handle_async_request(self.build(request))
        try:
            if response.is_stream_consumed:  # by an event hook of the caller's client
                return Response(status=response.status_code, headers=response.headers, body=response.content)
            # Not `aiter_raw`, which adds only a wrapper.
            stream = cast("AsyncIterable[bytes]", response.stream)
            return await _read(response.status_code, response.headers, stream)
        finally:
            await response.aclose()

    def build(self, request: Request) -> httpx.Request:
        """Return the request as an httpx request."""
        if self._transport is None:
            # The caller's own client adds its headers, cookies, and parameters. If it has parameters, httpx
            # drops the ones in the URL.
            params = str(parse_url(request.url).params) if self.client.params else None
            return self.client.build_request(
                request.method,
                request.url,
                params=params,
                content=request.body,
                headers=request.headers,
                extensions=request.extensions,
            )
        # With `stream`, httpx takes the headers as they are, which is faster.
        built = httpx.Request(
            request.method,
            parse_url(request.url),
            headers=request.headers,
            stream=httpx.ByteStream(request.body or b""),
            extensions=request.extensions,
        )
        if request.body is not None or request.method in _METHODS_WITH_BODY:
            built.headers["Content-Length"] = str(len(request.body or b""))
        return built

    async def aclose(self) -> None:
        await self.client.aclose()


class AiohttpExchange:
    """Sends requests with aiohttp, in one pool of at most `max_connections` connections.

    Raises:
        ImportError: if aiohttp is not installed.
    """

    def __init__(
        self, tls: ssl.SSLContext, proxy: httpx.Proxy | None, *, max_connections: int, idle_timeout: float
    ) -> None:
        import aiohttp  # noqa: PLC0415  (optional, and slow to import)

        self._aiohttp = aiohttp
        self._tls = tls
        self._max_connections = max_connections
        self._idle_timeout = idle_timeout
        self._proxy: dict[str, Any] = {}
        if proxy is not None:
            self._proxy = {"proxy": str(proxy.url)}
            if proxy.auth is not None:
                login = base64.b64encode(":".join(proxy.auth).encode()).decode("ascii")
                # aiohttp sends this header to the proxy as Proxy-Authorization.
                self._proxy["proxy_headers"] = {"Authorization": f"Basic {login}"}
                del login
        self._opened: aiohttp.ClientSession | None = None

    async def send(self, request: Request, /) -> Response:
        if self._opened is None:
            self._opened = self._open()
        headers = [(name.decode("ascii"), value.decode("ascii")) for name, value in request.headers.raw]
        async with self._opened.request(
            request.method,
            _normalize_url(request.url),
            data=request.body,
            headers=headers,
            allow_redirects=False,
            timeout=self._aiohttp.ClientTimeout(
                total=None, connect=request.pool_timeout, sock_connect=request.connect_timeout
            ),
            **self._proxy,
        ) as response:
            # aiohttp's own headers hide all but one value of a repeated header.
            received = Headers(response.raw_headers)
            return await _read(response.status, received, response.content.iter_any())

    async def aclose(self) -> None:
        if self._opened is not None:
            await self._opened.close()

    def _open(self) -> aiohttp.ClientSession:
        """Create the session, which requires a running event loop."""
        connector = self._aiohttp.TCPConnector(
            limit=self._max_connections,
            keepalive_timeout=self._idle_timeout,
            ssl=self._tls,
            socket_factory=open_socket,
        )
        return self._aiohttp.ClientSession(
            connector=connector, cookie_jar=self._aiohttp.DummyCookieJar(), auto_decompress=False
        )


@functools.lru_cache(maxsize=_MAX_URLS)
def parse_url(url: str) -> httpx.URL:
    """Return the parsed URL. Parsing takes longer than building the rest of a request."""
    return httpx.URL(url)


@functools.lru_cache(maxsize=_MAX_URLS)
def _normalize_url(url: str) -> str:
    """Return the URL as httpx would send it."""
    return str(httpx.URL(url))


def with_params(url: str, params: Mapping[str, str]) -> str:
    """Return the URL with these query parameters."""
    return str(httpx.URL(url, params=params))


def is_usable_url(url: str) -> bool:
    """Return whether httpx can send requests to the URL."""
    try:
        # httpx decodes the host only on access.
        return bool(httpx.URL(url).host)
    except (httpx.InvalidURL, ValueError):
        return False


def _absolute(location: str, origin: httpx.URL) -> httpx.URL | None:
    try:
        return origin.join(location)
    except (httpx.InvalidURL, ValueError):  # the second one if its host cannot be encoded
        return None


def redirect_target(request: Request, response: Response) -> str | None:
    """Return the URL to follow, only if it has the same origin, because the request carries credentials."""
    location = response.headers.get("location")
    if location is None or response.status not in (_REDIRECTS if request.method == "GET" else {307, 308}):
        return None
    origin = parse_url(request.url)
    target = _absolute(location, origin)
    if target is None:
        return None
    # Raw, because decoding the host of a different origin can fail.
    is_same_origin = (target.scheme, target.raw_host, target.port) == (
        origin.scheme,
        origin.raw_host,
        origin.port,
    )
    return str(target) if is_same_origin and not target.userinfo else None


def has_bad_location(response: Response, base_url: str) -> bool:
    """Return whether the response is a redirect whose Location is not a URL."""
    location = response.headers.get("location")
    return (
        response.status in _REDIRECTS
        and location is not None
        and _absolute(location, parse_url(base_url)) is None
    )


def open_socket(address: tuple[Any, ...]) -> socket.socket:
    """Return a socket with TCP keep-alive, as a `socket_factory` for aiohttp."""
    family, kind, protocol, *_ = address
    opened = socket.socket(family, kind, protocol)
    for option in KEEP_ALIVE:
        opened.setsockopt(*option)
    return opened


async def _read(status: int, headers: Mapping[str, str], chunks: AsyncIterable[bytes]) -> Response:
    try:
        body = await read_body(aiter(chunks), headers.get("content-encoding", ""), MAX_BODY)
    except BodyError as error:
        return Response(status=status, headers=headers, body=None, problem=str(error))
    return Response(status=status, headers=headers, body=body)


def _is_watched() -> bool:
    """Return whether the log or a library observes the requests of `httpx.AsyncClient`."""
    return is_httpx_logged() or any(map(_is_replaced, _REPLACED_METHODS))


def _is_replaced(name: str) -> bool:
    method = getattr(httpx.AsyncClient, name, None)
    own_module = httpx.AsyncClient.__init__.__module__
    return hasattr(method, "__wrapped__") or getattr(method, "__module__", None) != own_module
