"""A lease that ends while the service does not respond to its start or restart: see `DetachedTask`.

The instance is searched for in the list while the connection stays open, so that it is released soon. The
response is still better evidence, if it arrives in time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, RetryPolicy, errors
from cortecs_async._api.domain import Instance
from cortecs_async._http.messages import Call
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Emulator, Fault


def hang(route: str = "start", **options: Any) -> Fault:
    return Fault("delay", route=route, **{"when": "after", "seconds": 25.0, **options})


async def cancelled(client: AsyncCortecs, after: float = 1.0, **options: Any) -> float:
    """Cancel a lease while it starts, and return how many seconds later it had ended."""
    with anyio.move_on_after(after) as scope:
        async with client.instance(MODEL, HARDWARE, **options):
            pytest.fail("entered")
    assert scope.cancelled_caught
    return anyio.current_time() - scope.deadline


def delay_responses(
    monkeypatch: pytest.MonkeyPatch, client: AsyncCortecs, path: str, wait: Callable[[], Awaitable[object]]
) -> None:
    """Delay all responses to a path, also errors."""
    transport = client._wiring.http._transport
    send = transport.send

    async def send_slowly(call: Call, *args: Any) -> Any:
        outcome = await send(call, *args)
        if call.path == path:
            await wait()
        return outcome

    monkeypatch.setattr(transport, "send", send_slowly)


@grid(anyio_backend=BACKENDS, step_seconds=[0.0, 100.0], list_lag=[0.0, 2.0])
async def test_its_instance_is_found_in_the_list(world: World, step_seconds: float, list_lag: float) -> None:
    async with world(step_seconds=step_seconds, list_lag=list_lag) as (emu, client):
        emu.add_fault(hang())
        # Five seconds in the list, then a release that the list must confirm.
        assert await cancelled(client) < 6.5 + 2 * list_lag
        assert [each.status for each in emu.ledger] == ["deleted"]
        # Nothing happens later.
        await anyio.sleep(100.0)
        assert len(emu.ledger) == 1


async def test_the_response_counts_if_it_arrives_first(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang(seconds=3.0))
        assert await cancelled(client) < 3.0
        assert [each.status for each in emu.ledger] == ["deleted"]


@pytest.mark.parametrize("status", [409, 503])
async def test_a_rejection_counts_if_it_arrives_first(
    world: World, journals: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("status", route="start", status=status))
        delay_responses(monkeypatch, client, "/instances/start", lambda: anyio.sleep(6.0))
        async with anyio.create_task_group() as tasks:

            async def meddle() -> None:
                await anyio.sleep(2.0)
                emu.start_instance(MODEL, HARDWARE)

            tasks.start_soon(meddle)
            assert await cancelled(client) < 6.0
        # The other user's, which would have been taken for this lease's a second later.
        assert len(emu.billing) == 1
        # Closed before the lease ended, so nothing searches for an instance.
        assert [state.promises for _, state in read_journals(journals)] == [{}]


async def test_a_response_during_the_decision_counts(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list shows only an instance of another user, and the response arrives while that is adopted."""
    async with world(journal="auto") as (emu, client):
        emu.add_fault(Fault("omit", route="list", instance_id="instance-10001", times=20))
        emu.add_fault(Fault("delay", route="stop", seconds=5.0))
        has_decided = anyio.Event()
        delay_responses(monkeypatch, client, "/instances/start", has_decided.wait)
        promises = client._wiring.promises
        decide = promises.decide

        async def decide_slowly(key: str, *args: Any) -> Any:
            outcome = await decide(key, *args)
            if isinstance(outcome, Instance):
                has_decided.set()
                await anyio.sleep(1.0)
                # A slow thread, which records the decision later.
                promises.record_created(key, outcome.instance_id, goal="gone")
            return outcome

        monkeypatch.setattr(promises, "decide", decide_slowly)
        async with anyio.create_task_group() as tasks:

            async def meddle() -> None:
                await anyio.sleep(2.0)
                emu.start_instance(MODEL, HARDWARE)
                await has_decided.wait()
                # In case the process is killed now.
                await anyio.sleep(3.0)
                ((_, state),) = read_journals(journals)
                assert [each.instance_id for each in state.promises.values()] == ["instance-10001"]

            tasks.start_soon(meddle)
            await cancelled(client)
        assert [(each.instance_id, each.status) for each in emu.ledger] == [
            ("instance-10001", "deleted"),
            ("instance-10002", "running"),
        ]
        assert [state.promises for _, state in read_journals(journals)] == [{}]


