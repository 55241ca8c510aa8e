"""An instance beside an app, on virtual time, and one for several real processes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
import socket
import sys
import uuid
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import anyio
import anyio.lowlevel
import httpx
import pytest
from _processes import PROC, Program, is_alive, kill, read, reapers_of, until
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL, World, client_of, service
from anyio.abc import SocketStream

from cortecs_async import AsyncCortecs, Credentials, InstanceHandle, errors
from cortecs_async._aio.background import BackgroundTask
from cortecs_async._sharing import connections, connector
from cortecs_async._sharing.meeting_point import MeetingPoint
from cortecs_async._state_directory import StateFolder
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.integrations import _managed, _shared, _shared_server, web
from cortecs_async.integrations._managed import ManagedInstance, Unavailable
from cortecs_async.integrations.web import BackgroundInstance, NotReadyError, SharedInstance


@pytest.fixture(autouse=True)
def _credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set credentials, without which a shared instance cannot be entered."""
    monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret")


def not_ready(instance: BackgroundInstance | SharedInstance) -> NotReadyError:
    with pytest.raises(NotReadyError) as caught:
        instance.handle()
    return caught.value


def server_of(instance: ManagedInstance, **options: Any) -> _shared_server.SharedInstanceServer:
    """Return the server of an owner that has no files."""
    place = MeetingPoint(Path("/nowhere/at/all.sock"))
    values = {"linger": 0.0, "heartbeat": 5.0, "meeting_point": place, "lock": -1, **options}
    return _shared_server.SharedInstanceServer(instance, **values)


# --- beside an app ------------------------------------------------------------------------------------------


async def test_it_is_entered_at_once_and_released_at_the_end(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            assert anyio.current_time() < 1
            assert not_ready(instance).headers == {"Retry-After": "10"}
            await anyio.sleep(90)
            error = not_ready(instance)
            assert error.status_code == 503
            assert str(error) == "The model is starting, which takes a few minutes"
            assert error.detail.startswith("the instance is being started: ")
            handle = await instance.wait()
            assert anyio.current_time() >= 240
            assert handle == instance.handle()
            assert (handle.instance_id, handle.model) == (emu.existing[0], MODEL)
            assert len(emu.billing) == 1
        assert emu.existing == ()


async def test_leaving_during_the_start_releases_the_instance(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE):
            await anyio.sleep(90)
            assert len(emu.existing) == 1
        assert emu.existing == ()
        assert anyio.current_time() < 100


@pytest.mark.parametrize(
    ("how", "age", "confirming"),
    [
        ("stop_instance", 4.0, 0.5),
        # Missing for 5 s for the block, and once more for the teardown.
        ("delete_instance", 64.0, 5.0 + 0.5 + 5.5),
        # And not before it is a minute old.
        ("delete_instance", 4.0, 60.0 + 10.0),
    ],
)
async def test_a_lost_instance_is_replaced_at_once(
    world: World, how: str, age: float, confirming: float
) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            first = await instance.wait()
            await anyio.sleep(age - anyio.current_time())
            getattr(emu, how)(first.instance_id)
            lost_at = anyio.current_time()
            with anyio.fail_after(120):
                await instance.state_after(first)
            assert not_ready(instance).headers
            second = await instance.wait()
            assert second.instance_id != first.instance_id
            # Noticed within the polling interval, confirmed, replaced without a pause, and started.
            assert anyio.current_time() - lost_at <= 10 + confirming + 5
            assert emu.existing == (second.instance_id,)
        assert emu.existing == ()


async def test_a_rejected_start_is_tried_again_after_a_pause(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="start", status=402, times=2))
        async with BackgroundInstance(client, MODEL, HARDWARE, pause=300.0) as instance:
            await anyio.sleep(100)
            error = not_ready(instance)
            assert (error.reason, "402" in error.detail) == ("no_balance", True)
            assert error.headers == {"Retry-After": "300"}
            await anyio.sleep(300)
            assert not_ready(instance).reason == "no_balance"
            assert emu.ledger == ()
            await instance.wait()
            assert 600 <= anyio.current_time() < 620
        assert emu.existing == ()


async def test_a_failing_credential_provider_does_not_end_the_app(world: World) -> None:
    problems = [OSError("no vault")]

    async def provide() -> Credentials:
        if problems:
            raise problems.pop()
        return Credentials(client_id="emulator-client", client_secret="emulator-secret")

    async with (
        world() as (emu, _),
        httpx.AsyncClient(transport=emu.transport()) as http,
        AsyncCortecs(
            credential_provider=provide,
            api_base_url=emu.api_base_url,
            http_client=http,
            guard="off",
            journal="off",
        ) as client,
    ):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await anyio.sleep(1)
            assert (not_ready(instance).reason, not_ready(instance).detail) == ("failed", "no vault")
            assert (await instance.wait()).instance_id in emu.existing


