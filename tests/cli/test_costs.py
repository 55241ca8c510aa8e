"""Test `cortecs-async costs`."""

from __future__ import annotations

import csv
import io
import json
import time
from pathlib import Path
from typing import Any

import pytest
from _command_line import call_command
from _costs import BILL, line_of

from cortecs_async._cli import costs as _costs
from cortecs_async._cli import tables
from cortecs_async._cli.tables import stdout_console
from cortecs_async._recovery.ledger import CostLedger


@pytest.fixture
def ledger(state_dir: Path) -> CostLedger:
    ledger = CostLedger(state_dir / "costs")
    add(ledger, "e1", project="search", seconds=7200.0)
    add(ledger, "e2", project="search", outcome="failed")
    add(ledger, "e3", project="agents")
    return ledger


def add(ledger: CostLedger, lease_id: str, *, project: str = "", **changes: Any) -> None:
    bill = {**BILL, "project": project, **changes.pop("bill", {})}
    ledger.write([line_of(lease_id, ended_at=time.time() - 60.0, bill=bill, **changes)])


def test_the_table_flags_failures_and_says_that_it_is_an_estimate(ledger: CostLedger) -> None:
    done = call_command("costs")
    assert [" ".join(each.split()) for each in done.stdout.splitlines()] == [
        "project leases failed time cost",
        "search 2 1 failed 2h01m 6.10 EUR",
        "agents 1 1m30s 0.10 EUR",
        "total 3 1 failed 2h03m 6.20 EUR",
    ]
    assert done.stderr == "Estimated from list prices; your invoice is authoritative.\n"


@pytest.mark.parametrize("block", ["█", "#"])
def test_a_terminal_shows_bars_and_a_narrow_one_does_not(
    ledger: CostLedger, monkeypatch: pytest.MonkeyPatch, block: str
) -> None:
    console = stdout_console()
    monkeypatch.setattr(tables, "stdout_console", lambda: console)
    monkeypatch.setattr(type(console), "is_terminal", True)
    monkeypatch.setattr(_costs, "_block", lambda: block)
    console.width = 80
    shown = call_command("costs").stdout
    bars = [each.count(block) for each in shown.splitlines()]
    assert bars == [0, 24, 1, 0]
    console.width = 40
    assert block not in call_command("costs").stdout


def test_the_blocks_of_bars_are_in_the_encoding_of_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for encoding, block in (("utf-8", "█"), ("ascii", "#")):
        monkeypatch.setattr("sys.stdout", io.TextIOWrapper(io.BytesIO(), encoding))
        assert _costs._block() == block


def test_each_lease(ledger: CostLedger) -> None:
    add(ledger, "e4", bill={"interval_price": None})
    shown = call_command("costs", "--by", "lease").stdout
    assert "i-e1" in shown
    assert "failed !" in shown
    assert "0.10 EUR (assumed)" in shown
    assert shown.splitlines()[-1].split() == ["total", *["-"] * 6, "6.30", "EUR"]


def test_json_and_csv_have_all_fields(ledger: CostLedger) -> None:
    report = json.loads(call_command("costs", "--json").stdout)
    assert {*report} == {"rows", "total", "leases"}
    assert report["rows"][0]["cost"] == 6.1
    assert report["leases"][0]["ended_at"].startswith("20")
    rows = [*csv.DictReader(io.StringIO(call_command("costs", "--csv").stdout))]
    assert [(row["key"], row["cost"], row["currency"]) for row in rows] == [
        ("search", "6.1", "EUR"),
        ("agents", "0.1", "EUR"),
    ]
    leases = [*csv.DictReader(io.StringIO(call_command("costs", "--csv", "--by", "lease").stdout))]
    assert {*leases[0]} == {*report["leases"][0]}
    assert call_command("costs", "--csv", "--json").exit_code == 2


def test_an_empty_period(ledger: CostLedger) -> None:
    done = call_command("costs", "--until", "1d")
    assert (done.stdout, done.stderr) == ("", "No leases ended in this period.\n")
    assert call_command("costs", "--since", "all").stdout.startswith("project")
    assert "invalid" in call_command("costs", "--since", "soon").stderr
    done = call_command("costs", "--until", "2020-01-01")
    assert done.exit_code == 1
    assert "The period is empty: --since ('30d') is not before --until ('2020-01-01')" in done.stderr


def test_lines_that_cannot_be_parsed_are_mentioned(ledger: CostLedger) -> None:
    (file,) = ledger.directory.iterdir()
    file.write_text(f"{file.read_text()}odd\n")
    assert "Skipped 1 line of the cost ledger" in call_command("costs").stderr


def test_an_instance_that_may_still_be_billed_is_mentioned(ledger: CostLedger) -> None:
    add(ledger, "e5", outcome="unreleased")
    assert "cortecs-async orphans" in call_command("costs").stderr


def test_a_project_from_a_file_cannot_control_the_terminal(ledger: CostLedger) -> None:
    add(ledger, "e5", project="\x1b[31mred")
    for arguments in ([], ["--csv"], ["--json"], ["--by", "lease"]):
        assert "\x1b" not in call_command("costs", *arguments).stdout


def test_a_project_named_like_a_formula_is_text_in_a_spreadsheet(ledger: CostLedger) -> None:
    for number, project in enumerate(["=1+1", "+1", "-1", "@SUM(A1)"]):
        add(ledger, f"f{number}", project=project)
    rows = csv.DictReader(io.StringIO(call_command("costs", "--csv").stdout))
    keys = {row["key"] for row in rows}
    assert keys == {"'+1", "'-1", "'=1+1", "'@SUM(A1)", "search", "agents"}


def test_a_name_that_the_encoding_lacks_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    stdout_console().print("\N{GRINNING FACE} day")
    assert written.getvalue().strip() == b"? day"
