"""docs/orchestrators/dagster.md: its jobs, launched and ended as the user interface does it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import attrs
import httpx
import pytest
from _jobs import BIN, Run, Workspace, open_workspace, until

pytestmark = pytest.mark.sockets

# Launch at once, without the daemon, which otherwise manages a queue.
SETTINGS = """
telemetry:
  enabled: false
run_coordinator:
  module: dagster._core.run_coordinator
  class: DefaultRunCoordinator
"""

LAUNCH = """
mutation($job: String!, $file: String!) {
  launchRun(executionParams: {
    selector: {jobName: $job, repositoryLocationName: $file, repositoryName: "__repository__"}
  }) { ... on LaunchRunSuccess { run { runId } } }
}
"""

STATUS = "query($run: ID!) { runOrError(runId: $run) { ... on Run { status } } }"

TERMINATE = "mutation($run: String!) { terminateRun(runId: $run) { __typename } }"


@attrs.frozen
class Dagster:
    """The server of the user interface."""

    http: httpx.Client
    run: Run

    def ask(self, query: str, **variables: str) -> Any:
        answer = self.http.post("/graphql", json={"query": query, "variables": variables})
        return answer.raise_for_status().json()["data"]

    def start(self, job: str) -> str:
        return str(self.ask(LAUNCH, job=job, file=f"{job}.py")["launchRun"]["run"]["runId"])

    def terminate(self, run: str) -> None:
        assert self.ask(TERMINATE, run=run)["terminateRun"]["__typename"] == "TerminateRunSuccess"

    def end_of(self, run: str) -> str:
        until(lambda: self._status(run) in {"SUCCESS", "FAILURE", "CANCELED"}, 180)
        return self._status(run)

    def _status(self, run: str) -> str:
        return str(self.ask(STATUS, run=run)["runOrError"]["status"])


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_workspace("dagster", tmp_path_factory.mktemp("dagster")) as workspace:
        yield workspace


@pytest.fixture(scope="module")
def dagster(workspace: Workspace) -> Iterator[Dagster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = workspace.folder / "dagster"
    home.mkdir()
    (home / "dagster.yaml").write_text(SETTINGS)
    workspace.env["DAGSTER_HOME"] = str(home)
    files = ("-f", "one_op.py", "-f", "many_ops.py")
    with (
        workspace.run(BIN / "dagster-webserver", *files, "-h", "127.0.0.1", "-p", str(port)) as run,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120, trust_env=False) as http,
    ):

        def is_up() -> bool:
            try:
                return http.get("/server_info").is_success
            except httpx.TransportError:
                return False

        until(is_up, 180)
        yield Dagster(http, run)


@pytest.fixture
def case(workspace: Workspace, dagster: Dagster) -> Workspace:
    workspace.reset()
    return workspace


@pytest.fixture(params=["one_op", "many_ops"])
def job(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_success(case: Workspace, dagster: Dagster, job: str) -> None:
    assert dagster.end_of(dagster.start(job)) == "SUCCESS"
    case.assert_released(by="block")


def test_failure(case: Workspace, dagster: Dagster, job: str) -> None:
    case.refuse_next_answer()
    assert dagster.end_of(dagster.start(job)) == "FAILURE"
    case.assert_released(by="block")


def test_terminated(case: Workspace, dagster: Dagster, job: str) -> None:
    case.delay_next_answer()
    run = dagster.start(job)
    case.wait_for_block()
    dagster.terminate(run)
    assert dagster.end_of(run) == "CANCELED"
    case.assert_released(by="block")


def test_killed(case: Workspace, dagster: Dagster, job: str) -> None:
    case.delay_next_answer()
    run = dagster.start(job)
    case.wait_for_block()
    os.kill(dagster.run.lease_owner(), signal.SIGKILL)
    assert dagster.end_of(run) == "FAILURE"
    case.assert_released(by="reaper")
