"""Where the CPU of a thousand leases goes."""

from __future__ import annotations

import asyncio
import cProfile
import os
import pstats
from pathlib import Path

from _child import our_leases
from _server import Server

import cortecs_async

_COUNT = 1000
_SHOWN = 10


def profile() -> None:
    """Prints the costliest functions of the package on the clean path."""
    profiler = cProfile.Profile()
    with Server(ready_after=2.0) as server:
        os.environ.update(server.env)
        profiler.enable()
        asyncio.run(our_leases("httpx", _COUNT))
        profiler.disable()
        assert server.existing() == 0
    statistics = pstats.Stats(profiler)
    package = str(Path(cortecs_async.__file__).parent)
    found = [
        (own, cumulative, calls, f"{Path(path).name}:{line} {name}")
        for (path, line, name), (_, calls, own, cumulative, _) in statistics.stats.items()
        if path.startswith(package)
    ]
    # What it waits is no cost.
    waited = sum(
        own for (_, _, name), (_, _, own, *_) in statistics.stats.items() if "'select.epoll'" in name
    )
    total = statistics.total_tt - waited
    share = sum(own for own, *_ in found) / total
    print(f"{_COUNT:,} leases, {total:.1f} s under the profiler, {share:.0%} of it in our own lines.")
    for index, title in enumerate(("own time", "time with what it calls")):
        print(f"\nBy {title}:\n\n    own, s  with all, s    calls  function")
        for own, cumulative, calls, name in sorted(found, key=lambda each: -each[index])[:_SHOWN]:
            print(f"{own:10.3f} {cumulative:12.3f} {calls:8d}  {name}")
