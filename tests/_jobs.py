"""Programs of docs/orchestrators/, run as files by real processes, and the emulator that they lease from."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from _processes import PROC, REAPER, is_alive, kill, read, reapers_of
from anyio.from_thread import start_blocking_portal
from attrs import define, field

from cortecs_async.emulator import Emulator, Fault, serve_emulator

PAGES = Path(__file__).parent.parent / "docs" / "orchestrators"

BIN = Path(sys.executable).parent

# Long enough for a job to be ended meanwhile, in whatever way.
LONG = 120.0


def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for what sets no event: processes and files.

    Raises:
        TimeoutError: when it does not come about.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds} s")
        time.sleep(0.02)


@define(eq=False)
class Stage:
    """An emulator, and a folder in which the programs of a page lie.

    Attributes:
        emulator: Where they lease.
        folder: Where they lie, and their home.
        env: Their environment.
    """

    emulator: Emulator
    folder: Path
    env: dict[str, str]
    _seen: int = field(default=0)
    _before: set[Path] = field(factory=set)
    _logs: int = field(default=0)

    @contextmanager
    def run(self, *command: str | Path, **env: str) -> Iterator[Run]:
        """A command that runs in the folder; nothing of it outlives the block."""
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

    def slow_answers(self) -> None:
        """The next question to a model is answered very late: the job is in its block meanwhile."""
        self.emulator.add_fault(Fault("delay", route="chat", seconds=LONG))

    def refused_answers(self) -> None:
        """The next question to a model is refused: the job fails in its block."""
        self.emulator.add_fault(Fault("status", route="chat", status=400))

    def begin(self) -> None:
        """Forgets what was requested before: a case begins."""
        self.emulator.clear_faults()
        self._seen = len(self.emulator.requests)
        self._before = self._journals()

    def count(self, route: str) -> int:
        """How many requests of a route this case has sent."""
        return sum(each.route == route for each in self.emulator.requests[self._seen :])

    def wait_for_the_block(self) -> None:
        """Returns when a job is in its block, waiting for its answer."""
        until(lambda: self.count("chat") == 1, 120)

    def assert_nothing_is_left(self, *, by: str, seconds: float = 30.0) -> None:
        """That this case rented one instance and gave it back.

        Args:
            by: "block" when it must have been the block itself, which uses its client's token. "reaper" when
                it must have been the reaper, or "release" when another process, each with a token of its own.
                "either" when it is a race between block and reaper.
            seconds: How long that may take from now.
        """
        until(lambda: not self.emulator.existing, seconds)
        assert self.count("start") == 1
        assert self.count("token") in {"block": {1}, "either": {1, 2}}.get(by, {2})
        if by == "release":
            # It asks for the list once more than a reaper: whether the instance exists. The last one comes
            # when it is gone. In the books of the process that acquired it, it stays until its time is up.
            until(lambda: self.count("list") >= 3, seconds)
        else:
            until(lambda: self._journals() <= self._before, seconds)

    def _journals(self) -> set[Path]:
        return set((self.folder / "state" / "journal").glob("*"))


@define(eq=False)
class Run:
    """A command under way."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """All that it has written so far."""
        return self.log.read_text(errors="replace")

    def holder(self) -> int:
        """The one process of it that has a reaper: the one that holds the instance."""
        (pid,) = [pid for pid in (self.process.pid, *descendants(self.process.pid)) if reapers_of(pid)]
        return pid

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = 60.0) -> int:
        """Waits for its end; returns its status."""
        return self.process.wait(seconds)


def descendants(pid: int) -> tuple[int, ...]:
    """The living children of a process, theirs, and so on; without reapers, which are to outlive it."""
    found: list[int] = []
    for each in PROC.iterdir():
        if not each.name.isdigit() or not is_alive(int(each.name)):
            continue
        parent = read(int(each.name), "stat").rpartition(b")")[2].split()
        if parent and int(parent[1]) == pid and not is_reaper(int(each.name)):
            found += [int(each.name), *descendants(int(each.name))]
    return tuple(found)


def is_reaper(pid: int) -> bool:
    """Whether a process is a reaper."""
    return REAPER in read(pid, "cmdline")


@contextmanager
def stage(page: str, folder: Path) -> Iterator[Stage]:
    """The programs of a page, each a block whose first line is a comment with its name, and an emulator."""
    text = (PAGES / f"{page}.md").read_text()
    blocks = re.findall(r"```python\n# (\w+\.py)\n(.*?)```", text, re.DOTALL)
    assert len(blocks) == text.count("```python"), "a program without a name"
    for name, source in blocks:
        (folder / name).write_text(source)
    # Stopping takes a while, so that a release is seen to be waited for.
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
            yield Stage(emu, folder, env)
        finally:
            # What was acquired with a limit has a reaper until that is over.
            for each in PROC.iterdir():
                if each.name.isdigit() and is_reaper(int(each.name)):
                    home = f"HOME={folder}".encode()
                    if home in read(int(each.name), "environ").split(b"\0"):
                        kill(int(each.name))
