"""Test the poller in virtual time, with a scripted source."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate, pairwise
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, alternating, grid, on_one_backend
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async import PollPolicy, errors
from cortecs_async._api.domain import InitProgress, Instance, InstanceArgs, InstanceStatus, WorkerStatus
from cortecs_async._api.intervals import StepTimes, poll_interval
from cortecs_async._api.listing import Listing, UnreadableEntry
from cortecs_async._api.polling import Poller
from cortecs_async._api.waiting import InstanceWatch, has_ended, wait_until, wait_until_running
from cortecs_async._errors import error_class_for


def snapshot(instance_id: str, status: str = "pending") -> Instance:
    return Instance(
        instance_id=instance_id,
        base_url="http://localhost/v1" if status == "running" else None,
        instance_args=InstanceArgs(model_id="org--model"),
        instance_status=InstanceStatus(status=status),
    )


def nothing(_now: float) -> None:
    """Return the state of an instance that does not exist."""


class Script:
    """A source whose instances follow a function of time. It records all requests.

    An instance with the status "unreadable" is an entry of the list that cannot be read; so is a get of it.
    """

    def __init__(self, *, latency: float = 0.0) -> None:
        self.states: dict[str, Callable[[float], str | None]] = {}
        self.latency = latency
        self.asked: list[tuple[float, str]] = []
        self.trouble: Callable[[float], Exception | None] = lambda _now: None

    def _now(self, instance_id: str) -> Instance | UnreadableEntry | None:
        state = self.states.get(instance_id, nothing)(anyio.current_time())
        if state == "unreadable":
            return UnreadableEntry(entry_id=instance_id, problem="it is odd")
        return None if state is None else snapshot(instance_id, state)

    async def _ask(self, what: str) -> None:
        self.asked.append((anyio.current_time(), what))
        await anyio.sleep(self.latency)
        trouble = self.trouble(anyio.current_time())
        if trouble is not None:
            raise trouble

    async def read_one(self, instance_id: str) -> Instance:
        await self._ask(instance_id)
        instance = self._now(instance_id)
        path = f"/instances/{instance_id}"
        if instance is None:
            raise errors.BadRequestError("no", method="GET", path=path, status_code=400)
        if isinstance(instance, UnreadableEntry):
            raise errors.DecodeError("odd", method="GET", path=path)
        return instance

    async def read_all(self) -> Listing[Instance]:
        await self._ask("*")
        entries = [each for each in map(self._now, self.states) if each is not None]
        return Listing(
            [each for each in entries if isinstance(each, Instance)],
            unreadable=[each for each in entries if isinstance(each, UnreadableEntry)],
        )


def switch(at: float, before: str | None, after: str | None) -> Callable[[float], str | None]:
    return lambda now: before if now < at else after


async def until(
    poller: Poller, instance_id: str, status: str | None, seen: list[float] | None = None
) -> float:
    subscription = poller.subscribe(instance_id)
    while True:
        instance = await poller.next(subscription)
        if (instance.status if instance else None) == status:
            if seen is not None:
                seen.append(anyio.current_time())
            return anyio.current_time()


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_an_expected_end_never_lengthens_the_interval(elapsed: float, distance: float) -> None:
    policy = PollPolicy()
    pause = poll_interval(elapsed, policy, distance=distance)
    assert 0.5 <= pause <= poll_interval(elapsed, policy)
    assert pause <= max(0.5, 0.1 * distance)


def at_step(step: int, of: int = 5, *, status: str = "pending") -> Instance:
    worker = WorkerStatus(init_progress=InitProgress(current_step=step, num_steps=of, description="..."))
    return evolve(snapshot("a", status), worker_statuses=(worker,))


def noted(*readings: tuple[float, Instance | None]) -> StepTimes:
    steps = StepTimes()
    for now, reading in readings:
        steps.record(reading, now)
    return steps


class TestStepTimes:
    def test_one_step_gives_no_distance(self) -> None:
        assert noted((0.0, at_step(1)), (50.0, at_step(1))).distance(60.0) is None

    def test_two_steps_give_the_distance_to_the_last(self) -> None:
        steps = noted((0.0, at_step(1)), (10.0, at_step(2)))
        assert steps.distance(15.0) == pytest.approx(40.0 - 15.0)

    def test_a_step_that_was_skipped_counts(self) -> None:
        steps = noted((0.0, at_step(1)), (30.0, at_step(4)))
        assert steps.distance(30.0) == pytest.approx(10.0)

    def test_the_last_step_may_take_time_too(self) -> None:
        steps = noted((0.0, at_step(1)), (40.0, at_step(5)))
        assert steps.distance(40.0) == pytest.approx(10.0)

    def test_the_distance_grows_after_the_expected_end(self) -> None:
        steps = noted((0.0, at_step(1)), (10.0, at_step(2)))
        assert steps.distance(500.0) == pytest.approx(460.0)

    def test_absurd_step_numbers_give_no_distance(self) -> None:
        assert noted((0.0, at_step(1)), (10.0, at_step(10**400, 10**400))).distance(11.0) is None

    @pytest.mark.parametrize("reset", [None, at_step(5, status="running"), at_step(1)])
    def test_a_step_backwards_starts_again(self, reset: Instance | None) -> None:
        assert noted((0.0, at_step(2)), (10.0, at_step(3)), (20.0, reset)).distance(21.0) is None

    @given(
        st.lists(
            st.tuples(
                st.floats(0, 1e6), st.none() | st.builds(at_step, st.integers(-2, 9), st.integers(-2, 9))
            )
        ),
        st.floats(0, 1e6),
    )
    def test_no_readings_give_a_negative_distance(
        self, readings: list[tuple[float, Instance | None]], now: float
    ) -> None:
        distance = noted(*readings).distance(now)
        assert distance is None or distance >= 0


@pytest.mark.parametrize("seconds", [30.0, 120.0, 600.0])
async def test_the_end_of_steady_steps_is_detected_quickly(seconds: float) -> None:
    class Starting(Script):
        async def read_one(self, instance_id: str) -> Instance:
            await self._ask(instance_id)
            step = min(1 + int((anyio.current_time() - began) / seconds * 4), 5)
            return at_step(step, status="running" if step == 5 else "pending")

    script = Starting()
    began = anyio.current_time()
    seen = await until(Poller(script, PollPolicy()), "a", "running") - began
    assert seen - seconds < max(0.5, 0.025 * seconds) / 2
    polls = len(script.asked)
    assert polls < 1.2 * seconds / 5 + 60


@given(st.floats(min_value=0, max_value=1e6), st.floats(min_value=0, max_value=1e6))
def test_the_interval_stays_within_its_bounds(elapsed: float, more: float) -> None:
    policy = PollPolicy()
    pause = poll_interval(elapsed, policy)
    assert 0.5 <= pause <= min(max(0.5, 0.1 * elapsed), 5.0) + 1e-9
    assert poll_interval(elapsed + more, policy) >= pause


@grid(anyio_backend=BACKENDS, after=[0.3, 4.0, 29.9, 61.0, 599.0], latency=[0.0, 0.2])
async def test_a_change_is_seen_within_the_bound(after: float, latency: float) -> None:
    source = Script(latency=latency)
    start = anyio.current_time()
    source.states["a"] = switch(start + after, "pending", "running")
    seen_at = await until(Poller(source, PollPolicy()), "a", "running")
    # The script is read when an answer arrives, so the way of the answers is not part of this.
    assert 0 <= seen_at - start - after <= min(max(0.5, 0.1 * after), 5.0) + 1e-6


@pytest.mark.parametrize(
    ("ids", "latency", "apart"),
    [("a", 0.0, 0.5), ("a", 0.15, 0.5), ("a", 1.0, 1.25), ("ab", 0.15, 0.65)],
    ids=["near", "far", "slow", "many"],
)
async def test_the_way_of_an_answer_counts_as_part_of_the_interval_for_one_instance(
    ids: str, latency: float, apart: float
) -> None:
    source = Script(latency=latency)
    for each in ids:
        source.states[each] = switch(anyio.current_time() + 4, "pending", "running")
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        for each in ids:
            tasks.start_soon(until, poller, each, "running")
    times = [at for at, what in source.asked if what == source.asked[-1][1]]
    assert [later - earlier for earlier, later in pairwise(times)] == pytest.approx(
        [apart] * (len(times) - 1)
    )


async def test_one_request_per_poll_serves_all_waits() -> None:
    async def requests_for(count: int) -> int:
        source = Script()
        start = anyio.current_time()
        poller = Poller(source, PollPolicy())
        for number in range(count):
            source.states[f"i{number}"] = switch(start + 60, "pending", "running")
        async with anyio.create_task_group() as tasks:
            for number in range(count):
                tasks.start_soon(until, poller, f"i{number}", "running")
        assert all(what == "*" for _, what in source.asked[1:])
        return len(source.asked)

    two, many = await requests_for(2), await requests_for(200)
    assert many <= two + 1


async def test_a_single_instance_is_requested_by_id() -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time() + 3, "pending", "running")
    await until(Poller(source, PollPolicy()), "a", "running")
    assert {what for _, what in source.asked} == {"a"}


async def test_a_wait_that_ends_does_not_check_all_others(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = 0

    class Counted(dict[Any, None]):
        def __iter__(self) -> Iterator[Any]:
            nonlocal looked
            for each in super().__iter__():
                looked += 1
                yield each

    source = Script()
    poller = Poller(source, PollPolicy())
    monkeypatch.setattr(poller, "_waiters", Counted())
    start = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        for number in range(400):
            source.states[f"i{number}"] = switch(start + 10, "pending", "running")
            tasks.start_soon(until, poller, f"i{number}", "running")
    assert looked <= 5 * 400 * len(source.asked)


async def test_ten_waits_for_one_instance_send_no_more_than_one() -> None:
    async def asked_by(count: int) -> list[str]:
        source = Script()
        source.states["a"] = switch(anyio.current_time() + 20, "pending", "running")
        poller = Poller(source, PollPolicy())
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(until, poller, "a", "running")
        return [what for _, what in source.asked]

    assert await asked_by(10) == await asked_by(1)


async def test_no_request_is_sent_without_a_wait() -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time(), "pending", "running")
    await until(Poller(source, PollPolicy()), "a", "running")
    asked = len(source.asked)
    await anyio.sleep(100)
    assert len(source.asked) == asked


async def test_a_cancelled_leader_hands_over() -> None:
    source = Script(latency=0.2)
    source.states["a"] = switch(anyio.current_time() + 10, "pending", "running")
    poller = Poller(source, PollPolicy())
    start = anyio.current_time()
    seen: list[float] = []
    async with anyio.create_task_group() as tasks:
        scopes = [anyio.CancelScope() for _ in range(3)]

        async def cancellable(scope: anyio.CancelScope) -> None:
            with scope:
                await until(poller, "a", "running")

        for scope in scopes:
            tasks.start_soon(cancellable, scope)
        await anyio.sleep(0.05)
        tasks.start_soon(until, poller, "a", "running", seen)
        for scope in scopes:
            # The second scope is cancelled just when its task becomes the leader.
            await anyio.sleep(1.15)
            scope.cancel()
    assert seen[0] - start <= 10 + 1.0 + 0.4


async def test_cancelling_the_leader_and_its_successor_stops_no_other_wait() -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time() + 5, "pending", "running")
    poller = Poller(source, PollPolicy())
    seen: list[float] = []
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def both() -> None:
            with scope:
                async with anyio.create_task_group() as inner:
                    inner.start_soon(until, poller, "a", "running")
                    inner.start_soon(until, poller, "a", "running")

        tasks.start_soon(both)
        await anyio.sleep(0.1)
        tasks.start_soon(until, poller, "a", "running", seen)
        await anyio.sleep(1)
        scope.cancel()
    assert len(seen) == 1


async def test_a_new_wait_is_served_at_once() -> None:
    source = Script()
    now = anyio.current_time()
    source.states.update(old=lambda _now: "pending", new=switch(now, None, "running"))
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until, poller, "old", "running")
        await anyio.sleep(100.1)  # by now the old wait is asked for every 5 s
        asked_at = anyio.current_time()
        assert await until(poller, "new", "running") == asked_at
        tasks.cancel_scope.cancel()


async def test_a_slow_consumer_delays_no_other_and_gets_the_newest() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = lambda now: f"step {min(int(now - start), 20)}"
    poller = Poller(source, PollPolicy())
    slow: list[str] = []
    fast: list[str] = []

    async def consume(into: list[str], pause: float) -> None:
        async for instance in InstanceWatch(poller, "a"):
            into.append(instance.status)
            if instance.status == "step 20":
                return
            await anyio.sleep(pause)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume, slow, 8.0)
        tasks.start_soon(consume, fast, 0.0)
    assert len(fast) > 10 > len(slow)
    assert slow[-1] == fast[-1] == "step 20"


async def test_unchanged_readings_are_no_news() -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time() + 30, "pending", "running")
    poller = Poller(source, PollPolicy())
    watch = InstanceWatch(poller, "a")
    assert [(await anext(watch)).status, (await anext(watch)).status] == ["pending", "running"]
    assert len(source.asked) > 5


def failure(status: int = 500, **more: Any) -> errors.APIStatusError:
    return error_class_for(status)("trouble", method="GET", path="/", status_code=status, **more)


async def test_failed_polls_slow_down_and_recover() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = switch(start + 100, "pending", "running")
    source.trouble = lambda now: failure() if now - start < 60 else None
    assert await until(Poller(source, PollPolicy()), "a", "running") - start <= 106
    during = [at - start for at, _ in source.asked if at - start < 60]
    assert len(during) <= 20
    assert max(later - sooner for sooner, later in pairwise(during)) <= 5.0


async def test_retry_after_also_delays_new_waits() -> None:
    source = Script()
    start = anyio.current_time()
    source.states.update(a=lambda _now: "running", b=lambda _now: "running")
    source.trouble = lambda now: failure(429, retry_after=20.0) if now == start else None
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until, poller, "a", "running")
        await anyio.sleep(5)
        tasks.start_soon(until, poller, "b", "running")
    assert [at - start for at, _ in source.asked] == [0, 20]


async def test_a_very_long_retry_after_is_capped() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = lambda _now: "running"
    source.trouble = lambda now: failure(429, retry_after=1e6) if now == start else None
    assert await until(Poller(source, PollPolicy()), "a", "running") - start == 60


@pytest.mark.parametrize("status", [401, 403])
async def test_a_refusal_reaches_every_waiter(status: int) -> None:
    source = Script()
    source.states.update(a=lambda _now: "pending", b=lambda _now: "pending")
    poller = Poller(source, PollPolicy())
    raised: list[int] = []

    async def wait(instance_id: str) -> None:
        try:
            await until(poller, instance_id, "running")
        except errors.APIStatusError as error:
            raised.append(error.status_code)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, "a")
        tasks.start_soon(wait, "b")
        await anyio.sleep(5)
        source.trouble = lambda _now: failure(status)
    assert raised == [status, status]


async def test_a_long_outage_ends_the_wait() -> None:
    source = Script()
    start = anyio.current_time()
    source.trouble = lambda _now: failure(502)
    with pytest.raises(errors.ServerError):
        await until(Poller(source, PollPolicy(max_outage=50)), "a", "running")
    assert 50 <= anyio.current_time() - start <= 60


async def test_gone_needs_both_the_instance_and_the_list() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = lambda now: "pending" if now - start < 10 else None
    seen_at = await until(Poller(source, PollPolicy()), "a", None)
    # Three readings that agree, for 5 s.
    since = seen_at - 5.0
    assert since >= start + 10
    assert [(at - since, what) for at, what in source.asked if at >= start + 10] == [
        (0.0, "a"),
        (0.0, "*"),
        (2.5, "a"),
        (2.5, "*"),
        (5.0, "a"),
        (5.0, "*"),
    ]


async def test_an_instance_that_the_list_lacks_is_requested_by_id() -> None:
    source = Script()
    start = anyio.current_time()
    source.states.update(a=switch(start + 8, "pending", None), b=switch(start + 20, "pending", "running"))
    poller = Poller(source, PollPolicy())
    seen: list[float] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until, poller, "a", None, seen)
        tasks.start_soon(until, poller, "b", "running")
    times = [at for at, what in source.asked if what == "a" and at - start >= 8]
    # It is gone at the first reading that is 5 s after the first one without it.
    assert times[-1] - times[0] >= 5.0 > times[-2] - times[0]
    assert seen == times[-1:]


async def test_an_instance_that_get_denies_but_the_list_shows_is_not_gone() -> None:
    class Contradictory(Script):
        async def read_one(self, instance_id: str) -> Instance:
            await self._ask(instance_id)
            raise failure(404)

    source = Contradictory()
    source.states["a"] = lambda _now: "running"
    await until(Poller(source, PollPolicy()), "a", "running")


async def test_after_a_delete_the_list_alone_proves_that_it_is_gone() -> None:
    source = Script()
    poller = Poller(source, PollPolicy())
    start = anyio.current_time()
    assert await poller.next(poller.subscribe("a", trust_list=True)) is None
    assert [what for _, what in source.asked] == ["*"]
    assert anyio.current_time() == start


async def test_a_watch_ends_when_the_instance_goes() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = lambda now: (["pending", "running", "stopped", None])[
        min(int((now - start) / 10), 3)
    ]
    statuses = [instance.status async for instance in InstanceWatch(Poller(source, PollPolicy()), "a")]
    assert statuses == ["pending", "running", "stopped"]
    assert 35.0 <= anyio.current_time() - start <= 35.0 + 3.0


async def test_a_watch_of_a_missing_instance_raises() -> None:
    start = anyio.current_time()
    source = Script()
    with pytest.raises(errors.InstanceGoneError, match=r"There is no instance nope\.") as caught:
        await anext(InstanceWatch(Poller(source, PollPolicy()), "nope"))
    assert caught.value.instance_id == "nope"
    assert anyio.current_time() - start == 5.0
    assert [what for _, what in source.asked] == ["nope", "*"] * 3


# --- missing ------------------------------------------------------------------------------------------------


async def news(poller: Poller, instance_id: str, seconds: float, **options: Any) -> list[tuple[float, str]]:
    """Return all news of an instance in this time, as seconds from now and statuses."""
    found: list[tuple[float, str]] = []
    start = anyio.current_time()
    subscription = poller.subscribe(instance_id, **options)
    with anyio.move_on_after(seconds):
        while True:
            reading = await poller.next(subscription)
            found.append((anyio.current_time() - start, reading.status if reading else "missing"))
    return found


@alternating(
    "back_at,expected",
    [
        (2.499, [(2.5, "pending")]),
        (4.999, [(5.0, "pending")]),
        (5.0, [(5.0, "pending")]),
        (5.001, [(5.0, "missing"), (5.5, "pending")]),
        (math.inf, [(5.0, "missing")]),
    ],
)
async def test_missing_is_what_all_readings_of_five_seconds_say(
    back_at: float, expected: list[tuple[float, str]]
) -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time() + back_at, None, "pending")
    assert await news(Poller(source, PollPolicy()), "a", 20.0) == expected


@alternating(
    "options,expected",
    [
        ({}, [(5.0, "missing")]),
        ({"absence": 0.0}, [(0.0, "missing")]),
        ({"absence": 20.0}, [(20.0, "missing")]),
        ({"trust_list": True}, [(0.0, "missing")]),
        ({"trust_list": True, "absence": 20.0}, [(0.0, "missing")]),
        ({"interval": 30.0}, [(5.0, "missing")]),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else None,
)
async def test_each_wait_says_how_long_it_must_be_missing(
    options: dict[str, Any], expected: list[tuple[float, str]]
) -> None:
    source = Script()
    assert await news(Poller(source, PollPolicy()), "a", 60.0, **options) == expected
    first = "*" if options.get("trust_list") else "a"
    assert source.asked[0] == (0.0, first)


async def test_waits_for_one_instance_may_differ_in_how_long_it_must_be_missing() -> None:
    source = Script()
    source.states["b"] = lambda _now: "pending"
    poller = Poller(source, PollPolicy())
    found: dict[float, list[tuple[float, str]]] = {}

    async def wait(absence: float) -> None:
        found[absence] = await news(poller, "a", 20.0, absence=absence)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(news, poller, "b", 20.0)
        for absence in (0.0, 5.0):
            tasks.start_soon(wait, absence)
    assert found == {0.0: [(0.0, "missing")], 5.0: [(5.0, "missing")]}


@pytest.mark.parametrize("others", [False, True])
async def test_one_odd_reading_is_no_news(*, others: bool) -> None:
    """Test it for an instance that is requested by its id, and for one that is read from the list."""
    source = Script()
    source.states["b"] = lambda _now: "pending"
    away = [(1.0, 1.4), (7.0, 8.0), (30.0, 34.9), (60.0, 64.9)]
    source.states["a"] = lambda now: None if any(since <= now < to for since, to in away) else "running"
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        if others:
            tasks.start_soon(news, poller, "b", 200.0)
        # Some poll fell in each of the two long gaps.
        assert await news(poller, "a", 100.0) == [(0.0, "running")]
        tasks.cancel_scope.cancel()
    what = "*" if not others else "a"
    assert {30.0, 60.0} <= {at // 10 * 10 for at, asked in source.asked if asked == what}


class Replicas(Script):
    """A service of replicas that answer in turn. One of them knows nothing of the instance `a`."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def _now(self, instance_id: str) -> Instance | UnreadableEntry | None:
        lags = instance_id == "a" and len(self.asked) % self.number == 0
        return None if lags else super()._now(instance_id)


