"""The reaper: a child process that releases instances when its parent has died.

The reaper reads a pipe, and only its parent has the write end. A closed pipe means that the parent is dead. A
process id would not be reliable, because ids are reused. The parent sends each promise before it acts on it.
When the parent dies, the reaper fulfills the remaining promises: it releases instances and searches for any
that a start request may have created. While the parent lives, the reaper releases only instances that have
expired, that the parent gave up on, or that a hung parent has left idle. `recover` contains the details. The
parent's side is `reaper_process`.

The reaper ignores SIGTERM, SIGHUP, and Ctrl-C, has its own session, and survives SIGKILL, `os._exit`, and the
OOM killer if they hit only its parent. It does not survive a crash of the machine, the container, or the
control group. In these cases, the journal and `sweep` remain. It cannot work without the network, or after
its Python environment was deleted. If the service rejects its credentials for minutes, it unlocks the
journal, so that a `sweep` with new credentials can release the instances.

It starts as `reaper_process.BOOTSTRAP`, using only the standard library, and imports the HTTP stack once it
has work. When it receives an account, it checks that this import and a connection will succeed (see
`rehearsal`), unless a record shows it (see `rehearsal_record`). A reaper is started for every program with a
lease, even a short one, so this module imports everything else, even of the standard library, where it is
needed: `json`, `threading`, `pathlib`, and `contextlib` would double the time of the start.
"""

from __future__ import annotations

import _thread
import gc
import sys
import time

from .._aio.clock import SteadyClock
from .._platform import NO_REAPER, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK, os
from .due import DueTimes
from .pipe import ParentPipe, decode_messages
from .records import JournalState, encode
from .rehearsal import Rehearsals, import_lock

TYPE_CHECKING = False  # `typing` takes milliseconds to import
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path
    from threading import Thread

    from .journal import JournalFile
    from .promise import Promise
    from .records import Record

    # Fulfills promises, as `recover.reap` does.
    Reap = Callable[
        [JournalState, Sequence[Promise], dict[str, Record], Callable[[Record], None], Path | None],
        None,
    ]
else:
    import _signal as signal  # the signals alone, without the enumerations of `signal`

_STDIN, _STDOUT = 0, 1

# Seconds after an instance expires in which a living parent can still release it itself.
GRACE = 5.0

# A dying parent may hold the lock of its journal slightly longer than the pipe. The number of retries, and
# seconds before the first one and, at most, between two of them.
_LOCK_RETRIES, _MIN_LOCK_RETRY_DELAY, _MAX_LOCK_RETRY_DELAY = 25, 0.001, 0.05

# Seconds until the clock is read again, because the machine may have been suspended.
_MAX_WAIT = 10.0

# Seconds after a failure until a promise is retried while the parent lives.
_RETRY_DELAY = 60.0

# Seconds until a message that did not fit into the pipe is sent again.
_RESEND_DELAY = 1.0


