"""Send a request, retry it if that is safe, and turn the outcome into data or a typed error."""

from __future__ import annotations

import math
import random
from collections.abc import Awaitable, Callable, Mapping
from copy import copy
from typing import Any

import anyio

from .._aio.background import UnawaitedTasks
from .._aio.eventloop import LoopBinding, loop_clock
from .._aio.sigint import SigintGuard
from .._aio.tasks import DetachedTask, run_uncancellable
from .._config import Settings
from .._errors import ClientClosedError, ConfigurationError, RequestError
from .._logging import Event, log
from .._secrets import Credentials, Redactor, Secret, credentials_problem, redact_inference_keys
from .auth import Token, TokenSource, renewal_time
from .connections import HTTPClient
from .limiter import Priority, PriorityLimiter
from .messages import EXCHANGE_PATH, Call, Failure, FailureKind, OnRetry, Reply, ShapeError, outage, to_error
from .retry import counts_as_retry, may_have_taken_effect, next_wait
from .timeouts import AttemptTimeouts
from .transport import Transport

# Seconds without a failure after which the next failure counts as a new outage.
_OUTAGE_GAP = 60.0


class _Attempts:
    """The attempts of one call so far.

    Attributes:
        elapsed: Seconds spent on the call, not counting the wait for a free slot.
        count: How many times the request was sent.
        counted: The number of attempts that count against `max_retries`.
        outcome_unknown: Whether one of the attempts may have taken effect.
        has_renewed_token: Whether the service has rejected its token once.
    """

    def __init__(self, call: Call, settings: Settings) -> None:
        self.call = call
        self.settings = settings
        self.elapsed = 0.0
        self.count = 0
        self.counted = 0
        self.outcome_unknown = False
        self.has_renewed_token = False

    def error(self, failure: Failure) -> RequestError:
        """Return the error to raise if the last attempt is not repeated."""
        return to_error(
            self.call.method,
            self.call.path,
            failure,
            url=self.settings.api_base_url,
            sources=self.settings.sources,
            attempts=self.count,
            unknown=self.outcome_unknown,
        )


