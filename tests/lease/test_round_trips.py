"""Test which requests a lease sends over a slow link, in which order, and what waits for them.

On virtual time every request takes exactly one round trip, and everything else takes none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from _reapers import StubReaper, stub_reapers
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.emulator._routing import ROUTES

ROUND_TRIP = 0.15

READY_AFTER = 2.0
"""Seconds from the arrival of a start request at the service until its instance is running."""

NEEDED = ["token", "list", "start", "stop", "delete", "list"]
"""The requests of a lease, without the price list for its receipt, and the polls while it starts."""


class Link:
    """Makes every request to an emulator take a round trip, and notes when requests leave the client."""

    def __init__(self, emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent: list[tuple[float, str]] = []
        self.emulator = emulator
        self._exchange = emulator.exchange
        self._began = anyio.current_time()
        monkeypatch.setattr(emulator, "exchange", self._pass)

    async def _pass(self, request: Any) -> Any:
        routes = (each for each in ROUTES if each.method == request.method)
        name = next(each.name for each in routes if each.pattern.match(request.path))
        self.sent.append((self.now(), name))
        await anyio.sleep(ROUND_TRIP / 2)
        delivery = await self._exchange(request)
        await anyio.sleep(ROUND_TRIP / 2)
        return delivery

    def now(self) -> float:
        """Return the round trips since the link was made."""
        return (anyio.current_time() - self._began) / ROUND_TRIP

    def routes(self) -> list[str]:
        """Return the routes of all requests, in order."""
        return [route for _, route in self.sent]

    def times(self, *routes: str) -> list[float]:
        """Return when the requests on these routes were sent, in round trips."""
        return [at for at, route in self.sent if route in routes]


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


@pytest.fixture
def far(world: World, journals: Path, reapers: list[StubReaper], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open a client with a reaper and a journal, at the other end of a link from its emulator."""

    @asynccontextmanager
    async def opened(**options: Any) -> AsyncIterator[tuple[Link, AsyncCortecs]]:
        defaults = {"journal": "required", "guard": "required", "num_steps": 2, "step_seconds": READY_AFTER}
        async with world(**{**defaults, **options}) as (emulator, client):
            assert client._wiring.promises.uses_reaper  # which exists from here on
            yield Link(emulator, monkeypatch), client

    return opened


async def test_one_lease_sends_only_the_requests_that_it_needs(far: Any) -> None:
    async with far() as (link, client), client.instance(MODEL, HARDWARE):
        pass
    assert [each for each in link.routes() if each not in {"get", "hardware_types"}] == NEEDED
    # For the receipt, once per client.
    assert link.routes().count("hardware_types") == 1
    # One poll every half second, the last of which finds the instance running.
    polls = link.times("get")
    assert len(polls) == 4
    assert link.routes()[4:8] == ["get"] * 4


async def test_a_lease_waits_for_no_more_than_the_round_trips_that_depend_on_each_other(far: Any) -> None:
    async with far() as (link, client):
        async with client.instance(MODEL, HARDWARE):
            # The block begins with the answer that shows the instance running.
            assert link.now() == pytest.approx(link.times("get")[-1] + 1)
            left_at = link.now()
        # Stop, delete, and the list that confirms it. The result is out with its answer.
        assert link.now() == pytest.approx(left_at + 3)
        released_at = link.now()
    # Closing the client sends nothing.
    assert link.now() == released_at
    # The token, the baseline, then the start.
    assert link.times("token", "list", "start")[:3] == pytest.approx([0, 1, 2])


async def test_ten_leases_wait_for_no_more_round_trips_than_one(far: Any) -> None:
    async with far() as (link, client):

        async def lease() -> None:
            async with client.instance(MODEL, HARDWARE):
                pass

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(lease)
    assert link.times("start") == pytest.approx([2] * 10)
    assert link.routes().count("token") == 1
    stops, deletes = link.times("stop"), link.times("delete")
    assert deletes == pytest.approx([each + 1 for each in stops])
    # One list confirms all of them.
    assert sum(at > max(deletes) for at in link.times("list")) == 1
    assert link.now() == pytest.approx(max(deletes) + 2)


@pytest.mark.parametrize("round_trips", [0.5, 1.9, 2.5])
async def test_the_reaper_connects_while_the_first_requests_are_on_their_way(
    far: Any, reapers: list[StubReaper], round_trips: float
) -> None:
    async with far() as (link, client), anyio.create_task_group() as tasks:
        reapers[-1].outcomes.append(None)

        async def rehearse() -> None:
            # It has its credentials as soon as the token is requested.
            while "ARM" not in reapers[-1].kinds:
                await anyio.lowlevel.checkpoint()
            assert link.now() == 0
            await anyio.sleep(round_trips * ROUND_TRIP)
            reapers[-1].rehearse(client._wiring.promises.account, "")

        tasks.start_soon(rehearse)
        async with client.instance(MODEL, HARDWARE):
            assert link.times("start") == pytest.approx([max(2, round_trips)])


async def test_the_price_list_for_a_receipt_delays_nothing(far: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def times_with(seconds: float) -> list[tuple[float, str]]:
        async with far() as (link, client):
            link.emulator.add_fault(Fault("delay", route="hardware_types", seconds=seconds))
            async with client.instance(MODEL, HARDWARE):
                pass
        return [each for each in link.sent if each[1] != "hardware_types"]

    near, hanging = await times_with(0), await times_with(9)
    assert [route for _, route in near] == [route for _, route in hanging]
    assert [at for at, _ in near] == pytest.approx([at for at, _ in hanging])


async def test_a_limit_costs_the_round_trip_of_the_price_list(far: Any) -> None:
    async with far() as (link, client), client.instance(MODEL, HARDWARE, max_cost=9):
        pass
    assert link.times("hardware_types", "token", "list", "start")[:4] == pytest.approx([0, 1, 2, 3])
    assert link.routes().count("hardware_types") == 1
