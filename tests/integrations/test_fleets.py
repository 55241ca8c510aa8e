"""The part common to fleets of Ray and Dask, with coroutines as workers, on virtual time.

The clusters themselves are in tests/ecosystem.
"""

from __future__ import annotations

import array
import asyncio
import gzip
import itertools
import json
import os
import pickle
import re
import threading
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import anyio
import anyio.to_thread
import attrs
import pytest
from _virtual_time import VirtualTimeLoop
from _world import MODEL

from cortecs_async import ConfigurationError, InstanceHandle, InvalidArgumentError, TeardownError, errors
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.integrations import _worker
from cortecs_async.integrations._fan_out import FanOut
from cortecs_async.integrations._fan_out_queue import Outcome
from cortecs_async.integrations._worker import (
    Failure,
    Result,
    check_work,
    read_results,
    run_chunk,
    submit_chunk,
)
from cortecs_async.integrations.jsonl import AnswerFile, answer

HANDLE = InstanceHandle(instance_id="i", base_url="http://localhost/v1", model="m", account="a")
World = Callable[..., AbstractAsyncContextManager[tuple[Emulator, Any]]]


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    """Ray and Dask support only asyncio."""
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Workers:
    """Do chunks in this event loop, in `seconds` each, on instances that answer while they are running."""

    def __init__(self, emulator: Emulator, *, seconds: float = 1.0) -> None:
        self._emulator = emulator
        self._seconds = seconds
        self.chunks: list[tuple[str, list[int]]] = []
        self.busy: Counter[str] = Counter()
        self.most_busy: Counter[str] = Counter()
        self.faults: dict[int, Failure] = {}

    async def __call__(self, inst: InstanceHandle, items: list[int]) -> list[Result]:
        where = inst.instance_id
        self.chunks.append((where, items))
        self.busy[where] += 1
        self.most_busy[where] = max(self.most_busy[where], self.busy[where])
        try:
            await anyio.sleep(self._seconds)
        finally:
            self.busy[where] -= 1
        if where not in self._emulator.billing:
            return [Result(failure=Failure("APIConnectionError", "refused", None, is_trouble=True))] * len(
                items
            )
        return [
            Result(failure=self.faults[item]) if item in self.faults else Result(f"{where} did {item}")
            for item in items
        ]


def fan_out(submit: Any, items: Any, leases: Any, **options: Any) -> FanOut[Any]:
    defaults = {"chunk_size": 4, "chunks_per_instance": 2, "max_attempts": 5}
    return FanOut(submit, items, leases, **{**defaults, **options})


async def test_every_item_is_done_once_and_all_instances_work(world: World) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)
        leases = [client.instance(MODEL) for _ in range(3)]
        async with fan_out(workers, range(100), leases) as outcomes:
            found = [outcome async for outcome in outcomes]
        assert emu.existing == ()
        assert sorted(outcome.item for outcome in found) == list(range(100))
        assert all(f" did {outcome.item}" in outcome.value for outcome in found)
        assert len(emu.ledger) == len(workers.most_busy) == 3
        assert set(workers.most_busy.values()) == {2}
        assert max(len(items) for _, items in workers.chunks) == 4


# An instance has room for two chunks of four.
@pytest.mark.parametrize(("count", "started"), [(0, 0), (1, 1), (8, 1), (9, 2), (17, 3), (100, 4)])
async def test_as_many_leases_start_as_there_is_work_for(world: World, count: int, started: int) -> None:
    async with world() as (emu, client):
        leases = [client.instance(MODEL) for _ in range(4)]
        async with fan_out(Workers(emu), range(count), leases) as outcomes:
            found = await outcomes.to_list()
        assert sorted(outcome.item for outcome in found) == list(range(count))
        assert len(emu.ledger) == started
        assert emu.existing == ()


async def test_no_lease_starts_before_the_first_item(world: World) -> None:
    async def none() -> AsyncIterator[int]:
        await anyio.sleep(600)
        nothing: tuple[int, ...] = ()
        for item in nothing:
            yield item

    async with world() as (emu, client):
        async with fan_out(Workers(emu), none(), [client.instance(MODEL)]) as outcomes:
            assert await outcomes.to_list() == []
        assert emu.ledger == ()


async def test_items_that_wait_for_outcomes_need_one_instance(world: World) -> None:
    answered = anyio.Event()

    async def items() -> AsyncIterator[int]:
        nonlocal answered
        for item in range(20):
            answered = anyio.Event()
            yield item
            await answered.wait()

    async with world() as (emu, client):
        leases = [client.instance(MODEL) for _ in range(3)]
        async with fan_out(Workers(emu), items(), leases) as outcomes:
            async for _ in outcomes:
                answered.set()
        assert len(emu.ledger) == 1


async def test_further_leases_start_once_there_is_work_for_them(world: World) -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        await anyio.sleep(100)
        assert len(emu.ledger) == 1
        for item in range(1, 200):
            yield item

    async with world() as (emu, client):
        workers = Workers(emu)
        async with fan_out(workers, items(), [client.instance(MODEL) for _ in range(3)]) as outcomes:
            assert len(await outcomes.to_list()) == 200
        assert len(emu.ledger) == len(workers.most_busy) == 3


