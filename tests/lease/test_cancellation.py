"""Test that a lease leaves nothing behind, whenever and however it is cancelled. On virtual time.

The moments are a grid over the life of a lease whose requests all take time: the token, the start, the polls,
the body, the stop, the wait, the delete and its confirmation. `test_every_await.py` cancels at each await
instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import anyio
import pytest
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, Instance
from cortecs_async._api.instances import Instances
from cortecs_async.emulator import Emulator, Fault

Body = Callable[[], Coroutine[Any, Any, None]]
Way = Callable[[Body, float], Awaitable[None]]


# token 0-1, start 1-2, polls and 0.4 s of provisioning until about 4, body until about 7, stop, two looks,
# delete and list until about 14.
MOMENTS = [round(0.05 + 0.3 * number, 2) for number in range(50)]


async def anyio_scope(body: Body, after: float) -> None:
    with anyio.move_on_after(after):
        await body()


async def sibling(body: Body, after: float) -> None:
    async def fail() -> None:
        await anyio.sleep(after)
        raise ZeroDivisionError

    with pytest.raises(ExceptionGroup):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(body)
            tasks.start_soon(fail)


async def asyncio_timeout(body: Body, after: float) -> None:
    try:
        async with asyncio.timeout(after):
            await body()
    except TimeoutError:
        pass


def task_cancel(*pauses: float) -> Way:
    async def way(body: Body, after: float) -> None:
        task = asyncio.ensure_future(body())
        for pause in (after, *pauses):
            await asyncio.sleep(pause)
            task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            await task

    return way


WAYS: dict[str, Way] = {"anyio scope": anyio_scope, "failing sibling": sibling}
ASYNCIO: dict[str, Way] = {
    "asyncio.timeout": asyncio_timeout,
    "cancel once": task_cancel(),
    "cancel twice at once": task_cancel(0.0),
    "cancel twice": task_cancel(0.7),
    "cancel three times": task_cancel(0.7, 1.3),
}


def staggered(names: Iterable[str]) -> list[tuple[str, float]]:
    """Pair each way with ten moments, spread over the whole life. Five ways together cover all moments."""
    return [(name, after) for number, name in enumerate(names) for after in MOMENTS[number % 5 :: 5]]


async def cancelled_lease(world: World, way: Way, after: float) -> tuple[Emulator, bool]:
    async with world(step_seconds=0.1, stop_seconds=1.0) as (emu, client):
        emu.add_fault(Fault("delay", when="before", seconds=0.5, times=None))
        emu.add_fault(Fault("delay", when="after", seconds=0.5, times=None))
        finished = False

        async def body() -> None:
            nonlocal finished
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(3.0)
                finished = True

        start = anyio.current_time()
        await way(body, after)
        assert anyio.current_time() - start < 30
        return emu, finished


@pytest.mark.parametrize(("name", "after"), staggered(WAYS))
async def test_by_the_means_of_anyio(world: World, name: str, after: float) -> None:
    emu, _ = await cancelled_lease(world, WAYS[name], after)
    assert emu.existing == ()
    assert len(emu.ledger) <= 1


async def test_ten_moments_cover_the_whole_life(world: World) -> None:
    outcomes = set()
    for _, after in staggered(["anyio scope"]):
        emu, finished = await cancelled_lease(world, anyio_scope, after)
        outcomes.add((len(emu.ledger), emu.requests[-1].route, finished))
    # Cancelled before there was anything, while it began, in the body, and during the release.
    assert (0, "token", False) in outcomes
    assert (1, "list", False) in outcomes
    assert (1, "list", True) in outcomes


async def test_a_cancellation_during_the_release_still_reaches_the_caller(world: World) -> None:
    async with world(stop_seconds=5.0) as (emu, client):
        went_on = False
        with anyio.move_on_after(8.0) as scope:
            async with client.instance(MODEL, HARDWARE):
                await anyio.sleep(2.0)
            await anyio.sleep(1.0)
            went_on = True
        assert emu.existing == ()
        assert scope.cancelled_caught
        assert not went_on


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
class TestByTheMeansOfAsyncio:
    """Test `task.cancel()`, which trio does not have, and which ignores shields."""

    @pytest.mark.parametrize(("name", "after"), staggered(ASYNCIO))
    async def test_at_every_moment(self, world: World, name: str, after: float) -> None:
        emu, _ = await cancelled_lease(world, ASYNCIO[name], after)
        assert emu.existing == ()
        assert len(emu.ledger) <= 1

    async def test_a_task_cancelled_during_the_release_counts_as_cancelled(self, world: World) -> None:
        async with world(stop_seconds=5.0) as (emu, client):
            task = asyncio.create_task(lease_and(client))
            await stop_is_asked(emu)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            assert emu.existing == ()

    async def test_the_bodys_exception_outranks_a_cancellation_during_the_release(self, world: World) -> None:
        problem = KeyError("mine")
        async with world(stop_seconds=5.0) as (emu, client):
            task = asyncio.create_task(lease_and(client, problem))
            await stop_is_asked(emu)
            task.cancel()
            await asyncio.wait([task])
            assert task.exception() is problem
            assert emu.existing == ()

    async def test_a_cancelled_release_that_fails_says_so_in_a_note(self, world: World) -> None:
        async with world() as (emu, client):

            async def body() -> None:
                async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
                    emu.add_fault(Fault("status", route="stop", times=None))

            caught: list[BaseException] = []

            async def watch_over() -> None:
                try:
                    await body()
                except asyncio.CancelledError as error:
                    caught.append(error)

            task = asyncio.create_task(watch_over())
            await stop_is_asked(emu)
            task.cancel()
            await asyncio.wait([task])
            assert "MAY STILL BE BILLED" in caught[0].__notes__[0]

    async def test_a_ctrl_c_that_hits_the_task_of_the_release_is_survived(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Test a second Ctrl-C, which asyncio raises in whatever code is running."""
        stop = Instances.stop
        hits = [KeyboardInterrupt(), KeyboardInterrupt()]

        async def hit(self: Instances, instance_id: str) -> Instance:
            if hits:
                raise hits.pop()
            return await stop(self, instance_id)

        async with world() as (emu, client):
            monkeypatch.setattr(Instances, "stop", hit)
            await lease_and(client)
            assert not hits
            assert emu.existing == ()

    async def test_a_cancellation_of_every_task_does_not_repeat_a_request(self, world: World) -> None:
        """Test what `asyncio.run` does to every task at its end."""
        async with world(stop_seconds=3.0) as (emu, client):
            emu.add_fault(Fault("delay", route="stop", seconds=1.0))
            others = asyncio.all_tasks()
            task = asyncio.create_task(lease_and(client))
            await stop_is_asked(emu)
            for _ in range(3):
                for each in asyncio.all_tasks() - others:
                    each.cancel()
                await asyncio.sleep(0.3)
            await asyncio.wait([task])
            assert emu.existing == ()
            assert [each.route for each in emu.requests if each.route in {"stop", "delete"}] == [
                "stop",
                "delete",
            ]


async def lease_and(client: AsyncCortecs, problem: Exception | None = None) -> None:
    async with client.instance(MODEL, HARDWARE):
        if problem is not None:
            raise problem


async def stop_is_asked(emu: Emulator) -> None:
    while not any(record.route == "stop" for record in emu.requests):  # noqa: ASYNC110  (it has no event)
        await asyncio.sleep(0.1)
