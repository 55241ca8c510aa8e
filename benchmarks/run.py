"""What the SDK costs beside its transport: `python benchmarks/run.py [--write]`.

Every figure is a ratio of two things measured in turn in one run: the median of the rounds and their spread.
CPU time, not wall time, wherever a process can be charged for it: the machine may be noisy.
"""

from __future__ import annotations

import argparse
import asyncio
import datetime as dt
import importlib.metadata
import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

import cortecs_async
from cortecs_async import AsyncCortecs
from cortecs_async._reaper import BOOTSTRAP
from cortecs_async._records import encode
from cortecs_async._wire import decode_instances

RESULTS = Path(__file__).parent / "results.md"

Row = tuple[str, str, list[float]]


def child_cpu(program: str) -> float:
    """CPU seconds of a fresh interpreter that runs `program`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def imports(rounds: int) -> Iterator[Row]:
    """Importing the client beside importing httpx."""
    ratios = []
    for _ in range(rounds):
        ours = child_cpu("from cortecs_async import AsyncCortecs")
        ratios.append(ours / child_cpu("import httpx"))
    yield "import", "`from cortecs_async import AsyncCortecs` / `import httpx`", ratios


@contextmanager
def emulator() -> Iterator[dict[str, str]]:
    """The emulator in a process of its own, so that its work is not charged to the client."""
    command = [sys.executable, "-m", "cortecs_async", "emulator", "--port", "0", "--step-seconds", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        found = [re.match(r"export (\w+)=(\S+)", process.stdout.readline()) for _ in range(4)]
        try:
            yield {match[1]: match[2] for match in found if match}
        finally:
            process.terminate()


async def cpu_of(work: Callable[[], Awaitable[object]], count: int) -> float:
    """CPU seconds of `count` calls one after the other."""
    start = time.process_time()
    for _ in range(count):
        await work()
    return time.process_time() - start


async def calls(rounds: int, count: int = 300) -> list[Row]:
    """`instances.get` beside the bare httpx request that it makes."""
    with emulator() as env:
        os.environ.update(env)
        async with AsyncCortecs() as client, httpx.AsyncClient() as bare:
            instance = await client.instances.start("meta-llama/Llama-3.1-8B-Instruct")
            url = f"{env['CORTECS_API_BASE_URL']}/instances/{instance.instance_id}"
            token = {
                "grant_type": "client_credentials",
                "client_id": env["CORTECS_CLIENT_ID"],
                "client_secret": env["CORTECS_CLIENT_SECRET"],
            }
            answer = await bare.post(f"{env['CORTECS_API_BASE_URL']}/oauth2/token", json=token)
            headers = {"Authorization": f"Bearer {answer.json()['access_token']}"}

            async def ours() -> None:
                await client.instances.get(instance.instance_id)

            async def theirs() -> None:
                json.loads((await bare.get(url, headers=headers)).content)

            ratios = [await cpu_of(ours, count) / await cpu_of(theirs, count) for _ in range(rounds + 1)]
    return [("a call", "`client.instances.get` / `httpx.AsyncClient.get` and `json.loads`, CPU", ratios[1:])]


def listed(count: int) -> bytes:
    """The list's answer with `count` instances in it."""
    instance = {
        "base_url": "https://abcd-123456.eu/v1",
        "instance_args": {
            "model_id": "meta-llama--Meta-Llama-3.1-8B-Instruct",
            "hardware_type_id": "NVIDIA_H100_1",
            "context_length": 8192,
            "billing_interval": "per_minute",
            "num_workers": 1,
        },
        "instance_status": {"started_at": "2024-08-07T08:53:13Z", "stopped_at": None, "status": "running"},
        "worker_statuses": [{"init_progress": {"current_step": 5, "num_steps": 5, "description": "Running"}}],
    }
    return json.dumps(
        {"instances": [{"instance_id": f"instance-{n}", **instance} for n in range(count)]}
    ).encode()


def decoding(rounds: int) -> Iterator[Row]:
    """Decoding a long list beside the vendor's pydantic models, where they are installed."""
    try:
        from cortecs_py.schemas import Instance  # noqa: PLC0415  (an oracle: it may be missing)
    except ImportError:
        return
    body = listed(10_000)
    ratios = []
    for _ in range(rounds + 1):
        start = time.process_time()
        decode_instances(json.loads(body))
        middle = time.process_time()
        [Instance(**each) for each in json.loads(body)["instances"]]
        ratios.append((middle - start) / (time.process_time() - middle))
    yield "decode", "a list of 10,000 instances / the same with cortecs-py's models, CPU", ratios[1:]


def reaper(rounds: int) -> Iterator[Row]:
    """The reaper until it serves, and what it holds then, beside the emptiest interpreter."""
    package = str(Path(cortecs_async.__file__).parent)
    command = [sys.executable, "-I", "-S", "-c", BOOTSTRAP, package]
    walls, memories = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(encode([{"kind": "HELLO", "path": sys.path, "number": 1}]))
            process.stdin.flush()
            assert json.loads(process.stdout.readline()) == {"ack": 1}
            ready = time.perf_counter() - start
            held = resident(process.pid)
        start = time.perf_counter()
        wait = "import sys; print(); sys.stdout.flush(); sys.stdin.read()"
        with subprocess.Popen(
            [sys.executable, "-c", wait], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            walls.append(ready / (time.perf_counter() - start))
            memories.append(held / resident(process.pid))
    yield "reaper, start", "from its start to its first answer / the same of `python -c pass`, wall", walls
    yield "reaper, memory", "resident memory / that of `python -c pass`", memories


def resident(pid: int) -> int:
    """Resident memory of a process in kB."""
    match = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1])


def table(rows: list[Row]) -> str:
    """The figures as Markdown."""
    lines = [
        "| what | ratio of | median | lowest | highest | rounds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, ratio, values in rows:
        median = statistics.median(values)
        lines.append(
            f"| {name} | {ratio} | {median:.2f} | {min(values):.2f} | {max(values):.2f} | {len(values)} |"
        )
    return "\n".join(lines)


def surroundings() -> str:
    """Where and with what it was measured."""
    packages = ("httpx", "anyio", "attrs", "cattrs", "cortecs-py", "pydantic")
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    today = dt.datetime.now(dt.UTC).date()
    return (
        f"Measured on {today}: Python {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} processors; {', '.join(versions)}."
    )


def main() -> None:
    """Measures, prints, and with `--write` keeps the result beside this file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--write", action="store_true", help=f"keep the result in {RESULTS.name}")
    options = parser.parse_args()
    rows = [
        *imports(options.rounds),
        *asyncio.run(calls(options.rounds)),
        *decoding(options.rounds),
        *reaper(options.rounds),
    ]
    report = "# Benchmarks\n\nMade by `python benchmarks/run.py --write`. "
    report += "Below 1.00 is cheaper than the other.\n\n"
    report += f"{table(rows)}\n\n{surroundings()}\n"
    print(report)
    if options.write:
        RESULTS.write_text(report)


if __name__ == "__main__":
    main()
