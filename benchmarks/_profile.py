"""Show which functions take the CPU time of a thousand leases."""

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
    """Print the functions of the package that take the most CPU time."""
    profiler = cProfile.Profile()
    with Server(ready_after=2.0) as server:
        os.environ.update(server.env)
        profiler.enable()
        asyncio.run(our_leases("httpx", _COUNT))
        profiler.disable()
        assert server.existing() == 0
    statistics = pstats.Stats(profiler)
    package = str(Path(cortecs_async.__file__).parent)
    functions = [
        (own, cumulative, calls, f"{Path(path).name}:{line} {name}")
        for (path, line, name), (_, calls, own, cumulative, _) in statistics.stats.items()
        if path.startswith(package)
    ]
    # Waiting takes no CPU time.
    waiting = sum(
        own for (_, _, name), (_, _, own, *_) in statistics.stats.items() if "'select.epoll'" in name
    )
    total = statistics.total_tt - waiting
    share = sum(own for own, *_ in functions) / total
    print(f"{_COUNT:,} leases, {total:.1f} s under the profiler, {share:.0%} of it in the package itself.")
    for index, title in enumerate(("own time", "time including calls")):
        print(f"\nBy {title}:\n\n    own, s  with calls, s    calls  function")
        for own, cumulative, calls, name in sorted(functions, key=lambda each: -each[index])[:_SHOWN]:
            print(f"{own:10.3f} {cumulative:14.3f} {calls:8d}  {name}")
