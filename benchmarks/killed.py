"""A batch that is killed again and again: `python benchmarks/killed.py [--requests N] [--kills N]`.

Runs `cortecs-async batch` on the emulator, kills it with SIGKILL at random moments, waits until its instances
are gone, runs it again, and counts what the output has in the end. Takes some minutes with 100,000 requests,
and fails when a line is missing, there twice, or an instance is left.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _server import MODEL, Server, forget_surroundings

# Seconds that the reaper may take.
_PATIENCE = 30.0


def write_input(path: Path, count: int) -> None:
    """A file of so many chat completions."""
    with path.open("w") as file:
        for number in range(count):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 8}
            request = {
                "custom_id": f"request-{number}",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": MODEL, **body},
            }
            file.write(json.dumps(request) + "\n")


def start(server: Server, source: Path, target: Path, concurrency: str) -> subprocess.Popen[bytes]:
    """The command, as a person would start it."""
    command = (sys.executable, "-m", "cortecs_async", "batch", source, "-o", target, "--model", MODEL)
    return subprocess.Popen([*command, "--concurrency", concurrency], env={**os.environ, **server.env})


def wait_until_gone(server: Server) -> float:
    """Seconds until no instance is left."""
    began = time.monotonic()
    while server.existing():
        assert time.monotonic() - began < _PATIENCE, "an instance is left"
        time.sleep(0.05)
    return time.monotonic() - began


def main() -> None:
    """Kills and counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--concurrency", default="auto")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000)
    options = parser.parse_args()
    forget_surroundings()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Server(ready_after=1.0) as server:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_input(source, options.requests)
        began, gone = time.monotonic(), list[float]()
        for number in range(options.kills):
            # Anywhere: also before the first answer, and while it looks through the files.
            share = options.requests / (options.kills + 1) * (number + rng.random())
            moment = time.monotonic() + rng.uniform(0.2, 3.0)
            process = start(server, source, target, options.concurrency)
            while process.poll() is None and (lines(target) < share or time.monotonic() < moment):
                time.sleep(0.02)
            process.kill()
            process.wait()
            gone.append(wait_until_gone(server))
            print(f"killed with about {lines(target):,} lines; gone after {gone[-1]:.1f} s", flush=True)
        assert start(server, source, target, options.concurrency).wait() == 0
        wall = time.monotonic() - began
        # Of those that were waited for: not of the server, which remembers every request.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        wait_until_gone(server)
        found = collections.Counter(json.loads(line)["custom_id"] for line in target.open())
        sent = server.counts()["chat"]
    assert found == {f"request-{number}": 1 for number in range(options.requests)}
    print(
        f"{len(found):,} lines, one a request, after {options.kills} kills; {sent:,} requests were sent, "
        f"{wall:.0f} s in all, {len(found) / wall:,.0f} answers/s, {peak:.0f} MB at the most in one run, "
        f"instances gone after {max(gone, default=0):.1f} s at the latest, none left"
    )


def lines(path: Path) -> int:
    """About how many lines a file has: they are of one length."""
    if not path.exists() or not (size := path.stat().st_size):
        return 0
    with path.open("rb") as file:
        return size // len(file.readline())


if __name__ == "__main__":
    main()