@pytest.mark.parametrize("number", [2, 3, 4])
@pytest.mark.parametrize("others", [False, True])
async def test_replicas_that_disagree_are_no_news(number: int, *, others: bool) -> None:
    source = Replicas(number)
    source.states.update(a=lambda _now: "running", b=lambda _now: "pending")
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        if others:
            tasks.start_soon(news, poller, "b", 1000.0)
        found = await news(poller, "a", 600.0)
        tasks.cancel_scope.cancel()
    assert [status for _, status in found] == ["running"]
    assert len(source.asked) > 100


@on_one_backend
@given(st.lists(st.floats(0.01, 12.0), max_size=12), st.booleans())
@settings(max_examples=100, derandomize=True)
async def test_missing_is_said_if_and_only_if_readings_agree(lengths: list[float], others: bool) -> None:  # noqa: FBT001
    source = Script()
    start = anyio.current_time()
    changes = [start + at for at in accumulate(lengths)]
    # Present and missing in turn, and missing in the end.
    source.states["a"] = lambda now: (
        None if (sum(change <= now for change in changes) - len(changes)) % 2 == 0 else "running"
    )
    source.states["b"] = lambda _now: "pending"
    end = sum(lengths)
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        if others:
            tasks.start_soon(news, poller, "b", 1000.0)
        found = await news(poller, "a", end + 15.0)
        tasks.cancel_scope.cancel()
    readings = [at - start for at, _ in source.asked]
    for at, status in found:
        if status != "missing":
            continue
        before = [each for each in readings if at - 5.0 - 1e-6 <= each <= at]
        assert all(source.states["a"](start + each) is None for each in before)
        assert before[0] <= at - 5.0 + 2.5 + 1e-6
        assert len(set(before)) >= 2
    assert found[-1][1] == "missing"
    assert found[-1][0] <= end + 5.0 + 5.0 + 2.5 + 1e-6


