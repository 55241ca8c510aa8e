"""The open promises of this process, in three places: memory, the journal and the reaper.

There is one `PromiseStore` per process and state directory. Any thread and any event loop can queue a record
without waiting; `commit` then writes everything that is queued, with one sync of the journal and one
acknowledgment of the reaper. `promises` is what a client uses of it.
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from .._errors import GuardError
from .._logging import Event, log
from .journal import (
    PAST_IDS_AGE,
    JournalFile,
    decision_lock,
    foreign_states,
    has_living_owner,
    has_unresolved,
    orphaned_journals,
)
from .reaper_process import ReaperProcess
from .records import FORMAT, JournalState, Promise, Record

# The journal is rewritten without closed promises when it exceeds FACTOR x its size after the last rewrite +
# SLACK bytes.
_REWRITE_FACTOR, _REWRITE_SLACK = 4, 1 << 18

# After more than this number of reaper deaths within this many seconds, the reaper is no longer replaced.
_MAX_REAPER_DEATHS, _REAPER_DEATHS_WINDOW = 5, 60.0

# Records that must survive a power loss, as must those with `durable`. Losing any other record only costs
# extra requests.
_DURABLE_KINDS = frozenset({"INTENT", "CREATED", "HELD", "ABANDONED", "AMBIGUOUS"})


class PromiseStore:
    """The open promises of a process. Clients `join` it before they use it, and `leave` it after.

    Attributes:
        state: The committed records.
        queued: Number of records that were queued.
        committed: Number of records that were committed.
        journal_problem: Why there is no journal at the moment, or None.
        reaper_problem: Why there is no reaper at the moment, or None.
        generation: Number of forks since it was created: in a forked child, its clients must join again.
    """

    def __init__(
        self, directory: Path, *, journal: bool, guard: bool, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.directory: Path = directory
        self._uses_journal = journal
        self._uses_reaper = guard
        self._wall_clock = wall_clock
        self.generation: int = 0
        self._reset()

    def _reset(self) -> None:
        self._commit_lock = threading.Lock()
        self._queue_lock = threading.Lock()
        self._queue: list[Record] = []
        self.state: JournalState = JournalState()
        self._journal: JournalFile | None = None
        self._rewritten_size = 0
        self._reaper = ReaperProcess(self._on_reaper_death, self.put)
        self._credential_records: dict[str, Record] = {}  # by account
        self._sent_path: Path | None = None  # the journal that the reaper knows
        self._reaper_deaths: list[float] = []
        self._clients = 0
        self._last_key = 0
        self.queued: int = 0
        self.committed: int = 0
        self.journal_problem: str | None = None
        self.reaper_problem: str | None = None

    def join(self) -> int:
        """Add a client, and return the current `generation`."""
        with self._queue_lock:
            self._clients += 1
            return self.generation

    def new_key(self) -> str:
        """Return a key that no promise and no baseline of this process has."""
        with self._queue_lock:
            self._last_key += 1
            return f"{os.getpid()}-{self._last_key}"

    def put(self, record: Record) -> None:
        """Queue a record."""
        with self._queue_lock:
            self._queue.append(record)
            self.queued += 1

    def key_of(self, instance_id: str) -> str | None:
        """Return the key of the committed promise for an instance, or None."""
        promises = list(self.state.promises.values())
        return next((promise.key for promise in promises if promise.instance_id == instance_id), None)

    def is_open(self, key: str) -> bool:
        """Return whether a promise is open, or will be once the queue is committed."""
        with self._queue_lock:
            queued = [record["kind"] for record in self._queue if record.get("entry") == key]
        return "GONE" not in queued and (bool(queued) or key in self.state.promises)

    def has_baseline(self, name: str) -> bool:
        """Return whether a baseline is stored or queued. Unused ones are dropped after a while."""
        with self._queue_lock:
            queued = any(record.get("baseline") == name and "ids" in record for record in self._queue)
        return queued or name in self.state.baselines

    def abandoned(self) -> list[Promise]:
        """Return the promises that this process gave up on."""
        return [promise for promise in list(self.state.promises.values()) if promise.abandoned]

    def foreign_states(self, *, without: Iterable[Path] = ()) -> list[JournalState]:
        """Return the states of the journals of other processes, except those at the paths in `without`."""
        if not self._uses_journal:
            return []
        own = [self._journal.path] if self._journal else []
        return foreign_states(self.directory, without={*own, *without})

    def decision_lock(self) -> AbstractContextManager[None]:
        """Return the lock for decisions about instances; see `journal.decision_lock`."""
        return decision_lock(self.directory) if self._uses_journal else nullcontext()

    def commit(self) -> None:
        """Write the queued records to the journal, and send them to the reaper. Blocks.

        Never raises: `journal_problem` and `reaper_problem` say what went wrong.
        """
        with self._commit_lock:
            with self._queue_lock:
                records, self._queue = self._queue, []
                queued = self.queued
            credential_records = [record for record in records if record["kind"] == "ARM"]
            records = [record for record in records if record["kind"] != "ARM"]
            self._credential_records.update({record["account"]: record for record in credential_records})
            for record in records:
                self.state.apply(record)
            if self._uses_journal:
                with _fork_lock:
                    self._write_journal(records)
            if self._uses_reaper:
                self._send_to_reaper(credential_records, records)
            self.committed = queued

    def leave(self) -> None:
        """Remove a client. The last one ends the reaper and removes the journal if no promise is open."""
        self.commit()
        with self._commit_lock:
            with self._queue_lock:
                self._clients -= 1
                if self._clients > 0:
                    return
            if self.state.promises:
                if self._journal is not None:
                    self._journal.close()  # first, because the reaper locks it next
                self._reaper.detach()
            else:
                self._reaper.shutdown()
                if self._journal is not None:
                    self._journal.retire(self.state)
            self._journal, self._sent_path, self.state, self._credential_records = (
                None,
                None,
                JournalState(),
                {},
            )

    def count_orphans(self, api: str, account: str) -> int:
        """Return the number of promises that dead owners left, and remove the journals without promises.

        Only promises of this service and account count, or those of all accounts if `account` is empty.
        """
        count, now = 0, self._wall_clock()
        is_searched, others_live = has_unresolved(self.directory), has_living_owner(self.directory)
        for journal in orphaned_journals(self.directory):
            state = journal.read()
            count += sum(
                promise.api == api
                and (not account or promise.account == account)
                and promise.needs_recovery(now)
                for promise in state.promises.values()
            )
            keeps_past_ids = is_searched or (others_live and journal.age < PAST_IDS_AGE)
            journal.close_or_remove(state, keeps_past_ids=keeps_past_ids)
        return count

    def after_fork(self) -> None:
        """In a forked child: leave the parent's promises, journal and reaper to the parent."""
        self._reaper.close_in_child()
        if self._journal is not None:
            self._journal.close()
        self.generation += 1
        self._reset()

    def _write_journal(self, records: list[Record]) -> None:
        try:
            if self._journal is not None and not self._journal.exists():
                self._journal.close()
                self._journal = None
            if self._journal is None:
                if not self.state.promises:
                    return
                self.state.owner = {
                    "kind": "OWNER",
                    "format": FORMAT,
                    "id": uuid.uuid4().hex,  # two containers may have the same host name and process id
                    "host": socket.gethostname(),
                    "pid": os.getpid(),
                    "at": self._wall_clock(),
                }
                self._journal = JournalFile.create(self.directory, self.state.snapshot())
            elif self.journal_problem is not None or self._is_oversized(self._journal):
                self._journal.rewrite(self.state.snapshot())
            else:
                if records:
                    durable = any(each["kind"] in _DURABLE_KINDS or "durable" in each for each in records)
                    self._journal.append(records, durable=durable)
                return
        except OSError as error:
            if self.journal_problem is None:
                log(Event.GUARD_NO_JOURNAL, directory=str(self.directory), error=error)
            self.journal_problem = str(error)
        else:
            self._rewritten_size = self._journal.size
            self.journal_problem = None

    def _is_oversized(self, journal: JournalFile) -> bool:
        return journal.size > _REWRITE_FACTOR * self._rewritten_size + _REWRITE_SLACK

    def _send_to_reaper(self, credential_records: list[Record], records: list[Record]) -> None:
        if not self._reaper.is_running:
            if self.state.promises:
                self._start_reaper()
            return
        messages = [*self._path_message(), *credential_records, *records]
        if not messages:
            return
        try:
            self._reaper.send(messages)
        except GuardError as error:
            log(Event.GUARD_REAPER_REPLACED, reason=error)
            self._start_reaper()

    def _start_reaper(self) -> None:
        try:
            with _fork_lock:
                self._reaper.start()
            self._reaper.handshake()
            self._sent_path = None
            self._reaper.send(
                [*self._path_message(), *self._credential_records.values(), *self.state.snapshot()]
            )
        except GuardError as error:
            if self.reaper_problem is None:
                log(Event.GUARD_NO_REAPER, error=error)
            self.reaper_problem = str(error)
        else:
            self.reaper_problem = None

    def _path_message(self) -> list[Record]:
        path = self._journal.path if self._journal is not None else None
        if path == self._sent_path:
            return []
        self._sent_path = path
        return [{"kind": "JOURNAL", "journal": str(path) if path else None}]

    def _on_reaper_death(self) -> None:
        with self._commit_lock:
            if self._clients <= 0 or self._reaper.is_running or not self.state.promises:
                return
            now = time.monotonic()
            recent = [each for each in self._reaper_deaths if now - each < _REAPER_DEATHS_WINDOW]
            self._reaper_deaths = [*recent, now]
            if len(self._reaper_deaths) > _MAX_REAPER_DEATHS:
                self.reaper_problem = "it died repeatedly"
                log(Event.GUARD_REAPER_GIVEN_UP)
                return
            log(Event.GUARD_REAPER_REPLACED, reason="the reaper died")
            self._start_reaper()