class HTTP:
    """Sends one client's requests, with its connections and token, on one event loop."""

    def __init__(
        self,
        settings: Settings,
        *,
        http_client: HTTPClient | None = None,
        rng: random.Random | None = None,
        on_credentials: Callable[[Credentials, bool], None] | None = None,
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
        self._limiter = PriorityLimiter(settings.max_connections)
        self._timeouts = AttemptTimeouts()
        self._tokens = TokenSource(settings.credential_provider, self._exchange)
        self._holders: list[SigintGuard | None] = []
        self.loop: LoopBinding = LoopBinding()
        self.unawaited: UnawaitedTasks = UnawaitedTasks(self.loop)
        self._closed = False
        self._outage_ends = -math.inf  # until then, another failure is part of the logged outage

    async def request(self, call: Call) -> Reply:
        """Send a request made by the user."""
        self.check_open()
        return await self.request_for_lease(call)

    async def request_for_lease(self, call: Call) -> Reply:
        """Send a request. This works after the client was closed if a lease still holds the connections.

        A lease may need to send requests after the client was closed.
        """
        if not self._holders:
            self.check_open()
        self.loop.check()
        if call.authenticated:
            self._settings.sources.check()
        attempts = _Attempts(call, call.settings or self._settings)
        while True:
            # Before taking a slot, because all requests that wait for a token wait for the same one.
            token = await self._token_for(attempts)
            outcome = await self._send_with_slot(attempts, token)
            if isinstance(outcome, Reply):
                return outcome
            if call.has_effect and may_have_taken_effect(call.method, outcome):
                attempts.outcome_unknown = True
            if outcome.status == 401 and token is not None and not attempts.has_renewed_token:
                attempts.has_renewed_token = True
                self._tokens.invalidate(token)
            else:
                await self._wait_to_retry(attempts, outcome)

    async def request_once(self, call: Call) -> Reply:
        """Send a request without retries, for a teardown, which retries by itself."""
        once = copy(call)
        once.retried = False
        once.priority = Priority.RELEASE
        return await self.request_for_lease(once)

    async def connect(self, timeout: float) -> Failure | None:
        """Open a connection to the service without sending anything. Return the failure, if any."""
        return await self._transport.connect(timeout)

    def redact(self, text: str) -> str:
        """Return the text without the secrets this client and its leases have used."""
        return redact_inference_keys(self._redactor.redact(text))

    def one_line(self, text: str) -> str:
        """Return a text from the service on one line, without secrets and control characters."""
        return redact_inference_keys(self._redactor.one_line(text))

    def check_open(self) -> None:
        """Raise an error if the client is closed or belongs to a different event loop."""
        if self._closed:
            raise ClientClosedError(
                "This AsyncCortecs is closed. Use it inside its `async with` block, or create a new one."
            )
        self.loop.check()

    def hold(self) -> None:
        """Keep the connections open, even after `aclose`, until `release` or `abandon`.

        During this time, Ctrl-C is handled too, so that a KeyboardInterrupt does not interrupt a release.
        """
        self._holders.append(SigintGuard.acquire())

    async def release(self) -> None:
        """End a `hold`. Close the connections if it was the last hold of a closed client."""
        self.abandon()
        await self._close_if_done()

    def abandon(self) -> None:
        """End a `hold` without closing the connections."""
        if sigint_guard := self._holders.pop():
            sigint_guard.release()

    async def aclose(self) -> None:
        """Reject further calls and close the connections as soon as no lease needs them.

        This waits for releases running in the background.
        """
        self.loop.check()
        self._closed = True
        try:
            await self.unawaited.join()
        finally:
            await self._close_if_done()

    def close_soon(self) -> None:
        """Close the client in the background, for code that cannot await."""
        self._closed = True
        self.unawaited.start_soon(self._close_if_done)

    async def _close_if_done(self) -> None:
        if self._closed and not self._holders:
            (await run_uncancellable(self._close, restart_if_cancelled=True)).unwrap()

    async def _close(self) -> None:
        if self._on_close is not None:
            await self._on_close()
        await self._transport.aclose()

    async def _token_for(self, attempts: _Attempts) -> Token | None:
        if not attempts.call.authenticated:
            return None
        if (token := self._tokens.current()) is not None:
            return token
        began = anyio.current_time()
        token = await self._tokens.get()
        attempts.elapsed += anyio.current_time() - began
        return token

    async def _send_with_slot(self, attempts: _Attempts, token: Token | None) -> Reply | Failure:
        """Wait for a free slot and send the request once, unless it times out before that."""
        call, settings = attempts.call, attempts.settings
        await self._limiter.acquire(call.priority)
        clock = loop_clock()
        began = clock()
        try:
            left = settings.retry.total_timeout - attempts.elapsed
            if left <= 0:
                # Fetching the token took all the time. A `start` sent now would time out before its response.
                raise attempts.error(
                    Failure(kind=FailureKind.TIMED_OUT, detail="timed out before it was sent")
                )
            attempts.count += 1
            timeout = min(self._timeout(attempts), left)
            outcome = await self._send(call, token, attempts.count, timeout)
        finally:
            self._limiter.release(call.priority)
        seconds = clock() - began
        self._timeouts.record(call, outcome, timeout=timeout, seconds=seconds)
        attempts.elapsed += seconds
        log(
            Event.HTTP_REQUEST,
            method=call.method,
            path=call.path,
            status=outcome.status,
            seconds=seconds,
            attempt=attempts.count,
            request_id=outcome.request_id,
            outcome=_outcome_text(outcome),
        )
        return outcome

    def _timeout(self, attempts: _Attempts) -> float:
        """Return the seconds for the next attempt."""
        call, settings = attempts.call, attempts.settings
        is_last = call.retried and attempts.counted >= settings.retry.max_retries
        takes_all = call.priority is Priority.CALL
        return settings.timeout if is_last or takes_all else self._timeouts.next(call, settings.timeout)

    async def _send(self, call: Call, token: Token | None, attempt: int, timeout: float) -> Reply | Failure:
        self._transport.check_ready()
        if call.witness is None:
            return await self._transport.send(call, token, attempt, timeout)
        witness = call.witness

        async def send_with_witness() -> Reply | Failure:
            # In case the transport raises an unexpected error or is cancelled.
            outcome: Reply | Failure = Failure(kind=FailureKind.LOST, detail="the attempt was interrupted")
            try:
                outcome = await self._transport.send(call, token, attempt, timeout)
            finally:
                witness.settled(outcome)
            return outcome

        request = DetachedTask(send_with_witness)
        if witness.sending(request):
            return await request.run()
        return (await run_uncancellable(send_with_witness, restart_if_cancelled=False)).unwrap()

    async def _wait_to_retry(self, attempts: _Attempts, failure: Failure) -> None:
        """Wait until the request may be sent again. If it may not, raise the failure's error."""
        call = attempts.call
        attempts.counted += counts_as_retry(failure)
        error = attempts.error(failure)
        if not call.retried:
            raise error
        wait = next_wait(
            call.method,
            call.path,
            failure,
            attempt=attempts.count,
            counted=attempts.counted,
            elapsed=attempts.elapsed,
            policy=attempts.settings.retry,
            rng=self._rng,
        )
        if wait is None:
            raise error
        log(
            Event.HTTP_RETRY,
            method=call.method,
            path=call.path,
            status=failure.status,
            wait=wait,
            attempt=attempts.count,
            request_id=failure.request_id,
            error=error,
        )
        if problem := outage(failure, attempts.settings.api_base_url, counted=attempts.counted):
            now = anyio.current_time()
            if now >= self._outage_ends:
                log(Event.HTTP_OUTAGE, method=call.method, path=call.path, problem=problem)
            # Another request's success does not end the outage, because only part of the service may have
            # failed.
            self._outage_ends = max(self._outage_ends, now + wait + attempts.settings.timeout + _OUTAGE_GAP)
        if self._on_retry is not None:
            self._on_retry(call.method, call.path, failure, attempt=attempts.count, wait=wait)
        await anyio.sleep(wait)
        attempts.elapsed += wait

    async def _exchange(self, credentials: Credentials) -> Token:
        problem = credentials_problem(credentials)
        if problem:
            del credentials  # a traceback with locals would show them if they have a different type
            raise ConfigurationError(problem)
        self._redactor.remember(credentials.client_secret)
        self._note(credentials, proven=False)
        requested_at = anyio.current_time()
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
        self._note(credentials, proven=True)
        self._redactor.remember(value)
        return Token(value=value, renew_at=renewal_time(requested_at, lifetime))

    def _note(self, credentials: Credentials, *, proven: bool) -> None:
        if self._on_credentials is not None:
            self._on_credentials(credentials, proven)


def _outcome_text(outcome: Reply | Failure) -> str:
    """Return the outcome of an attempt for the log, with the service's text about a failure."""
    if isinstance(outcome, Reply):
        return str(outcome.status)
    text = str(outcome.status or outcome.kind.value)
    return f"{text} {outcome.body!r}" if outcome.body else text


def _read_token(data: Any) -> tuple[Secret, float]:
    token = data.get("access_token") if isinstance(data, Mapping) else None
    if not isinstance(token, str) or not token:
        raise ShapeError("expected an object with 'access_token'")
    if not (token.isascii() and token.isprintable() and " " not in token):
        # The HTTP stack would reject the header and show it in the error.
        raise ShapeError("'access_token' has characters that a header cannot carry")
    lifetime = data.get("expires_in")
    # Documented as 3600 s. If it is not a usable number, a 401 still leads to a new token.
    if isinstance(lifetime, (int, float)) and 0 < lifetime < 1e9:
        return Secret(token), float(lifetime)
    return Secret(token), 3600.0
