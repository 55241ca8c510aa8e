"""What a test reads from the emulator afterwards."""

from typing import Literal

import attrs

LedgerStatus = Literal["pending", "running", "stopping", "stopped", "deleted"]


@attrs.frozen
class LedgerEntry:
    """One instance that there ever was, as the bill sees it. Times are seconds of the emulator's clock."""

    instance_id: str
    model_id: str
    hardware_type_id: str
    num_workers: int
    billing_interval: str
    started_at: float
    """When its first start was accepted."""
    stopped_at: float | None
    """When its last run ended; None while it is billed."""
    deleted_at: float | None
    status: LedgerStatus
    seconds: float
    """How long it has been billed so far, over all its runs, before rounding up to the interval."""
    cost: float
    """What that costs so far: begun intervals x price x workers, each run on its own."""
    price_per_hour: float
    """What an hour of it costs, all workers together."""


@attrs.frozen
class RequestRecord:
    """One request that reached the emulator."""

    method: str
    path: str
    route: str | None
    """The route's name; None when no route matched."""
    status: int | None
    """The status sent; None when nothing was: dropped, still under way, or the caller hung up."""
    at: float
    """When it arrived, seconds of the emulator's clock."""
    fault: str | None
    """The kind of the fault that met it."""
