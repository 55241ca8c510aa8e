"""`async with client.instance(...)`: an instance that exists exactly as long as its block.

The steps of a lease, and where to find each:

1. Check the arguments: `check_start` (`_api/validation.py`) and `LeaseOptions` (`options.py`). If there is a
   `max_cost`, get the price: `Prices.limit` (`pricing.py`).
2. Start the reaper (`Promises.arm` in `_recovery/promises.py`) and list the existing instances, the baseline:
   `Starter._attempt` (`starter.py`).
3. Record the intent in the journal, which is created with the first promise, and in the reaper. Wait until
   the reaper has connected to the service: `Promises.record_intent`, `PromiseStore.commit`.
4. Send the start request: `Instances.start_once` (`_api/instance_requests.py`).
5. Classify the outcome: `StartAttempt.settled`. If it is unknown, find the instance: `StartSearch.resolve`
   (`start_search.py`).
6. Wait until it is running: `wait` (`provisioning.py`). Run the block under the `Watchdog` (`watchdog.py`).
7. Stop, delete, confirm, and record the release: `Release.run` (`release.py`), which the caller cannot
   cancel.

`InstanceLease._enter` runs steps 1 (the price) to 6, and `InstanceLease._end` runs step 7.
"""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Self

import anyio

from .._aio.closing import is_closed_coroutine
from .._aio.tasks import enable_ki_protection, redeliver_cancellation, run_uncancellable
from .._api.wire import encode_start
from .._errors import (
    AmbiguousStartError,
    ConfigurationError,
    InvalidArgumentError,
    LeaseExpiredError,
    add_note,
)
from .._hints import hinted
from .._logging import Event, log
from .._secrets import Hidden, Secret
from .._telemetry import Operation, Report
from . import provisioning
from .billing import outcome_of, record_released
from .endpoint_errors import note_rejected_key
from .handle import InstanceHandle
from .mapping import maps_of
from .options import LeaseOptions, OnExit
from .release import Release, close_receipt
from .state import LeaseServices, LeaseState
from .view import LeaseView
from .watchdog import Watchdog

_NOT_SEEN = (
    "The response to a start request was lost, and no instance has appeared yet. If it appears later, "
    "the reaper or `cortecs-async sweep` releases it."
)


class _Phase(enum.Enum):
    NEW = "not entered"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


