"""The journal: promises on disk, for `sweep` and the reaper to find once their process is dead.

Each process appends to one file in the state directory and holds a lock on it while it lives. A file with a
free lock belongs to a dead process. A process id would not be reliable, because ids are reused. A journal
does not contain secrets: an account is identified by a fingerprint.

A file is removed or rewritten only if all of it is understood: its name is like the names from `create`,
`StateFolder` opens it, its format is known, and every line is a known record. Any other file in the directory
stays as it is, and a warning mentions it.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
import uuid
from collections.abc import Collection, Container, Iterator, Mapping
from pathlib import Path

from .._state_directory import StateFolder, leave_alone
from .locks import lock, lock_unless_owned, unlock
from .promise import Promise
from .records import FORMAT, JournalState, Record, encode, fold, is_draft, is_torn

_NAME = re.compile(r"[0-9a-f]{32}\.jsonl")
_DRAFT_NAME = re.compile(r"[0-9a-f]{32}\.new")

# Age in seconds above which a draft's process must have died while writing it.
_MAX_DRAFT_AGE = 3600.0

# Seconds to keep the past ids of an exited process while others live, because a list may lag that long.
PAST_IDS_AGE = 60.0

_OPEN_FLAGS = os.O_RDWR | os.O_APPEND


class JournalFile:
    """A journal locked by this process: its own, or a dead owner's."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def create(cls, directory: Path, records: list[Record]) -> JournalFile:
        """Create a file that begins with `records`.

        Raises:
            OSError: If the directory cannot be used, written, or locked, or the disk is full.
        """
        path = directory / f"{uuid.uuid4().hex}.jsonl"
        return cls(path, _write_whole(path, encode(records), create=True))

    def append(self, records: list[Record], *, durable: bool) -> None:
        """Append records. With `durable`, return only once they would survive a power loss.

        Raises:
            OSError: If they could not be written. The file is then unchanged.
        """
        # Looked up each time, because the reaper also writes to the file.
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
        """Return whether the file still has its name and the directory was not cleared."""
        return os.fstat(self._fd).st_nlink > 0

    def rewrite(self, records: list[Record]) -> None:
        """Replace all records atomically.

        Raises:
            OSError: If that fails. The file is then unchanged.
        """
        fd = _write_whole(self.path, encode(records))
        os.close(self._fd)
        self._fd = fd

    def read(self) -> JournalState:
        """Return the state produced by the records."""
        return fold(_read(self._fd))

    def end_torn_line(self) -> None:
        """Make the next record begin a new line, even if the dead owner did not finish the last one.

        Raises:
            OSError: If the file cannot be written.
        """
        data = _read(self._fd)
        end = data.rfind(b"\n") + 1
        if end < len(data):
            if is_torn(data[end:]):
                os.ftruncate(self._fd, end)
            else:
                _write(self._fd, b"\n")

    def remove(self) -> None:
        """Delete the file, because all promises are fulfilled."""
        with contextlib.suppress(OSError), StateFolder(self.path.parent) as folder:
            folder.remove(self.path.name)
        self.close()

    def close(self) -> None:
        """Unlock the file and leave it in the directory."""
        # Closing is not enough: a child forked in the meantime has a copy of the descriptor.
        with contextlib.suppress(OSError):
            unlock(self._fd)
        self.close_copy()

    def close_copy(self) -> None:
        """Close the file in a forked child. The parent keeps its lock."""
        with contextlib.suppress(OSError):
            os.close(self._fd)

    def close_or_remove(self, state: JournalState, *, keeps_past_ids: bool) -> None:
        """Unlock the file. Delete it if `state` has no promises left and no past ids to keep.

        A search for the instance of a start request must not take an instance with a past id. A list may
        still show such an instance while it is being deleted, and if it was handed over, it still exists.
        """
        with contextlib.suppress(OSError):
            if not state.promises and self._is_understood():
                if not (state.past_ids and keeps_past_ids):
                    self.remove()
                    return
                records = state.snapshot()
                if self.size != len(encode(records)):
                    self.rewrite(records)
        self.close()

    def _is_understood(self) -> bool:
        if problem := self.read().problem:
            leave_alone(self.path.parent, [self.path.name], problem)
        return not problem

    def retire(self, state: JournalState) -> None:
        """Unlock the file when its process exits, and delete everything that is no longer needed."""
        directory = self.path.parent
        is_searched = has_unresolved(directory)
        others_live = any(is_owned(path) for path in _paths(directory) if path != self.path)
        self.close_or_remove(state, keeps_past_ids=is_searched or others_live)
        if not is_searched:
            for journal, other in orphaned_journals(directory):
                keeps_past_ids = others_live and journal.age < PAST_IDS_AGE
                journal.close_or_remove(other, keeps_past_ids=keeps_past_ids)

    @property
    def age(self) -> float:
        """Return the seconds since the last change."""
        return time.time() - os.fstat(self._fd).st_mtime


