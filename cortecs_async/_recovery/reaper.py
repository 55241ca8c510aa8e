"""The reaper: a child process that hands back instances when its parent no longer can.

It holds the read end of a pipe whose write end only its parent has. The end of that pipe, not a process id,
says that the parent is dead. It is told of every promise before it is acted on, and keeps what is left of
them: it stops and deletes what was created, and looks for what a start may have made.

It survives SIGTERM, SIGHUP and Ctrl-C, in a session of its own, and SIGKILL, `os._exit` and the memory killer
as long as they hit its parent alone. It cannot survive what takes the whole machine, container or control
group: there the journal and `sweep` are what is left. Nor can it work without the network, with credentials
that were revoked, or once the Python environment that it was started from is gone.

Started as `BOOTSTRAP`, with the standard library alone: the HTTP stack is imported when there is work. As
long as nothing is owed it only waits.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .records import JournalState, Promise, Record, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    import threading

# A package without its __init__, which would import everything.
BOOTSTRAP = """
import sys, types
package = types.ModuleType("cortecs_async")
package.__path__ = [sys.argv[1]]
sys.modules["cortecs_async"] = package
from cortecs_async._recovery.reaper import main
main()
"""

_IN, _OUT = 0, 1

# Seconds that a parent which lives has after an instance's time is up, to end it itself.
GRACE = 5.0

# Seconds after the parent's death, for a request that is still on its way.
_SETTLE = 0.5

Work = Callable[
    [JournalState, Sequence[Promise], dict[str, Record], Callable[[Record], None], Path | None],
    None,
]


def _work(
    book: JournalState,
    entries: Sequence[Promise],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    from .recover import reap  # noqa: PLC0415  (the HTTP stack)

    reap(book, entries, accounts, report, journal)


class Reaper:
    """What it knows and does, apart from the pipe.

    Args:
        answer: Sends a message to the parent.
        work: Keeps promises; the real one needs the HTTP stack.
        wall_clock: Returns Unix time in seconds.
    """

    def __init__(
        self,
        answer: Callable[[Record], None],
        work: Work = _work,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = JournalState()
        self.accounts: dict[str, Record] = {}
        self.journal: Path | None = None
        self.has_bye = False
        self._answer = answer
        self._work = work
        self._wall_clock = wall_clock
        self._begun: set[str] = set()
        self._threads: list[threading.Thread] = []

    def receive(self, message: Record) -> None:
        """Takes one message, and answers it if it was understood."""
        match message.get("kind"):
            case "HELLO":
                # Where the HTTP stack is found, should it be needed.
                sys.path[:] = [str(each) for each in message["path"]]
            case "JOURNAL":
                self.journal = Path(message["journal"]) if message["journal"] else None
            case "ARM":
                self.accounts[str(message["account"])] = json.loads(message["sealed"])
            case "BYE":
                self.has_bye = True
            case _:
                if not self.state.apply(message):
                    return
        self._answer({"ack": message["number"]})

    def next_due(self) -> float | None:
        """Unix time of the next promise to keep while the parent lives."""
        moments = [
            0.0 if entry.abandoned else (entry.expires_at or 0.0) + GRACE
            for entry in self.state.promises.values()
            if entry.key not in self._begun
            and not entry.candidates
            and (entry.abandoned or (entry.expires_at is not None and entry.instance_id is not None))
        ]
        return min(moments, default=None)

    def start_due_work(self) -> None:
        """Keeps, in a thread, what a living parent does not: its loop is blocked, or it has given up."""
        now = self._wall_clock()
        due = [
            entry
            for entry in list(self.state.promises.values())
            if entry.key not in self._begun and entry.is_due(now, owner_lives=True, grace=GRACE)
        ]
        if not due:
            return
        import threading  # noqa: PLC0415  (rarely needed)

        self._begun.update(entry.key for entry in due)
        thread = threading.Thread(
            target=self._work, args=(self.state, due, self.accounts, self._report, self.journal)
        )
        thread.start()
        self._threads.append(thread)

    def finish_after_parent(self) -> None:
        """The parent is dead: keeps everything that is left, and then removes the journal."""
        from .journal import try_lock  # noqa: PLC0415  (only now)

        # Nobody listens; a forked child of the parent's may hold the pipe open, which would fill.
        self._answer = _nowhere
        # Held while this works, so that nobody else does the same at once.
        taken = try_lock(self.journal) if self.journal is not None else None
        for _ in range(20):
            if taken is not None or self.journal is None or not self.journal.exists():
                break
            time.sleep(0.05)  # the dying parent may hold it a moment longer than the pipe
            taken = try_lock(self.journal)
        left = [entry for entry in self.state.promises.values() if entry.key not in self._begun]
        if left:
            # So that others, who die at the same time perhaps, know that these starts are nobody's any more.
            self._report({"kind": "ORPHANED"})
            time.sleep(_SETTLE)
            self._work(self.state, left, self.accounts, self._report, self.journal)
        for thread in self._threads:
            thread.join()
        if taken is not None:
            if self.state.promises:
                taken.close()
            else:
                taken.remove()

    def _report(self, record: Record) -> None:
        """Notes a deed: in the book, in the journal, and to the parent if it lives."""
        self.state.apply(record)
        if self.journal is not None:
            # A full disk, or no journal any more, is no reason to stop.
            with contextlib.suppress(OSError):
                fd = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    os.write(fd, encode([record]))
                finally:
                    os.close(fd)
        self._answer({"deed": record})


def main() -> None:
    """Serves one parent, then exits."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    serve()


def serve(work: Work = _work) -> None:
    """Reads messages until the parent says goodbye or dies."""
    reaper = Reaper(_answer, work)
    buffer = b""
    while not reaper.has_bye:
        due = reaper.next_due()
        # Not for ever, because the clock of this machine may be set or have slept.
        pause = None if due is None else min(max(due - time.time(), 0.0), 10.0)
        if select.select([_IN], [], [], pause)[0]:
            chunk = os.read(_IN, 1 << 16)
            if not chunk:
                reaper.finish_after_parent()
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                reaper.receive(json.loads(line))
        reaper.start_due_work()


def _answer(message: Record) -> None:
    if "deed" in message:
        # For information: not worth waiting for a parent that has been stopped and does not read.
        ready = select.poll()
        ready.register(_OUT, select.POLLOUT)
        if not ready.poll(0):
            return
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(_OUT, encode([message]))


def _nowhere(_: Record) -> None:
    """Answers nobody."""
