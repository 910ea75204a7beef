"""JSON as RFC 8259 has it, and nothing more."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=20
)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "tru", "nul", "'a'", "{a: 1}", "[1,]", '{"a":1,}', "01", "+1", ".5", "1.", "0x10"),
        *("NaN", "Infinity", "-Infinity", "[NaN]", "1e999", "-1e999", "[1e400]"),
        *('{"a":1,"a":2}', '[{"b":{"a":1,"a":1}}]', '{"\\u0061":1,"a":2}'),
        *('"\\ud800"', '"\\udc00"', '{"\\ud83d":1}', '["\\udc00\\ud800"]'),
        *("\ufeff{}", '"\x00"', '"a\nb"', "{} {}", "1 2"),
        *("9" * 310, "-" + "9" * 310, "1" * 5000, "-" + "1" * 100_000),
        *("[" * 100_000, "[" * 100_000 + "]" * 100_000, '{"a":' * 50_000 + "1" + "}" * 50_000),
    ],
    ids=lambda text: text[:16],
)
def test_what_rfc_8259_does_not_have_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        strict_json.loads(text)


@pytest.mark.parametrize("levels", [200, 900, 960, 980, 990, 1000])
def test_half_of_a_surrogate_pair_is_found_or_refused_at_every_depth(levels: int) -> None:
    with pytest.raises(ParseError):
        strict_json.loads("[" * levels + '"\\ud800"' + "]" * levels)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('"\\ud83d\\ude00"', "😀"),
        (' \t\r\n{"a" : [1, -0, 1.5e3, true, null]} ', {"a": [1, 0, 1500.0, True, None]}),
        ('{"":{"":1}}', {"": {"": 1}}),
        ("1e-999", 0.0),
        ("1" * 300, int("1" * 300)),
        (str(2**1000), 2**1000),
        (str(2**64 + 1), 2**64 + 1),
        ('"\\u0000"', "\x00"),
    ],
    ids=lambda value: str(value)[:16],
)
def test_what_rfc_8259_has_is_read(text: str, value: object) -> None:
    assert strict_json.loads(text) == value


def test_the_place_of_a_fault_is_named_and_what_stands_there_is_not() -> None:
    with pytest.raises(ParseError, match=r"line 2, column 11") as caught:
        strict_json.loads('{"a":\n "secret" oops}')
    assert "secret" not in caught.value.message
    assert "oops" not in caught.value.message


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": [math.nan]}])
def test_a_number_that_json_has_not_is_never_written(value: object) -> None:
    with pytest.raises(ValueError, match="JSON"):
        strict_json.dumps(value)


def test_a_value_too_deep_to_be_written_is_a_value_error_and_no_recursion_error() -> None:
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    with pytest.raises(ValueError, match="too deeply"):
        strict_json.dumps(value)


@pytest.mark.parametrize(
    ("text", "levels"),
    [("1", 0), ('"a"', 0), ("[]", 1), ("{}", 1), ("[1]", 1), ('{"a":[{}]}', 3), ("[[],[[]]]", 3)],
)
def test_each_array_and_object_is_one_level(text: str, levels: int) -> None:
    value = strict_json.loads(text)
    assert not strict_json.is_deeper_than(value, levels)
    assert levels == 0 or strict_json.is_deeper_than(value, levels - 1)


@given(VALUES)
def test_what_is_written_is_read_back_by_everybody_as_it_was(value: object) -> None:
    try:
        text = strict_json.dumps(value)
    except ValueError:
        return
    assert json.loads(text) == value
    assert "\n" not in text
    if not _has_huge_integer(value):
        assert strict_json.loads(text) == value


@given(st.text())
def test_any_text_is_a_value_or_a_parse_error(text: str) -> None:
    try:
        value = strict_json.loads(text)
    except ParseError:
        return
    assert json.loads(text) == value


def _has_huge_integer(value: object) -> bool:
    if isinstance(value, dict):
        return any(map(_has_huge_integer, value.values()))
    if isinstance(value, list):
        return any(map(_has_huge_integer, value))
    return isinstance(value, int) and abs(value) > 10**300
