"""Measure how the cost of leases grows, up to ten thousand in one process."""

from __future__ import annotations

import math
import statistics

from _measure import child, spread
from _report import Row, Table, ratio
from _server import Server

_COUNTS = (100, 1_000, 10_000)
_ROUNDS = 2


def exponent(values: list[float]) -> float:
    """Return the exponent with which a figure grows with the number of leases; 1 is linear."""
    logarithms = [math.log(value) for value in values]
    return statistics.linear_regression([math.log(count) for count in _COUNTS], logarithms).slope


def row() -> Row:
    """Measure a fresh process per round."""
    requests: dict[int, list[float]] = {count: [] for count in _COUNTS}
    cpu: dict[int, list[float]] = {count: [] for count in _COUNTS}
    elapsed: dict[int, list[float]] = {count: [] for count in _COUNTS}
    with Server(ready_after=2.0) as server:
        # Does not count: it creates the state directory, which users have from earlier programs.
        child("leases", "ours", 1, env=server.env)
        for _ in range(_ROUNDS):
            for count in _COUNTS:
                run = child("leases", "ours", count, env=server.env)
                num_requests = sum(server.counts(run["began"], run["released"]).values())
                requests[count].append(num_requests / count)
                assert server.existing() == 0
                cpu[count].append(run["cpu"])
                elapsed[count].append(run["elapsed"])
    lines = [
        (
            f"{count:,}",
            f"{spread(elapsed[count]).median:.2f}",
            f"{spread(cpu[count]).median / count * 1000:.2f}",
            f"{spread(requests[count]).median:.3f}",
            str(_ROUNDS),
        )
        for count in _COUNTS
    ]
    return Row(
        name="many",
        title="Ten thousand leases",
        text="""
            Leases in parallel in one process, from start to deletion, as above. With an exponent of 1, ten
            times as many leases take ten times as much CPU time.
        """,
        ratios=[
            ratio(f"requests per lease, {_COUNTS[-1]:,} leases", requests[_COUNTS[-1]], 3.02),
            ratio(
                f"growth exponent of CPU, {_COUNTS[0]} to {_COUNTS[-1]:,} leases",
                [exponent([cpu[count][number] for count in _COUNTS]) for number in range(_ROUNDS)],
                1.0,
            ),
        ],
        tables=[Table(("leases", "elapsed, s", "CPU per lease, ms", "requests per lease", "rounds"), lines)],
    )
