"""`async with client.shared(...)`: use an instance together with other processes of this machine."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

from attrs import frozen

from .._aio.closing import is_closed_coroutine
from .._aio.eventloop import LoopBinding
from .._aio.scopes import CancellableBlock
from .._aio.tasks import enable_ki_protection, redeliver_cancellation, run_uncancellable
from .._api.waiting import ProgressCallback
from .._credentials import Sources
from .._errors import (
    ConfigurationError,
    CortecsError,
    InstanceLostError,
    InvalidArgumentError,
    TeardownError,
    add_note,
)
from .._hints import hinted
from .._lease.activity import Activity
from .._lease.endpoint import Endpoint
from .._lease.endpoint_errors import is_endpoint_error, note_rejected_key
from .._lease.handle import InstanceHandle, with_activity, with_sources
from .._lease.mapping import maps_of
from .._lease.options import OnLoss
from .._secrets import Hidden, Secret
from .membership import Membership
from .protocol import Ended, Running, Starting, State, decode_progress

# Seconds to wait for the owner to close the connection of a process that leaves, if nothing is released, and
# in addition to the teardown timeout if the instance is released.
_LEAVE_TIMEOUT, _RELEASE_MARGIN = 10.0, 30.0


class _Phase(enum.Enum):
    NEW = "not entered"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


@frozen(kw_only=True)
class SharedOptions:
    """The arguments that concern only this process."""

    name: str
    linger: float
    teardown_timeout: float
    on_loss: OnLoss
    on_progress: ProgressCallback | None
    sources: Sources
    loop: LoopBinding
    check_open: Callable[[], None]
    new_membership: Callable[[Callable[[State], object]], Membership]


@hinted
class SharedLease(Endpoint):
    """An instance that processes of this machine share: `async with client.shared(...) as inst:`.

    Use its URL and clients inside the block. Another process, the owner, holds the lease.

    Example:
        model = "meta-llama/Llama-3.1-8B-Instruct"
        async with client.shared("bot", model, max_lifetime="8h", linger=0) as inst:
            print(inst.base_url, inst.model)
    """

    def __init__(self, options: SharedOptions) -> None:
        self._options = options
        self._phase = _Phase.NEW
        self._block = CancellableBlock()
        self._was_cancelled = [True]
        self._membership = options.new_membership(partial(_cancel, options, self._block, self._was_cancelled))
        self._handle: InstanceHandle | None = None
        self._key_origin = ""

    @property
    def name(self) -> str:
        """The name under which the instance is shared."""
        return self._options.name

    @property
    def handle(self) -> InstanceHandle:
        """The instance as data to send to other processes, which do not count as users of it.

        Raises:
            InvalidArgumentError: if the instance is not started yet.
        """
        if self._handle is None:
            raise InvalidArgumentError(
                "This block has no instance yet. Use it inside `async with client.shared(...) as inst:`."
            )
        return self._handle

    @property
    def instance_id(self) -> str:
        """The id of the instance."""
        return self.handle.instance_id

    @property
    def base_url(self) -> str:
        """The URL of the OpenAI-compatible endpoint. It ends in `/v1`."""
        return self.handle.base_url

    @property
    def model(self) -> str:
        """The name to pass to the endpoint as `model`: the Hugging Face name, `org/name`."""
        return self.handle.model

    def touch(self) -> None:
        """Count as a request, for the `idle_timeout` of the instance.

        Call this when you use the instance in a way that the client does not see, for example with your own
        HTTP client. Without an `idle_timeout`, it does nothing. You can call it in any thread.

        Raises:
            InvalidArgumentError: if the instance is not started yet, or the block has ended.

        Example:
            limits = {"max_lifetime": "8h", "idle_timeout": "10m", "linger": 0}
            async with client.shared("bot", "meta-llama/Llama-3.1-8B-Instruct", **limits) as inst:
                inst.touch()  # here you send a request with your own HTTP client
        """
        _ = self.handle  # raises an error before the instance is started
        self._release_check()()
        if (activity := self._membership.activity) is not None:
            activity.touch()

    def _get_activity(self) -> Activity | None:
        return self._membership.activity

    async def keep(self) -> None:
        """Keep the instance running after the last process leaves, until a limit or `client.release_shared`.

        Returns once the owner process has confirmed it.

        Raises:
            InvalidArgumentError: outside the block.
            LifecycleError: if the instance has ended.

        Example:
            async with client.shared("bot", "meta-llama/Llama-3.1-8B-Instruct", max_lifetime="8h") as inst:
                await inst.keep()

            # Later, in any process:
            await client.release_shared("bot")
        """
        if self._phase is not _Phase.RUNNING:
            raise InvalidArgumentError("keep needs a running instance. Call it inside the block.")
        await self._membership.keep()
        if not self._membership.is_kept:
            raise self._ended()

    def _inference_key(self, given: Hidden[str | Secret | None]) -> Secret:
        found = self._options.sources.inference_key(given)
        self._key_origin = found.origin
        return found.value

    def _release_check(self) -> Callable[[], None]:
        return partial(_check_not_released, self._membership, self._options.name)

    async def __aenter__(self) -> Self:
        """Join the processes that share the instance, and wait until it is usable.

        Raises:
            InvalidArgumentError: if the block was already entered, or the instance runs with other arguments.
            ConfigurationError: if the instance belongs to another version of this package, or this machine
                cannot share instances.
            CortecsError: if the instance does not become usable: the same errors as `client.instance` on
                entry, in every process that waits for it.
        """
        if self._phase is not _Phase.NEW:
            raise InvalidArgumentError(
                f"This block was already entered (it is {self._phase.value}). "
                "Create a new one with client.shared(...)"
            )
        self._options.check_open()
        self._options.loop.check()
        enable_ki_protection(SharedLease.__aexit__, SharedLease._leave)
        self._phase = _Phase.STARTING
        self._membership.start()
        try:
            handle = await self._membership.wait_until_running(self._report)
        except BaseException as error:
            self._phase = _Phase.ENDED
            if is_closed_coroutine(error):
                self._stop_unawaited()
                raise
            interruption = await self._leave(error)
            if interruption is not None and not isinstance(error, type(interruption)):
                redeliver_cancellation(interruption, error)
            raise
        handle = with_sources(handle, self._options.sources)
        self._handle = with_activity(handle, self._membership.activity)
        self._block.enter()
        self._phase = _Phase.RUNNING
        return self

    async def _report(self, state: State | None) -> None:
        callback = self._options.on_progress
        if callback is None or not isinstance(state, Starting) or state.progress is None:
            return
        if (progress := decode_progress(state.progress)) is not None:
            result = callback(progress)
            if inspect.isawaitable(result):
                await result

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave the processes that share the instance.

        Without `linger`, the last process returns once the service confirms that the instance is gone. With
        `linger`, this returns at once: the owner process releases the instance.

        Raises:
            InstanceLostError: if the instance or its owner process was lost, which cancelled the block.
            LeaseExpiredError: if `max_lifetime` or `max_cost` was reached, which cancelled the block.
            TeardownError: if the instance is not released within `teardown_timeout`, unless the block raised.
            ConfigurationError: in a different event loop than `__aenter__`.
        """
        if self._phase is not _Phase.RUNNING:
            return
        self._phase = _Phase.ENDED
        maps_of(self).stop()
        if is_closed_coroutine(exc):
            self._stop_unawaited()
            return
        try:
            self._options.loop.check()
        except ConfigurationError as error:
            self._stop_unawaited()
            if exc is None:
                raise
            add_note(exc, f"Could not leave the shared instance {self._options.name!r} here: {error}")
            return
        note_rejected_key(exc, self._key_origin)
        had_ended = not isinstance(self._membership.state, Running)
        outcome, interrupted = await self._block.leave(exc)
        cause = None if isinstance(outcome, GeneratorExit) else outcome
        try:
            interruption = await self._leave(cause)
        finally:
            await maps_of(self).join()
        outcome = self._judge(exc, outcome, interrupted=interrupted, had_ended=had_ended)
        if interruption is not None:
            if outcome is None:
                raise interruption
            if not isinstance(outcome, type(interruption)):
                redeliver_cancellation(interruption, outcome)
        if outcome is not None and outcome is not exc:
            raise outcome

    def _judge(
        self,
        raised: BaseException | None,
        outcome: BaseException | None,
        *,
        interrupted: bool,
        had_ended: bool,
    ) -> BaseException | None:
        """Return the exception to raise from the block, by the rules of a lease's watchdog.

        Args:
            raised: The exception of the block.
            outcome: The exception of the block without the cancellation by this object.
            interrupted: Whether that cancellation ended the block.
            had_ended: Whether the instance had ended before the block did.
        """
        state = self._membership.state
        error = state.error if isinstance(state, Ended) else None
        if error is None and not (had_ended or interrupted):
            return outcome
        verdict = error or self._ended()
        is_loss = isinstance(verdict, InstanceLostError)
        if is_loss and self._options.on_loss == "ignore":
            return outcome
        is_ended_by_caller = isinstance(raised, GeneratorExit) or (
            raised is None and not self._was_cancelled[0]
        )
        if interrupted or (had_ended and is_ended_by_caller):
            return verdict
        if had_ended and is_endpoint_error(raised) and (is_loss or not self._was_cancelled[0]):
            verdict.__cause__ = raised
            return verdict
        if outcome is None and isinstance(verdict, TeardownError) and self._options.linger <= 0:
            return verdict
        if outcome is not None and outcome is raised:
            # The block raised its own exception, which the caller expects.
            add_note(outcome, f"{verdict}")
        return outcome

    def _ended(self) -> CortecsError:
        state = self._membership.state
        if isinstance(state, Ended) and state.error is not None:
            return state.error
        return InstanceLostError(
            f"The shared instance {self._options.name!r} ended while the block was running",
            instance_id="" if self._handle is None else self._handle.instance_id,
        )

    async def _leave(self, cause: BaseException | None) -> BaseException | None:
        """Leave, and return the cancellation received meanwhile. Raise a failed release without a `cause`."""
        options, membership = self._options, self._membership
        is_released = options.linger <= 0 or not isinstance(membership.state, Starting | Running)
        timeout = options.teardown_timeout + _RELEASE_MARGIN if is_released else _LEAVE_TIMEOUT
        ended = await run_uncancellable(partial(membership.leave, timeout), restart_if_cancelled=True)
        if ended.error is not None and cause is None:
            raise ended.error
        if is_released and ended.value is False and cause is None:
            raise TeardownError(
                f"The owner process of the shared instance {options.name!r} did not confirm within "
                f"{timeout:g} s that the instance is released. The owner process continues.",
                instance_id="" if self._handle is None else self._handle.instance_id,
            )
        return ended.interruption

    def __del__(self) -> None:
        # The constructor may have failed.
        if getattr(self, "_phase", _Phase.ENDED) in {_Phase.STARTING, _Phase.RUNNING}:
            self._stop_unawaited()

    def _stop_unawaited(self) -> None:
        """Leave without waiting, even if the event loop no longer runs."""
        if not self._options.loop.call_soon(self._membership.stop):
            self._membership.disconnect()

    def __reduce__(self) -> str:
        raise TypeError("A shared lease cannot be pickled. Send `inst.handle`, or call client.shared there.")

    def __repr__(self) -> str:
        return f"<SharedLease {self._options.name} {self._phase.value}>"


def _cancel(options: SharedOptions, block: CancellableBlock, was_cancelled: list[bool], state: State) -> None:
    """Cancel the block of an instance that has ended."""
    if options.on_loss == "ignore":
        error = state.error if isinstance(state, Ended) else None
        if error is None or isinstance(error, InstanceLostError):
            return
    was_cancelled[0] = block.cancel()


def _check_not_released(membership: Membership, name: str) -> None:
    if not membership.is_usable:
        raise InvalidArgumentError(
            f"The shared instance {name!r} has ended, or this process has left it. "
            "Send requests inside the `async with` block."
        )
