"""JSON to domain and back, by cattrs. Liberal in what is read, exact in what is written.

Unknown fields are ignored and unknown statuses kept. A null, where a field has a default, means the default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from .._http.messages import ShapeError
from .domain import (
    AffectedInstances,
    Balance,
    HardwareConfig,
    HardwareType,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    Model,
    ModelPreview,
    WorkerStatus,
)

T = TypeVar("T")

_HookMaker = Callable[[Any, cattrs.Converter], Callable[[Any, Any], Any]]

_OWN: frozenset[type] = frozenset({
    AffectedInstances,
    Balance,
    HardwareConfig,
    HardwareType,
    InitProgress,
    Instance,
    InstanceArgs,
    InstanceStatus,
    Model,
    ModelPreview,
    WorkerStatus,
})  # fmt: skip


# What structuring raises for data of another shape; OverflowError for an infinite number.
_UNFIT = (TypeError, ValueError, KeyError, AttributeError, OverflowError)


def decode_instance(data: Any) -> Instance:
    """The instance in an answer's `instance` field."""
    return _decode(_member(data, "instance"), Instance)


def decode_instances(data: Any) -> tuple[Instance, ...]:
    """The instances in an answer's `instances` field."""
    return _decode(_member(data, "instances"), tuple[Instance, ...])


def decode_affected(data: Any) -> AffectedInstances:
    """What `stop-all` or `delete-all` changed; `instance_ids` may be missing, and so may the body."""
    return _decode({} if data is None else data, AffectedInstances)


def decode_models(data: Any) -> tuple[ModelPreview, ...]:
    """The models in an answer's `models` field."""
    return _decode(_member(data, "models"), tuple[ModelPreview, ...])


def decode_model(data: Any) -> Model:
    """The model in an answer's `model` field."""
    return _decode(_member(data, "model"), Model)


def decode_hardware_types(data: Any) -> tuple[HardwareType, ...]:
    """The hardware types in an answer's `hardware_types` field."""
    return _decode(_member(data, "hardware_types"), tuple[HardwareType, ...])


def decode_balance(data: Any) -> Balance:
    """The account's balance."""
    return _decode(data, Balance)


def encode(value: Any) -> dict[str, Any]:
    """A domain object as the service writes it: a documented payload, decoded and encoded, is the same."""
    encoded: dict[str, Any] = _converter(detailed=False).unstructure(value)
    return encoded


def encode_start(args: InstanceArgs) -> dict[str, Any]:
    """The body of a start: what was asked for, and nothing where the service's default is wanted."""
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}


def _member(data: Any, name: str) -> Any:
    if not isinstance(data, Mapping) or data.get(name) is None:
        raise ShapeError(f"an object with {name!r} was expected")
    return data[name]


def _decode(data: Any, cls: type[T]) -> T:
    fast = _converter(detailed=False)
    try:
        return fast.structure(data, cls)
    except _UNFIT:
        pass
    # The fast converter does not say where: read it again for the message.
    exact = _converter(detailed=True)
    try:
        return exact.structure(data, cls)
    except cattrs.BaseValidationError as error:
        raise ShapeError("; ".join(cattrs.transform_error(error, path="$")[:3])) from None
    except _UNFIT:
        raise ShapeError(f"a {type(data).__name__} is not what was expected") from None


@cache
def _converter(*, detailed: bool) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=detailed)
    converter.register_structure_hook(str, _read_str)
    converter.register_structure_hook(int, _read_int)
    converter.register_structure_hook(float, _read_float)
    converter.register_structure_hook(bool, lambda value, _: bool(value))
    converter.register_structure_hook(datetime, _read_datetime)
    converter.register_unstructure_hook(datetime, _write_datetime)
    converter.register_structure_hook_func(lambda cls: cls == Mapping[str, Any], _read_mapping)
    converter.register_structure_hook_factory(_is_tuple, lambda cls: _list_hook(get_args(cls)[0], converter))
    converter.register_structure_hook_factory(
        lambda cls: cls == tuple[WorkerStatus, ...], lambda _: _workers_hook(converter)
    )
    converter.register_structure_hook_factory(_is_optional, lambda cls: _optional_hook(cls, converter))
    # Made when it is first needed, with those of its fields.
    converter.register_structure_hook_factory(_OWN.__contains__, lambda cls: _own_hook(cls, converter))
    converter.register_unstructure_hook(
        InstanceArgs,
        # Absent from every documented answer, so 1 is written as the service writes it: not at all.
        make_dict_unstructure_fn(InstanceArgs, converter, num_workers=override(omit_if_default=True)),
    )
    return converter


