"""The access token: fetched once for any number of waiting callers, and renewed before it expires."""

from __future__ import annotations

import copy
from collections.abc import Awaitable, Callable

import anyio
from attrs import define, field, frozen

from .._errors import CortecsError
from .._secrets import CredentialProvider, Credentials, Secret


@frozen(kw_only=True)
class Token:
    """An access token and when to renew it, in seconds of `anyio.current_time`."""

    value: Secret
    renew_at: float


def renewal_time(now: float, expires_in: float) -> float:
    """When to renew a token that was asked for at `now` and is valid for `expires_in` seconds.

    A tenth of its life early, at most a minute, so that it does not expire on its way to the service.
    """
    return now + expires_in - min(60.0, 0.1 * expires_in)


@define(eq=False)
class _Flight:
    """One fetch in progress, and what came of it."""

    done: anyio.Event = field(factory=anyio.Event)
    token: Token | None = None
    error: Exception | None = None


class TokenSource:
    """Hands out the current token; the client has one of these."""

    def __init__(
        self, provider: CredentialProvider, exchange: Callable[[Credentials], Awaitable[Token]]
    ) -> None:
        self._provider = provider
        self._exchange = exchange
        self._token: Token | None = None
        self._flight: _Flight | None = None

    async def get(self) -> Token:
        """A token that is not due for renewal.

        Raises:
            CortecsError: what the exchange raised; every caller that waited for it gets a copy of its own.
            Exception: what the caller's credential provider raised.
        """
        while True:
            if self._token is not None and anyio.current_time() < self._token.renew_at:
                return self._token
            if self._flight is None:
                return await self._fetch()
            flight = self._flight
            await flight.done.wait()
            if flight.error is not None:
                raise copy.copy(flight.error) if isinstance(flight.error, CortecsError) else flight.error
            if flight.token is not None:
                # Taken from the flight, not looked up again: a token with a very short life would
                # otherwise be due already and send every waiter to fetch its own.
                return flight.token
            # The caller that was fetching was cancelled: the next one fetches.

    def invalidate(self, token: Token) -> None:
        """The service answered 401 to this token: the next `get` fetches another, once for all callers."""
        if self._token is token:
            self._token = None

    async def _fetch(self) -> Token:
        flight = self._flight = _Flight()
        try:
            token = await self._exchange(await self._provider())
        except Exception as error:
            flight.error = error
            raise
        else:
            flight.token = self._token = token
            return token
        finally:
            self._flight = None
            flight.done.set()
