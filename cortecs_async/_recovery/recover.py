"""Release the instances of dead processes with `Recovery`, shared by the reaper and `sweep`.

For each promise, `Recovery` releases the instance if its id is known. Otherwise, it polls the list until it
is certain which instance the start request created, and releases that one. An instance may appear minutes
after its start request was sent, because the service may be slow to process the request or to list the
instance. `reap` does this in the reaper's process.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from .._aio.eventloop import BoottimeEventLoop, WallClock
from .._aio.synchronization import Backoff
from .._api.instances import Instances
from .._api.teardown import Goal, Teardown
from .._environment import VARIABLES
from .._errors import ClientClosedError, ConfigurationError, TeardownError
from .accounts import settings_of
from .claims import ForeignClaims, collect_foreign_claims
from .cost_lines import CostOutcome, line_of_promise
from .journal import foreign_states, open_promises
from .ledger import CostLedger, ledger_directory
from .locks import decision_lock
from .pending import OtherProcesses, PendingPromise, RecoveryResult, RecoveryState, invisible_for
from .promise import Promise
from .records import JournalState, Record
from .refusal import RefusalWatch
from .search import Search

# Seconds after which a failing teardown is reported and starts again.
_TEARDOWN_TIMEOUT = 600.0

# The holder of an acquired instance may delete it early. Seconds between two polls for that, and per poll.
_HELD_POLL_INTERVAL, _HELD_POLL_TIMEOUT = 300.0, 30.0

# The number of consecutive polls that must find it missing. A single one may be a service error.
_REQUIRED_ABSENCES = 2

# Seconds until the reaper gives up. Unfulfilled promises stay in the journal. A service on this machine is
# most likely an emulator that exited together with its program.
_REAPER_TIMEOUT, _LOCAL_REAPER_TIMEOUT = 24 * 3600.0, 300.0

# Seconds until the reaper retries rejected credentials.
_REFUSED_PAUSE = 600.0

# Seconds to wait once the owner is dead, for a request to start or restart an instance that is still in
# flight. Anything else is released immediately: a stop or delete request in flight does not interfere.
_IN_FLIGHT_DELAY = 0.5

# Seconds for a rehearsal to connect to the service.
_CONNECT_TIMEOUT = 5.0

if TYPE_CHECKING:
    from .._http.client import HTTP
    from .._http.connections import HTTPClient


@define(eq=False)
class Recovery:
    """Fulfills the promises of one account.

    Attributes:
        instances: Sends the requests, without retries.
        foreign_claims: Returns the claims of other processes. Called before and after each list request.
        decision_lock: Returns the lock for decisions (see `locks.decision_lock`).
        note: Receives each step as a text for people.
        record_cost: Receives the line for the cost ledger before each promise is closed.
        writer: Who releases the instances, for the cost ledger.
        timeout: Seconds after which it gives up on a promise.
        in_flight_delay: Seconds to wait where a request of the owner that is still in flight matters.
        results: The promises that are done.
    """

    instances: Instances
    foreign_claims: Callable[[], ForeignClaims]
    decision_lock: Callable[[], AbstractContextManager[None]]
    note: Callable[[str], None]
    timeout: float
    wall_clock: WallClock
    record_cost: Callable[[Record], object] = bool
    writer: Literal["reaper", "sweep"] = "reaper"
    in_flight_delay: float = 0.0
    results: dict[PendingPromise, RecoveryResult] = field(factory=dict)

    async def run(self, promises: Iterable[PendingPromise]) -> dict[PendingPromise, RecoveryResult]:
        """Fulfill these promises in parallel and return the outcome of each."""
        unresolved: list[PendingPromise] = []
        claimed: set[str] = set()
        async with anyio.create_task_group() as tasks:
            for pending in promises:
                candidates = pending.promise.candidates
                if candidates:
                    claimed.update(candidates)
                    self.results[pending] = RecoveryResult(state="ambiguous", candidates=candidates)
                elif pending.promise.instance_id is not None:
                    claimed.add(pending.promise.instance_id)
                    tasks.start_soon(self._release, pending, pending.promise.instance_id)
                else:
                    unresolved.append(pending)
            if unresolved:
                tasks.start_soon(self._search, unresolved, claimed, tasks)
        return self.results

    async def _search(
        self, unresolved: Sequence[PendingPromise], claimed: set[str], tasks: TaskGroup
    ) -> None:
        await anyio.sleep(self.in_flight_delay)
        search = Search(
            instances=self.instances,
            foreign_claims=self.foreign_claims,
            decision_lock=self.decision_lock,
            note=self.note,
            timeout=self.timeout,
            wall_clock=self.wall_clock,
            pending=dict.fromkeys(unresolved),
            claimed=claimed,
            results=self.results,
            on_found=lambda pending, instance_id: tasks.start_soon(self._release, pending, instance_id),
        )
        await search.run()

    async def _release(self, pending: PendingPromise, instance_id: str) -> None:
        promise = pending.promise
        if promise.goal == Goal.STOPPED.value:
            await anyio.sleep(self.in_flight_delay)
        held_until = promise.expires_at if promise.held and not promise.is_idle_first else None
        if held_until is not None and await self._wait_for_holder(instance_id, held_until):
            self._close(pending, instance_id, stopped_at=None)
            self.results[pending] = RecoveryResult(state="gone", instance_id=instance_id)
            return
        deadline = anyio.current_time() + self.timeout
        self.note(f"releasing instance {instance_id}")
        while True:
            teardown = Teardown(
                instances=self.instances,
                instance_id=instance_id,
                goal=Goal.STOPPED if promise.goal == Goal.STOPPED.value else Goal.GONE,
                deadline=min(deadline, anyio.current_time() + _TEARDOWN_TIMEOUT),
                is_wanted=pending.is_open,
                visible_at=anyio.current_time() + invisible_for(promise, self.wall_clock()),
            )
            try:
                await teardown.run()
            except TeardownError as error:
                self.note(str(error))
                is_hopeless = isinstance(teardown.last_error, ClientClosedError)
                if is_hopeless or anyio.current_time() >= deadline:
                    self.results[pending] = RecoveryResult(state="left", instance_id=instance_id)
                    return
            else:
                self._close(pending, instance_id, stopped_at=teardown.stopped_at)
                state: RecoveryState = "released" if teardown.has_acted else "gone"
                self.results[pending] = RecoveryResult(state=state, instance_id=instance_id)
                return

    def _close(self, pending: PendingPromise, instance_id: str, *, stopped_at: float | None) -> None:
        promise, now = pending.promise, self.wall_clock()
        # While the owner lives, its reaper takes what the owner gave up, and what has reached a limit.
        owner_lives = self.writer == "reaper" and not pending.state.is_orphaned
        outcome: CostOutcome = "recovered"
        if promise.held or (owner_lives and not promise.abandoned):
            outcome = "idle" if promise.is_idle_first else "expired"
        with contextlib.suppress(Exception):  # a promise in an unusable form must still be closed
            line = line_of_promise(
                promise,
                instance_id,
                ended_at=now if stopped_at is None else now - (anyio.current_time() - stopped_at),
                # The reaper has watched the instance, but a sweep may find that it has been gone for days.
                is_end_known=stopped_at is not None or self.writer == "reaper",
                outcome=outcome,
                written_by=self.writer,
            )
            if line is not None:
                self.record_cost(line)
        # Afterward, so that the line is not lost if this process is killed in between.
        pending.record_gone()

    async def _wait_for_holder(self, instance_id: str, expires_at: float) -> bool:
        """Wait until a held instance expires or its holder deletes it. Return whether it was deleted."""
        absences = 0
        while (remaining := expires_at - self.wall_clock()) > 0:
            await anyio.sleep(min(remaining, _HELD_POLL_INTERVAL))
            is_absent = await self._is_absent(instance_id, timeout=expires_at - self.wall_clock())
            absences = absences + 1 if is_absent else 0
            if absences >= _REQUIRED_ABSENCES:
                return True
        return False

    async def _is_absent(self, instance_id: str, timeout: float) -> bool:
        poller = self.instances.poller
        with anyio.move_on_after(min(timeout, _HELD_POLL_TIMEOUT)):
            try:
                return await poller.next(poller.subscribe(instance_id)) is None
            except Exception:  # noqa: BLE001  (no error says that the instance is missing)
                return False
        return False


class _SharedJournal:
    """The journal of the reaper's parent. A `sweep` may record its own actions there."""

    def __init__(self, state: JournalState, path: Path | None, keys: set[str]) -> None:
        self._state = state
        self._path = path
        self._keys = keys
        self._others: OtherProcesses | None = None
        self._ledger = None if path is None else CostLedger(ledger_directory(path.parent))
        if path is not None:
            # Some of them may not have been written.
            written = frozenset(keys & (open_promises(path) or {}).keys())
            self._others = OtherProcesses(state, path, written)

    def record_cost(self, line: Record) -> None:
        """Add a line to the cost ledger in the same state directory."""
        if self._ledger is not None:
            self._ledger.write([line])

    def catch_up(self, *, now: bool = False) -> None:
        """Apply the actions of a `sweep`, which may have taken the lock first or work without it."""
        # A living owner may have replaced the journal.
        if self._others is not None and self._state.is_orphaned:
            self._others.catch_up(now=now)

    def claims(self, api: str) -> ForeignClaims:
        """Return the claims of all promises except this reaper's own."""
        self.catch_up(now=True)
        foreign = foreign_states(self._path.parent, without={self._path}) if self._path is not None else []
        return collect_foreign_claims(api, [(self._state, self._keys), *((each, ()) for each in foreign)])

    def decision_lock(self) -> AbstractContextManager[None]:
        return decision_lock(self._path.parent) if self._path is not None else nullcontext()


