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
from _jobs import BIN, Run, Stage, stage, until
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
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage("temporal", tmp_path_factory.mktemp("temporal")) as scene:
        # The programs on the page, with shorter times.
        jobs = (scene.folder / "jobs.py").read_text()
        assert jobs.count("4 * 3600") == jobs.count("hours=1") == 1
        jobs = jobs.replace("4 * 3600", "20").replace("hours=1", "seconds=15")
        (scene.folder / "hasty_jobs.py").write_text(jobs)
        worker = (scene.folder / "worker.py").read_text().replace('"gpu"', '"hasty"')
        (scene.folder / "hasty_worker.py").write_text(
            worker.replace("import jobs", "import hasty_jobs as jobs")
        )
        yield scene


@pytest.fixture(scope="module")
def address(scene: Stage) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    scene.env["TEMPORAL_ADDRESS"] = address = f"127.0.0.1:{port}"
    with scene.run(BIN / "temporal", "server", "start-dev", "--headless", f"--port={port}"):

        def is_up() -> bool:
            try:
                asyncio.run(Client.connect(address))
            except RuntimeError:
                return False
            return True

        until(is_up, 60)
        yield address


@pytest.fixture
def worker(scene: Stage, address: str) -> Iterator[Run]:
    with scene.run(sys.executable, "worker.py") as worker:
        yield worker


@pytest.fixture
def case(scene: Stage, worker: Run) -> Stage:
    scene.begin()
    return scene


def test_success(case: Stage, address: str) -> None:
    assert Job.start(address, "OneActivity", "Why?").result()
    case.assert_nothing_is_left(by="block")


def test_failure(case: Stage, address: str) -> None:
    case.refused_answers()
    failure = Job.start(address, "OneActivity", "Why?").failure()
    assert isinstance(failure, ActivityError)
    assert isinstance(failure.cause, ApplicationError)
    assert failure.cause.type == "BadRequestError"
    case.assert_nothing_is_left(by="block")


def test_cancelled(case: Stage, address: str) -> None:
    case.slow_answers()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_the_block()
    job.cancel()
    assert isinstance(job.failure(), CancelledError | ActivityError)
    case.assert_nothing_is_left(by="block")


def test_timeout(case: Stage, address: str) -> None:
    case.slow_answers()
    with case.run(sys.executable, "hasty_worker.py"):
        failure = Job.start(address, "OneActivity", "Why?", queue="hasty").failure()
        assert isinstance(failure, ActivityError)
        assert isinstance(failure.cause, exceptions.TimeoutError)
        case.assert_nothing_is_left(by="block")


def test_terminated(case: Stage, address: str) -> None:
    """An activity that sends heartbeats receives the termination."""
    case.slow_answers()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_the_block()
    job.terminate()
    assert isinstance(job.failure(), TerminatedError)
    case.assert_nothing_is_left(by="block")


def test_the_worker_is_killed(case: Stage, worker: Run, address: str) -> None:
    case.slow_answers()
    job = Job.start(address, "OneActivity", "Why?")
    case.wait_for_the_block()
    worker.send(signal.SIGKILL)
    case.assert_nothing_is_left(by="reaper")
    with case.run(sys.executable, "worker.py"):
        failure = job.failure()
    assert isinstance(failure, ActivityError)
    assert isinstance(failure.cause, exceptions.TimeoutError)


def test_the_worker_is_shut_down(case: Stage, worker: Run, address: str) -> None:
    case.slow_answers()
    Job.start(address, "OneActivity", "Why?")
    case.wait_for_the_block()
    worker.send(signal.SIGTERM)
    assert worker.wait() == 143
    case.assert_nothing_is_left(by="block")


def test_many_activities(case: Stage, address: str) -> None:
    assert len(Job.start(address, "ManyActivities", ["Why?", "And then?"]).result()) == 2
    assert case.count("chat") == 2
    case.assert_nothing_is_left(by="release")


def test_many_activities_are_cancelled(case: Stage, address: str) -> None:
    case.slow_answers()
    job = Job.start(address, "ManyActivities", ["Why?"])
    case.wait_for_the_block()
    job.cancel()
    assert isinstance(job.failure(), CancelledError | ActivityError)
    case.assert_nothing_is_left(by="release")


def test_many_activities_are_terminated(case: Stage, address: str) -> None:
    """`release` does not run, so `max_lifetime` ends the instance."""
    case.slow_answers()
    with case.run(sys.executable, "hasty_worker.py"):
        job = Job.start(address, "ManyActivities", ["Why?"], queue="hasty")
        case.wait_for_the_block()
        job.terminate()
        assert isinstance(job.failure(), TerminatedError)
        assert len(case.emulator.existing) == 1
        case.assert_nothing_is_left(by="reaper", seconds=60)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_next_worker_releases(case: Stage, worker: Run, address: str, number: signal.Signals) -> None:
    case.slow_answers()
    job = Job.start(address, "ManyActivities", ["Why?"])
    case.wait_for_the_block()
    worker.send(number)
    worker.wait()
    with case.run(sys.executable, "worker.py"):
        assert isinstance(job.failure(), ActivityError | CancelledError)
        case.assert_nothing_is_left(by="release")
