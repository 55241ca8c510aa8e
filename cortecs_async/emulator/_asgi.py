"""The emulator as a Starlette application.

To cut a connection is no part of ASGI: the server puts two functions into the scope's extensions
(``_server.py`` does). Under any other server a cut is an exception out of the application.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, final
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from cortecs_async.emulator._answers import Answer, Call
from cortecs_async.emulator._playback import ConnectionCut, Playback, Reply

EXTENSION: Final = "cortecs_async.emulator"


class Core(Protocol):
    """What carries the emulator's answers needs of it."""

    async def exchange(self, call: Call) -> Reply:
        """Answer one request."""
        ...

    def playback(self, reply: Reply) -> Playback:
        """The body of a reply."""
        ...


def starlette_app(core: Core) -> Starlette:
    """The application around one emulator: to be served, mounted, or wrapped in middleware.

    Which route a call takes is decided in the core, which the in-process transport shares.
    """
    return _App(_AsgiApp(core))


@final
class _App(Starlette):
    """Starlette's machinery costs much of an answer: a request passes it by, unless somebody added to it."""

    def __init__(self, carrier: ASGIApp) -> None:
        super().__init__(routes=[Mount("/", app=carrier)])
        self._carrier = carrier

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        plain = not self.user_middleware and not self.exception_handlers and len(self.routes) == 1
        if plain and scope["type"] == "http":
            await self._carrier(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


@final
class _AsgiApp:
    __slots__ = ("_core",)

    def __init__(self, core: Core) -> None:
        """Carry the answers of ``core``."""
        self._core = core

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request.

        Raises:
            ConnectionResetError: When a fault cuts the connection and the server offers no way to.
        """
        call = await _read(scope, receive)
        if call is None:
            return
        reply = await self._core.exchange(call)
        if reply.answer is None:
            await _cut(scope, receive, "abort")
            return
        try:
            await _send(reply.answer, self._core.playback(reply), send)
        except ConnectionCut:
            await _cut(scope, receive, "close")


async def _read(scope: Scope, receive: Receive) -> Call | None:
    """The request; None when the caller left in the middle of it."""
    # To the end, before anything is cut: a socket closed with unread bytes resets, which looks different.
    parts: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    query: bytes = scope["query_string"]
    return Call(
        method=scope["method"],
        path=scope["path"],
        query=tuple(parse_qsl(query.decode("latin-1"), keep_blank_values=True)) if query else (),
        # From behind, so that the first of a name stays.
        headers={
            name.decode("latin-1"): value.decode("latin-1") for name, value in reversed(scope["headers"])
        },
        body=b"".join(parts),
    )


async def _send(answer: Answer, playback: Playback, send: Send) -> None:
    headers = dict(answer.headers)
    if answer.events is None:
        headers["content-length"] = str(len(answer.body))
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": answer.status, "headers": raw})
    if answer.events is None and not playback.cuts:
        await send({"type": "http.response.body", "body": answer.body, "more_body": False})
        return
    async for piece in playback:
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cut(scope: Scope, receive: Receive, how: str) -> None:
    """End the connection here and now: ``abort`` loses what was not sent yet, ``close`` sends it."""
    functions: dict[str, Callable[[], None]] | None = scope.get("extensions", {}).get(EXTENSION)
    if functions is None:
        msg = "The emulator was told to cut this connection."
        raise ConnectionResetError(msg)
    functions[how]()
    # The server must have noticed before the application returns, or it answers 500 by itself.
    await _until_disconnected(receive)


async def _until_disconnected(receive: Callable[[], Awaitable[Any]]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
