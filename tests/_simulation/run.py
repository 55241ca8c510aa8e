"""Run a world on a fresh event loop, on virtual time."""

from __future__ import annotations

import logging
import math
import os
import random
import shutil
import tempfile
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import trio.testing
from _virtual_time import VirtualTimeLoop
from anyio.abc import TaskGroup

from cortecs_async import AsyncCortecs
from cortecs_async._aio.threads import System
from cortecs_async._client.wiring import Wiring
from cortecs_async._lease.capacity import CapacityQueue
from cortecs_async._recovery import store as _store
from cortecs_async._recovery.promises import Promises
from cortecs_async.emulator import Emulator
from cortecs_async.types import LeaseInfo, Orphan, PhaseEnd, RequestRetry, Telemetry

from . import checks
from .actors import (
    Actor,
    Machine,
    ProcessActor,
    WorldReaperProcess,
    current_actor,
    run_in_background,
    run_inline,
    wall_clock,
)
from .data import HARDWARE, REQUEST_TIMEOUT, Backend, ForeignAction, Kill, Outage, Sweep, World
from .history import ForeignInstance, Intent, LeaseHistory, Outcome, SentStart, Touch
from .network import current_lease, observe
from .program import Program

SWEEP_TIMEOUT = 300.0
# More turns of the event loop than this, with no virtual time passing, are a busy loop.
MAX_TURNS = 5000
# Seconds after the end of the processes during which the service still fails.
_FAULTS_AFTER_END = 60.0
# Seconds for all reapers to finish once the service works. They wait for expiry and for late starts.
_REAPERS_TIMEOUT = 2000.0


