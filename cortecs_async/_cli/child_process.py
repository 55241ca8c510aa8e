"""The command that `cortecs-async run` runs in the foreground: its terminal, signals, and exit status."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any, Self

import anyio
import anyio.to_thread

from .process_tree import ProcessTree

NOT_EXECUTABLE = 126
NOT_FOUND = 127

# Seconds between SIGTERM and SIGKILL, for a command whose instance is gone and for processes left behind by a
# command.
GRACE_PERIOD = 10.0

# After a command exits, seconds for its other processes to exit too, such as a `tee` that still has to write
# the last lines. The wait happens only if a process is left over.
_DRAIN_TIME = 5.0

# A terminal sends these to its whole foreground process group, which includes the command. A Python handler
# cannot tell who sent a signal, so in the foreground they are assumed to come from the terminal.
_FROM_TERMINAL = frozenset({"SIGINT", "SIGQUIT"})
# The sender of these signals wants the command to exit early.
_ENDING = frozenset({"SIGTERM", "SIGHUP"})
_FORWARDED = tuple(
    signal.Signals[name]
    # Schedulers announce the end of a job with the last two.
    for name in ("SIGTERM", "SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2")
    if hasattr(signal, name)  # Windows has only two of them
)

# Not reached: Windows has no reaper, so `run` fails earlier.
_NO_SIGNALS = "Windows has no signals between processes"

# Seconds between two checks whether the command has exited, on systems that do not report it.
_POLL_INTERVAL = 0.05


class CannotRunError(Exception):
    """The command could not be started. `exit_code` is the same as a shell's."""

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
    """A command that runs at most as long as an `async with` block.

    `async with ChildProcess(command, env) as child: exit_code = await child.wait()`

    The command stays in this program's process group, so that Ctrl-C, Ctrl-Z, and reading from the terminal
    work as if the shell had started it. Signals that reach this program are forwarded to the command and have
    no other effect. Entering the block raises `CannotRunError` if the command cannot be started. Leaving the
    block terminates the command and all its descendants (see `ProcessTree`).

    Attributes:
        left_behind: The number of processes the command left running. They were terminated too.
        unkillable: The ids of processes that could not be killed.
    """

    def __init__(self, command: list[str], env: Mapping[str, str]) -> None:
        self._command = command
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None
        self._tree: ProcessTree | None = None
        self._pending_signals: list[int] = []
        self._old_handlers: dict[signal.Signals, Any] = {}
        self._must_hurry = False
        self.left_behind = 0
        self.unkillable: tuple[int, ...] = ()

    async def __aenter__(self) -> Self:
        # Set the handlers first, so that signals that arrive before the command runs are forwarded too.
        # Ignored signals stay ignored, both here and in the command, for example SIGHUP under `nohup`.
        for number in _FORWARDED:
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._old_handlers[number] = signal.signal(number, self._forward)
        self._tree = ProcessTree()
        try:
            # Not in a thread, because a cancellation would leave the command running without an owner.
            env = self._tree.mark(self._env)
            self._process = subprocess.Popen(self._command, env=env)  # noqa: ASYNC220, S603
        except OSError as error:
            self._tree.close()
            self._restore_handlers()
            raise CannotRunError(self._command[0], error) from None
        self._tree.add(self._process.pid)
        for pending in self._pending_signals:
            self._send(pending)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if sys.platform == "win32":
            raise OSError(_NO_SIGNALS)
        assert self._process is not None  # noqa: S101  (for the type checker)
        assert self._tree is not None  # noqa: S101  (for the type checker)
        try:
            has_ended = self._process.returncode is not None
            with anyio.CancelScope(shield=True):
                delay = _DRAIN_TIME if has_ended else 0.0
                self.unkillable = await self._tree.end(
                    GRACE_PERIOD, delay=delay, is_urgent=lambda: self._must_hurry
                )
            if has_ended:
                self.left_behind = self._tree.left_behind
        finally:
            self._send(signal.SIGKILL)
            self._reap()
            self._tree.reap(self._process.pid)
            self._tree.close()
            self._restore_handlers()

    async def wait(self) -> int:
        """Wait until the command exits. Return the status a shell would: 128 + n if signal n killed it."""
        assert self._process is not None  # noqa: S101  (for the type checker)
        assert self._tree is not None  # noqa: S101  (for the type checker)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._tree.reap_regularly, self._process.pid)
            await self._wait_for_exit()
            tasks.cancel_scope.cancel()
        return self._reap()

    async def _wait_for_exit(self) -> None:
        # WNOWAIT does not reap the command. Until it is reaped, its process id cannot belong to another
        # process, and sending a signal to it is harmless.
        assert self._process is not None  # noqa: S101  (for the type checker)
        waitid = getattr(os, "waitid", None)
        if waitid is None:  # macOS before Python 3.13; this reaps it, and `_send` does nothing from then on
            while self._process.poll() is None:  # noqa: ASYNC110  (nothing reports it)
                await anyio.sleep(_POLL_INTERVAL)
            return
        if sys.platform == "win32":
            raise OSError(_NO_SIGNALS)
        options = os.WEXITED | os.WNOWAIT
        await anyio.to_thread.run_sync(waitid, os.P_PID, self._process.pid, options, abandon_on_cancel=True)

    def _reap(self) -> int:
        assert self._process is not None  # noqa: S101  (for the type checker)
        code = self._process.wait()
        return code if code >= 0 else 128 - code

    def _forward(self, number: int, _: FrameType | None) -> None:
        name = signal.Signals(number).name
        has_ended = self._process is not None and self._process.returncode is not None
        # Once the command has exited, a signal can only be meant for its other processes.
        self._must_hurry = self._must_hurry or has_ended or name in _ENDING
        if self._process is None:
            self._pending_signals.append(number)
        elif name not in _FROM_TERMINAL or not _is_foreground():
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
    if sys.platform == "win32":
        return False
    with contextlib.suppress(OSError):
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(terminal) == os.getpgrp()
        finally:
            os.close(terminal)
    return False