def _own_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    make_hook: _HookMaker = _SPECIAL_HOOKS.get(cls, _without_nulls)
    return make_hook(cls, converter)


def _without_nulls(cls: type[T], converter: cattrs.Converter) -> Callable[[Any, Any], T]:
    structure = make_dict_structure_fn(cls, converter)

    def read(data: Any, _: Any) -> T:
        if not isinstance(data, dict):
            raise TypeError(f"an object was expected, not a {type(data).__name__}")
        if None in data.values():
            data = {name: value for name, value in data.items() if value is not None}
        return structure(data, cls)

    return read


def _is_optional(cls: Any) -> bool:
    return isinstance(cls, UnionType) and len(cls.__args__) == 2 and cls.__args__[1] is NoneType


def _optional_hook(cls: Any, converter: cattrs.Converter) -> Callable[[Any, Any], Any]:
    # A null never gets here: it is dropped with its field.
    return converter.get_structure_hook(cls.__args__[0])


def _is_tuple(cls: Any) -> bool:
    return get_origin(cls) is tuple


def _list_hook(element: Any, converter: cattrs.Converter) -> Callable[[Any, Any], tuple[Any, ...]]:
    structure = converter.get_structure_hook(list[element])

    def read_list(data: Any, _: Any) -> tuple[Any, ...]:
        # Whatever can be iterated would do otherwise: `{}` would be "no instances", and a text its letters.
        if not isinstance(data, list):
            raise TypeError(f"a list was expected, not a {type(data).__name__}")
        return tuple(structure(data, list[element]))

    return read_list


# Progress and time stamps inform; an odd one must not make its instance, and the whole list with it,
# unreadable, and so unstoppable.


def _worker_hook(cls: type[WorkerStatus], converter: cattrs.Converter) -> Callable[[Any, Any], WorkerStatus]:
    read = _without_nulls(cls, converter)

    def read_worker(data: Any, cls: Any) -> WorkerStatus:
        try:
            return read(data, cls)
        except (*_UNFIT, cattrs.BaseValidationError):
            return WorkerStatus()

    return read_worker


def _workers_hook(converter: cattrs.Converter) -> Callable[[Any, Any], tuple[WorkerStatus, ...]]:
    read = converter.get_structure_hook(WorkerStatus)

    def read_workers(data: Any, _: Any) -> tuple[WorkerStatus, ...]:
        if not isinstance(data, list):
            return ()
        return tuple([read(each, WorkerStatus) for each in data])

    return read_workers


def _read_datetime(value: Any, _: Any) -> datetime | None:
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _preview_hook(cls: type[ModelPreview], converter: cattrs.Converter) -> Callable[[Any, Any], ModelPreview]:
    read = _without_nulls(cls, converter)

    def read_preview(data: Any, cls: Any) -> ModelPreview:
        if isinstance(data, Mapping):
            # The vendor's client reads `model_name` as an older spelling of `model_id` that wins, and
            # takes the hardware from `hardware_info`.
            hardware = data.get("hardware_info")
            data = {
                **data,
                "model_id": data.get("model_name") or data.get("model_id"),
                "hardware_configs": hardware.get("hardware_configs")
                if isinstance(hardware, Mapping)
                else None,
            }
        return read(data, cls)

    return read_preview


_SPECIAL_HOOKS: dict[type, _HookMaker] = {
    WorkerStatus: _worker_hook,
    ModelPreview: _preview_hook,
}


def _read_str(value: Any, _: Any) -> str:
    # Not str(value): a null id must not become the instance "None".
    if not isinstance(value, str):
        raise TypeError(f"a string was expected, not a {type(value).__name__}")
    return value


def _read_int(value: Any, _: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value):
        raise TypeError(f"a whole number was expected, not a {type(value).__name__}")
    return int(value)


def _read_float(value: Any, _: Any) -> float:
    if isinstance(value, bool):
        raise TypeError("a number was expected, not a bool")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError("a finite number was expected")
    return number


def _read_mapping(value: Any, _: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"an object was expected, not a {type(value).__name__}")
    return dict(value)


def _write_datetime(value: datetime) -> str:
    text = value.isoformat()
    return f"{text.removesuffix('+00:00')}Z" if text.endswith("+00:00") else text
