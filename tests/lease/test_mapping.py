"""Test `inst.map`: order, back-pressure, errors, and that no call keeps running without its caller."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from _grids import BACKENDS, grid
from _virtual_time import VirtualTimeLoop

from cortecs_async import InstanceHandle, errors
from cortecs_async._aio import tasks
from cortecs_async._lease import mapping

MODEL = "microsoft/phi-4"
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.fixture
def inst() -> InstanceHandle:
    return InstanceHandle(instance_id="instance-1", base_url="https://x.test/v1", model=MODEL, account="a")


class Calls:
    """A function to map, and the results of its calls."""

    def __init__(self, seconds: Callable[[int], float] = lambda _: 1.0) -> None:
        self.seconds = seconds
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.cancelled: list[int] = []
        self.running = self.most = 0

    async def __call__(self, item: int) -> int:
        self.begun.append(item)
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await anyio.sleep(self.seconds(item))
        except BaseException:
            self.cancelled.append(item)
            raise
        finally:
            self.running -= 1
        self.ended.append(item)
        return item * 10


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    tasks._USER_TASKS.clear()
    yield
    assert not tasks._USER_TASKS


async def settle() -> None:
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def counted(number: int) -> AsyncIterator[int]:
    for item in range(number):
        await anyio.lowlevel.checkpoint()
        yield item


# -- order and concurrency --


@pytest.mark.parametrize("source", [range, lambda number: iter(range(number)), counted])
async def test_results_come_in_the_order_of_the_items(source: Any, inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 10.0 - item)
    found = [result async for result in inst.map(calls, source(8), concurrency=8)]
    assert found == [item * 10 for item in range(8)]
    assert calls.ended == list(reversed(range(8)))


async def test_or_as_they_are_ready(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 10.0 - item)
    found = [result async for result in inst.map(calls, range(8), concurrency=8, ordered=False)]
    assert found == [item * 10 for item in reversed(range(8))]


@grid(anyio_backend=BACKENDS, ordered=[True, False], concurrency=[1, 3, 16, 1000])
async def test_so_many_run_at_once_and_no_more(
    concurrency: int, *, ordered: bool, inst: InstanceHandle
) -> None:
    calls = Calls()
    began = anyio.current_time()
    results = inst.map(calls, range(20), concurrency=concurrency, ordered=ordered)
    assert sorted([result async for result in results]) == [item * 10 for item in range(20)]
    assert calls.most == min(concurrency, 20)
    assert anyio.current_time() - began == pytest.approx(-(-20 // concurrency))


async def test_all_results_as_a_list(inst: InstanceHandle) -> None:
    assert await inst.map(Calls(), counted(5)).to_list() == [0, 10, 20, 30, 40]
    calls = Calls()
    results = inst.map(calls, range(100), concurrency=4)
    with anyio.move_on_after(2.5):
        await results.to_list()
    assert calls.running == 0
    with pytest.raises(StopAsyncIteration):
        await anext(results)
    # A list that lacks results would look like all of them.
    with pytest.raises(errors.InvalidArgumentError, match="closed before"):
        await results.to_list()


@pytest.mark.parametrize("ordered", [True, False])
async def test_the_concurrency_can_be_changed(*, ordered: bool, inst: InstanceHandle) -> None:
    calls = Calls(lambda _: 10.0)
    results = inst.map(calls, range(1000), concurrency=1, ordered=ordered)
    results.concurrency = 2
    async with anyio.create_task_group() as tasks, results:
        tasks.start_soon(consume, results)
        await settle()
        assert calls.running == 2
        results.concurrency = 6
        await settle()
        assert (results.concurrency, calls.running) == (6, 6)
        results.concurrency = 1
        await settle()
        assert calls.running == 6
        await anyio.sleep(15)
        assert calls.running == 1
        with pytest.raises(errors.InvalidArgumentError, match="whole number of at least 1, not 0"):
            results.concurrency = 0
        assert results.concurrency == 1


async def test_a_synchronous_source_lets_other_tasks_run(inst: InstanceHandle) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await anyio.lowlevel.checkpoint()
            turns += 1

    def source() -> Iterator[int]:
        for _ in range(10):
            yield turns

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        first, *_, last = await inst.map(Calls(lambda _: 0.0), source(), concurrency=10).to_list()
        tasks.cancel_scope.cancel()
    # `Calls` returns ten times the item. Trio's order within a turn is random.
    assert (last - first) // 10 in {8, 9, 10}


@pytest.mark.parametrize("source", [[], (), counted(0)])
async def test_of_nothing_comes_nothing(source: Any, inst: InstanceHandle) -> None:
    assert [result async for result in inst.map(Calls(), source)] == []


async def test_a_slow_first_item_does_not_stop_the_others(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 0.0 if item else 100.0)
    results = inst.map(calls, range(100), concurrency=4)
    assert await anext(results) == 0
    assert sorted(calls.ended) == list(range(8))
    assert calls.ended[-1] == 0
    await results.aclose()


async def test_the_context_is_that_of_the_call(inst: InstanceHandle) -> None:
    seen: list[str] = []

    async def look(_: int) -> None:
        seen.append(VARIABLE.get())
        VARIABLE.set("its own")

    VARIABLE.set("at the call")
    results = inst.map(look, range(3), concurrency=1)
    VARIABLE.set("later")
    async for _ in results:
        pass
    assert seen == ["at the call"] * 3
    assert VARIABLE.get() == "later"


# -- back-pressure --


@pytest.mark.parametrize("ordered", [True, False])
async def test_items_are_read_as_fast_as_results_are_taken(*, ordered: bool, inst: InstanceHandle) -> None:
    read = 0

    def endless() -> Iterator[int]:
        nonlocal read
        while True:
            read += 1
            yield read

    calls = Calls(lambda _: 0.01)
    results = inst.map(calls, endless(), concurrency=5, ordered=ordered)
    await anyio.sleep(10)
    assert read == 0
    for taken in range(1, 50):
        await anext(results)
        await anyio.sleep(10)
        assert read == taken + 10
    assert calls.most == 5
    await results.aclose()


async def test_many_items_stream_through_a_small_window(inst: InstanceHandle) -> None:
    alive = 0
    most = 0

    class Item:
        def __init__(self) -> None:
            nonlocal alive, most
            alive += 1
            most = max(most, alive)

        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    async def same(item: Item) -> Item:
        await anyio.lowlevel.checkpoint()
        return item

    number = 0
    async for _ in inst.map(same, (Item() for _ in range(1000)), concurrency=4):
        number += 1
    assert number == 1000
    # 8 begun and not taken, the one in the loop, the one that was read, and frames that are about to end.
    assert most <= 20


# -- errors --


class Boom(Exception):  # noqa: N818
    """The error of these tests."""


async def test_an_exception_comes_at_its_turn_and_ends_the_rest(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 5.0 if item == 0 else 1.0 if item < 4 else 100.0)

    async def fail(item: int) -> int:
        result = await calls(item)
        if item == 2:
            raise Boom
        return result

    found: list[int] = []
    results = inst.map(fail, range(100), concurrency=6)
    with pytest.raises(Boom) as caught:
        async for result in results:
            found.append(result)  # noqa: PERF401 - it ends in an exception
    assert found == [0, 10]
    assert calls.running == 0
    # 1, 2 and 3 end together; what is begun after the failure is known can only be what their ends let in.
    assert max(calls.begun) <= 8
    assert sorted(calls.cancelled) == sorted(item for item in calls.begun if item > 3)
    assert caught.value.__cause__ is None
    with pytest.raises(StopAsyncIteration):
        await anext(results)


async def test_no_item_is_begun_once_a_failure_is_known(inst: InstanceHandle) -> None:
    begun: list[int] = []

    async def fail(item: int) -> None:
        begun.append(item)
        await anyio.sleep(50.0 if item == 0 else item)
        if item == 1:
            raise Boom

    with pytest.raises(Boom):
        async for _ in inst.map(fail, range(100), concurrency=3):
            pass
    assert sorted(begun) == [0, 1, 2]


@pytest.mark.parametrize("ordered", [True, False])
async def test_or_it_is_a_result(*, ordered: bool, inst: InstanceHandle) -> None:
    async def fail(item: int) -> int:
        await anyio.sleep(item)
        if item % 2:
            raise Boom(item)
        return item

    results = inst.map(fail, range(40), concurrency=4, ordered=ordered, return_exceptions=True)
    found = [result async for result in results]
    assert [result.args[0] if isinstance(result, Exception) else result for result in found] == list(
        range(40)
    )
    assert sum(isinstance(result, Boom) for result in found) == 20


@grid(anyio_backend=BACKENDS, ordered=[True, False], return_exceptions=[True, False], is_async=[True, False])
async def test_an_error_of_the_items_comes_after_the_results_before_it(
    *, ordered: bool, return_exceptions: bool, is_async: bool, inst: InstanceHandle
) -> None:
    def broken() -> Iterator[int]:
        yield from range(3)
        raise Boom

    async def broken_too() -> AsyncIterator[int]:
        for item in range(3):
            yield item
        raise Boom

    found: list[Any] = []
    with pytest.raises(Boom):
        async for result in inst.map(
            Calls(),
            broken_too() if is_async else broken(),
            ordered=ordered,
            return_exceptions=return_exceptions,
        ):
            found.append(result)  # noqa: PERF401 - it ends in an exception
    assert (found if ordered else sorted(found)) == [0, 10, 20]


@pytest.mark.parametrize("raised", [StopAsyncIteration, StopIteration])
async def test_no_exception_of_the_function_looks_like_the_end(
    raised: type[Exception], inst: InstanceHandle
) -> None:
    async def fail(_: int) -> None:
        raise raised

    with pytest.raises(RuntimeError, match=r"raised Stop(Async)?Iteration"):
        async for _ in inst.map(fail, range(3)):
            pass


@pytest.mark.parametrize("return_exceptions", [False, True])
async def test_a_function_that_is_not_async_is_an_error_of_its_first_item(
    return_exceptions: bool,  # noqa: FBT001
    inst: InstanceHandle,
) -> None:
    called: list[int] = []
    with pytest.raises(errors.InvalidArgumentError, match="async function, but append returned NoneType"):
        async for _ in inst.map(
            called.append,  # type: ignore[arg-type]
            range(9),
            concurrency=1,
            return_exceptions=return_exceptions,
        ):
            pass
    assert called == [0]


async def test_a_cancelled_error_of_the_function_is_not_a_cancellation(inst: InstanceHandle) -> None:
    async def fail(_: int) -> None:
        # As from a future that was cancelled. The task was not.
        raise asyncio.CancelledError("closed")

    with pytest.raises(RuntimeError, match="The map function raised CancelledError") as caught:
        await inst.map(fail, range(3)).to_list()
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)
    found = await inst.map(fail, range(3), return_exceptions=True).to_list()
    assert [type(each) for each in found] == [RuntimeError] * 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)  # trio does not expose its tasks
async def test_a_call_that_cancels_its_own_task_fails(inst: InstanceHandle) -> None:
    async def fail(_: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(1)

    with pytest.raises(RuntimeError, match="The map function raised CancelledError"):
        await inst.map(fail, range(3)).to_list()


async def test_a_cancelled_error_of_the_items_is_not_a_cancellation(inst: InstanceHandle) -> None:
    async def items() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError("the queue was closed")

    results = inst.map(Calls(), items())
    assert await anext(results) == 10
    with pytest.raises(RuntimeError, match="The items of a map raised CancelledError") as caught:
        await anext(results)
    assert isinstance(caught.value.__cause__, asyncio.CancelledError)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"concurrency": 0}, "whole number"),
        ({"concurrency": -1}, "whole number"),
        ({"concurrency": 1.5}, "whole number"),
        ({"concurrency": True}, "whole number"),
        ({"concurrency": "auto"}, "whole number"),
        ({"fn": None}, "must be an async function, not None"),
        ({"items": 5}, "not 5"),
        ({"items": None}, "not None"),
    ],
)
def test_bad_arguments_are_refused_at_the_call(
    wrong: dict[str, Any], said: str, inst: InstanceHandle
) -> None:
    def never() -> Iterator[int]:
        pytest.fail("something ran")
        yield

    arguments = {"fn": Calls(), "items": never(), **wrong}
    with pytest.raises(errors.InvalidArgumentError, match=said):
        inst.map(arguments.pop("fn"), arguments.pop("items"), **arguments)


# -- leaving --


async def test_a_break_cancels_what_runs(inst: InstanceHandle) -> None:
    calls = Calls(float)
    gc.disable()
    try:
        async for _ in inst.map(calls, range(100), concurrency=4):
            await settle()
            break
        await settle()
    finally:
        gc.enable()
    assert calls.running == 0
    assert sorted(calls.cancelled) == [1, 2, 3, 4]


async def test_an_exception_in_the_loop_cancels_what_runs(inst: InstanceHandle) -> None:
    calls = Calls(float)
    with pytest.raises(Boom):
        async for _ in inst.map(calls, range(100), concurrency=4):
            await settle()
            raise Boom
    gc.collect()
    await settle()
    assert calls.running == 0
    assert len(calls.cancelled) == 4


@pytest.mark.sockets
async def test_the_collector_may_run_in_another_thread(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 0.0 if item == 0 else 1000.0)
    holder = [inst.map(calls, range(100), concurrency=4)]
    await anext(holder[0])
    await settle()
    thread = threading.Thread(target=holder.clear)
    thread.start()
    thread.join()
    with anyio.fail_after(5):
        while calls.running:  # noqa: ASYNC110 - nobody tells
            await anyio.sleep(0.001)
    assert len(calls.cancelled) == 4


async def test_aclose_returns_when_nothing_runs_any_more(inst: InstanceHandle) -> None:
    cleaned: list[int] = []

    async def slow_to_leave(item: int) -> int:
        try:
            await anyio.sleep(1 if item == 0 else 1000)
        finally:
            if item:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(3)
                cleaned.append(item)
        return item

    results = inst.map(slow_to_leave, range(100), concurrency=4)
    assert await anext(results) == 0
    await settle()
    await results.aclose()
    assert sorted(cleaned) == [1, 2, 3, 4]
    await results.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(results)


async def test_the_block_of_a_map_does_the_same(inst: InstanceHandle) -> None:
    calls = Calls()
    async with inst.map(calls, range(100), concurrency=4) as results:
        async for _ in results:
            break
        await settle()
        assert calls.running == 4
    assert calls.running == 0


async def test_what_was_never_asked_for_never_ran(inst: InstanceHandle) -> None:
    calls = Calls()
    results = inst.map(calls, range(100))
    await settle()
    await results.aclose()
    async with inst.map(calls, range(100)):
        await settle()
    assert calls.begun == []


async def test_a_call_that_ignores_one_cancellation(inst: InstanceHandle) -> None:
    ignored = 0

    async def stubborn(item: int) -> int:
        nonlocal ignored
        try:
            await anyio.sleep(1 if item == 0 else 1000)
        except anyio.get_cancelled_exc_class():
            ignored += 1
            await anyio.sleep(1000)
        return item

    results = inst.map(stubborn, range(100), concurrency=4)
    await anext(results)
    await results.aclose()
    assert ignored >= 3


async def test_a_cancelled_consumer_leaves_at_once_and_loses_nothing(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 10.0)
    results = inst.map(calls, range(6), concurrency=2)
    found: list[int] = []
    given_up = 0
    while True:
        with anyio.move_on_after(3) as scope:
            try:
                found.append(await anext(results))
            except StopAsyncIteration:
                break
        if scope.cancelled_caught:
            assert anyio.current_time() == scope.deadline
            given_up += 1
    assert found == [0, 10, 20, 30, 40, 50]
    assert given_up == 9
    assert calls.cancelled == []


async def test_a_loop_over_what_is_ready_can_be_cancelled(inst: InstanceHandle) -> None:
    results = inst.map(Calls(), range(100), concurrency=8)
    await anext(results)
    await anyio.sleep(10)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await anext(results)
        pytest.fail("it went on")
    await results.aclose()


async def test_a_cancelled_loop_cancels_what_runs(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 1000.0)
    with anyio.move_on_after(2):
        async for _ in inst.map(calls, range(100), concurrency=4):
            pass
    gc.collect()
    await settle()
    assert calls.running == 0


async def test_items_that_never_come_hold_up_neither_results_nor_the_end(inst: InstanceHandle) -> None:
    closed = False

    async def stuck() -> AsyncIterator[int]:
        nonlocal closed
        yield 1
        try:
            await anyio.sleep_forever()
        finally:
            closed = True

    results = inst.map(Calls(), stuck())
    assert await anext(results) == 10
    with anyio.move_on_after(5) as scope:
        await anext(results)
    assert scope.cancelled_caught
    await results.aclose()
    assert closed


async def test_maps_of_maps(inst: InstanceHandle) -> None:
    inner, outer = Calls(), Calls()
    results = inst.map(outer, inst.map(inner, range(100), concurrency=3), concurrency=2)
    assert [await anext(results) for _ in range(10)] == [item * 100 for item in range(10)]
    assert (inner.most, outer.most) == (3, 2)
    await results.aclose()
    del results
    gc.collect()
    await settle()
    assert (inner.running, outer.running) == (0, 0)


async def test_a_map_in_the_function_of_a_map(inst: InstanceHandle) -> None:
    async def total(item: int) -> int:
        return sum([result async for result in inst.map(Calls(), range(item))])

    assert [result async for result in inst.map(total, range(5))] == [0, 0, 10, 30, 60]


async def test_several_tasks_may_take_from_one_map(inst: InstanceHandle) -> None:
    results = inst.map(Calls(lambda item: item % 3), range(30), concurrency=4)
    found: list[int] = []

    async def take() -> None:
        async for result in results:
            found.append(result)  # noqa: PERF401 - the others append, too

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(take)
    assert sorted(found) == [item * 10 for item in range(30)]


def test_the_end_of_the_loop_ends_it(inst: InstanceHandle) -> None:
    calls = Calls(lambda item: 0.0 if item == 0 else 1000.0)
    kept: list[Any] = []

    async def main() -> None:
        kept.append(inst.map(calls, range(100), concurrency=4))
        await anext(kept[0])

    asyncio.run(main())
    assert calls.running == 0
    kept.clear()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)  # trio does not expose its tasks
async def test_a_task_that_is_cancelled_before_its_first_step_is_over(inst: InstanceHandle) -> None:
    results = inst.map(Calls(), range(3))
    others = asyncio.all_tasks()
    results._run.start()
    (task,) = asyncio.all_tasks() - others
    task.cancel()
    with anyio.fail_after(5), pytest.raises(errors.InvalidArgumentError, match="was cancelled"):
        await anext(results)
    await results.aclose()


async def test_what_has_ended_holds_neither_function_nor_items(inst: InstanceHandle) -> None:
    calls = Calls()
    gone = weakref.ref(calls)
    results = inst.map(calls, range(3))
    async for _ in results:
        pass
    await settle()
    gc.disable()
    try:
        del calls
        assert gone() is None
    finally:
        gc.enable()


# -- clean-up --

ONLY_ASYNCIO = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)


class Cleanups:
    """A function and items whose clean-up awaits, twice, on a connection."""

    def __init__(self) -> None:
        self.running = 0
        self.cleaned: list[int | str] = []

    async def __call__(self, item: int) -> int:
        self.running += 1
        try:
            await anyio.sleep(1.0 if item == 0 else 1e6)
        finally:
            if item:
                await self.clean_up(item)
            self.running -= 1
        return item

    async def items(self, *, waits: bool = False) -> AsyncIterator[int]:
        try:
            for item in range(5 if waits else 100):
                yield item
            await anyio.sleep_forever()
        finally:
            await self.clean_up("items")

    async def clean_up(self, name: int | str) -> None:
        await anyio.sleep(1.0)
        await anyio.sleep(1.0)
        self.cleaned.append(name)

    def check(self) -> None:
        assert self.running == 0
        assert Counter(self.cleaned) == Counter([1, 2, 3, 4, "items"])


@ONLY_ASYNCIO
@pytest.mark.parametrize("waits", [True, False])
async def test_each_call_is_cancelled_once_and_so_are_the_items(*, waits: bool, inst: InstanceHandle) -> None:
    cleanups = Cleanups()
    async with inst.map(cleanups, cleanups.items(waits=waits), concurrency=4) as results:
        assert await anext(results) == 0
        await settle()
        began = anyio.current_time()
    cleanups.check()
    assert anyio.current_time() - began == 2.0
    await results.aclose()


@ONLY_ASYNCIO
async def test_likewise_after_a_break(inst: InstanceHandle) -> None:
    cleanups = Cleanups()
    async for _ in inst.map(cleanups, cleanups.items(), concurrency=4):
        await settle()
        break
    gc.collect()
    await anyio.sleep(3)
    cleanups.check()


@ONLY_ASYNCIO
async def test_an_error_comes_out_once_the_others_have_cleaned_up(inst: InstanceHandle) -> None:
    cleanups = Cleanups()

    async def fail(item: int) -> int:
        await cleanups(item)
        raise Boom

    with pytest.raises(Boom):
        await inst.map(fail, cleanups.items(waits=True), concurrency=5).to_list()
    cleanups.check()


@ONLY_ASYNCIO
async def test_the_lease_waits_for_clean_ups(world: Any) -> None:
    cleanups = Cleanups()
    async with world() as (_, client):
        async with client.instance(MODEL, on_exit="keep") as inst:
            results = inst.map(cleanups, cleanups.items(), concurrency=4)
            await anext(results)
            await settle()
        cleanups.check()


@pytest.mark.parametrize("waits", [True, False])
def test_the_end_of_the_loop_cancels_each_call_once(*, waits: bool, inst: InstanceHandle) -> None:
    cleanups = Cleanups()

    async def main() -> None:
        kept.append(inst.map(cleanups, cleanups.items(waits=waits), concurrency=4))
        await anext(kept[0])
        await settle()

    kept: list[Any] = []
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())
    cleanups.check()


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_on_trio_a_call_is_in_a_cancelled_scope(inst: InstanceHandle) -> None:
    cleanups = Cleanups()
    async with inst.map(cleanups, cleanups.items(waits=True), concurrency=5) as results:
        await anext(results)
        await settle()
    assert cleanups.cleaned == []


async def test_items_that_wait_for_their_turn_are_closed_without_a_cancellation(inst: InstanceHandle) -> None:
    cleanups = Cleanups()
    async with inst.map(Calls(), cleanups.items(), concurrency=4) as results:
        await anext(results)
        await settle()
    assert cleanups.cleaned == ["items"]


class Cursor:
    """Items that are no generator. Each close takes two seconds."""

    def __init__(self, count: int, error: Exception | None = None) -> None:
        self.left = count
        self.error = error
        self.closing = self.closed = 0

    def __aiter__(self) -> Cursor:
        return self

    async def __anext__(self) -> int:
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        return self.left

    async def aclose(self) -> None:
        self.closing += 1
        await anyio.sleep(2.0)
        self.closed += 1
        if self.error is not None:
            raise self.error


async def test_items_with_an_aclose_are_closed_once(inst: InstanceHandle) -> None:
    cursor = Cursor(3)
    async with inst.map(Calls(), cursor) as results:
        assert await results.to_list() == [20, 10, 0]
        assert (cursor.closing, cursor.closed) == (1, 1)
    assert cursor.closing == 1


async def test_a_close_is_not_cancelled(inst: InstanceHandle) -> None:
    cursor = Cursor(100)

    async def fail(item: int) -> None:
        await anyio.sleep(1.0)
        raise Boom

    # The first failure ends the reading, and a second later it comes out.
    with pytest.raises(Boom):
        async for _ in inst.map(fail, cursor, concurrency=1):
            pass
    assert (cursor.closing, cursor.closed) == (1, 1)


async def test_an_error_of_a_close_comes_out_or_is_a_note(inst: InstanceHandle) -> None:
    def results() -> Any:
        return inst.map(calls, Cursor(100, Boom("not closed")), concurrency=4)

    calls = Calls()
    taken = results()
    await anext(taken)
    with pytest.raises(Boom, match="not closed"):
        await taken.aclose()
    await taken.aclose()
    with pytest.raises(Boom, match="not closed"):
        async with results() as taken:
            await anext(taken)
    with pytest.raises(KeyError) as caught:
        async with results() as taken:
            await anext(taken)
            raise KeyError
    assert "Closing the items of the map raised Boom('not closed')" in caught.value.__notes__[0]
    with pytest.raises(Boom, match="not closed"):
        await inst.map(calls, Cursor(3, Boom("not closed"))).to_list()

    async def fail(_: int) -> None:
        raise KeyError

    with pytest.raises(KeyError) as caught:
        await inst.map(fail, Cursor(100, Boom("not closed")), concurrency=1).to_list()
    assert "Boom" in caught.value.__notes__[0]


async def test_an_error_of_a_close_after_a_break_is_logged(
    inst: InstanceHandle, caplog: pytest.LogCaptureFixture
) -> None:
    async for _ in inst.map(Calls(), Cursor(100, Boom()), concurrency=4):
        break
    gc.collect()
    await anyio.sleep(3)
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert record.message == "Closing the items of a map whose results were dropped raised Boom()"


async def test_an_error_of_a_close_is_the_note_of_an_earlier_one_of_the_items(inst: InstanceHandle) -> None:
    class Broken(Cursor):
        async def __anext__(self) -> int:
            raise KeyError

    with pytest.raises(KeyError) as caught:
        await inst.map(Calls(), Broken(1, Boom("not closed"))).to_list()
    assert "Closing the items of a map raised Boom('not closed')" in caught.value.__notes__[0]


async def test_a_cancelled_aclose_waits_for_five_more_seconds(inst: InstanceHandle) -> None:
    for seconds, waited in ((2.0, 2.0), (100.0, 1.0 + mapping._JOIN_TIMEOUT)):

        async def slow_to_leave(_: int, seconds: float = seconds) -> None:
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(seconds)

        results = inst.map(slow_to_leave, range(4))
        with anyio.move_on_after(1):
            await anext(results)
        began = anyio.current_time()
        with anyio.move_on_after(1):
            await results.aclose()
        assert anyio.current_time() - began == waited
        await results.aclose()
        assert anyio.current_time() - began == seconds


# -- the lease --


async def consume(results: Any) -> None:
    async for _ in results:
        pass


async def test_no_call_outlives_the_lease(world: Any) -> None:
    calls = Calls(lambda item: 0.0 if item == 0 else 1e6)
    async with world() as (emu, client):
        async with client.instance(MODEL) as inst:
            results = inst.map(calls, range(100), concurrency=4)
            await anext(results)
            await settle()
            assert calls.running == 4
        assert calls.running == 0
        assert emu.existing == ()
        with pytest.raises(errors.InvalidArgumentError, match="lease"):
            await anext(results)
        with pytest.raises(errors.InvalidArgumentError, match="lease"):
            inst.map(calls, range(3))


async def test_a_kept_instance_ends_its_maps_too(world: Any) -> None:
    calls = Calls(lambda item: 0.0 if item == 0 else 1e6)
    async with world() as (_, client):
        async with client.instance(MODEL, on_exit="keep") as inst:
            results = inst.map(calls, range(100), concurrency=4)
            await anext(results)
        assert calls.running == 0


@pytest.mark.parametrize("on_exit", ["delete", "keep"])
async def test_the_end_of_the_lease_waits_for_what_its_calls_clean_up(on_exit: str, world: Any) -> None:
    cleaned: list[int] = []

    async def slow_to_leave(item: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(4)
            cleaned.append(item)

    async with world() as (_, client), anyio.create_task_group() as tasks:
        async with client.instance(MODEL, on_exit=on_exit) as inst:
            tasks.start_soon(swallow, inst.map(slow_to_leave, range(100), concurrency=3))
            await settle()
        assert sorted(cleaned) == [0, 1, 2]


async def test_a_map_that_begins_after_the_lease_is_refused(world: Any) -> None:
    calls = Calls()
    async with world() as (_, client):
        async with client.instance(MODEL) as inst:
            results = inst.map(calls, range(100))
        with pytest.raises(errors.InvalidArgumentError, match="inside its `async with` block"):
            await anext(results)
    assert calls.begun == []


async def test_a_consumer_elsewhere_hears_that_the_lease_was_left(world: Any) -> None:
    calls = Calls(lambda _: 1e6)
    async with world() as (_, client), anyio.create_task_group() as tasks:

        async def elsewhere(results: Any) -> None:
            with pytest.raises(errors.InvalidArgumentError, match="was cancelled"):
                await anext(results)

        async with client.instance(MODEL) as inst:
            tasks.start_soon(elsewhere, inst.map(calls, range(100)))
            await settle()


async def test_a_call_that_does_not_mind_does_not_hold_up_the_end_for_ever(world: Any) -> None:
    released = anyio.Event()

    async def deaf(_: int) -> None:
        with anyio.CancelScope(shield=True):
            await released.wait()

    async with world() as (emu, client), anyio.create_task_group() as tasks:
        async with client.instance(MODEL) as inst:
            tasks.start_soon(swallow, inst.map(deaf, range(100)))
            await settle()
            left = anyio.current_time()
        assert emu.existing == ()
        assert anyio.current_time() - left < mapping._JOIN_TIMEOUT + 30
        released.set()
        await settle()


async def swallow(results: Any) -> None:
    with pytest.raises(errors.InvalidArgumentError):
        await consume(results)


async def test_a_body_that_fails_ends_its_maps_and_raises_its_own_error(world: Any) -> None:
    calls = Calls(float)
    async with world() as (emu, client):
        with pytest.raises(Boom):
            async with client.instance(MODEL) as inst:
                async for _ in inst.map(calls, range(100)):
                    raise Boom
        assert calls.running == 0
        assert emu.existing == ()
