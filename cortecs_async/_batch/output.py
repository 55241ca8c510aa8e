"""Read and write the files of a batch. A line of the output is on disk before it is counted.

`Output` is the output file, open and locked. All of this blocks; on an event loop, call it from a thread.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import mmap
import os
import shutil
import stat
import tempfile
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .._errors import BatchFileError, BatchWriteError, CortecsError
from .format import foreign_output_error

# Errors of file systems that have no locks.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_OFFSET_SIZE = 8

# Non-blocking, because opening a pipe would wait for a reader.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

_CONTINUE = "Every answer counted so far is in it; run the same batch again to continue."

# The beginning of every line that `format` writes.
_LINE_PREFIX = b'{"id":"batch_req_'


class Output:
    """An output file, open and locked. It is created if it does not exist."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with file_errors("cannot be written", path):
            self._is_new = not path.exists()
            self._fd = _open(path)
        # After a cancellation, `close` may run while a thread still writes.
        self._busy = threading.Lock()
        self._end = 0
        self._is_closed = False

    def keep(self) -> None:
        """Keep the file even if it is empty: the batch has completed."""
        self._is_new = False

    def truncate(self, end: int) -> None:
        """Cut off the incomplete line, beginning at `end`, of a process that died while it wrote."""
        with self._busy:
            # The descriptor of a closed file may belong to another file by now.
            if self._is_closed:
                return
            if os.fstat(self._fd).st_size > end:
                os.ftruncate(self._fd, end)
                os.fsync(self._fd)
            self._end = end

    def append(self, lines: Iterable[bytes]) -> int:
        """Write lines to the disk, and return the byte where the first one begins.

        Raises:
            BatchWriteError: They could not be written. The file contains none of them.
        """
        data = b"".join(lines)
        with self._busy:
            if self._is_closed:
                raise BatchWriteError(f"{self.path} is closed", path=str(self.path))
            begin = self._end
            with write_errors(f"{self.path} cannot be written", _CONTINUE, self.path):
                try:
                    os.lseek(self._fd, begin, os.SEEK_SET)
                    view = memoryview(data)
                    while view:
                        view = view[os.write(self._fd, view) :]
                    os.fsync(self._fd)
                    if self._is_new and not begin:
                        _sync_folder(self.path)
                except OSError:
                    # If that fails too, the next run cuts off the incomplete line.
                    with contextlib.suppress(OSError):
                        os.ftruncate(self._fd, begin)
                    raise
            self._end = begin + len(data)
        return begin

    def check_free_space(self, needed: int) -> None:
        """Check that the disk has `needed` bytes free."""
        free = shutil.disk_usage(self.path.absolute().parent).free
        if free < needed:
            raise BatchFileError(
                f"the disk has {free / 1e6:.0f} MB free, but the answers need at least {needed / 1e6:.0f} MB",
                path=str(self.path),
            )

    def remove_lines(self, is_removed: Callable[[bytes], bool], check: Callable[[], None]) -> None:
        """Remove lines, atomically. If `check`, called for every line, raises, the file is unchanged."""

        def write_others(target: BinaryIO) -> None:
            for _, _, line in read_lines(self.path):
                check()
                if not is_removed(line):
                    target.write(line)

        self._replace(write_others)

    def sort(
        self,
        last_line: int,
        answer_offsets: Callable[[], Iterable[tuple[int, int]]],
        check: Callable[[], None],
    ) -> None:
        """Sort the answers in the order of the input, atomically.

        Args:
            last_line: The last line of the input.
            answer_offsets: Returns the line of each request, and the byte where its answer begins.
            check: Called for every line. It may raise, which leaves the file unchanged.
        """
        problem, advice = f"{self.path} is complete but could not be sorted", "Temporary files go to TMPDIR."
        # A memory map of a file, so that the system may drop its pages.
        with (
            write_errors(problem, advice, self.path),
            tempfile.TemporaryFile(prefix="cortecs-batch-") as scratch,
        ):
            # Allocated first: a write into a hole of a full disk would kill the process.
            os.posix_fallocate(scratch.fileno(), 0, (last_line + 1) * _OFFSET_SIZE)
            with mmap.mmap(scratch.fileno(), 0) as table, memoryview(table) as raw, raw.cast("Q") as begins:
                for line, offset in answer_offsets():
                    check()
                    begins[line] = offset + 1
                if not _is_ascending(begins):
                    self._replace(lambda target: self._write_in_order(target, begins, check))

    def _write_in_order(self, target: BinaryIO, begins: memoryview, check: Callable[[], None]) -> None:
        with self.path.open("rb") as source:
            for begin in begins:
                check()
                if begin:
                    source.seek(begin - 1)
                    target.write(source.readline())

    def _replace(self, write: Callable[[BinaryIO], None]) -> None:
        with self._busy, write_errors(f"{self.path} could not be rewritten", "It is unchanged.", self.path):
            if not self._is_closed:
                self._replace_open(write)

    def _replace_open(self, write: Callable[[BinaryIO], None]) -> None:
        status = os.fstat(self._fd)
        # Always the same name, so that the next run overwrites the file of a killed one; and short,
        # because the name of the output may have the maximum length.
        digest = hashlib.blake2b(self.path.name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        new_path = self.path.parent / f".cortecs-batch-{digest}.new"
        descriptor = os.open(new_path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            # Before it gets the name, so that no other process can lock it first.
            _lock(descriptor, self.path)
            with os.fdopen(os.dup(descriptor), "wb") as target:
                write(target)
                target.flush()
                os.fsync(target.fileno())
            new_path.replace(self.path)
            _sync_folder(self.path)
        except BaseException:
            os.close(descriptor)
            new_path.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._end = descriptor, os.fstat(descriptor).st_size

    def close(self) -> None:
        """Close and unlock the file. Delete it if this run created it and wrote nothing."""
        with self._busy:
            if self._is_closed:
                return
            self._is_closed = True
            if self._is_new and os.fstat(self._fd).st_size == 0:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)


def read_complete_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield like `read_lines`, but leave out an incomplete last line. A missing file has no lines."""
    if not path.exists():
        return
    for number, offset, line in read_lines(path):
        if not line.endswith(b"\n"):
            # It will be cut off, so it must be ours: the path may name a wrong file.
            is_ours = line.startswith(_LINE_PREFIX) or _LINE_PREFIX.startswith(line)
            if not is_ours and (number == 1 or line.strip(b"\0")):
                raise foreign_output_error("no line break at its end", str(path), number)
            return
        yield number, offset, line


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number, counted from 1, first byte and text of each line of a file."""
    offset = 0
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            yield number, offset, line
            offset += len(line)


@contextlib.contextmanager
def file_errors(problem: str, path: Path) -> Generator[None]:
    """Raise errors of the system as `BatchFileError`, about the file that they name, or else `path`."""
    try:
        yield
    except CortecsError:
        raise  # BatchWriteError is an OSError too
    except OSError as error:
        raise BatchFileError(f"{problem}: {error.strerror}", path=str(error.filename or path)) from None


@contextlib.contextmanager
def write_errors(problem: str, advice: str, path: Path | str) -> Generator[None]:
    try:
        yield
    except CortecsError:
        raise
    except OSError as error:
        raise BatchWriteError(f"{problem}: {error.strerror}. {advice}", path=str(path)) from None


def stat_regular_file(path: Path) -> os.stat_result:
    with file_errors("cannot be read", path):
        status = path.stat()
    _check_regular(status, path)
    return status


def _check_regular(status: os.stat_result, path: Path) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise BatchFileError("not a regular file", path=str(path))


def _open(path: Path) -> int:
    while True:
        descriptor = os.open(path, _FLAGS, 0o666)
        try:
            _check_regular(os.fstat(descriptor), path)
            _lock(descriptor, path)
            # The process that had the lock may have replaced or removed the file.
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(descriptor), path.stat()):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchFileError("another process is writing this file", path=str(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _sync_folder(path: Path) -> None:
    # A new file name is on disk only once its directory is.
    folder = os.open(path.absolute().parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _is_ascending(begins: memoryview) -> bool:
    last = 0
    for begin in begins:
        if begin:
            if begin < last:
                return False
            last = begin
    return True
