"""docs/orchestrators/celery.md: its tasks in a real worker with a prefork pool, ended in every way."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import celery
import pytest
from _jobs import BIN, Run, Workspace, open_workspace
from celery.exceptions import SoftTimeLimitExceeded, TaskRevokedError, TimeLimitExceeded, WorkerLostError
from celery.result import AsyncResult

pytestmark = pytest.mark.sockets

WORKER = (BIN / "celery", "-A", "tasks", "worker", "--concurrency=2", "--without-gossip", "--without-mingle")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder = tmp_path_factory.mktemp("celery")
    with open_workspace("celery", folder) as workspace:
        # The worker reads what is sent here.
        (folder / "data_in").mkdir()
        (folder / "data_out").symlink_to("data_in")
        (folder / "results").mkdir()
        workspace.env |= {
            "CELERY_BROKER_URL": "filesystem://",
            "CELERY_RESULT_BACKEND": f"file://{folder}/results",
        }
        yield workspace


@pytest.fixture(scope="module")
def app(workspace: Workspace) -> celery.Celery:
    folders = {name: str(workspace.folder / "data_in") for name in ("data_folder_in", "data_folder_out")}
    app = celery.Celery("tests", broker="filesystem://", backend=workspace.env["CELERY_RESULT_BACKEND"])
    app.conf.broker_transport_options = {**folders, "control_folder": str(workspace.folder / "control")}
    return app


@pytest.fixture(scope="module")
def worker(workspace: Workspace) -> Iterator[Run]:
    with workspace.run(*WORKER) as worker:
        yield worker


@pytest.fixture
def case(workspace: Workspace) -> Workspace:
    workspace.reset()
    return workspace


def ask(app: celery.Celery, **options: Any) -> AsyncResult[Any]:
    return app.send_task("tasks.ask", args=["Why is the sky blue?"], **options)


def test_success(case: Workspace, app: celery.Celery, worker: Run) -> None:
    assert ask(app).get(timeout=60)
    case.assert_released(by="block")


def test_failure(case: Workspace, app: celery.Celery, worker: Run) -> None:
    case.refuse_next_answer()
    # Celery stores the nearest base class of the exception that it can.
    with pytest.raises(Exception, match="Emulated fault: status 400"):
        ask(app).get(timeout=60)
    case.assert_released(by="block")


def test_revoked(case: Workspace, app: celery.Celery, worker: Run) -> None:
    case.delay_next_answer()
    result = ask(app)
    case.wait_for_block()
    result.revoke(terminate=True)
    with pytest.raises(TaskRevokedError):
        result.get(timeout=60)
    case.assert_released(by="block")


def test_soft_time_limit(case: Workspace, app: celery.Celery, worker: Run) -> None:
    case.delay_next_answer()
    result = ask(app, soft_time_limit=8)
    with pytest.raises(SoftTimeLimitExceeded):
        result.get(timeout=60)
    case.assert_released(by="block")


def test_hard_time_limit(case: Workspace, app: celery.Celery, worker: Run) -> None:
    case.delay_next_answer()
    result = ask(app, time_limit=8)
    with pytest.raises(TimeLimitExceeded):
        result.get(timeout=60)
    case.assert_released(by="reaper")


def test_killed(case: Workspace, app: celery.Celery, worker: Run) -> None:
    case.delay_next_answer()
    result = ask(app)
    case.wait_for_block()
    os.kill(worker.lease_owner(), signal.SIGKILL)
    with pytest.raises(WorkerLostError):
        result.get(timeout=60)
    case.assert_released(by="reaper")


def test_cold_shutdown(case: Workspace, app: celery.Celery, worker: Run) -> None:
    """Last, because it ends the worker."""
    case.delay_next_answer()
    ask(app)
    case.wait_for_block()
    worker.send(signal.SIGQUIT)
    # The pool gets SIGTERM. The test does not depend on how long the worker stays.
    case.assert_released(by="either")
    worker.wait()