def check_reaper() -> None:
    """Start a reaper without promises, wait for its response, and end it. Blocks.

    Raises:
        GuardError: if no reaper can run here.
    """
    reaper = ReaperProcess(lambda: None, lambda _: None)
    with _fork_lock:
        reaper.start()
    reaper.handshake()
    reaper.shutdown()


def all_stores() -> list[PromiseStore]:
    """Return the stores of this process, for all state directories."""
    with _stores_lock:
        return list(_stores.values())


_stores: dict[tuple[Path, bool, bool, Callable[[], float]], PromiseStore] = {}
_stores_lock = threading.Lock()


def store_for(
    directory: Path, *, journal: bool, guard: bool, wall_clock: Callable[[], float] = time.time
) -> PromiseStore:
    """Return the store of this process for a state directory."""
    key = (directory, journal, guard, wall_clock)
    with _stores_lock:
        if key not in _stores:
            _stores[key] = PromiseStore(
                directory / "journal", journal=journal, guard=guard, wall_clock=wall_clock
            )
        return _stores[key]


# Held while the pipe to a reaper or a locked journal is opened. A child that is forked at that moment would
# keep it open: the reaper would not see the end of the pipe, and the lock would suggest a living owner.
_fork_lock = threading.Lock()


def _before_fork() -> None:
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _stores_lock, _fork_lock
    _stores_lock, _fork_lock = threading.Lock(), threading.Lock()
    for each in _stores.values():
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
