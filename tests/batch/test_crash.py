"""Test batches that are killed, on real sockets: instances are deleted, answers are kept."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pytest
from _command_line import environment
from _processes import until
from _world import MODEL

from cortecs_async.emulator import Emulator, serve_emulator

pytestmark = pytest.mark.sockets

REQUESTS = 200


def write(path: Path) -> None:
    with path.open("w") as file:
        for number in range(REQUESTS):
            body = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 3}
            request = {"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": body}
            file.write(json.dumps(request) + "\n")


def start(emulator: Emulator, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(
                sys.executable,
                "-m",
                "cortecs_async",
                "batch",
                folder / "in.jsonl",
                "-o",
                folder / "out.jsonl",
            ),
            *("--model", MODEL, "--concurrency", "8"),
        ],
        env={**os.environ, **environment(emulator, folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def has_lines(folder: Path, least: int) -> bool:
    return lines(folder) >= least


def lines(folder: Path) -> int:
    path = folder / "out.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize(
    "numbers", [(signal.SIGKILL, signal.SIGKILL), (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)]
)
async def test_a_batch_that_is_killed_repeatedly_completes(
    tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    write(tmp_path / "in.jsonl")
    async with serve_emulator(step_seconds=0.01, answer_seconds=0.05) as emulator:
        for number, least in zip(numbers, (1, 40, 70), strict=False):
            process = start(emulator, tmp_path)
            await until(partial(has_lines, tmp_path, least))
            process.send_signal(number)
            stdout, stderr = process.communicate(timeout=60)
            assert stdout == ""
            await until(lambda: not emulator.existing)
            assert lines(tmp_path) < REQUESTS
            if number is signal.SIGKILL:
                assert process.returncode == -signal.SIGKILL
            else:
                assert process.returncode == 128 + number
                # The first run may be killed before it counts an answer.
                assert least == 1 or "to continue   " in stderr
        process = start(emulator, tmp_path)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        assert re.search(rf"answered +{REQUESTS} of {REQUESTS}\n", stdout)
        assert emulator.existing == ()
        assert len(emulator.ledger) == len(numbers) + 1
        sent = sum(each.route == "chat" for each in emulator.requests)
    text = (tmp_path / "out.jsonl").read_text()
    found = Counter(json.loads(line)["custom_id"] for line in text.splitlines())
    assert found == {f"r{each}": 1 for each in range(REQUESTS)}
    # Only what was under way when it was killed was asked again. Each instance got one test request.
    assert sent <= REQUESTS + len(numbers) * 16 + len(numbers) + 1
