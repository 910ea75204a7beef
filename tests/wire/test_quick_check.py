"""The quick yes: never where `jsonschema` says no, and never slow for a stranger's sake."""

import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from mcpgw.wire.frames import CLIENT_TYPES
from mcpgw.wire.quick_check import quick_check, quick_check_of_others
from mcpgw.wire.validation import SchemaChecker, load_schema

NUMBERS = st.integers(-3, 3) | st.sampled_from([1.0, 2.5, -0.0, 1e300, 2**64, -(2**70), 2**53 + 1])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.sampled_from(["", "a", "ab", "\ud83d\ude00", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "type"]), inner, max_size=3)
    ),
    max_leaves=8,
)
TYPES = ["array", "boolean", "integer", "null", "number", "object", "string"]
SCALARS = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(TYPES) | st.lists(st.sampled_from(TYPES), min_size=1, unique=True),
        "enum": st.lists(st.sampled_from(["", "a", "ab"]), min_size=1, unique=True),
        "const": st.sampled_from(["a", "ab"]),
        "minimum": NUMBERS,
        "exclusiveMaximum": NUMBERS,
        "minLength": st.integers(0, 2),
        "maxLength": st.integers(0, 2),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "required": st.lists(st.sampled_from(["a", "b"]), unique=True),
        "format": st.sampled_from(["email", "uri"]),
    },
)
SCHEMAS = st.recursive(
    SCALARS,
    lambda inner: st.builds(
        lambda scalar, more: scalar | more,
        SCALARS,
        st.fixed_dictionaries(
            {},
            optional={
                "properties": st.dictionaries(st.sampled_from(["a", "b", "type"]), inner, max_size=3),
                "items": inner,
                "additionalProperties": inner | st.booleans(),
                "anyOf": st.lists(SCALARS, min_size=1, max_size=3),
            },
        ),
    ),
    max_leaves=6,
)


@settings(max_examples=400)
@given(SCHEMAS, VALUES)
def test_a_quick_yes_is_a_yes_of_jsonschema(schema: dict[str, Any], value: Any) -> None:
    check = quick_check_of_others(schema)
    assert check is not None
    if check(value):
        assert Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("kind", ["envelope", *CLIENT_TYPES])
def test_every_frame_of_a_client_has_a_quick_check(kind: str) -> None:
    schema = load_schema("client-frames")
    check = quick_check({"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{kind}"})
    assert check is not None
    assert not check({"type": kind, "id": 7})


def test_a_right_call_is_quickly_right() -> None:
    schema = load_schema("client-frames")
    check = quick_check({"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": "#/$defs/tool_call"})
    data = {"serverId": "echo", "toolName": "echo", "params": {"text": "hello"}}
    assert check is not None
    assert check({"type": "tool_call", "id": "1", "data": data})
    assert not check({"type": "tool_call", "id": "1", "data": {**data, "unknown": 1}})


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": {"pattern": "(a+)+$"}}},
        {"patternProperties": {"(a+)+$": {}}},
        {"$ref": "#/$defs/a", "$defs": {"a": {}}},
        {"properties": {"a": {"$ref": "http://example.com/a"}}},
        {"allOf": [{"properties": {"a": {}}}]},
        {"anyOf": [{"properties": {"a": {}}}]},
        {"anyOf": [{"type": "string"}] * 9},
        {"uniqueItems": True},
        {"enum": [1, 1.0]},
        {"multipleOf": 0.1},
        {"unevaluatedProperties": False},
        {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 1},
        {"$schema": 7},
        {"$id": "urn:a"},
        {"properties": {str(number): {} for number in range(600)}},
        {"items": [{}]},
        {"type": "any"},
        {"type": [["string"]]},
    ],
)
def test_a_strangers_schema_that_may_take_long_or_be_read_otherwise_has_none(schema: dict[str, Any]) -> None:
    assert quick_check_of_others(schema) is None


def test_what_the_quick_check_refuses_is_told_in_the_words_of_the_slow_one() -> None:
    checker = SchemaChecker({"properties": {"a": {"type": "string"}}, "required": ["b"]}, budget=1)
    assert checker.faults({"a": "x", "b": 1}) == []
    faults = checker.faults({"a": 1}, root=("data",))
    assert sorted(fault["path"] for fault in faults) == ["/data/a", "/data/b"]


def test_a_right_value_costs_microseconds() -> None:
    checker = SchemaChecker({"type": "object", "properties": {"a": {"type": "string"}}}, budget=1)
    began = time.thread_time()
    for _ in range(1000):
        assert checker.faults({"a": "x"}) == []
    assert time.thread_time() - began < 0.05
