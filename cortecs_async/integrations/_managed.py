"""The common part of background and shared instances: the block, and the state that an app sees in it."""

from __future__ import annotations

import abc
import contextlib
import logging
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import Literal, Self, TypedDict

import anyio
from attrs import frozen

from .. import ConfigurationError, CortecsError, InstanceHandle, InvalidArgumentError
from .._aio.background import BackgroundTask
from .._aio.eventloop import current_loop, loop_runner
from .._aio.synchronization import Broadcast
from .._aio.tasks import redeliver_cancellation, run_uncancellable
from .._durations import check_seconds
from .._hint_tables import START_ARGUMENTS
from .._hints import explain_argument
from ..types import BillingInterval, Duration, Ready

logger = logging.getLogger("cortecs_async.web")

# The `Retry-After`, in seconds, while an instance is starting.
RETRY_AFTER = 10.0

Reason = Literal[
    "starting",
    "restarting",
    "idle",
    "no_capacity",
    "no_balance",
    "misconfigured",
    "unreachable",
    "limit_reached",
    "failed",
    "unresponsive",
    "stopped",
]
"""The reasons why no instance is running: the values of `NotReadyError.reason`."""

# Users of the app can see these: no ids, no names, no text from the service.
_MESSAGES: Mapping[Reason, str] = {
    "starting": "The model is starting, which takes a few minutes",
    "restarting": "The model is being restarted, which takes a few minutes",
    "idle": "The model was not in use and is starting again, which takes a few minutes",
    "no_capacity": "No capacity is available for the model right now",
    "no_balance": "The balance of the account that pays for the model is used up",
    "misconfigured": "The model cannot be started, because this app is not configured correctly",
    "unreachable": "The service that runs the model does not respond right now",
    "limit_reached": "This app has reached its limit for the model",
    "failed": "The model could not be started",
    "unresponsive": "This app cannot tell right now whether the model is running",
    "stopped": "This app is shutting down",
}


