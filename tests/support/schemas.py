"""Holding frames and events against the published schemas."""

from functools import cache
from typing import Any

from mcpgw.wire.events import EVENT_TYPES, Event, Position, channel_base
from mcpgw.wire.validation import SchemaChecker, definition_checker, load_schema

SERVER_TYPES = tuple(entry["$ref"].rpartition("/")[2] for entry in load_schema("server-frames")["oneOf"])
EVENT_MEMBERS = {"type", "id", "channel", "data", "timestamp"}


def assert_valid_server_frame(frame: dict[str, Any]) -> None:
    """Fail where a frame of the gateway, or an event, breaks the schema of its type."""
    kind = frame.get("type")
    if kind in EVENT_TYPES:
        assert_valid_event_frame(frame)
        return
    assert kind in SERVER_TYPES, f"no schema for a frame of type {kind!r}"
    faults = definition_checker("server-frames", str(kind)).faults(frame)
    assert not faults, f"{kind}: {faults}"


def assert_valid_event_frame(frame: dict[str, Any]) -> None:
    """Fail where an event's envelope or data is not as the table of events has it."""
    event_type = EVENT_TYPES[frame["type"]]
    assert frame.keys() == EVENT_MEMBERS, frame
    assert Position.parse(frame["id"]) is not None, frame["id"]
    assert channel_base(frame["channel"]) in event_type.channels, frame
    assert type(frame["timestamp"]) is int, frame
    faults = _data_checker(event_type.name).faults(frame["data"])
    assert not faults, f"{event_type.name}: {faults} in {frame['data']}"


def assert_valid_event(event: Event) -> None:
    """Fail where the data of an event, or what others see in its place, is not as the table has it."""
    for data in (event.data, event.masked):
        if data is not None:
            faults = _data_checker(event.type.name).faults(dict(data))
            assert not faults, f"{event.type.name}: {faults} in {data}"


@cache
def _data_checker(type_name: str) -> SchemaChecker:
    return SchemaChecker(EVENT_TYPES[type_name].data_schema)
