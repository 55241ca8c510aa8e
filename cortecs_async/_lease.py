"""`async with client.instance(...)`: an instance that lives exactly as long as the block."""

from __future__ import annotations

import enum
import logging
import math
from collections.abc import Callable
from types import TracebackType
from typing import Self

import anyio
from attrs import evolve

from ._budget import Receipt, receipt
from ._detached import clock, hand_on, protect_from_interrupts, run_to_end
from ._domain import Instance
from ._endpoint import Endpoint
from ._errors import (
    AmbiguousStartError,
    CortecsError,
    InvalidArgumentError,
    LeaseExpiredError,
    RequestTimeoutError,
    StartTimeoutError,
)
from ._handle import InstanceHandle
from ._instances import Origin
from ._mapping import maps_of
from ._records import wall_clock
from ._release import Holding, OnExit, Release
from ._starts import State
from ._waiting import wait_until_running
from ._watchdog import Watchdog
from ._workshop import LeaseOptions, Workshop

logger = logging.getLogger("cortecs_async.lease")


class _Phase(enum.Enum):
    NEW = "not entered"
    STARTING = "starting"
    RUNNING = "running"
    ENDED = "ended"


class InstanceLease(Endpoint):
    """The handle that `async with client.instance(...) as inst` yields. Serves one `async with`.

    Attributes are available inside the block.
    """

    def __init__(self, workshop: Workshop, options: LeaseOptions) -> None:
        self._shop = workshop
        self._options = options
        self._phase = _Phase.NEW
        self._instance: Instance | None = None
        self._holding = Holding()
        self._watchdog: Watchdog | None = None
        self._clock: Callable[[], float] = anyio.current_time
        self._began = 0.0
        self._lifetime = math.inf
        self._limit = ""
        self._receipt: Receipt | None = None

    @property
    def instance(self) -> Instance:
        """The newest snapshot that this lease has seen.

        Raises:
            InvalidArgumentError: before the instance was started.
        """
        if self._instance is None:
            raise InvalidArgumentError(
                "this lease has no instance yet: use it inside `async with client.instance(...) as inst:`"
            )
        return self._instance

    @property
    def instance_id(self) -> str:
        """The id of the instance."""
        return self.instance.instance_id

    @property
    def base_url(self) -> str:
        """The instance's OpenAI-compatible endpoint; ends in `/v1`."""
        # Never empty inside the block: it is entered only once there is one.
        return self.instance.base_url or ""

    @property
    def model(self) -> str:
        """The name to give as `model` to the endpoint: the Hugging Face name, `org/name`."""
        return self.instance.instance_args.hf_name

    @property
    def handle(self) -> InstanceHandle:
        """The instance as data, for other processes: pickled, or as JSON. It stays this lease's to release.

        Raises:
            InvalidArgumentError: before the instance was started.
        """
        return InstanceHandle(
            instance_id=self.instance_id,
            base_url=self.base_url,
            model=self.model,
            account=self._shop.keeper.account,
            expires_at=self._expiry(),
        )

    @property
    def _where(self) -> tuple[str, str]:
        return self.base_url, self.model

    @property
    def cost_so_far(self) -> float | None:
        """About what the instance has cost until now, in `receipt.currency`; None without a known price.

        Counted from the request that started it, by intervals begun and workers, at the list price. The
        service's bill is what counts.
        """
        return self.receipt.cost

    @property
    def receipt(self) -> Receipt:
        """Time and cost until now; after the block, those of the whole lease."""
        return self._receipt or self._count(self._clock())

    async def __aenter__(self) -> Self:
        """Starts the instance and waits until it is usable.

        Raises:
            InvalidArgumentError: when this lease was entered before, or `max_cost` pays for nothing.
            PriceUnknownError: when `max_cost` needs a price that the service does not give.
            GuardError: or `JournalError`, when one is required and missing. Nothing was started.
            AmbiguousStartError: when the start's answer was lost, and it cannot be told what it made.
            LeaseExpiredError: when `max_lifetime` or `max_cost` is used up before it runs.
            LifecycleError: when it does not run in time, or fails. It has been torn down then.
            RequestTimeoutError: when not even the start could be made in time.
            RequestError: when the service refuses the start, or is out of reach.
        """
        await self._enter()
        self._watchdog = Watchdog(
            poller=self._shop.instances.poller,
            policy=self._shop.poll,
            instance=self.instance,
            expires_at=self._billed_from + self._lifetime,
            limit=self._limit,
            minds_loss=self._options.on_loss == "cancel",
        )
        self._watchdog.enter()
        return self

    async def hand_out(self) -> InstanceHandle:
        """Enters, with `on_exit="keep"`, and gives what it has away: `client.acquire`."""
        await self._enter()
        self._phase = _Phase.ENDED
        try:
            await self._shop.http.release()
        except BaseException as error:
            self._shop.http.hold()
            self._promise_again()
            await self._end(error, "delete")
            raise
        return self.handle

    async def _enter(self) -> None:
        if self._phase is not _Phase.NEW:
            raise InvalidArgumentError(
                f"a lease serves one `async with`, and this one is {self._phase.value}: "
                "call client.instance(...) again"
            )
        self._shop.http.check_open()
        protect_from_interrupts(InstanceLease.__aexit__, InstanceLease._end)
        # First, because a lease that is dropped while it starts lets go of this.
        self._shop.http.hold()
        self._phase = _Phase.STARTING
        self._clock = clock()
        self._began = self._clock()
        try:
            options = self._options
            self._lifetime, self._limit = await self._shop.prices.limit(
                options.args, max_lifetime=options.max_lifetime, max_cost=options.max_cost
            )
            await self._begin(self._began + self._options.start_timeout)
            self._instance = await self._wait()
            await self._hand_over()
        except GeneratorExit:
            self._give_up()
            raise
        except BaseException as error:
            # Nobody has seen it, so nobody could stop what `on_exit` would spare.
            self._promise_again()
            await self._end(error, "delete")
            raise
        self._phase = _Phase.RUNNING
        logger.info("instance %s runs %s at %s", self.instance_id, self.model, self.base_url)

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stops and deletes the instance, and returns only when it is read to be gone.

        Raises:
            InstanceLostError: when it stopped or vanished, and the block was cancelled for that.
            LeaseExpiredError: when `max_lifetime` or `max_cost` was used up, and the block was cancelled.
            TeardownError: when the release fails within `teardown_timeout`, unless the body raised already.
        """
        if self._phase is not _Phase.RUNNING or self._watchdog is None:
            return
        maps_of(self).stop()
        if isinstance(exc, GeneratorExit):
            self._give_up()
            return
        outcome = await self._watchdog.leave(exc)
        self._instance = self._watchdog.instance
        on_exit = self._options.on_exit
        if on_exit == "keep" and isinstance(outcome, LeaseExpiredError):
            on_exit = "delete"
        try:
            await self._end(outcome, on_exit)
        finally:
            await maps_of(self).join()
        if outcome is not None and outcome is not exc:
            raise outcome

    async def _begin(self, deadline: float) -> None:
        shop, options, holding = self._shop, self._options, self._holding
        start = holding.start = shop.starter.prepare(options.args, self._started)
        with anyio.CancelScope(deadline=deadline):
            if options.borrowed is not None:
                await self._found(await shop.instances.get(options.borrowed), Origin.FOUND)
            elif options.reuse:
                # Newer than what was found, after a restart.
                self._instance = await shop.instances.find_or_start(
                    options.args, start=lambda: shop.starter.start(start), found=self._found
                )
            else:
                await shop.starter.start(start)
            # The intent covers it until this is written.
            await shop.keeper.settle_anyhow()
        if self._instance is None:
            # The deadline fell between two attempts, or while the instance of a lost one was looked for.
            unknown = start.state is State.UNKNOWN
            raise RequestTimeoutError(
                f"nothing could be started within start_timeout={options.start_timeout:g} s: the service was "
                "busy or out of reach again and again. "
                + ("Whether one attempt worked is being found out." if unknown else "Nothing was started.")
                + " The log of cortecs_async.http says how.",
                method="POST",
                path="/instances/start",
                outcome_unknown=unknown,
            )
        if holding.origin is Origin.STARTED:
            await shop.prices.hope_for(self._instance.instance_args.hardware_type_id)

    def _started(self, instance: Instance) -> None:
        # The answer holds the only copy of the id: from here on the release knows it, whatever comes between.
        holding = self._holding
        if holding.key is not None:
            self._shop.keeper.done(holding.key)  # of a restart that came to nothing
        self._instance = instance
        holding.instance_id, holding.origin = instance.instance_id, Origin.STARTED
        holding.key = self._shop.keeper.created(
            holding.start.key if holding.start else None,
            instance.instance_id,
            goal="gone",
            expires_at=self._expiry(),
        )
        logger.info("instance %s started", instance.instance_id)

    async def _found(self, instance: Instance, origin: Origin) -> None:
        holding = self._holding
        self._instance = instance
        holding.instance_id, holding.origin = instance.instance_id, origin
        if holding.key is not None:
            self._shop.keeper.done(holding.key)  # of a restart that somebody else was faster with
            holding.key = None
        logger.info("instance %s %s", instance.instance_id, origin.value)
        if origin is Origin.RESTARTED:
            holding.key = self._shop.keeper.created(
                None, instance.instance_id, goal="stopped", expires_at=self._expiry()
            )
            await self._shop.keeper.settle()

    @property
    def _age(self) -> float:
        """Seconds since its billing began, as far as that can be known here: the request that started it."""
        return self._clock() - self._billed_from

    @property
    def _billed_from(self) -> float:
        return self._began if self._holding.billed_from is None else self._holding.billed_from

    def _expiry(self) -> float | None:
        """Unix time for the reaper, which does not know this loop's clock."""
        return None if math.isinf(self._lifetime) else wall_clock() + self._lifetime - self._age

    async def _wait(self) -> Instance:
        options = self._options
        try:
            return await wait_until_running(
                self._shop.instances.poller,
                self.instance_id,
                self._shop.poll,
                timeout=min(options.start_timeout, self._billed_from + self._lifetime - self._began),
                began=self._began,
                settle=0.0 if options.borrowed else self._shop.poll.settle,
                known=self._instance,
                on_progress=options.on_progress,
            )
        except StartTimeoutError as error:
            if self._age < self._lifetime:
                raise
            raise LeaseExpiredError(
                f"instance {self.instance_id} has used up {self._limit} before it ran ({error})",
                instance_id=self.instance_id,
            ) from None

    async def _hand_over(self) -> None:
        """From here on `on_exit` says what is owed, also should this process be killed."""
        holding, options = self._holding, self._options
        if holding.key is None or options.on_exit == "delete":
            return
        if options.on_exit == "keep":
            self._shop.keeper.held(holding.key)
        else:
            self._shop.keeper.created(
                holding.key, self.instance_id, goal="stopped", expires_at=self._expiry()
            )
        await self._shop.keeper.settle_anyhow()

    def _promise_again(self) -> None:
        """It may have been handed over just before."""
        holding = self._holding
        if holding.key is not None and holding.origin is Origin.STARTED and self._options.on_exit != "delete":
            self._shop.keeper.created(holding.key, self.instance_id, goal="gone", expires_at=self._expiry())

    async def _end(self, cause: BaseException | None, on_exit: OnExit) -> None:
        """Tears down. Raises only when there is no `cause`, which the caller raises (again)."""
        self._phase = _Phase.ENDED
        failure: BaseException | None = None
        interruption: BaseException | None = None
        if self._holding.may_hold_something():
            release = Release(
                instances=self._shop.releasing,
                starter=self._shop.starter,
                keeper=self._shop.keeper,
                holding=self._holding,
                on_exit=on_exit,
                deadline=anyio.current_time() + self._options.teardown_timeout,
                settle=self._shop.poll.settle,
            )
            ended = await run_to_end(release.run, resume=True)
            failure, interruption = ended.error or release.failure, ended.interruption
            if ended.error is not None:
                self._shop.keeper.give_up(self._holding.open_key)
            self._close_account(release, failure)
        await self._shop.http.release()
        if cause is None:
            if cause := interruption or failure:
                self._note(cause, failure)
                raise cause
            return
        self._note(cause, failure)
        if interruption is not None and not isinstance(cause, type(interruption)):
            hand_on(interruption, cause)

    def _close_account(self, release: Release, failure: BaseException | None) -> None:
        if self._instance is not None:
            stopped_at = release.stopped_at
            self._receipt = self._count(self._clock() if stopped_at is None else stopped_at)
        if failure is not None:
            # Anything but an error of ours, a KeyboardInterrupt say, does not name the instance.
            if not isinstance(failure, CortecsError):
                failure.add_note(f"cortecs_async: {self._holding.name} MAY STILL BE BILLED")
            logger.critical("%s: %r", self._holding.name, failure)
        elif release.goal is not None:
            logger.info("%s is %s: %s", self._holding.name, release.goal.value, self._receipt)

    def _count(self, until: float) -> Receipt:
        args = self.instance.instance_args
        # What was asked for, where the service leaves the number of workers out of its answers.
        args = evolve(args, num_workers=max(args.num_workers, self._options.args.num_workers))
        hardware = args.hardware_type_id or self._options.args.hardware_type_id
        price = self._shop.prices.of(hardware)
        return receipt(self.instance_id, max(until - self._billed_from, 0.0), args, price)

    def _note(self, cause: BaseException, failure: BaseException | None) -> None:
        if failure is not None and failure is not cause and not isinstance(cause, AmbiguousStartError):
            cause.add_note(f"cortecs_async: {self._holding.name}: {failure}")

    def _give_up(self) -> None:
        """Leaves it to the reaper: the loop was closed under the block, and nothing can be awaited."""
        self._phase = _Phase.ENDED
        self._shop.http.abandon()
        start = self._holding.start
        if start is not None and start.state in {State.SENT, State.UNKNOWN}:
            start.no_longer_unknown(State.GIVEN_UP)
        if self._shop.keeper.give_up(self._holding.open_key):
            logger.critical("%s was never released: that is left to the reaper", self._holding.name)

    def __del__(self) -> None:
        # A traceback may show a lease whose constructor raised.
        if getattr(self, "_phase", _Phase.ENDED) in {_Phase.STARTING, _Phase.RUNNING}:
            self._give_up()

    def __reduce__(self) -> str:
        raise TypeError("a lease stays in its process: send `inst.handle` to others")

    def __repr__(self) -> str:
        shown = self._instance.instance_id if self._instance is not None else self._options.args.model_id
        return f"<InstanceLease {shown} {self._phase.value}>"
