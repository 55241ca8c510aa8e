"""Test that a lease leaves nothing behind if it is cancelled at any await, in any way. On virtual time.

`test_cancellation.py` cancels on a grid of times. Here the moments are the awaits. A wrapper drives the
coroutine, sees each value on its way to the event loop, counts, and cancels at one of them, while the task
waits there. If other tasks do the work, as in most of a release, the moments are the turns of the event loop,
and every task is cancelled.

If CORTECS_AWAIT_REPORT names a file, the figures of a run are written to it as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import json
import os
import time
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Generator, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import httpx
import pytest
import trio.testing
from _virtual_time import VirtualTimeLoop
from _world import HARDWARE, MODEL
from attrs import Factory, define, frozen
from trio._core._run import _r as trio_dice

from cortecs_async import AsyncCortecs, InstanceHandle, PollPolicy, errors
from cortecs_async._aio.eventloop import loop_clock
from cortecs_async._aio.tasks import TaskResult
from cortecs_async.emulator import Emulator, Fault

T = TypeVar("T")

Backend = Literal["asyncio", "trio"]
Act = Callable[[Any], object]


# Read before conftest.py takes it from the tests.
REPORT = os.environ.get("CORTECS_AWAIT_REPORT")

# Seconds after which a service has done what was asked of it by callers who have hung up.
AFTERMATH = 60.0
# A time limit that never matters.
FOREVER = 1e6


# --- What is cancelled --------------------------------------------------------------------------------------


@define
class Scene:
    """The world of one trial.

    Attributes:
        emu: The service.
        client: A client that nothing cancels.
        max_lifetime: The time limit of a lease.
        billed_from: When it begins.
        handle: What was acquired and not given to be released.
        own_client: The body's own, if it has one.
    """

    emu: Emulator
    client: AsyncCortecs
    max_lifetime: float | None = None
    billed_from: float = 0.0
    handle: InstanceHandle | None = None
    own_client: AsyncCortecs | None = None


Body = Callable[[Scene], Coroutine[Any, Any, None]]


async def lease(scene: Scene) -> None:
    async with scene.client.instance(MODEL, HARDWARE, max_lifetime=scene.max_lifetime) as inst:
        scene.billed_from = inst._state.billed_from
        # Long enough for a poll by the watchdog.
        await anyio.sleep(11.0)
        # With a time limit that ends now, the block is cancelled in one of these.
        for _ in range(6):
            await anyio.lowlevel.checkpoint()
    # A scope whose cancellation was kept out of the release delivers it here.
    await anyio.lowlevel.checkpoint()


async def choice(scene: Scene) -> None:
    """Start on the second of two hardware types, after a wait for capacity."""
    hardware = [HARDWARE, "NVIDIA_L40S_1"]
    async with scene.client.instance(MODEL, hardware, capacity_timeout=100.0):
        await anyio.sleep(2.0)
    await anyio.lowlevel.checkpoint()


async def restart(scene: Scene) -> None:
    async with scene.client.instance(MODEL, HARDWARE, reuse=True):
        await anyio.sleep(2.0)
    await anyio.lowlevel.checkpoint()


async def whole_client(scene: Scene) -> None:
    """Lease with a client of its own, whose end is cancelled too."""
    http, journal = (
        scene.client._wiring.http._transport.connections.pools[0].client,
        scene.client._wiring.promises.store.directory,
    )
    scene.own_client = client_of(scene.emu, http, journal=journal)
    async with scene.own_client as client, client.instance(MODEL, HARDWARE):
        await anyio.sleep(2.0)
    await anyio.lowlevel.checkpoint()


async def acquire(scene: Scene) -> None:
    scene.handle = await scene.client.acquire(MODEL, HARDWARE)
    await anyio.lowlevel.checkpoint()


async def release(scene: Scene) -> None:
    assert scene.handle is not None
    handle, scene.handle = scene.handle, None
    await scene.client.release(handle)
    await anyio.lowlevel.checkpoint()


async def stop_one(scene: Scene) -> None:
    scene.emu.stop_instance(scene.emu.start_instance(MODEL, HARDWARE))
    await anyio.sleep(3.0)


async def nothing(scene: Scene) -> None:
    pass


async def neighbour(scene: Scene) -> None:
    """Hold another lease of the client, which must not be disturbed."""
    async with scene.client.instance(MODEL, HARDWARE):
        await anyio.sleep(5.0)


@frozen(kw_only=True)
class Scenario:
    """What is cancelled, and in which world.

    Attributes:
        body: What is cancelled.
        before: Happens undisturbed before it.
        beside: Happens undisturbed beside it.
        faults: What goes wrong with the service.
        journal: Whether a journal is kept. Of that, nothing may be left.
        expires: Whether there is a time limit, which ends at the moment of the cancellation.
        min_interval: Seconds between two polls of the client. Fewer polls are fewer similar awaits.
        time_limit: Seconds in which it must end once it is cancelled.
        starts: How many instances may be started at most.
    """

    body: Body
    before: Body = nothing
    beside: Body = nothing
    faults: tuple[Fault, ...] = ()
    journal: bool = False
    expires: bool = False
    min_interval: float = 0.5
    time_limit: float = 6.0
    starts: int = 1

    def may_raise(self, error: BaseException) -> bool:
        """Return whether this may be raised instead of the cancellation."""
        if isinstance(error, BaseExceptionGroup):
            return all(self.may_raise(each) for each in error.exceptions)
        return self.expires and isinstance(error, errors.LeaseExpiredError)


SLOW = Fault("delay", when="before", seconds=0.25, times=None)
LOST = Fault("drop", route="start", when="after")
FULL = Fault("status", route="start", status=503)

SCENARIOS = {
    "lease": Scenario(body=lease),
    # What is cut off is done by the service all the same, later.
    # If the response to the deletion is lost too, readings seconds apart must agree.
    "lease, slow service": Scenario(body=lease, faults=(SLOW,), time_limit=10.0),
    "lease, journal": Scenario(body=lease, journal=True),
    # Its instance is looked for, for 10 s.
    "lease, lost start": Scenario(
        body=lease, faults=(LOST,), journal=True, min_interval=2.0, time_limit=16.0
    ),
    # Such readings count after a minute only, if none has ever shown the instance.
    "lease, time limit": Scenario(body=lease, expires=True, time_limit=66.0),
    "lease beside another": Scenario(body=lease, beside=neighbour, journal=True, starts=2),
    "lost start beside another": Scenario(
        body=lease,
        beside=neighbour,
        faults=(LOST, LOST),
        journal=True,
        min_interval=2.0,
        time_limit=16.0,
        starts=2,
    ),
    "choice of hardware": Scenario(
        body=choice, faults=(FULL, FULL, FULL), journal=True, min_interval=2.0, time_limit=10.0
    ),
    "restart": Scenario(body=restart, before=stop_one, faults=(SLOW,), journal=True, time_limit=10.0),
    "whole client": Scenario(body=whole_client, journal=True),
    "acquire": Scenario(body=acquire, journal=True),
    "release": Scenario(body=release, before=acquire, journal=True),
}


# --- How it is cancelled ------------------------------------------------------------------------------------


@types.coroutine
def driven(coroutine: Coroutine[Any, Any, T], suspended: Act) -> Generator[Any, Any, T]:
    """Drives a coroutine, and sees what it yields just before the event loop does."""
    step: Callable[[Any], Any] = coroutine.send
    value: Any = None
    while True:
        try:
            signal = step(value)
        except StopIteration as stop:
            result: T = stop.value
            return result
        suspended(signal)
        try:
            step, value = coroutine.send, (yield signal)
        except BaseException as error:  # noqa: BLE001  (whatever the loop throws in is the coroutine's)
            step, value = coroutine.throw, error


@define
class Probe:
    """Counts the moments of a trial, and acts at some of them.

    Attributes:
        body: What is cancelled.
        points: The numbers of the moments to act at.
        emu: Whose requests tell how far it was.
        now: The clock of the loop.
        moments: When each moment was.
        hit_at: When it was cancelled first.
        phase: The last request before that.
    """

    body: Coroutine[Any, Any, None]
    points: Collection[int]
    emu: Emulator
    now: Callable[[], float] = Factory(loop_clock)
    moments: list[float] = Factory(list)
    hit_at: float | None = None
    phase: str | None = None

    async def run(self, act: Act) -> None:
        """Run the body; its moments are its awaits."""
        await driven(self.body, lambda signal: self.reached(act, signal))

    def reached(self, act: Act, signal: Any) -> None:
        """Count a moment, and act if it is one of those."""
        number = len(self.moments)
        self.moments.append(self.now())
        if number not in self.points:
            return
        if self.hit_at is None:
            self.hit_at = self.now()
            self.phase = self.emu.requests[-1].route if self.emu.requests else None
        act(signal)


class OutcomeError(Exception):
    """A cancellation was not raised as it must be."""


class SiblingError(Exception):
    """The error of the failing sibling."""


async def must_be_cancelled(task: asyncio.Future[None]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        await task
        raise OutcomeError("the task was not cancelled")


async def task_cancel(probe: Probe) -> None:
    task = asyncio.ensure_future(probe.run(lambda _: task.cancel()))
    await must_be_cancelled(task)


async def late_task_cancel(probe: Probe) -> None:
    """What the task waits for is there, and it was not woken yet."""

    def cancel(_: object) -> None:
        task.cancel()
        probe.hit_at = probe.now()

    def act(signal: Any) -> None:
        # It yields None to wait for the next turn of the loop, and else a future.
        if signal is None:
            cancel(None)
        else:
            signal.add_done_callback(cancel)

    task = asyncio.ensure_future(probe.run(act))
    await must_be_cancelled(task)


async def asyncio_timeout(probe: Probe) -> None:
    now = asyncio.get_running_loop().time
    try:
        async with asyncio.timeout(None) as timeout:
            await probe.run(lambda _: timeout.reschedule(now()))
    except TimeoutError:
        return
    raise OutcomeError("there was no TimeoutError")


async def anyio_scope(probe: Probe) -> None:
    with anyio.CancelScope() as scope:
        await probe.run(lambda _: scope.cancel())
    if not scope.cancelled_caught:
        raise OutcomeError("the scope has caught nothing")


async def two_scopes(probe: Probe) -> None:
    with anyio.CancelScope() as outer, anyio.CancelScope() as inner:
        await probe.run(lambda _: (outer if inner.cancel_called else inner).cancel())
    if not (outer.cancelled_caught or inner.cancelled_caught):
        raise OutcomeError("neither scope has caught anything")


async def failing_sibling(probe: Probe) -> None:
    broken = anyio.Event()

    async def fail() -> None:
        await broken.wait()
        raise SiblingError

    async def run() -> None:
        await probe.run(lambda _: broken.set())
        if not broken.is_set():
            tasks.cancel_scope.cancel()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(fail)
            tasks.start_soon(run)
    except ExceptionGroup as group:
        _, rest = group.split(SiblingError)
        if rest is not None:
            raise rest from None
        return
    raise OutcomeError("the sibling's error did not come out")


async def closed(probe: Probe) -> None:
    """Close the coroutine, which then cannot await: its release is done by a task of its own."""

    def close(_: object) -> None:
        probe.body.close()
        raise GeneratorExit

    with contextlib.suppress(GeneratorExit):
        await probe.run(close)
    await anyio.sleep(AFTERMATH)
    if probe.hit_at is not None:
        probe.hit_at = probe.now()


class TickingLoop(VirtualTimeLoop):
    """An event loop whose turns are the moments, after the clock has moved and before anything runs."""

    def __init__(self) -> None:
        super().__init__()
        self._tick: Callable[[], None] = lambda: None
        select = self._virtual_selector.select

        def select_and_tick(timeout: float | None = None) -> Any:
            ready = select(timeout)
            self._tick()
            return ready

        self._virtual_selector.select = select_and_tick  # type: ignore[method-assign]

    def count(self, probe: Probe, act: Act, task: asyncio.Future[None]) -> None:
        """Count turns until the task is done."""

        def tick() -> None:
            if not task.done():
                probe.reached(act, None)

        self._tick = tick


async def every_task(probe: Probe) -> None:
    """Cancel all tasks, also those of the client, at a turn of the loop."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, TickingLoop)
    others = asyncio.all_tasks()
    task = asyncio.ensure_future(probe.body)

    def cancel(_: object) -> None:
        for each in asyncio.all_tasks(loop) - others:
            each.cancel()

    loop.count(probe, cancel, task)
    await must_be_cancelled(task)


