"""Send requests to the endpoint of one instance, over aiohttp or httpx.

aiohttp needs a third of the CPU that httpx needs, and a batch does little else (benchmarks: batch). httpx is
for trio, and for installations without aiohttp.
"""

from __future__ import annotations

import base64
import importlib
import io
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import anyio
from attrs import define, evolve, field, frozen

from .._aio.eventloop import in_trio
from .._config import Settings
from .._environment import Proxy
from .._errors import ConfigurationError, InvalidArgumentError
from .._http.body import ACCEPT_ENCODING, BodyError, read_body
from .._http.connections import Connections, HTTPClient, kind_of, open_socket, tls_context
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
    "Accept-Encoding": ACCEPT_ENCODING,
    "User-Agent": f"cortecs-async/{__version__}",
}

# Bytes of an answer. The largest are embeddings: two thousand vectors of four thousand numbers are 160 MB.
_MAX_ANSWER = 256 << 20

# aiohttp warns about larger bodies that are passed as bytes.
_LARGE_BODY = 1 << 20


@define
class Reply:
    """A response with any status."""

    status: int
    body: bytes = field(repr=False)
    request_id: str | None = None
    retry_after: float | None = None


def choose_transport(
    transport: BatchTransport, http_client: HTTPClient | None
) -> Literal["aiohttp", "httpx"]:
    """Return the transport to use.

    The caller's own `http_client` counts, because it may be there for its proxies or certificates.
    """
    if transport not in get_args(BatchTransport):
        raise InvalidArgumentError(f"transport must be 'auto', 'aiohttp' or 'httpx', not {transport!r}")
    if transport == "httpx" or (transport == "auto" and (http_client is not None or in_trio())):
        return "httpx"
    if in_trio():
        raise ConfigurationError("transport='aiohttp' does not work on trio; use 'auto' or 'httpx'")
    try:
        importlib.import_module("aiohttp")
    except ImportError:
        if transport == "auto":
            return "httpx"
        raise ConfigurationError(
            "transport='aiohttp' requires aiohttp: pip install 'cortecs-async[aiohttp]'"
        ) from None
    return "aiohttp"


@frozen(kw_only=True)
class SenderConfig:
    """What all senders of a batch share. `timeout` is in seconds, for one attempt."""

    settings: Settings
    transport: Literal["aiohttp", "httpx"]
    http_client: HTTPClient | None
    key: Secret
    timeout: float

    def sender(self, base_url: str) -> Sender:
        """Return a sender to an endpoint. Close it."""
        config = evolve(self, settings=evolve(self.settings, api_base_url=base_url.rstrip("/")))
        proxy = config.settings.proxy
        # aiohttp supports only plain HTTP proxies.
        if self.transport == "httpx" or (proxy is not None and proxy.scheme != "http"):
            return _HttpxSender(config)
        return _AiohttpSender(config, proxy)


class Sender:
    """Sends requests to one endpoint."""

    def __init__(self, config: SenderConfig) -> None:
        self._config = config
        self._redactor = Redactor()
        self._redactor.remember(config.key)

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        """Send a request once, and return failures instead of raising them.

        The traceback of an exception would hold frames with the key.
        """
        try:
            return await self._post(self._config.settings.api_base_url + path, body)
        except anyio.get_cancelled_exc_class() as cancelled:
            # The frames of the HTTP library hold the key and the body.
            cancelled.__traceback__ = None
            raise
        except BodyError as error:
            return Failure(kind=FailureKind.UNREADABLE, detail=f"the answer {error}")
        except Exception as error:  # noqa: BLE001  (see above)
            # Other errors than those of HTTP, such as an invalid host name, are failures too.
            kind = self._classify(error) or FailureKind.NOT_SENT
            if kind is FailureKind.TIMED_OUT:
                return Failure(kind=kind, detail=f"no answer within {self._config.timeout:g} s")
            detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return Failure(kind=kind, detail=self._redactor.one_line(detail))

    async def _post(self, url: str, body: bytes) -> Reply:
        raise NotImplementedError

    async def aclose(self) -> None:
        raise NotImplementedError

    def _classify(self, error: Exception) -> FailureKind | None:
        raise NotImplementedError

    def _authorization(self) -> str:
        return f"Bearer {self._config.key.reveal()}"

    def _reply(self, status: int, headers: Mapping[str, str], body: bytes) -> Reply:
        if status >= 300:
            # An endpoint may repeat the key that it rejects.
            body = self._redactor.redact(body.decode("utf-8", "replace")).encode()
        request_id = self._redactor.one_line(headers.get("x-request-id", "")) or None
        retry_after = parse_retry_after(headers, now=datetime.now(UTC)) if status >= 300 else None
        return Reply(status, body, request_id, retry_after)


