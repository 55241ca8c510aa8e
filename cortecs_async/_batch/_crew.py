"""What works on a batch on one instance: so many at once as its endpoint takes."""

from __future__ import annotations

import logging
import random

import anyio
from anyio.abc import TaskGroup

from .._detached import clock
from .._errors import EndpointError
from .._limit import Limit
from ._format import Request, Usage
from ._sender import Sender
from ._sink import Line, Sink
from ._verdict import Failed, Settled, Trouble, backoff, judge
from ._work import Work

logger = logging.getLogger("cortecs_async.batch")

# Seconds in which an endpoint may fail every request before it is given up, with all that is paid for it; and
# those for a key that it has never taken, which another try mostly does not change.
PATIENCE = 180.0
KEY_PATIENCE = 10.0

# Seconds between two tries while an endpoint is out.
_LONGEST_PAUSE = 10.0

# How often a request may be put off although others are answered: only so that none goes on for ever.
_MOST_PUT_OFF = 100

# Of the limit, so many must have work for the answers to tell something of it.
_NEARLY_FULL = 0.9


class Crew:
    """Works on an instance until everything is answered.

    A failure can be the request's fault or the endpoint's, and from one alone that cannot be told: an
    instance that dies, or whose server starts anew, answers 404, 502 or nothing. So a request is to blame
    when the endpoint has answered another one meanwhile. Otherwise the endpoint is out: one request at a time
    is tried, until one is answered or the patience is over.

    Args:
        instance_id: The instance.
        sender: To its endpoint.
        work: What is left, shared with others.
        sink: Takes the answers.
        limit: How many at once.
        max_retries: Attempts that may fail after the first, before a request becomes an error line.
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
    ) -> None:
        self._instance_id = instance_id
        self._sender = sender
        self._work = work
        self._sink = sink
        self._limit = limit
        self._max_retries = max_retries
        self._rng = random.Random()  # noqa: S311  (jitter)
        self._tasks: TaskGroup | None = None
        self._size = 0
        self._idle = 0
        self.busy: int = 0
        self._error: Exception | None = None
        self._clock = clock()
        self._last_good = float("-inf")
        self._out_since: float | None = None
        self._pauses = 0
        self._paused_at = self._resume_at = float("-inf")

    async def run(self) -> None:
        """Works.

        Raises:
            EndpointError: when the endpoint refuses the key, or fails every request for too long.
            CortecsError: what taking or writing raises.
        """
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            self._grow()
        if self._error is not None:
            raise self._error

    @property
    def _allowed(self) -> int:
        """How many at once, now."""
        return self._limit.value if self._out_since is None else 1

    def _grow(self) -> None:
        while self._tasks is not None and self._size < self._allowed:
            self._size += 1
            self._tasks.start_soon(self._work_on)

    def _stop(self, error: Exception) -> None:
        if self._error is None and self._tasks is not None:
            self._error = error
            self._tasks.cancel_scope.cancel()

    async def _work_on(self) -> None:
        try:
            while self._size <= self._allowed:
                if self._resume_at > self._clock():
                    # The others may answer meanwhile what there is.
                    with anyio.move_on_at(self._resume_at):
                        await self._work.wait_until_over()
                if self._sink.is_full:
                    await self._sink.wait_for_room()
                request = self._work.take_now()
                if request is None:
                    if self._work.is_over:
                        return
                    self._idle += 1
                    try:
                        await self._work.wait_for_more()
                    finally:
                        self._idle -= 1
                    continue
                await self._attempt(request)
                if self._size < self._allowed:
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
        now = self._clock()
        verdict = judge(outcome, request)
        if isinstance(verdict, Settled):
            self._last_good = now
            self._out_since = None
            self._pauses = 0
            usage = verdict.usage
            work = 1 if usage is None else usage.prompt_tokens + usage.completion_tokens or 1
            is_full = self._size - self._idle >= _NEARLY_FULL * self._limit.value
            self._limit.answered(now, began, work, is_full=is_full)
            self._settle(request, verdict.line, usage)
            return
        try:
            self._go_on(request, verdict, began, now)
        except BaseException:
            self._work.give_back(request)
            raise

    def _settle(self, request: Request, line: bytes, usage: Usage | None = None) -> None:
        self._sink.put(Line(request, line, usage))
        self._work.settle(request)

    def _go_on(self, request: Request, failed: Failed, began: float, now: float) -> None:
        """After an attempt without an answer.

        Raises:
            EndpointError: when the patience is over.
        """
        is_there = self._last_good >= began
        if failed.trouble is Trouble.TOO_MANY or (failed.trouble is Trouble.NOT_READY and is_there):
            self._put_off(request, failed, began, now)
            return
        self._work.note_failure(request)
        if is_there or (failed.trouble is not Trouble.KEY and self._work.has_only_failures):
            self._count(request, failed, now, is_there=is_there)
        else:
            self._wait_out(request, failed, began, now)

    def _put_off(self, request: Request, failed: Failed, began: float, now: float) -> None:
        """There are too many at once, of which this one is not to blame."""
        self._limit.refused(now, began)
        if failed.retry_after:
            self._resume_at = max(self._resume_at, now + failed.retry_after)
        request.put_off += 1
        if request.put_off > _MOST_PUT_OFF:
            self._settle(request, failed.line)
        else:
            # Not so long as it was asked for: that holds for this endpoint, and others may be free.
            self._try_again(request, failed, backoff(request.put_off - 1, self._rng))

    def _count(self, request: Request, failed: Failed, now: float, *, is_there: bool) -> None:
        """It is to blame; or nobody is left who could show that it is not, for which it gets more time."""
        request.failures += 1
        if self._out_since is None and not is_there:
            self._out_since = now
        is_over = is_there or (self._out_since is not None and now - self._out_since > PATIENCE)
        if request.failures > self._max_retries and (is_over or failed.is_time_out):
            self._settle(request, failed.line)
        else:
            self._try_again(request, failed, backoff(request.failures - 1, self._rng))

    def _wait_out(self, request: Request, failed: Failed, began: float, now: float) -> None:
        """The endpoint is out."""
        if self._out_since is None:
            self._out_since = now
        is_new_key = failed.trouble is Trouble.KEY and self._last_good == float("-inf")
        patience = KEY_PATIENCE if is_new_key else PATIENCE
        # What is under way may yet be answered: there are answers that take longer than the patience.
        if now - self._out_since > patience and not self.busy:
            what = "refuses the key" if failed.trouble is Trouble.KEY else "answers nothing"
            raise EndpointError(
                f"the endpoint of instance {self._instance_id} {what}, for {now - self._out_since:.0f} s: "
                f"{failed.detail}. Nothing that was answered is lost.",
                instance_id=self._instance_id,
            )
        if began > self._paused_at:
            # Of many that were under way and fail together, the first makes the pause.
            pause = max(failed.retry_after, min(backoff(self._pauses, self._rng), _LONGEST_PAUSE))
            self._pauses += 1
            self._paused_at, self._resume_at = now, max(self._resume_at, now + pause)
        logger.info("%s: %s, the endpoint is out", request.custom_id, failed.detail)
        self._work.give_back(request)

    def _try_again(self, request: Request, failed: Failed, wait: float) -> None:
        logger.info("%s: %s, again in %.1f s", request.custom_id, failed.detail, wait)
        self._work.postpone(request, wait)
