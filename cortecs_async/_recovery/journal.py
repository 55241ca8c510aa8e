"""The journal: promises on disk, for `sweep` and the reaper to find when their process is dead.

Each process appends to one file in the state directory, and holds a lock on it while it lives. A file whose
lock is free belongs to a dead process; a process id would not be reliable, because ids are reused. A journal
contains no secrets: an account is named by a fingerprint.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Collection, Container, Generator, Iterator, Mapping
from pathlib import Path

from .records import JournalState, Promise, Record, encode, fold

try:
    import fcntl
except ImportError:  # on Windows, where creating a journal raises OSError
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".jsonl"

# Age in seconds above which a draft belongs to a process that died while it wrote the draft.
_MAX_DRAFT_AGE = 3600.0

# Seconds for which the past ids of an ended process are kept while others live: a list may lag so long.
PAST_IDS_AGE = 60.0

# Seconds to wait for `decision_lock`, whose holder may be suspended, and between two attempts.
_DECISION_TIMEOUT, _DECISION_RETRY_DELAY = 5.0, 0.005

# `is_owned` locks a file for a moment. Number of retries then, and seconds between them.
_LOCK_RETRIES, _LOCK_RETRY_DELAY = 100, 0.001

_OPEN_FLAGS = os.O_RDWR | os.O_APPEND | getattr(os, "O_CLOEXEC", 0)


class JournalFile:
    """A journal that this process has locked: its own, or that of a dead owner."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, records: list[Record]) -> JournalFile:
        """Create a file that begins with `records`.

        Raises:
            OSError: if the directory cannot be written or locked, or the disk is full.
        """
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = directory / f"{uuid.uuid4().hex}{_SUFFIX}"
        return cls(path, _write_whole(path, encode(records)))

    def append(self, records: list[Record], *, durable: bool) -> None:
        """Append records. With `durable`, return only when they would survive a power loss.

        Raises:
            OSError: if they could not be written. Then the file is unchanged.
        """
        # Looked up each time, because the reaper may write to the file too.
        size = self.size
        try:
            _write(self._fd, encode(records))
            if durable:
                os.fsync(self._fd)
        except OSError:
            # The rest of a torn line would make the next line unreadable.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, size)
            raise

    @property
    def size(self) -> int:
        return os.fstat(self._fd).st_size

    def exists(self) -> bool:
        """Return whether the file still has its name, and the directory was not cleared."""
        return os.fstat(self._fd).st_nlink > 0

    def rewrite(self, records: list[Record]) -> None:
        """Replace all records, atomically.

        Raises:
            OSError: if that fails. Then the file is unchanged.
        """
        fd = _write_whole(self.path, encode(records))
        os.close(self._fd)
        self._fd = fd

    def read(self) -> JournalState:
        """Return the state that the records produce."""
        with os.fdopen(self._fd, "rb", closefd=False) as file:
            file.seek(0)
            return fold(file.read())

    def remove(self) -> None:
        """Delete the file: all promises are fulfilled."""
        with contextlib.suppress(OSError):
            self.path.unlink()
        self.close()

    def close(self) -> None:
        """Unlock the file, and leave it in the directory."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def close_or_remove(self, state: JournalState, *, keeps_past_ids: bool) -> None:
        """Unlock the file, and delete it if `state` has no promises left, and no past ids to keep.

        A search for the instance of a start must not take an instance with such an id. While it is deleted, a
        list may still show it, and if it was handed over, it exists.
        """
        if not state.promises and not (state.past_ids and keeps_past_ids):
            self.remove()
            return
        with contextlib.suppress(OSError):
            records = state.snapshot()
            if not state.promises and self.size != len(encode(records)):
                self.rewrite(records)
        self.close()

    def retire(self, state: JournalState) -> None:
        """Unlock the file at the end of its process, and delete what no process needs any more."""
        directory = self.path.parent
        others_live = any(is_owned(path) for path in _paths(directory) if path != self.path)
        keeps_past_ids = others_live or has_unresolved(directory)
        self.close_or_remove(state, keeps_past_ids=keeps_past_ids)
        if not keeps_past_ids:
            for journal in orphaned_journals(directory):
                journal.close_or_remove(journal.read(), keeps_past_ids=False)

    @property
    def age(self) -> float:
        """Seconds since the last change."""
        return time.time() - os.fstat(self._fd).st_mtime


def try_lock(path: Path) -> JournalFile | None:
    """Lock the journal at `path`. Return None if its owner lives, or if the file no longer exists."""
    try:
        fd = os.open(path, _OPEN_FLAGS)
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
    """Return whether the owner of the journal at `path` lives, or None if the file no longer exists.

    This takes a shared lock for a moment, which `try_lock` waits for.
    """
    fd = _open_to_read(path)
    if fd is None:
        # Its owner may have replaced the file meanwhile.
        fd = _open_to_read(path)
    if fd is None:
        return None
    try:
        try:
            _lock(fd, shared=True)
        except OSError:
            return True
        # Closing is not enough: a child that is forked at this moment keeps a copy of the descriptor.
        _unlock(fd)
        return False
    finally:
        os.close(fd)


def _open_to_read(path: Path) -> int | None:
    try:
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    except OSError:
        return None
    if _is_at(fd, path):
        return fd
    os.close(fd)
    return None


def orphaned_journals(directory: Path) -> Iterator[JournalFile]:
    """Yield the journals of dead owners, each locked. The caller closes or removes them."""
    for draft in directory.glob("*.new"):
        # A process died while it wrote this. A newer draft may still be written.
        with contextlib.suppress(OSError):
            if time.time() - draft.stat().st_mtime > _MAX_DRAFT_AGE:
                draft.unlink()
    for path in _paths(directory):
        journal = try_lock(path)
        if journal is not None:
            yield journal


def read_journals(directory: Path) -> Iterator[tuple[Path, JournalState]]:
    """Yield path and state of each journal, including those of living owners."""
    for path in _paths(directory):
        with contextlib.suppress(OSError):
            yield path, fold(path.read_bytes())


def has_living_owner(directory: Path) -> bool:
    """Return whether the owner of any of the journals lives."""
    return any(is_owned(path) for path in _paths(directory))


def has_unresolved(directory: Path) -> bool:
    """Return whether any of the journals has a start whose instance is not known."""
    for path in _paths(directory):
        with contextlib.suppress(OSError):
            data = path.read_bytes()
            # Journals that are kept for their past ids can be many, and have no intents.
            if b'"INTENT"' in data and fold(data).has_unresolved():
                return True
    return False


def open_promises(path: Path) -> Mapping[str, Promise] | None:
    """Return the promises in a journal by their keys; None if it cannot be read.

    A journal that was removed has none, unless its directory was removed too, which no `sweep` does.
    """
    try:
        return fold(path.read_bytes()).promises
    except FileNotFoundError:
        return {} if path.parent.is_dir() else None
    except OSError:
        return None


def catch_up(state: JournalState, path: Path, keys: Collection[str]) -> None:
    """Apply to `state` what another process has found out about the promises `keys`, by their journal.

    The reaper and a `sweep` may work on the same promises.
    """
    still_open = open_promises(path)
    if still_open is None:
        return
    for key in state.promises.keys() & keys:
        if key not in still_open:
            state.apply({"kind": "GONE", "entry": key})
        elif state.promises[key].instance_id is None and (found := still_open[key].instance_id):
            state.apply({"kind": "CREATED", "entry": key, "instance_id": found, "goal": "gone"})


def foreign_states(directory: Path, *, without: Container[Path] = ()) -> list[JournalState]:
    """Return the states of the journals in a directory, except those at the paths in `without`."""
    states: list[JournalState] = []
    for path, state in read_journals(directory):
        if path not in without:
            # The owner may be dead, and its reaper dead too or not at work yet.
            state.is_orphaned = state.is_orphaned or (state.has_unresolved() and is_owned(path) is False)
            states.append(state)
    return states


@contextlib.contextmanager
def decision_lock(directory: Path) -> Generator[None]:
    """Let only one process at a time decide which instance belongs to which start, and record it.

    It raises nothing. Without file locks, or if another process holds this one for too long, the decision is
    made without it.
    """
    fd = -1
    with contextlib.suppress(OSError):
        fd = os.open(directory, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
    deadline = time.monotonic() + _DECISION_TIMEOUT
    while fd >= 0 and time.monotonic() < deadline:
        try:
            _lock(fd)
            break
        except OSError:
            time.sleep(_DECISION_RETRY_DELAY)
    try:
        yield
    finally:
        if fd >= 0:
            # Closing is not enough: a child that is forked at this moment keeps a copy of the descriptor.
            with contextlib.suppress(OSError):
                _unlock(fd)
            os.close(fd)


def _paths(directory: Path) -> list[Path]:
    try:
        return sorted(directory.glob(f"*{_SUFFIX}"))
    except OSError:
        return []


def _write_whole(path: Path, data: bytes) -> int:
    draft = path.with_suffix(".new")
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        fd = os.open(draft, _OPEN_FLAGS | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            # Lock before the rename. Otherwise another process could take it for the file of a dead owner.
            _lock(fd)
            _write(fd, data)
            os.fsync(fd)
            draft.rename(path)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        # The file counts from here on. Some file systems cannot sync directories, and do not need to.
        with contextlib.suppress(OSError):
            os.fsync(directory)
        return fd
    finally:
        os.close(directory)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _lock(fd: int, *, shared: bool = False) -> None:
    if fcntl is None:
        raise OSError("this platform has no file locks")
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(fd, kind | fcntl.LOCK_NB)


def _unlock(fd: int) -> None:
    if fcntl is not None:
        fcntl.flock(fd, fcntl.LOCK_UN)


def _lock_unless_owned(fd: int) -> None:
    """Lock a file, and wait for the shared locks of `is_owned`.

    Raises:
        OSError: if a living owner has the lock.
    """
    for _ in range(_LOCK_RETRIES):
        try:
            _lock(fd)
        except OSError:
            # This fails if the lock is an owner's, but not if it is a shared one.
            _lock(fd, shared=True)
            _unlock(fd)
            time.sleep(_LOCK_RETRY_DELAY)
        else:
            return
    _lock(fd)


def _is_at(fd: int, path: Path) -> bool:
    # Since the file was opened, its owner may have replaced or removed it.
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except OSError:
        return False
