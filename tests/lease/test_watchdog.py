"""Test that a lost instance cancels the block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import PollPolicy, errors
from cortecs_async.emulator import Emulator, Fault


def routes(emu: Emulator) -> list[str | None]:
    return [record.route for record in emu.requests]


async def meddle(emu: Emulator, after: float, how: Callable[[str], None]) -> None:
    await anyio.sleep(after)
    how(emu.existing[0])


@pytest.mark.parametrize(("how", "confirming"), [("stop_instance", 0.5), ("delete_instance", 5.0 + 0.5)])
async def test_the_block_is_cancelled_with_a_typed_error(world: World, how: str, confirming: float) -> None:
    async with world(step_seconds=1.0) as (emu, client), anyio.create_task_group() as tasks:
        tasks.start_soon(meddle, emu, 100.0, getattr(emu, how))
        reached = False
        with pytest.raises(errors.InstanceLostError, match="instance-10001") as caught:
            async with client.instance(MODEL, HARDWARE):
                try:
                    await anyio.sleep(10_000)
                finally:
                    cancelled_at = anyio.current_time()
                reached = True
        assert caught.value.instance_id == "instance-10001"
        assert not reached
        # Noticed within the polling interval, and confirmed: by one more poll, or by 5 s of them.
        assert 100 + confirming <= cancelled_at <= 100 + 10 + confirming
        # A stopped instance is deleted at once. For a missing one, the teardown does not rely on these polls.
        assert anyio.current_time() - cancelled_at == (0 if how == "stop_instance" else 5.0)
        assert emu.existing == ()


async def test_a_new_instance_that_is_not_visible_yet_is_not_lost(world: World) -> None:
    async with world(step_seconds=0.0, list_lag=40.0, get_lag=40.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(100.0)
        assert emu.existing == ()


async def test_who_does_not_mind_goes_on(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client), anyio.create_task_group() as tasks:
        tasks.start_soon(meddle, emu, 100.0, emu.stop_instance)
        async with client.instance(MODEL, HARDWARE, on_loss="ignore"):
            before = len(emu.requests)
            await anyio.sleep(1000)
            assert len(emu.requests) == before
        assert emu.existing == ()


async def test_the_blocks_own_exception_goes_first_and_carries_the_news(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        tasks.start_soon(meddle, emu, 50.0, emu.stop_instance)
        with pytest.raises(KeyError) as caught:
            async with client.instance(MODEL, HARDWARE):
                try:
                    await anyio.sleep(10_000)
                finally:
                    raise problem
        assert caught.value is problem
        assert "became 'stopped'" in problem.__notes__[0]
        assert emu.existing == ()


async def test_a_block_that_ends_just_then_has_ended_well(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(10.2)
            emu.stop_instance(emu.existing[0])
            await anyio.sleep(9.9)
        assert emu.existing == ()
        await anyio.sleep(1)


OUTAGES: dict[str, dict[str, Any]] = {
    "503": {"kind": "status", "status": 503},
    "401": {"kind": "status", "status": 401},
    "404": {"kind": "status", "status": 404},
    "lost": {"kind": "drop"},
    "garbage": {"kind": "garbage"},
    "slow": {"kind": "delay", "seconds": 100.0},
}


@grid(anyio_backend=BACKENDS, route=["get", "list", None], outage=OUTAGES)
async def test_a_service_that_cannot_be_asked_is_no_loss(
    world: World, outage: str, route: str | None
) -> None:
    async with world(poll_policy=PollPolicy(max_outage=30)) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.add_fault(Fault(route=route, times=None, **OUTAGES[outage]))
            await anyio.sleep(300)
            emu.clear_faults()
            await anyio.sleep(300)
        assert emu.existing == ()


async def test_one_odd_answer_is_not_believed(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.add_fault(Fault("status", route="get", status=400))
            emu.add_fault(Fault("status", route="list", status=200, body={"instances": []}))
            await anyio.sleep(60)
            assert not emu._faults.pending[0].meets()
        assert emu.existing == ()


async def test_many_blocks_are_watched_with_one_request_a_look(world: World) -> None:
    async with world(step_seconds=0.0, capacity={HARDWARE: 50}) as (emu, client):
        done = anyio.Event()

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                await done.wait()

        async with anyio.create_task_group() as tasks:
            for _ in range(50):
                tasks.start_soon(lease)
            await anyio.sleep(5)
            before = len(emu.requests)
            await anyio.sleep(100)
            seen = routes(emu)[before:]
            assert set(seen) == {"list"}
            assert len(seen) <= 100 / 10 + 2
            done.set()
        assert emu.existing == ()


async def test_when_the_outer_of_two_blocks_is_lost_both_end(world: World) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        with pytest.raises(errors.InstanceLostError, match="instance-10001"):
            async with client.instance(MODEL, HARDWARE):
                tasks.start_soon(meddle, emu, 20.0, emu.stop_instance)
                async with client.instance(MODEL, HARDWARE):
                    await anyio.sleep(10_000)
        assert emu.existing == ()


async def test_when_the_inner_is_lost_the_outer_goes_on(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as outer:
            with pytest.raises(errors.InstanceLostError, match="instance-10002"):
                async with client.instance(MODEL, HARDWARE) as inner:
                    emu.stop_instance(inner.instance_id)
                    await anyio.sleep(10_000)
            await anyio.sleep(100)
            assert emu.billing == (outer.instance_id,)
        assert emu.existing == ()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
class TestOnAsyncio:
    async def test_a_block_may_be_left_in_another_task_than_it_was_entered_in(self, world: World) -> None:
        """Test leaving the block in another task, as fixtures and some servers do."""
        async with world() as (emu, client):
            lease = client.instance(MODEL, HARDWARE)
            await asyncio.create_task(lease.__aenter__())
            assert emu.billing
            await asyncio.create_task(lease.__aexit__(None, None, None))
            assert emu.existing == ()

    async def test_and_in_another_order(self, world: World) -> None:
        async with world() as (emu, client):
            first, second = client.instance(MODEL, HARDWARE), client.instance(MODEL, HARDWARE)
            await first.__aenter__()
            await second.__aenter__()
            await first.__aexit__(None, None, None)
            assert emu.billing == (second.instance_id,)
            with anyio.move_on_after(1) as scope:
                await anyio.sleep(2)
            assert scope.cancelled_caught
            await second.__aexit__(None, None, None)
            assert emu.existing == ()

    async def test_a_cancellation_of_its_own_outranks_the_loss(self, world: World) -> None:
        async with world() as (emu, client):

            async def body() -> None:
                async with client.instance(MODEL, HARDWARE):
                    emu.stop_instance(emu.existing[0])
                    try:
                        await asyncio.sleep(10_000)
                    finally:
                        task.cancel()

            task = asyncio.create_task(body())
            await asyncio.wait([task])
            assert task.cancelled()
            assert emu.existing == ()

    async def test_the_end_of_the_block_takes_the_cancellation_back(self, world: World) -> None:
        async with world() as (emu, client):
            with pytest.raises(errors.InstanceLostError):
                async with client.instance(MODEL, HARDWARE):
                    emu.delete_instance(emu.existing[0])
                    await asyncio.sleep(10_000)
            task = asyncio.current_task()
            assert task is not None
            assert task.cancelling() == 0
            await asyncio.sleep(1)
