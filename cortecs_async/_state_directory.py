"""The state directory: its path, and the rules for creating, opening, and removing its files.

All files are in subdirectories of the state directory. The state directory and its subdirectories must belong
to this user, and no other user may be able to write to them, because another user could hide or replace the
files. The directories above are not trusted and may belong to the system, such as `/tmp`, so every access
checks again. Only root refuses a path through another user's directory, because that user could redirect what
root writes.

A file counts only if it is a regular file owned by this user. Anything else, such as a link, a pipe, or a
device, is left alone: opening it does not follow it or block. Everything this module creates has the mode
0700 or 0600, regardless of the umask.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Self

from ._errors import ConfigurationError, JournalError
from ._logging import Event, log
from ._platform import NO_LOCKS

_REGULAR_FILE = (stat.S_ISREG, "a regular file")

# Bytes. Files are read as a whole. After a rewrite, the journal of 10,000 open leases has a tenth of this
# size.
_MAX_SIZE = 256 << 20

# The user id that a container shows for files of users unknown to it.
_OVERFLOW_UID = 65534

# Maximum number of files listed in one warning.
_MAX_NAMED = 10

# The directory, name, and problem of each file already listed in a warning.
_named: set[tuple[Path, str, str]] = set()


def state_directory(given: str | os.PathLike[str] | None) -> Path:
    """Return the argument, or CORTECS_STATE_DIR, or the user's state directory.

    The path is relative if there is no such directory, because the user does not have a home directory or the
    working directory was removed. Every use of a relative path raises an error.

    Raises:
        ConfigurationError: if the argument is not a path.
    """
    chosen = given or os.environ.get("CORTECS_STATE_DIR", "").strip()
    if not chosen:
        import platformdirs  # noqa: PLC0415  (slow, and not needed by every program)

        try:
            return Path(platformdirs.user_state_path("cortecs_async"))
        except RuntimeError:  # neither HOME nor an entry in passwd; older versions return a relative path
            return Path("~/.local/state/cortecs_async")
    path = os.fspath(chosen) if isinstance(chosen, (str, os.PathLike)) else chosen
    if not isinstance(path, str) or "\0" in path:
        raise ConfigurationError(f"state_dir must be a path, not {given!r}")
    try:
        return Path(path).absolute()
    except FileNotFoundError:  # the working directory was removed
        return Path(path)


def journal_directory(state_dir: Path) -> Path:
    """Return the directory of the journals in a state directory."""
    return state_dir / "journal"


def has_files(folder: Path) -> bool:
    """Return whether a directory exists and contains any files. Blocks."""
    try:
        with os.scandir(folder) as entries:
            return any(entries)
    except OSError:  # `StateFolder` could not read it either
        return False


class StateFolder:
    """A subdirectory of the state directory, or another directory owned by this user. Open it with `with`.

    Args:
        path: The subdirectory. Its parent is the state directory.
        create: Whether to create it and the directories above it if they are missing.
        has_own_parent: Whether its parent must belong to this user too. A home directory does not have such a
            parent.

    Raises:
        FileNotFoundError: On entry, if it does not exist.
        OSError: On entry, if it is not safe to use or cannot be opened or created.
    """

    def __init__(self, path: Path, *, create: bool = False, has_own_parent: bool = True) -> None:
        self.path = path
        self._create = create
        self._has_own_parent = has_own_parent
        self._fd = -1

    def __enter__(self) -> Self:
        state = self.path.parent
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        if not state.is_absolute():
            raise OSError(
                f"the {'home' if state.parts[0] == '~' else 'working'} directory could not be determined"
            )
        if os.geteuid() == 0:
            _check_parents(state)
        if self._create:
            _create_directory(state)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        parent = os.open(state, flags)
        try:
            if self._has_own_parent:
                _check_directory(os.fstat(parent), state)
            if self._create:
                _create_directory(self.path)
            name = self.path.name or "."  # `/`, in a container
            _check_directory(os.stat(name, dir_fd=parent, follow_symlinks=False), self.path)
            self._fd = os.open(name, flags | os.O_NOFOLLOW, dir_fd=parent)
        finally:
            os.close(parent)
        try:
            _check_directory(os.fstat(self._fd), self.path)
        except OSError:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        """Return the descriptor of the directory."""
        return self._fd

    def names(self) -> list[str]:
        """Return the names of all files, sorted."""
        return sorted(os.listdir(self._fd))  # noqa: PTH208  (of a descriptor)

    def open(self, name: str, flags: int) -> int:
        """Open a file, and return its descriptor. `O_CREAT` in `flags` creates it.

        Raises:
            FileNotFoundError: if it does not exist.
            OSError: if it is not a regular file owned by this user, is too large, or cannot be opened.
        """
        if sys.platform == "win32":
            raise OSError(NO_LOCKS)
        try:
            _check(name, os.stat(name, dir_fd=self._fd, follow_symlinks=False), *_REGULAR_FILE)
        except FileNotFoundError:
            if not flags & os.O_CREAT:
                raise
        flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        fd = os.open(name, flags, 0o600, dir_fd=self._fd)
        try:
            status = os.fstat(fd)
            _check(name, status, *_REGULAR_FILE)
            _check_size(name, status)
            if flags & os.O_CREAT:
                os.fchmod(fd, 0o600)
        except OSError:
            os.close(fd)
            raise
        return fd

    def rename(self, name: str, new_name: str) -> None:
        """Rename a file, replacing any file with the new name."""
        os.rename(name, new_name, src_dir_fd=self._fd, dst_dir_fd=self._fd)

    def remove(self, name: str) -> None:
        """Remove a file."""
        os.unlink(name, dir_fd=self._fd)

    def has_socket(self, name: str) -> bool:
        """Return whether there is a socket owned by this user.

        Raises:
            OSError: if the file is anything else.
        """
        try:
            _check(name, os.stat(name, dir_fd=self._fd, follow_symlinks=False), stat.S_ISSOCK, "a socket")
        except FileNotFoundError:
            return False
        return True

    def remove_socket(self, name: str) -> None:
        """Remove a socket owned by this user, if there is one.

        Raises:
            OSError: if the file is anything else.
        """
        if self.has_socket(name):
            self.remove(name)


def leave_alone(directory: Path, names: Iterable[str], problem: object) -> None:
    """Log a warning that these files are not removed, once for each file and problem."""
    new = [name for name in names if (directory, name, str(problem)) not in _named]
    if new:
        _named.update((directory, name, str(problem)) for name in new)
        more = len(new) - _MAX_NAMED
        files = ", ".join(new[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")
        log(Event.GUARD_FILES_IGNORED, directory=str(directory), files=files, problem=problem)


def check_state_directory(folder: Path) -> None:
    """Check that a subdirectory of the state directory can be read if it exists.

    Raises:
        JournalError: if it cannot be read.
    """
    try:
        with StateFolder(folder):
            pass
    except FileNotFoundError:
        pass
    except OSError as error:
        raise JournalError(
            f"The state directory cannot be used: {error}. "
            "Set state_dir= or CORTECS_STATE_DIR to a directory of your own. "
            "It is created if it does not exist."
        ) from None


def _check_parents(state: Path) -> None:
    for path in (state, *state.parents):
        try:
            owner = os.lstat(path).st_uid
        except FileNotFoundError:
            continue
        if owner not in {0, _OVERFLOW_UID}:
            raise PermissionError(f"{path} belongs to user id {owner}, and this process runs as root")


def _create_directory(path: Path) -> None:
    try:
        os.mkdir(path, 0o700)  # noqa: PTH102  (like the other calls here)
    except FileExistsError:
        return
    except FileNotFoundError:
        if path.parent.is_dir():  # in which nothing can be created, such as /proc
            raise
        _create_directory(path.parent)
        _create_directory(path)
        return
    if stat.S_IMODE(os.lstat(path).st_mode) & 0o700 != 0o700:
        path.chmod(0o700)  # the umask keeps its own user out


def _check_directory(status: os.stat_result, path: Path) -> None:
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    if not stat.S_ISDIR(status.st_mode):
        raise NotADirectoryError(f"{path} is not a directory")
    if status.st_uid != os.geteuid():
        raise PermissionError(
            f"{path} belongs to user id {status.st_uid}, and this process runs as user id {os.geteuid()}"
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Not needed for /tmp, which has the sticky bit.
        advice = "" if status.st_mode & stat.S_ISVTX else f": chmod go-w {path}"
        raise PermissionError(f"other users can write {path} (mode {stat.S_IMODE(status.st_mode):o}){advice}")


def _check(name: str, status: os.stat_result, is_expected: Callable[[int], bool], expected: str) -> None:
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    if not is_expected(status.st_mode):
        raise OSError(f"{name} is not {expected}")
    if status.st_uid != os.geteuid():
        raise PermissionError(f"{name} belongs to user id {status.st_uid}")


def _check_size(name: str, status: os.stat_result) -> None:
    if status.st_size > _MAX_SIZE:
        raise OSError(f"{name} is larger than {_MAX_SIZE >> 20} MiB")
