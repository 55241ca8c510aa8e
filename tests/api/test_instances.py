"""Test `AsyncCortecs`, and `watch`, `wait_until_running` and `ensure` of `client.instances`."""

from __future__ import annotations

import gc
from typing import Any

import anyio
import httpx
import pytest
from _grids import alternating, on_one_backend
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, PollPolicy, Progress, errors
from cortecs_async._api.catalog import HardwareConfig, Model
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.matching import choose
from cortecs_async.emulator import Emulator, Fault

MODEL_ID = "meta-llama--Llama-3.1-8B-Instruct"


def routes(emu: Emulator) -> list[str | None]:
    return [record.route for record in emu.requests]


# --- the client itself --------------------------------------------------------------------------------------


async def test_its_own_connections_are_closed_once() -> None:
    client = AsyncCortecs("id", "secret")
    async with client:
        assert "closed" not in repr(client)
    await client.aclose()
    assert repr(client) == "<AsyncCortecs https://cortecs.ai/api/v1 closed>"
    with pytest.raises(errors.ClientClosedError, match="async with"):
        await client.models.list()
    with pytest.raises(errors.ClientClosedError):
        await client.__aenter__()


async def test_a_callers_http_client_is_left_open(world: World) -> None:
    async with world() as (emu, _client):
        async with httpx.AsyncClient(transport=emu.transport()) as http:
            async with AsyncCortecs(
                "id", "secret", api_base_url=emu.api_base_url, http_client=http
            ) as client:
                assert await client.models.list()
            assert not http.is_closed
            client = AsyncCortecs(api_base_url=emu.api_base_url, http_client=http)
        with pytest.raises(errors.ClientClosedError, match="http_client"):
            await client.models.list()
        await client.aclose()


async def test_an_unclosed_client_gives_a_resource_warning() -> None:
    with pytest.warns(ResourceWarning, match="never closed"):
        AsyncCortecs("id", "secret")


def test_a_client_that_could_not_be_created_does_not_warn() -> None:
    with pytest.raises(errors.ConfigurationError) as caught:
        AsyncCortecs(api_base_url="http://example.com")
    assert caught.tb is not None
    assert caught.tb.tb_next is not None
    assert repr(caught.tb.tb_next.tb_frame.f_locals["self"]) == "<AsyncCortecs (not set up) closed>"
    gc.collect()


async def test_all_endpoints(world: World) -> None:
    async with world(balance=12.5) as (_emu, client):
        balance = await client.user.balance()
        assert (balance.current_balance, balance.currency) == (12.5, "EUR")
        models = await client.models.list()
        assert MODEL_ID in {model.model_id for model in models}
        model = await client.models.get(MODEL)
        assert model == await client.models.get(MODEL_ID)
        assert model.recommended_config in model.hardware_configs
        hardware = await client.hardware_types.list()
        assert await client.hardware_types.list_available() == hardware

        instance = await client.instances.start(MODEL, HARDWARE, num_workers=2)
        assert instance.status == "pending"
        assert await client.instances.list() == (await client.instances.get(instance.instance_id),)
        assert (await client.instances.stop(instance.instance_id)).status == "stopped"
        assert (await client.instances.restart(instance.instance_id)).status == "pending"
        assert (await client.instances.stop_all()).instance_ids == (instance.instance_id,)
        assert (await client.instances.stop_all()).instance_ids == ()
        await client.instances.delete(instance.instance_id)
        assert await client.instances.list() == ()
        other = await client.instances.start(MODEL)
        assert (await client.instances.delete_all()).instance_ids == ()
        assert (await client.instances.delete_all(force=True)).instance_ids == (other.instance_id,)


@on_one_backend
async def test_delete_all_accepts_only_a_bool_as_force(world: World) -> None:
    wrong: list[Any] = ["false", "", 0, 1, None]
    async with world() as (emu, client):
        for force in wrong:
            with pytest.raises(errors.InvalidArgumentError, match="force"):
                await client.instances.delete_all(force=force)
        assert emu.requests == ()


@alternating("method", ["stop", "restart"])
async def test_an_odd_id_whose_answer_was_lost_is_read_from_the_list(world: World, method: str) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route=method))
        with pytest.raises(errors.BadRequestError):
            await getattr(client.instances, method)("odd/id")
        assert routes(emu)[-1] == "list"


# --- watching and waiting -----------------------------------------------------------------------------------


