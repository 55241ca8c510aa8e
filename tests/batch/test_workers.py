"""Test worker pools with endpoints and requests that fail in many ways."""

from __future__ import annotations

import json
import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest
from _grids import BACKENDS, grid
from _pools import GOOD, work_on
from attrs import define, field

from cortecs_async._batch.answers import AnswerLine
from cortecs_async._batch.concurrency import ConcurrencyLimit
from cortecs_async._batch.format import RequestParser
from cortecs_async._batch.request_queue import RequestQueue
from cortecs_async._batch.sender import Reply
from cortecs_async._batch.workers import WorkerPool
from cortecs_async._http.messages import Failure, FailureKind

TIMEOUT = 600.0

pytestmark = pytest.mark.usefixtures("batch_without_threads")


def bad(style: str) -> Reply | Failure:
    match style:
        case "lost":
            return Failure(kind=FailureKind.LOST, detail="cut")
        case "busy":
            return Reply(503, b"{}", retry_after=7.0)
        case _:
            return Reply(int(style), b"<html>")


@define
class Endpoint:
    """Answers after a while, unless it fails.

    Attributes:
        seconds: The shortest and the longest duration of an answer.
        poison: Immediate responses to these requests; None never answers.
        outages: Begin, end and immediate response to all requests meanwhile.
        together: Parallel requests above which others get a 429.
    """

    rng: random.Random
    seconds: tuple[float, float]
    poison: dict[int, Reply | Failure | None] = field(factory=dict)
    outages: list[tuple[float, float, Reply | Failure]] = field(factory=list)
    together: int = 10**9
    asked: Counter[int] = field(factory=Counter)
    busy: int = 0

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        number = json.loads(body).get("number", -1)
        self.asked[number] += 1
        if self.busy >= self.together:
            return Reply(429, b"{}")
        self.busy += 1
        try:
            return await self._answer(number)
        finally:
            self.busy -= 1

    async def _answer(self, number: int) -> Reply | Failure:
        if (said := self._outage()) is not None:
            await anyio.sleep(0.01)
            return said
        said = self.poison.get(number, GOOD)
        if said is None:
            await anyio.sleep(TIMEOUT)
            return Failure(kind=FailureKind.TIMED_OUT, detail="no answer")
        # What is small is answered soon.
        await anyio.sleep(
            0.01 if said is not GOOD else 0.3 if number < 0 else self.rng.uniform(*self.seconds)
        )
        return self._outage() or said

    def _outage(self) -> Reply | Failure | None:
        now = anyio.current_time()
        return next((said for begin, end, said in self.outages if begin <= now < end), None)


@define
class ProbesOnly(Endpoint):
    """Answers probes also in an outage, and above its capacity."""

    async def post(self, path: str, body: bytes) -> Reply | Failure:
        if json.loads(body).get("number", -1) < 0:
            await anyio.sleep(0.3)
            return GOOD
        return await Endpoint.post(self, path, body)


