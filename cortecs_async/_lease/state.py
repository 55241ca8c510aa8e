"""The state of one lease: its instance, the time limit, and the cost."""

from __future__ import annotations

import enum
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio
from attrs import define, evolve, field, frozen

from .._aio.clock import suspended
from .._aio.eventloop import loop_clock
from .._api.domain import Instance, InstanceArgs
from .._api.instances import Instances
from .._api.unknown_names import UnknownNames
from .._credentials import Sources
from .._errors import InvalidArgumentError
from .._http.client import HTTP
from .._http.connections import HTTPClient
from .._logging import Event
from .._poll_policy import PollPolicy
from .._recovery.cost_lines import CostOutcome
from .._recovery.promises import Promises
from .._telemetry import LeaseInfo, Observer, Operation, Source
from .activity import Activity
from .options import LeaseOptions
from .pricing import Prices, Receipt, receipt
from .start_state import RestartAttempt, StartAttempt
from .starter import Starter

if TYPE_CHECKING:
    from .capacity import CapacityQueue
    from .hardware import Selection


class Origin(enum.Enum):
    """The origin of a lease's instance."""

    FOUND = "found"
    RESTARTED = "restarted"
    STARTED = "started"


@define(eq=False)
class HeldInstance:
    """The instance a lease holds or may hold.

    Attributes:
        instance_id: The id, or None while no instance is known.
        key: The key of its open record, or None if there is nothing to release.
        attempt: The start request that created it or may have created it.
        restart: The restart of an instance that was found stopped.
        missing_since: The time since which readings agree that it is missing, in seconds of
            `anyio.current_time`.
    """

    instance_id: str | None = None
    origin: Origin = Origin.STARTED
    key: str | None = None
    attempt: StartAttempt | None = None
    restart: RestartAttempt | None = None
    missing_since: float | None = None

    @property
    def name(self) -> str:
        if self.instance_id is not None:
            return f"instance {self.instance_id}"
        return (
            f"the instance from a start request for {self.attempt.args.hf_name}"
            if self.attempt is not None
            else "nothing"
        )

    @property
    def billed_from(self) -> float | None:
        """The time the start request was sent, by `LeaseState.now`, or None if the instance was found."""
        if self.origin is not Origin.STARTED or self.attempt is None:
            return None
        return self.attempt.sent_at + self.attempt.suspended_before

    @property
    def open_key(self) -> str | None:
        """The key of the open record of the instance, or of the start request if there is none."""
        return self.key or (self.attempt.key if self.attempt is not None else None)

    def may_have_instance(self) -> bool:
        return self.instance_id is not None or (self.attempt is not None and self.attempt.is_open)


@frozen(kw_only=True)
class LeaseServices:
    """The services a client provides to its leases.

    Attributes:
        http_client: The caller's own HTTP client, if any.
        logged: The events that a client logs only once, and has logged.
    """

    http: HTTP
    instances: Instances
    releasing: Instances
    poll: PollPolicy
    promises: Promises
    starter: Starter
    prices: Prices
    observer: Observer
    names: UnknownNames
    capacity: CapacityQueue
    allow_insecure_http: bool = False
    sources: Sources = field(factory=Sources, repr=False)
    http_client: HTTPClient | None = None
    logged: set[Event] = field(factory=set)