async def test_chunks_in_flight_count_as_requests(world: World) -> None:
    async def items() -> AsyncIterator[int]:
        yield 0
        await anyio.sleep(2000)
        yield 1

    async with world() as (emu, client):
        leases = [client.instance(MODEL, idle_timeout=60) for _ in range(2)]
        async with fan_out(Workers(emu, seconds=500.0), items(), leases) as outcomes:
            found = await outcomes.to_list()
        assert [outcome.error for outcome in found] == [None, None]
        # The first one was idle between the items, and the second one took over.
        assert [each.seconds >= 500 + 60 for each in emu.ledger] == [True, False]
        assert emu.existing == ()


async def test_the_next_lease_takes_over_from_one_that_fails_or_is_lost(world: World) -> None:
    async with world(capacity={"NVIDIA_H100_1": 0}) as (emu, client):
        leases = [
            client.instance(MODEL, "NVIDIA_H100_1"),
            client.instance(MODEL),
            client.instance(MODEL),
            client.instance(MODEL),
        ]
        async with fan_out(Workers(emu, seconds=60.0), range(3), leases) as outcomes:
            await anyio.sleep(30)
            emu.stop_instance(emu.existing[0])
            assert sorted([outcome.item async for outcome in outcomes]) == [0, 1, 2]
        assert len(emu.ledger) == 2


async def test_memory_is_bounded_with_an_async_source_and_a_slow_reader(world: World) -> None:
    read = taken = 0

    async def source() -> AsyncIterator[int]:
        nonlocal read
        for item in range(200):
            await anyio.sleep(0.001)
            read += 1
            yield item

    most = 0
    async with world() as (emu, client):
        async with fan_out(Workers(emu, seconds=0.1), source(), [client.instance(MODEL)]) as outcomes:
            async for _ in outcomes:
                taken += 1
                await anyio.sleep(0.5)
                most = max(most, read - taken)
    assert taken == 200
    # Eight each: read ahead, in progress, and done but not taken. Four more: the chunk taken just before.
    assert most <= 3 * 8 + 4


# With a minute per chunk, the loss is noticed while chunks are in progress.
@pytest.mark.parametrize("seconds", [1.0, 60.0])
async def test_a_lost_instance_loses_no_item(world: World, seconds: float) -> None:
    async with world() as (emu, client):
        workers = Workers(emu, seconds=seconds)
        found: list[Outcome[int]] = []
        async with fan_out(workers, range(400), [client.instance(MODEL) for _ in range(2)]) as outcomes:
            async for outcome in outcomes:
                found.append(outcome)
                if len(found) == 40:
                    emu.stop_instance(emu.existing[0])
        assert emu.existing == ()
        assert sorted(outcome.item for outcome in found) == list(range(400))
        assert [outcome.error for outcome in found if outcome.error] == []
        assert len(emu.ledger) == 2


async def test_losing_the_last_instance_raises(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.InstanceLostError):
            async with fan_out(Workers(emu), range(4000), [client.instance(MODEL)]) as outcomes:
                async for outcome in outcomes:
                    if outcome.item == 8:
                        emu.stop_instance(emu.existing[0])
        assert emu.existing == ()


async def test_expired_leases_raise(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseExpiredError):
            async with fan_out(
                Workers(emu), range(4000), [client.instance(MODEL, max_lifetime=60)]
            ) as outcomes:
                async for _ in outcomes:
                    pass
        assert emu.existing == ()


async def test_the_others_do_the_work_of_an_instance_that_does_not_start(world: World) -> None:
    async with world(capacity={"NVIDIA_H100_1": 1}) as (emu, client):
        leases = [client.instance(MODEL, "NVIDIA_H100_1", start_timeout=60) for _ in range(2)]
        async with fan_out(Workers(emu), range(400), leases) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 400
        assert emu.existing == ()


async def test_instances_that_still_start_when_all_is_done_are_cancelled(world: World) -> None:
    async with world(step_seconds=100, num_steps=5) as (emu, client):
        running = emu.start_instance(MODEL)
        await client.instances.wait_until_running(running)
        leases = [client.attach(running), client.instance(MODEL)]
        async with fan_out(Workers(emu), range(8), leases) as outcomes:
            assert len([outcome async for outcome in outcomes]) == 8
        assert emu.existing == (running,)
        started = emu.ledger[1]
        assert started.stopped_at is not None
        assert started.stopped_at - started.started_at < 30


async def test_an_error_of_an_item_is_its_outcome(world: World) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)
        workers.faults = {
            7: Failure("BadRequestError", "too long", 400),
            8: Failure("InternalServerError", "oops", 500, is_trouble=True),
        }
        async with fan_out(workers, range(40), [client.instance(MODEL)], max_attempts=3) as outcomes:
            found = {outcome.item: outcome async for outcome in outcomes}
        assert len(found) == 40
        assert {item for item, outcome in found.items() if outcome.error} == {7, 8}
        assert str(found[7].error) == "BadRequestError: too long"
        tries = Counter(item for _, items in workers.chunks for item in items)
        assert (tries[7], tries[8], tries[9]) == (1, 3, 1)


DOWN = Failure("ServiceUnavailableError", "starting", 503, is_trouble=True)


