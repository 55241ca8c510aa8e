"""Test waiting for capacity: one poll and one turn for all leases of a client."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _evidence import open_promises
from _world import MODEL, World

from cortecs_async import AsyncCortecs, Progress, errors
from cortecs_async._lease import capacity
from cortecs_async._lease.lease import InstanceLease
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.types import Telemetry

L4, L40S, H100 = "NVIDIA_L4_1", "NVIDIA_L40S_1", "NVIDIA_H100_1"
NONE = {H100: 0, L40S: 0, L4: 0}


def routes(emu: Emulator) -> list[str]:
    return [str(each.route) for each in emu.requests]


async def after(seconds: float, work: Callable[[], Any]) -> None:
    await anyio.sleep(seconds)
    work()


async def client_closed_after(seconds: float, client: AsyncCortecs) -> None:
    await anyio.sleep(seconds)
    await client.aclose()


class TestOneLease:
    async def test_it_starts_when_a_candidate_shows(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 100, lambda: emu.set_capacity(L40S, 1))
            began = anyio.current_time()
            async with client.instance(MODEL, [H100, L40S], capacity_timeout="1h") as inst:
                assert inst.receipt.hardware_reason.startswith(
                    "second choice: NVIDIA_H100_1 had no capacity, after waiting 1m4"
                )
                assert 100 < anyio.current_time() - began < 130
                # Nothing counted until capacity was found.
                assert inst.receipt.seconds < 10
            assert emu.existing == ()
            found = routes(emu)
            assert found.count("start") == 3, "each one once at the beginning, and once at the end"
            assert 9 < found.count("available") < 22

    async def test_the_wait_does_not_count(self, world: World) -> None:
        async with world(capacity=NONE, step_seconds=10) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 1000, lambda: emu.set_capacity(L40S, 1))
            lease = client.instance(
                MODEL, capacity_timeout=2000, start_timeout=100, max_lifetime=300, max_cost=0.3
            )
            with pytest.raises(errors.LeaseExpiredError):
                async with lease as inst:
                    assert 39 < inst.receipt.seconds < 80
                    began = anyio.current_time()
                    await anyio.sleep_forever()
            assert 200 < anyio.current_time() - began < 262
            assert lease.receipt.hardware_type_id == L40S

    async def test_start_timeout_begins_when_there_is_capacity(self, world: World) -> None:
        async with (
            world(capacity=NONE, step_seconds=100) as (emu, client),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(after, 500, lambda: emu.set_capacity(L40S, 1))
            with pytest.raises(errors.StartTimeoutError, match="was not running after 60 s"):
                async with client.instance(MODEL, capacity_timeout=2000, start_timeout=60):
                    pass
            assert emu.existing == ()

    async def test_the_first_attempt_is_immediate_and_shows_other_errors_at_once(self, world: World) -> None:
        async with world(balance=0.0) as (_, client):
            with pytest.raises(errors.InsufficientBalanceError):
                async with client.instance(MODEL, capacity_timeout="1h"):
                    pass
            with pytest.raises(errors.BadRequestError, match="does not run on NVIDIA_H100_4"):
                async with client.instance(MODEL, "NVIDIA_H100_4", capacity_timeout="1h"):
                    pass
            assert anyio.current_time() < 30

    async def test_time_is_up(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            began = anyio.current_time()
            with pytest.raises(errors.CapacityTimeoutError) as caught:
                async with client.instance(MODEL, [H100, L40S], capacity_timeout="10m"):
                    pass
            assert anyio.current_time() - began == pytest.approx(600)
            assert str(caught.value) == (
                "No capacity for NVIDIA_H100_1 or NVIDIA_L40S_1 within capacity_timeout=600 s. Nothing was "
                "started. Wait longer, or allow more hardware types."
            )
            assert "NVIDIA_H100_1 was refused with 503" in caught.value.__notes__[0]
            assert caught.value.instance_id == ""
            assert emu.ledger == ()
            starts = [each for each in emu.requests if each.route == "start"]
            assert len(starts) == 2, "only at the beginning"

    async def test_listed_but_refused_goes_back_to_waiting(self, world: World) -> None:
        async with world(available_lag=60) as (emu, client), anyio.create_task_group() as tasks:
            emu.set_capacity(L40S, 0)
            tasks.start_soon(after, 200, lambda: emu.set_capacity(L40S, 1))
            async with client.instance(MODEL, capacity_timeout=1000) as inst:
                assert inst.receipt.hardware_reason.startswith("after waiting 4m")
            statuses = [each.status for each in emu.requests if each.route == "start"]
            # While the list is wrong, one attempt for each poll.
            assert statuses[-1] == 202
            assert 8 < statuses.count(503) < 18

    async def test_a_list_that_cannot_be_fetched(
        self, world: World, caplog: pytest.LogCaptureFixture
    ) -> None:
        async with world(capacity=NONE) as (emu, client):
            emu.add_fault(Fault("status", route="available", status=500, times=None))
            with pytest.raises(
                errors.CapacityTimeoutError, match="could not be fetched in that time: GET /hard"
            ):
                async with client.instance(MODEL, capacity_timeout=100):
                    pass
            emu.clear_faults()
            emu.add_fault(Fault("status", route="available", status=500, times=3))
            with pytest.raises(errors.CapacityTimeoutError, match="Wait longer"):
                async with client.instance(MODEL, capacity_timeout=100):
                    pass
        assert "Could not fetch the available hardware types: GET /hardware-types/available" in caplog.text

    async def test_a_list_that_hangs(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            emu.add_fault(Fault("delay", route="available", seconds=1000, times=2))
            tasks.start_soon(after, 10, lambda: emu.set_capacity(L40S, 1))
            began = anyio.current_time()
            async with client.instance(MODEL, capacity_timeout=100):
                assert anyio.current_time() - began < 40

    async def test_a_closed_client_starts_nothing(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 20, lambda: emu.set_capacity(L40S, 1))
            tasks.start_soon(client_closed_after, 20, client)
            with pytest.raises(errors.ClientClosedError):
                async with client.instance(MODEL, capacity_timeout=3600):
                    pass
            assert anyio.current_time() < 60
            assert emu.ledger == ()

    @pytest.mark.parametrize(("timeout", "starts"), [(600, 0), (20_000, 1)])
    async def test_a_suspended_machine(
        self, world: World, monkeypatch: pytest.MonkeyPatch, timeout: float, starts: int
    ) -> None:
        slept = [0.0]
        for module in ("state", "start_state"):
            monkeypatch.setattr(f"cortecs_async._lease.{module}.suspended", lambda: slept[0])
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 50, lambda: emu.set_capacity(L40S, 1))
            tasks.start_soon(after, 50, lambda: slept.append(slept.pop() + 10_000))
            try:
                async with client.instance(MODEL, capacity_timeout=timeout, max_lifetime=300) as inst:
                    assert inst.receipt.seconds < 10
            except errors.CapacityTimeoutError:
                assert anyio.current_time() < 100
            assert len(emu.ledger) == starts

    async def test_a_restart_waits_too(self, world: World) -> None:
        async with world() as (emu, client), anyio.create_task_group() as tasks:
            stopped = emu.start_instance(MODEL, L40S)
            await anyio.sleep(30)
            emu.stop_instance(stopped)
            await anyio.sleep(60)
            emu.set_capacity(L40S, 0)
            tasks.start_soon(after, 200, lambda: emu.set_capacity(L40S, 1))
            async with client.instance(MODEL, L40S, reuse=True, capacity_timeout=1000) as inst:
                assert inst.instance_id == stopped
            assert [entry.status for entry in emu.ledger] == ["stopped"]

    async def test_retry_after_is_respected(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            emu.add_fault(
                Fault("status", route="available", status=429, headers={"retry-after": "90"}, times=1)
            )
            with pytest.raises(errors.CapacityTimeoutError):
                async with client.instance(MODEL, capacity_timeout=80):
                    pass
            assert routes(emu).count("available") == 1

    async def test_cancelling_is_immediate(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            with anyio.move_on_after(50) as scope:
                async with client.instance(MODEL, capacity_timeout=1000):
                    pass
            assert scope.cancelled_caught
            assert anyio.current_time() == pytest.approx(50, abs=0.1)
            assert client._wiring._services.capacity.is_empty
            sent = len(emu.requests)
            await anyio.sleep(100)
            assert len(emu.requests) == sent

    async def test_progress(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 150, lambda: emu.set_capacity(L40S, 1))
            shown: list[Progress] = []

            async def show(progress: Progress) -> None:
                await anyio.sleep(0.1)
                shown.append(progress)

            async with client.instance(MODEL, [H100, L40S], capacity_timeout=1000, on_progress=show):
                pass
            waiting = [each for each in shown if each.instance.status == "waiting_for_capacity"]
            assert [each.description for each in waiting] == [
                "waiting for capacity: NVIDIA_H100_1 or NVIDIA_L40S_1",
                "waiting for capacity: NVIDIA_H100_1 or NVIDIA_L40S_1 (1 min)",
                "waiting for capacity: NVIDIA_H100_1 or NVIDIA_L40S_1 (2 min)",
            ]
            assert str(waiting[1]) == f"waiting_for_capacity, {waiting[1].description}, 1m00s"
            assert {each.fraction for each in waiting} == {0.0}
            assert {each.instance.instance_id for each in waiting} == {""}
            assert 0 <= shown[len(waiting)].elapsed < 5, "counted from the start request"

    async def test_progress_is_reported_even_if_the_refused_request_took_too_long(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            emu.add_fault(Fault("delay", route="start", seconds=20))
            shown: list[Progress] = []
            with pytest.raises(errors.CapacityTimeoutError):
                async with client.instance(MODEL, H100, capacity_timeout=10, on_progress=shown.append):
                    pass
            assert [each.description for each in shown] == ["waiting for capacity: NVIDIA_H100_1"]

    async def test_a_progress_callback_that_raises(self, world: World) -> None:
        def show(_: Progress) -> None:
            raise KeyError("mine")

        async with world(capacity=NONE) as (emu, client):
            with pytest.raises(KeyError):
                async with client.instance(MODEL, capacity_timeout=1000, on_progress=show):
                    pass
            assert emu.ledger == ()

    async def test_telemetry_and_log(self, world: World, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        waits: list[float] = []

        class Recorded(Telemetry):
            def end(self, phase: Any, lease: Any, begun: Any, end: Any) -> None:
                if phase == "lease":
                    waits.append(lease.capacity_wait)

        async with world(capacity=NONE, telemetry=Recorded()) as (_, client):
            with pytest.raises(errors.CapacityTimeoutError):
                async with client.instance(MODEL, capacity_timeout=100):
                    pass
        assert waits == [pytest.approx(100)]
        assert "No capacity for NVIDIA_L40S_1. Waiting for it for up to 100 s." in caplog.text

    async def test_the_last_candidate_is_rejected_while_waiting(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            emu.add_fault(Fault("status", route="start", status=422, body={"message": "No."}, skip=1))
            tasks.start_soon(after, 20, lambda: emu.set_capacity(L40S, 1))
            with pytest.raises(errors.UnprocessableEntityError):
                async with client.instance(MODEL, capacity_timeout=1000):
                    pass
            assert anyio.current_time() < 60

    async def test_reuse_while_waiting(self, world: World) -> None:
        async with world(capacity=NONE, available_lag=0) as (emu, client), anyio.create_task_group() as tasks:

            def appear() -> None:
                emu.set_capacity(L40S, 2)
                emu.start_instance(MODEL, L40S)

            tasks.start_soon(after, 100, appear)
            async with client.instance(MODEL, [H100, L40S], reuse=True, capacity_timeout=1000) as inst:
                assert inst.receipt.hardware_reason == "reused"
                assert inst.receipt.seconds < 10
            assert len(emu.ledger) == 1


class TestCrash:
    async def test_a_process_that_is_killed_while_it_waits_owes_nothing(
        self, world: World, journals: Path
    ) -> None:
        async with (
            world(capacity=NONE, journal="required") as (emu, client),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(wait_forever, client)
            await anyio.sleep(100)
            assert routes(emu).count("start") == 2
            # As `sweep` reads it after a kill -9.
            assert len([*read_journals(journals)]) == 1
            assert open_promises(journals) == []
            tasks.cancel_scope.cancel()


async def wait_forever(client: AsyncCortecs) -> None:
    async with client.instance(MODEL, [H100, L40S], capacity_timeout="1h"):
        pass


class TestManyLeases:
    async def test_one_poller_and_one_turn(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            order: list[int] = []

            async def lease(number: int) -> None:
                await anyio.sleep(number)
                async with client.instance(MODEL, L40S, capacity_timeout=5000):
                    order.append(number)
                    await anyio.sleep(3000)

            async with anyio.create_task_group() as tasks:
                for number in range(8):
                    tasks.start_soon(lease, number)
                await anyio.sleep(600)
                polls = routes(emu).count("available")
                assert polls < 45, "as many as for one"
                attempts = routes(emu).count("start")
                assert attempts == 1, "who comes later waits behind the first one"
                emu.set_capacity(L40S, 3)
                await anyio.sleep(60)
                assert order == [0, 1, 2], "in order of arrival"
                # Four: one poll may list it before all three have started.
                assert routes(emu).count("start") - attempts <= 4
                emu.set_capacity(L40S, 8)
                await anyio.sleep(60)
                assert sorted(order) == list(range(8))
                tasks.cancel_scope.cancel()

    async def test_a_lease_that_needs_more_does_not_block_the_others(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(hold, client, L40S, 8)
            await anyio.sleep(1)
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(60)
            emu.set_capacity(L40S, 2)
            await anyio.sleep(60)
            assert [entry.num_workers for entry in emu.ledger] == [1]
            tasks.cancel_scope.cancel()

    async def test_other_hardware_is_not_blocked(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(30)
            emu.set_capacity(L4, 1)
            tasks.start_soon(hold, client, L4, 1)
            await anyio.sleep(1)
            assert [entry.hardware_type_id for entry in emu.ledger] == [L4], "immediately"
            tasks.cancel_scope.cancel()

    async def test_an_old_list_is_forgotten(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(after, 3, lambda: emu.set_capacity(L40S, 1))
            async with client.instance(MODEL, L40S, capacity_timeout=100):
                pass
            emu.set_capacity(L40S, 0)
            before = routes(emu).count("start")
            with anyio.move_on_after(3):
                await hold(client, L40S, 1)
            # Its first attempt was refused, and the list from before did not cause a second one.
            assert routes(emu).count("start") - before == 1

    async def test_an_instance_that_can_be_reused_is_used_at_once(self, world: World) -> None:
        async with world(capacity={L40S: 1}) as (emu, client), anyio.create_task_group() as tasks:
            existing = emu.start_instance(MODEL, L40S)
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(30)
            async with client.instance(MODEL, L40S, reuse=True, capacity_timeout=100) as inst:
                assert inst.instance_id == existing
            tasks.cancel_scope.cancel()

    async def test_a_newcomer_speeds_up_the_poll(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client), anyio.create_task_group() as tasks:
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(1000)
            before = routes(emu).count("available")
            tasks.start_soon(hold, client, H100, 1)
            await anyio.sleep(12)
            assert routes(emu).count("available") - before >= 2
            tasks.cancel_scope.cancel()

    async def test_a_hanging_start_request_does_not_keep_the_others_waiting(self, world: World) -> None:
        async with (
            world(capacity=NONE, timeout=1000) as (emu, client),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(1)
            tasks.start_soon(hold, client, L40S, 1)
            await anyio.sleep(10)
            emu.add_fault(Fault("delay", route="start", seconds=10_000))
            emu.set_capacity(L40S, 2)
            await anyio.sleep(30)
            assert not emu.billing
            await anyio.sleep(capacity._MAX_TURN + 40)
            assert len(emu.billing) == 1
            tasks.cancel_scope.cancel()

    async def test_the_one_that_polls_can_be_cancelled_anywhere(self, world: World) -> None:
        async with world(capacity=NONE) as (emu, client):
            for moment in range(8):
                emu.set_capacity(L40S, 0)
                async with anyio.create_task_group() as tasks:
                    leader = anyio.CancelScope()

                    async def first(scope: anyio.CancelScope = leader) -> None:
                        with scope:
                            await hold(client, L40S, 1)

                    emu.add_fault(Fault("delay", route="available", seconds=1.0, times=None))
                    tasks.start_soon(first)
                    await anyio.sleep(0.5)
                    tasks.start_soon(hold, client, L40S, 1)
                    await anyio.sleep(4 + moment * 0.4)
                    leader.cancel()
                    emu.set_capacity(L40S, 1)
                    await anyio.sleep(25)
                    assert len(emu.billing) == 1, moment
                    emu.clear_faults()
                    tasks.cancel_scope.cancel()

    async def test_a_lease_dropped_while_it_waits(self, world: World) -> None:
        async with world(capacity=NONE) as (_, client):
            lease = client.instance(MODEL, L40S, capacity_timeout=1000)
            waiting = enter(lease)
            with anyio.move_on_after(30):
                await waiting
            del lease
            assert client._wiring._services.capacity.is_empty


async def enter(lease: InstanceLease) -> None:
    async with lease:
        pass


async def hold(client: AsyncCortecs, hardware: str, workers: int) -> None:
    async with client.instance(MODEL, hardware, num_workers=workers, capacity_timeout=5000):
        await anyio.sleep_forever()
