"""Measure a program with one lease, whose server is far away."""

from __future__ import annotations

import os
import sys

from _measure import Samples, quotients, run_command, spread
from _report import Row, Table, ratio
from _server import MODEL, Server

_ROUND_TRIP = 0.15
_POLL_INTERVAL = 1

# Seconds until an instance is running. It ends at different times between two of cortecs-py's polls.
_READY_AFTER = (2.0, 2.33, 2.67)
_ROUNDS = 3

_PROGRAMS = {
    "ours": f"""
import asyncio
from cortecs_async import AsyncCortecs

async def main():
    async with AsyncCortecs() as client, client.instance({MODEL!r}) as instance:
        assert instance.base_url

asyncio.run(main())
""",
    "cortecs-py": f"""
from cortecs_py import Cortecs

client = Cortecs()
instance = client.start({MODEL!r}, poll_interval={_POLL_INTERVAL})
assert instance.base_url
client.stop(instance.instance_id)
client.delete(instance.instance_id)
""",
}


def row() -> Row:
    """Measure fresh interpreters."""
    elapsed: Samples = {side: [] for side in _PROGRAMS}
    cpu: Samples = {side: [] for side in _PROGRAMS}
    requests = dict[str, int]()
    for ready_after in _READY_AFTER:
        with Server(ready_after, round_trip=_ROUND_TRIP) as server:
            env = {**os.environ, **server.env}
            # Does not count: it creates our state directory, which users have from earlier programs.
            run_command([sys.executable, "-P", "-c", _PROGRAMS["ours"]], env=env)
            for _ in range(_ROUNDS):
                for side, source in _PROGRAMS.items():
                    before = sum(server.counts().values())
                    times = run_command([sys.executable, "-P", "-c", source], env=env)
                    requests[side] = sum(server.counts().values()) - before
                    assert server.existing() == 0
                    elapsed[side].append(times[0])
                    cpu[side].append(times[1])
    lines = [
        (
            side,
            f"{spread(elapsed[side]).median:.2f}",
            f"{spread(cpu[side]).median:.2f}",
            str(requests[side]),
            str(len(elapsed[side])),
        )
        for side in _PROGRAMS
    ]
    label = f"ours / cortecs-py, polling every {_POLL_INTERVAL} s"
    return Row(
        name="link",
        title="One lease over a slow link",
        text=f"""
            A whole program over a link with a round trip of {1000 * _ROUND_TRIP:.0f} ms: import, create a
            client, start an instance, wait until it is running, which takes
            {_READY_AFTER[0]:g} to {_READY_AFTER[-1]:g} s, stop and delete it, and exit. A new connection
            costs a round trip. cortecs-py polls as fast as it can, every {_POLL_INTERVAL} s instead of every
            5 s, opens a connection per request, and does not confirm that the instance is deleted. Both sides
            run in the environment of the benchmarks.
        """,
        ratios=[
            ratio(f"elapsed time, {label}", quotients(elapsed, "ours", "cortecs-py"), 1.0),
            ratio(f"CPU with imports, {label}", quotients(cpu, "ours", "cortecs-py")),
        ],
        tables=[Table(("side", "elapsed, s", "CPU with imports, s", "requests", "rounds"), lines)],
    )
