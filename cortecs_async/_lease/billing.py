"""What a lease writes to the cost ledger: the bill of its promise, and the line when it ends."""

from __future__ import annotations

from .._aio.clock import suspended
from .._api.domain import InstanceArgs
from .._api.teardown import Goal
from .._errors import InstanceLostError, LeaseExpiredError, LeaseIdleError, LifecycleError
from .._recovery.cost_lines import CostOutcome, cost_line
from .._recovery.records import Record
from .options import LeaseOptions
from .pricing import Prices, interval_cost
from .release import Release
from .state import LeaseState, Origin


def start_bill(options: LeaseOptions, prices: Prices, args: InstanceArgs) -> Record:
    """Return the bill of a start request, without the arguments that the promise already contains."""
    price = prices.of(args.hardware_type_id)
    bill: Record = {} if options.project is None else {"project": options.project}
    if price is not None:
        bill |= {"interval_price": interval_cost(price, args), "currency": price.currency}
    return bill


def instance_bill(state: LeaseState) -> Record:
    """Return the bill of the lease's instance."""
    args = state.billed_args
    return {
        "model": args.hf_name,
        "hardware_type_id": args.hardware_type_id,
        "num_workers": args.num_workers,
        "billing_interval": args.billing_interval,
        **start_bill(state.options, state.services.prices, args),
    }


def outcome_of(state: LeaseState, cause: BaseException | None, verdict: LifecycleError | None) -> CostOutcome:
    """Return the outcome of a lease whose release succeeds. `cause` is the error that ends it."""
    if not state.was_usable:
        return "failed" if isinstance(cause, Exception) else "cancelled"
    match verdict:
        case LeaseIdleError():
            return "idle"
        case LeaseExpiredError():
            return "expired"
        case InstanceLostError():
            return "lost"
        case _:
            return "released"


async def record_seen(state: LeaseState, key: str) -> None:
    """Record that a reading has shown the instance, and its price, if it has become known since the start."""
    promises = state.services.promises
    promise = promises.store.state.promises.get(key)
    bill = start_bill(state.options, state.services.prices, state.billed_args)
    has_new_price = promise is not None and "interval_price" in bill.keys() - promise.bill.keys()
    promises.record_seen(key, bill if has_new_price else None)
    if has_new_price:
        # Otherwise, the reaper would not know the price if this process were killed in the block.
        await promises.flush()


def record_kept(state: LeaseState) -> None:
    """Record that the lease leaves its instance running. The release of the instance adds another line."""
    if (key := state.held.key) is not None:
        now = state.now()
        state.services.promises.record_cost(_line(state, key, "kept", until=now, is_end_known=False))


def record_released(state: LeaseState, release: Release, key: str) -> None:
    """Record the cost of the lease's instance, unless it was found running."""
    if state.held.origin is Origin.FOUND or state.held.instance_id is None:
        return
    outcome = state.outcome
    if release.failure is not None:
        outcome = "unreleased"
    elif outcome == "released" and release.loss is not None:
        outcome = "lost"
    elif outcome == "released" and release.goal is Goal.STOPPED:
        outcome = "stopped"
    stopped_at = release.stopped_at
    until = state.now() if stopped_at is None else stopped_at + suspended()
    state.services.promises.record_cost(_line(state, key, outcome, until=until))


def _line(
    state: LeaseState, key: str, outcome: CostOutcome, *, until: float, is_end_known: bool = True
) -> Record:
    promises = state.services.promises
    seconds = max(until - state.billed_from, 0.0)
    ended_at = promises.system.wall_clock() - (state.now() - until)
    return cost_line(
        instance_bill(state),
        lease_id=key,
        instance_id=state.held.instance_id or state.instance.instance_id,
        started_at=ended_at - seconds,
        ended_at=ended_at,
        seconds=seconds if is_end_known else None,
        outcome=outcome,
        written_by="lease",
        account=promises.account,
        api_base_url=promises.api,
    )
