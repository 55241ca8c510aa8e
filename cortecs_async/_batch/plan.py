"""What is to be done: both files read from beginning to end and compared, before anything is started."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import define, evolve, frozen

from .._aio.threads import StopFlag
from .._errors import BatchFileError, CortecsError
from .format import RequestReader, read_answer
from .index import Clash, Index, Match
from .output import Output, WholeLines, check_plain, read_lines

# Characters of text to a token, about; there is no tokenizer here.
_CHARACTERS_A_TOKEN = 4

# Bytes that an answer takes at the least.
_LEAST_ANSWER = 300


@frozen(kw_only=True)
class BatchPlan:
    """What a batch will do, and what can be told of it before.

    Attributes:
        total: Requests in the input.
        succeeded: Those that the output answers already.
        failed: Those that it has an error line for.
        left: Those that will be sent.
        prompt_tokens: Of the whole input, about: a quarter of its characters.
        max_completion_tokens: Of the whole input, at the most; None when a request sets no limit.
        longest_line: The line of the longest request, prompt and answer taken together.
        longest_tokens: Its tokens, about.
        context_length: Tokens that prompt and answer may have together; None where it is not known.
        model: The model, as the endpoint calls it.
        hardware_type_id: The hardware; None where it is not known.
        is_available: Whether that hardware is free now.
        instances: How many will be started.
        num_workers: Workers of each.
        price_per_minute: Of all instances and workers, in `currency`; None where it is not known.
        balance: Of the account, in `balance_currency`.
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
class Survey:
    """What both files say.

    Attributes:
        index: Their lines.
        plan: In numbers.
        done: A bit for each line of the input that is answered.
        last: The last line of the input that has a request.
        input_status: The input's, to tell whether it is still the same.
    """

    index: Index
    plan: BatchPlan
    done: bytearray
    last: int
    input_status: os.stat_result


def survey(
    files: Files, reader: RequestReader, output: Output | None, stopped: StopFlag, *, retry_failed: bool
) -> Survey:
    """Reads both files.

    Args:
        files: Where they are.
        reader: Reads the input's lines.
        output: The output, open, to be put right where it is torn; None to touch nothing.
        stopped: Set when nobody waits any more.
        retry_failed: Take the error lines out, so that their requests are among those left.

    Raises:
        BatchFileError: for whatever is wrong with either, with the line.
    """
    status = check_plain(files.source)
    _check_other(files.target, status)
    index = Index(status.st_size)
    try:
        plan, done = _survey(files, reader, output, stopped, index)
        stopped.check()
    except CortecsError:
        index.close()
        raise
    except OSError as error:
        index.close()
        said = f"cannot be read: {error.strerror}"
        raise BatchFileError(said, path=str(error.filename or files.source)) from None
    except BaseException:
        index.close()
        raise
    found = Survey(index, plan, done, index.lines, status)
    if not retry_failed or not plan.failed:
        return found
    if output is None:
        return evolve(found, plan=evolve(plan, failed=0, left=plan.left + plan.failed))
    index.close()
    output.drop(lambda line: not read_answer(str(files.target), 0, line).succeeded, stopped.check)
    return survey(files, reader, output, stopped, retry_failed=False)


def _check_other(target: Path, source: os.stat_result) -> None:
    try:
        is_same = target.exists() and os.path.samestat(source, target.stat())
    except OSError as error:
        raise BatchFileError(f"cannot be read: {error.strerror}", path=str(target)) from None
    if is_same:
        raise BatchFileError("the output is the input itself", path=str(target))


def _survey(
    files: Files, reader: RequestReader, output: Output | None, stopped: StopFlag, index: Index
) -> tuple[BatchPlan, bytearray]:
    succeeded = failed = 0
    answers = WholeLines(files.target)
    for number, offset, line in answers:
        stopped.check()
        answer = read_answer(str(files.target), number, line)
        index.add_answer(answer.key, answer.request_id, number, offset)
        succeeded, failed = succeeded + answer.succeeded, failed + (not answer.succeeded)
    sizes = _Sizes()
    for number, _, line in read_lines(files.source):
        stopped.check()
        if (found := reader.read(number, line)) is not None:
            request, body = found
            index.add_request(request.key, request.request_id, number)
            sizes.add(number, request.path, body)
    match = index.match(stopped.check)
    _check(files, match)
    left = sizes.total - succeeded - failed
    if output is not None:
        output.cut(answers.end)
        output.check_room(left * _LEAST_ANSWER)
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
    return plan, match.done


def _check(files: Files, match: Match) -> None:
    if match.repeated is not None:
        said = f"its custom_id is that of line {match.repeated.other} already"
        raise BatchFileError(said, path=str(files.source), line=match.repeated.line)
    if match.answered_twice is not None:
        said = f"its custom_id has an answer in line {match.answered_twice.other} already"
        raise BatchFileError(said, path=str(files.target), line=match.answered_twice.line)
    if match.foreign is not None:
        raise BatchFileError(
            _foreign(files.source, match.foreign), path=str(files.target), line=match.foreign.line
        )


def _foreign(source: Path, clash: Clash) -> str:
    if clash.other is None:
        return f"it answers a custom_id that {source} does not have: this is the output of another input"
    return (
        f"it answers another request than the one of that custom_id in {source}, line {clash.other}: this is "
        "the output of another input, or of another model"
    )


@define
class _Sizes:
    """How much there is to read and to write."""

    total: int = 0
    prompt: int = 0
    completion: int | None = 0
    longest: tuple[int, int] = (0, 0)

    def add(self, number: int, path: str, body: Mapping[str, Any]) -> None:
        """Counts a request."""
        prompt = _count_characters(body) // _CHARACTERS_A_TOKEN
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
    """Characters of what the model reads, in the three kinds of requests."""
    messages = body.get("messages")
    if isinstance(messages, list):
        return sum(_count(each.get("content")) for each in messages if isinstance(each, dict))
    return _count(body.get("prompt", body.get("input")))


def _count(content: Any) -> int:
    characters, left = 0, [content]
    while left:
        each = left.pop()
        if isinstance(each, str):
            characters += len(each)
        elif isinstance(each, dict):
            left.append(each.get("text"))
        elif isinstance(each, list):
            left += each
        elif isinstance(each, int):
            # A token that is given as its number.
            characters += _CHARACTERS_A_TOKEN
    return characters
