"""The options of a lease. Light: it is loaded with `AsyncCortecs`, before the first client is created."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from attrs import frozen

from .._api.validation import check_amount, check_bool, check_seconds
from .._errors import InvalidArgumentError

if TYPE_CHECKING:
    from .._api.domain import InstanceArgs
    from .._api.waiting import ProgressCallback

OnExit = Literal["delete", "stop", "keep"]
OnLoss = Literal["cancel", "ignore"]


@frozen(kw_only=True)
class LeaseOptions:
    """The checked arguments of `client.instance`, `attach` and `acquire`; times in seconds.

    Attributes:
        args: What to start, as `check_start` returns it.
        borrowed: The id of an instance to attach to; None to start one.
    """

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

    def __attrs_post_init__(self) -> None:
        check_seconds("start_timeout", self.start_timeout)
        check_seconds("teardown_timeout", self.teardown_timeout)
        check_seconds("max_lifetime", self.max_lifetime, optional=True)
        check_amount("max_cost", self.max_cost)
        check_bool("reuse", self.reuse)
        if self.on_exit not in get_args(OnExit):
            raise InvalidArgumentError(f"on_exit must be 'delete', 'stop' or 'keep', not {self.on_exit!r}")
        if self.on_loss not in get_args(OnLoss):
            raise InvalidArgumentError(f"on_loss must be 'cancel' or 'ignore', not {self.on_loss!r}")
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")
