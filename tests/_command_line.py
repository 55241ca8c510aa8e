"""Run the commands of `cortecs-async` in this process, as programs, and in a pseudo-terminal."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from click.testing import CliRunner, Result

from cortecs_async._cli import cli
from cortecs_async.emulator import Emulator, serve_emulator

PROGRAM = "from cortecs_async.__main__ import main\nmain()"


@contextmanager
def serving(**options: Any) -> Iterator[Emulator]:
    """Serve an emulator on a free port."""
    with serve_emulator(**{"step_seconds": 0.01, **options}) as emulator:
        yield emulator


def call_command(*arguments: str, **options: Any) -> Result:
    """Call a command in this process."""
    # Exceptions are not caught, because an unhandled one would be a traceback for the user.
    return CliRunner().invoke(cli, arguments, catch_exceptions=False, **options)


def environment(emulator: Emulator | None, state: Path) -> dict[str, str]:
    """Return the environment for a program that uses the emulator, with its own state directory."""
    return {
        **({} if emulator is None else emulator.env()),
        "PATH": os.defpath,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "CORTECS_STATE_DIR": str(state / "state"),
        "CORTECS_CONFIG_FILE": os.devnull,
        "PYTHON_KEYRING_BACKEND": "keyring.backends.null.Keyring",
    }


_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_TAKE_TERMINAL = """
import os, sys
terminal = os.open(sys.argv[1], os.O_RDWR)  # becomes the controlling terminal of the new session
for number in range(3):
    os.dup2(terminal, number)
os.execv(sys.executable, [sys.executable, "-P", "-c", *sys.argv[2:]])
"""


class Terminal:
    """A Python program in the foreground of a terminal, and its output.

    Args:
        source: The program.
        arguments: Its command-line arguments.
        env: Its environment, without the terminal's variables.
        columns: The width of the terminal.
    """

    def __init__(self, source: str, *arguments: str, env: Mapping[str, str], columns: int = 100) -> None:
        self._written = b""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", _TAKE_TERMINAL, os.ttyname(slave), source, *arguments],
            env={"TERM": "xterm-256color", "COLUMNS": str(columns), "LINES": "40", **env},
            start_new_session=True,
        )
        self._slave = slave  # stays open, so that reading does not fail before the program opens it

    @property
    def text(self) -> str:
        """The text written so far, without colors or cursor movements."""
        return _ESCAPES.sub("", self._written.decode(errors="replace")).replace("\r", "")

    def until(self, condition: Callable[[str], object], seconds: float = 30.0) -> None:
        """Read until the text meets a condition.

        Raises:
            TimeoutError: If the condition is not met in time.
        """
        deadline = time.monotonic() + seconds
        while not condition(self.text):
            if time.monotonic() > deadline:
                raise TimeoutError(self.text)
            self._read(0.1)

    def press(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def press_until(self, text: str, expected: str) -> None:
        """Press keys until some text appears. Python can lose a Ctrl-C that comes right before it reads."""
        for _ in range(10):
            self.press(text)
            with suppress(TimeoutError):
                self.until(lambda written: expected in written, seconds=3.0)
                return
        raise TimeoutError(self.text)

    def hang_up(self) -> None:
        """Close the terminal, like closing its window."""
        os.close(self._slave)
        os.close(self._master)
        self._slave = self._master = -1

    def wait(self) -> int:
        """Read until the program ends. Return its exit status."""
        self.until(lambda _: self.process.poll() is not None)
        while self._read(0.0):
            pass
        return self.process.returncode

    def _read(self, seconds: float) -> bool:
        if not select.select([self._master], [], [], seconds)[0]:
            return False
        chunk = os.read(self._master, 65536)
        self._written += chunk
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        if self._master >= 0:
            self.hang_up()
