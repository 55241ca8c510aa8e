"""Test that attempts that are repeated in any case get little time at first, and then more."""

from __future__ import annotations

import anyio
import pytest
from _evidence import applying, reap
from _grids import BACKENDS, grid
from _promises import BASELINE, OWNER, created, intent, state_of
from _world import HARDWARE, MODEL, World, emulated_wall_clock

from cortecs_async._http.limiter import Priority
from cortecs_async._http.messages import Call, Failure, FailureKind, Reply
from cortecs_async._http.timeouts import FIRST_TIMEOUT, AttemptTimeouts
from cortecs_async.emulator import Emulator, Fault

HANG = 100.0
"""Longer than any timeout."""


def stop(instance_id: str) -> Call:
    body = {"instance_id": instance_id}
    return Call(method="POST", path="/instances/stop", json=body, retried=False, priority=Priority.RELEASE)


def record(timeouts: AttemptTimeouts, call: Call, *, seconds: float | None) -> None:
    """Record an attempt that took so many seconds; None for one that timed out."""
    if seconds is None:
        timeout = timeouts.next(call, 30.0)
        timeouts.record(call, Failure(kind=FailureKind.TIMED_OUT), timeout=timeout, seconds=timeout)
    else:
        timeouts.record(call, Reply(call=call, status=200, data={}), timeout=30.0, seconds=seconds)


def test_each_timeout_doubles_the_next_one_up_to_the_limit() -> None:
    timeouts, given = AttemptTimeouts(), []
    for _ in range(6):
        given.append(timeouts.next(stop("i-1"), 30.0))
        record(timeouts, stop("i-1"), seconds=None)
    assert given == [3.0, 6.0, 12.0, 24.0, 30.0, 30.0]


def test_a_quick_response_starts_again_and_a_slow_one_gets_twice_its_time() -> None:
    timeouts = AttemptTimeouts()
    for _ in range(3):
        record(timeouts, stop("i-1"), seconds=None)
    record(timeouts, stop("i-1"), seconds=5.0)
    assert timeouts.next(stop("i-1"), 30.0) == 10.0
    record(timeouts, stop("i-1"), seconds=0.1)
    assert timeouts.next(stop("i-1"), 30.0) == FIRST_TIMEOUT


def test_quick_responses_for_other_instances_change_nothing() -> None:
    timeouts = AttemptTimeouts()
    record(timeouts, stop("i-1"), seconds=None)
    record(timeouts, stop("i-2"), seconds=0.1)
    assert timeouts.next(stop("i-1"), 30.0) == 6.0


def test_a_shorter_timeout_of_the_user_holds() -> None:
    assert AttemptTimeouts().next(stop("i-1"), 1.0) == 1.0


async def test_the_attempts_of_a_release_get_three_six_and_twelve_seconds(world: World) -> None:
    async with world() as (emu, client):
        async with client.instance(MODEL, HARDWARE):
            emu.add_fault(Fault("delay", route="stop", seconds=HANG, times=3))
            began = anyio.current_time()
        stops = [each.at - began for each in emu.requests if each.route == "stop"]
        # The pauses between them: none, and then 0.5 s.
        assert stops == pytest.approx([0.0, 3.0, 9.5, 22.5], abs=0.1)
        assert emu.existing == ()


async def test_a_token_request_that_is_always_slow_still_gets_the_time_that_it_needs(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("delay", route="token", seconds=20.0, times=None))
        await client.instances.list()
        # 3, 6, 12 and 24 seconds
        assert [each.route for each in emu.requests] == ["token"] * 4 + ["list"]


async def kill_and_reap(emu: Emulator) -> float:
    """Let a reaper release an instance, and return the seconds until it is gone."""
    mine = emu.start_instance(MODEL, HARDWARE)
    await anyio.sleep(100.0)
    record = created(api=emu.api_base_url, at=emulated_wall_clock() - 100.0, instance_id=mine)
    state = state_of(OWNER, record, {"kind": "SEEN", "entry": "e1"})
    began = anyio.current_time()
    await reap(emu, state, list(state.promises.values()), applying(state), None)
    assert state.promises == {}
    assert emu.existing == ()
    return max(entry.deleted_at or 0.0 for entry in emu.ledger) - began


@grid(
    strength=1,
    route=["token", "stop", "delete", "list", "get", None],
    when=["before", "after"],
    anyio_backend=BACKENDS,
)
async def test_the_reaper_is_done_within_ten_seconds_although_a_request_hangs(
    world: World, route: str | None, when: str
) -> None:
    async with world() as (emu, _):
        emu.add_fault(Fault("delay", route=route, when=when, seconds=HANG))  # type: ignore[arg-type]
        assert await kill_and_reap(emu) < 8.0


async def test_the_reaper_finds_a_lost_start_in_time_although_a_list_hangs(world: World) -> None:
    async with world() as (emu, _):
        emu.add_fault(Fault("delay", route="list", seconds=HANG))
        now = emulated_wall_clock()
        state = state_of(OWNER, BASELINE, intent(api=emu.api_base_url, at=now))
        emu.start_instance(MODEL, HARDWARE)
        began = anyio.current_time()
        await reap(emu, state, list(state.promises.values()), applying(state), None)
        assert emu.existing == ()
        # Seven of them are the rule for such a search.
        assert anyio.current_time() - began < 7.0 + 3.0 + 5.0
