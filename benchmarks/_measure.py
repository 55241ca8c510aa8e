"""How things are measured: in turn, in small batches, by the CPU time that they take."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import attrs

CHILD = Path(__file__).parent / "_child.py"

Work = Callable[[], Awaitable[object]]
Samples = dict[str, list[float]]


@attrs.frozen
class Spread:
    """A median, the quartiles around it, and from how many rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Iterable[float]) -> Spread:
    """The median and the quartiles."""
    values = list(values)
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def quotients(samples: Samples, name: str, base: str) -> list[float]:
    """What `name` took beside what `base` took in the same round."""
    return [mine / other for mine, other in zip(samples[name], samples[base], strict=True)]


def settle_memory() -> None:
    """Hides what is there already from the garbage collector, so that each side pays for its own."""
    gc.collect()
    gc.freeze()


async def alternate(sides: Mapping[str, Work], *, rounds: int, batch: int, warm_up: int = 3) -> Samples:
    """CPU seconds a call of each side, by round.

    Small batches in turn, because a machine that is slow for a moment is then slow for all sides of a round;
    each round begins with another side, so that none has always the same neighbour before it.

    Args:
        sides: An async function each, by name.
        rounds: How many count.
        batch: Calls of one side in a row.
        warm_up: Rounds before, that do not count.
    """
    samples: Samples = {name: [] for name in sides}
    names = list(sides)
    settle_memory()
    for number in range(rounds + warm_up):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            work = sides[name]
            start = time.process_time()
            for _ in range(batch):
                await work()
            if number >= warm_up:
                samples[name].append((time.process_time() - start) / batch)
    return samples


def alternate_programs(
    programs: Mapping[str, str], *, python: str, env: Mapping[str, str], rounds: int
) -> Samples:
    """CPU seconds of fresh interpreters, by round; one round before does not count.

    Args:
        programs: What each runs, by name.
        python: The interpreter.
        env: Its environment.
        rounds: How many count.
    """
    samples: Samples = {name: [] for name in programs}
    names = list(programs)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            taken = children_cpu()
            # Not where this runs: the tree lies there, and what is installed is to be measured.
            subprocess.run([python, "-P", "-c", programs[name]], check=True, env=env, cwd=CHILD.parent)
            if number:
                samples[name].append(children_cpu() - taken)
    return samples


def children_cpu() -> float:
    """CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(pid: int | str = "self", what: str = "VmRSS") -> int:
    """Memory of a process in kB: resident now (VmRSS), or the most that it ever was (VmHWM).

    Not `ru_maxrss`: that begins with what the process had that it was forked from.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(rf"{what}:\s+(\d+)", status)
    assert match is not None
    return int(match[1])


def child(task: str, *arguments: object, env: Mapping[str, str]) -> dict[str, Any]:
    """What a task of `_child.py` finds in a fresh process.

    Raises:
        RuntimeError: when it fails, with what it said.
    """
    command = [sys.executable, str(CHILD), task, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} {arguments} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
