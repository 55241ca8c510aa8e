"""JSON Schema as the emulator reads it: which keywords it follows, and whether a value is an instance.

It follows what structured output and tools are written in, and refuses a schema that needs more: half a
schema followed would be a wrong answer that looks right.
"""

import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final
from urllib.parse import unquote

from cortecs_async.emulator._answers import Refusal
from cortecs_async.emulator._jsonschema.formats import FORMATS

Schema = Mapping[str, Any] | bool

# Keywords that say which values are right, and that are not followed. Any other unknown word says nothing
# about that (`title`, `description`, `discriminator`, ...), as JSON Schema has it.
_NOT_FOLLOWED: Final = frozenset(
    {
        *("$anchor", "$dynamicRef", "$recursiveRef", "not", "if", "then", "else"),
        *("contains", "minContains", "maxContains", "additionalItems", "unevaluatedItems"),
        *("patternProperties", "propertyNames", "unevaluatedProperties"),
        *("dependencies", "dependentRequired", "dependentSchemas"),
    }
)
_DEEPEST: Final = 60


def _is_size(value: Any) -> bool:
    return is_integer(value) and value >= 0


def _is_types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in TYPES for name in names)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_number(value: Any) -> bool:
    # 1e400 is JSON, and infinite when Python reads it.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float("inf")


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error, RecursionError, OverflowError):
        return False
    return True


def is_integer(value: Any) -> bool:
    """Whether JSON Schema calls it an integer: 8.0 is one, true is none."""
    return _is_number(value) and value == int(value)


TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": lambda value: isinstance(value, str),
    "integer": is_integer,
    "number": _is_number,
    "boolean": lambda value: isinstance(value, bool),
    "null": lambda value: value is None,
}

_SHAPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "$ref": lambda value: isinstance(value, str),
    "type": _is_types,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "anyOf": _is_schemas,
    "oneOf": _is_schemas,
    "allOf": _is_schemas,
    "properties": lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
    "required": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "additionalProperties": _is_schema,
    "minProperties": _is_size,
    "maxProperties": _is_size,
    "items": _is_schema,
    "prefixItems": _is_schemas,
    "minItems": _is_size,
    "maxItems": _is_size,
    "uniqueItems": lambda value: isinstance(value, bool),
    "minLength": _is_size,
    "maxLength": _is_size,
    "pattern": _is_pattern,
    "format": lambda value: isinstance(value, str),
    "minimum": _is_number,
    "maximum": _is_number,
    "exclusiveMinimum": _is_number,
    "exclusiveMaximum": _is_number,
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "examples": lambda value: isinstance(value, list),
}


class Document:
    """A schema that was read to its ends, with what its references lead to."""

    def __init__(self, root: Any) -> None:
        """Read it.

        Raises:
            Refusal: 400 when it is malformed, or says something that is not followed.
        """
        if not isinstance(root, dict):
            raise Refusal(400, "A JSON schema must be an object.")
        self.root: Mapping[str, Any] = root
        self._targets: dict[str, Schema] = {}
        self._read(root, "#", 0)
        unread = list(self._targets)
        for ref in unread:
            known = len(self._targets)
            self._read(self._targets[ref], ref, 0)
            unread += itertools.islice(self._targets, known, None)
        for ref in self._targets:
            if ref in self._reached_from(ref, _refs_beside):
                # JSON Schema leaves open what it means.
                raise Refusal(
                    400, f"The JSON schema at {ref!r} refers to itself without a step into the value."
                )
        self.recursive = frozenset(ref for ref in self._targets if ref in self._reached_from(ref, refs_in))
        """The references that lead to themselves."""
        self._heights = dict.fromkeys(self._targets, float("inf"))
        before = None
        while before != self._heights:
            before = self._heights
            self._heights = {ref: self.height(target) for ref, target in self._targets.items()}

    def target(self, ref: str) -> Schema:
        """What a reference leads to."""
        return self._targets[ref]

    def height(self, schema: Schema) -> float:
        """How many references its shortest instance needs, one in the other; infinite when it has none."""
        if isinstance(schema, bool):
            return 0 if schema else float("inf")
        if "const" in schema or "enum" in schema:
            return 0
        heights = [0.0]
        if "$ref" in schema:
            heights.append(1 + self._heights[schema["$ref"]])
        heights += map(self.height, schema.get("allOf", ()))
        heights += (min(map(self.height, schema[word])) for word in ("anyOf", "oneOf") if word in schema)
        properties = schema.get("properties", {})
        heights += (self.height(properties.get(name, True)) for name in schema.get("required", ()))
        heights += map(self.height, schema.get("prefixItems", ()))
        if schema.get("minItems", 0) > len(schema.get("prefixItems", ())):
            heights.append(self.height(schema.get("items", True)))
        return max(heights)

    def _read(self, schema: Schema, where: str, depth: int) -> None:
        if depth > _DEEPEST:
            raise Refusal(400, f"The JSON schema is nested more than {_DEEPEST} deep at {where}.")
        if isinstance(schema, bool):
            return
        for word, value in schema.items():
            if word in _NOT_FOLLOWED:
                raise Refusal(400, f"The emulator does not follow {word!r} in a JSON schema ({where}).")
            if word in _SHAPES and not _SHAPES[word](value):
                raise Refusal(400, f"The JSON schema is malformed: {word!r} at {where}.")
        # Of numbers, `int64` and its like say nothing that a model would have to heed.
        known = schema.get("format", "date") in FORMATS
        if not known and "string" in schema.get("type", "string"):
            raise Refusal(
                400, f"The emulator knows no format {schema['format']!r} ({where}), but {', '.join(FORMATS)}."
            )
        for step, child in children(schema):
            self._read(child, f"{where}/{step}", depth + 1)
        ref = schema.get("$ref")
        if ref is not None and ref not in self._targets:
            self._targets[ref] = self._find(ref)

    def _reached_from(self, ref: str, refs_of: Callable[[Schema], Iterator[str]]) -> set[str]:
        reached = set[str]()
        found = list(refs_of(self._targets[ref]))
        while found:
            each = found.pop()
            if each not in reached:
                reached.add(each)
                found += refs_of(self._targets[each])
        return reached

    def _find(self, ref: str) -> Schema:
        found: Any = self.root
        head, *steps = unquote(ref).split("/")
        for step in steps:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = dict(zip(map(str, range(len(found))), found, strict=True))
            found = found.get(name) if isinstance(found, dict) else None
        if head != "#" or not isinstance(found, dict | bool):
            raise Refusal(400, f"The JSON schema has nothing at {ref!r}.")
        return found

    def fits(self, value: Any, schema: Schema) -> bool:
        """Whether a value is an instance of a schema of this document."""
        if isinstance(schema, bool):
            return schema
        parts = {
            word: [self.fits(value, part) for part in schema.get(word, ())]
            for word in ("allOf", "anyOf", "oneOf")
        }
        return (
            ("$ref" not in schema or self.fits(value, self._targets[schema["$ref"]]))
            and all(parts["allOf"])
            and ("anyOf" not in schema or any(parts["anyOf"]))
            and ("oneOf" not in schema or sum(parts["oneOf"]) == 1)
            and _has_type(value, schema)
            and ("const" not in schema or same(value, schema["const"]))
            and ("enum" not in schema or any(same(value, each) for each in schema["enum"]))
            and self._fits_inside(value, schema)
        )

    def _fits_inside(self, value: Any, schema: Mapping[str, Any]) -> bool:
        if isinstance(value, dict):
            properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            return (
                _within(len(value), schema, "Properties")
                and all(name in value for name in schema.get("required", ()))
                and all(self.fits(each, properties.get(name, others)) for name, each in value.items())
            )
        if isinstance(value, list):
            first, others = schema.get("prefixItems", []), schema.get("items", True)
            return (
                _within(len(value), schema, "Items")
                and not (schema.get("uniqueItems") and _has_twins(value))
                and all(
                    self.fits(each, first[place] if place < len(first) else others)
                    for place, each in enumerate(value)
                )
            )
        if isinstance(value, str):
            return (
                _within(len(value), schema, "Length")
                and all(re.search(pattern, value) for pattern in patterns(schema))
                and ("format" not in schema or FORMATS[schema["format"]].matches(value))
            )
        return not _is_number(value) or fits_number(exact(value), schema)


