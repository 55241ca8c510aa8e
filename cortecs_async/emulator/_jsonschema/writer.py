"""Write a value that is valid under a JSON schema: deterministic, short, and checked."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from cortecs_async.emulator._jsonschema.formats import FORMATS
from cortecs_async.emulator._jsonschema.merging import UnsatisfiableError, merge
from cortecs_async.emulator._jsonschema.patterns import UnsupportedPatternError, candidates
from cortecs_async.emulator._jsonschema.schema import (
    TOO_COMPLEX,
    Document,
    Schema,
    as_list,
    exact,
    is_equal,
    is_valid_number,
    refs_in,
)
from cortecs_async.emulator._messages import ApiError

# No real model answer exceeds these limits, but hostile schemas do.
_MAX_STEPS: Final = 5_000
_MAX_STRING: Final = 100_000
_MAX_DIFFERENT: Final = 500
# The number of values to try if one must differ from others or be a multiple.
_TRIES: Final = 200

_COMBINING: Final = ("$ref", "allOf", "anyOf", "oneOf")
_TYPE_KEYWORDS: Final = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}

# The references followed to reach a schema.
_Refs = frozenset[str]


def write_value(document: Document, text: str) -> Any:
    """Write a value that is valid under a schema.

    Defaults and examples in the schema come first. The first string without restrictions is `text`, and every
    other string contains the name of its field. Optional properties are included. The exception is a type
    that contains itself: it gets its shortest form, without optional properties that refer to other types.

    Raises:
        ApiError: 400 if no valid value is found.
    """
    try:
        return _Writer(document, text).write(document.root, "value", frozenset())
    except UnsatisfiableError as reason:
        raise ApiError(
            400, f"The emulator could not find a valid value for the JSON schema: {reason}."
        ) from reason
    except RecursionError as error:
        raise ApiError(400, "The JSON schema is too deeply nested for the emulator.") from error


class _Writer:
    def __init__(self, document: Document, text: str) -> None:
        self._document = document
        self._text: str | None = text or None
        self._steps = 0
        # Selects one of the possible values, so that the items of an array differ.
        self._index = 0

    def write(self, schema: Schema, name: str, refs: _Refs) -> Any:
        """Write a value for the field `name`, inside the references `refs`."""
        self._count_step()
        for value in self._suggestions(schema):
            return value
        reason: UnsatisfiableError | None = None
        for flat, entered in self._flatten(schema, refs):
            try:
                value = self._value(flat, name, entered)
            except UnsatisfiableError as error:
                reason = reason or error
                continue
            if self._document.is_valid(value, schema):
                return value
        raise reason or UnsatisfiableError(f"no value is valid for {name!r}")

    def _count_step(self) -> None:
        self._steps += 1
        if self._steps > _MAX_STEPS:
            raise ApiError(400, TOO_COMPLEX)

    def _suggestions(self, schema: Schema) -> Iterator[Any]:
        """Yield a schema's valid default and examples."""
        if not isinstance(schema, bool) and not self._index:
            suggestions = [schema["default"]] if "default" in schema else []
            for value in (*suggestions, *schema.get("examples", ())):
                if self._document.is_valid(value, schema):
                    yield value

    def _is_recursive(self, refs: _Refs) -> bool:
        return not self._document.recursive.isdisjoint(refs)

    def _flatten(self, schema: Schema, refs: _Refs) -> Iterator[tuple[dict[str, Any], _Refs]]:
        """Yield the schema without references and alternatives, once for each choice of alternatives."""
        self._count_step()
        if isinstance(schema, bool):
            if schema:
                yield {}, refs
            return
        own = {keyword: value for keyword, value in schema.items() if keyword not in _COMBINING}
        if "const" in own:
            own = merge(own, {"enum": [own.pop("const")]})
        groups: list[Sequence[Schema]] = [[part] for part in schema.get("allOf", ())]
        for keyword in ("anyOf", "oneOf"):
            if keyword in schema:
                # Alternatives are tried in order, but inside a recursive type the shortest comes first.
                recursive = self._is_recursive(refs)
                groups.append(
                    sorted(schema[keyword], key=self._document.height) if recursive else schema[keyword]
                )
        ref = schema.get("$ref")
        if ref is None:
            yield from self._merged(own, refs, refs, groups)
        # A type inside itself is never needed, because a valid inner value would be valid for the outer one.
        elif ref not in refs:
            groups.insert(0, [self._document.target(ref)])
            yield from self._merged(own, refs | {ref}, refs | {ref}, groups)

    def _merged(
        self, own: dict[str, Any], refs: _Refs, entered: _Refs, groups: Sequence[Sequence[Schema]]
    ) -> Iterator[tuple[dict[str, Any], _Refs]]:
        """Merge a flat schema with one alternative of each group, in all combinations."""
        if not groups:
            yield own, entered
            return
        for alternative in groups[0]:
            for flat, more in self._flatten(alternative, refs):
                try:
                    merged = merge(own, flat)
                except UnsatisfiableError:
                    continue
                yield from self._merged(merged, refs, entered | more, groups[1:])

    def _value(self, flat: Mapping[str, Any], name: str, refs: _Refs) -> Any:
        if "enum" in flat:
            rest = {keyword: value for keyword, value in flat.items() if keyword != "enum"}
            valid = (value for value in flat["enum"] if self._document.is_valid(value, rest))
            for value in itertools.islice(itertools.cycle(valid), self._index, None):
                return value
            raise UnsatisfiableError(f"no value of an enum or const is valid for {name!r}")
        for value in self._suggestions(flat):
            return value
        types = as_list(flat.get("type") or [])
        types = types or [each for each, words in _TYPE_KEYWORDS.items() if any(w in flat for w in words)]
        reason: UnsatisfiableError | None = None
        for each in sorted(types or ["string"], key="null".__eq__):
            try:
                return self._value_of_type(each, flat, name, refs)
            except UnsatisfiableError as error:
                reason = reason or error
        raise reason or UnsatisfiableError(f"no value is valid for {name!r}")

    def _value_of_type(self, type_name: str, flat: Mapping[str, Any], name: str, refs: _Refs) -> Any:
        if type_name == "object":
            return self._object(flat, name, refs)
        if type_name == "array":
            return self._array(flat, name, refs)
        if type_name == "string":
            return self._string(flat, name)
        if type_name == "boolean":
            return self._index % 2 == 0
        return None if type_name == "null" else self._number(flat, name, whole=type_name == "integer")

    def _object(self, flat: Mapping[str, Any], name: str, refs: _Refs) -> dict[str, Any]:
        properties, others = flat.get("properties", {}), flat.get("additionalProperties", True)
        required = dict.fromkeys(flat.get("required", ()))
        room = flat.get("maxProperties", math.inf) - len(required)
        found: dict[str, Any] = {}
        for each in {**properties, **required}:
            schema = properties.get(each, others)
            if each in required:
                found[each] = self.write(schema, each, refs)
            elif room > 0 and not self._is_left_out(schema, refs):
                with contextlib.suppress(UnsatisfiableError):
                    found[each] = self.write(schema, each, refs)
                    room -= 1
        number = 0
        while len(found) < flat.get("minProperties", 0):
            number += 1
            found.setdefault(f"{name}_{number}", self.write(others, name, refs))
        return found

    def _is_left_out(self, schema: Schema, refs: _Refs) -> bool:
        """Return whether an optional part refers to other types inside a type that contains itself."""
        return self._is_recursive(refs) and any(refs_in(schema))

    def _array(self, flat: Mapping[str, Any], name: str, refs: _Refs) -> list[Any]:
        prefix, others = flat.get("prefixItems", []), flat.get("items", True)
        least = flat.get("minItems", 0)
        length = max(least, len(prefix))
        if "items" in flat and others is not False and not self._is_left_out(others, refs):
            length = max(length, 1)
        found: list[Any] = []
        for index in range(int(min(length, flat.get("maxItems", length)))):
            schema = prefix[index] if index < len(prefix) else others
            try:
                found.append(self._item(found, schema, name, refs, unique=flat.get("uniqueItems", False)))
            except UnsatisfiableError:
                if index < least:
                    raise
                break
        return found

    def _item(self, found: Sequence[Any], schema: Schema, name: str, refs: _Refs, *, unique: bool) -> Any:
        if unique and len(found) == _MAX_DIFFERENT:
            raise UnsatisfiableError(
                f"'uniqueItems': the emulator generates at most {_MAX_DIFFERENT} distinct items for {name!r}"
            )
        before = self._index
        try:
            for self._index in range(before + len(found), before + len(found) + _TRIES):
                value = self.write(schema, name, refs)
                if not (unique and any(is_equal(value, each) for each in found)):
                    return value
        finally:
            self._index = before
        raise UnsatisfiableError(
            f"'uniqueItems': the emulator could not generate enough distinct items for {name!r}"
        )

    def _string(self, flat: Mapping[str, Any], name: str) -> str:
        least, most = int(flat.get("minLength", 0)), flat.get("maxLength", math.inf)
        if least > _MAX_STRING:
            raise UnsatisfiableError(
                f"'minLength': the emulator cannot generate {least} characters for {name!r}"
            )
        if "format" in flat:
            return FORMATS[flat["format"]].write(self._index)
        if flat.get("pattern"):
            return self._matching_string(flat, name)
        unrestricted = "minLength" not in flat and "maxLength" not in flat
        if unrestricted and self._text is not None and not self._index:
            text, self._text = self._text, None
        else:
            text = f"emulated {name}"
        suffix = f" {self._index + 1}" if self._index else ""
        text += suffix
        if len(text) < least:
            text = (f"{text} " * (least // len(text) + 1))[:least]
        if len(text) > most:
            # Keep the suffix, which makes the strings of an array differ.
            text = text[: max(0, int(most) - len(suffix))] + suffix
            text = text[len(text) - int(most) :]
        return text

    def _matching_string(self, flat: Mapping[str, Any], name: str) -> str:
        patterns = as_list(flat["pattern"])
        for pattern in patterns:
            with contextlib.suppress(UnsupportedPatternError):
                strings = candidates(pattern, self._index)
                valid = (each for each in strings if self._document.is_valid(each, flat))
                # Prefer a string that is not empty.
                found = sorted(itertools.islice(valid, 2), key="".__eq__)
                if found:
                    return found[0]
        raise UnsatisfiableError(f"'pattern': the emulator cannot write {patterns[0]!r} for {name!r}")

    def _number(self, flat: Mapping[str, Any], name: str, *, whole: bool) -> float:
        for value in itertools.islice(_numbers(flat, whole=whole), self._index, None):
            return value
        raise UnsatisfiableError(f"no number was found for {name!r}")


def _numbers(flat: Mapping[str, Any], *, whole: bool) -> Iterator[float]:
    """Yield valid numbers: upward from 1 or the nearest to it, then downward, then in between."""
    lowest = [exact(flat[word]) for word in ("minimum", "exclusiveMinimum") if word in flat]
    highest = [exact(flat[word]) for word in ("maximum", "exclusiveMaximum") if word in flat]
    step = exact(flat.get("multipleOf", 1))
    if whole:
        # The whole multiples of 3/2 are the multiples of 3.
        step = Fraction(step.numerator)
    start = max([1, *(math.ceil(low / step) for low in lowest)])
    start = min([start, *(math.floor(high / step) for high in highest)])
    tried = itertools.chain(
        itertools.takewhile(
            lambda value: all(value <= high for high in highest),
            (step * (start + number) for number in range(_TRIES)),
        ),
        itertools.takewhile(
            lambda value: all(value >= low for low in lowest),
            (step * (start - number) for number in range(1, _TRIES)),
        ),
        _between(lowest, highest) if "multipleOf" not in flat and not whole else (),
    )
    for value in tried:
        try:
            number = float(value)
        except OverflowError:
            continue
        # Many JSON parsers read every number as a float, which changes integers that no float can represent.
        if value.denominator == 1 and number != value:
            continue
        if is_valid_number(exact(number), flat):
            yield int(value) if value.denominator == 1 else number


def _between(lowest: Sequence[Fraction], highest: Sequence[Fraction]) -> Iterator[Fraction]:
    if lowest and highest:
        low, high = max(lowest), min(highest)
        yield from (low, high)
        yield from (low + (high - low) * number / (number + 1) for number in range(1, _TRIES))
