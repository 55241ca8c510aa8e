"""A thousand random lives under random faults, on both backends: nothing is left, and only ours is touched.

The default tier runs eighty programs, `proofs` a thousand, and `nox -s simulate` a hundred thousand.
CORTECS_SIMULATIONS is how many programs there are, and CORTECS_SIMULATION_SEED makes them others. A failure
prints the shrunk program: `simulate("asyncio", Program(...))` inside `virtual_world()` runs it again.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from _grids import grid
from _simulation import Backend, Program, programs, simulate, virtual_world
from _world import HARDWARE, MODEL, World
from hypothesis import HealthCheck, Phase, given, seed, settings

from cortecs_async._aio.tasks import TaskResult
from cortecs_async._api.domain import Instance
from cortecs_async._api.teardown import Teardown
from cortecs_async._lease import lease as _lease
from cortecs_async._lease import starter as _starter
from cortecs_async._lease.starter import StartAttempt, Starter, StartState
from cortecs_async.emulator import Fault

SIMULATIONS = int(os.environ.get("CORTECS_SIMULATIONS", "1000"))
SEED = int(os.environ.get("CORTECS_SIMULATION_SEED", "0"))
BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")
# Small enough for the time that a test may take, and for several workers to share them evenly.
IN_A_PART = min(500, max(1, SIMULATIONS // 4))
PARTS = math.ceil(SIMULATIONS / len(BACKENDS) / IN_A_PART)

# A part without these would say little.
NEEDED = ("with faults", "bodies", "starts without an answer")


@pytest.fixture(autouse=True)
def _virtual_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A test that fails has to be done with shrinking before faulthandler_timeout.
    limit = "hypothesis.internal.conjecture.engine.MAX_SHRINKING_SECONDS"
    monkeypatch.setattr(limit, 90, raising=False)
    with virtual_world():
        yield


def run_many(backend: Backend, number: int, *, of: int, phases: tuple[Phase, ...]) -> Counter[str]:
    """Runs random programs, the same for the same seed; what does not hold fails the test."""
    tally: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=of,
        phases=phases,
        derandomize=False,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def check(program: Program) -> None:
        outcome = simulate(backend, program)
        tally.update(outcome.tally)
        if outcome.problems:
            pytest.fail("\n".join([*outcome.problems, repr(program)]), pytrace=False)

    check()
    return tally


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_programs_leave_nothing(backend: Backend) -> None:
    tally = run_many(backend, BACKENDS.index(backend), of=40, phases=(Phase.generate, Phase.shrink))
    assert [name for name in NEEDED if not tally[name]] == []


@pytest.mark.proofs
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_and_nothing_foreign_touched(backend: Backend, part: int) -> None:
    number = (SEED * 100_000 + part) * len(BACKENDS) + BACKENDS.index(backend)
    tally = run_many(backend, number, of=IN_A_PART, phases=(Phase.generate, Phase.shrink))
    assert [name for name in NEEDED if not tally[name]] == []


async def test_a_strangers_equal_instance_is_taken_for_that_of_a_start_lost_before_the_deed(
    world: World,
) -> None:
    """What no client can decide: the service has no tags, so one new instance that fits counts as proven.

    The simulation leaves this out. A client that took nothing here would leave its own instance running
    whenever an answer is lost.
    """
    foreign: list[str] = []

    async with world() as (emu, client):
        # The look at what exists is five seconds old when it arrives.
        emu.add_fault(Fault("delay", route="list", when="after", seconds=5.0))
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def neighbour() -> None:
            await anyio.sleep(2.0)
            foreign.append(emu.start_instance(MODEL, HARDWARE))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(neighbour)
            async with client.instance(MODEL, HARDWARE) as inst:
                assert [inst.instance_id] == foreign
        assert [entry.status for entry in emu.ledger] == ["deleted"]


# --- the simulation notices a client that ... ---------------------------------------------------------------


async def never_looks(self: Starter, start: StartAttempt, *, eager: bool) -> Instance | None:
    """Instead of `Starter.resolve`."""
    start.interrupted()
    start.state = StartState.NOT_STARTED
    self._close(start)
    return None


def takes_any(mine: Any, starts: Any, instances: Any) -> Instance | None:
    """Instead of `match_start`."""
    return next((each for each in reversed(instances) if mine.fits(each)), None)


async def believes(self: Teardown) -> None:
    """Instead of `Teardown.run`."""


async def can_be_cancelled(work: Callable[[], Any], *, resume: bool) -> TaskResult[Any]:
    """Instead of `run_uncancellable`, for a release."""
    return TaskResult(value=await work())


SABOTAGE = {
    "does not look for what a lost answer hid": (Starter, "resolve", never_looks),
    "takes any instance that fits": (_starter, "match_start", takes_any),
    "believes without a stop that an instance is gone": (Teardown, "run", believes),
    "lets its release be cancelled": (_lease, "run_uncancellable", can_be_cancelled),
}


@pytest.mark.proofs
@grid(strength=1, client=SABOTAGE, backend=BACKENDS)
def test_the_simulation_notices_a_client_that(
    client: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, instead = SABOTAGE[client]
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(pytest.fail.Exception):
        run_many(backend, 0, of=300, phases=(Phase.generate,))
