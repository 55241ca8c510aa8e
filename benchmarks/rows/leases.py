"""Leases by the thousand, from start to gone."""

from __future__ import annotations

import math
import statistics
from typing import Any

from _child import OURS, PEER
from _measure import child, spread
from _report import Ratio, Row, Table, ratio
from _server import Server

READY_AFTER = 2.0

# How many at once, and how often. Each round takes more than 5 s, which is how long the peer waits.
_SCHEDULE = {1: 3, 10: 8, 100: 3, 200: 5, 1000: 3}
TEARDOWN = 200
_MOST = 1000
_GROWTH = (10, 100, 1000)

Found = dict[int, dict[str, list[dict[str, Any]]]]


def measured(server: Server) -> tuple[Found, list[dict[str, Any]]]:
    """What a fresh process found, by number of leases and side; and what bare httpx does in each round."""
    everything: Found = {}
    bare: list[dict[str, Any]] = []
    for count, rounds in _SCHEDULE.items():
        everything[count] = {side: [] for side in (*OURS, PEER)}
        for _ in range(rounds):
            for side, runs in everything[count].items():
                run = child("leases", side, count, env=server.env)
                begun, up, down = run["times"]
                run["routes"] = server.counts(begun, down)
                run["down_routes"] = server.counts(up, down)
                assert server.existing() == 0, f"{side} left something behind"
                for route in ("start", "stop", "delete"):
                    assert run["routes"][route] == count, (side, run["routes"])
                run["requests"] = sum(run["routes"].values())
                run["down_requests"] = sum(run["down_routes"].values())
                runs.append(run)
            if count == _MOST:
                # In between, so that it meets the same moods of the machine.
                bare.append(child("bare", count, env=server.env))
                assert server.existing() == 0
    return everything, bare


def median(runs: list[dict[str, Any]], name: str) -> float:
    """Of the rounds."""
    return statistics.median(run[name] for run in runs)


def beside_peer(sides: dict[str, list[dict[str, Any]]], side: str, name: str) -> list[float]:
    """What a side takes beside what the peer takes, in the same round."""
    return [run[name] / peer[name] for run, peer in zip(sides[side], sides[PEER], strict=True)]


def exponent(everything: Found, side: str, name: str) -> float:
    """The slope of what it takes over the number of leases, both as logarithms: 1 grows in proportion."""
    points = [
        (math.log(count), math.log(max(1e-9, median(everything[count][side], name)))) for count in _GROWTH
    ]
    return statistics.linear_regression(*zip(*points, strict=True)).slope


def rows() -> list[Row]:
    """Leases from start to gone, and from what is the same run, the teardown of 200."""
    with Server(READY_AFTER) as server:
        everything, bare = measured(server)
    return [lease_row(everything, bare), teardown_row(everything)]


def bounds(everything: Found, bare: list[dict[str, Any]]) -> list[Ratio]:
    """The wall of a thousand beside what provisioning and bare transport would take."""
    found = []
    for side in OURS:
        for what, name, target in (("the same requests", "mix", 1.5), ("as many small GETs", "get", None)):
            walls = [
                run["wall"] / (READY_AFTER + run["requests"] / beside[name])
                for run, beside in zip(everything[_MOST][side], bare, strict=True)
            ]
            label = f"{side}: wall of 1,000 / (provisioning + bare httpx for {what})"
            found.append(ratio(label, walls, target))
    return found


