"""`cortecs-async costs`: what the leases of this machine cost."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, cast

import click

from .._display import duration_text, money_text
from .command import cli_command
from .options import json_option
from .output import (
    format_time,
    print_json,
    print_note,
    print_warning,
    sanitize,
    to_json,
)
from .runtime import call_api

if TYPE_CHECKING:
    from ..types import CostGroup, CostReport, CostRow, LeaseCost

_ESTIMATE = "Estimated from list prices; your invoice is authoritative."

# Columns of the longest bar. The last column of the table, it is left out first on a narrow terminal.
_BAR_WIDTH = 24

# Outcomes of leases that you paid for without getting what you asked for.
_FLAGGED = {"failed", "lost", "unreleased"}

Period = float | date | str | None


def moment(value: str) -> Period:
    """Check the value of --since and --until, for the `type` of an option."""
    from .._durations import parse_duration  # noqa: PLC0415  (only to parse one)

    if value == "all":
        return None
    try:
        if "-" in value:
            date.fromisoformat(value[:10])
        else:
            parse_duration(value)
    except ValueError:
        raise click.BadParameter(f'"{value}" is invalid (examples: 30d, 12h, 2026-11-01)') from None
    return value


@cli_command(
    examples=(
        "cortecs-async costs --since 7d --by day",
        "cortecs-async costs --since 2026-11-01 --until 2026-12-01 --csv",
    )
)
@click.option(
    "--since",
    type=moment,
    default="30d",
    metavar="TIME",
    help="Start of the period: a duration before now, a date, or all.",
)
@click.option("--until", type=moment, metavar="TIME", help="End of the period.  [default: now]")
@click.option(
    "--by",
    type=click.Choice(["project", "model", "hardware", "day", "outcome", "lease"]),
    metavar="GROUP",
    default="project",
    help="Group by project, model, hardware, day, or outcome, or list each lease.",
)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@json_option("Print JSON with all fields.")
def costs(since: Period, until: Period, by: str, as_csv: bool, as_json: bool) -> None:
    """Show what the leases that ended on this machine cost.

    The amounts are estimates from list prices. Includes all accounts that were used on this machine. Reads
    only local files and works without credentials.
    """
    if as_csv and as_json:
        raise click.UsageError("Pass either --csv or --json, not both.")
    group = None if by == "lease" else cast("CostGroup", by)
    report = call_api(lambda client: client.costs(since, until, by=group), anonymous=True)
    if as_json:
        print_json({"rows": report.rows, "total": report.total, "leases": report.leases})
    elif as_csv:
        _print_csv(report, by)
    elif report.leases:
        _print_table(report, by)
    else:
        print_note("No leases ended in this period.")
    if report.unreadable:
        lines = "1 line" if report.unreadable == 1 else f"{report.unreadable} lines"
        print_warning(f"Skipped {lines} of the cost ledger that could not be parsed.")


def _print_table(report: CostReport, by: str) -> None:
    from .tables import make_table, stdout_console  # noqa: PLC0415  (slow to import)

    console = stdout_console()
    if by == "lease":
        columns = ("ended", "instance", "outcome", "model", "hardware", "project", "time", "cost")
        optional = ("hardware", "project", "model", "time")
        rows = [_lease_cells(each) for each in report.leases]
        rows += [("total", *[None] * 6, each.cost_text) for each in report.total]
        console.print(make_table(console.width, columns, rows, optional=optional))
    else:
        failed = ("failed",) if any(each.failed for each in report.rows) else ()
        bar = ("",) if console.is_terminal else ()
        columns = (by, "leases", *failed, "time", "cost", *bar)
        optional = (*bar, "time", "leases")
        highest = max((row.cost or 0.0 for row in report.rows), default=0.0)
        cells = [
            [*_cells(row, has_failed=bool(failed)), *([_bar(row, highest)] if bar else [])]
            for row in report.rows
        ]
        cells += [
            [*_cells(row, has_failed=bool(failed)), *([""] if bar else [])]
            for row in report.total
            if len(report.rows) > len(report.total)
        ]
        console.print(make_table(console.width, columns, cells, optional=optional))
    if any(each.is_price_assumed for each in report.leases):
        print_note("Some prices are taken from other leases on the same hardware.")
    if any(each.outcome == "unreleased" for each in report.leases):
        print_warning("Some instances could not be released. Run `cortecs-async orphans`.")
    print_note(_ESTIMATE)


def _cells(row: CostRow, *, has_failed: bool) -> Iterable[object]:
    failed = [f"{row.failed} failed" if row.failed else ""] if has_failed else []
    return row.key or "(none)", row.leases, *failed, duration_text(row.seconds), row.cost_text


def _lease_cells(lease: LeaseCost) -> Sequence[object]:
    cost = money_text(lease.cost, lease.currency) or "unknown"
    return (
        format_time(lease.ended_at),
        lease.instance_id,
        f"{lease.outcome} !" if lease.outcome in _FLAGGED else lease.outcome,
        lease.model or None,
        lease.hardware_type_id or None,
        lease.project or None,
        None if lease.seconds is None else duration_text(lease.seconds),
        f"{cost} (assumed)" if lease.is_price_assumed else cost,
    )


def _bar(row: CostRow, highest: float) -> str:
    length = round(_BAR_WIDTH * (row.cost or 0.0) / highest) if highest else 0
    return _block() * max(length, 1 if row.cost else 0)


def _block() -> str:
    """Return the character of bars, in the encoding of standard output."""
    try:
        "█".encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "#"
    return "█"


def _print_csv(report: CostReport, by: str) -> None:
    """Print the rows, or with `--by lease` the leases, with the fields of the JSON as columns."""
    import json  # noqa: PLC0415  (only here)

    rows = json.loads(to_json(report.leases if by == "lease" else report.rows))
    names = _LEASE_FIELDS if by == "lease" else _ROW_FIELDS
    text = io.StringIO()
    writer = csv.DictWriter(text, names, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)
    click.echo(text.getvalue(), nl=False)


def _cell(value: object) -> object:
    # A spreadsheet would run a project named like a formula. The quote makes it text.
    return sanitize(f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value)


_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")

_ROW_FIELDS = ("key", "leases", "failed", "unknown", "seconds", "cost", "currency")
_LEASE_FIELDS = (
    "ended_at",
    "started_at",
    "instance_id",
    "model",
    "hardware_type_id",
    "num_workers",
    "billing_interval",
    "project",
    "outcome",
    "seconds",
    "interval_price",
    "cost",
    "currency",
    "is_price_assumed",
    "written_by",
    "account",
    "api_base_url",
    "lease_id",
)