async def test_watch_shows_all_changes(world: World) -> None:
    async with world(step_seconds=4.0) as (emu, client):
        instance_id = emu.start_instance(MODEL_ID, HARDWARE)
        seen: list[tuple[str, int]] = []
        async for instance in client.instances.watch(instance_id):
            step = Progress(instance=instance, elapsed=0.0).leading.current_step
            seen.append((instance.status, step))
            if instance.status == "running":
                emu.stop_instance(instance_id)
            if instance.status == "stopped":
                emu.delete_instance(instance_id)
        assert seen == [
            ("pending", 1),
            ("pending", 2),
            ("pending", 3),
            ("pending", 4),
            ("running", 5),
            ("stopped", 0),
        ]


async def test_wait_until_running(world: World) -> None:
    async with world(step_seconds=3.0) as (emu, client):
        instance_id = emu.start_instance(MODEL_ID, HARDWARE)
        seen: list[Progress] = []
        instance = await client.instances.wait_until_running(instance_id, timeout=60, on_progress=seen.append)
        assert instance.is_usable
        assert seen[-1].instance == instance
        assert [progress.leading.current_step for progress in seen] == [1, 2, 3, 4, 5]


async def test_waiting_ends_at_its_deadline_and_leaves_the_instance(world: World) -> None:
    async with world(step_seconds=100.0) as (emu, client):
        instance_id = emu.start_instance(MODEL_ID, HARDWARE)
        with pytest.raises(errors.StartTimeoutError, match=instance_id):
            await client.instances.wait_until_running(instance_id, timeout=20)
        assert emu.billing == (instance_id,)


async def test_waiting_gives_up_when_nothing_changes(world: World) -> None:
    async with world(step_seconds=100.0, poll_policy=PollPolicy(stall_timeout=30)) as (emu, client):
        start = anyio.current_time()
        with pytest.raises(errors.StartTimeoutError, match="unchanged for 30 s"):
            await client.instances.wait_until_running(emu.start_instance(MODEL_ID, HARDWARE), timeout=None)
        assert anyio.current_time() - start == pytest.approx(30, abs=1)


async def test_waiting_for_a_stopped_instance_fails_at_once_and_for_a_missing_one_after_five_seconds(
    world: World,
) -> None:
    async with world() as (emu, client):
        instance_id = emu.start_instance(MODEL_ID, HARDWARE)
        emu.stop_instance(instance_id)
        start = anyio.current_time()
        with pytest.raises(errors.StartFailedError, match="'stopped'"):
            await client.instances.wait_until_running(instance_id)
        assert anyio.current_time() == start
        before = len(emu.requests)
        with pytest.raises(errors.InstanceGoneError):
            await client.instances.wait_until_running("instance-404")
        assert anyio.current_time() == start + 5.0
        assert [each.route for each in emu.requests[before:]] == ["get", "list"] * 3


async def test_waiting_outlasts_an_outage(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        instance_id = emu.start_instance(MODEL_ID, HARDWARE)
        emu.add_fault(Fault("drop", route="get", times=40))
        assert (await client.instances.wait_until_running(instance_id)).is_usable
        assert sum(record.fault is not None for record in emu.requests) == 40


# --- ensure -------------------------------------------------------------------------------------------------


async def test_ensure_prefers_running_then_pending_then_stopped(world: World) -> None:
    async with world(step_seconds=2.0) as (emu, client):
        stopped, running, pending = (emu.start_instance(MODEL_ID, HARDWARE) for _ in range(3))
        emu.stop_instance(stopped)
        assert (await client.instances.wait_until_running(running)).is_usable
        emu.stop_instance(pending)
        await client.instances.restart(pending)

        assert (await client.instances.ensure(MODEL, HARDWARE)).instance_id == running
        emu.delete_instance(running)
        instance = await client.instances.ensure(MODEL, HARDWARE)
        assert (instance.instance_id, instance.is_usable) == (pending, True)
        emu.delete_instance(pending)
        instance = await client.instances.ensure(MODEL, HARDWARE)
        assert (instance.instance_id, instance.is_usable) == (stopped, True)
        emu.delete_instance(stopped)
        instance = await client.instances.ensure(MODEL, HARDWARE)
        assert instance.is_usable
        assert emu.existing == (instance.instance_id,)


async def test_ensure_compares_with_the_defaults(world: World) -> None:
    async with world() as (emu, client):
        first = await client.instances.ensure(MODEL)
        args = first.instance_args
        assert args.hardware_type_id is not None
        assert (
            await client.instances.ensure(
                MODEL, args.hardware_type_id, context_length=args.context_length, num_workers=1
            )
            == first
        )
        assert (await client.instances.ensure(MODEL, context_length=1024)).instance_id != first.instance_id
        assert (await client.instances.ensure(MODEL, num_workers=2)).instance_id != first.instance_id
        assert (
            await client.instances.ensure(MODEL, billing_interval="per_hour")
        ).instance_id != first.instance_id
        assert routes(emu).count("start") == 4


@alternating("lag", [0.0, 1.0, 15.0])
async def test_concurrent_ensures_start_one_instance(world: World, lag: float) -> None:
    async with world(list_lag=lag) as (emu, client):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(client.instances.ensure, MODEL, HARDWARE)
        assert len(emu.ledger) == len(emu.existing) == 1


async def test_ensures_of_different_models_do_not_wait_for_each_other(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=20.0))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(client.instances.ensure, MODEL, HARDWARE)
            await anyio.sleep(1.0)
            began = anyio.current_time()
            await client.instances.ensure("mistralai/Mistral-7B-Instruct-v0.3", HARDWARE)
            assert anyio.current_time() - began < 2.0


