"""Measure the memory of a waiting lease."""

from __future__ import annotations

from _measure import child
from _report import Row, ratio
from _server import Server

_COUNT = 1000
_TARGET = 25.0


def row() -> Row:
    """Measure leases that all wait for their instances."""
    ratios = []
    # Longer than the benchmark takes.
    with Server(ready_after=1e6) as server:
        for kind, description, rounds in (
            ("tracemalloc", "allocated (tracemalloc)", 1),
            ("rss", "resident", 3),
        ):
            kilobytes = [child("memory", kind, _COUNT, env=server.env)["bytes"] / 1000 for _ in range(rounds)]
            assert server.existing() == 0
            ratios.append(ratio(f"kB per waiting lease, {description}", kilobytes, _TARGET))
    return Row(
        name="memory",
        title="Memory of a waiting lease",
        text=f"""
            {_COUNT:,} leases that all wait for an instance that does not come up, compared with the same
            client after it released 150 leases. The difference is the task of each lease, the lease itself,
            its journal entry, and the latest state of its instance. 1 kB is 1,000 bytes, after a garbage
            collection.
        """,
        ratios=ratios,
    )