# With 12 items, no other ones can show whether the instance answers.
@pytest.mark.parametrize(("count", "outage"), [(200, 150.0), (12, 25.0)])
async def test_an_outage_fails_no_item_and_gets_one_chunk_at_a_time(
    world: World, count: int, outage: float
) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)

        async def interrupt() -> None:
            workers.faults = dict.fromkeys(range(count), DOWN)
            await anyio.sleep(2.0)
            workers.most_busy.clear()
            await anyio.sleep(outage)
            assert set(workers.most_busy.values()) == {1}
            workers.faults = {}

        async with anyio.create_task_group() as tasks:
            async with fan_out(workers, range(count), [client.instance(MODEL)], max_attempts=2) as outcomes:
                found: list[Outcome[int]] = []
                async for outcome in outcomes:
                    if not found:
                        tasks.start_soon(interrupt)
                    found.append(outcome)
        assert [outcome.error for outcome in found] == [None] * count
        # A chunk takes a second, and the pause after it up to five.
        assert len(workers.chunks) <= count / 4 + 2 + outage / 3


# All chunks fail at once, the two items alone, or after the others.
@pytest.mark.parametrize(("count", "bad"), [(2, {0, 1}), (40, {0, 1}), (40, {38, 39})])
@pytest.mark.parametrize("chunk_size", [1, 4])
async def test_items_that_never_succeed_do_not_fail_the_instance(
    world: World, count: int, bad: set[int], chunk_size: int
) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)
        workers.faults = dict.fromkeys(bad, DOWN)
        began = anyio.current_time()
        options = {"chunk_size": chunk_size, "chunks_per_instance": 1, "max_attempts": 4}
        async with fan_out(workers, range(count), [client.instance(MODEL)], **options) as outcomes:
            found = {outcome.item: outcome.error async for outcome in outcomes}
        assert len(found) == count
        assert {item for item, error in found.items() if error is not None} == bad
        tries = Counter(item for _, items in workers.chunks for item in items)
        assert all(4 <= tries[item] <= 12 for item in bad)
        assert anyio.current_time() - began < 180


async def test_an_instance_that_is_down_fails_no_item_of_another_one(world: World) -> None:
    async with world() as (emu, client):
        workers = Workers(emu, seconds=30.0)
        first = ""

        async def work(inst: InstanceHandle, items: list[int]) -> list[Result]:
            nonlocal first
            first = first or inst.instance_id
            return (
                [Result(failure=DOWN)] * len(items)
                if inst.instance_id == first
                else await workers(inst, items)
            )

        leases = [client.instance(MODEL) for _ in range(2)]
        async with fan_out(work, range(24), leases, max_attempts=1) as outcomes:
            assert [outcome.error async for outcome in outcomes] == [None] * 24


async def test_an_item_is_sent_again_after_a_growing_delay(world: World) -> None:
    times = []

    async def work(inst: InstanceHandle, items: list[int]) -> list[Result]:
        if 7 in items:
            times.append(anyio.current_time())
        await anyio.sleep(0.01)
        return [Result(failure=DOWN if item == 7 else None) for item in items]

    async def items() -> AsyncIterator[int]:
        for item in range(2000):
            await anyio.sleep(0.01)
            yield item

    async with world() as (_, client):
        async with fan_out(work, items(), [client.instance(MODEL)], max_attempts=5) as outcomes:
            assert {outcome.item async for outcome in outcomes if outcome.error} == {7}
    pauses = [after - before for before, after in itertools.pairwise(times)]
    assert len(pauses) == 4
    assert all(0.25 * 2**n <= pause <= 0.5 * 2**n + 0.1 for n, pause in enumerate(pauses))


@pytest.mark.parametrize(
    ("status", "num_answered", "seconds"), [(401, 0, 10), (401, 4, 180), (503, 0, 180), (None, 4, 180)]
)
async def test_an_instance_that_does_not_answer_is_given_up(
    world: World, status: int | None, num_answered: int, seconds: float
) -> None:
    failure = Failure("APIError", "refused", status, is_trouble=True)
    times = []

    async def refuse(inst: InstanceHandle, items: list[int]) -> list[Result]:
        times.append(anyio.current_time())
        return [Result(failure=failure if item >= num_answered else None) for item in items]

    async with world() as (emu, client):
        what = "rejected the workers' inference API key" if status == 401 else "not responded"
        with pytest.raises(errors.EndpointError, match=rf"has {what} for \d+ s: APIError: refused"):
            async with fan_out(refuse, range(400), [client.instance(MODEL)], max_attempts=1) as outcomes:
                assert [outcome.item async for outcome in outcomes if outcome.error] == []
        assert emu.existing == ()
        # Before the first failure come the pauses of items that failed among others.
        assert seconds <= times[-1] - times[0] < seconds + 10


async def test_a_rejected_key_starts_no_other_instance(world: World) -> None:
    async def refuse(_: InstanceHandle, items: list[int]) -> list[Result]:
        return [Result(failure=Failure("APIError", "refused", 401, is_trouble=True)) for _ in items]

    async with world() as (emu, client):
        with pytest.raises(errors.EndpointError, match="rejected the workers' inference API key"):
            async with fan_out(refuse, [1], [client.instance(MODEL) for _ in range(4)]) as outcomes:
                await outcomes.to_list()
        assert len(emu.ledger) == 1
        assert emu.existing == ()


async def test_a_rejected_key_of_one_of_two_instances_ends_only_this_one(world: World) -> None:
    async def refuse_one(inst: InstanceHandle, items: list[int]) -> list[Result]:
        await anyio.sleep(1)
        is_refused = inst.instance_id == "instance-10001"
        failure = Failure("APIError", "refused", 401, is_trouble=True) if is_refused else None
        return [Result(failure=failure) for _ in items]

    async with world() as (emu, client):
        async with fan_out(refuse_one, range(400), [client.instance(MODEL) for _ in range(2)]) as outcomes:
            assert all(outcome.error is None for outcome in await outcomes.to_list())
        assert len(emu.ledger) == 2


