"""The texts and columns of `cortecs-async top`, without a terminal and without the service."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from attrs import evolve, field, frozen
from rich.console import JustifyMethod
from rich.text import Text

from ... import Instance
from ...types import Balance, HardwareType, Owner
from ..output import format_money, has_ended, one_line, sanitize, step_text
from ..owners import UNMANAGED, describe_owner, short_owner_words

_OWNER_STYLES = {"mine": "green", "process": "green", "held": "cyan", "orphan": "bold red"}
_STATUS_STYLES = {"running": "green", "pending": "yellow", "stopped": "dim"}

_OWNER_MEANINGS = {
    "mine": "top is releasing it",
    "process": "the process releases it when it exits",
    "orphan": "its reaper or `cortecs-async sweep` releases it",
    "held": "owned by the holder of its handle",
    UNMANAGED: "started without a lease or elsewhere; it runs until you stop it",
}

# The maximum width of the owner column, and the screen width needed for the long form.
_OWNER_WORDS, _WIDE_OWNERS = 48, 140

# Left out on a narrow screen, in this order.
_OPTIONAL_COLUMNS = ("model", "age", "cost")


@frozen(kw_only=True)
class Snapshot:
    """The data shown on the screen."""

    at: float | None = None  # Unix time of the last successful refresh
    instances: tuple[Instance, ...] = ()
    owners: Mapping[str, Owner] = field(factory=dict)  # by instance id
    hardware: Mapping[str, HardwareType] = field(factory=dict)  # by id of the hardware type
    balance: Balance | None = None
    spent_today: str = ""  # the estimated cost of the leases that ended today on this machine
    actions: Mapping[str, str] = field(factory=dict)  # such as "stopping", by instance id
    problem: str = ""  # the reason why the last refresh failed, or the missing data
    is_stale: bool = False  # whether the last refresh failed

    def find(self, instance_id: str | None) -> Instance | None:
        return next((each for each in self.instances if each.instance_id == instance_id), None)

    def owner_kind(self, instance: Instance) -> str:
        owner = self.owners.get(instance.instance_id)
        return owner.kind if owner is not None else UNMANAGED

    def price_per_minute(self, instance: Instance) -> float | None:
        """Return the list price of an instance for all workers, as billed, or None if unknown."""
        args = instance.instance_args
        hardware = self.hardware.get(args.hardware_type_id or "")
        if hardware is None:
            return None
        price, minutes = hardware.price_per_minute, 1
        if args.billing_interval == "per_hour":
            price, minutes = hardware.price_per_hour, 60
        return None if price is None else price / minutes * args.num_workers


@frozen
class Column:
    key: str
    title: str
    width: int
    is_number: bool = False  # aligned to the right


def columns(width: int, snapshot: Snapshot) -> tuple[Column, ...]:
    """Choose the columns that fit into a width in characters. The details show the omitted ones."""
    is_wide = width >= 110
    available = width - 2  # without the scroll bar
    ids = (each.instance_id for each in snapshot.instances)
    hardware = (each.instance_args.hardware_type_id or "" for each in snapshot.instances)
    owner_width = _OWNER_WORDS if width >= _WIDE_OWNERS else 0
    owners = (_owner(each, snapshot, owner_width) for each in snapshot.instances)
    chosen = [
        Column("id", "instance", _clamp(8, _longest(ids), 18 if is_wide else 15)),
        Column("model", "model", 10),
        *([Column("hardware", "hardware", _clamp(8, _longest(hardware), 16))] if is_wide else []),
        *([Column("workers", "w", 1, is_number=True)] if is_wide else []),
        Column("status", "status", 9),
        Column("age", "age", 6, is_number=True),
        *([Column("rate", "per min", 7, is_number=True)] if is_wide else []),
        Column("cost", "cost", 8, is_number=True),
        Column("owner", "owner", _clamp(9, _longest(owners), _OWNER_WORDS)),
    ]
    for key in _OPTIONAL_COLUMNS:
        if _total_width(chosen) <= available:
            break
        chosen = [each for each in chosen if each.key != key]
    spare = available - _total_width(chosen)
    widths = {each.key: each.width for each in chosen}
    if "model" in widths:
        # The status is at least as wide as "pending 3/5", plus any width that the longest model names leave.
        shared = spare + widths["model"] + widths["status"]
        widths["status"] = _clamp(11, shared - 22, 30)
        widths["model"] = shared - widths["status"]
    else:
        widths["status"] += max(spare, 0)
        widths["id"] = max(widths["id"] + min(spare, 0), 8)
    return tuple(evolve(each, width=widths[each.key]) for each in chosen)


def cells(instance: Instance, snapshot: Snapshot, now: float, shown: Sequence[Column]) -> list[Text]:
    args, owner = instance.instance_args, snapshot.owner_kind(instance)
    action = snapshot.actions.get(instance.instance_id)
    widths = {each.key: each.width for each in shown}
    # The organization is the first part of a long name to leave out.
    is_long = len(args.hf_name) > widths.get("model", 0)
    values = {
        "id": instance.instance_id,
        "model": args.hf_name.rpartition("/")[2] if is_long else args.hf_name,
        "hardware": args.hardware_type_id,
        "workers": args.num_workers,
        "status": f"{action}…" if action else _status(instance, widths["status"]),
        "age": format_age(age_of(instance, snapshot, now)),
        "rate": _amount(rate(instance, snapshot), 3),
        "cost": _amount(cost_so_far(instance, snapshot, now), 2),
        "owner": _owner(instance, snapshot, widths.get("owner", 0)),
    }
    styles = {
        "status": "bold magenta" if action else _status_style(instance),
        "owner": _OWNER_STYLES.get(owner, "dim"),
    }
    return [make_cell(values[each.key], each, styles.get(each.key, "")) for each in shown]


def make_cell(value: object, column: Column, style: str = "") -> Text:
    # As Text, so that markup from the service, such as [red], has no effect. The table cuts off long text.
    text = "-" if value is None else one_line(value)
    justify: JustifyMethod = "right" if column.is_number else "left"
    return Text(text, style, justify=justify, overflow="ellipsis", no_wrap=True)


def summary(snapshot: Snapshot, now: float, width: int) -> Text:
    """Return the line above the table: running instances, price, balance, and time of the refresh."""
    if snapshot.at is None:
        return Text("No data yet." if snapshot.problem else "Loading ...")
    running = sum(each.status.lower() == "running" for each in snapshot.instances)
    balance = snapshot.balance
    money = "unknown" if balance is None else format_money(balance.current_balance, balance.currency)
    parts = [
        Text(f"{running} of {len(snapshot.instances)} running"),
        Text(sanitize(_price_per_hour(snapshot)), "bold"),
        *([Text(f"spent today {sanitize(snapshot.spent_today)}")] if snapshot.spent_today else []),
        Text(f"balance {sanitize(money)}"),
        Text(f"at {datetime.fromtimestamp(snapshot.at).astimezone():%H:%M:%S}", "dim"),
    ]
    if snapshot.is_stale:
        # First, so that it fits on any terminal.
        parts.insert(0, Text(f"STALE, {format_age(now - snapshot.at)} old", "bold red"))
    lines = parts[:1]
    for part in parts[1:]:
        joined = Text("   ").join([lines[-1], part])
        # A part that does not fit goes on the next line.
        lines[-1:] = [joined] if joined.cell_len <= width else [lines[-1], part]
    return Text("\n").join(lines)


def details(instance: Instance | None, snapshot: Snapshot, now: float) -> Text:
    if instance is None:
        return Text()
    args = instance.instance_args
    age, cost = format_age(age_of(instance, snapshot, now)), _amount(cost_so_far(instance, snapshot, now), 2)
    per_minute = rate(instance, snapshot)
    lines: list[list[object]] = [
        [
            instance.instance_id,
            instance.status,
            age and f"age {age}",
            cost and f"cost {cost}",
            step_text(instance),
            per_minute and f"{per_minute:g} per min",
        ],
        [
            args.hf_name,
            f"{args.num_workers} x {args.hardware_type_id or 'recommended hardware'}",
            args.context_length and f"context {args.context_length}",
            args.billing_interval == "per_hour" and "billed per hour",
        ],
        [instance.base_url or "no endpoint"],
        [owner_text(instance, snapshot)],
    ]
    text = Text("\n".join(one_line("   ".join(str(fact) for fact in facts if fact)) for facts in lines))
    text.highlight_regex(r"\A[^\n]*", "bold")
    return text


def owner_text(instance: Instance, snapshot: Snapshot) -> str:
    kind, owner = snapshot.owner_kind(instance), snapshot.owners.get(instance.instance_id)
    meaning = _OWNER_MEANINGS[kind]
    if owner is not None and owner.shared and kind == "process":
        meaning = f"`cortecs-async down {owner.shared}` releases it"
    return f"{describe_owner(owner)}: {meaning}"


def warning(action: str, instance: Instance, snapshot: Snapshot) -> str:
    """Return a warning to show before an action, or an empty string if it does not disturb an owner."""
    if action == "delete" and has_ended(instance):
        return ""
    return {
        "mine": "This process is already releasing it.",
        "process": "A running process is using it.",
        "held": "The holder of its handle may be using it.",
        UNMANAGED: "It may be in use elsewhere.",
    }.get(snapshot.owner_kind(instance), "")


def rate(instance: Instance, snapshot: Snapshot) -> float | None:
    """Return the price per minute for all workers, or None if unknown. `stopping` is still billed."""
    return 0.0 if has_ended(instance) else snapshot.price_per_minute(instance)


def cost_so_far(instance: Instance, snapshot: Snapshot, now: float) -> float | None:
    """Return the cost for all workers, with partial intervals in full, or None if it is unknown."""
    price = snapshot.price_per_minute(instance)
    seconds = age_of(instance, snapshot, now)
    if price is None or seconds is None:
        return None
    interval = 3600.0 if instance.instance_args.billing_interval == "per_hour" else 60.0
    intervals = max(1, math.ceil(seconds / interval))
    return intervals * interval / 60.0 * price


def age_of(instance: Instance, snapshot: Snapshot, now: float) -> float | None:
    """Return the seconds the instance has run so far, or ran until it stopped, or None if unknown."""
    status, owner = instance.instance_status, snapshot.owners.get(instance.instance_id)
    # Billing begins with the request, whose time the owner knows. The service reports the later time of the
    # initialization. An owner that only releases the instance started later than both, so the earliest time
    # counts.
    starts = [owner.started_at] if owner is not None else []
    starts += [status.started_at.timestamp()] if status.started_at is not None else []
    if not starts or (status.stopped_at is None and has_ended(instance)):
        return None
    end = status.stopped_at.timestamp() if status.stopped_at is not None else now
    return max(end - min(starts), 0.0)


def format_age(seconds: float | None) -> str | None:
    """Format a duration compactly: `42s`, `12m`, `3h05m`, `2d04h`."""
    if seconds is None:
        return None
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def _owner(instance: Instance, snapshot: Snapshot, width: int) -> str:
    owner = snapshot.owners.get(instance.instance_id)
    words = describe_owner(owner)
    return words if len(words) <= width else short_owner_words(owner)


def _amount(amount: float | None, digits: int) -> str | None:
    return None if amount is None else f"{amount:.{digits}f}"


def _price_per_hour(snapshot: Snapshot) -> str:
    rates = [rate(each, snapshot) for each in snapshot.instances]
    known = sum(each for each in rates if each is not None) * 60.0
    currencies = {each.currency for each in snapshot.hardware.values()} - {""}
    # A sum over several currencies has no currency.
    currency = currencies.pop() if len(currencies) == 1 else ""
    return f"{'at least ' if None in rates else ''}{format_money(known, currency)} per hour"


def _status(instance: Instance, width: int) -> str:
    """Return the status and, for a pending instance, as much of its step as fits."""
    # The service keeps reporting the step of a running instance, but it no longer matters.
    step = (step_text(instance) or "") if instance.status.lower() == "pending" else ""
    text = f"{instance.status} {step}".rstrip()
    if len(text) <= width or width >= 18:
        return text
    short = f"{instance.status} {step.partition(' ')[0]}"
    return short if len(short) <= width else instance.status


def _status_style(instance: Instance) -> str:
    return _STATUS_STYLES.get(instance.status.lower(), "bold red" if has_ended(instance) else "")


def _total_width(chosen: Iterable[Column]) -> int:
    return sum(each.width + 2 for each in chosen)  # the table adds a space on both sides


def _longest(texts: Iterable[str]) -> int:
    return max(map(len, texts), default=0)


def _clamp(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
