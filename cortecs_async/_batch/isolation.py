"""Test suspects (see `suspects`) on an instance that has no other requests in flight."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio
from attrs import define, field

from .answers import AnswerLine
from .attempts import Attempts
from .format import Request
from .outcome import FailedAttempt, FailureReason, retry_delay, stopped_server
from .suspects import REJECTIONS, NextStep, SuspectGroups, next_test_step

# One of the last requests gets an error line if it is rejected on its own for this many seconds while probes
# are answered. With many requests left, the request may not be the cause: a quota may be used up.
_MAX_REJECTED_SECONDS = 120.0


@define(eq=False, kw_only=True)
class SuspectTest:
    """Tests the queue's suspects on one instance after its workers have stopped.

    Args:
        limit: Maximum requests in flight.
        probe: Sends probes until the endpoint answers one, and returns whether it answered the first one. It
            also returns if the instance is given up.
        is_given_up: Returns whether the instance has been given up.
    """

    attempts: Attempts
    limit: int
    probe: Callable[[str], Awaitable[bool]]
    is_given_up: Callable[[], bool]
    _groups: SuspectGroups = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._groups = SuspectGroups(self.limit)
        self.attempts.queue.begin_test()

    async def run(self) -> None:
        """Test all suspects. Call `end` afterward, even after a cancellation."""
        self._groups.add(self.attempts.queue.take_suspects())
        while not self.is_given_up() and (group := self._groups.next()) is not None:
            await self._test(group)

    def end(self) -> None:
        """Put undecided suspects back into the queue for another test."""
        self.attempts.queue.end_test(self._groups.left)

    async def _test(self, group: list[Request]) -> None:
        alone = len(group) == 1
        failures, own = await self._send(group)
        if not failures:
            return
        stayed_up = await self.probe(group[0].path)
        if self.is_given_up():
            if alone and failures[0].reason is FailureReason.LOST:
                self._write_error(failures[0], stayed_up=False)
            return
        steps: dict[NextStep, list[Request]] = {NextStep.TEST_AGAIN: [], NextStep.SPLIT: []}
        for failed in failures:
            request, reason = failed.line.request, failed.reason
            is_own = request in own
            step = next_test_step(
                request, reason, self.attempts.max_retries, alone=alone, is_own=is_own, stayed_up=stayed_up
            )
            if reason is FailureReason.REFUSED:
                self._write_error(failed, stayed_up=stayed_up)
            elif step in steps:
                steps[step].append(request)
            elif step is NextStep.RETRY and alone and stayed_up and self._is_hopeless(request, reason):
                self._write_error(failed, stayed_up=stayed_up)
            elif step is NextStep.RETRY:
                self._groups.decided(request)
                self.attempts.retry_later(request, failed)
            else:
                self._write_error(failed, stayed_up=stayed_up)
        self._groups.test_again(steps[NextStep.TEST_AGAIN])
        self._groups.split(steps[NextStep.SPLIT])

    async def _send(self, group: list[Request]) -> tuple[list[FailedAttempt], set[Request]]:
        """Send requests together. Return the failures, and the requests whose failures are their own."""
        attempts = self.attempts
        failures: list[FailedAttempt] = []
        own: set[Request] = set()

        async def send(request: Request) -> None:
            attempt = attempts.in_flight.begin()
            result = await attempts.send(request, attempt)
            now = attempts.clock()
            if isinstance(result, AnswerLine):
                self._groups.decided(request)
                verdicts = attempts.record_answer(result, attempt, now)
            else:
                failures.append(result)
                request.failed_at = now
                if result.reason in REJECTIONS:
                    attempts.health.record_rejection(now)
                    if len(group) == 1 and request.rejected_alone_since is None:
                        request.rejected_alone_since = now
                attempts.health.record_retry_after(result, now)
                verdicts = attempts.record_failure(request, attempt, result.reason)
                if result.reason is FailureReason.ANSWERED_ERROR:
                    own.add(request)
            # Nothing else is in flight, so these verdicts concern failures in this test.
            own.update(each for each, is_joint in verdicts if not is_joint)

        first = group[0]
        pause = retry_delay(first.solo_failures - 1) if first.solo_failures else 0.0
        await anyio.sleep_until(max(attempts.health.resume_at, (first.failed_at or 0.0) + pause))
        async with anyio.create_task_group() as tasks:
            for request in group:
                tasks.start_soon(send, request)
        return failures, own

    def _is_hopeless(self, request: Request, reason: FailureReason) -> bool:
        since = request.rejected_alone_since
        if reason not in REJECTIONS or since is None or not self.attempts.queue.is_nearly_finished:
            return False
        return self.attempts.clock() - since > _MAX_REJECTED_SECONDS

    def _write_error(self, failed: FailedAttempt, *, stayed_up: bool) -> None:
        self._groups.decided(failed.line.request)
        if failed.reason is FailureReason.LOST and not stayed_up:
            failed = stopped_server(failed)
        self.attempts.complete(failed.line)