async def test_failures_between_readings_that_agree_neither_shorten_nor_renew_the_wait() -> None:
    source = Script()
    source.trouble = lambda now: failure(503) if 0 < now < 20 else None
    found = await news(Poller(source, PollPolicy()), "a", 60.0)
    assert [status for _, status in found] == ["missing"]
    assert 20.0 <= found[0][0] <= 25.0
    at = found[0][0]
    readings = [asked for asked, _ in source.asked if asked <= at and not 0 < asked < 20]
    assert readings == [0.0, 0.0, at, at]


async def test_a_refused_list_is_no_reading_without_the_instance() -> None:
    source = Script()
    source.trouble = lambda _now: failure(502) if source.asked[-1][1] == "*" else None
    with pytest.raises(errors.ServerError):
        await news(Poller(source, PollPolicy(max_outage=50)), "a", 600.0)
    assert 50.0 <= anyio.current_time() <= 60.0


# --- entries that cannot be read ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"trust_list": True}, {"absence": 0.0}])
@pytest.mark.parametrize("others", [False, True])
async def test_an_unreadable_entry_is_not_missing(options: dict[str, Any], *, others: bool) -> None:
    source = Script()
    source.states.update(a=lambda _now: "unreadable", b=lambda _now: "pending")

    async def read_one(instance_id: str) -> Instance:
        await source._ask(instance_id)
        raise failure(404)

    source.read_one = read_one  # type: ignore[method-assign]
    poller = Poller(source, PollPolicy(max_outage=50))
    async with anyio.create_task_group() as tasks:
        if others:
            tasks.start_soon(news, poller, "b", 1000.0)
        with pytest.raises(errors.DecodeError, match="Instance a exists, but its entry in the list could"):
            await news(poller, "a", 600.0, **options)
        assert 50.0 <= anyio.current_time() <= 60.0
        tasks.cancel_scope.cancel()


