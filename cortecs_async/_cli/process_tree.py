"""The processes that descend from a command, so that `cortecs-async run` does not leave any behind."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import anyio
from attrs import field, frozen

_HAS_PROC = Path("/proc/self/stat").is_file()  # Linux

_PR_SET_CHILD_SUBREAPER = 36  # of Linux

# Seconds after SIGKILL for a process to exit. It may hang in the kernel or belong to another user.
_KILL_TIME = 5.0

# Seconds between two reaps of adopted processes that have exited.
_REAP_INTERVAL = 5.0

# The environment variable with the tokens of the `run` commands that a process belongs to.
_TOKENS = "CORTECS_RUN"

# The position of a process's start time in /proc/PID/stat, counted from after its name.
_START_FIELD = 19

# Texts in the command lines of helper processes of this package that outlive the program that started them:
# the reapers, which release instances, and the owners of shared instances.
_HELPERS = (
    "from cortecs_async._recovery.reaper import",
    "importlib.import_module(sys.argv[4]).main()",
)


@frozen
class _Process:
    pid: int
    start: str  # the time, in any form: because process ids are reused
    parent: int = field(eq=False)
    is_zombie: bool = field(default=False, eq=False)


class ProcessTree:
    """The processes of a command: its descendants, including the ones that this process has adopted.

    On Linux, this process adopts descendants whose parents exit, such as daemons. As the first process of a
    container, or with children from before the command, it also adopts the orphans of other programs. It then
    recognizes the command's descendants by a random token in their environment, which they inherit from the
    command. On other systems, a process whose parent has exited is not found. The reapers of this package and
    the owners of shared instances never belong to the tree, because an instance may depend on them.

    Attributes:
        left_behind: The number of processes that got SIGTERM.
    """

    def __init__(self) -> None:
        self.left_behind = 0
        self._token = secrets.token_hex(16)
        self._known = set[_Process]()
        self._others = {each.pid for each in _processes() if each.parent == os.getpid()}
        self._adopts_foreign = os.getpid() == 1 or not all(map(_is_helper, self._others))
        _adopt_orphans(enabled=True)

    def mark(self, env: Mapping[str, str]) -> dict[str, str]:
        """Return an environment for the command. Under another `run`, it contains both tokens."""
        return {**env, _TOKENS: f"{env.get(_TOKENS, '')} {self._token}".strip()}

    def add(self, command: int) -> None:
        """Add the command, which the caller has not yet reaped."""
        self._known.update(each for each in _processes() if each.pid == command)

    def close(self) -> None:
        """Stop adopting processes."""
        _adopt_orphans(enabled=False)

    def living(self) -> tuple[int, ...]:
        """Return the ids of the processes, parents first."""
        return tuple(each.pid for each in self._living())

    def _living(self) -> list[_Process]:
        children: dict[int, list[_Process]] = {}
        roots: list[_Process] = []
        for each in _processes():
            children.setdefault(each.parent, []).append(each)
            if each.is_zombie:
                continue
            if each in self._known or (each.parent == os.getpid() and self._is_adopted(each.pid)):
                roots.append(each)
        found: dict[_Process, None] = {}
        while roots:
            each = roots.pop(0)
            if each not in found and not each.is_zombie and not _is_helper(each.pid):
                found[each] = None
                roots.extend(children.get(each.pid, []))
        # They stay in the tree if their parents exit, even after they overwrite their environment.
        self._known = {*found}
        return [*found]

    def _is_adopted(self, pid: int) -> bool:
        """Return whether a child of this process descends from the command."""
        # The environment of a setuid program, or of a program that protects its memory, cannot be read.
        return pid not in self._others and (not self._adopts_foreign or self._has_token(pid))

    def _has_token(self, pid: int) -> bool:
        with contextlib.suppress(OSError):  # another user's environment cannot be read
            for _ in range(3):
                if environment := Path(f"/proc/{pid}/environ").read_bytes():
                    return self._token.encode() in environment
                time.sleep(0.001)  # it is briefly empty while a process becomes another program
        return False

    async def end(
        self, grace_period: float, *, delay: float = 0.0, is_urgent: Callable[[], bool] = lambda: False
    ) -> tuple[int, ...]:
        """Send SIGTERM to all processes, and SIGKILL to any still running after the grace period.

        Args:
            grace_period: Seconds between the two signals.
            delay: Seconds before SIGTERM in which they can exit by themselves.
            is_urgent: Whether to skip the rest of the delay.

        Returns:
            The ids of processes that could not be killed, such as another user's.
        """
        if sys.platform == "win32":
            return ()  # without a reaper, `run` does not start a command
        terminate_at = time.monotonic() + delay
        terminated = set[_Process]()
        pause = 0.005
        while left := self._living():
            now = time.monotonic()
            if is_urgent():
                terminate_at = min(terminate_at, now)
            kill_at = terminate_at + grace_period
            if now >= kill_at + _KILL_TIME:
                return tuple(each.pid for each in left)
            if now >= terminate_at and not self.left_behind:
                self.left_behind = len(left)  # not any that they start in reply
            for each in left:
                if now >= kill_at:
                    _send(each, signal.SIGKILL)
                elif now >= terminate_at and each not in terminated:
                    terminated.add(each)
                    # A stopped process does not handle SIGTERM.
                    _send(each, signal.SIGTERM, signal.SIGCONT)
            await anyio.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return ()

    async def reap_regularly(self, command: int) -> None:
        """Reap exited adopted processes until cancelled. Otherwise, they would fill the process table.

        Args:
            command: The id of the process that the caller reaps itself.
        """
        while True:
            self.reap(command)
            if _HAS_PROC:
                self._living()
            await anyio.sleep(_REAP_INTERVAL)

    def reap(self, command: int) -> None:
        """Reap adopted processes that have exited."""
        if not _HAS_PROC or sys.platform == "win32":
            return  # nothing was adopted
        kept = {*self._others, command}
        for each in _processes():
            if each.parent == os.getpid() and each.is_zombie and each.pid not in kept:
                with contextlib.suppress(ChildProcessError):  # reaped by another thread
                    os.waitpid(each.pid, os.WNOHANG)


def _send(process: _Process, *numbers: int) -> None:
    """Send signals to a process, unless its id now belongs to another process."""
    descriptor = None
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # an old kernel
            descriptor = os.pidfd_open(process.pid)
    try:
        # The descriptor always means the same process: this one, if it still exists now.
        if _HAS_PROC and _linux_process(process.pid) != process:
            return
        for number in numbers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                if sys.platform == "linux" and descriptor is not None:
                    signal.pidfd_send_signal(descriptor, number)
                else:
                    os.kill(process.pid, number)
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _adopt_orphans(*, enabled: bool) -> None:
    if not _HAS_PROC:
        return
    import ctypes  # noqa: PLC0415  (slow, and only `run` needs it)

    with contextlib.suppress(OSError, AttributeError):  # a system without this call adopts nothing
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0)


def _processes() -> Iterator[_Process]:
    if _HAS_PROC:
        pids = (int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal())
        yield from filter(None, map(_linux_process, pids))
        return
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["/bin/ps", "-A", "-o", "pid=,ppid=,stat=,lstart="], capture_output=True, text=True, check=True
        )
        for line in listed.stdout.splitlines():
            pid, parent, state, start = line.split(None, 3)
            yield _Process(int(pid), start.strip(), int(parent), state.startswith("Z"))


def _linux_process(pid: int) -> _Process | None:
    """Return a Linux process, or None if it does not exist."""
    # The process may exit during the read.
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The program's name, in parentheses, can contain any characters.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return _Process(pid, fields[_START_FIELD], int(fields[1]), fields[0] in {"Z", "X"})
    return None


def command_line_of(pid: int) -> tuple[str, ...]:
    """Return the command line of a process, or an empty string if it cannot be read."""
    try:
        if _HAS_PROC:
            return tuple(Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:-1])
        listed = subprocess.run(  # noqa: S603  (a fixed program)
            ["/bin/ps", "-o", "command=", "-p", str(pid)], capture_output=True, text=True, check=True
        )
        return tuple(listed.stdout.split())
    except (OSError, subprocess.SubprocessError):
        return ()


def _is_helper(pid: int) -> bool:
    line = " ".join(command_line_of(pid))
    return any(each in line for each in _HELPERS)
