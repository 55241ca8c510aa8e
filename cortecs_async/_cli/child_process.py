"""A command that runs in the foreground, as a shell would have it: terminal, signals, exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import anyio
import anyio.to_thread

NOT_EXECUTABLE = 126
NOT_FOUND = 127

# Seconds between SIGTERM and SIGKILL for a command whose instance is gone.
GRACE = 10.0

# A terminal sends these to all of its foreground, the command among them. That it was the terminal is a
# guess: Python does not tell a handler who has sent a signal.
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})
_FORWARDED = (
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),  # with which schedulers announce the end of a job
)


class CannotRunError(Exception):
    """The command could not be started.

    Attributes:
        status: As a shell has it: 127 for what is not there, 126 for what cannot be run.
    """

    def __init__(self, command: str, problem: OSError) -> None:
        super().__init__(f"{command}: {problem.strerror}")
        self.status = NOT_FOUND if isinstance(problem, FileNotFoundError) else NOT_EXECUTABLE


def check_command(name: str) -> None:
    """Lets a command pass that can probably be started.

    Raises:
        CannotRunError: for one that certainly cannot.
    """
    if shutil.which(name) is None:
        is_there = Path(name).exists() if "/" in name else shutil.which(name, mode=os.F_OK) is not None
        number = errno.EACCES if is_there else errno.ENOENT
        raise CannotRunError(name, OSError(number, os.strerror(number)))


class Child:
    """`async with Child(command, env) as child: status = await child.wait()`: it does not outlive the block.

    It stays in the process group of this program, so that Ctrl-C, Ctrl-Z and reading from the terminal work
    as if the shell had started it. Signals that reach this program go to it and do nothing else here.

    Raises:
        CannotRunError: on entering, when it cannot be started.
    """

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._command = command
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._early: list[int] = []
        self._before: dict[signal.Signals, Any] = {}

    async def __aenter__(self) -> Self:
        # First the handlers: what arrives before the command does is handed to it then. What is ignored,
        # under `nohup` for example, stays ignored, and is by the command too.
        for each in _FORWARDED:
            if signal.getsignal(each) is not signal.SIG_IGN:
                self._before[each] = signal.signal(each, self._forward)
        try:
            # Not in a thread: a cancellation would leave a command that nobody knows.
            self._process = subprocess.Popen(self._command, env=self._env)  # noqa: ASYNC220, S603
        except OSError as problem:
            self._restore()
            raise CannotRunError(self._command[0], problem) from None
        for number in self._early:
            self._send(number)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._process is not None and self._process.returncode is None:
                await self._end()
        finally:
            self._restore()

    async def wait(self) -> int:
        """Waits for its end.

        Returns:
            Its status as a shell gives it: 128 + n when signal n ended it.
        """
        await self._exited()
        return self._reap()

    async def _end(self) -> None:
        """SIGTERM, some time to obey, SIGKILL."""
        try:
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)  # one that is stopped would not hear it
            with anyio.move_on_after(GRACE, shield=True):
                await self._exited()
        finally:
            self._send(signal.SIGKILL)
            self._reap()

    async def _exited(self) -> None:
        # WNOWAIT leaves it to be reaped: until then its number is nobody else's, and a signal harmless.
        assert self._process is not None  # noqa: S101  (for the type checker)
        options = os.WEXITED | os.WNOWAIT
        await anyio.to_thread.run_sync(
            os.waitid, os.P_PID, self._process.pid, options, abandon_on_cancel=True
        )

    def _reap(self) -> int:
        assert self._process is not None  # noqa: S101  (for the type checker)
        status = self._process.wait()
        return status if status >= 0 else 128 - status

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._process is None:
            self._early.append(number)
        elif number not in _FROM_TERMINAL or not _is_foreground():
            self._send(number)

    def _send(self, number: int) -> None:
        # Not `Popen.send_signal`, which may reap it behind the back of whoever waits.
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, number)

    def _restore(self) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)
        self._before.clear()


def _is_foreground() -> bool:
    """Whether a terminal has this program, and so the command, in its foreground."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