async def test_an_unreadable_entry_stops_no_other_wait() -> None:
    source = Script()
    source.states.update(
        a=lambda _now: "unreadable",
        b=switch(anyio.current_time() + 3.0, "pending", "running"),
        c=switch(anyio.current_time() + 3.0, "pending", None),
    )
    poller = Poller(source, PollPolicy(max_outage=50))
    seen: list[float] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait_until, poller, "a", lambda _: False)
        tasks.start_soon(until, poller, "b", "running", seen)
        await until(poller, "c", None, seen)
        tasks.cancel_scope.cancel()
    assert seen[0] <= 3.5
    assert 8.0 <= seen[1] <= 8.5


async def test_an_entry_that_can_be_read_again_is_news() -> None:
    source = Script()
    source.states["a"] = lambda now: "pending" if now < 10 else "unreadable" if now < 40 else "running"
    found = await news(Poller(source, PollPolicy()), "a", 60.0)
    assert [status for _, status in found] == ["pending", "running"]
    assert 40.0 <= found[1][0] <= 45.0


async def test_an_unreadable_entry_between_two_readings_without_it_ends_their_agreement() -> None:
    source = Script()
    source.states.update(a=lambda now: "unreadable" if 2 <= now < 4 else None, b=lambda _now: "pending")
    poller = Poller(source, PollPolicy())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(news, poller, "b", 100.0)
        found = await news(poller, "a", 20.0)
        tasks.cancel_scope.cancel()
    assert [status for _, status in found] == ["missing"]
    assert 9.0 <= found[0][0] <= 10.0


