"""Read a JSON schema, and check whether a value is valid under it.

This module supports the keywords that structured output and tools use. It rejects schemas that need any
others, because ignoring them would produce answers that look valid but are not.
"""

import itertools
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final
from urllib.parse import unquote

from cortecs_async.emulator._jsonschema.formats import FORMATS
from cortecs_async.emulator._messages import ApiError, as_integer

Schema = Mapping[str, Any] | bool

# Keywords that restrict values. Other unknown keywords restrict no values (`title`, `discriminator`, ...).
_UNSUPPORTED: Final = frozenset(
    {
        *("$anchor", "$dynamicRef", "$recursiveRef", "not", "if", "then", "else"),
        *("contains", "minContains", "maxContains", "additionalItems", "unevaluatedItems"),
        *("patternProperties", "propertyNames", "unevaluatedProperties"),
        *("dependencies", "dependentRequired", "dependentSchemas"),
    }
)
# Their schemas apply to the same value as the schema that contains them.
_COMBINING: Final = ("anyOf", "oneOf", "allOf")
_MAX_DEPTH: Final = 60
# About a second. Each level of alternatives multiplies the checks.
_MAX_CHECKS: Final = 400_000
TOO_COMPLEX: Final = "The JSON schema is too complex for the emulator."


def _is_string(value: Any) -> bool:
    return isinstance(value, str)


def _is_boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _is_number(value: Any) -> bool:
    # 1e400 is valid JSON, which Python reads as infinity.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) != float("inf")


def _is_integer(value: Any) -> bool:
    return as_integer(value) is not None


def _is_size(value: Any) -> bool:
    return _is_integer(value) and value >= 0


def _is_types(value: Any) -> bool:
    names = value if isinstance(value, list) else [value]
    return bool(names) and all(isinstance(name, str) and name in _TYPES for name in names)


def _is_schema(value: Any) -> bool:
    return isinstance(value, dict | bool)


