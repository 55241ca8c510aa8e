"""A batch: instances, those who work on them, and the files."""

from __future__ import annotations

import inspect
import math
import resource
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import anyio
from attrs import define, field, frozen

from .._aio.tasks import run_uncancellable
from .._aio.threads import run_stoppable
from .._errors import (
    AmbiguousStartError,
    CortecsError,
    InvalidArgumentError,
    LifecycleError,
    RequestError,
    TeardownError,
)
from .._lease.lease import InstanceLease
from .._lease.pricing import Receipt
from .._logging import Event, log
from .concurrency import AdaptiveLimit, ConcurrencyLimit, FixedLimit
from .format import RequestReader
from .output import Output
from .plan import BatchPlan, Files, Survey, survey
from .report import BatchProgress, BatchReport, Tally
from .request_queue import RequestQueue
from .sender import Access
from .workers import WorkerPool
from .writer import AnswerWriter, Line

BatchProgressCallback = Callable[[BatchProgress], Awaitable[None] | None]

# Seconds between two calls of `on_progress`.
_TICK = 0.25

# File descriptors that are left for everything else.
_RESERVE = 100


@frozen(kw_only=True)
class BatchOptions:
    """How a batch goes.

    Attributes:
        files: The input and the output.
        model: The model, as the endpoint calls it.
        override_model: Ask for it whatever the lines say.
        instances: How many to share the work.
        concurrency: Requests at once on each.
        max_retries: Attempts that may fail after the first, while others are answered.
        ordered: Put the output into the order of the input at the end.
        retry_failed: Ask again what has an error line.
        on_progress: Called now and then.

    Raises:
        InvalidArgumentError: for what makes no sense.
    """

    files: Files
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
            # Each request takes a connection, and each connection a file descriptor.
            if self.concurrency * self.instances > _descriptors():
                raise InvalidArgumentError(
                    f"concurrency={self.concurrency}, times {self.instances} for instances, takes more file "
                    f"descriptors than the {_descriptors() + _RESERVE} that this process may open: ulimit -n"
                )
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")

    def new_limit(self) -> ConcurrencyLimit:
        """The limit of one instance."""
        if self.concurrency != "auto":
            return FixedLimit(self.concurrency)
        return AdaptiveLimit(highest=int(max(1, min(1024, _descriptors() // self.instances))))


def _descriptors() -> float:
    """How many this process may open for connections."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return math.inf if soft == resource.RLIM_INFINITY else soft - _RESERVE


def _check_count(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        also = ", or 'auto'" if name == "concurrency" else ""
        raise InvalidArgumentError(f"{name} must be a whole number of at least {least}{also}, not {value!r}")


async def look_through(options: BatchOptions, output: Output | None) -> Survey:
    """Reads and compares the files, in a thread.

    Raises:
        BatchFileError: for whatever is wrong with them.
    """
    reader = RequestReader(str(options.files.source), options.model, override_model=options.override_model)
    return await run_stoppable(
        lambda stopped: survey(options.files, reader, output, stopped, retry_failed=options.retry_failed)
    )


@define(eq=False)
class _Lane:
    """One instance of a batch."""

    lease: InstanceLease
    limit: ConcurrencyLimit
    pool: WorkerPool | None = None

    is_starting: bool = True
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)

    @property
    def receipt(self) -> Receipt | None:
        """What it costs; None when it was not even started."""
        try:
            return self.lease.receipt
        except InvalidArgumentError:
            return None


@define(eq=False)
class Batch:
    """One run.

    Attributes:
        options: How.
        access: How endpoints are reached.
        new_lease: Makes the lease of an instance.
    """

    options: BatchOptions
    access: Access
    new_lease: Callable[[], InstanceLease]
    _lanes: list[_Lane] = field(factory=list)
    _incidents: list[str] = field(factory=list)
    _working: int = 0
    _error: BaseException | None = None
    _began: float = 0.0
    _answering_since: float | None = None

    async def run(self) -> BatchReport:
        """Answers what is left, and puts the output into order.

        Raises:
            CortecsError: when it could not be finished. What is counted is in the output.
        """
        options = self.options
        output = Output(options.files.target)
        try:
            found = await look_through(options, output)
            try:
                tally = Tally(succeeded=found.plan.succeeded, failed=found.plan.failed)
                self._began = anyio.current_time()
                if found.plan.left:
                    await self._answer(found, output, tally)
                seconds = anyio.current_time() - self._began
                if options.ordered:
                    await run_stoppable(
                        lambda stopped: output.sort(found.last, found.index.pairs, stopped.check)
                    )
                output.keep()
                return self._report(found.plan, tally, seconds)
            finally:
                found.index.close()
        finally:
            output.close()

    def _report(self, plan: BatchPlan, tally: Tally, seconds: float) -> BatchReport:
        return BatchReport(
            output=str(self.options.files.target),
            total=plan.total,
            succeeded=tally.succeeded,
            failed=tally.failed,
            resumed=tally.resumed,
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            seconds=seconds,
            receipts=tuple(each for lane in self._lanes if (each := lane.receipt) is not None),
            incidents=tuple(self._incidents),
        )

    async def _answer(self, found: Survey, output: Output, tally: Tally) -> None:
        def note(lines: list[Line], begins: list[int]) -> None:
            tally.count(anyio.current_time(), lines)
            if self.options.ordered:
                for line, begin in zip(lines, begins, strict=True):
                    found.index.add_answer(line.request.key, line.request.request_id, 0, begin)

        reader = RequestReader(
            str(self.options.files.source), self.options.model, override_model=self.options.override_model
        )
        work = RequestQueue(self.options.files.source, reader, found.done, found.input_status)
        sink = AnswerWriter(output, note)
        # One that has no request to answer would be billed all the same.
        instances = min(self.options.instances, found.plan.left)
        self._lanes = [_Lane(self.new_lease(), self.options.new_limit()) for _ in range(instances)]
        self._working = len(self._lanes)
        try:
            await _without_group(self._work(work, sink, found.plan, tally))
        finally:
            await self._flush(sink)
        if self._error is not None:
            raise self._error
        await self._tell(found.plan, tally)

    async def _work(self, work: RequestQueue, sink: AnswerWriter, plan: BatchPlan, tally: Tally) -> None:
        async with anyio.create_task_group() as tasks:

            async def run(job: Callable[[], Awaitable[None]]) -> None:
                try:
                    await job()
                except Exception as error:  # noqa: BLE001  (raised when all of them have ended)
                    self._fail(error)
                    tasks.cancel_scope.cancel()

            async def tick() -> None:
                while True:
                    await self._tell(plan, tally)
                    await anyio.sleep(_TICK)

            for job in (work.read, sink.run, tick):
                tasks.start_soon(run, job)
            async with anyio.create_task_group() as lanes:
                for lane in self._lanes:
                    lanes.start_soon(run, lambda lane=lane: self._use(lane, work, sink))
            tasks.cancel_scope.cancel()

    async def _use(self, lane: _Lane, work: RequestQueue, sink: AnswerWriter) -> None:
        """Works on one instance.

        Raises:
            CortecsError: when that ended otherwise than with the work, and nobody is left to go on.
        """
        try:
            with lane.scope:
                try:
                    await self._use_until_done(lane, work, sink)
                except anyio.get_cancelled_exc_class() as cancelled:
                    # The scope takes it, and what was noted on it with it.
                    self._incidents += getattr(cancelled, "__notes__", [])
                    raise
        except (LifecycleError, RequestError, AmbiguousStartError) as error:
            is_last = self._working == 1 and not work.is_finished
            if is_last or isinstance(error, TeardownError):
                raise
            log(
                Event.BATCH_INSTANCE_OUT,
                error_type=type(error).__name__,
                instances=len(self._lanes),
                error=error,
            )
            # With what was noted on it: that its release failed, say.
            self._incidents.append("; ".join([str(error), *getattr(error, "__notes__", [])]))
        finally:
            lane.pool = None
            self._working -= 1

    async def _use_until_done(self, lane: _Lane, work: RequestQueue, sink: AnswerWriter) -> None:
        async with lane.lease as inst, self.access.sender(inst.base_url) as sender:
            lane.pool = WorkerPool(
                instance_id=inst.instance_id,
                model=self.options.model,
                sender=sender,
                work=work,
                sink=sink,
                limit=lane.limit,
                max_retries=self.options.max_retries,
            )
            lane.is_starting = False
            if self._answering_since is None:
                self._answering_since = anyio.current_time()
            await lane.pool.run()
            for other in self._lanes:
                if other.is_starting:
                    # There is nothing left for it to do.
                    other.scope.cancel()

    def _fail(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        elif error is not self._error:
            log(Event.BATCH_ERROR, error_type=type(error).__name__, error=error)

    async def _flush(self, sink: AnswerWriter) -> None:
        """What was answered is paid for: it is written, whatever ended the run, and however often."""
        ended = await run_uncancellable(sink.flush, resume=True)
        if isinstance(ended.error, CortecsError):
            self._fail(ended.error)
        elif ended.error is not None:
            raise ended.error
        if ended.interruption is not None:
            raise ended.interruption

    async def _tell(self, plan: BatchPlan, tally: Tally) -> None:
        if self.options.on_progress is None:
            return
        now = anyio.current_time()
        crews = [lane.pool for lane in self._lanes if lane.pool is not None]
        receipts = [each for lane in self._lanes if (each := lane.receipt) is not None]
        costs = [each.cost for each in receipts if each.cost is not None]
        rate, tokens_per_second = tally.rates(now, self._answering_since or now)
        progress = BatchProgress(
            total=plan.total,
            succeeded=tally.succeeded,
            failed=tally.failed,
            resumed=tally.resumed,
            instances=len(crews),
            running=sum(crew.busy for crew in crews),
            concurrency=sum(lane.limit.value for lane in self._lanes if lane.pool is not None),
            prompt_tokens=tally.prompt_tokens,
            completion_tokens=tally.completion_tokens,
            elapsed=now - self._began,
            rate=rate,
            tokens_per_second=tokens_per_second,
            cost=sum(costs) if costs and len(costs) == len(receipts) else None,
            currency=next((each.currency for each in receipts), ""),
        )
        result = self.options.on_progress(progress)
        if inspect.isawaitable(result):
            await result


async def _without_group(work: Awaitable[None]) -> None:
    """Takes the end of the program out of the groups that it comes in: a Ctrl-C, or a `sys.exit`."""
    end: BaseException | None = None
    try:
        await work
    except BaseExceptionGroup as group:
        end = group.subgroup((KeyboardInterrupt, SystemExit))
        if end is None:
            raise
        while isinstance(end, BaseExceptionGroup):
            end = end.exceptions[0]
    if end is not None:
        raise end.with_traceback(None)
