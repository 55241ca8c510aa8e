"""The output of a batch: lines that are on the disk when they are counted, whatever ends the process.

Blocking: whoever is on an event loop calls it from a thread.
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
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from .._errors import BatchFileError, BatchWriteError

# What file systems say that have no locks.
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_OFFSET_SIZE = 8

# Not waiting, should it be a pipe.
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK

# How every line begins that _format.py writes.
_HEAD = b'{"id":"batch_req_'


class Output:
    """An output file, open and locked.

    Args:
        path: Where it lies. It is made if it is not there.

    Raises:
        BatchFileError: when it cannot be written, is no plain file, or another process writes it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._is_new = not _exists(path)
        self._fd = _open(path)
        # A caller that was cancelled may close it while its thread still writes.
        self._busy = threading.Lock()
        self._end = 0
        self._is_closed = False

    def keep(self) -> None:
        """It stays, even if nothing comes into it: there is a run that found nothing wrong."""
        self._is_new = False

    def cut(self, end: int) -> None:
        """Cuts off what a process left behind that died while it wrote.

        Args:
            end: Where the last whole line ends, as `WholeLines` says.
        """
        with self._busy:
            # The number of a closed file may be another's by now.
            if self._is_closed:
                return
            if os.fstat(self._fd).st_size > end:
                os.ftruncate(self._fd, end)
                os.fsync(self._fd)
            self._end = end

    def append(self, lines: Iterable[bytes]) -> int:
        """Writes lines, and returns when they are on the disk; where the first of them begins.

        Raises:
            BatchWriteError: when they cannot be written. None of them is in the file then.
        """
        data = b"".join(lines)
        with self._busy:
            if self._is_closed:
                raise BatchWriteError(f"{self.path} is closed", path=str(self.path))
            begin = self._end
            try:
                os.lseek(self._fd, begin, os.SEEK_SET)
                view = memoryview(data)
                while view:
                    view = view[os.write(self._fd, view) :]
                os.fsync(self._fd)
                if self._is_new and not begin:
                    _sync_folder(self.path)
            except OSError as error:
                # Should that fail as well, the next run cuts off what is torn.
                with contextlib.suppress(OSError):
                    os.ftruncate(self._fd, begin)
                raise BatchWriteError(
                    f"{self.path} cannot be written: {error.strerror}. All that was counted is in it: the "
                    "same batch, run again, goes on from there.",
                    path=str(self.path),
                ) from None
            self._end = begin + len(data)
        return begin

    def check_room(self, needed: int) -> None:
        """Sees to it that a run does not begin which the disk cannot hold.

        Args:
            needed: Bytes, at the least.

        Raises:
            BatchFileError: when there is less.
        """
        free = shutil.disk_usage(self.path.absolute().parent).free
        if free < needed:
            raise BatchFileError(
                f"the disk has room for {free / 1e6:.0f} MB, and the answers take {needed / 1e6:.0f} or more",
                path=str(self.path),
            )

    def drop(self, is_out: Callable[[bytes], bool], check: Callable[[], None]) -> None:
        """Takes lines out, in one step.

        Args:
            is_out: Which.
            check: Called with every line; what it raises leaves the file as it is.

        Raises:
            BatchWriteError: when that cannot be done.
        """

        def keep(target: BinaryIO) -> None:
            for _, _, line in read_lines(self.path):
                check()
                if not is_out(line):
                    target.write(line)

        self._replace(keep)

    def sort(
        self, last: int, pairs: Callable[[], Iterable[tuple[int, int]]], check: Callable[[], None]
    ) -> None:
        """Puts the lines into the order of the input, in one step.

        Args:
            last: The last line of the input.
            pairs: Number of a line of the input, and where its answer begins; for each answer.
            check: Called with every line; what it raises leaves the file as it is.

        Raises:
            BatchWriteError: when that cannot be done. The file is complete then, if not in order.
        """
        try:
            self._sort(last, pairs, check)
        except OSError as error:
            if isinstance(error, BatchWriteError):
                raise
            raise BatchWriteError(
                f"{self.path} is complete and cannot be put into order: {error.strerror} (TMPDIR says where "
                "temporary files lie)",
                path=str(self.path),
            ) from None

    def _sort(
        self, last: int, pairs: Callable[[], Iterable[tuple[int, int]]], check: Callable[[], None]
    ) -> None:
        # A map in a file: its pages are the system's to drop, and no memory of the process.
        with tempfile.TemporaryFile(prefix="cortecs-batch-") as scratch:
            # Not a hole: to write into one of a full disk is no error but the end of the process.
            os.posix_fallocate(scratch.fileno(), 0, (last + 1) * _OFFSET_SIZE)
            with mmap.mmap(scratch.fileno(), 0) as table, memoryview(table) as raw, raw.cast("Q") as begins:
                for line, offset in pairs():
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
        with self._busy:
            if self._is_closed:
                return
            try:
                self._replace_open(write)
            except OSError as error:
                raise BatchWriteError(
                    f"{self.path} cannot be written anew, and stays as it is: {error.strerror}",
                    path=str(self.path),
                ) from None

    def _replace_open(self, write: Callable[[BinaryIO], None]) -> None:
        status = os.fstat(self._fd)
        # One name, so that what a killed run left is written over; and short, whatever the output's is.
        mark = hashlib.blake2b(self.path.name.encode("utf-8", "surrogateescape"), digest_size=8).hexdigest()
        name = self.path.parent / f".cortecs-batch-{mark}.new"
        descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))
            # Before it has the name, so that it never is anybody else's.
            _lock(descriptor, self.path)
            with os.fdopen(os.dup(descriptor), "wb") as target:
                write(target)
                target.flush()
                os.fsync(target.fileno())
            name.replace(self.path)
            _sync_folder(self.path)
        except BaseException:
            os.close(descriptor)
            name.unlink(missing_ok=True)
            raise
        os.close(self._fd)
        self._fd, self._end = descriptor, os.fstat(descriptor).st_size

    def close(self) -> None:
        """Closes it, and gives the lock back. Of a run that came to nothing, no empty file stays."""
        with self._busy:
            if self._is_closed:
                return
            self._is_closed = True
            if self._is_new and os.fstat(self._fd).st_size == 0:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)


