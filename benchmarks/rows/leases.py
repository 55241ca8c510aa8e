"""Measure up to a thousand leases in parallel, from start to deletion."""

from __future__ import annotations

import math
import statistics
from typing import Any

from _child import OURS, PEER
from _measure import child
from _report import Ratio, Row, Table, ratio
from _server import Server

READY_AFTER = 2.0

# Leases in parallel: rounds. Each round takes more than 5 s, the polling interval of the peer.
_SCHEDULE = {1: 3, 10: 8, 100: 3, 200: 5, 1000: 3}
TEARDOWN_COUNT = 200
_MAX_COUNT = 1000
_GROWTH = (10, 100, 1000)

Runs = dict[int, dict[str, list[dict[str, Any]]]]
"""The results of a fresh process per round, by the number of leases and by side."""


def measured(server: Server) -> tuple[Runs, list[dict[str, Any]]]:
    """Return the runs, and the rates of bare httpx in each round."""
    all_runs: Runs = {}
    bare: list[dict[str, Any]] = []
    for count, rounds in _SCHEDULE.items():
        all_runs[count] = {side: [] for side in (*OURS, PEER)}
        for _ in range(rounds):
            for side, runs in all_runs[count].items():
                run = child("leases", side, count, env=server.env)
                began, running, released = run["times"]
                run["routes"] = server.counts(began, released)
                release_routes = server.counts(running, released)
                assert server.existing() == 0, f"{side} left instances"
                for route in ("start", "stop", "delete"):
                    assert run["routes"][route] == count, (side, run["routes"])
                run["requests"] = sum(run["routes"].values())
                run["release_requests"] = sum(release_routes.values())
                runs.append(run)
            if count == _MAX_COUNT:
                # In turn with the sides, so that all meet the same conditions.
                bare.append(child("bare", count, env=server.env))
                assert server.existing() == 0
    return all_runs, bare


def median(runs: list[dict[str, Any]], name: str) -> float:
    """Return the median of a figure over the rounds."""
    return statistics.median(run[name] for run in runs)


def compared_with_peer(sides: dict[str, list[dict[str, Any]]], side: str, name: str) -> list[float]:
    """Return, by round, a figure of a side divided by that of the peer."""
    return [run[name] / peer[name] for run, peer in zip(sides[side], sides[PEER], strict=True)]


