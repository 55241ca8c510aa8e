"""Two JSON schemas that hold together, as one. Both are flat: they have no references and no alternatives."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from cortecs_async.emulator._jsonschema.schema import Schema, exact, patterns, same


class Unmet(ValueError):  # noqa: N818 - it is a finding, not an error of the emulator
    """Nothing meets a schema, or nothing that is tried."""


def merge(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The schema whose instances are those of both.

    Raises:
        Unmet: When it is plain that there are none.
    """
    merged = {**one, **other}
    for word in one.keys() & other.keys() & _MERGERS.keys():
        merged[word] = _MERGERS[word](one[word], other[word])
    properties = {**_properties(one, other), **_properties(other, one)}
    if properties:
        merged["properties"] = properties
    return merged


def _properties(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Schema]:
    """The properties of one schema, each with what the other says of it."""
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
    names = [one] if isinstance(one, str) else one
    others = [other] if isinstance(other, str) else other
    # Every integer is a number.
    found = [name for name in names if name in others or (name == "integer" and "number" in others)]
    found += [name for name in others if name == "integer" and "number" in names and name not in found]
    if not found:
        raise Unmet(f"nothing has type {one} and {other}")
    return found


def _enums(one: list[Any], other: list[Any]) -> list[Any]:
    found = [value for value in one if any(same(value, each) for each in other)]
    if not found:
        raise Unmet("an enum or const leaves no value of another")
    return found


def _formats(one: str, other: str) -> str:
    if one != other:
        raise Unmet(f"'format': the emulator writes nothing that is {one} and {other}")
    return one


def _multiples(one: float, other: float) -> float:
    first, second = exact(one), exact(other)
    common = math.lcm(first.numerator * second.denominator, second.numerator * first.denominator)
    try:
        return common / (first.denominator * second.denominator)
    except OverflowError as error:
        raise Unmet("'multipleOf': the emulator writes nothing that large") from error


def _prefixes(one: list[Schema], other: list[Schema]) -> list[Schema]:
    if len(one) != len(other):
        raise Unmet("'prefixItems': the emulator does not bring together tuples of different lengths")
    return [_both(*pair) for pair in zip(one, other, strict=True)]


_MERGERS: Final[Mapping[str, Callable[[Any, Any], Any]]] = {
    "type": _types,
    "enum": _enums,
    "required": lambda one, other: list(dict.fromkeys([*one, *other])),
    "additionalProperties": _both,
    "items": _both,
    "prefixItems": _prefixes,
    "uniqueItems": lambda one, other: one or other,
    "pattern": lambda one, other: [*patterns({"pattern": one}), *patterns({"pattern": other})],
    "format": _formats,
    "multipleOf": _multiples,
    **dict.fromkeys(("minProperties", "minItems", "minLength", "minimum", "exclusiveMinimum"), max),
    **dict.fromkeys(("maxProperties", "maxItems", "maxLength", "maximum", "exclusiveMaximum"), min),
}