async def test_an_unreadable_entry_without_an_id_is_nobodys() -> None:
    source = Script()
    source.states["a"] = lambda _now: "running"

    async def read_all() -> Listing[Instance]:
        await source._ask("*")
        return Listing(unreadable=[UnreadableEntry(entry_id=None, problem="it is null")])

    source.read_all = read_all  # type: ignore[method-assign]
    poller = Poller(source, PollPolicy())
    assert await news(poller, "a", 10.0) == [(0.0, "running")]
    assert await news(poller, "b", 10.0) == [(5.0, "missing")]


# --- waits --------------------------------------------------------------------------------------------------


async def test_a_watch_does_not_end_because_one_reading_lacks_the_instance() -> None:
    source = Script()
    source.states["a"] = lambda now: None if 10 <= now < 14 else "pending" if now < 20 else "running"
    watch = InstanceWatch(Poller(source, PollPolicy()), "a")
    assert [(await anext(watch)).status, (await anext(watch)).status] == ["pending", "running"]


async def test_wait_until_takes_missing_after_five_seconds_or_as_told() -> None:
    source = Script()
    poller = Poller(source, PollPolicy())
    took = []
    for options in ({}, {"absence": 0.0}, {"trust_list": True}, {"absence": 10.0}):
        start = anyio.current_time()
        assert await wait_until(poller, "a", has_ended, **options) is None
        took.append(anyio.current_time() - start)
    assert took == pytest.approx([5.0, 0.0, 0.0, 10.0])


