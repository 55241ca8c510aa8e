"""docs/orchestrators/taskiq.md: its tasks in real workers, ended in every way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from _jobs import BIN, Run, Workspace, open_workspace, until

from cortecs_async.emulator import Fault

pytestmark = pytest.mark.sockets

# The broker, which the page leaves to the reader. It uses files; other brokers need servers.
BROKER = """
import asyncio, json, uuid
from pathlib import Path
from taskiq import AsyncBroker, AsyncResultBackend

class Results(AsyncResultBackend):
    async def set_result(self, task_id, result):
        part = Path("part")
        part.write_text(json.dumps({"value": result.return_value, "error": repr(result.error)}))
        part.rename("result")

    async def get_result(self, task_id, with_logs=False):
        raise NotImplementedError

    async def is_result_ready(self, task_id):
        return Path("result").exists()

class FileBroker(AsyncBroker):
    async def kick(self, message):
        Path("part").write_bytes(message.message)
        Path("part").rename("message")

    async def listen(self):
        while True:
            while not Path("message").exists():
                await asyncio.sleep(0.02)
            taken = Path("message").rename("taken")
            yield taken.read_bytes()

broker = FileBroker().with_result_backend(Results())
"""

SEND = """
import asyncio, sys
from {module} import ask
asyncio.run(ask.kicker().with_labels(**{labels}).kiq("Why is the sky blue?"))
"""


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Workspace]:
    (tmp_path / "broker.py").write_text(BROKER)
    with open_workspace("taskiq", tmp_path) as workspace:
        yield workspace


def worker(case: Workspace, module: str, *options: str) -> AbstractContextManager[Run]:
    return case.run(BIN / "taskiq", "worker", f"{module}:broker", "--workers=1", *options)


def send(case: Workspace, module: str, **labels: float) -> None:
    with case.run(sys.executable, "-c", SEND.format(module=module, labels=labels)) as sender:
        assert sender.wait() == 0, sender.output


def result(case: Workspace) -> dict[str, Any]:
    path = case.folder / "result"
    until(path.exists)
    return dict(json.loads(path.read_text()))


def test_success(case: Workspace) -> None:
    with worker(case, "tasks"):
        send(case, "tasks")
        assert result(case)["value"]
        case.assert_released(by="block")


def test_failure(case: Workspace) -> None:
    case.refuse_next_answer()
    with worker(case, "tasks"):
        send(case, "tasks")
        assert "BadRequestError" in result(case)["error"]
        case.assert_released(by="block")


def test_timeout(case: Workspace) -> None:
    case.delay_next_answer()
    with worker(case, "tasks"):
        send(case, "tasks", timeout=8)
        assert result(case)["error"] == "TimeoutError()"
        case.assert_released(by="block")


def test_killed(case: Workspace) -> None:
    case.delay_next_answer()
    with worker(case, "tasks") as run:
        send(case, "tasks")
        case.wait_for_block()
        os.kill(run.lease_owner(), signal.SIGKILL)
        case.assert_released(by="reaper")


def test_shut_down_waits_for_a_task(case: Workspace) -> None:
    case.emulator.add_fault(Fault("delay", route="chat", seconds=3))
    with worker(case, "tasks") as run:
        send(case, "tasks")
        case.wait_for_block()
        run.send(signal.SIGTERM)
        assert result(case)["value"]
        case.assert_released(by="block")


def test_shut_down_that_does_not_wait(case: Workspace) -> None:
    case.delay_next_answer()
    with worker(case, "tasks", "--wait-tasks-timeout=1") as run:
        send(case, "tasks")
        case.wait_for_block()
        run.send(signal.SIGTERM)
        case.assert_released(by="reaper")


def test_shut_down_of_a_worker_with_an_instance(case: Workspace) -> None:
    with worker(case, "warm", "--shutdown-timeout=180") as run:
        send(case, "warm")
        assert result(case)["value"]
        assert len(case.emulator.billing) == 1
        run.send(signal.SIGTERM)
        case.assert_released(by="block")


def test_kill_of_a_worker_with_an_instance(case: Workspace) -> None:
    with worker(case, "warm", "--shutdown-timeout=180") as run:
        until(lambda: case.emulator.billing)
        holder = run.lease_owner()
        os.kill(run.process.pid, signal.SIGKILL)
        os.kill(holder, signal.SIGKILL)
        case.assert_released(by="reaper")
