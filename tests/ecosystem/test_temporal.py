"""docs/orchestrators/temporal.md: its workflows on a real server, ended in every way."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import attrs
import pytest
from _jobs import BIN, Run, Workspace, open_workspace, until
from temporalio import exceptions
from temporalio.client import Client, WorkflowFailureError
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, TerminatedError

pytestmark = pytest.mark.sockets


@attrs.frozen
class Job:
    """A run of a workflow, from the user's side."""

    address: str
    run_id: str

    @classmethod
    def start(cls, address: str, workflow: str, argument: object, *, queue: str = "gpu") -> Job:
        job = cls(address, uuid.uuid4().hex)

        async def start(client: Client) -> None:
            await client.start_workflow(workflow, argument, id=job.run_id, task_queue=queue)

        job._ask(start)
        return job

    def cancel(self) -> None:
        self._ask(lambda client: client.get_workflow_handle(self.run_id).cancel())

    def terminate(self) -> None:
        self._ask(lambda client: client.get_workflow_handle(self.run_id).terminate())

    def result(self) -> Any:
        return self._ask(lambda client: client.get_workflow_handle(self.run_id).result())

    def failure(self) -> BaseException | None:
        """Return the cause of the failure."""
        with pytest.raises(WorkflowFailureError) as caught:
            self.result()
        cause: BaseException | None = caught.value.cause
        return cause

    def _ask(self, question: Callable[[Client], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            async with asyncio.timeout(60):
                return await question(await Client.connect(self.address))

        return asyncio.run(main())


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    with open_workspace("temporal", tmp_path_factory.mktemp("temporal")) as workspace:
        # The programs on the page, with shorter times.
        jobs = (workspace.folder / "jobs.py").read_text()
        assert jobs.count("4 * 3600") == jobs.count("hours=1") == 1
        jobs = jobs.replace("4 * 3600", "20").replace("hours=1", "seconds=15")
        (workspace.folder / "hasty_jobs.py").write_text(jobs)
        worker = (workspace.folder / "worker.py").read_text().replace('"gpu"', '"hasty"')
        (workspace.folder / "hasty_worker.py").write_text(
            worker.replace("import jobs", "import hasty_jobs as jobs")
        )
        yield workspace


@pytest.fixture(scope="module")
def address(workspace: Workspace) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workspace.env["TEMPORAL_ADDRESS"] = address = f"127.0.0.1:{port}"
    with workspace.run(BIN / "temporal", "server", "start-dev", "--headless", f"--port={port}"):

        def is_up() -> bool:
            try:
                asyncio.run(Client.connect(address))
            except RuntimeError:
                return False
            return True

        until(is_up, 60)
        yield address


@pytest.fixture
def worker(workspace: Workspace, address: str) -> Iterator[Run]:
    with workspace.run(sys.executable, "worker.py") as worker:
        yield worker


@pytest.fixture
def case(workspace: Workspace, worker: Run) -> Workspace:
    workspace.reset()
    return workspace


def test_success(case: Workspace, address: str) -> None:
    assert Job.start(address, "OneActivity", "Why?").result()
    case.assert_released(by="block")


def test_failure(case: Workspace, address: str) -> None:
    case.refuse_next_answer()
    failure = Job.start(address, "OneActivity", "Why?").failure()
    assert isinstance(failure, ActivityError)
    assert isinstance(failure.cause, ApplicationError)
    assert failure.cause.type == "BadRequestError"
    case.assert_released(by="block")


def test_cancelled(case: Workspace, address: str) -> None:
    case.delay_next_answer()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_block()
    job.cancel()
    assert isinstance(job.failure(), CancelledError | ActivityError)
    case.assert_released(by="block")


def test_timeout(case: Workspace, address: str) -> None:
    case.delay_next_answer()
    with case.run(sys.executable, "hasty_worker.py"):
        failure = Job.start(address, "OneActivity", "Why?", queue="hasty").failure()
        assert isinstance(failure, ActivityError)
        assert isinstance(failure.cause, exceptions.TimeoutError)
        case.assert_released(by="block")


def test_terminated(case: Workspace, address: str) -> None:
    """An activity that sends heartbeats receives the termination."""
    case.delay_next_answer()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_block()
    job.terminate()
    assert isinstance(job.failure(), TerminatedError)
    case.assert_released(by="block")


def test_the_worker_is_killed(case: Workspace, worker: Run, address: str) -> None:
    case.delay_next_answer()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_block()
    worker.send(signal.SIGKILL)
    case.assert_released(by="reaper")
    with case.run(sys.executable, "worker.py"):
        failure = job.failure()
    assert isinstance(failure, ActivityError)
    assert isinstance(failure.cause, exceptions.TimeoutError)


def test_the_worker_is_shut_down(case: Workspace, worker: Run, address: str) -> None:
    case.delay_next_answer()
    Job.start(address, "OneActivity", "Why?")
    case.wait_for_block()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 143
    case.assert_released(by="block")


def test_many_activities(case: Workspace, address: str) -> None:
    assert len(Job.start(address, "ManyActivities", ["Why?", "And then?"]).result()) == 2
    assert case.count("chat") == 2
    case.assert_released(by="release")


def test_many_activities_are_cancelled(case: Workspace, address: str) -> None:
    case.delay_next_answer()
    job = Job.start(address, "ManyActivities", ["Why?"])
    case.wait_for_block()
    job.cancel()
    assert isinstance(job.failure(), CancelledError | ActivityError)
    case.assert_released(by="release")


def test_many_activities_are_terminated(case: Workspace, address: str) -> None:
    """`release` does not run, so `max_lifetime` ends the instance."""
    case.delay_next_answer()
    with case.run(sys.executable, "hasty_worker.py"):
        job = Job.start(address, "ManyActivities", ["Why?"], queue="hasty")
        case.wait_for_block()
        job.terminate()
        assert isinstance(job.failure(), TerminatedError)
        assert len(case.emulator.existing) == 1
        case.assert_released(by="reaper", seconds=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_worker_releases(case: Workspace, worker: Run, address: str, number: signal.Signals) -> None:
    case.delay_next_answer()
    job = Job.start(address, "ManyActivities", ["Why?"])
    case.wait_for_block()
    worker.send(number)
    worker.wait()
    with case.run(sys.executable, "worker.py"):
        assert isinstance(job.failure(), ActivityError | CancelledError)
        case.assert_released(by="release")
