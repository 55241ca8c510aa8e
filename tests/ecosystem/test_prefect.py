"""docs/orchestrators/prefect.md: its flow, served, with runs that end in every way."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from typing import Any

import attrs
import httpx
import pytest
from _jobs import BIN, Run, Workspace, open_workspace, until

pytestmark = pytest.mark.sockets


@attrs.frozen
class Deployment:
    """The flow, served by a runner, and the API of the server."""

    server: httpx.Client
    runner: Run
    deployment: str

    def start(self) -> str:
        parameters = {"prompts": ["Why is the sky blue?"]}
        # Schedule it as the user interface does.
        answer = self.server.post(
            f"/deployments/{self.deployment}/create_flow_run",
            json={"parameters": parameters, "state": {"type": "SCHEDULED"}},
        )
        return str(answer.raise_for_status().json()["id"])

    def cancel(self, run: str) -> None:
        answer = self.server.post(f"/flow_runs/{run}/set_state", json={"state": {"type": "CANCELLING"}})
        answer.raise_for_status()

    def end_of(self, run: str) -> dict[str, Any]:
        final: dict[str, Any] = {}

        def has_ended() -> bool:
            final.update(self.server.get(f"/flow_runs/{run}").raise_for_status().json()["state"])
            return final["type"] in {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}

        until(has_ended, 60)
        return final


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_workspace("prefect", tmp_path_factory.mktemp("prefect")) as workspace:
        workspace.env |= {
            "PREFECT_HOME": str(workspace.folder / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "DO_NOT_TRACK": "1",
            "PREFECT_RUNNER_POLL_FREQUENCY": "1",
        }
        yield workspace


@pytest.fixture(scope="module")
def server(workspace: Workspace) -> Iterator[httpx.Client]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workspace.env["PREFECT_API_URL"] = url = f"http://127.0.0.1:{port}/api"
    with (
        workspace.run(BIN / "prefect", "server", "start", "--no-ui", f"--port={port}"),
        httpx.Client(base_url=url, timeout=120, trust_env=False) as server,
    ):

        def is_up() -> bool:
            try:
                return server.get("/health").is_success
            except httpx.TransportError:
                return False

        until(is_up, 120)
        yield server


@pytest.fixture(scope="module")
def deployment(workspace: Workspace, server: httpx.Client) -> Iterator[Deployment]:
    with workspace.run(sys.executable, "flows.py") as runner:
        until(lambda: server.get("/deployments/name/answers/answers").is_success, 60)
        found = server.get("/deployments/name/answers/answers").json()["id"]
        yield Deployment(server, runner, found)


@pytest.fixture
def case(workspace: Workspace) -> Workspace:
    workspace.reset()
    return workspace


def test_success(case: Workspace, deployment: Deployment) -> None:
    assert deployment.end_of(deployment.start())["type"] == "COMPLETED"
    case.assert_released(by="block")


def test_failure(case: Workspace, deployment: Deployment) -> None:
    case.refuse_next_answer()
    ended = deployment.end_of(deployment.start())
    assert ended["type"] == "FAILED"
    assert "BadRequestError" in ended["message"]
    case.assert_released(by="block")


def test_cancelled(case: Workspace, deployment: Deployment) -> None:
    case.delay_next_answer()
    run = deployment.start()
    case.wait_for_block()
    deployment.cancel(run)
    assert deployment.end_of(run)["type"] == "CANCELLED"
    case.assert_released(by="block")


def test_killed(case: Workspace, deployment: Deployment) -> None:
    case.delay_next_answer()
    run = deployment.start()
    case.wait_for_block()
    os.kill(deployment.runner.lease_owner(), signal.SIGKILL)
    assert deployment.end_of(run)["type"] == "CRASHED"
    case.assert_released(by="reaper")


def test_the_runner_is_shut_down(case: Workspace, deployment: Deployment) -> None:
    case.delay_next_answer()
    run = deployment.start()
    case.wait_for_block()
    deployment.runner.send(signal.SIGTERM)
    assert deployment.end_of(run)["type"] == "CANCELLED"
    case.assert_released(by="block")


def test_timeout(case: Workspace, server: httpx.Client) -> None:
    case.delay_next_answer()
    short = "import asyncio, flows; asyncio.run(flows.answers.with_options(timeout_seconds=8)(['Why?']))"
    with case.run(sys.executable, "-c", short) as program:
        assert program.wait() == 1
        assert "FlowRunTimeoutError: Scope timed out after 8.0 second(s)." in program.output
    case.assert_released(by="block")
