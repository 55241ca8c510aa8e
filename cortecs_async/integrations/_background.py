"""An instance that runs in the background, beside the code that uses it."""

from __future__ import annotations

import abc
import logging
from types import TracebackType
from typing import Self, TypedDict, Unpack

import anyio
from anyio.abc import TaskGroup
from attrs import frozen

from .. import AsyncCortecs, CortecsError, InstanceHandle, InstanceLease, InvalidArgumentError
from ..errors import AmbiguousStartError, APIStatusError, InstanceLostError, LeaseExpiredError
from ..types import Progress

logger = logging.getLogger("cortecs_async.web")

# The `Retry-After` in seconds while an instance is being started.
_RETRY_AFTER = 10.0

# After these errors nothing is started again: another start would exceed a limit, leave another instance
# that cannot be distinguished from a foreign one, or be rejected in the same way.
_FINAL = (LeaseExpiredError, AmbiguousStartError, InvalidArgumentError)


class NotReadyError(CortecsError, RuntimeError):
    """No instance is running. Respond with a 503, its `headers` and its message.

    Attributes:
        status_code: 503.
        retry_after: Seconds to wait before the next attempt; None if no instance will be started again.
    """

    status_code = 503

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds; empty if no instance will be started again."""
        return {} if self.retry_after is None else {"Retry-After": f"{max(self.retry_after, 1):.0f}"}


class StartOptions(TypedDict, total=False):
    """The options of `client.instance` that background and shared instances accept.

    `max_lifetime` and `max_cost` limit the total of all instances that one block starts, one after the other.
    Once a limit is reached, nothing is started again.
    """

    context_length: int | None
    num_workers: int
    billing_interval: str
    start_timeout: float
    teardown_timeout: float
    max_lifetime: float | None
    max_cost: float | None


@frozen
class Unavailable:
    """The state of a managed instance that is not running, as `NotReadyError` shows it."""

    reason: str
    retry_after: float | None = _RETRY_AFTER


State = InstanceHandle | Unavailable


class ManagedInstance(abc.ABC):
    """The base of `BackgroundInstance` and `SharedInstance`."""

    def __init__(self, pause: float) -> None:
        if not pause >= 0.1:
            # Starts that fail would follow each other as fast as they can.
            raise InvalidArgumentError(f"pause must be at least 0.1 seconds, not {pause!r}")
        self._pause = pause
        self._state: State = Unavailable("not entered")
        self._tasks: TaskGroup | None = None
        self._running: anyio.CancelScope
        # Set on entry: the object may be created at import, outside of every event loop.
        self._changed: anyio.Event

    def handle(self) -> InstanceHandle:
        """Return the instance that is running. Call this for every request: a lost instance is replaced.

        Raises:
            NotReadyError: If no instance is running.
            InvalidArgumentError: Outside the `async with` block.
        """
        if self._tasks is None:
            raise InvalidArgumentError(
                f"{self!r} must be used inside its `async with` block. Enter it in the lifespan of the app "
                "that is served (servers do not run the lifespans of mounted apps)"
            )
        if isinstance(self._state, Unavailable):
            raise NotReadyError(self._state.reason, retry_after=self._state.retry_after)
        return self._state

    async def wait(self) -> InstanceHandle:
        """Wait until an instance is running, for work that no HTTP client is waiting for.

        Raises:
            NotReadyError: If no instance will be started again.
            InvalidArgumentError: Outside the `async with` block.
        """
        while True:
            try:
                return self.handle()
            except NotReadyError as error:
                if error.retry_after is None:
                    raise
            await self._changed.wait()

    async def state_after(self, known: State | None) -> State:
        """Wait until the state differs from `known`, and return it."""
        while self._state == known:
            await self._changed.wait()
        return self._state

    async def __aenter__(self) -> Self:
        """Begin to start an instance, without waiting for it to run.

        Raises:
            InvalidArgumentError: If an argument is invalid, or the block was already entered.
            ConfigurationError: If it cannot work on this machine.
        """
        if self._tasks is not None:
            raise InvalidArgumentError(f"{self!r} was already entered")
        await self._check()
        self._changed = anyio.Event()
        self._state = Unavailable("the instance is being started")
        # Cancelling the block must not stop the instance before the block has been left.
        self._running = anyio.CancelScope(shield=True)
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        tasks.start_soon(self._run_shielded)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Return once the instance is released, or left to the other processes that share it."""
        tasks = self._tasks
        if tasks is None:
            return
        try:
            await self._leave()
        finally:
            self._running.cancel()
            try:
                # Without the block's exception, which would come out in an ExceptionGroup.
                await tasks.__aexit__(None, None, None)
            finally:
                self._tasks = None
                self._set(Unavailable("left"))

    async def _run_shielded(self) -> None:
        with self._running:
            await self._run()

    @abc.abstractmethod
    async def _check(self) -> None:
        """Raise if the arguments or the environment cannot work."""

    @abc.abstractmethod
    async def _run(self) -> None:
        """Keep the state up to date until cancelled."""

    async def _leave(self) -> None:
        """Do what must happen before `_run` is cancelled."""
        return

    def _set(self, state: State) -> None:
        if isinstance(state, InstanceHandle):
            logger.info("instance %s serves %s", state.instance_id, state.model)
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        state = self._state.reason if isinstance(self._state, Unavailable) else self._state.instance_id
        return f"<{type(self).__name__} {state}>"


