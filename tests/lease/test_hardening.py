"""Test defects that a review found: each left an instance behind, or a wait without end."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from typing import Any

import anyio
import pytest
import trio
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World, client_of
from rich.console import Console

from cortecs_async import AsyncCortecs, Credentials, PollPolicy, Progress, RetryPolicy, TeardownError, errors
from cortecs_async._api.domain import InitProgress, Instance, InstanceArgs, InstanceStatus, WorkerStatus
from cortecs_async._api.instances import Instances
from cortecs_async._api.teardown import Goal, ObservedState, Teardown, interpret
from cortecs_async._http.client import HTTP
from cortecs_async._http.messages import Witness
from cortecs_async.emulator import Emulator, Fault, serve_emulator
from cortecs_async.integrations.rich import ProvisioningBar


def routes(emu: Emulator) -> list[str | None]:
    return [record.route for record in emu.requests]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
class TestOnAsyncio:
    @pytest.mark.parametrize("after", [round(0.05 + 1.2 * number, 2) for number in range(10)])
    async def test_cancelling_every_task_of_the_loop_leaves_nothing(self, world: World, after: float) -> None:
        """Test what `asyncio.run` does when it ends while a background task holds a lease."""
        async with world(step_seconds=0.5, stop_seconds=1.0) as (emu, client):
            emu.add_fault(Fault("delay", when="after", seconds=0.7, times=None))
            others = asyncio.all_tasks()

            async def lease() -> None:
                async with client.instance(MODEL, HARDWARE):
                    await asyncio.sleep(2.0)

            task = asyncio.create_task(lease())
            await asyncio.sleep(after)
            for each in asyncio.all_tasks() - others:
                each.cancel()
            await asyncio.wait([task])
            assert emu.existing == ()

    @pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio cannot take it back before 3.13")
    async def test_a_cancellation_during_the_release_of_a_failed_body_is_delivered_later(
        self, world: World
    ) -> None:
        async with world(stop_seconds=5.0) as (emu, client):
            went_on = False

            async def body() -> None:
                nonlocal went_on
                try:
                    async with client.instance(MODEL, HARDWARE):
                        int("mine")
                except ValueError:
                    await asyncio.sleep(1.0)
                    went_on = True

            task = asyncio.create_task(body())
            while "stop" not in routes(emu):  # noqa: ASYNC110  (it has no event)
                await asyncio.sleep(0.1)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert not went_on


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
class TestOnTrio:
    async def test_ctrl_c_is_kept_out_of_the_frames_of_the_release_but_not_of_the_body(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        release = HTTP.release
        protected: list[bool] = []

        async def note(self: HTTP) -> None:
            protected.append(trio.lowlevel.currently_ki_protected())
            await release(self)

        monkeypatch.setattr(HTTP, "release", note)
        async with world() as (_emu, client), client.instance(MODEL, HARDWARE):
            assert not trio.lowlevel.currently_ki_protected()
        assert protected == [True]


async def test_a_release_outlasts_a_credential_provider_that_fails(world: World) -> None:
    trouble = [OSError("vault is down"), OSError("vault is down")]

    async with world(token_lifetime=60.0) as (emu, _client):

        async def provide() -> Credentials:
            if anyio.current_time() > start + 60 and trouble:
                raise trouble.pop()
            return Credentials(client_id=emu.client_id, client_secret=emu.client_secret)

        start = anyio.current_time()
        async with world() as (_other, client):
            http = client._wiring.http._transport.connections.pools[0].client
            http._transport = emu.transport()
            async with AsyncCortecs(
                credential_provider=provide,
                api_base_url=emu.api_base_url,
                http_client=http,
                guard="off",
                journal="off",
            ) as mine:
                # Not watched over, which would renew the token in time.
                async with mine.instance(MODEL, HARDWARE, on_loss="ignore"):
                    await anyio.sleep(100)
        assert not trouble
        assert emu.existing == ()


async def test_a_release_whose_connections_are_gone_fails_at_once(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(TeardownError, match="instance-10001"):
            async with client.instance(MODEL, HARDWARE):
                start = anyio.current_time()
                await client._wiring.http._transport.connections.pools[0].client.aclose()
        assert anyio.current_time() == start
        assert emu.billing


async def burst(emu: Emulator, client: AsyncCortecs, seconds: float) -> None:
    """Send twelve requests of so many seconds each. The client may run four in parallel."""
    emu.add_fault(Fault("delay", route="models", seconds=seconds, times=None))
    async with anyio.create_task_group() as tasks:
        for _ in range(12):
            tasks.start_soon(client.models.list)
    assert routes(emu) == ["models"] * 12


async def test_the_wait_for_a_slot_does_not_count_toward_the_timeout(world: World) -> None:
    limits = {"timeout": 5.7, "retry_policy": RetryPolicy(max_retries=0, total_timeout=5.7)}
    async with world(max_connections=5, **limits) as (emu, client):
        await burst(emu, client, 3.0)
        assert anyio.current_time() == pytest.approx(9.0)


@pytest.mark.sockets
async def test_a_burst_does_not_wait_for_connections_on_its_own_time() -> None:
    async with serve_emulator() as emu:
        async with client_of(emu, max_connections=5, max_retries=0, timeout=2.25) as client:
            await burst(emu, client, 1.0)


async def test_reuse_starts_anew_when_what_it_found_vanishes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as (emu, client):
        stopped = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(stopped)
        restart = Instances.restart_once

        async def too_late(self: Instances, instance_id: str, witness: Witness) -> Instance:
            emu.delete_instance(instance_id)
            return await restart(self, instance_id, witness)

        monkeypatch.setattr(Instances, "restart_once", too_late)
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id != stopped
        assert emu.existing == ()


async def test_a_restart_whose_answer_was_lost_is_known_by_its_new_state(world: World) -> None:
    async with world(poll_policy=PollPolicy(settle=0)) as (emu, client):
        stopped = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(stopped)
        emu.add_fault(Fault("drop", route="restart", when="after"))
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id == stopped
        assert emu.billing == ()


async def test_reuse_does_not_take_what_is_being_released(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="delete", when="before", seconds=5.0))
        leased, leave = anyio.Event(), anyio.Event()

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                leased.set()
                await leave.wait()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lease)
            await leased.wait()
            (first,) = emu.existing
            leave.set()
            await anyio.sleep(2.0)
            assert emu.existing == (first,)
            assert emu.billing == ()
            async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
                assert inst.instance_id != first
        assert emu.existing == ()


@pytest.mark.parametrize("on_exit", ["keep", "stop", "delete"])
async def test_what_fails_before_the_block_is_deleted_whatever_on_exit_says(
    world: World, on_exit: Any
) -> None:
    async with world(step_seconds=100.0) as (emu, client):
        with pytest.raises(errors.StartTimeoutError):
            async with client.instance(MODEL, HARDWARE, start_timeout=5, on_exit=on_exit):
                pytest.fail("entered")
        assert emu.existing == ()


@pytest.mark.parametrize("status", [403, 422, 500])
async def test_a_watch_of_something_odd_does_not_end_other_waits(
    world: World, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_one = Instances.read_one

    async def odd(self: Instances, instance_id: str) -> Instance:
        if instance_id == "odd":
            raise errors.APIStatusError("no", method="GET", path="/instances/odd", status_code=status)
        return await read_one(self, instance_id)

    monkeypatch.setattr(Instances, "read_one", odd)
    async with world(step_seconds=5.0, poll_policy=PollPolicy(max_outage=100)) as (emu, client):
        ended: list[float] = []
        start = anyio.current_time()

        async def watch() -> None:
            with pytest.raises(errors.APIStatusError):
                await anext(client.instances.watch("odd"))
            ended.append(anyio.current_time() - start)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            async with client.instance(MODEL, HARDWARE):
                assert anyio.current_time() - start < 25
        assert emu.existing == ()
        assert ended[0] < 110
        assert (ended[0] < 1) is (status != 500)


async def test_an_outage_is_counted_from_when_somebody_waits(world: World) -> None:
    async with world(step_seconds=10.0) as (emu, client):
        emu.add_fault(Fault("status", route="get", status=503, times=None))
        with anyio.move_on_after(1):
            await client.instances.wait_until_running(emu.start_instance(MODEL, HARDWARE))
        await anyio.sleep(3600)
        emu.clear_faults()
        emu.add_fault(Fault("status", route="get", status=503, times=2))
        async with client.instance(MODEL, HARDWARE) as inst:
            assert inst.instance.is_usable


async def test_a_callback_that_hangs_is_bounded_by_the_start_timeout(world: World) -> None:
    async def hang(progress: Progress) -> None:
        await anyio.sleep(10_000)

    async with world(step_seconds=10.0) as (emu, client):
        start = anyio.current_time()
        with pytest.raises(errors.StartTimeoutError):
            async with client.instance(MODEL, HARDWARE, start_timeout=30, on_progress=hang):
                pytest.fail("entered")
        assert anyio.current_time() - start < 35
        assert emu.existing == ()


async def test_elapsed_counts_from_entering(world: World) -> None:
    seen: list[Progress] = []
    async with world(step_seconds=1.0) as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=15.0))
        start = anyio.current_time()
        async with client.instance(MODEL, HARDWARE, on_progress=seen.append):
            assert seen[0].elapsed == pytest.approx(15.0)
            assert seen[-1].elapsed == pytest.approx(anyio.current_time() - start)


@grid(anyio_backend=BACKENDS, route=["stop", "delete", "list"], retry_after=[60, 119, 121])
async def test_a_long_retry_after_does_not_use_up_the_release(
    world: World, route: str, retry_after: int
) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.add_fault(Fault("status", route=route, status=429, headers={"Retry-After": str(retry_after)}))
        assert emu.existing == ()


async def test_a_stop_on_exit_is_read_back(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE, on_exit="stop"):
            before = len(emu.requests)
        assert routes(emu)[before:] == ["stop", "get"]


def snapshot(status: str) -> Instance:
    return Instance(
        instance_id="instance-1",
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status=status),
    )


@pytest.mark.parametrize("status", ["failed", "Error", "terminated"])
async def test_an_instance_that_ends_as_failed_is_deleted(
    world: World, status: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read_one(self: Instances, instance_id: str) -> Instance:
        return snapshot(status)

    async def stop(self: Instances, instance_id: str) -> Instance:
        return snapshot("stopping")

    deleted: list[str] = []

    async def delete(self: Instances, instance_id: str) -> None:
        deleted.append(instance_id)

    for name, fake in {"read_one": read_one, "stop": stop, "delete": delete}.items():
        monkeypatch.setattr(Instances, name, fake)
    async with world() as (_emu, client):
        deadline = anyio.current_time() + 60
        await Teardown(
            instances=client.instances, instance_id="instance-1", goal=Goal.GONE, deadline=deadline
        ).run()
    assert deleted == ["instance-1"]


def test_deleted_is_as_good_as_gone() -> None:
    assert interpret(snapshot("Deleted"), Goal.GONE, stop_refused=False) is ObservedState.GONE
    assert interpret(snapshot("running"), Goal.GONE, stop_refused=False) is ObservedState.LIVE


async def test_a_watch_that_has_ended_stays_ended(world: World) -> None:
    async with world() as (emu, client):
        watch = client.instances.watch(emu.start_instance(MODEL, HARDWARE))
        await anext(watch)
        emu.delete_instance(emu.existing[0])
        assert [each async for each in watch] == []
        assert [each async for each in watch] == []


async def test_one_watch_in_two_tasks_is_refused_in_words(world: World) -> None:
    async with world() as (emu, client):
        watch = client.instances.watch(emu.start_instance(MODEL, HARDWARE))
        await anext(watch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anext, watch)
            await anyio.sleep(0.1)
            with pytest.raises(errors.InvalidArgumentError, match="Another task is already using this watch"):
                await anext(watch)
            tasks.cancel_scope.cancel()


async def test_leaving_twice_releases_once(world: World) -> None:
    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE)
        await lease.__aexit__(None, None, None)
        async with lease:
            pass
        await lease.__aexit__(None, None, None)
        assert routes(emu).count("stop") == 1
        assert client._wiring.http._holders == []


def test_the_bar_takes_the_services_words_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    step = InitProgress(current_step=1, num_steps=5, description="Loading [/weights]")
    pending = Instance(
        instance_id="i[/]",
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status="pending"),
        worker_statuses=(WorkerStatus(init_progress=step),),
    )
    with ProvisioningBar(Console(force_terminal=True, width=100)) as bar:
        bar(Progress(instance=pending, elapsed=0.0))
    assert "Loading [/weights]" in capsys.readouterr().out


# --- what the second review found ---------------------------------------------------------------------------


async def test_who_is_slower_with_a_restart_shares_what_runs_and_does_not_stop_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with world() as (emu, client):
        stopped = emu.start_instance(MODEL, HARDWARE)
        emu.stop_instance(stopped)
        restart = Instances.restart_once

        async def slower(self: Instances, instance_id: str, witness: Witness) -> Instance:
            emu._account.restart(instance_id, anyio.current_time())
            return await restart(self, instance_id, witness)

        monkeypatch.setattr(Instances, "restart_once", slower)
        async with client.instance(MODEL, HARDWARE, reuse=True) as inst:
            assert inst.instance_id == stopped
        assert emu.billing == (stopped,)
        assert not {"stop", "delete", "start"} & set(routes(emu))


async def test_a_provider_that_fails_while_a_lost_start_is_looked_for_ends_no_release(world: World) -> None:
    async with world(token_lifetime=20.0) as (emu, client):
        emu.add_fault(Fault("delay", route="start", when="after", seconds=100.0))
        provide = client._wiring.http._tokens._provider
        trouble = [OSError("vault is down")] * 3

        async def unreliable() -> Credentials:
            if emu.requests and anyio.current_time() > 20 and trouble:
                raise trouble.pop()
            return await provide()

        client._wiring.http._tokens._provider = unreliable
        with pytest.raises(OSError, match="vault"):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert not trouble
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_release_broken_off_by_an_unheard_of_error_is_left_to_the_reaper(
    world: World, journals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: Teardown) -> None:
        raise RuntimeError("unheard of")

    async with world(journal="auto") as (emu, client):
        with monkeypatch.context() as patch:
            patch.setattr(Teardown, "run", broken)
            with pytest.raises(RuntimeError, match="unheard of") as caught:
                async with client.instance(MODEL, HARDWARE):
                    pass
        assert "MAY STILL BE BILLED" in caught.value.__notes__[0]
        for thread in threading.enumerate():
            if thread.name == "cortecs-promises":
                thread.join(10)
        assert [each.state for each in await client.sweep()] == ["released"]
        assert emu.existing == ()


async def test_an_instance_that_cannot_be_read_yet_is_released_all_the_same(world: World) -> None:
    """Test a service whose reads lag behind: for some seconds, no response knows the new id."""
    async with world(step_seconds=100.0) as (emu, client):
        emu.add_fault(Fault("status", route="get", status=404, times=4))
        emu.add_fault(Fault("status", route="stop", status=404, times=3))
        emu.add_fault(Fault("status", route="list", status=200, body={"instances": []}, skip=1, times=4))
        with anyio.move_on_after(0.2):
            async with client.instance(MODEL, HARDWARE):
                pytest.fail("entered")
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_client_in_a_second_event_loop_is_told_so(world: World) -> None:
    async with world() as (_emu, client):
        await client.models.list()
        bound = client._wiring.http.loop._bound
        own, bound["loop"] = bound["loop"], object()
        with pytest.raises(errors.ConfigurationError, match="different event loop"):
            await client.models.list()
        bound["loop"] = own
