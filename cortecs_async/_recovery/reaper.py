"""The reaper: a child process that releases instances when its parent has died.

The reaper reads a pipe, and only its parent has the write end. The end of the pipe means that the parent is
dead; a process id would not be reliable, because ids are reused. The parent sends each promise before it acts
on it. When the parent dies, the reaper fulfills the remaining promises: it releases instances, and searches
for those that a start may have created. While the parent lives, it only releases instances that have expired
or that the parent gave up on. How it does this is in `recover`; the parent's side is `reaper_process`.

The reaper ignores SIGTERM, SIGHUP and Ctrl-C, has a session of its own, and survives SIGKILL, `os._exit` and
the OOM killer if they hit only its parent. It does not survive the loss of the machine, the container or the
control group; then the journal and `sweep` remain. It cannot work without the network, with revoked
credentials, or after the Python environment that it was started from was deleted.

It starts as `BOOTSTRAP`, on the standard library alone, and imports the HTTP stack when it has work.
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

# The package without its __init__, which would import everything.
BOOTSTRAP = """
import sys, types
package = types.ModuleType("cortecs_async")
package.__path__ = [sys.argv[1]]
sys.modules["cortecs_async"] = package
from cortecs_async._recovery.reaper import main
main()
"""

_STDIN, _STDOUT = 0, 1

# Seconds after an instance expires in which a living parent can still release it.
GRACE = 5.0

# Seconds to wait after the parent's death, for a request that is still in flight.
_IN_FLIGHT_DELAY = 0.5

# The dying parent may hold the lock of its journal a moment longer than the pipe. Number of retries, and
# seconds between them.
_LOCK_RETRIES, _LOCK_RETRY_DELAY = 20, 0.05

# Seconds until the clock is read again: it may be set, or the machine may have been suspended.
_MAX_WAIT = 10.0

# Fulfills promises, as `recover.reap` does.
Reap = Callable[
    [JournalState, Sequence[Promise], dict[str, Record], Callable[[Record], None], Path | None],
    None,
]


class Reaper:
    """The state and the decisions of the reaper, without the pipe.

    `send` sends a message to the parent, and `reap` fulfills promises: `recover.reap` if it is None.
    """

    def __init__(
        self,
        send: Callable[[Record], None],
        reap: Reap | None = None,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.state = JournalState()
        self.accounts: dict[str, Record] = {}
        self.journal: Path | None = None
        self.has_bye = False
        self._send = send
        self._reap = reap
        self._wall_clock = wall_clock
        self._begun_keys: set[str] = set()
        self._threads: list[threading.Thread] = []

    def receive(self, message: Record) -> None:
        """Apply a message, and acknowledge it if it was understood."""
        match message.get("kind"):
            case "HELLO":
                # Where the HTTP stack is imported from, if it is needed.
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
        self._send({"ack": message["number"]})

    def next_due(self) -> float | None:
        """Return the Unix time of the next promise to fulfill while the parent lives, or None."""
        due = [promise.due_at(owner_lives=True, grace=GRACE) for promise in self._not_begun()]
        return min((each for each in due if each is not None), default=None)

    def recover_due(self) -> None:
        """Release, in a thread, what the living parent failed to release.

        It gave up, or its event loop is blocked.
        """
        now = self._wall_clock()
        due = [each for each in self._not_begun() if each.is_due(now, owner_lives=True, grace=GRACE)]
        if not due:
            return
        import threading  # noqa: PLC0415  (rarely needed)

        self._begun_keys.update(promise.key for promise in due)
        thread = threading.Thread(target=self._recover, args=(due,))
        thread.start()
        self._threads.append(thread)

    def recover_after_parent(self) -> None:
        """Release what the dead parent left, and then remove the journal."""
        from .journal import try_lock  # noqa: PLC0415  (needed only here)

        # No process reads the messages any more. If a forked child holds the pipe open, it would fill up.
        self._send = _discard
        # Locked, so that no `sweep` works on the same promises.
        locked = try_lock(self.journal) if self.journal is not None else None
        for _ in range(_LOCK_RETRIES):
            if locked is not None or self.journal is None or not self.journal.exists():
                break
            time.sleep(_LOCK_RETRY_DELAY)
            locked = try_lock(self.journal)
        pending = self._not_begun()
        if self.state.promises:
            # So that other processes, which may die at the same time, know that these starts have no owner.
            self._report({"kind": "ORPHANED"})
        if pending:
            time.sleep(_IN_FLIGHT_DELAY)
            self._recover(pending)
        for thread in self._threads:
            thread.join()
        if locked is not None:
            locked.retire(self.state)

    def _not_begun(self) -> list[Promise]:
        # From a copy, because the threads change the state.
        promises = list(self.state.promises.values())
        return [promise for promise in promises if promise.key not in self._begun_keys]

    def _recover(self, promises: Sequence[Promise]) -> None:
        if self._reap is None:
            from .recover import reap  # noqa: PLC0415  (imports the HTTP stack)

            self._reap = reap
        self._reap(self.state, promises, self.accounts, self._report, self.journal)

    def _report(self, record: Record) -> None:
        """Apply a record of the reaper's own, write it to the journal, and send it to a living parent."""
        self.state.apply(record)
        if self.journal is not None:
            # Continue after a full disk or a deleted journal.
            with contextlib.suppress(OSError):
                fd = os.open(self.journal, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    os.write(fd, encode([record]))
                finally:
                    os.close(fd)
        self._send({"action": record})


def main() -> None:
    """Serve one parent, and exit."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    serve()


def serve(reap: Reap | None = None) -> None:
    """Receive messages until the parent sends BYE or dies."""
    reaper = Reaper(_send_to_parent, reap)
    buffer = b""
    while not reaper.has_bye:
        due = reaper.next_due()
        timeout = None if due is None else min(max(due - time.time(), 0.0), _MAX_WAIT)
        if select.select([_STDIN], [], [], timeout)[0]:
            chunk = os.read(_STDIN, 1 << 16)
            if not chunk:
                reaper.recover_after_parent()
                return
            *lines, buffer = (buffer + chunk).split(b"\n")
            for line in lines:
                reaper.receive(json.loads(line))
        reaper.recover_due()


def _send_to_parent(message: Record) -> None:
    if "action" in message:
        # Do not block if the parent is suspended.
        ready = select.poll()
        ready.register(_STDOUT, select.POLLOUT)
        if not ready.poll(0):
            return
    with contextlib.suppress(OSError):  # the parent is dead
        os.write(_STDOUT, encode([message]))


def _discard(_: Record) -> None:
    """Send nothing."""
