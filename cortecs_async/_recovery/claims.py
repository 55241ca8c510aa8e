"""What others have promised on an account, as far as their books tell: whose instance may be whose."""

from __future__ import annotations

from collections.abc import Container, Iterable

import attrs
from attrs import field, frozen

from .._api.domain import InstanceArgs
from .._api.matching import UnresolvedStart
from .records import JournalState, Promise

# Seconds in which another process's start can still be under way.
_FLIGHT = 600.0


@frozen
class ForeignClaims:
    """What others lay claim to.

    Attributes:
        ids: Instances that are theirs.
        starting: Starts of the living, which may be under way.
        unanswered: Starts of the living that have got no answer, and are looked for as well.
        doomed: Starts of the dead, whose reapers look for what they made.
    """

    ids: set[str] = field(factory=set)
    starting: list[UnresolvedStart] = field(factory=list)
    unanswered: list[UnresolvedStart] = field(factory=list)
    orphaned_starts: list[UnresolvedStart] = field(factory=list)


def collect_foreign_claims(
    api: str, own: JournalState, own_keys: Container[str], known: Iterable[JournalState], now: float
) -> ForeignClaims:
    """What other promises lay claim to, of this account or of one that may be the same under another name.

    Args:
        api: The base URL of the service.
        own: The book that our own promises stand in, beside those of others perhaps.
        own_keys: Which of them are ours. Keys tell nothing in other books: processes of two containers can
            have the same.
        known: The other books.
        now: The current Unix time in seconds.
    """
    others = ForeignClaims()
    for book in (own, *known):
        for entry in list(book.promises.values()):
            if entry.api != api or (book is own and entry.key in own_keys):
                continue
            if entry.instance_id is not None:
                others.ids.add(entry.instance_id)
            elif entry.candidates:
                others.ids.update(entry.candidates)
            elif book.is_orphaned:
                others.orphaned_starts.append(unresolved_start_of(book, entry))
            elif now - entry.at < _FLIGHT:
                kind = others.unanswered if entry.unanswered else others.starting
                kind.append(unresolved_start_of(book, entry))
    return others


def unresolved_start_of(state: JournalState, promise: Promise) -> UnresolvedStart:
    """The start of which an intent tells."""
    return UnresolvedStart(
        args=read_args(promise),
        baseline=state.baseline_of(promise),
        order=(promise.at, f"{state.owner.get('id')}{promise.key}"),
    )


def read_args(promise: Promise) -> InstanceArgs:
    """The arguments of an intent."""
    known = {each.name for each in attrs.fields(InstanceArgs)}
    return InstanceArgs(**{name: value for name, value in promise.args.items() if name in known})
