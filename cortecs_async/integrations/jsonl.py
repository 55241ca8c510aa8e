"""Files of requests and answers for `fan_out`, in the formats of a batch.

`AnswerFile` reads the requests that have no answer yet and writes the answers. Pass the function `answer` to
`fan_out` to send the requests.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, closing
from types import TracebackType
from typing import Any, Self

from .. import InstanceHandle, InvalidArgumentError
from .._batch.answers import AnswerLine, format_answer, format_error, format_value
from .._batch.format import ENCODER, Request, encode_utf8
from .._batch.index import mark_done
from .._batch.output import Output
from .._batch.plan import BatchOptions, Preflight, read_files
from .._batch.request_queue import read_unanswered
from .._batch.setup import check_path
from .._durations import check_seconds
from .._hints import hinted
from .._lease.inference import ENDPOINT_OF_URL, find_problem
from ..errors import BatchWriteError
from ..types import Duration
from ._fan_out_queue import Outcome
from ._worker import AnswerError

__all__ = ["AnswerFile", "answer"]


async def answer(
    inst: InstanceHandle, requests: list[dict[str, Any]], *, concurrency: int = 32, timeout: Duration = 600.0
) -> list[Any]:
    """Send requests in parallel: pass this function to `fan_out`. Needs the `openai` package on the workers.

    If a successful response contains an error or has no content, the request fails.

    Args:
        inst: The instance.
        requests: Objects with `url` and `body`. The model in each body is replaced by the running one.
        concurrency: The maximum number of parallel requests.
        timeout: The timeout of one attempt.

    Returns:
        For each request, the body of the answer or an exception.

    Raises:
        ConfigurationError: If the worker has no inference API key in its environment or no `openai`.

    Example:
        messages = [{"role": "user", "content": "Why is the sky blue?"}]
        request = {"url": "/v1/chat/completions", "body": {"messages": messages}}
        print(await answer(inst.handle, [request]))
    """
    # No retries here. `fan_out` retries, possibly on a different instance.
    async with inst.openai(max_retries=0, timeout=check_seconds("timeout", timeout)) as llm:

        async def ask(request: dict[str, Any]) -> object:
            url = str(request["url"])
            body = {**request["body"], "model": inst.model}
            reply: Any = await llm.post(url.removeprefix("/v1"), cast_to=object, body=body)
            if (endpoint := ENDPOINT_OF_URL.get(url)) is not None:
                is_object = isinstance(reply, dict)
                problem = find_problem(reply, (endpoint,)) if is_object else "the answer is not a JSON object"
                if problem is not None:
                    raise AnswerError(problem)
            return reply

        return await inst.map(ask, requests, concurrency=concurrency, return_exceptions=True).to_list()


@hinted
class AnswerFile:
    """Read requests from a file and append their answers to another file. Use it with `with`.

    Answers are kept however the process exits, and the next run continues from there. It cuts off an
    incomplete last line and sends that request again. Both files are read and compared on entry, as in
    `client.run_batch`. Memory use grows by one bit per request.

    Args:
        source: The file of requests, in any batch format. It can be compressed.
        target: The file of answers: a new file, or one from an earlier run.

    Attributes:
        left: The number of requests without an answer. Error lines count as answers.

    Example:
        from cortecs_async.integrations.jsonl import AnswerFile, answer

        with AnswerFile("requests.jsonl", "answers.jsonl") as answers:
            leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
            async with fan_out(answer, answers.unanswered(), leases) as outcomes:
                async for outcome in outcomes:
                    answers.write(outcome)
        print(answers.left, "left")
    """

    def __init__(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        self._options = BatchOptions(source=check_path("input", source), target=check_path("output", target))
        self.left: int = 0
        self._preflight: Preflight | None = None
        self._output: Output | None = None
        self._taken: dict[str, Request] = {}  # and not answered yet
        self._exits = ExitStack()

    def __enter__(self) -> Self:
        """Read both files.

        Raises:
            BatchFileError: If a line is not a request or not an answer, a `custom_id` is a duplicate, an
                answer belongs to no request or to a changed one, a file cannot be read or written, or another
                process is writing the answers.
            BatchWriteError: If an incomplete line cannot be cut off.
        """
        self._taken.clear()
        with ExitStack() as exits:
            output = exits.enter_context(closing(Output(self._options.target)))
            self._read(output, exits)
            self._output, self._exits = output, exits.pop_all()
        return self

    def _read(self, output: Output, exits: ExitStack) -> None:
        self._preflight = exits.enter_context(closing(read_files(self._options, output)))
        self.left = self._preflight.plan.left

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait until the answers are on the disk.

        Raises:
            BatchWriteError: If the answers cannot be written, or another program has removed or changed the
                file. If the block has raised, a note is added to its exception instead.
        """
        output, self._output = self._output, None
        with self._exits as exits:
            if output is None:
                return
            try:
                is_unchanged = output.check_unchanged()
                output.append([])
            except BatchWriteError as error:
                if exc is None:
                    raise
                exc.add_note(str(error))
                return
            if exc is None:
                if not is_unchanged:
                    self._read(output, exits)
                output.keep()

    def unanswered(self) -> Iterator[dict[str, Any]]:
        """Yield the requests without an answer (`custom_id`, `url`, and `body`), read as you take them.

        Raises:
            BatchFileError: If the requests cannot be read, or have changed since they were compared.
            InvalidArgumentError: Before the block.

        Example:
            with AnswerFile("requests.jsonl", "answers.jsonl") as answers:
                for request in answers.unanswered():
                    print(request["custom_id"], request["url"])
        """
        if self._preflight is None:
            raise _misuse()
        options = self._preflight.options
        parser = options.new_parser()
        for number, line in read_unanswered(
            options.source, parser.path, self._preflight.done, self._preflight.input_status
        ):
            if (found := parser.parse(number, line)) is not None:
                request, body = found
                request.body = b""  # `body` has it
                self._taken[request.custom_id] = request
                url = f"/v1{request.path}"
                yield {"custom_id": request.custom_id, "method": "POST", "url": url, "body": body}

    def write(self, outcome: Outcome[dict[str, Any]]) -> None:
        """Append an outcome's answer or error.

        Raises:
            InvalidArgumentError: Outside the block, or if `unanswered` has not yielded the `custom_id` of the
                outcome's item, or that item already has an answer.
            BatchWriteError: If the answer cannot be written, or another program has removed or changed the
                file. Then all answers are in a new file named in the error.
            TypeError, ValueError: If the value is not JSON.

        Example:
            with AnswerFile("requests.jsonl", "answers.jsonl") as answers:
                leases = [client.instance("meta-llama/Llama-3.1-8B-Instruct")]
                async with fan_out(answer, answers.unanswered(), leases) as outcomes:
                    async for outcome in outcomes:
                        answers.write(outcome)
        """
        if self._output is None or self._preflight is None:
            raise _misuse()
        custom_id = outcome.item["custom_id"]
        request = self._taken.get(custom_id)
        if request is None:
            raise InvalidArgumentError(
                f"custom_id {custom_id!r} already has an answer, or did not come from `unanswered()`. Write "
                "each outcome once."
            )
        # `fsync` after each line would block the event loop most of the time.
        self._output.append([_format(request, outcome).text], sync=False)
        del self._taken[custom_id]
        mark_done(self._preflight.done, request.number)
        self.left -= 1


def _format(request: Request, outcome: Outcome[dict[str, Any]]) -> AnswerLine:
    failure = outcome.error
    if failure is None:
        return format_value(request, outcome.value)
    if failure.status is None:
        return format_error(request, failure.code, failure.message)
    body = ENCODER.encode({"error": {"code": failure.code, "message": failure.message}})
    return format_answer(request, failure.status, None, encode_utf8(body))


def _misuse() -> InvalidArgumentError:
    return InvalidArgumentError("Use AnswerFile in a block: `with AnswerFile(...) as answers:`.")
