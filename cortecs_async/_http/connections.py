"""HTTP clients, and the small pools that hold them.

httpx goes through all connections in its pool whenever a request begins or ends. A hundred concurrent
requests use at least twice as much CPU in one pool as in pools of two (benchmarks: pool).
"""

from __future__ import annotations

import contextlib
import math
import ssl
import sys
from contextlib import AsyncExitStack
from http.cookiejar import CookieJar
from traceback import clear_frames, walk_tb
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import anyio
import httpx
from typing_extensions import override

from .._config import Settings
from .._errors import ConfigurationError
from .._extras import install_command
from .exchange import KEEP_ALIVE, AiohttpExchange, Exchange, HttpxExchange
from .messages import FailureKind
from .reasons import causes_of

if TYPE_CHECKING:
    import httpx2

    HTTPClient: TypeAlias = httpx.AsyncClient | httpx2.AsyncClient
    """The type of a caller's own `http_client`."""
else:
    HTTPClient = httpx.AsyncClient  # httpx2 may not be installed

# Concurrent requests in one httpx pool.
_POOL_SIZE = 2

# Seconds after which httpx closes an idle connection.
_IDLE_TIMEOUT = 5.0

# Concurrent requests not counted by the limiter: polls, a list, and a token request.
_MAX_POLLS = 24


class Pool:
    """Connections with their limit and their number of concurrent requests."""

    def __init__(self, exchange: Exchange, size: float) -> None:
        self.exchange = exchange
        self.size = size
        self.busy = 0
        self.idle_since = math.inf  # in seconds of `anyio.current_time`

    @property
    def client(self) -> httpx.AsyncClient:
        """The httpx client, for requests that read the response themselves. aiohttp has none."""
        return cast("HttpxExchange", self.exchange).client


class _NoCookies(CookieJar):
    """An empty cookie jar: the API does not set cookies, and extracting them costs CPU for every request."""

    @override
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class Connections:
    """A client's connections, or the caller's own HTTP client (`given`) instead.

    Raises:
        ConfigurationError: for a transport that is not installed, or for certificates or proxies in the
            environment that cannot be used.
    """

    def __init__(self, settings: Settings, given: HTTPClient | None = None) -> None:
        self._settings = settings
        self._given = None if given is None else _checked(given)
        self._tls: ssl.SSLContext | None = None
        # The first client is created now, so that bad certificates or proxies raise before anything is sent.
        self.pools: list[Pool] = [
            self._new_pool() if self._given is None else Pool(HttpxExchange(self._given), math.inf)
        ]
        self._retired: list[Pool] = []

    def checkout(self) -> Pool:
        """Return a pool that can take another request."""
        # The first pool with room, so that few requests keep few connections open.
        for pool in self.pools:
            if pool.busy < pool.size:
                return pool
        self.pools.append(self._new_pool())
        return self.pools[-1]

    def retire(self, pool: Pool) -> None:
        """Stop using an httpx pool for new requests, because a request was cancelled.

        If `task.cancel()` hits httpcore while it closes a response, the pool keeps the connection forever.
        """
        if pool in self.pools and pool.size == _POOL_SIZE:
            self.pools.remove(pool)
            self._retired.append(pool)

    async def prune(self) -> None:
        """Close pools that are no longer needed.

        The last one is closed if it is idle, because httpx closes idle connections only in a pool in use.
        """
        idle = [pool for pool in self._retired if not pool.busy]
        self._retired = [pool for pool in self._retired if pool.busy]
        last = self.pools[-1] if len(self.pools) > 1 else None
        if last is not None and not last.busy and anyio.current_time() - last.idle_since >= _IDLE_TIMEOUT:
            idle.append(self.pools.pop())
        for pool in idle:
            # Its errors are irrelevant for the request about to be sent.
            with contextlib.suppress(Exception):
                await pool.exchange.aclose()

    async def aclose(self) -> None:
        """Close our own connections but not the caller's client."""
        async with AsyncExitStack() as stack:
            for pool in (*self.pools, *self._retired):
                if self._given is None:
                    stack.push_async_callback(pool.exchange.aclose)

    def new_exchange(self) -> Exchange:
        """Create connections of our own. Raises the same errors as the class."""
        settings = self._settings
        if self._tls is None:
            self._tls = tls_context(settings)
        proxy = _proxy(settings, self._tls)
        if settings.transport == "aiohttp":
            try:
                return AiohttpExchange(
                    self._tls,
                    proxy,
                    # aiohttp has one pool, with extra room for polls, which are not limited.
                    max_connections=settings.max_connections + _MAX_POLLS,
                    idle_timeout=_IDLE_TIMEOUT,
                )
            except ImportError:
                raise ConfigurationError(
                    f"transport='aiohttp' requires the aiohttp extra: {install_command('aiohttp')}"
                ) from None
        transport = httpx.AsyncHTTPTransport(
            verify=self._tls,
            proxy=proxy,
            # Unlimited: the limiter decides which requests are sent.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=_POOL_SIZE),
            socket_options=KEEP_ALIVE,
        )
        client = httpx.AsyncClient(transport=transport, trust_env=False, cookies=_NoCookies())
        return HttpxExchange(client, transport)

    def _new_pool(self) -> Pool:
        return Pool(self.new_exchange(), _POOL_SIZE if self._settings.transport == "httpx" else math.inf)


