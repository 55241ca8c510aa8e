"""Convert the service's JSON to domain objects, and encode the body of a start request.

A cattrs converter reads every field of the domain classes by its name and annotation. Unknown fields are
ignored, and unknown statuses are kept. A null counts as a missing field, and a missing field gets its
default. Without a default, or for a value of the wrong type, decoding raises `ShapeError`.

A list is decoded entry by entry. An entry that cannot be parsed must not hide the others, so it becomes an
`UnreadableEntry` in the `Listing`. Only data that is not a list raises.
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
from cattrs.gen import make_dict_structure_fn, override

from .._http.messages import ShapeError
from .catalog import Balance, HardwareType, Model, ModelPreview
from .domain import AffectedInstances, Instance, InstanceArgs, InstanceStatus, WorkerStatus
from .listing import Listing, UnreadableEntry

T = TypeVar("T")


def decode_instance(data: Any) -> Instance:
    return _decode(_member(data, "instance"), Instance)


def decode_started(data: Any, args: InstanceArgs) -> Instance:
    """Return the instance created by a start request with these arguments.

    Its id is enough to release the instance. If anything else cannot be parsed, the instance gets the
    arguments sent and counts as pending, as documented.
    """
    try:
        return decode_instance(data)
    except ShapeError:
        entry = _member(data, "instance")
        instance_id = entry.get("instance_id") if isinstance(entry, dict) else None
        if not instance_id or not isinstance(instance_id, str):
            raise
        status = InstanceStatus(status="pending")
        return Instance(instance_id=_one_line(instance_id), instance_args=args, instance_status=status)


def decode_instances(data: Any, date: float | None = None) -> Listing[Instance]:
    return _decode_list(_member(data, "instances"), Instance, "instance_id", date)


def decode_affected(data: Any) -> AffectedInstances:
    """Return the instances that `stop-all` or `delete-all` changed. The body or its fields can be missing."""
    return _decode({} if data is None else data, AffectedInstances)


def check_deleted(instance_id: str, data: Any) -> None:
    """Check that the response to a delete comes from the service and not from a proxy.

    The body or one of its two fields can be missing.
    """
    is_documented = isinstance(data, Mapping) and (
        data.get("instance_id") == instance_id or isinstance(data.get("message"), str)
    )
    if data is not None and not is_documented:
        raise ShapeError("expected an object with the id of the deleted instance, or with a message")


def decode_models(data: Any, date: float | None = None) -> Listing[ModelPreview]:
    previews = _member(data, "models")
    if isinstance(previews, list):
        previews = [_with_hardware(each) for each in previews]
    return _decode_list(previews, ModelPreview, "model_id", date)


def decode_model(data: Any, requested_id: str | None = None) -> Model:
    """Return one model. If the data does not contain an id, the model gets the requested one."""
    model = _member(data, "model")
    return _decode(_with_context_lengths(model, requested_id) if isinstance(model, dict) else model, Model)


def decode_hardware_types(data: Any, date: float | None = None) -> Listing[HardwareType]:
    return _decode_list(_member(data, "hardware_types"), HardwareType, "hardware_type_id", date)


def decode_balance(data: Any) -> Balance:
    return _decode(data, Balance)


def encode_start(args: InstanceArgs) -> dict[str, Any]:
    """Return the body of a start request, without the arguments left to the service's defaults."""
    return {name: value for name, value in attrs.asdict(args).items() if value is not None}


def _member(data: Any, name: str) -> Any:
    if not isinstance(data, Mapping) or data.get(name) is None:
        raise ShapeError(f"expected an object with {name!r}")
    return data[name]


def _decode(data: Any, cls: type[T]) -> T:
    with contextlib.suppress(Exception):
        return _converter(detailed=False).structure(data, cls)
    raise ShapeError(_problem(data, cls)) from None


def _decode_list(entries: Any, cls: type[T], id_field: str, date: float | None) -> Listing[T]:
    if not isinstance(entries, list):
        # Not any iterable: `{}` would mean "no instances", and a string would be read as its letters.
        raise ShapeError(f"at $, {_MismatchError('a list', entries)}")
    read = _converter(detailed=False).get_structure_hook(cls)
    readable: list[T] = []
    unreadable: list[UnreadableEntry] = []
    for entry in entries:
        try:
            readable.append(read(entry, cls))
        except Exception:  # noqa: BLE001  (whatever cattrs raises for a wrong value)
            entry_id = entry.get(id_field) if isinstance(entry, dict) else None
            unreadable.append(
                UnreadableEntry(
                    entry_id=_one_line(entry_id) if isinstance(entry_id, str) else None,
                    problem=_problem(entry, cls),
                )
            )
    return Listing(readable, unreadable=unreadable, date=date)


