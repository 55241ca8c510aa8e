"""Values for JSON schemas: each is checked by another validator, formats included."""

import contextlib
import json
from typing import Any

import hypothesis.strategies as st
import jsonschema_rs
import pytest
from hypothesis import given, settings

from cortecs_async.emulator._jsonschema.formats import FORMATS
from cortecs_async.emulator._jsonschema.schema import Document
from cortecs_async.emulator._jsonschema.writer import write_value
from cortecs_async.emulator._messages import ApiError

SAID = "Hello there"

# As pydantic 2 writes them, for: a model in a model, enums, optional fields, dicts, tuples, sets, decimals.
ORDER = {
    "$defs": {
        "Address": {
            "properties": {
                "street": {"title": "Street", "type": "string"},
                "zip": {"maxLength": 5, "minLength": 5, "title": "Zip", "type": "string"},
            },
            "required": ["street", "zip"],
            "title": "Address",
            "type": "object",
        },
        "Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"},
    },
    "properties": {
        "customer": {"title": "Customer", "type": "string"},
        "ship_to": {"$ref": "#/$defs/Address"},
        "bill_to": {"anyOf": [{"$ref": "#/$defs/Address"}, {"type": "null"}], "default": None},
        "colors": {
            "items": {"$ref": "#/$defs/Color"},
            "title": "Colors",
            "type": "array",
            "uniqueItems": True,
        },
        "count": {"exclusiveMinimum": 3, "maximum": 10, "multipleOf": 2, "title": "Count", "type": "integer"},
        "share": {"exclusiveMaximum": 1, "exclusiveMinimum": 0, "title": "Share", "type": "number"},
        "price": {
            "anyOf": [
                {"type": "number"},
                {"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"},
            ],
            "title": "Price",
        },
        "pair": {
            "maxItems": 2,
            "minItems": 2,
            "prefixItems": [{"type": "integer"}, {"format": "uuid", "type": "string"}],
            "title": "Pair",
            "type": "array",
        },
        "counts": {"additionalProperties": {"type": "integer"}, "title": "Counts", "type": "object"},
        "when": {"format": "date-time", "title": "When", "type": "string"},
        "kind": {"const": "order", "default": "order", "title": "Kind", "type": "string"},
        "anything": {"title": "Anything"},
        "urgent": {"title": "Urgent", "type": "boolean"},
    },
    "required": [
        "customer",
        "ship_to",
        "colors",
        "count",
        "share",
        "price",
        "pair",
        "counts",
        "when",
        "urgent",
    ],
    "title": "Order",
    "type": "object",
}

# A list that ends, and a tree whose shortest leaf is the last of its kinds.
CHAIN = {
    "$defs": {
        "Node": {
            "properties": {
                "name": {"type": "string"},
                "next": {"anyOf": [{"$ref": "#/$defs/Node"}, {"type": "null"}]},
                "children": {"items": {"$ref": "#/$defs/Node"}, "type": "array"},
            },
            "required": ["name", "next", "children"],
            "additionalProperties": False,
            "type": "object",
        }
    },
    "$ref": "#/$defs/Node",
}
TREE = {
    "$defs": {
        "Sum": {
            "properties": {
                "kind": {"const": "sum", "type": "string"},
                "left": {"$ref": "#/$defs/Any"},
                "right": {"$ref": "#/$defs/Any"},
            },
            "required": ["kind", "left", "right"],
            "type": "object",
        },
        "Leaf": {
            "properties": {"kind": {"const": "leaf", "type": "string"}, "value": {"type": "number"}},
            "required": ["kind", "value"],
            "type": "object",
        },
        "Any": {
            "discriminator": {
                "mapping": {"sum": "#/$defs/Sum", "leaf": "#/$defs/Leaf"},
                "propertyName": "kind",
            },
            "oneOf": [{"$ref": "#/$defs/Sum"}, {"$ref": "#/$defs/Leaf"}],
        },
    },
    "properties": {"root": {"$ref": "#/$defs/Any"}, "first": {"$ref": "#/$defs/Sum"}},
    "required": ["root", "first"],
    "type": "object",
}

