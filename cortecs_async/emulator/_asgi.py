"""The emulator as a Starlette application.

ASGI cannot cut a connection. To allow that, our own server (`_server.py`) adds two functions to the scope's
extensions. Under any other server, a cut is an exception raised by the application.
"""

from collections.abc import Callable
from typing import Final, Protocol, final

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.routing import Mount
from starlette.types import Receive, Scope, Send

from cortecs_async.emulator._messages import Request
from cortecs_async.emulator._streaming import ConnectionCut, Delivery

EXTENSION: Final = "cortecs_async.emulator"


class Core(Protocol):
    """The interface of the emulator that the transports use."""

    async def exchange(self, request: Request, /) -> Delivery | None:
        """Answer one request. Return None if its connection is dropped."""
        ...


@final
class EmulatorApp(Starlette):
    """The application of an emulator, to serve, mount, or wrap in middleware.

    The emulator does the routing, because the in-process transport needs it too.
    """

    def __init__(self, core: Core) -> None:
        super().__init__(routes=[Mount("/", app=self._answer)])
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Starlette's own machinery is slow, so skip it unless it is used.
        unchanged = not self.user_middleware and not self.exception_handlers and len(self.routes) == 1
        if unchanged and scope["type"] == "http":
            await self._answer(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = await _read(scope, receive)
        if request is None:
            return
        delivery = await self._core.exchange(request)
        if delivery is None:
            await _cut(scope, receive, "abort")
            return
        try:
            await _send(delivery, send)
        except ConnectionCut:
            await _cut(scope, receive, "close")


async def _read(scope: Scope, receive: Receive) -> Request | None:
    """Read the request. Return None if the caller disconnects in the middle of it."""
    request = HttpRequest(scope, receive)
    # Read it all before a cut, because closing a socket with unread bytes resets the connection.
    try:
        body = await request.body()
    except ClientDisconnect:
        return None
    return Request(
        method=scope["method"],
        path=scope["path"],
        query=tuple(request.query_params.multi_items()),
        # In reverse, so that the first header of a name wins.
        headers=dict(reversed(request.headers.items())),
        body=body,
    )


async def _send(delivery: Delivery, send: Send) -> None:
    response = delivery.response
    headers = dict(response.headers)
    if response.events is None:
        headers["content-length"] = str(len(response.body))
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": response.status, "headers": raw})
    if response.events is None and not delivery.is_cut:
        await send({"type": "http.response.body", "body": response.body, "more_body": False})
        return
    async for chunk in delivery:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cut(scope: Scope, receive: Receive, how: str) -> None:
    """Cut the connection now: `abort` discards unsent data, and `close` sends it first."""
    functions: dict[str, Callable[[], None]] | None = scope.get("extensions", {}).get(EXTENSION)
    if functions is None:
        msg = "An emulated fault cut this connection."
        raise ConnectionResetError(msg)
    functions[how]()
    # If the application returned before the server noticed, the server would respond with a 500.
    while (await receive())["type"] != "http.disconnect":
        pass
