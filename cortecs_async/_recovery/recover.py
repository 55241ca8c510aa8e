"""Release what dead processes left: `Recovery`, which the reaper and `sweep` share.

For each promise, `Recovery` releases the instance if its id is known. Otherwise it polls the list until it is
certain which instance the start created, and releases that one. `reap` does this in the reaper's process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from .._aio.eventloop import WallClock
from .._aio.synchronization import Backoff
from .._api.domain import Instance
from .._api.instances import Instances
from .._api.matching import Ambiguous, UnresolvedStart, match_start
from .._api.teardown import Goal, Teardown
from .._config import PollPolicy, RetryPolicy, Settings
from .._errors import ClientClosedError, TeardownError
from .._secrets import Credentials, Secret
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .journal import read_journals
from .records import JournalState, Promise, Record

# Seconds in which the instance of a start may become visible: for `sweep` after its request, for the reaper
# after the death of its parent.
VISIBILITY_WINDOW = 60.0

# An instance is attributed to a start only if the service initialized it within this many seconds before and
# after the request. Before, because the service's clock may differ.
_MAX_BEFORE_REQUEST, _MAX_AFTER_REQUEST = 300.0, 3600.0

# Seconds between two lists while a start is unresolved, and at most after failures.
_LIST_INTERVAL, _MAX_LIST_INTERVAL = 0.5, 10.0

# Seconds after which a failing teardown is reported and begins again.
_TEARDOWN_TIMEOUT = 600.0

# The holder of an acquired instance may delete it before it expires: seconds between two polls, and for one.
_HELD_POLL_INTERVAL, _HELD_POLL_TIMEOUT = 300.0, 30.0

# Number of consecutive polls that must find it missing. A single one may be an error of the service.
_REQUIRED_ABSENCES = 2

# Seconds until the reaper gives up. Unfulfilled promises stay in the journal. A service on this machine is
# most likely an emulator, which ended together with its program.
_REAPER_TIMEOUT, _LOCAL_REAPER_TIMEOUT = 24 * 3600.0, 300.0

# Seconds for one request of the reaper.
_MAX_REQUEST_TIMEOUT = 30.0

RecoveryState = Literal["released", "gone", "ambiguous", "left"]


@frozen(kw_only=True)
class RecoveryResult:
    """The outcome of one promise.

    Attributes:
        state: `released`: by this run. `gone`: it no longer existed, or the start created none. `ambiguous`:
            nothing was touched. `left`: the service did not release it in time.
        instance_id: The instance, if it is known.
        candidates: Instances that it may be, if ambiguous.
    """

    state: RecoveryState
    instance_id: str | None = None
    candidates: tuple[str, ...] = ()


@frozen(eq=False)
class PendingPromise:
    """A promise to fulfill, the journal state that contains it, and a function that records changes to it."""

    state: JournalState
    promise: Promise
    report: Callable[[Record], None]

    def record_gone(self) -> None:
        """Record that the promise is fulfilled."""
        self.report({"kind": "GONE", "entry": self.promise.key})


@define(eq=False)
class Recovery:
    """Fulfills promises of one account.

    Attributes:
        instances: Sends the requests, without retries.
        foreign_claims: Returns the claims of other processes. Called after each list request.
        note: Receives each step as a text for people.
        timeout: Seconds until it gives up on a promise.
        visible_until: When an instance of an unresolved start must be listed by, in seconds of
            `anyio.current_time`.
        results: The promises that are done.
    """

    instances: Instances
    foreign_claims: Callable[[], ForeignClaims]
    note: Callable[[str], None]
    timeout: float
    visible_until: float
    wall_clock: WallClock
    results: dict[PendingPromise, RecoveryResult] = field(factory=dict)

    async def run(self, promises: Iterable[PendingPromise]) -> dict[PendingPromise, RecoveryResult]:
        """Fulfill these promises in parallel, and return the outcome of each."""
        unresolved: list[PendingPromise] = []
        claimed: set[str] = set()
        async with anyio.create_task_group() as tasks:
            for pending in promises:
                candidates = pending.promise.candidates
                if candidates:
                    self.results[pending] = RecoveryResult(state="ambiguous", candidates=candidates)
                elif pending.promise.instance_id is not None:
                    claimed.add(pending.promise.instance_id)
                    tasks.start_soon(self._release, pending, pending.promise.instance_id)
                else:
                    unresolved.append(pending)
            if unresolved:
                tasks.start_soon(self._resolve_and_release, unresolved, claimed, tasks)
        return self.results

    async def _release(self, pending: PendingPromise, instance_id: str) -> None:
        promise = pending.promise
        held_until = promise.expires_at if promise.held else None
        if held_until is not None and await self._wait_for_holder(instance_id, held_until):
            pending.record_gone()
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
                pending.record_gone()
                state: RecoveryState = "released" if teardown.has_acted else "gone"
                self.results[pending] = RecoveryResult(state=state, instance_id=instance_id)
                return

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

    async def _resolve_and_release(
        self, promises: Sequence[PendingPromise], claimed: set[str], tasks: TaskGroup
    ) -> None:
        """Find the instances that unresolved starts created, and release each once it is attributed.

        Each instance that is found is added to `claimed`, the instances of all promises.
        """
        unresolved = {pending: unresolved_start_of(pending.state, pending.promise) for pending in promises}
        backoff = Backoff(first=2 * _LIST_INTERVAL, limit=_MAX_LIST_INTERVAL)
        deadline = anyio.current_time() + self.timeout
        while unresolved:
            began = anyio.current_time()
            pause = _LIST_INTERVAL
            listed = await self._list()
            if listed is not None:
                backoff.reset()
                self._resolve(unresolved, listed, claimed, tasks, is_final=began >= self.visible_until)
            elif anyio.current_time() >= deadline:
                self.results.update({pending: RecoveryResult(state="left") for pending in unresolved})
                return
            else:
                pause = backoff.next()
            if unresolved:
                await anyio.sleep(pause)

    def _resolve(
        self,
        unresolved: dict[PendingPromise, UnresolvedStart],
        listed: Iterable[Instance],
        claimed: set[str],
        tasks: TaskGroup,
        *,
        is_final: bool,
    ) -> None:
        outcomes = match_starts(
            unresolved, listed, claimed, claims=self.foreign_claims(), now=self.wall_clock()
        )
        for pending, outcome in outcomes.items():
            promise = pending.promise
            if isinstance(outcome, Instance):
                instance_id = outcome.instance_id
                claimed.add(instance_id)
                created = {
                    "kind": "CREATED",
                    "entry": promise.key,
                    "instance_id": instance_id,
                    "goal": "gone",
                }
                pending.report(created)
                tasks.start_soon(self._release, pending, instance_id)
            elif not is_final:
                continue
            elif outcome is None:
                pending.record_gone()
                self.results[pending] = RecoveryResult(state="gone")
            else:
                candidates = outcome.candidates
                pending.report({"kind": "AMBIGUOUS", "entry": promise.key, "candidates": list(candidates)})
                self.results[pending] = RecoveryResult(state="ambiguous", candidates=candidates)
            del unresolved[pending]

    async def _list(self) -> tuple[Instance, ...] | None:
        try:
            return await self.instances.list()
        except Exception as error:  # noqa: BLE001  (also those of a credential provider or a transport)
            self.note(f"instances cannot be listed: {error}")
            return None


def match_starts(
    unresolved: Mapping[PendingPromise, UnresolvedStart],
    listed: Iterable[Instance],
    claimed: set[str],
    *,
    claims: ForeignClaims,
    now: float,
) -> dict[PendingPromise, Instance | Ambiguous | None]:
    """Return the instance that each unresolved start of a dead process created, if that is certain.

    `claimed` are the instances of other promises of these processes, and `claims` those of other processes.
    The result is None if no visible instance can have been created by the start.
    """
    unclaimed = [each for each in listed if each.instance_id not in claimed | claims.ids]
    starts = sorted([*claims.orphaned_starts, *unresolved.values()], key=lambda each: each.order)
    outcomes: dict[PendingPromise, Instance | Ambiguous | None] = {}
    for pending, start in unresolved.items():
        outcome = match_start(start, starts, unclaimed)
        if isinstance(outcome, Instance) and not _is_proven(outcome, pending.promise, claims, now):
            outcome = Ambiguous((outcome.instance_id,))
        outcomes[pending] = outcome
    return outcomes


def _is_proven(instance: Instance, promise: Promise, claims: ForeignClaims, now: float) -> bool:
    if any(start.fits(instance) for start in claims.starting + claims.unanswered):
        return False
    initialized = instance.instance_status.started_at
    if initialized is None:
        return now <= promise.at + _MAX_AFTER_REQUEST
    earliest, latest = promise.at - _MAX_BEFORE_REQUEST, promise.at + _MAX_AFTER_REQUEST
    return earliest <= initialized.timestamp() <= latest


def reap(
    state: JournalState,
    promises: Sequence[Promise],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    """Fulfill the reaper's promises with the settings and credentials in `accounts`, or give up on them."""

    async def run() -> None:
        async with anyio.create_task_group() as tasks:
            for account in {promise.account for promise in promises} & accounts.keys():
                mine = [promise for promise in promises if promise.account == account]
                tasks.start_soon(_reap_account, state, mine, accounts[account], report, journal)

    anyio.run(run)


