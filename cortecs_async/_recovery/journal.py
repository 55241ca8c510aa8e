"""The journal: promises on disk, for when nobody is left in memory who knows of them.

One append-only file a process, below the state directory. The process holds a lock on its file as long as it
lives; the lock, not a process id, which is used again, says so. Files whose lock is free are what dead owners
left. It holds no secrets: an account is named by a fingerprint.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from .records import JournalState, Record, encode, fold

try:
    import fcntl
except ImportError:  # not on Windows: there, a journal fails with words
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".jsonl"

# Seconds after which a draft is nobody's.
_STALE = 3600.0

# How often somebody who only looks may be in the way of a lock, and seconds until that is over.
_LOOKS, _LOOK_TAKES = 100, 0.001

_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)


class JournalFile:
    """A journal that this process holds the lock of, its own or a dead owner's."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, records: list[Record]) -> JournalFile:
        """Makes a new file that begins with `records`.

        Raises:
            OSError: when the directory cannot be written or locked, or the disk is full.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{uuid.uuid4().hex}{_SUFFIX}"
        return cls(path, _write_whole(path, encode(records)))

    def append(self, records: list[Record], *, durable: bool) -> None:
        """Adds records; with `durable`, returns only when they would survive a loss of power.

        Raises:
            OSError: when they could not be written. Nothing of them is left in the file then.
        """
        # Looked up, because the reaper may have written too.
        size = self.size
        try:
            _write(self._fd, encode(records))
            if durable:
                os.fsync(self._fd)
        except OSError:
            # Half a line would swallow the next one.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    @property
    def size(self) -> int:
        """Bytes."""
        return os.fstat(self._fd).st_size

    def exists(self) -> bool:
        """Whether it still has its name: somebody may have cleared the directory."""
        return os.fstat(self._fd).st_nlink > 0

    def rewrite(self, records: list[Record]) -> None:
        """Replaces everything, at once or not at all.

        Raises:
            OSError: when that fails; the old file is as it was.
        """
        fd = _write_whole(self.path, encode(records))
        os.close(self._fd)
        self._fd = fd

    def read(self) -> JournalState:
        """What it holds."""
        return fold(_read(self._fd))

    def remove(self) -> None:
        """Deletes the file: nothing is owed any more."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Lets go of the lock and leaves the file where it is."""
        with contextlib.suppress(OSError):
            os.close(self._fd)


def try_lock(path: Path) -> JournalFile | None:
    """The journal at `path` with its lock, or None when its owner lives or it is gone."""
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    try:
        _lock_unless_owned(fd)
    except OSError:
        os.close(fd)
        return None
    if _is_at(fd, path):
        return JournalFile(path, fd)
    os.close(fd)
    return None


def is_owned(path: Path) -> bool | None:
    """Whether a process holds the lock of the journal at `path`; None when it is gone.

    Looks for a moment, with a lock that shuts nobody out: see `_lock_unless_owned`.
    """
    fd = _open_to_look(path)
    if fd is None:
        # Its owner may just have put another file in its place.
        fd = _open_to_look(path)
    if fd is None:
        return None
    try:
        try:
            _look(fd)
        except OSError:
            return True
        # Named, because a child that was forked in this moment has the descriptor as well, and keeps it.
        _unlock(fd)
        return False
    finally:
        os.close(fd)


def _open_to_look(path: Path) -> int | None:
    try:
        # Not for writing, so that nothing can come of it.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    if _is_at(fd, path):
        return fd
    os.close(fd)
    return None


def orphaned_journals(directory: Path) -> Iterator[JournalFile]:
    """The journals of dead owners, each locked; whoever takes one closes or removes it."""
    for draft in directory.glob("*.new"):
        # Of a process that died between two steps; a younger one may just be on its way.
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _STALE:
                draft.unlink()
    for path in _paths(directory):
        journal = try_lock(path)
        if journal is not None:
            yield journal


def read_journals(directory: Path) -> Iterator[tuple[Path, JournalState]]:
    """What every process has promised, the living ones too."""
    for path in _paths(directory):
        with contextlib.suppress(OSError):
            yield path, fold(path.read_bytes())


def _paths(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob(f"*{_SUFFIX}"))
    except OSError:
        return []


def _write_whole(path: Path, data: bytes) -> int:
    draft = path.with_suffix(".new")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fd = os.open(draft, _FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Locked before it has its name, so that nobody can take it for a dead owner's.
            _lock(fd)
            _write(fd, data)
            os.fsync(fd)
            draft.rename(path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        # From here on it counts. Some file systems cannot sync directories, and need not.
        with contextlib.suppress(OSError):
            os.fsync(directory)
        return fd
    finally:
        os.close(directory)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read(fd: int) -> bytes:
    chunks: list[bytes] = []
    offset = 0
    while chunk := os.pread(fd, 1 << 20, offset):
        chunks.append(chunk)
        offset += len(chunk)
    return b"".join(chunks)


def _lock(fd: int) -> None:
    if fcntl is None:
        raise OSError("this platform has no file locks")
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _look(fd: int) -> None:
    if fcntl is None:
        raise OSError("this platform has no file locks")
    fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _unlock(fd: int) -> None:
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _lock_unless_owned(fd: int) -> None:
    """Locks a file, also past those who only look whether it is owned.

    Raises:
        OSError: when it is owned.
    """
    for _ in range(_LOOKS):
        try:
            _lock(fd)
        except OSError:
            # An owner's lock keeps these out as well, a look's does not.
            _look(fd)
            _unlock(fd)
            time.sleep(_LOOK_TAKES)
        else:
            return
    _lock(fd)


def _is_at(fd: int, path: Path) -> bool:
    # Its owner may have put another file in its place, or removed it, since it was opened.
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False