def _problem(data: Any, cls: type) -> str:
    """Return the reason the data cannot be parsed, and where."""
    # The fast converter does not say why, so parse the data again for the message.
    problem, path = "the value could not be parsed", "$"
    try:
        _converter(detailed=True).structure(data, cls)
    except (cattrs.BaseValidationError, _MismatchError) as error:
        problem, _, path = cattrs.transform_error(error, "$", _describe)[0].rpartition(" @ ")
    return f"at {path}, {problem}"


def _describe(error: BaseException, _: type | None) -> str:
    # The message of any other error may contain the value.
    return str(error) if isinstance(error, _MismatchError) else "a field is null or missing"


_Hook = Callable[[Any, Any], Any]


class _MismatchError(ValueError):
    """A value does not have the documented type. The message never contains the value."""

    def __init__(self, expected: str, value: Any) -> None:
        found = "null" if value is None else f"a value of type {type(value).__name__}"
        super().__init__(f"expected {expected}, but got {found}")


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
        (lambda cls: cls == tuple[WorkerStatus, ...], _workers_hook),  # the last matching one is used
    ]
    for fits, factory in factories:
        converter.register_structure_hook_factory(fits, partial(factory, converter=converter))
    return converter


def _object_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    read_fields = make_dict_structure_fn(cls, converter, **_FIELD_READERS.get(cls, {}))

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
        # Not any iterable: a string would become its letters.
        if not isinstance(value, list):
            raise _MismatchError("a list", value)
        return tuple(read_items(value, items))

    return read


def _read_str(value: Any, _: Any) -> str:
    # Not str(value): the number 5 must not become the id "5".
    if not isinstance(value, str):
        raise _MismatchError("a string", value)
    return _one_line(value)


def _one_line(text: str) -> str:
    """Return the text without line breaks, control characters, and characters that reorder text.

    Each is replaced, because dropping it could turn the id of one instance into another's.
    """
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else " " if each.isspace() else "\N{REPLACEMENT CHARACTER}"
        for each in text
    )


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
    return _cleaned_mapping(value)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return _one_line(value)
    if isinstance(value, dict):
        return _cleaned_mapping(value)
    return [_cleaned(each) for each in value] if isinstance(value, list) else value


def _cleaned_mapping(value: dict[str, Any]) -> dict[str, Any]:
    return {_one_line(name): _cleaned(each) for name, each in value.items()}


# Progress and timestamps are only displayed. A wrong value must not make the whole entry invalid, because it
# could then not be stopped.


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
    # The vendor's client takes the hardware from `hardware_info`.
    if not isinstance(preview, dict):
        return preview
    hardware = preview.get("hardware_info")
    return {
        **preview,
        "model_id": _model_id(preview),
        "hardware_configs": hardware.get("hardware_configs") if isinstance(hardware, dict) else None,
    }


def _with_context_lengths(model: dict[Any, Any], requested_id: str | None) -> dict[Any, Any]:
    configs = model.get("hardware_configs")
    if isinstance(configs, dict):
        configs = {name: _with_context_length(config) for name, config in configs.items()}
    return {**model, "model_id": _model_id(model) or requested_id, "hardware_configs": configs}


def _with_context_length(config: Any) -> Any:
    # The vendor's client before 0.1.2 reads `max_context_length` next to `params`.
    if not isinstance(config, dict) or config.get("max_context_length") is None:
        return config
    params = config.get("params")
    if params is not None and not isinstance(params, dict):
        return config
    return {**config, "params": {"max_context_length": config["max_context_length"], **(params or {})}}


def _model_id(model: dict[Any, Any]) -> Any:
    # The vendor's client prefers `model_name`, an older spelling of `model_id`. It does not read either from
    # a single model, so both may be missing there.
    name = model.get("model_name")
    return name if name and isinstance(name, str) else model.get("model_id")


def _text_or(default: str | None, value: Any) -> str | None:
    return _one_line(value) if isinstance(value, str) else default


_READERS: dict[Any, _Hook] = {
    str: _read_str,
    int: _read_int,
    float: _read_float,
    bool: lambda value, _: bool(value),  # otherwise, it would be parsed as an int
    datetime: _read_datetime,
}

# Fields that can have any value, because only displaying or using them depends on it.
_FIELD_READERS: dict[Any, dict[str, Any]] = {
    # An instance without a URL is not usable, but it can be found, stopped, and deleted.
    Instance: {"base_url": override(struct_hook=lambda value, _: _text_or(None, value))},
    Model: {"hf_name": override(struct_hook=lambda value, _: _text_or("", value))},
}
