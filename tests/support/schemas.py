"""Holding frames against the published schemas."""

from typing import Any

from mcpgw.wire.validation import definition_checker, load_schema

SERVER_TYPES = tuple(entry["$ref"].rpartition("/")[2] for entry in load_schema("server-frames")["oneOf"])


def assert_valid_server_frame(frame: dict[str, Any]) -> None:
    """Fail where a frame of the gateway breaks the schema of its type."""
    kind = frame.get("type")
    assert kind in SERVER_TYPES, f"no schema for a frame of type {kind!r}"
    faults = definition_checker("server-frames", str(kind)).faults(frame)
    assert not faults, f"{kind}: {faults}"
