"""The owner process of a shared instance: holds the instance while any process is connected.

`SharedInstance` starts it with two file descriptors, of its lock and of its listening socket, and with the
spec of the instance. On every change of state, the server sends each connected process a line of JSON. A
process sends nothing; it closes its side of the connection when it leaves. If others are still connected, the
server then closes that connection immediately. The last connection stays open until the instance is released.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import socket
import struct
import sys
from pathlib import Path
from typing import Any, TypedDict

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup
from attrs import asdict, define, field

from .. import AsyncCortecs, InstanceHandle
from .._state_directory import StateFolder
from ._background import BackgroundInstance, ManagedInstance, StartOptions, State, Unavailable, logger

# Seconds for the first connection. The process that started this one connects immediately, unless it died.
_FIRST_CONNECTION_TIMEOUT = 10.0

# Process id, user id and group id.
_CREDENTIALS = struct.Struct("=iII")


class InstanceSpec(TypedDict):
    """What to start, and how long to keep it: the arguments of `SharedInstance`."""

    model_id: str
    hardware_type_id: str | None
    pause: float
    linger: float
    options: StartOptions


def encode(state: State) -> bytes:
    text = state.to_json() if isinstance(state, InstanceHandle) else json.dumps(asdict(state))
    return text.encode() + b"\n"


def decode(line: bytes) -> State:
    data: dict[str, Any] = json.loads(line)
    return Unavailable(**data) if "reason" in data else InstanceHandle.from_json(line.decode())


@define(eq=False)
class SharedInstanceServer:
    """Sends the state of an instance to all connected processes, and ends when the last one has left.

    An unexpected error ends the server and so releases the instance.
    """

    instance: ManagedInstance
    linger: float
    users: int = 0  # connected processes that are not leaving
    _changed: anyio.Event = field(factory=anyio.Event)

    async def serve(self, listener: SocketListener) -> None:
        """Serve until the last process has left and the instance is released."""
        async with anyio.create_task_group() as tasks:
            async with self.instance:
                tasks.start_soon(self._accept, listener, tasks)
                timeout = _FIRST_CONNECTION_TIMEOUT
                while await self._is_used_within(timeout):
                    await self._wait_until(any_users=False)
                    timeout = self.linger
                # From here on, a new connection is refused or soon closed; its process starts a new server.
                await listener.aclose()
            tasks.cancel_scope.cancel()

    async def _is_used_within(self, seconds: float) -> bool:
        with anyio.move_on_after(seconds):
            await self._wait_until(any_users=True)
        return self.users > 0

    async def _wait_until(self, *, any_users: bool) -> None:
        while bool(self.users) is not any_users:
            await self._changed.wait()

    def _add_users(self, change: int) -> None:
        self.users += change
        self._changed.set()
        self._changed = anyio.Event()

    async def _accept(self, listener: SocketListener, tasks: TaskGroup) -> None:
        with contextlib.suppress(anyio.ClosedResourceError):
            await listener.serve(self._serve_connection, tasks)

    async def _serve_connection(self, stream: SocketStream) -> None:
        if not is_of_this_user(stream):
            logger.warning("rejected a connection from a process of another user")
            await stream.aclose()
            return
        self._add_users(+1)
        async with stream, anyio.create_task_group() as tasks:
            tasks.start_soon(self._send_states, stream)
            # A connection breaks when its process is killed.
            with contextlib.suppress(anyio.BrokenResourceError):
                async for _ in stream:
                    pass
            self._add_users(-1)
            # The last process to leave stays connected until the release, or until another one connects.
            await self._wait_until(any_users=True)
            tasks.cancel_scope.cancel()

    async def _send_states(self, stream: SocketStream) -> None:
        state: State | None = None
        with contextlib.suppress(anyio.BrokenResourceError):
            while True:
                state = await self.instance.state_after(state)
                await stream.send(encode(state))


def is_of_this_user(stream: SocketStream) -> bool:
    """Return whether the process at the other end of a unix socket has the user id of this process.

    Linux has SO_PEERCRED; macOS and the BSDs have `getpeereid`. On any other system, the directory of the
    socket, which only its user can enter, must suffice.
    """
    connection = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  (anyio's, not Django's)
    if hasattr(socket, "SO_PEERCRED"):
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())
    getpeereid = getattr(ctypes.CDLL(None, use_errno=True), "getpeereid", None)
    if getpeereid is None:
        return True
    uid, gid = ctypes.c_uint(), ctypes.c_uint()
    has_failed = getpeereid(connection.fileno(), ctypes.byref(uid), ctypes.byref(gid))
    return not has_failed and uid.value == os.geteuid()


async def _main(listener: socket.socket, spec: InstanceSpec) -> None:
    async with AsyncCortecs(guard="required") as client:
        instance = BackgroundInstance(
            client, spec["model_id"], spec["hardware_type_id"], pause=spec["pause"], **spec["options"]
        )
        await SharedInstanceServer(instance, spec["linger"]).serve(await SocketListener.from_socket(listener))


def main() -> None:
    """Run the server. The lock's descriptor is never closed, so the lock is held until the process ends."""
    # A service manager sends these signals to all of its processes at once, while the server's workers still
    # finish requests. This process ends when they have ended.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    logging.basicConfig(format="cortecs_async, owner of the shared instance: %(message)s")
    _, listener, spec = sys.argv[1:]
    with socket.socket(fileno=int(listener)) as accepting:
        path = Path(accepting.getsockname())
        anyio.run(_main, accepting, json.loads(spec))
    with contextlib.suppress(OSError), StateFolder(path.parent) as folder:
        folder.remove_socket(path.name)


if __name__ == "__main__":
    main()
