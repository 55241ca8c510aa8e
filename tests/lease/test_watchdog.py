"""Test that a lost instance cancels the block."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator, Callable
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest
from _grids import BACKENDS, grid
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL, World

from cortecs_async import InstanceLease, PollPolicy, errors
from cortecs_async._api.domain import Instance
from cortecs_async._api.instances import Instances
from cortecs_async._lease.options import OnExit
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
        # A stopped instance is deleted at once, and the polls have confirmed that one is missing.
        assert anyio.current_time() == cancelled_at
        assert emu.existing == ()


async def test_a_wrapper_that_leaves_the_block_without_the_cancellation(world: World) -> None:
    """anyio's blocking portals do."""
    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE, max_lifetime=100.0)
        await lease.__aenter__()
        with pytest.raises(errors.LeaseExpiredError, match="max_lifetime"):
            try:
                await anyio.sleep(10_000)
            finally:
                await lease.__aexit__(None, None, None)
        await anyio.lowlevel.checkpoint()
        assert emu.existing == ()


async def test_a_wrapper_that_another_cancellation_ends(world: World) -> None:
    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE, max_lifetime=100.0)
        with anyio.CancelScope() as scope:
            await lease.__aenter__()
            try:
                scope.cancel()
                await anyio.sleep(10_000)
            finally:
                await lease.__aexit__(None, None, None)
        assert scope.cancelled_caught
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


@pytest.mark.parametrize("shown", ["missing", "stopped"])
async def test_one_odd_answer_is_not_believed(world: World, shown: str) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE) as inst:
            if shown == "missing":
                emu.add_fault(Fault("status", route="get", status=400))
                emu.add_fault(Fault("status", route="list", status=200, body={"instances": []}))
            else:
                parts = {"instance_args": {"model_id": MODEL}, "instance_status": {"status": "stopped"}}
                stopped = {"instance": {"instance_id": inst.instance_id, **parts}}
                emu.add_fault(Fault("garbage", route="get", body=stopped))
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


# --- Lost before the next poll ------------------------------------------------------------------------------


class StatusError(Exception):
    """As that of openai."""

    status_code = 404


class ServerError(Exception):
    """As that of aiohttp."""

    status = 503


class APIConnectionError(Exception):
    """As that of openai."""


class HTTPException(Exception):  # noqa: N818  (as in starlette)
    """What an app raises to respond to its own client."""

    status_code = 503


class ModelConnectionError(Exception):
    """As that of Pydantic AI."""


class RetryError(Exception):
    """As that of tenacity."""


class Unreadable(Exception):  # noqa: N818
    @property
    def response(self) -> object:
        raise RuntimeError("there is none")


def of_retries() -> RetryError:
    error = RetryError()
    error.__cause__ = StatusError()
    return error


def of_httpx() -> httpx.HTTPStatusError:
    request = httpx.Request("POST", "http://localhost")
    return httpx.HTTPStatusError("gone", request=request, response=httpx.Response(404, request=request))


ENDPOINT_ERRORS: dict[str, Callable[[], Exception]] = {
    "openai": StatusError,
    "aiohttp": ServerError,
    "httpx": of_httpx,
    "no response": APIConnectionError,
    "reset": ConnectionResetError,
    "Pydantic AI": ModelConnectionError,
    "retries": of_retries,
    "group": lambda: ExceptionGroup("two", [StatusError(), ExceptionGroup("one", [ConnectionResetError()])]),
}
OTHER_ERRORS: dict[str, Callable[[], BaseException]] = {
    "bug": KeyError,
    "unreadable": Unreadable,
    "other retries": RetryError,
    "own response": HTTPException,
    "time-out": TimeoutError,
    "mixed group": lambda: ExceptionGroup("two", [StatusError(), KeyError()]),
    "own request": lambda: errors.NotFoundError("gone", status_code=404, method="GET", path="/instances/x"),
    "no exception": lambda: SystemExit(1),
}


def losses(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if getattr(each, "cortecs_event", "") == "lease.lost"]


