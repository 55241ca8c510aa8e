"""The options of a batch, and its plan: both files are read and compared before anything is started."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from attrs import define, evolve, frozen

from .._aio.threads import StopFlag, run_stoppable
from .._errors import BatchFileError, InvalidArgumentError
from .concurrency import AdaptiveLimit, ConcurrencyLimit
from .format import RequestParser, parse_answer
from .index import Comparison, Index
from .output import Output, file_errors, read_complete_lines, read_lines, stat_regular_file
from .report import BatchProgressCallback

# An estimate, because there is no tokenizer here.
_CHARACTERS_PER_TOKEN = 4

# File descriptors that are left for other purposes than connections to endpoints.
_RESERVED_DESCRIPTORS = 100

# Bytes of the smallest answer.
_MIN_ANSWER_SIZE = 300


@frozen(kw_only=True)
class BatchPlan:
    """What a batch will do.

    Attributes:
        total: Requests in the input.
        succeeded: Requests that the output answers already.
        failed: Requests that have an error line in the output.
        left: Requests to send.
        prompt_tokens: Estimated prompt tokens of the whole input: a quarter of its characters.
        max_completion_tokens: Most completion tokens of the whole input; None if a request sets no limit.
        longest_line: The line of the longest request, prompt and answer taken together.
        longest_tokens: Its estimated tokens.
        context_length: Tokens that a prompt and its answer may have together; None if not known.
        model: The model, as the endpoint names it.
        hardware_type_id: The hardware; None if not known.
        is_available: Whether that hardware is available now; None if not known.
        instances: Instances to start.
        num_workers: Workers of each instance.
        price_per_minute: Price of all instances and workers, in `currency`; None if not known.
        balance: Balance of the account, in `balance_currency`.
        currency: As the price list names it.
        balance_currency: As the account names it.
    """

    total: int
    succeeded: int
    failed: int
    left: int
    prompt_tokens: int
    max_completion_tokens: int | None
    longest_line: int
    longest_tokens: int
    context_length: int | None = None
    model: str = ""
    hardware_type_id: str | None = None
    is_available: bool | None = None
    instances: int = 1
    num_workers: int = 1
    price_per_minute: float | None = None
    balance: float | None = None
    currency: str = ""
    balance_currency: str = ""


@frozen(kw_only=True)
class BatchOptions:
    """The files, the model as the endpoint names it, and the options of `client.run_batch`."""

    source: Path
    target: Path
    model: str
    override_model: bool = False
    instances: int = 1
    concurrency: int | Literal["auto"] = "auto"
    max_retries: int = 5
    ordered: bool = False
    retry_failed: bool = False
    on_progress: BatchProgressCallback | None = None

    def __attrs_post_init__(self) -> None:
        _check_count("instances", self.instances, 1)
        _check_count("max_retries", self.max_retries, 0)
        if self.concurrency != "auto":
            _check_count("concurrency", self.concurrency, 1)
            # Each request in flight uses a connection, and each connection a file descriptor.
            if self.concurrency * self.instances > _max_connections():
                raise InvalidArgumentError(
                    f"concurrency={self.concurrency} with instances={self.instances} needs more file "
                    f"descriptors than the {_max_connections() + _RESERVED_DESCRIPTORS} of this process; "
                    "lower it, or raise the limit with `ulimit -n`"
                )
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")

    def new_limit(self) -> ConcurrencyLimit:
        if self.concurrency != "auto":
            return ConcurrencyLimit(self.concurrency)
        return AdaptiveLimit(highest=int(max(1, min(1024, _max_connections() // self.instances))))

    def new_parser(self) -> RequestParser:
        return RequestParser(str(self.source), self.model, override_model=self.override_model)


def _max_connections() -> float:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft - _RESERVED_DESCRIPTORS


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        also = ", or 'auto'" if name == "concurrency" else ""
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}{also}, not {value!r}")


@frozen(eq=False)
class Preflight:
    """The result of reading both files.

    Attributes:
        index: Their lines. Close it after use.
        done: A bit for each line of the input, set if it is answered.
        input_status: To notice changes.
    """

    index: Index
    plan: BatchPlan
    done: bytearray
    input_status: os.stat_result


async def run_preflight(options: BatchOptions, output: Output | None) -> Preflight:
    return await run_stoppable(lambda stopped: read_files(options, output, stopped))


def read_files(options: BatchOptions, output: Output | None, stopped: StopFlag) -> Preflight:
    """Read and check both files, until `stopped` is set.

    Cut off an incomplete last line of the open `output`, and with `retry_failed` remove its error lines.
    Without an `output`, change nothing.
    """
    status = stat_regular_file(options.source)
    with file_errors("cannot be read", options.target):
        is_same = options.target.exists() and os.path.samestat(status, options.target.stat())
    if is_same:
        raise BatchFileError("the output is the same file as the input", path=str(options.target))
    index = Index(status.st_size)
    try:
        with file_errors("cannot be read", options.source):
            plan, done = _compare(options, output, stopped, index)
        stopped.check()
    except BaseException:
        index.close()
        raise
    result = Preflight(index, plan, done, status)
    if not options.retry_failed or not plan.failed:
        return result
    if output is None:
        return evolve(result, plan=evolve(plan, failed=0, left=plan.left + plan.failed))
    index.close()
    output.remove_lines(lambda line: not parse_answer(str(options.target), 0, line).succeeded, stopped.check)
    return read_files(evolve(options, retry_failed=False), output, stopped)


def _compare(
    options: BatchOptions, output: Output | None, stopped: StopFlag, index: Index
) -> tuple[BatchPlan, bytearray]:
    succeeded = failed = end = 0
    for number, offset, line in read_complete_lines(options.target):
        stopped.check()
        answer = parse_answer(str(options.target), number, line)
        index.add_answer(answer.key, answer.request_id, number, offset)
        succeeded, failed = succeeded + answer.succeeded, failed + (not answer.succeeded)
        end = offset + len(line)
    parser = options.new_parser()
    sizes = _Sizes()
    for number, _, line in read_lines(options.source):
        stopped.check()
        if (found := parser.parse(number, line)) is not None:
            request, body = found
            index.add_request(request.key, request.request_id, number)
            sizes.add(number, request.path, body)
    comparison = index.compare(stopped.check)
    _check_conflicts(options, comparison)
    left = sizes.total - succeeded - failed
    if output is not None:
        output.truncate(end)
        output.check_free_space(left * _MIN_ANSWER_SIZE)
    plan = BatchPlan(
        total=sizes.total,
        succeeded=succeeded,
        failed=failed,
        left=left,
        prompt_tokens=sizes.prompt,
        max_completion_tokens=sizes.completion,
        longest_line=sizes.longest[1],
        longest_tokens=sizes.longest[0],
    )
    return plan, comparison.done


def _check_conflicts(options: BatchOptions, comparison: Comparison) -> None:
    if (conflict := comparison.duplicate_request) is not None:
        path, message = options.source, f"duplicate custom_id (first used on line {conflict.other})"
    elif (conflict := comparison.duplicate_answer) is not None:
        path, message = options.target, f"duplicate custom_id (first answered on line {conflict.other})"
    elif (conflict := comparison.foreign_answer) is not None:
        path, message = options.target, _describe_foreign(options.source, conflict.other)
    else:
        return
    raise BatchFileError(message, path=str(path), line=conflict.line)


def _describe_foreign(source: Path, line: int | None) -> str:
    if line is None:
        problem = f"no request in {source} has this custom_id: this is the output of another input"
    else:
        problem = (
            f"this answers another request than the one with this custom_id in {source}, line {line}: it is "
            "the output of another input or model"
        )
    return f"{problem}. Choose another output file."


@define
class _Sizes:
    """Estimates the tokens to read and write."""

    total: int = 0
    prompt: int = 0
    completion: int | None = 0
    longest: tuple[int, int] = (0, 0)

    def add(self, number: int, path: str, body: Mapping[str, Any]) -> None:
        prompt = _count_characters(body) // _CHARACTERS_PER_TOKEN
        limit = 0 if path == "/embeddings" else body.get("max_completion_tokens") or body.get("max_tokens")
        known = limit if isinstance(limit, int) else None
        self.total += 1
        self.prompt += prompt
        if known is None or self.completion is None:
            self.completion = None
        else:
            self.completion += known
        self.longest = max(self.longest, (prompt + (known or 0), number))


def _count_characters(body: Mapping[str, Any]) -> int:
    """Return the characters that the model reads, for all three kinds of requests."""
    messages = body.get("messages")
    if not isinstance(messages, list):
        stack = [body.get("prompt", body.get("input"))]
    else:
        stack = [each.get("content") for each in messages if isinstance(each, dict)]
    characters = 0
    while stack:
        each = stack.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            stack.append(each.get("text"))
        elif isinstance(each, list):
            stack += each
        elif isinstance(each, int):
            # A token, given as its number.
            characters += _CHARACTERS_PER_TOKEN
    return characters
