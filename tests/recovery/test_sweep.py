"""Test that sweep releases what dead processes left, and touches nothing else."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from _world import HARDWARE, MODEL, World, client_of, emulated_wall_clock, in_the_loop

from cortecs_async import AsyncCortecs, errors
from cortecs_async._aio.threads import System
from cortecs_async._client.wiring import Wiring
from cortecs_async._recovery.accounts import fingerprint
from cortecs_async._recovery.journal import JournalFile, read_journals, try_lock
from cortecs_async._recovery.records import Record
from cortecs_async.emulator import Emulator, Fault

EPOCH = 1_735_689_600.0


def journal_of(emu: Emulator, directory: Path, *records: dict[str, Any], host: str = "host") -> JournalFile:
    """Write a journal as a process does. Its owner is dead once you `close` it."""
    common = {
        "account": fingerprint(emu.api_base_url, emu.client_id),
        "api": emu.api_base_url,
        "at": EPOCH + anyio.current_time(),
        "args": {},
    }
    owner: Record = {"kind": "OWNER", "format": 1, "host": host, "pid": 7, "at": 0.0}
    return JournalFile.create(directory, [owner, *({**common, **record} for record in records)])


def intent(key: str = "e1", **more: Any) -> dict[str, Any]:
    args = {"model_id": MODEL.replace("/", "--"), "hardware_type_id": HARDWARE, "num_workers": 1}
    return {"kind": "INTENT", "entry": key, "args": args, "baseline": "b", **more}


def baseline(*ids: str) -> dict[str, Any]:
    return {"kind": "BASELINE", "baseline": "b", "ids": list(ids)}


def created(instance_id: str, key: str = "e1", **more: Any) -> dict[str, Any]:
    return {"kind": "CREATED", "entry": key, "instance_id": instance_id, "goal": "gone", **more}


@asynccontextmanager
async def swept(world: World, **options: Any) -> AsyncIterator[tuple[Emulator, AsyncCortecs]]:
    async with world(journal="auto", **options) as (emu, client):
        yield emu, client


async def test_a_created_instance_is_released_and_the_journal_removed(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine, foreign = emu.start_instance(MODEL, HARDWARE), emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(mine)).close()
        (orphan,) = await client.orphans()
        assert (orphan.state, orphan.instance_id, orphan.owner) == ("found", mine, "host, process 7")
        assert orphan.api_base_url == emu.api_base_url
        assert emu.billing == (mine, foreign)
        (orphan,) = await client.sweep()
        assert (orphan.state, orphan.instance_id) == ("released", mine)
        assert emu.existing == (foreign,)
        assert await client.sweep() == ()
    assert list(read_journals(journals)) == []


async def test_an_instance_of_a_living_process_is_not_touched(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        living = journal_of(emu, journals, created(emu.start_instance(MODEL, HARDWARE)))
        assert await client.orphans() == ()
        assert await client.sweep() == ()
        assert len(emu.billing) == 1
        living.remove()


async def test_a_lease_of_this_process_is_not_touched(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client), client.instance(MODEL, HARDWARE) as inst:
        assert await client.sweep() == ()
        assert emu.billing == (inst.instance_id,)


async def test_an_instance_that_was_to_be_stopped_is_not_deleted(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(mine, goal="stopped")).close()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == (mine,)
        assert emu.billing == ()


async def test_an_instance_that_does_not_exist_is_gone(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        journal_of(emu, journals, created("instance-99999")).close()
        # In the first minute, it may not be visible yet.
        assert [each.state for each in await client.orphans()] == ["found"]
        await anyio.sleep(60.0)
        assert [each.state for each in await client.orphans()] == ["gone"]
        assert [each.state for each in await client.sweep()] == ["gone"]
        assert emu.ledger == ()
    assert list(read_journals(journals)) == []


async def test_a_missing_instance_that_a_reading_has_shown_is_gone_at_once(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        journal_of(emu, journals, created("instance-99999"), {"kind": "SEEN", "entry": "e1"}).close()
        assert [each.state for each in await client.orphans()] == ["gone"]
        began = anyio.current_time()
        assert [each.state for each in await client.sweep()] == ["gone"]
        assert anyio.current_time() - began < 15.0


@pytest.mark.parametrize("step_seconds", [0.0, 1.0])
async def test_a_lease_records_that_a_reading_has_shown_its_instance(
    world: World, journals: Path, step_seconds: float
) -> None:
    async with swept(world, step_seconds=step_seconds) as (_emu, client), client.instance(MODEL, HARDWARE):
        promises = client._wiring.promises
        # Written with the next record, at the latest before the release begins.
        await promises.flush()
        (promise,) = promises.store.state.promises.values()
        # If the response to the start says that it is running, nothing is read.
        assert promise.seen == (step_seconds > 0.0)


async def test_a_stopped_instance_is_deleted(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(mine)
        journal_of(emu, journals, created(mine)).close()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()


async def test_an_intent_finds_its_instance(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        before = emu.start_instance(MODEL, HARDWARE)
        mine = emu.start_instance(MODEL, HARDWARE)
        other = emu.start_instance(MODEL, "NVIDIA_L40S_1")
        journal_of(emu, journals, baseline(before), intent()).close()
        (orphan,) = await client.orphans()
        assert (orphan.state, orphan.instance_id, orphan.model) == ("found", mine, MODEL)
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == (before, other)
    assert list(read_journals(journals)) == []


async def test_the_instance_of_an_intent_is_waited_for_before_it_is_closed(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        journal_of(emu, journals, baseline(), intent()).close()

        async def late() -> None:
            await anyio.sleep(150)
            emu.start_instance(MODEL, HARDWARE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(late)
            assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()
        journal_of(emu, journals, baseline(), intent()).close()
        assert [each.state for each in await client.orphans()] == ["unsettled"]
        start = anyio.current_time()
        assert [each.state for each in await client.sweep()] == ["gone"]
        assert 300 <= anyio.current_time() - start < 306
    assert list(read_journals(journals)) == []


@pytest.mark.parametrize("account", ["the same", "another"])
async def test_the_instance_of_an_equal_start_that_is_not_due_is_not_touched(
    world: World, journals: Path, account: str
) -> None:
    async with swept(world) as (emu, client):
        theirs = emu.start_instance(MODEL, HARDWARE)
        journal_of(
            emu,
            journals,
            baseline(),
            intent("theirs", **({"account": account} if account == "another" else {})),
            created(theirs, "theirs", expires_at=EPOCH + anyio.current_time() + 3600.0),
            {"kind": "HELD", "entry": "theirs"},
            intent("lost"),
        ).close()
        skipped = ("foreign" if account == "another" else "held", theirs)
        found = await client.orphans()
        assert {(each.state, each.instance_id) for each in found} == {skipped, ("unsettled", None)}
        swept_orphans = await client.sweep()
        assert {(each.state, each.instance_id) for each in swept_orphans} == {skipped, ("gone", None)}
        assert emu.billing == (theirs,)


async def test_two_candidates_are_ambiguous_and_not_touched(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        two = emu.start_instance(MODEL, HARDWARE), emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, baseline(), intent()).close()
        (orphan,) = await client.orphans()
        assert (orphan.state, orphan.candidates) == ("ambiguous", two)
        for _ in range(2):
            (orphan,) = await client.sweep()
            assert (orphan.state, orphan.candidates) == ("ambiguous", two)
            assert emu.billing == two


@pytest.mark.parametrize("running", [True, False])
async def test_an_instance_started_long_after_the_crash_is_not_touched(
    world: World, journals: Path, *, running: bool
) -> None:
    async with swept(world, step_seconds=1.0 if running else 10_000.0) as (emu, client):
        journal_of(emu, journals, baseline(), intent()).close()
        await anyio.sleep(2 * 3600)
        foreign = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(60)
        assert [each.state for each in await client.orphans()] == ["ambiguous"]
        assert [each.state for each in await client.sweep()] == ["ambiguous"]
        assert emu.billing == (foreign,)


async def test_the_starts_of_many_dead_processes_each_get_an_instance(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        for number in range(5):
            journal_of(emu, journals, baseline(), intent(), host=f"host-{number}").close()
            emu.start_instance(MODEL, HARDWARE)
        assert {each.state for each in await client.orphans()} == {"found"}
        found = await client.sweep()
        assert [each.state for each in found] == ["released"] * 5
        assert len({each.instance_id for each in found}) == 5
        assert emu.existing == ()
    assert list(read_journals(journals)) == []


async def test_an_instance_that_a_living_process_may_be_starting_is_not_touched(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        living = journal_of(emu, journals, baseline(), intent())
        journal_of(emu, journals, baseline(), intent()).close()
        only = emu.start_instance(MODEL, HARDWARE)
        # Until it is known what that start created, there is nothing to conclude.
        assert [each.state for each in await client.sweep()] == ["unsettled"]
        assert emu.billing == (only,)
        living.remove()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()


async def test_promises_of_other_credentials_are_not_touched(world: World, journals: Path) -> None:
    async with swept(world, client_id="somebody") as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(mine, account="another")).close()
        assert [each.state for each in await client.orphans()] == ["foreign"]
        assert [each.state for each in await client.sweep()] == ["foreign"]
        assert emu.billing == (mine,)
        assert len(list(read_journals(journals))) == 1


# --- what a reaper is working on ----------------------------------------------------------------------------

ORPHANED: Record = {"kind": "ORPHANED"}


async def test_what_the_reaper_of_a_dead_process_has_is_listed_and_released_only_with_force(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        mine, foreign = emu.start_instance(MODEL, HARDWARE), emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, created(mine), ORPHANED)
        for act in (client.orphans, client.sweep):
            (orphan,) = await act()
            assert (orphan.state, orphan.instance_id) == ("releasing", mine)
            assert orphan.owner == "host, process 7"
        assert [each.state for each in await client.sweep(dry_run=True, force=True)] == ["found"]
        assert emu.billing == (mine, foreign)
        assert [each.state for each in await client.sweep(force=True)] == ["released"]
        assert emu.existing == (foreign,)
        # The reaper reads that nothing is left to do.
        assert reaper.read().promises == {}
        assert await client.orphans() == ()
        reaper.close()
        assert await client.sweep() == ()
    assert list(read_journals(journals)) == []
    with pytest.raises(errors.InvalidArgumentError, match="force must be True or False"):
        await client.sweep(force=1)  # type: ignore[arg-type]


async def test_what_a_reaper_has_done_meanwhile_is_not_listed(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        left = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(left)).close()
        mine = emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, created(mine, "e2"), ORPHANED)
        emu.add_fault(Fault("delay", route="stop", seconds=20.0))
        async with anyio.create_task_group() as tasks:

            async def release() -> None:
                await anyio.sleep(1.0)
                reaper.append([{"kind": "GONE", "entry": "e2"}], durable=False)

            tasks.start_soon(release)
            (orphan,) = await client.sweep()
        assert (orphan.state, orphan.instance_id) == ("released", left)
        reaper.close()


async def test_an_instance_that_a_reaper_has_released_is_gone(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, created(mine), ORPHANED, {"kind": "SEEN", "entry": "e1"})
        emu.stop_instance(mine)
        emu.delete_instance(mine)
        assert [each.state for each in await client.orphans()] == ["gone"]
        assert [each.state for each in await client.sweep()] == ["gone"]
        reaper.close()


async def test_a_forced_sweep_searches_for_the_instance_of_a_start_that_a_reaper_searches_for(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        foreign = emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, baseline(foreign), intent(), ORPHANED)
        mine = emu.start_instance(MODEL, HARDWARE)
        assert [each.state for each in await client.orphans()] == ["releasing"]
        (orphan,) = await client.sweep(force=True)
        assert (orphan.state, orphan.instance_id) == ("released", mine)
        assert emu.existing == (foreign,)
        assert reaper.read().promises == {}
        reaper.close()


async def test_a_forced_sweep_touches_nothing_of_a_living_process_but_what_it_gave_up_on(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        used, left, own = (emu.start_instance(MODEL, HARDWARE) for _ in range(3))
        living = journal_of(
            *(emu, journals, baseline(used, left, own), intent("e3"), created(used)),
            *(created(left, "e2"), {"kind": "ABANDONED", "entry": "e2"}),
        )
        maybe_theirs = emu.start_instance(MODEL, HARDWARE)
        for act in (client.orphans, client.sweep):
            (orphan,) = await act()
            assert (orphan.state, orphan.instance_id) == ("releasing", left)
        (orphan,) = await client.sweep(force=True)
        assert (orphan.state, orphan.instance_id) == ("released", left)
        assert emu.existing == (used, own, maybe_theirs)
        assert living.read().promises.keys() == {"e1", "e3"}
        living.remove()


async def test_a_forced_sweep_knows_what_a_living_process_has_started_meanwhile(
    world: World, journals: Path
) -> None:
    async with swept(world) as (emu, client):
        left = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, baseline(left), intent()).close()  # not carried out
        given_up = created(left, "e2"), {"kind": "ABANDONED", "entry": "e2"}
        living = journal_of(emu, journals, *given_up, host="living")
        async with anyio.create_task_group() as tasks:

            async def start() -> None:
                await anyio.sleep(5.0)
                theirs.append(emu.start_instance(MODEL, HARDWARE))
                record = journal_of(emu, journals, created(theirs[0], "e3"))
                (_, started) = record.read().snapshot()
                record.remove()
                living.append([started], durable=False)

            theirs: list[str] = []
            tasks.start_soon(start)
            states = {each.state for each in await client.sweep(force=True)}
        assert states == {"released", "gone"}
        assert emu.existing == (*theirs,)
        living.remove()


async def test_what_is_not_due_is_not_listed_and_not_touched_with_force(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        until = EPOCH + anyio.current_time() + 3600.0
        held = created(mine, expires_at=until), {"kind": "HELD", "entry": "e1"}
        reaper = journal_of(emu, journals, *held, ORPHANED)
        assert await client.orphans() == ()
        assert await client.sweep() == ()
        assert [each.state for each in await client.sweep(force=True)] == ["held"]
        assert emu.billing == (mine,)
        await anyio.sleep(3601.0)
        assert [each.state for each in await client.orphans()] == ["releasing"]
        assert [each.state for each in await client.sweep(force=True)] == ["released"]
        reaper.close()


@pytest.mark.parametrize("force", [False, True])
async def test_a_reaper_with_another_client_id_is_listed_and_left_alone(
    world: World, journals: Path, *, force: bool
) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, created(mine, account="another"), ORPHANED)
        assert [each.state for each in await client.sweep(force=force)] == ["foreign"]
        assert emu.billing == (mine,)
        reaper.close()


async def test_the_candidates_of_a_reaper_are_listed_and_left_alone(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        ids = [emu.start_instance(MODEL, HARDWARE) for _ in range(2)]
        ambiguous = {"kind": "AMBIGUOUS", "entry": "e1", "candidates": ids}
        reaper = journal_of(emu, journals, baseline(), intent(), ambiguous, ORPHANED)
        for options in ({}, {"force": True}):
            (orphan,) = await client.sweep(**options)
            assert (orphan.state, orphan.candidates) == ("ambiguous", (*ids,))
        assert len(emu.billing) == 2
        reaper.close()


async def test_a_forced_sweep_goes_on_if_it_cannot_write_to_the_journal(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        reaper = journal_of(emu, journals, created(mine), ORPHANED)
        monkeypatch.setattr("cortecs_async._recovery.dead_journals.os.write", _full)
        assert [each.state for each in await client.sweep(force=True)] == ["released"]
        assert emu.existing == ()
        reaper.close()


def _full(*_: Any) -> int:
    raise OSError("no space left on device")


# --- the rest -----------------------------------------------------------------------------------------------


async def test_a_failing_service_leaves_a_promise_for_the_next_sweep(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(mine)).close()
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        assert [each.state for each in await client.sweep(timeout=30)] == ["left"]
        emu.clear_faults()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()
        with pytest.raises(errors.InvalidArgumentError):
            await client.sweep(timeout=0)
        with pytest.raises(errors.InvalidArgumentError, match="dry_run must be True or False"):
            await client.sweep(dry_run="false")  # type: ignore[arg-type]


async def test_unreadable_lines_do_not_stop_a_sweep(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal = journal_of(emu, journals, created(mine))
        with journal.path.open("ab") as file:
            file.write(b'\0\0\0\n{"kind": "SONG"}\n{"kind": "CREATED", "entry"')
        journal.close()
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()


async def test_without_journals_there_is_nothing_to_sweep(world: World, journals: Path) -> None:
    async with world(journal="off") as (emu, client):
        journal_of(emu, journals, created(emu.start_instance(MODEL, HARDWARE))).close()
        assert await client.sweep() == ()
        assert len(emu.billing) == 1


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_power_loss_anywhere_in_the_journal(world: World, journals: Path, tmp_path: Path) -> None:
    """The intent of a start is on disk before the start is sent. A prefix that contains it is enough.

    `recovery/test_crash.py` cuts the journal of a real program at every byte.
    """
    async with world() as (emu, _client):
        http = httpx.AsyncClient(transport=emu.transport())
        foreign = emu.start_instance(MODEL, HARDWARE)
        mine = emu.start_instance(MODEL, HARDWARE)
        journal = journal_of(emu, journals, baseline(foreign), intent(), created(mine))
        data = journal.path.read_bytes()
        journal.remove()
        promised = data.index(b"\n", data.index(b'"INTENT"')) + 1
        ends = [length for length in range(len(data) + 1) if b"\n" in data[max(length - 2, 0) : length + 1]]
        assert {promised - 1, promised, promised + 1} < {*ends}
        async with http:
            for length in sorted({*ends, *range(0, len(data), 23)}):
                if mine not in emu.existing:
                    mine = emu.start_instance(MODEL, HARDWARE)
                directory = tmp_path / str(length)
                (directory / "journal").mkdir(parents=True)
                text = data[:length].replace(b"instance-10002", mine.encode())
                (directory / "journal" / f"{length:032x}.jsonl").write_bytes(text)
                async with client_of(emu, http_client=http, guard="off", state_dir=directory) as client:
                    await client.sweep()
                assert emu.existing == ((foreign,) if length >= promised else (foreign, mine)), length
                # The owner's record was on disk before the file had its name.
                is_ours = b"\n" in text
                assert len(list(read_journals(directory / "journal"))) == (not is_ours)


@pytest.mark.parametrize("dry_run", [False, True])
async def test_a_failing_service_does_not_delay_a_sweep(
    world: World, journals: Path, *, dry_run: bool
) -> None:
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(mine), created("unlisted", "e2")).close()
        await anyio.sleep(100.0)
        began = anyio.current_time()
        # The first list is answered.
        emu.add_fault(Fault("status", route="list", status=503, skip=1, times=None))
        emu.add_fault(Fault("status", route="get", status=503, times=None))
        found = {each.instance_id: each.state for each in await client.sweep(dry_run=dry_run, timeout=30.0)}
        if dry_run:
            assert found == {mine: "found", "unlisted": "found"}
            assert anyio.current_time() - began <= 15.0
        else:
            assert found["unlisted"] == "left"
            assert emu.billing == ()
            routes = [each.route for each in emu.requests if each.route != "token"]
            assert routes[:2] == ["list", "stop"]
            assert anyio.current_time() - began <= 31.0


class SlowDisk:
    """A thread that needs ten seconds, does its work early or late, and cannot be cancelled."""

    def __init__(self, when: str) -> None:
        self.when = when
        self.is_slow = False
        self.late: list[Callable[[], Any]] = []

    async def __call__(self, work: Callable[[], Any], /) -> Any:
        if not self.is_slow:
            return await in_the_loop(work)
        if self.when == "late":
            self.late.append(work)
        result = work() if self.when == "early" else None
        await anyio.sleep(10.0)
        return result


@pytest.mark.parametrize("how", ["cancelled", "timed out"])
@pytest.mark.parametrize("when", ["early", "late"])
async def test_a_sweep_that_ends_while_it_reads_the_journals_keeps_no_lock(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, when: str, how: str
) -> None:
    disk = SlowDisk(when)
    monkeypatch.setattr(Wiring, "system", System(emulated_wall_clock, off_loop=disk))
    async with swept(world) as (emu, client):
        mine = emu.start_instance(MODEL, HARDWARE)
        journal = journal_of(emu, journals, created(mine), baseline(), intent("e2"))
        journal.close()
        disk.is_slow = True
        began = anyio.current_time()
        if how == "cancelled":
            with anyio.move_on_after(1.0):
                await client.sweep()
        else:
            with pytest.raises(errors.JournalError, match="could not be read in 1 s"):
                await client.sweep(timeout=1.0)
        assert anyio.current_time() - began == 1.0
        for work in disk.late:
            work()
        disk.is_slow = False
        locked = try_lock(journal.path)
        assert locked is not None
        locked.close()
        assert {each.state for each in await client.sweep()} == {"released", "gone"}
        assert emu.existing == ()


@pytest.mark.parametrize("age", [0.0, 20.0, 250.0])
@pytest.mark.parametrize("timeout", [0.5, 5.0, 30.0])
async def test_a_sweep_ends_within_its_timeout(
    world: World, journals: Path, timeout: float, age: float
) -> None:
    async with swept(world) as (emu, client):
        hanging = emu.start_instance(MODEL, HARDWARE)
        journal_of(emu, journals, created(hanging), created("unlisted", "e2")).close()
        journal_of(emu, journals, baseline(hanging), intent("lost")).close()
        await anyio.sleep(age)
        emu.add_fault(Fault("delay", route="stop", seconds=3600.0, times=None))
        began = anyio.current_time()
        found = {each.instance_id: each.state for each in await client.sweep(timeout=timeout)}
        assert anyio.current_time() - began <= timeout
        assert found[hanging] == "left"
        assert found[None] == "unsettled"


@pytest.mark.parametrize("route", ["token", "list"])
async def test_a_sweep_whose_list_hangs_ends_within_its_timeout(world: World, route: str) -> None:
    async with swept(world) as (emu, client):
        emu.add_fault(Fault("delay", route=route, seconds=3600.0, times=None))
        began = anyio.current_time()
        for dry_run in (False, True):
            with pytest.raises(errors.RequestTimeoutError, match="could not be listed in 2 s"):
                await client.sweep(timeout=2.0, dry_run=dry_run)
        assert anyio.current_time() - began == 4.0


async def test_a_sweep_whose_later_lists_hang_ends_within_its_timeout(world: World, journals: Path) -> None:
    async with swept(world) as (emu, client):
        journal_of(emu, journals, baseline(), intent()).close()
        emu.add_fault(Fault("delay", route="list", seconds=3600.0, skip=1, times=None))
        began = anyio.current_time()
        assert [each.state for each in await client.sweep(timeout=3.0)] == ["unsettled"]
        assert anyio.current_time() - began == 3.0