@grid(
    anyio_backend=BACKENDS,
    how=["stop_instance", "delete_instance"],
    error=ENDPOINT_ERRORS,
    after=[0.3, 4.0, 105.0],
)
async def test_an_error_of_the_endpoint_of_a_lost_instance_comes_out_as_the_loss(
    world: World, caplog: pytest.LogCaptureFixture, how: str, error: str, after: float
) -> None:
    raised = ENDPOINT_ERRORS[error]()
    async with world(step_seconds=0.0) as (emu, client):
        with pytest.raises(errors.InstanceLostError, match=r"instance-10001 (disappeared|became)") as caught:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(after)
                getattr(emu, how)(emu.existing[0])
                lost_at = anyio.current_time()
                raise raised
        # Readings seconds apart must agree that it is gone.
        assert anyio.current_time() - lost_at == (0.0 if how == "stop_instance" else 5.0)
        assert emu.existing == ()
    assert caught.value.__cause__ is raised
    assert caught.value.instance_id == "instance-10001"
    assert len(losses(caplog)) == 1


@grid(anyio_backend=BACKENDS, error=OTHER_ERRORS, how=["stop_instance", "delete_instance"])
async def test_any_other_exception_gets_a_note_that_the_instance_was_lost(
    world: World, caplog: pytest.LogCaptureFixture, error: str, how: str
) -> None:
    raised = OTHER_ERRORS[error]()
    async with world(step_seconds=0.0) as (emu, client):
        with pytest.raises(type(raised)) as caught:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(1)
                getattr(emu, how)(emu.existing[0])
                raise raised
    assert caught.value is raised
    assert len(raised.__notes__) == 1
    assert "while the block was running" in raised.__notes__[0]
    assert len(losses(caplog)) == 1


class Closed(Exception):  # noqa: N818
    """Cannot take a note."""

    def __getattr__(self, name: str) -> object:
        raise KeyError(name)


async def test_an_exception_that_takes_no_note_comes_out_and_the_instance_is_released(world: World) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        tasks.start_soon(meddle, emu, 50.0, emu.stop_instance)
        with pytest.raises(Closed):
            async with client.instance(MODEL, HARDWARE):
                try:
                    await anyio.sleep(10_000)
                finally:
                    raise Closed
        assert emu.existing == ()