class FailingTelemetry(Telemetry):
    """Telemetry that raises an exception half of the time, which must not have any effect."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)

    def begin(self, phase: str, lease: LeaseInfo, parent: Any) -> Any:
        self._raise_sometimes()

    def end(self, phase: str, lease: LeaseInfo, begun: Any, end: PhaseEnd) -> None:
        self._raise_sometimes()

    def retry(self, retry: RequestRetry) -> None:
        self._raise_sometimes()

    def _raise_sometimes(self) -> None:
        if self._rng.random() < 0.5:
            raise ZeroDivisionError("telemetry is broken")


class Simulation:
    """A run of a world.

    Attributes:
        tasks: The tasks of all actors.
        starts: The requests to start an instance, from all processes.
        intents: The promises recorded before these requests.
        touches: The requests to stop, restart, or delete an instance, from all actors with a journal.
        foreign: The instances of the other user.
        orphans: The results of the last sweep on each machine.
        outages: The outages of the service.
    """

    def __init__(self, backend: Backend, world: World, folder: Path) -> None:
        self.backend = backend
        self.plan = world
        self.outcome = Outcome()
        self.detector = _BusyLoopDetector()
        self.machines = [
            Machine(index, folder / f"machine-{index}", clock) for index, clock in enumerate(world.clocks)
        ]
        self.histories: list[LeaseHistory] = []
        self.starts: list[SentStart] = []
        self.intents: list[Intent] = []
        self.touches: list[Touch] = []
        self.foreign: list[ForeignInstance] = []
        self.orphans: list[list[Orphan]] = []
        self.outages: tuple[Outage, ...] = world.outages
        self.processes: list[ProcessActor] = []
        self.programs: list[Program] = []
        # Created in the event loop, which provides the clock.
        self.tasks: TaskGroup
        self.emulator: Emulator
        self.transport: httpx.AsyncBaseTransport
        self._clients = 0
        self._is_over = False

    def problem(self, text: str) -> None:
        """Record a violation."""
        self.outcome.problems.append(text)

    def last_end_of(self, lease: LeaseHistory) -> float:
        """Return the time when a lease's last start ended, or when the lease was entered."""
        ends = [each.ended_at for each in self.starts if each.lease is lease]
        return max([lease.entered_at, *ends])

    async def run(self) -> None:
        """Run the world and check the result."""
        plan, service = self.plan, self.plan.service
        self.emulator = Emulator(
            clock=anyio.current_time,
            root_url="https://emulator.test",
            step_seconds=service.step_seconds,
            stop_seconds=service.stop_seconds,
            token_lifetime=service.token_lifetime,
            unknown_status=service.unknown_status,
            num_workers_in_args=service.num_workers_in_args,
            capacity=None if service.capacity is None else dict.fromkeys(HARDWARE, service.capacity),
            list_lag=service.list_lag,
            get_lag=service.get_lag,
            hide_stopped=service.hide_stopped,
            clock_skew=service.clock_skew,
            date_header=service.date_header,
            started_at=service.started_at,  # type: ignore[arg-type]  # hypothesis draws it from the list
            status_words=dict(service.status_words),
            error_body=service.error_body,  # type: ignore[arg-type]
            endpoint_lag=service.endpoint_lag,
        )
        for entry in service.entries:
            self.emulator.add_entry(entry)
        for name in HARDWARE:
            if service.prices == "none" or (service.prices == "some" and "L4_" in name):
                self.emulator.set_price_info(name, {"price": "on request"})
        for fault in plan.faults:
            self.emulator.add_fault(fault)
        observe(self, self.emulator)
        self.transport = self.emulator.transport()
        async with anyio.create_task_group() as self.tasks:
            for action in plan.foreign:
                self.tasks.start_soon(self._act_foreign, action)
            if plan.rotated_at is not None:
                self.tasks.start_soon(self._rotate_secret, plan.rotated_at)
            for sweep in plan.sweeps:
                self.tasks.start_soon(self._sweep_midway, sweep)
            await self._run_processes()
            self._is_over = True
            with anyio.move_on_after(_FAULTS_AFTER_END):
                await self._wait_for_reapers()
            self.emulator.clear_faults()
            self.outages = ()
            await self._wait_for_last_reapers(or_unlocked=True)
            await anyio.sleep(plan.pause_before_sweep)
            for machine in self.machines:
                await self._sweep_at_end(machine)
            await self._wait_for_last_reapers()
            checks.Checker(self).check()
            self.tasks.cancel_scope.cancel()

    async def _rotate_secret(self, at: float) -> None:
        await anyio.sleep(at)
        self.emulator.rotate_secret("rotated")

    async def _wait_for_last_reapers(self, *, or_unlocked: bool = False) -> None:
        with anyio.move_on_after(_REAPERS_TIMEOUT) as time:
            await self._wait_for_reapers(or_unlocked=or_unlocked)
        if time.cancelled_caught:
            self.problem("a reaper is still working")

    async def _wait_for_reapers(self, *, or_unlocked: bool = False) -> None:
        reapers = [reaper for each in self.processes for reaper in each.reapers]
        while not all(each.is_done or (or_unlocked and each.has_unlocked_journal) for each in reapers):  # noqa: ASYNC110
            await anyio.sleep(5.0)

    async def _run_processes(self) -> None:
        plan = self.plan
        async with anyio.create_task_group() as processes:
            for index, process in enumerate(plan.processes):
                kills = [kill for kill in plan.kills if kill.process % len(plan.processes) == index]
                actor = ProcessActor(self, index, process, kills)
                self.processes.append(actor)
                processes.start_soon(self._run_process, actor, kills)

    async def _run_process(self, actor: ProcessActor, kills: list[Kill]) -> None:
        current_actor.set(actor)
        await anyio.sleep(actor.plan.begins_at)
        process = actor.plan
        client = actor.make_client(guard="auto" if process.guard else "off", tag_starts=process.tag_starts)
        program = Program(self, actor, client)
        self.programs.append(program)
        async with anyio.create_task_group() as timers:
            for kill in kills:
                if kill.step is None:
                    timers.start_soon(self._kill_later, kill, actor.index)
            await program.run()
            timers.cancel_scope.cancel()
        await actor.aclose()

    async def _kill_later(self, kill: Kill, process: int) -> None:
        await self._wait_for(kill.waits_for, process)
        await anyio.sleep(kill.after)
        self.kill(kill)

    def kill(self, kill: Kill) -> None:
        """Perform a `Kill`."""
        target = self.processes[kill.process % len(self.processes)]
        victims = [target]
        if kill.what == "machine":
            victims = [each for each in self.processes if each.machine is target.machine and each.has_begun]
        if kill.what != "process":
            for victim in victims:
                for reaper in victim.reapers:
                    if not reaper.is_done:
                        reaper.kill()
        if kill.what != "reaper":
            for victim in victims:
                victim.kill()

    def make_client(self, http: httpx.AsyncClient, machine: Machine, **options: Any) -> AsyncCortecs:
        """Create a client for a new process, with its own store."""
        forget_stores()
        client = AsyncCortecs(
            self.emulator.client_id,
            self.emulator.client_secret,
            api_base_url=self.emulator.api_base_url,
            http_client=http,
            timeout=REQUEST_TIMEOUT,
            state_dir=machine.state,
            telemetry=FailingTelemetry(self.plan.seed),
            **options,
        )
        self._clients += 1
        client._wiring.http._rng = random.Random(self.plan.seed)
        # Not the same for all clients, because it generates the tags.
        client._wiring._services.starter._tags.rng = random.Random(1000 * self.plan.seed + self._clients)
        client._wiring._services.starter._rng = random.Random(self.plan.seed)
        client._wiring._services.capacity._rng = random.Random(self.plan.seed)
        return client

    # -- sweeps

    async def _sweep_midway(self, sweep: Sweep) -> None:
        await anyio.sleep(sweep.at)
        actor = _SweepActor(self, self.machines[sweep.machine % len(self.machines)])
        with anyio.move_on_after(sweep.killed_after) as scope:
            try:
                await actor.sweep(force=sweep.force)
            except Exception:  # noqa: BLE001  (the service may fail)
                return
        if scope.cancelled_caught:
            actor.kill()

    async def _sweep_at_end(self, machine: Machine) -> None:
        began = anyio.current_time()
        try:
            self.orphans.append(await _SweepActor(self, machine).sweep())
        except Exception as error:  # noqa: BLE001  (any error is a violation)
            self.problem(f"the sweep failed: {error!r}")
            self.orphans.append([])
        if anyio.current_time() - began > SWEEP_TIMEOUT + REQUEST_TIMEOUT:
            self.problem("the sweep took longer than its timeout")

    # -- the other user

    async def _act_foreign(self, action: ForeignAction) -> None:
        await self._wait_for(action.waits_for)
        await anyio.sleep(action.after)
        if action.kind == "start":
            self._start_foreign(action.target)
        elif self.foreign:
            self._change_foreign(action.kind, self.foreign[action.target % len(self.foreign)])

    async def _wait_for(self, event: str | None, process: int | None = None) -> None:
        """Wait until an event has happened to a process. None for any process."""

        def has_happened() -> bool:
            if event == "kill":
                return not all(each.is_alive for each in self.processes)
            if event in {"waiting", "probe"}:
                # A lease that does not wait asks once.
                return any(
                    each.probed > 0 if event == "probe" else each.asked > 1
                    for each in self.processes
                    if process in {None, each.index}
                )
            response = "refused" if event == "refusal" else None
            return any(
                each.response == response and process in {None, each.lease.process} for each in self.starts
            )

        while event is not None and not has_happened():  # noqa: ASYNC110  (no code sets an event)
            # Nothing more happens once the processes have ended.
            await anyio.sleep(math.inf if self._is_over else 0.7)

    def _start_foreign(self, target: int) -> None:
        leases = [lease for process in self.plan.processes for lease in process.leases]
        spec = leases[target % len(leases)].spec
        try:
            instance_id = self.emulator.start_instance(spec.model, spec.hardware, num_workers=spec.workers)
        except ValueError:
            return  # no capacity
        self.foreign.append(ForeignInstance(instance_id, spec, [anyio.current_time()]))

    def _change_foreign(self, kind: str, instance: ForeignInstance) -> None:
        emulator, instance_id = self.emulator, instance.instance_id
        try:
            if kind == "stop":
                emulator.stop_instance(instance_id)
                instance.status = "stopped"
            elif kind == "restart":
                emulator.restart_instance(instance_id)
                instance.status = "running"
                instance.appeared_at.append(anyio.current_time())
            else:
                emulator.delete_instance(instance_id)
                instance.status = "deleted"
        except ValueError:
            return  # in the wrong state, or no capacity


