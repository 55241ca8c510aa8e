"""Kill a batch repeatedly, and check its output.

Runs `cortecs-async batch` on the emulator, kills it with SIGKILL at random moments, waits until its instances
are deleted, and runs it again. Fails if a line of the output is missing or duplicated, or if an instance
remains. With 100,000 requests, it takes some minutes.
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

from _server import MODEL, Server, clear_environment

# Seconds in which the reaper must have deleted the instances.
_REAPER_TIMEOUT = 30.0


def write_input(path: Path, count: int) -> None:
    """Write a batch's input with `count` chat completions."""
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
    """Start the command."""
    command = (sys.executable, "-m", "cortecs_async", "batch", source, "-o", target, "--model", MODEL)
    return subprocess.Popen([*command, "--concurrency", concurrency], env={**os.environ, **server.env})


def wait_until_deleted(server: Server) -> float:
    """Wait until no instance exists, and return the seconds that took."""
    began = time.monotonic()
    while server.existing():
        assert time.monotonic() - began < _REAPER_TIMEOUT, "an instance remains"
        time.sleep(0.05)
    return time.monotonic() - began


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000, help="number of requests")
    parser.add_argument("--kills", type=int, default=5, help="number of kills")
    parser.add_argument("--concurrency", default="auto", help="concurrency of the batch")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1000, help="seed of the random moments")
    options = parser.parse_args()
    clear_environment()
    rng = random.Random(options.seed)
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder, Server(ready_after=1.0) as server:
        source, target = Path(folder, "in.jsonl"), Path(folder, "out.jsonl")
        write_input(source, options.requests)
        began, cleanups = time.monotonic(), list[float]()
        for number in range(options.kills):
            # Some moments are before the first answer, or while the batch reads its files.
            threshold = options.requests / (options.kills + 1) * (number + rng.random())
            earliest = time.monotonic() + rng.uniform(0.2, 3.0)
            process = start(server, source, target, options.concurrency)
            while process.poll() is None and (num_lines(target) < threshold or time.monotonic() < earliest):
                time.sleep(0.02)
            process.kill()
            process.wait()
            cleanups.append(wait_until_deleted(server))
            done = f"killed after about {num_lines(target):,} lines"
            print(f"{done}; instances deleted after {cleanups[-1]:.1f} s", flush=True)
        assert start(server, source, target, options.concurrency).wait() == 0
        elapsed = time.monotonic() - began
        # Of ended children only, so not of the server, which keeps every request.
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        wait_until_deleted(server)
        ids = collections.Counter(json.loads(line)["custom_id"] for line in target.open())
        sent = server.counts()["chat"]
    assert ids == {f"request-{number}": 1 for number in range(options.requests)}
    print(
        f"{len(ids):,} lines, one per request, after {options.kills} kills; {sent:,} requests sent in "
        f"{elapsed:.0f} s, {len(ids) / elapsed:,.0f} answers/s, peak memory {peak:.0f} MB; instances deleted "
        f"at most {max(cleanups, default=0):.1f} s after a kill, none remains"
    )


def num_lines(path: Path) -> int:
    """Estimate the number of lines of a file, assuming that all have the same length."""
    if not path.exists() or not (size := path.stat().st_size):
        return 0
    with path.open("rb") as file:
        return size // len(file.readline())


if __name__ == "__main__":
    main()
