"""Sends a request, repeats it where that is safe, and turns what comes back into data or a typed error.

The only module that imports httpx: a move to another HTTP client is a change to this file alone.
"""

from __future__ import annotations

import json
import logging
import platform
import random
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import httpx
from attrs import evolve

from ._auth import Token, TokenSource, renewal_time
from ._config import Credentials, Secret, Settings, credentials_problem
from ._detached import run_to_end, this_loop
from ._errors import ClientClosedError, ConfigurationError
from ._failures import EXCHANGE_PATH, to_error
from ._messages import Call, Reply
from ._redact import Redactor
from ._retry import Failure, Kind, may_have_worked, next_wait, parse_retry_after
from ._version import __version__
from ._wire import ShapeError

logger = logging.getLogger("cortecs_async.http")

HTTPClient = httpx.AsyncClient
"""What a caller may bring along as `http_client`."""

USER_AGENT = f"cortecs-async/{__version__} python/{platform.python_version()} httpx/{httpx.__version__}"

_EXCERPT = 300
_MAX_REDIRECTS = 3
_CONNECT_TIMEOUT = 10.0


class HTTP:
    """One connection pool, one token, one retry policy."""

    def __init__(
        self,
        settings: Settings,
        *,
        http_client: HTTPClient | None = None,
        rng: random.Random | None = None,
        on_credentials: Callable[[Credentials], None] | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._settings = settings
        self._on_close = on_close
        self._on_credentials = on_credentials
        self._rng = rng or random.Random()  # noqa: S311  (jitter)
        _check_url(settings.api_base_url)
        self._owned = http_client is None
        self._client = http_client or httpx.AsyncClient(
            # A proxy from the environment would carry a loopback request, and its secrets, off this machine.
            trust_env=not settings.is_loopback,
            # A bound would make a burst of starts wait for connections, on their own time.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
        )
        self._tokens = TokenSource(settings.credential_provider, self._exchange)
        self._redactor = Redactor()
        self._holders = 0
        self._loop: object = None
        self._closed = False

    async def request(self, call: Call) -> Reply:
        """Sends a call of the user's.

        Raises:
            ClientClosedError: after `aclose`.
            RequestError: a subclass that says what came back.
            ConfigurationError: when there are no credentials.
        """
        self.check_open()
        return await self.request_held(call)

    async def request_held(self, call: Call) -> Reply:
        """The same for a lease, whose teardown must still go out after the client was closed."""
        if not self._holders:
            self.check_open()
        self._check_loop()
        started = anyio.current_time()
        attempts = 0
        unknown = False
        renewed = False
        while True:
            token = await self._tokens.get() if call.authenticated else None
            left = self._settings.retry.total_timeout - (anyio.current_time() - started)
            if left <= 0:
                # The token took all the time. Sent now, a `start` would be given up before its answer comes.
                late = Failure(kind=Kind.TIMED_OUT, detail="the time was used up before it could be sent")
                raise to_error(call.method, call.path, late, attempts=attempts, unknown=unknown)
            attempts += 1
            outcome = await self._attempt(call, token, attempts, min(self._settings.timeout, left))
            if isinstance(outcome, Reply):
                return outcome
            unknown = unknown or (call.has_effect and may_have_worked(call.method, outcome))
            if outcome.status == 401 and token is not None and not renewed:
                renewed = True
                self._tokens.refuse(token)
                continue
            wait = (
                next_wait(
                    call.method,
                    call.path,
                    outcome,
                    attempt=attempts,
                    elapsed=anyio.current_time() - started,
                    policy=self._settings.retry,
                    rng=self._rng,
                )
                if call.retried
                else None
            )
            error = to_error(call.method, call.path, outcome, attempts=attempts, unknown=unknown)
            if wait is None:
                raise error
            logger.info("again in %.1f s: %s", wait, error)
            await anyio.sleep(wait)

    async def request_once(self, call: Call) -> Reply:
        """`request_held` without retries, for a teardown, which paces itself."""
        return await self.request_held(evolve(call, retried=False))

    def check_open(self) -> None:
        """Lets an open client pass.

        Raises:
            ClientClosedError: after `aclose`.
        """
        if self._closed:
            raise ClientClosedError(
                "this AsyncCortecs is closed: make the call inside its `async with` block, or make a new one"
            )

    def _check_loop(self) -> None:
        loop = this_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                "this AsyncCortecs was used on another event loop before, and connections cannot move: make "
                "one in each `asyncio.run`, and in each process after a fork"
            )

    def hold(self) -> None:
        """A lease begins: the connection pool stays open until it has released, even past `aclose`."""
        self._holders += 1

    async def release(self) -> None:
        """A lease has ended."""
        self._holders -= 1
        await self._close_if_done()

    async def aclose(self) -> None:
        """Refuses further calls, and closes the connection pool as soon as no lease needs it."""
        self._closed = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._closed and not self._holders:
            (await run_to_end(self._close, resume=True)).unwrap()

    async def _close(self) -> None:
        if self._on_close is not None:
            await self._on_close()
        if self._owned:
            await self._client.aclose()

    async def _attempt(
        self, call: Call, token: Token | None, attempts: int, timeout: float
    ) -> Reply | Failure:
        if self._client.is_closed:
            if self._owned:
                self.check_open()
            raise ClientClosedError("the http_client that this AsyncCortecs was given is closed")
        if call.witness is None:
            return await self._send(call, token, attempts, timeout)
        witness = call.witness

        async def send_and_tell() -> Reply | Failure:
            outcome = await self._send(call, token, attempts, timeout)
            witness.settled(outcome)
            return outcome

        witness.sending()
        return (await run_to_end(send_and_tell, resume=False)).unwrap()

    async def _send(self, call: Call, token: Token | None, attempts: int, timeout: float) -> Reply | Failure:
        # Failures are values, not exceptions: an exception from inside httpx would take along frames whose
        # locals hold the token and the body.
        request = self._build(call, token, timeout)
        with anyio.move_on_after(timeout):
            try:
                response = await self._client.send(request, auth=None, follow_redirects=False)
                for _ in range(_MAX_REDIRECTS):
                    target = _redirect_target(call.method, response)
                    if target is None:
                        break
                    request = self._build(call, token, timeout, url=target)
                    response = await self._client.send(request, auth=None, follow_redirects=False)
            except anyio.get_cancelled_exc_class() as cancelled:
                # The locals of the HTTP stack's frames hold the token and the body.
                cancelled.__traceback__ = None
                raise
            except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
                return Failure(kind=Kind.NOT_SENT, detail=self._describe(error))
            except httpx.TimeoutException as error:
                return Failure(kind=Kind.TIMED_OUT, detail=self._describe(error))
            except (httpx.HTTPError, httpx.InvalidURL, UnicodeError) as error:
                # The last two: httpx reads a Location even when it is not to follow it, and idna's errors are
                # UnicodeErrors.
                return Failure(kind=Kind.LOST, detail=self._describe(error))
            return self._sort(call, response, attempts)
        return Failure(kind=Kind.TIMED_OUT, detail=f"no answer within {timeout:g} s")

    def _build(
        self, call: Call, token: Token | None, timeout: float, *, url: httpx.URL | None = None
    ) -> httpx.Request:
        headers = httpx.Headers(dict(self._settings.headers))  # names in any case, each once
        headers["Accept"] = "application/json"
        headers.setdefault("User-Agent", USER_AGENT)
        if token is not None:
            headers["Authorization"] = f"Bearer {token.value.reveal()}"
        return self._client.build_request(
            call.method,
            url or self._settings.api_base_url + call.path,
            params=None if url else call.params,
            json=_reveal(call.json),
            headers=headers,
            # The attempt as a whole is bounded by the caller. Connecting has a shorter bound of its own,
            # because only then it is known that the request was not sent.
            timeout=httpx.Timeout(None, connect=min(_CONNECT_TIMEOUT, 0.9 * timeout)),
        )

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

    async def _exchange(self, credentials: Credentials) -> Token:
        problem = credentials_problem(credentials)
        if problem:
            del credentials  # of another type, they would show themselves in a traceback with locals
            raise ConfigurationError(problem)
        self._redactor.remember(credentials.client_secret)
        if self._on_credentials is not None:
            self._on_credentials(credentials)
        asked_at = anyio.current_time()
        reply = await self.request_held(
            Call(
                method="POST",
                path=EXCHANGE_PATH,
                json={
                    "grant_type": "client_credentials",
                    "client_id": credentials.client_id,
                    "client_secret": credentials.client_secret,
                },
                authenticated=False,
            )
        )
        value, lifetime = reply.decode(_read_token)
        self._redactor.remember(value)
        return Token(value=value, renew_at=renewal_time(asked_at, lifetime))

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


def _read_token(data: Any) -> tuple[Secret, float]:
    token = data.get("access_token") if isinstance(data, Mapping) else None
    if not isinstance(token, str) or not token:
        raise ShapeError("an object with 'access_token' was expected")
    if not (token.isascii() and token.isprintable() and " " not in token):
        # The HTTP stack would refuse the header, and show it in the error.
        raise ShapeError("'access_token' has characters that no header can carry")
    lifetime = data.get("expires_in")
    # Documented as 3600 s; without a usable number, renewing on a 401 is all that is left.
    if isinstance(lifetime, (int, float)) and 0 < lifetime < 1e9:
        return Secret(token), float(lifetime)
    return Secret(token), 3600.0


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
