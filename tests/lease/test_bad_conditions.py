"""Test many leases in parallel, and a service that is slow, busy, or used by the caller for other things."""

from __future__ import annotations

from collections import Counter

import anyio
import httpx
import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, errors
from cortecs_async.emulator import Emulator, Fault


async def lease_many(client: AsyncCortecs, count: int) -> None:
    """Hold this many leases in parallel until the last instance is running."""
    running = 0
    all_run = anyio.Event()

    async def lease() -> None:
        nonlocal running
        async with client.instance(MODEL, HARDWARE):
            running += 1
            if running == count:
                all_run.set()
            await all_run.wait()

    async with anyio.create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(lease)


def routes(emu: Emulator) -> Counter[str | None]:
    return Counter(record.route for record in emu.requests)


async def test_many_leases_share_what_they_have_in_common(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        # Waits share the list that is under way, so answers must take a moment, as those of any network.
        emu.add_fault(Fault("delay", seconds=0.05, times=None))
        await lease_many(client, 50)
        asked = routes(emu)
        assert emu.existing == ()
    own = {"start": 50, "stop": 50, "delete": 50}
    assert {route: asked[route] for route in own} == own
    assert asked["token"] == 1
    assert asked["hardware_types"] == 1
    assert asked.total() <= 3.5 * 50


async def test_a_client_with_many_waits_asks_no_more_than_one_with_two(world: World) -> None:
    counts = []
    for waits in (2, 50):
        async with world(step_seconds=30.0) as (emu, client), anyio.create_task_group() as tasks:
            ids = [(await client.instances.start(MODEL, HARDWARE)).instance_id for _ in range(waits)]
            # So that nothing differs but the number of the waits.
            await anyio.sleep(max(0.0, 5.0 - anyio.current_time() % 5.0))
            before = routes(emu)["list"]
            for instance_id in ids:
                tasks.start_soon(client.instances.wait_until_running, instance_id)
            await anyio.sleep(100.0)
            counts.append(routes(emu)["list"] - before)
            assert routes(emu)["get"] <= 1  # of the first wait, before there was another
            tasks.cancel_scope.cancel()
    assert counts[0] == pytest.approx(counts[1], abs=2)


async def test_a_service_that_takes_two_seconds_for_every_answer(world: World) -> None:
    async with world(step_seconds=1.0, max_connections=5) as (emu, client):
        emu.add_fault(Fault("delay", times=None, seconds=2.0))
        began = anyio.current_time()
        await lease_many(client, 50)
        assert emu.existing == ()
        asked = routes(emu)
        taken = anyio.current_time() - began
    assert [asked[route] for route in ("start", "stop", "delete")] == [50, 50, 50]
    # 50 starts, four in parallel, and 100 requests for releases, five in parallel. Each takes two seconds.
    assert taken < 1.3 * (50 / 4 + 100 / 5) * 2.0


async def test_what_existed_is_not_noted_long_before_a_start_has_its_turn(world: World) -> None:
    async with (
        world(step_seconds=1.0, max_connections=1) as (emu, client),
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("delay", route="start", times=None, seconds=20.0))

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(1000.0)

        for _ in range(6):
            tasks.start_soon(lease)
        await anyio.sleep(500.0)
        requests = [(record.route, record.at) for record in emu.requests]
        tasks.cancel_scope.cancel()
    starts = [at for route, at in requests if route == "start"]
    assert len(starts) == 6
    # A list since the start before the last was sent: at most one other start lies between.
    for before_last, start in zip(starts, starts[2:], strict=False):
        assert any(before_last <= at <= start for route, at in requests if route == "list")
    assert emu.existing == ()


async def test_starts_in_a_stream_share_the_list_of_what_existed(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client), anyio.create_task_group() as tasks:

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(1000.0)

        for _ in range(50):
            tasks.start_soon(lease)
            await anyio.sleep(0.018)
        before_the_first_poll = [record.route for record in emu.requests]
        assert before_the_first_poll.count("start") == 50
        tasks.cancel_scope.cancel()
    # One for each second, and the polls of the waits.
    assert before_the_first_poll.count("list") <= 2 + 3


class EverySecondRefused(httpx.AsyncBaseTransport):
    """Responds with 429 to every second request to a route."""

    def __init__(self, inner: httpx.AsyncBaseTransport) -> None:
        self._inner = inner
        self._seen: Counter[str] = Counter()
        self.refused = 0

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        kind = f"{request.method} {request.url.path}"
        self._seen[kind] += 1
        if self._seen[kind] % 2:
            self.refused += 1
            return httpx.Response(429, headers={"Retry-After": "1"}, request=request)
        return await self._inner.handle_async_request(request)


async def test_a_service_that_answers_429_to_half_of_all(world: World) -> None:
    async with world(step_seconds=1.0) as (emu, client):
        transport = EverySecondRefused(emu.transport())
        client._wiring.http._transport.connections.pools[0].client._transport = transport
        await lease_many(client, 30)
        assert emu.existing == ()
        assert len(emu.ledger) == 30
    # One refusal for each start, stop and delete, and more for reads.
    assert transport.refused > 3 * 30


async def test_calls_of_the_user_that_hang_hold_up_neither_looks_nor_releases(world: World) -> None:
    async with (
        world(step_seconds=1.0, max_connections=10) as (emu, client),
        anyio.create_task_group() as tasks,
    ):
        emu.add_fault(Fault("delay", route="balance", times=None, seconds=1000.0))

        async def hang() -> None:
            with anyio.CancelScope(), pytest.raises(errors.RequestTimeoutError):
                await client.user.balance()

        async with client.instance(MODEL, HARDWARE) as inst:
            for _ in range(100):
                tasks.start_soon(hang)
            await anyio.sleep(1.0)
            began = anyio.current_time()
            await client.instances.wait_until_running(inst.instance_id)
            assert anyio.current_time() - began < 1.0
        assert anyio.current_time() - began < 2.0
        assert emu.existing == ()
        tasks.cancel_scope.cancel()
