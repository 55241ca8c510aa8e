"""An instance that is started, and kept running, beside what uses it."""

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

# Seconds after which to ask again while an instance starts.
_SOON = 10.0

# After these another start would spend more than was meant, leave one more instance that cannot be told from
# somebody else's, or be refused as this one was.
_FINAL = (LeaseExpiredError, AmbiguousStartError, InvalidArgumentError)


class NotReadyError(CortecsError, RuntimeError):
    """No instance runs right now. Answer it with a 503, its `headers` and its message.

    Attributes:
        status_code: 503.
        retry_after: Seconds after which to ask again; None when none will run again.
    """

    status_code = 503

    def __init__(self, message: str, *, retry_after: float | None) -> None:
        super().__init__(message)
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """`Retry-After` in whole seconds; empty when none will run again."""
        return {} if self.retry_after is None else {"Retry-After": f"{max(self.retry_after, 1):.0f}"}


class StartOptions(TypedDict, total=False):
    """The options of `client.instance` that make sense here.

    `max_lifetime` and `max_cost` are for all instances together that one block starts, one after the other.
    When one of them is used up, nothing is started any more.
    """

    context_length: int | None
    num_workers: int
    billing_interval: str
    start_timeout: float
    teardown_timeout: float
    max_lifetime: float | None
    max_cost: float | None


@frozen
class Down:
    """Why there is no instance.

    Attributes:
        reason: In words.
        retry_after: Seconds after which to ask again; None when none will run again.
    """

    reason: str
    retry_after: float | None = _SOON


class Standing(abc.ABC):
    """What `BackgroundInstance` and `SharedInstance` have in common."""

    def __init__(self) -> None:
        self._state: InstanceHandle | Down = Down("not entered")
        self._tasks: TaskGroup | None = None
        self._running: anyio.CancelScope
        # An instance may be made at import, outside every event loop; an event may not.
        self._changed: anyio.Event

    def handle(self) -> InstanceHandle:
        """The instance that runs now. Ask for every request: after a loss it is another one.

        Raises:
            NotReadyError: when none does.
            InvalidArgumentError: outside the `async with` block.
        """
        if self._tasks is None:
            raise InvalidArgumentError(
                f"{self!r} is used outside its `async with` block: enter it in the lifespan of the app that "
                "is served (the lifespans of mounted apps are not run)"
            )
        if isinstance(self._state, Down):
            raise NotReadyError(self._state.reason, retry_after=self._state.retry_after)
        return self._state

    async def wait(self) -> InstanceHandle:
        """Waits until an instance runs; for work that has no client waiting for it.

        Raises:
            NotReadyError: when none will run any more.
            InvalidArgumentError: outside the `async with` block.
        """
        while True:
            try:
                return self.handle()
            except NotReadyError as error:
                if error.retry_after is None:
                    raise
            await self._changed.wait()

    async def state_after(self, known: InstanceHandle | Down | None) -> InstanceHandle | Down:
        """The present state, as soon as it is another than `known`."""
        while self._state == known:
            await self._changed.wait()
        return self._state

    async def __aenter__(self) -> Self:
        """Begins to start an instance, and returns at once.

        Raises:
            InvalidArgumentError: for arguments that no start would take, or when it is entered already.
            ConfigurationError: when it cannot work here.
        """
        if self._tasks is not None:
            raise InvalidArgumentError(f"{self!r} is entered already")
        await self._check()
        self._changed = anyio.Event()
        self._state = Down("the instance is being started")
        # Whoever cancels the block must not cancel this with it: it is needed until the block has been left.
        self._running = anyio.CancelScope(shield=True)
        tasks = anyio.create_task_group()
        await tasks.__aenter__()
        self._tasks = tasks
        tasks.start_soon(self._run_shielded)
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Returns when the instance is handed back, or is others' to hand back."""
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
                self._set(Down("left"))

    async def _run_shielded(self) -> None:
        with self._running:
            await self._run()

    @abc.abstractmethod
    async def _check(self) -> None:
        """Raises for what cannot work."""

    @abc.abstractmethod
    async def _run(self) -> None:
        """Keeps the state up to date until it is cancelled."""

    async def _leave(self) -> None:
        """What comes before that."""
        return

    def _set(self, state: InstanceHandle | Down) -> None:
        if isinstance(state, InstanceHandle):
            logger.info("instance %s serves %s", state.instance_id, state.model)
        self._state = state
        self._changed.set()
        self._changed = anyio.Event()

    def __repr__(self) -> str:
        state = self._state.reason if isinstance(self._state, Down) else self._state.instance_id
        return f"<{type(self).__name__} {state}>"


