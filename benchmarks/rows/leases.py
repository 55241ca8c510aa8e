"""Measure up to a thousand leases in parallel, from start to deletion."""

from __future__ import annotations

import statistics
import tempfile
from typing import Any

from _child import OURS, PEER
from _measure import child
from _report import Ratio, Row, Table, ratio
from _server import Server

READY_AFTER = 2.0

# Leases in parallel: rounds. Each round takes more than 5 s, the polling interval of the peer.
_SCHEDULE = {1: 9, 10: 9, 100: 3, 1000: 9}
_MAX_COUNT = 1000

_FIRST = "ours, first lease with a new state directory"

Runs = dict[int, dict[str, list[dict[str, Any]]]]
"""The results of a fresh process per round, by the number of leases and by side."""


def sides_of(count: int) -> list[str]:
    """Return the sides that run with this number of leases. The transport hardly matters for a few leases."""
    return {1: ["ours", _FIRST, PEER], 10: ["ours", PEER]}.get(count, [*OURS, PEER])


def run_leases(server: Server, side: str, count: int) -> dict[str, Any]:
    """Run leases in a fresh process, and return what they cost."""
    with tempfile.TemporaryDirectory() as folder:
        env = {**server.env, "CORTECS_STATE_DIR": folder} if side == _FIRST else server.env
        run = child("leases", "ours" if side == _FIRST else side, count, env=env)
    run["routes"] = server.counts(run["began"], run["released"])
    assert server.existing() == 0, f"{side} left instances"
    for route in ("start", "stop", "delete"):
        assert run["routes"][route] == count, (side, run["routes"])
    run["requests"] = sum(run["routes"].values())
    return run


def measured(server: Server) -> tuple[Runs, list[dict[str, Any]]]:
    """Return the runs, and the rates of bare httpx in each round."""
    all_runs: Runs = {}
    bare: list[dict[str, Any]] = []
    # Does not count: it creates the state directory, which users have from earlier programs.
    run_leases(server, "ours", 1)
    for count, rounds in _SCHEDULE.items():
        all_runs[count] = {side: [] for side in sides_of(count)}
        for _ in range(rounds):
            for side, runs in all_runs[count].items():
                runs.append(run_leases(server, side, count))
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


def elapsed_ratio(all_runs: Runs, side: str, bare: list[dict[str, Any]]) -> Ratio:
    """Return the elapsed time of 1,000 leases, divided by provisioning plus the time of bare httpx."""
    quotients = [
        run["elapsed"] / (READY_AFTER + run["requests"] / rates["mix"])
        for run, rates in zip(all_runs[_MAX_COUNT][side], bare, strict=True)
    ]
    label = f"{side}: elapsed time, {num_leases(_MAX_COUNT)} / (provisioning + bare httpx, same requests)"
    return ratio(label, quotients, 1.05)


def row() -> Row:
    """Measure leases from start to deletion."""
    with Server(READY_AFTER) as server:
        all_runs, bare = measured(server)
    ratios = [elapsed_ratio(all_runs, side, bare) for side in OURS]
    for side in OURS:
        requests = [run["requests"] / _MAX_COUNT for run in all_runs[_MAX_COUNT][side]]
        ratios.append(ratio(f"{side}: requests per lease, {num_leases(_MAX_COUNT)}", requests, 3.3))
    targets = {("ours", 1): 2.0, ("ours", 10): 0.9, ("ours", _MAX_COUNT): 0.35}
    for count, sides in all_runs.items():
        for side in sides_of(count)[:-1]:
            label = f"{side} / {PEER}: CPU, {num_leases(count)}"
            ratios.append(ratio(label, compared_with_peer(sides, side, "cpu"), targets.get((side, count))))
    for side in OURS:
        label = f"{side} / {PEER}: elapsed time, {num_leases(_MAX_COUNT)}"
        ratios.append(ratio(label, compared_with_peer(all_runs[_MAX_COUNT], side, "elapsed")))
    lines = [line(count, side, runs) for count, sides in all_runs.items() for side, runs in sides.items()]
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
            Its state directory has been used by earlier programs, except with "{_FIRST}".
            cortecs-py is used as its users call it: one client, one thread per lease, its own polling. It
            does not confirm that instances are deleted. CPU and memory are those of the client's process,
            without imports. No side left instances.

            Bare httpx sent {rate["get"]:.0f} small GETs per second at its best concurrency. At the same
            concurrency, it sent {rate["mix"]:.0f} requests per second of the kind that leases send: starts,
            stops and deletions of {_MAX_COUNT:,} instances.

            The TLS configuration, the reaper, and the journal are set up once per process, so they cost the
            most per lease if there is only one. A single lease also polls its instance more often, to notice
            changes sooner.
        """,
        ratios=ratios,
        tables=[Table(columns, lines)],
        figures={
            side: {
                name: [
                    [count, median(sides[side], name)] for count, sides in all_runs.items() if side in sides
                ]
                for name in ("elapsed", "cpu")
            }
            for side in (*OURS, PEER)
        },
        plots=["leases.svg"],
    )


def num_leases(count: int) -> str:
    """Return a number of leases in words."""
    return f"{count:,} lease" if count == 1 else f"{count:,} leases"


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
