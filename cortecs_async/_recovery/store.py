"""The open promises of this process, in three places: memory, the journal, and the reaper.

There is one `PromiseStore` per process and state directory. Any thread and any event loop can queue a record
without waiting; `commit` then writes the whole queue, with one sync of the journal and one
acknowledgment by the reaper. Clients use the store through `promises`.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

from .._aio.clock import boottime
from .._aio.synchronization import ThreadBroadcast
from .._errors import GuardError
from .._logging import Event, log
from .._state_directory import journal_directory
from .accounts import has_network_of, with_network_of
from .journal import JournalFile, foreign_states, is_owned, owner_record, read_journals
from .ledger import CostLedger, ledger_directory
from .locks import decision_lock
from .promise import Promise
from .promise_clock import PromiseClock
from .reaper_process import ReaperProcess
from .records import DURABLE_KINDS, JournalState, Record

# The journal is rewritten without closed promises once it exceeds FACTOR x its size after the last rewrite +
# SLACK bytes.
_REWRITE_FACTOR, _REWRITE_SLACK = 4, 1 << 18

# After more than this many reaper deaths within this many seconds, the reaper is no longer replaced.
_MAX_REAPER_DEATHS, _REAPER_DEATHS_WINDOW = 5, 60.0

# Records for the reaper only. In a journal, an idle time would soon be stale: see `Promise`.
_PIPE_KINDS = frozenset({"IDLE"})


class PromiseStore:
    """The open promises of a process. Clients `join` it before use and `leave` it afterward.

    The garbage collector may release a lease at any moment, in any thread, even in the middle of a method of
    this class. So the methods that such a release calls (`is_open` and `put`) do not take a lock.

    Attributes:
        state: The committed records.
        committed: The number of committed records.
        is_reaper_wanted: Whether to start the reaper before there is a promise, so that it is ready.
        journal_problem: The reason why there is currently no journal, or None.
        reaper_problem: The reason why there is currently no reaper, or None.
        rehearsals: Notified when `rehearsed` has a result.
        generation: The number of forks since it was created. In a forked child, its clients must join again.
    """

    def __init__(
        self, directory: Path, *, journal: bool, guard: bool, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self.directory: Path = directory
        self.ledger: CostLedger = CostLedger(ledger_directory(directory))
        # The folder for the records of rehearsals. Without a journal, nothing may be written.
        self.rehearsal_folder: Path | None = directory.parent / "rehearsals" if journal else None
        self._uses_journal, self._uses_reaper = journal, guard
        self._wall_clock = wall_clock
        self._clock = PromiseClock(wall_clock)
        self.generation: int = 0
        self.owner_note: Record = {}  # fields to add to the OWNER record
        self._reset()

    def _reset(self) -> None:
        self._commit_lock = threading.Lock()
        self._clients_lock = threading.Lock()
        self._queue: deque[Record] = deque()
        self._taken = 0  # from the queue
        self._clock.offsets.clear()
        self.committed: int = 0
        self.state: JournalState = JournalState()
        self._journal: JournalFile | None = None
        self._rewritten_size = 0
        self._reaper = ReaperProcess(
            self._on_reaper_death, self.put, self._on_rehearsed, self.rehearsal_folder
        )
        self.is_reaper_wanted: bool = False
        self.rehearsals: ThreadBroadcast = ThreadBroadcast()
        self._unreachable: dict[str, str] = {}  # by account: the problem in reaching the service
        self._credential_records: dict[str, Record] = {}  # by account
        self._sent_path: Path | None = None  # the journal that the reaper knows
        self._reaper_deaths: list[float] = []
        self._clients = 0
        self._key_prefix = f"{os.getpid()}-{uuid.uuid4().hex[:12]}"
        self._key_numbers = itertools.count(1)
        self.journal_problem: str | None = None
        self.reaper_problem: str | None = None

    def join(self) -> int:
        """Add a client and return the current `generation`."""
        with self._clients_lock:
            self._clients += 1
            return self.generation

    def new_key(self) -> str:
        """Return a key that no promise or baseline uses, in any process: it also identifies the lease."""
        return f"{self._key_prefix}-{next(self._key_numbers)}"

    def put(self, record: Record) -> None:
        """Queue a record."""
        self._queue.append(record)

    @property
    def queued(self) -> int:
        """The number of records queued so far, or one more."""
        # In this order, so that a record taken by a parallel commit is not left out.
        return len(self._queue) + self._taken

    def key_of(self, instance_id: str) -> str | None:
        """Return the key of the committed promise for an instance, or None."""
        promises = list(self.state.promises.values())
        return next((promise.key for promise in promises if promise.instance_id == instance_id), None)

    def is_open(self, key: str) -> bool:
        """Return whether a promise is open, or will be once the queue is committed."""
        kinds = [record["kind"] for record in self._queue.copy() if record.get("entry") == key]
        queued = [kind for kind in kinds if kind not in _PIPE_KINDS]
        return "GONE" not in queued and (bool(queued) or key in self.state.promises)

    def has_baseline(self, name: str) -> bool:
        """Return whether a baseline is stored or queued. Unused ones are dropped after a while."""
        queued = any(record.get("baseline") == name and "ids" in record for record in self._queue.copy())
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
        """Return the lock for decisions about instances (see `locks.decision_lock`)."""
        return decision_lock(self.directory) if self._uses_journal else nullcontext()

    def commit(self, *, wait: bool = True) -> None:
        """Write the queued records to the journal and send them to the reaper. Blocks.

        Without `wait`, do nothing if another thread, or a caller of this one, is committing.

        Never raises. `journal_problem` and `reaper_problem` contain any problems.
        """
        if not self._commit_lock.acquire(blocking=wait):
            return
        try:
            credential_records, records = self._apply_queue()
            # Before the promises are closed.
            records = self.ledger.take_lines(records, is_quiet=self.journal_problem is not None)
            if self._uses_journal:
                with _fork_lock:
                    self._write_journal(records)
            if self._uses_reaper:
                self._send_to_reaper(credential_records, records)
            self.committed = self._taken
        finally:
            self._commit_lock.release()

    def _apply_queue(self) -> tuple[list[Record], list[Record]]:
        """Apply the queued records. Return the ones with credentials, and the others."""
        credential_records: list[Record] = []
        records: list[Record] = []
        while self._queue:
            record = self._queue[0]
            if record["kind"] == "ARM":
                record = self._merged(record)
                self._credential_records[record["account"]] = record
                credential_records.append(record)
            else:
                self.state.apply(self._clock.register(record))
                records.append(record)
            # Only now, so that `is_open` finds the record in one place or the other.
            self._taken += 1
            self._queue.popleft()
        return credential_records, records

    def _merged(self, record: Record) -> Record:
        """Return the description of an account to send to the reaper.

        Another client for the same account may have different proxies, certificates, or headers. While the
        reaper may need the ones with which it has reached the service, they must not be replaced. If they
        are, the reaper must connect: the client that starts an instance may not be the one that has these.
        """
        account = record["account"]
        known = self._credential_records.get(account)
        if known is None:
            return record
        is_needed = any(each.account == account for each in list(self.state.promises.values()))
        if is_needed and self._reaper.rehearsed(account) == "":
            return {**known, "sealed": with_network_of(record["sealed"], known["sealed"])}
        is_direct = record["is_direct"] and known["is_direct"]
        return {**record, "is_direct": is_direct and has_network_of(record["sealed"], known["sealed"])}

    def rehearsed(self, account: str) -> str | None:
        """Return the result of `ReaperProcess.rehearsed` for the current reaper."""
        return self._reaper.rehearsed(account)

    def leave(self) -> None:
        """Remove a client. The last one stops the reaper and removes the journal if no promise is open."""
        self.commit()
        with self._commit_lock:
            with self._clients_lock:
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
            self.is_reaper_wanted = False
            self._journal, self._sent_path, self.state = None, None, JournalState()
            self._credential_records = {}
            self._clock.offsets.clear()

    def count_orphans(self, api: str, account: str) -> int:
        """Return the number of open promises in the journals of dead owners.

        Only promises for this service and account count, or for all accounts if `account` is empty.
        """
        total, now = 0, self._wall_clock()
        for path, state in read_journals(self.directory):
            count = sum(
                promise.api == api
                and (not account or promise.account == account)
                and promise.needs_recovery(now)
                for promise in state.promises.values()
            )
            if count and is_owned(path) is False:
                total += count
        return total

    def after_fork(self) -> None:
        """Leave the parent's promises, journal, and reaper to the parent, in a forked child."""
        self._reaper.close_in_child()
        if self._journal is not None:
            self._journal.close_copy()
        self.generation += 1
        self._reset()

    def _write_journal(self, records: list[Record]) -> None:
        records = [each for each in records if each["kind"] not in _PIPE_KINDS]
        try:
            if self._journal is not None and not self._journal.exists():
                self._journal.close()
                self._journal = None
            if self._journal is None:
                if not self.state.promises:
                    return
                self.state.owner = {**owner_record(self._wall_clock()), **self.owner_note}
                self._journal = JournalFile.create(self.directory, self.state.snapshot())
            elif self.journal_problem is not None or self._is_oversized(self._journal):
                self._journal.rewrite(self.state.snapshot())
            else:
                if records:
                    durable = any(each["kind"] in DURABLE_KINDS or "durable" in each for each in records)
                    self._journal.append(records, durable=durable)
                return
        except Exception as error:  # noqa: BLE001  (a commit raises nothing)
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
            if self.state.promises or self.is_reaper_wanted:
                self._start_reaper()
            return
        path_message = self._path_message()
        # The owner is known once the journal is created, which may be later than the reaper.
        owner = [self.state.owner] if path_message and self.state.owner else []
        messages = [*path_message, *owner, *credential_records, *records]
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
            state = map(self._clock.by_wall_clock, [*self.state.snapshot(), *self.state.idle_times()])
            self._reaper.send([*self._path_message(), *self._credential_records.values(), *state])
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

    def _on_rehearsed(self, account: str, problem: str) -> None:
        known, self._unreachable[account] = self._unreachable.get(account, ""), problem
        if problem and not known:
            log(Event.GUARD_REAPER_UNREACHABLE, problem=problem)
        self.rehearsals.notify()

    def _on_reaper_death(self) -> None:
        with self._commit_lock:
            if self._clients <= 0 or self._reaper.is_running or not self.state.promises:
                return
            now = boottime()
            recent = [each for each in self._reaper_deaths if now - each < _REAPER_DEATHS_WINDOW]
            self._reaper_deaths = [*recent, now]
            if len(self._reaper_deaths) > _MAX_REAPER_DEATHS:
                self.reaper_problem = "the reaper died repeatedly"
                log(Event.GUARD_REAPER_GIVEN_UP)
                return
            log(Event.GUARD_REAPER_REPLACED, reason="the reaper died")
            self._start_reaper()


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
                journal_directory(directory), journal=journal, guard=guard, wall_clock=wall_clock
            )
        return _stores[key]


# Held while the pipe to a reaper or a locked journal is opened. A child forked at that moment would keep it
# open: the reaper would not see the end of the pipe, and the lock would suggest a living owner. Reentrant,
# because starting the reaper may itself fork and run the functions below, as gevent's `subprocess` does.
_fork_lock = threading.RLock()


def fork_lock() -> AbstractContextManager[object]:
    """Return the lock to hold while the pipe to a reaper is opened."""
    return _fork_lock


def _before_fork() -> None:
    _fork_lock.acquire()


def _after_fork_in_parent() -> None:
    _fork_lock.release()


def _after_fork_in_child() -> None:
    global _stores_lock, _fork_lock
    _stores_lock, _fork_lock = threading.Lock(), threading.RLock()
    for each in _stores.values():
        each.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
