"""The command that `cortecs-async run` runs in the foreground: its terminal, signals and exit code."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import anyio
import anyio.to_thread

NOT_EXECUTABLE = 126
NOT_FOUND = 127

# Seconds between SIGTERM and SIGKILL for a command whose instance is gone.
GRACE_PERIOD = 10.0

# A terminal sends these to its whole foreground process group, which includes the command. A Python handler
# cannot see who sent a signal, so in the foreground they are assumed to come from the terminal.
_FROM_TERMINAL = frozenset({signal.SIGINT, signal.SIGQUIT})
_FORWARDED = (
    *(signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT),
    *(signal.SIGUSR1, signal.SIGUSR2),  # schedulers announce the end of a job with these
)


class CannotRunError(Exception):
    """The command could not be started. `exit_code` is that of a shell."""

    def __init__(self, command: str, error: OSError) -> None:
        super().__init__(f"{command}: {error.strerror}")
        self.exit_code = NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE


def check_command(name: str) -> None:
    """Raise `CannotRunError` if a command certainly cannot be started."""
    if shutil.which(name) is None:
        exists = Path(name).exists() if "/" in name else shutil.which(name, mode=os.F_OK) is not None
        code = errno.EACCES if exists else errno.ENOENT
        raise CannotRunError(name, OSError(code, os.strerror(code)))


class ChildProcess:
    """A command that runs no longer than an `async with` block.

    `async with ChildProcess(command, env) as child: exit_code = await child.wait()`

    It stays in the process group of this program, so that Ctrl-C, Ctrl-Z and reading from the terminal work
    as if the shell had started it. Signals that reach this program are forwarded to the command and have no
    other effect. Entering raises `CannotRunError` if it cannot be started.
    """

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._command = command
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._pending_signals: list[int] = []
        self._old_handlers: dict[signal.Signals, Any] = {}

    async def __aenter__(self) -> Self:
        # Handlers first, so that signals that arrive before the command runs are forwarded too. Ignored
        # signals stay ignored, here and in the command, for example SIGHUP under `nohup`.
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._forward)
        try:
            # Not in a thread: if that were cancelled, the command would run without an owner.
            self._process = subprocess.Popen(self._command, env=self._env)  # noqa: ASYNC220, S603
        except OSError as error:
            self._restore_handlers()
            raise CannotRunError(self._command[0], error) from None
        for pending in self._pending_signals:
            self._send(pending)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        try:
            if self._process is not None and self._process.returncode is None:
                await self._terminate()
        finally:
            self._restore_handlers()

    async def wait(self) -> int:
        """Wait until the command ends. Returns its exit code as in a shell: 128 + n if signal n ended it."""
        await self._wait_for_exit()
        return self._reap()

    async def _terminate(self) -> None:
        """Send SIGTERM, and SIGKILL after the grace period."""
        try:
            self._send(signal.SIGTERM)
            self._send(signal.SIGCONT)  # a stopped process does not handle SIGTERM
            with anyio.move_on_after(GRACE_PERIOD, shield=True):
                await self._wait_for_exit()
        finally:
            self._send(signal.SIGKILL)
            self._reap()

    async def _wait_for_exit(self) -> None:
        # WNOWAIT does not reap it. Until it is reaped, its process id cannot belong to another process, and
        # sending it a signal is harmless.
        assert self._process is not None  # noqa: S101  (for the type checker)
        options = os.WEXITED | os.WNOWAIT
        await anyio.to_thread.run_sync(
            os.waitid, os.P_PID, self._process.pid, options, abandon_on_cancel=True
        )

    def _reap(self) -> int:
        assert self._process is not None  # noqa: S101  (for the type checker)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _: FrameType | None) -> None:
        if self._process is None:
            self._pending_signals.append(number)
        elif number not in _FROM_TERMINAL or not _is_foreground():
            self._send(number)

    def _send(self, number: int) -> None:
        # Not `Popen.send_signal`, which may reap the process while `wait` waits for it.
        if self._process is not None and self._process.returncode is None:
            os.kill(self._process.pid, number)

    def _restore_handlers(self) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        self._old_handlers.clear()


def _is_foreground() -> bool:
    """Return whether this program, and so the command, is in the foreground of a terminal."""
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
