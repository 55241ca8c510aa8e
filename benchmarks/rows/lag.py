"""Measure how late a wait detects a running instance, and how often it polls, on virtual time."""

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

# The event loop on virtual time belongs to the tests.
sys.path.append(str(Path(__file__).parents[2] / "tests"))

from _virtual_time import VirtualTimeLoop

_CURVES = (5, 30, 120, 600)
_PATTERNS = ("steady", "bursty")
_PHASES = 20
_PERIOD = 5.0
_NUM_STEPS = 5

# Tolerance for rounding, in seconds.
_EPSILON = 1e-6

FIXED = f"every {_PERIOD:g} s"

Waiting = Callable[[AsyncCortecs], Awaitable[float]]
Sample = tuple[float, int]


async def ours(client: AsyncCortecs) -> float:
    """Return when the block of a lease begins."""
    async with client.instance(MODEL):
        return anyio.current_time()


async def fixed(client: AsyncCortecs) -> float:
    """Return when polling every 5 s, as the vendor's client does, detects the running instance."""
    instance = await client.instances.start(MODEL)
    while not (await client.instances.get(instance.instance_id)).is_usable:  # noqa: ASYNC110
        await anyio.sleep(_PERIOD)
    detected_at = anyio.current_time()
    await client.instances.stop(instance.instance_id)
    await client.instances.delete(instance.instance_id)
    return detected_at


def emulator_of(pattern: str, duration: float) -> Emulator:
    """Return an emulator whose instances are running `duration` seconds from now.

    With the pattern "steady", a start takes a step per quarter of the duration. With "bursty", it takes three
    steps in the first tenth and the last one at the end: the clock runs fast, and then stands still.
    """
    began = anyio.current_time()

    def clock() -> float:
        elapsed = anyio.current_time() - began
        if pattern == "bursty" and elapsed < duration - _EPSILON:
            elapsed = min(7.6 * elapsed, 0.76 * duration)
        return began + elapsed

    return Emulator(clock=clock, step_seconds=duration / (_NUM_STEPS - 1), num_steps=_NUM_STEPS)


async def sample(waiting: Waiting, pattern: str, duration: float) -> Sample:
    """Return the seconds from when an instance is running until detection, and the polls until then."""
    began = anyio.current_time()
    emulator = emulator_of(pattern, duration)
    async with (
        httpx.AsyncClient(transport=emulator.transport()) as http,
        # Virtual time does not wait for threads and child processes.
        AsyncCortecs(
            emulator.client_id,
            emulator.client_secret,
            api_base_url=emulator.api_base_url,
            http_client=http,
            guard="off",
            journal="off",
        ) as client,
    ):
        detected_at = await waiting(client)
    assert not emulator.existing
    assert emulator.ledger[0].started_at == began
    routes = [each.route for each in emulator.requests]
    waiting_routes = routes[routes.index("start") : routes.index("stop")]
    polls = sum(route in {"get", "list"} for route in waiting_routes)
    return detected_at - began - duration, polls


async def measured() -> tuple[dict[str, dict[str, list[Sample]]], float]:
    """Return the samples by curve and side, and the worst of our lags divided by the allowed lag."""
    by_curve: dict[str, dict[str, list[Sample]]] = {}
    worst = 0.0
    for curve in _CURVES:
        for pattern in _PATTERNS:
            samples: dict[str, list[Sample]] = {"ours": [], FIXED: []}
            for phase in range(_PHASES):
                # Spread over one period, so that the start ends at every phase of the fixed polling.
                duration = curve + _PERIOD * ((phase + 0.5) / _PHASES - 0.5)
                our_sample = await sample(ours, pattern, duration)
                assert our_sample[0] >= -_EPSILON, "detected before it was running"
                worst = max(worst, our_sample[0] / min(max(0.5, 0.1 * duration), 5.0))
                samples["ours"].append(our_sample)
                samples[FIXED].append(await sample(fixed, pattern, duration))
            by_curve[f"{curve} s, {pattern}"] = samples
    return by_curve, round(worst, 6)


def row() -> Row:
    """Measure the detection lag and the polls for several durations and patterns of a start."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        by_curve, worst = runner.run(measured())
    ratios = [ratio("worst lag / allowed lag (10% of the wait, at least 0.5 s, at most 5 s)", [worst], 1.0)]
    lines = []
    figures: dict[str, list[list[float]]] = {"ours": [], FIXED: []}
    for curve, sides in by_curve.items():
        means = {}
        for side, samples in sides.items():
            lags, num_polls = zip(*samples, strict=True)
            lag, polls = statistics.mean(lags), statistics.mean(num_polls)
            means[side] = lag
            figures[side].append([lag, max(lags), polls])
            lines.append((curve, side, f"{lag:.2f}", f"{max(lags):.2f}", f"{polls:.1f}"))
        ratios.append(ratio(f"{curve}: lag of ours / polling {FIXED}", [means["ours"] / means[FIXED]]))
    return Row(
        name="lag",
        title="Detection lag",
        text=f"""
            The lag is the time from when an instance is running until the block of a lease begins, compared
            with polling every 5 s, as cortecs-py does. It is measured on virtual time, with {_PHASES}
            durations per start curve, spread over 5 s. Steady: a start takes a step per quarter of its
            duration. Bursty: it takes all steps but the last one in the first tenth, so that the steps
            predict an end that is far too early.

            More requests: our client polls more often while an instance is new, and around the end that its
            steps predict. That makes the lag shorter. Where the steps mislead, as in a burst, the lag of a
            long start is no shorter than with fixed polling. One poll serves all waits of a client.
        """,
        ratios=ratios,
        tables=[Table(("start", "side", "mean lag, s", "worst lag, s", "mean polls"), lines)],
        figures={"curves": list(by_curve), "sides": figures},
        plots=["lag.svg"],
    )
