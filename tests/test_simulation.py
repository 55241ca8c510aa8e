"""Test that random worlds under random faults keep the promise: see `_simulation`.

The default tier runs 80 worlds, `proofs` runs 1,000, and `nox -s simulate` runs 100,000. Set
CORTECS_SIMULATIONS to the number of worlds, and CORTECS_SIMULATION_SEED for other worlds. A failed test
prints a small world that fails. To run it again, call `simulate("asyncio", World(...))` inside
`virtual_world()`.
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
from _simulation import Backend, World, simulate, virtual_world, worlds
from _world import HARDWARE, MODEL
from _world import World as WorldFixture
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
# Few enough for the timeout of a test, and for several workers to share the parts evenly.
PART_SIZE = min(500, max(1, SIMULATIONS // 4))
PARTS = math.ceil(SIMULATIONS / len(BACKENDS) / PART_SIZE)

# A part must have worlds with each of these.
NEEDED = ("with faults", "with several processes", "with a reaper at work", "with a foreign instance", "bodies")


@pytest.fixture(autouse=True)
def _virtual_world(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    # A failed test must end its shrinking before `faulthandler_timeout`.
    limit = "hypothesis.internal.conjecture.engine.MAX_SHRINKING_SECONDS"
    monkeypatch.setattr(limit, 90, raising=False)
    with virtual_world():
        yield


def run_worlds(backend: Backend, number: int, *, count: int, phases: tuple[Phase, ...]) -> Counter[str]:
    """Run the random worlds of a seed, and fail the test at the first violation."""
    tally: Counter[str] = Counter()

    @seed(number)
    @settings(
        max_examples=count,
        phases=phases,
        derandomize=False,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    @given(worlds)
    def check(world: World) -> None:
        outcome = simulate(backend, world)
        tally.update(outcome.tally)
        if outcome.problems:
            pytest.fail("\n".join([*outcome.problems, repr(world)]), pytrace=False)

    check()
    return tally


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_worlds_leave_nothing(backend: Backend) -> None:
    tally = run_worlds(backend, BACKENDS.index(backend), count=40, phases=(Phase.generate, Phase.shrink))
    assert [name for name in NEEDED if not tally[name]] == []


@pytest.mark.proofs
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_worlds_leave_nothing(backend: Backend, part: int) -> None:
    number = (SEED * 100_000 + part) * len(BACKENDS) + BACKENDS.index(backend)
    tally = run_worlds(backend, number, count=PART_SIZE, phases=(Phase.generate, Phase.shrink))
    assert [name for name in NEEDED if not tally[name]] == []


async def test_the_equal_instance_of_another_user_is_adopted_if_the_start_was_lost_without_effect(
    world: WorldFixture,
) -> None:
    """The case that the simulation leaves out, because no client can decide it.

    The service has no tags, so a single new instance that matches counts as the client's own. A client that
    did not adopt it would leave its own instance running whenever a response is lost.
    """
    foreign: list[str] = []

    async with world() as (emu, client):
        # The baseline is five seconds old when it arrives.
        emu.add_fault(Fault("delay", route="list", when="after", seconds=5.0))
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def start_foreign() -> None:
            await anyio.sleep(2.0)
            foreign.append(emu.start_instance(MODEL, HARDWARE))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_foreign)
            async with client.instance(MODEL, HARDWARE) as inst:
                assert [inst.instance_id] == foreign
        assert [entry.status for entry in emu.ledger] == ["deleted"]


# --- the simulation detects a client that ... ---------------------------------------------------------------


async def never_resolves(self: Starter, start: StartAttempt, *, to_release: bool) -> Instance | None:
    """Instead of `Starter.resolve`."""
    start.interrupted()
    start.state = StartState.NOT_STARTED
    self._close(start)
    return None


def match_any(start: Any, starts: Any, instances: Any) -> Instance | None:
    """Instead of `match_start`."""
    return next((each for each in reversed(instances) if start.fits(each)), None)


async def does_nothing(self: Teardown) -> None:
    """Instead of `Teardown.run`."""


async def run_cancellable(work: Callable[[], Any], *, restart_if_cancelled: bool) -> TaskResult[Any]:
    """Instead of `run_uncancellable`, for a release."""
    return TaskResult(value=await work())


SABOTAGE = {
    "does not look for the instance of an unanswered start": (Starter, "resolve", never_resolves),
    "adopts any matching instance": (_starter, "match_start", match_any),
    "does not release its instance": (Teardown, "run", does_nothing),
    "lets a cancellation interrupt its release": (_lease, "run_uncancellable", run_cancellable),
}


@pytest.mark.proofs
@grid(strength=1, client=SABOTAGE, backend=BACKENDS)
def test_the_simulation_detects_a_client_that(
    client: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner, name, instead = SABOTAGE[client]
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(pytest.fail.Exception):
        run_worlds(backend, 0, count=300, phases=(Phase.generate,))
