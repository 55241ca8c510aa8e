"""Worker pools that send the requests from a file to a test's endpoints."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any, Literal, Protocol

import anyio
from attrs import define, field

from cortecs_async._batch.answers import AnswerLine
from cortecs_async._batch.concurrency import AdaptiveLimit, ConcurrencyLimit
from cortecs_async._batch.format import RequestParser
from cortecs_async._batch.request_queue import RequestQueue
from cortecs_async._batch.sender import Reply
from cortecs_async._batch.workers import WorkerPool
from cortecs_async._http.messages import Failure
from cortecs_async.errors import EndpointError

GOOD = Reply(
    200, b'{"choices":[{"message":{"content":""}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}'
)


class Endpoint(Protocol):
    async def post(self, path: str, body: bytes) -> Reply | Failure: ...


@define
class Sink:
    """Keeps the lines it receives."""

    lines: list[AnswerLine] = field(factory=list)
    is_full: bool = False

    def put(self, line: AnswerLine) -> None:
        self.lines.append(line)

    @property
    def succeeded(self) -> set[int]:
        return {line.request.number - 1 for line in self.lines if line.usage is not None and not line.problem}

    @property
    def failed(self) -> set[int]:
        return {line.request.number - 1 for line in self.lines if line.usage is None or line.problem}


@define
class Outcome:
    sink: Sink
    errors: list[EndpointError]
    seconds: float


async def work_on(
    folder: Path,
    count: int,
    *endpoints: Endpoint,
    concurrency: int | Literal["auto"] = 8,
    max_retries: int = 5,
    lost_after: float = math.inf,
) -> Outcome:
    """Answer `count` requests. The instance of the first endpoint is lost after the given seconds."""
    source = folder / "in.jsonl"
    with source.open("w") as file:
        for number in range(count):
            request = {"custom_id": f"r{number}", "url": "/v1/chat/completions", "body": {"number": number}}
            file.write(json.dumps(request) + "\n")
    parser = RequestParser("in.jsonl", "org/model", override_model=False)
    queue = RequestQueue(source, parser, bytearray(count // 8 + 1), source.stat())
    sink: Any = Sink()
    errors: list[EndpointError] = []

    async def run(endpoint: Endpoint, seconds: float) -> None:
        limit = AdaptiveLimit() if concurrency == "auto" else ConcurrencyLimit(concurrency)
        pool = WorkerPool(
            instance_id="i",
            model="org/model",
            post=endpoint.post,
            queue=queue,
            writer=sink,
            limit=limit,
            max_retries=max_retries,
        )
        try:
            with anyio.move_on_after(seconds) as scope:
                await pool.run()
            if scope.cancelled_caught:
                errors.append(EndpointError("lost", instance_id="i"))
        except EndpointError as error:
            errors.append(error)

    began = anyio.current_time()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.read)
        async with anyio.create_task_group() as pools:
            for endpoint in endpoints:
                pools.start_soon(run, endpoint, lost_after if endpoint is endpoints[0] else math.inf)
        tasks.cancel_scope.cancel()
    assert max(Counter(line.request.number for line in sink.lines).values(), default=1) == 1
    if len(errors) < len(endpoints):
        assert len(sink.lines) == count
    return Outcome(sink, errors, anyio.current_time() - began)
