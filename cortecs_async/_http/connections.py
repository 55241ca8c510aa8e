"""HTTP clients, and the pools that they are kept in.

httpx works through all connections of its pool whenever a request begins or ends, so that a hundred at a time
take twice the CPU in one pool that they take in pools of two, and more (benchmarks: pool).
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
"""What a caller may bring along as `http_client`."""


# Requests at a time on one of httpx's pools.
_POOL_SIZE = 2

# Seconds after which httpx gives up an idle connection.
_IDLE = 5.0

# Looks that may be under way beside what is counted: a tick of the poller, a list, and a token.
_LOOKS = 24


@define(eq=False)
class Pool:
    """A client, and how many requests are on it."""

    client: httpx.AsyncClient
    size: float
    busy: int = 0
    idle_since: float = math.inf


class _NoCookies(CookieJar):
    """An empty cookie jar: the API sets no cookies, and extracting them costs CPU with every request."""

    @override
    def extract_cookies(self, response: Any, request: Any) -> None:
        pass


class Connections:
    """The connections of a client.

    Args:
        settings: The client's.
        given: The caller's own client, to be used instead of ours.

    Raises:
        ConfigurationError: for a transport that is not installed, or for certificates or proxies of
            the environment that cannot be used.
    """

    def __init__(self, settings: Settings, given: HTTPClient | None = None) -> None:
        self._settings = settings
        self._given = given
        self._tls: ssl.SSLContext | None = None
        # The first at once: what is wrong with certificates or proxies must show before anything is sent.
        self.pools: list[Pool] = [Pool(given, math.inf) if given is not None else self._new_pool()]

    def checkout(self) -> Pool:
        """A pool with room for one more."""
        # The first with room, so that few requests keep few connections warm.
        for pool in self.pools:
            if pool.busy < pool.size:
                return pool
        try:
            pool = self._new_pool()
        except ConfigurationError:
            # The environment has changed since the first. Only slower, and a request may be under way.
            return min(self.pools, key=lambda each: each.busy)
        self.pools.append(pool)
        return pool

    async def prune(self) -> None:
        """Closes a pool that a burst has left behind: httpx closes idle connections only of a pool in use."""
        last = self.pools[-1]
        if len(self.pools) == 1 or last.busy or anyio.current_time() - last.idle_since < _IDLE:
            return
        self.pools.pop()
        # What goes wrong with it is no matter of the request that comes along.
        with contextlib.suppress(Exception):
            await last.client.aclose()

    async def aclose(self) -> None:
        """Closes our own connections; not the caller's client."""
        async with AsyncExitStack() as stack:
            for pool in self.pools:
                if pool.client is not self._given:
                    stack.push_async_callback(pool.client.aclose)

    def new_client(self) -> httpx.AsyncClient:
        """An HTTP client with connections of its own.

        Raises:
            ConfigurationError: see the class.
        """
        make: Callable[..., httpx.AsyncClient] = httpx.AsyncClient
        bound: int | None = None
        if self._settings.transport == "aiohttp":
            # Of aiohttp there is one pool, with room for looks, which are not counted.
            make, bound = client_class(), self._settings.max_connections + _LOOKS
        # Those of httpx are unbounded: who may send is decided before, and to wait in a pool is slower still.
        limits = httpx.Limits(max_connections=bound, max_keepalive_connections=_POOL_SIZE)
        try:
            if self._tls is None:
                self._tls = tls_context(self._settings)
            return make(
                trust_env=trusts_environment(self._settings),
                verify=self._tls,
                cookies=_NoCookies(),
                limits=limits,
            )
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            if isinstance(error, ConfigurationError):
                raise
            problem = _problem(error)
        raise ConfigurationError(problem)

    def _new_pool(self) -> Pool:
        return Pool(self.new_client(), _POOL_SIZE if self._settings.transport == "httpx" else math.inf)


def trusts_environment(settings: Settings) -> bool:
    """Whether proxies and certificates of the environment are used.

    A proxy from the environment would carry a loopback request, and its secrets, off this machine.
    """
    return not settings.is_loopback


def tls_context(settings: Settings) -> ssl.SSLContext:
    """What servers are trusted.

    Raises:
        ConfigurationError: for certificates of the environment that cannot be used.
    """
    try:
        return httpx.create_ssl_context(trust_env=trusts_environment(settings))
    except (OSError, ValueError) as error:
        problem = _problem(error)
    raise ConfigurationError(problem)


def _problem(error: Exception) -> str:
    # Not what is said of a proxy, whose URL may hold a password.
    said = f": {error}" if isinstance(error, OSError) else ""
    return (
        f"the certificates or proxies of the environment cannot be used ({type(error).__name__}{said}): "
        "look at SSL_CERT_FILE, SSL_CERT_DIR, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or pass http_client="
    )


def kind_of(error: Exception) -> FailureKind | None:
    """How an attempt failed that raised this; None for what is no failure of HTTP."""
    match error:
        case httpx.PoolTimeout():
            return FailureKind.NOT_SENT
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            return FailureKind.NOT_SENT if was_not_sent(error) else FailureKind.LOST
        case httpx.TimeoutException():
            return FailureKind.TIMED_OUT
        case httpx.HTTPError() | httpx.InvalidURL() | UnicodeError():
            # The last two: httpx reads a Location even when it is not to follow it, and idna's errors are
            # UnicodeErrors.
            return FailureKind.LOST
        case _:
            return FailureKind.LOST if is_of_aiohttp(error) else None


def client_class() -> Any:
    """A subclass of `httpx.AsyncClient`.

    Raises:
        ConfigurationError: when it is not installed.
    """
    try:
        from httpx_aiohttp import HttpxAiohttpClient  # noqa: PLC0415  (optional, and slow to import)
    except ImportError:
        raise ConfigurationError(
            "transport='aiohttp' needs two packages more: pip install 'cortecs-async[aiohttp]'"
        ) from None
    return HttpxAiohttpClient


def is_of_aiohttp(error: BaseException | None) -> bool:
    """Whether this is an error of aiohttp's own, which httpx-aiohttp does not always translate."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error, aiohttp.ClientError)


def was_not_sent(error: Exception) -> bool:
    """Whether it is true of an error of connecting that nothing was sent."""
    frames = (frame for frame, _ in walk_tb(error.__traceback__))
    if not any(str(frame.f_globals.get("__name__")).startswith("httpx_aiohttp") for frame in frames):
        return True
    aiohttp = sys.modules["aiohttp"]
    never = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.ClientHttpProxyError)
    return isinstance(error.__cause__, never)


def found_none_free(error: Exception) -> bool:
    """Whether there was no connection in the time allowed for that; aiohttp counts the connecting in."""
    aiohttp = sys.modules.get("aiohttp")
    return aiohttp is not None and isinstance(error.__cause__, aiohttp.ConnectionTimeoutError)
