"""Test `client.costs`: periods, groups, currencies, and unknown prices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from _costs import BILL, line_of
from _world import HARDWARE, MODEL

from cortecs_async import AsyncCortecs, errors
from cortecs_async._client.costs import as_moment
from cortecs_async._recovery.ledger import CostLedger
from cortecs_async.types import CostGroup, CostReport

NOW = datetime(2026, 11, 30, 12, tzinfo=UTC).timestamp()
DAY = 86400.0


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def ledger(state_dir: Path) -> CostLedger:
    return CostLedger(state_dir / "costs")


def add(ledger: CostLedger, lease_id: str, *, days: float = 0.0, **changes: Any) -> None:
    """Add a lease that ended `days` before now."""
    bill = {**BILL, **changes.pop("bill", {})}
    ended_at = time.time() - days * DAY
    ledger.write([line_of(lease_id, bill=bill, **{"ended_at": ended_at, **changes})])


async def costs(*args: Any, **kwargs: Any) -> CostReport:
    # Without credentials and without a service.
    async with AsyncCortecs(anonymous=True) as client:
        return await client.costs(*args, **kwargs)


async def test_an_empty_ledger_has_no_costs() -> None:
    report = await costs()
    assert (report.rows, report.total, report.leases) == ((), (), ())
    assert str(report) == "No leases."


async def test_a_period_contains_the_leases_that_ended_in_it(ledger: CostLedger) -> None:
    for days in (0.5, 20.0, 40.0):
        add(ledger, f"e{days}", days=days)
    add(ledger, "other", api_base_url="https://other.test")
    add(ledger, "emulated", api_base_url="http://127.0.0.1:8000")
    assert [each.lease_id for each in (await costs()).leases] == ["e20.0", "e0.5"]
    assert len((await costs(None)).leases) == 3
    assert [each.lease_id for each in (await costs("45d", "30d")).leases] == ["e40.0"]
    assert [each.lease_id for each in (await costs(timedelta(days=1))).leases] == ["e0.5"]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("30d", NOW - 30 * DAY),
        (60.0, NOW - 60.0),
        (timedelta(hours=1), NOW - 3600.0),
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC).timestamp()),
        (date(2026, 11, 1), datetime(2026, 11, 1, tzinfo=UTC).timestamp()),
        ("2026-11-01T12:00:00+01:00", datetime(2026, 11, 1, 11, tzinfo=UTC).timestamp()),
        (datetime(2026, 11, 1, 12, tzinfo=UTC), datetime(2026, 11, 1, 12, tzinfo=UTC).timestamp()),
    ],
    ids=repr,
)
def test_moments(value: Any, expected: float) -> None:
    assert as_moment("since", value, NOW) == expected


@pytest.mark.parametrize("value", ["yesterday", "2026-13-01", "", -5, True, [], "0001-01-01"], ids=repr)
def test_other_moments_are_refused(value: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"^since must be"):
        as_moment("since", value, NOW)


async def test_a_group_has_a_row_with_its_sums(ledger: CostLedger) -> None:
    add(ledger, "e1", bill={"project": "search"})
    add(ledger, "e2", bill={"project": "search"}, outcome="failed")
    add(ledger, "e3", days=2.0, seconds=600.0)
    report = await costs()
    assert [(each.key, each.leases, each.failed, each.cost) for each in report.rows] == [
        ("", 1, 0, 0.5),
        ("search", 2, 1, 0.2),
    ]
    (total,) = report.total
    assert (total.key, total.leases, total.seconds, total.cost) == ("total", 3, 780.0, 0.7)
    assert str(report.rows[1]) == "search: 2 leases (1 failed), 3m00s, 0.20 EUR"
    assert "<td>search</td>" in report._repr_html_()


@pytest.mark.parametrize(
    ("by", "keys"),
    [
        ("project", ["", "search"]),
        ("model", [MODEL]),
        ("hardware", [HARDWARE]),
        ("outcome", ["released"]),
        (None, ["i-e2", "i-e1"]),
    ],
)
async def test_groups(ledger: CostLedger, by: CostGroup | None, keys: list[str]) -> None:
    add(ledger, "e1", bill={"project": "search"})
    add(ledger, "e2", days=2.0, seconds=600.0)
    assert [each.key for each in (await costs(by=by)).rows] == keys


async def test_days_are_in_order_in_the_local_time_zone(
    ledger: CostLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day, hour in ((2, 23), (1, 12)):
        ended_at = datetime(2026, 11, day, hour, tzinfo=UTC).timestamp()
        add(ledger, f"e{day}", ended_at=ended_at)
    assert [each.key for each in (await costs(None, by="day")).rows] == ["2026-11-01", "2026-11-02"]
    monkeypatch.setenv("TZ", "Europe/Vienna")
    time.tzset()
    assert [each.key for each in (await costs(None, by="day")).rows] == ["2026-11-01", "2026-11-03"]


async def test_currencies_are_not_added_up(ledger: CostLedger) -> None:
    add(ledger, "e1")
    add(ledger, "e2", bill={"currency": "USD"})
    report = await costs()
    assert [(each.cost, each.currency) for each in report.rows] == [(0.1, "EUR"), (0.1, "USD")]
    assert [(each.cost, each.currency) for each in report.total] == [(0.1, "EUR"), (0.1, "USD")]


async def test_an_unknown_price_is_taken_from_the_same_hardware_and_marked(ledger: CostLedger) -> None:
    unknown = {"interval_price": None, "currency": ""}
    add(ledger, "e1", bill={"interval_price": 0.12, "num_workers": 4})
    add(ledger, "e2", bill={**unknown, "num_workers": 2})
    add(ledger, "e3", bill={**unknown, "hardware_type_id": "other"})
    add(ledger, "e4", bill={**unknown, "billing_interval": "per_hour"})
    report = await costs(by=None)
    assert [(each.cost, each.currency, each.is_price_assumed) for each in report.leases] == [
        (0.24, "EUR", False),
        (0.12, "EUR", True),
        (None, "", False),
        (None, "", False),
    ]
    assert [each.cost_text for each in report.rows] == ["0.24 EUR", "0.12 EUR", "unknown", "unknown"]
    (total,) = report.total
    assert (total.unknown, total.cost_text) == (2, "at least 0.36 EUR")


async def test_unreadable_lines_are_counted(ledger: CostLedger) -> None:
    add(ledger, "e1")
    (file,) = ledger.directory.iterdir()
    file.write_text(f"{file.read_text()}odd\n")
    assert (await costs()).unreadable == 1


async def test_a_directory_that_others_can_write_is_an_error(ledger: CostLedger) -> None:
    add(ledger, "e1")
    ledger.directory.chmod(0o777)
    with pytest.raises(errors.JournalError, match="CORTECS_STATE_DIR"):
        await costs()


async def test_an_unknown_group_is_an_error() -> None:
    with pytest.raises(errors.InvalidArgumentError, match=r"^by must be one of 'project', "):
        await costs(by="week")
