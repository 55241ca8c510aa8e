"""What others have promised on an account, as far as their books tell: whose instance may be whose."""

from __future__ import annotations

from collections.abc import Container, Iterable

import attrs
from attrs import field, frozen

from .._api.domain import InstanceArgs
from .._api.matching import Unknown
from .records import Book, Entry

# Seconds in which another process's start can still be under way.
_FLIGHT = 600.0


@frozen
class Others:
    """What others lay claim to.

    Attributes:
        ids: Instances that are theirs.
        starting: Starts of the living, which may be under way.
        unanswered: Starts of the living that have got no answer, and are looked for as well.
        doomed: Starts of the dead, whose reapers look for what they made.
    """

    ids: set[str] = field(factory=set)
    starting: list[Unknown] = field(factory=list)
    unanswered: list[Unknown] = field(factory=list)
    doomed: list[Unknown] = field(factory=list)


def claims_of_others(
    api: str, own: Book, own_keys: Container[str], known: Iterable[Book], now: float
) -> Others:
    """What other promises lay claim to, of this account or of one that may be the same under another name.

    Args:
        api: The base URL of the service.
        own: The book that our own promises stand in, beside those of others perhaps.
        own_keys: Which of them are ours. Keys tell nothing in other books: processes of two containers can
            have the same.
        known: The other books.
        now: The current Unix time in seconds.
    """
    others = Others()
    for book in (own, *known):
        for entry in list(book.entries.values()):
            if entry.api != api or (book is own and entry.key in own_keys):
                continue
            if entry.instance_id is not None:
                others.ids.add(entry.instance_id)
            elif entry.candidates:
                others.ids.update(entry.candidates)
            elif book.is_orphaned:
                others.doomed.append(unknown_of(book, entry))
            elif now - entry.at < _FLIGHT:
                kind = others.unanswered if entry.unanswered else others.starting
                kind.append(unknown_of(book, entry))
    return others


def unknown_of(book: Book, entry: Entry) -> Unknown:
    """The start of which an intent tells."""
    return Unknown(
        args=read_args(entry),
        baseline=book.known_before(entry),
        order=(entry.at, f"{book.owner.get('id')}{entry.key}"),
    )


def read_args(entry: Entry) -> InstanceArgs:
    """The arguments of an intent."""
    known = {each.name for each in attrs.fields(InstanceArgs)}
    return InstanceArgs(**{name: value for name, value in entry.args.items() if name in known})