CASES: list[tuple[Any, Any]] = [
    (
        ORDER,
        {
            "customer": SAID,
            "ship_to": {"street": "emulated street", "zip": "emula"},
            "bill_to": None,
            "colors": ["red"],
            "count": 4,
            "share": 0.5,
            "price": 1,
            "pair": [1, "00000000-0000-4000-8000-000000000001"],
            "counts": {},
            "when": "2025-01-01T00:00:00Z",
            "kind": "order",
            "anything": "emulated anything",
            "urgent": True,
        },
    ),
    (CHAIN, {"name": SAID, "next": None, "children": []}),
    (
        TREE,
        {
            "root": {"kind": "leaf", "value": 1},
            "first": {
                "kind": "sum",
                "left": {"kind": "leaf", "value": 1},
                "right": {"kind": "leaf", "value": 1},
            },
        },
    ),
    ({}, SAID),
    ({"type": "string"}, SAID),
    ({"type": ["null", "string"]}, SAID),
    ({"type": ["null", "integer"]}, 1),
    ({"type": "null"}, None),
    ({"properties": {"a": True}}, {"a": SAID}),
    ({"items": {"type": "integer"}}, [1]),
    ({"type": "array"}, []),
    ({"type": "object"}, {}),
    ({"type": "object", "required": ["a"]}, {"a": SAID}),
    (
        {"type": "object", "properties": {"a": {}, "b": {}, "c": {}}, "required": ["c"], "maxProperties": 2},
        None,
    ),
    ({"type": "object", "minProperties": 2, "additionalProperties": {"type": "boolean"}}, None),
    ({"type": "object", "properties": {"a": False, "b": {"type": "null"}}}, {"b": None}),
    (
        {"type": "array", "items": {"enum": ["x", "y", "z"]}, "minItems": 3, "uniqueItems": True},
        ["x", "y", "z"],
    ),
    # Writing an item checks only as many values of the enum as it needs.
    (
        {"type": "array", "items": {"enum": list(range(5000))}, "minItems": 100, "uniqueItems": True},
        list(range(100)),
    ),
    (
        {"type": "array", "items": {"type": "string", "enum": [1, "a", None, "b"]}, "minItems": 5},
        ["a", "b", "a", "b", "a"],
    ),
    ({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "uniqueItems": True}, [True, False]),
    ({"type": "array", "items": {"type": "string"}, "minItems": 3, "uniqueItems": True}, None),
    (
        {"type": "array", "items": {"type": "string", "maxLength": 2}, "minItems": 12, "uniqueItems": True},
        None,
    ),
    ({"type": "array", "items": {"type": "number", "minimum": 0, "maximum": 1}, "minItems": 9}, None),
    (
        {
            "type": "array",
            "items": {"type": "number", "minimum": 0, "maximum": 1},
            "minItems": 9,
            "uniqueItems": True,
        },
        None,
    ),
    (
        {"type": "array", "items": {"type": "integer", "maximum": -5}, "minItems": 3, "uniqueItems": True},
        [-5, -6, -7],
    ),
    ({"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": False}, [1, "b"]),
    ({"type": "array", "prefixItems": [{"const": 1}, {"const": 2}], "maxItems": 1}, [1]),
    ({"type": "array", "items": {"type": "string"}, "maxItems": 0}, []),
    ({"type": "array", "items": False}, []),
    ({"type": "string", "minLength": 30}, None),
    ({"type": "string", "maxLength": 0}, ""),
    ({"type": "string", "minLength": 2, "maxLength": 2}, "em"),
    ({"type": "string", "pattern": "^[A-Z]{2}\\d{3,}$"}, "AB123"),
    ({"type": "string", "pattern": "^[a-z]+$", "minLength": 7}, "abcdefg"),
    ({"type": "string", "pattern": "^[^\\W_]+(?:-[a-f]*)?$", "maxLength": 3}, None),
    ({"type": "string", "pattern": "(?P<a>x|y)\\.\\x41[]b-]\\n.\\s\\Sé"}, None),
    ({"allOf": [{"type": "string", "pattern": "^a*b+$"}, {"pattern": "^b+c*$"}]}, None),
    ({"type": "integer", "multipleOf": 7, "minimum": 50}, 56),
    ({"type": "integer", "multipleOf": 1.5}, 3),
    ({"type": "integer", "minimum": 1.5, "maximum": 2.5}, 2),
    ({"type": "integer", "exclusiveMaximum": 0}, -1),
    ({"type": "number", "multipleOf": 0.1}, 0.1),
    ({"type": ["integer", "null"], "format": "int64"}, 1),
    ({"type": "number", "minimum": 0.25, "maximum": 0.25}, 0.25),
    ({"type": "integer", "exclusiveMinimum": 2**53}, 2**53 + 2),
    ({"enum": [None, "b"]}, None),
    ({"type": "string", "enum": [1, "b"]}, "b"),
    ({"const": {"a": [1, 2]}}, {"a": [1, 2]}),
    ({"type": "integer", "default": 5}, 5),
    ({"type": "integer", "default": "five", "examples": [None, 6]}, 6),
    ({"default": "x", "anyOf": [{"type": "integer"}, {"type": "string"}]}, "x"),
    ({"anyOf": [{"type": "integer"}, {"type": "string"}], "minimum": 8}, 8),
    ({"anyOf": [{"$ref": "#/$defs/never"}, {"type": "string"}], "$defs": {"never": False}}, SAID),
    ({"anyOf": [{"items": {"$ref": "#"}, "minItems": 1, "type": "array"}, {"type": "integer"}]}, [1]),
    ({"oneOf": [{"type": "number"}, {"type": "integer"}, {"type": "string"}]}, None),
    ({"oneOf": [{"minimum": 2}, {"maximum": 5}], "type": "integer"}, None),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": ["number", "string"]}}, "required": ["a"]},
                {"properties": {"a": {"type": ["integer", "null"], "minimum": 3}, "b": {"enum": [1, 2]}}},
                {"properties": {"b": {"enum": [2, 3]}}, "required": ["b"]},
            ]
        },
        {"a": 3, "b": 2},
    ),
    (
        {
            "allOf": [
                {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False},
                {"properties": {"a": True, "b": {"type": "null"}}},
            ]
        },
        {"a": None},
    ),
    ({"allOf": [{"multipleOf": 4}, {"multipleOf": 6}], "type": "integer"}, 12),
    # Comparing each value with each other one would take minutes.
    ({"allOf": [{"enum": list(range(40_000))}, {"enum": list(range(39_999, 80_000))}]}, 39_999),
    ({"allOf": [{"enum": [True, [1], {"a": [0]}, 1]}, {"enum": [1.0, [True], {"a": [False]}]}]}, 1),
    ({"allOf": [{"enum": [{"a": 1, "b": [2]}]}, {"enum": [{"b": [2.0], "a": 1}]}]}, {"a": 1, "b": [2]}),
    (
        {"allOf": [{"prefixItems": [{"type": "integer"}]}, {"prefixItems": [{"minimum": 4}]}], "minItems": 1},
        [4],
    ),
    ({"$ref": "#/properties/a~1b", "properties": {"a/b": {"type": "integer"}}, "type": "integer"}, 1),
    ({"$ref": "#/allOf/0", "allOf": [{"type": "integer"}]}, 1),
    ({"type": "string", "nullable": True, "x-order": 1, "$comment": "not said of values"}, SAID),
    *(({"type": "string", "format": name}, None) for name in FORMATS),
    *(
        (
            {
                "type": "array",
                "items": {"type": "string", "format": name},
                "minItems": 30,
                "uniqueItems": True,
            },
            None,
        )
        for name in FORMATS
    ),
]