def exponent(all_runs: Runs, side: str, name: str) -> float:
    """Return the exponent with which a figure grows with the number of leases; 1 is linear."""
    points = [
        (math.log(count), math.log(max(1e-9, median(all_runs[count][side], name)))) for count in _GROWTH
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def rows() -> list[Row]:
    """Measure leases from start to deletion, and in the same runs the release of 200."""
    with Server(READY_AFTER) as server:
        all_runs, bare = measured(server)
    return [lease_row(all_runs, bare), teardown_row(all_runs)]


def bounds(all_runs: Runs, bare: list[dict[str, Any]]) -> list[Ratio]:
    """Return the elapsed time of 1,000 leases, divided by provisioning plus the time of bare httpx."""
    ratios = []
    for side in OURS:
        for requests, name, target in (("same requests", "mix", 1.5), ("as many small GETs", "get", None)):
            quotients = [
                run["elapsed"] / (READY_AFTER + run["requests"] / rates[name])
                for run, rates in zip(all_runs[_MAX_COUNT][side], bare, strict=True)
            ]
            label = (
                f"{side}: elapsed time, {num_leases(_MAX_COUNT)} / (provisioning + bare httpx, {requests})"
            )
            ratios.append(ratio(label, quotients, target))
    return ratios


def lease_row(all_runs: Runs, bare: list[dict[str, Any]]) -> Row:
    """Return the results from start to deletion."""
    ratios = bounds(all_runs, bare)
    for side in OURS:
        requests = [run["requests"] / _MAX_COUNT for run in all_runs[_MAX_COUNT][side]]
        ratios.append(ratio(f"{side}: requests per lease, {num_leases(_MAX_COUNT)}", requests, 3.3))
    for side in (*OURS, PEER):
        ratios.extend(
            ratio(f"{side}: growth exponent of {what}, 10 to 1,000 leases", [exponent(all_runs, side, name)])
            for what, name in (("CPU", "cpu"), ("requests", "requests"))
        )
    for count, sides in all_runs.items():
        for side in OURS:
            label = f"{side} / {PEER}: CPU, {num_leases(count)}"
            ratios.append(ratio(label, compared_with_peer(sides, side, "cpu")))
    for side in OURS:
        label = f"{side} / {PEER}: elapsed time, {num_leases(_MAX_COUNT)}"
        ratios.append(ratio(label, compared_with_peer(all_runs[_MAX_COUNT], side, "elapsed")))
    lines = [
        line(count, side, runs) for count, sides in all_runs.items() for side, runs in sides.items() if runs
    ]
    columns = (
        *("leases", "side", "elapsed, s", "without provisioning, s", "CPU, s", "CPU per lease, ms"),
        *("requests per lease", "token requests", "peak memory, MB", "rounds"),
    )
    rate = {name: statistics.median(each[name] for each in bare) for name in ("get", "mix")}
    return Row(
        name="leases",
        title="Leases, from start to deletion",
        text=f"""
            Leases in parallel, in a fresh process per run. An instance is running {READY_AFTER:g} s after its
            start, and the blocks end when all instances are running. Our client has its defaults: it
            confirms that the instances are deleted, and it has a journal and a reaper, whose CPU time counts.
            cortecs-py is used as its users call it: one client, one thread per lease, its own polling. It
            does not confirm that instances are deleted. CPU and memory are those of the client's process,
            without imports. No side left instances.

            Bare httpx sent {rate["get"]:.0f} small GETs per second at its best concurrency. At the same
            concurrency, it sent {rate["mix"]:.0f} requests per second of the kind that leases send: starts,
            stops and deletions of {_MAX_COUNT:,} instances. The target for the elapsed time of
            {num_leases(_MAX_COUNT)} is at most 1.5 times the sum of the provisioning time and the time of
            bare httpx for the same requests. There is no target for the ratio with small GETs, which the
            emulator answers faster than a start.

            {more_expensive(all_runs)} A single lease pays alone for the TLS configuration, the start of the
            reaper, and the journal, and polls its instance more often for a shorter lag. A thousand leases
            share all of that.
        """,
        ratios=ratios,
        tables=[Table(columns, lines)],
        figures={
            side: {
                name: [[count, median(sides[side], name)] for count, sides in all_runs.items()]
                for name in ("elapsed", "cpu")
            }
            for side in (*OURS, PEER)
        },
        plots=["leases.svg"],
    )


def num_leases(count: int) -> str:
    """Return a number of leases in words."""
    return f"{count:,} lease" if count == 1 else f"{count:,} leases"


def more_expensive(all_runs: Runs) -> str:
    """Say where the peer takes less CPU time."""
    quotients = {
        (side, count): median(sides[side], "cpu") / median(sides[PEER], "cpu")
        for side in OURS
        for count, sides in all_runs.items()
    }
    cases = [
        f"{side} with {num_leases(count)} ({quotient:.1f} times as much)"
        for (side, count), quotient in quotients.items()
        if quotient > 1
    ]
    return f"More expensive: more CPU time than {PEER} is taken by {', '.join(cases) or 'none'}."


def line(count: int, side: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return a line of the table."""
    elapsed, cpu = median(runs, "elapsed"), median(runs, "cpu")
    tokens = statistics.median(run["routes"].get("token", 0) for run in runs)
    return (
        f"{count:,}",
        side,
        f"{elapsed:.2f}",
        f"{elapsed - READY_AFTER:.2f}",
        f"{cpu:.3f}",
        f"{cpu / count * 1000:.2f}",
        f"{median(runs, 'requests') / count:.2f}",
        f"{tokens:g}",
        f"{median(runs, 'memory') / 1024:.1f}",
        str(len(runs)),
    )


def teardown_row(all_runs: Runs) -> Row:
    """Return the results of the release alone."""
    sides = all_runs[TEARDOWN_COUNT]
    labels = {"release_elapsed": "elapsed time", "release_cpu": "CPU", "release_requests": "requests"}
    ratios = [
        ratio(f"{side} / {PEER}: {label}", compared_with_peer(sides, side, name))
        for side in OURS
        for name, label in labels.items()
    ]
    lines = []
    for side, runs in sides.items():
        elapsed, cpu, requests = (median(runs, name) for name in labels)
        per_lease = requests / TEARDOWN_COUNT
        lines.append((side, f"{elapsed:.3f}", f"{cpu:.3f}", f"{per_lease:.2f}", str(len(runs))))
    return Row(
        name="teardown",
        title=f"Release of {TEARDOWN_COUNT} leases in parallel",
        text=f"""
            From the end of {TEARDOWN_COUNT} blocks until all instances are deleted. Our client stops and
            deletes the instances, and confirms that they are deleted. cortecs-py, on threads, stops and
            deletes them.

            The elapsed time of both sides is the CPU time of their requests, because one thread, or the
            interpreter's lock, runs them all. So it depends on the transport. One list confirms all
            deletions.
        """,
        ratios=ratios,
        tables=[Table(("side", "elapsed, s", "CPU, s", "requests per lease", "rounds"), lines)],
    )
