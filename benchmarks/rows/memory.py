"""What a waiting lease holds."""

from __future__ import annotations

from _measure import child
from _report import Row, ratio
from _server import Server

_COUNT = 1000
_TARGET = 25.0


def row() -> Row:
    """Memory of leases that all wait for their instance."""
    ratios = []
    # Longer than anything here lasts.
    with Server(ready_after=1e6) as server:
        for kind, words, rounds in (("tracemalloc", "allocated (tracemalloc)", 1), ("rss", "resident", 3)):
            found = [child("memory", kind, _COUNT, env=server.env)["bytes"] for _ in range(rounds)]
            assert server.existing() == 0
            ratios.append(ratio(f"kB a waiting lease, {words}", [each / 1000 for each in found], _TARGET))
    return Row(
        name="memory",
        title="Memory of a waiting lease",
        text=f"""
            {_COUNT:,} leases that all wait for an instance that does not come up, beside the same client
            after 150 leases that are gone again: what is in it are the task of each, the lease, its
            journal entry, its watch and the newest reading. kB, 1 kB = 1,000 bytes, after a garbage
            collection.
        """,
        ratios=ratios,
    )
