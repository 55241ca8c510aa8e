"""Detect that the service rejects the credentials of a dead process, for `recover.reap_account`.

A refusal may be a mistake by the service, or by a machine in between. So the credentials count as rejected
only after several refusals by the service itself, minutes apart and with no success in between.
"""

from __future__ import annotations

import anyio

from .._api.resources import Send
from .._errors import APIStatusError, AuthenticationError, BadRequestError, PermissionDeniedError
from .._http.messages import EXCHANGE_PATH, Call, Reply

# The minimum number of refusals in a row, and the minimum seconds from the first to the last.
_MIN_REFUSALS, _MIN_REFUSED_TIME = 5, 120.0


class RefusalWatch:
    """Sends requests and cancels `scope` once the service has rejected the credentials.

    Attributes:
        scope: The scope of the work that sends the requests.
        is_refused: Whether the credentials count as rejected.
        refusal: The last refusal.
    """

    def __init__(self, send: Send) -> None:
        self.scope = anyio.CancelScope()
        self.is_refused: bool = False
        self.refusal: APIStatusError | None = None
        self._send = send
        self._count = 0
        self._since = 0.0

    async def send(self, call: Call) -> Reply:
        """Send a request and return or raise its outcome."""
        try:
            reply = await self._send(call)
        except APIStatusError as error:
            if is_refusal(error):
                self._add(error)
            raise
        self._count = 0
        return reply

    def _add(self, refusal: APIStatusError) -> None:
        now = anyio.current_time()
        if not self._count:
            self._since = now
        self._count += 1
        self.refusal = refusal
        if self._count >= _MIN_REFUSALS and now - self._since >= _MIN_REFUSED_TIME:
            self.is_refused = True
            self.scope.cancel()


def is_refusal(error: APIStatusError) -> bool:
    """Return whether the service itself rejects the credentials."""
    if not error.has_json_body:
        return False
    if isinstance(error, BadRequestError):
        return error.path == EXCHANGE_PATH  # "invalid_client", in the form of OAuth 2.0
    return isinstance(error, (AuthenticationError, PermissionDeniedError))
