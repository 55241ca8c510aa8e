"""The options of a lease. Keep it light: it is loaded with `AsyncCortecs`, before the first client exists."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, get_args

from attrs import converters, field, frozen

from .._api.validation import check_amount, check_bool
from .._durations import Duration, check_seconds
from .._errors import InvalidArgumentError

if TYPE_CHECKING:
    from .._api.domain import InstanceArgs
    from .._api.waiting import ProgressCallback

OnExit = Literal["delete", "stop", "keep"]
OnLoss = Literal["cancel", "ignore"]


# mypy supports only functions as converters.


def _start_timeout(value: Duration) -> float:
    return check_seconds("start_timeout", value)


def _teardown_timeout(value: Duration) -> float:
    return check_seconds("teardown_timeout", value)


def _max_lifetime(value: Duration) -> float:
    return check_seconds("max_lifetime", value)


@frozen(kw_only=True)
class LeaseOptions:
    """The checked arguments of `client.instance`, `attach`, and `acquire`; times in seconds.

    Attributes:
        args: The arguments of the start request, from `check_start`.
        borrowed: The id of an instance to attach to, or None to start one.
        require_key: Same as in `client.instance`.
    """

    args: InstanceArgs
    start_timeout: float = field(default=900.0, converter=_start_timeout)
    teardown_timeout: float = field(default=120.0, converter=_teardown_timeout)
    on_exit: OnExit = "delete"
    reuse: bool = False
    borrowed: str | None = None
    max_lifetime: float | None = field(default=None, converter=converters.optional(_max_lifetime))
    max_cost: float | None = None
    on_loss: OnLoss = "cancel"
    on_progress: ProgressCallback | None = None
    require_key: bool | None = False

    def __attrs_post_init__(self) -> None:
        check_amount("max_cost", self.max_cost)
        check_bool("reuse", self.reuse)
        if self.require_key is not None:
            check_bool("require_key", self.require_key)
        if self.on_exit not in get_args(OnExit):
            raise InvalidArgumentError(f"on_exit must be 'delete', 'stop', or 'keep', not {self.on_exit!r}")
        if self.on_loss not in get_args(OnLoss):
            raise InvalidArgumentError(f"on_loss must be 'cancel' or 'ignore', not {self.on_loss!r}")
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")