async def test_a_block_that_ends_well_on_a_lost_instance_has_ended_well(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.stop_instance(emu.existing[0])
        assert emu.existing == ()
    assert len(losses(caplog)) == 1


async def test_who_ignores_a_loss_gets_the_error_of_the_endpoint(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        with pytest.raises(StatusError) as caught:
            async with client.instance(MODEL, HARDWARE, on_loss="ignore"):
                emu.stop_instance(emu.existing[0])
                raise StatusError
    assert "became 'stopped'" in caught.value.__notes__[0]


async def test_the_error_of_the_endpoint_is_the_cause_if_the_watch_is_faster(world: World) -> None:
    problem = StatusError()
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        tasks.start_soon(meddle, emu, 50.0, emu.stop_instance)
        with pytest.raises(errors.InstanceLostError) as caught:
            async with client.instance(MODEL, HARDWARE):
                try:
                    await anyio.sleep(10_000)
                finally:
                    raise problem
        assert caught.value.__cause__ is problem


LIVING: dict[str, list[Fault]] = {
    "as usual": [],
    "a stop whose response is lost": [Fault("drop", route="stop", when="after")],
    "a stop that fails, but works": [Fault("status", route="stop", when="after", status=500)],
    "a stop that is rejected": [Fault("status", route="stop", status=429)],
    "a stop that works, but a proxy rejects its response": [
        Fault("status", route="stop", when="after", status=429, body="<h1>slow down</h1>")
    ],
    "a stop that works, but a proxy does not find its response": [
        Fault("status", route="stop", when="after", status=404, body="<h1>not found</h1>")
    ],
    "one stop that the service does not know": [
        Fault("status", route="stop", status=404),
        Fault("status", route="get", status=404),
        Fault("status", route="list", status=200, body={"instances": []}),
    ],
}


@grid(anyio_backend=BACKENDS, life=LIVING, stop_seconds=[0.0, 2.0])
async def test_an_error_of_the_endpoint_of_a_living_instance_comes_out_as_it_is(
    world: World, caplog: pytest.LogCaptureFixture, life: str, stop_seconds: float
) -> None:
    async with world(step_seconds=0.0, stop_seconds=stop_seconds) as (emu, client):
        with pytest.raises(StatusError) as caught:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(5)
                for fault in LIVING[life]:
                    emu.add_fault(fault)
                raise StatusError
        assert emu.existing == ()
    assert not hasattr(caught.value, "__notes__")
    assert losses(caplog) == []


async def test_a_stop_that_was_interrupted_is_no_loss(
    world: World, anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend_name == "trio":
        pytest.skip("only asyncio can cancel another task")
    stop, interrupted = Instances.stop, False

    async def stop_and_be_cancelled(self: Instances, instance_id: str) -> Instance:
        nonlocal interrupted
        stopped = await stop(self, instance_id)
        if not interrupted:
            interrupted = True
            raise asyncio.CancelledError
        return stopped

    monkeypatch.setattr(Instances, "stop", stop_and_be_cancelled)
    async with world(stop_seconds=0.0) as (emu, client):
        with pytest.raises(StatusError) as caught:
            async with client.instance(MODEL, HARDWARE):
                raise StatusError
        assert interrupted
        assert emu.existing == ()
    assert not hasattr(caught.value, "__notes__")


# --- Blocks that cannot be cancelled ------------------------------------------------------------------------


async def enter_elsewhere(lease: InstanceLease) -> None:
    """Enter a lease in a task that ends, as that of a fixture."""
    await asyncio.create_task(lease.__aenter__())


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualTimeLoop})], ids=["asyncio"])
class TestEnteredInATaskThatHasEnded:
    @pytest.mark.parametrize("on_exit", ["delete", "keep"])
    async def test_the_limit_releases_the_instance_and_leaving_raises(
        self, world: World, on_exit: OnExit
    ) -> None:
        async with world(step_seconds=0.0) as (emu, client):
            lease = client.instance(MODEL, HARDWARE, max_lifetime=50, on_exit=on_exit)
            await enter_elsewhere(lease)
            await anyio.sleep(55)
            assert emu.existing == ()
            with pytest.raises(errors.LeaseExpiredError):
                await lease.__aexit__(None, None, None)
            assert lease.receipt.seconds == pytest.approx(50, abs=1)
            assert [each for each in routes(emu) if each in {"stop", "delete"}] == ["stop", "delete"]

    async def test_leaving_raises_that_it_was_lost(self, world: World) -> None:
        async with world(step_seconds=0.0) as (emu, client):
            lease = client.instance(MODEL, HARDWARE)
            await enter_elsewhere(lease)
            await anyio.sleep(5)
            emu.stop_instance(emu.existing[0])
            await anyio.sleep(20)
            assert emu.existing == ()
            with pytest.raises(errors.InstanceLostError):
                await lease.__aexit__(None, None, None)

    @pytest.mark.parametrize("raised", [KeyError("mine"), StatusError()], ids=["own", "of the endpoint"])
    async def test_its_own_exception_stays_and_that_of_the_endpoint_is_the_cause(
        self, world: World, raised: Exception
    ) -> None:
        async with world(step_seconds=0.0) as (_, client):
            lease = client.instance(MODEL, HARDWARE, max_lifetime=50)
            await enter_elsewhere(lease)
            await anyio.sleep(60)
            if isinstance(raised, KeyError):
                await lease.__aexit__(KeyError, raised, None)
                assert "max_lifetime" in raised.__notes__[0]
            else:
                with pytest.raises(errors.LeaseExpiredError) as caught:
                    await lease.__aexit__(StatusError, raised, None)
                assert caught.value.__cause__ is raised

    async def test_a_lease_that_is_dropped_is_still_collected(self, world: World) -> None:
        async with world(step_seconds=0.0) as (emu, client):
            lease = client.instance(MODEL, HARDWARE, max_lifetime=50)
            await enter_elsewhere(lease)
            del lease
            gc.collect()
            await anyio.sleep(1)
            assert emu.existing == ()


async def test_in_a_closed_generator_the_limit_comes_out(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):

        async def answers() -> AsyncGenerator[int, None]:
            async with client.instance(MODEL, HARDWARE, max_lifetime=50):
                while True:
                    yield 1

        with pytest.raises(errors.LeaseExpiredError):
            async with contextlib.aclosing(answers()) as generator:
                async for _ in generator:
                    await anyio.sleep(1)
        assert emu.existing == ()
        await anyio.sleep(1)  # it was not cancelled for good
