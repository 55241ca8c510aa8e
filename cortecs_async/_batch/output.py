"""Write a batch's output. A line is counted only once it is on disk.

`Output` is the open and locked output file. If another program removes or replaces it, or changes its size,
the answers are saved in a new file, and the batch ends. All functions here block, so call them from a thread
on an event loop.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mmap
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from .._errors import BatchFileError, BatchWriteError, ConfigurationError
from .._platform import NO_LOCKS, O_CLOEXEC, O_NONBLOCK
from .reader import (
    COMPRESSED_SUFFIXES,
    Line,
    check_regular,
    file_errors,
    read_answers,
    strip_line,
    write_errors,
)
from .rescue import NEW_FILE_FLAGS, Rescue, sync_folder, write_all

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl

# Errors for a path where nothing exists, including a missing directory and a loop of links.
_GONE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})

# Errors from file systems without locks.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_OFFSET_SIZE = 8

_ZEROS = bytes(1 << 20)

# Non-blocking, because opening a pipe would wait for a reader.
_FLAGS = os.O_RDWR | os.O_CREAT | O_CLOEXEC | O_NONBLOCK

_CONTINUE = "The file contains every answer counted so far. Run the same batch again to continue."


class Output:
    """An open and locked output file. It is created if it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        check_name(path)
        with file_errors("cannot be written", path):
            # Absolute, because the working directory may change.
            self._name = path.absolute()
            # Without links, because rewriting a link would replace it.
            self._location = Path(os.path.realpath(self._name))
            self._is_new = not path.exists()
            self._fd = _open(path)
        # After a cancellation, `close` may run while a thread is still writing.
        self._busy = threading.Lock()
        self._lines = 0
        status = os.fstat(self._fd)
        self._end, self._mtime = status.st_size, status.st_mtime_ns
        self._is_doubtful = False
        self._rescue: Rescue | None = None
        self._is_closed = False
        self._remove_drafts()

    def keep(self) -> None:
        """Keep the file even if it is empty, because the batch has completed."""
        self._is_new = False

    def read(self) -> Iterator[Line]:
        """Yield the lines as `read_answers` does."""
        with os.fdopen(os.dup(self._fd), "rb") as file:
            file.seek(0)
            yield from read_answers(file, str(self.path))

    def mend(self, end: int, lines: int, *, is_terminated: bool) -> None:
        """Make the file end with a complete line, in case a process died while writing.

        Args:
            end: Where to cut the file off.
            lines: The number of answers before `end`.
            is_terminated: Whether there is a line break before `end`. If not, one is written.
        """
        with (
            self._busy,
            write_errors(f"{self.path} cannot be written", "No answers were written.", self.path),
        ):
            # The descriptor of a closed file may belong to another file by now.
            if self._is_closed:
                return
            self._check(b"")
            if self._end > end:
                os.ftruncate(self._fd, end)
                os.fsync(self._fd)
            self._end, self._lines = end, lines
            if not is_terminated:
                self._write(b"\n")
            self._mtime = os.fstat(self._fd).st_mtime_ns
            self._is_doubtful = False  # the caller has read it

    def append(self, lines: Iterable[bytes], *, sync: bool = True) -> int:
        """Write lines to disk and return the offset of the first one.

        Without `sync`, they are kept if this process exits, but not if the machine crashes.

        Raises:
            BatchWriteError: The lines could not be written, and the file contains none of them. Or another
                program has changed the file. Then the lines are in the file named in the error.
        """
        texts = list(lines)
        data = b"".join(texts)
        with self._busy:
            if self._is_closed:
                raise BatchWriteError(f"{self.path} is closed", path=str(self.path))
            begin = self._end
            with write_errors(f"{self.path} cannot be written", _CONTINUE, self.path):
                self._check(data)
                self._write(data, sync=sync)
                if self._is_new and not begin:
                    sync_folder(self._location)
            self._lines += len(texts)
        return begin

    def _write(self, data: bytes, *, sync: bool = True) -> None:
        try:
            os.lseek(self._fd, self._end, os.SEEK_SET)
            write_all(self._fd, data)
            # Read before waiting for the disk, to notice a change by another program during the wait.
            self._mtime = os.fstat(self._fd).st_mtime_ns
            if sync:
                os.fsync(self._fd)
        except BaseException:
            # If truncating fails too, the next run cuts off the incomplete line.
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._end)
            raise
        self._end += len(data)

    def check_unchanged(self) -> bool:
        """Return False if another program may have changed the file in place. Then it must be read again.

        Raises:
            BatchWriteError: Another program removed or replaced the file, or changed its size.
        """
        with self._busy, write_errors(f"{self.path} cannot be read", _CONTINUE, self.path):
            if not self._is_closed:
                self._check(b"")
            return self._is_closed or not self._is_doubtful

    def _check(self, data: bytes) -> None:
        """If another program removed or changed the file, save the answers and `data`, then raise."""
        if self._rescue is not None:
            self._rescue.append(data)
            raise self._rescue.error
        if (change := self._find_change()) is not None:
            rescue = Rescue(self._name, change, source=self._fd, end=self._end, lines=self._lines, data=data)
            if not rescue.is_empty:
                self._rescue = rescue
            raise rescue.error

    def _find_change(self) -> str | None:
        status = os.fstat(self._fd)
        try:
            if not os.path.samestat(status, self._name.stat()):
                return "replaced"
        except OSError as error:
            # Other errors prove nothing about the file.
            if error.errno not in _GONE:
                raise
            return "removed"
        if status.st_size != self._end:
            return "truncated" if status.st_size < self._end else "wrote to"
        # Not proof of a change: some programs only set the time.
        self._is_doubtful |= status.st_mtime_ns != self._mtime
        return None

    def check_free_space(self, needed: int) -> None:
        """Check that the disk has `needed` free bytes."""
        free = shutil.disk_usage(self._location.parent).free
        if free < needed:
            raise BatchFileError(
                f"the disk has {free / 1e6:.0f} MB free, but the answers need at least {needed / 1e6:.0f} MB",
                path=str(self.path),
            )

    def remove_lines(self, is_removed: Callable[[bytes], bool], check: Callable[[], None]) -> None:
        """Remove lines atomically. `check` is called for every line. If it raises, the file is unchanged."""

        def write_others(target: BinaryIO) -> None:
            for line in self.read():
                check()
                if not is_removed(line.text):
                    target.write(line.text + b"\n")

        self._replace(write_others)

    def sort(
        self,
        last_line: int,
        answer_offsets: Callable[[], Iterable[tuple[int, int]]],
        check: Callable[[], None],
    ) -> None:
        """Sort the answers atomically into the order of the input.

        Args:
            last_line: The last line of the input.
            answer_offsets: Returns the line of each request and the offset of its answer.
            check: Called for every line. If it raises, the file is unchanged.
        """
        problem, advice = (
            f"{self.path} is complete but could not be sorted",
            "Set TMPDIR to a directory with enough space.",
        )
        # A memory-mapped file, so that the system can page it out.
        with (
            write_errors(problem, advice, self.path),
            tempfile.TemporaryFile(prefix="cortecs-batch-") as scratch,
        ):
            # Allocated first, because writing into a hole on a full disk would kill the process.
            _allocate(scratch.fileno(), (last_line + 1) * _OFFSET_SIZE)
            with mmap.mmap(scratch.fileno(), 0) as table, memoryview(table) as raw, raw.cast("Q") as begins:
                for line, offset in answer_offsets():
                    check()
                    begins[line] = offset + 1
                if not _is_ascending(begins):
                    self._replace(lambda target: self._write_in_order(target, begins, check))

    def _write_in_order(self, target: BinaryIO, begins: memoryview, check: Callable[[], None]) -> None:
        with os.fdopen(os.dup(self._fd), "rb") as source:
            for begin in begins:
                check()
                if begin:
                    source.seek(begin - 1)
                    target.write(strip_line(source.readline()) + b"\n")

    def _replace(self, write: Callable[[BinaryIO], None]) -> None:
        with (
            self._busy,
            write_errors(f"{self.path} could not be rewritten", "The file is unchanged.", self.path),
        ):
            if not self._is_closed:
                self._replace_open(write)

    def _replace_open(self, write: Callable[[BinaryIO], None]) -> None:
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        self._check(b"")
        status = os.fstat(self._fd)
        draft = self._location.parent / f"{self._draft_prefix}{secrets.token_hex(16)}.new"
        descriptor = os.open(draft, NEW_FILE_FLAGS, 0o600)
        try:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            # Locked before the file gets its name, so that no other process can lock it first.
            _lock(descriptor, self.path)
            with os.fdopen(os.dup(descriptor), "wb") as target:
                write(target)
                target.flush()
                os.fsync(target.fileno())
            self._check(b"")
            draft.replace(self._location)
            sync_folder(self._location)
        except BaseException:
            os.close(descriptor)
            with contextlib.suppress(OSError):
                draft.unlink()
            raise
        os.close(self._fd)
        status = os.fstat(descriptor)
        self._fd, self._end, self._mtime = descriptor, status.st_size, status.st_mtime_ns

    @property
    def _draft_prefix(self) -> str:
        # Short, because the output's name may already have the maximum length.
        digest = hashlib.blake2b(
            self._location.name.encode("utf-8", "surrogateescape"), digest_size=8
        ).hexdigest()
        return f".cortecs-batch-{digest}-"

    def _remove_drafts(self) -> None:
        """Delete drafts left by killed processes. Only a process that has locked the output creates them."""
        pattern = re.compile(re.escape(self._draft_prefix) + r"[0-9a-f]{32}\.new")
        with contextlib.suppress(OSError), os.scandir(self._location.parent) as entries:
            for entry in entries:
                if pattern.fullmatch(entry.name):
                    if sys.platform == "win32":
                        raise OSError(NO_LOCKS)
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and status.st_uid == os.geteuid():
                        Path(entry).unlink()

    def close(self) -> None:
        """Close and unlock the file. Delete it if this run created it and did not write to it."""
        with self._busy:
            if self._is_closed:
                return
            self._is_closed = True
            if self._rescue is not None:
                self._rescue.close()
            elif self._is_new and self._end == 0:
                with contextlib.suppress(OSError):
                    if self._find_change() is None:
                        self._location.unlink()
            os.close(self._fd)


def check_name(path: Path) -> None:
    """Reject a name with a suffix for compressed files."""
    if path.suffix in COMPRESSED_SUFFIXES:
        raise BatchFileError(
            "the output cannot be compressed, because answers are appended one by one. Choose a name without "
            f"{path.suffix} and compress the file afterward.",
            path=str(path),
        )


def _open(path: Path) -> int:
    if sys.platform == "win32":
        raise ConfigurationError("Batches do not run on Windows, because they need file locks. Use WSL.")
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            check_regular(os.fstat(descriptor), str(path))
            _lock(descriptor, path)
            # The previous holder of the lock may have replaced or removed the file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchFileError("another process is writing this file", path=str(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _allocate(descriptor: int, size: int) -> None:
    """Extend an empty file to `size` bytes, with all of them allocated on disk."""
    allocate = getattr(os, "posix_fallocate", None)
    if allocate is not None:
        allocate(descriptor, 0, size)
        return
    for begin in range(0, size, len(_ZEROS)):  # on macOS
        write_all(descriptor, _ZEROS[: size - begin])


def _is_ascending(begins: memoryview) -> bool:
    last = 0
    for begin in begins:
        if begin:
            if begin < last:
                return False
            last = begin
    return True
