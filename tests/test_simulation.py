"""Test that random worlds under random faults keep the promise: see `_simulation`.

The default tier runs 80 worlds, `proofs` runs 280, and `nox -s simulate` runs 100,000. Set
CORTECS_SIMULATIONS to the number of worlds, and CORTECS_SIMULATION_SEED for other worlds. A failed test
prints a small world that fails. To run it again, call `simulate("asyncio", World(...))` inside
`virtual_world()`.
"""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from _grids import grid
from _simulation import Backend, World, simulate, stories, virtual_world, worlds
from _simulation.data import Kill, Lease, Process, Service, Shortage
from _simulation.history import Outcome
from _simulation.sharing import Holder, SharedWorld, shared_worlds, simulate_sharing
from _world import HARDWARE, MODEL
from _world import World as WorldFixture
from attrs import evolve
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.strategies import SearchStrategy

from cortecs_async._aio.tasks import TaskResult
from cortecs_async._api import wire as _wire
from cortecs_async._api.domain import Instance
from cortecs_async._api.matching import UnresolvedStart
from cortecs_async._api.teardown import ObservedState, Teardown
from cortecs_async._api.wire import decode_instances
from cortecs_async._errors import APIStatusError
from cortecs_async._http.messages import Failure, FailureKind, ShapeError
from cortecs_async._lease import candidates as _candidates
from cortecs_async._lease import hardware as _hardware
from cortecs_async._lease import lease as _lease
from cortecs_async._lease import start_state as _start_state
from cortecs_async._lease.activity import Activity
from cortecs_async._lease.start_search import StartSearch
from cortecs_async._lease.start_state import StartAttempt, StartState
from cortecs_async._recovery import claims as _claims
from cortecs_async._recovery import dead_journals as _dead_journals
from cortecs_async._recovery import recover as _recover
from cortecs_async._recovery import refusal as _refusal
from cortecs_async._recovery.claims import ForeignClaims
from cortecs_async._recovery.promises import Promises
from cortecs_async._recovery.records import JournalState
from cortecs_async._sharing.server import SharedServer
from cortecs_async.emulator import Fault

