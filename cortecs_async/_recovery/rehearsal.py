"""Rehearsals: the reaper checks that it can connect to the service before that is needed.

When the reaper receives an account, it forks a child. The child imports the HTTP stack, creates the HTTP
client, and connects, as the reaper would after its parent's death. It reports any problem and exits, so the
reaper itself stays small. The child runs `recover.rehearse`.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

from .._platform import NO_REAPER
from .records import Record

# Seconds after which a rehearsal is killed.
_TIMEOUT = 15

# Maximum number of parallel rehearsals. Each takes 0.2 seconds of CPU time.
_MAX_CHILDREN = 2

# Held while the reaper forks or imports.
import_lock = threading.Lock()


class Rehearsals:
    """The rehearsals in progress. `send` sends each outcome to the parent.

    `closed_in_child` are the reaper's pipes. A child must not hold them open.
    """

    def __init__(self, send: Callable[[Record], None], closed_in_child: Iterable[int]) -> None:
        self._send = send
        self._closed_in_child = tuple(closed_in_child)
        self._children: dict[int, tuple[int, Record]] = {}  # process id and reply, by file descriptor
        self._waiting: deque[tuple[str, Record, int]] = deque()  # arguments of `begin`

    @property
    def fds(self) -> list[int]:
        """The file descriptors that are readable when a child has exited."""
        return list(self._children)

    def begin(self, account: str, settings: Record, number: int) -> None:
        """Begin a rehearsal for an account. `number` is the number of its message."""
        if sys.platform == "win32":
            raise OSError(NO_REAPER)
        answer = {"rehearsed": account, "number": number}
        if len(self._children) >= _MAX_CHILDREN:
            self._waiting.append((account, settings, number))
            return
        try:
            fd, result = os.pipe()
            try:
                # A module that another thread is importing would stay locked in the child.
                with import_lock:
                    pid = os.fork()
            except OSError:
                os.close(fd)
                os.close(result)
                raise
        except OSError as error:
            self._send({**answer, "problem": f"cannot start the check process: {error}"})
            return
        if pid == 0:
            _perform(settings, result, self._closed_in_child)
        os.close(result)
        self._children[fd] = pid, answer

    def end(self, fd: int) -> None:
        """Send the outcome of a child that has exited."""
        pid, answer = self._children.pop(fd)
        with open(fd, "rb") as file:
            data = file.read()
        code: int | str = "unknown"
        with contextlib.suppress(OSError):
            code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        try:
            problem = str(json.loads(data))
        except ValueError:
            problem = f"the check process exited without a result (exit status {code})"
        self._send({**answer, "problem": problem})
        if self._waiting:
            self.begin(*self._waiting.popleft())

    def cancel(self) -> None:
        """Kill all children."""
        if sys.platform == "win32":
            raise OSError(NO_REAPER)
        self._waiting.clear()
        for pid, _ in self._children.values():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)


def _perform(settings: Record, result: int, closed_in_child: Iterable[int]) -> None:
    """Rehearse in the child, write the outcome to the descriptor `result`, and exit."""
    if sys.platform == "win32":
        raise OSError(NO_REAPER)
    try:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(_TIMEOUT)
        # The child must not hold the reaper's pipes open.
        null = os.open(os.devnull, os.O_RDWR)
        for fd in closed_in_child:
            os.dup2(null, fd)
        problem = _problem_of(settings)
        os.write(result, json.dumps(problem).encode())
    finally:
        os._exit(0)


def _problem_of(settings: Record) -> str:
    try:
        from .recover import rehearse  # noqa: PLC0415  (imports the HTTP stack)

        return rehearse(settings)
    except Exception as error:  # noqa: BLE001  (an import can raise anything)
        return f"failed to import the HTTP client ({type(error).__name__}: {error})"