@alternating("expected,visible_at,gone_at", [(0.0, None, 5.0), (60.0, None, 65.0), (60.0, 59.0, None)])
async def test_an_expected_instance_may_be_missing_until_then(
    expected: float, visible_at: float | None, gone_at: float | None
) -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = switch(start + (visible_at or math.inf), None, "running")
    poller = Poller(source, PollPolicy())
    poller.expected.add(snapshot("a"), start + expected, was_stopped=False)
    wait = partial(wait_until_running, poller, "a", PollPolicy(), timeout=600)
    if gone_at is None:
        assert (await wait()).is_usable
        assert 59.0 <= anyio.current_time() - start <= 64.0
    else:
        with pytest.raises(errors.InstanceGoneError):
            await wait()
        assert gone_at <= anyio.current_time() - start <= gone_at + 5.0


@alternating("after,earliest,latest", [("stopped", 3.0, 4.0), (None, 65.0, 70.0)])
async def test_a_restarted_instance_that_was_seen_running_can_stop_but_not_vanish(
    after: str | None, earliest: float, latest: float
) -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = switch(start + 3.0, "running", after)
    poller = Poller(source, PollPolicy())
    poller.expected.add(snapshot("a"), start + 60.0, was_stopped=True)
    assert poller.expected.visible_at("a") == start + 60.0
    reading = await wait_until(poller, "a", has_ended)
    assert (reading and reading.status) == after
    assert earliest <= anyio.current_time() - start <= latest
    assert poller.expected.visible_at("a") == -math.inf  # for a teardown


