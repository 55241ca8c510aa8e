"""Measure how long a batch with `concurrency="auto"` takes, compared with fixed values and a bare loop."""

from __future__ import annotations

import statistics

from _measure import Samples, child, quotients
from _report import Ratio, Row, Table, ratio
from _server import Server

_ROUNDS = 3
_FIXED = (16, 32, 64, 128, 256, 512)
_BARE = "bare aiohttp, 256"

# Fixed concurrencies that run in all rounds: the fastest in a round with a fraction of the requests.
_NUM_FASTEST = 2
_FRACTION = 4

# By name: seconds to answer and their spread, the shares of the faults, and the number of requests.
_CASES: dict[str, tuple[float, float, dict[str, float], int]] = {
    "0 ms": (0.0, 0.0, {}, 10_000),
    "50 to 150 ms": (0.1, 0.5, {}, 5_000),
    "10 to 200 ms, 1% status 429": (0.105, 0.9, {"429": 0.01}, 5_000),
    "10 to 200 ms, 1% status 503": (0.105, 0.9, {"503": 0.01}, 5_000),
}

# At most 10% slower than the best fixed concurrency, and at least as fast as a bare loop.
_TARGET_FIXED = 1.1
_TARGET_BARE = 1.0


def elapsed(server: Server, side: str, count: int) -> float:
    """Return the seconds from the first request to the last one of a side, as the server saw them."""
    if side == _BARE:
        child("chat", "bare aiohttp", count, 256, env=server.env)
    else:
        child("chat", "batch", count, side, env=server.env)
    return server.chat_span()[1]


def samples(server: Server, count: int, *, with_bare: bool) -> Samples:
    """Return the elapsed seconds of each side, by round."""
    first = {str(fixed): elapsed(server, str(fixed), count // _FRACTION) for fixed in _FIXED}
    fastest = sorted(first, key=lambda side: first[side])[:_NUM_FASTEST]
    sides = ["auto", *fastest, *([_BARE] if with_bare else [])]
    by_side: Samples = {side: [] for side in sides}
    for number in range(_ROUNDS):
        turn = number % len(sides)
        for side in sides[turn:] + sides[:turn]:
            by_side[side].append(elapsed(server, side, count))
    return by_side


def row() -> Row:
    """Measure endpoints that are fast, slow, or faulty."""
    ratios: list[Ratio] = []
    lines = []
    for name, (seconds, spread, faults, count) in _CASES.items():
        with Server(answer_seconds=seconds, is_light=True, spread=spread, faults=faults) as server:
            by_side = samples(server, count, with_bare=not faults)
            assert server.existing() == 0
        medians = {side: statistics.median(values) for side, values in by_side.items()}
        best = min((side for side in medians if side.isdigit()), key=lambda side: medians[side])
        ratios.append(ratio(f"auto / best fixed, {name}", quotients(by_side, "auto", best), _TARGET_FIXED))
        if not faults:
            ratios.append(ratio(f"auto / bare, {name}", quotients(by_side, "auto", _BARE), _TARGET_BARE))
        lines += [(f"{name}: {side}", f"{median:.2f}") for side, median in medians.items()]
    return Row(
        name="concurrency",
        title="Concurrency of a batch",
        text=f"""
            The elapsed time from the first to the last request of a batch with `concurrency="auto"`, compared
            with the fastest of the fixed values {", ".join(map(str, _FIXED))}, and with a loop around
            `session.post` of aiohttp with 256 requests in flight. The endpoint is a server that takes little
            CPU time. It answers after a random time, and gives some faults instead of answers.
        """,
        ratios=ratios,
        tables=[Table(("endpoint: concurrency", "elapsed, s"), lines)],
    )
