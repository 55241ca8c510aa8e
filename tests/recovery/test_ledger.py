"""Test the cost ledger: one line for each lease, whoever ends it, and however its process dies."""

from __future__ import annotations

import json
import logging
import os
import shutil
import stat
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _costs import API, line_of
from _evidence import account_of, applying
from _promises import created as recorded
from _promises import intent
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock

from cortecs_async import AsyncCortecs, RetryPolicy, errors
from cortecs_async._recovery import journal as _journal
from cortecs_async._recovery import ledger as _ledger
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.cost_lines import LeaseCost, merged, parse_line
from cortecs_async._recovery.journal import JournalFile, read_journals
from cortecs_async._recovery.ledger import CostLedger
from cortecs_async._recovery.records import JournalState, Record, encode
from cortecs_async._recovery.recover import reap_account
from cortecs_async._recovery.store import PromiseStore
from cortecs_async.emulator import Emulator, Fault


def line(lease_id: str = "e1", **changes: Any) -> Record:
    """Return the line of a lease that ended in November 2026."""
    ended_at = datetime(2026, 11, 15, 12, tzinfo=UTC).timestamp()
    return line_of(lease_id, **{"ended_at": ended_at, **changes})


def parsed(*lines: Record) -> list[LeaseCost]:
    found = [parse_line(encode([each])) for each in lines]
    return [each for each in found if each is not None]


async def spent(client: AsyncCortecs) -> list[LeaseCost]:
    return [*(await client.costs(None)).leases]


# --- the leases ---------------------------------------------------------------------------------------------


