"""Test the recovery of what a dead process left.

An instance that it acquired is released when it expires, unless it is deleted before. The instance of a lost
start is released, and not one of another start.
"""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import anyio
import pytest
from _world import HARDWARE, MODEL, World, emulated_wall_clock
from attrs import evolve

from cortecs_async import AsyncCortecs
from cortecs_async._api.subscription import ABSENCE_SPAN
from cortecs_async._recovery.claims import collect_foreign_claims
from cortecs_async._recovery.pending import PendingPromise, RecoveryResult
from cortecs_async._recovery.records import JournalState, Record
from cortecs_async._recovery.recover import _HELD_POLL_INTERVAL, Recovery
from cortecs_async.emulator import Emulator, Fault

LIFETIME = 3600.0


class Held:
    """An instance that was acquired for an hour by a process that has ended, and the recovery of it."""

    def __init__(self, emu: Emulator, client: AsyncCortecs) -> None:
        self.emu = emu
        self.client = client
        self.instance_id = emu.start_instance(MODEL, HARDWARE)
        self.until = emulated_wall_clock() + LIFETIME
        self.state = JournalState()
        self.notes: list[str] = []
        common = {"entry": "e1", "account": "a", "api": emu.api_base_url, "at": emulated_wall_clock()}
        created = {"kind": "CREATED", **common, "args": {}, "instance_id": self.instance_id, "goal": "gone"}
        for record in ({**created, "expires_at": self.until}, {"kind": "HELD", "entry": "e1"}):
            assert self.state.apply(record)

    def report(self, record: Record) -> None:
        self.state.apply(record)

    async def recover(self) -> RecoveryResult:
        """Recover until no promise is left."""
        recovery = Recovery(
            instances=self.client._wiring._releasing,
            foreign_claims=lambda: collect_foreign_claims(self.emu.api_base_url, [(self.state, {"e1"})]),
            decision_lock=nullcontext,
            note=self.notes.append,
            timeout=300.0,
            wall_clock=emulated_wall_clock,
        )
        (pending,) = (
            PendingPromise(self.state, promise, self.report) for promise in self.state.promises.values()
        )
        (result,) = (await recovery.run([pending])).values()
        assert not self.state.promises
        return result

    def routes(self) -> list[str]:
        return [str(each.route) for each in self.emu.requests]


async def test_a_held_instance_is_released_when_it_expires_and_not_before(
    world: World, journals: Path
) -> None:
    async with world() as (emu, client):
        held = Held(emu, client)
        async with anyio.create_task_group() as tasks:

            async def check_just_before() -> None:
                await anyio.sleep(LIFETIME - 0.1)
                assert emu.billing == (held.instance_id,)
                assert held.notes == []
                assert set(held.routes()) == {"token", "get"}
                assert len(held.routes()) <= 1 + LIFETIME / _HELD_POLL_INTERVAL

            tasks.start_soon(check_just_before)
            assert (await held.recover()).state == "released"
        assert held.until <= emulated_wall_clock() < held.until + 10
        assert emu.existing == ()


async def test_a_held_instance_that_its_holder_deleted_is_not_waited_for(
    world: World, journals: Path
) -> None:
    async with world() as (emu, client):
        held = Held(emu, client)
        began = anyio.current_time()
        async with anyio.create_task_group() as tasks:

            async def release() -> None:
                await anyio.sleep(_HELD_POLL_INTERVAL * 1.5)
                await client.release(held.instance_id)

            tasks.start_soon(release)
            assert (await held.recover()).state == "gone"
        assert anyio.current_time() - began == _HELD_POLL_INTERVAL * 3 + 2 * ABSENCE_SPAN
        assert held.routes().count("stop") == 1  # the release's own
        assert held.notes == []


@pytest.mark.parametrize("missing", ["once", "twice", "in the list only", "once, then unreachable"])
async def test_a_held_instance_that_only_seems_to_be_missing_is_kept(
    world: World, journals: Path, missing: str
) -> None:
    async with world() as (emu, client):
        held = Held(emu, client)
        emu.add_fault(Fault("garbage", route="list", body={"instances": []}, times=None))
        # A whole poll, which sends requests until they have agreed for ABSENCE_SPAN seconds.
        poll = Fault("status", route="get", status=404, times=3)
        if missing != "in the list only":
            emu.add_fault(poll)
        if missing == "twice":  # but not in a row
            emu.add_fault(evolve(poll, skip=4))
        if "unreachable" in missing:
            emu.add_fault(Fault("status", route="get", status=503, times=None))

        async def clear_faults() -> None:
            await anyio.sleep(LIFETIME)
            assert emu.billing == (held.instance_id,)
            emu.clear_faults()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(clear_faults)
            assert (await held.recover()).state == "released"
        assert held.until <= emulated_wall_clock() < held.until + 60
        assert emu.existing == ()


async def test_the_instance_of_an_equal_start_is_not_taken_for_that_of_a_lost_start(
    world: World, journals: Path
) -> None:
    async with world() as (emu, client):
        answered = emu.start_instance(MODEL, HARDWARE)
        now = emulated_wall_clock()
        args = {"model_id": MODEL.replace("/", "--"), "hardware_type_id": HARDWARE, "num_workers": 1}
        common = {"account": "a", "api": emu.api_base_url, "at": now, "args": args, "baseline": "b"}
        state = JournalState()
        for record in (
            {"kind": "BASELINE", "baseline": "b", "ids": []},
            {"kind": "INTENT", "entry": "answered", **common},
            {"kind": "INTENT", "entry": "lost", **common},
            {"kind": "CREATED", "entry": "answered", "instance_id": answered, "goal": "gone"},
        ):
            assert state.apply(record)
        reported: list[Record] = []

        def report(record: Record) -> None:
            state.apply(record)
            reported.append(record)

        recovery = Recovery(
            instances=client._wiring._releasing,
            foreign_claims=lambda: collect_foreign_claims(emu.api_base_url, [(state, {"answered", "lost"})]),
            decision_lock=nullcontext,
            note=lambda _: None,
            timeout=300.0,
            wall_clock=emulated_wall_clock,
        )
        appeared: list[str] = []
        async with anyio.create_task_group() as tasks:

            async def appear_late() -> None:
                # Only after the search could have taken the other instance, which is not released yet.
                emu.add_fault(Fault("status", route="stop", times=None))
                await anyio.sleep(20.0)
                assert emu.existing == (answered,)
                emu.clear_faults()
                appeared.append(emu.start_instance(MODEL, HARDWARE))

            tasks.start_soon(appear_late)
            pending = [PendingPromise(state, promise, report) for promise in state.promises.values()]
            results = await recovery.run(pending)
        found = [each["instance_id"] for each in reported if each["kind"] == "CREATED"]
        assert found == appeared
        assert [each.state for each in results.values()] == ["released", "released"]
        assert emu.existing == ()