class NotReadyError(CortecsError, RuntimeError):
    """No instance is running: not yet, or no longer.

    Why: `reason` and the message state the cause, for example that the instance is starting. You can show the
    message to users of your app, because it is one of a few fixed sentences. Do not show them `detail`, which
    contains ids and quotes the service. A traceback shows `detail` as a note.

    What to do: Respond with status 503, the message, and `headers`. To wait instead, call `wait()`.

    Args:
        reason: Selects the message.
        detail: The cause, for the people who run the app.
        retry_after: Seconds to wait before the next attempt, or None if no new instance will be started.

    Attributes:
        status_code: 503.
        reason: One word for programs, such as `"starting"`, `"no_capacity"` or `"no_balance"`.
        detail: The cause, for the people who run the app.
        retry_after: Seconds to wait before the next attempt, or None if no new instance will be started.

    Example:
        from cortecs_async.integrations.web import BackgroundInstance, NotReadyError

        async with BackgroundInstance(client, "meta-llama/Llama-3.1-8B-Instruct") as instance:
            try:
                print(instance.handle().base_url)
            except NotReadyError as error:
                print(error.status_code, error.headers, error)
    """

    status_code = 503

    def __init__(self, reason: Reason, *, detail: str = "", retry_after: float | None) -> None:
        super().__init__(_MESSAGES[reason])
        self.reason: Reason = reason
        self.detail = detail
        self.retry_after = retry_after
        if detail:
            self.add_note(f"cortecs_async: {detail}")

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds, or an empty string if no new instance will be started."""
        return {} if self.retry_after is None else {"Retry-After": f"{max(self.retry_after, 1):.0f}"}


class StartOptions(TypedDict, total=False):
    """The options of `client.instance` that background and shared instances accept, with the same meaning.

    The default of `ready` is `answer`. `max_lifetime` and `max_cost` limit the total of all instances that
    one block starts. Once a limit is reached, no new instance is started.

    With `idle_timeout`, calls of `handle` and `wait` count as requests. An idle instance is released, and the
    next call of `handle` or `wait` starts a new one.
    """

    context_length: int | None
    num_workers: int
    billing_interval: BillingInterval
    start_timeout: Duration
    teardown_timeout: Duration
    max_lifetime: Duration | None
    max_cost: float | None
    max_price_per_hour: float | None
    capacity_timeout: Duration | None
    ready: Ready
    idle_timeout: Duration | None
    require_key: bool | None
    project: str | None


def _in_seconds(options: StartOptions) -> StartOptions:
    """Check the durations and convert them to seconds, so that equal options produce the same JSON."""
    converted = options.copy()
    for name in ("start_timeout", "teardown_timeout", "max_lifetime", "capacity_timeout", "idle_timeout"):
        if (value := options.get(name)) is not None:
            converted[name] = float(check_seconds(name, value))
    return converted


@frozen
class Unavailable:
    """The state of a managed instance that is not running. `NotReadyError` shows it."""

    reason: Reason
    detail: str = ""
    retry_after: float | None = RETRY_AFTER


State = InstanceHandle | Unavailable


class ManagedInstance(abc.ABC):
    """The base of `BackgroundInstance` and `SharedInstance`.

    The work runs in a separate task, so the block can be left in a different task than the one that entered
    it. That is how pytest and some servers run the two halves of a fixture or a lifespan.
    """

    def __init__(self, pause: Duration, options: StartOptions) -> None:
        if unknown := options.keys() - StartOptions.__annotations__.keys():
            names, known = sorted(unknown), StartOptions.__annotations__
            explained = explain_argument(names[0], START_ARGUMENTS, known)
            choices = f". The options are {', '.join(known)}"
            raise InvalidArgumentError(f"Unknown option {', '.join(names)}{explained or choices}")
        # With a shorter pause, failing starts would follow each other without a break.
        self._pause = check_seconds("pause", pause, at_least=0.1)
        self._options = _in_seconds({"ready": "answer", **options})
        self._state: State = Unavailable("stopped", "not entered")
        self._changed = Broadcast()
        self._reported: str | None = None  # the id of an instance to which a request failed
        self._new_report = Broadcast()
        self._is_entered = False
        # Set on entry: the object may be created at import, outside any event loop.
        self._work: BackgroundTask
        self._scope: anyio.CancelScope
        self._loop: object
        self._run_in_loop: Callable[[Callable[[], object]], object]

    def handle(self) -> InstanceHandle:
        """Return the running instance. Call this for every request, because a lost instance is replaced.

        Raises:
            NotReadyError: If no instance is running.
            InvalidArgumentError: Outside the `async with` block.

        Example:
            async with BackgroundInstance(client, "meta-llama/Llama-3.1-8B-Instruct") as instance:
                try:
                    print(instance.handle().base_url)
                except NotReadyError as error:
                    print(error.status_code, error.headers, error)
        """
        if not self._is_entered:
            raise InvalidArgumentError(
                f"{self!r} must be used inside its `async with` block. Enter it in the lifespan of the app "
                "that is served. Servers do not run the lifespans of mounted apps."
            )
        state = self._state
        self.note_use()
        if isinstance(state, Unavailable):
            raise NotReadyError(state.reason, detail=state.detail, retry_after=state.retry_after)
        return state

    async def wait(self) -> InstanceHandle:
        """Wait until an instance is running, then return it. Meant for background work.

        Raises:
            NotReadyError: If no new instance will be started.
            InvalidArgumentError: Outside the `async with` block.

        Example:
            async with BackgroundInstance(client, "meta-llama/Llama-3.1-8B-Instruct") as instance:
                inst = await instance.wait()
                print(inst.base_url)
        """
        while True:
            try:
                return self.handle()
            except NotReadyError as error:
                if error.retry_after is None:
                    raise
            await self._changed.wait()

    def note_use(self) -> None:
        """Count as a request, for the `idle_timeout`. Start a new instance if the last one was idle."""
        return

    def report(self, error: BaseException, handle: InstanceHandle | None = None) -> None:
        """Report that a request to the instance failed, for example because the connection was refused.

        The status of the instance is then checked immediately instead of within ten seconds. If the instance
        is not running, `handle()` raises `NotReadyError` until the instance is running again or has been
        replaced. If it is running, the report has no effect, because a failed request alone never ends an
        instance. Reports in quick succession share one check. You can call this in any thread.

        Args:
            error: The error of the request.
            handle: The instance that the request was sent to. Default: the current one. Nothing is checked
                if it has since been replaced.

        Example:
            async with BackgroundInstance(client, "meta-llama/Llama-3.1-8B-Instruct") as instance:
                inst = await instance.wait()
                try:
                    raise ConnectionError("refused")  # here you send a request to inst.base_url
                except ConnectionError as error:
                    instance.report(error, inst)
        """
        if handle is not None and not isinstance(handle, InstanceHandle):
            raise InvalidArgumentError(f"report needs the handle that was used, not {type(handle).__name__}")
        reported = handle or self._state
        if isinstance(reported, InstanceHandle):
            logger.info("A request to instance %s failed: %s", reported.instance_id, type(error).__name__)
            self.report_id(reported.instance_id)

    def report_id(self, instance_id: str) -> None:
        """Report that a request to an instance failed. Ignored unless that instance is the running one."""
        state = self._state
        if isinstance(state, InstanceHandle) and state.instance_id == instance_id:
            self._reported = instance_id
            with contextlib.suppress(RuntimeError):  # the event loop has ended
                self._run_in_loop(self._new_report.notify)

    async def next_report(self) -> str:
        """Wait for a report and return the id of the instance."""
        while self._reported is None:
            await self._new_report.wait()
        instance_id, self._reported = self._reported, None
        return instance_id

    async def state_after(self, known: State | None) -> State:
        """Wait until the state differs from `known`, then return it."""
        while self._state == known:
            await self._changed.wait()
        return self._state

    async def __aenter__(self) -> Self:
        """Start an instance without waiting until it is running.

        Raises:
            InvalidArgumentError: If an argument is invalid, or the block was already entered.
            ConfigurationError: If the integration cannot work on this machine.
        """
        if self._is_entered:
            raise InvalidArgumentError(f"{self!r} was already entered. Enter it once; all tasks can use it.")
        # Set before the first await, because another task may enter the block during it.
        self._is_entered = True
        self._set(Unavailable("starting"))
        try:
            await self._check()
        except BaseException:
            self._is_entered = False
            self._set(Unavailable("stopped", "not entered"))
            raise
        self._loop, self._run_in_loop = current_loop(), loop_runner()
        self._reported = None
        self._scope = anyio.CancelScope()
        self._work = BackgroundTask(self._run_until_left)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Return once the instance is released, or left to the other processes that share it.

        Raises:
            ConfigurationError: If called in a different event loop than `__aenter__`. That event loop
                releases the instance, at the latest when it exits.
        """
        if not self._is_entered:
            return
        if current_loop() is not self._loop:
            self._leave_in_another_loop(exc)
            return
        # Another task may leave the block too and enter it again before this one is done.
        work = self._work
        ended = await run_uncancellable(partial(self._end, work, self._scope), restart_if_cancelled=True)
        if self._work is work:
            self._mark_as_left()
        if exc is None:
            ended.unwrap()
        elif ended.interruption is not None and not isinstance(exc, type(ended.interruption)):
            redeliver_cancellation(ended.interruption, exc)

    async def _end(self, work: BackgroundTask, scope: anyio.CancelScope) -> None:
        try:
            await self._leave()
        finally:
            # A scope stays cancelled. Cancelling the task would end only one of its waits.
            scope.cancel()
            await work.join()

    def _leave_in_another_loop(self, exc: BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # it has ended
            self._run_in_loop(self._scope.cancel)
        self._mark_as_left()
        problem = f"{type(self).__name__} must be left in the event loop it was entered in"
        if exc is None:
            raise ConfigurationError(problem)
        exc.add_note(f"cortecs_async: {problem}")

    def _mark_as_left(self) -> None:
        self._is_entered = False
        self._set(Unavailable("stopped", "left"))

    async def _run_until_left(self) -> None:
        with self._scope:
            try:
                await self._run()
            except Exception as error:
                logger.exception("Unexpected error")
                self._set(Unavailable("failed", repr(error), None))

    @abc.abstractmethod
    async def _check(self) -> None:
        """Raise an error if the arguments or the environment cannot work."""

    @abc.abstractmethod
    async def _run(self) -> None:
        """Keep the state up to date until cancelled."""

    async def _leave(self) -> None:
        """Do the work that must come before `_run` is cancelled."""
        return

    def _set(self, state: State) -> None:
        if state == self._state:
            return
        if isinstance(state, InstanceHandle):
            logger.info("Instance %s is running %s", state.instance_id, state.model)
        self._state = state
        self._changed.notify()

    def __repr__(self) -> str:
        state = self._state
        shown = state.detail or state.reason if isinstance(state, Unavailable) else state.instance_id
        return f"<{type(self).__name__} {shown}>"
