"""What `cortecs-async top` shows, as text: no terminal and no service in here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

from attrs import evolve, field, frozen
from rich.text import Text

from ... import Instance
from ...types import Balance, HardwareType, Owner
from ..instances import step
from ..output import clean, is_over, moment

ELSEWHERE = "elsewhere"

_OWNER_STYLES = {"mine": "green", "process": "green", "held": "cyan", "orphan": "bold red"}
_STATUS_STYLES = {"running": "green", "pending": "yellow", "stopped": "dim"}

_MEANING = {
    "mine": "this very program answers for it",
    "process": "a living process answers for it, and ends it in time",
    "orphan": "its process died or gave it up: its reaper, or `cortecs-async sweep`, releases it",
    "held": "acquired: whoever has its handle answers for it",
    ELSEWHERE: "no journal here names it: started by hand, on another machine, or acquired without a limit",
}


# What a narrow screen does without, the first of them first.
_DISPENSABLE = ("model", "age", "cost")


@frozen(kw_only=True)
class Snapshot:
    """What was last read.

    Attributes:
        at: Unix time in seconds of the last refresh that worked; None before the first.
        instances: In the order of the service.
        owners: By id.
        hardware: By id of the hardware type.
        balance: None while it is not known.
        doing: What is being done to an instance just now, by its id.
        problem: Why the last refresh did not work, or what it lacks; empty when all is well.
        is_stale: Whether the last refresh did not work.
    """

    at: float | None = None
    instances: tuple[Instance, ...] = ()
    owners: Mapping[str, Owner] = field(factory=dict)
    hardware: Mapping[str, HardwareType] = field(factory=dict)
    balance: Balance | None = None
    doing: Mapping[str, str] = field(factory=dict)
    problem: str = ""
    is_stale: bool = False

    def find(self, instance_id: str | None) -> Instance | None:
        """The instance with this id, if it is still there."""
        return next((each for each in self.instances if each.instance_id == instance_id), None)

    def owner_of(self, instance: Instance) -> str:
        """The kind of its owner."""
        owner = self.owners.get(instance.instance_id)
        return owner.kind if owner is not None else ELSEWHERE


@frozen
class Column:
    """One column: its key, its title, its width, and whether it holds numbers."""

    key: str
    title: str
    width: int
    is_number: bool = False


def columns(width: int, snapshot: Snapshot) -> tuple[Column, ...]:
    """The columns that fit into so many characters; what is left out, the details show."""
    is_wide = width >= 110
    # Each with a space on both sides, and the bar to scroll with.
    room = width - 2
    hardware = max((len(each.instance_args.hardware_type_id or "") for each in snapshot.instances), default=0)
    ids = max((len(each.instance_id) for each in snapshot.instances), default=0)
    chosen = [
        Column("id", "instance", _between(8, ids, 18 if is_wide else 15)),
        Column("model", "model", 10),
        *([Column("hardware", "hardware", _between(8, hardware, 16))] if is_wide else []),
        *([Column("workers", "w", 1, is_number=True)] if is_wide else []),
        Column("status", "status", 9),
        Column("age", "age", 6, is_number=True),
        *([Column("rate", "per min", 7, is_number=True)] if is_wide else []),
        Column("cost", "cost", 8, is_number=True),
        Column("owner", "owner", 9),
    ]
    for key in _DISPENSABLE:
        if room >= _taken(chosen):
            break
        chosen = [each for each in chosen if each.key != key]
    left = room - _taken(chosen)
    widths = {each.key: each.width for each in chosen}
    if "model" in widths:
        # "pending 3/5" must fit; what a model's name can do without is for what the step is called.
        both = left + widths["model"] + widths["status"]
        widths["status"] = _between(11, both - 22, 30)
        widths["model"] = both - widths["status"]
    else:
        widths["status"] += max(left, 0)
        widths["id"] = max(widths["id"] + min(left, 0), 8)
    return tuple(evolve(each, width=widths[each.key]) for each in chosen)


def cells(instance: Instance, snapshot: Snapshot, now: float, shown: Sequence[Column]) -> list[Text]:
    """One row of the table."""
    args, owner = instance.instance_args, snapshot.owner_of(instance)
    doing = snapshot.doing.get(instance.instance_id)
    widths = {each.key: each.width for each in shown}
    name = args.hf_name
    if len(name) > widths.get("model", 0):
        # Whose it is says less than what it is.
        name = name.rpartition("/")[2]
    texts = {
        "id": instance.instance_id,
        "model": name,
        "hardware": args.hardware_type_id,
        "workers": args.num_workers,
        "status": f"{doing}…" if doing else _status(instance, widths["status"]),
        "age": duration(age_of(instance, snapshot, now)),
        "rate": money(rate(instance, snapshot), 3),
        "cost": money(cost_so_far(instance, snapshot, now), 2),
        "owner": owner,
    }
    styles = {
        "status": "bold magenta" if doing else _status_style(instance),
        "owner": _OWNER_STYLES.get(owner, "dim"),
    }
    return [_cell(texts[each.key], each, styles.get(each.key, "")) for each in shown]


def summary(snapshot: Snapshot, now: float, width: int) -> Text:
    """What stands above the table: how many, how dear, how much is left, how fresh."""
    if snapshot.at is None:
        return Text("not read yet" if snapshot.problem else "reading …")
    running = sum(each.status == "running" for each in snapshot.instances)
    parts = [
        Text(f"{running} of {len(snapshot.instances)} running"),
        Text(_per_hour(snapshot), "bold"),
        Text(f"balance {_amount(snapshot.balance)}"),
    ]
    parts.append(Text(f"at {datetime.fromtimestamp(snapshot.at).astimezone():%H:%M:%S}", "dim"))
    if snapshot.is_stale:
        # First, where no terminal is too narrow for it.
        parts.insert(0, Text(f"STALE, {duration(now - snapshot.at)} old", "bold red"))
    lines = parts[:1]
    for part in parts[1:]:
        together = Text("   ").join([lines[-1], part])
        # On the next line rather than cut off.
        lines[-1:] = [together] if together.cell_len <= width else [lines[-1], part]
    return Text("\n").join(lines)


def details(instance: Instance | None, snapshot: Snapshot, now: float) -> Text:
    """What the row of an instance has no room for."""
    if instance is None:
        return Text()
    args = instance.instance_args
    facts = [
        args.hf_name,
        f"{args.num_workers} x {args.hardware_type_id or 'its recommended hardware'}",
        f"context {args.context_length}" if args.context_length else "",
        "billed per hour" if args.billing_interval == "per_hour" else "",
    ]
    per_minute = rate(instance, snapshot)
    age, cost = duration(age_of(instance, snapshot, now)), money(cost_so_far(instance, snapshot, now), 2)
    state = [
        instance.instance_id,
        instance.status,
        f"age {age}" if age else "",
        f"cost {cost}" if cost else "",
        step(instance),
        f"{per_minute:g} per min" if per_minute else "",
    ]
    lines = [
        "   ".join(each for each in state if each),
        "   ".join(each for each in facts if each),
        instance.base_url or "no endpoint",
        who(instance, snapshot),
    ]
    text = Text(clean("\n".join(line.replace("\n", " ") for line in lines)))
    text.highlight_regex(r"\A[^\n]*", "bold")
    return text


def who(instance: Instance, snapshot: Snapshot) -> str:
    """Who answers for an instance, in words."""
    kind = snapshot.owner_of(instance)
    owner = snapshot.owners.get(instance.instance_id)
    if owner is None:
        return f"{kind}: {_MEANING[kind]}"
    until = "" if owner.expires_at is None else f", until {moment(owner.expires_at)}"
    return f"{kind} ({owner.owner}): {_MEANING[kind]}{until}"


def warning(deed: str, instance: Instance, snapshot: Snapshot) -> str:
    """What to think of before doing it; empty where nobody is hit."""
    kind = snapshot.owner_of(instance)
    if deed == "delete" and not is_billed(instance):
        return ""
    return {
        "mine": "This program is at it already.",
        "process": "A living process uses it.",
        "held": "Its holder may be using it.",
        ELSEWHERE: "It may be in use elsewhere.",
    }.get(kind, "")


def is_billed(instance: Instance) -> bool:
    """Whether it costs anything now: from its start on until it is stopped, or has ended by itself."""
    return not is_over(instance)


def rate(instance: Instance, snapshot: Snapshot) -> float | None:
    """What it costs a minute, all workers together; None where no price is known."""
    if not is_billed(instance):
        return 0.0
    hardware = snapshot.hardware.get(instance.instance_args.hardware_type_id or "")
    price = hardware.price_per_minute if hardware is not None else None
    return None if price is None else price * instance.instance_args.num_workers


def cost_so_far(instance: Instance, snapshot: Snapshot, now: float) -> float | None:
    """What it has cost: each interval begun, for each worker. None where price or times are not known."""
    args = instance.instance_args
    hardware = snapshot.hardware.get(args.hardware_type_id or "")
    price = hardware.price_per_minute if hardware is not None else None
    seconds = age_of(instance, snapshot, now)
    if price is None or seconds is None:
        return None
    interval = 3600.0 if args.billing_interval == "per_hour" else 60.0
    intervals = max(1, math.ceil(seconds / interval))
    return intervals * interval / 60.0 * price * args.num_workers


def age_of(instance: Instance, snapshot: Snapshot, now: float) -> float | None:
    """Seconds from its start until now, or until it was stopped; None where that is not known."""
    status, owner = instance.instance_status, snapshot.owners.get(instance.instance_id)
    # The service says when it was initialised, and billing begins when it is asked for; but who only
    # releases it has come later.
    known = [owner.started_at] if owner is not None else []
    known += [status.started_at.timestamp()] if status.started_at is not None else []
    if not known:
        return None
    began = min(known)
    ended = status.stopped_at.timestamp() if status.stopped_at is not None else now
    return None if status.stopped_at is None and not is_billed(instance) else max(ended - began, 0.0)


def duration(seconds: float | None) -> str | None:
    """Short, for people: `42s`, `12m`, `3h05m`, `2d04h`."""
    if seconds is None:
        return None
    minutes = int(seconds) // 60
    if minutes < 1:
        return f"{int(seconds)}s"
    if minutes < 60:
        return f"{minutes}m"
    hours = minutes // 60
    return f"{hours}h{minutes % 60:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def money(amount: float | None, digits: int) -> str | None:
    """An amount; None where there is none."""
    return None if amount is None else f"{amount:.{digits}f}"


def _per_hour(snapshot: Snapshot) -> str:
    rates = [rate(each, snapshot) for each in snapshot.instances]
    known = sum(each for each in rates if each is not None) * 60.0
    currencies = {each.currency for each in snapshot.hardware.values()} - {""}
    # A sum over several currencies would be a number of nothing.
    currency = f" {currencies.pop()}" if len(currencies) == 1 else ""
    return clean(f"{'at least ' if None in rates else ''}{known:.2f}{currency} per hour")


def _amount(balance: Balance | None) -> str:
    return "unknown" if balance is None else clean(f"{balance.current_balance:.2f} {balance.currency}")


def _status(instance: Instance, width: int) -> str:
    """Its status, and while it starts how far it is, with what it does as far as there is room."""
    # Once it runs, how it got there is of no interest.
    progress = (step(instance) or "") if instance.status == "pending" else ""
    text = f"{instance.status} {progress}".rstrip()
    if len(text) <= width or width >= 18:
        return text
    short = f"{instance.status} {progress.partition(' ')[0]}"
    return short if len(short) <= width else instance.status


def _status_style(instance: Instance) -> str:
    return _STATUS_STYLES.get(instance.status.lower(), "bold red" if is_over(instance) else "")


def _taken(chosen: Sequence[Column]) -> int:
    return sum(each.width + 2 for each in chosen)


def _cell(value: object, column: Column, style: str) -> Text:
    # As Text, so that [red] in what the service says is no markup; and on one line.
    text = Text("-" if value is None else clean(str(value)).replace("\n", " "), style, no_wrap=True)
    text.truncate(column.width, overflow="ellipsis")
    if column.is_number:
        text.align("right", column.width)
    return text


def _between(least: int, value: int, most: int) -> int:
    return max(least, min(value, most))
