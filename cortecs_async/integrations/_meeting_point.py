"""The lock and the socket with which the processes sharing an instance find its owner."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from .._platform import NO_LOCKS
from .._state_directory import StateFolder

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl

# In bytes.
_LONGEST_NOTE = 32

# Follows the process id of an owner that is still starting and so has not started an instance yet.
_STARTING = b" starting"


@frozen
class MeetingPoint:
    """A lock, which the owner holds while it runs, and a socket, on which the owner listens.

    The lock file contains the process id of the owner, and whether it is still starting.

    Attributes:
        address: The path of the socket. The lock is next to it.
    """

    address: Path

    @property
    def _lock_name(self) -> str:
        return f"{self.address.stem}.lock"

    def check(self) -> None:
        """Raise an OSError if the files cannot be used on this machine."""
        with StateFolder(self.address.parent, create=True) as folder:
            os.close(folder.open(self._lock_name, os.O_RDWR | os.O_CREAT))

    def try_lock(self) -> int | None:
        """Return the descriptor of the lock, or None if another process holds it."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        with StateFolder(self.address.parent, create=True) as folder:
            lock = folder.open(self._lock_name, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        return lock

    def note_owner(self, lock: int, pid: int, *, is_starting: bool = False) -> None:
        """Write the process id of the owner into the lock file, unless the file contains anything else."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        note = str(pid).encode() + (_STARTING if is_starting else b"")
        content = os.pread(lock, _LONGEST_NOTE, 0)
        if content != note and (not content or content.removesuffix(_STARTING).isdigit()):
            os.ftruncate(lock, 0)
            os.pwrite(lock, note, 0)

    def owner_pid(self) -> int | None:
        """Return the process id of the owner, or None if it is not known."""
        pid = self._note().removesuffix(_STARTING)
        return int(pid) if pid.isdigit() else None

    def owner_is_starting(self) -> bool:
        """Return whether the owner has not begun to serve and so has not started an instance yet."""
        return self._note().endswith(_STARTING)

    def _note(self) -> bytes:
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        with contextlib.suppress(OSError), StateFolder(self.address.parent) as folder:
            lock = folder.open(self._lock_name, os.O_RDONLY)
            try:
                return os.pread(lock, _LONGEST_NOTE, 0)
            finally:
                os.close(lock)
        return b""

    def listen(self) -> socket.socket:
        """Replace the socket and return a new listening one. The caller must hold the lock."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
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
        """Remove the socket if it exists."""
        with StateFolder(self.address.parent) as folder:
            folder.remove_socket(self.address.name)

    def restore(self, lock: int) -> tuple[int, socket.socket | None]:
        """Restore removed files, for example after a cleanup of old files. The owner calls this.

        If another process has since locked a new file, it owns both files, and nothing is restored.

        Args:
            lock: The descriptor of the lock held by this process.

        Returns:
            The descriptor of the lock held from now on, and the new listening socket, if there is one.
        """
        if not self._is_held(lock):
            new = self.try_lock()
            if new is None:
                return lock, None
            os.close(lock)
            lock = new
        # The process that started this one may have written its note late, as if it were still starting.
        self.note_owner(lock, os.getpid())
        # A dangling symlink counts as existing.
        return lock, None if os.path.lexists(self.address) else self.listen()

    def _is_held(self, lock: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            path = self.address.with_name(self._lock_name)
            return os.path.samestat(os.fstat(lock), path.lstat())
        return False
