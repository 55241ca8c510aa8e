"""Connect to the owner process of a shared instance, and start it if there is none."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import SocketAttribute, SocketStream
from attrs import define, field

from .._errors import ConfigurationError
from .._platform import O_CLOEXEC
from .._secrets import Hidden
from .connections import is_of_this_user
from .meeting_point import MeetingPoint
from .owner_log import OwnerLog
from .owner_process import OwnerProcess, kill_frozen

# Seconds between two lines from the owner.
HEARTBEAT = 5.0

# Missed lines in a row after which the owner's state is unknown, and after which it counts as frozen and is
# killed. An owner that is still starting has no instance yet and gets more time, because Python starts slowly
# on a busy machine.
_MISSED_UNTIL_UNRESPONSIVE, _MISSED_UNTIL_FROZEN, _MISSED_WHILE_STARTING = 3, 12, 60

# The longest socket address, in bytes, that every system supports.
_LONGEST_ADDRESS = 103

# Seconds to wait for the owner's exit status after its connection has ended.
_EXIT_TIMEOUT = 1.0


@define(eq=False)
class OwnerConnector:
    """Connects this process to an owner process. The first process to get the lock starts the owner.

    Attributes:
        place: The lock and the socket.
        spec: The instance, as JSON, in the owner's command line. Every user of the machine can see it.
        module: The name of the module whose `main` the owner runs.
        logger: The logger.
        job: Returns a line for the owner's standard input, which may contain secrets.
        owner: The owner process, if this process has started it and has not asked how it exited.
    """

    place: MeetingPoint
    spec: str
    module: str
    logger: OwnerLog
    job: Callable[[], Awaitable[Hidden[bytes]]] | None = None
    owner: OwnerProcess | None = None

    def check(self) -> None:
        """Raise a ConfigurationError if the files cannot be used on this machine."""
        address = self.place.address
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            raise ConfigurationError(f"{address} is too long for a socket. Set a shorter CORTECS_STATE_DIR.")
        try:
            self.place.check()
        except OSError as error:
            raise ConfigurationError(
                f"The directory for shared instances, {address.parent}, cannot be used: {error}. "
                "Set CORTECS_STATE_DIR to a directory of your own."
            ) from None

    async def connect(self) -> SocketStream:
        """Return a new connection to the owner, which may still be starting.

        Raises:
            OSError: If there is none, for example because the owner is exiting.
        """
        lock, job = None, None
        if not self.place.is_owned():
            # Before the lock: a child that is forked meanwhile would keep the lock.
            job = None if self.job is None else await self.job()
            lock = self.place.try_lock()
        if lock is not None:
            try:
                # Listen here, so that this process and all others can connect before it is up.
                with self.place.listen() as listener:
                    self.owner = OwnerProcess(
                        lock,
                        listener.fileno(),
                        self.spec,
                        module=self.module,
                        logger=self.logger,
                        job=job,
                    )
                self.place.note_owner(lock, self.owner.pid, is_starting=True)
            finally:
                os.close(lock)
        return await connect(self.place)

    def monitor(self) -> SilenceMonitor:
        """Return a monitor for one connection."""
        return SilenceMonitor(self.place, self.spec, self.logger)

    def describe_owner(self) -> str:
        """Return the process id of the owner, for messages."""
        pid = self.place.owner_pid()
        return "its process id is unknown" if pid is None else f"process id {pid}"

    async def owner_exit(self) -> tuple[str, list[str]] | None:
        """Return how the owner exited, and its last line if it was never ready.

        The result is None if the owner is running or another process has started it.
        """
        owner = self.owner
        if owner is None or (end := await owner.wait(_EXIT_TIMEOUT)) is None:
            return None
        self.owner = None
        return end, owner.last_line


async def connect(place: MeetingPoint) -> SocketStream:
    """Return a new connection to the owner process that listens at a place.

    Raises:
        OSError: If there is none.
    """
    stream = await anyio.connect_unix(place.address)
    if not is_of_this_user(stream):
        await stream.aclose()
        raise PermissionError("another user's process is listening on the socket")
    _connections.add(stream)
    return stream


@define(eq=False)
class SilenceMonitor:
    """Handles an owner that does not send its lines.

    A frozen owner does not watch its instance and would not release it. While it lives, no other owner can
    start, and its reaper waits until it exits.

    Attributes:
        on_unresponsive: Called with a sentence once the owner does not respond.
    """

    _place: MeetingPoint
    _spec: str
    _logger: OwnerLog
    on_unresponsive: Callable[[str], object] = lambda _: None
    _missed: int = field(default=0, init=False)

    def heard(self) -> None:
        """Note that a line has arrived."""
        self._missed = 0

    def missed(self) -> None:
        """Note that no line has arrived within a heartbeat."""
        self._missed += 1
        if self._missed == _MISSED_UNTIL_UNRESPONSIVE:
            problem = f"The owner process (process id {self._place.owner_pid()}) does not respond"
            self._logger.warning("%s", problem)
            self.on_unresponsive(problem)
            return
        limit = _MISSED_WHILE_STARTING if self._place.owner_is_starting() else _MISSED_UNTIL_FROZEN
        if self._missed % limit == 0 and (pid := self._place.owner_pid()) is not None:
            self._logger.warning("Killing the frozen owner process (process id %d)", pid)
            kill_frozen(pid, self._spec)


_connections: weakref.WeakSet[SocketStream] = weakref.WeakSet()


def _close_in_child() -> None:
    """Close the connections in a forked child. If they stayed open, the instance would keep running."""
    devnull = os.open(os.devnull, os.O_RDWR | O_CLOEXEC)
    for stream in _connections:
        with contextlib.suppress(OSError):
            connection = stream.extra(SocketAttribute.raw_socket)  # noqa: S610  (anyio's, not Django's)
            os.dup2(devnull, connection.fileno(), inheritable=False)
    os.close(devnull)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)
