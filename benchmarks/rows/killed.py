"""Measure how soon the reaper acts when its program is killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from _measure import CHILD, memory_of
from _report import Row, ratio
from _server import Server

_ROUNDS = 11
_TIMEOUT = 30.0


def killed(server: Server) -> tuple[float, float]:
    """Return the seconds from SIGKILL to the first request of the reaper, and the reaper's memory in MB."""
    with subprocess.Popen(
        [sys.executable, CHILD, "hold"], env={**os.environ, **server.env}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        children = (
            Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        )
        memory = sum(memory_of(int(child)) for child in children) / 1024
        killed_at = time.monotonic()
        process.kill()
    while (first := server.first_request(killed_at)) is None or server.existing():
        assert time.monotonic() < killed_at + _TIMEOUT, "the reaper did not delete the instance"
        time.sleep(0.02)
    return first - killed_at, memory


def row() -> Row:
    """Measure the reaper of a program with one lease whose instance is running."""
    with Server() as server:
        # The first round does not count: in a new state directory, the reaper has no record of a rehearsal.
        seconds, memory = zip(*[killed(server) for _ in range(_ROUNDS + 1)][1:], strict=True)
    return Row(
        name="killed",
        title="A killed program",
        text="""
            A program that has one running instance is killed with SIGKILL. Its reaper, a child process, stops
            and deletes the instance. The elapsed time is that from the kill to the first request of the
            reaper, as the server saw it. The program sends no request at that time.
        """,
        ratios=[
            ratio("seconds from kill -9 to the reaper's first request", seconds, 0.3),
            ratio("resident memory of the reaper, MB", memory),
        ],
    )
