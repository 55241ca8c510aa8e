"""One instance for all processes of a machine that request the same one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import weakref
from pathlib import Path
from typing import Unpack

import anyio
from anyio.abc import SocketAttribute, SocketStream

from .. import AsyncCortecs, ConfigurationError, InvalidArgumentError, __version__
from .._state_directory import StateFolder, state_directory
from . import _shared_server
from ._background import ManagedInstance, StartOptions, Unavailable, logger

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Seconds before the second attempt to connect to the owner process. Doubles with each attempt, up to `pause`.
_INITIAL_BACKOFF = 0.25

# Seconds that the last process to leave waits in addition to the teardown timeout.
_LEAVE_MARGIN = 30.0

# The longest socket address, in bytes, that every system supports.
_LONGEST_ADDRESS = 103


class SharedInstance(ManagedInstance):
    """One instance for all processes of this machine that request the same one, such as a server's workers.

    Use `async with SharedInstance(MODEL) as shared:` in each process, then as a `BackgroundInstance`. The
    first process starts another one, the owner, which holds the instance. Every process keeps a connection to
    the owner. When the last connection ends, the instance is released; the last process to leave waits for
    that.

    No worker is the owner, because servers often replace workers: after a crash, after a number of requests,
    or for new code. The instance would end with each of them. The owner does not outlive the connections,
    which the operating system closes however a worker ends. It starts nothing without its own reaper. If it
    is killed, the workers start another one.

    Processes share an instance if they have the same arguments, CORTECS_CLIENT_ID, CORTECS_API_BASE_URL, the
    state directory (CORTECS_STATE_DIR), the host's name, the user, and the version of this package.
    Credentials come from the environment. Needs unix sockets and file locks. Processes of other users cannot
    connect.

    Args:
        model_id: As for `client.instance`.
        hardware_type_id: As for `client.instance`.
        name: Processes with different names do not share an instance.
        pause: As for `BackgroundInstance`.
        linger: Seconds to keep the instance after the last process has left, for servers that replace all of
            their workers at about the same time. The last process to leave waits for that too, so a shutdown
            takes that much longer.
        **options: As for `client.instance`; see `StartOptions`.

    Raises:
        InvalidArgumentError: If `pause` or `linger` is too short.
    """

    def __init__(
        self,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        name: str = "",
        pause: float = 30.0,
        linger: float = 0.0,
        **options: Unpack[StartOptions],
    ) -> None:
        super().__init__(pause)
        if not linger >= 0:
            raise InvalidArgumentError(f"linger must be 0 seconds or more, not {linger!r}")
        self._spec = _shared_server.InstanceSpec(
            model_id=model_id,
            hardware_type_id=hardware_type_id,
            pause=pause,
            linger=linger,
            options=options,
        )
        self._name = name
        self._stream: SocketStream | None = None
        self._leaving = False
        self._disconnected: anyio.Event

    async def _check(self) -> None:
        if fcntl is None or not sys.executable or getattr(sys, "frozen", False):
            raise ConfigurationError("a shared instance needs file locks, and Python as a child process")
        self._leaving = False
        self._disconnected = anyio.Event()
        async with AsyncCortecs(guard="off", journal="off") as client:
            client.instance(self._spec["model_id"], self._spec["hardware_type_id"], **self._spec["options"])
        address = self._path(".sock")
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            raise ConfigurationError(f"{address} is too long for a socket: set a shorter CORTECS_STATE_DIR")
        try:
            os.close(self._open_lock())
        except OSError as error:
            raise ConfigurationError(
                f"the directory of shared instances, {address.parent}, cannot be used: {error}. "
                "Set CORTECS_STATE_DIR to a directory of your own."
            ) from None

    async def _run(self) -> None:
        backoff = _INITIAL_BACKOFF
        while True:
            received, problem = False, "the last one has ended"
            try:
                async with await self._connect() as self._stream:
                    received = await self._receive(self._stream)
            except (OSError, anyio.BrokenResourceError) as error:
                problem = str(error)
            self._stream = None
            if self._leaving:
                break
            logger.info("no connection to the owner process of the instance: %s", problem)
            self._set(Unavailable(f"there is no owner process of the instance yet: {problem}"))
            backoff = _INITIAL_BACKOFF if received else min(2 * backoff, self._pause)
            await anyio.sleep(backoff)
        self._disconnected.set()

    async def _receive(self, stream: SocketStream) -> bool:
        """Take over the states that the owner sends until it closes. Return whether it sent any."""
        rest = b""
        received = False
        async for data in stream:
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                received = True
                self._set(_shared_server.decode(lines[-1]))
        return received

    async def _connect(self) -> SocketStream:
        assert fcntl is not None  # noqa: S101  (for the type checker: `_check` has raised otherwise)
        lock = self._open_lock()
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass  # another process has started the owner
        else:
            self._start_owner(lock)
        finally:
            os.close(lock)
        stream = await anyio.connect_unix(self._path(".sock"))
        if not _shared_server.is_of_this_user(stream):
            await stream.aclose()
            raise PermissionError("a process of another user listens on the socket")
        _connections.add(stream)
        return stream

    def _start_owner(self, lock: int) -> None:
        address = self._path(".sock")
        with StateFolder(address.parent) as folder:
            folder.remove_socket(address.name)
        path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Listen here, so that this process and all others can connect before the owner is up.
            listener.bind(os.fspath(address))
            listener.listen(128)
            owner = subprocess.Popen(  # noqa: S603  (this very interpreter)
                [
                    *(sys.executable, "-P", "-m", _shared_server.__name__),
                    *(str(lock), str(listener.fileno()), json.dumps(self._spec)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(lock, listener.fileno()),
                start_new_session=True,  # out of reach of Ctrl-C and of the terminal's end
            )
        # Reap the child when it ends: this process may outlive it.
        threading.Thread(target=owner.wait, name="cortecs-owner", daemon=True).start()

    async def _leave(self) -> None:
        self._leaving = True
        if self._stream is None:
            return
        timeout = self._spec["linger"] + self._spec["options"].get("teardown_timeout", 120.0) + _LEAVE_MARGIN
        with anyio.move_on_after(timeout, shield=True):
            # The connection may have ended just now; then there is no one left to notify.
            with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._stream.send_eof()
            await self._disconnected.wait()

    def _open_lock(self) -> int:
        path = self._path(".lock")
        with StateFolder(path.parent, create=True) as folder:
            return folder.open(path.name, os.O_RDWR | os.O_CREAT)

    def _path(self, suffix: str) -> Path:
        """Return the path of a file that exactly the processes that share have in common."""
        account = [os.environ.get(f"CORTECS_{name}", "") for name in ("CLIENT_ID", "API_BASE_URL")]
        key = [self._name, self._spec, account, socket.gethostname(), os.getuid(), __version__]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        return state_directory(None) / "shared" / f"{digest[:16]}{suffix}"


_connections: weakref.WeakSet[SocketStream] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the connections in a forked child. Left open there, they would keep the instance running."""
    devnull = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in _connections:
        with contextlib.suppress(OSError):
            connection = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  (anyio's, not Django's)
            os.dup2(devnull, connection.fileno(), inheritable=False)
    os.close(devnull)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
