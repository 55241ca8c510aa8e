"""Run a batch: lease the instances, send the requests to them, and write the output.

Each instance has a worker pool. All pools share one request queue and one answer writer.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, aclosing, closing

import anyio
from attrs import define, field

from .._aio import threads
from .._aio.tasks import run_uncancellable
from .._errors import (
    AmbiguousStartError,
    CortecsError,
    InvalidArgumentError,
    LifecycleError,
    RequestError,
    TeardownError,
)
from .._lease.endpoint import counted
from .._lease.lease import InstanceLease
from .._lease.pricing import Receipt
from .._logging import Event, log
from .answers import AnswerLine
from .concurrency import ConcurrencyLimit
from .output import Output
from .plan import BatchOptions, Preflight, read_again, run_preflight
from .report import AnswerCounter, BatchProgress, BatchReport, currency_of, total_cost
from .request_queue import RequestQueue
from .sender import SenderConfig
from .workers import WorkerPool
from .writer import AnswerWriter

# Seconds between two calls of `on_progress`.
_PROGRESS_INTERVAL = 0.25


@define(eq=False)
class _BatchInstance:
    lease: InstanceLease
    limit: ConcurrencyLimit
    pool: WorkerPool | None = None

    is_starting: bool = True
    scope: anyio.CancelScope = field(factory=anyio.CancelScope)

    @property
    def receipt(self) -> Receipt | None:
        """The instance's usage and cost, or None if it was never started."""
        try:
            return self.lease.receipt
        except InvalidArgumentError:
            return None