async def test_work_that_fails_is_not_called_again(world: World) -> None:
    calls: list[list[int]] = []

    async def fail_slowly(_: InstanceHandle, items: list[int]) -> list[Result]:
        calls.append(items)
        await anyio.sleep(1)
        raise LookupError("of work")

    async with world() as (_, client):
        with pytest.raises(LookupError, match="of work"):
            async with fan_out(fail_slowly, [1, 2, 3], [client.instance(MODEL)]) as outcomes:
                await outcomes.to_list()
    assert calls == [[1, 2, 3]]


async def test_exceptions_of_work_and_of_the_items_are_raised_unchanged(world: World) -> None:
    def items() -> Iterator[int]:
        yield from range(10)
        raise LookupError("no more")

    async with world() as (emu, client):
        with pytest.raises(ZeroDivisionError, match="in a worker"):
            async with fan_out(fail, range(10), [client.instance(MODEL), client.instance(MODEL)]) as outcomes:
                await anext(outcomes)
        with pytest.raises(LookupError, match="no more"):
            async with fan_out(Workers(emu), items(), [client.instance(MODEL)]) as outcomes:
                async for _ in outcomes:
                    pass
        assert emu.existing == ()


class Rows:
    """Items whose clean-up awaits a connection."""

    def __init__(self, count: int = 10_000, *, wait: bool = False, seconds: float = 2.0) -> None:
        self.count = count
        self.wait = wait
        self.seconds = seconds
        self.closed_at: float | None = None

    async def __aiter__(self) -> AsyncIterator[int]:
        try:
            for item in range(self.count):
                yield item
            if self.wait:
                await anyio.sleep_forever()
        finally:
            await anyio.sleep(self.seconds / 2)
            await anyio.sleep(self.seconds / 2)
            self.closed_at = anyio.current_time()


# Either they wait to be read further, or for more of them.
@pytest.mark.parametrize("rows", [Rows(), Rows(8, wait=True)])
async def test_items_are_closed_before_the_block_ends(world: World, rows: Rows) -> None:
    async with world() as (emu, client):
        async with fan_out(Workers(emu), rows, [client.instance(MODEL)]) as outcomes:
            await anext(outcomes)
        assert rows.closed_at is not None
        rows.closed_at = None
        with pytest.raises(ZeroDivisionError):
            async with fan_out(fail, rows, [client.instance(MODEL)]) as outcomes:
                try:
                    await anext(outcomes)
                except ZeroDivisionError:
                    assert rows.closed_at is not None
                    raise
        assert emu.existing == ()


async def fail(inst: InstanceHandle, items: list[int]) -> list[Result]:
    raise ZeroDivisionError("in a worker")


async def test_items_that_do_not_close_hold_up_no_release(world: World) -> None:
    rows = Rows(seconds=2e6)
    async with world() as (emu, client):
        async with fan_out(Workers(emu), rows, [client.instance(MODEL)]) as outcomes:
            await anext(outcomes)
            began = anyio.current_time()
        assert anyio.current_time() - began < 30
        assert emu.existing == ()
    assert rows.closed_at is None


async def test_errors_of_closing_the_items_come_out_or_are_notes(world: World) -> None:
    async def rows() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise LookupError("not closed")

    async with world() as (emu, client):
        with pytest.raises(LookupError, match="not closed"):
            async with fan_out(Workers(emu), rows(), [client.instance(MODEL)]) as outcomes:
                await anext(outcomes)
        with pytest.raises(KeyError) as caught:
            async with fan_out(Workers(emu), rows(), [client.instance(MODEL)]) as outcomes:
                await anext(outcomes)
                raise KeyError
        assert "LookupError('not closed')" in caught.value.__notes__[0]
        with pytest.raises(ZeroDivisionError) as divided:
            async with fan_out(fail, rows(), [client.instance(MODEL)]) as outcomes:
                await anext(outcomes)
        assert "LookupError('not closed')" in divided.value.__notes__[0]


async def test_cancelled_errors_of_others_are_no_cancellation(world: World) -> None:
    async def cancel(inst: InstanceHandle, items: list[int]) -> list[Result]:
        await anyio.sleep(1)
        raise asyncio.CancelledError("the cluster was closed")

    async def items() -> AsyncIterator[int]:
        yield 1
        raise asyncio.CancelledError("the queue was closed")

    async with world() as (emu, client):
        with pytest.raises(RuntimeError, match="A chunk was cancelled by code outside its fan-out"):
            async with fan_out(cancel, range(10), [client.instance(MODEL)]) as outcomes:
                await outcomes.to_list()
        with pytest.raises(RuntimeError, match="The items of a fan-out raised CancelledError"):
            async with fan_out(Workers(emu), items(), [client.instance(MODEL)]) as outcomes:
                await outcomes.to_list()
        assert emu.existing == ()


@pytest.mark.parametrize("seconds", [0.5, 4.5, 7.0])
async def test_cancelling_at_any_time_releases_everything(world: World, seconds: float) -> None:
    async with world() as (emu, client):
        leases = [client.instance(MODEL) for _ in range(2)]
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(seconds):
                async with fan_out(Workers(emu), range(10_000), leases) as outcomes:
                    async for _ in outcomes:
                        pass
        assert emu.existing == ()


