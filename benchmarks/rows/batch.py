"""Batches: how many answers a second, beside what does nothing but ask."""

from __future__ import annotations

import statistics

from _measure import child
from _report import Row, Table, ratio
from _server import Server

_SIDES = ("batch", "bare aiohttp", "batch, httpx", "AsyncOpenAI, gather")
_CONCURRENCY = 256
_ANSWER_SECONDS = 0.05
_REQUESTS = {"AsyncOpenAI, gather": 2_000, "batch, httpx": 3_000}
_MANY = 6_000

# The slow ones less often: they take as long as all the others.
_ROUNDS = 9
_SLOW_ROUNDS = 3

_LENGTHS = (10_000, 50_000)

# At least 90 % of its rate.
_TARGET = 1 / 0.9


def rates(server: Server) -> dict[str, list[tuple[float, float]]]:
    """Answers a second and CPU seconds an answer of each side, by round."""
    found: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    for number in range(_ROUNDS):
        sides = [side for side in _SIDES if number < _SLOW_ROUNDS or side not in _REQUESTS]
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            count = _REQUESTS.get(side, _MANY)
            cpu = child("answers", side, count, _CONCURRENCY, env=server.env)["cpu"]
            seen, seconds = server.span()
            assert seen == count
            found[side].append((count / (seconds + _ANSWER_SECONDS), cpu / count))
    return found


def row() -> Row:
    """Answers a second, on the emulator and on a server that leaves the processor to the client."""
    ratios, lines = [], []
    for is_light, name in ((False, "emulator"), (True, "light server")):
        with Server(answer_seconds=_ANSWER_SECONDS, is_light=is_light) as server:
            found = rates(server)
            assert server.existing() == 0
        ours = found["batch"]
        targets = {} if is_light else {"bare aiohttp": _TARGET, "AsyncOpenAI, gather": 1.0}
        for side in _SIDES[1:]:
            each = [theirs[0] / mine[0] for theirs, mine in zip(found[side], ours, strict=False)]
            ratios.append(ratio(f"{side} / batch, {name}: answers a second", each, targets.get(side)))
        for side, samples in found.items():
            rate, cpu = (statistics.median(each) for each in zip(*samples, strict=True))
            lines.append((f"{name}, {side}", f"{rate:,.0f}", f"{cpu * 1e6:,.0f}", str(len(samples))))
    with Server() as server:
        memory = {count: child("answers", "batch", count, 64, env=server.env)["memory"] for count in _LENGTHS}
    few, many = _LENGTHS
    ratios.append(
        ratio(f"batch: peak memory with {many:,} lines / with {few:,}", [memory[many] / memory[few]])
    )
    return Row(
        name="batch",
        title="Answers of a batch",
        text=f"""
            Chat completions against an endpoint that takes {1000 * _ANSWER_SECONDS:.0f} ms for each, any
            number at once; {_CONCURRENCY} are. `batch` is `client.run_batch` from a file to a file, every
            answer on the disk; `bare aiohttp` is a loop around `session.post` from memory to memory;
            `AsyncOpenAI, gather` is a task a request and a semaphore. The rate is counted at the server,
            from the first request to the last answer, without start and release of the instance. More than
            {_CONCURRENCY / _ANSWER_SECONDS:,.0f} a second cannot be.

            At these rates the emulator takes a processor for itself, which hides some of what the sides cost.
            The light server says always the same, and leaves it to the client how fast it goes. Nothing was
            promised for that.

            CPU an answer is that of the client's process and of its reaper, imports and lease included. The
            batch reads its input twice, and its answers are parsed and written.

            Peak memory: {memory[few] / 1000:.0f} MB with {few:,} lines, and {memory[many] / 1000:.0f} MB with
            {many:,}.
        """,
        ratios=ratios,
        tables=[Table(("server, side", "answers a second", "CPU an answer, µs", "rounds"), lines)],
    )