class BackgroundInstance(ManagedInstance):
    """An instance that runs in the background: `async with BackgroundInstance(client, MODEL) as instance:`.

    Entering returns immediately. `instance.handle()` returns the running instance or raises `NotReadyError`.
    Leaving releases the instance, as leaving a lease does; a release that fails is logged. A lost instance is
    replaced immediately. A start that fails is tried again after `pause`, unless that would exceed a limit.
    Every process has its own instance: for a server with several workers, use `SharedInstance`.

    Args:
        client: The client that starts the instances. Close it after this block.
        model_id: As for `client.instance`.
        hardware_type_id: As for `client.instance`.
        pause: Seconds between a failed start and the next attempt.
        **options: As for `client.instance`; see `StartOptions`.

    Raises:
        InvalidArgumentError: If `pause` is too short.
    """

    def __init__(
        self,
        client: AsyncCortecs,
        model_id: str,
        hardware_type_id: str | None = None,
        *,
        pause: float = 30.0,
        **options: Unpack[StartOptions],
    ) -> None:
        super().__init__(pause)
        self._client = client
        self._model_id = model_id
        self._hardware_type_id = hardware_type_id
        self._options = options
        self._used_seconds = 0.0
        self._used_cost = 0.0

    async def _check(self) -> None:
        self._used_seconds = self._used_cost = 0.0
        self._lease()

    async def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            await anyio.sleep(pause)
            pause = await self._run_one()

    async def _run_one(self) -> float | None:
        """Run one instance until it ends. Return the seconds until the next start, None if there is none."""
        lease: InstanceLease | None = None
        pause: float | None = 0.0
        try:
            lease = self._lease()
            async with lease:
                self._set(lease.handle)
                try:
                    await anyio.sleep_forever()
                finally:
                    # Requests must not use it during its release.
                    self._set(Unavailable("the instance is being released"))
        except Exception as error:  # noqa: BLE001  (a credential provider may raise anything)
            pause = self._pause_after(error)
            logger.warning("no instance of %s: %r", self._model_id, error)
            retry_after = None if pause is None else pause or _RETRY_AFTER
            self._set(Unavailable(str(error) or repr(error), retry_after))
        finally:
            self._add_usage(lease)
        return pause

    def _pause_after(self, error: Exception) -> float | None:
        if isinstance(error, InstanceLostError):
            return 0.0
        if isinstance(error, _FINAL):
            return None
        retry_after = error.retry_after if isinstance(error, APIStatusError) else None
        return max(self._pause, retry_after or 0.0)

    def _lease(self) -> InstanceLease:
        options = self._options.copy()
        options["max_lifetime"] = _remaining("max_lifetime", options.get("max_lifetime"), self._used_seconds)
        options["max_cost"] = _remaining("max_cost", options.get("max_cost"), self._used_cost)
        return self._client.instance(
            self._model_id, self._hardware_type_id, on_progress=self._show_progress, **options
        )

    def _add_usage(self, lease: InstanceLease | None) -> None:
        try:
            receipt = lease.receipt if lease is not None else None
        except InvalidArgumentError:
            return  # nothing was started
        if receipt is not None:
            self._used_seconds += receipt.seconds
            self._used_cost += receipt.cost or 0.0

    def _show_progress(self, progress: Progress) -> None:
        self._set(Unavailable(f"the instance is being started: {progress.description}"))


def _remaining(name: str, limit: float | None, used: float) -> float | None:
    if limit is None or not used:
        return limit
    if limit <= used:
        raise InvalidArgumentError(f"{name} has been reached by the instances started so far")
    return limit - used