def children(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """The schemas right inside one, with the way there; definitions only count where they are used."""
    for name, child in schema.get("properties", {}).items():
        yield f"properties/{name}", child
    for word in ("anyOf", "oneOf", "allOf", "prefixItems"):
        for place, child in enumerate(schema.get(word, ())):
            yield f"{word}/{place}", child
    for word in ("items", "additionalProperties"):
        if word in schema:
            yield word, schema[word]


def refs_in(schema: Schema) -> Iterator[str]:
    """The references in a schema, at any depth."""
    if not isinstance(schema, bool):
        if "$ref" in schema:
            yield schema["$ref"]
        for _, child in children(schema):
            yield from refs_in(child)


def _refs_beside(schema: Schema) -> Iterator[str]:
    """The references in a schema that speak of the same value as it does."""
    if not isinstance(schema, bool):
        if "$ref" in schema:
            yield schema["$ref"]
        for word in ("anyOf", "oneOf", "allOf"):
            for part in schema.get(word, ()):
                yield from _refs_beside(part)


def patterns(schema: Mapping[str, Any]) -> Sequence[str]:
    """The patterns of a schema, which has several when it was merged."""
    found = schema.get("pattern", ())
    return (found,) if isinstance(found, str) else tuple(found)


def same(one: Any, other: Any) -> bool:
    """Whether two values are the same JSON: 1 is 1.0, but not true."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(each, other[name]) for name, each in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, bool) == isinstance(other, bool) and bool(one == other)


def _has_twins(values: Sequence[Any]) -> bool:
    """Whether one of the values is there twice."""
    return any(same(one, other) for place, one in enumerate(values) for other in values[:place])


def exact(value: float) -> Fraction:
    """A number as it was written: 0.1 is a tenth."""
    return Fraction(str(value))


def _has_type(value: Any, schema: Mapping[str, Any]) -> bool:
    wanted = schema.get("type", list(TYPES))
    return any(TYPES[name](value) for name in ([wanted] if isinstance(wanted, str) else wanted))


def _within(size: int, schema: Mapping[str, Any], what: str) -> bool:
    return bool(schema.get(f"min{what}", 0) <= size <= schema.get(f"max{what}", size))


def fits_number(value: Fraction, schema: Mapping[str, Any]) -> bool:
    """Whether a number is within the bounds of a schema."""
    return (
        ("minimum" not in schema or value >= exact(schema["minimum"]))
        and ("maximum" not in schema or value <= exact(schema["maximum"]))
        and ("exclusiveMinimum" not in schema or value > exact(schema["exclusiveMinimum"]))
        and ("exclusiveMaximum" not in schema or value < exact(schema["exclusiveMaximum"]))
        and ("multipleOf" not in schema or (value / exact(schema["multipleOf"])).denominator == 1)
    )
