"""Send requests to the endpoint of one instance, over aiohttp or httpx.

aiohttp takes a fraction of the CPU time of httpx, and sending requests is most of the work in a batch
(benchmarks: batch). httpx is for trio and for installations without aiohttp. Neither library notices every
byte that an endpoint sends without a request, so this module checks for such unsolicited bytes: they must not
become the answer to another request.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import select
import sys
from collections import deque
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from typing import Any, Literal, get_args
from urllib.parse import unquote, urlsplit

import anyio
from attrs import define, evolve, field, frozen

from .._aio.eventloop import in_trio, loop_clock
from .._config import Settings
from .._environment import Proxy
from .._errors import ConfigurationError, InvalidArgumentError
from .._extras import install_command
from .._http.body import ACCEPT_ENCODING, BodyError, read_body
from .._http.connections import Connections, HTTPClient, kind_of, tls_context
from .._http.exchange import open_socket
from .._http.messages import Failure, FailureKind
from .._http.retry import parse_retry_after
from .._platform import NO_LOCKS
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

# Maximum bytes of an answer. The largest are embeddings: two thousand vectors of four thousand numbers are
# 160 MB.
_MAX_ANSWER = 256 << 20

# An answer whose Content-Length has this many digits is read in one piece, which is faster than chunks.
_SHORT = range(1, 8)

# The minimum and maximum seconds that a connection is idle before it is used again: the minimum so that
# unsolicited bytes can arrive first, the maximum because servers close idle connections. Unsolicited bytes
# that arrive after the next request is sent cannot be distinguished from its answer.
_MIN_IDLE = 0.003
_MAX_IDLE = 15.0

# Maximum bytes of a header line.
_MAX_HEADER_LINE = 64 << 10

_REQUEST_TIMEOUT = 408


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

    The caller's own `http_client` is respected, because it may be needed for its proxies or certificates.
    """
    if transport not in get_args(BatchTransport):
        raise InvalidArgumentError(f"transport must be 'auto', 'aiohttp', or 'httpx', not {transport!r}")
    if transport == "httpx" or (transport == "auto" and (http_client is not None or in_trio())):
        return "httpx"
    if in_trio():
        raise ConfigurationError("transport='aiohttp' does not work on trio. Use 'auto' or 'httpx'.")
    try:
        importlib.import_module("aiohttp")
    except ImportError:
        if transport == "auto":
            return "httpx"
        raise ConfigurationError(
            f"transport='aiohttp' requires the aiohttp extra: {install_command('aiohttp')}"
        ) from None
    return "aiohttp"