SIMULATIONS = int(os.environ.get("CORTECS_SIMULATIONS", "280"))
# The programs that are killed at each step have at least this many.
MIN_STEPS = 5
SEED = int(os.environ.get("CORTECS_SIMULATION_SEED", "0"))
BACKENDS: tuple[Backend, ...] = ("asyncio", "trio")
# Few enough for the timeout of a test, and for several workers to share the parts evenly.
PART_SIZE = min(500, max(1, SIMULATIONS // 8))
PARTS = math.ceil(SIMULATIONS / len(BACKENDS) / PART_SIZE)

# Too rare for every part.
RARE = "with a wait for capacity"

# A part must have worlds with each of these.
NEEDED = (
    "with a probe",
    "with faults",
    "with several processes",
    "with a reaper at work",
    "with a foreign instance",
    "bodies",
)


def run_worlds(
    backend: Backend,
    number: int,
    *,
    count: int,
    phases: tuple[Phase, ...],
    drawn: SearchStrategy[Any] = worlds,
    run: Callable[[Backend, Any], Outcome] = simulate,
) -> Counter[str]:
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
    @given(drawn)
    def check(world: World) -> None:
        outcome = run(backend, world)
        tally.update(outcome.tally)
        if outcome.problems:
            pytest.fail("\n".join([*outcome.problems, repr(world)]), pytrace=False)

    engine = "hypothesis.internal.conjecture.engine"
    with virtual_world(), pytest.MonkeyPatch.context() as patch:
        # A failed test must end its shrinking before `faulthandler_timeout`.
        patch.setattr(f"{engine}.MAX_SHRINKING_SECONDS", 90, raising=False)
        # Most examples would be variations of each other.
        variations = f"{engine}.ConjectureRunner.generate_mutations_from"
        patch.setattr(variations, lambda *_: None, raising=False)
        check()
    return tally


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_worlds_leave_nothing(backend: Backend) -> None:
    tally = run_worlds(backend, BACKENDS.index(backend), count=60, phases=(Phase.generate, Phase.shrink))
    assert [name for name in (RARE, *NEEDED) if not tally[name]] == []


@pytest.mark.proofs
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_worlds_leave_nothing(backend: Backend, part: int) -> None:
    number = (SEED * 100_000 + part) * len(BACKENDS) + BACKENDS.index(backend)
    tally = run_worlds(backend, number, count=PART_SIZE, phases=(Phase.generate, Phase.shrink))
    assert [name for name in NEEDED if not tally[name]] == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_few_shared_instances_leave_nothing(backend: Backend) -> None:
    number, phases = BACKENDS.index(backend), (Phase.generate, Phase.shrink)
    run_worlds(backend, number, count=15, phases=phases, drawn=shared_worlds, run=simulate_sharing)


@pytest.mark.proofs
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_many_shared_instances_leave_nothing(backend: Backend, part: int) -> None:
    number = (SEED * 100_000 + part) * len(BACKENDS) + BACKENDS.index(backend)
    count, phases = max(1, PART_SIZE // 4), (Phase.generate, Phase.shrink)
    tally = run_worlds(backend, number, count=count, phases=phases, drawn=shared_worlds, run=simulate_sharing)
    assert tally["bodies"]


_WAITING = Lease(
    hardware=("NVIDIA_L4_1", "NVIDIA_H100_1"),
    capacity_timeout=600.0,
    ready="answer",
    idle_timeout=20.0,
    use="touch",
    sleep_before=30.0,
)
# Two leases wait for capacity, get it after a while, and probe an endpoint that answers late.
WAITERS = World(
    (Process((_WAITING, evolve(_WAITING, parallel=True))),),
    shortages=(Shortage(0.0, 40.0),),
    service=Service(endpoint_lag=5.0),
)
# Three processes join one after another, and leave before the next one joins.
SHARERS = SharedWorld(holders=(Holder(stays=30.0), Holder(joins_at=5.0), Holder(joins_at=50.0)), linger=10.0)


def killed_waiter(step: int) -> World:
    return evolve(WAITERS, kills=(Kill(step=step),))


def killed_owner(step: int) -> World:
    return evolve(SHARERS, kills=(Kill(step=step),))


def killed_holder(step: int) -> World:
    first, *others = SHARERS.holders
    return evolve(SHARERS, holders=(evolve(first, killed_at_step=step), *others))


@pytest.mark.proofs
@pytest.mark.parametrize("killed", [killed_waiter, killed_owner, killed_holder])
def test_a_kill_at_any_step_leaves_nothing(killed: Callable[[int], World]) -> None:
    """Kill a process that waits for capacity, an owner of a shared instance, and a process that uses one."""
    run: Callable[[Backend, Any], Outcome] = simulate if killed is killed_waiter else simulate_sharing
    with virtual_world():
        for step in itertools.count(1):
            outcome = run(BACKENDS[step % 2], killed(step))
            assert outcome.problems == [], step
            if not outcome.tally["with a kill"]:
                break
    assert step > MIN_STEPS


async def test_the_equal_instance_of_another_user_is_adopted_if_the_start_was_lost_without_effect(
    world: WorldFixture,
) -> None:
    """The case that the simulation leaves out, because no client can decide it.

    The service has no tags, so a single new instance that matches counts as the client's own. A client that
    did not adopt it would leave its own instance running whenever a response is lost.
    """
    foreign: list[str] = []

    async with world() as (emu, client):
        # The baseline is two seconds old when it arrives.
        emu.add_fault(Fault("delay", route="list", when="after", seconds=2.0))
        emu.add_fault(Fault("drop", route="start", when="before"))

        async def start_foreign() -> None:
            await anyio.sleep(1.0)
            foreign.append(emu.start_instance(MODEL, HARDWARE))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start_foreign)
            async with client.instance(MODEL, HARDWARE) as inst:
                assert [inst.instance_id] == foreign
        assert [entry.status for entry in emu.ledger] == ["deleted"]


# --- the simulation detects a client that ... ---------------------------------------------------------------


async def never_resolves(self: StartSearch, start: StartAttempt, *, to_release: bool) -> Instance | None:
    """Instead of `StartSearch.resolve`."""
    start.interrupted()
    start.resolved(StartState.NOT_STARTED)
    if start.key is not None:
        self.promises.record_gone(start.key)
        start.key = None
    return None


def match_any(start: Any, starts: Any, instances: Any, **_: Any) -> Instance | None:
    """Instead of `match_start`."""
    return next((each for each in reversed(instances) if start.fits(each)), None)


async def does_nothing(self: Teardown) -> None:
    """Instead of `Teardown.run`."""


async def run_cancellable(work: Callable[[], Any], *, restart_if_cancelled: bool) -> TaskResult[Any]:
    """Instead of `run_uncancellable`, for a release."""
    return TaskResult(value=await work())


async def close_later(self: Promises, key: str) -> None:
    """Instead of `Promises.close`: the record is only queued."""
    self.record_gone(key)


def without_earlier(self: ForeignClaims, earlier: ForeignClaims) -> ForeignClaims:
    """Instead of `ForeignClaims.with_earlier`: the claims are read after the list only."""
    return self


def remember_nothing(self: JournalState, instance_id: str, api: str | None = None) -> None:
    """Instead of `JournalState.add_past`."""


def by_local_clock(self: UnresolvedStart, instance: Instance, listed_at: float | None) -> bool:
    """Instead of `UnresolvedStart.is_contradicted_by`: the local clock against the service's."""
    stamp = instance.instance_status.started_at
    return stamp is not None and not -300 <= stamp.timestamp() - self.order[1] <= 3600


def by_status(method: str, failure: Failure) -> bool:
    """Instead of `may_have_taken_effect`: whatever the body says."""
    if method == "GET" or failure.kind is FailureKind.NOT_SENT:
        return False
    return failure.status is None or failure.status >= 500 or failure.status == 408


def has_no_tag(self: UnresolvedStart, instance: Instance, *_: Any) -> bool:
    """Instead of `UnresolvedStart.has_tag_of` and `is_contradicted_by`."""
    return False


async def believe(_: Teardown, state: ObservedState) -> ObservedState:
    """Instead of `Teardown._confirm`."""
    return state


async def forget(self: StartSearch, start: StartAttempt) -> None:
    """Instead of `StartSearch._give_up`: the start counts as not carried out."""
    start.resolved(StartState.NOT_STARTED)
    if start.key is not None:
        await self.promises.close(start.key)
        start.key = None


def decode_all_or_none(*args: Any, **options: Any) -> Any:
    """Instead of `decode_instances`: one odd entry rejects the list."""
    listing = decode_instances(*args, **options)
    if listing.unreadable:
        raise ShapeError("an odd entry")
    return listing


def is_never_refused(_: APIStatusError) -> bool:
    """Instead of `is_refusal`."""
    return False


def take_all(state: JournalState) -> JournalState:
    """Instead of `_given_up`: a forced sweep takes what a living process owns."""
    return state


def refuse_any(attempt: StartAttempt) -> Failure | None:
    """Instead of `refusal_of`: a start request without a response counts as refused."""
    return attempt.failure


async def promise_and_wait(state: Any, *args: Any) -> Any:
    """Instead of `_wait_for_turn`: promise before there is capacity."""
    promises = state.services.promises
    key = await promises.record_intent(state.options.args, promises.baseline(()))
    try:
        return await wait_for_turn(state, *args)
    finally:
        await promises.close(key)


wait_for_turn = _candidates._wait_for_turn


def touch_nothing(self: Activity) -> None:
    """Instead of `Activity.touch`."""


def announce_nothing(self: Promises, key: str, idle_at: float) -> None:
    """Instead of `Promises.record_activity`."""


def count_nothing(*_: Any, **__: Any) -> None:
    """Instead of `line_of_promise`: only the lease writes its cost."""


async def end_at_once(self: SharedServer, starting: anyio.CancelScope) -> None:
    """Instead of `SharedServer._end_when_unused`: without `linger`."""
    self.linger = 0.0
    await end_when_unused(self, starting)


end_when_unused = SharedServer._end_when_unused

is_never_unused = property(lambda self: not self._is_ending)
"""Instead of `SharedServer._is_wanted`: a process that has left still counts."""


# A story in which it soon shows, and what to replace, where. Each takes back a rule of evidence, or more.
SABOTAGE: dict[str, tuple[str, list[tuple[Any, str, Any]]]] = {
    "does not look for the instance of an unanswered start": (
        "any",
        [(StartSearch, "resolve", never_resolves)],
    ),
    "adopts any matching instance": ("any", [(_claims, "match_start", match_any)]),
    "does not release its instance": ("any", [(Teardown, "run", does_nothing)]),
    "lets a cancellation interrupt its release": ("any", [(_lease, "run_uncancellable", run_cancellable)]),
    "records a refusal later": ("refusals", [(Promises, "close", close_later)]),
    "reads the claims after the list only": (
        "twins",
        [
            (ForeignClaims, "with_earlier", without_earlier),
            (JournalState, "add_past", remember_nothing),
        ],
    ),
    "compares the local clock with the service's": (
        "any",
        [(UnresolvedStart, "is_contradicted_by", by_local_clock)],
    ),
    "does not take a refusal in the service's words for one": (
        "refusals",
        [(_start_state, "may_have_taken_effect", by_status)],
    ),
    "ignores its tags": (
        "late",
        [
            (UnresolvedStart, "has_tag_of", has_no_tag),
            (UnresolvedStart, "is_contradicted_by", has_no_tag),
        ],
    ),
    "believes a single reading": ("readings", [(Teardown, "_confirm", believe)]),
    "forgets a start that has not appeared": ("late", [(StartSearch, "_give_up", forget)]),
    "keeps the lock although its credentials are refused": (
        "rotated",
        [(_refusal, "is_refusal", is_never_refused)],
    ),
    "takes by force what a living process owns": ("any", [(_dead_journals, "_given_up", take_all)]),
    "rejects a list with an odd entry": ("any", [(_wire, "decode_instances", decode_all_or_none)]),
    "tries the next hardware type after an unanswered start": (
        "waiting",
        [(_hardware, "refusal_of", refuse_any), (_candidates, "refusal_of", refuse_any)],
    ),
    "promises while it waits for capacity": ("waiting", [(_candidates, "_wait_for_turn", promise_and_wait)]),
    "ends a lease that is in use as idle": ("idle", [(Activity, "touch", touch_nothing)]),
    "does not tell the reaper when it is idle": ("idle", [(Promises, "record_activity", announce_nothing)]),
    "leaves the cost of a killed lease out": ("any", [(_recover, "line_of_promise", count_nothing)]),
    "does not keep a shared instance": ("shared", [(SharedServer, "_end_when_unused", end_at_once)]),
    "keeps a shared instance for processes that have left": (
        "shared",
        [(SharedServer, "_is_wanted", is_never_unused)],
    ),
}


@pytest.mark.proofs
@grid(strength=1, client=SABOTAGE, backend=BACKENDS)
def test_the_simulation_detects_a_client_that(
    client: str, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    story, replacements = SABOTAGE[client]
    for owner, name, instead in replacements:
        monkeypatch.setattr(owner, name, instead)
    drawn: SearchStrategy[Any] = shared_worlds if story == "shared" else stories[story]
    run: Callable[[Backend, Any], Outcome] = simulate_sharing if story == "shared" else simulate
    with pytest.raises(pytest.fail.Exception):
        run_worlds(backend, 0, count=500, phases=(Phase.generate,), drawn=drawn, run=run)
