"""One attempt of a request: onto the wire, and what comes back as data or as a failure.

The only module that imports httpx: a move to another HTTP client is a change to this file alone.
"""

from __future__ import annotations

import contextlib
import json
import math
import platform
import ssl
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from http.cookiejar import CookieJar
from typing import Any

import anyio
import httpx
from attrs import define, field, frozen

from ._aiohttp import client_class, found_none_free, is_of_aiohttp, was_not_sent
from ._auth import Token
from ._config import Secret, Settings
from ._detached import in_trio
from ._errors import ClientClosedError, ConfigurationError
from ._messages import Call, Reply
from ._redact import Redactor
from ._retry import Failure, Kind, parse_retry_after
from ._slots import Urgency
from ._version import __version__

HTTPClient = httpx.AsyncClient
"""What a caller may bring along as `http_client`."""

USER_AGENT = f"cortecs-async/{__version__} python/{platform.python_version()} httpx/{httpx.__version__}"

_EXCERPT = 300
_MAX_REDIRECTS = 3
_CONNECT_TIMEOUT = 10.0

# Requests at a time on one of httpx's pools. It goes through all of its connections, with system calls, at
# the beginning and the end of each request: a hundred in one pool take twice the CPU that they do in pools of
# two, and more (benchmarks: pool).
_POOL_SIZE = 2

# Seconds after which httpx gives up an idle connection.
_IDLE = 5.0

# Looks that may be under way beside what is counted: a tick of the poller, a list, and a token.
_LOOKS = 24

# Seconds to wait for a connection of the caller's own client, before what is urgent takes one of ours.
_PATIENCE = 1.0


@frozen
class _Signed:
    """The headers of a request: the same as long as the token is."""

    token: Token | None
    is_ours: bool  # or goes out on the caller's client, which adds its own
    headers: httpx.Headers = field(repr=False)


@define(eq=False)
class _Pool:
    client: httpx.AsyncClient
    size: float
    busy: int = 0
    idle_since: float = math.inf