class TestPoison:
    """Requests that always fail, among others that are answered."""

    @grid(
        style=["500", "lost"],
        seconds=[(0.05, 0.2), (10.0, 20.0)],
        concurrency=[1, 8, "auto"],
        # One line, the first lines, a cluster, every fiftieth line, the last line.
        which=[{150}, set(range(8)), set(range(100, 140)), set(range(0, 300, 50)), {299}],
        anyio_backend=BACKENDS,
    )
    async def test_failing_requests_cost_little(
        self, tmp_path: Path, style: str, seconds: tuple[float, float], concurrency: Any, which: set[int]
    ) -> None:
        endpoint = Endpoint(random.Random(1), seconds, dict.fromkeys(which, bad(style)))
        done = await work_on(tmp_path, 300, endpoint, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == which
        assert max(endpoint.asked[number] for number in which) <= 16
        at_once = 64 if concurrency == "auto" else concurrency
        ideal = (300 - len(which)) * sum(seconds) / 2 / at_once
        # The growing waits of the last.
        assert done.seconds < 1.3 * ideal + 60 + 4 * len(which) / at_once

    @grid(concurrency=[4, 32, "auto"], count=[1, 5, 40], anyio_backend=BACKENDS)
    async def test_a_request_times_out_at_most_three_times(
        self, tmp_path: Path, count: int, concurrency: Any
    ) -> None:
        which = {7 * number for number in range(count)}
        endpoint = Endpoint(random.Random(1), (3.0, 7.0), dict.fromkeys(which))
        done = await work_on(tmp_path, 400, endpoint, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == which
        assert {endpoint.asked[number] for number in which} <= {2, 3}
        waves = max(1.0, 3 * count / (concurrency if isinstance(concurrency, int) else 32))
        assert done.seconds < TIMEOUT * (waves + 3) + 600

    @grid(strength=1, max_retries=[0, 1, 2], anyio_backend=BACKENDS)
    async def test_max_retries_limits_the_attempts(self, tmp_path: Path, max_retries: int) -> None:
        endpoint = Endpoint(random.Random(1), (0.05, 0.1), {3: bad("500")})
        done = await work_on(tmp_path, 1000, endpoint, concurrency=4, max_retries=max_retries)
        assert done.sink.failed == {3}
        assert endpoint.asked[3] == max_retries + 1

    @grid(strength=1, count=[1, 3, 700], anyio_backend=BACKENDS)
    async def test_only_failing_requests(self, tmp_path: Path, count: int) -> None:
        endpoint = Endpoint(random.Random(1), (1.0, 1.0), dict.fromkeys(range(count), bad("500")))
        done = await work_on(tmp_path, count, endpoint)
        assert done.errors == []
        assert done.sink.failed == set(range(count))
        assert done.seconds < 60 + 9 * count / 8


class TestErrorsInAnswers:
    """Successful responses that contain an error."""

    ERROR = Reply(200, b'{"error":{"message":"overloaded"}}')

    @grid(strength=1, max_retries=[0, 5], concurrency=[1, 8], anyio_backend=BACKENDS)
    async def test_a_request_gets_its_retries(
        self, tmp_path: Path, max_retries: int, concurrency: int
    ) -> None:
        endpoint = Endpoint(random.Random(1), (0.5, 1.0), {3: self.ERROR})
        done = await work_on(tmp_path, 500, endpoint, concurrency=concurrency, max_retries=max_retries)
        assert done.errors == []
        assert done.sink.failed == {3}
        assert endpoint.asked[3] == max_retries + 1
        # It is sent among the others. The endpoint is up, so nothing asks for it.
        assert endpoint.asked[-1] == 0
        (line,) = (each for each in done.sink.lines if each.usage is None or each.problem)
        assert line.problem == "the response is an error: overloaded"

    @grid(count=[10, 1000], concurrency=[4, 32, "auto"], anyio_backend=BACKENDS)
    async def test_a_broken_gateway_is_given_up_without_error_lines(
        self, tmp_path: Path, count: int, concurrency: Any
    ) -> None:
        broken: dict[int, Reply | Failure | None] = dict.fromkeys(range(-1, count), self.ERROR)
        done = await work_on(
            tmp_path, count, Endpoint(random.Random(1), (0.5, 1.0), broken), concurrency=concurrency
        )
        assert done.sink.lines == []
        (error,) = done.errors
        assert "does not respond" in str(error)
        assert "the response is an error: overloaded" in str(error)
        assert 180 < done.seconds < 260

    @grid(begin=[0.0, 6.0], concurrency=[1, 8, "auto"], max_retries=[0, 5], anyio_backend=BACKENDS)
    async def test_all_requests_are_answered_after_an_outage(
        self, tmp_path: Path, begin: float, concurrency: Any, max_retries: int
    ) -> None:
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), outages=[(begin, begin + 120.0, self.ERROR)])
        count = 25 if concurrency == 1 else 400
        done = await work_on(tmp_path, count, endpoint, concurrency=concurrency, max_retries=max_retries)
        assert done.errors == []
        # Without retries, the first failures count before the endpoint is doubted.
        assert len(done.sink.failed) == (0 if max_retries else 7)

    @grid(concurrency=[4, 32, "auto"], anyio_backend=BACKENDS)
    async def test_requests_at_the_end_that_always_fail_get_error_lines(
        self, tmp_path: Path, concurrency: Any
    ) -> None:
        """The endpoint answers the test requests."""
        which = set(range(100, 160))
        endpoint = Endpoint(random.Random(1), (0.5, 1.0), dict.fromkeys(which, self.ERROR))
        done = await work_on(tmp_path, 160, endpoint, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == which
        assert {endpoint.asked[number] for number in which} == {6}

    async def test_answers_in_between_show_that_the_gateway_works(self, tmp_path: Path) -> None:
        broken: dict[int, Reply | Failure | None] = dict.fromkeys(range(0, 400, 2), self.ERROR)
        done = await work_on(
            tmp_path, 400, Endpoint(random.Random(1), (0.5, 1.0), broken), concurrency=4, max_retries=0
        )
        assert done.errors == []
        assert done.sink.failed == set(broken)


class TestOutages:
    """Endpoints that are down for a while."""

    @grid(
        style=["502", "404", "401", "lost", "busy"],
        begin=[0.0, 6.0, 36.5],
        concurrency=[1, 8, "auto"],
        anyio_backend=BACKENDS,
    )
    async def test_all_requests_are_answered_after_an_outage(
        self, tmp_path: Path, style: str, begin: float, concurrency: Any
    ) -> None:
        length = 9.0 if style == "401" and begin == 0 else 120.0
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), outages=[(begin, begin + length, bad(style))])
        count = 200 if concurrency == 8 else 25 if concurrency == 1 else 600
        done = await work_on(tmp_path, count, endpoint, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == set()

    @grid(style=["502", "401", "lost", "busy", "429"], concurrency=[1, 8, "auto"], anyio_backend=BACKENDS)
    async def test_an_endpoint_is_given_up_after_a_long_outage(
        self, tmp_path: Path, style: str, concurrency: Any
    ) -> None:
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), outages=[(5.0, 1e9, bad(style))])
        done = await work_on(tmp_path, 1000, endpoint, concurrency=concurrency)
        (error,) = done.errors
        assert {"401": "rejects the API key", "429": "does not accept requests"}.get(
            style, "does not respond"
        ) in str(error)
        assert done.sink.failed == set()
        # What it asks to wait does not count as its failure.
        assert 184 < done.seconds < (620 if style == "busy" else 260)

    async def test_retry_after_extends_the_time_before_an_endpoint_is_given_up(self, tmp_path: Path) -> None:
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), outages=[(5.0, 280.0, bad("busy"))])
        done = await work_on(tmp_path, 100, endpoint)
        assert done.errors == []
        assert done.sink.failed == set()

    async def test_an_endpoint_is_not_given_up_while_a_request_is_in_flight(self, tmp_path: Path) -> None:
        endpoint = Endpoint(random.Random(1), (3.0, 300.0), outages=[(5.0, 240.0, bad("502"))])
        done = await work_on(tmp_path, 20, endpoint)
        assert done.errors == []
        assert done.sink.failed == set()

    @grid(style=["429", "503", "busy"], begin=[0.0, 5.0], concurrency=[1, 8, "auto"], anyio_backend=BACKENDS)
    async def test_an_endpoint_that_answers_only_probes_is_given_up(
        self, tmp_path: Path, style: str, begin: float, concurrency: Any
    ) -> None:
        """A quota of tokens may be used up."""
        outages = [(begin, 1e9, bad(style))]
        endpoint = ProbesOnly(random.Random(1), (1.0, 2.0), outages=outages)
        done = await work_on(tmp_path, 1000, endpoint, concurrency=concurrency)
        (error,) = done.errors
        assert "accepts test requests but rejects all others" in str(error)
        assert done.sink.failed == set()
        assert 180 < done.seconds < (620 if style == "busy" else 300)

    async def test_an_endpoint_that_rejects_all_but_slow_requests_is_not_given_up(
        self, tmp_path: Path
    ) -> None:
        endpoint = ProbesOnly(random.Random(1), (400.0, 500.0), together=4)
        done = await work_on(tmp_path, 12, endpoint, concurrency=12)
        assert done.errors == []
        assert done.sink.failed == set()

    async def test_an_endpoint_whose_capacity_hung_is_not_given_up(self, tmp_path: Path) -> None:
        hangs: dict[int, Reply | Failure | None] = dict.fromkeys(range(6))
        endpoint = ProbesOnly(random.Random(1), (1.0, 2.0), hangs, together=6)
        done = await work_on(tmp_path, 40, endpoint, concurrency=8)
        assert done.errors == []
        assert done.sink.failed == set(hangs)

    async def test_an_endpoint_that_hangs_is_given_up(self, tmp_path: Path) -> None:
        hangs: dict[int, Reply | Failure | None] = dict.fromkeys(range(-1, 5000))
        done = await work_on(tmp_path, 5000, Endpoint(random.Random(1), (1.0, 2.0), hangs))
        (error,) = done.errors
        assert "does not respond" in str(error)
        assert done.sink.lines == []
        assert done.seconds < TIMEOUT + 180 + TIMEOUT

    async def test_an_endpoint_that_always_times_out_is_given_up(self, tmp_path: Path) -> None:
        hangs: dict[int, Reply | Failure | None] = dict.fromkeys(range(5000))
        done = await work_on(tmp_path, 5000, Endpoint(random.Random(1), (1.0, 2.0), hangs))
        (error,) = done.errors
        assert "has timed out 64 times" in str(error)
        assert done.seconds < 9 * TIMEOUT

    @grid(status=["413", "422"], concurrency=[1, 8, "auto"], anyio_backend=BACKENDS)
    async def test_a_proxy_may_refuse_requests(self, tmp_path: Path, status: str, concurrency: Any) -> None:
        which = set(range(0, 100, 3))
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), dict.fromkeys(which, bad(status)))
        done = await work_on(tmp_path, 100, endpoint, concurrency=concurrency)
        assert done.errors == []
        assert done.sink.failed == which
        assert set(endpoint.asked.values()) == {1}

    async def test_rejections_beside_other_requests_do_not_count_against_a_request(
        self, tmp_path: Path
    ) -> None:
        class Rejecting(Endpoint):
            async def post(self, path: str, body: bytes) -> Reply | Failure:
                if json.loads(body).get("number") == 0 and anyio.current_time() < 260.0:
                    return Reply(429, b"{}")
                return await Endpoint.post(self, path, body)

        done = await work_on(tmp_path, 3, Rejecting(random.Random(1), (150.0, 151.0)), concurrency=3)
        assert done.errors == []
        assert done.sink.failed == set()

    @grid(which=[{0}, {19}, set(range(12, 20))], status=["429", "503"], anyio_backend=BACKENDS)
    async def test_last_requests_that_are_always_rejected_get_error_lines(
        self, tmp_path: Path, which: set[int], status: str
    ) -> None:
        endpoint = Endpoint(random.Random(1), (1.0, 2.0), dict.fromkeys(which, bad(status)))
        done = await work_on(tmp_path, 20, endpoint)
        assert done.errors == []
        assert done.sink.failed == which

    async def test_other_endpoints_continue_without_it(self, tmp_path: Path) -> None:
        dead = Endpoint(random.Random(1), (1.0, 2.0), outages=[(10.0, 1e9, bad("502"))])
        alive = Endpoint(random.Random(2), (1.0, 2.0))
        done = await work_on(tmp_path, 2000, dead, alive)
        assert len(done.errors) == 1
        assert done.sink.failed == set()

    async def test_requests_above_the_capacity_are_retried(self, tmp_path: Path) -> None:
        endpoint = Endpoint(random.Random(1), (250.0, 300.0), together=4)
        done = await work_on(tmp_path, 12, endpoint, concurrency=12)
        assert done.errors == []
        assert done.sink.failed == set()