class Reaper:
    """The state and decisions of the reaper, without the pipe.

    `send` sends a message to the parent, and `reap` fulfills promises (`recover.reap` if it is None).
    `rehearse` is called for each account whose rehearsal is not recorded, with its settings, the number of
    its message, and where to record the outcome.
    """

    def __init__(
        self,
        send: Callable[[Record], None],
        reap: Reap | None = None,
        wall_clock: Callable[[], float] = time.time,
        rehearse: Callable[[str, Record, int, Sequence[str] | None], None] = lambda *_: None,
    ) -> None:
        self.state = JournalState()
        self.accounts: dict[str, Record] = {}
        self.journal: str | None = None
        self.has_bye = False
        self._has_understood = True  # all messages so far
        self._send = send
        self._reap = reap
        self._wall_clock = wall_clock
        self._rehearse = rehearse
        self._locked: JournalFile | None = None  # the journal, after the parent's death
        # Held while the state is changed or iterated: the threads change it too.
        self._lock = _thread.RLock()
        self._workers: dict[str, Thread] = {}  # by the key of each promise
        self._retry_at: dict[str, float] = {}  # by the key of each promise worked on
        self._due = DueTimes()  # of the promises that no worker works on
        self._certificates: dict[str, int] = {}  # descriptors, by path

    def receive(self, *messages: Record) -> None:
        """Apply messages, and acknowledge all of them with the number of the last one.

        Once a message was not understood, nothing is acknowledged, so the parent starts another reaper.
        """
        for message in messages:
            try:
                self._has_understood &= self._apply(message)
            except Exception:  # noqa: BLE001  (the parent notices that there is no acknowledgment)
                self._has_understood = False
        if messages and self._has_understood:
            self._send({"ack": messages[-1]["number"]})

    def _apply(self, message: Record) -> bool:
        match message.get("kind"):
            case "HELLO":
                # The import path of the HTTP stack, in case it is needed. The standard library stays first,
                # because an app's folder may contain a `types.py`.
                sys.path[:] = dict.fromkeys([*sys.path, *map(str, message["path"])])
            case "JOURNAL":
                self.journal = message["journal"] or None
            case "ARM":
                account, settings = str(message["account"]), message["sealed"]
                self.accounts[account] = settings
                self._keep_certificates(settings)
                if not message.get("is_recorded"):
                    self._rehearse(account, settings, int(message["number"]), message.get("record"))
            case "BYE":
                self.has_bye = True
            case _:
                return self._apply_record(message)
        return True

    def _apply_record(self, record: Record) -> bool:
        with self._lock:
            is_understood = self.state.apply(record)
            self._set_due(record.get("entry"))
        return is_understood

    def _set_due(self, key: object) -> None:
        """Update when a promise is due, after a change to it. Call this while holding the lock."""
        if isinstance(key, str):
            promise = None if key in self._workers else self.state.promises.get(key)
            due_at = None if promise is None else promise.due_at(owner_lives=True, grace=GRACE)
            self._due.set(key, None if due_at is None else max(due_at, self._retry_at.get(key, due_at)))

    def next_due(self) -> float | None:
        """Return the Unix time of the next promise to fulfill while the parent lives, or None."""
        with self._lock:
            return self._due.earliest()

    @property
    def is_working(self) -> bool:
        """Whether a thread releases instances."""
        return bool(self._workers)

    def recover_due(self, now: float | None = None) -> None:
        """Release, in a thread, any instances that the living parent failed to release.

        The parent gave up, or its event loop is blocked past the lifetime or the idle timeout of a lease.
        `now` is the Unix time by which all messages were received.
        """
        now = self._wall_clock() if now is None else now
        if (due_at := self.next_due()) is None or due_at > now:
            return
        import threading  # noqa: PLC0415  (needed only here)

        thread = threading.Thread(target=lambda: self._work(due))
        due = self.take_due(now, thread)
        thread.start()

    def take_due(self, now: float, worker: Thread) -> list[Promise]:
        """Return the promises that are due at a Unix time. From now on, `worker` works on them."""
        with self._lock:
            due = [each for key in self._due.take(now) if (each := self.state.promises.get(key))]
            self._workers.update(dict.fromkeys((promise.key for promise in due), worker))
        return due

    def _work(self, promises: Sequence[Promise]) -> None:
        """Fulfill promises while the parent lives. Failed ones are retried after a while."""
        try:
            self._recover(promises)
        finally:
            with self._lock:
                for promise in promises:
                    self._workers.pop(promise.key)
                    self._retry_at[promise.key] = self._wall_clock() + _RETRY_DELAY
                    self._set_due(promise.key)

    def recover_after_parent(self) -> None:
        """Release the instances of the dead parent, then remove the journal."""
        from .journal import try_lock  # noqa: PLC0415  (needed only here)

        # No process reads the messages any longer. If a forked child held the pipe open, it would fill up.
        self._send = _discard
        path = self._journal_path()
        # Locked, so that no `sweep` works on the same promises.
        locked = try_lock(path) if path is not None else None
        for attempt in range(_LOCK_RETRIES):
            if locked is not None or path is None or not path.exists():
                break
            time.sleep(min(_MIN_LOCK_RETRY_DELAY * 2**attempt, _MAX_LOCK_RETRY_DELAY))
            locked = try_lock(path)
        if locked is not None:
            try:
                locked.end_torn_line()
            except OSError:
                pass
        self._locked = locked
        has_workers = bool(self._workers)
        if self.state.promises:
            # So that other processes, which may die at the same time, know that these starts have no owner.
            self._report({"kind": "ORPHANED"})
        pending = self._not_begun()
        if pending:
            self._recover(pending)
        self.join()
        if has_workers and (failed := self._not_begun()):
            self._recover(failed)
        if self._locked is None and path is not None:
            # The journal was unlocked in the meantime. If a `sweep` locked it, that `sweep` removes it.
            self._locked = try_lock(path)
        if self._locked is not None:
            self._locked.retire(self.state)

    def join(self) -> None:
        """Wait for the threads that release instances."""
        with self._lock:
            workers = set(self._workers.values())
        for thread in workers:
            thread.join()

    def _journal_path(self) -> Path | None:
        from pathlib import Path  # noqa: PLC0415  (needed to release instances)

        return None if self.journal is None else Path(self.journal)

    def _unlock_journal(self) -> None:
        """Unlock the journal, so that a `sweep` with other credentials can work on it."""
        with self._lock:
            if self._locked is not None:
                self._locked.close()
                self._locked = None

    def _not_begun(self) -> list[Promise]:
        with self._lock:
            return [each for each in self.state.promises.values() if each.key not in self._workers]

    def _keep_certificates(self, settings: Record) -> None:
        """Open the certificate file, because it may be deleted before it is needed."""
        path = settings["environment"]["cafile"]
        if path is not None and path not in self._certificates:
            try:
                self._certificates[path] = os.open(path, os.O_RDONLY | O_CLOEXEC)
            except OSError:
                pass  # the rehearsal reports it

    def _restore_certificates(self, accounts: Mapping[str, Record]) -> None:
        for settings in accounts.values():
            path = settings["environment"]["cafile"]
            if path in self._certificates:
                try:
                    os.stat(path)  # not `os.path`, which would have to be imported
                except OSError:
                    settings["environment"]["cafile"] = f"/dev/fd/{self._certificates[path]}"

    def _recover(self, promises: Sequence[Promise]) -> None:
        # A copy, because a different thread may receive accounts.
        accounts = dict(self.accounts)
        self._restore_certificates(accounts)
        if self._reap is None:
            gc.disable()  # it takes a tenth of the time of the imports, and finds next to nothing
            try:
                with import_lock:
                    from functools import partial  # noqa: PLC0415  (needed to release instances)

                    from .recover import preload, reap  # noqa: PLC0415  (imports the HTTP stack)

                    preload()
            finally:
                gc.freeze()  # otherwise, visiting the modules would delay the first request by 7 ms
                gc.enable()
            self._reap = partial(reap, unlock_journal=self._unlock_journal, wall_clock=self._wall_clock)
        self._reap(self.state, promises, accounts, self._report, self._journal_path())

    def _report(self, record: Record) -> None:
        """Apply one of the reaper's own records, write it to the journal, and send it to a living parent."""
        self._apply_record(record)
        if self.journal is not None:
            flags = os.O_WRONLY | os.O_APPEND | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK
            try:
                fd = os.open(self.journal, flags)
                try:
                    os.write(fd, encode([record]))
                finally:
                    os.close(fd)
            except OSError:
                pass  # continue even if the disk is full or the journal was deleted
        self._send({"action": record})