@define(eq=False, repr=False)
class LeaseState:
    """The state of one lease. It does not refer to the lease, so that a dropped lease is collected.

    Attributes:
        operation: The client method that created the lease.
        newest: The latest snapshot of the instance.
        base_url: The URL of its endpoint, once it has been checked.
        began: The time starting began, in seconds of `now`: when the lease was entered, or when there was
            capacity after waiting for it.
        selection: What became of the hardware types that the lease may use, if it has a choice or waits.
        lifetime: Maximum seconds from the start request to the release.
        limit: The argument that sets `lifetime`, and its value.
        was_usable: Whether the block began, or the instance was transferred to its holder.
        outcome: How the lease ends, for the cost ledger, if its release succeeds.
        final: The receipt, once the lease has ended.
        activity: Counts the requests, if there is an `idle_timeout`.
    """

    services: LeaseServices
    options: LeaseOptions
    operation: Operation = "instance"
    held: HeldInstance = field(factory=HeldInstance)
    newest: Instance | None = None
    base_url: str = ""
    began: float = 0.0
    lifetime: float = math.inf
    limit: str = ""
    was_usable: bool = False
    outcome: CostOutcome = "failed"
    final: Receipt | None = None
    activity: Activity | None = None
    selection: Selection | None = None
    _clock: Callable[[], float] = anyio.current_time

    @property
    def instance(self) -> Instance:
        if self.newest is None:
            raise InvalidArgumentError(
                "This lease has no instance yet. Use it inside `async with client.instance(...) as inst:`."
            )
        return self.newest

    @property
    def args(self) -> InstanceArgs:
        """The arguments of the latest start request, or of the first one."""
        return self.options.args if self.held.attempt is None else self.held.attempt.args

    @property
    def hardware_reason(self) -> str:
        """Why the hardware was used, or an empty string if there was no choice."""
        if self.selection is None or self.newest is None:
            return ""
        if self.held.origin is not Origin.STARTED:
            return "reused" if self.selection.is_choice else ""
        return self.selection.reason(self.newest.instance_args.hardware_type_id or self.args.hardware_type_id)

    def check_not_released(self) -> None:
        """Check that the instance can still respond.

        Raises:
            InvalidArgumentError: if the lease has stopped or deleted it.
        """
        if self.final is not None and self.final.released:
            raise InvalidArgumentError(
                f"Instance {self.held.instance_id} was released at the end of its block. "
                "Send requests inside the `async with` block."
            )

    def enter(self, operation: Operation) -> None:
        self.operation = operation
        self._clock = loop_clock()
        self.began = self.now()
        if self.options.idle_timeout is not None:
            self.activity = Activity(self.options.idle_timeout, self.now, self._announce_idle)

    def now(self) -> float:
        """Return the time in seconds, including suspensions, which are billed. Works in any thread."""
        return self._clock() + suspended()

    def on_loop(self, moment: float) -> float:
        """Convert a time of `now` to seconds of `anyio.current_time`, for a deadline."""
        return moment - suspended()

    @property
    def age(self) -> float:
        return self.now() - self.billed_from

    @property
    def billed_from(self) -> float:
        """The time billing began, by `now`: when the start request was sent or the lease was entered."""
        return self.began if self.held.billed_from is None else self.held.billed_from

    @property
    def expires_at(self) -> float:
        """The time the lifetime ends, in seconds of `now`; infinity if it never ends."""
        return self.billed_from + self.lifetime

    def expiry(self) -> float | None:
        """Return the end of the lifetime as Unix time, for the reaper, or None if it never ends."""
        if math.isinf(self.lifetime):
            return None
        return self.services.promises.system.wall_clock() + self.lifetime - self.age

    def _announce_idle(self, seconds: float) -> None:
        """Tell the reaper to release the instance after `seconds`, unless more activity is announced."""
        if self.held.key is not None:
            promises = self.services.promises
            promises.record_activity(self.held.key, promises.system.wall_clock() + seconds)

    @property
    def receipt(self) -> Receipt:
        return self.final or self._count(self.now())

    def close(self, stopped_at: float | None, *, released: bool) -> None:
        """Set the final receipt. `stopped_at`, on the loop's clock, is None if the instance keeps running."""
        if self.held.instance_id is not None:
            final = self._count(self.now() if stopped_at is None else stopped_at + suspended())
            self.final = evolve(final, released=released)

    @property
    def billed_args(self) -> InstanceArgs:
        """The arguments of the instance, as far as they are known."""
        sent = self.args
        args = sent if self.newest is None else self.newest.instance_args
        # No documented response from the service contains the number of workers.
        num_workers = max(args.num_workers, sent.num_workers)
        hardware = args.hardware_type_id or sent.hardware_type_id
        return evolve(args, num_workers=num_workers, hardware_type_id=hardware)

    def _count(self, until: float) -> Receipt:
        # After starting was cancelled, the instance may have been fetched only to release it.
        instance_id = self.held.instance_id or self.instance.instance_id
        args = self.billed_args
        price = self.services.prices.of(args.hardware_type_id)
        seconds = max(until - self.billed_from, 0.0)
        return evolve(receipt(instance_id, seconds, args, price), hardware_reason=self.hardware_reason)

    def info(self) -> LeaseInfo:
        held = self.held
        # This lease does not pay for an instance that was already running.
        final = None if held.origin is Origin.FOUND else self.final
        args = self.args if self.newest is None else self.newest.instance_args
        return LeaseInfo(
            operation=self.operation,
            model=args.hf_name,
            hardware_type_id=args.hardware_type_id or self.args.hardware_type_id,
            hardware_reason=self.hardware_reason,
            capacity_wait=0.0 if self.selection is None else self.selection.waited,
            num_workers=max(args.num_workers, self.options.args.num_workers) if args.model_id else None,
            instance_id=held.instance_id,
            source=_source(held),
            request_id=held.attempt.request_id if held.attempt is not None else None,
            cost=final.cost if final is not None else None,
            currency=final.currency if final is not None else "",
        )


def _source(held: HeldInstance) -> Source | None:
    if held.instance_id is None:
        return None
    match held.origin:
        case Origin.FOUND:
            return "found"
        case Origin.RESTARTED:
            return "restarted"
        case Origin.STARTED:
            return "adopted" if held.attempt is not None and held.attempt.adopted else "started"
