"""Test concurrency limits against models of servers, which have their own clock."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from _grids import grid

from cortecs_async._batch.concurrency import AdaptiveLimit, ConcurrencyLimit


class Server:
    """Answers requests in parallel, up to `capacity` per second.

    Args:
        seconds: Duration of an answer without other requests.
        capacity: Answers per second at most. More parallel requests only take longer.
        bound: Parallel requests above which it rejects others.
        spread: Relative variation of the durations.
        rejected_share: The share of the requests that it rejects at random.
    """

    def __init__(
        self,
        seconds: float,
        capacity: float,
        *,
        bound: int | None = None,
        spread: float = 0.0,
        rejected_share: float = 0.0,
    ) -> None:
        self.seconds = seconds
        self.capacity = capacity
        self.bound = bound
        self.spread = spread
        self.rejected_share = rejected_share
        self.refused = 0

    def use(
        self,
        limit: ConcurrencyLimit,
        *,
        until: float,
        began: float = 0.0,
        starved: Callable[[float], int] = lambda now: 1 << 30,
        seed: int = 1,
    ) -> tuple[float, list[int]]:
        """Return answers per second in the last quarter of the time, and the limits in it."""
        rng = random.Random(seed)
        under_way: list[tuple[float, int, float, bool]] = []
        now, order, answers, values = began, 0, 0, list[int]()
        last = began + 0.75 * (until - began)
        free_at = began  # of the server, which does one thing after the other
        while now < until:
            while len(under_way) < min(limit.value, starved(now)):
                order += 1
                is_full = self.bound is not None and len(under_way) >= self.bound
                if is_full or rng.random() < self.rejected_share:
                    heapq.heappush(under_way, (now + 0.01 * rng.uniform(0.5, 1), order, now, True))
                    continue
                free_at = max(free_at, now) + 1 / self.capacity
                own = self.seconds * rng.uniform(1 - self.spread, 1 + self.spread)
                heapq.heappush(under_way, (max(now + own, free_at), order, now, False))
            now, _, sent, is_refused = heapq.heappop(under_way)
            is_full = len(under_way) + 1 >= 0.9 * limit.value
            if is_refused:
                self.refused += 1
                limit.record_rejection(now, sent)
            else:
                limit.record_answer(now, sent, 1.0, is_full=is_full)
                if now >= last:
                    answers += 1
                    values.append(limit.value)
        return answers / (until - last), values


@grid(strength=1, best=[1, 8, 50, 200, 900], seconds=[0.05, 1.0, 10.0], spread=[0.0, 0.5])
def test_the_limit_finds_the_capacity_of_the_server(seconds: float, best: int, spread: float) -> None:
    server = Server(seconds, best / seconds, spread=spread)
    rate, values = server.use(AdaptiveLimit(), until=400 * seconds)
    assert rate >= 0.85 * server.capacity
    # Not many more than are of use: each of them would only wait.
    assert sum(values) / len(values) <= max(3.0 * best, 40)


def test_the_limit_grows_within_the_first_windows() -> None:
    limit = AdaptiveLimit()
    Server(1.0, 1e6).use(limit, until=13.0)
    assert limit.value == 1024


def test_a_server_that_answers_at_once_gets_few_connections_at_first() -> None:
    values = [max(Server(0.001, 10_000).use(AdaptiveLimit(), until=0.01 * n)[1]) for n in range(1, 30)]
    assert 32 < max(values) <= 4 * 32 + 1


def test_the_limit_never_exceeds_the_highest() -> None:
    limit = AdaptiveLimit(initial=4, highest=10)
    _, values = Server(0.1, 1e6).use(limit, until=60.0)
    assert max(values) <= 10
    assert AdaptiveLimit(initial=32, highest=5).value == 5


def test_rejections_lower_the_limit() -> None:
    server = Server(1.0, 1e6, bound=40)
    rate, values = server.use(AdaptiveLimit(), until=300.0)
    assert rate >= 0.7 * 40
    assert 20 <= sum(values) / len(values) <= 60
    # Here, what is refused asks again in ten milliseconds; a batch waits longer.
    assert server.refused < 100 * 300


def test_many_rejections_of_one_moment_are_one_decrease() -> None:
    limit = AdaptiveLimit(initial=100)
    for _ in range(100):
        limit.record_rejection(5.0, 1.0)
    assert limit.value == 50
    for _ in range(50):
        limit.record_rejection(6.0, 5.5)
    assert limit.value == 25


@pytest.mark.parametrize(("share", "least"), [(0.01, 900), (0.1, 900), (0.2, 900)])
def test_random_rejections_do_not_lower_the_limit(share: float, least: int) -> None:
    server = Server(0.1, 1e6, spread=0.9, rejected_share=share)
    _, values = server.use(AdaptiveLimit(), until=30.0)
    assert sum(values) / len(values) >= least


def test_the_limit_returns_at_once_after_a_short_time_of_rejections() -> None:
    limit = AdaptiveLimit()
    server = Server(0.1, 1e6, spread=0.9)
    server.use(limit, until=10.0)
    proven = limit.value
    server.rejected_share = 1.0
    server.use(limit, began=10.0, until=15.0)
    assert limit.value <= proven / 16
    server.rejected_share = 0.0
    server.use(limit, began=15.0, until=15.5)
    assert limit.value >= 0.75 * proven


def test_a_saturated_server_gets_few_more_requests() -> None:
    """Twenty answers per second, whatever is asked: more requests would wait until they time out."""
    limit = AdaptiveLimit()
    server = Server(0.05, 20.0)
    server.use(limit, until=30.0)
    assert limit.value <= 64
    values = server.use(limit, began=30.0, until=240.0)[1]
    assert max(values) <= 40


def test_the_limit_does_not_stay_at_one() -> None:
    limit = AdaptiveLimit(initial=1)
    Server(0.1, 10.0).use(limit, until=60.0)
    assert limit.value <= 3
    Server(0.1, 1e6, spread=0.5).use(limit, began=60.0, until=90.0)
    assert limit.value >= 100


def test_the_limit_recovers_from_a_period_of_rejections() -> None:
    limit = AdaptiveLimit()
    now = 0.0
    while now < 10.0:
        limit.record_rejection(now + 0.01, now)
        now += 0.01
    assert limit.value >= 1
    rate, _ = Server(5.0, 256 / 5.0).use(limit, began=10.0, until=1200.0)
    assert rate >= 0.7 * 256 / 5.0


def test_immediate_rejections_are_one_decrease() -> None:
    limit = AdaptiveLimit(initial=32)
    for number in range(90):
        limit.record_rejection(1.0 + 0.01 * (number + 1), 1.0 + 0.01 * number)
    assert limit.value == 16


def test_the_limit_is_at_least_one() -> None:
    limit = AdaptiveLimit(initial=3)
    for number in range(200):
        limit.record_rejection(number + 1.0, number + 0.5)
    assert limit.value == 1


def test_a_slower_server_lowers_the_limit() -> None:
    limit = AdaptiveLimit()
    _, before = Server(0.5, 200.0).use(limit, until=100.0)
    rate, after = Server(0.5, 20.0).use(limit, began=100.0, until=1500.0)
    assert rate >= 0.85 * 20.0
    assert sum(after) / len(after) < 0.5 * sum(before) / len(before)


def test_a_faster_server_raises_the_limit() -> None:
    limit = AdaptiveLimit()
    slow, _ = Server(1.0, 40.0).use(limit, until=100.0)
    rate, _ = Server(1.0, 400.0).use(limit, began=100.0, until=400.0)
    assert slow <= 41.0
    assert rate >= 200.0


def test_answers_below_the_limit_do_not_change_it() -> None:
    limit = AdaptiveLimit()
    # Were it taken for the server's limit, the number would go down.
    Server(1.0, 1e6).use(limit, until=60.0, starved=lambda now: 3)
    assert limit.value == 32


def test_a_fixed_limit_stays() -> None:
    limit = ConcurrencyLimit(7)
    Server(1.0, 3.0, bound=2).use(limit, until=60.0)
    assert limit.value == 7