def _checked(given: HTTPClient) -> httpx.AsyncClient:
    """Return the caller's client if it comes from httpx or httpx2. The parts we use are the same in both."""
    if not _is_instance(given, "AsyncClient"):
        raise ConfigurationError(
            "http_client must be an httpx.AsyncClient or an httpx2.AsyncClient, not "
            f"{type(given).__module__}.{type(given).__qualname__}"
        )
    return cast("httpx.AsyncClient", given)


def _is_instance(value: object, *names: str) -> bool:
    """Return whether this is an instance of one of these classes in httpx, or in httpx2 if it is loaded."""
    libraries: list[ModuleType] = [httpx]
    if (httpx2 := sys.modules.get("httpx2")) is not None:
        libraries.append(httpx2)
    return any(isinstance(value, getattr(library, name)) for library in libraries for name in names)


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context, with the certificates from the environment if it specifies any.

    Raises:
        ConfigurationError: if the certificates cannot be loaded. The message identifies the variable.
    """
    if not settings.uses_tls:
        # Loading certificates takes longer than creating the rest of a client.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return settings.environment.tls_context() or httpx.create_ssl_context(trust_env=False)


def _proxy(settings: Settings, tls: ssl.SSLContext) -> httpx.Proxy | None:
    proxy = settings.proxy
    if proxy is None:
        return None
    if settings.transport == "aiohttp" and proxy.scheme != "http":
        raise ConfigurationError(
            f"transport='aiohttp' needs an http:// proxy, but {proxy.variable} is not one. "
            "Use transport='httpx'."
        )
    with contextlib.suppress(httpx.InvalidURL, ValueError):
        return httpx.Proxy(proxy.url.reveal(), ssl_context=tls if proxy.scheme == "https" else None)
    raise ConfigurationError(f"{proxy.variable} is not a URL that httpx can use. Check its host and port.")


def kind_of(error: Exception) -> FailureKind | None:
    """Return the kind of failure of an attempt that raised this error, or None if it is not an HTTP error."""
    if _is_instance(error, "PoolTimeout"):
        return FailureKind.NOT_SENT
    if _is_instance(error, "ConnectError", "ConnectTimeout", "ProxyError"):
        return FailureKind.NOT_SENT if was_not_sent(error) else FailureKind.LOST
    if _is_instance(error, "TimeoutException"):
        return FailureKind.TIMED_OUT
    # httpx parses a Location header even if it does not follow it; idna's errors are UnicodeErrors.
    is_lost = _is_instance(error, "HTTPError", "InvalidURL") or isinstance(error, UnicodeError)
    return FailureKind.LOST if is_lost else _kind_of_aiohttp(error)


def forget_locals(error: BaseException | None) -> None:
    """Clear the locals in an error's tracebacks, because httpx frames hold the token and the body."""
    for each in causes_of(error):
        clear_frames(each.__traceback__)


def _kind_of_aiohttp(error: BaseException | None) -> FailureKind | None:
    """Return the kind of failure if this error comes from aiohttp."""
    aiohttp = sys.modules.get("aiohttp")
    if aiohttp is None or not isinstance(error, aiohttp.ClientError):
        return None
    not_sent = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    if isinstance(error, not_sent):
        return FailureKind.NOT_SENT
    return FailureKind.TIMED_OUT if isinstance(error, aiohttp.ServerTimeoutError) else FailureKind.LOST


def was_not_sent(error: Exception) -> bool:
    """Return whether a connection error of httpx proves that nothing was sent."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    # The caller's client may be one of httpx-aiohttp, which calls any lost connection a ConnectTimeout.
    if not any(str(frame.f_globals.get("__name__")).startswith("httpx_aiohttp") for frame in frames):
        return True
    return _kind_of_aiohttp(error.__cause__) is FailureKind.NOT_SENT


def is_pool_timeout(error: Exception) -> bool:
    """Return whether no connection became free in time. aiohttp includes the time to connect."""
    aiohttp = sys.modules.get("aiohttp")
    return _is_instance(error, "PoolTimeout") or (
        aiohttp is not None
        and any(isinstance(each, aiohttp.ConnectionTimeoutError) for each in (error, error.__cause__))
    )
