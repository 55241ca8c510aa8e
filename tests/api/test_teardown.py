"""Test `Teardown`: its requests, and when it concludes that an instance is gone."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, alternating, grid
from _world import HARDWARE, MODEL, World
from attrs import evolve

from cortecs_async import AsyncCortecs, TeardownError
from cortecs_async._api.domain import Instance, InstanceArgs, InstanceStatus
from cortecs_async._api.teardown import Action, Goal, ObservedState, Teardown, interpret, next_action
from cortecs_async.emulator import Emulator, Fault

# One moment in which the service does not know the instance: by its id and in the list.
BLIP = (Fault("omit", route="get"), Fault("omit", route="list"))

STOP_FAILS = {
    "500": Fault("status", route="stop", status=500),
    "drop": Fault("drop", route="stop"),
    "404": Fault("status", route="stop", status=404),
    "400": Fault("status", route="stop", status=400),
}


def teardown(
    client: AsyncCortecs, instance_id: str, goal: Goal = Goal.GONE, *, visible_at: float = -math.inf
) -> Teardown:
    return Teardown(
        instances=client._wiring._releasing,
        instance_id=instance_id,
        goal=goal,
        deadline=anyio.current_time() + 600,
        visible_at=visible_at,
    )


async def started(emu: Emulator, client: AsyncCortecs, *, age: float = 100.0) -> str:
    """Start an instance without HTTP, get a token, and return the id when the instance has this age."""
    instance_id = emu.start_instance(MODEL, HARDWARE)
    await client.user.balance()
    await anyio.sleep(age)
    return instance_id


async def run(emu: Emulator, work: Teardown) -> list[tuple[float, str | None]]:
    """Run a teardown, and return its requests with the seconds until each."""
    before, began = len(emu.requests), anyio.current_time()
    await work.run()
    return [(round(each.at - began, 3), each.route) for each in emu.requests[before:]]


@pytest.mark.parametrize(
    ("state", "gone", "stopped"),
    [
        (ObservedState.LIVE, Action.STOP, Action.STOP),
        (ObservedState.UNCONFIRMED, Action.STOP, Action.STOP),
        (ObservedState.STOPPING, Action.AWAIT_STOP, Action.AWAIT_STOP),
        (ObservedState.STOPPED, Action.DELETE, Action.NOTHING),
        (ObservedState.DELETED, Action.VERIFY, Action.VERIFY),
        (ObservedState.GONE, Action.NOTHING, Action.NOTHING),
        (ObservedState.UNSURE, Action.READ, Action.READ),
    ],
)
def test_the_next_action(state: ObservedState, gone: Action, stopped: Action) -> None:
    assert next_action(Goal.GONE, state) is gone
    assert next_action(Goal.STOPPED, state) is stopped


# --- one reading proves nothing -----------------------------------------------------------------------------


@grid(strength=1, fails=STOP_FAILS, anyio_backend=BACKENDS)
async def test_one_moment_without_the_instance_concludes_nothing(world: World, fails: str) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        for fault in (STOP_FAILS[fails], *BLIP):
            emu.add_fault(fault)
        work = teardown(client, instance_id)
        assert await run(emu, work) == [
            (0.0, "stop"),
            (0.0, "get"),
            (0.0, "list"),
            (5.0, "stop"),
            (5.0, "delete"),
            (5.0, "list"),
        ]
        assert work.delete_accepted
        assert emu.existing == ()
        assert emu.unmet_faults == ()


@grid(strength=1, fails=STOP_FAILS, anyio_backend=BACKENDS)
async def test_one_moment_without_the_instance_does_not_count_as_stopped(world: World, fails: str) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        for fault in (STOP_FAILS[fails], *BLIP):
            emu.add_fault(fault)
        work = teardown(client, instance_id, Goal.STOPPED)
        requests = await run(emu, work)
        assert requests == [(0.0, "stop"), (0.0, "get"), (0.0, "list"), (5.0, "stop"), (5.0, "get")]
        assert work.state is ObservedState.STOPPED
        assert emu.existing == (instance_id,)
        assert emu.billing == ()


async def test_two_moments_without_it_conclude_nothing_if_the_stop_between_them_works(world: World) -> None:
    async with world(stop_seconds=3.0) as (emu, client):
        instance_id = await started(emu, client)
        for fault in (STOP_FAILS["drop"], *BLIP, *BLIP):
            emu.add_fault(fault)
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()
        assert emu.unmet_faults == ()


async def test_a_reading_that_shows_it_begins_the_wait_again(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="stop", status=500, times=3))
        # Missing, then there, then missing.
        for fault in (*BLIP, Fault("omit", route="get", skip=2), Fault("omit", route="list")):
            emu.add_fault(fault)
        work = teardown(client, instance_id)
        requests = await run(emu, work)
        assert [route for _, route in requests] == [
            *("stop", "get", "list"),
            *("stop", "get"),
            *("stop", "get", "list"),
            *("stop", "delete", "list"),
        ]
        assert work.delete_accepted
        assert emu.existing == ()


async def test_an_error_of_the_stop_in_between_is_no_second_opinion(world: World) -> None:
    """The service fails on every stop, and no reading shows the instance, which may be a failure too."""
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="stop", status=500, times=None))
        emu.add_fault(Fault("omit", route="get", times=None))
        emu.add_fault(Fault("omit", route="list", times=None))
        work = teardown(client, instance_id)
        began = anyio.current_time()
        with pytest.raises(TeardownError, match="MAY STILL BE BILLED"):
            await work.run()
        assert anyio.current_time() - began == 600
        # Once the service works again, the same teardown goes on.
        emu.clear_faults()
        work.deadline += 60
        await work.run()
        assert emu.existing == ()


# --- gone already -------------------------------------------------------------------------------------------


@grid(strength=1, unknown_status=[400, 404], goal=Goal, anyio_backend=BACKENDS)
async def test_one_that_is_gone_takes_two_readings_and_a_second_stop(
    world: World, unknown_status: int, goal: Goal
) -> None:
    async with world(unknown_status=unknown_status) as (emu, client):
        instance_id = await started(emu, client)
        emu.delete_instance(instance_id)
        work = teardown(client, instance_id, goal)
        assert await run(emu, work) == [
            (0.0, "stop"),
            (0.0, "get"),
            (0.0, "list"),
            (5.0, "stop"),
            (5.0, "get"),
            (5.0, "list"),
        ]
        assert work.state is ObservedState.GONE
        assert not work.has_acted


async def test_one_that_another_deletes_in_between_is_gone_after_a_minute(world: World) -> None:
    async with world(stop_seconds=3.0) as (emu, client):
        instance_id = await started(emu, client)
        async with anyio.create_task_group() as tasks:

            async def meddle() -> None:
                await anyio.sleep(1.2)
                emu.delete_instance(instance_id)

            tasks.start_soon(meddle)
            work = teardown(client, instance_id)
            requests = await run(emu, work)
        assert work.state is ObservedState.GONE
        assert not work.delete_accepted
        # After the accepted stop, one reading without it leads to a delete, whose refusal proves nothing. It
        # existed when it was stopped, so it may only not be visible.
        assert requests == [
            *((0.0, "stop"), (0.0, "get"), (0.5, "get"), (1.0, "get"), (1.5, "get"), (1.5, "list")),
            *((1.5 + pause, route) for pause in range(0, 65, 5) for route in ("delete", "get", "list")),
        ]


@alternating("stop_seconds", [8.0, 14.0, 50.0])
async def test_one_that_stops_slowly_is_not_gone_because_no_reading_shows_it(
    world: World, stop_seconds: float
) -> None:
    """While it stops, deletes are refused."""
    async with world(stop_seconds=stop_seconds) as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("omit", route="get", times=None))
        emu.add_fault(Fault("omit", route="list", times=None))
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()


async def test_a_response_that_cannot_be_read_does_not_count_as_missing(world: World) -> None:
    async with world(hide_stopped=True) as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("drop", route="stop", when="after"))
        emu.add_fault(Fault("garbage", route="get", times=8))
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()


async def test_one_that_was_not_stopped_yet_and_is_hidden_then_is_deleted(world: World) -> None:
    async with world(
        step_seconds=0.0, stop_seconds=1.3, list_lag=(0.0, 3.0), get_lag=15.0, hide_stopped=True
    ) as (emu, client):
        instance_id = emu.start_instance(MODEL, HARDWARE)
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()


# --- lost answers -------------------------------------------------------------------------------------------


@grid(strength=1, fault=["drop", "status"], anyio_backend=BACKENDS)
async def test_a_delete_whose_answer_is_lost_is_not_taken_for_done(world: World, fault: Any) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault(fault, route="delete", when="after"))
        work = teardown(client, instance_id)
        assert await run(emu, work) == [
            (0.0, "stop"),
            (0.0, "delete"),
            (0.0, "get"),
            (0.0, "list"),
            (5.0, "delete"),
            (5.0, "get"),
            (5.0, "list"),
        ]
        assert not work.delete_accepted
        assert emu.existing == ()


@grid(strength=1, fault=["drop", "status"], anyio_backend=BACKENDS)
async def test_a_delete_that_never_arrived_is_sent_again_although_nothing_shows_the_instance(
    world: World, fault: Any
) -> None:
    async with world(hide_stopped=True) as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault(fault, route="delete"))
        emu.add_fault(Fault("omit", route="get", times=None))
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()


@grid(strength=1, fault=["drop", "status"], anyio_backend=BACKENDS)
async def test_a_delete_that_never_arrived_is_sent_again(world: World, fault: Any) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault(fault, route="delete"))
        work = teardown(client, instance_id)
        assert await run(emu, work) == [
            (0.0, "stop"),
            (0.0, "delete"),
            (0.0, "get"),
            (0.0, "delete"),
            (0.0, "list"),
        ]
        assert emu.existing == ()


async def test_a_lost_delete_and_a_moment_without_it_delete_it_after_all(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        for fault in (Fault("drop", route="delete"), *BLIP):
            emu.add_fault(fault)
        work = teardown(client, instance_id)
        await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()
        assert emu.unmet_faults == ()


async def test_an_accepted_delete_is_confirmed_by_one_list(world: World) -> None:
    async with world() as (emu, client):
        work = teardown(client, await started(emu, client))
        assert await run(emu, work) == [(0.0, "stop"), (0.0, "delete"), (0.0, "list")]
        assert work.delete_accepted


async def test_an_accepted_delete_is_waited_for_while_it_is_listed(world: World) -> None:
    async with world(list_lag=4.0) as (emu, client):
        work = teardown(client, await started(emu, client))
        requests = await run(emu, work)
        assert [route for _, route in requests[:2]] == ["stop", "delete"]
        assert {route for _, route in requests[2:]} == {"list"}
        assert 4.0 <= requests[-1][0] <= 4.5


# --- readings that lag --------------------------------------------------------------------------------------

LAGS: dict[str, dict[str, Any]] = {
    "fresh first": {"list_lag": (0, 15), "get_lag": (0, 15)},
    "late first": {"list_lag": (15, 0), "get_lag": (15, 0)},
    "one late of three": {"list_lag": (0, 0, 15), "get_lag": (0, 15, 0)},
    "all late": {"list_lag": 15, "get_lag": 15},
}


@grid(lags=LAGS, age=[0.0, 5.0, 14.0, 100.0], stop=[None, "404", "500"], anyio_backend=BACKENDS)
async def test_replicas_that_lag_leave_nothing(world: World, lags: str, age: float, stop: str | None) -> None:
    async with world(**LAGS[lags], stop_seconds=2.0) as (emu, client):
        instance_id = await started(emu, client, age=age)
        if stop is not None:
            emu.add_fault(Fault("status", route="stop", status=int(stop), times=4))
        work = teardown(client, instance_id, visible_at=anyio.current_time() - age + 60.0)
        began = anyio.current_time()
        await work.run()
        assert work.delete_accepted
        assert emu.existing == ()
        assert anyio.current_time() - began <= 75.0


@alternating("status", [404, 400, 409])
async def test_a_young_instance_is_not_gone_before_it_must_be_visible(world: World, status: int) -> None:
    """No list, no get and no stop knows it for 55 s after its start. It runs all the time."""
    async with world(list_lag=(15,), get_lag=(15,)) as (emu, client):
        instance_id = await started(emu, client, age=0.0)
        emu.add_fault(Fault("status", route="stop", status=status, times=None))
        emu.add_fault(Fault("omit", route="get", times=None))
        emu.add_fault(Fault("omit", route="list", times=None))
        work = teardown(client, instance_id, visible_at=60.0)
        async with anyio.create_task_group() as tasks:

            async def appear() -> None:
                await anyio.sleep(55.0)
                assert work.state is not ObservedState.GONE
                assert instance_id in emu.billing
                emu.clear_faults()

            tasks.start_soon(appear)
            requests = await run(emu, work)
        assert work.delete_accepted
        assert emu.existing == ()
        assert requests[-1][0] > 55.0


@grid(strength=1, goal=Goal, age=[0.0, 20.0, 58.0], anyio_backend=BACKENDS)
async def test_a_young_instance_that_is_gone_is_so_when_it_must_be_visible(
    world: World, goal: Goal, age: float
) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client, age=age)
        emu.delete_instance(instance_id)
        work = teardown(client, instance_id, goal, visible_at=60.0)
        requests = await run(emu, work)
        assert work.state is ObservedState.GONE
        assert 60.0 <= anyio.current_time() <= 71.0
        # It is stopped again after each reading without it.
        routes = [route for _, route in requests]
        assert routes == ["stop", "get", "list"] * (len(routes) // 3)


# --- the goal "stopped" -------------------------------------------------------------------------------------


async def test_a_stop_is_read_back(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        work = teardown(client, instance_id, Goal.STOPPED)
        assert await run(emu, work) == [(0.0, "stop"), (0.0, "get")]
        assert work.state is ObservedState.STOPPED


async def test_an_accepted_stop_and_readings_without_it_end_as_missing(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("omit", route="get"))
        emu.add_fault(Fault("omit", route="list"))
        work = teardown(client, instance_id, Goal.STOPPED)
        requests = await run(emu, work)
        # Neither the accepted stop nor one reading is enough: it is stopped again, refused, and read.
        assert [route for _, route in requests] == ["stop", "get", "list", "stop", "get"]
        assert work.state is ObservedState.STOPPED
        assert emu.existing == (instance_id,)
        assert emu.billing == ()


@grid(strength=1, lag=[3.0, (0, 30), (30, 0)], fault=["drop", "503"], anyio_backend=BACKENDS)
async def test_a_reading_of_before_a_restart_does_not_count_as_stopped(
    world: World, lag: Any, fault: str
) -> None:
    async with world(get_lag=lag, list_lag=lag) as (emu, client):
        instance_id = await started(emu, client)
        emu.stop_instance(instance_id)
        await anyio.sleep(100.0)
        emu.restart_instance(instance_id)
        failure = (
            Fault("drop", route="stop") if fault == "drop" else Fault("status", route="stop", status=503)
        )
        emu.add_fault(failure)
        work = teardown(client, instance_id, Goal.STOPPED)
        await run(emu, work)
        assert work.stopped_at is not None
        assert emu.billing == ()
        assert emu.existing == (instance_id,)


async def test_stops_that_are_accepted_and_readings_without_it_are_no_storm(world: World) -> None:
    """Every stop is accepted, also of a stopped instance, and nothing shows a stopped one."""
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        stopped = {"instance_id": instance_id, "instance_status": {"status": "stopped"}}
        stopped["instance_args"] = {"model_id": MODEL.replace("/", "--")}
        body = {"message": "ok", "instance": stopped}
        emu.add_fault(Fault("status", route="stop", status=200, body=body, skip=1, times=None))
        emu.add_fault(Fault("omit", times=None))
        work = teardown(client, instance_id, Goal.STOPPED)
        requests = await run(emu, work)
        assert work.state in {ObservedState.STOPPED, ObservedState.GONE}
        assert len(requests) <= 8
        assert requests[-1][0] <= 6.0
        assert emu.billing == ()


# --- other words, and entries that cannot be read -----------------------------------------------------------


async def test_another_word_for_stopped_does_not_prevent_the_delete(world: World) -> None:
    async with world(status_words={"stopped": "offline"}) as (emu, client):
        work = teardown(client, await started(emu, client))
        requests = await run(emu, work)
        assert work.delete_accepted
        assert requests[-1][0] <= 15.0
        assert emu.existing == ()


@grid(strength=1, shows_list=[False, True], stop_seconds=[0.0, 3.0], anyio_backend=BACKENDS)
async def test_an_instance_that_cannot_be_read_is_deleted(
    world: World, stop_seconds: float, *, shows_list: bool
) -> None:
    """The first delete is rejected, because the stop takes a moment."""
    async with world(stop_seconds=stop_seconds) as (emu, client):
        instance_id = await started(emu, client)
        odd = {"instance_id": instance_id, "instance_args": None, "instance_status": {"status": "running"}}
        for route in ("get", "stop"):
            emu.add_fault(Fault("garbage", route=route, body={"instance": odd}, times=None))
        if not shows_list:
            emu.add_fault(Fault("garbage", route="list", body={"instances": [odd]}, times=3))
        work = teardown(client, instance_id)
        requests = await run(emu, work)
        assert work.delete_accepted
        assert requests[-1][0] <= 30.0
        assert emu.existing == ()


# --- a whole lease ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 5.0, 100.0])
async def test_a_delete_whose_answer_is_lost_needs_no_minute_if_a_reading_has_shown_the_instance(
    world: World, seconds: float
) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(seconds)
            emu.add_fault(Fault("drop", route="delete", when="after"))
            began = anyio.current_time()
        assert anyio.current_time() - began == 5.0
        assert emu.existing == ()


# --- pauses, and statuses in other words --------------------------------------------------------------------


async def test_the_pauses_begin_again_after_a_success(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="stop", status=500, times=4))
        emu.add_fault(Fault("status", route="delete", status=500, times=2))
        requests = await run(emu, teardown(client, instance_id))
        times = {route: [at for at, each in requests if each == route] for route in ("stop", "delete")}
        pauses = {route: [b - a for a, b in pairwise(at)] for route, at in times.items()}
        assert pauses["stop"] == pytest.approx([0.0, 0.5, 1.0, 2.0])
        assert pauses["delete"] == pytest.approx([0.5, 1.0])


async def test_the_pauses_of_an_action_begin_again_after_its_own_success(world: World) -> None:
    async with world() as (emu, client), anyio.create_task_group() as tasks:
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="stop", status=500, times=4))
        emu.add_fault(Fault("status", route="delete", status=500, times=2))

        async def restart() -> None:
            while not any(each.route == "delete" for each in emu.requests):  # noqa: ASYNC110
                await anyio.sleep(0.01)
            emu.restart_instance(instance_id)  # as a colleague may
            emu.add_fault(Fault("status", route="stop", status=500, times=2))

        tasks.start_soon(restart)
        requests = await run(emu, teardown(client, instance_id))
        stops = [at for at, route in requests if route == "stop"]
        pauses = [round(b - a, 1) for a, b in pairwise(stops)]
        assert pauses[:4] == [0.0, 0.5, 1.0, 2.0]
        assert pauses[5:7] == [0.5, 1.0]


async def test_the_pauses_do_not_begin_again_because_a_reading_succeeds(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="delete", status=500, times=5))
        requests = await run(emu, teardown(client, instance_id))
        deletes = [at for at, route in requests if route == "delete"]
        assert [b - a for a, b in pairwise(deletes)] == pytest.approx([0.0, 0.5, 1.0, 2.0, 4.0])


async def test_a_429_is_no_failure(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        for route in ("stop", "delete", "list"):
            emu.add_fault(Fault("status", route=route, status=429, times=4))
        requests = await run(emu, teardown(client, instance_id))
        # Nothing was done, so nothing is read.
        assert [route for _, route in requests] == ["stop"] * 5 + ["delete"] * 5 + ["list"] * 5
        assert requests[-1][0] < 12.0
        assert emu.existing == ()


async def test_a_429_says_how_long_to_wait(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        emu.add_fault(Fault("status", route="stop", status=429, headers={"retry-after": "20"}))
        requests = await run(emu, teardown(client, instance_id))
        assert [at for at, route in requests if route == "stop"] == [0.0, 20.0]


def say_instead(emu: Emulator, word: str) -> None:
    """Let the service have another word for "stopped"."""
    exchange = emu.exchange

    async def reworded(call: Any) -> Any:
        delivery = await exchange(call)
        assert delivery is not None
        body = delivery.response.body.replace(b'"stopped"', json.dumps(word).encode())
        return evolve(delivery, response=evolve(delivery.response, body=body))

    emu.exchange = reworded  # type: ignore[method-assign]


@grid(
    strength=1,
    word=["offline", "Deallocated", "0", "läuft nicht"],
    is_stopped=[False, True],
    anyio_backend=BACKENDS,
)
async def test_after_a_stop_an_unknown_status_does_not_block_the_delete(
    world: World, word: str, *, is_stopped: bool
) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        if is_stopped:
            await client.instances.stop(instance_id)  # so that the next stop is refused
        say_instead(emu, word)
        began = anyio.current_time()
        await run(emu, teardown(client, instance_id))
        assert emu.existing == ()
        assert anyio.current_time() - began < 3.0


async def test_an_unknown_status_does_not_count_as_stopped_without_a_delete(world: World) -> None:
    async with world() as (emu, client):
        instance_id = await started(emu, client)
        say_instead(emu, "offline")
        with pytest.raises(TeardownError):
            await teardown(client, instance_id, Goal.STOPPED).run()


@pytest.mark.parametrize("status", ["running", "Pending", "stopping"])
def test_a_status_that_says_that_it_is_not_stopped(status: str) -> None:
    instance = Instance(
        instance_id="i-1",
        instance_args=InstanceArgs(model_id="a--b"),
        instance_status=InstanceStatus(status=status),
    )
    assert interpret(instance, Goal.GONE, stop_refused=True) is ObservedState.STOPPING