def owner_record(at: float) -> Record:
    """Return the first record of this process's journal, created at a Unix time in seconds."""
    return {
        "kind": "OWNER",
        "format": FORMAT,
        "id": uuid.uuid4().hex,  # two containers can have the same host name and process id
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "at": at,
    }


def try_lock(path: Path) -> JournalFile | None:
    """Lock the journal at `path`. Return None if its owner lives or the file no longer exists."""
    fd = _open(path, _OPEN_FLAGS)
    if fd is None:
        return None
    try:
        lock_unless_owned(fd)
    except OSError:
        os.close(fd)
        return None
    journal = JournalFile(path, fd)
    if _is_at(fd, path):
        return journal
    journal.close()
    return None


def is_owned(path: Path) -> bool | None:
    """Return whether the owner of the journal at `path` lives, or None if the file no longer exists.

    This briefly takes a shared lock, which `try_lock` waits for.
    """
    fd = _open_to_read(path)
    if fd is None:
        # The owner may have replaced the file in the meantime.
        fd = _open_to_read(path)
    if fd is None:
        return None
    try:
        try:
            lock(fd, shared=True)
        except OSError:
            return True
        # Closing is not enough: a child forked at this moment keeps a copy of the descriptor.
        unlock(fd)
        return False
    finally:
        os.close(fd)


def _open_to_read(path: Path) -> int | None:
    fd = _open(path, os.O_RDONLY)
    if fd is None or _is_at(fd, path):
        return fd
    os.close(fd)
    return None


def orphaned_journals(directory: Path) -> Iterator[tuple[JournalFile, JournalState]]:
    """Yield the journals of dead owners with their states. Each is locked. The caller closes or removes them.

    Journals in a different format are left out. Drafts of dead processes are removed.
    """
    _remove_old_drafts(directory)
    for path in _paths(directory):
        journal = try_lock(path)
        if journal is None:
            continue
        try:
            state = journal.read()
        except OSError:
            journal.close()
            continue
        if state.has_other_format:
            leave_alone(directory, [path.name], state.problem)
            journal.close()
        else:
            yield journal, state


def _remove_old_drafts(directory: Path) -> None:
    for path in _paths(directory, _DRAFT_NAME):
        fd = _open(path, os.O_RDWR)
        if fd is None:
            continue
        with contextlib.suppress(OSError):
            if time.time() - os.fstat(fd).st_mtime > _MAX_DRAFT_AGE:
                lock(fd)  # which fails while its process lives
                if is_draft(_read(fd)):
                    with StateFolder(directory) as folder:
                        folder.remove(path.name)
                else:
                    leave_alone(directory, [path.name], "not a journal file")
        os.close(fd)


def read_journals(directory: Path) -> Iterator[tuple[Path, JournalState]]:
    """Yield the path and state of each journal, including journals of living owners."""
    for path, data in _read_all(directory):
        yield path, fold(data)


