"""File locks. A journal is locked while its process lives, and its directory during a decision.

`flock` locks belong to an open file. They are released when the process exits, and closing other files keeps
them.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING

from .._platform import NO_LOCKS
from .._state_directory import StateFolder

if TYPE_CHECKING or sys.platform != "win32":
    import fcntl

# Seconds to wait for `decision_lock`, whose holder may be suspended, and seconds between two attempts.
_DECISION_TIMEOUT, _DECISION_RETRY_DELAY = 5.0, 0.005

# `is_owned` briefly locks a file. The number of retries in that case, and seconds between them.
_LOCK_RETRIES, _LOCK_RETRY_DELAY = 100, 0.001


@contextlib.contextmanager
def decision_lock(directory: Path) -> Generator[None]:
    """Let only one process at a time decide which instance belongs to which start and record the decision.

    This never raises. Without file locks, or if another process holds this lock for too long, the decision is
    made without it.
    """
    with contextlib.ExitStack() as stack:
        fd = None
        with contextlib.suppress(OSError):
            fd = stack.enter_context(StateFolder(directory)).fileno()
        deadline = time.monotonic() + _DECISION_TIMEOUT
        while fd is not None and time.monotonic() < deadline:
            try:
                lock(fd)
                break
            except OSError:
                time.sleep(_DECISION_RETRY_DELAY)
        try:
            yield
        finally:
            if fd is not None:
                # Closing is not enough: a child forked at this moment keeps a copy of the descriptor.
                with contextlib.suppress(OSError):
                    unlock(fd)


def lock(fd: int, *, shared: bool = False) -> None:
    """Lock a file without waiting.

    Raises:
        OSError: If it is already locked or cannot be locked.
    """
    if sys.platform == "win32":
        raise OSError(NO_LOCKS)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    fcntl.flock(fd, kind | fcntl.LOCK_NB)


def unlock(fd: int) -> None:
    """Unlock a file."""
    if sys.platform != "win32":
        fcntl.flock(fd, fcntl.LOCK_UN)


def lock_unless_owned(fd: int) -> None:
    """Lock a file, and wait for the shared locks of `is_owned`.

    Raises:
        OSError: If a living owner has the lock.
    """
    for _ in range(_LOCK_RETRIES):
        try:
            lock(fd)
        except OSError:
            # This fails for an owner's lock, but not for a shared lock.
            lock(fd, shared=True)
            unlock(fd)
            time.sleep(_LOCK_RETRY_DELAY)
        else:
            return
    lock(fd)
