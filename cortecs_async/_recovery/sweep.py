"""Sweep: release the instances of dead processes, based on the journals that `dead_journals` finds.

`sweep` takes each promise in a journal whose lock is free, and each promise that this process gave up on. It
skips promises of other accounts and held instances that have not expired. `Recovery` fulfills the rest. A dry
run decides in the same way, but from one list, or two if an instance is missing, and does not change
anything.

Instances that a reaper is still `releasing` are only reported. With `force`, a sweep takes them too, without
the lock. That is safe: stopping or deleting an instance twice is harmless, and each side reads in the journal
what the other has done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import anyio
from attrs import frozen

from .._api.domain import Instance
from .._api.instances import Instances
from .._api.listing import Listing, existing_ids
from .._api.matching import LATE_WINDOW, Contested
from .._api.model_ids import to_hf_name
from .._display import Row, joined, time_text
from .._errors import JournalError, RequestTimeoutError
from .._logging import Event, log
from .claims import ForeignClaims, collect_foreign_claims, unresolved_start_of
from .dead_journals import DeadJournal, DeadJournals
from .journal import catch_up
from .pending import PendingPromise, invisible_for
from .promises import Promises
from .records import Record
from .recover import Recovery
from .search import match_starts
from .store import PromiseStore

# Seconds to get the status of instances that are not listed. Instances without a response count as existing.
_MAX_READ_TIME = 15.0

# Seconds reserved for the last list of a sweep.
_LAST_LIST_TIME = 1.0

OrphanState = Literal[
    "found",
    "unsettled",
    "released",
    "gone",
    "ambiguous",
    "left",
    "releasing",
    "held",
    "foreign",
    "newer",
]


@frozen(kw_only=True)
class Orphan(Row):
    """An instance or unresolved start whose process died or gave up on it, from `client.sweep()`.

    Attributes:
        state: What a sweep would do with it, or did.

            - `found`: a sweep would release it.
            - `unsettled`: the start request was sent less than five minutes ago, so its instance may still
              appear. Or an instance may belong either to this start request or to a different one without a
              response.
            - `released`: this sweep released it.
            - `gone`: the instance no longer existed, or the start request did not create one.
            - `ambiguous`: it may be one of `candidates`, and only you can decide which. All are left alone.
            - `left`: the service did not release it in time.
            - `releasing`: the reaper of the process, or another sweep, is working on it. Only a sweep with
              `force` releases it.
            - `held`: acquired and not expired.
            - `foreign`: it belongs to a different client id or a different service (see `api_base_url`).
            - `newer`: a different version of this package wrote the journal, in a format that this version
              does not know. Only that version can release it.
        instance_id: The id of the instance, if known.
        model: The started model, or an empty string if only the id was recorded.
        candidates: The ids of the possible instances, if ambiguous.
        started_at: The Unix time in seconds at which that process sent the start request or took over the
            instance, as `release` does.
        owner: The host and process id of that process.
        api_base_url: The URL of the service that the process used.

    Example:
        for orphan in await client.sweep(dry_run=True):
            print(orphan.state, orphan.instance_id, orphan.owner)
    """

    state: OrphanState
    instance_id: str | None
    model: str
    candidates: tuple[str, ...]
    started_at: float
    owner: str
    api_base_url: str

    @property
    def _name(self) -> str:
        return self.instance_id or ", ".join(self.candidates) or "unresolved start"

    def __str__(self) -> str:
        return joined(f"{self._name} {self.state}", self.model, f"owner: {self.owner}")

    def _columns(self) -> Mapping[str, object]:
        return {
            "instance": self._name,
            "state": self.state,
            "model": self.model,
            "requested (UTC)": time_text(self.started_at),
            "owner": self.owner,
        }


async def sweep(
    instances: Instances, promises: Promises, *, dry_run: bool, force: bool, timeout: float
) -> tuple[Orphan, ...]:
    """Release the instances of dead processes. With `dry_run`, only report them and do not change any file.

    With `force`, this includes instances that a reaper is working on. `instances` sends the requests, without
    retries. The `timeout` covers the whole sweep, in seconds.

    Raises:
        JournalError: If the state directory cannot be used, or takes too long to read.
        RequestError: If the instances cannot be listed.
    """
    deadline = anyio.current_time() + timeout
    journals = DeadJournals(promises.store.directory, promises.store.state.owner.get("id"))
    listed: Listing[Instance] | None = None
    try:
        with anyio.CancelScope(deadline=deadline) as scope:
            listed = await instances.list()  # first, because its token also sets the account
            if promises.uses_journal:
                await promises.system.off_loop(lambda: journals.read(lock=not dry_run, force=force))
        if listed is None:
            raise RequestTimeoutError(
                f"The instances could not be listed in {timeout:g} s", method="GET", path="/instances/"
            )
        if scope.cancelled_caught:
            raise JournalError(f"The journals could not be read in {timeout:g} s")
        now = promises.system.wall_clock()
        due, results = _due(promises, journals, now)
        paths = {each.path for each in journals.found if each.is_whole}
        states = [promises.store.state, *(each.state for each in journals.found)]
        due_keys = [{each.promise.key for each in due if each.state is state} for state in states]

        def claims() -> ForeignClaims:
            promises.store.commit()  # what the reaper has done meanwhile
            for each, keys in zip(journals.found, due_keys[1:], strict=True):
                catch_up(each.state, each.path, keys)  # what a dead owner's reaper has done
            foreign = [(state, ()) for state in promises.store.foreign_states(without=paths)]
            return collect_foreign_claims(promises.api, [*zip(states, due_keys, strict=True), *foreign])

        # In a sweep, only for ambiguous starts, to avoid delaying the releases.
        asked = [each for each in due if dry_run or each.promise.candidates]
        read_deadline = min(deadline, anyio.current_time() + _MAX_READ_TIME)
        existing = await _existing_ids(instances, listed, asked, now, deadline=read_deadline)
        if dry_run:
            results += _preview(due, listed, existing, claims(), now)
        else:
            results += await _recover(instances, promises, due, existing, claims, deadline=deadline)
        in_progress = list(_in_progress(journals, now))
        asked = [each for each in in_progress if each.promise.account == promises.account]
        read_deadline = min(deadline, anyio.current_time() + _MAX_READ_TIME)
        existing = await _existing_ids(instances, listed, asked, now, deadline=read_deadline)
        results += (_result_in_progress(promises, each, existing) for each in in_progress)
    finally:
        journals.close()
    return tuple(sorted(results, key=lambda each: each.started_at))


def _due(promises: Promises, journals: DeadJournals, now: float) -> tuple[list[PendingPromise], list[Orphan]]:
    """Return the promises to fulfill, and the results for the others."""
    due: list[PendingPromise] = []
    results: list[Orphan] = []
    for pending in _all_pending(promises, journals.found):
        is_mine = pending.promise.account == promises.account
        if is_mine and pending.promise.needs_recovery(now):
            due.append(pending)
        else:
            results.append(_orphan(pending, "held" if is_mine else "foreign"))
    for state in journals.newer:
        for promise in state.promises.values():
            pending = PendingPromise(state, promise, state.apply)
            results.append(_orphan(pending, "newer" if promise.needs_recovery(now) else "held"))
    return due, results


def _all_pending(promises: Promises, journals: Iterable[DeadJournal]) -> Iterable[PendingPromise]:
    store = promises.store
    for promise in store.abandoned():
        yield PendingPromise(store.state, promise, partial(_report_own, store))
    for journal in journals:
        yield from journal.pending()


def _in_progress(journals: DeadJournals, now: float) -> Iterable[PendingPromise]:
    """Yield the promises that the reapers of other processes have not fulfilled yet."""
    for journal in journals.in_progress:
        for pending in journal.pending():
            if pending.promise.needs_recovery(now) and pending.is_open():
                yield pending


def _result_in_progress(promises: Promises, pending: PendingPromise, existing: frozenset[str]) -> Orphan:
    promise = pending.promise
    ids = {each for each in (promise.instance_id, *promise.candidates) if each}
    if promise.account != promises.account:
        return _orphan(pending, "foreign")
    if ids and not ids & existing:
        return _orphan(pending, "gone")
    return _orphan(pending, "ambiguous" if promise.candidates else "releasing", None, promise.candidates)


def _report_own(store: PromiseStore, record: Record) -> None:
    store.put(record)
    store.commit()


async def _existing_ids(
    instances: Instances,
    listed: Listing[Instance],
    asked: Iterable[PendingPromise],
    now: float,
    *,
    deadline: float,
) -> frozenset[str]:
    """Return the existing ids. An id in `asked` counts as missing only if later readings of it agree."""
    existing, unlisted, missing = set(existing_ids(listed)), set[str](), set[str]()
    for pending in asked:
        promise = pending.promise
        ids = {each for each in (promise.instance_id, *promise.candidates) if each}
        # A new instance may not be visible yet.
        (existing if invisible_for(promise, now) else unlisted).update(ids)

    async def read(instance_id: str) -> None:
        with contextlib.suppress(Exception):  # an error does not mean that it is missing
            if await instances.poller.next(instances.poller.subscribe(instance_id)) is None:
                missing.add(instance_id)

    with anyio.CancelScope(deadline=deadline):
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
    deadline: float,
) -> list[Orphan]:
    results: list[Orphan] = []
    undecided: list[PendingPromise] = []
    for pending in due:
        if pending.promise.candidates and not existing.intersection(pending.promise.candidates):
            # Resolved by hand: none of the candidates exists any longer.
            pending.record_gone()
            results.append(_orphan(pending, "gone"))
        else:
            undecided.append(pending)
    remaining = max(deadline - anyio.current_time(), 0.0)
    recovery = Recovery(
        instances=instances,
        foreign_claims=claims,
        decision_lock=promises.store.decision_lock,
        note=lambda text: log(Event.GUARD_SWEEP, text=text),
        # The search ends with a last list, which needs some of the time.
        timeout=remaining - min(_LAST_LIST_TIME, remaining / 10),
        wall_clock=promises.system.wall_clock,
        record_cost=(lambda line: promises.store.ledger.write([line])) if promises.uses_journal else bool,
        writer="sweep",
    )
    with anyio.CancelScope(deadline=deadline):
        await recovery.run(undecided)
    for pending in undecided:
        found = recovery.results.get(pending)
        if found is not None:
            results.append(_orphan(pending, found.state, found.instance_id, found.candidates))
        else:
            results.append(_orphan(pending, "left" if pending.promise.instance_id else "unsettled"))
    return results


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
