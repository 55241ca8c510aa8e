"""Record the outcomes of attempts on one endpoint, and decide what happens to their requests."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import anyio
from attrs import define, field

from .._aio.eventloop import loop_clock
from .._http.messages import Failure
from .._logging import Event, log
from .answers import AnswerLine
from .format import Request
from .health import EndpointHealth
from .outcome import FailedAttempt, FailureReason, answered_error_delay, classify, retry_delay
from .request_queue import RequestQueue
from .sender import Reply
from .suspects import InFlight, NextStep, next_step
from .writer import AnswerWriter

# Send a probe after this many error bodies with a success status in a row, because a gateway with no server
# behind it may send such an error for every request.
_MAX_ANSWERED_ERRORS = 8

# Seconds between a failure and its evaluation. When a server stops, an answer sent earlier may be read after
# the failures, as if the server had kept running. Restarting a server takes longer than this.
_SETTLE_SECONDS = 0.05

# Failures with a clear cause. Answers to other requests are not needed to find it.
_CLEAR_REASONS = frozenset({FailureReason.NOT_SENT, FailureReason.ANSWERED_ERROR, FailureReason.REFUSED})

# Failures that are evaluated immediately.
_SETTLED_REASONS = _CLEAR_REASONS | {FailureReason.TIMED_OUT, FailureReason.RATE_LIMITED}

Verdicts = Sequence[tuple[Request, bool]]


class _Failure(NamedTuple):
    request: Request
    attempt: int
    reason: FailureReason


@define(eq=False, kw_only=True)
class Attempts:
    """The attempts on one endpoint.

    Args:
        post: Sends a body to a path of the endpoint.
        queue: The unanswered requests, shared with other instances.
        max_retries: Retries after the first attempt before a request becomes an error line.

    Attributes:
        answers: The number of answered requests.
        needs_probe: Failures that a probe must decide (see `record_probe`): timeouts of everything in flight,
            and error bodies with a success status, from the eighth in a row. If the endpoint answers the
            probe, the requests themselves are at fault. Otherwise, a request made the endpoint hang, or no
            server is behind it.
    """

    post: Callable[[str, bytes], Awaitable[Reply | Failure]]
    queue: RequestQueue
    writer: AnswerWriter
    max_retries: int
    clock: Callable[[], float] = field(factory=loop_clock)
    health: EndpointHealth = field(factory=EndpointHealth)
    in_flight: InFlight[_Failure] = field(factory=InFlight[_Failure])
    answers: int = 0
    needs_probe: list[_Failure] = field(factory=list)
    _last_doubted: int = 0  # the last attempt that began before a probe failed
    _answered_errors: int = 0  # in a row

    async def send(self, request: Request, attempt: int) -> AnswerLine | FailedAttempt:
        """Send a request once. The caller records the outcome under the number from `in_flight.begin`."""
        try:
            result = classify(await self.post(request.path, request.body), request)
            if isinstance(result, FailedAttempt) and result.reason not in _SETTLED_REASONS:
                await anyio.sleep(_SETTLE_SECONDS)
        except BaseException:
            self.in_flight.cancel(attempt)
            raise
        return result

    def record_answer(self, line: AnswerLine, attempt: int, now: float) -> Verdicts:
        self.complete(line)
        self.health.record_answer(now)
        self.answers += 1
        self._answered_errors = 0
        return self._apply(self.in_flight.record_answer(attempt))

    def complete(self, line: AnswerLine) -> None:
        self.writer.put(line)
        self.queue.task_done()

    def record_failure(self, request: Request, attempt: int, reason: FailureReason) -> Verdicts:
        if reason in _CLEAR_REASONS:
            if reason is FailureReason.NOT_SENT:
                request.unsent += 1
            elif reason is FailureReason.ANSWERED_ERROR:
                self._record_answered_error(_Failure(request, attempt, reason))
            return self._apply(self.in_flight.end(attempt))
        request.failures += reason is not FailureReason.TIMED_OUT
        request.undecided += 1
        return self._apply(self.in_flight.record_failure(attempt, _Failure(request, attempt, reason)))

    def _record_answered_error(self, failure: _Failure) -> None:
        self._answered_errors += 1
        if self._answered_errors >= _MAX_ANSWERED_ERRORS:
            failure.request.undecided += 1
            self.needs_probe.append(failure)
        else:
            failure.request.own_failures += 1

    def record_failed_probe(self) -> None:
        self._last_doubted = self.in_flight.last

    def record_probe(self, *, answered_at_once: bool) -> None:
        """Decide the requests that needed a probe."""
        self._answered_errors = 0
        failures, self.needs_probe = self.needs_probe, []
        for request, _, reason in failures:
            if reason is FailureReason.ANSWERED_ERROR:
                request.own_failures += answered_at_once
            else:
                request.timeouts += answered_at_once
                request.joint_failures += not answered_at_once
            self._decided(request)

    def _apply(self, verdicts: Sequence[tuple[_Failure, bool]]) -> Verdicts:
        for failure, is_joint in verdicts:
            request, attempt, reason = failure
            is_timeout = reason is FailureReason.TIMED_OUT
            # The endpoint may have hung during the attempt and answered others afterward.
            has_hung = is_timeout and attempt <= self._last_doubted
            if is_timeout and is_joint and not has_hung:
                self.needs_probe.append(failure)
                continue
            is_joint = is_joint or has_hung  # noqa: PLW2901
            request.joint_failures += is_joint
            request.timeouts += is_timeout
            request.own_failures += not (is_joint or is_timeout)
            self._decided(request)
        return [(failure.request, is_joint) for failure, is_joint in verdicts]

    def _decided(self, request: Request) -> None:
        request.undecided -= 1
        self._reconsider(request)

    def _reconsider(self, request: Request) -> None:
        # The request may have failed on another instance since then and be waiting for this verdict.
        failed = self.queue.undecided.pop(request, None)
        if failed is not None:
            self.proceed(request, failed)

    def record_rejection(self, request: Request, attempt: int, failed: FailedAttempt) -> None:
        """Record an attempt rejected because of the load, and send the request again later."""
        request.rejections += 1
        self._apply(self.in_flight.end(attempt))
        self.retry_later(request, failed)

    def end(self) -> None:
        """Decide all failures without a verdict, because no more attempts will be recorded."""
        needs_probe, self.needs_probe = self.needs_probe, []
        for failure in [*self.in_flight.abandon(), *needs_probe]:
            self._decided(failure.request)

    def proceed(self, request: Request, failed: FailedAttempt) -> None:
        match next_step(request, failed.reason, self.max_retries):
            case NextStep.RETRY:
                self.retry_later(request, failed)
            case NextStep.AWAIT_VERDICT:
                self.queue.undecided[request] = failed
            case NextStep.SUSPECT:
                self.queue.add_suspect(request)
            case _:
                self.complete(failed.line)

    def retry_later(self, request: Request, failed: FailedAttempt) -> None:
        if failed.reason is FailureReason.TIMED_OUT:
            log(Event.BATCH_RETRY_LAST, custom_id=request.custom_id, reason=failed.detail)
            self.queue.retry_last(request)
            return
        # Not after `Retry-After`, which applies only to this endpoint. Another one may be free.
        if failed.reason is FailureReason.ANSWERED_ERROR:
            wait = answered_error_delay(request.own_failures + request.undecided - 1)
        else:
            wait = retry_delay(max(request.failures, request.rejections, request.unsent) - 1)
        log(Event.BATCH_RETRY, custom_id=request.custom_id, wait=wait, reason=failed.detail)
        self.queue.retry_later(request, wait)
