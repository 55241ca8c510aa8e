"""The access token: fetched once for all waiting callers and renewed before it expires."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from .._aio.eventloop import loop_clock
from .._aio.synchronization import SingleFlight
from .._aio.tasks import check_awaitable
from .._secrets import CredentialProvider, Credentials, Secret


class Token:
    """An access token and the time to renew it, in seconds of `anyio.current_time`."""

    def __init__(self, *, value: Secret, renew_at: float) -> None:
        self.value = value
        self.renew_at = renew_at


def renewal_time(now: float, expires_in: float) -> float:
    """Return the time to renew a token requested at `now` and valid for `expires_in` seconds.

    This is a tenth of its lifetime early, but at most a minute, so that it does not expire in transit.
    """
    return now + expires_in - min(60.0, 0.1 * expires_in)


class TokenSource:
    """A client's current access token, which `exchange` fetches for the provider's credentials."""

    def __init__(
        self, provider: CredentialProvider, exchange: Callable[[Credentials], Awaitable[Token]]
    ) -> None:
        self._provider = provider
        self._exchange = exchange
        self._token: Token | None = None
        self._fetches: SingleFlight[Token] = SingleFlight(self._fetch)

    def current(self) -> Token | None:
        """Return the token, unless there is none or it is due for renewal."""
        is_valid = self._token is not None and loop_clock()() < self._token.renew_at
        return self._token if is_valid else None

    async def get(self) -> Token:
        """Return a token that is not due for renewal. Raises the errors of the provider and the exchange."""
        return self.current() or await self._fetches.get()

    def invalidate(self, token: Token) -> None:
        """Drop a token that the service rejected. The next `get` fetches a new one, once for all callers."""
        if self._token is token:
            self._token = None

    async def _fetch(self) -> Token:
        self._token = await self._exchange(
            await check_awaitable("credential_provider", self._provider, self._provider())
        )
        return self._token
