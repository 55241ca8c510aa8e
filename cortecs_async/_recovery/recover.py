"""Release what dead processes left: `Recovery`, which the reaper and `sweep` share.

For each promise, `Recovery` releases the instance if its id is known. Otherwise it polls the list until it
is certain which instance the start created, and releases that one. An instance may appear minutes after its
start was sent: the service may be slow to carry it out, or to list it. `reap` does this in the reaper's
process.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import anyio
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from .._aio.eventloop import WallClock
from .._aio.synchronization import Backoff
from .._api.domain import Instance
from .._api.instances import Instances
from .._api.listing import Listing
from .._api.matching import LATE_WINDOW, Ambiguous, Contested, Outcome, UnresolvedStart
from .._api.polling import ABSENCE_SPAN
from .._api.teardown import Goal, Teardown
from .._config import PollPolicy, RetryPolicy, Settings
from .._errors import ClientClosedError, TeardownError
from .._secrets import Credentials, Secret
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .journal import decision_lock, foreign_states, open_keys
from .records import JournalState, Promise, Record

# Seconds after its request before an instance is attributed to a start: another candidate may appear.
_MIN_AGE = 5.0

# Seconds after the request from which an instance is attributed to a start only if its timestamp or its tag
# confirms it: someone else may have started an equal one since.
_MAX_UNCONFIRMED_AGE = 3600.0

# Seconds to wait longer while the instance may belong to a start that is in progress.
_CONTESTED_GRACE = 60.0

# Seconds between two lists while a start is unresolved: at first, after the seconds of `_QUICK_SEARCH`, and
# at most after failures.
_LIST_INTERVAL, _SLOW_LIST_INTERVAL, _MAX_LIST_INTERVAL = 0.5, 5.0, 10.0
_QUICK_SEARCH = 60.0

# Seconds after the request of a start in which a missing instance may just not be visible yet.
_VISIBILITY_TIME = 60.0

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

if TYPE_CHECKING:
    from .._http.connections import HTTPClient

RecoveryState = Literal["released", "gone", "ambiguous", "left", "unsettled"]


@frozen(kw_only=True)
class RecoveryResult:
    """The outcome of one promise.

    Attributes:
        state: `released`: by this run. `gone`: it no longer existed, or the start created none. `ambiguous`:
            nothing was touched. `left`: the service did not release it in time. `unsettled`: it was not
            seen, but may still appear.
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
        foreign_claims: Returns the claims of other processes. Called before and after each list request.
        decision_lock: Returns the lock for decisions; see `journal.decision_lock`.
        note: Receives each step as a text for people.
        timeout: Seconds until it gives up on a promise.
        results: The promises that are done.
    """

    instances: Instances
    foreign_claims: Callable[[], ForeignClaims]
    decision_lock: Callable[[], AbstractContextManager[None]]
    note: Callable[[str], None]
    timeout: float
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
                    claimed.update(candidates)
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
                visible_at=anyio.current_time() + max(_VISIBILITY_TIME - self._age(promise), 0.0),
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
        began = anyio.current_time()
        deadline = began + self.timeout
        # At least two lists, seconds apart: a single one does not prove that it is missing.
        final_at = {
            each: began + max(LATE_WINDOW - self._age(each.promise), ABSENCE_SPAN) for each in promises
        }
        unresolved = dict.fromkeys(promises)
        backoff = Backoff(first=2 * _LIST_INTERVAL, limit=_MAX_LIST_INTERVAL)
        while unresolved:
            now = anyio.current_time()
            pause = _LIST_INTERVAL if now < began + _QUICK_SEARCH else _SLOW_LIST_INTERVAL
            earlier = self.foreign_claims()
            listing = await self._list()
            if listing is not None:
                backoff.reset()
                overdue = {pending: now - final_at[pending] for pending in unresolved}
                # Anew each time: the owner, if it lives, may learn that its tags prove nothing.
                with self.decision_lock():
                    self._drop_decided(unresolved)
                    starts = {each: unresolved_start_of(each.state, each.promise) for each in unresolved}
                    claims = self.foreign_claims().with_earlier(earlier)
                    outcomes = match_starts(starts, listing, claimed, claims=claims, now=self.wall_clock())
                    found = list(self._record(outcomes, overdue))
                for pending, instance in found:
                    del unresolved[pending]
                    claimed.add(instance.instance_id)
                    tasks.start_soon(self._release, pending, instance.instance_id)
                for pending in unresolved.keys() & self.results.keys():
                    del unresolved[pending]
            else:
                pause = backoff.next()
            if unresolved and now >= deadline:
                state: RecoveryState = "left" if listing is None else "unsettled"
                self.results.update({pending: RecoveryResult(state=state) for pending in unresolved})
                return
            if unresolved:
                await anyio.sleep(max(min(pause, deadline - anyio.current_time()), 0.0))

    def _drop_decided(self, unresolved: dict[PendingPromise, None]) -> None:
        """Leave out the promises that somebody else has fulfilled, or is fulfilling, such as the owner."""
        for pending in list(unresolved):
            promise = pending.state.promises.get(pending.promise.key)
            if promise is None or promise.instance_id is not None:
                del unresolved[pending]
                found = None if promise is None else promise.instance_id
                self.results[pending] = RecoveryResult(state="gone", instance_id=found)

    def _age(self, promise: Promise) -> float:
        """Return the seconds since the request of a promise, by the clock of this machine."""
        return max(self.wall_clock() - promise.at, 0.0)

    def _record(
        self, outcomes: Mapping[PendingPromise, Outcome], overdue: Mapping[PendingPromise, float]
    ) -> Iterator[tuple[PendingPromise, Instance]]:
        """Record what is certain, and yield the instances to release.

        `overdue` is, for each search, the number of seconds since its end; negative before.
        """
        for pending, outcome in outcomes.items():
            promise = pending.promise
            if isinstance(outcome, Instance):
                if self._age(promise) < _MIN_AGE:
                    continue
                created = {"kind": "CREATED", "entry": promise.key, "instance_id": outcome.instance_id}
                pending.report({**created, "goal": "gone"})
                yield pending, outcome
            elif overdue[pending] < (_CONTESTED_GRACE if isinstance(outcome, Contested) else 0.0):
                continue
            elif outcome is None:
                pending.record_gone()
                self.results[pending] = RecoveryResult(state="gone")
            else:
                candidates = outcome.candidates
                pending.report({"kind": "AMBIGUOUS", "entry": promise.key, "candidates": list(candidates)})
                self.results[pending] = RecoveryResult(state="ambiguous", candidates=candidates)

    async def _list(self) -> Listing[Instance] | None:
        try:
            return await self.instances.list()
        except Exception as error:  # noqa: BLE001  (also those of a credential provider or a transport)
            self.note(f"instances cannot be listed: {error}")
            return None


def match_starts(
    unresolved: Mapping[PendingPromise, UnresolvedStart],
    listing: Listing[Instance],
    claimed: set[str],
    *,
    claims: ForeignClaims,
    now: float,
) -> dict[PendingPromise, Outcome]:
    """Return the instance that each unresolved start of a dead process created, if that is certain.

    `claimed` are the instances of other promises of these processes, and `claims` those of other processes;
    `now` is the Unix time in seconds by the clock of this machine. The result is None if no visible instance
    can have been created by the start.
    """
    unclaimed = [each for each in listing if each.instance_id not in claimed]
    outcomes: dict[PendingPromise, Outcome] = {}
    for pending, start in unresolved.items():
        outcome = claims.match(start, unclaimed, unresolved.values(), listed_at=listing.date)
        if isinstance(outcome, Instance) and now - pending.promise.at > _MAX_UNCONFIRMED_AGE:
            is_confirmed = start.is_confirmed_by(outcome, listing.date) or start.has_tag_of(outcome)
            outcome = outcome if is_confirmed else Ambiguous((outcome.instance_id,))
        if outcome is None:
            # The evidence against these may be wrong, so the promise is not closed.
            doubtful = tuple(
                each.instance_id
                for each in unclaimed
                if each.instance_id not in claims.ids
                and start.fits(each)
                and start.is_contradicted_by(each, listing.date)
            )
            outcome = Ambiguous(doubtful) if doubtful else None
        outcomes[pending] = outcome
    return outcomes


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
                tasks.start_soon(reap_account, state, mine, accounts[account], report, journal)

    anyio.run(run)


async def reap_account(
    state: JournalState,
    promises: Sequence[Promise],
    account: Record,
    report: Callable[[Record], None],
    journal: Path | None,
    *,
    http_client: HTTPClient | None = None,
    wall_clock: WallClock = time.time,
) -> None:
    """Fulfill the reaper's promises of one account, with the settings and credentials in `account`."""
    from .._http.client import HTTP  # noqa: PLC0415  (imports httpx, which `cortecs_async.types` must not)

    def note(text: str) -> None:
        report({"kind": "NOTE", "text": text, "at": wall_clock()})

    def claims() -> ForeignClaims:
        # A `sweep` that got the lock of the journal first may have fulfilled some.
        still_open = None if journal is None else open_keys(journal)
        for key in () if still_open is None else written - still_open:
            state.apply({"kind": "GONE", "entry": key})
        foreign = foreign_states(journal.parent, without={journal}) if journal is not None else []
        return collect_foreign_claims(
            settings.api_base_url, [(state, keys), *((each, ()) for each in foreign)]
        )

    keys = {promise.key for promise in promises}
    written = keys & ((open_keys(journal) if journal is not None else None) or set())
    try:
        settings = _settings_of(account)
        http = HTTP(settings, http_client=http_client)
        try:
            recovery = Recovery(
                instances=Instances(http.request_once, settings.poll),
                foreign_claims=claims,
                decision_lock=lambda: decision_lock(journal.parent) if journal is not None else nullcontext(),
                note=note,
                timeout=_LOCAL_REAPER_TIMEOUT if settings.is_loopback else _REAPER_TIMEOUT,
                wall_clock=wall_clock,
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
