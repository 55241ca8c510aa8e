"""Instances of a JSON schema, as the emulator's model writes them: deterministic, short, and checked."""

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any, Final

from cortecs_async.emulator._answers import Refusal
from cortecs_async.emulator._jsonschema.formats import FORMATS
from cortecs_async.emulator._jsonschema.merging import Unmet, merge
from cortecs_async.emulator._jsonschema.patterns import Unreadable, matching
from cortecs_async.emulator._jsonschema.schema import (
    Document,
    Schema,
    exact,
    fits_number,
    patterns,
    refs_in,
    same,
)

# Beyond these a schema is a bomb, or at least no answer of a model.
_MOST_STEPS: Final = 5_000
_LONGEST_STRING: Final = 100_000
_MOST_DIFFERENT: Final = 500
# How many values are tried where one must differ from others, or hit a multiple.
_TRIES: Final = 200

_COMBINING: Final = ("$ref", "allOf", "anyOf", "oneOf")
_KINDS: Final = {
    "object": ("properties", "required", "additionalProperties", "minProperties", "maxProperties"),
    "array": ("items", "prefixItems", "minItems", "maxItems", "uniqueItems"),
    "string": ("minLength", "maxLength", "pattern", "format"),
    "number": ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
}


def instance_of(document: Document, said: str) -> Any:
    """An instance of a schema.

    A default or an example of the schema goes before what is invented. The first string that may be anything
    is ``said``, every other one names its field. Optional properties are there, except within a type that
    contains itself where they refer to others: such a type takes the shortest way out.

    Raises:
        Refusal: 400 when no instance is found.
    """
    try:
        value = _Writer(document, said).write(document.root, "value", frozenset())
    except Unmet as reason:
        raise Refusal(400, f"The emulator finds no instance of the JSON schema: {reason}.") from reason
    except RecursionError as error:
        raise Refusal(400, "The JSON schema is too deep for the emulator.") from error
    return value


