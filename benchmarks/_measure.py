"""Measure CPU time and memory: the sides of a comparison take turns in small batches."""

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
    """A median, its quartiles, and the number of rounds."""

    median: float
    low: float
    high: float
    rounds: int


def spread(values: Iterable[float]) -> Spread:
    """Return the median and the quartiles."""
    values = list(values)
    if len(values) == 1:
        return Spread(values[0], values[0], values[0], 1)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(middle, low, high, len(values))


def quotients(samples: Samples, name: str, base: str) -> list[float]:
    """Return, by round, what `name` took divided by what `base` took."""
    return [one / other for one, other in zip(samples[name], samples[base], strict=True)]


def freeze_memory() -> None:
    """Hide existing objects from the garbage collector, so that each side pays only for its own."""
    gc.collect()
    gc.freeze()


async def alternate(sides: Mapping[str, Work], *, rounds: int, batch: int, warm_up: int = 3) -> Samples:
    """Return the CPU seconds per call of each side, by round.

    The sides take turns in small batches: if the machine is slow for a moment, it is slow for all sides of a
    round. Each round starts with another side, so that no side always runs after the same one.

    Args:
        sides: An async function per side, by name.
        rounds: The number of rounds that count.
        batch: The number of calls of one side in a row.
        warm_up: The number of rounds before, which do not count.
    """
    samples: Samples = {name: [] for name in sides}
    names = list(sides)
    freeze_memory()
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
    """Return the CPU seconds of programs in fresh interpreters, by round, after a round that does not count.

    Args:
        programs: The sources, by name.
        python: The interpreter.
        env: The environment variables.
        rounds: The number of rounds that count.
    """
    samples: Samples = {name: [] for name in programs}
    names = list(programs)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            before = children_cpu()
            # -P and another directory, so that Python imports the installed package, not the working tree.
            subprocess.run([python, "-P", "-c", programs[name]], check=True, env=env, cwd=CHILD.parent)
            if number:
                samples[name].append(children_cpu() - before)
    return samples


def children_cpu() -> float:
    """Return the CPU seconds of all child processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def memory_of(pid: int | str = "self", field: str = "VmRSS") -> int:
    """Return the memory of a process in kB: resident (VmRSS) or its peak (VmHWM).

    Linux starts `ru_maxrss` at the memory of the parent, so it is not useful here.
    """
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    match = re.search(rf"{field}:\s+(\d+)", status)
    assert match is not None
    return int(match[1])


def child(task: str, *arguments: object, env: Mapping[str, str]) -> dict[str, Any]:
    """Run a task of `_child.py` in a fresh process and return its result.

    Raises:
        RuntimeError: if the task fails, with its output.
    """
    command = [sys.executable, str(CHILD), task, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{task} {arguments} failed:\n{done.stderr[-3000:]}")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