@frozen(kw_only=True)
class SenderConfig:
    """State shared by all senders in a batch.

    Attributes:
        key_origin: The source of the key, for messages.
        timeout: The timeout of one attempt in seconds.
    """

    settings: Settings
    transport: Literal["aiohttp", "httpx"]
    http_client: HTTPClient | None
    key: Secret
    key_origin: str = ""
    timeout: float

    def sender(self, base_url: str) -> Sender:
        """Return a sender for an endpoint. The caller must close it."""
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
        self._keeps_alive = True  # until the endpoint sends more than answers

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        """Send a request once. Failures are returned, not raised.

        An exception's traceback would hold frames with the key.
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
            # Non-HTTP errors, such as an invalid host name, are failures too.
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
            # An endpoint may quote a rejected key.
            body = self._redactor.redact(body.decode("utf-8", "replace")).encode()
        request_id = headers.get("x-request-id") or None
        if request_id is not None:
            request_id = self._redactor.one_line(request_id) or None
        retry_after = parse_retry_after(headers, now=datetime.now(UTC)) if status >= 300 else None
        return Reply(status, body, request_id, retry_after)


async def _read(chunks: AsyncIterator[bytes], headers: Mapping[str, str]) -> bytes:
    return await read_body(chunks, headers.get("content-encoding", ""), _MAX_ANSWER)


class _AiohttpSender(Sender):
    """Sends over aiohttp connections. It must be created in the event loop.

    An aiohttp session takes more CPU time for a request than everything else in a batch. So this class writes
    to the connections and reads from them itself, and keeps the ones that can be used again.
    """

    def __init__(self, config: SenderConfig, proxy: Proxy | None) -> None:
        super().__init__(config)
        self._aiohttp: Any = importlib.import_module("aiohttp")
        self._url: Any = importlib.import_module("yarl").URL
        self._proxy: Any = None
        # A dictionary, because aiohttp adds a header to it.
        self._proxy_headers: dict[str, str] = {}
        if proxy is not None:
            url = urlsplit(proxy.url.reveal())
            login, _, host = url.netloc.rpartition("@")
            # Without the login, because aiohttp puts the URL into its errors.
            self._proxy = self._url(url._replace(netloc=host).geturl())
            if login:
                # aiohttp sends this header to the proxy as Proxy-Authorization.
                encoded = base64.b64encode(unquote(login).encode()).decode()
                self._proxy_headers["Authorization"] = f"Basic {encoded}"
                del encoded
            del url, login
        self._tls = tls_context(config.settings)
        # The worker pool already limits the number of requests.
        self._connector = self._aiohttp.TCPConnector(limit=0, ssl=self._tls, socket_factory=open_socket)
        self._connect_timeout = self._aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT)
        self._prepared: dict[str, tuple[Any, bytes]] = {}
        self._idle: deque[tuple[Any, float]] = deque()  # connections, and the time since when they are idle
        self._num_busy = self._most_busy = 0
        self._clock = loop_clock()

    async def _post(self, url: str, body: bytes) -> Reply:
        prepared = self._prepared.get(url)
        if prepared is None:
            prepared = self._prepared[url] = self._prepare(url)
        request, head = prepared
        async with asyncio.timeout(self._config.timeout):
            self._num_busy += 1
            self._most_busy = max(self._most_busy, self._num_busy)
            try:
                connection = await self._checkout(request)
            except BaseException:
                self._num_busy -= 1
                raise
            try:
                protocol = connection.protocol
                protocol.set_response_params(
                    read_until_eof=True,
                    auto_decompress=False,
                    max_line_size=_MAX_HEADER_LINE,
                    max_field_size=_MAX_HEADER_LINE,
                )
                connection.transport.writelines((head, b"%d\r\n\r\n" % len(body), body))
                message, payload = await protocol.read()
                while message.code < 200 and message.code != 101:
                    message, payload = await protocol.read()
                headers = message.headers
                if "content-encoding" not in headers and len(headers.get("content-length", "")) in _SHORT:
                    body = await payload.read()
                else:
                    body = await _read(payload.iter_any(), headers)
            except BaseException:
                connection.close()
                raise
            finally:
                self._num_busy -= 1
        if protocol._buffer:  # noqa: SLF001  (another response came with the answer)
            self._keeps_alive = False
        # Without a parser, aiohttp only stores any bytes that arrive later, which makes `should_close` true.
        protocol._parser = None  # noqa: SLF001
        # A server may send a 408 for an idle connection, just before a request arrives.
        if self._keeps_alive and message.code != _REQUEST_TIMEOUT:
            self._idle.append((connection, self._clock()))
        else:
            connection.close()
        return self._reply(message.code, headers, body)

    def _prepare(self, url: str) -> tuple[Any, bytes]:
        """Return a request for the connector, and the first bytes of each request."""
        headers = {**_HEADERS, "Authorization": self._authorization()}
        request = self._aiohttp.ClientRequest(
            "POST",
            self._url(url),
            headers=headers,
            loop=asyncio.get_running_loop(),
            proxy=self._proxy,
            proxy_headers=self._proxy_headers,
        )
        target = request.url.raw_path_qs
        headers["Host"] = request.headers["Host"]
        if self._proxy is not None and request.url.scheme == "http":
            target = str(request.url)
            if login := self._proxy_headers.get("Authorization"):
                headers["Proxy-Authorization"] = login
        lines = [f"POST {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return request, "\r\n".join([*lines, "Content-Length: "]).encode("latin-1")

    async def _checkout(self, request: Any) -> Any:
        """Return a connection on which no unsolicited bytes have arrived."""
        # The one that has been idle longest, so that unsolicited bytes had time to arrive.
        while self._idle:
            now, wait = self._clock(), self._idle[0][1] + _MIN_IDLE - self._clock()
            if wait > 0:
                # Not more connections than there were requests in flight, because a server may allow few.
                if self._num_busy + len(self._idle) <= self._most_busy:
                    break
                await asyncio.sleep(wait)
                continue
            connection, since = self._idle.popleft()
            if now - since < _MAX_IDLE and not connection.closed and not _has_unread(connection):
                return connection
            if getattr(connection.protocol, "_tail", b""):
                self._keeps_alive = False
            connection.close()
        try:
            connection = await self._connector.connect(request, [], self._connect_timeout)
        except TimeoutError:
            raise self._aiohttp.ConnectionTimeoutError(
                f"no connection within {_CONNECT_TIMEOUT:g} s"
            ) from None
        # Not with TLS, whose own messages after the handshake are readable too.
        if connection.transport.get_extra_info("ssl_object") is None and _has_unread(connection):
            connection.close()
            raise self._aiohttp.ClientConnectionError("the server sent data before a request")
        return connection

    async def aclose(self) -> None:
        for connection, _ in self._idle:
            connection.close()
        await self._connector.close()

    def _classify(self, error: Exception) -> FailureKind | None:
        aiohttp = self._aiohttp
        if isinstance(error, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)):
            return FailureKind.NOT_SENT
        if isinstance(error, TimeoutError):
            return FailureKind.TIMED_OUT
        if isinstance(error, (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError)):
            return FailureKind.LOST
        return None


def _has_unread(connection: Any) -> bool:
    """Return whether bytes have arrived on an idle connection, or it was closed."""
    if connection.protocol.should_close:
        return True
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    poll = select.poll()
    poll.register(connection.transport.get_extra_info("socket"), select.POLLIN)
    return bool(poll.poll(0))


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
                    if response.is_stream_consumed:  # by an event hook in the caller's client
                        body = response.content
                    else:
                        # Not `aiter_raw`, which would return the connection to its pool at the end.
                        stream: Any = response.stream
                        body = await _read(aiter(stream), response.headers)
                        await self._end_reuse_if_unread(response)
                finally:
                    await response.aclose()
        finally:
            pool.busy -= 1
        return self._reply(response.status_code, response.headers, body)

    async def _end_reuse_if_unread(self, response: Any) -> None:
        """Close a response's connection if more bytes arrive on it or the server closes it.

        httpcore would read those bytes as the next response.
        """
        stream = response.extensions.get("network_stream")
        connection = response.stream
        for name in ("_stream", "_httpcore_stream", "_stream", "_connection"):
            connection = getattr(connection, name, None)
        state = getattr(connection, "_h11_state", None)
        if stream is None or state is None:  # HTTP/2, or a transport that is not httpcore's
            return
        unread = state.trailing_data[0]
        if self._keeps_alive and not unread and response.status_code != _REQUEST_TIMEOUT:
            with anyio.move_on_after(_MIN_IDLE) as scope, contextlib.suppress(Exception):
                unread = await stream.read(1)
            if scope.cancelled_caught:
                return
        self._keeps_alive = self._keeps_alive and not unread
        # httpcore closes connections after a failed send.
        state.send_failed()

    async def aclose(self) -> None:
        await self._connections.aclose()

    def _classify(self, error: Exception) -> FailureKind | None:
        return FailureKind.TIMED_OUT if isinstance(error, TimeoutError) else kind_of(error)