def reap(
    state: JournalState,
    promises: Sequence[Promise],
    accounts: Mapping[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
    *,
    unlock_journal: Callable[[], None] = lambda: None,
    wall_clock: WallClock = time.time,
) -> None:
    """Fulfill the reaper's promises with the settings and credentials in `accounts`, or give up."""

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for account in {promise.account for promise in promises} & accounts.keys():
                mine = [promise for promise in promises if promise.account == account]
                work = partial(reap_account, state, mine, accounts[account], report, journal)
                tasks.start_soon(partial(work, unlock_journal=unlock_journal, wall_clock=wall_clock))

    anyio.run(run, backend_options={"loop_factory": BoottimeEventLoop})


def preload() -> None:
    """Import all modules that `reap` may need, because the environment may be deleted while it works."""
    anyio.run(anyio.sleep, 0)
    importlib.import_module("cortecs_async._http.client")
    importlib.import_module("httpcore")  # httpx imports it when it creates a client
    importlib.import_module("cortecs_async._api.structuring")  # for undocumented data


def rehearse(account: Record) -> str:
    """Connect to the service of an account as `reap` would. Return the problem, or an empty string.

    No request is sent. An open connection is enough, with TLS and through the proxy if there are any,
    whatever the service would respond. If the connection fails, this retries for a few seconds.
    """
    preload()
    return anyio.run(_connect, account)


async def _connect(account: Record) -> str:
    try:
        http = _http_of(account)
    except ConfigurationError as error:
        return str(error)
    try:
        deadline = anyio.current_time() + _CONNECT_TIMEOUT
        backoff = Backoff(first=0.25, limit=1.0)
        while (failure := await http.connect(_CONNECT_TIMEOUT / 2)) is not None:
            pause = backoff.next()
            if anyio.current_time() + pause > deadline:
                return (
                    f"cannot connect to {account['api_base_url']} ({failure.detail}). The reaper uses the "
                    f"environment and not http_client=: check {', '.join(VARIABLES)}"
                )
            await anyio.sleep(pause)
    finally:
        await http.aclose()
    return ""


def _http_of(account: Record, http_client: HTTPClient | None = None) -> HTTP:
    from .._http.client import HTTP  # noqa: PLC0415  (imports httpx, which `cortecs_async.types` must not)

    return HTTP(settings_of(account), http_client=http_client)


async def reap_account(
    state: JournalState,
    promises: Sequence[Promise],
    account: Record,
    report: Callable[[Record], None],
    journal: Path | None,
    *,
    unlock_journal: Callable[[], None] = lambda: None,
    http_client: HTTPClient | None = None,
    wall_clock: WallClock = time.time,
) -> None:
    """Fulfill the reaper's promises for one account, with the settings and credentials in `account`.

    If the service rejects the credentials while the owner lives, this returns, because the owner may send new
    ones. After the owner's death, it calls `unlock_journal`, so that a `sweep` with new credentials can take
    over. Without the lock, it still retries occasionally, because the service may have been wrong.
    """

    def note(text: str) -> None:
        report({"kind": "NOTE", "text": text, "at": wall_clock()})

    shared = _SharedJournal(state, journal, {promise.key for promise in promises})
    try:
        settings = settings_of(account)
        timeout = _LOCAL_REAPER_TIMEOUT if settings.is_loopback else _REAPER_TIMEOUT
        held_until = [promise.expires_at or 0.0 for promise in promises if promise.held]
        give_up_at = max([wall_clock(), *held_until]) + timeout
        pending = [PendingPromise(state, promise, report, shared.catch_up) for promise in promises]
        http = _http_of(account, http_client)
        try:
            while remaining := [each for each in pending if each.is_open()]:
                watch = RefusalWatch(http.request_once)
                recovery = Recovery(
                    instances=Instances(watch.send, settings.poll),
                    foreign_claims=partial(shared.claims, settings.api_base_url),
                    decision_lock=shared.decision_lock,
                    note=note,
                    timeout=min(timeout, give_up_at - wall_clock()),
                    wall_clock=wall_clock,
                    record_cost=shared.record_cost,
                    in_flight_delay=_IN_FLIGHT_DELAY if state.is_orphaned else 0.0,
                )
                with watch.scope:
                    await recovery.run(remaining)
                if not watch.is_refused:
                    return
                note(f"the service refuses the credentials: {watch.refusal}")
                if not state.is_orphaned:
                    return
                unlock_journal()
                if wall_clock() + _REFUSED_PAUSE >= give_up_at:
                    return
                await anyio.sleep(_REFUSED_PAUSE)
        finally:
            await http.aclose()
    except Exception as error:  # noqa: BLE001  (a failure in one account must not end the work for the others)
        note(f"giving up: {error!r}")
