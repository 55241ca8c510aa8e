"""Programs under test as processes of their own, and what Linux says of them in /proc."""

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
"""What the command line of a reaper, and of nothing else, contains."""


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for what sets no event: processes, other threads and files.

    Raises:
        TimeoutError: when it does not come about.
    """
    with anyio.fail_after(seconds):
        while not condition():  # noqa: ASYNC110  (see above)
            await anyio.sleep(0.02)


def state_of(pid: int) -> str:
    """The letter that the system has for the state of a process; empty when there is none."""
    return _stat(pid)[0]


def is_alive(pid: int) -> bool:
    """Whether a process runs. One that is dead and not yet waited for does not."""
    return state_of(pid) not in {"", "Z", "X"}


def reapers_of(parent: int) -> tuple[int, ...]:
    """The reapers among the living children of a process."""
    pids = [int(each.name) for each in PROC.iterdir() if each.name.isdigit()]
    children = [pid for pid in pids if _stat(pid)[1] == parent]
    return tuple(pid for pid in children if is_alive(pid) and REAPER in read(pid, "cmdline"))


def read(pid: int, name: str) -> bytes:
    """A file of a process: its command line, its environment; empty when there is no such process."""
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def kill(pid: int) -> None:
    """Ends a process for good, if it is still there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _stat(pid: int) -> tuple[str, int]:
    # Behind the name, which stands in parentheses and may contain some.
    fields = read(pid, "stat").rpartition(b")")[2].split()
    return (fields[0].decode(), int(fields[1])) if fields else ("", 0)


class Program:
    """A Python program that runs from here on; in a `with`, nothing of it outlives the block.

    Args:
        source: Its text.
        arguments: For its `sys.argv`.
        env: All of its environment but the paths.
        log: The file that it writes its output to.
        cwd: Its working directory; by default that of the tests.
    """

    def __init__(
        self, source: str, *arguments: str, env: Mapping[str, str], log: Path, cwd: Path | None = None
    ) -> None:
        self._log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                # Without the working directory, which may hold another version of what is tested.
                [sys.executable, "-P", "-c", source, *arguments],
                env={"PATH": os.defpath, **env, "PYTHONPATH": os.pathsep.join(sys.path)},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # as a shell does it, so that all of it can be interrupted at once
            )
        self._reapers: set[int] = set()

    @property
    def pid(self) -> int:
        """Its process id, which is also that of its group."""
        return self.process.pid

    @property
    def has_ended(self) -> bool:
        """Whether it has."""
        return self.process.poll() is not None

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self._log.read_text(errors="replace")

    def has_said(self, line: str) -> bool:
        """Whether it has written this line."""
        return f"{line}\n" in self.output

    def numbers(self, word: str) -> list[int]:
        """The numbers that it has written behind a word, each on a line of its own."""
        lines = [line.split() for line in self.output.splitlines() if line.startswith(f"{word} ")]
        return [int(line[1]) for line in lines]

    def reapers(self) -> tuple[int, ...]:
        """Its living reapers."""
        found = reapers_of(self.pid)
        self._reapers.update(found)
        return found

    def reaper(self) -> int:
        """Its only one."""
        (found,) = self.reapers()
        return found

    @property
    def has_left_a_reaper(self) -> bool:
        """Whether one that it had when it was last sent a signal, or asked about, is alive."""
        return any(is_alive(pid) for pid in self._reapers)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal, unless it has ended."""
        self.reapers()  # once it is dead, they are nobody's children
        self.process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Sends its process group a signal, as Ctrl-C in a terminal does."""
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
