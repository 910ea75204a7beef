"""Frames: reading what clients send, writing what the gateway says."""

import json
import math
from contextlib import suppress
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.errors import GatewayError, InvalidParams, ParseError, TooLarge, UnknownType, codes
from mcpgw.wire import frames
from mcpgw.wire.frames import Envelope, ReplyTo
from mcpgw.wire.validation import SchemaChecker, definition_checker, load_schema
from tests.support.schemas import assert_valid_server_frame

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)
NEARLY_FRAMES = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from([*frames.CLIENT_TYPES, "tool_cal", ""]) | JSON_VALUES,
        "id": st.text(max_size=140) | JSON_VALUES,
        "request_id": st.text(max_size=140) | JSON_VALUES,
        "data": st.fixed_dictionaries(
            {},
            optional={
                "serverId": st.text() | JSON_VALUES,
                "toolName": st.text() | JSON_VALUES,
                "params": JSON_VALUES,
                "token": st.text(),
                "timeoutMs": st.integers() | JSON_VALUES,
                "onDisconnect": st.sampled_from(["keep", "cancel", "other"]),
                "extra": JSON_VALUES,
            },
        )
        | JSON_VALUES,
        "timestamp": st.integers() | JSON_VALUES,
        "unknown": JSON_VALUES,
    },
)

PUBLISHED = SchemaChecker(load_schema("client-frames"))


def read(text: str) -> list[frames.ClientFrame]:
    """Every step of reading a message."""
    return [frames.decode(Envelope.open(value)) for value in frames.split_message(text, max_batch=100)]


def read_one(frame: object) -> frames.ClientFrame:
    """Read a message of one frame."""
    (result,) = read(json.dumps(frame))
    return result


@given(st.text() | JSON_VALUES.map(json.dumps))
def test_any_text_is_frames_or_a_refusal_with_a_code(text: str) -> None:
    with suppress(GatewayError):
        assert all(type(frame) in get_args(frames.ClientFrame) for frame in read(text))


@given(NEARLY_FRAMES)
def test_a_frame_is_read_where_the_published_schema_allows_it_and_refused_where_not(
    frame: dict[str, Any],
) -> None:
    allowed = not PUBLISHED.faults(frame)
    try:
        read_one(frame)
    except ParseError:
        return  # a number that no double can hold, or too many levels: bounds that no schema can say
    except (InvalidParams, UnknownType):
        taken = False
    else:
        taken = True
    differs = "id" in frame and "request_id" in frame and frame["id"] != frame["request_id"]
    assert taken is (allowed and not differs)


def test_every_type_that_is_answered_has_its_schema_and_the_other_way_round() -> None:
    listed = [entry["$ref"].rpartition("/")[2] for entry in load_schema("client-frames")["oneOf"]]
    assert sorted(listed) == sorted(frames.CLIENT_TYPES)
    assert set(frames.OPEN_TYPES) < set(frames.CLIENT_TYPES)


def test_every_code_stands_in_the_schema_of_errors() -> None:
    listed = load_schema("server-frames")["$defs"]["errorData"]["properties"]["code"]["enum"]
    assert sorted(listed) == sorted(codes())


def test_a_batch_is_split_and_bounded() -> None:
    assert frames.split_message("[{},1]", max_batch=2) == [{}, 1]
    with pytest.raises(TooLarge, match="at most 2 frames, this one 3"):
        frames.split_message("[1,2,3]", max_batch=2)
    with pytest.raises(ParseError, match="at least one"):
        frames.split_message("[]", max_batch=2)


@pytest.mark.parametrize(
    ("value", "kind"),
    [(None, "null"), (True, "a boolean"), (1, "a number"), ("a", "a string"), ([], "an array")],
)
def test_what_is_no_object_is_no_frame(value: object, kind: str) -> None:
    with pytest.raises(ParseError, match=f"not {kind}"):
        Envelope.open(value)


def test_sixty_four_levels_are_a_frame_and_sixty_five_are_none() -> None:
    def nested(levels: int) -> dict[str, Any]:
        value: object = 1
        for _ in range(levels - 3):
            value = [value]
        return {
            "type": "tool_call",
            "id": "a",
            "data": {"serverId": "s", "toolName": "t", "params": {"a": value}},
        }

    assert isinstance(read_one(nested(64)), frames.ToolCall)
    with pytest.raises(ParseError, match="deeper than 64"):
        read_one(nested(65))


