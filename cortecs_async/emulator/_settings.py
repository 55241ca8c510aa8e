"""The settings of an emulator, fixed when it is created."""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

import attrs

from cortecs_async.emulator._catalog import HARDWARE, DetailShape, Model, read_models
from cortecs_async.emulator._messages import ErrorBody

StartedAt = Literal["running", "accepted", "initialized", "first_running", "constant", "none", "local_time"]
EndpointFault = Literal["502", "drop", "hang", "garbage"]

_STATUSES: Final = ("pending", "running", "stopping", "stopped")
# 31 years: more than any clock needs, and all timestamps still have four-digit years.
_MOST_SKEW: Final = 1e9


def check_capacity(value: Mapping[str, int]) -> None:
    """Check hardware types and numbers of GPU sets.

    Raises:
        ValueError: If a hardware type is unknown, or a number is negative.
    """
    for hardware_type_id, sets in value.items():
        if hardware_type_id not in HARDWARE:
            msg = f"Unknown hardware type {hardware_type_id!r} in capacity (known: {', '.join(HARDWARE)})"
            raise ValueError(msg)
        if sets < 0:
            msg = f"The capacity of {hardware_type_id} cannot be negative"
            raise ValueError(msg)


def _valid_capacity(_: object, __: "attrs.Attribute[Any]", value: Mapping[str, int]) -> None:
    check_capacity(value)


def _needs_parallel(settings: "Settings", _: object, __: int) -> None:
    if settings.parallel is None:
        msg = "queue requires parallel. Pass both."
        raise ValueError(msg)


def _as_lags(value: float | Sequence[float]) -> tuple[float, ...]:
    return (value,) if isinstance(value, int | float) else tuple(value)


def _valid_lags(_: object, attribute: "attrs.Attribute[Any]", value: tuple[float, ...]) -> None:
    if not value or not all(0 <= lag < math.inf for lag in value):
        msg = f"{attribute.name} must be at least 0 seconds, or a sequence of such durations, not {value}"
        raise ValueError(msg)


def _known_statuses(_: object, attribute: "attrs.Attribute[Any]", value: Mapping[str, str]) -> None:
    unknown = [status for status in value if status not in _STATUSES]
    if unknown:
        msg = f"Unknown status {unknown[0]!r} in {attribute.name} (known: {', '.join(_STATUSES)})"
        raise ValueError(msg)


@attrs.frozen(kw_only=True)
class Settings:
    """The options of an `Emulator`, which documents them."""

    client_id: str
    client_secret: str = attrs.field(repr=False)
    api_key: str = attrs.field(repr=False)
    step_seconds: float = attrs.field(validator=attrs.validators.ge(0))
    num_steps: int = attrs.field(validator=attrs.validators.ge(1))
    stop_seconds: float = attrs.field(validator=attrs.validators.ge(0))
    token_seconds: float = attrs.field(validator=attrs.validators.ge(0))
    answer_seconds: float = attrs.field(validator=attrs.validators.ge(0))
    parallel: int | None = attrs.field(validator=attrs.validators.optional(attrs.validators.ge(1)))
    queue: int | None = attrs.field(
        validator=attrs.validators.optional([attrs.validators.ge(0), _needs_parallel])
    )
    capacity: Mapping[str, int] = attrs.field(validator=_valid_capacity)
    available_lag: float = attrs.field(validator=attrs.validators.ge(0))
    models: Mapping[str, Model] = attrs.field(converter=read_models)
    model_detail: DetailShape = attrs.field(validator=attrs.validators.in_(get_args(DetailShape)))
    balance: float
    currency: str
    token_lifetime: float = attrs.field(validator=attrs.validators.gt(0))
    unknown_status: int = attrs.field(validator=attrs.validators.in_((400, 404)))
    num_workers_in_args: bool
    list_lag: tuple[float, ...] = attrs.field(converter=_as_lags, validator=_valid_lags)
    get_lag: tuple[float, ...] = attrs.field(converter=_as_lags, validator=_valid_lags)
    hide_stopped: bool
    clock_skew: float = attrs.field(
        validator=[attrs.validators.ge(-_MOST_SKEW), attrs.validators.le(_MOST_SKEW)]
    )
    date_header: bool
    started_at: StartedAt = attrs.field(validator=attrs.validators.in_(get_args(StartedAt)))
    status_words: Mapping[str, str] = attrs.field(validator=_known_statuses)
    error_body: ErrorBody = attrs.field(validator=attrs.validators.in_(get_args(ErrorBody)))
    endpoint_lag: float = attrs.field(validator=attrs.validators.ge(0))
    endpoint_fault: EndpointFault = attrs.field(validator=attrs.validators.in_(get_args(EndpointFault)))
    epoch: float
    """The Unix time, on the service's clock, at which the clock was zero. Used for dates in responses."""

    # Cached, because each instance in each list needs them.
    @functools.cached_property
    def ready_after(self) -> float:
        """Seconds from an accepted start until the first worker is running."""
        return (self.num_steps - 1) * self.step_seconds

    @functools.cached_property
    def stamped_after(self) -> float:
        """Seconds from an accepted start to the moment that `started_at` means."""
        if self.started_at == "accepted":
            return 0.0
        return (
            min(self.step_seconds, self.ready_after) if self.started_at == "initialized" else self.ready_after
        )