async def test_nothing_is_started_after_a_limit_is_used_up(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=600.0) as instance:
            await instance.wait()
            await anyio.sleep(700)
            error = not_ready(instance)
            assert (error.reason, "max_lifetime" in error.detail) == ("limit_reached", True)
            assert (error.retry_after, error.headers) == (None, {})
            with pytest.raises(NotReadyError, match="limit"):
                await instance.wait()
            await anyio.sleep(10_000)
            assert (emu.existing, len(emu.ledger)) == ((), 1)


async def test_max_lifetime_limits_the_sum_of_all_instances(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=1000.0) as instance:
            first = await instance.wait()
            await anyio.sleep(600)
            emu.delete_instance(first.instance_id)
            await anyio.sleep(300)
            assert instance.handle() != first
            await anyio.sleep(200)
            assert (not_ready(instance).reason, not_ready(instance).retry_after) == ("limit_reached", None)
            assert emu.existing == ()
            assert anyio.current_time() < 1150


async def test_max_cost_limits_the_sum_of_all_instances(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, max_cost=1.0) as instance:
            first = await instance.wait()
            await anyio.sleep(130)
            emu.delete_instance(first.instance_id)
            await instance.state_after(first)
            assert await instance.wait() != first
            await anyio.sleep(10_000)
            assert (not_ready(instance).reason, not_ready(instance).retry_after) == ("limit_reached", None)
        assert len(emu.ledger) == 2
        assert emu.total_cost <= 1.0
        assert emu.existing == ()


async def test_an_ambiguous_start_is_not_repeated(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await anyio.sleep(0.1)
            emu.start_instance(MODEL, HARDWARE)
            await anyio.sleep(1000)
            error = not_ready(instance)
            assert error.retry_after is None
            assert len(emu.ledger) == 2


async def test_an_exception_of_the_block_is_raised_unchanged(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client):
        with pytest.raises(KeyError) as caught:
            async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
                await instance.wait()
                raise problem
        assert caught.value is problem
        assert emu.existing == ()


async def test_a_cancelled_block_releases_the_instance(world: World) -> None:
    async with world(stop_seconds=5.0) as (emu, client):
        with anyio.move_on_after(100) as scope:
            async with BackgroundInstance(client, MODEL, HARDWARE):
                await anyio.sleep(10_000)
        assert scope.cancelled_caught
        assert emu.existing == ()
        await anyio.sleep(1)


async def test_misuse(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE)
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            instance.handle()
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            await instance.wait()
        async with instance:
            with pytest.raises(errors.InvalidArgumentError, match="already entered"):
                await instance.__aenter__()
            await instance.wait()
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            instance.handle()
        with pytest.raises(errors.InvalidArgumentError, match="num_workers"):
            await BackgroundInstance(client, MODEL, HARDWARE, num_workers=9).__aenter__()
        assert len(emu.ledger) == 1


async def test_it_can_be_entered_again(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE, max_lifetime=600)
        for _ in range(3):
            async with instance:
                await instance.wait()
                await anyio.sleep(400)
        assert (len(emu.ledger), emu.existing) == (3, ())


async def test_it_may_be_left_in_another_task(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE)
        # As pytest-asyncio does with the two halves of a fixture.
        await in_another_task(instance.__aenter__)
        await instance.wait()
        await in_another_task(instance.__aexit__, None, None, None)
        assert (len(emu.ledger), emu.existing) == (1, ())
        with pytest.raises(errors.InvalidArgumentError, match="lifespan"):
            instance.handle()


async def test_it_may_be_left_at_once(world: World) -> None:
    async with world() as (emu, client):
        with anyio.fail_after(1):
            async with BackgroundInstance(client, MODEL, HARDWARE):
                pass
        assert emu.ledger == ()


async def in_another_task(work: Callable[..., Coroutine[Any, Any, object]], *args: object) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(work, *args)


async def test_a_cancellation_while_it_is_left_does_not_stop_the_release(world: World) -> None:
    async with world(stop_seconds=5.0) as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE)
        await instance.__aenter__()
        await instance.wait()
        with anyio.move_on_after(1.0) as scope:
            await instance.__aexit__(None, None, None)
            await anyio.lowlevel.checkpoint()
        assert scope.cancelled_caught
        assert emu.existing == ()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {"loop_factory": VirtualTimeLoop})])
