"""The owner's side of its connections: accept those of this user's processes, and keep the files in place."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import SocketAttribute, SocketListener, SocketStream, TaskGroup
from attrs import define

from .._platform import NO_LOCKS
from .meeting_point import MeetingPoint
from .owner_log import OwnerLog

# Process id, user id and group id.
_CREDENTIALS = struct.Struct("=iII")


@define(eq=False)
class ConnectionListener:
    """Accepts the connections to an owner process.

    Attributes:
        meeting_point: The lock and the socket.
        lock: The descriptor of the lock.
        check_interval: Seconds between two checks of the files.
        serve: Called with each connection of a process of this user. It must close the connection.
        logger: The logger.
    """

    meeting_point: MeetingPoint
    lock: int
    check_interval: float
    serve: Callable[[SocketStream], Awaitable[None]]
    logger: OwnerLog

    async def run(self, listener: SocketListener, connections: TaskGroup) -> None:
        """Accept connections until cancelled. Serve each of them as a task in `connections`."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._accept, listener, connections)
            await self._keep_files(tasks, connections)

    def remove_files(self) -> None:
        """Remove the socket and the lock, because this owner no longer accepts connections."""
        with contextlib.suppress(OSError):
            self.meeting_point.remove(self.lock)

    async def _accept(self, listener: SocketListener, connections: TaskGroup) -> None:
        async with listener:
            await listener.serve(self._serve, connections)

    async def _serve(self, stream: SocketStream) -> None:
        if is_of_this_user(stream):
            await self.serve(stream)
            return
        self.logger.warning("Rejected a connection from another user's process")
        await stream.aclose()

    async def _keep_files(self, tasks: TaskGroup, connections: TaskGroup) -> None:
        """Restore the socket and the lock if they are removed, so that new processes can connect.

        The first time, this also writes into the lock file that the server has started.
        """
        while True:
            try:
                self.lock, listener = self.meeting_point.restore(self.lock)
            except OSError as error:
                self.logger.warning("Could not restore the files of the shared instance: %s", error)
            else:
                if listener is not None:
                    self.logger.warning("Restored the socket of the shared instance, which had been removed")
                    accepting = await SocketListener.from_socket(listener)
                    tasks.start_soon(self._accept, accepting, connections)
            await anyio.sleep(self.check_interval)


def is_of_this_user(stream: SocketStream) -> bool:
    """Return whether the process at the other end of a Unix socket has this process's user id.

    Linux has SO_PEERCRED; macOS and the BSDs have `getpeereid`. Other systems rely on the
    socket's directory, which only its user can enter.
    """
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
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