async def test_an_equal_instance_of_another_user_is_not_touched(world: World) -> None:
    async with world() as (emu, client):
        await client.user.balance()
        emu.add_fault(hang())
        async with anyio.create_task_group() as tasks:

            async def meddle() -> None:
                await anyio.sleep(2.0)
                emu.start_instance(MODEL, HARDWARE)

            tasks.start_soon(meddle)
            # The response tells the two apart.
            assert await cancelled(client) == pytest.approx(24.0, abs=1.5)
        ours, theirs = emu.ledger
        assert (ours.status, theirs.status) == ("deleted", "running")


async def test_the_other_user_is_told_apart_by_a_late_response(world: World) -> None:
    """Theirs is listed alone for seconds, and ours appears just before it would be adopted."""
    async with world() as (emu, client):
        emu.add_fault(hang(when="before", seconds=6.0))
        async with anyio.create_task_group() as tasks:

            async def meddle() -> None:
                await anyio.sleep(1.5)
                emu.start_instance(MODEL, HARDWARE)

            tasks.start_soon(meddle)
            assert await cancelled(client) < 6.0
        theirs, ours = emu.ledger
        assert (ours.status, theirs.status) == ("deleted", "running")


async def test_several_leases_each_find_an_instance(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang(times=None))
        ended: list[float] = []

        async def lease() -> None:
            ended.append(await cancelled(client))

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(lease)
        assert max(ended) < 8.0
        assert [each.status for each in emu.ledger] == ["deleted"] * 5


async def test_the_instance_of_a_neighbour_is_not_taken(world: World) -> None:
    """Two equal starts hang, and only one is cancelled: until the other has a response, either may be its."""
    async with world() as (emu, client):
        emu.add_fault(hang(times=2, seconds=20.0))
        async with anyio.create_task_group() as tasks:

            async def neighbour() -> None:
                async with client.instance(MODEL, HARDWARE) as inst:
                    await anyio.sleep(60.0)
                    assert inst.instance_id in emu.billing

            tasks.start_soon(neighbour)
            await cancelled(client)
        assert [each.status for each in emu.ledger] == ["deleted"] * 2


async def test_start_timeout_does_not_wait_for_the_response(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang())
        began = anyio.current_time()
        with pytest.raises(errors.RequestTimeoutError, match="searches for its instance"):
            async with client.instance(MODEL, HARDWARE, start_timeout=10.0):
                pytest.fail("entered")
        assert anyio.current_time() - began < 17.0
        assert [each.status for each in emu.ledger] == ["deleted"]


async def test_a_search_in_vain_waits_for_the_response(world: World, journals: Path) -> None:
    async with world(journal="auto", retry_policy=RetryPolicy(adoption_window=10)) as (emu, client):
        emu.add_fault(hang(when="before", seconds=1000.0))
        # The request times out after 30 seconds, and the instance may appear in the ten seconds after that.
        assert await cancelled(client) == pytest.approx(39.0, abs=6.0)
        ((_, state),) = read_journals(journals)
        (promise,) = state.promises.values()
        assert promise.abandoned
        assert promise.instance_id is None
    assert emu.ledger == ()


@grid(anyio_backend=BACKENDS, seconds=[100.0, 4.0])
async def test_a_list_that_hangs_as_well_costs_seconds(world: World, seconds: float) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang())
        emu.add_fault(hang("list", skip=1, times=2, seconds=seconds))
        assert await cancelled(client) < 17.0
        assert [each.status for each in emu.ledger] == ["deleted"]


async def test_the_search_honours_retry_after(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang())
        emu.add_fault(Fault("status", route="list", status=429, headers={"retry-after": "4"}, skip=1))
        await cancelled(client)
        lists = [each.at for each in emu.requests if each.route == "list"]
        assert lists[2] - lists[1] >= 4.0
        assert [each.status for each in emu.ledger] == ["deleted"]


async def test_ensure_does_not_return_it(world: World) -> None:
    """Another lease of the client waits until it is known whose instance that is."""
    async with world() as (emu, client):
        emu.add_fault(hang())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cancelled, client)
            await anyio.sleep(2.0)
            async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
                await anyio.sleep(30.0)
                assert inst.instance_id in emu.billing
        assert [each.status for each in emu.ledger] == ["deleted", "deleted"]