class _NoCookies(CookieJar):
    """The API knows none, and to look for them takes some percent of every request's CPU."""

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Takes none."""


class Transport:
    """The connections of a client.

    Args:
        settings: The client's.
        redactor: Knows what must not show.
        http_client: The caller's own client, to be used instead of ours.

    Raises:
        ConfigurationError: for a base URL that nothing can be sent to, a transport that is not installed, or
            certificates or proxies in the environment that cannot be used.
    """

    def __init__(self, settings: Settings, redactor: Redactor, http_client: HTTPClient | None) -> None:
        _check_url(settings.api_base_url)
        self._settings = settings
        self._redactor = redactor
        self._given = http_client
        self._tls: ssl.SSLContext | None = None
        # The first at once: what is wrong with certificates or proxies must show before anything is sent.
        self._pools = [_Pool(http_client, math.inf) if http_client is not None else self._new_pool()]
        # For what cannot wait, when the caller's client has no connection left.
        self._spare: _Pool | None = None
        self._is_closed = False
        self._signed: _Signed | None = None

    async def send(self, call: Call, token: Token | None, attempts: int, timeout: float) -> Reply | Failure:
        """Sends a request once.

        Failures are values, not exceptions: an exception from inside httpx would take along frames whose
        locals hold the token and the body.

        Args:
            call: What to send.
            token: Authorizes it.
            attempts: For the reply: how often it was sent, with this one.
            timeout: Seconds for all of it.
        """
        with anyio.move_on_after(timeout):
            await self._prune()
            pool = self._take()
            outcome = await self._send_on(pool, call, token, attempts, timeout)
            if outcome is not None:
                return outcome
            if self._is_closed:
                return Failure(kind=Kind.NOT_SENT, detail="no connection was free, and the client is closed")
            try:
                self._spare = self._spare or _Pool(self.new_client(), math.inf)
            except ConfigurationError as error:
                return Failure(kind=Kind.NOT_SENT, detail=f"no connection was free, and {error}")
            outcome = await self._send_on(self._spare, call, token, attempts, timeout)
            return outcome or Failure(kind=Kind.NOT_SENT, detail="no connection was free")
        return Failure(kind=Kind.TIMED_OUT, detail=f"no answer within {timeout:g} s")

    def check_ready(self) -> None:
        """Must come before `send`: once that has begun, a request counts as sent.

        Raises:
            ClientClosedError: when the connections are closed.
            ConfigurationError: when this event loop cannot have the transport that was asked for.
        """
        if self._is_closed:
            raise ClientClosedError("this AsyncCortecs is closed")
        if self._given is not None and self._given.is_closed:
            raise ClientClosedError("the http_client that this AsyncCortecs was given is closed")
        if self._settings.transport == "aiohttp" and in_trio():
            raise ConfigurationError("transport='aiohttp' is for asyncio: on trio leave it out")

    async def aclose(self) -> None:
        """Closes our own connections; not the caller's client."""
        self._is_closed = True
        pools = [*self._pools, *([self._spare] if self._spare is not None else [])]
        async with AsyncExitStack() as stack:
            for pool in pools:
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
        # A proxy from the environment would carry a loopback request, and its secrets, off this machine.
        trust_env = not self._settings.is_loopback
        try:
            if self._tls is None:
                self._tls = httpx.create_ssl_context(trust_env=trust_env)
            return make(trust_env=trust_env, verify=self._tls, cookies=_NoCookies(), limits=limits)
        except (OSError, ValueError, ImportError, httpx.InvalidURL) as error:
            # Not what is said of a proxy, whose URL may hold a password.
            said = f": {error}" if isinstance(error, OSError) else ""
            problem = f"{type(error).__name__}{said}"
        raise ConfigurationError(
            f"the certificates or proxies of the environment cannot be used ({problem}): look at "
            "SSL_CERT_FILE, SSL_CERT_DIR, HTTPS_PROXY, HTTP_PROXY and ALL_PROXY, or pass http_client="
        )

    def _new_pool(self) -> _Pool:
        return _Pool(self.new_client(), _POOL_SIZE if self._settings.transport == "httpx" else math.inf)

    async def _prune(self) -> None:
        """Closes a pool that a burst has left behind: httpx closes idle connections only of a pool in use."""
        last = self._pools[-1]
        if len(self._pools) == 1 or last.busy or anyio.current_time() - last.idle_since < _IDLE:
            return
        self._pools.pop()
        # What goes wrong with it is no matter of the request that comes along.
        with contextlib.suppress(Exception):
            await last.client.aclose()

    def _take(self) -> _Pool:
        # The first with room, so that few requests keep few connections warm.
        for pool in self._pools:
            if pool.busy < pool.size:
                return pool
        try:
            pool = self._new_pool()
        except ConfigurationError:
            # The environment has changed since the first. Only slower, and a request may be under way.
            return min(self._pools, key=lambda each: each.busy)
        self._pools.append(pool)
        return pool

    async def _send_on(
        self, pool: _Pool, call: Call, token: Token | None, attempts: int, timeout: float
    ) -> Reply | Failure | None:
        """Sends a request on this pool; None when an urgent one found no free connection."""
        pool.busy += 1
        try:
            response = await self._follow(pool.client, call, token, timeout)
        except anyio.get_cancelled_exc_class() as cancelled:
            # The locals of the HTTP stack's frames hold the token and the body.
            cancelled.__traceback__ = None
            raise
        except Exception as error:
            kind = _kind_of(error)
            if kind is None:
                raise
            is_full = isinstance(error, httpx.PoolTimeout) or found_none_free(error)
            if is_full and self._is_impatient(pool.client, call):
                return None
            return Failure(kind=kind, detail=self._describe(error))
        finally:
            pool.busy -= 1
            pool.idle_since = anyio.current_time()
        return self._sort(call, response, attempts)

    async def _follow(
        self, client: httpx.AsyncClient, call: Call, token: Token | None, timeout: float
    ) -> httpx.Response:
        request = self._build(client, call, token, timeout)
        response = await client.send(request, auth=None, follow_redirects=False)
        for _ in range(_MAX_REDIRECTS):
            target = _redirect_target(call.method, response)
            if target is None:
                break
            request = self._build(client, call, token, timeout, url=target)
            response = await client.send(request, auth=None, follow_redirects=False)
        return response

    def _is_impatient(self, client: httpx.AsyncClient, call: Call) -> bool:
        return client is self._given and call.urgency is not Urgency.CALL

    def _build(
        self,
        client: httpx.AsyncClient,
        call: Call,
        token: Token | None,
        timeout: float,
        *,
        url: httpx.URL | None = None,
    ) -> httpx.Request:
        # Within what the attempt as a whole has: only when these are over is it known that nothing was sent.
        soon = 0.9 * timeout
        limits = httpx.Timeout(
            None,
            connect=min(_CONNECT_TIMEOUT, soon),
            pool=min(_PATIENCE, soon) if self._is_impatient(client, call) else soon,
        )
        # The caller's own client adds its headers, cookies and parameters; ours has none to add.
        make = client.build_request if client is self._given else httpx.Request
        return make(
            call.method,
            url or self._settings.api_base_url + call.path,
            params=None if url else call.params,
            json=_reveal(call.json),
            headers=self._headers(client, token),
            extensions={"timeout": limits.as_dict()},
        )

    def _headers(self, client: httpx.AsyncClient, token: Token | None) -> httpx.Headers:
        is_ours = client is not self._given
        signed = self._signed
        if signed is None or signed.token is not token or signed.is_ours is not is_ours:
            headers = client.headers.copy() if is_ours else httpx.Headers()
            headers.update(self._settings.headers)
            headers["Accept"] = "application/json"
            if "user-agent" not in {name.lower() for name in self._settings.headers}:
                headers["User-Agent"] = USER_AGENT
            if token is not None:
                headers["Authorization"] = f"Bearer {token.value.reveal()}"
            signed = self._signed = _Signed(token, is_ours, headers)
        return signed.headers

    def _sort(self, call: Call, response: httpx.Response, attempts: int) -> Reply | Failure:
        request_id: str | None = response.headers.get("x-request-id")
        if response.is_redirect:
            return Failure(kind=Kind.REDIRECTED, status=response.status_code, detail=self._where(response))
        if not response.is_success:
            return Failure(
                kind=Kind.STATUS,
                status=response.status_code,
                retry_after=parse_retry_after(response.headers, now=datetime.now(UTC)),
                body=self._excerpt(response),
                request_id=self._redactor.redact(request_id or "")[:_EXCERPT] or None,
            )
        try:
            data = json.loads(response.content) if response.content.strip() else None
        except (ValueError, RecursionError):
            return Failure(
                kind=Kind.UNREADABLE,
                status=response.status_code,
                # Half a token is a secret that nobody knows yet, so nobody could blank it out.
                body=self._excerpt(response) if call.authenticated else "",
            )
        return Reply(
            call=call, status=response.status_code, data=data, request_id=request_id, attempts=attempts
        )

    def _excerpt(self, response: httpx.Response) -> str:
        try:
            text = response.text
        except (ValueError, TypeError, LookupError, AssertionError):
            # A charset that Python knows and that is not one of text, such as "hex".
            text = response.content.decode("latin-1")
        text = self._redactor.redact("".join(each for each in text if each.isprintable() or each.isspace()))
        return self._redactor.redact(" ".join(text.split()))[:_EXCERPT]

    def _where(self, response: httpx.Response) -> str:
        return self._redactor.redact(response.headers.get("location", ""))[:_EXCERPT]

    def _describe(self, error: Exception) -> str:
        return self._redactor.redact(
            f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        )


