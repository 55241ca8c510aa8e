"""Who answers for an instance, as far as the journals tell. Reads only, and asks the service nothing."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from typing import Literal

from attrs import frozen

from .journal import is_owned, read_journals
from .promises import Promises
from .records import JournalState, Promise
from .store import all_stores

OwnerKind = Literal["mine", "process", "orphan", "held"]

# Where several journals name one instance: who is about to do something about it comes first.
_FIRST: tuple[OwnerKind, ...] = ("mine", "process", "orphan", "held")


@frozen(kw_only=True)
class Owner:
    """Who answers for an instance.

    Attributes:
        kind: `mine`: this process; `process`: another one, which lives; `orphan`: one that died or has given
            up on it, and whose reaper or `sweep` releases it; `held`: whoever has the handle that `acquire`
            gave, until `expires_at`.
        owner: Host and process id of who asked for it.
        started_at: Unix time in seconds at which this owner asked for it: for its start, or where it took it
            over, as `release` does, for that.
        expires_at: Unix time in seconds after which it goes in any case; None for never.
    """

    kind: OwnerKind
    owner: str
    started_at: float
    expires_at: float | None = None


async def owners(promises: Promises) -> Mapping[str, Owner]:
    """The owners of all instances that a journal names, by their ids.

    Args:
        keeper: For the service and the directory.
    """
    if not promises.uses_journal:
        return _sorted(_own(promises))
    return await promises.system.off_loop(lambda: _sorted([*_own(promises), *_others(promises)]))


def _own(promises: Promises) -> Iterator[tuple[str, Owner]]:
    me = f"{socket.gethostname()}, process {os.getpid()}"
    # Of all clients of this process with this directory, also of those without a journal.
    for each in all_stores():
        if each.directory != promises.store.directory:
            continue
        for entry in list(each.state.promises.values()):
            if entry.instance_id is not None and entry.api == promises.api:
                yield entry.instance_id, _owner(entry, _own_kind(entry), me)


def _own_kind(entry: Promise) -> OwnerKind:
    # Of a lease that nobody left, on a loop that is gone perhaps, there is nobody here any more.
    if entry.abandoned:
        return "orphan"
    return "held" if entry.held else "mine"


def _others(promises: Promises) -> Iterator[tuple[str, Owner]]:
    own = {each.state.owner.get("id") for each in all_stores()}
    for path, book in read_journals(promises.store.directory):
        if book.owner.get("id") in own - {None}:
            continue
        named = [each for each in book.promises.values() if each.instance_id and each.api == promises.api]
        # Asked for last, and only where it matters: it costs a system call or two.
        is_living = is_owned(path) if named else None
        if is_living is not None:
            now = promises.system.wall_clock()
            owner = f"{book.owner.get('host', '?')}, process {book.owner.get('pid', '?')}"
            for entry in named:
                yield (
                    str(entry.instance_id),
                    _owner(entry, _kind(book, entry, now, is_living=is_living), owner),
                )


def _kind(book: JournalState, entry: Promise, now: float, *, is_living: bool) -> OwnerKind:
    # Once the owner is dead, its reaper has the lock.
    is_living = is_living and not book.is_orphaned
    if entry.held and not entry.is_due(now, owner_lives=is_living):
        return "held"
    return "process" if is_living and not entry.abandoned else "orphan"


def _owner(entry: Promise, kind: OwnerKind, owner: str) -> Owner:
    return Owner(kind=kind, owner=owner, started_at=entry.at, expires_at=entry.expires_at)


def _sorted(found: Iterator[tuple[str, Owner]] | list[tuple[str, Owner]]) -> Mapping[str, Owner]:
    best: dict[str, Owner] = {}
    for instance_id, owner in found:
        known = best.get(instance_id)
        if known is None or _FIRST.index(owner.kind) < _FIRST.index(known.kind):
            best[instance_id] = owner
    return best