def is_valid(value: Any, schema: Any) -> bool:
    return jsonschema_rs.Draft202012Validator(schema, validate_formats=True).is_valid(value)


@pytest.mark.parametrize(("schema", "wanted"), CASES)
def test_a_value_is_valid(schema: Any, wanted: Any) -> None:
    value = write_value(Document(schema), SAID)
    assert is_valid(json.loads(json.dumps(value)), schema), value
    if wanted is not None:
        assert value == wanted


def test_the_same_request_has_the_same_answer() -> None:
    assert write_value(Document(ORDER), SAID) == write_value(Document(ORDER), SAID)


@pytest.mark.parametrize("default", ["2025-02-03T04:05:06.7+01:00", "2025-13-03T04:05:06Z", "soon"])
def test_a_default_is_used_if_it_is_valid(default: str) -> None:
    schema = {"type": "string", "format": "date-time", "default": default}
    value = write_value(Document(schema), SAID)
    assert is_valid(value, schema)
    assert (value == default) == is_valid(default, schema)


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ([], "must be an object"),
        ({"type": "text"}, "'type' at #"),
        ({"type": []}, "'type' at #"),
        ({"properties": {"a": {"minLength": -1}}}, "'minLength' at #/properties/a"),
        ({"properties": {"a": 5}}, "'properties' at #"),
        ({"anyOf": []}, "'anyOf' at #"),
        ({"items": [{"type": "string"}]}, "'items' at #"),
        ({"required": "a"}, "'required' at #"),
        ({"multipleOf": 0}, "'multipleOf' at #"),
        ({"minimum": True}, "'minimum' at #"),
        ({"pattern": "("}, "'pattern' at #"),
        ({"pattern": 5}, "'pattern' at #"),
        ({"$ref": "#/$defs/a"}, "nothing at '#/$defs/a'"),
        ({"$ref": "https://example.com/schema"}, "nothing at"),
        ({"$ref": "#/title", "title": "x"}, "nothing at"),
        ({"$defs": {"a": {"type": "text"}}, "items": {"$ref": "#/$defs/a"}}, "'type' at #/$defs/a"),
        ({"not": {"type": "string"}}, "does not support 'not'"),
        ({"items": {"contains": {}}}, "does not support 'contains' in a JSON schema (#/items)"),
        ({"format": "iri"}, "does not support the format 'iri'"),
        ({"format": "iri", "type": 5}, "'type' at #"),
        ({"type": "integer", "minimum": 2, "maximum": 1}, "no number"),
        ({"type": "number", "exclusiveMinimum": 1e308}, "no number"),
        ({"type": "integer", "minimum": 10**400}, "no number"),
        ({"type": "integer", "enum": ["a"]}, "no value of an enum or const is valid"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "no value is valid"),
        ({"allOf": [{"enum": [1]}, {"enum": [2]}]}, "no value is valid"),
        ({"allOf": [{"format": "date"}, {"format": "time"}]}, "no value is valid"),
        (
            {"type": "array", "items": {"type": "boolean"}, "minItems": 3, "uniqueItems": True},
            "'uniqueItems'",
        ),
        (
            {"type": "array", "items": {"type": "string"}, "minItems": 600, "uniqueItems": True},
            "at most 500",
        ),
        ({"allOf": [{"multipleOf": 9e307}, {"multipleOf": 7e307}], "type": "number"}, "no value is valid"),
        ({"type": "string", "pattern": "^(a)\\1$"}, "'pattern'"),
        ({"type": "string", "pattern": "^(?i:a)$"}, "'pattern'"),
        ({"type": "string", "pattern": "\\D{3}\\Z(?!x)y"}, "'pattern'"),
        ({"type": "string", "pattern": "(a{9999}){9999}"}, "'pattern'"),
        ({"type": "string", "pattern": "[^\\w\\W]"}, "'pattern'"),
        ({"type": "string", "minLength": 10**9}, "'minLength'"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "no value is valid"),
        ({"type": "array", "minItems": 10**9}, "too complex"),
        ({"type": "object", "minProperties": 10**9}, "too complex"),
        ({"type": "object", "required": ["a"], "properties": {"a": {"$ref": "#"}}}, "no value is valid"),
        ({"$ref": "#"}, "refers to itself endlessly"),
        ({"anyOf": [{"type": "string"}, {"allOf": [{"$ref": "#"}]}]}, "refers to itself endlessly"),
        (json.loads('{"items":' * 70 + "true" + "}" * 70), "nested more than"),
        # Eighteen levels of two equal alternatives: every value is checked 2**18 times, and never valid.
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {str(n): {"oneOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(18)}
                | {"18": {"type": "string"}},
            },
            "too complex",
        ),
        # Fifty types of two fields, each of the next type: a value with 2**50 fields.
        (
            {
                "$ref": "#/$defs/0",
                "$defs": {
                    str(n): {"required": ["a", "b"], "additionalProperties": {"$ref": f"#/$defs/{n + 1}"}}
                    for n in range(50)
                }
                | {"50": {"type": "string"}},
            },
            "too complex",
        ),
    ],
)
def test_a_schema_that_is_not_supported_or_has_no_value_is_rejected(schema: Any, words: str) -> None:
    with pytest.raises(ApiError) as rejected:
        write_value(Document(schema), SAID)
    assert rejected.value.status == 400
    assert words in rejected.value.message


