"""The emulator behind an httpx client, in process."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, final

import anyio
import anyio.lowlevel
import httpx

from cortecs_async.emulator._answers import Call
from cortecs_async.emulator._asgi import Core
from cortecs_async.emulator._playback import ConnectionCut, Playback

# The words of h11 and httpcore, so that what reads messages sees nothing new.
_DROPPED: Final = "Server disconnected without sending a response."
_CUT_BODY: Final = (
    "peer closed connection without sending complete message body (received {} bytes, expected {})"
)
_CUT_STREAM: Final = "peer closed connection without sending complete message body (incomplete chunked read)"


@final
class EmulatorTransport(httpx.AsyncBaseTransport):
    """Carries requests to an emulator as plain function calls.

    There is one point to be cancelled at before the request arrives and one before its answer does, as on
    a network; the read time-out of the request is honoured on the clock of the event loop.
    """

    def __init__(self, core: Core) -> None:
        """Reach ``core``."""
        self._core = core

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send one request.

        Raises:
            httpx.ReadTimeout: When the answer takes longer than the request's read time-out.
            httpx.RemoteProtocolError: When a fault drops the connection.
        """
        call = Call(
            method=request.method,
            path=request.url.path,
            query=tuple(request.url.params.multi_items()),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.aread(),
        )
        patience = _read_timeout(request)
        await anyio.lowlevel.checkpoint()
        with _at_most(patience, request):
            reply = await self._core.exchange(call)
        await anyio.lowlevel.checkpoint()
        if reply.answer is None:
            raise httpx.RemoteProtocolError(_DROPPED, request=request)
        headers = dict(reply.answer.headers)
        if reply.answer.events is None:
            headers["content-length"] = str(len(reply.answer.body))
            expected: int | None = len(reply.answer.body)
        else:
            headers["transfer-encoding"] = "chunked"
            expected = None
        return httpx.Response(
            reply.answer.status,
            headers=headers,
            stream=_Stream(self._core.playback(reply), request, patience, expected),
            extensions={"http_version": b"HTTP/1.1"},
        )


@final
class _Stream(httpx.AsyncByteStream):
    def __init__(
        self, playback: Playback, request: httpx.Request, patience: float | None, expected: int | None
    ) -> None:
        self._playback = playback
        self._request = request
        self._patience = patience
        self._expected = expected
        self._received = 0

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> bytes:
        try:
            with _at_most(self._patience, self._request):
                piece = await self._playback.__anext__()
        except ConnectionCut:
            cut = _CUT_STREAM if self._expected is None else _CUT_BODY.format(self._received, self._expected)
            raise httpx.RemoteProtocolError(cut, request=self._request) from None
        self._received += len(piece)
        return piece


def _read_timeout(request: httpx.Request) -> float | None:
    timeout: dict[str, float | None] = request.extensions.get("timeout", {})
    return timeout.get("read")


@contextmanager
def _at_most(seconds: float | None, request: httpx.Request) -> Generator[None]:
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        msg = f"No answer within {seconds} s"
        raise httpx.ReadTimeout(msg, request=request)