# --- restarts -----------------------------------------------------------------------------------------------


async def stopped_instance(emu: Emulator) -> str:
    instance_id = emu.start_instance(MODEL, HARDWARE)
    await anyio.sleep(60.0)
    emu.stop_instance(instance_id)
    await anyio.sleep(60.0)
    return instance_id


@grid(anyio_backend=BACKENDS, when=["after", "before"], seconds=[4.0, 25.0])
async def test_a_restart_that_hangs_is_stopped_once_it_has_an_effect(
    world: World, when: str, seconds: float
) -> None:
    async with world() as (emu, client):
        await stopped_instance(emu)
        emu.add_fault(hang("restart", when=when, seconds=seconds))
        took = await cancelled(client, reuse=True)
        assert took < (3.0 if when == "after" else seconds + 2.0)
        (restarted_at,) = [each.at for each in emu.requests if each.route == "restart"]
        stopped_at = [each.at for each in emu.requests if each.route == "stop"]
        assert min(stopped_at) >= restarted_at + (0.0 if when == "after" else seconds)
        await anyio.sleep(60.0)
        assert [each.status for each in emu.ledger] == ["stopped"]


async def test_a_restart_that_is_rejected_late_leaves_the_instance_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as (emu, client):
        instance_id = await stopped_instance(emu)
        emu.add_fault(Fault("status", route="restart", status=409))
        delay_responses(monkeypatch, client, "/instances/restart", lambda: anyio.sleep(5.0))
        await cancelled(client, reuse=True)
        assert not any(each.route == "stop" for each in emu.requests)
        assert [(each.instance_id, each.status) for each in emu.ledger] == [(instance_id, "stopped")]


# --- the ways of asyncio ------------------------------------------------------------------------------------


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_more_cancellations_do_not_disturb_the_search(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang())

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")

        task = asyncio.get_running_loop().create_task(lease())
        for _ in range(4):
            await asyncio.sleep(1.0)
            task.cancel()
        began = anyio.current_time()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert anyio.current_time() - began < 4.0
        assert [each.status for each in emu.ledger] == ["deleted"]


async def test_a_start_that_hangs_after_a_lost_restart_is_left_to_the_reaper(
    world: World, journals: Path
) -> None:
    async with world(journal="auto") as (emu, client):
        instance_id = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(60.0)
        emu.stop_instance(instance_id)
        await anyio.sleep(60.0)
        emu.add_fault(Fault("drop", route="restart", when="before"))  # lost: it may have worked
        # The second one is processed after the deletion below, however short the wait before it is.
        emu.add_fault(Fault("delay", route="restart", seconds=2.0))
        emu.add_fault(hang(when="before"))
        scope = anyio.CancelScope()

        async def meddle() -> None:
            while not any(each.route == "restart" for each in emu.requests):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            emu.delete_instance(instance_id)  # a colleague: so the lease starts a new one, which hangs
            while not any(each.route == "start" for each in emu.requests):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            await anyio.sleep(1.0)
            scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(meddle)
            with scope:
                async with client.instance(MODEL, HARDWARE, reuse=True, teardown_timeout=4.0):
                    pytest.fail("entered")
        for _, state in read_journals(journals):
            for promise in state.promises.values():
                assert promise.instance_id is not None or promise.abandoned
        # The next lease of the model is not blocked.
        assert not client.instances.claims.unresolved
        emu.clear_faults()
        with anyio.fail_after(200.0):
            async with client.instance(MODEL, HARDWARE):
                pass


async def test_a_token_request_that_hangs_during_the_search_costs_seconds(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(hang())
        emu.add_fault(Fault("status", route="list", status=401, skip=1))
        await client.user.balance()
        emu.add_fault(hang("token"))
        with anyio.move_on_after(1.0) as scope:
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert anyio.current_time() - scope.deadline < 12.0  # five in the list, and an attempt of three


async def test_a_token_request_that_hangs_when_the_block_ends_costs_seconds(world: World) -> None:
    async with world() as (emu, client):
        async with anyio.create_task_group() as tasks:
            async with client.instance(MODEL, HARDWARE):
                emu.add_fault(Fault("status", route="list", status=401))
                emu.add_fault(hang("token"))
                tasks.start_soon(client.instances.list)
                await anyio.sleep(0.5)
                began = anyio.current_time()
            took = anyio.current_time() - began
            tasks.cancel_scope.cancel()
        assert took < 10.0