async def _reap_account(
    state: JournalState,
    promises: Sequence[Promise],
    account: Record,
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    from .._http.client import HTTP  # noqa: PLC0415  (imports httpx, which `cortecs_async.types` must not)

    def note(text: str) -> None:
        report({"kind": "NOTE", "text": text, "at": time.time()})

    def claims() -> ForeignClaims:
        paths_and_states = read_journals(journal.parent) if journal is not None else ()
        foreign = [each for path, each in paths_and_states if path != journal]
        return collect_foreign_claims(settings.api_base_url, state, keys, foreign, time.time())

    keys = {promise.key for promise in promises}
    try:
        settings = _settings_of(account)
        http = HTTP(settings)
        try:
            recovery = Recovery(
                instances=Instances(http.request_once, settings.poll),
                foreign_claims=claims,
                note=note,
                timeout=_LOCAL_REAPER_TIMEOUT if settings.is_loopback else _REAPER_TIMEOUT,
                visible_until=anyio.current_time() + VISIBILITY_WINDOW,
                wall_clock=time.time,
            )
            await recovery.run([PendingPromise(state, promise, report) for promise in promises])
        finally:
            await http.aclose()
    except Exception as error:  # noqa: BLE001  (a failure in one account must not end the work for the others)
        note(f"giving up: {error!r}")


def _settings_of(account: Record) -> Settings:
    credentials = Credentials(client_id=account["client_id"], client_secret=Secret(account["client_secret"]))

    async def provide() -> Credentials:
        return credentials

    return Settings(
        api_base_url=account["api_base_url"],
        credential_provider=provide,
        timeout=min(float(account["timeout"]), _MAX_REQUEST_TIMEOUT),
        retry=RetryPolicy(),
        poll=PollPolicy(),
        headers=account["headers"],
    )