def main() -> None:
    """Serve one parent, then exit."""
    _set_signals()
    stdin, stdout = os.dup(_STDIN), os.dup(_STDOUT)
    # Imported code may print, and its output must not mix with the messages.
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (_STDIN, _STDOUT):
        os.dup2(null, fd)
    serve(stdin, stdout)
    # Nothing is left to clean up, and a normal exit takes a sixth as long as the reaper's start.
    os._exit(0)  # noqa: SLF001  (a function of `os`)


def _set_signals() -> None:
    if sys.platform == "win32":
        raise OSError(NO_REAPER)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)
    # An ignored SIGCHLD, which a new process inherits, would lose the outcome of a child.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def serve(stdin: int, stdout: int, reap: Reap | None = None) -> None:
    """Receive messages until the parent sends BYE or dies. The arguments are the pipes from and to it."""
    parent = ParentPipe(stdout)
    clock = SteadyClock()
    rehearsals = Rehearsals(parent.send, closed_in_child=(stdin, stdout))
    reaper = Reaper(parent.send, reap, clock, rehearsals.begin)
    buffer = b""
    while not reaper.has_bye:
        now = clock()
        ready = _readable([stdin, *rehearsals.fds], _wait(reaper, parent, now))
        for fd in {*ready} - {stdin}:
            rehearsals.end(fd)
        if stdin in ready:
            chunk = os.read(stdin, 1 << 16)
            if not chunk:
                break
            complete, newline, buffer = (buffer + chunk).rpartition(b"\n")
            messages = decode_messages(complete + newline)
            reaper.receive(*(_by_clock(message, clock) for message in messages))
        else:
            # Only once no message is waiting: after a pause of this process, one may report activity.
            reaper.recover_due(now)
    rehearsals.cancel()
    if reaper.has_bye:
        reaper.join()
    else:
        reaper.recover_after_parent()


def _readable(fds: list[int], seconds: float | None) -> list[int]:
    """Return the descriptors that can be read. If there is only one, without a timeout, reading it waits."""
    if len(fds) == 1 and seconds is None:
        return fds
    import select  # noqa: PLC0415  (needed for several descriptors or a timeout)

    return select.select(fds, [], [], seconds)[0]


def _wait(reaper: Reaper, parent: ParentPipe, now: float) -> float | None:
    """Return the seconds to wait for a message, or None to wait until there is one."""
    # Before the time is read: a worker that ends in between has then set it, if it has to try again.
    is_working = reaper.is_working
    due = reaper.next_due()
    if parent.flush():
        return _RESEND_DELAY
    if due is None:
        return _MAX_WAIT if is_working else None
    return min(max(due - now, 0.0), _MAX_WAIT)


def _by_clock(message: Record, clock: SteadyClock) -> Record:
    """Return a message with its times converted to this clock. The parent takes them from the wall clock."""
    times = {
        name: clock.from_wall_clock(value)
        for name in ("at", "expires_at", "idle_at")
        if isinstance(value := message.get(name), (int, float))
    }
    return {**message, **times}


def _discard(_: Record) -> None:
    """Drop a message."""
