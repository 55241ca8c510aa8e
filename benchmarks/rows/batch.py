"""Measure the answers per second of a batch, compared with code that only sends the requests."""

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

# The slow sides run fewer rounds, because each round takes as long as all those of the others.
_ROUNDS = 5
_SLOW_ROUNDS = 2

_LENGTHS = (10_000, 50_000)

# A batch reaches at least 90% of the rate of bare aiohttp.
_TARGET = 1 / 0.9


def rates(server: Server) -> dict[str, list[tuple[float, float]]]:
    """Return, by round, the answers per second and the CPU seconds per answer of each side."""
    samples: dict[str, list[tuple[float, float]]] = {side: [] for side in _SIDES}
    for number in range(_ROUNDS):
        sides = [side for side in _SIDES if number < _SLOW_ROUNDS or side not in _REQUESTS]
        first = number % len(sides)
        for side in sides[first:] + sides[:first]:
            count = _REQUESTS.get(side, _MANY)
            cpu = child("chat", side, count, _CONCURRENCY, env=server.env)["cpu"]
            num_requests, seconds = server.chat_span()
            assert num_requests == count, (side, num_requests)
            samples[side].append((count / (seconds + _ANSWER_SECONDS), cpu / count))
    return samples


def row() -> Row:
    """Measure batches on the emulator, and on a server that takes little CPU time."""
    ratios, lines = [], []
    for is_light, name in ((False, "emulator"), (True, "light server")):
        with Server(answer_seconds=_ANSWER_SECONDS, is_light=is_light) as server:
            by_side = rates(server)
            assert server.existing() == 0
        ours = by_side["batch"]
        targets = {} if is_light else {"bare aiohttp": _TARGET, "AsyncOpenAI, gather": 1.0}
        for side in _SIDES[1:]:
            quotients = [peer[0] / batch[0] for peer, batch in zip(by_side[side], ours, strict=False)]
            ratios.append(ratio(f"{side} / batch, {name}: answers per second", quotients, targets.get(side)))
        for side, samples in by_side.items():
            rate, cpu = (statistics.median(each) for each in zip(*samples, strict=True))
            lines.append((f"{name}, {side}", f"{rate:,.0f}", f"{cpu * 1e6:,.0f}", str(len(samples))))
    with Server() as server:
        memory = {count: child("chat", "batch", count, 64, env=server.env)["memory"] for count in _LENGTHS}
    few, many = _LENGTHS
    ratios.append(
        ratio(f"batch: peak memory with {many:,} lines / with {few:,}", [memory[many] / memory[few]])
    )
    return Row(
        name="batch",
        title="Answers of a batch",
        text=f"""
            {_CONCURRENCY} chat completions in parallel, against an endpoint that takes
            {1000 * _ANSWER_SECONDS:.0f} ms for each, so that at most
            {_CONCURRENCY / _ANSWER_SECONDS:,.0f} per second are possible. `batch` is `client.run_batch`,
            from a file to a file, with every answer on disk. `bare aiohttp` is a loop around `session.post`,
            from memory to memory. `AsyncOpenAI, gather` is one task per request, with a semaphore. The
            server counts the rate from the first request to the last answer, without the start and release
            of the instance.

            A batch lets each connection rest for 3 ms before it is used again, so that bytes that the
            endpoint sends without a request do not become the next answer. With answers that take
            {1000 * _ANSWER_SECONDS:.0f} ms, this costs a few percent of the rate at a fixed concurrency.

            At these rates the emulator uses its whole processor, which hides some of the cost of each side.
            The light server always gives the same answer, so that the client limits the rate. There is no
            target for it.

            The CPU time per answer includes imports, the lease and the reaper. A batch reads its input twice,
            and parses and writes its answers.

            Peak memory of a batch: {memory[few] / 1000:.0f} MB with {few:,} lines, and
            {memory[many] / 1000:.0f} MB with {many:,}.
        """,
        ratios=ratios,
        tables=[Table(("server, side", "answers per second", "CPU per answer, µs", "rounds"), lines)],
    )
