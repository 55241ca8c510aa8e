"""The limit that finds itself, against models of servers: no clock but the models' own."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

from _grids import grid

from cortecs_async._batch.concurrency import AdaptiveLimit, ConcurrencyLimit


class Server:
    """Works on so many requests at once that it answers up to `capacity` a second.

    Args:
        seconds: How long an answer takes when it is alone.
        capacity: Answers a second at the most; more at once only take longer.
        bound: Above so many it refuses.
        spread: How much answers differ in length.
    """

    def __init__(
        self, seconds: float, capacity: float, *, bound: int | None = None, spread: float = 0.0
    ) -> None:
        self.seconds = seconds
        self.capacity = capacity
        self.bound = bound
        self.spread = spread
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
        """Answers a second in the last quarter of the time, and the limits of that quarter."""
        rng = random.Random(seed)
        under_way: list[tuple[float, int, float, bool]] = []
        now, order, answers, values = began, 0, 0, list[int]()
        last = began + 0.75 * (until - began)
        free_at = began  # of the server, which does one thing after the other
        while now < until:
            while len(under_way) < min(limit.value, starved(now)):
                order += 1
                if self.bound is not None and len(under_way) >= self.bound:
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
def test_it_finds_what_the_server_can_do(seconds: float, best: int, spread: float) -> None:
    server = Server(seconds, best / seconds, spread=spread)
    rate, values = server.use(AdaptiveLimit(), until=400 * seconds)
    assert rate >= 0.85 * server.capacity
    # Not many more than are of use: each of them would only wait.
    assert sum(values) / len(values) <= max(3.0 * best, 40)


def test_it_grows_with_the_second_answer_already() -> None:
    limit = AdaptiveLimit()
    Server(1.0, 1e6).use(limit, until=13.0)
    assert limit.value == 1024


def test_it_does_not_grow_past_its_bound() -> None:
    limit = AdaptiveLimit(initial=4, highest=10)
    _, values = Server(0.1, 1e6).use(limit, until=60.0)
    assert max(values) <= 10
    assert AdaptiveLimit(initial=32, highest=5).value == 5


def test_a_server_that_refuses_is_asked_for_less() -> None:
    server = Server(1.0, 1e6, bound=40)
    rate, values = server.use(AdaptiveLimit(), until=300.0)
    assert rate >= 0.7 * 40
    assert 20 <= sum(values) / len(values) <= 60
    # Here, what is refused asks again in ten milliseconds; a batch waits longer.
    assert server.refused < 100 * 300


def test_one_storm_of_refusals_is_one_step_down() -> None:
    limit = AdaptiveLimit(initial=100)
    for _ in range(100):
        limit.record_rejection(5.0, 1.0)
    assert limit.value == 70
    limit.record_rejection(6.0, 5.5)
    assert limit.value == 49


def test_it_recovers_from_a_time_of_refusals() -> None:
    limit = AdaptiveLimit()
    now = 0.0
    while now < 10.0:
        limit.record_rejection(now + 0.01, now)
        now += 0.01
    assert limit.value >= 1
    rate, _ = Server(5.0, 256 / 5.0).use(limit, began=10.0, until=1200.0)
    assert rate >= 0.7 * 256 / 5.0


def test_refusals_that_come_at_once_are_one_step() -> None:
    limit = AdaptiveLimit()
    for number in range(90):
        limit.record_rejection(1.0 + 0.01 * (number + 1), 1.0 + 0.01 * number)
    assert limit.value == 22


def test_it_never_goes_below_one() -> None:
    limit = AdaptiveLimit(initial=3)
    for number in range(20):
        limit.record_rejection(number + 1.0, number + 0.5)
    assert limit.value == 1


def test_a_server_that_becomes_slower_is_asked_for_less() -> None:
    limit = AdaptiveLimit()
    _, before = Server(0.5, 200.0).use(limit, until=100.0)
    rate, after = Server(0.5, 20.0).use(limit, began=100.0, until=1500.0)
    assert rate >= 0.85 * 20.0
    assert sum(after) / len(after) < 0.5 * sum(before) / len(before)


def test_a_server_that_becomes_faster_is_found_out() -> None:
    limit = AdaptiveLimit()
    slow, _ = Server(1.0, 40.0).use(limit, until=100.0)
    rate, _ = Server(1.0, 400.0).use(limit, began=100.0, until=400.0)
    assert slow <= 41.0
    assert rate >= 200.0


def test_what_there_is_too_little_work_for_says_nothing() -> None:
    limit = AdaptiveLimit()
    # Were it taken for the server's limit, the number would go down.
    Server(1.0, 1e6).use(limit, until=60.0, starved=lambda now: 3)
    assert limit.value == 32


def test_a_number_that_somebody_chose_stays() -> None:
    limit = ConcurrencyLimit(7)
    Server(1.0, 3.0, bound=2).use(limit, until=60.0)
    assert limit.value == 7
