"""The journals for a sweep to work on: the ones whose process is dead.

A free lock means that both the process and its reaper are dead, or that the reaper unlocked the journal. If
the lock is taken, the journal shows by whom: the reaper of a dead process records that it has taken over.
Until that record appears, the process lives, and a sweep takes only the promises that the process gave up on.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from attrs import frozen

from .._logging import Event, log
from .._state_directory import StateFolder, check_state_directory, leave_alone
from .journal import JournalFile, has_unresolved, is_owned, orphaned_journals, read_journals
from .pending import OtherProcesses, PendingPromise
from .records import JournalState, Record, encode

_ORPHANED: Record = {"kind": "ORPHANED"}


@frozen(eq=False)
class DeadJournal:
    """The journal of a dead process, or the promises that a living process gave up on.

    Attributes:
        report: Adds a record to the state and the file.
        is_whole: Whether the state contains all promises in the file.
    """

    path: Path
    state: JournalState
    report: Callable[[Record], object]
    is_whole: bool = True

    def pending(self) -> Iterable[PendingPromise]:
        """Return the promises."""
        others = OtherProcesses(self.state, self.path, frozenset(self.state.promises))
        for promise in list(self.state.promises.values()):
            yield PendingPromise(self.state, promise, self.report, others.catch_up)


class DeadJournals:
    """The journals of dead processes. A thread that may outlive a cancelled sweep reads and locks them.

    `own_id` is the id of this process in its own journal, or None.

    Attributes:
        found: The journals to sweep: locked, except in a dry run or if their reaper has the lock.
        in_progress: The journals that a reaper is working on. A sweep only reports them.
        newer: The states of journals in a different format. A sweep only reports them.
    """

    def __init__(self, directory: Path, own_id: str | None = None) -> None:
        self._directory = directory
        self._own_id = own_id
        self.found: list[DeadJournal] = []
        self.in_progress: list[DeadJournal] = []
        self.newer: list[JournalState] = []
        self._locked: list[tuple[JournalFile, JournalState]] = []
        self._mutex = threading.Lock()
        self._is_closed = False

    def read(self, *, lock: bool, force: bool = False) -> None:
        """Find the journals. With `lock`, lock the ones to sweep. Blocks.

        With `force`, journals that a reaper is working on are in `found` too.

        Raises:
            JournalError: If the state directory cannot be used.
        """
        check_state_directory(self._directory)
        for journal, state in orphaned_journals(self._directory) if lock else ():
            report = _reporter(state, journal.path, partial(journal.append, durable=False))
            if state.promises:
                _end_torn_line(journal)
            if state.has_unresolved() and not state.is_orphaned:
                # While this process holds the lock, it looks like a living owner. Record that there is none.
                report(_ORPHANED)
            with self._mutex:
                if not self._is_closed:
                    self._locked.append((journal, state))
                    self.found.append(DeadJournal(journal.path, state, report))
                    continue
            journal.close()
            return
        locked = {each.path for each in self.found}
        for path, state in read_journals(self._directory):
            if path not in locked and (state.promises or state.has_other_format):
                self._add_unlocked(path, state, lock=lock, force=force)

    def _add_unlocked(self, path: Path, state: JournalState, *, lock: bool, force: bool) -> None:
        is_living = is_owned(path)
        if is_living is None or (is_living and state.has_other_format):
            return
        if state.has_other_format:
            leave_alone(self._directory, [path.name], state.problem)
            self.newer.append(state)
        elif is_living:
            if self._own_id is not None and state.owner.get("id") == self._own_id:
                return  # the sweep takes its own promises from memory
            part = state if state.is_orphaned else _given_up(state)
            report = _reporter(part, path, partial(_append_unlocked, path)) if lock else part.apply
            journal = DeadJournal(path, part, report, is_whole=part is state)
            (self.found if force else self.in_progress).append(journal)
        elif not lock:
            state.apply(_ORPHANED)
            self.found.append(DeadJournal(path, state, state.apply))

    def close(self) -> None:
        """Unlock the journals, and remove the ones without promises. Journals found later are not locked."""
        with self._mutex:
            self._is_closed = True
        keeps_past_ids = bool(self._locked) and has_unresolved(self._directory)
        for journal, state in self._locked:
            journal.close_or_remove(state, keeps_past_ids=keeps_past_ids)


def has_work(state: JournalState, now: float) -> bool:
    """Return whether the reaper holding a journal's lock has promises to fulfill at `now` (Unix time)."""
    part = state if state.is_orphaned else _given_up(state)
    return any(promise.needs_recovery(now) for promise in part.promises.values())


def _given_up(state: JournalState) -> JournalState:
    """Return a state with only the instances that a living process gave up on. Its reaper has them."""
    part = JournalState()
    part.owner = state.owner
    part.promises = {
        key: promise
        for key, promise in state.promises.items()
        if promise.abandoned and promise.instance_id is not None
    }
    return part


def _end_torn_line(journal: JournalFile) -> None:
    with contextlib.suppress(OSError):  # if this fails, the next record fails too and is logged
        journal.end_torn_line()


def _append_unlocked(path: Path, records: list[Record]) -> None:
    """Append to a journal whose reaper has the lock and appends to it too."""
    with StateFolder(path.parent) as folder:
        fd = folder.open(path.name, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(fd, encode(records))
    finally:
        os.close(fd)


def _reporter(
    state: JournalState, path: Path, append: Callable[[list[Record]], object]
) -> Callable[[Record], None]:
    def report(record: Record) -> None:
        state.apply(record)
        try:
            append([record])
        except OSError as error:
            # Not a failure: the next sweep finds that the instance is gone.
            log(Event.GUARD_SWEEP_UNWRITTEN, journal=str(path), error=error)

    return report