@pytest.mark.parametrize(
    ("frame", "reply"),
    [
        ({"type": "ping"}, None),
        ({"type": "ping", "id": "a"}, ReplyTo("a")),
        ({"type": "ping", "id": "x" * 128}, ReplyTo("x" * 128)),
        ({"type": "ping", "request_id": "a"}, ReplyTo("a", alternative=True)),
        ({"type": "ping", "id": "a", "request_id": "a"}, ReplyTo("a", alternative=True)),
    ],
)
def test_the_answer_goes_to_the_id_in_either_spelling(frame: object, reply: ReplyTo | None) -> None:
    assert Envelope.open(frame).reply == reply
    assert ReplyTo.of(frame) == reply


@pytest.mark.parametrize(
    ("frame", "path"),
    [
        ({}, "/type"),
        ({"type": 5}, "/type"),
        ({"type": ""}, "/type"),
        ({"type": "ping", "id": 5}, "/id"),
        ({"type": "ping", "id": None}, "/id"),
        ({"type": "ping", "id": ""}, "/id"),
        ({"type": "ping", "id": "x" * 129}, "/id"),
        ({"type": "ping", "request_id": ""}, "/request_id"),
        ({"type": "ping", "id": "a", "request_id": "b"}, "/request_id"),
        ({"type": "ping", "data": []}, "/data"),
        ({"type": "ping", "timestamp": "now"}, "/timestamp"),
        ({"type": "ping", "timestamp": 1.5}, "/timestamp"),
        ({"type": "ping", "data": {"a": 1}}, "/data/a"),
        ({"type": "auth"}, "/data"),
        ({"type": "auth", "data": {}}, "/data/token"),
        ({"type": "auth", "data": {"token": ""}}, "/data/token"),
        ({"type": "tool_call", "data": {"serverId": "a", "toolName": "b"}}, "/id"),
        ({"type": "tool_call", "id": "a"}, "/data"),
        ({"type": "tool_call", "id": "a", "data": {"toolName": "b"}}, "/data/serverId"),
        (
            {"type": "tool_call", "id": "a", "data": {"serverId": "a", "toolName": "b", "params": []}},
            "/data/params",
        ),
        (
            {"type": "tool_call", "id": "a", "data": {"serverId": "a", "toolName": "b", "timeoutMs": 0}},
            "/data/timeoutMs",
        ),
        (
            {"type": "tool_call", "id": "a", "data": {"serverId": "a", "toolName": "b", "param": {}}},
            "/data/param",
        ),
        ({"type": "cancel"}, "/id"),
    ],
    ids=str,
)
def test_a_fault_of_a_frame_names_its_path(frame: object, path: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        read_one(frame)
    assert [fault["path"] for fault in caught.value.details] == [path]


@pytest.mark.parametrize(
    "value", [5, "x", [], {}, {"id": 5}, {"id": ""}, {"id": "x" * 129}, {"id": "a", "request_id": "b"}]
)
def test_nobody_is_answered_under_an_id_that_is_none(value: object) -> None:
    assert ReplyTo.of(value) is None


def test_a_frame_whose_type_is_missing_is_still_answered_under_its_id() -> None:
    assert ReplyTo.of({"id": "a"}) == ReplyTo("a")


def test_an_unknown_type_names_the_nearest_one() -> None:
    with pytest.raises(UnknownType, match="did you mean 'tool_call'"):
        read_one({"type": "tool_cal", "id": "a"})


def test_unknown_members_of_the_envelope_are_ignored() -> None:
    assert read_one({"type": "ping", "id": "a", "channel": "x", "trace": [1]}) == frames.Ping(ReplyTo("a"))


def test_a_token_is_in_no_repr_and_neither_are_arguments() -> None:
    assert "hunter2" not in repr(read_one({"type": "auth", "data": {"token": "hunter2"}}))
    call = {
        "type": "tool_call",
        "id": "a",
        "data": {"serverId": "s", "toolName": "t", "params": {"p": "hunter2"}},
    }
    assert "hunter2" not in repr(read_one(call))


CONTENT = st.lists(
    st.fixed_dictionaries({"type": st.just("text"), "text": st.text() | JSON_VALUES.map(json.dumps)})
    | st.fixed_dictionaries({"type": st.sampled_from(["image", "resource"])}, optional={"data": st.text()}),
    max_size=3,
)
SERVER_FRAMES = st.one_of(
    st.builds(frames.Pong),
    st.builds(
        frames.ToolResponse,
        server_id=st.text(),
        tool_name=st.text(),
        content=CONTENT,
        duration_ms=st.integers(min_value=0),
        structured_content=JSON_VALUES,
        has_structured_content=st.booleans(),
        is_error=st.booleans(),
        meta=st.none() | st.dictionaries(st.text(), JSON_VALUES),
    ),
    st.builds(
        frames.ToolProgress,
        server_id=st.text(),
        tool_name=st.text(),
        progress=st.floats(allow_nan=False, allow_infinity=False) | st.integers(),
        total=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        message=st.none() | st.text(),
    ),
    st.builds(
        frames.ToolLog,
        level=st.sampled_from(["info", "error"]),
        log_data=JSON_VALUES,
        logger=st.none() | st.text(),
    ),
    st.builds(frames.Error, st.builds(InvalidParams, st.text(min_size=1), details=JSON_VALUES)),
    st.builds(frames.Disconnect, st.integers(1000, 4999), st.text(), st.booleans()),
)


@given(SERVER_FRAMES, st.builds(ReplyTo, st.text(min_size=1, max_size=128), st.booleans()))
def test_what_is_written_is_json_that_keeps_the_published_schema(
    frame: frames.ServerFrame, reply: ReplyTo
) -> None:
    text = frames.encode(frame, reply)
    written = json.loads(text)
    assert_valid_server_frame(written)
    assert written["id"] == reply.id
    assert written.get("request_id") == (reply.id if reply.alternative else None)
    assert "\n" not in text
    text.encode()


@pytest.mark.parametrize(
    ("response", "result"),
    [
        ({"content": [{"type": "text", "text": "plain"}]}, "plain"),
        ({"content": [{"type": "text", "text": ' {"a": 1}'}]}, {"a": 1}),
        ({"content": [{"type": "text", "text": "[1]"}]}, [1]),
        ({"content": [{"type": "text", "text": "5"}]}, "5"),
        ({"content": [{"type": "text", "text": "{oops"}]}, "{oops"),
        ({"content": [{"type": "text", "text": "[NaN]"}]}, "[NaN]"),
        ({"content": []}, []),
        ({"content": [{"type": "image", "data": ""}]}, [{"type": "image", "data": ""}]),
        ({"content": [{"type": "text", "text": "a"}] * 2}, [{"type": "text", "text": "a"}] * 2),
        ({"content": [], "structured_content": None, "has_structured_content": True}, None),
        ({"content": [], "structured_content": {"b": 2}, "has_structured_content": True}, {"b": 2}),
    ],
    ids=str,
)
def test_the_result_is_what_a_caller_wants_of_the_answer(response: dict[str, Any], result: object) -> None:
    answer = frames.ToolResponse(server_id="s", tool_name="t", duration_ms=1, **response)
    assert json.loads(frames.encode(answer))["data"]["result"] == result


@pytest.mark.parametrize("levels", [10, 300, 900, 950, 970, 980, 990, 5000, 100_000])
def test_a_text_of_any_depth_can_be_answered(levels: int) -> None:
    text = "[" * levels + "]" * levels
    answer = frames.ToolResponse("s", "t", [{"type": "text", "text": text}], 1)
    assert text in frames.encode(answer)


@pytest.mark.parametrize("data", [math.nan, math.inf, "\ud800", {"\udfff": 1}, [[math.nan]]], ids=repr)
def test_what_json_has_not_is_a_value_error_before_it_is_sent(data: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        frames.encode(frames.ToolLog("info", data))


def test_whole_numbers_of_progress_are_written_as_such() -> None:
    written = frames.encode(frames.ToolProgress("s", "t", 1.0, 2.5))
    assert '"progress":1,"total":2.5' in written


def test_frames_of_the_gateway_have_one_schema_each() -> None:
    for entry in load_schema("server-frames")["oneOf"]:
        definition_checker("server-frames", entry["$ref"].rpartition("/")[2])
