"""Run the programs in docs/orchestrators/ in real processes against an emulator."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _examples import files_of
from _processes import children_of, is_reaper, kill, pids, read, reapers_of
from anyio.from_thread import start_blocking_portal
from attrs import define, field

from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault, serve_emulator

PAGES = Path(__file__).parent.parent / "docs" / "orchestrators"

BIN = Path(sys.executable).parent

# Long enough for a test to end the job in the meantime.
DELAY = 120.0


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until a condition on processes or files is true.

    Raises:
        TimeoutError: If it is not true in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)


@define(eq=False)
class Workspace:
    """A folder with the programs from a page, and an emulator for them.

    Attributes:
        emulator: The emulator.
        folder: The folder, which is also the programs' home directory.
        env: The programs' environment variables.
    """

    emulator: Emulator
    folder: Path
    env: dict[str, str]
    _seen: int = field(default=0)
    _before: set[Path] = field(factory=set)
    _logs: int = field(default=0)

    @contextmanager
    def run(self, *command: str | Path, **env: str) -> Iterator[Run]:
        """Run a command in the folder, and kill it and its children when the block ends."""
        self._logs += 1
        log = self.folder / f"{self._logs}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                list(command),
                cwd=self.folder,
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        try:
            yield Run(process, log)
        finally:
            for pid in (*descendants(process.pid), process.pid):
                kill(pid)
            process.wait()

    def delay_next_answer(self) -> None:
        """Delay the next answer from a model, so that the job stays in its block."""
        self.emulator.add_fault(Fault("delay", route="chat", seconds=DELAY))

    def refuse_next_answer(self) -> None:
        """Reject the next request to a model, so that the job fails in its block."""
        self.emulator.add_fault(Fault("status", route="chat", status=400))

    def reset(self) -> None:
        """Begin a test: discard earlier faults, requests, and journals."""
        self.emulator.clear_faults()
        self._seen = len(self.emulator.requests)
        self._before = self._journals()

    def count(self, route: str) -> int:
        """Return the number of requests to a route in this test."""
        return sum(each.route == route for each in self.emulator.requests[self._seen :])

    def wait_for_block(self) -> None:
        """Wait until a job is in its block, waiting for an answer."""
        until(lambda: self.count("chat") == 1, 120)

    def assert_released(self, *, by: str, seconds: float = 30.0) -> None:
        """Check that this test started one instance and that the instance is released.

        Args:
            by: The expected way of release: "block", which uses its client's token; "reaper" or "release" (by
                another process), which fetch their own token; or "either", for block or reaper.
            seconds: The timeout, counted from now.
        """
        until(lambda: not self.emulator.existing, seconds)
        assert self.count("start") == 1
        assert self.count("token") in {"block": {1}, "either": {1, 2}}.get(by, {2})
        if by == "release":
            # It lists the instances once more than a reaper does, to check that the instance exists. The last
            # list confirms the deletion. The journal of the process that acquired it remains until the
            # deadline.
            until(lambda: self.count("list") >= 3, seconds)
        else:
            until(lambda: self._journals() <= self._before, seconds)

    def _journals(self) -> set[Path]:
        """Return the journals with promises. Others may remain while a process on the machine has a lease."""
        journals = read_journals(self.folder / "state" / "journal")
        return {path for path, state in journals if state.promises}


@define(eq=False)
class Run:
    """A running command."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """The output so far."""
        return self.log.read_text(errors="replace")

    def lease_owner(self) -> int:
        """Return the process id of the owner of the instance: the only process with a reaper."""
        (pid,) = [pid for pid in (self.process.pid, *descendants(self.process.pid)) if reapers_of(pid)]
        return pid

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Wait until the command has ended and return its exit status."""
        return self.process.wait(seconds)


def descendants(pid: int) -> list[int]:
    """Return the ids of the running descendants of a process, except reapers, which must outlive it."""
    children = itertools.filterfalse(is_reaper, children_of(pid))
    return [each for child in children for each in (child, *descendants(child))]


@contextmanager
def open_workspace(page: str, folder: Path) -> Iterator[Workspace]:
    """Write the programs from a page to a folder, and serve an emulator.

    A program is a Python block whose first line is a comment with its file name.
    """
    for name, source in files_of(PAGES / f"{page}.md").items():
        (folder / name).write_text(source)
    # Stopping takes a while, so that a test fails if a release is not awaited.
    serving = serve_emulator(step_seconds=0.02, stop_seconds=0.5)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(serving) as emu:
        env = {
            "PATH": os.pathsep.join([str(BIN), os.defpath]),
            "HOME": str(folder),
            "TMPDIR": str(folder),
            "PYTHONPATH": str(folder),
            "PYTHONUNBUFFERED": "1",
            "CORTECS_STATE_DIR": str(folder / "state"),
            **emu.env(),
        }
        try:
            yield Workspace(emu, folder, env)
        finally:
            # An acquired instance keeps a reaper until its deadline.
            home = f"HOME={folder}".encode()
            for pid in filter(is_reaper, pids()):
                if home in read(pid, "environ").split(b"\0"):
                    kill(pid)
