"""Test that requests which stop the server are found, and that their neighbors are answered."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _pools import GOOD, Outcome, work_on
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st

from cortecs_async._batch.format import Request
from cortecs_async._batch.outcome import FailureReason
from cortecs_async._batch.sender import Reply
from cortecs_async._batch.suspects import InFlight, NextStep, SuspectGroups, next_step, next_test_step
from cortecs_async._http.messages import Failure, FailureKind

pytestmark = pytest.mark.usefixtures("batch_without_threads")

LOST = Failure(kind=FailureKind.LOST, detail="cut")
REFUSED = Failure(kind=FailureKind.NOT_SENT, detail="refused")
TIMED_OUT = Failure(kind=FailureKind.TIMED_OUT, detail="slow")
BAD_GATEWAY = Reply(502, b"<html>")
BROKEN = Reply(500, b'{"error":"engine dead"}')


def new_request(number: int = 1) -> Request:
    return Request(number, f"r{number}", "/chat/completions", b"{}", "")


@define
class Server:
    """A server that stops when it processes a culprit, with all that it is processing, and starts again.

    Attributes:
        culprits: The requests that stop it.
        down: Seconds until it has started again.
        cut: The outcome of requests in flight when it stops.
        refusal: The outcome of requests while it is down.
        seconds: The shortest and the longest duration of an answer.
        delay: Seconds until a culprit stops it.
        processes: Server processes behind its URL; a culprit stops one of them.
    """

    culprits: frozenset[int]
    down: float = 3.0
    cut: Reply | Failure = LOST
    refusal: Reply | Failure = REFUSED
    seconds: tuple[float, float] = (0.5, 1.5)
    delay: float = 0.3
    processes: int = 1
    crashes: int = 0
    asked: Counter[int] = field(factory=Counter)
    _rng: random.Random = field(factory=lambda: random.Random(1))
    _processes: list[_Process] = field(init=False)
    _next: itertools.count[int] = field(factory=itertools.count)

    def __attrs_post_init__(self) -> None:
        self._processes = [_Process() for _ in range(self.processes)]

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        number = json.loads(body).get("number", -1)
        self.asked[number] += 1
        await anyio.sleep(0.001)
        now = anyio.current_time()
        up = [each for each in self._processes if each.up_at <= now]
        if not up:
            return self.refusal
        process = up[next(self._next) % len(up)]
        run = process.run
        if number in self.culprits:
            with anyio.move_on_after(self.delay):
                await run.wait()
                return self.cut
            self.crashes += 1
            process.up_at = anyio.current_time() + self.down
            process.run = anyio.Event()
            run.set()
            return self.cut
        with anyio.move_on_after(0.05 if number < 0 else self._rng.uniform(*self.seconds)):
            await run.wait()
            return self.cut
        return GOOD


@define
class _Process:
    up_at: float = 0.0
    run: anyio.Event = field(factory=anyio.Event)


def bound(concurrency: int, culprits: int = 1) -> int:
    return culprits * (2 + math.ceil(math.log(concurrency, 8) - 1e-9) + 2)


def check(done: Outcome, culprits: frozenset[int]) -> None:
    assert done.errors == []
    assert done.sink.failed == culprits
    for line in done.sink.lines:
        if line.usage is None:
            assert b"the server stopped each time it received this request: cut" in line.text


class TestCulprits:
    @grid(
        concurrency=[1, 2, 8, 32, 64, 128],
        position=[0, 150, 299],
        refusal=[REFUSED, LOST],
        servers=[1, 3],
        anyio_backend=BACKENDS,
    )
    async def test_a_culprit_is_found_within_the_bound(
        self, tmp_path: Path, concurrency: int, position: int, refusal: Failure, servers: int
    ) -> None:
        culprits = frozenset({position})
        all_servers = [Server(culprits, refusal=refusal) for _ in range(servers)]
        done = await work_on(tmp_path, 300, *all_servers, concurrency=concurrency)
        check(done, culprits)
        assert sum(each.crashes for each in all_servers) <= bound(concurrency)

    @grid(
        concurrency=[8, 32, 64],
        culprits=[frozenset({10, 11, 12}), frozenset({0, 150, 299})],
        servers=[1, 3],
        anyio_backend=BACKENDS,
    )
    async def test_several_culprits_are_found(
        self, tmp_path: Path, concurrency: int, culprits: frozenset[int], servers: int
    ) -> None:
        all_servers = [Server(culprits) for _ in range(servers)]
        done = await work_on(tmp_path, 300, *all_servers, concurrency=concurrency)
        check(done, culprits)
        assert sum(each.crashes for each in all_servers) <= bound(concurrency, 3)

    @grid(cut=[BAD_GATEWAY, BROKEN, LOST], max_retries=[0, 1, 5], concurrency=[8, 32], anyio_backend=BACKENDS)
    async def test_a_proxy_may_answer_for_a_server_that_stops(
        self, tmp_path: Path, cut: Reply | Failure, max_retries: int, concurrency: int
    ) -> None:
        server = Server(frozenset({77}), cut=cut, refusal=BAD_GATEWAY)
        done = await work_on(tmp_path, 200, server, concurrency=concurrency, max_retries=max_retries)
        assert done.errors == []
        assert done.sink.failed == {77}
        assert server.crashes <= bound(concurrency)

    @grid(cut=[BAD_GATEWAY, LOST], max_retries=[0, 1, 5], processes=[2, 4], anyio_backend=BACKENDS)
    async def test_one_of_several_processes_may_stop(
        self, tmp_path: Path, cut: Reply | Failure, max_retries: int, processes: int
    ) -> None:
        server = Server(frozenset({77}), cut=cut, processes=processes)
        done = await work_on(tmp_path, 200, server, concurrency=32, max_retries=max_retries)
        assert done.errors == []
        assert done.sink.failed == {77}
        assert server.crashes <= bound(32) + max_retries

    async def test_an_answer_that_is_read_late_does_not_show_that_the_server_runs(
        self, tmp_path: Path
    ) -> None:
        server = Server(frozenset({77}), cut=BROKEN, refusal=BAD_GATEWAY, delay=1.0)
        post = server.post

        async def post_late(path: str, body: bytes) -> Reply | Failure:
            outcome = await post(path, body)
            if outcome is GOOD:
                # As if the loop were busy.
                await anyio.sleep(0.03)
            return outcome

        endpoint: Any = type("Late", (), {"post": staticmethod(post_late)})
        done = await work_on(tmp_path, 300, endpoint, concurrency=256, max_retries=0)
        assert done.sink.failed == {77}
        assert server.crashes <= bound(256)

    async def test_no_other_request_is_in_flight_during_a_test(self, tmp_path: Path) -> None:
        """The test waits for slow requests."""
        together: list[int] = []
        in_flight: Counter[int] = Counter()

        class Watched(Server):
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                number = json.loads(body).get("number", -1)
                in_flight[number] += 1
                if number == 0:
                    together.append(in_flight.total())
                try:
                    if number in {40, 41}:
                        await anyio.sleep(50.0)
                        return GOOD
                    return await Server.post(self, path, body)
                finally:
                    in_flight[number] -= 1

        done = await work_on(tmp_path, 42, Watched(frozenset({0})), concurrency=4)
        check(done, frozenset({0}))
        assert together[-2:] == [1, 1]

    async def test_a_server_that_a_culprit_stops_for_good_while_alone(self, tmp_path: Path) -> None:
        class Mortal(Server):
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                self.down = 1e9 if self.crashes == 2 else 3.0
                return await Server.post(self, path, body)

        server = Mortal(frozenset({0}))
        done = await work_on(tmp_path, 20, server, concurrency=1)
        (error,) = done.errors
        assert "does not respond" in str(error)
        assert done.sink.failed == {0}
        assert server.crashes == 3

    async def test_suspects_of_a_lost_instance_are_tested_on_another(self, tmp_path: Path) -> None:
        class Lost(Server):
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                # It stops for good in the first test of a group.
                if self.crashes == 3:
                    return REFUSED
                return await Server.post(self, path, body)

        servers = [Lost(frozenset({5})), Server(frozenset({5}), seconds=(30.0, 40.0))]
        done = await work_on(tmp_path, 64, *servers, concurrency=32)
        assert done.sink.failed == {5}


@define
class HangingServer:
    """A server that hangs when it processes a culprit, and never answers what it is then processing.

    Attributes:
        culprits: The requests that make it hang.
        down: Seconds until it answers new requests again.
    """

    TIMEOUT = 600.0

    culprits: frozenset[int]
    down: float
    hangs_until: float = -math.inf
    hangs: int = 0
    asked: Counter[int] = field(factory=Counter)
    _rng: random.Random = field(factory=lambda: random.Random(1))

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        number = json.loads(body).get("number", -1)
        self.asked[number] += 1
        began = anyio.current_time()
        if number in self.culprits and began >= self.hangs_until:
            self.hangs += 1
            self.hangs_until = began + self.down
        hangs = self.hangs
        await anyio.sleep(0.05 if number < 0 else self._rng.uniform(0.5, 1.5))
        if began >= self.hangs_until and hangs == self.hangs:
            return GOOD
        await anyio.sleep_until(began + self.TIMEOUT)
        return TIMED_OUT


class TestHangs:
    @grid(position=[0, 100, 199], concurrency=[4, 8, 32, 128], servers=[1, 2], anyio_backend=BACKENDS)
    async def test_no_other_request_is_blamed_for_a_hang(
        self, tmp_path: Path, position: int, concurrency: int, servers: int
    ) -> None:
        all_servers = [HangingServer(frozenset({position}), down=640.0) for _ in range(servers)]
        done = await work_on(tmp_path, 200, *all_servers, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == {position}
        assert sum(each.hangs for each in all_servers) <= bound(concurrency)

    async def test_requests_that_take_too_long_are_not_tested_alone(self, tmp_path: Path) -> None:
        """The endpoint answers a probe at once, so it does not hang."""

        class Slow:
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                number = json.loads(body).get("number", -1)
                await anyio.sleep(0.05 if number < 0 else 1.0 if number < 100 else HangingServer.TIMEOUT)
                return TIMED_OUT if number >= 100 else GOOD

        done = await work_on(tmp_path, 112, Slow(), concurrency=4)
        assert done.errors == []
        assert done.sink.failed == set(range(100, 112))
        assert done.seconds < 2 * 3 * HangingServer.TIMEOUT + 60


class TestFaults:
    @grid(
        strength=1,
        seconds=[(0.01, 0.02), (0.01, 0.2), (1.0, 3.0)],
        concurrency=[1, 64],
        anyio_backend=BACKENDS,
    )
    async def test_random_faults_cause_no_tests(
        self,
        tmp_path: Path,
        seconds: tuple[float, float],
        concurrency: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """One request in ten fails, in every way, and hardly any becomes a suspect."""
        tested: list[Request] = []
        add = SuspectGroups.add

        def watched_add(groups: SuspectGroups, suspects: list[Request]) -> None:
            tested.extend(suspects)
            add(groups, suspects)

        monkeypatch.setattr(SuspectGroups, "add", watched_add)
        faults: list[Reply | Failure | None] = [
            Reply(429, b"{}"),
            Reply(503, b"{}"),
            Reply(500, b"<html>"),
            LOST,
            REFUSED,
            Reply(200, b"<html>"),
            Reply(200, b'{"error":"overloaded"}'),
            None,
        ]
        rng = random.Random(1)

        class Faulty:
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                fault = rng.choice(faults) if rng.random() < 0.1 else GOOD
                await anyio.sleep(rng.uniform(*seconds) if fault in (GOOD, None) else 0.01)
                return fault or GOOD

        count = 5000 if concurrency > 1 else 1000
        done = await work_on(tmp_path, count, Faulty(), concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == set()
        assert len(tested) < (count / 1000 if concurrency > 1 else count / 50)
        if concurrency > 1:
            assert done.seconds < 1.3 * count * sum(seconds) / 2 / concurrency + 60


async def test_a_request_does_not_wait_for_the_verdict_of_a_lost_instance(tmp_path: Path) -> None:
    """Its failure there stays without a verdict, because the other request in flight hangs."""

    class Hanging:
        async def post(self, path: str, body: bytes) -> Reply | Failure:
            await anyio.sleep(0.01)
            if json.loads(body).get("number") == 1:
                return BROKEN
            await anyio.sleep(math.inf)
            return GOOD

    other = Server(frozenset(), seconds=(1.0, 1.0))
    with anyio.fail_after(10_000):
        done = await work_on(tmp_path, 2, Hanging(), other, concurrency=2, max_retries=0, lost_after=30.0)
    assert len(done.sink.succeeded) == 2


@define
class Chaos(Server):
    """A server some of whose requests always have another outcome, and which is down now and then.

    Attributes:
        outcomes: What some requests get.
        outages: Begin and duration of outages, and the outcome of all requests in flight meanwhile.
    """

    outcomes: dict[int, Reply | Failure] = field(factory=dict)
    outages: list[tuple[float, float, Reply | Failure]] = field(factory=list)
    _began: float = field(factory=anyio.current_time)

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        number = json.loads(body).get("number", -1)
        began = anyio.current_time()
        if (outage := self._outage(began)) is not None:
            await anyio.sleep(0.01)
            return outage
        if (outcome := self.outcomes.get(number)) is None:
            outcome = await Server.post(self, path, body)
            return self._outage(began) or outcome
        is_timeout = isinstance(outcome, Failure) and outcome.kind is FailureKind.TIMED_OUT
        await anyio.sleep(600.0 if is_timeout else 0.01)
        return outcome

    def _outage(self, since: float) -> Reply | Failure | None:
        """Return the outcome of the first outage between then and now."""
        begin, end = since - self._began, anyio.current_time() - self._began
        return next((each[2] for each in self.outages if begin < each[0] + each[1] and each[0] <= end), None)


OUTCOMES = [
    LOST,
    REFUSED,
    BAD_GATEWAY,
    Reply(500, b"{}"),
    Reply(403, b"{}"),
    Reply(429, b"{}"),
    Reply(503, b"{}", retry_after=5.0),
    Reply(200, b"<html>"),
]
OUTAGES = st.tuples(st.floats(0.0, 100.0), st.sampled_from([0.1, 5.0, 100.0, 1e9]), st.sampled_from(OUTCOMES))
SERVERS = st.fixed_dictionaries(
    {
        "down": st.sampled_from([1.0, 3.0, 60.0]),
        # With several processes, a status counts as the server's word about the request.
        "cut,processes": st.sampled_from(
            [(LOST, 1), (BAD_GATEWAY, 1), (BROKEN, 1), (LOST, 2), (BAD_GATEWAY, 2)]
        ),
        "refusal": st.sampled_from([LOST, REFUSED, BAD_GATEWAY]),
        "seconds": st.sampled_from([(0.01, 0.02), (0.5, 1.5), (20.0, 40.0)]),
        "outages": st.lists(OUTAGES, max_size=3),
    }
)
OWN_OUTCOMES = st.sampled_from([*OUTCOMES, TIMED_OUT, Reply(200, b'{"error":"overloaded"}')])


@settings(max_examples=40)
@given(
    count=st.sampled_from([1, 5, 60]),
    culprits=st.sets(st.integers(0, 59), max_size=2),
    outcomes=st.dictionaries(st.integers(0, 59), OWN_OUTCOMES, max_size=20),
    servers=st.lists(SERVERS, min_size=1, max_size=3),
    concurrency=st.sampled_from([1, 2, 8, 32, "auto"]),
    max_retries=st.sampled_from([0, 1, 5]),
    lost_after=st.sampled_from([math.inf, 1.0, 20.0]),
)
async def test_every_request_ends_and_no_innocent_is_blamed(
    tmp_path: Path,
    count: int,
    culprits: set[int],
    outcomes: dict[int, Reply | Failure],
    servers: list[dict[str, Any]],
    concurrency: Any,
    max_retries: int,
    lost_after: float,
) -> None:
    endpoints: list[Chaos] = []
    for server in servers:
        cut, processes = server["cut,processes"]
        options = {name: value for name, value in server.items() if name.isalpha()}
        endpoints.append(
            Chaos(frozenset(culprits), cut=cut, processes=processes, outcomes=outcomes, **options)
        )
    with anyio.fail_after(1e6):
        done = await work_on(
            tmp_path,
            count,
            *endpoints,
            concurrency=concurrency,
            max_retries=max_retries,
            lost_after=lost_after,
        )
    guilty = (culprits | outcomes.keys()) & set(range(count))
    assert done.sink.failed <= guilty
    if len(done.errors) < len(endpoints):
        assert done.sink.failed == guilty


class TestInFlight:
    def test_an_answer_after_a_failure_shows_that_it_is_its_own(self) -> None:
        flight, request = InFlight[Request](), new_request()
        first, second = flight.begin(), flight.begin()
        assert flight.record_failure(first, request) == []
        assert flight.record_answer(second) == [(request, False)]
        assert flight.abandon() == []

    def test_an_answer_before_a_failure_shows_nothing(self) -> None:
        flight, request = InFlight[Request](), new_request()
        first, second, third = (flight.begin() for _ in range(3))
        assert flight.record_answer(second) == ()
        assert flight.record_failure(first, request) == []
        assert flight.end(third) == [(request, True)]

    def test_an_answer_to_a_later_attempt_shows_nothing(self) -> None:
        flight, request = InFlight[Request](), new_request()
        first, second = flight.begin(), flight.begin()
        assert flight.record_failure(first, request) == []
        third = flight.begin()
        assert flight.record_answer(third) == []
        assert flight.end(second) == [(request, True)]

    def test_a_failure_with_nothing_else_in_flight_is_joint(self) -> None:
        flight, request = InFlight[Request](), new_request()
        assert flight.record_failure(flight.begin(), request) == [(request, True)]

    def test_failures_without_a_verdict_are_abandoned(self) -> None:
        flight, request = InFlight[Request](), new_request()
        first, _ = flight.begin(), flight.begin()
        flight.record_failure(first, request)
        assert flight.abandon() == [request]
        assert flight.abandon() == []
        assert len(flight) == 1

    @given(st.lists(st.tuples(st.sampled_from("bafe"), st.integers(0, 30)), max_size=60))
    def test_verdicts_follow_their_definition(self, events: list[tuple[str, int]]) -> None:
        flight = InFlight[Request]()
        begins: dict[int, int] = {}
        ends: dict[int, tuple[int, str]] = {}
        failed: dict[Request, int] = {}
        verdicts: dict[Request, bool] = {}
        for time, (kind, which) in enumerate(events):
            running = [attempt for attempt in begins if attempt not in ends]
            if kind == "b" or not running:
                begins[flight.begin()] = time
                continue
            attempt = running[which % len(running)]
            ends[attempt] = (time, kind)
            request = new_request(attempt)
            if kind == "f":
                failed[request] = time
            if kind == "a":
                found = flight.record_answer(attempt)
            elif kind == "f":
                found = flight.record_failure(attempt, request)
            else:
                found = flight.end(attempt)
            assert not verdicts.keys() & {each for each, _ in found}
            verdicts.update(found)

        def end_of(attempt: int) -> tuple[float, str]:
            return ends.get(attempt, (math.inf, ""))

        for request, time in failed.items():
            others = [each for each, begin in begins.items() if begin < time < end_of(each)[0]]
            if any(end_of(each)[1] == "a" for each in others):
                assert verdicts.pop(request) is False
            elif all(each in ends for each in others):
                assert verdicts.pop(request) is True
        assert not verdicts


class TestSteps:
    def test_groups_are_an_eighth_and_at_most_the_limit(self) -> None:
        groups = SuspectGroups(limit=10)
        suspects = [new_request(number) for number in range(100)]
        groups.add(suspects)
        sizes = []
        while (group := groups.next()) is not None:
            sizes.append(len(group))
            if len(sizes) == 1:
                groups.test_again(group)
                groups.split(group)
        assert sizes == [10] * 10 + [10] + [1] * 10
        assert list(groups.left) == suspects

    @pytest.mark.parametrize(
        ("counts", "reason", "step"),
        [
            ({}, FailureReason.OTHER, NextStep.RETRY),
            ({"undecided": 5}, FailureReason.OTHER, NextStep.RETRY),
            ({"undecided": 3, "own_failures": 3}, FailureReason.OTHER, NextStep.AWAIT_VERDICT),
            ({"own_failures": 6}, FailureReason.OTHER, NextStep.GIVE_UP),
            ({"own_failures": 6}, FailureReason.ANSWERED_ERROR, NextStep.GIVE_UP),
            ({"own_failures": 6}, FailureReason.LOST, NextStep.SUSPECT),
            ({"own_failures": 6}, FailureReason.UNAVAILABLE, NextStep.SUSPECT),
            ({"joint_failures": 1}, FailureReason.LOST, NextStep.RETRY),
            ({"joint_failures": 2}, FailureReason.OTHER, NextStep.SUSPECT),
            ({"timeouts": 1}, FailureReason.TIMED_OUT, NextStep.RETRY),
            ({"undecided": 1}, FailureReason.TIMED_OUT, NextStep.RETRY),
            ({"timeouts": 1, "undecided": 1}, FailureReason.TIMED_OUT, NextStep.AWAIT_VERDICT),
            ({"timeouts": 2}, FailureReason.TIMED_OUT, NextStep.GIVE_UP),
            ({"timeouts": 2, "joint_failures": 2}, FailureReason.TIMED_OUT, NextStep.SUSPECT),
            ({"unsent": 16}, FailureReason.NOT_SENT, NextStep.RETRY),
            ({"unsent": 17}, FailureReason.NOT_SENT, NextStep.SUSPECT),
        ],
    )
    def test_the_next_step_after_a_failure(
        self, counts: dict[str, int], reason: FailureReason, step: NextStep
    ) -> None:
        request = new_request()
        for name, value in counts.items():
            setattr(request, name, value)
        assert next_step(request, reason, 5) is step

    @pytest.mark.parametrize(
        ("counts", "reason", "evidence", "step"),
        [
            # The server stopped.
            ({}, FailureReason.LOST, "", NextStep.SPLIT),
            ({}, FailureReason.LOST, "alone", NextStep.TEST_AGAIN),
            ({"solo_failures": 1}, FailureReason.LOST, "alone", NextStep.GIVE_UP),
            # It did not.
            ({"solo_failures": 1}, FailureReason.LOST, "alone up", NextStep.TEST_AGAIN),
            ({"solo_failures": 3}, FailureReason.LOST, "alone up", NextStep.GIVE_UP),
            ({"solo_failures": 1, "failures": 6}, FailureReason.LOST, "alone up", NextStep.GIVE_UP),
            ({"failures": 6}, FailureReason.OTHER, "alone up", NextStep.TEST_AGAIN),
            ({}, FailureReason.OTHER, "up", NextStep.SPLIT),
            # Others in flight were answered.
            ({"own_failures": 1}, FailureReason.LOST, "own up", NextStep.SPLIT),
            ({"own_failures": 5}, FailureReason.OTHER, "own up", NextStep.RETRY),
            ({"own_failures": 6}, FailureReason.OTHER, "own up", NextStep.GIVE_UP),
            # The others.
            ({}, FailureReason.RATE_LIMITED, "alone up", NextStep.RETRY),
            (
                {"rejections": 16, "solo_failures": 3},
                FailureReason.RATE_LIMITED,
                "alone up",
                NextStep.GIVE_UP,
            ),
            ({}, FailureReason.TIMED_OUT, "", NextStep.SPLIT),
            ({}, FailureReason.TIMED_OUT, "alone", NextStep.GIVE_UP),
            ({"timeouts": 1}, FailureReason.TIMED_OUT, "up", NextStep.RETRY),
            ({"timeouts": 1}, FailureReason.TIMED_OUT, "own", NextStep.RETRY),
            ({"timeouts": 2}, FailureReason.TIMED_OUT, "up", NextStep.GIVE_UP),
            ({"unsent": 16}, FailureReason.NOT_SENT, "alone", NextStep.TEST_AGAIN),
            ({"unsent": 17}, FailureReason.NOT_SENT, "", NextStep.SPLIT),
            ({"unsent": 17}, FailureReason.NOT_SENT, "alone", NextStep.GIVE_UP),
        ],
    )
    def test_the_next_step_after_a_failure_in_a_test(
        self, counts: dict[str, int], reason: FailureReason, evidence: str, step: NextStep
    ) -> None:
        request = new_request()
        for name, value in counts.items():
            setattr(request, name, value)
        given = evidence.split()
        found = next_test_step(
            request, reason, 5, alone="alone" in given, is_own="own" in given, stayed_up="up" in given
        )
        assert found is step