SIZES = st.integers(0, 4)
SMALL = st.integers(-3, 5)
NAMES = st.sampled_from(["a", "b", "c"])
DEFS = ("one", "two")


def bounds(*words: str, of: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=dict.fromkeys(words, of))


def typed(name: str, more: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return more.map(lambda words: {"type": name, **words})


LEAVES = st.one_of(
    st.sampled_from([{"type": "null"}, {"type": "boolean"}, {}, True, False]),
    st.sampled_from([{"type": "string", "format": name} for name in FORMATS]),
    st.sampled_from([{"type": "string", "pattern": text} for text in ("^a+$", "\\d{2,3}", "^(x|yy)*z$")]),
    st.sampled_from([{"$ref": f"#/$defs/{name}"} for name in DEFS]),
    st.lists(st.sampled_from([None, True, 1, 2.5, "a", "bb", [1]]), min_size=1).map(
        lambda each: {"enum": each}
    ),
    typed("string", bounds("minLength", "maxLength", of=SIZES)),
    typed("integer", bounds("minimum", "exclusiveMaximum", "maximum", of=SMALL)),
    typed("number", bounds("minimum", "exclusiveMinimum", "exclusiveMaximum", of=SMALL)),
    typed("number", bounds("multipleOf", of=st.sampled_from([0.5, 2, 3]))),
)


def composed(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        typed(
            "object",
            st.fixed_dictionaries(
                {"properties": st.dictionaries(NAMES, inner, max_size=3)},
                optional={
                    "required": st.lists(NAMES, unique=True, max_size=2),
                    "additionalProperties": inner,
                    "minProperties": SIZES,
                    "maxProperties": SIZES,
                },
            ),
        ),
        typed(
            "array",
            st.fixed_dictionaries(
                {"items": inner},
                optional={
                    "minItems": SIZES,
                    "maxItems": SIZES,
                    "uniqueItems": st.booleans(),
                    "prefixItems": st.lists(inner, min_size=1, max_size=2),
                },
            ),
        ),
        *(
            st.lists(inner, min_size=1, max_size=3).map(lambda each, word=word: {word: each})  # type: ignore[misc]
            for word in ("anyOf", "oneOf", "allOf")
        ),
        st.tuples(inner, inner).map(lambda pair: {"anyOf": [pair[0]], "allOf": [pair[1]]}),
    )


SCHEMAS = st.recursive(LEAVES, composed, max_leaves=8)


@settings(max_examples=60)
@given(root=SCHEMAS.filter(lambda each: isinstance(each, dict)), one=SCHEMAS, two=SCHEMAS)
def test_what_is_written_is_always_valid(root: Any, one: Any, two: Any) -> None:
    schema = {**root, "$defs": dict(zip(DEFS, (one, two), strict=True))}
    with contextlib.suppress(ApiError):
        value = write_value(Document(schema), SAID)
        assert is_valid(value, schema), value
