"""The AsyncAPI 3.0 document of this gateway, made from the schemas and from the table of events.

AsyncAPI's own schemas are a superset of JSON Schema draft-07, in which what stands beside a ``$ref`` counts
for nothing: there the two become an ``allOf``. Source: AsyncAPI 3.0.0; WebSocket and HTTP bindings 0.1.0 and
0.3.0.
"""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any, Final

from mcpgw import __version__
from mcpgw.wire.event_texts import CHANNEL_TEXTS, events_schema
from mcpgw.wire.events import EVENT_TYPES
from mcpgw.wire.frames import CLIENT_TYPES
from mcpgw.wire.validation import load_schema

VERSION: Final = "3.0.0"

ANSWERS: Final[Mapping[str, tuple[str, ...]]] = {
    "ping": ("pong",),
    "auth": ("status", "error"),
    "status": ("status",),
    "list_tools": ("tools", "error"),
    "tool_call": ("queued", "tool_progress", "tool_log", "input_request", "tool_response", "error"),
    "list_resources": ("queued", "resources", "error"),
    "read_resource": ("queued", "tool_log", "input_request", "resource", "error"),
    "list_prompts": ("queued", "prompts", "error"),
    "get_prompt": ("queued", "tool_log", "input_request", "prompt", "error"),
    "complete": ("queued", "tool_log", "completion", "error"),
    "input_response": ("error",),
    "cancel": ("error",),
    "subscribe": ("subscribed", "error"),
    "unsubscribe": ("unsubscribed", "error"),
    "publish": ("published", "error"),
    "resume": (
        "status",
        "subscribed",
        "input_request",
        "tool_response",
        "resources",
        "resource",
        "prompts",
        "prompt",
        "completion",
        "error",
    ),
}
"""What a client's frame may be answered with. A cancel is answered only where no such call is open, an
input_response only where it is refused.
"""

PUSHED: Final = ("status", "error", "lagged", "input_request", "disconnect")
"""What the gateway sends without being asked, beside events."""

SOCKETS: Final[Mapping[str, tuple[str, str]]] = {
    "ws": ("/ws", "Anybody may connect; an auth frame, or credentials of the request, prove who they are."),
    "protectedWs": ("/api/v1/ws", "The same for those alone who prove who they are: else 401."),
}
STREAMS: Final[Mapping[str, tuple[str, str]]] = {
    "events": ("/api/v1/events", "Server-Sent Events; without credentials connected and heartbeat alone."),
    "protectedEvents": ("/api/v1/sse", "The same for those alone who prove who they are: else 401."),
}

_TIMESTAMP: Final = {"description": "Milliseconds since the epoch.", "type": "integer", "minimum": 0}
_STREAM_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "connected": {
        "description": "The first of every stream. Its id is the position that it begins at; `recovered` "
        "says whether all that was missed follows, where a position was given.",
        "type": "object",
        "properties": {
            "type": {"const": "connected"},
            "message": {"type": "string"},
            "recovered": {"type": "boolean"},
            "timestamp": _TIMESTAMP,
        },
        "required": ["type", "message", "timestamp"],
    },
    "heartbeat": {
        "description": "A sign of life; it has no id, so that it moves no position.",
        "type": "object",
        "properties": {"type": {"const": "heartbeat"}, "timestamp": _TIMESTAMP},
        "required": ["type", "timestamp"],
    },
}
_CHANNELS_QUERY: Final = {
    "type": "object",
    "properties": {
        "channels": {"type": "string", "description": "Names of channels, parted by commas."},
        "lastEventId": {"type": "string", "description": "As the header Last-Event-ID."},
    },
}


def asyncapi_document(host: str, *, secure: bool) -> dict[str, Any]:
    """The document for clients that reach the gateway at `host` (with its port), over TLS where `secure`."""
    suffix = "s" if secure else ""
    servers = {
        "websocket": {
            "host": host,
            "protocol": f"ws{suffix}",
            "security": [_ref("securitySchemes", "bearer")],
        },
        "http": {"host": host, "protocol": f"http{suffix}", "security": [_ref("securitySchemes", "bearer")]},
    }
    return {**_document(), "servers": servers}