async def test_a_cancelled_scope_does_not_spin_during_the_release(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, wait = 0, asyncio.wait

    async def count(*args: Any) -> Any:
        nonlocal waits
        waits += 1
        if waits > 100:
            pytest.fail("no time passes")
        return await wait(*args)

    monkeypatch.setattr(asyncio, "wait", count)
    async with world(stop_seconds=5.0) as (emu, client):
        with anyio.move_on_after(60.0) as scope:
            async with fan_out(Workers(emu, seconds=100.0), range(10), [client.instance(MODEL)]) as outcomes:
                async for _ in outcomes:
                    pass
        assert scope.cancelled_caught
        assert emu.existing == ()


async def test_repeated_cancellations_do_not_interrupt_the_release(world: World) -> None:
    async with world(stop_seconds=5) as (emu, client):

        async def use() -> None:
            async with fan_out(Workers(emu), range(10_000), [client.instance(MODEL)]) as outcomes:
                async for _ in outcomes:
                    pass

        task = asyncio.create_task(use())
        await anyio.sleep(8)
        for _ in range(4):
            task.cancel()
            await anyio.sleep(1)
        assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert emu.existing == ()


async def test_leaving_early_stops_the_work(world: World) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)
        with pytest.raises(KeyError, match="mine"):
            async with fan_out(workers, range(10_000), [client.instance(MODEL)]) as outcomes:
                await anext(outcomes)
                raise KeyError("mine")
        assert emu.existing == ()
        assert sum(workers.busy.values()) == 0


async def test_a_failed_release_raises(world: World) -> None:
    async with world() as (emu, client):
        emu.add_fault(Fault("status", route="stop", times=None, status=500))
        with pytest.raises(TeardownError):
            async with fan_out(
                Workers(emu), range(8), [client.instance(MODEL, teardown_timeout=5)]
            ) as outcomes:
                assert len([outcome async for outcome in outcomes]) == 8
        emu.clear_faults()


async def test_misuse(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(InvalidArgumentError, match="chunk_size"):
            fan_out(Workers(emu), [], [client.instance(MODEL)], chunk_size=0)
        with pytest.raises(InvalidArgumentError, match="a list of leases"):
            fan_out(Workers(emu), [], [])
        with pytest.raises(InvalidArgumentError, match="items must be an iterable or async iterable, not 5"):
            fan_out(Workers(emu), 5, [client.instance(MODEL)])
        outcomes = fan_out(Workers(emu), [], [client.instance(MODEL)])
        with pytest.raises(InvalidArgumentError, match="async with"):
            await anext(outcomes)
        async with outcomes:
            assert [outcome async for outcome in outcomes] == []
        with pytest.raises(InvalidArgumentError, match="again"):
            await outcomes.__aenter__()
        assert emu.existing == ()


class _StatusError(Exception):
    def __init__(self, status_code: int) -> None:
        super().__init__(f"status {status_code} with key sk-secret")
        self.status_code = status_code


class APIConnectionError(Exception):
    """Has the name of an exception of openai."""


def wrapped(inner: Exception) -> Exception:
    outer = RuntimeError("a framework's own")
    outer.__cause__ = inner
    return outer


@pytest.mark.parametrize(
    ("error", "status", "again"),
    [
        (_StatusError(400), 400, False),
        (_StatusError(422), 422, False),
        (_StatusError(404), 404, True),
        (_StatusError(503), 503, True),
        (wrapped(_StatusError(429)), 429, True),
        (APIConnectionError("x"), None, True),
        (wrapped(APIConnectionError("x")), None, True),
        (ConnectionResetError(), None, True),
        (TimeoutError(), None, True),
        (_worker.AnswerError("the response has no `choices` field"), None, True),
        (KeyError("mine"), None, False),
    ],
    ids=repr,
)
def test_which_errors_are_tried_again(
    error: Exception, status: int | None, again: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")

    async def work(inst: InstanceHandle, items: list[str]) -> list[Any]:
        return ["fine", error]

    fine, bad = run(work, ["a", "b"])
    assert fine == Result("fine")
    assert bad.failure is not None
    assert (bad.failure.code, bad.failure.status) == (type(error).__name__, status)
    assert bad.failure.is_trouble is again
    assert "sk-secret" not in str(bad.failure)


def run(work: Any, items: list[Any]) -> list[Result]:
    """Run a chunk as on a worker."""
    return read_results(pickle.loads(pickle.dumps(run_chunk(pickle.dumps, work, HANDLE, items))))  # noqa: S301


def generate() -> Iterator[int]:
    yield from range(2)


@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        ([1], "1 results for 2 items: return one per item"),
        (None, "work returned None: return a list with a value"),
        ("ab", "work returned str: return a list"),
        (b"ab", "work returned bytes: return a list"),
        ({"a": 1, "b": 2}, "work returned dict: return a list"),
        ({1, 2}, "work returned set: return a list"),
        (generate(), "work returned generator: return a list"),
        (5, "work returned int: return a list"),
    ],
)
def test_work_must_return_one_result_per_item(returned: object, complaint: str) -> None:
    async def work(inst: InstanceHandle, items: list[str]) -> object:
        return returned

    for result in run(work, ["a", "b"]):
        assert result.failure is not None
        assert complaint in result.failure.message
        assert (result.failure.code, result.failure.is_trouble) == ("TypeError", False)
    assert _worker._api_key(HANDLE) == ""