@hinted
class InstanceLease(LeaseView):
    """An instance rented for the duration of a block: `async with client.instance(...) as inst:`.

    Use its URL, clients, and data inside the block. A lease can be used for one block: create a new lease for
    the next one.

    Example:
        async with client.instance("meta-llama/Llama-3.1-8B-Instruct") as inst:
            print(inst.base_url, inst.model)
            print(f"{inst.cost_so_far:.2f} {inst.receipt.currency} so far")
    """

    def __init__(self, services: LeaseServices, options: LeaseOptions) -> None:
        self._services = services
        self._options = options
        self._phase = _Phase.NEW
        self._state = LeaseState(services=services, options=options)
        self._report = Report(services.observer, self._state.info, self._state.now)
        self._watchdog: Watchdog | None = None
        self._running_release: Release | None = None
        self._key_origin = ""

    def _inference_key(self, given: Hidden[str | Secret | None]) -> Secret:
        found = self._services.sources.inference_key(given)
        self._key_origin = found.origin
        return found.value

    def _release_check(self) -> Callable[[], None]:
        return self._state.check_not_released

    async def __aenter__(self) -> Self:
        """Start the instance and wait until it is usable.

        If this raises, any instance it started has been stopped and deleted.

        Raises:
            InvalidArgumentError: if the lease was already entered, if `max_cost` does not cover one billing
                interval, or if no hardware type fits.
            PriceUnknownError: if `max_cost`, `max_price_per_hour`, or `"cheapest"` needs a price that the
                service does not return.
            CapacityTimeoutError: if there is no capacity within `capacity_timeout`. Nothing was started.
            GuardError: if a required reaper is not running or cannot connect to the service. Nothing was
                started.
            JournalError: if a required journal cannot be written. Nothing was started.
            AmbiguousStartError: if the response to the start request was lost and several instances could be
                yours.
            LeaseExpiredError: if `max_lifetime` or `max_cost` is reached before the instance is running.
            LifecycleError: if the instance fails or is not running in time.
            EndpointError: if the service returns a `base_url` that is not safe to send a key to.
            ConfigurationError: if the endpoint rejects the inference API key in the test of `ready`.
            RequestTimeoutError: if no start request succeeded within `start_timeout`.
            RequestError: if the service rejects the start request or cannot be reached.
        """
        await self._enter("instance" if self._options.borrowed is None else "attach")
        self._watchdog = Watchdog(self._state, self.instance, weakref.WeakMethod(self._release_early))
        self._watchdog.enter()
        return self

    async def into_handle(self) -> InstanceHandle:
        """Start the instance and transfer it to the caller of `client.acquire`."""
        await self._enter("acquire")
        self._phase = _Phase.ENDED
        try:
            await self._services.http.release()
            self._report.end(None)
            self._report.raise_kept_interruption()
        except BaseException as error:
            self._services.http.hold()
            provisioning.revoke_hand_over(self._state)
            await self._end(error, "delete")
            raise
        return self.handle

    async def _enter(self, operation: Operation) -> None:
        if self._phase is not _Phase.NEW:
            raise InvalidArgumentError(
                f"This lease was already entered (it is {self._phase.value}). "
                "Create a new one with client.instance(...)"
            )
        self._services.http.check_open()
        if self._options.borrowed is None:
            self._services.promises.check_platform()
        enable_ki_protection(InstanceLease.__aexit__, InstanceLease._end)
        # First, because the release ends the hold, even if the lease is garbage-collected while starting.
        self._services.http.hold()
        self._phase = _Phase.STARTING
        state, report = self._state, self._report
        state.enter(operation)
        try:
            report.begin()
            report.begin_phase("start")
            await provisioning.start(state)
            report.begin_phase("wait")
            await provisioning.wait(state)
            await provisioning.hand_over(state)
            state.was_usable = True
            if operation == "acquire":
                report.leave(None)
            else:
                report.begin_phase("body")
        except BaseException as error:
            # The caller never got the instance, so `on_exit` does not apply.
            provisioning.revoke_hand_over(state)
            await self._end(error, "delete")
            if state.held.attempt is not None and state.held.attempt.not_seen:
                add_note(error, _NOT_SEEN)
            # Last, because this must not delay or change what happens to the instance.
            await self._services.names.explain(error, encode_start(self._state.args))
            raise
        self._phase = _Phase.RUNNING
        log(
            Event.LEASE_RUNNING,
            instance_id=self.instance_id,
            model=self.model,
            base_url=self.base_url,
            seconds=state.now() - state.began,
        )

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop and delete the instance, and return once the service confirms that it is gone.

        Raises:
            InstanceLostError: if the instance stopped or disappeared, which cancelled the block, or if an
                endpoint error ended the block and the release finds that the instance had already ended.
            LeaseExpiredError: if `max_lifetime` or `max_cost` was reached, which cancelled the block.
            LeaseIdleError: if `idle_timeout` was reached, which cancelled the block.
            TeardownError: if the instance is not released within `teardown_timeout`, unless the block raised.
            ConfigurationError: in a different event loop than `__aenter__`. The instance is released in its
                own event loop if that is still running, otherwise by the reaper.
        """
        if self._phase is not _Phase.RUNNING or self._watchdog is None:
            return
        if is_closed_coroutine(exc):
            self._end_unawaited(self._options.on_exit)
            return
        try:
            self._services.http.loop.check()
        except ConfigurationError as error:
            self._end_unawaited(self._options.on_exit)
            if exc is None:
                raise
            add_note(exc, f"Could not release {self._state.held.name} here: {error}")
            return
        maps_of(self).stop()
        note_rejected_key(exc, self._key_origin)
        outcome = await self._watchdog.leave(exc)
        self._state.newest = self._watchdog.instance
        try:
            # Closing a generator ends its block without an error.
            cause = None if isinstance(outcome, GeneratorExit) else outcome
            outcome = await self._end(cause, self._on_exit_now())
        finally:
            await maps_of(self).join()
        if outcome is not None and outcome is not exc:
            raise outcome

    def _on_exit_now(self) -> OnExit:
        expired = self._watchdog is not None and isinstance(self._watchdog.verdict, LeaseExpiredError)
        return "delete" if expired and self._options.on_exit == "keep" else self._options.on_exit

    def _release_early(self) -> None:
        """Release the instance before its block ends, because the task that entered the block has ended."""
        maps_of(self).stop()
        release = self._release_of(self._on_exit_now(), None)

        async def run() -> None:
            await run_uncancellable(release.run, restart_if_cancelled=True)

        self._services.http.unawaited.start_soon(run)

    def _release_of(self, on_exit: OnExit, cause: BaseException | None) -> Release:
        """Return the lease's only release. `cause` is the error that ends the lease."""
        if self._running_release is None:
            verdict = None if self._watchdog is None else self._watchdog.verdict
            if self._watchdog is not None and on_exit != self._options.on_exit:
                # Otherwise, a failed or interrupted release would leave the instance running.
                provisioning.revoke_hand_over(self._state)
            self._state.outcome = outcome_of(self._state, cause, verdict)
            self._running_release = Release(
                self._services,
                self._state.held,
                on_exit,
                anyio.current_time() + self._options.teardown_timeout,
                self._report.tear_down,
                partial(record_released, self._state),
            )
        return self._running_release

    async def _end(self, cause: BaseException | None, on_exit: OnExit) -> BaseException | None:
        """Release the instance.

        If there is a `cause`, return the error the caller must raise: `cause`, or an error that the instance
        was lost. Otherwise, raise the error that occurred.
        """
        self._phase = _Phase.ENDED
        if is_closed_coroutine(cause):
            self._end_unawaited(on_exit)
            return cause
        return await self._release(cause, on_exit)

    def _end_unawaited(self, on_exit: OnExit) -> None:
        """Release the instance in its own task, because this code cannot await.

        If the event loop has ended, leave the instance to the reaper. The garbage collector may call this.
        """
        self._phase = _Phase.ENDED
        maps_of(self).stop()
        self._services.http.unawaited.start_soon(partial(self._release_unawaited, on_exit), self._abandon)

    async def _release_unawaited(self, on_exit: OnExit) -> None:
        held = self._state.held
        if held.may_have_instance():
            model = self._state.info().model
            log(Event.LEASE_UNAWAITED, instance_id=held.instance_id, model=model, name=held.name)
        if self._watchdog is not None:
            await self._watchdog.leave(None)
        # As if the block had been cancelled: there is no caller to raise to, so failures are only logged.
        await self._release(GeneratorExit(), on_exit)

    async def _release(self, cause: BaseException | None, on_exit: OnExit) -> BaseException | None:
        report, held = self._report, self._state.held
        report.leave(cause)
        failure: BaseException | None = None
        interruption: BaseException | None = None
        if held.may_have_instance():
            release = self._release_of(on_exit, cause)
            try:
                ended = await run_uncancellable(release.run, restart_if_cancelled=True)
            except GeneratorExit:
                self._end_unawaited(on_exit)
                raise
            failure, interruption = ended.error or release.failure, ended.interruption
            if release.loss is not None and self._watchdog is not None:
                cause = self._watchdog.found_lost(release.loss, cause)
            report.leave(failure)
            if ended.error is not None:
                self._services.promises.abandon(held.open_key)
            close_receipt(self._state, release, failure)
        try:
            await self._services.http.release()
        finally:
            # A failed release takes precedence over a cancellation: the instance may still be billed.
            if failure is not None and not isinstance(cause, Exception):
                report.end(failure)
            else:
                report.end(interruption if cause is None else cause)
        interruption = interruption or report.interruption
        if cause is None:
            if cause := interruption or failure:
                self._note(cause, failure)
                raise cause
            return None
        self._note(cause, failure)
        if interruption is not None and not isinstance(cause, type(interruption)):
            redeliver_cancellation(interruption, cause)
        return cause

    def _note(self, cause: BaseException, failure: BaseException | None) -> None:
        if failure is not None and failure is not cause and not isinstance(cause, AmbiguousStartError):
            add_note(cause, f"Could not release {self._state.held.name}: {failure}")

    def _abandon(self) -> None:
        """Leave the instance to the reaper, because the event loop has ended."""
        self._services.http.abandon()
        held = self._state.held
        start = held.attempt
        if start is not None and start.is_open:
            start.give_up()
        if self._services.promises.abandon(held.open_key):
            log(
                Event.LEASE_ABANDONED,
                instance_id=held.instance_id,
                model=self._state.info().model,
                name=held.name,
                who_releases=self._services.promises.who_releases(),
            )
        self._report.abandon()

    def __del__(self) -> None:
        # The constructor may have failed.
        if getattr(self, "_phase", _Phase.ENDED) in {_Phase.STARTING, _Phase.RUNNING}:
            on_exit = self._options.on_exit if self._phase is _Phase.RUNNING else "delete"
            self._end_unawaited(on_exit)

    def __reduce__(self) -> str:
        raise TypeError("A lease cannot be pickled. Send `inst.handle` to other processes.")

    def __repr__(self) -> str:
        newest = self._state.newest
        shown = newest.instance_id if newest is not None else self._options.args.model_id
        return f"<InstanceLease {shown} {self._phase.value}>"
