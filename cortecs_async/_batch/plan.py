"""The options of a batch, and its plan: both files are read and compared before anything is started."""

from __future__ import annotations

import math
import os
import stat
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from attrs import Factory, evolve, frozen

from .._aio.threads import StopFlag, run_stoppable
from .._display import joined, money_text
from .._errors import BatchFileError, BatchWriteError, InvalidArgumentError
from .._lease.inference import ENDPOINTS
from .answers import parse_answer
from .canonical import LEGACY_FLEET_PREFIX, is_legacy_id
from .concurrency import AdaptiveLimit, ConcurrencyLimit
from .estimate import Sizes
from .format import BodyDefaults, RequestParser
from .index import Comparison, Index, is_done
from .output import Output, check_name
from .reader import (
    STANDARD_INPUT,
    check_regular,
    copy_standard_input,
    estimate_size,
    file_errors,
    read_closed_output,
    read_input,
)
from .report import BatchProgressCallback

if TYPE_CHECKING or sys.platform != "win32":
    import resource

# File descriptors reserved for purposes other than connections to endpoints.
_RESERVED_DESCRIPTORS = 100

_NOT_REGULAR = ". The input is read twice. To read from a pipe, pass - and use standard input."

# The size of the smallest answer in bytes.
_MIN_ANSWER_SIZE = 300


@frozen(kw_only=True)
class BatchPlan:
    """The plan of a batch, from `client.plan_batch(...)`. Planning does not start anything.

    Attributes:
        total: Requests in the input.
        succeeded: Requests already answered in the output.
        failed: Requests with an error line that is kept. Always 0 with `retry_failed`.
        left: Requests still to send.
        prompt_tokens: Estimated prompt tokens of the whole input, at one token per four bytes of text.
        attachments: Images, audio, and other parts of prompts that are not text. Their tokens are not known
            and not included in any number here.
        max_completion_tokens: Upper bound of the completion tokens of the whole input, without retries. An
            answer without a limit counts as the whole context. The value is None if the context length or the
            number of answers is unknown.
        left_completion_tokens: Upper bound of the completion tokens of the requests still to send.
        unlimited_answers: Number of answers whose requests do not set a limit.
        longest_line: The line of the request with the longest prompt and answer. The prompts in a list
            are counted separately.
        longest_tokens: Estimated tokens of that prompt, plus the limit of its answer, if any.
        context_length: Maximum tokens of a prompt and its answer together, or None if unknown.
        model: The endpoint's name for the model.
        hardware_type_id: The hardware type to try first, or None if unknown.
        hardware_reason: Why it is tried first, or an empty string if there is no choice. See `Receipt`.
        is_available: Whether that hardware is currently available, or None if unknown.
        instances: Number of instances to start.
        num_workers: Number of workers per instance.
        price_per_minute: List price of all instances and workers, in `currency`, or None if unknown.
        balance: The account's balance, in `balance_currency`, or None if it was not fetched.
        currency: The currency of the price, from the price list.
        balance_currency: The currency of the balance, as reported by the account.

    Example:
        plan = await client.plan_batch("requests.jsonl", "answers.jsonl", "meta-llama/Llama-3.1-8B-Instruct")
        print(plan.left, plan.prompt_tokens, plan.price_per_minute, plan.currency)
    """

    total: int
    succeeded: int
    failed: int
    left: int
    prompt_tokens: int
    max_completion_tokens: int | None
    longest_line: int
    longest_tokens: int
    attachments: int = 0
    left_completion_tokens: int | None = None
    unlimited_answers: int = 0
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
    hardware_reason: str = ""

    def __str__(self) -> str:
        runs = f"{self.model} on {self.hardware_type_id}" if self.hardware_type_id else self.model
        price = money_text(self.price_per_minute, self.currency)
        return joined(f"{self.left:,} of {self.total:,} requests left", runs, price and f"{price} per minute")


