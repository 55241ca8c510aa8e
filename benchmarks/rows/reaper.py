"""Measure the start and the memory of the reaper."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from _measure import memory_of, spread
from _report import Row, Table, ratio

import cortecs_async
from cortecs_async._recovery.reaper import BOOTSTRAP
from cortecs_async._recovery.records import encode

_ROUNDS = 15
_EMPTY = "import sys; print(); sys.stdout.flush(); sys.stdin.read()"


def reaper() -> tuple[float, int]:
    """Return the seconds from the start of a reaper to its first response, and its memory in kB."""
    command = [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(Path(cortecs_async.__file__).parent)]
    began = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode([{"kind": "HELLO", "path": sys.path, "number": 1}]))
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"ack": 1}
        return time.perf_counter() - began, memory_of(process.pid)


def interpreter() -> tuple[float, int]:
    """Return the same for an interpreter that only prints a line."""
    began = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _EMPTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - began, memory_of(process.pid)


def rows() -> list[Row]:
    """Measure the reaper, compared with an interpreter that does nothing."""
    pairs = [(reaper(), interpreter()) for _ in range(_ROUNDS + 1)][1:]
    lines = []
    for name, samples in zip(("reaper", "`python -c pass`"), zip(*pairs, strict=True), strict=True):
        seconds, memories = (spread(each) for each in zip(*samples, strict=True))
        lines.append(
            (name, f"{seconds.median * 1000:.0f}", f"{memories.median / 1024:.1f}", str(_ROUNDS)),
        )
    row = Row(
        name="reaper",
        title="The reaper",
        text="""
            The child process that releases the instances if its parent is killed, compared with an
            interpreter that does nothing. It is more expensive because it imports modules of the standard
            library.
        """,
        ratios=[
            ratio("elapsed time from start to first response", [a[0] / b[0] for a, b in pairs]),
            ratio("resident memory", [a[1] / b[1] for a, b in pairs]),
        ],
        tables=[Table(("process", "first response after, ms", "resident memory, MB", "rounds"), lines)],
    )
    return [row]
