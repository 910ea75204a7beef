"""Calls that are read in one step: the same as in three, or not at all."""

import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.errors import GatewayError
from mcpgw.wire import frames
from mcpgw.wire.frames import Envelope, ToolCall, quick_call
from mcpgw.wire.validation import load_schema

CALL = {"type": "tool_call", "id": "c", "data": {"serverId": "s", "toolName": "t", "params": {"text": "x"}}}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**63 - 1, 2**63, -(2**63) - 1, 10**400, 1.0, -0.0, 1e300])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5)
    | st.sampled_from([":", '":', "\\", "\ud83d\ude00", 'a":{"b'])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)
CALLS = st.fixed_dictionaries(
    {
        "type": st.just("tool_call"),
        "id": st.text(min_size=1, max_size=3),
        "data": st.fixed_dictionaries(
            {"serverId": st.text(max_size=3), "toolName": st.sampled_from(["t", "a:b"])},
            optional={
                "params": st.dictionaries(st.text(max_size=2), VALUES, max_size=3),
                "timeoutMs": st.integers(min_value=-1) | st.just(1.0) | st.none(),
                "onDisconnect": st.sampled_from(["keep", "cancel", "other"]),
            },
        ),
    },
    optional={"timestamp": st.integers() | st.just(1.5), "request_id": st.text(max_size=2), "more": VALUES},
)


def slow_call(text: str, max_depth: int = 64) -> frames.ClientFrame:
    """The frame of a message, read in three steps."""
    (value,) = frames.split_message(text, max_batch=100)
    return frames.decode(Envelope.open(value, max_depth=max_depth))


def assert_same(text: str, max_depth: int = 64) -> ToolCall | None:
    """What is read in one step is the same in three."""
    quick = quick_call(text, max_depth=max_depth)
    if quick is not None:
        slow = slow_call(text, max_depth)
        assert quick == slow
        assert isinstance(slow, ToolCall)
        assert repr(quick.params) == repr(slow.params)  # 1 and 1.0, 0.0 and -0.0 are equal, and not the same
    return quick


@given(CALLS, st.booleans(), st.sampled_from([(",", ":"), (", ", " : ")]), st.integers(0, 8))
def test_a_call_that_is_read_in_one_step_is_the_same_in_three(
    call: dict[str, Any], escaped: bool, separators: tuple[str, str], max_depth: int
) -> None:
    text = json.dumps(call, ensure_ascii=escaped, separators=separators)
    assert_same(text)
    assert_same(text, max_depth)


@given(CALLS, st.data())
def test_no_broken_text_and_none_with_a_member_twice_is_read_in_one_step(
    call: dict[str, Any], data: st.DataObject
) -> None:
    text = json.dumps(call, ensure_ascii=False)
    cut = data.draw(st.integers(0, len(text)))
    again = data.draw(st.integers(0, cut))
    members = '"type":"tool_call"', '"id":"c"', '"params":{}', '"a\\u003a":1', '"data":{}', ":", '"', "NaN"
    added = data.draw(st.sampled_from([*members, text[again:cut]]))
    for changed in (text[:cut] + added + text[cut:], f"{text[:cut]}{added},{text[cut:]}"):
        assert_same(changed)


@pytest.mark.parametrize(
    "text",
    [
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"a":1,"a":2}}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"a":":","a":2}}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"a":1,"a":"\\u003a"}}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"o":[{"a":1,"a":2}]}}}',
        '{"type":"tool_call","id":"a","id":"c","data":{"serverId":"s","toolName":"t"}}',
        '{"type":"ping","type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t"}}',
        '{"type":"tool_call","id":"c","data":{},"data":{"serverId":"s","toolName":"t"}}',
        '{"type":"tool_call","id":"c","request_id":"c","data":{"serverId":"s","toolName":"t"}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"n":%s}}}'
        % ("9" * 400),
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"n":1e999}}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":{"n":"\\ud800"}}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","params":null}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","extra":1}}',
        '{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t","timeoutMs":0}}',
        '[{"type":"tool_call","id":"c","data":{"serverId":"s","toolName":"t"}}]',
        f'{{"type":"tool_call","id":"c","data":{{"serverId":"s","toolName":"t","params":{"[" * 5000}',
    ],
)
def test_what_is_refused_or_has_to_be_looked_at_is_not_read_in_one_step(text: str) -> None:
    assert quick_call(text, max_depth=64) is None


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"params": {}},
        {"timeoutMs": 1, "onDisconnect": "keep"},
        {"params": {"at": "https://example.org:80/", "list": [1, {"deep": {"deeper": [None, "12:30"]}}]}},
        {"params": {"text": 'a "quoted" text\n', "number": -1.5e3, "no": False, "nothing": None}},
    ],
)
def test_an_ordinary_call_is_read_in_one_step(more: dict[str, Any]) -> None:
    call = CALL | {"data": {"serverId": "s", "toolName": "t", **more}, "timestamp": 1640995200000}
    assert assert_same(json.dumps(call)) is not None


@pytest.mark.parametrize("value", [[], {}, [[]], ":", 1])
def test_reading_takes_time_by_the_length_of_a_call_and_not_by_its_square(value: object) -> None:
    params = {f"{number:x}": value for number in range(90_000)}
    text = json.dumps(CALL | {"data": {"serverId": "s", "toolName": "t", "params": params}})
    began = time.process_time()
    assert quick_call(text, max_depth=64) is not None
    assert time.process_time() - began < 1


def test_the_bounds_of_a_call_are_those_of_the_published_schema() -> None:
    definitions = load_schema("client-frames")["$defs"]
    tool = definitions["tool_call"]["properties"]["data"]["properties"]["toolName"]
    for member, schema in (
        ("id", definitions["id"]),
        ("serverId", definitions["serverId"]),
        ("toolName", tool),
    ):
        for length in (0, 1, schema["maxLength"], schema["maxLength"] + 1):
            data = {"serverId": "s", "toolName": "t"} | ({} if member == "id" else {member: "ü" * length})
            text = json.dumps(CALL | {"data": data} | ({"id": "ü" * length} if member == "id" else {}))
            is_right = 0 < length <= schema["maxLength"]
            assert (assert_same(text) is not None) == is_right
            if not is_right:
                with pytest.raises(GatewayError):
                    slow_call(text)
