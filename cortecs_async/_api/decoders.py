"""Decode the service's JSON: one flat function per domain class, generated from its fields on first use.

Unknown fields are ignored, and unknown statuses are kept. A null counts as a missing field, and a missing
field gets its default.

These functions only decode documented data. For any other data, they may raise any exception. Then,
`structuring.py` decodes the value tolerantly, or says what is wrong and where. It is imported only then,
because it uses cattrs, which takes longer to import than everything else here.

A list is decoded entry by entry. An entry that cannot be parsed must not hide the others, so it becomes an
`UnreadableEntry` in the `Listing`. Only data that is not a list raises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import attrs

from .._http.messages import ShapeError
from .listing import Listing, UnreadableEntry
from .readers import READERS, MismatchError, one_line, read_int, read_str

T = TypeVar("T")

_Reader = Callable[[Any], Any]

# Expressions that are true if a value can be used as it is, so that its reader need not be called.
_PLAIN: dict[_Reader, str] = {
    read_str: "type({0}) is str and {0}.isprintable()",
    read_int: "type({0}) is int",
}

# Most instances of an account have the same arguments and one of a few startup steps, so identical values
# share one object. This is the maximum number of different objects of a class to keep for that.
_MAX_SHARED = 1000


def decode(data: Any, cls: type[T]) -> T:
    """Decode an object.

    Raises:
        ShapeError: if it does not have the documented shape.
    """
    read = _reader(cls)
    try:
        decoded: T = read(data)
    except Exception:  # noqa: BLE001  (see the module's docstring)
        return _structure(data, cls)
    return decoded


def decode_list(entries: Any, cls: type[T], id_field: str, date: float | None) -> Listing[T]:
    """Decode the objects in a list.

    Raises:
        ShapeError: if it is not a list.
    """
    if not isinstance(entries, list):
        # Not any iterable: `{}` would mean "no instances", and a string would be read as its letters.
        raise ShapeError(f"at $, {MismatchError('a list', entries)}")
    read = _reader(cls)
    readable: list[T] = []
    unreadable: list[UnreadableEntry] = []
    for entry in entries:
        try:
            readable.append(read(entry))
        except Exception:  # noqa: BLE001  (see the module's docstring)
            try:
                readable.append(_structure(entry, cls))
            except ShapeError as error:
                entry_id = entry.get(id_field) if isinstance(entry, dict) else None
                entry_id = one_line(entry_id) if isinstance(entry_id, str) else None
                unreadable.append(UnreadableEntry(entry_id=entry_id, problem=str(error)))
    return Listing(readable, unreadable=unreadable, date=date)


def member(data: Any, name: str) -> Any:
    """Return a required member of an object."""
    if not isinstance(data, Mapping) or data.get(name) is None:
        raise ShapeError(f"expected an object with {name!r}")
    return data[name]


def _structure(data: Any, cls: type[T]) -> T:
    from .structuring import structure  # noqa: PLC0415  (slow to import, and rarely needed)

    return structure(data, cls)


def _new_reader(kind: Any) -> _Reader:
    """Return the function that reads a value of this type. A null in `X | None` is not passed to it."""
    if kind in READERS:
        return READERS[kind]
    if attrs.has(kind):
        return _object_reader(kind)
    if isinstance(kind, UnionType):
        return _reader(get_args(kind)[0])
    if get_origin(kind) is tuple:
        return _items_reader(_reader(get_args(kind)[0]))
    return _members_reader(_reader(get_args(kind)[1]))


_reader: Callable[[Any], _Reader] = cache(_new_reader)


def _items_reader(read: _Reader) -> _Reader:
    def read_items(value: Any) -> tuple[Any, ...]:
        # Not any iterable: a string would become its letters.
        if not isinstance(value, list):
            raise MismatchError("a list", value)
        return tuple([read(each) for each in value])

    return read_items


def _members_reader(read: _Reader) -> _Reader:
    return lambda value: {read_str(name): read(each) for name, each in value.items()}


def _object_reader(cls: type[attrs.AttrsInstance]) -> _Reader:
    """Generate the function that reads an object: a few lines for each field, without loops and calls.

    It fills the slots of the new object, because the constructor of a frozen class takes twice as long. So a
    class must not have validators or converters.
    """
    kinds = get_type_hints(cls)
    fields = attrs.fields(cls)
    readers = [_reader(kinds[field.name]) for field in fields]
    lines = []
    names: dict[str, Any] = {"cls": cls, "new": object.__new__, "shared": {}, "limit": _MAX_SHARED}
    for number, (field, read) in enumerate(zip(fields, readers, strict=True)):
        value = f"value{number}"
        names[f"read{number}"] = read
        names[f"set{number}"] = getattr(cls, field.name).__set__
        reading = f"not ({_PLAIN.get(read, 'False').format(value)}): {value} = read{number}({value})"
        if field.default is attrs.NOTHING:
            lines += [f"{value} = data[{field.name!r}]", f"if {reading}"]
            continue
        is_made = isinstance(field.default, attrs.Factory)  # type: ignore[arg-type]
        names[f"default{number}"] = field.default.factory if is_made else field.default
        default = f"default{number}()" if is_made else f"default{number}"
        lines += [
            f"{value} = data.get({field.name!r})",
            f"if {value} is None: {value} = {default}",
            f"elif {reading}",
        ]
    making = ["made = new(cls)", *(f"set{number}(made, value{number})" for number in range(len(fields)))]
    if all(read in _PLAIN for read in readers):
        lines += [
            f"key = ({' '.join(f'value{number},' for number in range(len(fields)))})",
            "made = shared.get(key)",
            "if made is None:",
            *(f"    {line}" for line in making),
            "    if len(shared) >= limit: shared.clear()",
            "    shared[key] = made",
        ]
    else:
        lines += making
    source = "\n    ".join(["def read(data):", *lines, "return made"])
    exec(compile(source, f"<reader of {cls.__name__}>", "exec"), names)  # noqa: S102  (only our own names)
    reader: _Reader = names["read"]
    return reader