class _Writer:
    def __init__(self, document: Document, said: str) -> None:
        self._document = document
        self._said: str | None = said or None
        self._steps = 0
        # Which of the possible values is taken: the items of one array differ in it.
        self._number = 0

    def write(self, schema: Schema, name: str, refs: frozenset[str]) -> Any:
        """An instance of a schema, inside of ``refs``, for a field of this name."""
        self._step()
        for value in self._given(schema):
            if self._document.fits(value, schema):
                return value
        reason: Unmet | None = None
        for flat, deeper in self._variants(schema, refs):
            try:
                value = self._value(flat, name, deeper)
            except Unmet as unmet:
                reason = reason or unmet
                continue
            if self._document.fits(value, schema):
                return value
        raise reason or Unmet(f"nothing is found for {name!r}")

    def _step(self) -> None:
        self._steps += 1
        if self._steps > _MOST_STEPS:
            raise Refusal(400, "The JSON schema is too much for the emulator.")

    def _given(self, schema: Schema) -> Iterator[Any]:
        if not isinstance(schema, bool) and not self._number:
            if "default" in schema:
                yield schema["default"]
            yield from schema.get("examples", ())

    def _is_inside(self, refs: frozenset[str]) -> bool:
        return not self._document.recursive.isdisjoint(refs)

    def _variants(
        self, schema: Schema, refs: frozenset[str]
    ) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
        """The schema without references and alternatives, once for each way to choose among these."""
        self._step()
        if isinstance(schema, bool):
            if schema:
                yield {}, refs
            return
        own = {word: value for word, value in schema.items() if word not in _COMBINING}
        if "const" in own:
            own = merge(own, {"enum": [own.pop("const")]})
        groups: list[Sequence[Schema]] = [[part] for part in schema.get("allOf", ())]
        for word in ("anyOf", "oneOf"):
            if word in schema:
                # Listed order, which is the order in which a union was written, but not around in circles.
                inside = self._is_inside(refs)
                groups.append(sorted(schema[word], key=self._document.height) if inside else schema[word])
        ref = schema.get("$ref")
        if ref is None:
            yield from self._merged(own, refs, refs, groups)
        # A type inside itself is never needed: what meets the inner one would have met the outer.
        elif ref not in refs:
            groups.insert(0, [self._document.target(ref)])
            yield from self._merged(own, refs | {ref}, refs | {ref}, groups)

    def _merged(
        self,
        own: dict[str, Any],
        refs: frozenset[str],
        entered: frozenset[str],
        groups: Sequence[Sequence[Schema]],
    ) -> Iterator[tuple[dict[str, Any], frozenset[str]]]:
        if not groups:
            yield own, entered
            return
        for branch in groups[0]:
            for more, deeper in self._variants(branch, refs):
                try:
                    merged = merge(own, more)
                except Unmet:
                    continue
                yield from self._merged(merged, refs, entered | deeper, groups[1:])

    def _value(self, flat: Mapping[str, Any], name: str, refs: frozenset[str]) -> Any:
        if "enum" in flat:
            fitting = [value for value in flat["enum"] if self._document.fits(value, flat)]
            if not fitting:
                raise Unmet(f"no value of an enum or const fits for {name!r}")
            return fitting[self._number % len(fitting)]
        for value in self._given(flat):
            if self._document.fits(value, flat):
                return value
        kinds = flat.get("type") or [kind for kind, words in _KINDS.items() if any(w in flat for w in words)]
        kinds = [kinds] if isinstance(kinds, str) else sorted(kinds or ["string"], key="null".__eq__)
        reason: Unmet | None = None
        for kind in kinds:
            try:
                return self._value_of(kind, flat, name, refs)
            except Unmet as unmet:
                reason = reason or unmet
        raise reason or Unmet(f"nothing is found for {name!r}")

    def _value_of(self, kind: str, flat: Mapping[str, Any], name: str, refs: frozenset[str]) -> Any:
        if kind == "object":
            return self._object(flat, name, refs)
        if kind == "array":
            return self._array(flat, name, refs)
        if kind == "string":
            return self._string(flat, name)
        if kind == "boolean":
            return self._number % 2 == 0
        return None if kind == "null" else self._numeric(flat, name, whole=kind == "integer")

    def _object(self, flat: Mapping[str, Any], name: str, refs: frozenset[str]) -> dict[str, Any]:
        properties, others = flat.get("properties", {}), flat.get("additionalProperties", True)
        required = dict.fromkeys(flat.get("required", ()))
        room = flat.get("maxProperties", math.inf) - len(required)
        found: dict[str, Any] = {}
        for each in {**properties, **required}:
            schema = properties.get(each, others)
            if each in required:
                found[each] = self.write(schema, each, refs)
            elif room > 0 and not (self._is_inside(refs) and any(refs_in(schema))):
                try:
                    found[each] = self.write(schema, each, refs)
                except Unmet:
                    continue
                room -= 1
        for number in itertools.count(1):
            if len(found) >= flat.get("minProperties", 0):
                return found
            found.setdefault(f"{name}_{number}", self.write(others, name, refs))
        raise AssertionError  # the count has no end

    def _array(self, flat: Mapping[str, Any], name: str, refs: frozenset[str]) -> list[Any]:
        first, others = flat.get("prefixItems", []), flat.get("items", True)
        least = flat.get("minItems", 0)
        wanted = max(least, len(first))
        if "items" in flat and others is not False and not (self._is_inside(refs) and any(refs_in(others))):
            wanted = max(wanted, 1)
        found: list[Any] = []
        for place in range(int(min(wanted, flat.get("maxItems", wanted)))):
            schema = first[place] if place < len(first) else others
            try:
                found.append(self._another(found, schema, name, refs, unique=flat.get("uniqueItems", False)))
            except Unmet:
                if place < least:
                    raise
                break
        return found

    def _another(
        self, found: Sequence[Any], schema: Schema, name: str, refs: frozenset[str], *, unique: bool
    ) -> Any:
        if unique and len(found) == _MOST_DIFFERENT:
            raise Unmet(f"'uniqueItems': the emulator writes no more than {_MOST_DIFFERENT} for {name!r}")
        before = self._number
        try:
            for self._number in range(before + len(found), before + len(found) + _TRIES):
                value = self.write(schema, name, refs)
                if not (unique and any(same(value, each) for each in found)):
                    return value
        finally:
            self._number = before
        raise Unmet(f"'uniqueItems': too few different items are found for {name!r}")

    def _string(self, flat: Mapping[str, Any], name: str) -> str:
        least, most = int(flat.get("minLength", 0)), flat.get("maxLength", math.inf)
        if least > _LONGEST_STRING:
            raise Unmet(f"'minLength': the emulator writes no {least} characters for {name!r}")
        if "format" in flat:
            return FORMATS[flat["format"]].make(self._number)
        if patterns(flat):
            return self._patterned(flat, name)
        free = "minLength" not in flat and "maxLength" not in flat
        if free and self._said is not None and not self._number:
            text, self._said = self._said, None
        else:
            text = f"emulated {name}"
        end = f" {self._number + 1}" if self._number else ""
        text += end
        if len(text) < least:
            text = (f"{text} " * (least // len(text) + 1))[:least]
        if len(text) > most:
            # What tells it from its neighbours stays.
            text = text[: max(0, int(most) - len(end))] + end
            text = text[len(text) - int(most) :]
        return text

    def _patterned(self, flat: Mapping[str, Any], name: str) -> str:
        for pattern in patterns(flat):
            with contextlib.suppress(Unreadable):
                fitting = (
                    text for text in matching(pattern, self._number) if self._document.fits(text, flat)
                )
                # An empty string says the least.
                found = sorted(itertools.islice(fitting, 2), key="".__eq__)
                if found:
                    return found[0]
        raise Unmet(f"'pattern': the emulator cannot write {patterns(flat)[0]!r} for {name!r}")

    def _numeric(self, flat: Mapping[str, Any], name: str, *, whole: bool) -> float:
        for value in itertools.islice(_numbers(flat, whole=whole), self._number, None):
            return value
        raise Unmet(f"no number is found for {name!r}")


def _numbers(flat: Mapping[str, Any], *, whole: bool) -> Iterator[float]:
    """Numbers that a schema allows, from 1 or the nearest to it upwards, then downwards, then in between."""
    lowest = [exact(flat[word]) for word in ("minimum", "exclusiveMinimum") if word in flat]
    highest = [exact(flat[word]) for word in ("maximum", "exclusiveMaximum") if word in flat]
    step = exact(flat.get("multipleOf", 1))
    if whole:
        # The multiples of 3/2 that are whole are those of 3.
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
        # Many readers of JSON hold every number as a float: what is none would be another number there.
        if value.denominator == 1 and number != value:
            continue
        if fits_number(exact(number), flat):
            yield int(value) if value.denominator == 1 else number


def _between(lowest: Sequence[Fraction], highest: Sequence[Fraction]) -> Iterator[Fraction]:
    if lowest and highest:
        low, high = max(lowest), min(highest)
        yield from (low, high)
        yield from (low + (high - low) * number / (number + 1) for number in range(1, _TRIES))
