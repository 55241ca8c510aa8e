"""Keeping the promises of the dead: what the reaper and `sweep` do with what is left in a book."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Literal

import anyio
from anyio.abc import TaskGroup
from attrs import define, field, frozen

from .._api.domain import Instance
from .._api.instances import Instances
from .._api.matching import Ambiguous, UnresolvedStart, match_start
from .._api.teardown import Goal, Teardown
from .._config import PollPolicy, RetryPolicy, Settings
from .._errors import ClientClosedError, TeardownError
from .._http.client import HTTP
from .._secrets import Credentials, Secret
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .journal import read_journals
from .records import JournalState, Promise, Record

# Seconds after a start's request in which its instance can have been initialised, and before which it cannot,
# by the service's clock.
_LATEST, _EARLIEST = 3600.0, 300.0

_PAUSE = 0.5
_MAX_PAUSE = 10.0
# Seconds of one teardown before its trouble is reported, and it begins again.
_ROUND = 600.0

# What is held may be released by whoever has its handle: seconds between two looks whether it has been, how
# long one may take, and how often in a row it must be read to be gone: once may be the service's mistake.
_LOOK, _LOOK_TAKES, _READINGS = 300.0, 30.0, 2

RecoveryState = Literal["released", "gone", "ambiguous", "left"]


@frozen(kw_only=True)
class RecoveryResult:
    """What became of one promise.

    Attributes:
        state: `released` now; `gone` already, or never there; `ambiguous`, and not touched; or `left`,
            because the service could not be brought to it in time.
        instance_id: The instance, where it is known.
        candidates: Instances that it might be, when ambiguous.
    """

    state: RecoveryState
    instance_id: str | None = None
    candidates: tuple[str, ...] = ()


@frozen(eq=False)
class PendingPromise:
    """A promise with the book that it stands in, and how changes to it are written down."""

    state: JournalState
    promise: Promise
    report: Callable[[Record], None]

    def unresolved_start(self) -> UnresolvedStart:
        """The start, when nothing is known but that."""
        return unresolved_start_of(self.state, self.promise)


@define(eq=False)
class Recovery:
    """Finishes what one account owes.

    Attributes:
        instances: Where the requests go, unretried.
        others: What others lay claim to, asked for at every look.
        note: Told what is done, for people.
        patience: Seconds until one is given up.
        visible_until: Until when an instance of a start without an answer may still appear, on that clock.
        wall_clock: Returns Unix time in seconds.
    """

    instances: Instances
    foreign_claims: Callable[[], ForeignClaims]
    note: Callable[[str], None]
    timeout: float
    visible_until: float
    wall_clock: Callable[[], float]
    results: dict[PendingPromise, RecoveryResult] = field(factory=dict)

    async def run(self, pending: Iterable[PendingPromise]) -> dict[PendingPromise, RecoveryResult]:
        """Finishes these."""
        lost: list[PendingPromise] = []
        async with anyio.create_task_group() as tasks:
            for debt in pending:
                if debt.promise.candidates:
                    self.results[debt] = RecoveryResult(state="ambiguous", candidates=debt.promise.candidates)
                elif debt.promise.instance_id is not None:
                    tasks.start_soon(self._end, debt, debt.promise.instance_id)
                else:
                    lost.append(debt)
            if lost:
                tasks.start_soon(self._find, lost, tasks)
        return self.results

    async def _end(self, debt: PendingPromise, instance_id: str) -> None:
        entry = debt.promise
        until = entry.expires_at if entry.held else None
        if until is not None and await self._goes_before(instance_id, until):
            debt.report({"kind": "GONE", "entry": entry.key})
            self.results[debt] = RecoveryResult(state="gone", instance_id=instance_id)
            return
        deadline = anyio.current_time() + self.timeout
        self.note(f"releasing instance {instance_id}")
        while True:
            teardown = Teardown(
                instances=self.instances,
                instance_id=instance_id,
                goal=Goal.STOPPED if entry.goal == Goal.STOPPED.value else Goal.GONE,
                deadline=min(deadline, anyio.current_time() + _ROUND),
            )
            try:
                await teardown.run()
            except TeardownError as error:
                self.note(str(error))
                is_hopeless = isinstance(teardown.last_error, ClientClosedError)
                if is_hopeless or anyio.current_time() >= deadline:
                    self.results[debt] = RecoveryResult(state="left", instance_id=instance_id)
                    return
            else:
                debt.report({"kind": "GONE", "entry": entry.key})
                state: RecoveryState = "released" if teardown.has_acted else "gone"
                self.results[debt] = RecoveryResult(state=state, instance_id=instance_id)
                return

    async def _goes_before(self, instance_id: str, expires_at: float) -> bool:
        """Waits until its time is up, or until somebody else has deleted it; whether that came first."""
        absent = 0
        while (left := expires_at - self.wall_clock()) > 0:
            await anyio.sleep(min(left, _LOOK))
            absent = absent + 1 if await self._is_gone(instance_id, expires_at - self.wall_clock()) else 0
            if absent >= _READINGS:
                return True
        return False

    async def _is_gone(self, instance_id: str, seconds: float) -> bool:
        poller = self.instances.poller
        with anyio.move_on_after(min(seconds, _LOOK_TAKES)):
            try:
                return await poller.next(poller.subscribe(instance_id)) is None
            except Exception:  # noqa: BLE001  (whatever it is, it says nothing of the instance)
                return False
        return False

    async def _find(self, debts: Sequence[PendingPromise], tasks: TaskGroup) -> None:
        """Looks for what starts without an answer have made, and ends it as soon as it is proven."""
        lost = {debt: debt.unresolved_start() for debt in debts}
        claimed: set[str] = set()
        pause = _PAUSE
        deadline = anyio.current_time() + self.timeout
        while lost:
            began = anyio.current_time()
            listed = await self._list()
            if listed is not None:
                pause = _PAUSE
                self._sort_out(lost, listed, claimed, tasks, is_over=began >= self.visible_until)
            elif anyio.current_time() >= deadline:
                self.results.update({debt: RecoveryResult(state="left") for debt in lost})
                return
            else:
                pause = min(pause * 2, _MAX_PAUSE)
            if lost:
                await anyio.sleep(pause)

    def _sort_out(
        self,
        lost: dict[PendingPromise, UnresolvedStart],
        listed: Iterable[Instance],
        claimed: set[str],
        tasks: TaskGroup,
        *,
        is_over: bool,
    ) -> None:
        others = self.foreign_claims()
        free = [each for each in listed if each.instance_id not in claimed | others.ids]
        starts = sorted([*others.orphaned_starts, *lost.values()], key=lambda each: each.order)
        for debt, unknown in list(lost.items()):
            outcome = match_start(unknown, starts, free)
            if isinstance(outcome, Instance) and not is_proven(
                outcome, debt.promise, others, self.wall_clock()
            ):
                outcome = Ambiguous((outcome.instance_id,))
            key = debt.promise.key
            if isinstance(outcome, Instance):
                instance_id = outcome.instance_id
                claimed.add(instance_id)
                debt.report({"kind": "CREATED", "entry": key, "instance_id": instance_id, "goal": "gone"})
                tasks.start_soon(self._end, debt, instance_id)
            elif not is_over:
                continue
            elif outcome is None:
                debt.report({"kind": "GONE", "entry": key})
                self.results[debt] = RecoveryResult(state="gone")
            else:
                candidates = outcome.candidates
                debt.report({"kind": "AMBIGUOUS", "entry": key, "candidates": list(candidates)})
                self.results[debt] = RecoveryResult(state="ambiguous", candidates=candidates)
            del lost[debt]

    async def _list(self) -> tuple[Instance, ...] | None:
        try:
            return await self.instances.list()
        except Exception as error:  # noqa: BLE001  (a credential provider's or a transport's own)
            self.note(f"instances cannot be listed: {error}")
            return None


def is_proven(instance: Instance, promise: Promise, foreign_claims: ForeignClaims, now: float) -> bool:
    """Whether an instance that matches a start is almost certainly its own.

    Args:
        instance: The instance.
        entry: The promise of the start.
        others: What other promises claim.
        now: The current Unix time in seconds.
    """
    if any(start.fits(instance) for start in foreign_claims.starting + foreign_claims.unanswered):
        return False
    initialised = instance.instance_status.started_at
    if initialised is None:
        return now <= promise.at + _LATEST
    return promise.at - _EARLIEST <= initialised.timestamp() <= promise.at + _LATEST


# Seconds until the reaper gives up; what is left stays in the journal.
_LIMIT = 24 * 3600.0

# The same for a service on this machine: an emulator, most likely, which died with its program.
_LOCAL_LIMIT = 300.0

# Seconds after its parent's death in which a start that was under way may still show itself.
_WINDOW = 60.0


def reap(
    book: JournalState,
    entries: Sequence[Promise],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    """Finishes these entries. Returns when they are, or cannot be."""
    anyio.run(_reap, book, entries, accounts, report, journal)


async def _reap(
    book: JournalState,
    entries: Sequence[Promise],
    accounts: dict[str, Record],
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    async with anyio.create_task_group() as tasks:
        for account in {entry.account for entry in entries}:
            if account in accounts:
                mine = [entry for entry in entries if entry.account == account]
                tasks.start_soon(_reap_in_any_case, book, mine, accounts[account], report, journal)


async def _reap_in_any_case(
    book: JournalState,
    entries: Sequence[Promise],
    arms: Record,
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    try:
        await _reap_account(book, entries, arms, report, journal)
    except Exception as error:  # noqa: BLE001  (one account's trouble must not end the others' work)
        report({"kind": "NOTE", "text": f"giving up: {error!r}", "at": time.time()})


async def _reap_account(
    book: JournalState,
    entries: Sequence[Promise],
    arms: Record,
    report: Callable[[Record], None],
    journal: Path | None,
) -> None:
    credentials = Credentials(client_id=arms["client_id"], client_secret=Secret(arms["client_secret"]))

    async def provide() -> Credentials:
        return credentials

    settings = Settings(
        api_base_url=arms["api_base_url"],
        credential_provider=provide,
        timeout=min(float(arms["timeout"]), 30.0),
        retry=RetryPolicy(),
        poll=PollPolicy(),
        headers=arms["headers"],
    )
    http = HTTP(settings)
    try:
        keys = {each.key for each in entries}
        finisher = Recovery(
            instances=Instances(http.request_once, settings.poll),
            foreign_claims=lambda: collect_foreign_claims(
                settings.api_base_url, book, keys, _others(journal), time.time()
            ),
            note=lambda text: report({"kind": "NOTE", "text": text, "at": time.time()}),
            timeout=_LOCAL_LIMIT if settings.is_loopback else _LIMIT,
            visible_until=anyio.current_time() + _WINDOW,
            wall_clock=time.time,
        )
        await finisher.run([PendingPromise(book, entry, report) for entry in entries])
    finally:
        await http.aclose()


def _others(journal: Path | None) -> Iterable[JournalState]:
    return (
        [book for path, book in read_journals(journal.parent) if path != journal]
        if journal is not None
        else []
    )