async def test_concurrent_leases_with_reuse_start_one_instance_although_lists_lag(world: World) -> None:
    async with world(list_lag=1.0) as (emu, client):

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE, reuse=True):
                await anyio.sleep(10.0)

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lease)
        assert len(emu.ledger) == 1
        assert emu.existing == ()


@alternating("lag", [15.0, (0, 15), (15, 0)])
async def test_a_plain_start_that_is_not_visible_yet_is_waited_for(world: World, lag: Any) -> None:
    async with world(list_lag=lag, get_lag=lag) as (emu, client):
        started = (await client.instances.start(MODEL, HARDWARE)).instance_id
        assert (await client.instances.wait_until_running(started)).is_usable
        assert emu.billing == (started,)


async def test_a_plain_restart_that_is_not_visible_yet_is_waited_for(world: World) -> None:
    async with world(list_lag=15.0, get_lag=15.0) as (emu, client):
        stopped = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(stopped)
        await anyio.sleep(100.0)
        await client.instances.restart(stopped)
        assert (await client.instances.wait_until_running(stopped)).is_usable
        assert emu.billing == (stopped,)


async def test_ensure_survives_a_restart_whose_answer_is_lost(world: World) -> None:
    async with world() as (emu, client):
        stopped = emu.start_instance(MODEL_ID, HARDWARE)
        emu.stop_instance(stopped)
        emu.add_fault(Fault("drop", route="restart", when="after"))
        assert (await client.instances.ensure(MODEL, HARDWARE)).instance_id == stopped


def existing(instance_id: str, status: str, **args: Any) -> Instance:
    return Instance(
        instance_id=instance_id,
        instance_args=InstanceArgs(model_id="a--b", **args),
        instance_status=InstanceStatus(status=status),
    )


def test_choose_ignores_unknown_statuses() -> None:
    wanted = InstanceArgs(model_id="a--b", billing_interval="per_minute")
    assert choose([existing("1", "stopping"), existing("2", "failed")], wanted, None) is None
    chosen = choose([existing("1", "stopping"), existing("2", "stopped")], wanted, None)
    assert chosen is not None
    assert chosen.instance_id == "2"


def test_choose_with_a_model_without_details() -> None:
    model = Model(model_id="a--b", recommended_config="H", hardware_configs={"H": HardwareConfig()})
    wanted = InstanceArgs(model_id="a--b")
    assert choose([existing("1", "running", hardware_type_id="H")], wanted, model) is not None
    assert choose([existing("1", "running", hardware_type_id="X")], wanted, model) is None


# --- progress -----------------------------------------------------------------------------------------------


def test_progress_of_an_instance_that_reports_none() -> None:
    progress = Progress(instance=existing("1", "warming"), elapsed=3.0)
    assert (progress.workers, progress.fraction, progress.description) == ((), 0.0, "warming")


@pytest.mark.parametrize("how", ["delete", "stop all", "delete all"])
async def test_a_new_instance_that_was_ended_is_not_waited_for(world: World, how: str) -> None:
    async with world() as (emu, client):
        first = await client.instances.start(MODEL, HARDWARE)
        began = anyio.current_time()
        if how == "delete all":
            await client.instances.delete_all(force=True)
        else:
            await (
                client.instances.stop_all() if how == "stop all" else client.instances.stop(first.instance_id)
            )
            emu.add_fault(Fault("drop", route="delete", when="after"))
            await client.instances.delete(first.instance_id)
        assert anyio.current_time() - began <= 10.0
        second = await client.instances.ensure(MODEL, HARDWARE)
        assert second.instance_id != first.instance_id
        assert emu.billing == (second.instance_id,)
