"""A client's promises: record them in a lease's terms, and wait until they are safe.

A lease records its next step here, and `flush` returns once the journal and the reaper know it. The records
themselves are in the `PromiseStore`, which all clients in the process share.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from .._aio.synchronization import Mutex, SingleFlight
from .._aio.tasks import run_uncancellable
from .._aio.threads import System
from .._api.domain import Instance, InstanceArgs
from .._api.matching import LATE_WINDOW, Outcome, UnresolvedStart
from .._api.wire import encode_start
from .._config import ProtectionMode, Settings
from .._errors import GuardError, JournalError
from .._logging import Event, log
from .._secrets import Credentials
from .accounts import describe, fingerprint
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .reaper_check import check_platform, check_reaper, prove_reaper
from .records import Record
from .store import PromiseStore, store_for

T = TypeVar("T")


class Promises:
    """Records the promises of one client.

    Attributes:
        store: The promises of all clients of this process.
        api: The base URL of the service.
        account: Fingerprint of the account, or an empty string before the first token.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        journal: ProtectionMode,
        guard: ProtectionMode,
        directory: Path,
        system: System,
        is_direct: bool = False,
    ) -> None:
        self._settings = settings
        # Whether the client has no `http_client=`, so it connects with the same settings as its reaper.
        self._is_direct = is_direct
        self.system: System = system
        self.api: str = settings.api_base_url
        self.account: str = ""
        self._journal: ProtectionMode = journal
        self._guard: ProtectionMode = guard
        # Windows has neither. There, a lease raises an error, unless guard is "off" and no journal required.
        self.uses_journal: bool = journal != "off" and sys.platform != "win32"
        self.uses_reaper: bool = guard != "off" and sys.platform != "win32"
        self._blocks = self.uses_journal or self.uses_reaper
        self.store: PromiseStore = store_for(
            directory, journal=self.uses_journal, guard=self.uses_reaper, wall_clock=system.wall_clock
        )
        self._credentials: Credentials | None = None
        self._rehearsal: SingleFlight[str] = SingleFlight(self._prove_reaper)
        self._flush_lock = Mutex()
        self._joined_generation: int | None = None
        # Decisions not received yet, by key. A caller may be cancelled in the meantime and ask again.
        self._decided: dict[str, Instance] = {}

    def check_platform(self) -> None:
        """Raise an error if this system cannot protect a lease (see `reaper_check.check_platform`)."""
        check_platform(self._guard, self._journal)

    def remember_credentials(self, credentials: Credentials, proven: bool = True) -> None:  # noqa: FBT001, FBT002
        """Store credentials and send them to the reaper.

        Until they are `proven` by a token, they do not replace others: the reaper would lose working ones.
        """
        if credentials == self._credentials or not (proven or self._credentials is None):
            return
        self._credentials = credentials
        self.account = fingerprint(self.api, credentials.client_id)
        if self._joined_generation is not None:
            self._put_credentials()
            # The old ones may be revoked before the next promise is recorded.
            self._commit_soon()

    def baseline(self, ids: Iterable[str]) -> str:
        """Record the existing ids and return a name for them."""
        self._join()
        name = self.store.new_key()
        self.store.put({"kind": "BASELINE", "baseline": name, "ids": sorted(ids)})
        return name

    async def record_intent(
        self,
        args: InstanceArgs,
        baseline: str,
        *,
        service_at: float | None = None,
        tag: int | None = None,
        bill: Record | None = None,
    ) -> str:
        """Record that a start request will be sent. Return its key once the journal and the reaper know it.

        `service_at` and `tag` are the fields of `UnresolvedStart`, and `bill` is the field of `Promise`. If
        this raises an error of `flush`, no promise is recorded.
        """
        self._join()
        key = self.store.new_key()
        self.store.put({
            "kind": "INTENT", **self._common(key, bill), "args": encode_start(args),
            "baseline": baseline,
            "service_at": service_at, "tag": tag,
        })  # fmt: skip
        try:
            await self.flush(strict=True)
        except GeneratorExit:
            self.close_soon(key)
            raise
        except BaseException:
            await self.close(key)
            raise
        return key

    async def close(self, key: str) -> None:
        """Record that nothing was started, and return once this is as durable as the intent.

        Otherwise, after a kill, the reaper could take a different instance. A cancellation waits.
        """
        self._put_nothing(key)
        (await run_uncancellable(self.flush, restart_if_cancelled=True)).unwrap()

    def close_soon(self, key: str) -> None:
        """Record that nothing was started, for code that cannot await."""
        self._put_nothing(key)
        self._commit_soon()

    def _put_nothing(self, key: str) -> None:
        self.store.put({"kind": "GONE", "entry": key, "durable": True})

    def record_created(
        self,
        key: str | None,
        instance_id: str,
        *,
        goal: str,
        expires_at: float | None = None,
        bill: Record | None = None,
    ) -> str:
        """Record the promise to release an instance. Return its key: the start request's, if there is one.

        The goal is "gone" or "stopped". At `expires_at`, a Unix time in seconds, the reaper releases the
        instance in any case. Pass None if it never expires. `bill` is the field of `Promise`.
        """
        self._join()
        key = key or self.store.new_key()
        self.store.put({
            "kind": "CREATED", **self._common(key, bill), "args": {},
            "instance_id": instance_id, "goal": goal, "expires_at": expires_at,
        })  # fmt: skip
        return key

    def record_seen(self, key: str, bill: Record | None = None) -> None:
        """Record that a reading has shown the instance. `bill` is the field of `Promise`."""
        self.store.put({"kind": "SEEN", "entry": key, **({"bill": bill} if bill else {})})

    def record_cost(self, line: Record | None) -> None:
        """Add a line to the cost ledger, before the record that closes the promise."""
        if line is not None and self.uses_journal:
            self.store.put({"kind": "COST", "line": line})

    def record_activity(self, key: str, idle_at: float) -> None:
        """Make the reaper release the instance at a Unix time, unless more activity follows. Thread-safe."""
        if self.uses_reaper:
            self.store.put({"kind": "IDLE", "entry": key, "idle_at": idle_at})
            self._commit_soon()

    def record_handed_over(self, key: str, *, is_watched: bool = False) -> None:
        """Record that the caller owns the instance from now on, until it expires.

        With `is_watched`, a living reaper still acts on its idle times, until `record_kept`.
        """
        self.store.put({"kind": "HELD", "entry": key, **({"watched": True} if is_watched else {})})

    def record_kept(self, key: str) -> None:
        """Record that the block of an instance that was handed over has ended."""
        if (promise := self.store.state.promises.get(key)) is not None and promise.is_watched:
            self.record_handed_over(key)

    def record_gone(self, key: str) -> None:
        """Record that the promise is fulfilled, or that there was nothing to release."""
        self.store.put({"kind": "GONE", "entry": key})

    def record_unanswered(self, key: str) -> None:
        """Record that a start request is unresolved and that this process is searching for its instance."""
        self.store.put({"kind": "UNANSWERED", "entry": key})

    def untag(self) -> None:
        """Record that the service does not return tags, so that earlier tags do not prove anything."""
        for promise in list(self.store.state.promises.values()):
            if promise.api == self.api and promise.tag is not None and promise.instance_id is None:
                self.store.put({"kind": "UNTAGGED", "entry": promise.key})

    def record_abandoned(self, key: str) -> None:
        """Record that this process gave up, so that the reaper or `sweep` fulfills the promise."""
        self.store.put({"kind": "ABANDONED", "entry": key})

    def record_ambiguous(self, key: str, candidates: Iterable[str]) -> None:
        """Record that a start request created one of these instances, but it is unclear which."""
        self.store.put({"kind": "AMBIGUOUS", "entry": key, "candidates": list(candidates)})

    def abandon(self, key: str | None) -> bool:
        """Record `ABANDONED` and write it soon, for code that cannot await. Return whether it was open."""
        if key is None or not self.store.is_open(key):
            return False
        self.record_abandoned(key)
        self._commit_soon()
        return True

    def who_releases(self) -> str:
        """Return a sentence about what will release an instance that this process could not release."""
        if self.uses_reaper and self.store.reaper_problem is None:
            return "The reaper, a background process, releases it"
        if self.uses_journal and self.store.journal_problem is None:
            return "`cortecs-async sweep` releases it"
        return "Call `client.sweep()` in this process, or delete it with `cortecs-async rm --stop`"

    def unresolved_start(self, key: str) -> UnresolvedStart:
        """Return the start request of an intent, as other processes read it from the journal."""
        return unresolved_start_of(self.store.state, self.store.state.promises[key])

    async def flush(self, *, strict: bool = False) -> None:
        """Wait until every promise so far is in the journal and known to the reaper.

        Raises:
            JournalError: If `strict` is set and a required journal cannot be written.
            GuardError: If `strict` is set and a required reaper is dead or cannot reach the service.
        """
        queued = self.store.queued
        if self.store.committed < queued:
            async with self._flush_lock:
                if self.store.committed < queued:
                    await self._off_loop(self.store.commit)
        if not strict:
            return
        problem = self.store.journal_problem
        if self._journal == "required" and problem is not None:
            raise JournalError(
                f"The journal in {self.store.directory} cannot be written: {problem}. Nothing was started. "
                "Set state_dir= or CORTECS_STATE_DIR to another directory."
            )
        problem = self.store.reaper_problem
        if self._guard == "required" and problem is not None:
            raise GuardError(
                "The reaper, which releases your instances if this process is killed, is not running: "
                f"{problem}. Nothing was started."
            )
        if self.uses_reaper and problem is None and self.store.rehearsed(self.account) != "":
            problem = await self._rehearsal.get()
            if self._guard == "required" and problem:
                raise GuardError(f"The reaper cannot reach the service: {problem}. Nothing was started.")

    def arm(self) -> None:
        """Start the reaper without waiting for it.

        The reaper then connects to the service while this client sends a lease's first requests.
        """
        if self.uses_reaper and not self.store.is_reaper_wanted:
            self._join()
            self.store.is_reaper_wanted = True
            self._commit_soon()

    async def _prove_reaper(self) -> str:
        """Wait until the reaper has connected to the service. Return the problem, if any."""
        return await prove_reaper(
            self.store, self.account, self._rehearse_again, is_required=self._guard == "required"
        )

    async def _rehearse_again(self) -> None:
        self._put_credentials()
        await self._off_loop(self.store.commit)

    async def foreign_claims(self, key: str | None) -> ForeignClaims:
        """Return the claims of all promises except `key`, in this process and others."""
        await self.flush()
        return await self._off_loop(lambda: self._collect_claims(key))

    def _collect_claims(self, key: str | None) -> ForeignClaims:
        foreign = [(state, ()) for state in self.store.foreign_states()]
        return collect_foreign_claims(self.api, [(self.store.state, {key}), *foreign])

    def is_late(self, key: str) -> bool:
        """Return whether a start request is open and its instance may still appear."""
        promise = self.store.state.promises.get(key)
        return promise is not None and self.system.wall_clock() - promise.at < LATE_WINDOW

    async def decide(
        self, key: str, earlier: ForeignClaims, decide: Callable[[UnresolvedStart, ForeignClaims], Outcome]
    ) -> Outcome:
        """Decide the outcome of start request `key` while no other process with this state directory decides.

        `decide` receives the claims of others now, and their claims from `earlier`, before the instances were
        listed. If it returns an instance, that instance is recorded as the one created by the start request.
        """

        def attempt() -> Outcome:
            self.store.commit()
            promise = self.store.state.promises.get(key)
            if promise is None or promise.instance_id is not None:
                return self._decided.get(key)  # None if the reaper has decided
            start = unresolved_start_of(self.store.state, promise)
            return decide(start, self._collect_claims(key).with_earlier(earlier))

        def work() -> Outcome:
            # First without the lock, because the usual decision is to wait.
            if not isinstance(decision := attempt(), Instance):
                return decision
            with self.store.decision_lock():
                if isinstance(decision := attempt(), Instance):
                    self._decided[key] = decision
                    self.record_created(key, decision.instance_id, goal="gone")
                    self.record_seen(key)
                    self.store.commit()
            return decision

        outcome = await self._off_loop(work)
        self._decided.pop(key, None)
        return outcome

    async def report_orphans(self) -> None:
        """Log a warning if dead processes left something to sweep."""
        if not self.uses_journal:
            return
        # Only for this service and account, because this client's `sweep` could not release others.
        count = await self._off_loop(lambda: self.store.count_orphans(self.api, self.account))
        if count:
            log(Event.GUARD_ORPHANS, count=count)

    async def check_reaper(self) -> str:
        """Start a reaper, stop it again, and return its abilities.

        Raises:
            GuardError: If no reaper can run here, or it cannot reach the service.
        """
        credentials = self._credentials
        sealed = None if credentials is None else describe(self._settings, credentials)
        await self._off_loop(lambda: check_reaper(sealed, self.store.rehearsal_folder))
        return "starts and responds" if sealed is None else "starts and reaches the service"

    async def aclose(self) -> None:
        """Leave the store, because the client is closed and has no open lease."""
        if self._joined_generation is not None:
            await self._off_loop(self._leave)

    def _leave(self) -> None:
        joined, self._joined_generation = self._joined_generation, None
        if joined == self.store.generation:
            self.store.leave()

    def _join(self) -> None:
        # This includes a forked child, where the store is empty and the reaper has no credentials.
        if self._joined_generation != self.store.generation:
            self._joined_generation = self.store.join()
            self._put_credentials()

    def _put_credentials(self) -> None:
        if not self.uses_reaper or self._credentials is None:
            return
        # A Secret until it is written to the pipe, because a traceback may show the queue.
        sealed = describe(self._settings, self._credentials)
        arm = {"kind": "ARM", "account": self.account, "sealed": sealed, "is_direct": self._is_direct}
        self.store.put(arm)

    def note_foreign_start(self, instance_id: str) -> None:
        """Record an instance started by a plain request, so that no search takes it."""
        if self._joined_generation is not None:
            self.store.put({"kind": "PAST", "ids": [instance_id]})
            self._commit_soon()

    def _common(self, key: str, bill: Record | None) -> Record:
        common = {"entry": key, "account": self.account, "api": self.api, "at": self.system.wall_clock()}
        return {**common, "bill": bill} if bill else common

    def _commit_soon(self) -> None:
        """Commit without waiting for it, even when the garbage collector calls this."""
        if self._blocks:
            # At interpreter shutdown, nothing is committed, and the reaper acts once the pipe is closed.
            self.system.in_background(self.store.commit)
        else:
            self.store.commit(wait=False)

    async def _off_loop(self, work: Callable[[], T]) -> T:
        return await self.system.off_loop(work) if self._blocks else work()
