"""Sends a request, repeats it where that is safe, and turns what comes back into data or a typed error."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
from attrs import evolve

from .._aio.eventloop import current_loop
from .._aio.sigint import SigintGuard
from .._aio.tasks import run_uncancellable
from .._config import Settings
from .._errors import ClientClosedError, ConfigurationError
from .._logging import Event, log
from .._secrets import Credentials, Redactor, Secret, credentials_problem
from .auth import Token, TokenSource, renewal_time
from .connections import HTTPClient
from .limiter import Priority, PriorityLimiter
from .messages import EXCHANGE_PATH, Call, Failure, FailureKind, OnRetry, Reply, ShapeError, to_error
from .retry import counts_as_retry, may_have_taken_effect, next_wait
from .transport import Transport


class HTTP:
    """The connections, the token and the retries of one client."""

    def __init__(
        self,
        settings: Settings,
        *,
        http_client: HTTPClient | None = None,
        rng: random.Random | None = None,
        on_credentials: Callable[[Credentials], None] | None = None,
        on_close: Callable[[], Awaitable[None]] | None = None,
        on_retry: OnRetry | None = None,
    ) -> None:
        self._settings = settings
        self._on_close = on_close
        self._on_retry = on_retry
        self._on_credentials = on_credentials
        self._rng = rng or random.Random()  # noqa: S311  (jitter)
        self._redactor = Redactor()
        self._transport = Transport(settings, self._redactor, http_client)
        self._slots = PriorityLimiter(settings.max_connections)
        self._tokens = TokenSource(settings.credential_provider, self._exchange)
        self._holders: list[SigintGuard | None] = []
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
        return await self.request_for_lease(call)

    async def request_for_lease(self, call: Call) -> Reply:
        """The same for a lease, whose teardown must still go out after the client was closed."""
        if not self._holders:
            self.check_open()
        self._check_loop()
        settings = call.settings or self._settings
        spent = 0.0  # seconds, without those in which others had their turn
        attempts = counted = 0
        unknown = False
        renewed = False
        while True:
            began = anyio.current_time()
            # Before its turn, because all who wait for a token wait for the same one.
            token = await self._tokens.get() if call.authenticated else None
            spent += anyio.current_time() - began
            await self._slots.acquire(call.priority)
            began = anyio.current_time()
            try:
                left = settings.retry.total_timeout - spent
                if left <= 0:
                    # The token took all the time. Sent now, a `start` would be given up before its answer
                    # comes.
                    late = Failure(
                        kind=FailureKind.TIMED_OUT, detail="the time was used up before it could be sent"
                    )
                    raise to_error(call.method, call.path, late, attempts=attempts, unknown=unknown)
                attempts += 1
                outcome = await self._attempt(call, token, attempts, min(settings.timeout, left))
            finally:
                self._slots.release(call.priority)
            seconds = anyio.current_time() - began
            spent += seconds
            said = outcome.status or (outcome.kind.value if isinstance(outcome, Failure) else "")
            log(
                Event.HTTP_REQUEST,
                answer=said,
                method=call.method,
                path=call.path,
                status=outcome.status,
                seconds=seconds,
                attempt=attempts,
                request_id=outcome.request_id,
            )
            if isinstance(outcome, Reply):
                return outcome
            unknown = unknown or (call.has_effect and may_have_taken_effect(call.method, outcome))
            if outcome.status == 401 and token is not None and not renewed:
                renewed = True
                self._tokens.invalidate(token)
                continue
            counted += counts_as_retry(outcome)
            wait = (
                next_wait(
                    call.method,
                    call.path,
                    outcome,
                    attempt=attempts,
                    counted=counted,
                    elapsed=spent,
                    policy=settings.retry,
                    rng=self._rng,
                )
                if call.retried
                else None
            )
            error = to_error(call.method, call.path, outcome, attempts=attempts, unknown=unknown)
            if wait is None:
                raise error
            log(
                Event.HTTP_RETRY,
                error=error,
                method=call.method,
                path=call.path,
                status=outcome.status,
                wait=wait,
                attempt=attempts,
                request_id=outcome.request_id,
            )
            if self._on_retry is not None:
                self._on_retry(call.method, call.path, outcome, attempt=attempts, wait=wait)
            await anyio.sleep(wait)
            spent += wait

    async def request_once(self, call: Call) -> Reply:
        """`request_held` without retries, for a teardown, which paces itself."""
        return await self.request_for_lease(evolve(call, retried=False, priority=Priority.RELEASE))

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
        loop = current_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise ConfigurationError(
                "this AsyncCortecs was used on another event loop before, and connections cannot move: make "
                "one in each `asyncio.run`, and in each process after a fork"
            )

    def hold(self) -> None:
        """A lease begins: until it has released, the pool stays open, past `aclose`, and Ctrl-C is ours."""
        self._holders.append(SigintGuard.acquire())

    async def release(self) -> None:
        """A lease has ended."""
        self.abandon()
        await self._close_if_done()

    def abandon(self) -> None:
        """The same where nothing can be awaited."""
        if interrupts := self._holders.pop():
            interrupts.release()

    async def aclose(self) -> None:
        """Refuses further calls, and closes the connection pool as soon as no lease needs it."""
        self._closed = True
        await self._close_if_done()

    async def _close_if_done(self) -> None:
        if self._closed and not self._holders:
            (await run_uncancellable(self._close, resume=True)).unwrap()

    async def _close(self) -> None:
        if self._on_close is not None:
            await self._on_close()
        await self._transport.aclose()

    async def _attempt(
        self, call: Call, token: Token | None, attempts: int, timeout: float
    ) -> Reply | Failure:
        self._transport.check_ready()
        if call.witness is None:
            return await self._transport.send(call, token, attempts, timeout)
        witness = call.witness

        async def send_and_tell() -> Reply | Failure:
            outcome = await self._transport.send(call, token, attempts, timeout)
            witness.settled(outcome)
            return outcome

        witness.sending()
        return (await run_uncancellable(send_and_tell, resume=False)).unwrap()

    async def _exchange(self, credentials: Credentials) -> Token:
        problem = credentials_problem(credentials)
        if problem:
            del credentials  # of another type, they would show themselves in a traceback with locals
            raise ConfigurationError(problem)
        self._redactor.remember(credentials.client_secret)
        if self._on_credentials is not None:
            self._on_credentials(credentials)
        asked_at = anyio.current_time()
        reply = await self.request_for_lease(
            Call(
                method="POST",
                path=EXCHANGE_PATH,
                json={
                    "grant_type": "client_credentials",
                    "client_id": credentials.client_id,
                    "client_secret": credentials.client_secret,
                },
                authenticated=False,
                priority=Priority.POLL,
            )
        )
        value, lifetime = reply.decode(_read_token)
        self._redactor.remember(value)
        return Token(value=value, renew_at=renewal_time(asked_at, lifetime))


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
