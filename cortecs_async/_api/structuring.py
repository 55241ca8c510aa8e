"""Decode tolerantly what `decoders.py` cannot, or say what is wrong and where, with a cattrs converter.

It reads every field of the domain classes by its name and annotation, like `decoders.py`. In addition, fields
that are only displayed can have any value. For other fields, a value of the wrong type raises an error. So
does a missing value without a default.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import cache, partial
from types import GenericAlias, UnionType
from typing import Any, TypeVar, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, override

from .._http.messages import ShapeError
from .catalog import Model
from .domain import Instance, WorkerStatus
from .readers import READERS, MismatchError, one_line

T = TypeVar("T")


def structure(data: Any, cls: type[T]) -> T:
    """Decode an object.

    Raises:
        ShapeError: if it does not have the documented shape. The message does not contain any values.
    """
    problem, path = "the value could not be parsed", "$"
    try:
        return _converter().structure(data, cls)
    except (cattrs.BaseValidationError, MismatchError) as error:
        problem, _, path = cattrs.transform_error(error, "$", _describe)[0].rpartition(" @ ")
    except Exception:  # noqa: BLE001, S110  (whatever cattrs raises for a wrong value)
        pass
    raise ShapeError(f"at {path}, {problem}") from None


def _describe(error: BaseException, _: type | None) -> str:
    # The message of any other error may contain the value.
    return str(error) if isinstance(error, MismatchError) else "a field is null or missing"


_Hook = Callable[[Any, Any], Any]


@cache
def _converter() -> cattrs.Converter:
    converter = cattrs.Converter()
    for kind, read in READERS.items():
        if isinstance(kind, type):
            converter.register_structure_hook(kind, _hook(read))
        else:
            converter.register_structure_hook_func(partial(operator.eq, kind), _hook(read))
    factories: list[tuple[Callable[[Any], bool], Callable[..., _Hook]]] = [
        (attrs.has, _object_hook),
        (lambda cls: isinstance(cls, UnionType), _optional_hook),
        (lambda cls: get_origin(cls) is tuple, _tuple_hook),
        (lambda cls: cls == tuple[WorkerStatus, ...], _workers_hook),  # the last matching one is used
    ]
    for fits, factory in factories:
        converter.register_structure_hook_factory(fits, partial(factory, converter=converter))
    return converter


def _hook(read: Callable[[Any], object]) -> _Hook:
    return lambda value, _: read(value)


def _object_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    read_fields = make_dict_structure_fn(cls, converter, **_FIELD_READERS.get(cls, {}))

    def read(value: Any, _: Any) -> Any:
        if not isinstance(value, dict):
            raise MismatchError("an object", value)
        if None in value.values():
            value = {name: content for name, content in value.items() if content is not None}
        return read_fields(value, cls)

    return read


def _optional_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    # For `X | None`. A null is removed with its field, so cattrs need not check for it.
    hook: _Hook = converter.get_structure_hook(get_args(cls)[0])
    return hook


def _tuple_hook(cls: Any, converter: cattrs.Converter) -> _Hook:
    items = GenericAlias(list, (get_args(cls)[0],))
    read_items = converter.get_structure_hook(items)

    def read(value: Any, _: Any) -> tuple[Any, ...]:
        # Not any iterable: a string would become its letters.
        if not isinstance(value, list):
            raise MismatchError("a list", value)
        return tuple(read_items(value, items))

    return read


def _workers_hook(_: Any, converter: cattrs.Converter) -> _Hook:
    read_worker = converter.get_structure_hook(WorkerStatus)

    # Progress is only displayed. A wrong value must not make the whole entry invalid, because it could then
    # not be stopped.

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


def _text_or(default: str | None, value: Any) -> str | None:
    return one_line(value) if isinstance(value, str) else default


# Fields that can have any value, because only displaying or using them depends on it.
_FIELD_READERS: dict[Any, dict[str, Any]] = {
    # An instance without a URL is not usable, but it can be found, stopped, and deleted.
    Instance: {"base_url": override(struct_hook=lambda value, _: _text_or(None, value))},
    Model: {"hf_name": override(struct_hook=lambda value, _: _text_or("", value))},
}