@define(eq=False)
class Batch:
    options: BatchOptions
    sender_config: SenderConfig
    new_lease: Callable[[], InstanceLease]
    _instances: list[_BatchInstance] = field(factory=list)
    _incidents: list[str] = field(factory=list)
    _active: int = 0
    _error: BaseException | None = None
    _began: float = 0.0
    _seconds: float = 0.0
    _answering_since: float | None = None

    async def run(self) -> BatchReport:
        """Answer the remaining requests and sort the output if requested."""
        with closing(Output(self.options.target)) as output, ExitStack() as stack:
            preflight = stack.enter_context(closing(await run_preflight(self.options, output)))
            plan = preflight.plan
            counter = AnswerCounter(
                total=plan.total,
                succeeded=plan.succeeded,
                failed=plan.failed,
                resumed=plan.succeeded + plan.failed,
            )
            self._began = anyio.current_time()
            try:
                await self._finish(preflight, output, counter, stack)
            except BaseException as error:
                self._report(counter).attach(error)
                raise
            return self._report(counter)

    async def _finish(
        self, preflight: Preflight, output: Output, counter: AnswerCounter, stack: ExitStack
    ) -> None:
        if preflight.plan.left:
            try:
                await self._answer(preflight, output, counter)
            finally:
                self._seconds = anyio.current_time() - self._began
        preflight = await _check_output(preflight, output, stack)
        if self.options.ordered:
            index = preflight.index
            await threads.run_stoppable(
                lambda stopped: output.sort(index.last_line, index.answer_offsets, stopped.check)
            )
            await _check_output(preflight, output, stack)
        output.keep()

    def _report(self, counter: AnswerCounter) -> BatchReport:
        return BatchReport(
            output=str(self.options.target),
            **counter.counts(),
            seconds=self._seconds,
            receipts=tuple(self._receipts()),
            incidents=tuple(self._incidents),
        )

    def _receipts(self) -> list[Receipt]:
        return [receipt for each in self._instances if (receipt := each.receipt) is not None]

    async def _answer(self, preflight: Preflight, output: Output, counter: AnswerCounter) -> None:
        def on_written(lines: list[AnswerLine], begins: list[int]) -> None:
            counter.add(anyio.current_time(), lines)
            if self.options.ordered:
                for line, begin in zip(lines, begins, strict=True):
                    preflight.index.add_answer(line.request.key, line.request.request_id, 0, begin)

        queue = RequestQueue(
            preflight.options.source,
            preflight.options.new_parser(),
            preflight.done,
            preflight.input_status,
        )
        writer = AnswerWriter(output, on_written)
        # An instance without requests would still be billed.
        count = min(self.options.instances, preflight.plan.left)
        self._instances = [_BatchInstance(self.new_lease(), self.options.new_limit()) for _ in range(count)]
        self._active = count
        try:
            await _unwrap_exit(self._run_tasks(queue, writer, counter))
        except BaseException:
            try:
                await self._flush(writer)
            finally:
                if self._error is not None:
                    log(Event.BATCH_ERROR, error_type=type(self._error).__name__, error=self._error)
            raise
        await self._flush(writer)
        if self._error is not None:
            raise self._error
        await self._report_progress(counter)

    async def _run_tasks(self, queue: RequestQueue, writer: AnswerWriter, counter: AnswerCounter) -> None:
        async with anyio.create_task_group() as tasks:

            async def run(job: Callable[[], Awaitable[None]]) -> None:
                try:
                    await job()
                except Exception as error:  # noqa: BLE001  (raised when all tasks have ended)
                    self._record_error(error)
                    tasks.cancel_scope.cancel()

            async def report_progress() -> None:
                while self.options.on_progress is not None:
                    await self._report_progress(counter)
                    await anyio.sleep(_PROGRESS_INTERVAL)

            for job in (queue.read, writer.run, report_progress):
                tasks.start_soon(run, job)
            async with anyio.create_task_group() as instances:
                for each in self._instances:
                    instances.start_soon(run, lambda each=each: self._run_instance(each, queue, writer))
            tasks.cancel_scope.cancel()

    async def _run_instance(
        self, instance: _BatchInstance, queue: RequestQueue, writer: AnswerWriter
    ) -> None:
        """Answer requests on one instance. If it fails and is not the last, the others take over its work."""
        try:
            with instance.scope:
                try:
                    await self._answer_on(instance, queue, writer)
                except anyio.get_cancelled_exc_class() as cancelled:
                    # The scope swallows the exception, including its notes about a failed teardown.
                    self._incidents += getattr(cancelled, "__notes__", [])
                    raise
        except (LifecycleError, RequestError, AmbiguousStartError) as error:
            is_last = self._active == 1 and not queue.is_finished
            if is_last or isinstance(error, TeardownError):
                raise
            log(
                Event.BATCH_INSTANCE_OUT,
                error_type=type(error).__name__,
                instances=len(self._instances),
                error=error,
            )
            self._incidents.append("; ".join([str(error), *getattr(error, "__notes__", [])]))
        finally:
            instance.pool = None
            self._active -= 1

    async def _answer_on(self, instance: _BatchInstance, queue: RequestQueue, writer: AnswerWriter) -> None:
        async with instance.lease as handle, aclosing(self.sender_config.sender(handle.base_url)) as sender:
            instance.pool = WorkerPool(
                instance_id=handle.instance_id,
                model=self.options.model,
                post=counted(handle, sender.post),
                key_origin=self.sender_config.key_origin,
                queue=queue,
                writer=writer,
                limit=instance.limit,
                max_retries=self.options.max_retries,
            )
            instance.is_starting = False
            if self._answering_since is None:
                self._answering_since = anyio.current_time()
            await instance.pool.run()
            # The work is done, so do not wait for instances that are still starting.
            for other in self._instances:
                if other.is_starting:
                    other.scope.cancel()

    def _record_error(self, error: BaseException) -> None:
        if self._error is None:
            self._error = error
        elif error is not self._error:
            log(Event.BATCH_ERROR, error_type=type(error).__name__, error=error)

    async def _flush(self, writer: AnswerWriter) -> None:
        """Write the answers already paid for, even if the run is cancelled repeatedly."""
        result = await run_uncancellable(writer.finish, restart_if_cancelled=True)
        if isinstance(result.error, CortecsError):
            self._record_error(result.error)
        elif result.error is not None:
            raise result.error
        if result.interruption is not None:
            raise result.interruption

    async def _report_progress(self, counter: AnswerCounter) -> None:
        if self.options.on_progress is None:
            return
        now = anyio.current_time()
        running = [(each.pool, each.limit) for each in self._instances if each.pool is not None]
        receipts = self._receipts()
        rate, tokens_per_second = counter.rates(now, self._answering_since or now)
        progress = BatchProgress(
            **counter.counts(),
            instances=len(running),
            running=sum(pool.running for pool, _ in running),
            concurrency=sum(limit.value for _, limit in running),
            elapsed=now - self._began,
            rate=rate,
            tokens_per_second=tokens_per_second,
            cost=total_cost(receipts) if receipts else None,
            currency=currency_of(receipts),
        )
        result = self.options.on_progress(progress)
        if inspect.isawaitable(result):
            await result


async def _unwrap_exit(work: Awaitable[None]) -> None:
    """Await `work` and raise its KeyboardInterrupt or SystemExit without exception groups around it."""
    exit_error: BaseException | None = None
    try:
        await work
    except BaseExceptionGroup as group:
        exit_error = group.subgroup((KeyboardInterrupt, SystemExit))
        if exit_error is None:
            raise
        while isinstance(exit_error, BaseExceptionGroup):
            exit_error = exit_error.exceptions[0]
    if exit_error is not None:
        raise exit_error.with_traceback(None)


async def _check_output(preflight: Preflight, output: Output, stack: ExitStack) -> Preflight:
    """Read the output again if another program may have changed it. Return the result."""
    if await threads.run_in_thread(output.check_unchanged):
        return preflight
    return stack.enter_context(closing(await read_again(preflight, output)))