async def test_a_restarted_instance_may_look_stopped_for_a_while() -> None:
    source = Script()
    start = anyio.current_time()
    source.states["a"] = switch(start + 20.0, "stopped", "running")
    poller = Poller(source, PollPolicy())
    poller.expected.add(snapshot("a"), start + 60.0, was_stopped=True)
    assert (await wait_until_running(poller, "a", PollPolicy(), timeout=600)).is_usable
    assert 20.0 <= anyio.current_time() - start <= 25.0


async def test_a_cancelled_watch_can_be_continued() -> None:
    source = Script()
    source.states["a"] = switch(anyio.current_time() + 10, "pending", "running")
    watch = InstanceWatch(Poller(source, PollPolicy()), "a")
    assert (await anext(watch)).status == "pending"
    with anyio.move_on_after(3):
        await anext(watch)
    assert (await anext(watch)).status == "running"


async def test_an_id_that_is_not_allowed_in_a_path_is_read_from_the_list() -> None:
    class Odd(Script):
        async def read_one(self, instance_id: str) -> Instance:
            raise errors.InvalidArgumentError("no path")

    source = Odd()
    source.states["a/b"] = lambda _now: "running"
    await until(Poller(source, PollPolicy()), "a/b", "running")


async def test_requests_by_id_are_limited_in_each_poll() -> None:
    script = Script(latency=0.1)
    poller = Poller(script, PollPolicy())
    names = [f"i-{n}" for n in range(50)]
    seen: list[float] = []
    async with anyio.create_task_group() as tasks:
        for name in names:
            script.states[name] = nothing
            tasks.start_soon(until, poller, name, None, seen)
    asked = [(at, what) for at, what in script.asked if what != "*"]
    # Each is requested once, in three polls, before any is requested again.
    assert len({what for _, what in asked[:40]}) == 40
    assert {what for _, what in asked[:60]} == set(names)
    ticks = sorted({at for at, _ in asked})
    assert [sum(at == tick for at, _ in asked) for tick in ticks] == [20, 20, 20, 20, 20, 20, 10]
    # And between them the usual pause.
    assert all(later - earlier >= 0.5 for earlier, later in pairwise(ticks))
    # Each is missing after 5 s of readings, and no earlier, although the others take the requests.
    assert len(seen) == 50
    assert all(5.0 <= at < 10.0 for at in seen)
    for name in names:
        times = [at for at, what in asked if what == name]
        assert 5.0 <= times[-1] - times[0] < 9.0