@frozen
class Way:
    """One way of cancelling.

    Attributes:
        backend: Where there is this way.
        run: Runs a probe and raises what comes out of it, or OutcomeError, unless that is as it must be.
        offsets: At which moments to act: at the k-th of a trial, and at so many after it.
    """

    backend: Backend
    run: Callable[[Probe], Awaitable[None]]
    offsets: tuple[int, ...] = (0,)


WAYS = {
    "asyncio: task.cancel()": Way("asyncio", task_cancel),
    "asyncio: task.cancel() at the last moment": Way("asyncio", late_task_cancel),
    "asyncio: task.cancel() twice": Way("asyncio", task_cancel, (0, 1)),
    "asyncio: task.cancel() twice, three awaits apart": Way("asyncio", task_cancel, (0, 3)),
    "asyncio: task.cancel() three times": Way("asyncio", task_cancel, (0, 1, 2)),
    "asyncio: every task": Way("asyncio", every_task),
    "asyncio: every task twice": Way("asyncio", every_task, (0, 1)),
    "asyncio: every task twice, three turns apart": Way("asyncio", every_task, (0, 3)),
    "asyncio: asyncio.timeout": Way("asyncio", asyncio_timeout),
    "asyncio: scope": Way("asyncio", anyio_scope),
    "asyncio: two scopes": Way("asyncio", two_scopes, (0, 1)),
    "asyncio: failing sibling": Way("asyncio", failing_sibling),
    "asyncio: closed": Way("asyncio", closed),
    "trio: scope": Way("trio", anyio_scope),
    "trio: two scopes": Way("trio", two_scopes, (0, 1)),
    "trio: failing sibling": Way("trio", failing_sibling),
}