# Together, these seeds cover every value that the test chooses from, and both backends.
SEEDS = {1, 2, 9, 12, 16, 19, 23, 37, 38, 40, 48, 49}


@pytest.mark.parametrize(
    ("seed", "anyio_backend"),
    [
        pytest.param(seed, BACKENDS[seed % 2], marks=[] if seed in SEEDS else [pytest.mark.nightly])
        for seed in range(60)
    ],
    indirect=["anyio_backend"],
)
async def test_every_request_gets_its_own_result(tmp_path: Path, seed: int) -> None:
    """Endpoints that fail for less than the timeout, and requests that always fail."""
    rng = random.Random(seed)
    count = rng.choice([1, 3, 20, 100, 400])
    seconds = rng.choice([(0.05, 0.2), (1.0, 3.0), (10.0, 20.0)])
    share = rng.choice([0.0, 0.01, 0.1])
    said = [bad("500"), bad("404"), bad("lost"), None]
    poison = {number: rng.choice(said) for number in range(count) if rng.random() < share}
    endpoints = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        outages: list[tuple[float, float, Reply | Failure]] = []
        at = 0.0
        for _ in range(rng.choice([0, 0, 1, 2])):
            at += rng.uniform(5.0, 100.0)
            outages.append(
                (at, at + rng.uniform(1.0, 100.0), bad(rng.choice(["502", "404", "lost", "busy"])))
            )
            at = outages[-1][1] + 60.0
        endpoints.append(Endpoint(rng, seconds, poison, outages, rng.choice([10**9, 6])))
    concurrency: Any = rng.choice([1, 2, 8, 32, "auto"])
    done = await work_on(tmp_path, count, *endpoints, concurrency=concurrency)
    assert done.sink.failed <= set(poison)
    if len(endpoints) == 1:
        assert done.errors == []
    if len(done.errors) < len(endpoints):
        assert done.sink.failed == set(poison)


