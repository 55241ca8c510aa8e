"""The reaper: how soon it serves, and what it holds."""

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
    """Seconds from its start to its first answer, and kB that it holds then."""
    command = [sys.executable, "-I", "-S", "-c", BOOTSTRAP, str(Path(cortecs_async.__file__).parent)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(encode([{"kind": "HELLO", "path": sys.path, "number": 1}]))
        process.stdin.flush()
        assert json.loads(process.stdout.readline()) == {"ack": 1}
        return time.perf_counter() - start, memory_of(process.pid)


def interpreter() -> tuple[float, int]:
    """The same of an interpreter that only says that it is there."""
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", _EMPTY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        return time.perf_counter() - start, memory_of(process.pid)


def row() -> Row:
    """The reaper beside the emptiest interpreter."""
    pairs = [(reaper(), interpreter()) for _ in range(_ROUNDS + 1)][1:]
    lines = []
    for name, found in zip(("reaper", "`python -c pass`"), zip(*pairs, strict=True), strict=True):
        walls, memories = (spread(each) for each in zip(*found, strict=True))
        lines.append(
            (name, f"{walls.median * 1000:.0f}", f"{memories.median / 1024:.1f}", str(_ROUNDS)),
        )
    return Row(
        name="reaper",
        title="The reaper",
        text="""
            The child process that hands instances back should its parent be killed, beside an interpreter
            that does nothing. Slower than that by what it imports of the standard library.
        """,
        ratios=[
            ratio("from its start to its first answer, wall", [a[0] / b[0] for a, b in pairs]),
            ratio("resident memory", [a[1] / b[1] for a, b in pairs]),
        ],
        tables=[Table(("process", "until it answers, ms", "resident, MB", "rounds"), lines)],
    )
