"""Run programs under test as processes, and read their state from /proc."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import anyio

PROC = Path("/proc")

REAPER = b"from cortecs_async._recovery.reaper import main"
"""Identifies the command line of a reaper."""


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until a condition on processes, threads, or files is true.

    Raises:
        TimeoutError: If it is not true in time.
    """
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (these set no event)
            await anyio.sleep(0.02)


def state_of(pid: int) -> str:
    """Return the letter for a process's state in Linux. Empty if there is no such process."""
    return _stat(pid)[0]


def is_alive(pid: int) -> bool:
    """Return whether a process is running. A zombie is not."""
    return state_of(pid) not in {"", "Z", "X"}


def pids() -> list[int]:
    """Return the ids of all processes."""
    return [int(each.name) for each in PROC.iterdir() if each.name.isdigit()]


def children_of(parent: int) -> list[int]:
    """Return the ids of the running children of a process."""
    return [pid for pid in pids() if _stat(pid)[1] == parent and is_alive(pid)]


def is_reaper(pid: int) -> bool:
    """Return whether a process is a reaper."""
    return REAPER in read(pid, "cmdline")


def reapers_of(parent: int) -> tuple[int, ...]:
    """Return the ids of the running reapers of a process."""
    return tuple(filter(is_reaper, children_of(parent)))


def read(pid: int, name: str) -> bytes:
    """Read a process's file in /proc. Empty if there is no such process."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def kill(pid: int) -> None:
    """Kill a process if it exists."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _stat(pid: int) -> tuple[str, int]:
    # After the name, which is in parentheses and can itself contain parentheses.
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("", 0)


class Program:
    """A running Python program. As a context manager, it kills the program and its reapers on exit.

    Args:
        source: The source code.
        arguments: The arguments in `sys.argv`.
        env: The environment variables, except the paths.
        log: The file for the output.
        cwd: The working directory. Default: the tests' working directory.
    """

    def __init__(
        self, source: str, *arguments: str, env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                # -P, because the working directory may contain a different version of the package.
                [sys.executable, "-P", "-c", source, *arguments],
                env={"PATH": os.defpath, **env, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # as in a shell, so that `send_all` reaches the whole group
            )
        self._reapers: set[int] = set()

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the process group."""
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the program has ended."""
        return self.process.poll() is not None

    @property
    def output(self) -> str:
        """The output so far."""
        return self._log.read_text(errors="replace")

    def has_printed(self, line: str) -> bool:
        """Return whether the program has printed a line."""
        return f"{line}\n" in self.output

    def numbers(self, word: str) -> list[int]:
        """Return the numbers on the lines that begin with a word."""
        lines = [line.split() for line in self.output.splitlines() if line.startswith(f"{word} ")]
        return [int(line[1]) for line in lines]

    def reapers(self) -> tuple[int, ...]:
        """Return the process ids of the running reapers."""
        found = reapers_of(self.pid)
        self._reapers.update(found)
        return found

    def reaper(self) -> int:
        """Return the process id of the only running reaper."""
        (found,) = self.reapers()
        return found

    @property
    def has_left_a_reaper(self) -> bool:
        """Whether a reaper from the last signal or query is still running."""
        return any(is_alive(pid) for pid in self._reapers)

    def send(self, number: signal.Signals) -> None:
        """Send a signal, unless the program has ended."""
        self.reapers()  # remember them, because a dead program's reapers cannot be found
        self.process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to the process group, as Ctrl-C in a terminal does."""
        self.reapers()
        os.killpg(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.reapers()
        self.process.kill()
        self.process.wait()
        for pid in self._reapers:
            kill(pid)
