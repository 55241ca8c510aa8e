"""Serve the emulator on a real socket with uvicorn, in a thread or in the foreground."""

import asyncio
import ipaddress
import signal
import socket
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any, Final, final

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from cortecs_async.emulator._asgi import EXTENSION
from cortecs_async.emulator._emulator import Emulator

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@final
class _Protocol(H11Protocol):
    """HTTP/1.1 connections that the application can cut."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        buffered = _BufferedTransport(transport, self.loop)
        super().connection_made(buffered)  # type: ignore[arg-type]
        self._application: Any = self.app
        self._requests: set[asyncio.Task[Any]] = set()
        self._cut = {"abort": buffered.abort, "close": buffered.close}
        self.app = self._run_application

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        # A disconnected caller no longer waits. An in-process request is cancelled in the same way.
        for request in self._requests:
            request.cancel()

    async def _run_application(self, scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("extensions", {})[EXTENSION] = self._cut
        task = asyncio.current_task()
        if task is not None:
            self._requests.add(task)
        try:
            await self._application(scope, receive, send)
        except asyncio.CancelledError:
            # The connection is lost, or the server stops. uvicorn would log this as an application error.
            return
        finally:
            self._requests.discard(task)


@final
class _BufferedTransport:
    """Wraps a transport and joins all writes in one iteration of the event loop.

    uvicorn writes the head and the body of a response separately, and system calls take most of the time.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._buffer: list[bytes | bytearray | memoryview] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if data:
            if not self._buffer:
                self._loop.call_soon(self._flush)
            self._buffer.append(data)

    def _flush(self) -> None:
        if self._buffer:
            self._transport.write(b"".join(self._buffer))
            self._buffer.clear()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def abort(self) -> None:
        self._buffer.clear()
        self._transport.abort()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