class BackgroundInstance(Standing):
    """An instance beside a block: `async with BackgroundInstance(client, MODEL) as instance:`.

    Entering returns at once; `instance.handle()` gives what runs, or raises `NotReadyError`; leaving releases
    what there is, as the end of a lease does, and where that fails, it is logged. An instance that is lost is
    replaced at once. A start that fails is tried again after `pause`, except where that would spend more than
    was meant. It is this process's own; for a server with several workers there is `SharedInstance`.

    Args:
        client: Makes the leases; to be closed after this.
        model_id: As for `client.instance`.
        hardware_type_id: As for `client.instance`.
        pause: Seconds between a start that failed and the next.
        **options: As for `client.instance`; see `StartOptions`.

    Raises:
        InvalidArgumentError: for a pause that is none.
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
        super().__init__()
        check_pause(pause)
        self._client = client
        self._wish = (model_id, hardware_type_id)
        self._pause = pause
        self._options = options
        self._seconds = 0.0
        self._cost = 0.0

    async def _check(self) -> None:
        self._seconds = self._cost = 0.0
        self._lease()

    async def _run(self) -> None:
        pause: float | None = 0.0
        while pause is not None:
            await anyio.sleep(pause)
            pause = await self._live()

    async def _live(self) -> float | None:
        """One instance, from its start to its end. Returns the seconds until the next, None for never."""
        lease: InstanceLease | None = None
        again: float | None = 0.0
        try:
            lease = self._lease()
            async with lease:
                self._set(lease.handle)
                try:
                    await anyio.sleep_forever()
                finally:
                    # No request is to come while it is released.
                    self._set(Down("the instance is being released"))
        except InstanceLostError as error:
            self._ended(error, again)
        except _FINAL as error:
            again = None
            self._ended(error, again)
        except Exception as error:  # noqa: BLE001  (a credential provider's own, say)
            asked = error.retry_after if isinstance(error, APIStatusError) else None
            again = max(self._pause, asked or 0.0)
            self._ended(error, again)
        finally:
            self._count(lease)
        return again

    def _ended(self, error: Exception, again: float | None) -> None:
        logger.warning("no instance of %s: %r", self._wish[0], error)
        self._set(Down(str(error) or repr(error), None if again is None else again or _SOON))

    def _lease(self) -> InstanceLease:
        options = self._options.copy()
        options["max_lifetime"] = _left("max_lifetime", options.get("max_lifetime"), self._seconds)
        options["max_cost"] = _left("max_cost", options.get("max_cost"), self._cost)
        return self._client.instance(*self._wish, on_progress=self._progress, **options)

    def _count(self, lease: InstanceLease | None) -> None:
        try:
            receipt = lease.receipt if lease is not None else None
        except InvalidArgumentError:
            return  # nothing was started
        if receipt is not None:
            self._seconds += receipt.seconds
            self._cost += receipt.cost or 0.0

    def _progress(self, progress: Progress) -> None:
        self._set(Down(f"the instance is being started: {progress.description}"))


def check_pause(pause: float) -> None:
    """Refuses what would start one instance after the other, as fast as it can.

    Raises:
        InvalidArgumentError: for less than a tenth of a second.
    """
    if not pause >= 0.1:
        raise InvalidArgumentError(f"pause must be at least 0.1 seconds, not {pause!r}")


def _left(name: str, limit: float | None, used: float) -> float | None:
    if limit is None or not used:
        return limit
    if limit <= used:
        raise InvalidArgumentError(f"{name} is used up by the instances so far")
    return limit - used