async def test_cancelling_the_task_that_leaves_does_not_stop_the_release(world: World) -> None:
    async with world(stop_seconds=5.0) as (emu, client):

        async def use(problem: Exception | None) -> None:
            async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
                await instance.wait()
                leaving.set()
                if problem is not None:
                    raise problem

        for problem in (None, KeyError("mine")):
            leaving = anyio.Event()
            task = asyncio.create_task(use(problem))
            await leaving.wait()
            for _ in range(2):
                await anyio.sleep(1)
                task.cancel()
            (result,) = await asyncio.gather(task, return_exceptions=True)
            assert emu.existing == ()
            # An error of the block is raised unchanged.
            assert result is problem or isinstance(result, asyncio.CancelledError)
            assert problem is None or result is problem
        assert len(emu.ledger) == 2


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_another_event_loop_cannot_leave_it(backend: str) -> None:
    emu = Emulator()
    found: list[BackgroundInstance] = []

    async def close(client: AsyncCortecs) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await until(lambda: not emu.existing)
                await client.aclose()

    async def enter() -> None:
        http = httpx.AsyncClient(transport=emu.transport())
        client = client_of(emu, http_client=http, guard="off", journal="off")
        BackgroundTask(partial(close, client))
        found.append(await BackgroundInstance(client, MODEL, HARDWARE).__aenter__())
        await until(lambda: emu.existing)

    problem = KeyError("mine")
    # The event loop cancels its tasks at its end, which releases the instance.
    anyio.run(enter, backend=backend)
    assert emu.existing == ()
    anyio.run(found[0].__aexit__, KeyError, problem, None, backend=backend)
    assert "event loop" in problem.__notes__[0]
    anyio.run(enter, backend=backend)
    with pytest.raises(errors.ConfigurationError, match="event loop"):
        anyio.run(found[1].__aexit__, None, None, None, backend=backend)
    assert (len(emu.ledger), emu.existing) == (2, ())


async def test_only_one_of_two_tasks_enters_it() -> None:
    class Slow(ManagedInstance):
        async def _check(self) -> None:
            await anyio.sleep(1)

        async def _run(self) -> None:
            runs.append(self)

    async def enter() -> None:
        try:
            await instance.__aenter__()
        except errors.InvalidArgumentError as error:
            refused.append(str(error))

    runs: list[Slow] = []
    refused: list[str] = []
    instance = Slow(1.0, {})
    async with anyio.create_task_group() as tasks:
        for _ in range(2):
            tasks.start_soon(enter)
    assert len(refused) == 1
    assert "already entered" in refused[0]
    await instance.__aexit__(None, None, None)
    assert runs == [instance]


async def test_a_block_that_one_task_leaves_while_another_restarts_it(world: World) -> None:
    async with world() as (emu, client):
        instance = BackgroundInstance(client, MODEL, HARDWARE)
        await instance.__aenter__()
        await instance.wait()

        async def restart() -> None:
            await instance.__aexit__(None, None, None)
            await instance.__aenter__()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(restart)
            tasks.start_soon(instance.__aexit__, None, None, None)
        await anyio.sleep(60)
        assert instance.handle().instance_id in emu.billing
        await instance.__aexit__(None, None, None)
        assert emu.existing == ()


@pytest.mark.parametrize("kind", [partial(BackgroundInstance, cast("Any", None)), SharedInstance])
def test_unknown_options_are_rejected_at_once(kind: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="Unknown option max_costs, on_loss"):
        kind(MODEL, max_costs=5, on_loss="ignore")


async def test_a_report_needs_a_handle(world: World) -> None:
    async with world() as (_, client), BackgroundInstance(client, MODEL, HARDWARE) as instance:
        handle = await instance.wait()
        with pytest.raises(errors.InvalidArgumentError, match="not str"):
            instance.report(ValueError(), handle.instance_id)  # type: ignore[arg-type]


async def test_an_unexpected_error_is_final(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(ManagedInstance):
        async def _check(self) -> None:
            pass

        async def _run(self) -> None:
            raise ZeroDivisionError("a bug")

    async with Broken(1.0, {}) as instance:
        with pytest.raises(NotReadyError) as caught:
            await instance.wait()
        assert (caught.value.reason, caught.value.retry_after) == ("failed", None)
        assert "a bug" in caught.value.detail
        assert "a bug" in caplog.text


# --- why there is no instance -------------------------------------------------------------------------------


REFUSED = '{"message": "details for instance i-123 of you@example.test"}'


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (Fault("status", route="start", status=402, body=REFUSED), "no_balance"),
        (Fault("status", route="start", status=503, body=REFUSED), "no_capacity"),
        # A proxy in front of the service knows nothing of its capacity.
        (
            Fault("status", route="start", status=503, body="<h1>you@example.test</h1>", times=9),
            "unreachable",
        ),
        (Fault("status", route="start", status=403, body=REFUSED), "misconfigured"),
        (Fault("status", route="token", status=400, body=REFUSED), "misconfigured"),
        (Fault("status", route="token", status=401, body=REFUSED), "misconfigured"),
        (Fault("status", route="token", status=503, body=REFUSED, times=9), "unreachable"),
        (Fault("status", route="start", status=422, body=REFUSED), "failed"),
    ],
    ids=lambda each: each if isinstance(each, str) else f"{each.route}-{each.status}",
)
async def test_a_503_says_why_in_words_for_strangers(world: World, fault: Fault, reason: str) -> None:
    async with world() as (emu, client):
        emu.add_fault(fault)
        async with BackgroundInstance(client, MODEL, HARDWARE, start_timeout=50.0) as instance:
            await until(lambda: not_ready(instance).reason != "starting")
            error = not_ready(instance)
            assert error.reason == reason
            assert "example" not in str(error)
            assert "i-123" not in str(error)
            assert str(fault.status) in error.detail
            # A traceback shows the details.
            assert error.detail in error.__notes__[0]
            assert pickle.loads(pickle.dumps(error)).detail == error.detail  # noqa: S301
            assert error.headers