class _SweepActor(Actor):
    """A process that runs `sweep`."""

    _http: httpx.AsyncClient | None = None
    _client: AsyncCortecs | None = None

    async def sweep(self, *, force: bool = False) -> list[Orphan]:
        current_actor.set(self)
        async with httpx.AsyncClient(transport=self.network, trust_env=False) as http:
            client = self._client = self.world.make_client(http, self.machine, guard="off")
            try:
                async with client:
                    return list(await client.sweep(timeout=SWEEP_TIMEOUT, force=force))
            finally:
                client._closed = True


def simulate(backend: Backend, world: World, kind: type[Simulation] = Simulation) -> Outcome:
    """Run a world on a fresh event loop, inside `virtual_world`."""
    folder = Path(tempfile.mkdtemp(prefix="simulation"))
    run = kind(backend, world, folder)
    watcher = _LogWatcher()
    _uuids.rng = random.Random(world.seed)
    logger = logging.getLogger("cortecs_async")
    logger.addHandler(watcher)
    try:
        if backend == "trio":
            trio._core._run._r.seed(world.seed)
            clock = trio.testing.MockClock(autojump_threshold=0)
            # `anyio.run` did not pass options to trio before 4.14.
            trio.run(run.run, clock=clock, instruments=[_DetectingInstrument(clock, run.detector)])
        else:
            anyio.run(run.run, backend_options={"loop_factory": lambda: _DetectingLoop(run.detector)})
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001  (a stray cancellation must not reach hypothesis)
        traceback.print_exception(error)
        run.problem(f"the run ended with {error!r}")
    finally:
        logger.removeHandler(watcher)
        forget_stores()
        shutil.rmtree(folder, ignore_errors=True)
    run.outcome.problems += watcher.errors
    if run.detector.has_detected:
        run.problem("a busy loop: no virtual time passed")
    return run.outcome