async def test_a_hanging_request_by_id_does_not_delay_other_news() -> None:
    class Hanging(Script):
        async def read_one(self, instance_id: str) -> Instance:
            if instance_id == "missing":
                await anyio.sleep(30.0)
                raise AssertionError("it is not waited for that long")
            return await super().read_one(instance_id)

    script = Hanging()
    began = anyio.current_time()
    script.states["there"] = switch(began + 20.0, "pending", "running")
    poller = Poller(script, PollPolicy(max_outage=100.0))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(until, poller, "there", "never")
        tasks.start_soon(until, poller, "other", "never")
        script.states["other"] = lambda _now: "pending"
        await anyio.sleep(1.0)

        async def see() -> None:
            seen = await until(poller, "there", "running")
            assert seen - began < 20.0 + 2 * 5.0 + 0.5

        tasks.start_soon(see)
        with pytest.raises(errors.RequestTimeoutError, match="longer than 5 s"):
            await until(poller, "missing", "running")
        assert anyio.current_time() - began >= 100.0
        tasks.cancel_scope.cancel()


async def test_requests_by_id_take_turns() -> None:
    script = Script()
    poller = Poller(script, PollPolicy())
    listed = {f"i-{n}" for n in range(30)}

    async def read_all() -> Listing[Instance]:
        await script._ask("*")
        return Listing()

    script.read_all = read_all  # type: ignore[method-assign]
    for name in listed:
        script.states[name] = lambda _now: "pending"
    with anyio.move_on_after(20.0):
        async with anyio.create_task_group() as tasks:
            for name in listed:
                tasks.start_soon(until, poller, name, "running")
    counts = [sum(what == name for _, what in script.asked) for name in listed]
    assert max(counts) - min(counts) <= 1
    assert min(counts) > 5


async def test_another_exception_of_a_request_by_id_is_raised_unchanged() -> None:
    script = Script()
    script.trouble = lambda _now: OSError("disk") if script.asked[-1][1] != "*" else None
    poller = Poller(script, PollPolicy())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 0)

        async def wait(name: str) -> None:
            with pytest.raises(OSError, match="disk"):
                await until(poller, name, "running")

        for name in ("a", "b", "c"):
            tasks.start_soon(wait, name)
