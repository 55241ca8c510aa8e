"""The service's JSON as domain objects, and the body of a start.

The domain classes say what to read: every field by its name and its annotation. Unknown fields are ignored,
and unknown statuses are kept. A null counts as a missing field, and a missing field takes its default.
Without a default, or with a value of another type, decoding raises `ShapeError`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin

import attrs

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
    """Return the instance in the `instance` field of an answer."""
    return _decode(_member(data, "instance"), Instance)


def decode_instances(data: Any) -> tuple[Instance, ...]:
    """Return the instances in the `instances` field of an answer."""
    return _decode(_member(data, "instances"), tuple[Instance, ...])


def decode_affected(data: Any) -> AffectedInstances:
    """Return what `stop-all` or `delete-all` changed. The body may be missing, and so may its fields."""
    return _decode({} if data is None else data, AffectedInstances)


def decode_models(data: Any) -> tuple[ModelPreview, ...]:
    """Return the models in the `models` field of an answer."""
    return _decode(_member(data, "models"), tuple[ModelPreview, ...])


def decode_model(data: Any) -> Model:
    """Return the model in the `model` field of an answer."""
    return _decode(_member(data, "model"), Model)


def decode_hardware_types(data: Any) -> tuple[HardwareType, ...]:
    """Return the hardware types in the `hardware_types` field of an answer."""
    return _decode(_member(data, "hardware_types"), tuple[HardwareType, ...])


def decode_balance(data: Any) -> Balance:
    """Return the account's balance."""
    return _decode(data, Balance)


def encode_start(args: InstanceArgs) -> dict[str, Any]:
    """Return the body of a start, without the arguments that are left to the service's defaults."""
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}


class _MismatchError(ValueError):
    """A value does not have the documented type. The message never contains the value.

    Attributes:
        path: The steps from the value up to the whole answer, such as `[".model_id", ".instance_args"]`.
    """

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.path: list[str] = []


def _member(data: Any, name: str) -> Any:
    if not isinstance(data, Mapping) or data.get(name) is None:
        raise ShapeError(f"an object with {name!r} was expected")
    return data[name]


def _decode(data: Any, cls: type[T]) -> T:
    annotation: Any = cls
    try:
        decoded: T = _reader(annotation)(data)
    except _MismatchError as mismatch:
        raise ShapeError(f"at ${''.join(reversed(mismatch.path))}, {mismatch}") from None
    return decoded


_Reader = Callable[[Any], Any]


@cache
def _reader(annotation: Any) -> _Reader:
    """Return the function that reads a value of this type."""
    if annotation in _READERS:
        return _READERS[annotation]
    if isinstance(annotation, UnionType):
        return _reader(get_args(annotation)[0])  # `X | None`
    if get_origin(annotation) is tuple:
        return _tuple_reader(_reader(get_args(annotation)[0]))
    if get_origin(annotation) is Mapping:
        return _mapping_reader(_reader(get_args(annotation)[1]))
    return _object_reader(annotation)


@cache
def _object_reader(cls: Any) -> _Reader:
    fields = [
        (each.name, _reader(each.type), each.default is attrs.NOTHING)
        for each in attrs.fields(attrs.resolve_types(cls))
    ]

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            raise _expected("an object", value)
        values = {}
        name = ""
        try:
            for name, read_field, is_required in fields:
                content = value.get(name)
                if content is not None or is_required:
                    values[name] = read_field(content)
        except _MismatchError as mismatch:
            mismatch.path.append(f".{name}")
            raise
        return cls(**values)

    return read


def _tuple_reader(read_item: _Reader) -> _Reader:
    def read(value: Any) -> tuple[Any, ...]:
        # Not anything that can be iterated: `{}` would mean "no instances", and a string its letters.
        if not isinstance(value, list):
            raise _expected("a list", value)
        items: list[Any] = []
        try:
            for item in value:
                items.append(read_item(item))  # noqa: PERF401  (its length is the index of a mismatch)
        except _MismatchError as mismatch:
            mismatch.path.append(f"[{len(items)}]")
            raise
        return tuple(items)

    return read


def _mapping_reader(read_value: _Reader) -> _Reader:
    def read(value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _expected("an object", value)
        return {key: read_value(content) for key, content in value.items()}

    return read


def _expected(expected: str, value: Any) -> _MismatchError:
    found = "null or missing" if value is None else f"of type {type(value).__name__}"
    return _MismatchError(f"{expected} was expected, but it is {found}")


def _read_str(value: Any) -> str:
    # Not str(value): the number 5 must not become the id "5".
    if not isinstance(value, str):
        raise _expected("a string", value)
    return value


def _read_int(value: Any) -> int:
    if type(value) is int:
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise _expected("a whole number", value)


def _read_float(value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise _expected("a finite number", value)
    return number


# Progress and timestamps are only shown. A wrong one must not make its instance unreadable, and with it the
# whole list: then no instance could be stopped.


def _read_datetime(value: Any) -> datetime | None:
    try:
        moment = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _read_workers(value: Any) -> tuple[WorkerStatus, ...]:
    return tuple([_read_worker(each) for each in value]) if isinstance(value, list) else ()


def _read_worker(value: Any) -> WorkerStatus:
    try:
        worker: WorkerStatus = _reader(WorkerStatus)(value)
    except _MismatchError:
        return WorkerStatus()
    return worker


def _read_preview(value: Any) -> ModelPreview:
    if isinstance(value, dict):
        # The vendor's client prefers `model_name`, an older spelling of `model_id`, and takes the hardware
        # from `hardware_info`.
        hardware = value.get("hardware_info")
        value = {
            **value,
            "model_id": value.get("model_name") or value.get("model_id"),
            "hardware_configs": hardware.get("hardware_configs") if isinstance(hardware, dict) else None,
        }
    preview: ModelPreview = _object_reader(ModelPreview)(value)
    return preview


_READERS: dict[Any, _Reader] = {
    str: _read_str,
    int: _read_int,
    float: _read_float,
    bool: bool,
    Any: lambda value: value,
    datetime: _read_datetime,
    tuple[WorkerStatus, ...]: _read_workers,
    ModelPreview: _read_preview,
}