def _is_schemas(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(map(_is_schema, value))


def _is_pattern(value: Any) -> bool:
    try:
        re.compile(value)
    except (TypeError, re.error, RecursionError, OverflowError):
        return False
    return True


_TYPES: Final[Mapping[str, Callable[[Any], bool]]] = {
    "object": lambda value: isinstance(value, dict),
    "array": lambda value: isinstance(value, list),
    "string": _is_string,
    "integer": _is_integer,
    "number": _is_number,
    "boolean": _is_boolean,
    "null": lambda value: value is None,
}

# The check that the value of a keyword is well-formed.
_KEYWORDS: Final[Mapping[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("$ref", "format"), _is_string),
    **dict.fromkeys((*_COMBINING, "prefixItems"), _is_schemas),
    **dict.fromkeys(("items", "additionalProperties"), _is_schema),
    **dict.fromkeys(("minProperties", "maxProperties", "minItems", "maxItems"), _is_size),
    **dict.fromkeys(("minLength", "maxLength"), _is_size),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"), _is_number),
    "type": _is_types,
    "enum": lambda value: isinstance(value, list) and bool(value),
    "properties": lambda value: isinstance(value, dict) and all(map(_is_schema, value.values())),
    "required": lambda value: isinstance(value, list) and all(map(_is_string, value)),
    "uniqueItems": _is_boolean,
    "pattern": _is_pattern,
    "multipleOf": lambda value: _is_number(value) and value > 0,
    "examples": lambda value: isinstance(value, list),
}


class Document:
    """A fully checked JSON schema, with the targets of its references."""

    def __init__(self, root: Any) -> None:
        if not isinstance(root, dict):
            raise ApiError(400, "A JSON schema must be an object.")
        self.root: Mapping[str, Any] = root
        self._targets: dict[str, Schema] = {}
        self._checks = 0
        self._check(root, "#", 0)
        unchecked = list(self._targets)
        for ref in unchecked:
            known = len(self._targets)
            self._check(self._targets[ref], ref, 0)
            unchecked += itertools.islice(self._targets, known, None)
        for ref in self._targets:
            if ref in self._reachable(ref, same_value=True):
                # JSON Schema does not define what this means.
                raise ApiError(
                    400, f"The JSON schema at {ref!r} refers to itself endlessly for the same value."
                )
        self.recursive = frozenset(
            ref for ref in self._targets if ref in self._reachable(ref, same_value=False)
        )
        """References that lead back to themselves."""
        self._heights = dict.fromkeys(self._targets, float("inf"))
        before = None
        while before != self._heights:
            before = self._heights
            self._heights = {ref: self.height(target) for ref, target in self._targets.items()}

    def target(self, ref: str) -> Schema:
        return self._targets[ref]

    def height(self, schema: Schema) -> float:
        """Return the nesting depth of references in the smallest valid value, or infinity."""
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

    def _check(self, schema: Schema, path: str, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise ApiError(400, f"The JSON schema is nested more than {_MAX_DEPTH} levels deep at {path}.")
        if isinstance(schema, bool):
            return
        for keyword, value in schema.items():
            if keyword in _UNSUPPORTED:
                raise ApiError(400, f"The emulator does not support {keyword!r} in a JSON schema ({path}).")
            if keyword in _KEYWORDS and not _KEYWORDS[keyword](value):
                raise ApiError(400, f"The JSON schema is malformed: {keyword!r} at {path}.")
        # Number formats, such as `int64`, have no effect here.
        known = schema.get("format", "date") in FORMATS
        if not known and "string" in schema.get("type", "string"):
            raise ApiError(
                400,
                f"The emulator does not support the format {schema['format']!r} ({path}). "
                f"Use one of {', '.join(FORMATS)}.",
            )
        for step, subschema in _subschemas(schema):
            self._check(subschema, f"{path}/{step}", depth + 1)
        ref = schema.get("$ref")
        if ref is not None and ref not in self._targets:
            self._targets[ref] = self._resolve(ref)

    def _reachable(self, ref: str, *, same_value: bool) -> set[str]:
        reached = set[str]()
        found = list(refs_in(self._targets[ref], same_value=same_value))
        while found:
            each = found.pop()
            if each not in reached:
                reached.add(each)
                found += refs_in(self._targets[each], same_value=same_value)
        return reached

    def _resolve(self, ref: str) -> Schema:
        found: Any = self.root
        head, *steps = unquote(ref).split("/")
        for step in steps:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(found, list):
                found = dict(zip(map(str, range(len(found))), found, strict=True))
            found = found.get(name) if isinstance(found, dict) else None
        if head != "#" or not isinstance(found, dict | bool):
            raise ApiError(400, f"The JSON schema has nothing at {ref!r}.")
        return found

    def is_valid(self, value: Any, schema: Schema) -> bool:
        """Return whether a value is valid under a schema of this document.

        Raises:
            ApiError: 400 after too many checks, summed over all calls.
        """
        if isinstance(schema, bool):
            return schema
        self._checks += 1
        if self._checks > _MAX_CHECKS:
            raise ApiError(400, TOO_COMPLEX)

        def is_valid(part: Schema) -> bool:
            return self.is_valid(value, part)

        return (
            ("$ref" not in schema or is_valid(self._targets[schema["$ref"]]))
            and all(map(is_valid, schema.get("allOf", ())))
            and ("anyOf" not in schema or any(map(is_valid, schema["anyOf"])))
            and ("oneOf" not in schema or sum(map(is_valid, schema["oneOf"])) == 1)
            and any(_TYPES[name](value) for name in as_list(schema.get("type", list(_TYPES))))
            and ("const" not in schema or is_equal(value, schema["const"]))
            and ("enum" not in schema or any(is_equal(value, each) for each in schema["enum"]))
            and self._is_valid_content(value, schema)
        )

    def _is_valid_content(self, value: Any, schema: Mapping[str, Any]) -> bool:
        if isinstance(value, dict):
            properties, others = schema.get("properties", {}), schema.get("additionalProperties", True)
            return (
                _is_within(len(value), schema, "Properties")
                and all(name in value for name in schema.get("required", ()))
                and all(self.is_valid(each, properties.get(name, others)) for name, each in value.items())
            )
        if isinstance(value, list):
            prefix, others = schema.get("prefixItems", []), schema.get("items", True)
            return (
                _is_within(len(value), schema, "Items")
                and not (schema.get("uniqueItems") and _has_duplicates(value))
                and all(
                    self.is_valid(each, prefix[index] if index < len(prefix) else others)
                    for index, each in enumerate(value)
                )
            )
        if isinstance(value, str):
            return (
                _is_within(len(value), schema, "Length")
                and all(re.search(pattern, value) for pattern in as_list(schema.get("pattern", [])))
                and ("format" not in schema or FORMATS[schema["format"]].matches(value))
            )
        return not _is_number(value) or is_valid_number(exact(value), schema)


def _subschemas(schema: Mapping[str, Any]) -> Iterator[tuple[str, Schema]]:
    """Yield the schemas directly inside a schema, with their paths. Definitions count where they are used."""
    for name, subschema in schema.get("properties", {}).items():
        yield f"properties/{name}", subschema
    for keyword in (*_COMBINING, "prefixItems"):
        for index, subschema in enumerate(schema.get(keyword, ())):
            yield f"{keyword}/{index}", subschema
    for keyword in ("items", "additionalProperties"):
        if keyword in schema:
            yield keyword, schema[keyword]


def refs_in(schema: Schema, *, same_value: bool = False) -> Iterator[str]:
    """Yield the references in a schema at any depth, or only those that apply to the same value."""
    if not isinstance(schema, bool):
        if "$ref" in schema:
            yield schema["$ref"]
        for path, subschema in _subschemas(schema):
            if not same_value or path.startswith(_COMBINING):
                yield from refs_in(subschema, same_value=same_value)


def as_list(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as a list of one."""
    return value if isinstance(value, list) else [value]


def hashable(value: Any) -> Hashable:
    """Return a hashable value that is equal for identical JSON: for 1 and 1.0, but not for 1 and true."""
    if isinstance(value, dict):
        return "object", frozenset((name, hashable(each)) for name, each in value.items())
    if isinstance(value, list):
        return "array", tuple(map(hashable, value))
    return ("boolean", value) if isinstance(value, bool) else value


def is_equal(one: Any, other: Any) -> bool:
    """Return whether two values are identical as JSON."""
    return hashable(one) == hashable(other)


def _has_duplicates(values: Sequence[Any]) -> bool:
    return len(set(map(hashable, values))) < len(values)


def exact(value: float) -> Fraction:
    """Return a number exactly as written: 0.1 is one tenth."""
    return Fraction(str(value))


def _is_within(size: int, schema: Mapping[str, Any], what: str) -> bool:
    return bool(schema.get(f"min{what}", 0) <= size <= schema.get(f"max{what}", size))


def is_valid_number(value: Fraction, schema: Mapping[str, Any]) -> bool:
    return (
        ("minimum" not in schema or value >= exact(schema["minimum"]))
        and ("maximum" not in schema or value <= exact(schema["maximum"]))
        and ("exclusiveMinimum" not in schema or value > exact(schema["exclusiveMinimum"]))
        and ("exclusiveMaximum" not in schema or value < exact(schema["exclusiveMaximum"]))
        and ("multipleOf" not in schema or (value / exact(schema["multipleOf"])).denominator == 1)
    )