@cache
def _document() -> Mapping[str, Any]:
    client = [f"client.{name}" for name in CLIENT_TYPES]
    server = [f"server.{name}" for name in _types("server-frames")]
    events = [f"event.{name}" for name in EVENT_TYPES]
    stream = [*(f"stream.{name}" for name in _STREAM_SCHEMAS), "server.lagged", *events]
    return {
        "asyncapi": VERSION,
        "info": {
            "title": "mcpgw",
            "version": __version__,
            "description": "A real-time gateway to MCP tools: typed JSON frames over WebSocket and SSE. "
            + " ".join(f"Channel {text.name}: {text.help}" for text in CHANNEL_TEXTS.values()),
            "license": {"name": "MIT"},
        },
        "defaultContentType": "application/json",
        "channels": {
            name: _channel(address, about, "websocket", [*client, *server, *events])
            for name, (address, about) in SOCKETS.items()
        }
        | {name: _channel(address, about, "http", stream) for name, (address, about) in STREAMS.items()},
        "operations": {
            name: operation for channel in SOCKETS for name, operation in _socket_operations(channel, events)
        }
        | {
            f"{channel}.stream": {
                "action": "send",
                "channel": {"$ref": f"#/channels/{channel}"},
                "messages": _messages(channel, stream),
                "bindings": {"http": {"method": "GET", "query": _CHANNELS_QUERY, "bindingVersion": "0.3.0"}},
            }
            for channel in STREAMS
        },
        "components": {
            "messages": {name: _message(name) for name in dict.fromkeys([*client, *server, *stream])},
            "schemas": {
                **_schemas("client", load_schema("client-frames")),
                **_schemas("server", load_schema("server-frames")),
                **_schemas("event", events_schema()),
                **{f"stream.{name}": dict(schema) for name, schema in _STREAM_SCHEMAS.items()},
            },
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}},
        },
    }


def _channel(address: str, about: str, server: str, messages: Iterable[str]) -> dict[str, Any]:
    channel: dict[str, Any] = {
        "address": address,
        "description": about,
        "servers": [{"$ref": f"#/servers/{server}"}],
        "messages": {name: _ref("messages", name) for name in messages},
    }
    if server == "websocket":
        channel["bindings"] = {"ws": {"method": "GET", "bindingVersion": "0.1.0"}}
    return channel


def _socket_operations(channel: str, events: Iterable[str]) -> Iterable[tuple[str, dict[str, Any]]]:
    place = {"$ref": f"#/channels/{channel}"}
    for name in CLIENT_TYPES:
        answers = [f"server.{answer}" for answer in ANSWERS[name]]
        yield (
            f"{channel}.{name}",
            {
                "action": "receive",
                "channel": place,
                "messages": _messages(channel, [f"client.{name}"]),
                "reply": {"channel": place, "messages": _messages(channel, answers)},
            },
        )
    pushed = [f"server.{name}" for name in PUSHED]
    yield (
        f"{channel}.push",
        {"action": "send", "channel": place, "messages": _messages(channel, [*pushed, *events])},
    )


def _messages(channel: str, names: Iterable[str]) -> list[dict[str, str]]:
    return [{"$ref": f"#/channels/{channel}/messages/{name}"} for name in names]


def _message(name: str) -> dict[str, Any]:
    kind, _, type_name = name.partition(".")
    message: dict[str, Any] = {"name": type_name, "payload": _ref("schemas", name)}
    if kind == "event":
        message["summary"] = EVENT_TYPES[type_name].help
    return message


def _types(schema: str) -> list[str]:
    return [entry["$ref"].rpartition("/")[2] for entry in load_schema(schema)["oneOf"]]


def _schemas(prefix: str, document: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{prefix}.{name}": _draft_07(prefix, schema) for name, schema in document["$defs"].items()}


def _draft_07(prefix: str, value: Any) -> Any:
    """A schema of ours as AsyncAPI reads it: references led into the document, and nothing beside them."""
    if isinstance(value, list):
        return [_draft_07(prefix, part) for part in value]
    if not isinstance(value, dict):
        return value
    rest = {key: _draft_07(prefix, part) for key, part in value.items() if key != "$ref"}
    if "$ref" not in value:
        return rest
    reference = _ref("schemas", f"{prefix}.{value['$ref'].rpartition('/')[2]}")
    return {"allOf": [reference, rest]} if rest else reference


def _ref(section: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{section}/{name}"}