async def _read(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
    return await read_body(chunks, headers.get("content-encoding", ""), _MAX_ANSWER)


class _AiohttpSender(Sender):
    """Sends over aiohttp. It must be created in the event loop."""

    def __init__(self, config: SenderConfig, proxy: Proxy | None) -> None:
        super().__init__(config)
        self._proxy: str | None = None
        self._proxy_headers: dict[str, str] | None = None
        if proxy is not None:
            url = urlsplit(proxy.url.reveal())
            login, _, host = url.netloc.rpartition("@")
            # Without the login, because aiohttp puts the URL into its errors.
            self._proxy = url._replace(netloc=host).geturl()
            if login:
                # aiohttp sends this header to the proxy as Proxy-Authorization.
                encoded = base64.b64encode(unquote(login).encode()).decode()
                self._proxy_headers = {"Authorization": f"Basic {encoded}"}
                del encoded
            del url, login
        # Not among the headers of the session, which aiohttp also sends to proxies.
        self._key_headers = {"Authorization": self._authorization()}
        self._aiohttp: Any = importlib.import_module("aiohttp")
        self._session = self._aiohttp.ClientSession(
            # The worker pool limits the number of requests.
            connector=self._aiohttp.TCPConnector(
                limit=0, ssl=tls_context(config.settings), socket_factory=open_socket
            ),
            headers=_HEADERS,
            # aiohttp would decompress without a limit.
            auto_decompress=False,
            cookie_jar=self._aiohttp.DummyCookieJar(),
            timeout=self._aiohttp.ClientTimeout(total=config.timeout, sock_connect=_CONNECT_TIMEOUT),
            # Otherwise aiohttp looks up the proxy for each request, and may take another key from ~/.netrc.
            trust_env=False,
        )

    async def _post(self, url: str, body: bytes) -> Reply:
        data = body if len(body) < _LARGE_BODY else io.BytesIO(body)
        async with self._session.post(
            url,
            data=data,
            headers=self._key_headers,
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
            allow_redirects=False,
        ) as response:
            body = await _read(response.content.iter_any(), response.headers)
            return self._reply(response.status, response.headers, body)

    async def aclose(self) -> None:
        await self._session.close()

    def _classify(self, error: Exception) -> FailureKind | None:
        aiohttp = self._aiohttp
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return FailureKind.NOT_SENT
        if isinstance(error, TimeoutError):
            return FailureKind.TIMED_OUT
        if isinstance(error, (aiohttp.ClientError, OSError)):
            return FailureKind.LOST
        return None


class _HttpxSender(Sender):
    def __init__(self, config: SenderConfig) -> None:
        super().__init__(config)
        self._connections = Connections(evolve(config.settings, transport="httpx"), config.http_client)
        self._headers = {**_HEADERS, "Authorization": self._authorization()}

    async def _post(self, url: str, body: bytes) -> Reply:
        pool = self._connections.checkout()
        pool.busy += 1
        try:
            request = pool.client.build_request(
                "POST", url, content=body, headers=self._headers, extensions={"timeout": _TIMEOUTS}
            )
            with anyio.fail_after(self._config.timeout):
                response = await pool.client.send(request, auth=None, follow_redirects=False, stream=True)
                try:
                    if response.is_stream_consumed:  # by an event hook of the caller's client
                        body = response.content
                    else:
                        body = await _read(response.aiter_raw(), response.headers)
                finally:
                    await response.aclose()
        finally:
            pool.busy -= 1
        return self._reply(response.status_code, response.headers, body)

    async def aclose(self) -> None:
        await self._connections.aclose()

    def _classify(self, error: Exception) -> FailureKind | None:
        return FailureKind.TIMED_OUT if isinstance(error, TimeoutError) else kind_of(error)