@pytest.mark.parametrize("returned", [[1, 2], (1, 2), range(1, 3), array.array("i", [1, 2])])
def test_results_may_be_of_any_ordered_type(returned: object) -> None:
    async def work(inst: InstanceHandle, items: list[str]) -> object:
        return returned

    assert run(work, ["a", "b"]) == [Result(1), Result(2)]


def test_work_must_be_async() -> None:
    (result,) = run(lambda _, items: items, ["a"])
    assert result.failure == Failure("TypeError", "work must be an async function, but returned list")


class OnlyOnWorkers:
    """A value that the driver cannot unpickle."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


class Broken(Exception):  # noqa: N818
    """An exception that cannot be unpickled, as many are that take two arguments."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.status_code = code


class Mute(Exception):  # noqa: N818
    """An exception without a message."""

    def __str__(self) -> str:
        raise ValueError


def test_a_value_that_cannot_be_pickled_is_the_error_of_its_item() -> None:
    values = ["fine", threading.Lock(), OnlyOnWorkers(), asyncio.CancelledError("by work"), Mute()]

    async def work(inst: InstanceHandle, items: list[object]) -> list[object]:
        return values

    fine, lock, unknown, cancelled, mute = run(work, [0] * 5)
    assert fine == Result("fine")
    assert lock.failure == Failure(
        "PicklingError", "a value of type lock cannot be pickled: cannot pickle '_thread.lock' object"
    )
    assert unknown.failure is not None
    assert unknown.failure.code == "UnpicklingError"
    assert "a value cannot be unpickled on the driver: ValueError: invalid literal" in unknown.failure.message
    assert cancelled.failure == Failure("CancelledError", "by work")
    assert mute.failure == Failure("Mute", "(message not available)")


def test_an_exception_of_work_that_cannot_be_unpickled_is_the_error_of_its_items() -> None:
    async def work(inst: InstanceHandle, items: list[object]) -> list[object]:
        raise Broken(503, "busy")

    assert run(work, ["a", "b"]) == [Result(failure=Failure("Broken", "busy", 503, is_trouble=True))] * 2


async def test_an_item_that_cannot_be_sent_fails_and_the_others_are_done() -> None:
    async def work(inst: InstanceHandle, items: list[Any]) -> list[Any]:
        if "raise" in items:
            raise LookupError("mine")
        return [item * 2 for item in items]

    async def run(items: list[Any]) -> Any:
        items = pickle.loads(pickle.dumps(items))  # noqa: S301
        return await anyio.to_thread.run_sync(run_chunk, pickle.dumps, work, HANDLE, items)

    first, lock, unknown, last = await submit_chunk(
        run, pickle.dumps, [1, threading.Lock(), OnlyOnWorkers(), 2]
    )
    assert (first, last) == (Result(2), Result(4))
    for bad, complaint in ((lock, "type lock cannot be pickled"), (unknown, "type OnlyOnWorkers cannot be")):
        assert bad.failure is not None
        assert complaint in bad.failure.message
    (bad,) = await submit_chunk(run, pickle.dumps, [threading.Lock()])
    assert bad.failure is not None
    with pytest.raises(LookupError, match="mine"):
        await submit_chunk(run, pickle.dumps, ["raise", 1])


def test_work_is_checked_before_anything_is_leased() -> None:
    check_work(run_chunk, pickle.dumps)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match="work must be an async function, not None"):
        check_work(None, pickle.dumps)  # type: ignore[arg-type]
    lock = threading.Lock()
    with pytest.raises(InvalidArgumentError, match=r"work cannot be pickled.*cannot pickle '_thread.lock'"):
        check_work(partial(run_chunk, lock), pickle.dumps)  # type: ignore[arg-type]


def test_other_exceptions_of_work_are_raised() -> None:
    async def work(inst: InstanceHandle, items: list[Exception]) -> list[object]:
        raise items[0]

    with pytest.raises(LookupError, match="mine"):
        run(work, [LookupError("mine")])
    with pytest.raises(RuntimeError, match="work raised CancelledError"):
        run(work, [asyncio.CancelledError()])


