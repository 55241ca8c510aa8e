"""How late a wait knows, and what it asks for that, on virtual time."""

from __future__ import annotations

import asyncio
import statistics
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import httpx
from _report import Row, Table, ratio
from _server import MODEL

from cortecs_async import AsyncCortecs
from cortecs_async.emulator import Emulator

# The loop on virtual time is the tests': there is one of it, and it is tested there.
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from _virtual_time import VirtualTimeLoop

_CURVES = (5, 30, 120, 600)
_PATTERNS = ("steady", "bursty")
_PHASES = 20
_PERIOD = 5.0
_NUM_STEPS = 5

# Of rounding.
_EPSILON = 1e-6

Waiting = Callable[[AsyncCortecs], Awaitable[float]]
Sample = tuple[float, int]


async def ours(client: AsyncCortecs) -> float:
    """When a lease's block is entered."""
    async with client.instance(MODEL):
        return anyio.current_time()


async def fixed(client: AsyncCortecs) -> float:
    """When a look every 5 s, as the vendor's client has it, finds the instance running."""
    instance = await client.instances.start(MODEL)
    while not (await client.instances.get(instance.instance_id)).is_usable:  # noqa: ASYNC110
        await anyio.sleep(_PERIOD)
    seen = anyio.current_time()
    await client.instances.stop(instance.instance_id)
    await client.instances.delete(instance.instance_id)
    return seen


def emulator_of(pattern: str, duration: float) -> Emulator:
    """An emulator whose instances run `duration` seconds after now.

    Steady: a step each quarter of it. Bursty: three steps in its first tenth, and then nothing until the end,
    which is made by a clock that runs and then stands still.
    """
    begun = anyio.current_time()

    def clock() -> float:
        elapsed = anyio.current_time() - begun
        if pattern == "bursty" and elapsed < duration - _EPSILON:
            elapsed = min(7.6 * elapsed, 0.76 * duration)
        return begun + elapsed

    return Emulator(clock=clock, step_seconds=duration / (_NUM_STEPS - 1), num_steps=_NUM_STEPS)


async def sample(waiting: Waiting, pattern: str, duration: float) -> Sample:
    """Seconds between the moment that it ran and that this was known; and the looks until then."""
    begun = anyio.current_time()
    emulator = emulator_of(pattern, duration)
    async with (
        httpx.AsyncClient(transport=emulator.transport()) as http,
        # On virtual time nothing waits for threads and child processes.
        AsyncCortecs(
            emulator.client_id,
            emulator.client_secret,
            api_base_url=emulator.api_base_url,
            http_client=http,
            guard="off",
            journal="off",
        ) as client,
    ):
        seen = await waiting(client)
    assert not emulator.existing
    assert emulator.ledger[0].started_at == begun
    routes = [each.route for each in emulator.requests]
    looks = routes[routes.index("start") : routes.index("stop")]
    return seen - begun - duration, sum(route in {"get", "list"} for route in looks)


async def measured() -> tuple[dict[str, dict[str, list[Sample]]], float]:
    """The samples of each curve and side; and the worst of our lags as a share of its bound."""
    found: dict[str, dict[str, list[Sample]]] = {}
    worst = 0.0
    for curve in _CURVES:
        for pattern in _PATTERNS:
            of_curve: dict[str, list[Sample]] = {"ours": [], "fixed 5 s": []}
            for phase in range(_PHASES):
                # Over one period of the fixed polling, so that it is met at every phase of it.
                duration = curve + _PERIOD * ((phase + 0.5) / _PHASES - 0.5)
                mine = await sample(ours, pattern, duration)
                assert mine[0] >= -_EPSILON, "it cannot be known before it is so"
                worst = max(worst, mine[0] / min(max(0.5, 0.1 * duration), 5.0))
                of_curve["ours"].append(mine)
                of_curve["fixed 5 s"].append(await sample(fixed, pattern, duration))
            found[f"{curve} s, {pattern}"] = of_curve
    return found, round(worst, 6)


def row() -> Row:
    """Detection lag and requests over start curves."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        found, worst = runner.run(measured())
    ratios = [ratio("the worst lag / its bound, max(0.5 s, 10 % of the wait) and at most 5 s", [worst], 1.0)]
    lines = []
    figures: dict[str, list[list[float]]] = {"ours": [], "fixed 5 s": []}
    for curve, sides in found.items():
        means = {}
        for side, samples in sides.items():
            lags, looks = zip(*samples, strict=True)
            lag, requests = statistics.mean(lags), statistics.mean(looks)
            means[side] = lag
            figures[side].append([lag, max(lags), requests])
            lines.append((curve, side, f"{lag:.2f}", f"{max(lags):.2f}", f"{requests:.1f}"))
        ratios.append(ratio(f"{curve}: lag of ours / of fixed 5 s", [means["ours"] / means["fixed 5 s"]]))
    return Row(
        name="lag",
        title="How late a wait knows",
        text=f"""
            On virtual time, each curve at {_PHASES} moments of readiness spread over 5 s: from the moment
            that the instance runs until the block of a lease is entered, beside a look every 5 s, which
            is what cortecs-py does. Steady: a step each quarter of the time. Bursty: all steps but the
            last in the first tenth, so that they promise an end that is far too early.

            More requests than a peer: ours looks more often while an instance is young, and around the
            time at which its steps so far let its end be expected; that is how it knows earlier. Where
            they mislead, as in a burst, a long start is seen no earlier than by the peer. It is once
            for all waits of a client, not once a wait.
        """,
        ratios=ratios,
        tables=[Table(("start takes", "side", "lag, mean, s", "lag, worst, s", "looks, mean"), lines)],
        figures={"curves": list(found), "sides": figures},
        plots=["lag.svg"],
    )
