"""HTTP clients, and the small pools that hold them.

httpx goes through all connections of its pool whenever a request begins or ends. A hundred concurrent
requests take at least twice as much CPU in one pool as in pools of two (benchmarks: pool).
"""

from __future__ import annotations

import contextlib
import math
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from http.cookiejar import CookieJar
from traceback import walk_tb
from typing import Any

import anyio
import httpx
from attrs import define
from typing_extensions import override

from .._config import Settings
from .._errors import ConfigurationError
from .messages import FailureKind

HTTPClient = httpx.AsyncClient
"""The type of a caller's own `http_client`."""


# Concurrent requests on one of httpx's pools.
_POOL_SIZE = 2

# Seconds after which httpx closes an idle connection.
_IDLE_TIMEOUT = 5.0

# Concurrent requests that the limiter does not count: polls, a list, and a token request.
_MAX_POLLS = 24


@define(eq=False)
class Pool:
    """An HTTP client, with its limit and its number of concurrent requests."""

    client: httpx.AsyncClient
    size: float
    busy: int = 0
    idle_since: float = math.inf  # in seconds of `anyio.current_time`


class _NoCookies(CookieJar):
    """An empty cookie jar: the API sets no cookies, and extracting them costs CPU with every request."""

    @override
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class Connections:
    """The connections of a client, or the caller's own HTTP client (`given`) instead.

    Raises:
        ConfigurationError: for a transport that is not installed, or for certificates or proxies in the
            environment that cannot be used.
    """

    def __init__(self, settings: Settings, given: HTTPClient | None = None) -> None:
        self._settings = settings
        self._given = given
        self._tls: ssl.SSLContext | None = None
        # The first is created now, so that bad certificates or proxies raise before anything is sent.
        self.pools: list[Pool] = [Pool(given, math.inf) if given is not None else self._new_pool()]

    def checkout(self) -> Pool:
        """Return a pool that can take another request."""
        # The first with room, so that few requests keep few connections open.
        for pool in self.pools:
            if pool.busy < pool.size:
                return pool
        try:
            pool = self._new_pool()
        except ConfigurationError:
            # The environment has changed since the first pool. A full pool is only slower.
            return min(self.pools, key=lambda each: each.busy)
        self.pools.append(pool)
        return pool

    async def prune(self) -> None:
        """Close the last pool if it is idle: httpx closes idle connections only of a pool in use."""
        last = self.pools[-1]
        if len(self.pools) == 1 or last.busy or anyio.current_time() - last.idle_since < _IDLE_TIMEOUT:
            return
        self.pools.pop()
        # Its errors do not concern the request that is about to be sent.
        with contextlib.suppress(Exception):
            await last.client.aclose()

    async def aclose(self) -> None:
        """Close our own connections, but not the caller's client."""
        async with AsyncExitStack() as stack:
            for pool in self.pools:
                if pool.client is not self._given:
                    stack.push_async_callback(pool.client.aclose)

    def new_client(self) -> httpx.AsyncClient:
        """Create an HTTP client with its own connections. It raises the same errors as the class."""
        create: Callable[..., httpx.AsyncClient] = httpx.AsyncClient
        max_connections: int | None = None
        if self._settings.transport == "aiohttp":
            # aiohttp has one pool, with room for polls, which are not limited.
            create, max_connections = client_class(), self._settings.max_connections + _MAX_POLLS
        # Pools of httpx are unlimited: the limiter decides which requests are sent.
        limits = httpx.Limits(max_connections=max_connections, max_keepalive_connections=_POOL_SIZE)
        if self._tls is None:
            self._tls = tls_context(self._settings)
        try:
            return create(
                trust_env=trusts_environment(self._settings),
                verify=self._tls,
                cookies=_NoCookies(),
                limits=limits,
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            problem = _problem(error)
        raise ConfigurationError(problem)

    def _new_pool(self) -> Pool:
        return Pool(self.new_client(), _POOL_SIZE if self._settings.transport == "httpx" else math.inf)


def trusts_environment(settings: Settings) -> bool:
    """Return whether proxies and certificates of the environment are used.

    A proxy would take a loopback request, and its secrets, off this machine.
    """
    return not settings.is_loopback


def tls_context(settings: Settings) -> ssl.SSLContext:
    """Return the TLS context, with the certificates of the environment if those are used."""
    try:
        return httpx.create_ssl_context(trust_env=trusts_environment(settings))
    except (OSError, ValueError) as error:
        problem = _problem(error)
    raise ConfigurationError(problem)


def _problem(error: Exception) -> str:
    # The message of an error about a proxy may hold the password of its URL.
    text = f": {error}" if isinstance(error, OSError) else ""
    return (
        f"the certificates or proxies of the environment cannot be used ({type(error).__name__}{text}). "
        "Check SSL_CERT_FILE, SSL_CERT_DIR, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or pass http_client="
    )


def kind_of(error: Exception) -> FailureKind | None:
    """Return how an attempt that raised this error failed; None if it is not an error of HTTP."""
    match error:
        case httpx.PoolTimeout():
            return FailureKind.NOT_SENT
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            return FailureKind.NOT_SENT if was_not_sent(error) else FailureKind.LOST
        case httpx.TimeoutException():
            return FailureKind.TIMED_OUT
        case httpx.HTTPError() | httpx.InvalidURL() | UnicodeError():
            # httpx parses a Location header even when it does not follow it; idna's errors are UnicodeErrors.
            return FailureKind.LOST
        case _:
            return FailureKind.LOST if is_of_aiohttp(error) else None


def client_class() -> Any:
    """Return the subclass of `httpx.AsyncClient` that uses aiohttp."""
    try:
        from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415  (optional, and slow to import)
    except ImportError:
        raise ConfigurationError(
            "transport='aiohttp' requires the extra aiohttp: pip install 'cortecs-async[aiohttp]'"
        ) from None
    return HttpxAiohttpClient


def is_of_aiohttp(error: BaseException | None) -> bool:
    """Return whether this is an error of aiohttp, which httpx-aiohttp does not always translate."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error, aiohttp.ClientError)


def was_not_sent(error: Exception) -> bool:
    """Return whether an error of connecting proves that nothing was sent."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    if not any(str(frame.f_globals.get("__name__")).startswith("httpx_aiohttp") for frame in frames):
        return True
    aiohttp = sys.modules["aiohttp"]
    not_sent = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    return isinstance(error.__cause__, not_sent)


def is_pool_timeout(error: Exception) -> bool:
    """Return whether no connection became free in time. aiohttp includes the time for connecting."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error.__cause__, aiohttp.ConnectionTimeoutError)
