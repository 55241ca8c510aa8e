"""The options of a lease. Keep it light: it is loaded with `AsyncCortecs`, before the first client exists."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

from attrs import converters, field, frozen

from .._api.validation import (
    CHEAPEST,
    BillingInterval,
    check_amount,
    check_bool,
    check_hardware,
    check_model_id,
    check_start,
)
from .._durations import Duration, check_seconds
from .._errors import InvalidArgumentError
from .._secrets import Hidden, Secret

if TYPE_CHECKING:
    from .._api.domain import InstanceArgs
    from .._api.waiting import ProgressCallback

OnExit = Literal["delete", "stop", "keep"]
OnLoss = Literal["cancel", "ignore"]
Ready = Literal["status", "models", "answer"]

_PROJECT_VARIABLE = "CORTECS_PROJECT"
_LONGEST_PROJECT = 100


# mypy supports only functions as converters.


def _start_timeout(value: Duration) -> float:
    return check_seconds("start_timeout", value)


def _teardown_timeout(value: Duration) -> float:
    return check_seconds("teardown_timeout", value)


def _max_lifetime(value: Duration) -> float:
    return check_seconds("max_lifetime", value)


def _capacity_timeout(value: Duration) -> float:
    return check_seconds("capacity_timeout", value)


def _idle_timeout(value: Duration) -> float:
    return check_seconds("idle_timeout", value)


@frozen(kw_only=True)
class LeaseOptions:
    """The checked arguments of `client.instance`, `attach`, and `acquire`; times in seconds.

    Attributes:
        args: The arguments of the start request, from `check_start`.
        borrowed: The id of an instance to attach to, or None to start one.
        hardware: The allowed hardware types in order of preference, or `(CHEAPEST,)`. Empty if
            `args.hardware_type_id` is the only choice.
        inference_key: The key of the probe, or None for the default of `openai_kwargs`.
        project: The project to record the cost for, or None.

    The other attributes are arguments of `client.instance`.
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
    hardware: tuple[str, ...] = ()
    max_price_per_hour: float | None = None
    capacity_timeout: float | None = field(default=None, converter=converters.optional(_capacity_timeout))
    ready: Ready = "status"
    idle_timeout: float | None = field(default=None, converter=converters.optional(_idle_timeout))
    project: str | None = None
    inference_key: Hidden[str | Secret | None] = field(factory=lambda: Hidden(None))

    def __attrs_post_init__(self) -> None:
        check_amount("max_cost", self.max_cost)
        check_amount("max_price_per_hour", self.max_price_per_hour)
        check_bool("reuse", self.reuse)
        if self.require_key is not None:
            check_bool("require_key", self.require_key)
        if self.on_exit not in get_args(OnExit):
            raise InvalidArgumentError(f"on_exit must be 'delete', 'stop', or 'keep', not {self.on_exit!r}")
        if self.on_loss not in get_args(OnLoss):
            raise InvalidArgumentError(f"on_loss must be 'cancel' or 'ignore', not {self.on_loss!r}")
        if self.ready not in get_args(Ready):
            raise InvalidArgumentError(f"ready must be 'status', 'models', or 'answer', not {self.ready!r}")
        if self.on_progress is not None and not callable(self.on_progress):
            raise InvalidArgumentError("on_progress must be callable")

    @property
    def selects_hardware(self) -> bool:
        """Whether the hardware is chosen before the start request, or waited for."""
        return bool(self.hardware) or self.max_price_per_hour is not None or self.capacity_timeout is not None


def start_options(
    model_id: str,
    hardware_type_id: str | Sequence[str] | None,
    context_length: int | None,
    num_workers: int,
    billing_interval: BillingInterval,
    *,
    project: str | None = None,
    **others: Any,
) -> LeaseOptions:
    """Check the arguments of a method that starts an instance. `others` are attributes of `LeaseOptions`.

    Raises:
        InvalidArgumentError: if an argument is invalid.
    """
    # Before the hardware, because the model is wrong if the arguments are in the wrong order.
    check_model_id(model_id)
    hardware = check_hardware(hardware_type_id)
    only = hardware[0] if len(hardware) == 1 and hardware[0] != CHEAPEST else None
    return LeaseOptions(
        args=check_start(model_id, only, context_length, num_workers, billing_interval),
        hardware=() if only is not None else hardware,
        project=_check_project(project),
        **others,
    )


def _check_project(project: str | None) -> str | None:
    if project is None:
        # A variable that is not a name must not prevent a start.
        name = "".join(filter(str.isprintable, os.environ.get(_PROJECT_VARIABLE, "")))
        return name.strip()[:_LONGEST_PROJECT] or None
    if not isinstance(project, str) or not project.strip():
        raise InvalidArgumentError(f"project must be a name, not {project!r}")
    if not project.isprintable() or len(project) > _LONGEST_PROJECT:
        raise InvalidArgumentError(
            f"project must be one line of at most {_LONGEST_PROJECT} characters, not {project[:120]!r}"
        )
    return project.strip()
