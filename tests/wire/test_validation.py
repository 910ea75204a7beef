"""Schemas, and their faults in words."""

import time
from typing import Any

import pytest

from mcpgw.errors import InvalidParams
from mcpgw.wire.validation import (
    SchemaChecker,
    UnusableSchemaError,
    definition_checker,
    load_schema,
    pointer,
    require,
)

SECRET = "hunter2-the-secret"


@pytest.mark.parametrize("name", ["client-frames", "server-frames", "server-definition"])
def test_every_schema_of_the_project_is_one_and_refers_to_nothing_outside(name: str) -> None:
    SchemaChecker(load_schema(name)).faults({})


@pytest.mark.parametrize(
    ("parts", "text"), [((), ""), (("data", 0, "a"), "/data/0/a"), (("a/b", "c~d", ""), "/a~1b/c~0d/")]
)
def test_a_path_is_a_json_pointer_of_rfc_6901(parts: tuple[object, ...], text: str) -> None:
    assert pointer(*parts) == text


@pytest.mark.parametrize(
    ("schema", "value", "path", "reason"),
    [
        ({"type": "string"}, 1, "", "must be of type string"),
        ({"type": ["string", "null"]}, 1, "", "must be of type string or null"),
        ({"required": ["a"]}, {}, "/a", "is required"),
        ({"properties": {"a": {"required": ["b"]}}}, {"a": {}}, "/a/b", "is required"),
        (
            {"properties": {"limit": {}}, "additionalProperties": False},
            {"limti": 1},
            "/limti",
            "did you mean 'limit'",
        ),
        ({"properties": {"a": {"minimum": 1}}}, {"a": 0}, "/a", "must be at least 1"),
        ({"items": {"enum": ["x", "y"]}}, ["x", SECRET], "/1", 'must be one of ["x", "y"]'),
        ({"const": "x"}, SECRET, "", "must be x"),
        ({"maxLength": 3}, SECRET, "", "must have at most 3 characters"),
        ({"pattern": "^a+$"}, SECRET, "", "must match ^a+$"),
        ({"uniqueItems": True}, [SECRET, SECRET], "", "must not hold the same item twice"),
        ({"anyOf": [{"required": ["id"]}, {"required": ["request_id"]}]}, {}, "/id", "is required"),
        ({"anyOf": [{"type": "null"}, {"minLength": 99}]}, SECRET, "", "breaks the schema's rule 'anyOf'"),
        ({"not": {"type": "string"}}, SECRET, "", "breaks the schema's rule 'not'"),
        ({"propertyNames": {"maxLength": 2}}, {SECRET: 1}, "", "must have at most 2 characters"),
        ({"dependentRequired": {"a": ["b"]}}, {"a": SECRET}, "", "breaks the schema's rule"),
    ],
)
def test_a_fault_names_its_place_and_the_rule_and_never_the_value(
    schema: dict[str, Any], value: object, path: str, reason: str
) -> None:
    faults = SchemaChecker(schema).faults(value)
    assert [fault["path"] for fault in faults] == [path]
    assert reason in faults[0]["reason"]
    assert SECRET not in str(faults)


def test_every_fault_is_listed_up_to_twenty() -> None:
    checker = SchemaChecker({"items": {"type": "string"}})
    assert len(checker.faults(list(range(7)))) == 7
    assert len(checker.faults(list(range(100)))) == 20


def test_a_hundred_thousand_unknown_names_cost_no_more_than_the_twenty_that_are_told() -> None:
    checker = SchemaChecker(
        {"properties": {f"name{n}": {} for n in range(50)}, "additionalProperties": False}
    )
    started = time.process_time()
    faults = checker.faults({f"nam{n}": 1 for n in range(50_000)})
    assert len(faults) == 20
    assert time.process_time() - started < 2


def test_unequal_items_of_a_long_list_are_told_apart_in_linear_time() -> None:
    checker = SchemaChecker({"uniqueItems": True})
    started = time.process_time()
    assert checker.faults([{"n": n} if n % 2 else [n] for n in range(20_000)]) == []
    assert time.process_time() - started < 2


@pytest.mark.parametrize(
    ("items", "unique"),
    [
        ([1, True, "1", [1], {"a": 1}, None, 0, False], True),
        ([{"a": 1, "b": 2}, {"b": 2, "a": 1}], False),
        ([1, 1.0], False),
        ([{"a": [1]}, {"a": [1.0]}], False),
        ([[1], [True]], True),
        (["", None, [], {}], True),
        ([10**20, 1e20], False),
    ],
)
def test_items_are_the_same_as_json_schema_has_it(items: list[object], unique: bool) -> None:
    assert (SchemaChecker({"uniqueItems": True}).faults(items) == []) is unique


def test_paths_begin_where_the_value_stands() -> None:
    with pytest.raises(InvalidParams, match="the arguments: /data/params/a is required") as caught:
        require(SchemaChecker({"required": ["a", "b"]}), {}, what="the arguments", root=("data", "params"))
    assert caught.value.message.endswith("(and 1 more)")
    assert [fault["path"] for fault in caught.value.details] == ["/data/params/a", "/data/params/b"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "strnig"},
        {"minimum": "1"},
        {"pattern": "("},
        {"required": "a"},
        {"$schema": ["draft"]},
        {"$schema": {"a": 1}},
        {"$schema": 5},
        {"$id": 5},
        {"properties": []},
    ],
    ids=str,
)
def test_a_schema_that_is_none_is_said_to_be_unusable(schema: dict[str, Any]) -> None:
    with pytest.raises(UnusableSchemaError):
        SchemaChecker(schema)


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/absent"},
        {"$ref": "https://example.org/schema.json"},
        {"$ref": "file:///etc/passwd"},
        {"$ref": "#"},
        {"$dynamicRef": "#absent"},
    ],
    ids=str,
)
def test_a_reference_is_never_fetched_and_never_followed_in_a_circle(schema: dict[str, Any]) -> None:
    checker = SchemaChecker(schema)
    with pytest.raises(UnusableSchemaError):
        checker.faults({"a": 1})


@pytest.mark.parametrize("value", [1e300, 10**300, 0.1, 3, -7.5])
@pytest.mark.parametrize("divisor", [0.01, 1e-300, 3, 1e300])
def test_multiples_of_anything_can_be_asked_for(value: float, divisor: float) -> None:
    SchemaChecker({"multipleOf": divisor}).faults(value)


@pytest.mark.parametrize(
    "dialect",
    ["http://json-schema.org/draft-07/schema#", "https://json-schema.org/draft/2020-12/schema", "urn:own"],
)
def test_the_dialect_that_the_schema_names_is_taken_and_an_unknown_one_is_the_newest(dialect: str) -> None:
    checker = SchemaChecker({"$schema": dialect, "type": "object", "required": ["a"]})
    assert checker.faults({}) == [{"path": "/a", "reason": "is required"}]


def test_the_checker_of_a_definition_is_made_once() -> None:
    assert definition_checker("client-frames", "ping") is definition_checker("client-frames", "ping")


def test_a_list_that_is_too_long_is_refused_for_that_alone() -> None:
    checker = definition_checker("client-frames", "resume")
    frame = {"type": "resume", "data": {"session": "s", "pending": [7] * 110_000}}
    assert checker.faults(frame) == [{"path": "/data/pending", "reason": "must have at most 1000 items"}]