@frozen(kw_only=True)
class BatchOptions:
    """The files, the endpoint's name for the model, and the options of `client.run_batch`.

    The batch of a fleet has no model, and requests keep their own.
    """

    source: Path
    target: Path
    model: str = ""
    source_name: str = Factory(lambda self: str(self.source), takes_self=True)
    override_model: bool = False
    text: bool = False
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    instances: int = 1
    concurrency: int | Literal["auto"] = "auto"
    max_retries: int = 5
    ordered: bool = False
    retry_failed: bool = False
    on_progress: BatchProgressCallback | None = None

    def __attrs_post_init__(self) -> None:
        check_name(self.target)
        _check_count("instances", self.instances, 1)
        _check_count("max_retries", self.max_retries, 0)
        if self.max_tokens is not None:
            _check_count("max_tokens", self.max_tokens, 1)
        if self.system is not None and not (isinstance(self.system, str) and self.system):
            raise InvalidArgumentError(f"system must be a non-empty string, not {self.system!r:.60}")
        if self.temperature is not None and not _is_temperature(self.temperature):
            raise InvalidArgumentError(
                f"temperature must be a number of at least 0, not {self.temperature!r:.60}"
            )
        if self.concurrency != "auto":
            _check_count("concurrency", self.concurrency, 1)
            # Each request in flight uses a connection, and each connection a file descriptor.
            if self.concurrency * self.instances > _max_connections():
                raise InvalidArgumentError(
                    f"concurrency={self.concurrency} with instances={self.instances} needs more file "
                    f"descriptors than this process allows ({_max_connections() + _RESERVED_DESCRIPTORS}). "
                    "Lower it, or raise the limit with `ulimit -n`."
                )
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")

    def new_limit(self) -> ConcurrencyLimit:
        if self.concurrency != "auto":
            return ConcurrencyLimit(self.concurrency)
        return AdaptiveLimit(highest=int(max(1, min(1024, _max_connections() // self.instances))))

    def new_parser(self) -> RequestParser:
        defaults = BodyDefaults(system=self.system, max_tokens=self.max_tokens, temperature=self.temperature)
        return RequestParser(
            self.source_name,
            self.model,
            override_model=self.override_model,
            is_text=self.text,
            defaults=None if defaults == BodyDefaults() else defaults,
        )


def _max_connections() -> float:
    if sys.platform == "win32":
        return math.inf
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft - _RESERVED_DESCRIPTORS


def _is_temperature(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        also = ", or 'auto'" if name == "concurrency" else ""
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}{also}, not {value!r}")


@frozen(eq=False)
class Preflight:
    """The result of reading both files.

    Attributes:
        options: The options of the batch. If the source was piped standard input, it is now a temporary file.
        index: The lines of both files.
        done: A bit for each line of the input. It is set if the line is answered.
        input_status: The status of the input when it was read, to detect changes.
        sizes: The sizes of the requests.
    """

    options: BatchOptions
    index: Index
    plan: BatchPlan
    done: bytearray
    input_status: os.stat_result
    sizes: Sizes
    _copy: BinaryIO | None

    def close(self) -> None:
        """Delete the temporary files."""
        self.index.close()
        if self._copy is not None:
            self._copy.close()


async def run_preflight(options: BatchOptions, output: Output | None) -> Preflight:
    return await run_stoppable(lambda stopped: read_files(options, output, stopped))


async def read_again(preflight: Preflight, output: Output) -> Preflight:
    """Read both files of a complete batch again, in case another program has changed the output.

    Raises:
        BatchWriteError: The output is no longer complete.
    """
    changed = f"Another program changed {output.path} while the batch was running"
    try:
        result = await run_preflight(evolve(preflight.options, retry_failed=False), output)
    except BatchFileError as error:
        raise BatchWriteError(f"{changed}: {error}", path=str(output.path)) from None
    if result.plan.left:
        result.close()
        raise BatchWriteError(
            f"{changed}. {result.plan.left:,} answers are missing. Run the same batch again to get them.",
            path=str(output.path),
        )
    return result


def measure_left(preflight: Preflight, stopped: StopFlag) -> Sizes:
    """Return the sizes of the requests to send."""
    options, plan = preflight.options, preflight.plan
    if plan.left == plan.total:
        return preflight.sizes
    sizes, parser = Sizes(), options.new_parser()
    for line in read_input(options.source, options.source_name):
        stopped.check()
        if not is_done(preflight.done, line.number) and (found := parser.parse(line.number, line.text)):
            request, body = found
            sizes.add(line.number, ENDPOINTS[request.path], body)
    return sizes


def read_files(options: BatchOptions, output: Output | None, stopped: StopFlag | None = None) -> Preflight:
    """Read and check both files, until `stopped` is set.

    Remove the incomplete lines that a crash left in an open `output`, and with `retry_failed` also the error
    lines. Without an `output`, do not change any file.
    """
    stopped = stopped or StopFlag()
    copy: BinaryIO | None = None
    with file_errors("cannot be read", options.source):
        if options.source == STANDARD_INPUT:
            options = evolve(options, source_name="standard input")
            # A partly read file is read on from its position, as a pipe would be.
            if not stat.S_ISREG(options.source.stat().st_mode) or os.lseek(0, 0, os.SEEK_CUR):
                copy = copy_standard_input(stopped)
                options = evolve(options, source=Path(f"/dev/fd/{copy.fileno()}"))
    try:
        return _read_files(options, output, stopped, copy)
    except BaseException:
        if copy is not None:
            copy.close()
        raise


def _read_files(
    options: BatchOptions, output: Output | None, stopped: StopFlag, copy: BinaryIO | None
) -> Preflight:
    with file_errors("cannot be read", options.source_name):
        status = options.source.stat()
    check_regular(status, options.source_name, _NOT_REGULAR)
    with file_errors("cannot be read", options.target):
        is_same = options.target.exists() and os.path.samestat(status, options.target.stat())
        folder = options.target.absolute().parent
        # This writes a new file there, which replaces the output.
        if (options.ordered or options.retry_failed) and not os.access(folder, os.W_OK | os.X_OK):
            option = "ordered" if options.ordered else "retry_failed"
            raise BatchFileError(
                f"{option} needs write access to the directory {folder}", path=str(options.target)
            )
        if output is None and not folder.is_dir():
            raise BatchFileError(f"there is no directory {folder}", path=str(options.target))
    if is_same:
        raise BatchFileError("the output is the same file as the input", path=str(options.target))
    index, sizes = Index(estimate_size(status, options.source)), Sizes()
    try:
        plan, done, has_zeros = _compare(options, output, stopped, index, sizes)
        stopped.check()
    except BaseException:
        index.close()
        raise
    retries = options.retry_failed and plan.failed > 0
    result = Preflight(options, index, plan, done, status, sizes, copy)
    if output is None and retries:
        return evolve(result, plan=evolve(plan, failed=0, left=plan.left + plan.failed))
    if output is None or not (retries or has_zeros):
        return result
    index.close()
    name = str(options.target)
    output.remove_lines(
        lambda line: not line or (retries and not parse_answer(name, 0, line).succeeded), stopped.check
    )
    return _read_files(evolve(options, retry_failed=False), output, stopped, copy)


def _compare(
    options: BatchOptions, output: Output | None, stopped: StopFlag, index: Index, sizes: Sizes
) -> tuple[BatchPlan, bytearray, bool]:
    succeeded = failed = end = 0
    is_terminated, has_zeros, has_legacy = True, False, False
    with file_errors("cannot be read", options.target):
        for line in read_closed_output(options.target) if output is None else output.read():
            stopped.check()
            end, is_terminated = line.end, line.is_terminated
            has_zeros |= line.has_zeros and line.is_terminated
            if line.text:
                answer = parse_answer(str(options.target), line.number, line.text)
                is_unnamed = not options.model and answer.request_id.startswith(LEGACY_FLEET_PREFIX)
                request_id = None if is_unnamed else answer.request_id
                is_retried = options.retry_failed and not answer.succeeded
                index.add_answer(answer.key, request_id, line.number, None if is_retried else line.begin)
                has_legacy = has_legacy or is_legacy_id(answer.request_id)
                succeeded, failed = succeeded + answer.succeeded, failed + (not answer.succeeded)
    parser = options.new_parser()
    for line in read_input(options.source, options.source_name):
        stopped.check()
        # Lines without a request count too, because the queue checks each line.
        index.last_line = line.number
        if (found := parser.parse(line.number, line.text)) is not None:
            request, body = found
            legacy_id = request.legacy_id if has_legacy else None
            index.add_request(request.key, request.request_id, line.number, legacy_id)
            sizes.add(line.number, ENDPOINTS[request.path], body)
    comparison = index.compare(stopped.check)
    _check_conflicts(options, comparison)
    left = sizes.total - succeeded - failed
    if output is not None:
        output.mend(end, succeeded + failed, is_terminated=is_terminated)
        output.check_free_space(left * _MIN_ANSWER_SIZE)
    plan = BatchPlan(
        total=sizes.total,
        succeeded=succeeded,
        failed=failed,
        left=left,
        prompt_tokens=sizes.prompt,
        max_completion_tokens=sizes.max_completion_tokens(None),
        longest_line=sizes.longest[1],
        longest_tokens=sizes.longest[0],
        attachments=sizes.attachments,
        unlimited_answers=sizes.unlimited,
    )
    return plan, comparison.done, has_zeros


def _check_conflicts(options: BatchOptions, comparison: Comparison) -> None:
    if (conflict := comparison.duplicate_request) is not None:
        path, message = options.source_name, f"duplicate custom_id (first used on line {conflict.other})"
    elif (conflict := comparison.duplicate_answer) is not None:
        path, message = str(options.target), f"duplicate custom_id (first answered on line {conflict.other})"
    elif (conflict := comparison.foreign_answer) is not None:
        path, message = str(options.target), _describe_foreign(options.source_name, conflict.other)
    else:
        return
    raise BatchFileError(message, path=path, line=conflict.line)


def _describe_foreign(source: str, line: int | None) -> str:
    if line is None:
        return (
            f"no request in {source} has this custom_id, so this is the output of a different "
            "input. Choose another output file."
        )
    return (
        f"line {line} of {source} has the same custom_id but a different request. If you changed the "
        "prompt, the model, or an option such as the system prompt, undo the change or choose another "
        "output file."
    )