def lease_row(everything: Found, bare: list[dict[str, Any]]) -> Row:
    """From start to gone."""
    ratios = bounds(everything, bare)
    for side in OURS:
        requests = [run["requests"] / _MOST for run in everything[_MOST][side]]
        ratios.append(ratio(f"{side}: requests a lease at 1,000", requests, 3.3))
    for side in (*OURS, PEER):
        ratios.extend(
            ratio(f"{side}: growth exponent of {what}, 10 to 1,000", [exponent(everything, side, name)])
            for what, name in (("CPU", "cpu"), ("requests", "requests"))
        )
    for count, sides in everything.items():
        for side in OURS:
            ratios.append(ratio(f"{side} / {PEER}: CPU of {count:,}", beside_peer(sides, side, "cpu")))
    for side in OURS:
        walls = beside_peer(everything[_MOST], side, "wall")
        ratios.append(ratio(f"{side} / {PEER}: wall of {_MOST:,}", walls))
    lines = [
        line(count, side, runs) for count, sides in everything.items() for side, runs in sides.items() if runs
    ]
    columns = (
        *("leases", "side", "wall, s", "less provisioning, s", "CPU, s", "CPU a lease, ms"),
        *("requests a lease", "tokens", "peak memory, MB", "rounds"),
    )
    rate = {name: statistics.median(each[name] for each in bare) for name in ("get", "mix")}
    return Row(
        name="leases",
        title="Leases, from start to gone",
        text=f"""
            So many leases at once, each process fresh, all held until all are up; an instance runs
            {READY_AFTER:g} s after its start. Ours as it is by default, with the reaper (whose CPU is in
            the sum) and the journal, and gone means read to be gone. cortecs-py as it is used: one
            client, a thread a lease, its own polling; it never looks whether what it deleted is gone. CPU
            and memory are those of the client's process beyond what it had before the first lease, when
            everything was imported; tokens are requests for one. Nothing was left in the account by
            either.

            Bare httpx made {rate["get"]:.0f} small GETs a second at its best among few concurrencies, and
            {rate["mix"]:.0f} requests a second, as many at a time, of the kind that leases make: starts,
            stops and deletes of {_MOST:,} instances. The wall of {_MOST:,} leases must be at most 1.5
            times the provisioning time and the time that bare httpx takes for the same requests. Beside
            it, without a promise, the same with the small GETs, which the emulator answers sooner than a
            start among many.

            {dearer(everything)} A lease that is alone pays for the TLS configuration, the start of the
            reaper, and the journal; and it looks at its instance more often, so that it knows earlier. A
            thousand share all of that.
        """,
        ratios=ratios,
        tables=[Table(columns, lines)],
        figures={
            side: {
                name: [[count, median(sides[side], name)] for count, sides in everything.items()]
                for name in ("wall", "cpu")
            }
            for side in (*OURS, PEER)
        },
        plots=["leases.svg"],
    )


def dearer(everything: Found) -> str:
    """Where a peer takes less."""
    found = [
        f"{side} with {count:,} ({median(sides[side], 'cpu') / median(sides[PEER], 'cpu'):.1f} times)"
        for side in OURS
        for count, sides in everything.items()
        if median(sides[side], "cpu") > median(sides[PEER], "cpu")
    ]
    return f"Slower than a peer: beside {PEER}, more CPU is taken by {', '.join(found) or 'none'}."


def line(count: int, side: str, runs: list[dict[str, Any]]) -> tuple[str, ...]:
    """One line of the table."""
    wall, cpu = median(runs, "wall"), median(runs, "cpu")
    tokens = statistics.median(run["routes"].get("token", 0) for run in runs)
    return (
        f"{count:,}",
        side,
        f"{wall:.2f}",
        f"{wall - READY_AFTER:.2f}",
        f"{cpu:.3f}",
        f"{cpu / count * 1000:.2f}",
        f"{median(runs, 'requests') / count:.2f}",
        f"{tokens:g}",
        f"{median(runs, 'memory') / 1024:.1f}",
        str(len(runs)),
    )


def teardown_row(everything: Found) -> Row:
    """From the moment that the blocks end."""
    sides = everything[TEARDOWN]
    words = {"down_wall": "wall", "down_cpu": "CPU", "down_requests": "requests"}
    ratios = [
        ratio(f"{side} / {PEER}: {word}", beside_peer(sides, side, name))
        for side in OURS
        for name, word in words.items()
    ]
    lines = []
    for side, runs in sides.items():
        wall, cpu, requests = (
            spread([run[name] for run in runs]) for name in ("down_wall", "down_cpu", "down_requests")
        )
        lines.append(
            (
                side,
                f"{wall.median:.3f}",
                f"{cpu.median:.3f}",
                f"{requests.median / TEARDOWN:.2f}",
                str(wall.rounds),
            )
        )
    return Row(
        name="teardown",
        title=f"The end of {TEARDOWN} leases at once",
        text=f"""
            From the moment that {TEARDOWN} blocks end until all instances are gone: ours stops, deletes
            and reads that they are gone; cortecs-py, on threads, stops and deletes, and reads nothing.

            Both take what the CPU of their requests takes, in one thread or under one lock of the
            interpreter, so it is the transport that decides. The reading is one list for all.
        """,
        ratios=ratios,
        tables=[Table(("side", "wall, s", "CPU, s", "requests a lease", "rounds"), lines)],
    )