async def test_a_lease_writes_what_it_cost(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        began = emulated_wall_clock()
        async with client.instance(MODEL, HARDWARE, num_workers=2, project="search") as inst:
            await anyio.sleep(90.0)
        (found,) = await spent(client)
        assert (found.instance_id, found.model, found.hardware_type_id) == (inst.instance_id, MODEL, HARDWARE)
        assert (found.num_workers, found.project, found.outcome) == (2, "search", "released")
        assert (found.seconds, found.cost) == (pytest.approx(inst.receipt.seconds, abs=0.001), 0.2)
        assert found.currency == "EUR"
        assert found.started_at == pytest.approx(began, abs=1.0)
        assert found.ended_at == pytest.approx(began + 90.0, abs=1.0)
        assert (found.written_by, found.account) == ("lease", fingerprint(emu.api_base_url, emu.client_id))
        (file,) = (journals.parent / "costs").iterdir()
        assert emu.client_id not in file.read_text()
        assert emu.client_secret not in file.read_text()


@pytest.mark.parametrize(
    ("value", "project"), [("search", "search"), (" \x1b[31mred\n\udcff ", "[31mred"), ("\t", ""), ("", "")]
)
async def test_the_variable_for_the_project_never_prevents_a_start(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, value: str, project: str
) -> None:
    monkeypatch.setenv("CORTECS_PROJECT", value)
    async with world(journal="auto") as (_, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        assert [each.project for each in await spent(client)] == [project]


async def test_a_lease_sends_the_same_requests_as_without_a_ledger(world: World, journals: Path) -> None:
    routes: list[list[str | None]] = []
    for journal in ("off", "auto"):
        async with world(journal=journal) as (emu, client):
            async with client.instance(MODEL, HARDWARE, project="search"):
                await anyio.sleep(5.0)
            await client.costs()
            routes.append([each.route for each in emu.requests])
    assert routes[0] == routes[1]


async def test_without_a_journal_there_is_no_ledger(world: World, journals: Path) -> None:
    async with world(journal="off") as (_, client):
        async with client.instance(MODEL, HARDWARE):
            pass
        assert await spent(client) == []
    assert not journals.parent.exists()


async def test_a_rejected_start_costs_nothing(world: World, journals: Path) -> None:
    async with world(journal="auto", retry_policy=RetryPolicy(max_retries=0)) as (emu, client):
        emu.add_fault(Fault("status", route="start", status=503))
        with pytest.raises(errors.APIStatusError):
            async with client.instance(MODEL, HARDWARE):
                pass
        assert await spent(client) == []


async def test_an_instance_that_was_never_usable_is_a_failure_that_costs(
    world: World, journals: Path
) -> None:
    async with world(journal="auto", step_seconds=100.0) as (_, client):
        with pytest.raises(errors.StartTimeoutError):
            async with client.instance(MODEL, HARDWARE, start_timeout=70):
                pass
        with anyio.move_on_after(10.0):
            async with client.instance(MODEL, HARDWARE):
                pass
        assert [(each.outcome, each.cost) for each in await spent(client)] == [
            ("failed", 0.1),
            ("cancelled", 0.05),
        ]


async def test_each_end_of_a_block_has_its_outcome(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        with pytest.raises(KeyError):
            async with client.instance(MODEL, HARDWARE):
                raise KeyError
        async with client.instance(MODEL, HARDWARE, on_exit="stop"):
            pass
        with pytest.raises(errors.LeaseExpiredError):
            async with client.instance(MODEL, HARDWARE, max_lifetime=30):
                await anyio.sleep(1000.0)
        with pytest.raises(errors.InstanceLostError):
            async with client.instance(MODEL, HARDWARE) as inst:
                emu.delete_instance(inst.instance_id)
                await anyio.sleep(1000.0)
        outcomes = [each.outcome for each in await spent(client)]
        assert outcomes == ["released", "stopped", "expired", "lost"]


async def test_instances_of_others_are_not_ours_to_pay(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        running = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(1.0)
        async with client.attach(running):
            pass
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id == running
        await client.release(running)
        assert emu.existing == ()
        assert await spent(client) == []


async def test_a_restarted_instance_costs_what_it_ran_since(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE, on_exit="stop"):
            await anyio.sleep(200.0)
        await anyio.sleep(1000.0)
        async with client.instance(MODEL, HARDWARE, reuse=True, project="again"):
            await anyio.sleep(90.0)
        first, second = await spent(client)
        assert first.instance_id == second.instance_id
        assert (first.outcome, second.outcome) == ("stopped", "stopped")
        assert (first.seconds, second.seconds) == (
            pytest.approx(200.0, abs=2.0),
            pytest.approx(90.0, abs=5.0),
        )
        assert second.project == "again"
        assert len(emu.existing) == 1


@pytest.mark.parametrize("limit", [{}, {"max_lifetime": 5000}], ids=["no limit", "limit"])
async def test_a_kept_instance_costs_once_it_is_released(
    world: World, journals: Path, limit: dict[str, Any]
) -> None:
    async with world(journal="auto", step_seconds=1.0) as (emu, client):
        handle = await client.acquire(MODEL, HARDWARE, project="agents", **limit)
        (kept,) = await spent(client)
        assert (kept.outcome, kept.cost) == ("kept", None)
        await anyio.sleep(300.0)
        await client.release(handle)
        (found,) = await spent(client)
        assert (found.outcome, found.project, found.model) == ("released", "agents", MODEL)
        assert found.seconds == pytest.approx(306.0, abs=2.0)
        assert found.cost == pytest.approx(0.3)
        await client.release(handle)
        assert len(await spent(client)) == 1
        assert emu.existing == ()


async def test_a_failed_release_is_replaced_by_the_one_that_works(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        with pytest.raises(errors.TeardownError):
            async with client.instance(MODEL, HARDWARE, project="search", teardown_timeout=20):
                pass
        (found,) = await spent(client)
        assert (found.outcome, found.is_final) == ("unreleased", False)
        emu.clear_faults()
        await anyio.sleep(600.0)
        await client.sweep()
        (found,) = await spent(client)
        assert (found.outcome, found.project, found.written_by) == ("recovered", "search", "sweep")
        assert found.seconds == pytest.approx(620.0, abs=10.0)
        assert emu.existing == ()


async def test_a_late_instance_of_a_repeated_start_costs_too(world: World, journals: Path) -> None:
    policy = RetryPolicy(adoption_window=6.0)
    async with world(journal="auto", step_seconds=0.0, retry_policy=policy) as (emu, client):
        emu.add_fault(Fault("late", route="start", seconds=60.0))
        async with client.instance(MODEL, HARDWARE, project="search"):
            await anyio.sleep(120.0)
        assert emu.existing == ()
        assert len(emu.ledger) == 2
        found = await spent(client)
        assert sorted(each.outcome for each in found) == ["failed", "released"]
        assert {each.project for each in found} == {"search"}


# --- other processes ----------------------------------------------------------------------------------------


async def test_a_lease_has_one_cost_wherever_its_process_is_killed(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    state, taken = journals.parent, [0]

    def photographed(write: Callable[..., None]) -> Callable[..., None]:
        def photograph() -> None:
            if state.exists():
                shutil.copytree(state, tmp_path / f"{taken[0]:03}")
                taken[0] += 1

        def written(*args: Any) -> None:
            photograph()
            write(*args)
            photograph()

        return written

    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        with monkeypatch.context() as patched:
            patched.setattr(_journal, "_write", photographed(_journal._write))
            patched.setattr(_ledger, "_append", photographed(_ledger._append))
            async with client.instance(MODEL, HARDWARE, project="search"):
                await anyio.sleep(90.0)
        counts: list[int] = []
        async with httpx.AsyncClient(transport=emu.transport()) as http:
            for number in range(taken[0]):
                options = {"http_client": http, "guard": "off", "state_dir": tmp_path / f"{number:03}"}
                async with client_of(emu, **options) as other:
                    await other.sweep()
                    found = await spent(other)
                    assert {each.project for each in found} <= {"search"}
                    counts.append(len(found))
    # Before the response to the start request is recorded, no instance is known.
    first = counts.index(1)
    assert counts == [0] * first + [1] * (taken[0] - first)
    assert counts.count(1) >= 4


async def reaped(emu: Emulator, journals: Path, *records: Record, is_orphaned: bool = True) -> None:
    """Release the instances in these records as the reaper of a dead process does."""
    common = {"account": "a1", "api": emu.api_base_url}
    file = JournalFile.create(journals, [{**each, **common} for each in records])
    state = file.read()
    state.is_orphaned = is_orphaned
    async with httpx.AsyncClient(transport=emu.transport()) as http:
        await reap_account(
            state,
            [*state.promises.values()],
            account_of(emu),
            applying(state),
            file.path,
            http_client=http,
            wall_clock=emulated_wall_clock,
        )
    assert state.promises == {}
    file.remove()


async def test_the_reaper_writes_the_bill_of_the_promise(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        mine, at = emu.start_instance(MODEL, HARDWARE), emulated_wall_clock()
        await anyio.sleep(90.0)
        start = intent(at=at, bill={"project": "search", "interval_price": 0.05, "currency": "EUR"})
        await reaped(emu, journals, start, recorded(at=at, instance_id=mine))
        (found,) = await spent(client)
        assert (found.outcome, found.written_by, found.project) == ("recovered", "reaper", "search")
        assert (found.model, found.hardware_type_id) == (MODEL, HARDWARE)
        assert found.seconds == pytest.approx(90.0, abs=2.0)
        assert found.cost == 0.1


async def test_the_reaper_of_a_living_process_writes_that_the_lease_expired(
    world: World, journals: Path
) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        mine, at = emu.start_instance(MODEL, HARDWARE), emulated_wall_clock()
        await reaped(
            emu, journals, intent(at=at), recorded(at=at, instance_id=mine, expires_at=at), is_orphaned=False
        )
        (found,) = await spent(client)
        assert (found.outcome, found.cost) == ("expired", None)


async def test_a_sweep_does_not_guess_when_a_missing_instance_ended(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        account = {"account": fingerprint(emu.api_base_url, emu.client_id), "api": emu.api_base_url}
        at = emulated_wall_clock()
        records = [intent(), recorded(instance_id="instance-99999")]
        owner: Record = {"kind": "OWNER", "format": 1, "host": "host", "pid": 7, "at": 0.0}
        JournalFile.create(journals, [owner, *({**each, **account, "at": at} for each in records)]).close()
        await anyio.sleep(86400.0)
        await client.sweep()
        (found,) = await spent(client)
        assert (found.outcome, found.seconds, found.cost) == ("recovered", None, None)
        assert [*read_journals(journals)] == []


async def test_a_bill_that_cannot_be_used_does_not_keep_an_instance(world: World, journals: Path) -> None:
    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        odd = {"since": "x", "model": 7, "interval_price": [1], "num_workers": -1, "lease_id": {}}
        for bill in (odd, "odd", [1], {"since": 1e300}):
            mine, at = emu.start_instance(MODEL, HARDWARE), emulated_wall_clock()
            await reaped(emu, journals, intent(at=at), recorded(at=at, instance_id=mine, bill=bill))
        assert emu.existing == ()
        assert len(await spent(client)) == 3


def test_the_keys_of_promises_differ_although_process_ids_come_again(tmp_path: Path) -> None:
    stores = [PromiseStore(tmp_path, journal=False, guard=False) for _ in range(2)]
    assert stores[0].new_key() != stores[1].new_key()


def test_a_promise_keeps_its_bill_in_a_snapshot() -> None:
    state = JournalState()
    for record in (
        intent(bill={"project": "search"}),
        recorded(bill={"model": MODEL}),
        {"kind": "SEEN", "entry": "e1", "bill": {"interval_price": 0.05}},
    ):
        assert state.apply(record)
    again = JournalState()
    assert all(again.apply(each) for each in state.snapshot())
    assert again.promises["e1"].bill == {"project": "search", "model": MODEL, "interval_price": 0.05}


# --- merging ------------------------------------------------------------------------------------------------


def test_lines_of_one_lease_are_one_lease() -> None:
    (found,) = merged(parsed(line(), line(seconds=100.0, written_by="reaper", outcome="recovered")))
    assert (found.seconds, found.outcome, found.written_by) == (90.0, "released", "lease")


def test_the_first_to_see_the_end_counts_and_the_lease_knows_why() -> None:
    first = line(written_by="reaper", outcome="expired", seconds=65.0, bill={"hardware_type_id": HARDWARE})
    (found,) = merged(parsed(first, line(outcome="idle")))
    assert (found.seconds, found.outcome) == (65.0, "idle")
    # The reaper did not know the price.
    assert (found.cost, found.currency, found.model) == (0.1, "EUR", MODEL)


def test_a_lease_that_left_its_instance_is_replaced_but_lends_its_facts() -> None:
    kept = line(outcome="kept", seconds=None)
    later = line(seconds=600.0, bill={}, written_by="reaper", outcome="expired")
    (found,) = merged(parsed(kept, later))
    assert (found.outcome, found.seconds, found.cost, found.model) == ("expired", 600.0, 0.5, MODEL)


def test_an_unknown_end_is_filled_in_by_a_line_that_knows_it_but_not_by_a_failed_release() -> None:
    unknown = line(seconds=None, written_by="sweep", outcome="recovered")
    assert merged(parsed(unknown, line()))[0].cost == 0.1
    assert merged(parsed(line(outcome="unreleased"), unknown))[0].cost is None


@pytest.mark.parametrize(
    "change", [{"lease_id": "e2"}, {"instance_id": "i-2"}, {"api_base_url": "https://b"}]
)
def test_other_leases_stay_apart(change: dict[str, Any]) -> None:
    assert len(merged(parsed(line(), line(**change)))) == 2


# --- the files ----------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(tmp_path: Path) -> CostLedger:
    tmp_path.chmod(0o700)
    return CostLedger(tmp_path / "costs")


def test_there_is_one_private_file_per_month(ledger: CostLedger) -> None:
    december = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    ledger.write([line("e1"), line("e2", ended_at=december)])
    ledger.write([line("e3"), line("e4", api_base_url="http://127.0.0.1:8000/api/v1")])
    files = sorted(ledger.directory.iterdir())
    assert [each.name for each in files] == ["2026-11.jsonl", "2026-12.jsonl", "emulated-2026-11.jsonl"]
    assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    assert stat.S_IMODE(ledger.directory.stat().st_mode) == 0o700
    assert [each.lease_id for each in ledger.read(API).leases] == ["e1", "e3", "e2"]
    assert [each.lease_id for each in ledger.read(API, december + 86400.0 * 10).leases] == ["e2"]
    assert [each.lease_id for each in ledger.read("http://127.0.0.1:8000/api/v1").leases] == ["e4"]
    assert ledger.read("http://127.0.0.1:8001/api/v1").leases == ()


def test_a_lease_that_ends_at_the_end_of_a_month_is_not_counted_twice(ledger: CostLedger) -> None:
    end = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    ledger.write([line(ended_at=end - 1.0), line(ended_at=end + 1.0, written_by="reaper")])
    assert [each.ended_at for each in ledger.read(API, end).leases] == [end - 1.0]


def test_many_processes_can_append_at_the_same_time(ledger: CostLedger) -> None:
    def write(number: int) -> None:
        own = CostLedger(ledger.directory)
        for index in range(20):
            own.write([line(f"e{number}-{index}")])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    content = ledger.read(API)
    assert (len(content.leases), content.num_unreadable) == (160, 0)


def test_a_torn_line_is_skipped_and_does_not_harm_the_next_one(ledger: CostLedger) -> None:
    ledger.write([line("e1")])
    (file,) = ledger.directory.iterdir()
    file.write_bytes(file.read_bytes() + encode([line("e2")])[:-50])
    ledger.write([line("e3")])
    content = ledger.read(API)
    assert ([each.lease_id for each in content.leases], content.num_unreadable) == (["e1", "e3"], 1)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        "[]",
        "{}",
        "[" * 100_000,
        '{"format": 2}',
        json.dumps({**line(), "format": 2}),
        json.dumps({**line(), "ended_at": "yesterday"}),
        json.dumps({**line(), "ended_at": 7}),
        json.dumps({**line(), "ended_at": "9999-12-31T23:59:59+00:00"}),
        json.dumps({**line(), "started_at": "0001-01-01T00:00:00+00:00"}),
        json.dumps({**line(), "instance_id": None}),
        json.dumps({**line(), "num_workers": 1}).replace('"lease_id"', '"x"'),
    ],
    ids=[
        "text",
        "list",
        "empty",
        "nested",
        "bare",
        "other format",
        "no time",
        "odd time",
        "no day in the east",
        "no day in the west",
        "no instance",
        "no id",
    ],
)
def test_a_line_that_cannot_be_parsed_is_counted(ledger: CostLedger, text: str) -> None:
    ledger.write([line()])
    (file,) = ledger.directory.iterdir()
    file.write_text(f"{text}\n{file.read_text()}\n\n")
    content = ledger.read(API)
    assert (len(content.leases), content.num_unreadable) == (1, 1)


def test_a_part_of_a_worker_is_a_worker() -> None:
    assert [each.num_workers for each in parsed({**line(), "num_workers": 0.5})] == [1]


def test_lines_may_gain_fields(ledger: CostLedger) -> None:
    assert parse_line(json.dumps({**line(), "color": "red"}).encode()) == parsed(line())[0]


def test_other_files_are_left_alone(ledger: CostLedger, caplog: pytest.LogCaptureFixture) -> None:
    ledger.write([line()])
    (ledger.directory / "notes.txt").write_text("mine")
    (ledger.directory / "2026-10.jsonl").symlink_to(ledger.directory / "2026-11.jsonl")
    assert len(ledger.read(API).leases) == 1
    assert (ledger.directory / "notes.txt").read_text() == "mine"
    assert "notes.txt" in caplog.text
    assert "2026-10.jsonl" in caplog.text


def test_a_file_is_read_again_only_if_it_has_changed(
    ledger: CostLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []
    parse = _ledger._parse

    def counted(data: bytes) -> Any:
        reads.append(len(data))
        return parse(data)

    monkeypatch.setattr(_ledger, "_parse", counted)
    ledger.write([line("e1")])
    assert [len(ledger.read(API).leases) for _ in range(3)] == [1, 1, 1]
    assert len(reads) == 1
    ledger.write([line("e2")])
    assert len(ledger.read(API).leases) == 2
    assert len(reads) == 2


async def test_a_full_disk_does_not_disturb_a_release_and_lines_are_written_later(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    async with world(journal="auto", step_seconds=0.0) as (emu, client):
        with monkeypatch.context() as patched:
            patched.setattr(_ledger, "_append", fail)
            for _ in range(2):
                async with client.instance(MODEL, HARDWARE):
                    pass
        assert emu.existing == ()
        assert await spent(client) == []
        warnings = [each for each in caplog.records if each.levelno >= logging.WARNING]
        assert [each.cortecs_event for each in warnings] == ["costs.unwritten"]  # type: ignore[attr-defined]
        async with client.instance(MODEL, HARDWARE):
            pass
        assert len(await spent(client)) == 3


def test_a_short_write_is_an_error(ledger: CostLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:20]))
    ledger.write([line("e1")])
    monkeypatch.undo()
    ledger.write([line("e2")])
    content = ledger.read(API)
    assert ([each.lease_id for each in content.leases], content.num_unreadable) == (["e1", "e2"], 1)