def _kind_of(error: Exception) -> Kind | None:
    match error:
        case httpx.PoolTimeout():
            return Kind.NOT_SENT
        case httpx.ConnectError() | httpx.ConnectTimeout() | httpx.ProxyError():
            return Kind.NOT_SENT if was_not_sent(error) else Kind.LOST
        case httpx.TimeoutException():
            return Kind.TIMED_OUT
        case httpx.HTTPError() | httpx.InvalidURL() | UnicodeError():
            # The last two: httpx reads a Location even when it is not to follow it, and idna's errors are
            # UnicodeErrors.
            return Kind.LOST
        case _:
            return Kind.LOST if is_of_aiohttp(error) else None


def _reveal(body: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if body is None:
        return None
    return {name: value.reveal() if isinstance(value, Secret) else value for name, value in body.items()}


def _check_url(url: str) -> None:
    try:
        # The host is decoded only when it is asked for.
        readable = bool(httpx.URL(url).host)
    except (httpx.InvalidURL, ValueError):
        readable = False
    if not readable:
        raise ConfigurationError(f"api_base_url {url!r} is not a URL that httpx can send to")


def _redirect_target(method: str, response: httpx.Response) -> httpx.URL | None:
    """Where to follow to: the same origin only, because the request carries credentials."""
    if response.next_request is None:
        return None
    if method != "GET" and response.status_code not in {307, 308}:
        return None
    # httpx has read the Location, and leaves it to us whether to follow.
    target, origin = response.next_request.url, response.request.url
    # Raw, because decoding a host of somebody else's can fail.
    same = (target.scheme, target.raw_host, target.port) == (origin.scheme, origin.raw_host, origin.port)
    return target if same and not target.userinfo else None
