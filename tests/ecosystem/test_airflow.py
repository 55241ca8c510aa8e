"""docs/orchestrators/airflow.md: its DAGs in a real Airflow, with runs that end in every way."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import attrs
import httpx
import pytest
from _jobs import BIN, Run, Workspace, open_workspace, until

pytestmark = pytest.mark.sockets


@attrs.frozen
class Airflow:
    """The scheduler, the DAG processor and the API server, with their processes."""

    api: httpx.Client
    run: Run

    def start(self, dag: str) -> str:
        answer = self.api.post(f"/dags/{dag}/dagRuns", json={"logical_date": None}).raise_for_status()
        return f"/dags/{dag}/dagRuns/{answer.json()['dag_run_id']}"

    def tasks_of(self, run: str) -> dict[str, str]:
        found = self.api.get(f"{run}/taskInstances").raise_for_status().json()["task_instances"]
        return {each["task_id"]: each["state"] for each in found}

    def end_of(self, run: str) -> dict[str, str]:
        """Return the states of the tasks once the run has ended. Its instance may still exist."""
        until(lambda: self.api.get(run).raise_for_status().json()["state"] in {"success", "failed"}, 180)
        return self.tasks_of(run)

    def mark_failed(self, run: str, task: str) -> None:
        answer = self.api.patch(f"{run}/taskInstances/{task}", json={"new_state": "failed"})
        answer.raise_for_status()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_workspace("airflow", tmp_path_factory.mktemp("airflow")) as workspace:
        # The program on the page, with a shorter time.
        one = (workspace.folder / "one_task.py").read_text()
        assert one.count("hours=1") == 1
        hasty = one.replace("hours=1", "seconds=15").replace("one_task", "hasty_task")
        (workspace.folder / "hasty_task.py").write_text(hasty)
        yield workspace


@pytest.fixture(scope="module")
def airflow(workspace: Workspace) -> Iterator[Airflow]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    settings = {
        "HOME": str(workspace.folder / "airflow"),
        "CORE__LOAD_EXAMPLES": "False",
        "CORE__DAGS_FOLDER": str(workspace.folder),
        "CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
        "CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        "CORE__EXECUTION_API_SERVER_URL": f"{address}/execution/",
        "API__BASE_URL": address,
        "API__PORT": address.rpartition(":")[2],
        "API__WORKERS": "1",
    }
    prefixed = {"AIRFLOW_HOME" if name == "HOME" else f"AIRFLOW__{name}": settings[name] for name in settings}
    workspace.env |= prefixed
    with (
        workspace.run(BIN / "airflow", "standalone") as run,
        httpx.Client(base_url=f"{address}/api/v2", timeout=120, trust_env=False) as api,
    ):

        def is_up() -> bool:
            try:
                health = api.get("/monitor/health").raise_for_status().json()
                found = api.get("/dags").raise_for_status().json()["dags"]
            except httpx.HTTPError:
                return False
            return health["scheduler"]["status"] == "healthy" and len(found) == 3

        until(is_up, 200)
        yield Airflow(api, run)


@pytest.fixture
def case(workspace: Workspace, airflow: Airflow) -> Workspace:
    workspace.reset()
    return workspace


def test_success(case: Workspace, airflow: Airflow) -> None:
    assert airflow.end_of(airflow.start("one_task")) == {"ask": "success"}
    case.assert_released(by="block")


def test_failure(case: Workspace, airflow: Airflow) -> None:
    case.refuse_next_answer()
    assert airflow.end_of(airflow.start("one_task")) == {"ask": "failed"}
    case.assert_released(by="block")


def test_marked_as_failed(case: Workspace, airflow: Airflow) -> None:
    case.delay_next_answer()
    run = airflow.start("one_task")
    case.wait_for_block()
    airflow.mark_failed(run, "ask")
    assert airflow.end_of(run) == {"ask": "failed"}
    case.assert_released(by="block")


def test_many_tasks(case: Workspace, airflow: Airflow) -> None:
    states = airflow.end_of(airflow.start("many_tasks"))
    assert states == {"acquire_instance": "success", "ask": "success", "release_instance": "success"}
    assert case.count("chat") == 2
    case.assert_released(by="release")


def test_one_of_many_tasks_fails(case: Workspace, airflow: Airflow) -> None:
    case.refuse_next_answer()
    states = airflow.end_of(airflow.start("many_tasks"))
    assert (states["acquire_instance"], states["release_instance"]) == ("success", "success")
    case.assert_released(by="release")


def test_timeout(case: Workspace, airflow: Airflow) -> None:
    case.delay_next_answer()
    assert airflow.end_of(airflow.start("hasty_task")) == {"ask": "failed"}
    assert case.count("chat") == 1
    case.assert_released(by="block")


def test_killed(case: Workspace, airflow: Airflow) -> None:
    case.delay_next_answer()
    run = airflow.start("one_task")
    case.wait_for_block()
    os.kill(airflow.run.lease_owner(), signal.SIGKILL)
    assert airflow.end_of(run) == {"ask": "failed"}
    case.assert_released(by="reaper")
