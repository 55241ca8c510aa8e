"""An httpx transport that reaches the emulator in-process."""

from collections.abc import Generator
from contextlib import contextmanager
from typing import Final, final

import anyio
import anyio.lowlevel
import attrs
import httpx

from cortecs_async.emulator._asgi import Core
from cortecs_async.emulator._messages import Request
from cortecs_async.emulator._streaming import ConnectionCut, Delivery

# The same messages as in h11 and httpcore, for code that reads them.
_DROPPED: Final = "Server disconnected without sending a response."
_CUT_BODY: Final = (
    "peer closed connection without sending complete message body (received {} bytes, expected {})"
)
_CUT_STREAM: Final = "peer closed connection without sending complete message body (incomplete chunked read)"


@final
class EmulatorTransport(httpx.AsyncBaseTransport):
    """Sends requests to an emulator as plain function calls.

    As on a network, a request can be cancelled before it or its response arrives. The read
    timeout of the request applies, on the clock of the event loop.
    """

    def __init__(self, core: Core) -> None:
        self._core = core

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        received = Request(
            method=request.method,
            path=request.url.path,
            query=tuple(request.url.params.multi_items()),
            headers={name.lower(): value for name, value in request.headers.items()},
            body=await request.aread(),
        )
        timeout: float | None = request.extensions.get("timeout", {}).get("read")
        await anyio.lowlevel.checkpoint()
        with _read_timeout(timeout, request):
            delivery = await self._core.exchange(received)
        await anyio.lowlevel.checkpoint()
        if delivery is None:
            raise httpx.RemoteProtocolError(_DROPPED, request=request)
        response = delivery.response
        expected = len(response.body) if response.events is None else None
        framing = {"transfer-encoding": "chunked"} if expected is None else {"content-length": str(expected)}
        return httpx.Response(
            response.status,
            headers={**response.headers, **framing},
            stream=_Stream(delivery, request, timeout, expected),
            extensions={"http_version": b"HTTP/1.1"},
        )


@final
@attrs.define(eq=False)
class _Stream(httpx.AsyncByteStream):
    delivery: Delivery
    request: httpx.Request
    timeout: float | None
    expected: int | None
    received: int = 0

    def __aiter__(self) -> "_Stream":
        return self

    async def __anext__(self) -> bytes:
        try:
            with _read_timeout(self.timeout, self.request):
                chunk = await anext(self.delivery)
        except ConnectionCut:
            cut = _CUT_STREAM if self.expected is None else _CUT_BODY.format(self.received, self.expected)
            raise httpx.RemoteProtocolError(cut, request=self.request) from None
        self.received += len(chunk)
        return chunk


@contextmanager
def _read_timeout(seconds: float | None, request: httpx.Request) -> Generator[None]:
    with anyio.move_on_after(seconds) as scope:
        yield
    if scope.cancelled_caught:
        msg = f"No response within {seconds} s"
        raise httpx.ReadTimeout(msg, request=request)