class WholeLines:
    """The lines of an output, without what stands torn at its end.

    Attributes:
        end: After the last line: where that ends.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.end = 0

    def __iter__(self) -> Iterator[tuple[int, int, bytes]]:
        """Number, beginning in bytes and text of each; none where there is no file yet.

        Raises:
            BatchFileError: when what stands at the end is not what a batch leaves there.
        """
        if not self._path.exists():
            return
        for number, offset, line in read_lines(self._path):
            if not line.endswith(b"\n"):
                # It will be cut off, so it must be ours: somebody may have named the wrong file.
                is_ours = line.startswith(_HEAD) or _HEAD.startswith(line)
                if not is_ours and (self.end == 0 or line.strip(b"\0")):
                    raise BatchFileError(
                        "no line of a batch's output: it does not end", path=str(self._path), line=number
                    )
                return
            yield number, offset, line
            self.end = offset + len(line)


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes]]:
    """Number, counted from 1, beginning in bytes, and text of each line of a file."""
    offset = 0
    with path.open("rb", buffering=1 << 20) as file:
        for number, line in enumerate(file, 1):
            yield number, offset, line
            offset += len(line)


def check_plain(path: Path) -> os.stat_result:
    """The status of a plain file.

    Raises:
        BatchFileError: when it is none.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise BatchFileError(f"cannot be read: {error.strerror}", path=str(path)) from None
    if not stat.S_ISREG(status.st_mode):
        raise BatchFileError("it is not a plain file", path=str(path))
    return status


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError as error:
        raise BatchFileError(f"cannot be written: {error.strerror}", path=str(path)) from None


def _open(path: Path) -> int:
    try:
        while True:
            descriptor = os.open(path, _FLAGS, 0o666)
            try:
                is_there = _claim(descriptor, path)
            except BaseException:
                os.close(descriptor)
                raise
            if is_there:
                return descriptor
            os.close(descriptor)
    except OSError as error:
        raise BatchFileError(f"cannot be written: {error.strerror}", path=str(path)) from None


def _claim(descriptor: int, path: Path) -> bool:
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise BatchFileError("it is not a plain file", path=str(path))
    _lock(descriptor, path)
    # It may have been replaced or removed, by the process that had the lock before.
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, path: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BatchFileError("another process is writing it", path=str(path)) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise


def _sync_folder(path: Path) -> None:
    # A new name is on the disk only when its folder is.
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
