"""The part common to fleets of Ray and Dask, with coroutines as workers, on virtual time.

The clusters themselves are in tests/ecosystem.
"""

from __future__ import annotations

import asyncio
import json
import pickle
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import attrs
import pytest
from _virtual_time import VirtualTimeLoop
from _world import MODEL

from cortecs_async import ConfigurationError, InstanceHandle, InvalidArgumentError, TeardownError, errors
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.integrations import _worker
from cortecs_async.integrations._fan_out import FanOut, Outcome
from cortecs_async.integrations._worker import Failure, Result, run_chunk
from cortecs_async.integrations.jsonl import AnswerFile

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


async def test_an_outage_fails_no_item_and_sends_few_requests(world: World) -> None:
    async with world() as (emu, client):
        workers = Workers(emu)
        down = Failure("ServiceUnavailableError", "starting", 503, is_trouble=True)
        workers.faults = dict.fromkeys(range(44), down)

        async def recover() -> None:
            await anyio.sleep(25)
            workers.faults = {}

        async with anyio.create_task_group() as tasks:
            async with fan_out(workers, range(44), [client.instance(MODEL)], max_attempts=9) as outcomes:
                tasks.start_soon(recover)
                assert [outcome.error async for outcome in outcomes] == [None] * 44
        # Two chunks in parallel, after 0, 2, 6, 14 seconds and so on.
        assert len(workers.chunks) <= 11 + 2 * 6


async def test_an_instance_that_never_answers_is_given_up(world: World) -> None:
    async with world() as (emu, client):

        async def refuse(inst: InstanceHandle, items: list[int]) -> list[Result]:
            return [Result(failure=Failure("AuthenticationError", "wrong key", 401, is_trouble=True))] * len(
                items
            )

        with pytest.raises(
            errors.EndpointError, match=r"has not answered for .* s: AuthenticationError: wrong"
        ):
            async with fan_out(refuse, range(400), [client.instance(MODEL)]) as outcomes:
                async for outcome in outcomes:
                    pytest.fail(f"{outcome}")
        assert emu.existing == ()


async def test_exceptions_of_work_and_of_the_items_are_raised_unchanged(world: World) -> None:
    async def fail(inst: InstanceHandle, items: list[int]) -> list[Result]:
        raise ZeroDivisionError("in a worker")

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
        with pytest.raises(InvalidArgumentError, match="at least one lease"):
            fan_out(Workers(emu), [], [])
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

    fine, bad = pickle.loads(pickle.dumps(run_chunk(work, HANDLE, ["a", "b"])))  # noqa: S301
    assert fine == Result("fine")
    assert (bad.failure.code, bad.failure.status) == (type(error).__name__, status)
    assert bad.failure.is_trouble is again
    assert "sk-secret" not in str(bad.failure)


def test_work_must_return_one_result_per_item() -> None:
    async def work(inst: InstanceHandle, items: list[str]) -> list[Any]:
        return []

    with pytest.raises(ValueError, match="0 results for 1 items"):
        run_chunk(work, HANDLE, ["a"])
    assert _worker._api_key(HANDLE) == ""


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
        ('{"url": "/v1/chat/completions", "body": {}}', "line 2: custom_id must be a string"),
        ('{"custom_id": "a", "url": "/v1/chat/completions"}', "line 2: missing 'body'"),
        ('{"custom_id": "r0", "url": "/v1/chat/completions", "body": {}}', "line 2: duplicate .* 'r0'"),
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
        (source.read_text(), "missing 'response'"),
        (source.read_text().strip(), "not an answer"),
        ("notes", "not an answer"),
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
