"""The lock and the socket with which the processes sharing an instance find its owner."""

from __future__ import annotations

import contextlib
import os
import re
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
_LONGEST_NOTE = 160

# The process id of the owner, a word while it is still starting and so has not started an instance yet, and
# the name under which the instance is shared, if it has one.
_NOTE = re.compile(rb"(\d+)( starting)?(?: name=([\w.-]+))?")


@frozen
class MeetingPoint:
    """A lock, which the owner holds while it runs, and a socket, on which the owner listens.

    The lock file contains the process id of the owner, whether it is still starting, and the name.

    Attributes:
        address: The path of the socket. The lock is next to it.
        name: The name under which the instance is shared, or an empty string.
    """

    address: Path
    name: str = ""

    @property
    def _lock_name(self) -> str:
        return f"{self.address.stem}.lock"

    def check(self) -> None:
        """Raise an OSError if the files cannot be used on this machine."""
        with StateFolder(self.address.parent, create=True) as folder:
            os.close(folder.open(self._lock_name, os.O_RDWR | os.O_CREAT))
            folder.has_socket(self.address.name)  # raises an error if it is anything else

    def try_lock(self) -> int | None:
        """Return the descriptor of the lock, or None if another process holds it."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        while True:
            with StateFolder(self.address.parent, create=True) as folder:
                lock = folder.open(self._lock_name, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return None
            # Another process may have removed the file since it was opened, and others would lock a new file.
            if self.is_held(lock):
                return lock
            os.close(lock)

    def is_owned(self) -> bool:
        """Return whether a process holds the lock."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        with contextlib.suppress(FileNotFoundError), StateFolder(self.address.parent) as folder:
            lock = folder.open(self._lock_name, os.O_RDWR)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
            finally:
                os.close(lock)
        return False

    def note_owner(self, lock: int, pid: int, *, is_starting: bool = False) -> None:
        """Write the process id of the owner into the lock file, unless the file contains anything else."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        note = b"%d%s" % (pid, b" starting" if is_starting else b"")
        if self.name:
            note += b" name=" + self.name.encode()
        content = os.pread(lock, _LONGEST_NOTE, 0)
        if content != note and (not content or _NOTE.fullmatch(content)):
            os.ftruncate(lock, 0)
            os.pwrite(lock, note, 0)

    def owner_pid(self) -> int | None:
        """Return the process id of the owner, or None if it is not known."""
        note = self._note()
        return int(note[1]) if note else None

    def owner_is_starting(self) -> bool:
        """Return whether the owner has not begun to serve and so has not started an instance yet."""
        note = self._note()
        return bool(note and note[2])

    def noted_name(self) -> str:
        """Return the name under which the owner shares its instance, or an empty string."""
        note = self._note()
        return (note[3] or b"").decode() if note else ""

    def _note(self) -> re.Match[bytes] | None:
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        with contextlib.suppress(OSError), StateFolder(self.address.parent) as folder:
            lock = folder.open(self._lock_name, os.O_RDONLY)
            try:
                return _NOTE.fullmatch(os.pread(lock, _LONGEST_NOTE, 0))
            finally:
                os.close(lock)
        return None

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

    def remove(self, lock: int) -> None:
        """Remove both files if they belong to the holder of this lock. A lock with other content stays."""
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        if self.is_held(lock):
            content = os.pread(lock, _LONGEST_NOTE, 0)
            with StateFolder(self.address.parent) as folder:
                folder.remove_socket(self.address.name)
                if not content or _NOTE.fullmatch(content):
                    folder.remove(self._lock_name)

    def restore(self, lock: int) -> tuple[int, socket.socket | None]:
        """Restore removed files, for example after a cleanup of old files. The owner calls this.

        If another process has since locked a new file, it owns both files, and nothing is restored.

        Args:
            lock: The descriptor of the lock held by this process.

        Returns:
            The descriptor of the lock held from now on, and the new listening socket, if there is one.
        """
        if not self.is_held(lock):
            new = self.try_lock()
            if new is None:
                return lock, None
            os.close(lock)
            lock = new
        # The process that started this one may have written its note late, as if it were still starting.
        self.note_owner(lock, os.getpid())
        # A dangling symlink counts as existing.
        return lock, None if os.path.lexists(self.address) else self.listen()

    def is_held(self, lock: int) -> bool:
        """Return whether a lock is the one of the current lock file."""
        with contextlib.suppress(FileNotFoundError):
            path = self.address.with_name(self._lock_name)
            return os.path.samestat(os.fstat(lock), path.lstat())
        return False
