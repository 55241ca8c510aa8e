"""Send a request once and return data or a failure.

Only exchange.py and connections.py import httpx, so replacing the HTTP library only affects these two.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from copy import copy
from datetime import UTC, datetime
from email.message import Message
from typing import Any, cast

import anyio

from .._aio.eventloop import in_trio, loop_clock
from .._config import Settings
from .._errors import ClientClosedError, ConfigurationError
from .._secrets import Redactor, Secret
from .._version import __version__
from .auth import Token
from .body import ACCEPT_ENCODING, is_too_deep
from .connections import Connections, HTTPClient, Pool, forget_locals, is_pool_timeout, kind_of
from .exchange import (
    HTTPX_VERSION,
    Headers,
    HttpxExchange,
    Request,
    Response,
    has_bad_location,
    is_usable_url,
    parse_url,
    redirect_target,
    with_params,
)
from .limiter import Priority
from .messages import Call, Failure, FailureKind, Reply, error_reason
from .reasons import connection_problem
from .retry import parse_retry_after

USER_AGENT = f"cortecs-async/{__version__} python/{sys.version.split()[0]} httpx/{HTTPX_VERSION}"

_EXCERPT = 300

# Maximum bytes of an error response that are decoded for the excerpt.
_MAX_DECODED = 16 << 10

# Maximum bytes of a JSON error response. In a longer response, the service's error text is not read.
_MAX_REASON = 64 << 10
_MAX_REDIRECTS = 3
_CONNECT_TIMEOUT = 10.0

# The share of an attempt's time in which it must get a connection. If this timeout comes before the attempt's
# own, nothing was sent.
_CONNECT_SHARE = 0.9

# Seconds that urgent requests wait for a connection of the caller's own client before they use one of ours.
_URGENT_POOL_TIMEOUT = 1.0


class _ConnectedError(Exception):
    """Aborts a request before anything is sent, because the connection to the service is open."""


class _CachedHeaders:
    """The headers for requests with the same token and settings.

    Attributes:
        is_ours: Whether our client sends the requests. The caller's client adds its own headers.
        with_body: The headers of a request with a body.
    """

    def __init__(
        self,
        token: Token | None,
        settings: Settings,
        is_ours: bool,  # noqa: FBT001
        headers: Headers,
        with_body: Headers,
    ) -> None:
        self.token = token
        self.settings = settings
        self.is_ours = is_ours
        self.headers = headers
        self.with_body = with_body


class Transport:
    """Sends a client's requests, on its own connections or on the caller's `http_client`.

    Raises:
        ConfigurationError: for an unusable base URL, a transport that is not installed, or certificates or
            proxies in the environment that cannot be used.
    """

    def __init__(self, settings: Settings, redactor: Redactor, http_client: HTTPClient | None) -> None:
        _check_url(settings.api_base_url)
        self._settings = settings
        self._redactor = redactor
        self._given = http_client
        self.connections: Connections = Connections(settings, http_client)
        # For urgent requests when the caller's client does not have a free connection.
        self._spare: Pool | None = None
        self._is_closed = False
        self._cached_headers: _CachedHeaders | None = None

    async def send(self, call: Call, token: Token | None, attempts: int, timeout: float) -> Reply | Failure:
        """Send a request once.

        Failures are values, not exceptions, because the traceback of an httpx exception has frames whose
        locals hold the token and the body. `attempts` includes this attempt, and `timeout` is for the whole
        attempt.
        """
        with anyio.move_on_after(timeout):
            await self.connections.prune()
            pool = self.connections.checkout()
            outcome = await self._send_on(pool, call, token, attempts, timeout)
            if outcome is not None:
                return outcome
            if self._is_closed:
                return Failure(
                    kind=FailureKind.NOT_SENT, detail="no connection was free, and the client is closed"
                )
            try:
                self._spare = self._spare or Pool(self.connections.new_exchange(), math.inf)
            except ConfigurationError as error:
                return Failure(kind=FailureKind.NOT_SENT, detail=f"no connection was free, and {error}")
            outcome = await self._send_on(self._spare, call, token, attempts, timeout)
            return outcome or Failure(kind=FailureKind.NOT_SENT, detail="no connection was free")
        return Failure(kind=FailureKind.TIMED_OUT, detail=f"no response within {timeout:g} s")

    async def connect(self, timeout: float) -> Failure | None:
        """Open a connection to the service as a request does, without sending anything. Return the error."""

        async def stop(event: str, info: Any) -> None:
            # A CONNECT to a proxy is part of opening the connection.
            if event.endswith("send_request_headers.started") and info["request"].method != b"CONNECT":
                raise _ConnectedError

        pool = self.connections.checkout()
        exchange = cast("HttpxExchange", pool.exchange)  # the reaper, which uses this, has no other
        call = Call(method="GET", path="/instances/")
        request = exchange.build(self._build(pool, call, None, timeout))
        request.extensions["trace"] = stop
        with anyio.move_on_after(timeout):
            try:
                await exchange.client.send(request, auth=None)
            except _ConnectedError:
                return None
            except Exception as error:
                kind = kind_of(error)
                if kind is None:
                    raise
                return self._failure(kind, pool, error)
        return Failure(kind=FailureKind.TIMED_OUT, detail=f"no connection within {timeout:g} s")

    def check_ready(self) -> None:
        """Check that requests can be sent. Call this before `send`, after which a request counts as sent."""
        if self._is_closed:
            raise ClientClosedError("This AsyncCortecs is closed")
        if self._given is not None and self._given.is_closed:
            raise ClientClosedError("The http_client of this AsyncCortecs is closed")
        if self._settings.transport == "aiohttp" and in_trio():
            raise ConfigurationError("transport='aiohttp' works on asyncio only. Leave it out on trio.")

    async def aclose(self) -> None:
        """Close our own connections but not the caller's client."""
        self._is_closed = True
        try:
            if self._spare is not None:
                await self._spare.exchange.aclose()
        finally:
            await self.connections.aclose()

    async def _send_on(
        self, pool: Pool, call: Call, token: Token | None, attempts: int, timeout: float
    ) -> Reply | Failure | None:
        """Send a request with this pool. Return None if an urgent request found no free connection."""
        pool.busy += 1
        try:
            response = await self._follow(pool, call, token, timeout)
        except anyio.get_cancelled_exc_class() as cancelled:
            self.connections.retire(pool)
            # httpx frames have locals that hold the token and the body.
            cancelled.__traceback__ = None
            raise
        except Exception as error:
            kind = kind_of(error)
            if kind is None:
                forget_locals(error)
                raise
            if is_pool_timeout(error) and self._is_urgent(pool, call):
                return None
            return self._failure(kind, pool, error)
        finally:
            pool.busy -= 1
            pool.idle_since = loop_clock()()
        return self._interpret(call, response, attempts)

    async def _follow(self, pool: Pool, call: Call, token: Token | None, timeout: float) -> Response:
        request = self._build(pool, call, token, timeout)
        response = await pool.exchange.send(request)
        for _ in range(_MAX_REDIRECTS):
            target = redirect_target(request, response)
            if target is None:
                break
            request = copy(request)
            request.url = target
            response = await pool.exchange.send(request)
        return response

    def _is_ours(self, pool: Pool) -> bool:
        return self._given is None or pool is self._spare

    def _is_urgent(self, pool: Pool, call: Call) -> bool:
        return not self._is_ours(pool) and call.priority is not Priority.CALL

    def _build(self, pool: Pool, call: Call, token: Token | None, timeout: float) -> Request:
        to_connect = _CONNECT_SHARE * timeout
        url = self._settings.api_base_url + call.path
        body = None if call.json is None else _encode(call.json)
        headers = self._headers(token, call.settings or self._settings, is_ours=self._is_ours(pool))
        return Request(
            method=call.method,
            url=with_params(url, call.params) if call.params else url,
            headers=headers.headers if body is None else headers.with_body,
            body=body,
            connect_timeout=min(_CONNECT_TIMEOUT, to_connect),
            pool_timeout=min(_URGENT_POOL_TIMEOUT, to_connect) if self._is_urgent(pool, call) else to_connect,
        )

    def _headers(self, token: Token | None, settings: Settings, *, is_ours: bool) -> _CachedHeaders:
        cached = self._cached_headers
        if (
            cached is None
            or cached.token is not token
            or cached.settings is not settings
            or cached.is_ours is not is_ours
        ):
            headers = Headers()
            if is_ours:
                headers["Host"] = parse_url(self._settings.api_base_url).netloc.decode("ascii")
                headers["Connection"] = "keep-alive"
            headers.update(settings.headers)
            headers["Accept"] = "application/json"
            headers["Accept-Encoding"] = ACCEPT_ENCODING
            if "user-agent" not in {name.lower() for name in settings.headers}:
                headers["User-Agent"] = USER_AGENT
            if token is not None:
                headers["Authorization"] = f"Bearer {token.value.reveal()}"
            with_body = headers.copy()
            with_body["Content-Type"] = "application/json"
            cached = self._cached_headers = _CachedHeaders(token, settings, is_ours, headers, with_body)
        return cached

    def _interpret(self, call: Call, response: Response, attempts: int) -> Reply | Failure:
        status, body = response.status, response.body
        # Redacted for successful responses too: logs and spans show it, and it may echo the data sent.
        request_id = self._shown(response.headers.get("x-request-id", "")) or None
        if 300 <= status < 400:
            if has_bad_location(response, self._settings.api_base_url):
                return Failure(kind=FailureKind.LOST, detail="the Location of a redirect is not a URL")
            location = response.headers.get("location", "")
            return Failure(kind=FailureKind.REDIRECTED, status=status, detail=self._shown(location))
        if not 200 <= status < 300:
            return Failure(
                kind=FailureKind.STATUS,
                status=status,
                retry_after=parse_retry_after(response.headers, now=datetime.now(UTC)),
                body=self._excerpt(response),
                reason=self._reason(body or b"", status),
                request_id=request_id,
            )
        data, problem = (None, response.problem) if body is None else _read_json(body)
        if problem:
            return Failure(
                kind=FailureKind.UNREADABLE,
                detail=problem,
                status=status,
                # A truncated response to the token request may contain part of a token that is not known yet
                # and so cannot be redacted.
                body=self._excerpt(response) if call.authenticated else "",
                request_id=request_id,
            )
        return Reply(
            call=call,
            status=status,
            data=data,
            request_id=request_id,
            attempts=attempts,
            headers=response.headers,
        )

    def _reason(self, body: bytes, status: int) -> str:
        if len(body) > _MAX_REASON:
            return ""
        # Redacted before decoding too, because a secret may contain whitespace, which is collapsed later.
        text = self._redactor.redact(body.decode("utf-8", "surrogateescape"))
        return self._shown(error_reason(text.encode("utf-8", "surrogateescape"), status))

    def _excerpt(self, response: Response) -> str:
        # Only the beginning: the body may have 16 MiB, and some charsets take minutes to decode that.
        body = (response.body or b"")[:_MAX_DECODED]
        try:
            text = body.decode(_charset(response) or "utf-8", "replace")
        except (ValueError, TypeError, LookupError, AssertionError):
            # The charset is unknown or, like "hex", does not decode text.
            text = body.decode("latin-1")
        if len(body) == _MAX_DECODED:
            # The end may contain part of a secret, which would not be recognized.
            text = text[: -self._redactor.longest] if self._redactor.longest < len(text) else ""
        return self._shown(text)

    def _shown(self, text: str) -> str:
        return self._redactor.one_line(text)[:_EXCERPT]

    def _failure(self, kind: FailureKind, pool: Pool, error: Exception) -> Failure:
        if kind is not FailureKind.NOT_SENT or is_pool_timeout(error):
            return Failure(kind=kind, detail=self._describe(error))
        problem = self._redactor.one_line(connection_problem(error)) or self._describe(error)
        if self._is_ours(pool) and (proxy := self._settings.proxy) is not None:
            problem += f", through the proxy in {proxy.variable}"
        return Failure(kind=kind, detail=problem, is_unreachable=True)

    def _describe(self, error: Exception) -> str:
        name = type(error).__name__
        return self._redactor.one_line(f"{name}: {error}" if str(error) else name)


def _read_json(body: bytes) -> tuple[Any, str]:
    """Return the data, or the problem with it."""
    try:
        data = json.loads(body) if body.strip() else None
    except (ValueError, RecursionError):
        return None, "is not JSON"
    return (None, "is nested too deeply") if is_too_deep(body, data) else (data, "")


def _encode(body: Mapping[str, Any]) -> bytes:
    """Return the body as JSON, with the secrets in it."""
    revealed = {name: value.reveal() if isinstance(value, Secret) else value for name, value in body.items()}
    return json.dumps(revealed, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def _charset(response: Response) -> str | None:
    message = Message()
    message["Content-Type"] = response.headers.get("content-type", "")
    return message.get_content_charset()


def _check_url(url: str) -> None:
    if not is_usable_url(url):
        raise ConfigurationError(f"api_base_url {url!r} is not a URL that httpx can send requests to")
