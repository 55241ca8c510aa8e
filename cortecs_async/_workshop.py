"""What a client lends to its leases, and what a lease was asked for."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from ._arguments import check_amount, check_seconds
from ._budget import Prices
from ._config import PollPolicy
from ._domain import InstanceArgs
from ._errors import InvalidArgumentError
from ._http import HTTP
from ._instances import Instances
from ._keeper import Keeper
from ._release import OnExit
from ._starts import Starter
from ._waiting import ProgressCallback

OnLoss = Literal["cancel", "ignore"]


@frozen(kw_only=True)
class LeaseOptions:
    """How a lease behaves; times in seconds."""

    args: InstanceArgs
    start_timeout: float = 900.0
    teardown_timeout: float = 120.0
    on_exit: OnExit = "delete"
    reuse: bool = False
    borrowed: str | None = None
    max_lifetime: float | None = None
    max_cost: float | None = None
    on_loss: OnLoss = "cancel"
    on_progress: ProgressCallback | None = None


@frozen(kw_only=True)
class Workshop:
    """What a client lends to its leases."""

    http: HTTP
    instances: Instances
    releasing: Instances
    poll: PollPolicy
    keeper: Keeper
    starter: Starter
    prices: Prices


def check_lease(
    start_timeout: float,
    teardown_timeout: float,
    max_lifetime: float | None,
    max_cost: float | None,
    on_progress: ProgressCallback | None,
) -> None:
    """Checks what all leases have in common.

    Raises:
        InvalidArgumentError: for what makes no sense.
    """
    check_seconds("start_timeout", start_timeout)
    check_seconds("teardown_timeout", teardown_timeout)
    check_seconds("max_lifetime", max_lifetime, optional=True)
    check_amount("max_cost", max_cost)
    if on_progress is not None and not callable(on_progress):
        raise InvalidArgumentError("on_progress must be callable")
