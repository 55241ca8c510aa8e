"""How a batch ends early, and what its error says about that: on virtual time, with the emulator."""

from __future__ import annotations

import errno
import json
import pickle
from pathlib import Path
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, TeardownError
from cortecs_async._batch.output import Output
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.errors import (
    BatchFileError,
    BatchWriteError,
    CapacityTimeoutError,
    ConfigurationError,
    InstanceLostError,
    InvalidArgumentError,
    LeaseExpiredError,
    LeaseIdleError,
    ServiceUnavailableError,
)
from cortecs_async.types import BatchReport

pytestmark = pytest.mark.usefixtures("batch_without_threads")

TOTAL = 100


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    body = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 5}
    path.write_text(
        "".join(
            json.dumps({"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body}) + "\n"
            for number in range(TOTAL)
        )
    )
    return path


async def run(client: AsyncCortecs, source: Path, key: str, **options: Any) -> BatchReport:
    options = {"concurrency": 4, "teardown_timeout": 30.0, **options}
    target = source.with_name("out.jsonl")
    return await client.run_batch(source, target, MODEL, HARDWARE, api_key=key, **options)


def lines(source: Path) -> int:
    target = source.with_name("out.jsonl")
    return len(target.read_text().splitlines()) if target.exists() else 0


async def lose(emulator: Emulator) -> None:
    await anyio.sleep(20.0)
    (instance_id,) = emulator.existing
    emulator.delete_instance(instance_id)


@grid(
    strength=1,
    end=["lost instance", "wrong key", "no capacity", "budget", "full disk", "callback"],
    anyio_backend=BACKENDS,
)
async def test_an_error_says_how_far_the_batch_came(
    world: World, source: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {
        "lost instance": InstanceLostError,
        "wrong key": ConfigurationError,
        "no capacity": ServiceUnavailableError,
        "budget": LeaseExpiredError,
        "full disk": BatchWriteError,
        "callback": KeyError,
    }[end]
    options: dict[str, Any] = {}
    if end == "budget":
        options["max_lifetime"] = 30.0
    elif end == "full disk":
        append = Output.append

        def full(output: Output, group: Any) -> int:
            if lines(source) >= 10:
                raise BatchWriteError("out.jsonl cannot be written", path="out.jsonl") from OSError(
                    errno.ENOSPC
                )
            return append(output, group)

        monkeypatch.setattr(Output, "append", full)
    elif end == "callback":

        def fail(progress: Any) -> None:
            if progress.done > 10:
                raise KeyError(progress.done)

        options["on_progress"] = fail
    capacity = {"capacity": {HARDWARE: 0}, "max_retries": 0} if end == "no capacity" else {}
    async with (
        world(answer_seconds=2.0, **capacity) as (emulator, client),
        anyio.create_task_group() as tasks,
    ):
        if end == "lost instance":
            tasks.start_soon(lose, emulator)
        with pytest.raises(expected) as caught:
            await run(client, source, "wrong" if end == "wrong key" else emulator.api_key, **options)
        assert emulator.existing == ()
    report = BatchReport.of(caught.value)
    assert report is not None
    assert (report.total, report.succeeded, report.failed) == (TOTAL, lines(source), 0)
    assert report.left == TOTAL - report.succeeded
    assert (report.succeeded > 0) == (end not in {"wrong key", "no capacity"})
    assert [each.released for each in report.receipts] == ([] if end == "no capacity" else [True])
    assert report.unreleased == ()
    assert (report.cost or 0) > 0 or end == "no capacity"
    if end != "callback":
        assert BatchReport.of(pickle.loads(pickle.dumps(caught.value))) == report  # noqa: S301


async def test_a_cancellation_says_how_far_the_batch_came(world: World, source: Path) -> None:
    report: BatchReport | None = None
    async with world(answer_seconds=2.0) as (emulator, client):
        with anyio.move_on_after(20.0):
            try:
                await run(client, source, emulator.api_key)
            except BaseException as error:
                report = BatchReport.of(error)
                raise
        assert emulator.existing == ()
    assert report is not None
    assert 0 < report.succeeded == lines(source) < TOTAL
    assert report.unreleased == ()
    assert report.seconds > 0


@pytest.mark.parametrize("is_finished", [True, False])
async def test_an_instance_that_could_not_be_released_is_named(
    world: World, source: Path, *, is_finished: bool
) -> None:
    async with world(answer_seconds=0.1 if is_finished else 2.0) as (emulator, client):
        for route in ("delete", "stop"):
            emulator.add_fault(Fault("status", route=route, status=500, times=None))
        error: BaseException | None = None
        with anyio.move_on_after(500.0 if is_finished else 20.0):
            try:
                await run(client, source, emulator.api_key)
            except BaseException as caught:
                error = caught
                if not is_finished:
                    raise
        assert error is not None
        assert isinstance(error, TeardownError) == is_finished
        report = BatchReport.of(error)
        assert report is not None
        assert report.unreleased == emulator.existing != ()
        assert (report.left == 0) == is_finished


async def test_an_error_before_the_start_has_no_report(world: World, source: Path) -> None:
    async with world() as (emulator, client):
        with pytest.raises(BatchFileError) as caught:
            await run(client, source.with_name("none.jsonl"), emulator.api_key)
    assert BatchReport.of(caught.value) is None


async def test_a_batch_that_finishes_leaves_nothing(world: World, source: Path) -> None:
    async with world() as (emulator, client):
        report = await run(client, source, emulator.api_key)
    assert (report.left, report.unreleased) == (0, ())
    assert [each.released for each in report.receipts] == [True]


@pytest.mark.parametrize(("on_exit", "released"), [("delete", True), ("stop", True), ("keep", False)])
async def test_a_receipt_says_whether_the_instance_is_released(
    world: World, on_exit: Any, *, released: bool
) -> None:
    async with world() as (_, client):
        async with client.instance(MODEL, HARDWARE, on_exit=on_exit) as inst:
            assert not inst.receipt.released
        assert inst.receipt.released == released


async def test_an_instance_whose_requests_take_long_is_not_idle(world: World, source: Path) -> None:
    async with world() as (emulator, client):
        emulator.add_fault(Fault("delay", route="chat", seconds=300.0, times=4))
        report = await run(client, source, emulator.api_key, idle_timeout=30.0)
        assert report.succeeded == TOTAL


@pytest.mark.parametrize("instances", [1, 2])
async def test_an_instance_without_requests_is_released(world: World, source: Path, instances: int) -> None:
    async with world() as (emulator, client):
        refusal: dict[str, Any] = {"status": 429, "headers": {"retry-after": "300"}}
        times = 4 if instances == 1 else 1
        # The first chat is the test request of the instance.
        emulator.add_fault(Fault("status", route="chat", skip=11, times=times, **refusal))
        if instances == 1:
            with pytest.raises(LeaseIdleError) as caught:
                await run(client, source, emulator.api_key, idle_timeout=60.0)
            report = BatchReport.of(caught.value)
            assert report is not None
            assert 10 <= report.succeeded < TOTAL
        else:
            report = await run(client, source, emulator.api_key, idle_timeout=60.0, instances=2)
            assert report.succeeded == TOTAL
        assert emulator.existing == ()


async def test_instances_that_wait_for_capacity_share_a_poll_and_end_with_the_work(
    world: World, source: Path
) -> None:
    async with world(answer_seconds=2.0, capacity={HARDWARE: 1, "NVIDIA_L4_1": 0}) as (emulator, client):
        target = source.with_name("out.jsonl")
        report = await client.run_batch(
            *(source, target, MODEL, ["NVIDIA_L4_1", HARDWARE]),
            api_key=emulator.api_key,
            concurrency=4,
            instances=4,
            capacity_timeout="1h",
        )
        assert (report.succeeded, len(report.receipts)) == (TOTAL, 1)
        assert report.receipts[0].hardware_reason == "second choice: NVIDIA_L4_1 was not available"
        routes = [each.route for each in emulator.requests]
        # At the beginning, and then every five seconds.
        assert 5 < routes.count("available") < 20
        # One, and two refusals for each of the others.
        assert routes.count("start") == 7
        assert emulator.existing == ()


async def test_a_batch_without_capacity(world: World, source: Path) -> None:
    async with world(capacity={HARDWARE: 0}) as (emulator, client):
        with pytest.raises(CapacityTimeoutError, match="within capacity_timeout=60 s") as caught:
            await run(client, source, emulator.api_key, instances=2, capacity_timeout="1m")
        report = BatchReport.of(caught.value)
        assert report is not None
        assert report.receipts == ()


async def test_a_plan_for_several_hardware_types(world: World, source: Path) -> None:
    async with world(capacity={"NVIDIA_L4_1": 0}) as (emulator, client):
        target = source.with_name("out.jsonl")

        async def plan(hardware: Any, **options: Any) -> tuple[Any, ...]:
            found = await client.plan_batch(source, target, MODEL, hardware, **options)
            return found.hardware_type_id, found.is_available, found.price_per_minute, found.hardware_reason

        second = "second choice: NVIDIA_L4_1 was not available"
        assert await plan(["NVIDIA_L4_1", HARDWARE], num_workers=2) == (HARDWARE, True, 0.1, second)
        assert await plan("cheapest") == ("NVIDIA_L40S_1", True, 0.03, "cheapest of 3 available")
        assert await plan(["NVIDIA_L4_1"]) == ("NVIDIA_L4_1", False, 0.015, "")
        assert (await plan(None, max_price_per_hour=2))[:2] == ("NVIDIA_L40S_1", True)
        with pytest.raises(InvalidArgumentError, match="costs 3 EUR per hour"):
            await plan(HARDWARE, max_price_per_hour=2)
        assert [each.route for each in emulator.requests].count("start") == 0