def requests_file(folder: Path, count: int) -> Path:
    path = folder / "requests.jsonl"
    lines = [
        {"custom_id": f"r{each}", "method": "POST", "url": "/v1/chat/completions", "body": {"n": each}}
        for each in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_answers_continue_in_the_next_run(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 4), tmp_path / "answers.jsonl"
    with AnswerFile(source, target) as answers:
        assert answers.left == 4
        first, second, *_ = answers.unanswered()
        answers.write(Outcome(item=first, value={"choices": []}))
        refused = Failure("BadRequestError", "too long", 400)
        answers.write(Outcome(item=second, error=refused))
        assert answers.left == 2
    whole = target.read_bytes()
    with target.open("ab") as file:
        file.write(whole[: len(whole) // 3])
    with AnswerFile(source, target) as answers:
        assert answers.left == 2
        third, fourth = answers.unanswered()
        answers.write(Outcome(item=third, error=Failure("APIConnectionError", "gone", is_trouble=True)))
        answers.write(Outcome(item=fourth, value="fine"))
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    assert [line["custom_id"] for line in lines] == ["r0", "r1", "r2", "r3"]
    assert [line["response"] and line["response"]["status_code"] for line in lines] == [200, 400, None, 200]
    assert [line["error"] and line["error"]["code"] for line in lines] == [
        None,
        None,
        "APIConnectionError",
        None,
    ]
    with AnswerFile(source, target) as answers:
        assert (answers.left, list(answers.unanswered())) == (0, [])
    with pytest.raises(InvalidArgumentError, match="AnswerFile"):
        answers.write(Outcome(item=fourth))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{", "line 2: not valid JSON"),
        ('{"url": "/v1/chat/completions", "body": {}}', "line 2: custom_id is missing"),
        ('{"custom_id": "a", "url": "/v1/chat/completions"}', "line 2: body is missing"),
        ('{"custom_id": "r0", "url": "/v1/chat/completions", "body": {}}', "line 2: duplicate .* line 1"),
    ],
)
def test_invalid_requests_are_rejected_on_entry(tmp_path: Path, line: str, complaint: str) -> None:
    source = requests_file(tmp_path, 1)
    source.write_text(source.read_text() + line + "\n")
    with pytest.raises(errors.BatchFileError, match=complaint):
        AnswerFile(source, tmp_path / "answers.jsonl").__enter__()


def test_a_file_of_another_kind_is_not_changed(tmp_path: Path) -> None:
    source = requests_file(tmp_path, 1)
    for text, complaint in (
        (source.read_text(), "response are required"),
        (source.read_text().strip(), "response are required"),
        ("notes", "no line break at the end"),
    ):
        target = tmp_path / "other"
        target.write_text(text)
        with pytest.raises(errors.BatchFileError, match=complaint):
            AnswerFile(source, target).__enter__()
        assert target.read_text() == text
    with (
        AnswerFile(source, tmp_path / "answers"),
        pytest.raises(errors.BatchFileError, match="another process"),
    ):
        AnswerFile(source, tmp_path / "answers").__enter__()


def test_requests_may_have_any_format_of_a_batch(tmp_path: Path) -> None:
    source = tmp_path / "requests.jsonl.gz"
    body = {"model": "mine", "input": "é", "n": 1.0}
    lines = [
        '\ufeff{"prompt": "Hi", "id": 7}',
        "",
        json.dumps({"custom_id": "e", "url": "/v1/embeddings", "body": body}),
        '{"messages": [], "max_tokens": 5}',
    ]
    source.write_bytes(gzip.compress("\r\n".join(lines).encode()))
    with AnswerFile(source, tmp_path / "answers") as answers:
        assert answers.left == 3
        found = list(answers.unanswered())
    chat = "/v1/chat/completions"
    assert found == [
        {
            "custom_id": "7",
            "method": "POST",
            "url": chat,
            "body": {"messages": [{"role": "user", "content": "Hi"}]},
        },
        {"custom_id": "e", "method": "POST", "url": "/v1/embeddings", "body": body},
        {"custom_id": "line-4", "method": "POST", "url": chat, "body": {"messages": [], "max_tokens": 5}},
    ]


def answer_all(source: Path, target: Path) -> None:
    with AnswerFile(source, target) as answers:
        for item in answers.unanswered():
            answers.write(Outcome(item=item, value={"choices": ["é"], "logprob": float("-inf")}))


def test_a_changed_request_is_an_error_but_not_one_written_differently(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 2), tmp_path / "answers.jsonl"
    answer_all(source, target)
    whole = target.read_bytes()
    text = source.read_text()
    assert '{"n": 0}' in text
    source.write_text(text.replace('{"n": 0}', '{"stream": false, "n": 0.0}'))
    with AnswerFile(source, target) as answers:
        assert answers.left == 0
    source.write_text(text.replace('{"n": 0}', '{"n": 5}'))
    with pytest.raises(errors.BatchFileError, match=r"line 1 of .* but a different request"):
        AnswerFile(source, target).__enter__()
    assert target.read_bytes() == whole


def test_a_line_is_like_that_of_a_batch(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 1), tmp_path / "answers.jsonl"
    answer_all(source, target)
    text = target.read_text(encoding="utf-8")
    request_id = json.loads(text)["id"]
    assert re.fullmatch("batch_req_v2_[0-9a-f]{32}", request_id)
    assert text == (
        f'{{"id":"{request_id}","custom_id":"r0","response":{{"status_code":200,"request_id":"{request_id}",'
        '"body":{"choices":["é"],"logprob":null}},"error":null}\n'
    )


OLD_LINE = '{"id": "fleet_req_%032x", "custom_id": "r%d", "response": null, "error": {"code": "X"}}\n'


@pytest.mark.parametrize("torn", [1, 20, 70])
def test_answers_of_earlier_versions_are_recognized(tmp_path: Path, torn: int) -> None:
    source, target = requests_file(tmp_path, 3), tmp_path / "answers.jsonl"
    whole = OLD_LINE % (123, 1)
    target.write_text(whole + (OLD_LINE % (124, 2))[:torn])
    with AnswerFile(source, target) as answers:
        assert [item["custom_id"] for item in answers.unanswered()] == ["r0", "r2"]
    assert target.read_text() == whole
    target.write_text(OLD_LINE % (123, 9))
    with pytest.raises(errors.BatchFileError, match=r"no request in .* has this custom_id"):
        AnswerFile(source, target).__enter__()


def test_an_answer_is_written_once(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 2), tmp_path / "answers.jsonl"
    with AnswerFile(source, target) as answers:
        first = next(answers.unanswered())
        for custom_id in ("r1", "other"):
            with pytest.raises(InvalidArgumentError, match=custom_id):
                answers.write(Outcome(item={**first, "custom_id": custom_id}, value={}))
        with pytest.raises(TypeError):
            answers.write(Outcome(item=first, value=object()))
        answers.write(Outcome(item=first, value={}))
        with pytest.raises(InvalidArgumentError, match="r0"):
            answers.write(Outcome(item=first, value={}))
        assert [item["custom_id"] for item in answers.unanswered()] == ["r1"]
        assert answers.left == 1
    assert len(target.read_text().splitlines()) == 1
    with pytest.raises(InvalidArgumentError, match="block"):
        next(AnswerFile(source, target).unanswered())


def test_a_replaced_file_is_noticed_and_its_answers_are_saved(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 3), tmp_path / "answers.jsonl"
    with pytest.raises(errors.BatchWriteError, match=r"removed .* 2 of 2 answers are saved in"):
        with AnswerFile(source, target) as answers:
            requests = answers.unanswered()
            answers.write(Outcome(item=next(requests), value={}))
            target.unlink()
            answers.write(Outcome(item=next(requests), value={}))
    (saved,) = tmp_path.glob("*.recovered-*")
    saved.rename(target)
    with pytest.raises(errors.BatchWriteError, match="3 of 3 answers are saved in"):
        with AnswerFile(source, target) as answers:
            answers.write(Outcome(item=next(answers.unanswered()), value={}))
            target.unlink()
    with pytest.raises(KeyError) as raised, AnswerFile(source, target) as answers:
        answers.write(Outcome(item=next(answers.unanswered()), value={}))
        target.write_text("")
        raise KeyError
    assert "truncated" in raised.value.__notes__[0]


def test_answers_that_others_changed_in_place_are_read_again(tmp_path: Path) -> None:
    source, target = requests_file(tmp_path, 1), tmp_path / "answers.jsonl"
    with pytest.raises(errors.BatchFileError, match="not valid JSON"), AnswerFile(source, target) as answers:
        answers.write(Outcome(item=next(answers.unanswered()), value={}))
        target.write_bytes(b"x" * (target.stat().st_size - 1) + b"\n")
        os.utime(target, ns=(1, 1))


def test_answers_are_synced_at_the_end_and_not_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, sync = [], os.fsync

    def note(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    source, target = requests_file(tmp_path, 30), tmp_path / "answers.jsonl"
    answer_all(source, target)
    assert synced[-1] == target.stat().st_size
    assert len(synced) <= 2  # the folder, once


def test_memory_does_not_grow_with_the_files(tmp_path: Path) -> None:
    source, target = tmp_path / "requests.jsonl", tmp_path / "answers.jsonl"
    with source.open("w") as file:
        for number in range(2000):
            file.write(json.dumps({"id": f"{number:04000}", "prompt": "Hi"}) + "\n")
    with AnswerFile(source, target) as answers:
        tracemalloc.start()
        try:
            for item in answers.unanswered():
                answers.write(Outcome(item=item, value={}))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    # The ids have 8 MB, and the buffer 1 MiB.
    assert peak < 3 << 20


@pytest.mark.parametrize(
    ("url", "reply", "problem"),
    [
        ("/v1/chat/completions", {"choices": [{"text": ""}]}, None),
        (
            "/v1/chat/completions",
            {"error": {"message": "overloaded"}},
            "the response is an error: overloaded",
        ),
        ("/v1/chat/completions", {"data": [1]}, "the response has no `choices` field"),
        ("/v1/chat/completions", "busy", "the answer is not a JSON object"),
        ("/v1/of-another-server", "fine", None),
    ],
)
async def test_a_success_without_an_answer_is_not_one(
    monkeypatch: pytest.MonkeyPatch, url: str, reply: object, problem: str | None
) -> None:
    class Endpoint:
        async def __aenter__(self) -> Self:
            return self

        async def __aexit__(self, *error: object) -> None:
            pass

        async def post(self, path: str, *, cast_to: type, body: dict[str, Any]) -> object:
            assert (f"/v1{path}", body) == (url, {"n": 1, "model": "m"})
            return reply

    monkeypatch.setattr(InstanceHandle, "openai", lambda self, **options: Endpoint())
    (found,) = await answer(HANDLE, [{"url": url, "body": {"n": 1}}])
    if problem is None:
        assert found == reply
    else:
        assert isinstance(found, _worker.AnswerError)
        assert str(found) == problem


def test_public_names_show_a_public_module_and_can_be_pickled() -> None:
    from cortecs_async.integrations import dask, ray  # noqa: PLC0415

    for module in (dask, ray):
        for name in module.__all__:
            found = getattr(module, name)
            assert found.__module__ in {dask.__name__, ray.__name__}
            assert pickle.loads(pickle.dumps(found)) is found  # noqa: S301


def test_errors_say_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from cortecs_async.integrations import dask, ray  # noqa: PLC0415

    leases: list[Any] = [attrs.make_class("Lease", [])()]
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(ConfigurationError, match="pip install ray"):
        ray.fan_out(run_chunk, [], leases)  # type: ignore[arg-type]
    monkeypatch.setitem(__import__("sys").modules, "ray", SimpleNamespace(is_initialized=lambda: False))
    with pytest.raises(ConfigurationError, match=r"ray.init\(\)"):
        ray.fan_out(run_chunk, [], leases)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="asynchronous=True"):
        dask.fan_out(run_chunk, [], leases, SimpleNamespace(asynchronous=False))  # type: ignore[arg-type]
