"""What a client tells its `telemetry`, and that nothing which that does changes what happens."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
from _closing import close_inside
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, ConfigurationError, RetryPolicy
from cortecs_async._aio.eventloop import LoopBinding
from cortecs_async._telemetry import _route
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.types import LeaseInfo, PhaseEnd, RequestRetry, Telemetry


class Recorder(Telemetry):
    """Notes what it is told."""

    def __init__(self) -> None:
        self.began: list[tuple[str, LeaseInfo]] = []
        self.ended: list[tuple[str, LeaseInfo, PhaseEnd]] = []
        self.retries: list[RequestRetry] = []

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        self.began.append((phase, lease))
        assert parent == (None if phase == "lease" or lease.operation == "release" else "lease")
        return phase

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        assert begun == phase
        self.ended.append((phase, lease, end))

    def retry(self, retry: RequestRetry) -> None:
        self.retries.append(retry)

    @property
    def outcomes(self) -> list[tuple[str, str]]:
        return [(phase, end.outcome) for phase, _, end in self.ended]

    def of(self, wanted: str) -> tuple[LeaseInfo, PhaseEnd]:
        ((lease, end),) = [(lease, end) for phase, lease, end in self.ended if phase == wanted]
        return lease, end


async def test_a_lease_is_told_phase_by_phase(world: World) -> None:
    told = Recorder()
    async with world(step_seconds=2.0, stop_seconds=3.0, telemetry=told) as (_emu, client):
        async with client.instance(MODEL, HARDWARE, num_workers=2) as inst:
            await anyio.sleep(100)
    assert [phase for phase, _ in told.began] == ["lease", "start", "wait", "body", "teardown"]
    assert told.outcomes == [(phase, "ok") for phase in ("start", "wait", "body", "teardown", "lease")]
    before = told.began[0][1]
    assert before == LeaseInfo(operation="instance", model=MODEL, hardware_type_id=HARDWARE, num_workers=2)
    lease, end = told.of("lease")
    assert lease.request_id is not None
    assert lease.request_id.startswith("emulator-request-")
    assert lease == LeaseInfo(
        operation="instance",
        model=MODEL,
        hardware_type_id=HARDWARE,
        num_workers=2,
        instance_id=inst.instance_id,
        source="started",
        request_id=lease.request_id,
        cost=inst.receipt.cost,
        currency="EUR",
    )
    assert lease.cost is not None
    assert lease.cost > 0
    seconds = {phase: end.seconds for phase, _, end in told.ended}
    assert seconds["start"] == 0.0
    assert 8.0 <= seconds["wait"] <= 9.0
    assert seconds["body"] == 100.0
    assert 3.0 <= seconds["teardown"] <= 4.0
    assert seconds["lease"] == pytest.approx(sum(seconds.values()) - seconds["lease"])
    assert end.elapsed == end.seconds
    running = told.of("wait")[1]
    assert running.elapsed == seconds["start"] + seconds["wait"]


async def test_retries_are_told(world: World) -> None:
    told = Recorder()
    async with world(telemetry=told) as (emu, client):
        emu.add_fault(Fault("status", route="get", status=503))
        emu.add_fault(Fault("drop", route="list"))
        emu.add_fault(Fault("status", route="start", status=429, headers={"Retry-After": "2"}))
        await client.instances.list()
        found = emu.start_instance("meta-llama--Llama-3.1-8B-Instruct", HARDWARE)
        await client.instances.get(found)
        async with client.instance(MODEL, HARDWARE):
            pass
    first, second, third = told.retries
    assert (first.method, first.route, first.status, first.reason) == ("GET", "/instances/", None, "lost")
    assert (second.route, second.status, second.reason) == ("/instances/{id}", 503, "503")
    assert (third.method, third.route, third.reason) == ("POST", "/instances/start", "429")
    assert third.wait >= 2.0
    assert [each.attempt for each in told.retries] == [1, 1, 1]
    assert first.request_id is None
    assert second.request_id is not None


@pytest.mark.parametrize(
    ("method", "path", "route"),
    [
        ("GET", "/instances/", "/instances/"),
        ("GET", "/instances/instance-1", "/instances/{id}"),
        ("DELETE", "/instances/instance-1", "/instances/{id}"),
        ("DELETE", "/instances/delete-all", "/instances/delete-all"),
        ("POST", "/instances/stop", "/instances/stop"),
        ("GET", "/models/", "/models/"),
        ("GET", "/models/a--b", "/models/{id}"),
        ("GET", "/hardware-types/available", "/hardware-types/available"),
        ("POST", "/oauth2/token", "/oauth2/token"),
    ],
)
def test_a_route_has_no_id_in_it(method: str, path: str, route: str) -> None:
    assert _route(method, path) == route


async def test_what_was_lost_and_found_again_is_adopted(world: World) -> None:
    told = Recorder()
    async with world(telemetry=told) as (emu, client):
        emu.add_fault(Fault("drop", route="start", when="after"))
        async with client.instance(MODEL, HARDWARE):
            pass
        assert emu.existing == ()
    lease, end = told.of("lease")
    assert (lease.source, end.outcome, lease.request_id) == ("adopted", "ok", None)
    assert told.of("start")[1].seconds > 0


@pytest.fixture
def stopped_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client find its event loop stopped, as between two calls of `loop.run_until_complete`."""
    monkeypatch.setattr(LoopBinding, "call_soon", lambda *_: False)


