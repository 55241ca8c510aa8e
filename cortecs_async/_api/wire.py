"""The service's JSON as domain objects, and the body of a start.

A cattrs converter reads every field of the domain classes by its name and its annotation. Unknown fields are
ignored, and unknown statuses are kept. A null counts as a missing field, and a missing field takes its
default. Without a default, or with a value of another type, decoding raises `ShapeError`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache, partial
from types import GenericAlias, UnionType
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn

from .._http.messages import ShapeError
from .domain import (
    AffectedInstances,
    Balance,
    HardwareType,
    Instance,
    InstanceArgs,
    Model,
    ModelPreview,
    WorkerStatus,
)

T = TypeVar("T")


def decode_instance(data: Any) -> Instance:
    return _decode(_member(data, "instance"), Instance)


def decode_instances(data: Any) -> tuple[Instance, ...]:
    return _decode(_member(data, "instances"), tuple[Instance, ...])


def decode_affected(data: Any) -> AffectedInstances:
    """Return what `stop-all` or `delete-all` changed. The body may be missing, and so may its fields."""
    return _decode({} if data is None else data, AffectedInstances)


def decode_models(data: Any) -> tuple[ModelPreview, ...]:
    previews = _member(data, "models")
    if isinstance(previews, list):
        previews = [_with_hardware(each) for each in previews]
    return _decode(previews, tuple[ModelPreview, ...])


def decode_model(data: Any) -> Model:
    return _decode(_member(data, "model"), Model)


def decode_hardware_types(data: Any) -> tuple[HardwareType, ...]:
    return _decode(_member(data, "hardware_types"), tuple[HardwareType, ...])


def decode_balance(data: Any) -> Balance:
    return _decode(data, Balance)


def encode_start(args: InstanceArgs) -> dict[str, Any]:
    """Return the body of a start, without the arguments that are left to the service's defaults."""
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}


def _member(data: Any, name: str) -> Any:
    if not isinstance(data, Mapping) or data.get(name) is None:
        raise ShapeError(f"an object with {name!r} was expected")
    return data[name]


def _decode(data: Any, cls: type[T]) -> T:
    with contextlib.suppress(Exception):
        return _converter(detailed=False).structure(data, cls)
    # The fast converter does not say what is wrong, and where. Read it again, for the message.
    try:
        return _converter(detailed=True).structure(data, cls)
    except (cattrs.BaseValidationError, _MismatchError) as error:
        problem, _, path = cattrs.transform_error(error, "$", _describe)[0].rpartition(" @ ")
        raise ShapeError(f"at {path}, {problem}") from None


def _describe(error: BaseException, _: type | None) -> str:
    # The message of an error that is not ours may contain the value.
    return str(error) if isinstance(error, _MismatchError) else "a field is null or missing"


_Hook = Callable[[Any, Any], Any]


class _MismatchError(ValueError):
    """A value does not have the documented type. The message never contains the value."""

    def __init__(self, expected: str, value: Any) -> None:
        found = "null" if value is None else f"of type {type(value).__name__}"
        super().__init__(f"{expected} was expected, but it is {found}")


@cache
def _converter(*, detailed: bool) -> cattrs.Converter:
    converter = cattrs.Converter(detailed_validation=detailed)
    for kind, read in _READERS.items():
        converter.register_structure_hook(kind, read)
    converter.register_structure_hook_func(lambda cls: cls == Mapping[str, Any], _read_mapping)
    factories: list[tuple[Callable[[Any], bool], Callable[..., _Hook]]] = [
        (attrs.has, _object_hook),
        (lambda cls: isinstance(cls, UnionType), _optional_hook),
        (lambda cls: get_origin(cls) is tuple, _tuple_hook),
        (lambda cls: cls == tuple[WorkerStatus, ...], _workers_hook),  # the last one that fits is used
    ]
    for fits, factory in factories:
        converter.register_structure_hook_factory(fits, partial(factory, converter=converter))
    return converter


def _object_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    read_fields = make_dict_structure_fn(cls, converter)

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise _MismatchError("an object", value)
        if None in value.values():
            value = {name: content for name, content in value.items() if content is not None}
        return read_fields(value, cls)

    return read


def _optional_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    # For `X | None`. A null is removed with its field, so cattrs need not check for it: a quarter faster.
    hook: _Hook = converter.get_structure_hook(get_args(cls)[0])
    return hook


def _tuple_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    items = GenericAlias(list, (get_args(cls)[0],))
    read_items = converter.get_structure_hook(items)

    def read(value: Any, _: Any) -> tuple[Any, ...]:
        # Not anything that can be iterated: `{}` would mean "no instances", and a string its letters.
        if not isinstance(value, list):
            raise _MismatchError("a list", value)
        return tuple(read_items(value, items))

    return read


def _read_str(value: Any, _: Any) -> str:
    # Not str(value): the number 5 must not become the id "5".
    if not isinstance(value, str):
        raise _MismatchError("a string", value)
    return value


def _read_int(value: Any, _: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _MismatchError("a whole number", value)


def _read_float(value: Any, _: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _MismatchError("a finite number", value)
    return number


def _read_mapping(value: Any, _: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _MismatchError("an object", value)
    return dict(value)


# Progress and timestamps are only shown. A wrong one must not make its instance unreadable, and with it the
# whole list: then no instance could be stopped.


def _read_datetime(value: Any, _: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _workers_hook(_: Any, converter: cattrs.Converter) -> _Hook:
    read_worker = converter.get_structure_hook(WorkerStatus)

    def read(value: Any, _: Any) -> tuple[WorkerStatus, ...]:
        workers = value if isinstance(value, list) else []
        return tuple([read_or_default(each) for each in workers])

    def read_or_default(value: Any) -> WorkerStatus:
        try:
            worker: WorkerStatus = read_worker(value, WorkerStatus)
        except Exception:  # noqa: BLE001  (whatever cattrs raises for a wrong value)
            return WorkerStatus()
        return worker

    return read


def _with_hardware(preview: Any) -> Any:
    # The vendor's client prefers `model_name`, an older spelling of `model_id`, and takes the hardware from
    # `hardware_info`.
    if not isinstance(preview, dict):
        return preview
    hardware = preview.get("hardware_info")
    return {
        **preview,
        "model_id": preview.get("model_name") or preview.get("model_id"),
        "hardware_configs": hardware.get("hardware_configs") if isinstance(hardware, dict) else None,
    }


_READERS: dict[Any, _Hook] = {
    str: _read_str,
    int: _read_int,
    float: _read_float,
    bool: lambda value, _: bool(value),  # else it would be read as an int
    datetime: _read_datetime,
}
