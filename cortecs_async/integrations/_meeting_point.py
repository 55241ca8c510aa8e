"""The lock and the socket by which the processes that share an instance find its owner."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

from attrs import frozen

from .._state_directory import StateFolder

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]


# Bytes.
_LONGEST_ID = 20


def has_locks() -> bool:
    """Return whether this system has file locks."""
    return fcntl is not None


@frozen
class MeetingPoint:
    """A lock, which the owner holds while it lives, and a socket, on which it listens.

    The file of the lock contains the process id of the owner.

    Attributes:
        address: The path of the socket. The lock is beside it.
    """

    address: Path

    @property
    def _lock_name(self) -> str:
        return f"{self.address.stem}.lock"

    def check(self) -> None:
        """Raise an OSError if the files cannot be used here."""
        with StateFolder(self.address.parent, create=True) as folder:
            os.close(folder.open(self._lock_name, os.O_RDWR | os.O_CREAT))

    def try_lock(self) -> int | None:
        """Return the descriptor of the lock; None if another process holds it."""
        assert fcntl is not None  # noqa: S101  (for the type checker: `SharedInstance` has raised otherwise)
        with StateFolder(self.address.parent, create=True) as folder:
            lock = folder.open(self._lock_name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def note_owner(self, lock: int, pid: int) -> None:
        """Write the process id of the owner into the lock, unless the file contains anything else."""
        content = os.pread(lock, _LONGEST_ID, 0)
        if not content or content.isdigit():
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(pid).encode(), 0)

    def owner_pid(self) -> int | None:
        """Return the process id of the owner; None if it is not known."""
        with contextlib.suppress(OSError), StateFolder(self.address.parent) as folder:
            lock = folder.open(self._lock_name, os.O_RDONLY)
            try:
                content = os.pread(lock, _LONGEST_ID, 0)
            finally:
                os.close(lock)
            return int(content) if content.isdigit() else None
        return None

    def listen(self) -> socket.socket:
        """Replace the socket, and return a new one that listens. The caller holds the lock."""
        self.remove_socket()
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(os.fspath(self.address))
            listener.listen(128)
        except OSError:
            listener.close()
            raise
        return listener

    def remove_socket(self) -> None:
        """Remove the socket, if there is one."""
        with StateFolder(self.address.parent) as folder:
            folder.remove_socket(self.address.name)

    def restore(self, lock: int) -> tuple[int, socket.socket | None]:
        """Restore files that were removed, for example by a cleaner of old files.

        If another process has locked a new file since, that process owns both files, and nothing is restored.

        Args:
            lock: The descriptor of the lock that this process holds.

        Returns:
            The descriptor of the lock that it holds now, and a new socket that listens, if there is one.
        """
        if not self._is_held(lock):
            new = self.try_lock()
            if new is None:
                return lock, None
            os.close(lock)
            lock = new
            self.note_owner(lock, os.getpid())
        # A dangling symlink counts as existing.
        return lock, None if os.path.lexists(self.address) else self.listen()

    def _is_held(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            path = self.address.with_name(self._lock_name)
            return os.path.samestat(os.fstat(lock), path.lstat())
        return False