async def test_it_is_ready_once_its_model_has_answered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", "emulator-key")
    async with world(step_seconds=10.0, endpoint_lag=100.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await anyio.sleep(100)
            error = not_ready(instance)
            assert error.reason == "starting"
            assert error.detail.endswith("waiting for the endpoint to answer (502 Bad Gateway)")
            await instance.wait()
            assert 140 <= anyio.current_time() <= 145
        async with BackgroundInstance(client, MODEL, HARDWARE, ready="status") as instance:
            before = anyio.current_time()
            await instance.wait()
            assert anyio.current_time() - before <= 45
        assert emu.existing == ()


async def test_a_key_that_the_endpoint_rejects_is_final_after_two_instances(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CORTECS_API_KEY", "another-key")
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            with pytest.raises(NotReadyError) as caught, anyio.fail_after(1000):
                await instance.wait()
            assert (caught.value.reason, caught.value.retry_after) == ("misconfigured", None)
            assert "another-key" not in caught.value.detail
        assert len(emu.ledger) == 2
        assert emu.existing == ()


def test_the_options_of_a_shared_instance_include_the_test() -> None:
    assert SharedInstance(MODEL)._spec["options"]["ready"] == "answer"
    assert SharedInstance(MODEL, ready="models")._spec["options"]["ready"] == "models"


async def test_an_app_waits_for_capacity_and_tries_again(world: World) -> None:
    async with world(capacity={HARDWARE: 0, "NVIDIA_L4_1": 0}) as (emu, client):
        hardware = ["NVIDIA_L4_1", HARDWARE]
        async with BackgroundInstance(client, MODEL, hardware, capacity_timeout=5, pause=4) as instance:
            await until(lambda: not_ready(instance).reason == "no_capacity")
            assert not_ready(instance).detail.startswith("waiting for capacity: NVIDIA_L4_1 or NVIDIA_H100_1")
            await until(lambda: "No capacity for" in not_ready(instance).detail)
            assert not_ready(instance).reason == "no_capacity"
            assert not_ready(instance).retry_after == 4
            emu.set_capacity(HARDWARE, 1)
            await instance.wait()
            assert [entry.hardware_type_id for entry in emu.ledger] == [HARDWARE]


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_refusals_are_final_after_five_in_a_row(world: World, status: int) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="token" if status == 401 else "start", status=status, times=None))
        async with BackgroundInstance(client, MODEL, HARDWARE, pause=0.1) as instance:
            with pytest.raises(NotReadyError) as caught, anyio.fail_after(500):
                await instance.wait()
            # One moment of the service is no evidence, however short the pause is.
            assert 40 <= anyio.current_time() < 60
            assert (caught.value.retry_after, caught.value.headers) == (None, {})
            assert caught.value.reason == ("no_balance" if status == 402 else "misconfigured")
            sent = len(emu.requests)
            await anyio.sleep(1000)
            assert len(emu.requests) == sent
        # Entering again begins anew.
        emu.clear_faults()
        async with instance:
            await instance.wait()
        assert emu.existing == ()


async def test_refusals_that_are_not_in_a_row_are_not_final(world: World) -> None:
    async with world() as (emu, client):
        for _ in range(3):
            emu.add_fault(Fault("status", route="start", status=402, times=4))
            emu.add_fault(Fault("status", route="start", status=422))
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await instance.wait()
            assert len(emu.existing) == 1


@pytest.mark.parametrize(("route", "status"), [("token", 401), ("start", 402), ("start", 403)])
async def test_refusals_of_a_proxy_are_not_final(world: World, route: str, status: int) -> None:
    async with world() as (emu, client):
        page = "<h1>Please log in to the network</h1>"
        emu.add_fault(Fault("status", route=route, status=status, body=page, times=20))
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            await instance.wait()
            assert len(emu.existing) == 1


def test_the_page_has_all_reasons() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "web.md").read_text()
    rows = [f"| `{reason}` | {message} |" for reason, message in _managed._MESSAGES.items()]
    assert "\n".join(rows) in page


# --- idle instances -----------------------------------------------------------------------------------------


async def test_an_idle_instance_is_released_and_started_again_when_it_is_needed(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, idle_timeout="10m") as instance:
            first = await instance.wait()
            for _ in range(3):
                await anyio.sleep(500)
                assert instance.handle() == first
            await anyio.sleep(700)
            assert emu.existing == ()
            await anyio.sleep(3000)
            assert len(emu.ledger) == 1
            error = not_ready(instance)
            assert (error.reason, error.headers) == ("idle", {"Retry-After": "10"})
            assert str(error) == "The model was not in use and is starting again, which takes a few minutes"
            assert "had no request for idle_timeout=600 s" in error.detail
            await anyio.sleep(60)
            assert not_ready(instance).reason == "starting"
            second = await instance.wait()
            assert second.instance_id != first.instance_id
            assert len(emu.ledger) == 2
            await anyio.sleep(700)
            assert emu.existing == ()
            assert await instance.wait() not in {first, second}
        assert emu.existing == ()


