"""Test when the search for the instance of a lost start takes an instance, and when it ends.

Each test has two ways to go wrong: to release an instance of someone else, and to leave one of ours.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _evidence import PROXY_PAGE, Process, account_of, applying, open_promises, process, reap
from _grids import alternating
from _promises import BASELINE, OWNER, intent, state_of
from _world import HARDWARE, MODEL, World, emulated_wall_clock
from attrs import evolve

from cortecs_async import errors
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.listing import Listing
from cortecs_async._api.matching import Ambiguous
from cortecs_async._recovery import journal, locks, recover
from cortecs_async._recovery.claims import ForeignClaims, unresolved_start_of
from cortecs_async._recovery.pending import PendingPromise
from cortecs_async._recovery.promise import Promise
from cortecs_async._recovery.records import JournalState, Record, encode, fold
from cortecs_async._recovery.recover import reap_account
from cortecs_async._recovery.search import match_starts
from cortecs_async.emulator import Emulator, Fault


async def lose_a_start(emu: Emulator, mine: Process, tasks: anyio.abc.TaskGroup, when: str = "after") -> Path:
    """Let a process lose the response to a start, and be killed. Return its journal."""
    emu.add_fault(Fault("drop", route="start", when="before" if when == "before" else "after"))
    tasks.start_soon(mine.start_and_die)
    await anyio.sleep(1.0)
    path = mine.kill()
    assert path is not None
    return path


def abandoned(mine: Process) -> Promise:
    """Return the only start of a living process that no lease waits for any more."""
    (promise,) = mine.store.abandoned()
    return promise


def reporter(mine: Process) -> Callable[[Record], None]:
    """Return what the reaper of a living process does with its records."""

    def report(record: Record) -> None:
        mine.store.put(record)
        mine.store.commit()

    return report


# --- how long an instance is attributed to a start ----------------------------------------------------------


@alternating("after", [280.0, 310.0, 36_000.0])
async def test_the_end_of_a_block_takes_nothing_that_appears_more_than_five_minutes_after_its_lost_start(
    world: World, journals: Path, after: float
) -> None:
    async with world(started_at="none") as (emu, _), process(emu, journals) as mine:
        emu.add_fault(Fault("drop", route="start", when="before"))
        began = anyio.current_time()
        async with mine.client.instance(MODEL, HARDWARE):
            await anyio.sleep_until(began + after)
            other = emu.start_instance(MODEL, HARDWARE)
            await anyio.sleep(5.0)
        # Within five minutes, it is more likely the one that the lost start has created.
        assert emu.existing == (() if after < 300.0 else (other,))


# --- when another process has decided -----------------------------------------------------------------------


@pytest.mark.parametrize("by", ["its reaper", "sweep"])
async def test_a_search_ends_when_another_process_has_closed_the_promise(
    world: World, journals: Path, by: str
) -> None:
    async with world() as (emu, _), process(emu, journals) as mine:
        emu.add_fault(Fault("drop", route="start", when="before"))
        async with mine.client.instance(MODEL, HARDWARE) as inst, anyio.create_task_group() as tasks:
            promise, state = abandoned(mine), mine.store.state
            if by == "sweep":
                tasks.start_soon(mine.client.sweep)
            else:
                tasks.start_soon(reap, emu, state, [promise], reporter(mine), mine.journal)
            await anyio.sleep(20.0)
            # What the reaper has done is only queued in its living parent.
            mine.store.put({"kind": "GONE", "entry": promise.key})
            if by == "its reaper":
                mine.store.commit()
            theirs = emu.start_instance(MODEL, HARDWARE)
            await anyio.sleep(120.0)
            assert emu.billing == (inst.instance_id, theirs)
        assert emu.existing == (theirs,)


@pytest.mark.parametrize("how", ["closes", "removes"])
async def test_a_reaper_without_the_lock_notices_what_a_sweep_has_done(
    world: World, journals: Path, how: str
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        path = await lose_a_start(emu, mine, tasks, when="before")
        state = fold(path.read_bytes())
        state.apply({"kind": "ORPHANED"})  # as the reaper does when its parent has died
        (promise,) = state.promises.values()
        tasks.start_soon(reap, emu, state, [promise], applying(state), path)
        await anyio.sleep(20.0)
        if how == "removes":
            path.unlink()
        else:
            with path.open("ab") as file:
                file.write(encode([{"kind": "GONE", "entry": promise.key}]))
        theirs = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(120.0)
        assert emu.billing == (theirs,)
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize("how", ["finds", "closes"])
async def test_a_sweep_notices_what_a_reaper_without_the_lock_has_done(
    world: World, journals: Path, how: str
) -> None:
    async with (
        world(journal="auto") as (emu, client),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        path = await lose_a_start(emu, mine, tasks, when="before")
        (promise,) = fold(path.read_bytes()).promises.values()
        tasks.start_soon(client.sweep)
        await anyio.sleep(20.0)
        found, theirs = emu.start_instance(MODEL, HARDWARE), emu.start_instance(MODEL, HARDWARE)
        records: list[Record] = [
            {"kind": "CREATED", "entry": promise.key, "instance_id": found, "goal": "gone"}
        ]
        if how == "closes":
            emu.delete_instance(found)
            records.append({"kind": "GONE", "entry": promise.key})
        with path.open("ab") as file:
            file.write(encode(records))
        await anyio.sleep(120.0)
        assert emu.existing == (theirs,)
        assert list(journal.read_journals(journals)) == []
        tasks.cancel_scope.cancel()


async def test_the_living_reaper_does_not_take_a_plain_start_of_its_program(
    world: World, journals: Path
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals, max_retries=0) as mine,
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("drop", route="start", when="before"))
        with pytest.raises(errors.TransportError):
            async with mine.client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        searched = [abandoned(mine)]
        tasks.start_soon(reap, emu, mine.store.state, searched, reporter(mine), mine.journal)
        await anyio.sleep(20.0)
        started = await mine.client.instances.start(MODEL, HARDWARE)
        await anyio.sleep(300.0)
        assert emu.billing == (started.instance_id,)
        assert open_promises(journals) == []  # the search has ended


def test_a_copy_of_the_lock_in_a_forked_child_blocks_no_decision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[int] = []
    lock = locks.lock

    def lock_and_fork(fd: int) -> None:
        lock(fd)
        copies.append(os.dup(fd))  # shares the lock, as the copy of a forked child does

    monkeypatch.setattr(locks, "lock", lock_and_fork)
    with locks.decision_lock(tmp_path):
        pass
    (copy,) = copies
    other = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises BlockingIOError if it is still held
    finally:
        os.close(other)
        os.close(copy)


# --- when nothing has appeared ------------------------------------------------------------------------------


@alternating("outage", [310.0, 900.0])
async def test_one_list_after_a_long_outage_closes_nothing(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, outage: float
) -> None:
    # As with a service that is not on this machine.
    monkeypatch.setattr(recover, "_LOCAL_REAPER_TIMEOUT", recover._REAPER_TIMEOUT)
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        path = await lose_a_start(emu, mine, tasks)
        emu.add_fault(Fault("status", route="list", status=502, body=PROXY_PAGE, times=None))

        async def recover_with_a_list_that_lags() -> None:
            await anyio.sleep(outage)
            emu.clear_faults()
            emu.add_fault(Fault("omit", route="list"))

        tasks.start_soon(recover_with_a_list_that_lags)
        await mine.reap(path)
        assert emu.unmet_faults == ()
        assert emu.existing == ()
        assert open_promises(journals) == []
        tasks.cancel_scope.cancel()


@alternating("skip", [0, 1, 2, 3])
async def test_no_single_list_of_a_search_long_after_the_start_closes_it(
    world: World, journals: Path, skip: int
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        await lose_a_start(emu, mine, tasks)
        emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(400.0)  # now lists are five seconds apart
        emu.add_fault(Fault("omit", route="list", skip=skip))
        (orphan,) = await later.client.sweep()
        assert (orphan.state, orphan.candidates) == ("ambiguous", emu.billing)
        assert len(emu.billing) == 2
        tasks.cancel_scope.cancel()


@alternating("skip", range(9))
async def test_no_single_list_hides_the_instance_of_a_start_of_long_ago(
    world: World, journals: Path, skip: int
) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        process(emu, journals) as later,
        anyio.create_task_group() as tasks,
    ):
        await lose_a_start(emu, mine, tasks)
        await anyio.sleep(400.0)  # now lists are five seconds apart, once they agree
        emu.add_fault(Fault("omit", route="list", skip=skip))
        assert [each.state for each in await later.client.sweep()] == ["released"]
        assert emu.existing == ()
        tasks.cancel_scope.cancel()


# --- which starts can have created an instance --------------------------------------------------------------


def listed(length: int) -> Listing[Instance]:
    """Return a list of one instance that fits `intent()`, with a context length."""
    args = InstanceArgs(model_id=MODEL.replace("/", "--"), hardware_type_id=HARDWARE, context_length=length)
    status = InstanceStatus(status="running")
    return Listing([Instance(instance_id="i-7", instance_args=args, instance_status=status)])


def pending_in(state: JournalState) -> PendingPromise:
    """Return the promise of `intent()`, to be fulfilled."""
    return PendingPromise(state, state.promises["e1"], lambda _: pytest.fail("nothing is recorded"))


def test_an_instance_that_another_start_can_have_created_is_no_riddle() -> None:
    mine, theirs = (state_of(BASELINE, intent(tag=tag)) for tag in (990, 980))
    pending = pending_in(mine)
    starts = {pending: unresolved_start_of(mine, pending.promise)}
    other = unresolved_start_of(theirs, theirs.promises["e1"])
    for claims in (ForeignClaims(unresolved=[other]), ForeignClaims(in_progress=[other])):
        assert match_starts(starts, listed(980), set(), claims=claims, now=1000.0) == {pending: None}
    # But if none can, the evidence may be wrong.
    outcomes = match_starts(starts, listed(980), set(), claims=ForeignClaims(), now=1000.0)
    assert outcomes == {pending: Ambiguous(("i-7",))}


def test_without_its_baseline_no_instance_is_attributed_to_a_start() -> None:
    state = state_of(OWNER, intent())
    pending = pending_in(state)
    start = unresolved_start_of(state, pending.promise)
    assert start.baseline is None
    outcomes = match_starts({pending: start}, listed(8192), set(), claims=ForeignClaims(), now=1000.0)
    assert outcomes == {pending: Ambiguous(("i-7",))}


def test_all_instances_that_may_be_ours_are_named() -> None:
    state = state_of(BASELINE, intent())
    start = unresolved_start_of(state, pending_in(state).promise)
    instances = [evolve(listed(8192)[0], instance_id=name) for name in ("i-7", "i-8", "i-9")]
    outcome = ForeignClaims(ambiguous_ids={"i-9"}).match(start, instances, listed_at=None)
    assert isinstance(outcome, Ambiguous)
    assert set(outcome.candidates) == {"i-7", "i-8", "i-9"}


def test_a_snapshot_keeps_the_baselines_of_all_starts() -> None:
    records = [
        record
        for number in range(40)
        for record in (
            {"kind": "BASELINE", "baseline": f"b{number}", "ids": [f"i-{number}"]},
            intent(f"e{number}", baseline=f"b{number}"),
        )
    ]
    state = state_of(OWNER, *records)
    again = fold(encode(state.snapshot()))
    found = [again.baseline_of(again.promises[f"e{number}"]) for number in range(40)]
    assert found == [frozenset({f"i-{number}"}) for number in range(40)]


# --- what others have done ----------------------------------------------------------------------------------


async def test_a_search_releases_the_instance_that_the_owner_has_found(world: World, journals: Path) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        found = emu.start_instance(MODEL, HARDWARE)
        path = await lose_a_start(emu, mine, tasks, when="before")
        state = fold(path.read_bytes())
        (promise,) = state.promises.values()
        tasks.start_soon(reap, emu, state, [promise], applying(state), path)
        await anyio.sleep(20.0)
        # The owner finds it late, at the end of its block, and is killed before it has released it.
        created = {"kind": "CREATED", "entry": promise.key, "account": promise.account, "api": promise.api}
        state.apply({**created, "at": promise.at, "args": {}, "instance_id": found, "goal": "gone"})
        await anyio.sleep(60.0)
        assert emu.existing == ()
        assert not state.promises
        tasks.cancel_scope.cancel()


async def test_a_reaper_goes_on_when_the_state_directory_is_removed(world: World, journals: Path) -> None:
    async with (
        world() as (emu, _),
        process(emu, journals) as mine,
        anyio.create_task_group() as tasks,
    ):
        path = await lose_a_start(emu, mine, tasks)
        state = fold(path.read_bytes())
        state.apply({"kind": "ORPHANED"})
        (promise,) = state.promises.values()
        tasks.start_soon(reap, emu, state, [promise], applying(state), path)
        await anyio.sleep(5.0)
        assert len(emu.billing) == 1
        shutil.rmtree(path.parent)
        await anyio.sleep(120.0)
        assert emu.existing == ()
        tasks.cancel_scope.cancel()


async def test_an_instance_that_appears_while_the_machine_is_suspended_is_not_taken(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suspended = [0.0]
    monkeypatch.setattr("cortecs_async._aio.eventloop.suspended", lambda: suspended[0])
    async with world() as (emu, _):
        state = state_of(OWNER, BASELINE, intent(api=emu.api_base_url, at=emulated_wall_clock()))
        account = account_of(emu)

        async def suspend() -> None:
            await anyio.sleep(20.0)
            suspended[0] = 400.0
            emu.start_instance(MODEL, HARDWARE)  # a colleague's

        async with anyio.create_task_group() as tasks, emu.http_client() as http:
            tasks.start_soon(suspend)
            await reap_account(
                state,
                list(state.promises.values()),
                account,
                applying(state),
                None,
                http_client=http,
                wall_clock=lambda: emulated_wall_clock() + suspended[0],
            )
        assert state.promises == {}
        assert len(emu.billing) == 1


@pytest.mark.parametrize("odd", [0, 1])
async def test_429s_between_the_lists_do_not_prevent_a_decision(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch, odd: int
) -> None:
    monkeypatch.setattr(recover, "_LOCAL_REAPER_TIMEOUT", 400.0)
    async with world() as (emu, _):
        exchange = emu.exchange
        lists: list[float] = []

        async def refuse_every_other(call: Any) -> Any:
            if call.method == "GET" and call.path.endswith("/instances/"):
                lists.append(anyio.current_time())
                if len(lists) % 2 == odd:
                    emu.add_fault(Fault("status", route="list", status=429))
            return await exchange(call)

        emu.exchange = refuse_every_other  # type: ignore[method-assign]
        state = state_of(OWNER, BASELINE, intent(api=emu.api_base_url, at=emulated_wall_clock()))
        began = anyio.current_time()
        await reap(emu, state, list(state.promises.values()), applying(state), None)
        assert state.promises == {}
        assert 300.0 <= anyio.current_time() - began < 320.0
