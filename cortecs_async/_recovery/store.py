"""What this process owes, kept in three places: memory, the journal, and the reaper.

One `Books` a process and state directory, used from any thread and any event loop. A promise is queued in no
time and can then be waited for: one turn writes what has gathered meanwhile to the journal, with one fsync,
and to the reaper, with one answer.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Container
from pathlib import Path

from .._errors import GuardError
from .._logging import Event, log
from .journal import JournalFile, orphaned_journals, read_journals
from .reaper_process import ReaperProcess
from .records import FORMAT, JournalState, Promise, Record

# Bytes that the journal grows beyond four times what is owed before it is written anew.
_SLACK = 1 << 18

# Reapers that die within so many seconds are not replaced any more.
_HASTE, _MANY = 60.0, 5

_LOST_BY_POWER = frozenset({"INTENT", "CREATED", "HELD", "ABANDONED"})


class PromiseStore:
    """The books of a process. `join` them before use and `leave` them after.

    Args:
        directory: Where journals lie.
        journal: Whether to write one.
        guard: Whether to have a reaper.
        wall_clock: Returns Unix time in seconds.

    Attributes:
        book: What is owed, as far as was committed.
        queued: How many records were queued.
        done: How many of them were committed.
        journal_problem: Why there is no journal at the moment, or None.
        guard_problem: Why there is no reaper at the moment, or None.
        generation: How often this process was forked off another: its clients have to join anew.
    """

    def __init__(
        self, directory: Path, *, journal: bool, guard: bool, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.directory: Path = directory
        self._journals = journal
        self._guards = guard
        self._wall_clock = wall_clock
        self.generation: int = 0
        self._reset()

    def _reset(self) -> None:
        self._turn = threading.Lock()  # whoever writes
        self._gate = threading.Lock()  # whoever queues
        self._queue: list[Record] = []
        self.book: JournalState = JournalState()
        self._journal: JournalFile | None = None
        self._is_behind = False
        self._worth = 0  # bytes of the journal when it held nothing but what was owed
        self._guard = ReaperProcess(self._replace, self.put)
        self._armed: dict[str, Record] = {}
        self._shown: Path | None = None
        self._deaths: list[float] = []
        self._users = 0
        self._number = 0
        self.queued: int = 0
        self.done: int = 0
        self.journal_problem: str | None = None
        self.guard_problem: str | None = None

    def join(self) -> int:
        """One more client uses these; returns the `generation` that it is in."""
        with self._gate:
            self._users += 1
            return self.generation

    def new_name(self) -> str:
        """A name that no entry or baseline of this process has."""
        with self._gate:
            self._number += 1
            return f"{os.getpid()}-{self._number}"

    def put(self, record: Record) -> None:
        """Queues a record."""
        with self._gate:
            self._queue.append(record)
            self.queued += 1

    def key_of(self, instance_id: str) -> str | None:
        """The open entry of an instance, as far as was committed."""
        entries = list(self.book.promises.values())
        return next((entry.key for entry in entries if entry.instance_id == instance_id), None)

    def is_open(self, key: str) -> bool:
        """Whether an entry is open, also if it is only queued."""
        with self._gate:
            queued = [record["kind"] for record in self._queue if record.get("entry") == key]
        return "GONE" not in queued and (bool(queued) or key in self.book.promises)

    def has_baseline(self, name: str) -> bool:
        """Whether a baseline is there, also if it is only queued: unused ones are dropped in time."""
        with self._gate:
            queued = any(record.get("baseline") == name and "ids" in record for record in self._queue)
        return queued or name in self.book.baselines

    def abandoned(self) -> list[Promise]:
        """What this process has given up on."""
        return [entry for entry in list(self.book.promises.values()) if entry.abandoned]

    def others(self, *, without: Container[Path] = ()) -> list[JournalState]:
        """What other processes say in their journals, except in those."""
        if not self._journals:
            return []
        own = self._journal.path if self._journal else None
        return [book for path, book in read_journals(self.directory) if path != own and path not in without]

    def commit(self) -> None:
        """Brings what is queued to the journal and to the reaper. Blocks; raises nothing.

        What went wrong is in `journal_problem` and `guard_problem`.
        """
        with self._turn:
            with self._gate:
                records, self._queue = self._queue, []
                reached = self.queued
            arms = [record for record in records if record["kind"] == "ARM"]
            records = [record for record in records if record["kind"] != "ARM"]
            self._armed.update({record["account"]: record for record in arms})
            for record in records:
                self.book.apply(record)
            if self._journals:
                with _fork_gate:
                    self._write(records)
            if self._guards:
                self._tell(arms, records)
            self.done = max(self.done, reached)

    def release(self) -> None:
        """One client less; the last one lets the reaper go, and removes the journal if nothing is owed."""
        self.commit()
        with self._turn:
            with self._gate:
                self._users -= 1
                if self._users > 0:
                    return
            if self.book.promises:
                if self._journal is not None:
                    self._journal.close()
                self._guard.detach()
            else:
                self._guard.shutdown()
                if self._journal is not None:
                    self._journal.remove()
            self._journal, self._shown, self.book, self._armed = None, None, JournalState(), {}

    def orphans(self, api: str, account: str) -> int:
        """How many promises dead owners have left; files of those that left none are removed.

        Args:
            api: Only those of this service,
            account: and this account; empty for all.
        """
        count, now = 0, self._wall_clock()
        for journal in orphaned_journals(self.directory):
            book = journal.read()
            if book.promises:
                count += sum(
                    entry.api == api and (not account or entry.account == account) and entry.is_left(now)
                    for entry in book.promises.values()
                )
                journal.close()
            else:
                journal.remove()
        return count

    def after_fork(self) -> None:
        """In a forked child: what its parent owes is not the child's."""
        self._guard.close_in_child()
        if self._journal is not None:
            self._journal.close()
        self.generation += 1
        self._reset()

    def _write(self, records: list[Record]) -> None:
        try:
            if self._journal is not None and not self._journal.exists():
                self._journal.close()
                self._journal = None
            if self._journal is None:
                if not self.book.promises:
                    return
                self.book.owner = {
                    "kind": "OWNER",
                    "format": FORMAT,
                    "id": uuid.uuid4().hex,  # two containers may have one host name and process id
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "at": self._wall_clock(),
                }
                self._journal = JournalFile.create(self.directory, self.book.snapshot())
            elif self._is_behind or self._journal.size > _SLACK + 4 * self._worth:
                self._journal.rewrite(self.book.snapshot())
            elif records:
                durable = any(record["kind"] in _LOST_BY_POWER for record in records)
                self._journal.append(records, durable=durable)
                return
            else:
                return
        except OSError as error:
            self._is_behind = True
            if self.journal_problem is None:
                log(Event.GUARD_NO_JOURNAL, directory=str(self.directory), error=error)
            self.journal_problem = str(error)
        else:
            self._worth = self._journal.size
            self._is_behind = False
            self.journal_problem = None

    def _tell(self, arms: list[Record], records: list[Record]) -> None:
        if not self._guard.is_running:
            if self.book.promises:
                self._raise_up()
            return
        messages = [*self._where(), *arms, *records]
        if not messages:
            return
        try:
            self._guard.send(messages)
        except GuardError as error:
            log(Event.GUARD_REAPER_REPLACED, reason=error)
            self._raise_up()

    def _raise_up(self) -> None:
        try:
            with _fork_gate:
                self._guard.start()
            self._guard.handshake()
            self._shown = None
            self._guard.send([*self._where(), *self._armed.values(), *self.book.snapshot()])
        except GuardError as error:
            if self.guard_problem is None:
                log(Event.GUARD_NO_REAPER, error=error)
            self.guard_problem = str(error)
        else:
            self.guard_problem = None

    def _where(self) -> list[Record]:
        path = self._journal.path if self._journal is not None else None
        if path == self._shown:
            return []
        self._shown = path
        return [{"kind": "JOURNAL", "journal": str(path) if path else None}]

    def _replace(self) -> None:
        """A reaper died unasked."""
        with self._turn:
            if self._users <= 0 or self._guard.is_running or not self.book.promises:
                return
            now = time.monotonic()
            self._deaths = [each for each in self._deaths if now - each < _HASTE] + [now]
            if len(self._deaths) > _MANY:
                self.guard_problem = "it dies again and again"
                log(Event.GUARD_REAPER_GIVEN_UP)
                return
            log(Event.GUARD_REAPER_REPLACED, reason="the reaper died")
            self._raise_up()