class StubEndpoint:
    """An endpoint that answers every request, or none.

    Args:
        answers: Whether it answers.
    """

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers

    async def post(self, path: str, body: bytes) -> Reply:
        await anyio.sleep(1.0 if self._answers else math.inf)
        return GOOD


class StubSink:
    """Keeps the ids of the answers of a batch."""

    is_full = False

    def __init__(self) -> None:
        self.ids: list[str] = []

    def put(self, line: AnswerLine) -> None:
        self.ids.append(line.request.custom_id)


async def test_timeouts_lower_the_concurrency(tmp_path: Path) -> None:
    """A server that does not reject requests may have too many of them all the same."""
    rejections: list[float] = []

    class Limit(ConcurrencyLimit):
        def record_rejection(self, now: float, began: float) -> None:
            rejections.append(now - began)

    source = tmp_path / "in.jsonl"
    source.write_text(
        "".join(
            f'{{"custom_id":"r{number}","url":"/v1/chat/completions","body":{{"number":{number}}}}}\n'
            for number in range(20)
        )
    )
    parser = RequestParser("in.jsonl", "org/model", override_model=False)
    queue, sink = RequestQueue(source, parser, bytearray(3), source.stat()), StubSink()
    endpoint = Endpoint(random.Random(1), (1.0, 2.0), poison={3: None})
    lines: Any = sink
    await queue.read()
    await WorkerPool(
        instance_id="i",
        model="org/model",
        post=endpoint.post,
        queue=queue,
        writer=lines,
        limit=Limit(4),
        max_retries=5,
    ).run()
    assert len(sink.ids) == 20
    assert rejections
    assert set(rejections) == {TIMEOUT}


async def test_requests_in_flight_on_a_lost_instance_are_sent_to_another(
    tmp_path: Path, batch_without_threads: None
) -> None:
    source = tmp_path / "in.jsonl"
    line = '{{"custom_id":"r{}","url":"/v1/chat/completions","body":{{}}}}\n'
    source.write_text("".join(line.format(number) for number in range(7)))
    parser = RequestParser("in.jsonl", "org/model", override_model=False)
    queue, lines = RequestQueue(source, parser, bytearray(1), source.stat()), StubSink()

    async def use(endpoint: Any) -> None:
        sink: Any = lines
        limit = ConcurrencyLimit(4)
        await WorkerPool(
            instance_id="i",
            model="org/model",
            post=endpoint.post,
            queue=queue,
            writer=sink,
            limit=limit,
            max_retries=5,
        ).run()

    await queue.read()
    with anyio.move_on_after(10):
        await use(StubEndpoint(answers=False))
    with anyio.fail_after(60):
        await use(StubEndpoint(answers=True))
    assert sorted(lines.ids) == [f"r{number}" for number in range(7)]
