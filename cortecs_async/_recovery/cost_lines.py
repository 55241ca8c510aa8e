"""The lines of the cost ledger: what one lease cost. `ledger` writes and reads them.

A lease has one line. It gets several if a process died between writing the line and closing its promise, so
that the reaper or a sweep writes it again, or if a line says that the instance still runs and a later one
that it was released. `merged` makes one lease of them. Lines belong together if they have the same service,
instance, and `lease_id`: the key of the promise, which is unique.

While an instance runs, its promise contains the `bill`: the fields of the line that are already known.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from attrs import evolve, frozen

from .._api.billing import cost_of, intervals_begun
from .._api.model_ids import to_hf_name
from .._display import Row, joined, money_text, time_text
from .promise import Promise
from .records import Record

# The version of the format. Lines may gain fields without a new version.
_FORMAT = 1

CostOutcome = Literal[
    "released",
    "stopped",
    "failed",
    "cancelled",
    "lost",
    "expired",
    "idle",
    "recovered",
    "kept",
    "unreleased",
]

# The year 9999, as Unix time.
_END_OF_TIME = datetime(9999, 1, 1, tzinfo=UTC).timestamp()

# The instance still runs, as far as the line knows.
_UNFINISHED = frozenset({"kept", "unreleased"})

CostWriter = Literal["lease", "reaper", "sweep"]

# Fields that a line can lack, because its writer did not know them. Another line of the lease may have them.
_OPTIONAL = ("model", "hardware_type_id", "project", "interval_price", "currency")


@frozen(kw_only=True)
class LeaseCost(Row):
    """The estimated cost of one lease that has ended, from `client.costs`.

    Attributes:
        instance_id: The id of the instance.
        model: The model, or an empty string if unknown.
        hardware_type_id: The GPU set of each worker, or an empty string if unknown.
        num_workers: Number of workers.
        billing_interval: `per_minute` or `per_hour`.
        project: The project, or an empty string without one.
        outcome: How the lease ended.

            - `released`: the instance was deleted.
            - `stopped`: the instance was stopped and kept.
            - `failed`: the instance was started but never usable.
            - `cancelled`: the start was cancelled before the instance was usable.
            - `lost`: the instance stopped or disappeared by itself.
            - `expired`: `max_lifetime` or `max_cost` was reached.
            - `idle`: `idle_timeout` was reached.
            - `recovered`: the process died or gave up. The reaper or a sweep released the instance.
            - `kept`: the instance kept running, as with `acquire`. Its cost is not known until it is
              released.
            - `unreleased`: the release failed. **The instance may still be billed.**
        started_at: Unix time in seconds of the start request.
        ended_at: Unix time in seconds of the accepted stop request, or when the lease ended.
        seconds: The seconds between the two, or None if unknown.
        interval_price: The list price of one billing interval for all workers, or None if unknown.
        cost: The cost in `currency`, or None if unknown.
        currency: The currency, or an empty string if unknown.
        is_price_assumed: Whether the price was unknown when the lease ended. The price is then taken from
            another lease on the same hardware.
        written_by: Who released the instance: `lease`, `reaper`, or `sweep`.
        account: A fingerprint of the account.
        api_base_url: The URL of the service.
        lease_id: A unique name of the lease.

    Example:
        report = await client.costs(since="30d")
        for lease in report.leases:
            print(lease)
    """

    instance_id: str
    model: str
    hardware_type_id: str
    num_workers: int
    billing_interval: str
    project: str
    outcome: str
    started_at: float
    ended_at: float
    seconds: float | None
    interval_price: float | None
    cost: float | None
    currency: str
    is_price_assumed: bool = False
    written_by: str
    account: str
    api_base_url: str
    lease_id: str

    @property
    def is_final(self) -> bool:
        """Whether the instance was released, so that this is the whole cost."""
        return self.outcome not in _UNFINISHED

    def __str__(self) -> str:
        cost = money_text(self.cost, self.currency) or "cost unknown"
        return joined(f"{self.instance_id} {self.outcome}", self.model, self.project, cost)

    def _columns(self) -> Mapping[str, object]:
        return {
            "ended (UTC)": time_text(self.ended_at),
            "instance": self.instance_id,
            "outcome": self.outcome,
            "model": self.model,
            "hardware": self.hardware_type_id,
            "project": self.project,
            "seconds": "" if self.seconds is None else f"{self.seconds:.0f}",
            "cost": money_text(self.cost, self.currency) or "not known",
        }


def cost_line(
    bill: Record,
    *,
    lease_id: str,
    instance_id: str,
    started_at: float,
    ended_at: float,
    seconds: float | None,
    outcome: CostOutcome,
    written_by: CostWriter,
    account: str,
    api_base_url: str,
) -> Record:
    """Return a line. Times are Unix times, and `seconds` is None if it is not known when billing ended."""
    interval = _text(bill, "billing_interval") or "per_minute"
    price = _number(bill, "interval_price")
    intervals = None if seconds is None else intervals_begun(seconds, interval)
    return {
        "format": _FORMAT,
        "ended_at": _iso(ended_at),
        "started_at": _iso(started_at),
        "instance_id": instance_id,
        "model": _text(bill, "model"),
        "hardware_type_id": _text(bill, "hardware_type_id"),
        "num_workers": int(_number(bill, "num_workers") or 1),
        "billing_interval": interval,
        "seconds": None if seconds is None else round(seconds, 3),
        "intervals": intervals,
        "interval_price": price,
        "cost": None if intervals is None or price is None else cost_of(intervals, price),
        "currency": _text(bill, "currency"),
        "project": _text(bill, "project"),
        "outcome": outcome,
        "written_by": written_by,
        "lease_id": lease_id,
        "account": account,
        "api_base_url": api_base_url,
        "estimate": True,
    }


def line_of_promise(
    promise: Promise,
    instance_id: str,
    *,
    ended_at: float,
    is_end_known: bool,
    outcome: CostOutcome,
    written_by: CostWriter,
) -> Record | None:
    """Return the line for a promise that is fulfilled, or None if no lease of this package started it.

    `ended_at` is a time of the clock of `promise.at`.
    """
    if not promise.args and not promise.bill:
        return None
    args, bill = promise.args, promise.bill
    sent: Record = {name: args.get(name) for name in ("hardware_type_id", "num_workers", "billing_interval")}
    if model := _text(args, "model_id"):
        sent["model"] = to_hf_name(model)
    since = _number(bill, "since")
    started_at = promise.at if since is None else since
    return cost_line(
        {**sent, **bill},
        lease_id=_text(bill, "lease_id") or promise.key,
        instance_id=instance_id,
        started_at=started_at,
        ended_at=ended_at,
        seconds=max(ended_at - started_at, 0.0) if is_end_known else None,
        outcome=outcome,
        written_by=written_by,
        account=promise.account,
        api_base_url=promise.api,
    )


def bill_of(lease: LeaseCost) -> Record:
    """Return the bill for the promise to release an instance whose lease has ended without releasing it."""
    return {
        "model": lease.model,
        "hardware_type_id": lease.hardware_type_id,
        "num_workers": lease.num_workers,
        "billing_interval": lease.billing_interval,
        "interval_price": lease.interval_price,
        "currency": lease.currency,
        "project": lease.project,
        "lease_id": lease.lease_id,
        "since": lease.started_at,
    }


def parse_line(data: bytes) -> LeaseCost | None:
    """Return the lease in a line, or None if the line cannot be parsed or has a different format."""
    try:
        line = json.loads(data)
        if line["format"] != _FORMAT:
            return None
        return LeaseCost(
            instance_id=_required(line, "instance_id"),
            model=_text(line, "model"),
            hardware_type_id=_text(line, "hardware_type_id"),
            num_workers=max(int(_number(line, "num_workers") or 1), 1),
            billing_interval=_text(line, "billing_interval"),
            project=_text(line, "project"),
            outcome=_required(line, "outcome"),
            started_at=_moment(line["started_at"]),
            ended_at=_moment(line["ended_at"]),
            seconds=_number(line, "seconds"),
            interval_price=_number(line, "interval_price"),
            cost=_number(line, "cost"),
            currency=_text(line, "currency"),
            written_by=_text(line, "written_by"),
            account=_text(line, "account"),
            api_base_url=_required(line, "api_base_url"),
            lease_id=_required(line, "lease_id"),
        )
    except (ValueError, TypeError, KeyError, OverflowError, OSError, RecursionError):
        return None


def merged(lines: Iterable[LeaseCost]) -> tuple[LeaseCost, ...]:
    """Return the leases in lines that are in the order in which they were written. The order stays."""
    by_lease: dict[tuple[str, str, str], list[LeaseCost]] = {}
    for line in lines:
        key = (line.api_base_url, line.instance_id, line.lease_id)
        by_lease.setdefault(key, []).append(line)
    return tuple(map(_merge, by_lease.values()))


def _merge(lines: list[LeaseCost]) -> LeaseCost:
    final = [each for each in lines if each.is_final]
    # The first one saw the instance end first. The others only found that it was already gone.
    best = final[0] if final else lines[-1]
    missing: dict[str, Any] = {}
    for name in _OPTIONAL:
        known = [value for each in lines if (value := getattr(each, name))]
        if not getattr(best, name) and known:
            missing[name] = known[0]
    if best.seconds is None and final:
        missing["seconds"] = next((each.seconds for each in final if each.seconds is not None), None)
    best = evolve(best, **missing) if missing else best
    # Only the lease itself knows how its block ended.
    if outcome := next((each.outcome for each in final if each.written_by == "lease"), None):
        best = evolve(best, outcome=outcome)
    return priced(best, best.interval_price)


def priced(lease: LeaseCost, interval_price: float | None) -> LeaseCost:
    """Return a lease with its cost at a price, unless the cost is already known or cannot be computed."""
    if lease.cost is not None or lease.seconds is None or interval_price is None:
        return lease
    cost = cost_of(intervals_begun(lease.seconds, lease.billing_interval), interval_price)
    return evolve(lease, cost=cost, interval_price=interval_price)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def _moment(text: str) -> float:
    moment = datetime.fromisoformat(text).timestamp()
    # Others cannot be shown in each time zone.
    if not 0 <= moment < _END_OF_TIME:
        raise ValueError(f"{text} is not a time of a lease")
    return moment


def _text(record: Mapping[str, Any], name: str) -> str:
    value = record.get(name)
    return value if isinstance(value, str) else ""


def _required(record: Mapping[str, Any], name: str) -> str:
    if not (text := _text(record, name)):
        raise ValueError(f"{name} is missing")
    return text


def _number(record: Mapping[str, Any], name: str) -> float | None:
    value: Any = record.get(name)
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return None
    return float(value) if math.isfinite(value) and value >= 0 else None
