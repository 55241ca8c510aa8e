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
    ConfigurationError,
    InstanceLostError,
    LeaseExpiredError,
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
