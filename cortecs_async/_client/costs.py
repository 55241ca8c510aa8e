"""`client.costs`: add up the cost ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime, time
from functools import partial
from typing import Literal, get_args

from attrs import evolve, field, frozen

from .._display import Row, duration_text, html_table, money_text
from .._durations import Duration, duration_problem, parse_duration
from .._errors import InvalidArgumentError
from .._public import publish_loaded
from .._recovery.cost_lines import LeaseCost, priced
from .._recovery.promises import Promises

CostGroup = Literal["project", "model", "hardware", "day", "outcome"]


@frozen(kw_only=True)
class CostRow(Row):
    """The estimated cost of a group of leases, in one currency.

    Attributes:
        key: The group, such as the name of the project. Empty if the leases have none.
        leases: Number of leases.
        failed: Number of them that were started but never usable.
        unknown: Number of them without a known cost. `cost` does not include these.
        seconds: The time of all leases that is known.
        cost: The cost, or None if no cost is known.
        currency: The currency, or an empty string if unknown. Currencies are never added up: a group with two
            of them has two rows.

    Example:
        report = await client.costs(by="project")
        for row in report.rows:
            print(row.key, row.leases, row.cost, row.currency)
    """

    key: str
    leases: int
    failed: int
    unknown: int
    seconds: float
    cost: float | None
    currency: str

    @property
    def cost_text(self) -> str:
        """The cost for people, such as `at least 1.20 EUR`, or `unknown`."""
        text = money_text(self.cost, self.currency)
        return f"at least {text}" if text and self.unknown else text or "unknown"

    def __str__(self) -> str:
        leases = f"{self.leases} lease{'' if self.leases == 1 else 's'}"
        failed = f" ({self.failed} failed)" if self.failed else ""
        return f"{self.key or '(none)'}: {leases}{failed}, {duration_text(self.seconds)}, {self.cost_text}"

    def _columns(self) -> Mapping[str, object]:
        return {
            "group": self.key or "(none)",
            "leases": self.leases,
            "failed": self.failed or "",
            "time": duration_text(self.seconds),
            "cost": self.cost_text,
        }


@frozen(kw_only=True)
class CostReport(Row):
    """What the leases of this machine cost, from `client.costs`: an estimate from list prices, not the bill.

    Attributes:
        rows: One row per group and currency. Days are in order; other groups with the highest cost come
            first. Without a group, one row per lease, oldest first.
        total: The total: one row per currency. Empty if there are no leases.
        leases: All leases, oldest first.
        unreadable: Number of lines in the cost ledger that could not be parsed.

    Example:
        report = await client.costs(since="7d", by="day")
        print(report)
    """

    rows: tuple[CostRow, ...]
    total: tuple[CostRow, ...]
    leases: tuple[LeaseCost, ...] = field(repr=False)
    unreadable: int = 0

    def __str__(self) -> str:
        return "\n".join(map(str, [*self.rows, *self.total])) or "No leases."

    def _repr_html_(self) -> str:
        return html_table(each._columns() for each in [*self.rows, *self.total])  # noqa: SLF001  (of this module)


_KEYS: dict[str | None, Callable[[LeaseCost], str]] = {
    "project": lambda lease: lease.project,
    "model": lambda lease: lease.model,
    "hardware": lambda lease: lease.hardware_type_id,
    "outcome": lambda lease: lease.outcome,
    "day": lambda lease: f"{datetime.fromtimestamp(lease.ended_at).astimezone():%Y-%m-%d}",
}


async def costs(
    promises: Promises, *, since: Duration | date | None, until: Duration | date | None, by: CostGroup | None
) -> CostReport:
    """Add up the leases of a client's service.

    Raises:
        InvalidArgumentError: If an argument is invalid.
        JournalError: If the state directory cannot be used.
    """
    if by is not None and by not in _KEYS:
        names = ", ".join(map(repr, get_args(CostGroup)))
        raise InvalidArgumentError(f"by must be one of {names}, or None, not {by!r}")
    now = promises.system.wall_clock()
    first = 0.0 if since is None else as_moment("since", since, now)
    end = None if until is None else as_moment("until", until, now)
    if end is not None and first >= end:
        raise InvalidArgumentError(f"The period is empty: since ({since!r}) is not before until ({until!r})")
    content = await promises.system.off_loop(partial(promises.store.ledger.read, promises.api, first))
    leases = tuple(
        sorted(
            (
                each
                for each in _with_assumed_prices(content.leases)
                if first <= each.ended_at and (end is None or each.ended_at < end)
            ),
            key=lambda each: each.ended_at,
        )
    )
    return CostReport(
        rows=_rows(leases, by),
        total=_group("total", leases),
        leases=leases,
        unreadable=content.num_unreadable,
    )


def as_moment(name: str, value: Duration | date, now: float) -> float:
    """Return a Unix time. A duration is counted back from `now`, and a date begins at midnight, local time.

    Raises:
        InvalidArgumentError: If the value is neither. The message begins with `name`.
    """
    try:
        if isinstance(value, str) and "-" in value:
            value = datetime.fromisoformat(value)
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time())
        if isinstance(value, datetime):
            return value.timestamp()
        if (problem := duration_problem(value)) is None:
            seconds = parse_duration(value) if isinstance(value, str) else value
            return now - (seconds if isinstance(seconds, (int, float)) else seconds.total_seconds())
    except (ValueError, OverflowError, OSError):
        problem = ""
    raise InvalidArgumentError(
        f'{name} must be a duration or a date (examples: "30d", "2026-11-01"), not {value!r}'
        if not problem or isinstance(value, str)
        else f"{name} {problem}"
    )


def _with_assumed_prices(leases: Iterable[LeaseCost]) -> Iterable[LeaseCost]:
    """Fill in unknown prices from other leases on the same hardware, the newest first."""
    leases = list(leases)
    known: dict[tuple[str, str], LeaseCost] = {}
    for lease in leases:
        if lease.interval_price is not None:
            known[lease.hardware_type_id, lease.billing_interval] = lease
    for lease in leases:
        other = known.get((lease.hardware_type_id, lease.billing_interval))
        if lease.cost is None and lease.seconds is not None and lease.hardware_type_id and other is not None:
            price = (other.interval_price or 0.0) / other.num_workers * lease.num_workers
            yield evolve(priced(lease, price), currency=other.currency, is_price_assumed=True)
        else:
            yield lease


def _rows(leases: Sequence[LeaseCost], by: CostGroup | None) -> tuple[CostRow, ...]:
    if by is None:
        return tuple(row for each in leases for row in _group(each.instance_id, [each]))
    groups: dict[str, list[LeaseCost]] = {}
    for lease in leases:
        groups.setdefault(_KEYS[by](lease), []).append(lease)
    rows = [row for key in sorted(groups) for row in _group(key, groups[key])]
    if by != "day":
        rows.sort(key=lambda row: -1.0 if row.cost is None else row.cost, reverse=True)
    return tuple(rows)


def _group(key: str, leases: Sequence[LeaseCost]) -> tuple[CostRow, ...]:
    """Return one row per currency. Leases whose cost is unknown are in the first one."""
    known: dict[str, list[LeaseCost]] = {}
    for lease in leases:
        if lease.cost is not None:
            known.setdefault(lease.currency, []).append(lease)
    unknown = [each for each in leases if each.cost is None]
    if unknown:
        known.setdefault(min(known, default=""), []).extend(unknown)
    return tuple(
        CostRow(
            key=key,
            leases=len(part),
            failed=sum(each.outcome == "failed" for each in part),
            unknown=sum(each.cost is None for each in part),
            seconds=round(sum(each.seconds or 0.0 for each in part), 3),
            cost=_sum(each.cost for each in part),
            currency=currency,
        )
        for currency, part in sorted(known.items())
    )


def _sum(amounts: Iterable[float | None]) -> float | None:
    known = [each for each in amounts if each is not None]
    return round(sum(known), 6) if known else None


publish_loaded()
