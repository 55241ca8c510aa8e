"""The settings of an emulator, fixed when it is created."""

from collections.abc import Mapping
from typing import Any, get_args

import attrs

from cortecs_async.emulator._catalog import HARDWARE, DetailShape, Model, read_models


def _known_hardware(_: object, __: "attrs.Attribute[Any]", value: Mapping[str, int]) -> None:
    for hardware_type_id, sets in value.items():
        if hardware_type_id not in HARDWARE:
            msg = f"unknown hardware type {hardware_type_id!r} in capacity (known: {', '.join(HARDWARE)})"
            raise ValueError(msg)
        if sets < 0:
            msg = f"The capacity of {hardware_type_id} must not be negative"
            raise ValueError(msg)


def _needs_parallel(settings: "Settings", _: object, __: int) -> None:
    if settings.parallel is None:
        msg = "queue requires parallel: pass parallel too"
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
    capacity: Mapping[str, int] = attrs.field(validator=_known_hardware)
    models: Mapping[str, Model] = attrs.field(converter=read_models)
    model_detail: DetailShape = attrs.field(validator=attrs.validators.in_(get_args(DetailShape)))
    balance: float
    currency: str
    token_lifetime: float = attrs.field(validator=attrs.validators.gt(0))
    unknown_status: int = attrs.field(validator=attrs.validators.in_((400, 404)))
    num_workers_in_args: bool
    epoch: float
    """The Unix time at which the clock was zero, for timestamps in responses."""

    @property
    def ready_after(self) -> float:
        """Seconds from an accepted start until the first worker is running."""
        return (self.num_steps - 1) * self.step_seconds
