"""How many requests are under way at once, and whose turn is next."""

from __future__ import annotations

import asyncio

import anyio
import anyio.lowlevel
import pytest
from _grids import alternating, on_one_backend
from hypothesis import given
from hypothesis import strategies as st

from cortecs_async._http.limiter import Priority, PriorityLimiter

LOOK, RELEASE, CALL = Priority.POLL, Priority.RELEASE, Priority.CALL


class Traffic:
    """Requests of a second each, and who was under way with whom."""

    def __init__(self, size: int) -> None:
        self.slots = PriorityLimiter(size)
        self.busy: list[Priority] = []
        self.most: dict[Priority, int] = dict.fromkeys(Priority, 0)
        self.began: list[str] = []

    async def send(self, priority: Priority, name: str = "") -> None:
        await self.slots.acquire(priority)
        self.busy.append(priority)
        self.began.append(name)
        self.most[priority] = max(self.most[priority], len([each for each in self.busy if each is not LOOK]))
        try:
            await anyio.sleep(1.0)
        finally:
            self.busy.remove(priority)
            self.slots.release(priority)


@alternating(
    "size,calls",
    [
        (1, 1),
        (2, 1),
        (4, 3),
        (5, 4),
        (10, 8),
    ],
)
async def test_calls_leave_a_fifth_to_releases(size: int, calls: int) -> None:
    traffic = Traffic(size)
    async with anyio.create_task_group() as tasks:
        for _ in range(3 * size):
            tasks.start_soon(traffic.send, CALL)
    assert traffic.most[CALL] == calls
    async with anyio.create_task_group() as tasks:
        for _ in range(3 * size):
            tasks.start_soon(traffic.send, RELEASE)
    assert traffic.most[RELEASE] == max(size, 2)


async def test_releases_go_first_and_all_in_order() -> None:
    traffic = Traffic(2)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(traffic.send, CALL, "first")
        await anyio.sleep(0.1)
        for name, priority in (
            ("call 1", CALL),
            ("call 2", CALL),
            ("release 1", RELEASE),
            ("release 2", RELEASE),
        ):
            tasks.start_soon(traffic.send, priority, name)
            await anyio.lowlevel.checkpoint()
    assert traffic.began == ["first", "release 1", "release 2", "call 1", "call 2"]


async def test_looks_never_wait() -> None:
    traffic = Traffic(1)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(traffic.send, CALL)
        for _ in range(5):
            tasks.start_soon(traffic.send, LOOK)
    assert anyio.current_time() == began + 1.0


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(Priority), st.floats(0.0, 3.0), st.none() | st.floats(0.0, 3.0)),
        max_size=30,
    ),
    size=st.integers(1, 6),
)
async def test_no_slot_is_lost_to_a_cancellation(
    steps: list[tuple[Priority, float, float | None]], size: int
) -> None:
    traffic = Traffic(size)

    async def send(priority: Priority, after: float, limit: float | None) -> None:
        await anyio.sleep(after)
        with anyio.move_on_after(1000.0 if limit is None else limit):
            await traffic.send(priority)

    async with anyio.create_task_group() as tasks:
        for step in steps:
            tasks.start_soon(send, *step)
    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for _ in range(size):
            tasks.start_soon(traffic.send, RELEASE)
    assert anyio.current_time() == pytest.approx(began + 1.0)
    assert not traffic.busy


@on_one_backend  # it uses asyncio tasks
async def test_a_slot_given_in_the_moment_of_a_cancellation_goes_on() -> None:
    slots = PriorityLimiter(1)
    await slots.acquire(CALL)
    task = asyncio.create_task(slots.acquire(CALL))
    await anyio.wait_all_tasks_blocked()
    slots.release(CALL)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with anyio.fail_after(1.0):
        await slots.acquire(CALL)