def check_reaper() -> None:
    """Starts a reaper that is told nothing, waits until it answers, and lets it go. Blocks.

    Raises:
        GuardError: when there is none to be had here.
    """
    guard = ReaperProcess(lambda: None, lambda _: None)
    with _fork_gate:
        guard.start()
    guard.handshake()
    guard.shutdown()


def all_stores() -> list[PromiseStore]:
    """The books of this process: one a state directory and kind."""
    with _all_lock:
        return list(_all.values())


_all: dict[tuple[Path, bool, bool, Callable[[], float]], PromiseStore] = {}
_all_lock = threading.Lock()


def store_for(
    directory: Path, *, journal: bool, guard: bool, wall_clock: Callable[[], float] = time.time
) -> PromiseStore:
    """The books of this process for a state directory."""
    key = (directory, journal, guard, wall_clock)
    with _all_lock:
        if key not in _all:
            _all[key] = PromiseStore(
                directory / "journal", journal=journal, guard=guard, wall_clock=wall_clock
            )
        return _all[key]


# Held while descriptors come into being that must not survive in a forked child: a pipe that is open there
# never ends, and a lock that is held there says that its owner lives.
_fork_gate = threading.Lock()


def _before_fork() -> None:
    _fork_gate.acquire()


def _after_fork_in_parent() -> None:
    _fork_gate.release()


def _after_fork_in_child() -> None:
    global _all_lock, _fork_gate
    _all_lock, _fork_gate = threading.Lock(), threading.Lock()
    for each in _all.values():
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
