"""Finishing what dead owners left: the journals that no process holds the lock of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import anyio
from attrs import frozen

from .._aio.clock import WallClock
from .._api.domain import Instance, to_hf_name
from .._api.instances import Instances
from .._api.matching import match_start
from .._logging import Event, log
from .claims import ForeignClaims, claims_of_others
from .journal import JournalFile, orphaned_journals
from .promises import Promises
from .records import JournalState, Record
from .recover import PendingPromise, Recovery, is_proven

# Seconds in which a start's instance may still show itself.
_WINDOW = 60.0

OrphanState = Literal["found", "unsettled", "released", "gone", "ambiguous", "left", "held", "foreign"]


@frozen(kw_only=True)
class Orphan:
    """A promise whose process died before it was kept.

    Attributes:
        state: `found`, and to be released; `unsettled`: asked for less than a minute ago, and may still
            appear; `released` just now; `gone` already, or never there;
            `ambiguous`: it may be one of `candidates`, which nobody but you can tell, and nothing is touched;
            `left`: the service could not be brought to it in time; `held`: acquired, and its time is not up;
            `foreign`: it belongs to other credentials than these, or to another service: see `api_base_url`.
        instance_id: The instance, where it is known.
        model: What was started; empty where only the id was noted.
        candidates: Ids that it might be.
        started_at: Unix time in seconds at which that process asked for it: for its start, or where it took
            it over, as `release` does, for that.
        owner: Host and process id of who asked.
        api_base_url: The service that it was asked from.
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
    """Releases what is proven to be left behind, or with `dry_run` only says what is.

    Args:
        instances: Where the requests go, unretried.
        keeper: For the account and the directory.
        dry_run: Touch nothing.
        timeout: Seconds for all of it.
    """
    listed = await instances.list()  # and with it the token that tells the account
    wall_clock = promises.system.wall_clock
    journals = await promises.system.off_loop(lambda: _journals(promises))
    results: list[Orphan] = []
    try:
        debts: list[PendingPromise] = []
        now = wall_clock()
        for debt in _debts(promises, journals):
            entry = debt.promise
            if entry.account != promises.account:
                results.append(_orphan(debt, "foreign"))
            elif entry.is_left(now):
                debts.append(debt)
            else:
                results.append(_orphan(debt, "held"))
        paths = {journal.path for journal, _ in journals}
        own = promises.journal_states.book
        keys = {debt.promise.key for debt in debts if debt.state is own}

        def others() -> ForeignClaims:
            others = promises.journal_states.others(without=paths)
            return claims_of_others(promises.api, own, keys, others, wall_clock())

        if dry_run:
            results += _preview(debts, listed, others(), now)
        else:
            results += await _finish(instances, debts, listed, others, timeout, wall_clock=wall_clock)
    finally:
        for journal, book in journals:
            if book.promises:
                journal.close()
            else:
                journal.remove()
    return tuple(sorted(results, key=lambda each: each.started_at))


def _journals(promises: Promises) -> list[tuple[JournalFile, JournalState]]:
    if not promises.reads_journals:
        return []
    return [(journal, journal.read()) for journal in orphaned_journals(promises.directory)]


def _debts(
    promises: Promises, journals: Iterable[tuple[JournalFile, JournalState]]
) -> Iterable[PendingPromise]:
    own = promises.journal_states
    for entry in own.abandoned():
        yield PendingPromise(own.book, entry, own.put)
    for journal, book in journals:
        for entry in list(book.promises.values()):
            yield PendingPromise(book, entry, _writer(book, journal))


def _writer(book: JournalState, journal: JournalFile) -> Callable[[Record], None]:
    def write(record: Record) -> None:
        book.apply(record)
        try:
            journal.append([record], durable=False)
        except OSError as error:
            # The next sweep finds it gone.
            log(Event.GUARD_SWEEP_UNWRITTEN, journal=str(journal.path), error=error)

    return write


async def _finish(
    instances: Instances,
    debts: Sequence[PendingPromise],
    listed: Iterable[Instance],
    others: Callable[[], ForeignClaims],
    timeout: float,
    *,
    wall_clock: WallClock,
) -> list[Orphan]:
    existing = {each.instance_id for each in listed}
    results: list[Orphan] = []
    due: list[PendingPromise] = []
    for debt in debts:
        if debt.promise.candidates and not existing.intersection(debt.promise.candidates):
            # Somebody has decided: of what could not be told apart, nothing is left.
            debt.report({"kind": "GONE", "entry": debt.promise.key})
            results.append(_orphan(debt, "gone"))
        else:
            due.append(debt)
    age = wall_clock() - max((debt.promise.at for debt in due), default=0.0)
    finisher = Recovery(
        instances=instances,
        foreign_claims=others,
        note=lambda text: log(Event.GUARD_SWEEP, text=text),
        timeout=timeout,
        visible_until=anyio.current_time() + max(_WINDOW - age, 0.0),
        wall_clock=wall_clock,
    )
    finished = await finisher.run(due)
    return results + [
        _orphan(debt, each.state, each.instance_id, each.candidates) for debt, each in finished.items()
    ]


def _preview(
    debts: Sequence[PendingPromise], listed: Sequence[Instance], others: ForeignClaims, now: float
) -> Iterable[Orphan]:
    existing = {each.instance_id for each in listed}
    known = {debt.promise.instance_id for debt in debts} | others.ids
    free = [each for each in listed if each.instance_id not in known]
    lost = {
        debt: debt.unresolved_start()
        for debt in debts
        if debt.promise.instance_id is None and not debt.promise.candidates
    }
    starts = sorted([*others.orphaned_starts, *lost.values()], key=lambda each: each.order)
    for debt in debts:
        entry = debt.promise
        if entry.candidates:
            still = existing.intersection(entry.candidates)
            yield _orphan(debt, "ambiguous" if still else "gone", None, entry.candidates)
        elif entry.instance_id is not None:
            yield _orphan(debt, "found" if entry.instance_id in existing else "gone")
        else:
            outcome = match_start(lost[debt], starts, free)
            if outcome is None:
                is_young = now - entry.at < _WINDOW
                yield _orphan(debt, "unsettled" if is_young else "gone")
            elif not isinstance(outcome, Instance):
                yield _orphan(debt, "ambiguous", None, outcome.candidates)
            elif is_proven(outcome, entry, others, now):
                yield _orphan(debt, "found", outcome.instance_id)
            else:
                yield _orphan(debt, "ambiguous", None, (outcome.instance_id,))


def _orphan(
    debt: PendingPromise, state: OrphanState, instance_id: str | None = None, candidates: tuple[str, ...] = ()
) -> Orphan:
    owner, entry = debt.state.owner, debt.promise
    return Orphan(
        state=state,
        instance_id=instance_id or entry.instance_id,
        model=to_hf_name(str(entry.args.get("model_id", ""))),
        candidates=candidates,
        started_at=entry.at,
        owner=f"{owner.get('host', '?')}, process {owner.get('pid', '?')}",
        api_base_url=entry.api,
    )
