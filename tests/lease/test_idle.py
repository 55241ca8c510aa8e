"""Leases with an `idle_timeout`, on virtual time: what counts as activity, and what ends an idle block."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import httpx
import pytest
from _reapers import StubReaper, stub_reapers
from _world import HARDWARE, MODEL, World

from cortecs_async import InstanceHandle, InstanceLease, InvalidArgumentError, errors
from cortecs_async._lease.activity import Activity
from cortecs_async._recovery.journal import read_journals
from cortecs_async.emulator import Fault

KEY = "key-of-a-test"
TIMEOUT = 600.0


def block_the_loop(seconds: float) -> None:
    """Let time pass without running any task, as code that blocks the event loop does."""
    if "trio" in sys.modules and (trio := sys.modules["trio"]).lowlevel.in_trio_task():
        trio.lowlevel.current_clock().jump(seconds)
    else:
        loop: Any = asyncio.get_running_loop()
        loop._virtual_selector.now += seconds


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.announced: list[tuple[float, float]] = []

    def activity(self, timeout: float) -> Activity:
        return Activity(timeout, lambda: self.now, lambda seconds: self.announced.append((self.now, seconds)))


async def use_until_idle(lease: InstanceLease, use: Callable[[InstanceLease], Any]) -> tuple[float, float]:
    """Use a lease until it is idle. Return the seconds that this took, and the seconds without use."""
    began = used = ended = 0.0
    with pytest.raises(errors.LeaseIdleError):
        async with lease as inst:
            began = used = anyio.current_time()
            try:
                await use(inst)
                used = anyio.current_time()
                await anyio.sleep(10_000)
            finally:
                ended = anyio.current_time()
    return used - began, ended - used


async def idle_after(lease: InstanceLease, use: Callable[[InstanceLease], Any]) -> float:
    """Use a lease until it is idle, and return the seconds after the beginning of its block."""
    return sum(await use_until_idle(lease, use))


# --- the verdict --------------------------------------------------------------------------------------------


async def test_a_block_without_a_request_ends_with_a_typed_error(world: World) -> None:
    async with world(step_seconds=60.0) as (emu, client):
        with pytest.raises(errors.LeaseIdleError) as caught:
            async with client.instance(MODEL, HARDWARE, idle_timeout="10m"):
                began = anyio.current_time()
                assert began > 100  # startup does not count
                try:
                    await anyio.sleep(10_000)
                finally:
                    assert anyio.current_time() - began == TIMEOUT
        assert str(caught.value) == (
            "Instance instance-10001 had no request for idle_timeout=600 s. Increase idle_timeout, or call "
            "inst.touch() when you use the instance in a way that the client does not see"
        )
        assert isinstance(caught.value, errors.LeaseExpiredError)
        assert emu.existing == ()


@pytest.mark.parametrize("on_exit", ["keep", "stop", "delete"])
async def test_an_idle_instance_is_not_billed_whatever_on_exit_says(world: World, on_exit: Any) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseIdleError):
            async with client.instance(MODEL, HARDWARE, idle_timeout=50, on_exit=on_exit):
                await anyio.sleep(10_000)
        assert emu.billing == ()


@pytest.mark.parametrize("was", ["running", "stopped"])
async def test_a_reused_instance_returns_to_its_earlier_state(world: World, was: str) -> None:
    async with world() as (emu, client):
        instance_id = emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(60)
        if was == "stopped":
            emu.stop_instance(instance_id)
        with pytest.raises(errors.LeaseIdleError):
            async with client.instance(MODEL, HARDWARE, idle_timeout=50, reuse=True):
                await anyio.sleep(10_000)
        assert (await client.instances.get(instance_id)).status == was


async def test_the_blocks_own_exception_is_not_replaced(world: World) -> None:
    problem = KeyError("mine")
    async with world() as (emu, client):
        with pytest.raises(KeyError) as caught:
            async with client.instance(MODEL, HARDWARE, idle_timeout=50):
                try:
                    await anyio.sleep(10_000)
                finally:
                    raise problem
        assert caught.value is problem
        assert "had no request for idle_timeout=50 s" in problem.__notes__[0]
        assert emu.existing == ()


async def test_an_idle_block_that_ignores_losses_ends_too(world: World) -> None:
    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=50, on_loss="ignore")
        assert await idle_after(lease, lambda _: anyio.lowlevel.checkpoint()) == 50
        assert emu.existing == ()


async def test_a_hang_longer_than_the_timeout_is_idle(world: World) -> None:
    async with world() as (_, client):
        with pytest.raises(errors.LeaseIdleError):
            async with client.instance(MODEL, HARDWARE, idle_timeout=50):
                block_the_loop(1000)
                await anyio.sleep(10_000)


@pytest.mark.parametrize(
    ("max_lifetime", "error"), [(40.0, errors.LeaseExpiredError), (10_000.0, errors.LeaseIdleError)]
)
async def test_limits_and_a_loss_that_a_hang_brings_together_are_one_verdict(
    world: World, max_lifetime: float, error: type[Exception]
) -> None:
    """Test that the limit that was reached first counts: the reaper has acted because of it."""
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseExpiredError) as caught:
            async with client.instance(MODEL, HARDWARE, idle_timeout=60, max_lifetime=max_lifetime):
                await anyio.sleep(20)
                emu.delete_instance(emu.existing[0])
                block_the_loop(20_000)
                await anyio.sleep(10_000)
        assert type(caught.value) is error
        assert not getattr(caught.value, "__notes__", [])


async def test_an_instance_that_the_reaper_has_released_during_a_hang_is_not_lost(world: World) -> None:
    """Test this even if a failed request ends the block before any task could notice."""
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseIdleError) as caught:
            async with client.instance(MODEL, HARDWARE, idle_timeout=60):
                emu.delete_instance(emu.existing[0])
                block_the_loop(1000)
                raise ConnectionResetError
        assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_an_instance_that_disappears_in_time_is_lost(world: World) -> None:
    async with world(step_seconds=0.0) as (emu, client):
        with pytest.raises(errors.InstanceLostError):
            async with client.instance(MODEL, HARDWARE, idle_timeout=70):
                await anyio.sleep(65)
                emu.delete_instance(emu.existing[0])
                raise ConnectionResetError


async def test_a_suspended_machine_is_idle(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    slept = [0.0]
    monkeypatch.setattr("cortecs_async._lease.state.suspended", lambda: slept[0])

    async def suspend(_: InstanceLease) -> None:
        await anyio.sleep(5)
        slept[0] += 3600

    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=TIMEOUT)
        assert await idle_after(lease, suspend) <= 5 + 10
        assert emu.existing == ()


# --- what counts --------------------------------------------------------------------------------------------


async def test_touch_counts_in_any_thread_and_raises_after_the_release(world: World) -> None:
    async def touch(inst: InstanceLease) -> None:
        for _ in range(10):
            await anyio.sleep(50)
            inst.touch()

    async with world() as (_, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        with pytest.raises(InvalidArgumentError, match="has no instance yet"):
            lease.touch()
        assert await idle_after(lease, touch) == 10 * 50 + 60
        with pytest.raises(InvalidArgumentError, match="was released"):
            lease.touch()
        async with client.instance(MODEL, HARDWARE) as without:
            without.touch()
            await anyio.sleep(1000)


async def test_a_touch_comes_too_late_once_the_lease_is_idle(world: World) -> None:
    """Test that the reaper and the client agree, whichever notices first."""

    async def touch_late(inst: InstanceLease) -> None:
        block_the_loop(61)
        inst.touch()

    async with world() as (_, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        assert await idle_after(lease, touch_late) == 61


async def test_calls_of_map_count_from_beginning_to_end(world: World) -> None:
    async def call(seconds: float) -> float:
        await anyio.sleep(seconds)
        return seconds

    async def use(inst: InstanceLease) -> None:
        assert await inst.map(call, [500.0, 20.0], concurrency=1).to_list() == [500.0, 20.0]
        assert await inst.handle.map(call, [100.0]).to_list() == [100.0]

    async with world() as (_, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        assert await idle_after(lease, use) == 620 + 60


async def test_a_map_function_that_is_not_async_is_still_an_error(world: World) -> None:
    async with world() as (_, client), client.instance(MODEL, HARDWARE, idle_timeout=60) as inst:
        with pytest.raises(InvalidArgumentError, match="fn must be an async function, but str returned"):
            await inst.map(str, [1]).to_list()  # type: ignore[arg-type]


class Endpoint:
    """Answers each request after a while, or with a stream of one chunk after each of the pauses."""

    def __init__(self, *pauses: float, seconds: float = 0.0, failures: int = 0) -> None:
        self.pauses = pauses
        self.seconds = seconds
        self.failures = failures

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        await anyio.sleep(self.seconds)
        if self.failures:
            self.failures -= 1
            return httpx.Response(503, json={})
        if self.pauses:
            return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=self._chunks())
        message = {"role": "assistant", "content": "yes"}
        choices = [{"index": 0, "finish_reason": "stop", "message": message}]
        return httpx.Response(
            200,
            json={"id": "1", "object": "chat.completion", "created": 1, "model": MODEL, "choices": choices},
        )

    async def _chunks(self) -> AsyncIterator[bytes]:
        for pause in self.pauses:
            await anyio.sleep(pause)
            yield b'data: {"id": "1", "object": "chat.completion.chunk", "created": 1, "choices": []}\n\n'
        yield b"data: [DONE]\n\n"


MESSAGES: Any = [{"role": "user", "content": "Are you there?"}]


@pytest.fixture
def openai() -> Any:
    return pytest.importorskip("openai")


Ask = Callable[[Any], Any]


async def plain(llm: Any) -> None:
    await llm.chat.completions.create(model=MODEL, messages=MESSAGES)


async def copied(llm: Any) -> None:
    await plain(llm.with_options(max_retries=1))


async def streamed(llm: Any) -> None:
    async with await llm.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as chunks:
        async for _ in chunks:
            pass


async def raw_stream(llm: Any) -> None:
    create = llm.chat.completions.with_streaming_response.create
    async with create(model=MODEL, messages=MESSAGES) as response:
        await response.read()


async def broken_off(llm: Any) -> None:
    async with await llm.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True) as chunks:
        await anext(aiter(chunks))


ASKS: dict[str, tuple[Ask, Callable[[], Endpoint], float]] = {
    "plain": (plain, lambda: Endpoint(seconds=100), 100),
    "a copy of the client, and its retry": (copied, lambda: Endpoint(seconds=100, failures=1), 200),
    "a stream": (streamed, lambda: Endpoint(50, 50, 50, seconds=10), 160),
    "a raw stream": (raw_stream, lambda: Endpoint(50, 50, 50, seconds=10), 160),
    "a stream broken off": (broken_off, lambda: Endpoint(50, 5000), 50),
}


# openai leaves the generators of a stream to the garbage collector, and trio warns about that.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator object")
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize("name", ASKS)
async def test_a_request_counts_until_the_end_of_its_response(world: World, openai: Any, name: str) -> None:
    ask, new_endpoint, seconds = ASKS[name]
    endpoint = new_endpoint()

    async def use(inst: InstanceLease) -> None:
        # The user's own HTTP client, which is not changed.
        async with httpx.AsyncClient(transport=httpx.MockTransport(endpoint), timeout=1000) as http:
            assert type(http) is httpx.AsyncClient
            llm = inst.openai(api_key=KEY, http_client=http)
            assert isinstance(llm, openai.AsyncOpenAI)
            await ask(llm)
            assert vars(http).keys() == vars(httpx.AsyncClient()).keys()

    async with world() as (emu, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        used, idle = await use_until_idle(lease, use)
        assert used >= seconds
        assert idle == pytest.approx(60)
        assert emu.existing == ()


@pytest.mark.filterwarnings("ignore:Exception ignored in. <async_generator object")
@pytest.mark.filterwarnings("ignore:Async generator:ResourceWarning")
@pytest.mark.parametrize(("timeout", "silence"), [(100.0, 100), (None, 600)])
@pytest.mark.usefixtures("openai")
async def test_an_open_response_counts_no_longer_than_its_read_timeout(
    world: World, timeout: float | None, silence: float
) -> None:
    kept: list[Any] = []

    async def use(inst: InstanceLease) -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(Endpoint(20, 100_000)))
        llm = inst.openai(api_key=KEY, http_client=http, timeout=timeout)
        create = llm.chat.completions.create
        kept.append(await create(model=MODEL, messages=MESSAGES, stream=True))  # never read, never closed
        kept.append(await create(model=MODEL, messages=MESSAGES, stream=True))
        await anext(aiter(kept[-1]))  # read halfway

    async with world() as (_, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        used, idle = await use_until_idle(lease, use)
        assert used >= 20
        assert silence + 60 - 15 <= idle <= silence + 60
        for stream in kept:
            await stream.close()


@pytest.mark.proofs  # importing LangChain takes seconds
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)  # LangChain supports no other
async def test_requests_of_langchain_and_pydantic_ai_count(world: World) -> None:
    pytest.importorskip("langchain_openai")
    pytest.importorskip("pydantic_ai.models.openai")

    async def use(inst: InstanceLease) -> None:
        http = httpx.AsyncClient(transport=httpx.MockTransport(Endpoint(seconds=100)))
        await inst.langchain(api_key=KEY, http_async_client=http).ainvoke("Are you there?")
        assert "request" in vars(type(inst.pydantic_ai(api_key=KEY).client))
        await http.aclose()

    async with world() as (_, client):
        lease = client.instance(MODEL, HARDWARE, idle_timeout=60)
        assert await idle_after(lease, use) == 160


@pytest.mark.usefixtures("openai")
def test_requests_of_a_synchronous_client_count() -> None:
    from openai import OpenAI  # noqa: PLC0415

    from cortecs_async._lease.endpoint import _hooked  # noqa: PLC0415

    clock, seen = Clock(), [0]
    activity = clock.activity(60)
    activity.begin()

    def chunks() -> Any:
        for _ in range(3):
            clock.now += 50
            yield b'data: {"id": "1", "object": "chat.completion.chunk", "created": 1, "choices": []}\n\n'
        yield b"data: [DONE]\n\n"

    def respond(_: httpx.Request) -> httpx.Response:
        clock.now += 30
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=chunks())

    def check() -> None:
        seen[0] += 1

    http: Any = httpx.Client(transport=httpx.MockTransport(respond))
    llm = OpenAI(base_url="http://localhost/v1", api_key=KEY, http_client=http)
    with http, _hooked(llm, check, activity):
        for _ in llm.chat.completions.create(model=MODEL, messages=MESSAGES, stream=True):
            pass
    assert activity.idle_at == 180 + 60
    assert seen == [1]


async def test_handles_count_in_their_process_only(world: World) -> None:
    async with world() as (_, client), client.instance(MODEL, HARDWARE, idle_timeout=60) as inst:
        for near in (inst.handle, copy.copy(inst.handle), copy.deepcopy(inst.handle)):
            assert near._get_activity() is inst._state.activity
            assert near == inst.handle
        unpickled = pickle.loads(pickle.dumps(inst.handle))  # noqa: S301
        for far in (unpickled, InstanceHandle.from_json(inst.handle.to_json())):
            assert far._get_activity() is None
            assert far == inst.handle


async def test_a_dropped_lease_with_an_idle_timeout_is_released(world: World) -> None:
    async with world() as (emu, client):
        lease: InstanceLease | None = client.instance(MODEL, HARDWARE, idle_timeout=60)
        assert lease is not None
        inst = await lease.__aenter__()
        touch = inst._state.activity.touch  # type: ignore[union-attr]
        del lease, inst
        gc.collect()
        await anyio.sleep(30)
        assert emu.existing == ()
        touch()


async def test_a_lease_without_an_idle_timeout_has_no_activity_and_unchanged_clients(world: World) -> None:
    openai = pytest.importorskip("openai")
    async with world() as (_, client), client.instance(MODEL, HARDWARE) as inst:
        assert inst._state.activity is None
        assert type(inst.openai(api_key=KEY)).request is openai.AsyncOpenAI.request


async def test_an_idle_timeout_sends_no_requests(world: World) -> None:
    counts = []
    for idle_timeout in (None, 60):
        async with world() as (emu, client):
            async with client.instance(MODEL, HARDWARE, idle_timeout=idle_timeout) as inst:
                for _ in range(4):
                    await anyio.sleep(50)
                    inst.touch()
            counts.append(len(emu.requests))
    assert counts[0] == counts[1]


# --- Activity -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("timeout", "interval"), [(2.0, 1.0), (60.0, 7.5), (7200.0, 30.0)])
def test_a_busy_lease_announces_its_activity_seldom(timeout: float, interval: float) -> None:
    clock = Clock()
    activity = clock.activity(timeout)
    activity.begin()
    while clock.now < 10 * interval:
        with activity.request():
            clock.now += 0.25
    moments = [moment for moment, _ in clock.announced]
    assert moments[0] == 0
    assert moments == [interval * number for number in range(len(moments))]
    assert len(moments) >= 10
    # The reaper leaves the client time for the next announcement, even if it is late.
    assert {seconds for _, seconds in clock.announced} == {timeout + 2 * interval}
    activity.end()
    clock.now += interval
    activity.touch()
    assert clock.announced[-1][0] < clock.now


def test_a_request_in_flight_counts_only_if_it_is_checked() -> None:
    clock = Clock()
    activity = clock.activity(60)
    with activity.request():
        for _ in range(10):
            clock.now += 30
            activity.check()
        assert activity.idle_at == 300 + 60
        clock.now += 61  # the event loop is blocked
        activity.check()
        assert activity.idle_at == 300 + 60
    assert activity.idle_at == 300 + 60


def test_a_response_that_is_dropped_is_forgotten() -> None:
    clock = Clock()
    activity = clock.activity(60)
    activity.open_response(30.0)
    clock.now = 31
    activity.check()
    assert activity._open == {}
    assert activity.idle_at == 60


# --- the reaper ---------------------------------------------------------------------------------------------


@pytest.fixture
def reapers(monkeypatch: pytest.MonkeyPatch) -> list[StubReaper]:
    return stub_reapers(monkeypatch)


async def test_the_reaper_hears_of_activity_and_the_journal_does_not(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (_, client):
        async with client.instance(MODEL, HARDWARE, idle_timeout=TIMEOUT) as inst:
            began = anyio.current_time()
            for _ in range(600):
                await anyio.sleep(1)
                inst.touch()
            idle = [each for each in reapers[-1].sent if each["kind"] == "IDLE"]
            wall = client._wiring.promises.system.wall_clock() - anyio.current_time()
            assert [each["idle_at"] - wall - began for each in idle] == pytest.approx(
                [30.0 * number + TIMEOUT + 60 for number in range(21)]
            )
            assert {each["entry"] for each in idle} == {inst._state.held.key}
            # A new reaper gets the last one, and the journal none, not even when it is rewritten.
            reapers[-1].is_running = False
            reapers[-1].on_death()
            assert [each for each in reapers[-1].sent if each["kind"] == "IDLE"] == idle[-1:]
            path = client._wiring.promises.store._journal.path  # type: ignore[union-attr]
            assert "IDLE" not in path.read_text()
            store = client._wiring.promises.store
            assert store._journal is not None
            store._journal.rewrite(store.state.snapshot())
            assert "IDLE" not in path.read_text()
            assert [state.problem for _, state in read_journals(journals)] == [""]


@pytest.mark.parametrize(
    ("limit", "error"),
    [({"idle_timeout": 60}, errors.LeaseIdleError), ({"max_lifetime": 200}, errors.LeaseExpiredError)],
)
async def test_a_hang_at_the_end_of_a_block_does_not_leave_a_kept_instance_unclear(
    world: World, limit: Any, error: type[Exception]
) -> None:
    async with world() as (emu, client):
        with pytest.raises(error):
            async with client.instance(MODEL, HARDWARE, on_exit="keep", **limit):
                block_the_loop(1000)
        assert emu.billing == ()


@pytest.mark.parametrize("max_lifetime", [None, 5000.0])
async def test_the_reaper_ends_a_kept_instance_of_a_hung_program_but_not_after_the_block(
    world: World, journals: Path, reapers: list[StubReaper], max_lifetime: float | None
) -> None:
    async with world(journal="auto", guard="auto") as (emu, client):
        options: Any = {"on_exit": "keep", "idle_timeout": 60, "max_lifetime": max_lifetime}
        async with client.instance(MODEL, HARDWARE, **options) as inst:
            inst.touch()
            wall = client._wiring.promises.system.wall_clock()
            await client._wiring.promises.flush()
            (promise,) = reapers[-1].promises
            assert promise.is_due(wall + 76, owner_lives=True)
            assert not promise.needs_recovery(wall + 76)
        assert not any(each.is_due(wall + 76, owner_lives=True) for each in reapers[-1].promises)
        assert len(emu.billing) == 1


async def test_a_finished_lease_is_not_open_again_because_of_a_late_message(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (_, client):
        async with client.instance(MODEL, HARDWARE, idle_timeout=TIMEOUT) as inst:
            key = inst._state.held.key
            assert key is not None
        store = client._wiring.promises.store
        store.put({"kind": "IDLE", "entry": key, "idle_at": 0.0})
        assert not store.is_open(key)


async def test_in_one_reused_running_instance_nothing_is_promised(
    world: World, journals: Path, reapers: list[StubReaper]
) -> None:
    async with world(journal="auto", guard="auto") as (emu, client):
        emu.start_instance(MODEL, HARDWARE)
        await anyio.sleep(60)
        with pytest.raises(errors.LeaseIdleError):
            async with client.instance(MODEL, HARDWARE, idle_timeout=60, reuse=True):
                await anyio.sleep(1000)
        assert len(emu.billing) == 1
        assert not any("IDLE" in each.kinds for each in reapers)


async def test_a_service_that_is_down_does_not_replace_the_verdict(world: World) -> None:
    async with world() as (emu, client):
        with pytest.raises(errors.LeaseIdleError) as caught:
            async with client.instance(MODEL, HARDWARE, idle_timeout=60, teardown_timeout=20):
                emu.add_fault(Fault("drop", times=None))
                await anyio.sleep(1000)
        assert "Could not release" in str(caught.value.__notes__)
        emu.clear_faults()