async def test_an_instance_that_is_needed_during_its_release_is_started_again(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, idle_timeout=60) as instance:
            first = await instance.wait()
            emu.add_fault(Fault("delay", route="stop", seconds=5.0))
            await instance.state_after(first)
            assert emu.billing
            assert not_ready(instance).reason == "restarting"
            await anyio.sleep(60)
            assert instance.handle() != first
        assert len(emu.ledger) == 2


async def test_leaving_while_no_instance_is_needed(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, idle_timeout=60) as instance:
            await instance.wait()
            await anyio.sleep(200)
        with pytest.raises(errors.InvalidArgumentError):
            instance.handle()
        assert len(emu.ledger) == 1


async def test_the_limits_hold_for_all_instances_that_were_idle(world: World) -> None:
    async with world() as (emu, client):
        limits: Any = {"idle_timeout": 60, "max_lifetime": 100}
        async with BackgroundInstance(client, MODEL, HARDWARE, **limits) as instance:
            await instance.wait()
            await anyio.sleep(200)
            await instance.wait()
            await anyio.sleep(200)
            assert not_ready(instance).reason == "limit_reached"
        assert len(emu.ledger) == 2


async def test_a_handle_of_an_instance_in_this_process_counts_its_requests(world: World) -> None:
    async def call(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async with world() as (_, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, idle_timeout=60) as instance:
            handle = await instance.wait()
            assert await handle.map(call, [500.0]).to_list() == [500.0]
            assert instance.handle() == handle


async def test_the_processes_that_share_an_instance_tell_its_owner_that_they_use_it(world: World) -> None:
    async with world() as (_, client):
        async with BackgroundInstance(client, MODEL, HARDWARE, idle_timeout=60) as instance:
            server, first = server_of(instance), await instance.wait()

            to_owner, stream = anyio.create_memory_object_stream[bytes]()

            async def use() -> None:
                async with to_owner:
                    for _ in range(10):
                        await anyio.sleep(50)
                        await to_owner.send(b"junk\n" + _shared_server.encode_touch())

            async with stream, anyio.create_task_group() as tasks:
                tasks.start_soon(use)
                await server._receive_reports(cast("SocketStream", stream))
            assert instance.handle() == first


async def test_a_process_tells_the_owner_seldom_that_it_uses_the_instance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(_shared, "boottime", lambda: clock[0])
    shared = SharedInstance(MODEL, HARDWARE, idle_timeout="10m")
    shared._run_in_loop = lambda callback: callback()
    sent: list[tuple[float, bytes]] = []

    async def send(line: bytes) -> None:
        sent.append((clock[0], line))

    stream = cast("SocketStream", SimpleNamespace(send=send, send_eof=anyio.lowlevel.checkpoint))

    async def use_it(seconds: int) -> None:
        for _ in range(seconds * 10):
            clock[0] += 0.1
            shared.note_use()
            await anyio.sleep(0.1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(shared._send, stream)
        shared._set(InstanceHandle(instance_id="i", base_url="http://localhost/v1", model="m", account="a"))
        await use_it(20)
        assert {line for _, line in sent} == {b'{"touch": true}\n'}
        assert 4 <= len(sent) <= 5
        sent.clear()
        shared._set(Unavailable("restarting"))
        await use_it(1)
        shared._set(Unavailable("idle"))
        await use_it(10)
        assert len(sent) == 2
        tasks.cancel_scope.cancel()
    quiet = SharedInstance(MODEL, HARDWARE)
    quiet.note_use()
    assert not quiet._has_touch


# --- reports ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop_instance", "delete_instance"])
async def test_a_reported_instance_is_withheld_and_replaced_at_once(world: World, how: str) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            first = await instance.wait()
            await anyio.sleep(61)  # right after a check
            getattr(emu, how)(first.instance_id)
            lost_at = anyio.current_time()
            instance.report(ConnectionError("refused"), first)
            with anyio.fail_after(1):
                await instance.state_after(first)
            assert not_ready(instance).reason == "restarting"
            second = await instance.wait()
            # Nothing is concluded from one reading. A stopped instance is read again after half a second, one
            # that is missing for five seconds.
            assert anyio.current_time() - lost_at < (6 if how == "stop_instance" else 15)
            assert emu.existing == (second.instance_id,)
        assert (len(emu.ledger), emu.existing) == (2, ())


async def test_a_report_about_a_running_instance_changes_nothing(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            handle = await instance.wait()
            for _ in range(2):
                sent = len(emu.requests)
                for _ in range(1000):
                    instance.report(ValueError("odd"))
                    await anyio.sleep(0.001)
                    assert instance.handle() == handle
                assert len(emu.requests) - sent <= 2  # at most one a second
                await anyio.sleep(5)
            assert emu.existing == (handle.instance_id,)


async def test_one_reading_withholds_a_handle_but_does_not_end_the_lease(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            handle = await instance.wait()
            await anyio.sleep(61)
            emu.add_fault(Fault("omit", route="get"))
            instance.report(ConnectionError("refused"))
            with anyio.fail_after(1):
                assert await instance.state_after(handle) != handle
            assert not_ready(instance).reason == "restarting"
            with anyio.fail_after(3):
                assert await instance.wait() == handle
            await anyio.sleep(100)
            assert (instance.handle(), len(emu.ledger)) == (handle, 1)


async def test_an_unreadable_instance_is_checked_again_and_not_withheld(world: World) -> None:
    async with world(max_retries=0) as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            handle = await instance.wait()
            await anyio.sleep(61)
            emu.add_fault(Fault("status", route="get", status=500, times=2))
            emu.stop_instance(handle.instance_id)
            instance.report(ConnectionError("refused"))
            await anyio.sleep(0.5)
            assert instance.handle() == handle
            with anyio.fail_after(4):
                await instance.state_after(handle)


async def test_an_old_report_does_not_concern_the_next_instance(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            instance.report(ConnectionError("before there is one"))
            first = await instance.wait()
            emu.stop_instance(first.instance_id)
            await instance.state_after(first)
            instance.report(ConnectionError("refused"))
            await instance.wait()
            sent = len(emu.requests)
            instance.report(ConnectionError("refused"), first)
            await anyio.sleep(5)
            assert len(emu.requests) == sent
        instance.report(ConnectionError("after the end"))


@pytest.mark.sockets
async def test_a_report_of_another_thread(world: World) -> None:
    async with world() as (emu, client):
        async with BackgroundInstance(client, MODEL, HARDWARE) as instance:
            handle = await instance.wait()
            emu.stop_instance(handle.instance_id)
            await anyio.to_thread.run_sync(instance.report, ConnectionError("refused"))
            with anyio.fail_after(2):
                await instance.state_after(handle)


# --- for several processes ----------------------------------------------------------------------------------


def owners(state_dir: Path) -> list[int]:
    """Return the ids of the owner processes that use this state directory."""
    found = []
    for each in PROC.iterdir():
        if each.name.isdigit() and b"integrations._shared_server" in read(int(each.name), "cmdline"):
            environment = read(int(each.name), "environ").split(b"\0")
            if f"CORTECS_STATE_DIR={state_dir}".encode() in environment and is_alive(int(each.name)):
                found.append(int(each.name))
    return found


@pytest.mark.sockets
async def test_processes_share_one_instance_until_the_last_has_left(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    async with service(monkeypatch, stop_seconds=0.5) as emu:
        several = [SharedInstance(MODEL, HARDWARE) for _ in range(3)]
        async with several[0]:
            async with several[1], several[2]:
                with anyio.fail_after(60):
                    handles = {await each.wait() for each in several}
                assert [each.instance_id for each in handles] == list(emu.existing)
                (owner,) = owners(state_dir)
                # All users of the machine can read it.
                assert b"emulator-secret" not in read(owner, "cmdline")
                os.kill(owner, signal.SIGTERM)  # as a service manager does, to all of its processes
            assert emu.billing
            assert several[0].handle() in handles
        # Leaving waited for the release.
        assert (len(emu.ledger), emu.existing) == (1, ())
        await until(lambda: not owners(state_dir))


@pytest.mark.sockets
async def test_a_cancelled_block_waits_for_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    async with service(monkeypatch, stop_seconds=0.5) as emu:
        began = 0.0
        with anyio.CancelScope() as scope:
            async with SharedInstance(MODEL, HARDWARE) as shared:
                with anyio.fail_after(60):
                    await shared.wait()
                began = anyio.current_time()
                scope.cancel()
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert 0.5 < anyio.current_time() - began < 60
        assert (len(emu.ledger), emu.existing) == (1, ())


# One backend is enough: the code under test runs in the owner process, which is the same for both.
@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_owner_keeps_the_instance_for_linger_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(running: anyio.Event, leave: anyio.Event, left: anyio.Event) -> None:
        async with SharedInstance(MODEL, HARDWARE, linger=1.5) as shared:
            seen.append(await shared.wait())
            running.set()
            await leave.wait()
        left.set()

    seen: list[InstanceHandle] = []
    first = anyio.Event(), anyio.Event(), anyio.Event()
    second = anyio.Event(), anyio.Event(), anyio.Event()
    async with service(monkeypatch) as emu:
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(work, *first)
                await first[0].wait()
                # The last one to leave waits for another one.
                first[1].set()
                await anyio.wait_all_tasks_blocked()
                assert not first[2].is_set()
                tasks.start_soon(work, *second)
                await second[0].wait()
                await first[2].wait()
                assert len(emu.billing) == 1
                began = anyio.current_time()
                second[1].set()
                await second[2].wait()
                assert anyio.current_time() - began > 1
        assert seen[0] == seen[1]
        assert (len(emu.ledger), emu.existing) == (1, ())


@pytest.mark.sockets
async def test_a_killed_owner_is_replaced(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    async with service(monkeypatch) as emu:
        shared, other = SharedInstance(MODEL, HARDWARE), SharedInstance(MODEL, HARDWARE)
        async with shared, other:
            with anyio.fail_after(60):
                first = await shared.wait()
                await other.wait()
            (owner,) = owners(state_dir)
            reapers = reapers_of(owner)
            kill(owner)
            await until(lambda: isinstance(shared._state, Unavailable))
            assert not_ready(shared).headers
            with anyio.fail_after(60):
                second = await shared.wait()
                await until(lambda: other._state == second)
            assert second.instance_id != first.instance_id
            # The reaper of the dead owner releases the first instance.
            await until(lambda: emu.existing == (second.instance_id,), 60)
        assert (len(emu.ledger), emu.existing) == (2, ())
        await until(lambda: not any(map(is_alive, reapers)))


WORKER = """
import os, signal, sys, anyio
from cortecs_async.integrations.web import SharedInstance

async def main():
    async with SharedInstance(sys.argv[1], sys.argv[2]) as shared:
        print("entered", flush=True)
        await shared.wait()
        if os.fork() == 0:
            # Like a worker of a process pool, this child outlives its parent.
            print("child", os.getpid(), flush=True)
            signal.pause()
        print("runs", flush=True)
        await anyio.sleep(600)

anyio.run(main)
"""


@pytest.mark.sockets
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_forked_children_of_killed_processes_do_not_keep_the_instance(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path, tmp_path: Path
) -> None:
    async with service(monkeypatch) as emu:
        env = {**emu.env(), "CORTECS_STATE_DIR": str(state_dir)}
        with contextlib.ExitStack() as stack:
            programs = [
                stack.enter_context(Program(WORKER, MODEL, HARDWARE, env=env, log=tmp_path / f"{number}"))
                for number in range(2)
            ]
            await until(lambda: all(each.has_printed("runs") for each in programs), 60)
            await until(lambda: all(each.numbers("child") for each in programs))
            assert len(emu.ledger) == 1
            children = [number for each in programs for number in each.numbers("child")]
            try:
                programs[0].send(signal.SIGKILL)
                await until(lambda: programs[0].has_ended)
                assert emu.billing
                programs[1].send(signal.SIGKILL)
                await until(lambda: emu.existing == (), 60)
                assert all(map(is_alive, children))
            finally:
                for each in children:
                    kill(each)
        await until(lambda: not owners(state_dir))
        assert len(emu.ledger) == 1


@pytest.mark.sockets
async def test_an_owner_that_does_not_start(monkeypatch: pytest.MonkeyPatch, state_dir: Path) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    async with shared:
        await until(lambda: "the owner process exited with status 1" in not_ready(shared).detail)
        assert not_ready(shared).reason == "failed"
        monkeypatch.setattr(sys, "executable", "/nowhere/at/all")
        await until(lambda: "/nowhere/at/all" in not_ready(shared).detail)
    assert owners(state_dir) == []


async def test_invalid_arguments_and_environments_are_rejected_on_entry(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state_dir: Path
) -> None:
    with pytest.raises(errors.InvalidArgumentError, match="num_workers"):
        await SharedInstance(MODEL, HARDWARE, num_workers=9).__aenter__()
    with pytest.raises(errors.InvalidArgumentError, match="pause"):
        SharedInstance(MODEL, HARDWARE, pause=0)
    with pytest.raises(errors.InvalidArgumentError, match="linger"):
        SharedInstance(MODEL, HARDWARE, linger=-1)
    monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / ("x" * 100)))
    with pytest.raises(errors.ConfigurationError, match="too long"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()
    (tmp_path / "file").touch()
    monkeypatch.setenv("CORTECS_STATE_DIR", str(tmp_path / "file"))
    with pytest.raises(errors.ConfigurationError, match="CORTECS_STATE_DIR"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()
    monkeypatch.setattr(_shared, "sys", SimpleNamespace(platform="win32"))
    with pytest.raises(errors.ConfigurationError, match="file locks"):
        await SharedInstance(MODEL, HARDWARE).__aenter__()


@pytest.mark.parametrize("suffix", [".lock", ".sock"])
@pytest.mark.parametrize("kind", ["pipe", "link", "file of the user"])
async def test_what_is_not_its_own_is_neither_used_nor_removed(
    tmp_path: Path, state_dir: Path, kind: str, suffix: str
) -> None:
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    path, data = shared._meeting_point.address.with_suffix(suffix), tmp_path / "data"
    with StateFolder(path.parent, create=True):
        data.write_bytes(b"text")
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "link":
            path.symlink_to(data)
        else:
            path.write_bytes(b"text")
    if suffix == ".sock" or kind != "file of the user":
        expected = "socket" if suffix == ".sock" else "regular file"
        with pytest.raises(
            errors.ConfigurationError, match=rf"{suffix[1:]} is not a {expected}.*CORTECS_STATE_DIR"
        ):
            await shared.__aenter__()
    assert data.read_bytes() == b"text"
    assert path.lstat()
    assert owners(state_dir) == []


class Stream:
    """A stream of a unix socket, as far as it is needed here."""

    def __init__(self, raw: socket.socket) -> None:
        self.raw = raw

    def extra(self, _: object) -> socket.socket:
        return self.raw

    async def aclose(self) -> None:
        self.raw.close()


def test_the_user_at_the_other_end_of_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = socket.socketpair(socket.AF_UNIX)
    stream, mine = cast("SocketStream", Stream(ends[0])), os.geteuid()
    assert connections.is_of_this_user(stream)
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: 4321)
        assert not connections.is_of_this_user(stream)
    # As on a system without both, and as on macOS.
    monkeypatch.delattr(socket, "SO_PEERCRED")
    assert connections.is_of_this_user(stream)
    found: list[tuple[int, int]] = [(mine, 0), (4321, 0), (mine, -1)]

    def getpeereid(_: int, uid: Any, __: Any) -> int:
        uid._obj.value, status = found[0]
        return status

    monkeypatch.setattr("ctypes.CDLL", lambda *_, **__: SimpleNamespace(getpeereid=getpeereid))
    for expected in (True, False, False):
        assert connections.is_of_this_user(stream) is expected
        del found[0]
    for each in ends:
        each.close()


async def test_the_owner_closes_the_connection_of_another_user(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = socket.socketpair(socket.AF_UNIX)
    monkeypatch.setattr(connections, "is_of_this_user", lambda _: False)
    served: list[SocketStream] = []

    async def serve(stream: SocketStream) -> None:
        served.append(stream)

    place = MeetingPoint(Path("/nowhere/at/all.sock"))
    listener = connections.ConnectionListener(place, -1, 5.0, serve, _managed.logger)
    await listener._serve(cast("SocketStream", Stream(first)))
    assert served == []
    assert second.recv(1) == b""  # the end
    second.close()


@pytest.mark.sockets
async def test_a_socket_of_another_user_gets_no_connection(
    monkeypatch: pytest.MonkeyPatch, state_dir: Path
) -> None:
    shared = SharedInstance(MODEL, HARDWARE, pause=0.1)
    lock = shared._meeting_point.try_lock()
    assert lock is not None
    with shared._meeting_point.listen():
        monkeypatch.setattr(connector, "is_of_this_user", lambda _: False)
        async with shared:
            await until(lambda: "another user's process is listening" in not_ready(shared).detail)
    os.close(lock)


@pytest.mark.sockets
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_the_system_knows_the_user_of_a_process() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0cortecs-async-{uuid.uuid4()}")
        listener.listen()
        child = os.fork()
        if child == 0:
            os.setuid(4321)
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(listener.getsockname())
                connection.recv(1)
            os._exit(0)
        accepted, _ = listener.accept()
        assert not connections.is_of_this_user(cast("SocketStream", Stream(accepted)))
        accepted.close()
        os.waitpid(child, 0)


def test_public_names_show_the_public_module_and_can_be_pickled() -> None:
    for name in web.__all__:
        found = getattr(web, name)
        assert found.__module__ == web.__name__
        assert pickle.loads(pickle.dumps(found)) is found  # noqa: S301


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_config_file_is_read_once_per_block(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file, shared = tmp_path / "config.toml", SharedInstance(MODEL)
    monkeypatch.setattr(connector, "_LONGEST_ADDRESS", 1000)
    for name in ("CORTECS_CLIENT_ID", "CORTECS_CLIENT_SECRET"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CORTECS_CONFIG_FILE", str(file))
    addresses = []
    for client_id in ("a", "b"):
        file.write_text(f'[profiles.default]\nclient_id = "{client_id}"\nclient_secret = "s"\n')
        file.chmod(0o600)
        await shared._check()
        file.write_text("[[[")
        addresses.append(shared._meeting_point.address)
    assert addresses[0] != addresses[1]


def test_which_processes_share(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(*args: str, **options: float) -> Path:
        return SharedInstance(MODEL, *args, **options)._meeting_point.address  # type: ignore[arg-type]

    monkeypatch.setenv("CORTECS_CLIENT_ID", "id")
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret")
    same = place(HARDWARE, max_cost=5)
    assert place(HARDWARE, max_cost=5) == same
    # A secret that was read from a file may end with a line break, which the client removes.
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "secret\n")
    assert place(HARDWARE, max_cost=5) == same
    apart = [
        *(place(HARDWARE), place(HARDWARE, max_cost=6)),
        SharedInstance(MODEL, name="b")._meeting_point.address,
    ]
    # One after the other, so that each differs from all before it.
    for name, value in {
        "CORTECS_CLIENT_ID": "another",
        "CORTECS_CLIENT_SECRET": "rotated",
        "CORTECS_API_BASE_URL": "https://other.test/api/v1",
        "https_proxy": "http://user:password@proxy.test:3128",
        "SSL_CERT_FILE": "/etc/ca.pem",
    }.items():
        monkeypatch.setenv(name, value)
        apart.append(place(HARDWARE, max_cost=5))
    assert len({same, *apart}) == 9
