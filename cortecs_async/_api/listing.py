"""`Listing`: the parsed entries of a list, and the available facts about the others."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Self, TypeVar

from attrs import define, field, frozen

from .._display import Row, html_table
from .domain import Instance

T_co = TypeVar("T_co", covariant=True)


@frozen(kw_only=True)
class UnreadableEntry:
    """A list entry that does not have the documented shape.

    Attributes:
        entry_id: Its `instance_id`, `model_id`, or `hardware_type_id`, or None if the value is not a string.
        problem: What is wrong and where, as a path in which `$` is the entry. It does not contain any values.

    Example:
        for entry in (await client.instances.list()).unreadable:
            print(entry.entry_id, entry.problem)
    """

    entry_id: str | None
    problem: str


class Listing(tuple[T_co, ...]):  # noqa: SLOT001  (a tuple's subclass cannot have slots with a value)
    """A list from the service as a tuple, in the service's order, without entries that cannot be parsed.

    Check `unreadable` too. In a list of instances, an entry that cannot be parsed is an instance that exists
    and may be billed. It may belong to another user of the account.

    A `Listing` is equal to any tuple with the same entries. A slice is a plain tuple.

    Attributes:
        unreadable: The entries that cannot be parsed, in the service's order.
        date: The time the service sent the list, by its own clock: the `Date` header as Unix time in seconds,
            or None if the response has no such header, or it is not a date.

    Example:
        instances = await client.instances.list()
        print(len(instances), "instances,", len(instances.unreadable), "unreadable")
    """

    unreadable: tuple[UnreadableEntry, ...]
    date: float | None

    def __new__(
        cls,
        entries: Iterable[T_co] = (),
        *,
        unreadable: Iterable[UnreadableEntry] = (),
        date: float | None = None,
    ) -> Self:
        listing = super().__new__(cls, entries)
        listing.unreadable = tuple(unreadable)
        listing.date = date
        return listing

    def __repr__(self) -> str:
        entries = super().__repr__()
        return f"Listing({entries}, unreadable={self.unreadable!r})" if self.unreadable else entries

    def _repr_html_(self) -> str:
        table = html_table(each._columns() for each in self if isinstance(each, Row))  # noqa: SLF001  (ours)
        if not self.unreadable:
            return table
        entries = "entry" if len(self.unreadable) == 1 else "entries"
        return f"{table}<p>{len(self.unreadable)} more {entries} could not be parsed</p>"


# The number of consecutive lists that must show an instance, and for how many seconds they may disagree: a
# lagging replica still shows deleted instances and does not show started ones yet.
_MIN_LISTS, _MAX_LAG = 4, 60.0


@define
class _Listed:
    """The first and last time an instance was listed, and the latest run of lists that show it."""

    instance: Instance
    first: float
    last: float
    since: float
    count: int = 1


@define
class RecentLists:
    """The instances shown by the lists of the last few seconds. A single list may be incomplete.

    Attributes:
        span: Seconds for which an instance is kept after lists no longer show it.
        began: The time the first list was added, in seconds of `anyio.current_time`.
    """

    span: float
    began: float = math.inf
    _newest: float = -math.inf
    _listed: dict[str, _Listed] = field(factory=dict)

    def add(self, instances: Listing[Instance], now: float) -> Listing[Instance]:
        """Add a list. Return it together with the instances that other lists have shown recently."""
        self.began = min(self.began, now)
        previous, self._newest = self._newest, now
        for each in instances:
            listed = self._listed.setdefault(each.instance_id, _Listed(each, now, now, now, 0))
            if listed.last < previous:
                listed.since, listed.count = now, 0
            listed.instance, listed.last, listed.count = each, now, listed.count + 1
        self._listed = {key: value for key, value in self._listed.items() if now - value.last < self.span}
        kept = (listed.instance for listed in self._listed.values())
        return Listing(kept, unreadable=instances.unreadable, date=instances.date)

    def first_listed_at(self, instance: Instance) -> float:
        """Return the time at which a list first showed an instance."""
        return self._listed[instance.instance_id].first

    def agree_on(self, *instance_ids: str, seconds: float) -> bool:
        """Return whether the last lists, several of them and for `seconds`, all show these instances.

        After a minute, it no longer matters if some lists do not show them.
        """
        found = [self._listed[each] for each in instance_ids if each in self._listed]
        return all(
            (each.last == self._newest and each.last - each.since >= seconds and each.count >= _MIN_LISTS)
            or each.last - each.first >= _MAX_LAG
            for each in found
        )


def existing_ids(instances: Listing[Instance]) -> frozenset[str]:
    """Return the ids of all instances in the list, even if their entries cannot be parsed.

    An unparsed entry without an id (`entry_id` is None) is not included.
    """
    unreadable = {each.entry_id for each in instances.unreadable if each.entry_id is not None}
    return frozenset(unreadable.union(each.instance_id for each in instances))


def read_date(value: Any) -> float | None:
    """Return a `Date` header as Unix time in seconds, or None if it is missing or not a date."""
    try:
        moment = parsedate_to_datetime(value)
        # Without a time zone it is UTC, according to RFC 9110.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except Exception:  # noqa: BLE001  (the header may be anything, and it is not documented what is raised)
        return None