class TestNotAwaited:
    @pytest.mark.parametrize("how", ["dropped", "closed"])
    async def test_it_ends_as_if_cancelled(self, world: World, how: str) -> None:
        told = Recorder()
        async with world(telemetry=told) as (_emu, client):
            await leave_unawaited(client, how)
        assert told.outcomes[2:] == [("body", "cancelled"), ("teardown", "ok"), ("lease", "cancelled")]

    @pytest.mark.usefixtures("stopped_loop")
    @pytest.mark.parametrize("how", ["dropped", "closed"])
    async def test_without_a_loop_it_is_told_with_the_next(
        self, world: World, journals: Path, how: str
    ) -> None:
        told = Recorder()
        async with world(journal="auto", telemetry=told) as (_emu, client):
            await leave_unawaited(client, how)
            # Not by the garbage collector, which may have interrupted an exporter.
            assert [phase for phase, _ in told.outcomes] == ["start", "wait"]
            await anyio.sleep(50)
            async with client.instance(MODEL, HARDWARE):
                pass
            assert told.outcomes[2:4] == [("body", "abandoned"), ("lease", "abandoned")]
            assert told.ended[2][2].seconds == pytest.approx(10)
            await client.sweep()

    @pytest.mark.usefixtures("stopped_loop")
    async def test_or_when_the_client_is_closed(self, world: World, journals: Path) -> None:
        told = Recorder()
        async with world(journal="auto", telemetry=told) as (_emu, client):
            await leave_unawaited(client, "dropped")
            await client.sweep()
        assert told.outcomes[2:] == [("body", "abandoned"), ("lease", "abandoned")]


async def leave_unawaited(client: AsyncCortecs, how: str) -> None:
    lease = client.instance(MODEL, HARDWARE, on_loss="ignore")
    await lease.__aenter__()
    await anyio.sleep(10)
    if how == "closed":
        close_inside(lease)
    del lease
    gc.collect()


# --- telemetry that fails -----------------------------------------------------------------------------------


class Broken(Telemetry):
    """Raises in one place, or in all."""

    def __init__(self, error: type[BaseException], call: str, phase: str) -> None:
        self._error = error
        self._call = call
        self._phase = phase
        self.raised = 0

    def _fail(self, call: str, phase: str) -> None:
        if self._call in {call, "all"} and self._phase in {phase, "all"}:
            self.raised += 1
            raise self._error("telemetry is broken")

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        self._fail("begin", phase)

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        self._fail("end", phase)

    def retry(self, retry: RequestRetry) -> None:
        self._fail("retry", "")


async def succeed(emu: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE):
        await anyio.sleep(10)


async def fail(emu: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE):
        raise KeyError("mine")


async def be_cancelled(emu: Emulator, client: AsyncCortecs) -> None:
    with anyio.move_on_after(20):
        await succeed(emu, client)
        async with client.instance(MODEL, HARDWARE):
            await anyio.sleep(100)


async def start_too_late(emu: Emulator, client: AsyncCortecs) -> None:
    async with client.instance(MODEL, HARDWARE, start_timeout=3):
        pytest.fail("entered")


async def lose_the_answer(emu: Emulator, client: AsyncCortecs) -> None:
    emu.add_fault(Fault("drop", route="start", when="after"))
    await succeed(emu, client)


