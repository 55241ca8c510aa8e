"""What works on a batch on one instance: so many at once as its endpoint takes."""

from __future__ import annotations

import random

import anyio
from anyio.abc import TaskGroup

from .._aio.clock import loop_clock
from .._errors import EndpointError
from .._http.messages import Failure, FailureKind
from .._logging import Event, log
from .concurrency import ConcurrencyLimit
from .format import Request, Usage
from .health import Health, small_request
from .outcome import Failed, FailureReason, Settled, backoff, classify
from .request_queue import RequestQueue
from .sender import Reply, Sender
from .writer import AnswerWriter, Line

# Attempts that may time out: each takes all the time that an attempt may, and a model that does not come to
# an end mostly does not the next time either.
_MOST_TIME_OUTS = 2

# With so many time-outs, and more than answers, they are no exceptions, and cost more than they bring.
_WASTED = 64

# Seconds for the small request of our own.
_SMALL_TIMEOUT = 60.0

# Of the limit, so many must have work for the answers to tell something of it.
_NEARLY_FULL = 0.9


class WorkerPool:
    """Works on an instance until everything is answered.

    While there is doubt whether the endpoint is there (see `Health`), only that is found out.

    Args:
        instance_id: The instance.
        model: As the endpoint calls it.
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
        model: str,
        sender: Sender,
        work: RequestQueue,
        sink: AnswerWriter,
        limit: ConcurrencyLimit,
        max_retries: int,
    ) -> None:
        self._instance_id = instance_id
        self._model = model
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
        self._clock = loop_clock()
        self._health = Health(self._rng)
        self._is_probing = False
        self._answers = self._time_outs = 0

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
        return self._limit.value if self._health.doubt_since is None else 0

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
            while self._size <= self._allowed and not self._work.is_finished:
                if self._health.resume_at > self._clock():
                    await self._wait_until(self._health.resume_at)
                    continue
                if self._sink.is_full:
                    await self._sink.wait_for_room()
                request = self._work.get_nowait()
                if request is None:
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
            self._work.put_back(request)
            raise
        finally:
            self.busy -= 1
        now = self._clock()
        verdict = classify(outcome, request)
        if isinstance(verdict, Settled):
            self._settle(request, verdict.line, verdict.usage)
            self._health.answered(now)
            self._answers += 1
            usage = verdict.usage
            work = 1 if usage is None else usage.prompt_tokens + usage.completion_tokens or 1
            is_full = self._size - self._idle >= _NEARLY_FULL * self._limit.value
            self._limit.answered(now, began, work, is_full=is_full)
        else:
            self._go_on(request, verdict, began, now)

    def _settle(self, request: Request, line: bytes, usage: Usage | None = None) -> None:
        self._sink.put(Line(request, line, usage))
        self._work.task_done()

    def _go_on(self, request: Request, failed: Failed, began: float, now: float) -> None:
        """After an attempt without an answer."""
        health = self._health
        health.put_off(failed, now)
        # What was answered since it began may have been just before the endpoint went away. Only what is
        # answered after a failure tells whose fault that was.
        was_before = request.is_own_fault is not None
        is_to_blame = request.is_own_fault is not None and request.is_own_fault()
        if self.busy and self._is_of_too_many(failed, is_there=is_to_blame or health.last_good >= began):
            self._limit.refused(now, began)
            request.put_off += 1
            self._postpone(request, failed, request.put_off)
            return
        request.is_own_fault = lambda: health.last_good >= now
        request.tries += 1
        request.time_outs += failed.is_time_out
        if is_to_blame:
            # At the first time so is the one before.
            request.failures += 1 if request.failures else 2
            if request.failures > self._max_retries or request.time_outs >= _MOST_TIME_OUTS:
                self._settle(request, failed.line)
                return
        is_unclear = not self.busy or (was_before and not is_to_blame)
        health.failed(now, at_once=self._limit.value, is_unclear=is_unclear)
        self._find_out(request.path)
        if failed.is_time_out:
            self._time_outs += 1
            if self._time_outs >= max(_WASTED, self._answers):
                self._stop(self._error_of(f"has timed out {self._time_outs} times: {failed.detail}"))
            log(Event.BATCH_RETRY_LAST, custom_id=request.custom_id, reason=failed.detail)
            self._work.put_last(request)
        else:
            self._postpone(request, failed, request.tries)

    def _is_of_too_many(self, failed: Failed, *, is_there: bool) -> bool:
        return failed.reason is FailureReason.TOO_MANY or (
            failed.reason is FailureReason.NOT_READY and is_there
        )

    def _postpone(self, request: Request, failed: Failed, count: int) -> None:
        # Not so long as `Retry-After` asks: that holds for this endpoint, and others may be free.
        wait = backoff(count - 1, self._rng)
        log(Event.BATCH_RETRY, custom_id=request.custom_id, wait=wait, reason=failed.detail)
        self._work.postpone(request, wait)

    def _find_out(self, path: str) -> None:
        """Sees to it that doubts come to an end."""
        if self._health.doubt_since is not None and not self._is_probing and self._tasks is not None:
            self._is_probing = True
            self._tasks.start_soon(self._probe, path)

    async def _probe(self, path: str) -> None:
        """Asks for something small until anything is answered, or the patience is over."""
        health = self._health
        request = small_request(path, self._model)
        try:
            while health.doubt_since is not None and not self._work.is_finished:
                if health.resume_at > self._clock():
                    await self._wait_until(health.resume_at)
                    continue
                outcome = await self._ask(request)
                if outcome is None:
                    return
                now, verdict = self._clock(), classify(outcome, request)
                if isinstance(verdict, Settled):
                    health.answered(now)
                    return
                log(Event.BATCH_DOUBT, instance_id=self._instance_id, reason=verdict.detail)
                health.put_off(verdict, now)
                # What is under way may yet be answered: there are answers that take longer than the patience.
                if health.is_grace_over(verdict, now) and not self.busy:
                    self._give_up(verdict, health.doubted_for(now))
                    return
                await self._wait_until(now + health.next_pause())
        finally:
            self._is_probing = False
            self._grow()

    async def _ask(self, request: Request) -> Reply | Failure | None:
        """The outcome of a small request; None when there is nothing left to do meanwhile."""
        outcome: Reply | Failure | None = None
        async with anyio.create_task_group() as tasks:

            async def stop() -> None:
                await self._work.wait_until_over()
                tasks.cancel_scope.cancel()

            tasks.start_soon(stop)
            with anyio.move_on_after(_SMALL_TIMEOUT) as scope:
                outcome = await self._sender.post(request.path, request.body)
            if scope.cancelled_caught:
                outcome = Failure(kind=FailureKind.TIMED_OUT, detail=f"no answer within {_SMALL_TIMEOUT:g} s")
            tasks.cancel_scope.cancel()
        return outcome

    async def _wait_until(self, moment: float) -> None:
        # The others may answer meanwhile what there is.
        with anyio.CancelScope(deadline=moment):
            await self._work.wait_until_over()

    def _give_up(self, failed: Failed, seconds: float) -> None:
        what = {FailureReason.KEY: "refuses the key", FailureReason.TOO_MANY: "takes no requests"}
        said = what.get(failed.reason, "answers nothing")
        self._stop(self._error_of(f"{said}, for {seconds:.0f} s: {failed.detail}"))

    def _error_of(self, said: str) -> EndpointError:
        return EndpointError(
            f"the endpoint of instance {self._instance_id} {said}. Nothing that was answered is lost.",
            instance_id=self._instance_id,
        )
