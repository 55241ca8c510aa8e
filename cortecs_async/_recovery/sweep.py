"""Sweep: release what dead processes left, according to the journals whose lock is free.

`sweep` takes each promise of such a journal, and each that this process gave up on. It skips promises of
other accounts, and held instances that have not expired; `Recovery` fulfills the rest. A dry run decides in
the same way, but from one list, or from two if an instance is missing, and touches nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Literal

import anyio
from attrs import frozen

from .._api.domain import Instance, to_hf_name
from .._api.instances import Instances
from .._api.listing import Listing, existing_ids
from .._api.matching import LATE_WINDOW, Contested
from .._logging import Event, log
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .journal import JournalFile, catch_up, has_unresolved, orphaned_journals
from .pending import PendingPromise, invisible_for
from .promises import Promises
from .records import JournalState, Record
from .recover import Recovery
from .search import match_starts
from .store import PromiseStore

# Seconds to read instances that are not listed. Those without an answer count as existing.
_MAX_READ_TIME = 15.0

OrphanState = Literal["found", "unsettled", "released", "gone", "ambiguous", "left", "held", "foreign"]


@frozen(kw_only=True)
class Orphan:
    """An instance, or an unresolved start, that a dead process left behind.

    Attributes:
        state: `found`: a sweep releases it. `unsettled`: the start was requested less than five minutes ago,
            so its instance may still appear; or an instance may belong to this start or to another one that
            has no response yet. `released`: by this sweep. `gone`: it no longer existed, or the start created
            none. `ambiguous`: it may be one of `candidates`; only you can decide which. Nothing is touched.
            `left`: the service did not release it in time. `held`: acquired, and not expired. `foreign`: it
            belongs to other credentials or to another service (see `api_base_url`).
        instance_id: The instance, if it is known.
        model: The model that was started; empty if only the id was recorded.
        candidates: Ids of the instances that it may be, if ambiguous.
        started_at: Unix time in seconds at which that process requested the start, or took the instance over,
            as `release` does.
        owner: Host and process id of that process.
        api_base_url: The service that it used.
    """

    state: OrphanState
    instance_id: str | None
    model: str
    candidates: tuple[str, ...]
    started_at: float
    owner: str
    api_base_url: str


async def sweep(
    instances: Instances, promises: Promises, *, dry_run: bool, timeout: float
) -> tuple[Orphan, ...]:
    """Release what dead processes left behind, or with `dry_run` only report it.

    `instances` sends the requests, without retries. The `timeout` is for all of it, in seconds.
    """
    listed = await instances.list()  # first, because its token also sets the account
    wall_clock = promises.system.wall_clock
    journals = await promises.system.off_loop(lambda: _lock_journals(promises, dry_run=dry_run))
    results: list[Orphan] = []
    try:
        due: list[PendingPromise] = []
        now = wall_clock()
        for pending in _all_pending(promises, journals):
            promise = pending.promise
            if promise.account == promises.account and promise.needs_recovery(now):
                due.append(pending)
                continue
            results.append(_orphan(pending, "held" if promise.account == promises.account else "foreign"))
        paths = {journal.path for journal, _ in journals}
        states = [promises.store.state, *(state for _, state in journals)]
        due_keys = [{each.promise.key for each in due if each.state is state} for state in states]

        def claims() -> ForeignClaims:
            promises.store.commit()  # what the reaper has done meanwhile
            for (journal, state), keys in zip(journals, due_keys[1:], strict=True):
                catch_up(state, journal.path, keys)  # what a dead owner's reaper has
            foreign = [(state, ()) for state in promises.store.foreign_states(without=paths)]
            return collect_foreign_claims(promises.api, [*zip(states, due_keys, strict=True), *foreign])

        # In a sweep only for ambiguous starts, so that nothing delays the releases.
        asked = [each for each in due if dry_run or each.promise.candidates]
        existing = await _existing_ids(instances, listed, asked, now, timeout=min(timeout, _MAX_READ_TIME))
        if dry_run:
            results += _preview(due, listed, existing, claims(), now)
        else:
            results += await _recover(instances, promises, due, existing, claims, timeout=timeout)
    finally:
        keeps_past_ids = bool(journals) and has_unresolved(promises.store.directory)
        for journal, state in journals:
            journal.close_or_remove(state, keeps_past_ids=keeps_past_ids)
    return tuple(sorted(results, key=lambda each: each.started_at))


def _lock_journals(promises: Promises, *, dry_run: bool) -> list[tuple[JournalFile, JournalState]]:
    if not promises.uses_journal:
        return []
    journals = [(journal, journal.read()) for journal in orphaned_journals(promises.store.directory)]
    for journal, state in journals:
        # With the lock, this process looks like a living owner. Tell others that these starts have none.
        orphaned: Record = {"kind": "ORPHANED"}
        if dry_run or state.is_orphaned or not state.has_unresolved():
            state.apply(orphaned)
        else:
            _reporter(state, journal)(orphaned)
    return journals


def _all_pending(
    promises: Promises, journals: Iterable[tuple[JournalFile, JournalState]]
) -> Iterable[PendingPromise]:
    store = promises.store
    for promise in store.abandoned():
        yield PendingPromise(store.state, promise, partial(_report_own, store))
    for journal, state in journals:
        for promise in list(state.promises.values()):
            yield PendingPromise(state, promise, _reporter(state, journal))


def _report_own(store: PromiseStore, record: Record) -> None:
    store.put(record)
    store.commit()


def _reporter(state: JournalState, journal: JournalFile) -> Callable[[Record], None]:
    def report(record: Record) -> None:
        state.apply(record)
        try:
            journal.append([record], durable=False)
        except OSError as error:
            # Not a failure: the next sweep finds that the instance is gone.
            log(Event.GUARD_SWEEP_UNWRITTEN, journal=str(journal.path), error=error)

    return report


async def _existing_ids(
    instances: Instances,
    listed: Listing[Instance],
    asked: Iterable[PendingPromise],
    now: float,
    *,
    timeout: float,
) -> frozenset[str]:
    """Return the ids that exist. One of `asked` counts as missing only if later readings of it agree."""
    existing, unlisted, missing = set(existing_ids(listed)), set[str](), set[str]()
    for pending in asked:
        promise = pending.promise
        ids = {each for each in (promise.instance_id, *promise.candidates) if each}
        # A new one may not be visible yet.
        (existing if invisible_for(promise, now) else unlisted).update(ids)

    async def read(instance_id: str) -> None:
        with contextlib.suppress(Exception):  # no error says that it is missing
            if await instances.poller.next(instances.poller.subscribe(instance_id)) is None:
                missing.add(instance_id)

    with anyio.move_on_after(timeout):
        async with anyio.create_task_group() as tasks:
            for instance_id in unlisted - existing:
                tasks.start_soon(read, instance_id)
    return frozenset(existing | (unlisted - missing))


async def _recover(
    instances: Instances,
    promises: Promises,
    due: Sequence[PendingPromise],
    existing: frozenset[str],
    claims: Callable[[], ForeignClaims],
    *,
    timeout: float,
) -> list[Orphan]:
    results: list[Orphan] = []
    undecided: list[PendingPromise] = []
    for pending in due:
        if pending.promise.candidates and not existing.intersection(pending.promise.candidates):
            # Resolved by hand: none of the candidates exists any more.
            pending.record_gone()
            results.append(_orphan(pending, "gone"))
        else:
            undecided.append(pending)
    recovery = Recovery(
        instances=instances,
        foreign_claims=claims,
        decision_lock=promises.store.decision_lock,
        note=lambda text: log(Event.GUARD_SWEEP, text=text),
        timeout=timeout,
        wall_clock=promises.system.wall_clock,
    )
    recovered = await recovery.run(undecided)
    return results + [
        _orphan(pending, each.state, each.instance_id, each.candidates) for pending, each in recovered.items()
    ]


def _preview(
    due: Sequence[PendingPromise],
    listed: Listing[Instance],
    existing: frozenset[str],
    claims: ForeignClaims,
    now: float,
) -> Iterable[Orphan]:
    claimed = {pending.promise.instance_id for pending in due if pending.promise.instance_id is not None}
    unresolved = {
        pending: unresolved_start_of(pending.state, pending.promise)
        for pending in due
        if pending.promise.instance_id is None and not pending.promise.candidates
    }
    outcomes = match_starts(unresolved, listed, claimed, claims=claims, now=now)
    for pending in due:
        promise = pending.promise
        if promise.candidates:
            is_ambiguous = existing.intersection(promise.candidates)
            yield _orphan(pending, "ambiguous" if is_ambiguous else "gone", None, promise.candidates)
        elif promise.instance_id is not None:
            yield _orphan(pending, "found" if promise.instance_id in existing else "gone")
        else:
            outcome = outcomes[pending]
            if outcome is None or isinstance(outcome, Contested):
                is_recent = outcome is not None or now - promise.at < LATE_WINDOW
                yield _orphan(pending, "unsettled" if is_recent else "gone")
            elif isinstance(outcome, Instance):
                yield _orphan(pending, "found", outcome.instance_id)
            else:
                yield _orphan(pending, "ambiguous", None, outcome.candidates)


def _orphan(
    pending: PendingPromise,
    state: OrphanState,
    instance_id: str | None = None,
    candidates: tuple[str, ...] = (),
) -> Orphan:
    promise = pending.promise
    return Orphan(
        state=state,
        instance_id=instance_id or promise.instance_id,
        model=to_hf_name(str(promise.args.get("model_id", ""))),
        candidates=candidates,
        started_at=promise.at,
        owner=pending.state.owner_name,
        api_base_url=promise.api,
    )