# --- Trials -------------------------------------------------------------------------------------------------


@define
class Trial:
    """The result of one trial."""

    moments: list[float] = Factory(list)
    billed_from: float = 0.0
    phase: str | None = None
    left: int = 0
    troubles: list[str] = Factory(list)

    def keep(self, probe: Probe, scene: Scene) -> None:
        """Record where it was cancelled."""
        self.moments, self.phase, self.billed_from = probe.moments, probe.phase, scene.billed_from
        if probe.points and probe.hit_at is None:
            self.troubles.append("it ended before it was cancelled")

    def look(self, scene: Scene, scenario: Scenario, when: str) -> None:
        """Record what must not be left."""
        emu = scene.emu
        kept: tuple[str, ...] = ()
        if scene.handle is not None:
            kept = (scene.handle.instance_id,)
        elif scenario.before is stop_one:
            kept = (emu.ledger[0].instance_id,)
            if emu.billing:
                self.troubles.append(f"{when} {emu.billing} are billed")
        if emu.existing != kept:
            self.left = max(self.left, len(set(emu.existing) - set(kept)))
            self.troubles.append(f"{when} {emu.existing} exist instead of {kept}")
        if len(emu.ledger) > scenario.starts:
            self.troubles.append(f"{len(emu.ledger)} instances were started")
        if scene.own_client is not None and not scene.own_client._closed:
            self.troubles.append("the client is not closed")
            scene.own_client._closed = True  # or it warns in a test that has nothing to do with it