@final
class _Server(uvicorn.Server):
    """A uvicorn server that reacts and stops immediately, with no polling and no grace period."""

    def __init__(self, app: ASGIApp, on_ready: Callable[[], None]) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=_Protocol,
                ws="none",
                interface="asgi3",
                lifespan="off",
                log_config=None,
                access_log=False,
                proxy_headers=False,
                server_header=False,
                date_header=False,
                # Longer than httpx keeps an idle connection. With uvicorn's 5 s, both would close it at the
                # same time, and a client that was paused for 5 s would lose its next request.
                timeout_keep_alive=75,
            )
        )
        self._on_ready = on_ready
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()

    def stop(self) -> None:
        """Stop the server, from any thread or signal handler. A second call has no effect."""
        # uvicorn reads this if the main loop has not started yet.
        self.should_exit = True
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._stopped.set)

    async def main_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_ready()
        await self._stopped.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        for connection in list(self.server_state.connections):
            connection.transport.abort()
        # Let the event loop notify the connections that they are lost.
        await asyncio.sleep(0)
        tasks = list(self.server_state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn raises the signal again at the end, but our callers expect a plain return.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, lambda *_: self.stop()) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _bind(host: str, port: int, *, allow_remote: bool) -> socket.socket:
    address = "127.0.0.1" if host == "localhost" else host
    if not allow_remote and not _is_loopback(address):
        msg = (
            f"{host!r} is reachable from other machines, and the emulator has no protection. "
            "To allow it, pass allow_remote=True (--allow-remote)."
        )
        raise ValueError(msg)
    if not 0 <= port <= 65535:
        # Otherwise the number would wrap around.
        raise ValueError(f"port {port} is invalid. Use 1 to 65535, or 0 for a free port.")
    family, kind, protocol, _, target = socket.getaddrinfo(
        address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(target)
        sock.listen(2048)
    except BaseException:
        sock.close()
        raise
    return sock


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _url(sock: socket.socket) -> str:
    address, port = sock.getsockname()[:2]
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def run_emulator(
    emulator: Emulator,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_remote: bool = False,
    on_ready: Callable[[Emulator], None],
) -> None:
    """Serve an emulator until Ctrl-C or SIGTERM, then return.

    Args:
        emulator: The emulator. Its `root_url` is set.
        host: The address to listen on.
        port: The port. Pass 0 to use a free one.
        allow_remote: Allow an address that is not loopback.
        on_ready: Called once, when the emulator accepts connections, with the emulator.

    Raises:
        ValueError: If the address is not loopback and `allow_remote` is not set, or the port is invalid.
        OSError: If the address cannot be bound.

    Example:
        from cortecs_async.emulator import Emulator, run_emulator

        def show(emulator):
            print(emulator.api_base_url)

        run_emulator(Emulator(step_seconds=0.2), on_ready=show)
    """
    sock = _bind(host, port, allow_remote=allow_remote)
    emulator.root_url = _url(sock)
    with sock:
        asyncio.run(_Server(emulator.app, lambda: on_ready(emulator)).serve(sockets=[sock]))


def serve_emulator(
    emulator: Emulator | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 0,
    allow_remote: bool = False,
    **emulator_kwargs: Any,
) -> "ServedEmulator":
    """Serve an emulator on a real socket during a `with` or `async with` block.

    The emulator runs on its own event loop in another thread, so it responds even if yours is blocked.
    Entering and leaving the block take a few milliseconds without awaiting anything. Both work with any event
    loop and clock, or with no event loop at all. Leaving the block cuts open connections.

    Args:
        emulator: The emulator to serve. Its `clock` and `sleep` must work in another thread. If None, a new
            one is created.
        host: The address to listen on.
        port: The port. Pass 0 to use a free one.
        allow_remote: Allow an address that is not loopback.
        **emulator_kwargs: Arguments for the new emulator.

    Returns:
        A context manager for `with` and `async with` that yields the emulator, with its `root_url` set.
        Entering it raises ValueError if the address is not loopback and `allow_remote` is not set, or the
        port is invalid. It raises OSError if the address cannot be bound.

    Raises:
        TypeError: If you pass both an emulator and `emulator_kwargs`.
        ValueError: If the arguments for the emulator are invalid.

    Example:
        from cortecs_async.emulator import serve_emulator

        async with serve_emulator(step_seconds=0.01) as emulator:
            async with AsyncCortecs(
                emulator.client_id, emulator.client_secret, api_base_url=emulator.api_base_url
            ) as client:
                print(await client.user.balance())
    """
    if emulator is None:
        emulator = Emulator(**emulator_kwargs)
    elif emulator_kwargs:
        msg = "Pass either an emulator or emulator_kwargs for a new one, not both."
        raise TypeError(msg)
    return ServedEmulator(_served(emulator, host, port, allow_remote=allow_remote))


@final
class ServedEmulator(AbstractContextManager[Emulator], AbstractAsyncContextManager[Emulator]):
    """The context manager of :func:`serve_emulator`. Enter it once, with `with` or `async with`.

    Example:
        with serve_emulator() as emulator:
            print(emulator.root_url)  # such as http://127.0.0.1:41234
    """

    def __init__(self, served: AbstractContextManager[Emulator]) -> None:
        self._served = served

    def __enter__(self) -> Emulator:
        return self._served.__enter__()

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._served.__exit__(exc_type, exc, traceback)

    async def __aenter__(self) -> Emulator:
        return self.__enter__()

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.__exit__(exc_type, exc, traceback)


@contextmanager
def _served(emulator: Emulator, host: str, port: int, *, allow_remote: bool) -> Generator[Emulator]:
    sock = _bind(host, port, allow_remote=allow_remote)
    emulator.root_url = _url(sock)
    ready: Future[None] = Future()
    server = _Server(emulator.app, lambda: ready.set_result(None))

    def serve() -> None:
        try:
            with sock:
                asyncio.run(server.serve(sockets=[sock]))
        except BaseException as error:
            # Once the server is ready, no caller waits for it, so the thread's own traceback must suffice.
            if ready.done():
                raise
            ready.set_exception(error)

    thread = threading.Thread(target=serve, name="cortecs-emulator", daemon=True)
    thread.start()
    ready.result()
    try:
        yield emulator
    finally:
        server.stop()
        thread.join()