def _read_all(directory: Path) -> Iterator[tuple[Path, bytes]]:
    for path in _paths(directory):
        data = _read_path(path)
        if data is not None:
            yield path, data


def has_unresolved(directory: Path) -> bool:
    """Return whether any journal has a start request whose instance is not known."""
    # There can be many journals kept for their past ids, and these have no intents.
    return any(b'"INTENT"' in data and fold(data).has_unresolved() for _, data in _read_all(directory))


def open_promises(path: Path) -> Mapping[str, Promise] | None:
    """Return the promises in a journal by their keys, or None if it cannot be read.

    A removed journal has none, unless its directory was removed too, which a `sweep` never does.
    """
    data = _read_path(path)
    if data is not None:
        return fold(data).promises
    return {} if path.parent.is_dir() and not path.exists() else None


def catch_up(state: JournalState, path: Path, keys: Collection[str]) -> None:
    """Apply to `state` any changes to the promises `keys` that another process recorded in their journal.

    The reaper and a `sweep` can work on the same promises.
    """
    still_open = open_promises(path)
    if still_open is None:
        return
    for key in [each for each in list(state.promises) if each in keys]:
        if key not in still_open:
            state.apply({"kind": "GONE", "entry": key})
        elif state.promises[key].instance_id is None and (found := still_open[key].instance_id):
            state.apply({"kind": "CREATED", "entry": key, "instance_id": found, "goal": "gone"})


def foreign_states(directory: Path, *, without: Container[Path] = ()) -> list[JournalState]:
    """Return the states of the journals in a directory, except those at the paths in `without`."""
    states: list[JournalState] = []
    for path, state in read_journals(directory):
        if path not in without:
            # The owner may be dead, and its reaper may be dead too or not working yet.
            state.is_orphaned = state.is_orphaned or (state.has_unresolved() and is_owned(path) is False)
            states.append(state)
    return states


def _paths(directory: Path, pattern: re.Pattern[str] = _NAME) -> list[Path]:
    """Return the paths of the files whose names match a pattern."""
    try:
        with StateFolder(directory) as folder:
            names = folder.names()
    except OSError:
        return []
    known = (_NAME, _DRAFT_NAME)
    others = [each for each in names if not any(name.fullmatch(each) for name in known)]
    leave_alone(directory, (each for each in others if not each.startswith(".")), "not named like a journal")
    return [directory / name for name in names if pattern.fullmatch(name)]


def _open(path: Path, flags: int) -> int | None:
    """Open a journal's file. If that is not possible, log the reason and return None."""
    try:
        with StateFolder(path.parent) as folder:
            return folder.open(path.name, flags)
    except FileNotFoundError:
        return None
    except OSError as error:
        leave_alone(path.parent, [path.name], error)
        return None


def _read_path(path: Path) -> bytes | None:
    fd = _open(path, os.O_RDONLY)
    if fd is None:
        return None
    try:
        return _read(fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def _read(fd: int) -> bytes:
    with os.fdopen(fd, "rb", closefd=False) as file:
        file.seek(0)
        return file.read()


def _write_whole(path: Path, data: bytes, *, create: bool = False) -> int:
    draft = f"{uuid.uuid4().hex}.new"
    with StateFolder(path.parent, create=create) as folder:
        fd = folder.open(draft, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL)
        try:
            # Lock before the rename. Otherwise, another process could mistake it for a dead owner's file.
            lock(fd)
            _write(fd, data)
            os.fsync(fd)
            folder.rename(draft, path.name)
        except BaseException:
            os.close(fd)
            with contextlib.suppress(OSError):
                folder.remove(draft)
            raise
        # The file counts from here on. Some file systems cannot sync directories, and do not need to.
        with contextlib.suppress(OSError):
            os.fsync(folder.fileno())
        return fd


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _is_at(fd: int, path: Path) -> bool:
    # The owner may have replaced or removed the file since it was opened.
    try:
        return os.path.samestat(os.fstat(fd), path.lstat())
    except OSError:
        return False
