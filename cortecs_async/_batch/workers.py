"""The pool of workers that sends requests to one instance.

Its size follows the concurrency limit. While the endpoint may be down (see `health`), the workers stop, and
one task sends probes. They also stop while one task tests requests that may stop the server (see `suspects`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup
from attrs import define, field

from .._aio.eventloop import loop_clock
from .._aio.synchronization import Broadcast
from .._errors import EndpointError
from .._http.messages import Failure, FailureKind
from .._logging import Event, log
from .answers import AnswerLine
from .attempts import Attempts
from .concurrency import ConcurrencyLimit
from .format import Request
from .isolation import SuspectTest
from .outcome import FailedAttempt, FailureReason, classify, probe_request
from .request_queue import RequestQueue
from .sender import Reply
from .suspects import REJECTIONS, is_suspect
from .writer import AnswerWriter

# Give up the instance after this many timeouts if there are also at least as many timeouts as answers,
# because the instance is then not worth its price. The timeouts must come from at least this many different
# times, because one request may make all requests in flight time out, more than once before it is found.
_MAX_TIMEOUTS = 64
_MIN_HANGS = 5

# The timeout of a probe in seconds.
_PROBE_TIMEOUT = 60.0

# The share of the limit that must be in use before an answer counts as evidence about the limit.
_FULL_SHARE = 0.9


@define(eq=False, kw_only=True)
class WorkerPool:
    """Sends requests to one instance until the queue is finished.

    Args:
        model: The endpoint's name for the model.
        post: Sends a body to a path of the instance's endpoint.
        queue: The unanswered requests, shared with other pools.
        max_retries: Retries after the first attempt before a request becomes an error line.
    """

    instance_id: str
    model: str
    post: Callable[[str, bytes], Awaitable[Reply | Failure]]
    key_origin: str = ""
    queue: RequestQueue
    writer: AnswerWriter
    limit: ConcurrencyLimit
    max_retries: int
    _tasks: TaskGroup = field(init=False)
    _size: int = 0
    _idle: int = 0
    _error: Exception | None = None
    _clock: Callable[[], float] = field(factory=loop_clock)
    _attempts: Attempts = field(init=False)
    _is_probing: bool = False
    _test: SuspectTest | None = None
    _stopped: Broadcast = field(factory=Broadcast)  # notified when a worker or the probing stops
    _timeouts: int = 0
    _hangs: int = 0  # times at which requests in flight began to time out together
    _hung_at: float = float("-inf")

    def __attrs_post_init__(self) -> None:
        self._attempts = Attempts(
            post=self.post,
            queue=self.queue,
            writer=self.writer,
            max_retries=self.max_retries,
            clock=self._clock,
        )

    async def run(self) -> None:
        """Send requests until the queue is finished.

        Raises:
            EndpointError: The endpoint rejects the key, answers no requests (or only probes) for too long, or
                times out too often.
            CortecsError: An error from the queue or the writer.
        """
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                self._grow()
        finally:
            self._attempts.end()
            if self._test is not None:
                self._test.end()
        if self._error is not None:
            raise self._error

    @property
    def running(self) -> int:
        """Requests in flight."""
        return len(self._attempts.in_flight)

    @property
    def _target_size(self) -> int:
        return self.limit.value if self._test is None and self._attempts.health.down_since is None else 0

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
                if self._attempts.health.resume_at > self._clock():
                    await self._wait_until(self._attempts.health.resume_at)
                    continue
                if self.writer.is_full:
                    await self.writer.wait_for_space()
                request = self.queue.get_nowait()
                if request is None:
                    await self._wait_for_work()
                    continue
                if is_suspect(request):
                    self.queue.add_suspect(request)
                    continue
                await self._attempt(request)
                if self._size < self._target_size:
                    self._grow()
        except Exception as error:  # noqa: BLE001  (raised by `run`, outside of an exception group)
            self._stop(error)
        finally:
            self._size -= 1
            self._stopped.notify()

    async def _wait_for_work(self) -> None:
        if self._error is None and self.queue.has_test():
            self._test = SuspectTest(
                attempts=self._attempts,
                limit=self.limit.value,
                probe=self._answers_at_once,
                is_given_up=lambda: self._error is not None,
            )
            self._tasks.start_soon(self._run_test, self._test)
            return
        self._idle += 1
        try:
            await self.queue.wait_for_change()
        finally:
            self._idle -= 1

    async def _run_test(self, test: SuspectTest) -> None:
        try:
            while self._size or self._is_probing:
                await self._stopped.wait()
            answers = self._attempts.answers
            await test.run()
            if self._attempts.answers > answers:
                self._timeouts = self._hangs = 0  # the endpoint is not slow, and the test may find the cause
        except Exception as error:  # noqa: BLE001  (raised by `run`, outside of an exception group)
            self._stop(error)
        finally:
            self._test = None
            test.end()
        # Not after a cancellation, because a worker would begin the next test, which would be cancelled too.
        self._grow()

    async def _attempt(self, request: Request) -> None:
        attempts = self._attempts
        began = self._clock()
        attempt = attempts.in_flight.begin()
        try:
            result = await attempts.send(request, attempt)
        except BaseException:
            self.queue.put_back(request)
            raise
        now = self._clock()
        if isinstance(result, FailedAttempt):
            self._handle_failure(request, attempt, result, began, now)
            self._probe_if_doubted(request.path)
            return
        attempts.record_answer(result, attempt, now)
        self._probe_if_doubted(request.path)
        usage = result.usage
        tokens = 1 if usage is None else usage.prompt_tokens + usage.completion_tokens or 1
        is_full = self._size - self._idle >= _FULL_SHARE * self.limit.value
        self.limit.record_answer(now, began, tokens, is_full=is_full)

    def _handle_failure(
        self, request: Request, attempt: int, failed: FailedAttempt, began: float, now: float
    ) -> None:
        attempts, reason = self._attempts, failed.reason
        health = attempts.health
        if reason in REJECTIONS:
            health.record_rejection(now)
        else:
            health.record_end(now, began)
        health.record_retry_after(failed, now)
        failed_before = request.failed_at
        has_answered = failed_before is not None and health.last_success >= failed_before
        is_up = has_answered or health.last_success >= began
        is_rejection = reason is FailureReason.RATE_LIMITED or (reason is FailureReason.UNAVAILABLE and is_up)
        if self.running > 1 and is_rejection:
            self.limit.record_rejection(now, began)
            attempts.record_rejection(request, attempt, failed)
            return
        request.failed_at = now
        attempts.record_failure(request, attempt, reason)
        if reason is FailureReason.REFUSED:
            attempts.complete(failed.line)
            return
        if reason is FailureReason.ANSWERED_ERROR:
            self.limit.record_rejection(now, began)
            attempts.proceed(request, failed)
            return
        # No request in flight can show the cause, or none was answered since the request last failed.
        is_unclear = not self.running or (failed_before is not None and not has_answered)
        health.record_failure(now, concurrency=self.limit.value, is_unclear=is_unclear)
        if reason is FailureReason.TIMED_OUT:
            # A server that never rejects requests may still have too many of them.
            self.limit.record_rejection(now, began)
            self._timeouts += 1
            if began >= self._hung_at:
                self._hangs, self._hung_at = self._hangs + 1, now
            if self._hangs >= _MIN_HANGS and self._timeouts >= max(_MAX_TIMEOUTS, attempts.answers):
                self._stop(self._endpoint_error(f"has timed out {self._timeouts} times: {failed.detail}"))
        attempts.proceed(request, failed)

    def _probe_if_doubted(self, path: str) -> None:
        health = self._attempts.health
        now = self._clock()
        if self._attempts.needs_probe or health.rejects_all(now):
            health.doubt(now)
        if health.down_since is not None and not self._is_probing:
            self._is_probing = True
            self._tasks.start_soon(self._probe, path)

    async def _answers_at_once(self, path: str) -> bool:
        """Send probes until the endpoint answers one, and return whether it answered the first one."""
        self._attempts.health.doubt(self._clock())
        self._is_probing = True
        return await self._probe(path)

    async def _probe(self, path: str) -> bool:
        """Send probes until the endpoint answers one. Give up the instance if this takes too long.

        Return whether the endpoint answered the first probe.
        """
        health = self._attempts.health
        request = probe_request(path, self.model)
        is_first, answered_at_once = True, False
        try:
            while health.down_since is not None and not self.queue.is_finished:
                if health.resume_at > self._clock():
                    await self._wait_until(health.resume_at)
                    continue
                outcome = await self._send_probe(request)
                if outcome is None:
                    break
                now, verdict = self._clock(), classify(outcome, request)
                # Requests in flight may still get answers, because some answers take longer than the timeout.
                if isinstance(verdict, AnswerLine):
                    answered_at_once = is_first
                    if not health.rejects_all(now):
                        health.record_success(now)
                        break
                    if not self.running:
                        seconds = health.rejected_seconds(now)
                        self._stop(
                            self._endpoint_error(
                                f"accepts test requests but rejects all others (for {seconds:.0f} s)"
                            )
                        )
                        break
                else:
                    self._attempts.record_failed_probe()
                    log(Event.BATCH_DOUBT, instance_id=self.instance_id, reason=verdict.detail)
                    health.record_retry_after(verdict, now)
                    if health.has_timed_out(verdict.reason, now) and not self.running:
                        self._give_up(verdict, health.down_seconds(now))
                        break
                is_first = False
                await self._wait_until(now + health.next_probe_delay())
            self._attempts.record_probe(answered_at_once=answered_at_once)
            return answered_at_once
        finally:
            self._is_probing = False
            self._stopped.notify()
            self._grow()

    async def _send_probe(self, request: Request) -> Reply | Failure | None:
        """Return the outcome of a probe, or None if the queue was finished first."""
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
        # Other instances may finish the queue in the meantime.
        with anyio.CancelScope(deadline=deadline):
            await self.queue.finished.wait()

    def _give_up(self, failed: FailedAttempt, seconds: float) -> None:
        origin = f" from {self.key_origin}" if self.key_origin else ""
        problems = {
            FailureReason.KEY_REJECTED: f"rejects the API key{origin}",
            FailureReason.RATE_LIMITED: "does not accept requests",
        }
        problem = problems.get(failed.reason, "does not respond")
        self._stop(self._endpoint_error(f"{problem} (for {seconds:.0f} s): {failed.detail}"))

    def _endpoint_error(self, problem: str) -> EndpointError:
        return EndpointError(
            f"The endpoint of instance {self.instance_id} {problem}. All answers are kept. Run the same "
            "batch again to continue.",
            instance_id=self.instance_id,
        )
