"""One instance for all processes of a machine that want the same."""

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
import platformdirs
from anyio.abc import SocketAttribute, SocketStream

from .. import AsyncCortecs, ConfigurationError, InvalidArgumentError, __version__
from . import _owner
from ._standing import Down, Standing, StartOptions, check_pause, logger

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

# Seconds until the next attempt to reach an owner: the first, then twice as long each time, up to `pause`.
_AGAIN = 0.25

# Seconds for everything that is not the teardown itself, while the last process waits for it.
_MARGIN = 30.0

# What a socket's address has room for on every system, in bytes.
_LONGEST_ADDRESS = 103


class SharedInstance(Standing):
    """One instance for all processes of this machine that want the same, such as the workers of a server.

    `async with SharedInstance(MODEL) as shared:` in each; then as `BackgroundInstance`. The first process to
    come starts another one, the owner, which holds the instance, and every process keeps a connection to it.
    The instance is released when the last connection ends; who leaves last waits for that.

    Why no worker is the owner: servers replace workers all the time, when they were killed, have served their
    number of requests or get new code. The instance would go with each, and be away for minutes, or would
    have to be handed on. Why a process that nobody waits for does not break the promise: it lives no longer
    than the connections, whose end the system tells it however a worker ended; it refuses to start anything
    without a reaper of its own; and when it is killed itself, the workers have another one started.

    Processes share when they agree on all arguments, CORTECS_CLIENT_ID, CORTECS_API_BASE_URL, the state
    directory (CORTECS_STATE_DIR), the host's name, the user, and the version of this package. Credentials
    are those of the environment. Needs unix sockets and file locks.

    Args:
        model_id: As for `client.instance`.
        hardware_type_id: As for `client.instance`.
        name: Give another one for an instance apart from those of other programs.
        pause: As for `BackgroundInstance`.
        linger: Seconds for which the instance is kept when the last has left, and in which another may come:
            for servers that replace all of their workers at about the same time. Who leaves last waits for
            that as well, so that a shutdown takes that much longer.
        **options: As for `client.instance`; see `StartOptions`.

    Raises:
        InvalidArgumentError: for a pause or linger that is none.
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
        super().__init__()
        check_pause(pause)
        if not linger >= 0:
            raise InvalidArgumentError(f"linger must be 0 seconds or more, not {linger!r}")
        self._wish = _owner.Wish(
            model_id=model_id,
            hardware_type_id=hardware_type_id,
            pause=pause,
            linger=linger,
            options=options,
        )
        self._name = name
        self._stream: SocketStream | None = None
        self._leaving = False
        self._left: anyio.Event

    async def _check(self) -> None:
        if fcntl is None or not sys.executable or getattr(sys, "frozen", False):
            raise ConfigurationError("a shared instance needs file locks, and Python as a child process")
        self._leaving = False
        self._left = anyio.Event()
        async with AsyncCortecs(guard="off", journal="off") as client:
            client.instance(self._wish["model_id"], self._wish["hardware_type_id"], **self._wish["options"])
        address = self._path(".sock")
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            raise ConfigurationError(f"{address} is too long for a socket: set a shorter CORTECS_STATE_DIR")
        try:
            address.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(self._open_lock())
        except OSError as error:
            raise ConfigurationError(
                f"a shared instance needs a directory, and {address.parent} cannot be written: {error}. "
                "CORTECS_STATE_DIR puts it elsewhere."
            ) from None

    async def _run(self) -> None:
        pause = _AGAIN
        while True:
            heard, problem = False, "the last one has ended"
            try:
                async with await self._connect() as self._stream:
                    heard = await self._listen(self._stream)
            except (OSError, anyio.BrokenResourceError) as error:
                problem = str(error)
            self._stream = None
            if self._leaving:
                break
            logger.info("no connection to the process that holds the instance: %s", problem)
            self._set(Down(f"there is no process yet that holds the instance: {problem}"))
            pause = _AGAIN if heard else min(2 * pause, self._wish["pause"])
            await anyio.sleep(pause)
        self._left.set()

    async def _listen(self, stream: SocketStream) -> bool:
        """Takes what the owner says as the state, until it is gone. Returns whether it said anything."""
        rest = b""
        heard = False
        async for received in stream:
            *lines, rest = (rest + received).split(b"\n")
            if lines:
                heard = True
                self._set(_owner.decode(lines[-1]))
        return heard

    async def _connect(self) -> SocketStream:
        lock = self._open_lock()
        try:
            if _is_free(lock):
                self._start_owner(lock)
        finally:
            os.close(lock)
        stream = await anyio.connect_unix(self._path(".sock"))
        _connected.add(stream)
        return stream

    def _start_owner(self, lock: int) -> None:
        address = self._path(".sock")
        address.unlink(missing_ok=True)
        path = os.pathsep.join(each or str(Path.cwd()) for each in sys.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            # Made here, so that this process and all others can connect before the owner is up.
            listener.bind(os.fspath(address))
            listener.listen(128)
            owner = subprocess.Popen(  # noqa: S603  (this very interpreter)
                [
                    *(sys.executable, "-P", "-m", _owner.__name__),
                    *(str(lock), str(listener.fileno()), json.dumps(self._wish)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                pass_fds=(lock, listener.fileno()),
                start_new_session=True,  # out of reach of Ctrl-C and of the terminal's end
            )
        # So that it is no zombie once it has ended; this process may live on.
        threading.Thread(target=owner.wait, name="cortecs-owner", daemon=True).start()

    async def _leave(self) -> None:
        self._leaving = True
        if self._stream is None:
            return
        limit = self._wish["linger"] + self._wish["options"].get("teardown_timeout", 120.0) + _MARGIN
        with anyio.move_on_after(limit, shield=True):
            # Where the connection has ended just before, there is nothing to be said any more.
            with contextlib.suppress(OSError, anyio.BrokenResourceError, anyio.ClosedResourceError):
                await self._stream.send_eof()
            await self._left.wait()

    def _open_lock(self) -> int:
        return os.open(self._path(".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def _path(self, suffix: str) -> Path:
        """Of a file that all who share have in common, and nobody else."""
        given = os.environ.get("CORTECS_STATE_DIR", "").strip()
        directory = Path(given).absolute() if given else platformdirs.user_state_path("cortecs_async")
        account = [os.environ.get(f"CORTECS_{each}", "") for each in ("CLIENT_ID", "API_BASE_URL")]
        common = [self._name, self._wish, account, socket.gethostname(), os.getuid(), __version__]
        digest = hashlib.sha256(json.dumps(common, sort_keys=True).encode()).hexdigest()
        return directory / "shared" / f"{digest[:16]}{suffix}"


def _is_free(lock: int) -> bool:
    """Whether nobody had this lock. If so, it is held from here on."""
    assert fcntl is not None  # noqa: S101  (for the type checker: `_check` has seen it)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


_connected: weakref.WeakSet[SocketStream] = weakref.WeakSet()


def _let_go() -> None:
    """In a forked child: a connection must not stay open there, or its end would never come."""
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for stream in _connected:
        with contextlib.suppress(OSError):
            connection = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  (anyio's, not Django's)
            os.dup2(nowhere, connection.fileno(), inheritable=False)
    os.close(nowhere)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