class _BusyLoopDetector:
    """Detects a busy loop, so that its clock can be advanced and its deadlines end it."""

    def __init__(self) -> None:
        self.has_detected = False
        self._instant = -1.0
        self._turns = 0

    def is_due(self, now: float) -> bool:
        """Return whether to advance the clock. Called at every turn."""
        self._turns = self._turns + 1 if now == self._instant else 0
        self._instant = now
        if self._turns < MAX_TURNS:
            return False
        self.has_detected = True
        return True


class _DetectingLoop(VirtualTimeLoop):
    def __init__(self, detector: _BusyLoopDetector) -> None:
        self._detector = detector
        super().__init__()

    def _run_once(self) -> None:
        if self._detector.is_due(self._virtual_selector.now):
            self._virtual_selector.now += 1.0
        super()._run_once()  # type: ignore[misc]  # unknown to typeshed


class _DetectingInstrument(trio.abc.Instrument):
    def __init__(self, clock: trio.testing.MockClock, detector: _BusyLoopDetector) -> None:
        self._clock = clock
        self._detector = detector

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if self._detector.is_due(self._clock.current_time()):
            self._clock.jump(1.0)


class _LogWatcher(logging.Handler):
    """Collects the client's log records.

    An error is an unexpected exception (expected ones are `critical`). A warning from a lease is for its
    caller.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        actor = current_actor.get(None)
        if actor is not None and not actor.is_alive:
            return
        if record.levelno == logging.ERROR:
            self.errors.append(f"logged: {record.getMessage()} {record.exc_info}")
        elif (lease := current_lease.get()) is not None and record.name == "cortecs_async.lease":
            lease.said.append(record.getMessage())


def forget_stores() -> None:
    """Give the next client its own store, as in a new process."""
    _store._stores.clear()


class _WithoutSync:
    """The module `os`, with an `fsync` that does nothing."""

    def fsync(self, fd: int) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


async def _record_intent(self: Promises, *args: Any, **options: Any) -> str:
    """Instead of `Promises.record_intent`: note the lease and the time."""
    lease = current_lease.get()
    if lease is None:
        return await _real_record_intent(self, *args, **options)
    intent = Intent(lease, anyio.current_time())
    current_actor.get().world.intents.append(intent)
    intent.key = await _real_record_intent(self, *args, **options)
    return intent.key


def _put_nothing(self: Promises, key: str) -> None:
    """Instead of `Promises._put_nothing`: note the time."""
    _real_put_nothing(self, key)
    for intent in current_actor.get().world.intents:
        if intent.key == key:
            intent.closed_at = anyio.current_time()


async def _wait_for_turn(self: CapacityQueue, *args: Any) -> tuple[str, ...]:
    """Instead of `CapacityQueue.wait_for_turn`: check that nothing is promised, and note the turn."""
    lease, actor = current_lease.get(), current_actor.get()
    for intent in actor.world.intents:
        if intent.lease is lease and intent.key and intent.closed_at == math.inf and actor.is_alive:
            actor.world.problem(f"{intent.lease.name} waits for capacity with an open promise")
    offer = await _real_wait_for_turn(self, *args)
    if lease is not None:
        lease.turns.append(anyio.current_time())
    return offer


_real_record_intent, _real_put_nothing = Promises.record_intent, Promises._put_nothing
_real_wait_for_turn = CapacityQueue.wait_for_turn


class _ReproducibleUUIDs:
    """The module `uuid`, with the same ids in each run of the same world."""

    def __init__(self) -> None:
        self.rng = random.Random(0)

    def uuid4(self) -> uuid.UUID:
        return uuid.UUID(int=self.rng.getrandbits(128))


_uuids = _ReproducibleUUIDs()


@contextmanager
def virtual_world() -> Iterator[None]:
    """Patch the client: no threads, processes, or syncs, virtual clocks, and deterministic trio."""
    logger = logging.getLogger("cortecs_async")
    recovery = "cortecs_async._recovery"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Wiring, "system", System(wall_clock, run_inline, run_in_background))
        patch.setattr(f"{recovery}.journal.os", _WithoutSync())
        patch.setattr(f"{recovery}.store.ReaperProcess", WorldReaperProcess)
        patch.setattr(f"{recovery}.journal.uuid", _uuids)
        patch.setattr(Promises, "record_intent", _record_intent)
        patch.setattr(Promises, "_put_nothing", _put_nothing)
        patch.setattr(CapacityQueue, "wait_for_turn", _wait_for_turn)
        patch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
        patch.setattr(logger, "level", logging.WARNING)
        patch.setattr(logger, "propagate", False)
        for name in list(os.environ):
            if name.startswith("CORTECS_"):
                patch.delenv(name)
        patch.setenv("CORTECS_API_KEY", "emulator-key")
        yield