def run_on(backend: Backend, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    if backend == "asyncio":
        anyio.run(main, backend_options={"loop_factory": TickingLoop})
        return
    # Which of two tasks goes first, trio leaves to chance. The awaits are the same ones every time only when
    # the dice are.
    trio_dice.seed(0)
    # Not anyio's `run`, which passed no options on to trio before 4.14.
    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


def emulator(scenario: Scenario, now: Callable[[], float]) -> Emulator:
    emu = Emulator(clock=now, step_seconds=0.25, stop_seconds=1.0)
    for fault in scenario.faults:
        emu.add_fault(fault)
    return emu


def client_of(
    emu: Emulator, http: httpx.AsyncClient, *, journal: Path | None, min_interval: float = 0.5
) -> AsyncCortecs:
    return AsyncCortecs(
        emu.client_id,
        emu.client_secret,
        api_base_url=emu.api_base_url,
        http_client=http,
        poll_policy=PollPolicy(min_interval=min_interval),
        guard="off",
        journal="off" if journal is None else "auto",
        state_dir=None if journal is None else journal.parent,
    )


def attempt(
    way: Way, scenario: Scenario, points: Collection[int], journal: Path, max_lifetime: float | None = None
) -> Trial:
    """Run a scenario in a world of its own, and cancel it at these moments."""
    trial = Trial()

    async def cancel(scene: Scene) -> None:
        probe = Probe(scenario.body(scene), points, scene.emu)
        try:
            await way.run(probe)
        except Exception as error:  # noqa: BLE001  (whatever it is)
            if points and not scenario.may_raise(error):
                trial.troubles.append(repr(error))
        trial.keep(probe, scene)
        if probe.hit_at is not None and probe.now() - probe.hit_at > scenario.time_limit:
            trial.troubles.append(f"it ended {probe.now() - probe.hit_at:g} s after it was cancelled")

    async def live_beside(scene: Scene) -> None:
        try:
            await scenario.beside(scene)
        except Exception as error:  # noqa: BLE001  (whatever it is)
            trial.troubles.append(f"beside it: {error!r}")

    async def main() -> None:
        emu = emulator(scenario, anyio.current_time)
        async with (
            httpx.AsyncClient(transport=emu.transport()) as http,
            client_of(
                emu,
                http,
                journal=journal if scenario.journal else None,
                min_interval=scenario.min_interval,
            ) as client,
        ):
            scene = Scene(emu, client, max_lifetime)
            await scenario.before(scene)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(live_beside, scene)
                await cancel(scene)
            trial.look(scene, scenario, "at once")
            await anyio.sleep(AFTERMATH)
            trial.look(scene, scenario, "later")
            if scene.handle is not None:
                await release(scene)
                trial.look(scene, scenario, "after its release")

    try:
        run_on(way.backend, main)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  (whatever it is)
        trial.troubles.append(f"it was not kept in: {error!r}")
    trial.troubles += [f"{path.name} is left" for path in journal.glob("*")]
    return trial


def trials(way: Way, scenario: Scenario, directory: Path) -> Iterator[tuple[str, Trial]]:
    """Yield a trial for each moment, with its name."""

    def run(name: str, points: Collection[int] = (), max_lifetime: float | None = None) -> Trial:
        return attempt(way, scenario, points, directory / name / "journal", max_lifetime)

    calm = run("calm", max_lifetime=FOREVER if scenario.expires else None)
    assert calm.moments
    assert not calm.troubles
    if not scenario.expires:
        for number in range(len(calm.moments)):
            yield str(number), run(str(number), [number + offset for offset in way.offsets])
        return
    for limit in sorted({moment - calm.billed_from for moment in calm.moments}):
        if limit <= 0:
            continue
        expired = run(f"{limit:g} s", max_lifetime=limit)
        assert not expired.troubles
        for number, moment in enumerate(expired.moments):
            # Until then, this is but another lease.
            if moment >= calm.billed_from + limit - 1e-6:
                name = f"{number} at {limit:g} s"
                yield name, run(name, [number + offset for offset in way.offsets], limit)


def run_out(scenario: Scenario, points: Collection[int], journal: Path) -> Trial:
    """Run a scenario in the background of a main task that ends at one of these moments."""
    trial = Trial()
    loop = TickingLoop()
    later = 0.0
    emu = emulator(scenario, lambda: loop.time() + later)
    # Not closed when main ends, as the one that a client makes for itself is not.
    http = httpx.AsyncClient(transport=emu.transport())

    async def main() -> tuple[Probe, Scene, asyncio.Task[None]]:
        over = asyncio.Event()
        async with client_of(emu, http, journal=journal if scenario.journal else None) as client:
            scene = Scene(emu, client)
            await scenario.before(scene)
            probe = Probe(scenario.body(scene), points, emu)
            task = asyncio.create_task(probe.body)
            task.add_done_callback(lambda _: over.set())
            loop.count(probe, lambda _: over.set(), task)
            await over.wait()
        return probe, scene, task

    probe, scene, task = anyio.run(main, backend_options={"loop_factory": lambda: loop})
    trial.keep(probe, scene)
    # Main takes some turns to end, in which the task may have finished.
    if not task.cancelled() and (not task.done() or task.exception() is not None):
        trial.troubles.append(f"the task was not cancelled: {task!r}")
    trial.look(scene, scenario, "at once")
    later = AFTERMATH
    trial.look(scene, scenario, "later")
    trial.troubles += [f"{path.name} is left" for path in journal.glob("*")]
    return trial


# --- Tests --------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _files_are_written_in_no_time(journals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cortecs_async._recovery.journal.os.fsync", lambda _: None)


def judge(way: str, scenario: str, shown: Iterator[tuple[str, Trial]]) -> None:
    """Run the trials, and fail with all that failed."""
    began = time.perf_counter()
    trials_run = list(shown)
    failed = {name: trial.troubles for name, trial in trials_run if trial.troubles}
    if REPORT:
        row = {
            "way": way,
            "scenario": scenario,
            "cases": len(trials_run),
            "failed": len(failed),
            "left": sum(trial.left for _, trial in trials_run),
            "seconds": round(time.perf_counter() - began, 3),
        }
        report(Path(REPORT), row)
    assert not failed, f"{len(failed)} of {len(trials_run)} trials failed: {failed}"


def report(path: Path, row: dict[str, Any]) -> None:
    """Add figures to the report. The processes of pytest-xdist take turns."""
    with path.open("a+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        rows = json.loads(file.read() or '{"rows": []}')["rows"]
        rows = [each for each in rows if (each["way"], each["scenario"]) != (row["way"], row["scenario"])]
        rows.append(row)
        ways: dict[str, Counter[str]] = {}
        for each in rows:
            figures = {name: each[name] for name in ("cases", "failed", "left", "seconds")}
            for way in ("all", each["way"]):
                ways.setdefault(way, Counter()).update(figures)
        file.truncate(0)
        json.dump({"ways": ways, "rows": rows}, file, indent=1)


# The cases that the default tier runs.
QUICK = [
    ("asyncio: task.cancel()", "lease, journal"),
    ("asyncio: closed", "lease, journal"),
    ("trio: scope", "lease, lost start"),
]

# The time limit cancels the task, which continues without the coroutine that was closed in it.
IMPOSSIBLE = [("asyncio: closed", "lease, time limit")]


# Cancelled again at a certain distance: `nightly` runs these in the scenarios that differ least from others.
AGAIN = {name for name, way in WAYS.items() if len(way.offsets) > 1}
DIFFERENT = {"lease, journal", "lease, lost start", "restart", "release"}


def marks_of(way: str, scenario: str) -> list[pytest.MarkDecorator]:
    if (way, scenario) in QUICK:
        return []
    is_extra = way in AGAIN and scenario not in DIFFERENT
    return [pytest.mark.proofs, *([pytest.mark.nightly] if is_extra else [])]


@pytest.mark.parametrize(
    ("way", "scenario"),
    [
        pytest.param(*case, marks=marks_of(*case))
        for case in itertools.product(WAYS, SCENARIOS)
        if case not in IMPOSSIBLE
    ],
)
def test_cancelled_at_every_await_nothing_is_left(state_dir: Path, way: str, scenario: str) -> None:
    judge(way, scenario, trials(WAYS[way], SCENARIOS[scenario], state_dir))


@pytest.mark.proofs
@pytest.mark.parametrize(
    "scenario",
    ["lease", "lease, slow service", "lease, journal", "lease, lost start", "restart", "release"],
)
def test_when_asyncio_run_ends_at_any_turn_of_the_loop_nothing_is_left(
    state_dir: Path, scenario: str
) -> None:
    def ends() -> Iterator[tuple[str, Trial]]:
        calm = run_out(SCENARIOS[scenario], (), state_dir / "calm" / "journal")
        assert not calm.troubles
        for number in range(len(calm.moments)):
            yield str(number), run_out(SCENARIOS[scenario], [number], state_dir / str(number) / "journal")

    judge("asyncio: the end of asyncio.run", scenario, ends())


@pytest.mark.proofs
def test_the_awaits_cover_the_whole_life(state_dir: Path) -> None:
    def phases(way: str, scenario: str) -> set[str | None]:
        found = trials(WAYS[way], SCENARIOS[scenario], state_dir / way / scenario)
        return {trial.phase for _, trial in found}

    # By the last request before it: none yet, asking for the token, for what there is, and so on.
    start = {None, "token", "list", "start", "get"}
    assert phases("asyncio: scope", "lease") >= start
    assert phases("trio: scope", "lease") >= start
    # A release is done by another task: its own awaits are those of the loop.
    assert phases("asyncio: every task", "lease") >= start | {"stop", "delete"}


async def awaited(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> TaskResult[T]:
    """Release as a plain `finally` does."""
    return TaskResult(value=await work())


async def shielded(work: Callable[[], Awaitable[T]], *, restart_if_cancelled: bool) -> TaskResult[T]:
    """Release as anyio's documentation recommends."""
    with anyio.CancelScope(shield=True):
        value = await work()
    return TaskResult(value=value)


@pytest.mark.proofs
@pytest.mark.parametrize(
    ("sabotage", "way"),
    [
        (awaited, "asyncio: task.cancel() twice, three awaits apart"),
        (awaited, "asyncio: asyncio.timeout"),
        (awaited, "asyncio: scope"),
        (awaited, "trio: failing sibling"),
        (shielded, "asyncio: task.cancel()"),
    ],
)
def test_a_release_that_can_be_cancelled_is_found_out(
    state_dir: Path, monkeypatch: pytest.MonkeyPatch, sabotage: Any, way: str
) -> None:
    monkeypatch.setattr("cortecs_async._lease.lease.run_uncancellable", sabotage)
    shown = list(trials(WAYS[way], SCENARIOS["lease"], state_dir))
    assert any(trial.left for _, trial in shown)
    assert not all(trial.left for _, trial in shown)
