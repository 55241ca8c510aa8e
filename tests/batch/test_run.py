"""Test whole batches with the emulator, on virtual time."""

from __future__ import annotations

import errno
import io
import json
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from _grids import BACKENDS, grid
from _world import HARDWARE, MODEL, World

from cortecs_async import AsyncCortecs, ConfigurationError, InvalidArgumentError, Progress
from cortecs_async._batch import attempts as _attempts
from cortecs_async._batch import outcome as _outcome
from cortecs_async._batch import request_queue as _request_queue
from cortecs_async._batch import writer as _writer
from cortecs_async._batch.output import Output
from cortecs_async._batch.report import AnswerCounter
from cortecs_async._batch.run import Batch
from cortecs_async._batch.sender import Reply
from cortecs_async._http.messages import Failure, FailureKind
from cortecs_async.emulator import Emulator, Fault
from cortecs_async.errors import (
    BatchFileError,
    BatchWriteError,
    EndpointError,
    InstanceLostError,
    LeaseExpiredError,
    ServiceUnavailableError,
)
from cortecs_async.types import BatchProgress, BatchReport, Ready

pytestmark = pytest.mark.usefixtures("batch_without_threads")


class Files:
    """An input and its output."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "in.jsonl"
        self.target = folder / "out.jsonl"

    def write(self, count: int, **body: Any) -> None:
        self.source.write_text("".join(self.line(number, **body) for number in range(count)))

    def line(self, number: int, url: str = "/v1/chat/completions", **body: Any) -> str:
        full = {"messages": [{"role": "user", "content": f"hello {number}"}], "max_tokens": 5, **body}
        request = {"custom_id": f"r{number}", "method": "POST", "url": url, "body": full}
        return json.dumps(request) + "\n"

    def answers(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.target.read_text().splitlines()]

    def ids(self) -> list[str]:
        return [each["custom_id"] for each in self.answers()]

    def check(self, count: int) -> None:
        """Check that every request has exactly one line."""
        assert Counter(self.ids()) == {f"r{number}": 1 for number in range(count)}


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


async def run(client: AsyncCortecs, files: Files, emulator: Emulator, **options: Any) -> BatchReport:
    options = {"concurrency": 8, **options}
    return await client.run_batch(
        files.source, files.target, MODEL, HARDWARE, api_key=emulator.api_key, **options
    )


def asked(emulator: Emulator, route: str = "chat") -> int:
    """Count the requests, without the one with which each instance proves that it is ready."""
    count = sum(each.route == route for each in emulator.requests)
    return count - len(emulator.ledger) if route == "chat" else count


async def test_every_request_gets_its_answer(world: World, files: Files) -> None:
    files.write(50)
    async with world(step_seconds=10) as (emulator, client):
        report = await run(client, files, emulator)
        assert emulator.existing == ()
        assert asked(emulator) == 50
    files.check(50)
    for each in files.answers():
        assert each["error"] is None
        assert each["response"]["status_code"] == 200
        number = each["custom_id"][1:]
        body = each["response"]["body"]
        assert body["object"] == "chat.completion"
        assert body["usage"]["completion_tokens"] == 5
        assert number
    assert (report.total, report.succeeded, report.failed, report.resumed) == (50, 50, 0, 0)
    assert report.completion_tokens == 250
    assert report.output == str(files.target)
    (receipt,) = report.receipts
    assert report.cost == receipt.cost is not None
    assert report.currency == "EUR"
    assert 40 <= report.seconds <= 42


async def test_all_three_urls_are_answered(world: World, files: Files) -> None:
    lines = [
        files.line(0),
        files.line(1, "/v1/completions", prompt="once", messages=None),
        json.dumps({"custom_id": "r2", "url": "/v1/embeddings", "body": {"input": "words"}}) + "\n",
    ]
    files.source.write_text("".join(lines))
    async with world() as (emulator, client):
        report = await run(client, files, emulator, ordered=True)
    assert report.failed == 0
    kinds = [each["response"]["body"]["object"] for each in files.answers()]
    assert kinds == ["chat.completion", "text_completion", "list"]


async def test_a_complete_output_starts_no_instance(world: World, files: Files) -> None:
    files.write(10)
    async with world() as (emulator, client):
        await run(client, files, emulator)
        before = files.target.read_bytes()
        report = await run(client, files, emulator)
        assert len(emulator.ledger) == 1
        assert asked(emulator) == 10
    assert files.target.read_bytes() == before
    assert (report.succeeded, report.resumed, report.receipts, report.cost) == (10, 10, (), 0)


async def test_an_empty_input_starts_no_instance(world: World, files: Files) -> None:
    files.source.write_text("\n\n")
    async with world() as (emulator, client):
        report = await run(client, files, emulator)
        assert emulator.ledger == ()
    assert report.total == 0
    assert files.target.read_bytes() == b""  # for whoever reads it next


async def test_a_run_resumes_where_the_last_one_stopped(world: World, files: Files) -> None:
    files.write(40)
    async with world(answer_seconds=1.0) as (emulator, client):
        with anyio.move_on_after(7.5):
            await run(client, files, emulator, concurrency=4)
        assert emulator.existing == ()
        done = files.ids()
        assert 8 <= len(done) <= 28
        emulator.clear_faults()
        before = asked(emulator)
        report = await run(client, files, emulator, concurrency=4)
        assert report.resumed == len(done)
        assert asked(emulator) - before == 40 - len(done)
    files.check(40)
    assert files.ids()[: len(done)] == done


@grid(count=[7, 8, 15], blank=["\n", "\r\n", "\n \n" * 20], anyio_backend=BACKENDS)
async def test_blank_lines_at_the_end_are_skipped(world: World, files: Files, count: int, blank: str) -> None:
    files.write(count)
    with files.source.open("a") as file:
        file.write(blank)
    async with world() as (emulator, client):
        report = await run(client, files, emulator)
    assert report.succeeded == count


@pytest.mark.parametrize("text", [False, True])
async def test_prompts_are_answered_and_continued(world: World, files: Files, *, text: bool) -> None:
    prompts = ["Why is the sky blue?", "", "空はなぜ青いのですか"]
    lines = [each if text or not each else json.dumps({"prompt": each}) for each in prompts]
    files.source.write_text("\n".join(lines) + "\n", encoding="utf-8")
    options: dict[str, Any] = {"text": text, "system": "Be brief.", "max_tokens": 4, "temperature": 0.5}
    async with world() as (emulator, client):
        report = await run(client, files, emulator, **options)
        assert (report.total, report.succeeded, report.completion_tokens) == (2, 2, 8)
        assert sorted(files.ids()) == ["line-1", "line-3"]
        # The same requests in another format.
        bodies = {
            number: {"max_tokens": 4.0, "messages": [{"content": each, "role": "user"}], "n": 1}
            for number, each in enumerate(prompts, 1)
            if each
        }
        files.source.write_text(
            "".join(json.dumps({"id": f"line-{n}", **body}) + "\n" for n, body in bodies.items())
        )
        again = await run(client, files, emulator, **{**options, "text": False})
        assert (again.resumed, len(emulator.ledger)) == (2, 1)
        with pytest.raises(BatchFileError, match="a different request"):
            await run(client, files, emulator, **{**options, "text": False, "system": None})


async def test_a_success_that_is_an_error_is_not_an_answer(
    world: World, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(2)
    reply = Reply(200, b'{"error":{"message":"overloaded"}}')
    with monkeypatch.context() as patch:
        patch.setattr(_attempts, "classify", lambda _, request: _outcome.classify(reply, request))
        async with world() as (emulator, client):
            report = await run(client, files, emulator, max_retries=0)
    assert (report.succeeded, report.failed) == (0, 2)
    assert {each["error"]["code"] for each in files.answers()} == {"error_in_answer"}
    async with world() as (emulator, client):
        report = await run(client, files, emulator, retry_failed=True)
    assert (report.succeeded, report.failed) == (2, 0)


@pytest.mark.parametrize(
    "option",
    [
        {"system": ""},
        {"system": 3},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": True},
        {"temperature": -0.1},
        {"temperature": float("inf")},
        {"temperature": float("nan")},
        {"temperature": "1"},
        {"temperature": True},
    ],
)
async def test_invalid_defaults_are_an_error(world: World, files: Files, option: dict[str, Any]) -> None:
    files.write(1)
    async with world() as (emulator, client):
        with pytest.raises(InvalidArgumentError, match=f"{next(iter(option))} must be"):
            await run(client, files, emulator, **option)
        assert emulator.requests == ()


async def test_absurd_token_counts_count_as_zero(
    world: World, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.write(3)
    body = (
        b'{"choices":[{"message":{"content":""}}],"usage":{"prompt_tokens":1'
        + b"0" * 400
        + b',"completion_tokens":-3}}'
    )
    reply = Reply(200, body)
    monkeypatch.setattr(_attempts, "classify", lambda _, request: _outcome.classify(reply, request))
    async with world() as (emulator, client):
        report = await run(client, files, emulator, concurrency="auto")
    assert (report.succeeded, report.prompt_tokens, report.completion_tokens) == (3, 0, 0)


async def test_the_request_of_an_incomplete_line_is_sent_again(world: World, files: Files) -> None:
    files.write(10)
    async with world() as (emulator, client):
        await run(client, files, emulator)
        files.target.write_bytes(files.target.read_bytes()[:-20])
        report = await run(client, files, emulator)
        assert report.resumed == 9
        assert asked(emulator) == 11
    files.check(10)


async def test_the_output_can_be_sorted_like_the_input(
    world: World, files: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    files.source.write_text("".join(files.line(n) + "\n" * (n % 3) for n in range(30)))
    async with world(answer_seconds=1.0) as (emulator, client):
        emulator.add_fault(Fault("delay", route="chat", seconds=30.0, times=3, skip=2))
        with anyio.move_on_after(6.5):
            await run(client, files, emulator, concurrency=3)
        report = await run(client, files, emulator, concurrency=3, ordered=True)
        assert report.resumed > 0
    assert files.ids() == [f"r{n}" for n in range(30)]


class TestFailures:
    async def test_a_rejected_request_becomes_an_error_line(self, world: World, files: Files) -> None:
        files.source.write_text(files.line(0) + files.line(1, max_tokens=-5) + files.line(2))
        async with world() as (emulator, client):
            report = await run(client, files, emulator, ordered=True)
            assert asked(emulator) == 3
        assert (report.succeeded, report.failed) == (2, 1)
        files.check(3)
        bad = files.answers()[1]
        assert bad["response"]["status_code"] == 400
        assert bad["response"]["body"]["error"]["message"]

    @grid(
        strength=1,
        fault=[
            Fault("status", route="chat", status=500, times=4, skip=1),
            Fault("status", route="chat", status=429, times=40, skip=1),
            Fault("status", route="chat", status=503, times=12, skip=1),
            Fault("drop", route="chat", times=4, skip=1),
            Fault("drop", route="chat", when="after", times=4, skip=1),
            Fault("truncate", route="chat", times=4, skip=1),
            Fault("garbage", route="chat", times=4, skip=1),
            Fault("delay", route="chat", seconds=700.0, times=4, skip=1),
        ],
        anyio_backend=BACKENDS,
    )
    async def test_temporary_failures_are_retried(self, world: World, files: Files, fault: Fault) -> None:
        files.write(20)
        async with world() as (emulator, client):
            emulator.add_fault(fault)
            report = await run(client, files, emulator)
        assert (report.succeeded, report.failed) == (20, 0)
        files.check(20)

    async def test_only_the_request_that_stops_the_server_fails(self, world: World, files: Files) -> None:
        files.write(100)
        with files.source.open("a") as file:
            file.write(files.line(100, messages=[{"role": "user", "content": "POISON"}]))
            file.writelines(files.line(number) for number in range(101, 200))
        async with world(answer_seconds=1.0) as (emulator, client):
            emulator.add_fault(Fault("crash", text="POISON", seconds=20.0, times=None))
            report = await run(client, files, emulator, concurrency=32, ordered=True)
            crashes = sum(each.fault == "crash" for each in emulator.requests)
        assert (report.succeeded, report.failed) == (199, 1)
        files.check(200)
        bad = files.answers()[100]
        assert bad["error"]["code"] == "endpoint_failed"
        assert bad["error"]["message"].startswith("the server stopped each time it received this request: ")
        assert crashes <= 2 + 2 + 2

    @pytest.mark.parametrize(
        ("outcome", "code"),
        [
            (Failure(kind=FailureKind.LOST, detail="cut"), "lost"),
            (Reply(200, b"<html>"), "unreadable"),
            (Failure(kind=FailureKind.TIMED_OUT, detail="no answer"), "timed_out"),
        ],
        ids=lambda each: each if isinstance(each, str) else "",
    )
    async def test_retries_have_a_limit(
        self, world: World, files: Files, outcome: Any, code: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(3)
        async with world() as (emulator, client):
            with monkeypatch.context() as patched:
                # The small requests that ask whether the endpoint is there have no name.
                patched.setattr(
                    _attempts,
                    "classify",
                    lambda seen, request: _outcome.classify(outcome if request.custom_id else seen, request),
                )
                report = await run(client, files, emulator, max_retries=2)
            assert report.failed == 3
            assert report.seconds < 30
            assert {each["error"]["code"] for each in files.answers()} == {code}
            assert (await run(client, files, emulator)).resumed == 3
            report = await run(client, files, emulator, retry_failed=True)
            assert (report.succeeded, report.resumed) == (3, 0)
        files.check(3)

    @grid(
        strength=1,
        fault=[
            Fault("drop", route="chat", when="after", skip=1, times=None),
            Fault("garbage", route="chat", skip=1, times=None),
            Fault("delay", route="chat", seconds=100.0, skip=1, times=None),
            Fault("status", route="chat", status=429, skip=1, times=None),
        ],
        anyio_backend=BACKENDS,
    )
    async def test_an_outage_is_not_blamed_on_few_requests(
        self, world: World, files: Files, fault: Fault
    ) -> None:
        files.write(3)
        async with world() as (emulator, client):
            emulator.add_fault(fault)
            with pytest.raises(EndpointError):
                await run(client, files, emulator, request_timeout=5.0)
            assert emulator.existing == ()
            emulator.clear_faults()
            assert (await run(client, files, emulator)).succeeded == 3
        files.check(3)

    async def test_retry_after_is_honored(self, world: World, files: Files) -> None:
        files.write(1)
        async with world(step_seconds=0) as (emulator, client):
            fault = Fault("status", route="chat", status=429, headers={"retry-after": "20"}, skip=1)
            emulator.add_fault(fault)
            report = await run(client, files, emulator)
        assert 20 <= report.seconds <= 22

    @grid(
        case=[
            ("answer", ConfigurationError, "rejected the inference API key from api_key=", 1),
            ("status", EndpointError, "rejects the API key from api_key=", 20),
        ],
        anyio_backend=BACKENDS,
    )
    async def test_a_rejected_key_ends_the_run_quickly(
        self, world: World, files: Files, case: tuple[Ready, type[Exception], str, int]
    ) -> None:
        ready, error, text, most = case
        files.write(1000)
        async with world() as (emulator, client):
            with pytest.raises(error, match=text) as caught:
                await client.run_batch(
                    *(files.source, files.target, MODEL, HARDWARE),
                    api_key="sk-wrong",
                    concurrency=4,
                    ready=ready,
                )
            assert emulator.existing == ()
            assert sum(each.route == "chat" for each in emulator.requests) <= most
        assert "sk-wrong" not in repr(caught.value)
        assert not files.target.exists()

    @grid(strength=1, status=[302, 401, 403, 404, 405, 502], anyio_backend=BACKENDS)
    async def test_an_outage_fails_no_request(self, world: World, files: Files, status: int) -> None:
        """A server that restarts, or a proxy without its server, fails every request for a while."""
        files.write(100)
        async with world(answer_seconds=0.1) as (emulator, client):
            fault = Fault("status", route="chat", status=status, skip=41, times=20)
            emulator.add_fault(fault)
            report = await run(client, files, emulator)
            # Small ones are tried, and not the rest of the file.
            assert 120 < asked(emulator) < 125
        assert (report.succeeded, report.failed) == (100, 0)

    @grid(strength=1, status=[404, 503], anyio_backend=BACKENDS)
    async def test_a_run_waits_for_an_endpoint_that_is_not_ready(
        self, world: World, files: Files, status: int
    ) -> None:
        files.write(200)
        async with world(answer_seconds=0.1, step_seconds=0) as (emulator, client):
            emulator.add_fault(Fault("status", route="chat", status=status, times=40, skip=1))
            report = await run(client, files, emulator, concurrency="auto")
        assert (report.succeeded, report.failed) == (200, 0)
        assert report.seconds < 60

    async def test_a_request_that_fails_while_others_are_answered_is_to_blame(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(100)

        def classify(outcome: Any, request: Any) -> Any:
            if request.custom_id in {"r7", "r50"}:
                outcome = Reply(502, b"<html>")
            return _outcome.classify(outcome, request)

        monkeypatch.setattr(_attempts, "classify", classify)
        async with world(answer_seconds=1.0) as (emulator, client):
            report = await run(client, files, emulator, max_retries=1)
            assert (report.succeeded, report.failed) == (98, 2)
            assert report.seconds < 60
        bad = {
            each["custom_id"]: each["response"]
            for each in files.answers()
            if each["custom_id"] in {"r7", "r50"}
        }
        assert {each["status_code"] for each in bad.values()} == {502}
        assert bad["r7"]["body"]["error"]["message"] == "<html>"

    async def test_slow_answers_are_not_an_outage(self, world: World, files: Files) -> None:
        files.write(8)
        async with world(answer_seconds=250.0, parallel=4, queue=0) as (emulator, client):
            report = await run(client, files, emulator, concurrency=8)
        assert (report.succeeded, report.failed) == (8, 0)

    async def test_the_number_of_requests_that_wait_for_a_retry_is_bounded(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_request_queue, "_MAX_RETRIES", 20)
        files.write(500)
        async with world() as (emulator, client):
            emulator.add_fault(Fault("status", route="chat", status=429, skip=2, times=None))
            with anyio.move_on_after(20):
                await run(client, files, emulator, concurrency=8)
            # Six attempts of each of those that wait or are under way, instead of one of everything.
            assert 30 < asked(emulator) < 250

    async def test_an_endpoint_that_does_not_answer_ends_the_run(self, world: World, files: Files) -> None:
        files.write(100)
        async with world() as (emulator, client):
            emulator.add_fault(Fault("status", route="chat", status=503, skip=11, times=None))
            with pytest.raises(EndpointError, match=r"does not respond \(for"):
                await run(client, files, emulator)
            assert emulator.existing == ()
            emulator.clear_faults()
            assert len(files.ids()) == 10
            await run(client, files, emulator)
        files.check(100)

    async def test_a_key_that_the_endpoint_repeats_is_redacted(self, world: World, files: Files) -> None:
        files.write(1)
        async with world() as (emulator, client):
            emulator.add_fault(
                Fault(
                    "status",
                    route="chat",
                    status=400,
                    skip=1,
                    body={"error": {"message": f"bad key {emulator.api_key}!"}},
                )
            )
            await run(client, files, emulator)
            assert emulator.api_key not in files.target.read_text()
        assert "bad key ***!" in files.target.read_text()


class TestInstances:
    async def test_instances_share_the_work(self, world: World, files: Files) -> None:
        files.write(60)
        async with world(answer_seconds=1.0) as (emulator, client):
            report = await run(client, files, emulator, instances=3, concurrency=2)
            used = Counter(each.path.split("/")[2] for each in emulator.requests if each.route == "chat")
            assert len(used) == 3
            assert min(used.values()) >= 15
            assert emulator.existing == ()
        assert len(report.receipts) == 3
        files.check(60)

    @grid(strength=1, how=["stop_instance", "delete_instance"], anyio_backend=BACKENDS)
    async def test_the_work_of_a_lost_instance_is_done_by_the_others(
        self, world: World, files: Files, how: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        files.write(80)
        # Long enough that the loss is noticed before the work is done.
        async with world(answer_seconds=4.0) as (emulator, client):
            lost = False

            def lose_one(progress: BatchProgress) -> None:
                nonlocal lost
                if progress.done >= 10 and not lost:
                    lost = True
                    getattr(emulator, how)(emulator.billing[0])

            report = await run(client, files, emulator, instances=2, concurrency=4, on_progress=lose_one)
            assert lost
            assert emulator.existing == ()
        assert (report.succeeded, report.failed) == (80, 0)
        assert len(report.incidents) == 1
        assert "instance-" in report.incidents[0]
        files.check(80)

    @grid(strength=1, how=["stop_instance", "delete_instance"], anyio_backend=BACKENDS)
    async def test_losing_the_last_instance_ends_the_run_without_error_lines(
        self, world: World, files: Files, how: str
    ) -> None:
        files.write(40)
        async with world(answer_seconds=1.0) as (emulator, client):

            def lose(progress: BatchProgress) -> None:
                if progress.done >= 10 and emulator.billing:
                    getattr(emulator, how)(emulator.billing[0])

            with pytest.raises(InstanceLostError):
                await run(client, files, emulator, concurrency=4, on_progress=lose)
            assert emulator.existing == ()
            assert all(each["response"]["status_code"] == 200 for each in files.answers())
            report = await run(client, files, emulator, concurrency=4)
            assert report.resumed >= 10
        files.check(40)

    async def test_the_others_do_the_work_of_an_instance_that_cannot_start(
        self, world: World, files: Files, caplog: pytest.LogCaptureFixture
    ) -> None:
        files.write(20)
        async with world(capacity={HARDWARE: 1}, max_retries=0, answer_seconds=30.0) as (emulator, client):
            report = await run(client, files, emulator, instances=2)
            assert emulator.existing == ()
        assert report.succeeded == 20
        assert len(report.incidents) == 1

    async def test_no_instance_that_can_start_is_an_error(self, world: World, files: Files) -> None:
        files.write(2)
        async with world(capacity={HARDWARE: 0}, max_retries=0) as (emulator, client):
            with pytest.raises(ServiceUnavailableError):
                await run(client, files, emulator, instances=2)
            assert emulator.existing == ()
        assert not files.target.exists()

    async def test_there_are_not_more_instances_than_requests(self, world: World, files: Files) -> None:
        files.write(2)
        async with world() as (emulator, client):
            plan = await client.plan_batch(files.source, files.target, MODEL, HARDWARE, instances=5)
            assert plan.instances == 2
            report = await run(client, files, emulator, instances=5)
            assert len(emulator.ledger) == 2
        assert report.succeeded == 2

    async def test_a_finished_run_does_not_wait_for_a_starting_instance(
        self, world: World, files: Files
    ) -> None:
        files.write(5)
        async with world(step_seconds=10) as (emulator, client):
            emulator.add_fault(Fault("delay", route="start", seconds=100.0, when="before"))
            report = await run(client, files, emulator, instances=2)
            assert emulator.existing == ()
        assert report.succeeded == 5
        assert report.seconds < 110

    async def test_a_failed_release_of_a_starting_instance_is_an_incident(
        self, world: World, files: Files
    ) -> None:
        files.write(5)
        async with world(step_seconds=10, answer_seconds=3.0) as (emulator, client):
            emulator.add_fault(Fault("delay", route="start", seconds=100.0, when="after"))
            emulator.add_fault(Fault("status", route="delete", status=500, times=None, skip=1))
            emulator.add_fault(Fault("status", route="stop", status=500, times=None, skip=1))
            report = await run(client, files, emulator, instances=2, teardown_timeout=30.0)
            (left,) = emulator.existing
        assert report.succeeded == 5
        assert any(left in each for each in report.incidents), report.incidents

    async def test_a_finished_run_does_not_wait_for_retry_after(self, world: World, files: Files) -> None:
        files.write(40)
        async with world(answer_seconds=5.0) as (emulator, client):
            fault = Fault("status", route="chat", status=429, headers={"Retry-After": "250"}, skip=1)
            emulator.add_fault(fault)
            report = await run(client, files, emulator, instances=2, concurrency=4)
            assert emulator.existing == ()
        assert report.succeeded == 40
        assert report.seconds < 100

    async def test_max_cost_is_divided_among_the_instances(self, world: World, files: Files) -> None:
        files.write(2000)
        async with world(answer_seconds=5.0) as (emulator, client):
            price = await client.plan_batch(files.source, files.target, MODEL, HARDWARE)
            assert price.price_per_minute is not None
            with pytest.raises(LeaseExpiredError):
                await run(
                    client,
                    files,
                    emulator,
                    instances=2,
                    max_cost=6.2 * price.price_per_minute,
                    concurrency=2,
                )
            assert emulator.existing == ()
            assert emulator.total_cost <= 6.2 * price.price_per_minute
            assert emulator.total_cost >= 4 * price.price_per_minute
        done = len(files.ids())
        assert 0 < done < 2000


class TestBadInput:
    async def refused(
        self, world: World, files: Files, error: type[Exception], said: str, **options: Any
    ) -> None:
        async with world() as (emulator, client):
            with pytest.raises(error, match=said):
                await run(client, files, emulator, **options)
            assert emulator.requests == ()
        assert not files.target.exists()

    @pytest.mark.parametrize(
        ("text", "said"),
        [
            ("{\n", "line 4: not valid JSON"),
            (json.dumps({"custom_id": "r1", "url": "/v1/embeddings", "body": {}}), "line 4: .* line 2"),
            (json.dumps({"custom_id": "x", "url": "/v1/audio", "body": {}}), "line 4: url must be"),
        ],
    )
    async def test_a_bad_line_is_an_error_before_the_start(
        self, world: World, files: Files, text: str, said: str
    ) -> None:
        files.write(3)
        with files.source.open("a") as file:
            file.write(text)
        await self.refused(world, files, BatchFileError, said)

    async def test_a_deeply_nested_line_is_an_error_before_the_start(
        self, world: World, files: Files
    ) -> None:
        deep = "[" * 250 + "]" * 250
        line = f'{{"custom_id": "r0", "url": "/v1/embeddings", "body": {{"input": {deep}}}}}'
        files.source.write_text(line)
        await self.refused(world, files, BatchFileError, "line 1: the JSON is nested too deeply")

    async def test_an_output_with_a_too_long_name_is_an_error(self, world: World, files: Files) -> None:
        files.write(1)
        files.target = files.target.with_name("x" * 300)
        async with world() as (emulator, client):
            with pytest.raises(BatchFileError, match="File name too long"):
                await run(client, files, emulator)
            with pytest.raises(BatchFileError, match="File name too long"):
                await client.plan_batch(files.source, files.target, MODEL, HARDWARE)
            assert emulator.requests == ()

    async def test_a_circular_link_is_an_error(self, world: World, files: Files) -> None:
        files.write(1)
        files.target.symlink_to(files.target)
        async with world() as (emulator, client):
            with pytest.raises(BatchFileError, match="Too many levels of symbolic links"):
                await run(client, files, emulator)
            assert emulator.requests == ()

    @pytest.mark.parametrize("where", ["made", "written"])
    async def test_a_full_temporary_directory_is_an_error(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch, where: str
    ) -> None:
        files.write(200)

        def fail(*args: Any, **options: Any) -> Any:
            raise OSError(errno.ENOSPC, "No space left on device")

        class Full(io.BytesIO):
            write = fail

        monkeypatch.setattr(tempfile, "TemporaryFile", fail if where == "made" else lambda **_: Full())
        await self.refused(world, files, BatchWriteError, "cannot write a temporary file: No space left")

    async def test_a_missing_input_is_an_error(self, world: World, files: Files) -> None:
        await self.refused(world, files, BatchFileError, "cannot be read")

    async def test_a_missing_output_directory_is_an_error(self, world: World, files: Files) -> None:
        files.write(1)
        files.target = files.target / "no" / "folder"
        await self.refused(world, files, BatchFileError, "cannot be written")

    async def test_a_missing_key_is_an_error(self, world: World, files: Files) -> None:
        files.write(1)
        async with world() as (emulator, client):
            with pytest.raises(ConfigurationError, match="CORTECS_API_KEY"):
                await client.run_batch(files.source, files.target, MODEL)
            assert emulator.requests == ()

    @grid(
        strength=1,
        options=[
            {"instances": 0},
            {"instances": True},
            {"concurrency": 0},
            {"concurrency": "many"},
            {"max_retries": -1},
            {"request_timeout": 0},
            {"max_cost": -1},
            {"max_lifetime": 0},
            {"num_workers": 9},
            {"on_progress": 3},
            {"on_provisioning": 3},
            {"transport": "carrier pigeon"},
            {"start_timeout": -1},
        ],
        anyio_backend=BACKENDS,
    )
    async def test_invalid_options_are_errors(
        self, world: World, files: Files, options: dict[str, Any]
    ) -> None:
        files.write(1)
        await self.refused(world, files, InvalidArgumentError, next(iter(options)), **options)

    async def test_an_invalid_path_is_an_error(self, world: World, files: Files) -> None:
        async with world() as (_, client):
            for bad in (3, "a\0b"):
                with pytest.raises(InvalidArgumentError, match="input must be a path"):
                    await client.run_batch(bad, files.target, MODEL, api_key="k")  # type: ignore[arg-type]

    async def test_an_input_that_changes_during_the_run_is_an_error(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(_request_queue, "_MAX_BUFFER_LINES", 10)  # it is not read to its end at once
        files.write(30)
        async with world(answer_seconds=1.0) as (emulator, client):

            def change(progress: Progress) -> None:
                with files.source.open("a") as file:
                    file.write(files.line(99))

            with pytest.raises(BatchFileError, match="input has changed"):
                await run(client, files, emulator, on_provisioning=change)
            assert emulator.existing == ()

    async def test_a_full_disk_ends_the_run_and_loses_nothing(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(60)
        real = Output.append

        def append(output: Any, lines: list[bytes]) -> int:
            if output.path.stat().st_size > 5000:
                raise BatchWriteError("No space left on device", path=str(output.path))
            return real(output, lines)

        monkeypatch.setattr(Output, "append", append)
        async with world(answer_seconds=1.0) as (emulator, client):
            with pytest.raises(BatchWriteError, match="No space left"):
                await run(client, files, emulator)
            assert emulator.existing == ()
            written = len(files.ids())
            monkeypatch.setattr(Output, "append", real)
            report = await run(client, files, emulator)
            assert report.resumed == written > 0
        files.check(60)


class TestProgress:
    async def test_progress_counts_the_lines_on_disk(self, world: World, files: Files) -> None:
        files.write(30)
        seen: list[BatchProgress] = []

        async def note(progress: BatchProgress) -> None:
            await anyio.lowlevel.checkpoint()
            assert len(files.ids() if files.target.exists() else []) == progress.done
            seen.append(progress)

        async with world(answer_seconds=1.0, step_seconds=1.0) as (emulator, client):
            await run(client, files, emulator, concurrency=5, on_progress=note)
        assert [each.done for each in seen] == sorted(each.done for each in seen)
        middle = next(each for each in seen if each.done >= 20)
        assert (middle.total, middle.running, middle.concurrency, middle.instances) == (30, 5, 5, 1)
        assert middle.cost == pytest.approx(emulator_price(seen))
        assert middle.rate > 1
        assert middle.tokens_per_second == pytest.approx(5 * middle.rate)
        assert middle.eta is not None
        assert seen[-1].done == 30
        assert seen[0].instances == 0
        assert seen[0].eta is None

    async def test_without_on_progress_nothing_ticks(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(5)
        reports: list[AnswerCounter] = []

        async def count(_: Batch, counter: AnswerCounter) -> None:
            reports.append(counter)

        monkeypatch.setattr(Batch, "_report_progress", count)
        async with world(answer_seconds=60.0) as (emulator, client):
            await run(client, files, emulator, concurrency=1)
        assert len(reports) == 1  # at the end

    async def test_an_exception_in_on_progress_ends_the_batch(self, world: World, files: Files) -> None:
        files.write(10)

        def fail(progress: BatchProgress) -> None:
            if progress.done:
                raise KeyError("mine")

        async with world(answer_seconds=1.0) as (emulator, client):
            with pytest.raises(KeyError, match="mine"):
                await run(client, files, emulator, concurrency=1, on_progress=fail)
            assert emulator.existing == ()

    async def test_on_provisioning_receives_the_progress_of_the_start(
        self, world: World, files: Files
    ) -> None:
        files.write(1)
        seen: list[Progress] = []
        async with world() as (emulator, client):
            await run(client, files, emulator, on_provisioning=seen.append)
        assert seen[-1].instance.is_usable


def emulator_price(seen: list[BatchProgress]) -> float:
    return next(each.cost for each in seen if each.cost is not None)


class TestCancellation:
    @grid(strength=1, after=[0.0, 0.5, 2.0, 4.2, 5.0, 7.7, 9.0], anyio_backend=BACKENDS)
    async def test_cancellation_at_any_moment_leaves_nothing(
        self, world: World, files: Files, after: float
    ) -> None:
        files.write(40)
        async with world(answer_seconds=1.0, stop_seconds=0.5) as (emulator, client):
            with anyio.move_on_after(after) as scope:
                await run(client, files, emulator, instances=2, concurrency=4)
            assert scope.cancelled_caught or after == 9.0
            assert emulator.existing == ()
            await run(client, files, emulator)
        files.check(40)

    async def test_answers_are_written_before_a_cancellation(
        self, world: World, files: Files, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        files.write(20)
        real = _writer.AnswerWriter.run

        async def never(writer: _writer.AnswerWriter) -> None:
            await anyio.sleep_forever()

        monkeypatch.setattr(_writer.AnswerWriter, "run", never)
        async with world(answer_seconds=1.0) as (emulator, client):
            with anyio.move_on_after(6.5):
                await run(client, files, emulator, concurrency=4)
            monkeypatch.setattr(_writer.AnswerWriter, "run", real)
            answered = len(files.ids())
            assert answered >= 4
            assert (await run(client, files, emulator)).resumed == answered
        files.check(20)


async def test_a_plan_changes_nothing(world: World, files: Files) -> None:
    files.write(10)
    async with world() as (emulator, client):
        plan = await client.plan_batch(files.source, files.target, MODEL, instances=3, num_workers=2)
        assert emulator.ledger == ()
    assert not files.target.exists()
    assert (plan.total, plan.left, plan.model) == (10, 10, MODEL)
    assert plan.hardware_type_id == "NVIDIA_L40S_1"
    assert plan.is_available is True
    assert plan.context_length == 32_000
    assert plan.price_per_minute == pytest.approx(6 * 0.03)
    assert (plan.balance, plan.balance_currency, plan.currency) == (1000.0, "EUR", "EUR")


async def test_a_plan_bounds_what_is_sent_again(world: World, files: Files) -> None:
    files.write(10)
    async with world() as (emulator, client):
        emulator.add_fault(Fault("status", route="chat", status=400, skip=1))
        assert (await run(client, files, emulator)).failed == 1
        kept = await client.plan_batch(files.source, files.target, MODEL)
        plan = await client.plan_batch(files.source, files.target, MODEL, retry_failed=True)
    assert (kept.failed, kept.left, kept.left_completion_tokens) == (1, 0, 0)
    assert (plan.failed, plan.left, plan.left_completion_tokens) == (0, 1, 5)


async def test_a_plan_bounds_what_is_left(world: World, files: Files) -> None:
    files.write(10)
    async with world() as (emulator, client):
        await run(client, files, emulator)
        with files.source.open("a") as source:
            source.write(files.line(10, max_tokens=10_000))
        plan = await client.plan_batch(files.source, files.target, MODEL)
        files.target.unlink()
        whole = await client.plan_batch(files.source, files.target, MODEL)
    assert (plan.total, plan.left) == (11, 1)
    assert (plan.max_completion_tokens, plan.left_completion_tokens) == (10_050, 10_000)
    assert (whole.max_completion_tokens, whole.left_completion_tokens) == (10_050, 10_050)


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ('"quoted"', "a quotation mark"),
        ("Bearer abc", "a space"),
        ("the-secret", "is your client secret"),
    ],
)
async def test_a_key_that_cannot_be_right_starts_nothing(
    world: World, files: Files, monkeypatch: pytest.MonkeyPatch, key: str, said: str
) -> None:
    files.write(1)
    monkeypatch.setenv("CORTECS_CLIENT_SECRET", "the-secret")
    async with world() as (emulator, client):
        with pytest.raises(ConfigurationError, match=said) as caught:
            await client.run_batch(files.source, files.target, MODEL, api_key=key)
        assert emulator.ledger == ()
    assert key not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hardware_type_id": "NVIDIA_NOTHING"}, "does not run on"),
        ({"context_length": 10**9}, "is too long"),
        ({"num_workers": 9}, "num_workers"),
    ],
)
async def test_a_plan_reports_what_the_model_does_not_support(
    world: World, files: Files, options: dict[str, Any], said: str
) -> None:
    files.write(1)
    async with world() as (_, client):
        with pytest.raises(InvalidArgumentError, match=said):
            await client.plan_batch(files.source, files.target, MODEL, **options)
