"""`Listing`: the parsed entries of a list, and the available facts about the others."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Self, TypeVar

from attrs import frozen

from .._display import Row, html_table

if TYPE_CHECKING:
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


def existing_ids(instances: Listing[Instance]) -> frozenset[str]:
    """Return the ids of all instances in the list, even if their entries cannot be parsed.

    An unparsed entry without an id (`entry_id` is None) is not included.
    """
    unreadable = {each.entry_id for each in instances.unreadable if each.entry_id is not None}
    return frozenset(unreadable.union(each.instance_id for each in instances))


class ListedIds:
    """The ids in a list of all instances.

    Attributes:
        date: The date of the list (see `Listing`).
        began: When it was requested, in seconds of `anyio.current_time`.
        baseline: Its name in the journal, once a start request uses it as its baseline.
    """

    def __init__(self, ids: frozenset[str], date: float | None, began: float) -> None:
        self.ids = ids
        self.date = date
        self.began = began
        self.baseline: str | None = None

    @classmethod
    def of(cls, instances: Listing[Instance], began: float) -> Self:
        return cls(existing_ids(instances), instances.date, began)


def read_date(value: Any) -> float | None:
    """Return a `Date` header as Unix time in seconds, or None if it is missing or not a date."""
    try:
        moment = parsedate_to_datetime(value)
        # Without a time zone it is UTC, according to RFC 9110.
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except Exception:  # noqa: BLE001  (the header may be anything, and it is not documented what is raised)
        return None
