"""Test sharing one call, waking all waiting tasks, locks, and growing pauses."""

from __future__ import annotations

import asyncio
import types
from collections.abc import Generator

import anyio
import pytest

from cortecs_async._aio.synchronization import (
    Backoff,
    Broadcast,
    Mutex,
    SingleFlight,
    ThreadBroadcast,
    exponential,
)
from cortecs_async._errors import CortecsError


@types.coroutine
def pause() -> Generator[None, None, None]:
    yield


async def run_together(flight: SingleFlight[int], tasks: int, **options: float) -> list[int | Exception]:
    results: list[int | Exception] = []

    async def one() -> None:
        try:
            results.append(await flight.get(**options))
        except (CortecsError, ValueError) as error:
            results.append(error)

    async with anyio.create_task_group() as group:
        for _ in range(tasks):
            group.start_soon(one)
    return results


async def test_tasks_at_the_same_time_share_one_call() -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await anyio.sleep(1)
        return calls

    flight = SingleFlight(call)
    assert await run_together(flight, 5) == [1] * 5
    assert await run_together(flight, 5) == [2] * 5


@pytest.mark.parametrize("error", [CortecsError("no"), ValueError("no")])
async def test_every_task_gets_the_error_and_the_next_one_calls_again(error: Exception) -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await anyio.sleep(1)
        if calls == 1:
            raise error
        return calls

    flight = SingleFlight(call)
    raised = await run_together(flight, 3)
    assert {type(each) for each in raised} == {type(error)}
    assert len(set(map(id, raised))) == (3 if isinstance(error, CortecsError) else 1)
    assert await flight.get() == 2


async def test_a_call_whose_task_is_cancelled_is_made_by_the_next_task() -> None:
    calls = 0

    async def call() -> int:
        nonlocal calls
        calls += 1
        await anyio.sleep(2)
        return calls

    flight = SingleFlight(call)
    results: list[int | Exception] = []

    async def others() -> None:
        results.extend(await run_together(flight, 3))

    async with anyio.create_task_group() as group:
        with anyio.move_on_after(1):
            group.start_soon(others)
            await flight.get()
    assert results == [2, 2, 2]


async def test_a_call_that_began_too_early_is_not_accepted() -> None:
    began: list[float] = []

    async def call() -> int:
        began.append(anyio.current_time())
        await anyio.sleep(2)
        return len(began)

    flight = SingleFlight(call)
    async with anyio.create_task_group() as group:
        group.start_soon(flight.get)
        await anyio.sleep(1)
        now = anyio.current_time()
        assert await run_together(flight, 2, since=now) == [2, 2]
    assert began[1] >= now


async def test_a_broadcast_wakes_all_that_wait_and_none_that_come_later() -> None:
    broadcast = Broadcast()
    woken: list[int] = []

    async def wait(number: int) -> None:
        await broadcast.wait()
        woken.append(number)

    async with anyio.create_task_group() as group:
        group.start_soon(wait, 1)
        group.start_soon(wait, 2)
        await anyio.sleep(1)
        broadcast.notify()
        group.start_soon(wait, 3)
        await anyio.sleep(1)
        assert sorted(woken) == [1, 2]
        broadcast.notify()
    assert sorted(woken) == [1, 2, 3]


async def test_a_task_waits_until_its_condition_is_true_and_checks_it_once_per_notification() -> None:
    broadcast, checks = ThreadBroadcast(), []

    def is_met() -> bool:
        checks.append(anyio.current_time())
        return len(checks) == 3

    async with anyio.create_task_group() as group:
        group.start_soon(broadcast.wait_for, is_met)
        began = anyio.current_time()
        for _ in range(2):
            await anyio.sleep(1)
            broadcast.notify()
    assert [each - began for each in checks] == [0, 1, 2]


async def test_a_notification_during_the_check_is_not_missed() -> None:
    broadcast = ThreadBroadcast()
    checks: list[int] = []

    def is_met() -> bool:
        checks.append(len(checks))
        broadcast.notify()  # as by another thread
        return len(checks) == 2

    await broadcast.wait_for(is_met)
    assert checks == [0, 1]


def test_a_notification_ignores_an_event_loop_that_has_ended() -> None:
    broadcast, loop = ThreadBroadcast(), asyncio.new_event_loop()
    task = loop.create_task(broadcast.wait_for(lambda: False))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    broadcast.notify()
    task._log_destroy_pending = False  # type: ignore[attr-defined]  # this is what the test is about


async def test_a_closed_coroutine_releases_its_mutex() -> None:
    mutex = Mutex()

    async def hold() -> None:
        async with mutex:
            await pause()

    holder = hold()
    holder.send(None)
    waiter = hold()
    waiter.send(None)
    waiter.close()
    with anyio.move_on_after(1) as scope:
        async with mutex:
            pytest.fail("two hold it")
    assert scope.cancelled_caught
    holder.close()
    async with mutex:
        pass


def test_pauses_double_up_to_a_limit_and_start_again_after_a_success() -> None:
    backoff = Backoff(first=0.5, limit=3.0)
    assert [backoff.next() for _ in range(4)] == [0.5, 1.0, 2.0, 3.0]
    backoff.reset()
    assert backoff.next() == 0.5
    assert exponential(10**6, first=1.0, limit=7.0) == 7.0
