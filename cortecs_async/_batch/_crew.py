"""What works on a batch on one instance: so many at once as its endpoint takes."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable

import anyio
from anyio.abc import TaskGroup

from .._detached import clock
from .._errors import EndpointError, InstanceLostError
from .._limit import Limit
from ._format import Request
from ._sender import Reply, Sender
from ._sink import Line, Sink
from ._verdict import MOST_PASSED, Again, Refused, Settled, Verdict, judge
from ._work import Work

logger = logging.getLogger("cortecs_async.batch")

# Seconds in which an endpoint may fail every request before it is given up, with all that is paid for it.
PATIENCE = 180.0

# Seconds until a request is tried again of which it cannot be told whether its instance was gone.
_DOUBT = 5.0

# Of the limit, so many must have work for the answers to tell something of it.
_NEARLY_FULL = 0.9


class Crew:
    """Works on an instance until everything is answered.

    Args:
        instance_id: The instance.
        sender: To its endpoint.
        work: What is left, shared with others.
        sink: Takes the answers.
        limit: How many at once.
        max_retries: Attempts that may fail after the first, before a request becomes an error line.
        is_alive: Asks the service whether the instance still runs; None when that cannot be told.
    """

    def __init__(
        self,
        *,
        instance_id: str,
        sender: Sender,
        work: Work,
        sink: Sink,
        limit: Limit,
        max_retries: int,
        is_alive: Callable[[], Awaitable[bool | None]],
    ) -> None:
        self._instance_id = instance_id
        self._sender = sender
        self._work = work
        self._sink = sink
        self._limit = limit
        self._max_retries = max_retries
        self._is_alive = is_alive
        self._rng = random.Random()  # noqa: S311  (jitter)
        self._tasks: TaskGroup | None = None
        self._size = 0
        self._idle = 0
        self.busy: int = 0
        self._error: Exception | None = None
        self._clock = clock()
        self._failing_since: float | None = None
        self._has_succeeded = False
        self._resume_at = float("-inf")
        self._looked_at = float("-inf")
        self._look: anyio.Event | None = None
        self._seen_alive: bool | None = None

    async def run(self) -> None:
        """Works.

        Raises:
            InstanceLostError: when the instance is gone.
            EndpointError: when its endpoint refuses the key, or fails every request for too long.
            CortecsError: what taking or writing raises.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._grow()
        if self._error is not None:
            raise self._error

    def _grow(self) -> None:
        while self._tasks is not None and self._size < self._limit.value:
            self._size += 1
            self._tasks.start_soon(self._work_on)

    def _stop(self, error: Exception) -> None:
        if self._error is None and self._tasks is not None:
            self._error = error
            self._tasks.cancel_scope.cancel()

    async def _work_on(self) -> None:
        try:
            while self._size <= self._limit.value:
                if self._resume_at > self._clock():
                    await anyio.sleep_until(self._resume_at)
                if self._sink.is_full:
                    await self._sink.wait_for_room()
                request = self._work.take_now()
                if request is None:
                    self._idle += 1
                    try:
                        request = await self._work.take()
                    finally:
                        self._idle -= 1
                    if request is None:
                        return
                await self._attempt(request)
                if self._size < self._limit.value:
                    self._grow()
        except Exception as error:  # noqa: BLE001  (raised by `run`, and not in a group)
            self._stop(error)
        finally:
            self._size -= 1

    async def _attempt(self, request: Request) -> None:
        began = self._clock()
        self.busy += 1
        try:
            outcome = await self._sender.post(request.path, request.body)
        except BaseException:
            self._work.give_back(request)
            raise
        finally:
            self.busy -= 1
        verdict = judge(outcome, request, max_retries=self._max_retries, rng=self._rng)
        now = self._clock()
        if isinstance(outcome, Reply) and (outcome.status < 500 and outcome.status != 429):
            self._failing_since = None
            self._has_succeeded = self._has_succeeded or outcome.status < 300
        if isinstance(verdict, Settled) and not verdict.is_doubtful:
            usage = verdict.usage
            work = 1 if usage is None else usage.prompt_tokens + usage.completion_tokens or 1
            is_full = self._size - self._idle >= _NEARLY_FULL * self._limit.value
            self._limit.answered(now, began, work, is_full=is_full)
            self._settle(request, verdict)
        else:
            try:
                await self._go_on(request, verdict, began)
            except BaseException:
                # Not while it is settled or put back, which nothing interrupts.
                self._work.give_back(request)
                raise

    def _settle(self, request: Request, verdict: Settled | Refused) -> None:
        usage = verdict.usage if isinstance(verdict, Settled) else None
        self._sink.put(Line(request, verdict.line, usage))
        self._work.settle()

    async def _go_on(self, request: Request, verdict: Verdict, began: float) -> None:
        now = self._clock()
        match verdict:
            case Again():
                self._check_patience(now, verdict.detail)
                logger.info("%s: %s, again in %.1f s", request.custom_id, verdict.detail, verdict.wait)
                if verdict.is_overload:
                    self._limit.refused(now, began)
                if verdict.is_outage:
                    # It is of no use to try the others meanwhile.
                    self._resume_at = max(self._resume_at, now + verdict.wait)
                if verdict.counts:
                    request.failures += 1
                else:
                    request.passed += 1
                self._work.postpone(request, verdict.wait)
            case Refused() if verdict.status == 401 or not self._has_succeeded:
                raise EndpointError(
                    f"the endpoint of instance {self._instance_id} refuses the key ({verdict.detail}): check "
                    "CORTECS_API_KEY or OPENAI_API_KEY. Nothing that was answered is lost.",
                    instance_id=self._instance_id,
                )
            case _:
                await self._settle_if_alive(request, verdict, now)

    async def _settle_if_alive(self, request: Request, verdict: Settled | Refused, since: float) -> None:
        """An error line is for good, so it must not be the instance's end that caused it."""
        is_alive = await self._look_after(since)
        if is_alive is None and request.passed < MOST_PASSED:
            logger.info("%s: whether its instance still runs cannot be asked just now", request.custom_id)
            request.passed += 1
            self._work.postpone(request, _DOUBT)
        elif is_alive is False:
            raise InstanceLostError(
                f"instance {self._instance_id} stopped or vanished under the batch",
                instance_id=self._instance_id,
            )
        else:
            self._settle(request, verdict)

    async def _look_after(self, since: float) -> bool | None:
        # One look serves all who wait for it, if it began after what made them doubt.
        while self._looked_at < since:
            if self._look is not None:
                await self._look.wait()
                continue
            look = self._look = anyio.Event()
            began = self._clock()
            try:
                self._seen_alive = await self._is_alive()
                self._looked_at = began
            finally:
                self._look = None
                look.set()
        return self._seen_alive

    def _check_patience(self, now: float, detail: str) -> None:
        # Since the first failure, and not since the last answer: long requests may time out together.
        if self._failing_since is None:
            self._failing_since = now
        elif now - self._failing_since > PATIENCE:
            raise EndpointError(
                f"the endpoint of instance {self._instance_id} has answered nothing for {PATIENCE:g} s: "
                f"{detail}. Nothing that was answered is lost.",
                instance_id=self._instance_id,
            )
