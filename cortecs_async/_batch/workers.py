"""The pool of workers that answers requests on one instance.

Its size follows the concurrency limit. While the endpoint is suspect (see `outcome`), the workers stop, and
one task probes it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from .._aio.eventloop import loop_clock
from .._errors import EndpointError
from .._http.messages import Failure, FailureKind
from .._logging import Event, log
from .concurrency import ConcurrencyLimit
from .format import AnswerLine, Request
from .outcome import EndpointHealth, FailedAttempt, FailureReason, classify, probe_request, retry_delay
from .request_queue import RequestQueue
from .sender import Reply
from .writer import AnswerWriter

# Attempts of a request that may time out. Each uses up the whole time of an attempt, and a model that does
# not finish once rarely does the next time.
_MAX_REQUEST_TIMEOUTS = 2

# Give up the instance after this many timeouts, if there are also more timeouts than answers: it is not worth
# its price.
_MAX_TIMEOUTS = 64

# Seconds for a probe.
_PROBE_TIMEOUT = 60.0

# The share of the limit that must be in use for an answer to say something about the limit.
_FULL_SHARE = 0.9


@define(eq=False, kw_only=True)
class WorkerPool:
    """Answers requests on one instance until the queue is finished.

    Args:
        model: The model, as the endpoint names it.
        post: Sends a body to a path of its endpoint.
        queue: The unanswered requests, shared with other pools.
        max_retries: Retries after the first attempt, before a request becomes an error line.

    Attributes:
        running: Requests in flight.
    """

    instance_id: str
    model: str
    post: Callable[[str, bytes], Awaitable[Reply | Failure]]
    queue: RequestQueue
    writer: AnswerWriter
    limit: ConcurrencyLimit
    max_retries: int
    running: int = 0
    _tasks: TaskGroup = field(init=False)
    _size: int = 0
    _idle: int = 0
    _error: Exception | None = None
    _clock: Callable[[], float] = field(factory=loop_clock)
    _health: EndpointHealth = field(factory=EndpointHealth)
    _is_probing: bool = False
    _answers: int = 0
    _timeouts: int = 0

    async def run(self) -> None:
        """Answer requests until the queue is finished.

        Raises:
            EndpointError: The endpoint rejects the key, or has failed every request for too long.
            CortecsError: The queue or the writer raised it.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._grow()
        if self._error is not None:
            raise self._error

    @property
    def _target_size(self) -> int:
        return self.limit.value if self._health.suspect_since is None else 0

    def _grow(self) -> None:
        while self._size < self._target_size:
            self._size += 1
            self._tasks.start_soon(self._run_worker)

    def _stop(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
            self._tasks.cancel_scope.cancel()

    async def _run_worker(self) -> None:
        try:
            while self._size <= self._target_size and not self.queue.is_finished:
                if self._health.resume_at > self._clock():
                    await self._wait_until(self._health.resume_at)
                    continue
                if self.writer.is_full:
                    await self.writer.wait_for_space()
                request = self.queue.get_nowait()
                if request is None:
                    self._idle += 1
                    try:
                        await self.queue.wait_for_change()
                    finally:
                        self._idle -= 1
                    continue
                await self._attempt(request)
                if self._size < self._target_size:
                    self._grow()
        except Exception as error:  # noqa: BLE001  (raised by `run`, outside of an exception group)
            self._stop(error)
        finally:
            self._size -= 1

    async def _attempt(self, request: Request) -> None:
        began = self._clock()
        self.running += 1
        try:
            outcome = await self.post(request.path, request.body)
        except BaseException:
            self.queue.put_back(request)
            raise
        finally:
            self.running -= 1
        now = self._clock()
        result = classify(outcome, request)
        if isinstance(result, FailedAttempt):
            self._handle_failure(request, result, began, now)
            return
        self._complete(result)
        self._health.record_success(now)
        self._answers += 1
        usage = result.usage
        tokens = 1 if usage is None else usage.prompt_tokens + usage.completion_tokens or 1
        is_full = self._size - self._idle >= _FULL_SHARE * self.limit.value
        self.limit.record_answer(now, began, tokens, is_full=is_full)

    def _complete(self, line: AnswerLine) -> None:
        self.writer.put(line)
        self.queue.task_done()

    def _handle_failure(self, request: Request, failed: FailedAttempt, began: float, now: float) -> None:
        health = self._health
        health.record_retry_after(failed, now)
        # Only an answer that came after this request failed shows that the endpoint works and the request is
        # at fault. An answer during this attempt may have come just before the endpoint failed.
        has_failed_before = request.endpoint_has_answered is not None
        is_to_blame = request.endpoint_has_answered is not None and request.endpoint_has_answered()
        is_up = is_to_blame or health.last_success >= began
        is_rejection = failed.reason is FailureReason.RATE_LIMITED or (
            failed.reason is FailureReason.UNAVAILABLE and is_up
        )
        if self.running and is_rejection:
            self.limit.record_rejection(now, began)
            request.rejections += 1
            self._retry_later(request, failed, request.rejections)
            return
        request.endpoint_has_answered = lambda: health.last_success >= now
        request.failures += 1
        request.timeouts += failed.is_timeout
        if is_to_blame:
            # The first time, count the earlier failure too: now it is clear that the request caused it.
            request.own_failures += 1 if request.own_failures else 2
            if request.own_failures > self.max_retries or request.timeouts >= _MAX_REQUEST_TIMEOUTS:
                self._complete(failed.line)
                return
        # No request in flight can show what caused the failure, or none has shown it since the last failure.
        is_unclear = not self.running or (has_failed_before and not is_to_blame)
        health.record_failure(now, concurrency=self.limit.value, is_unclear=is_unclear)
        if health.suspect_since is not None and not self._is_probing:
            self._is_probing = True
            self._tasks.start_soon(self._probe, request.path)
        if failed.is_timeout:
            self._timeouts += 1
            if self._timeouts >= max(_MAX_TIMEOUTS, self._answers):
                self._stop(self._endpoint_error(f"has timed out {self._timeouts} times: {failed.detail}"))
            log(Event.BATCH_RETRY_LAST, custom_id=request.custom_id, reason=failed.detail)
            self.queue.retry_last(request)
        else:
            self._retry_later(request, failed, request.failures)

    def _retry_later(self, request: Request, failed: FailedAttempt, failures: int) -> None:
        # Without the `Retry-After`, which holds for this endpoint only. Another one may be free.
        wait = retry_delay(failures - 1)
        log(Event.BATCH_RETRY, custom_id=request.custom_id, wait=wait, reason=failed.detail)
        self.queue.retry_later(request, wait)

    async def _probe(self, path: str) -> None:
        """Send probes until the endpoint answers one, or give up the instance when this takes too long."""
        health = self._health
        request = probe_request(path, self.model)
        try:
            while health.suspect_since is not None and not self.queue.is_finished:
                if health.resume_at > self._clock():
                    await self._wait_until(health.resume_at)
                    continue
                outcome = await self._send_probe(request)
                if outcome is None:
                    return
                now, verdict = self._clock(), classify(outcome, request)
                if isinstance(verdict, AnswerLine):
                    health.record_success(now)
                    return
                log(Event.BATCH_DOUBT, instance_id=self.instance_id, reason=verdict.detail)
                health.record_retry_after(verdict, now)
                # Requests in flight may still be answered: some answers take longer than the timeout.
                if health.has_timed_out(verdict, now) and not self.running:
                    self._give_up(verdict, health.suspect_seconds(now))
                    return
                await self._wait_until(now + health.next_probe_delay())
        finally:
            self._is_probing = False
            self._grow()

    async def _send_probe(self, request: Request) -> Reply | Failure | None:
        """Return the outcome of a probe; None if the queue is finished meanwhile."""
        outcome: Reply | Failure | None = None
        async with anyio.create_task_group() as tasks:

            async def cancel_when_finished() -> None:
                await self.queue.finished.wait()
                tasks.cancel_scope.cancel()

            tasks.start_soon(cancel_when_finished)
            with anyio.move_on_after(_PROBE_TIMEOUT) as scope:
                outcome = await self.post(request.path, request.body)
            if scope.cancelled_caught:
                detail = f"no answer within {_PROBE_TIMEOUT:g} s"
                outcome = Failure(kind=FailureKind.TIMED_OUT, detail=detail)
            tasks.cancel_scope.cancel()
        return outcome

    async def _wait_until(self, deadline: float) -> None:
        # Other instances may finish the queue meanwhile.
        with anyio.CancelScope(deadline=deadline):
            await self.queue.finished.wait()

    def _give_up(self, failed: FailedAttempt, seconds: float) -> None:
        problems = {
            FailureReason.KEY_REJECTED: "rejects the API key",
            FailureReason.RATE_LIMITED: "accepts no requests",
        }
        problem = problems.get(failed.reason, "does not answer")
        self._stop(self._endpoint_error(f"{problem} (for {seconds:.0f} s): {failed.detail}"))

    def _endpoint_error(self, problem: str) -> EndpointError:
        return EndpointError(
            f"the endpoint of instance {self.instance_id} {problem}. All answers are kept; run the same "
            "batch again to continue.",
            instance_id=self.instance_id,
        )
