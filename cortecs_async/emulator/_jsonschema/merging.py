"""Merge two JSON schemas into one. Both are flat, with no references and no alternatives."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from cortecs_async.emulator._jsonschema.schema import Schema, as_list, exact, hashable


class UnsatisfiableError(ValueError):
    """No value is valid under a schema, or the emulator finds none."""


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema that accepts the values valid under both schemas.

    Raise UnsatisfiableError if that is easily seen to be impossible.
    """
    merged = {**one, **other}
    for keyword in one.keys() & other.keys() & _MERGERS.keys():
        merged[keyword] = _MERGERS[keyword](one[keyword], other[keyword])
    properties = {**_properties(one, other), **_properties(other, one)}
    if properties:
        merged["properties"] = properties
    return merged


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Schema]:
    """Return the properties of the first schema, each merged with its restrictions in the second."""
    others = other.get("properties", {})
    rest = other.get("additionalProperties", True)
    return {name: _both(schema, others.get(name, rest)) for name, schema in one.get("properties", {}).items()}


def _both(one: Schema, other: Schema) -> Schema:
    if isinstance(one, bool):
        return other if one else False
    if isinstance(other, bool):
        return one if other else False
    return {"allOf": [one, other]}


def _types(one: Any, other: Any) -> list[str]:
    names, others = as_list(one), as_list(other)
    # Every integer is a number.
    found = [name for name in names if name in others or (name == "integer" and "number" in others)]
    found += [name for name in others if name == "integer" and "number" in names and name not in found]
    if not found:
        raise UnsatisfiableError(f"no value has both of the types {one} and {other}")
    return found


def _enums(one: list[Any], other: list[Any]) -> list[Any]:
    # A set, because two enums of thousands of values would otherwise take seconds.
    allowed = set(map(hashable, other))
    found = [value for value in one if hashable(value) in allowed]
    if not found:
        raise UnsatisfiableError("no value is allowed by every enum and const")
    return found


def _formats(one: str, other: str) -> str:
    if one != other:
        raise UnsatisfiableError(
            f"'format': the emulator cannot write a string that is both {one} and {other}"
        )
    return one


def _multiples(one: float, other: float) -> float:
    first, second = exact(one), exact(other)
    common = math.lcm(first.numerator * second.denominator, second.numerator * first.denominator)
    try:
        return common / (first.denominator * second.denominator)
    except OverflowError as error:
        raise UnsatisfiableError("'multipleOf': the emulator cannot write such a large number") from error


def _prefixes(one: list[Schema], other: list[Schema]) -> list[Schema]:
    if len(one) != len(other):
        raise UnsatisfiableError("'prefixItems': the emulator cannot merge tuples of different lengths")
    return list(map(_both, one, other))


_MERGERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "type": _types,
    "enum": _enums,
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "additionalProperties": _both,
    "items": _both,
    "prefixItems": _prefixes,
    "uniqueItems": lambda one, other: one or other,
    "pattern": lambda one, other: [*as_list(one), *as_list(other)],
    "format": _formats,
    "multipleOf": _multiples,
    **dict.fromkeys(("minProperties", "minItems", "minLength", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxProperties", "maxItems", "maxLength", "maximum", "exclusiveMaximum"), min),
}
