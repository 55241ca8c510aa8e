"""Save the answers of an output that another program removed or changed while the batch was running."""

from __future__ import annotations

import os
import secrets
import stat
import sys
import tempfile
from pathlib import Path

from .._errors import BatchWriteError
from .._platform import NO_LOCKS, O_CLOEXEC, O_NOFOLLOW
from .reader import write_errors

# Create a new file: an existing file or link is an error.
NEW_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | O_NOFOLLOW | O_CLOEXEC

_COPY_SIZE = 1 << 20


class Rescue:
    """A new file with the answers of an output.

    Args:
        path: The output, as an absolute path.
        change: The change made by another program, such as "removed".
        source: This process's open descriptor of the output.
        end: The number of bytes that are answers.
        lines: The number of answers it had, as far as this process knows.
        data: Complete lines that are not written yet.

    Attributes:
        error: The error to raise, which mentions the new file.
        is_empty: Whether there are no answers to save, and so no new file.

    Raises:
        BatchWriteError: The answers could not be saved.
    """

    def __init__(self, path: Path, change: str, *, source: int, end: int, lines: int, data: bytes) -> None:
        problem = f"Another program {change} {path} while the batch was running"
        with write_errors(f"{problem}, and the answers could not be saved", "Free up some disk space.", path):
            try:
                saved = self._save(path, path.parent, source, end, data)
            except OSError:
                # The directory may be gone too, or the disk full.
                saved = self._save(path, Path(tempfile.gettempdir()), source, end, data)
        self.is_empty = not saved
        total = max(lines + data.count(b"\n"), saved)
        if self.is_empty:
            self.close()
            self.path.unlink()
            count = f"None of its {total:,} answers are left" if total else "The file had no answers yet"
            message = f"{problem}. {count}. Run the same batch again."
        else:
            message = (
                f"{problem}. {saved:,} of {total:,} answers are saved in {self.path}. To continue, move this "
                f"file to {path} and run the same batch again."
            )
        self.error = BatchWriteError(message, path=str(path if self.is_empty else self.path))

    def _save(self, path: Path, folder: Path, source: int, end: int, data: bytes) -> int:
        """Create the file in a directory and return the number of answers in it."""
        # Not the whole name, because it may have the maximum length.
        self.path = folder / f"{path.name[:50]}.recovered-{secrets.token_hex(4)}"
        self._fd = os.open(self.path, NEW_FILE_FLAGS, 0o600)
        try:
            if sys.platform != "win32":
                os.fchmod(self._fd, stat.S_IMODE(os.fstat(source).st_mode))
            saved = _copy_lines(source, self._fd, end) + data.count(b"\n")
            self.append(data)
            sync_folder(self.path)
        except BaseException:
            os.close(self._fd)
            self.path.unlink()
            raise
        return saved

    def append(self, data: bytes) -> None:
        write_all(self._fd, data)
        os.fsync(self._fd)

    def close(self) -> None:
        os.close(self._fd)


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def sync_folder(path: Path) -> None:
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    # A new file name is on disk only once its directory is synced.
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _copy_lines(source: int, target: int, end: int) -> int:
    """Copy the complete lines that still exist before `end`, and return their number."""
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    position = complete = lines = 0
    while data := os.pread(source, min(_COPY_SIZE, end - position), position):
        write_all(target, data)
        lines += data.count(b"\n")
        if b"\n" in data:
            complete = position + data.rindex(b"\n") + 1
        position += len(data)
    os.ftruncate(target, complete)
    os.lseek(target, complete, os.SEEK_SET)
    return lines
