"""Test batches with real threads and sockets, on both transports: cancellation and failed attempts."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from _world import MODEL, client_of

from cortecs_async import AsyncCortecs, PollPolicy
from cortecs_async.emulator import Emulator, Fault, serve_emulator

pytestmark = [pytest.mark.sockets, pytest.mark.parametrize("anyio_backend", ["asyncio"])]

REQUESTS = 120

OFTEN = PollPolicy(min_interval=0.02)


def write(folder: Path) -> None:
    with (folder / "in.jsonl").open("w") as file:
        for number in range(REQUESTS):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 3}
            request = {"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")


def found(folder: Path) -> Counter[str]:
    path = folder / "out.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(json.loads(line)["custom_id"] for line in lines)


async def run(client: AsyncCortecs, emulator: Emulator, folder: Path, **options: Any) -> Any:
    options = {"concurrency": 8, "api_key": emulator.api_key, **options}
    return await client.run_batch(folder / "in.jsonl", folder / "out.jsonl", MODEL, **options)


@pytest.mark.parametrize(
    ("transport", "times"),
    [
        ("aiohttp", 1),
        pytest.param("aiohttp", 2, marks=pytest.mark.nightly),
        ("aiohttp", 3),
        ("httpx", 1),
        ("httpx", 2),
        pytest.param("httpx", 3, marks=pytest.mark.nightly),
    ],
)
async def test_repeated_cancellation_loses_nothing(tmp_path: Path, transport: str, times: int) -> None:
    write(tmp_path)
    async with (
        serve_emulator(step_seconds=0.01, answer_seconds=0.05) as emulator,
        client_of(emulator, poll_policy=OFTEN) as client,
    ):
        some = asyncio.Event()

        def note(progress: Any) -> None:
            if progress.done >= 8:
                some.set()

        task = asyncio.ensure_future(
            run(client, emulator, tmp_path, transport=transport, on_progress=note, ordered=True)
        )
        await some.wait()
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert emulator.existing == ()
        before = found(tmp_path)
        assert set(before.values()) == {1}
        assert 8 <= len(before) < REQUESTS
        report = await run(client, emulator, tmp_path, transport=transport, ordered=True)
        assert report.resumed == len(before)
        assert emulator.existing == ()
    text = (tmp_path / "out.jsonl").read_text()
    assert [json.loads(line)["custom_id"] for line in text.splitlines()] == [f"r{n}" for n in range(REQUESTS)]


@pytest.mark.parametrize("transport", ["aiohttp", "httpx"])
@pytest.mark.parametrize(
    "fault",
    [
        Fault("drop", route="chat", times=3, skip=1),
        Fault("drop", route="chat", when="after", times=3, skip=1),
        Fault("truncate", route="chat", times=3, skip=1),
        Fault("garbage", route="chat", times=3, skip=1),
        Fault("delay", route="chat", seconds=5.0, times=3, skip=1),
        Fault(
            "status", route="chat", status=307, headers={"location": "https://example.org/"}, times=3, skip=1
        ),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.when}",
)
async def test_failed_attempts_are_not_exceptions(tmp_path: Path, transport: str, fault: Fault) -> None:
    write(tmp_path)
    async with (
        serve_emulator(step_seconds=0.01) as emulator,
        client_of(emulator, poll_policy=OFTEN) as client,
    ):
        emulator.add_fault(fault)
        report = await run(client, emulator, tmp_path, transport=transport, request_timeout=0.5)
    assert (report.succeeded, report.failed) == (REQUESTS, 0)
    assert set(found(tmp_path).values()) == {1}