async def try_again(emu: Emulator, client: AsyncCortecs) -> None:
    for route in ("token", "list", "start"):
        emu.add_fault(Fault("status", route=route, status=429))
    await succeed(emu, client)


async def fail_to_release(emu: Emulator, client: AsyncCortecs) -> None:
    try:
        async with client.instance(MODEL, HARDWARE, teardown_timeout=30):
            emu.add_fault(Fault("status", route="stop", status=500, times=None))
    finally:
        emu.clear_faults()
        await client.release(emu.existing[0])


async def acquire(emu: Emulator, client: AsyncCortecs) -> None:
    handle = await client.acquire(MODEL, HARDWARE)
    async with client.attach(handle.instance_id):
        await anyio.sleep(1)
    await client.release(handle)


LIVES = [
    succeed, fail, be_cancelled, start_too_late, lose_the_answer, try_again, fail_to_release, acquire,
]  # fmt: skip
PHASES = ["lease", "start", "wait", "body", "teardown"]


async def run(
    world: World, life: Callable[[Emulator, AsyncCortecs], Any], telemetry: Telemetry | None
) -> list[Any]:
    """All that can be seen of a life from outside."""
    async with world(step_seconds=1.0, telemetry=telemetry, retry_policy=RetryPolicy(max_backoff=1e-6)) as (
        emu,
        client,
    ):
        try:
            await life(emu, client)
        except Exception as error:  # noqa: BLE001
            raised = f"{type(error).__name__}: {error} {getattr(error, '__notes__', [])}"
        else:
            raised = ""
        assert emu.existing == ()
        sent = [(record.route, round(record.at, 3)) for record in emu.requests]
        return [raised, sent, round(anyio.current_time(), 3)]


@grid(anyio_backend=BACKENDS, life=LIVES, error=[ZeroDivisionError, asyncio.CancelledError, GeneratorExit])
async def test_telemetry_that_always_raises_changes_nothing(
    world: World, life: Any, error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    began = anyio.current_time()
    expected = await run(world, life, None)
    lasted = expected.pop() - began
    began = anyio.current_time()
    broken = Broken(error, "all", "all")
    found = await run(world, life, broken)
    assert found.pop() - began == pytest.approx(lasted, abs=0.01)
    assert broken.raised > 1
    assert [route for route, _ in found[1]] == [route for route, _ in expected[1]]
    assert found[0] == expected[0]
    # Said once, with what went wrong.
    failures = [each for each in caplog.records if each.name == "cortecs_async.telemetry"]
    assert len(failures) == 1
    assert failures[0].exc_info is not None
    assert failures[0].exc_info[0] is error


@grid(anyio_backend=BACKENDS, call=["begin", "end"], phase=PHASES)
async def test_nor_does_one_that_raises_in_one_place(world: World, call: str, phase: str) -> None:
    expected = (await run(world, succeed, None))[:1]
    broken = Broken(ZeroDivisionError, call, phase)
    assert (await run(world, succeed, broken))[:1] == expected
    assert broken.raised == 1


async def hand_on(emu: Emulator, client: AsyncCortecs) -> None:
    await client.release(await client.acquire(MODEL, HARDWARE))


PLACES = [
    (life, call, phase)
    for life in (succeed, hand_on)
    for call in ("begin", "end")
    for phase in PHASES
    if not (life is hand_on and phase == "body")
]


@grid(anyio_backend=BACKENDS, place=PLACES, error=[KeyboardInterrupt, SystemExit])
async def test_a_signal_that_hits_telemetry_ends_the_program_after_the_release(
    world: World, place: tuple[Any, str, str], error: type[BaseException]
) -> None:
    life, call, phase = place
    async with world(step_seconds=1.0, telemetry=Broken(error, call, phase)) as (emu, client):
        with pytest.raises(error, match="telemetry is broken"):
            await life(emu, client)
        assert len(emu.ledger) == (0 if (call, phase) in {("begin", "lease"), ("begin", "start")} else 1)
        assert emu.existing == ()


async def test_what_is_no_telemetry_is_refused(world: World) -> None:
    with pytest.raises(ConfigurationError, match=r"cortecs_async\.types\.Telemetry"):
        AsyncCortecs(telemetry=Recorder)  # type: ignore[arg-type]


async def test_the_base_class_does_nothing(world: World) -> None:
    assert await run(world, try_again, Telemetry())
