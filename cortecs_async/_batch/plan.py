"""Read and compare both files before anything is started, and report what a batch will do."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, evolve, frozen

from .._aio.threads import StopFlag
from .._errors import BatchFileError
from .format import RequestParser, parse_answer
from .index import Comparison, Index
from .output import Output, file_errors, read_complete_lines, read_lines, stat_regular_file

# An estimate, because there is no tokenizer here.
_CHARACTERS_PER_TOKEN = 4

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


@frozen
class Files:
    """The input and the output."""

    source: Path
    target: Path


@frozen(eq=False)
class Preflight:
    """The result of reading both files.

    Attributes:
        index: Their lines. Close it after use.
        plan: What is to be done.
        done: A bit for each line of the input, set if it is answered.
        input_status: The status of the input, to notice changes.
    """

    index: Index
    plan: BatchPlan
    done: bytearray
    input_status: os.stat_result


def run_preflight(
    files: Files, parser: RequestParser, output: Output | None, stopped: StopFlag, *, retry_failed: bool
) -> Preflight:
    """Read and check both files.

    Args:
        files: The files.
        parser: Parses lines of the input.
        output: The open output, whose incomplete last line is cut off; None to change nothing.
        stopped: Set when the caller no longer waits.
        retry_failed: Remove the error lines, so that their requests are sent again.

    Raises:
        BatchFileError: Something is wrong with a file.
    """
    status = stat_regular_file(files.source)
    with file_errors("cannot be read", files.target):
        is_same = files.target.exists() and os.path.samestat(status, files.target.stat())
    if is_same:
        raise BatchFileError("the output is the same file as the input", path=str(files.target))
    index = Index(status.st_size)
    try:
        with file_errors("cannot be read", files.source):
            plan, done = _compare(files, parser, output, stopped, index)
        stopped.check()
    except BaseException:
        index.close()
        raise
    result = Preflight(index, plan, done, status)
    if not retry_failed or not plan.failed:
        return result
    if output is None:
        return evolve(result, plan=evolve(plan, failed=0, left=plan.left + plan.failed))
    index.close()
    output.remove_lines(lambda line: not parse_answer(str(files.target), 0, line).succeeded, stopped.check)
    return run_preflight(files, parser, output, stopped, retry_failed=False)


def _compare(
    files: Files, parser: RequestParser, output: Output | None, stopped: StopFlag, index: Index
) -> tuple[BatchPlan, bytearray]:
    succeeded = failed = end = 0
    for number, offset, line in read_complete_lines(files.target):
        stopped.check()
        answer = parse_answer(str(files.target), number, line)
        index.add_answer(answer.key, answer.request_id, number, offset)
        succeeded, failed = succeeded + answer.succeeded, failed + (not answer.succeeded)
        end = offset + len(line)
    sizes = _Sizes()
    for number, _, line in read_lines(files.source):
        stopped.check()
        if (found := parser.parse(number, line)) is not None:
            request, body = found
            index.add_request(request.key, request.request_id, number)
            sizes.add(number, request.path, body)
    comparison = index.compare(stopped.check)
    _check_conflicts(files, comparison)
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


def _check_conflicts(files: Files, comparison: Comparison) -> None:
    if (conflict := comparison.duplicate_request) is not None:
        path, message = files.source, f"duplicate custom_id (first used on line {conflict.other})"
    elif (conflict := comparison.duplicate_answer) is not None:
        path, message = files.target, f"duplicate custom_id (first answered on line {conflict.other})"
    elif (conflict := comparison.foreign_answer) is not None:
        path, message = files.target, _describe_foreign(files.source, conflict.other)
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
        """Add a request."""
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
