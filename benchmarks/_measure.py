"""Measure CPU time and memory: the sides of a comparison take turns in small batches."""

from __future__ import annotations

import atexit
import functools
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

import cortecs_async

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


def alternate_commands(
    commands: Mapping[str, Sequence[str | Path]], *, env: Mapping[str, str], rounds: int
) -> Samples:
    """Return the CPU seconds of commands, by round, after a round that does not count.

    Args:
        commands: The commands, by name.
        env: The environment variables.
        rounds: The number of rounds that count.
    """
    samples: Samples = {name: [] for name in commands}
    names = list(commands)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            cpu = run_command(commands[name], env=env)[1]
            if number:
                samples[name].append(cpu)
    return samples


def run_command(command: Sequence[str | Path], *, env: Mapping[str, str]) -> tuple[float, float]:
    """Run a command whose output goes to pipes, and return its elapsed time and its CPU time, in seconds."""
    cpu_before, began = children_cpu(), time.perf_counter()
    output_of(command, env=env)
    return time.perf_counter() - began, children_cpu() - cpu_before


def output_of(command: Sequence[str | Path], *, env: Mapping[str, str]) -> str:
    """Run a command and return its output.

    Raises:
        RuntimeError: if the command fails, with its output.
    """
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stderr[-3000:]}")
    return done.stdout


@functools.cache
def installed(extras: str = "") -> Path:
    """Install the package in a new environment, and return the folder of its programs.

    httpx imports click, rich and pygments for its command line if they are installed. That would make httpx
    look more expensive than it is, so an environment has nothing but the package and the given extras.
    """
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    programs = Path(folder.name) / "bin"
    output_of([sys.executable, "-m", "venv", folder.name], env=env_without_source())
    package = f"{source_tree()}{extras}"
    output_of([programs / "python", "-m", "pip", "install", package], env=env_without_source())
    return programs


def env_without_source() -> dict[str, str]:
    """Return the environment variables, without the one that makes Python import a source tree."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def source_tree() -> Path:
    """Return the source tree of the package; this one if the package is installed without its source."""
    tree = Path(cortecs_async.__file__).parents[1]
    return tree if (tree / "pyproject.toml").exists() else Path(__file__).parents[1]


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
    """Run a task of `_child.py` in a fresh process and return its result."""
    command = [sys.executable, str(CHILD), task, *map(str, arguments)]
    result: dict[str, Any] = json.loads(output_of(command, env={**os.environ, **env}).splitlines()[-1])
    return result
