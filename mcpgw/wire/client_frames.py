"""The frames that a client sends, as frozen dataclasses, and reading them.

Reading goes in three steps, so that a conversation can look between them: `split_message` makes values of a
text, `Envelope.open` reads who is to be answered, `decode` checks the data and makes the frame. Source: the
wire contract, sections 1 and 3; the older frames document.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

from mcpgw.errors import InvalidParams, ParseError, TooLarge, UnknownType, suggest
from mcpgw.wire import strict_json
from mcpgw.wire.events import Position
from mcpgw.wire.reply import ReplyTo
from mcpgw.wire.validation import definition_checker, require


class Envelope(msgspec.Struct, frozen=True, gc=False):
    """The outer part of a client's frame: its type, whom to answer, and what is still to be checked."""

    type: str
    reply: ReplyTo | None
    frame: Mapping[str, Any]

    @classmethod
    def open(cls, value: object, *, max_depth: int = 64) -> "Envelope":
        """Read the envelope of one frame.

        Raises:
            ParseError: `value` is no JSON object, or nested deeper than `max_depth` levels.
            InvalidParams: ``type`` or ``id`` is missing or malformed.
        """
        if not isinstance(value, dict):
            raise ParseError(f"a frame is a JSON object, not {_kind(value)}")
        if strict_json.is_deeper_than(value, max_depth):
            raise ParseError(f"the frame is nested deeper than {max_depth} levels")
        require(definition_checker("client-frames", "envelope"), value, what="the frame's envelope")
        reply = ReplyTo.of(value)
        if reply is None and ("id" in value or "request_id" in value):
            raise InvalidParams(
                "the frame's envelope: id and request_id differ",
                details=[{"path": "/request_id", "reason": "is another spelling of id and must be the same"}],
            )
        return cls(value["type"], reply, value)


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks for a `Pong`; answered before authentication too."""

    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class Auth:
    """Brings credentials; the answer is a `Status`, or an `Error` with the socket still open."""

    token: str = field(repr=False)
    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class StatusRequest:
    """Asks for a `Status`."""

    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class ListTools:
    """Asks for the tools of one server, or of all."""

    server_id: str | None = None
    reply: ReplyTo | None = None


class ToolCall(msgspec.Struct, frozen=True, gc=False):
    """Calls a tool: any number of progress frames, then one `ToolResponse` or `Error`, all with its id.

    `timeout_ms` is in milliseconds. `on_disconnect` says whether the call outlives its socket.
    """

    reply: ReplyTo
    server_id: str
    tool_name: str
    params: Mapping[str, Any]
    timeout_ms: int | None = None
    on_disconnect: Literal["keep", "cancel"] | None = None

    def __repr__(self) -> str:
        return f"ToolCall({self.reply!r}, {self.server_id!r}, {self.tool_name!r})"  # arguments may be secrets


@dataclass(frozen=True, slots=True)
class ListResources:
    """Asks for the resources and their templates, of one server or of all."""

    reply: ReplyTo
    server_id: str | None = None


@dataclass(frozen=True, slots=True)
class ReadResource:
    """Asks for what a resource holds; `timeout_ms` is in milliseconds."""

    reply: ReplyTo
    server_id: str
    uri: str
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class ListPrompts:
    """Asks for the prompts of one server, or of all."""

    reply: ReplyTo
    server_id: str | None = None


@dataclass(frozen=True, slots=True)
class GetPrompt:
    """Asks for a prompt, filled in with `arguments`; `timeout_ms` is in milliseconds."""

    reply: ReplyTo
    server_id: str
    name: str
    arguments: Mapping[str, str] = field(repr=False)
    timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Complete:
    """Asks how an argument may go on; `ref`, `argument` and `context` are as MCP has them."""

    reply: ReplyTo
    server_id: str
    ref: Mapping[str, Any]
    argument: Mapping[str, str] = field(repr=False)
    context: Mapping[str, Any] | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class InputResponse:
    """Answers an `InputRequest`; the id, where it has one, is that of the call which caused it."""

    request_id: str
    action: Literal["accept", "decline", "cancel"]
    content: Mapping[str, Any] | None = field(default=None, repr=False)
    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends the open call that has the same id; the call itself is then answered ``cancelled``."""

    reply: ReplyTo


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What a subscriber wants of a channel: these types, these servers, this level and above; None is all.

    `resources` are servers with the uris of those of their resources whose changes are wanted.
    """

    types: frozenset[str] | None = None
    servers: frozenset[str] | None = None
    min_level: str | None = None
    resources: frozenset[tuple[str, str]] | None = None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Asks for the events of a channel, those behind the position `since` first."""

    channel: str
    since: Position | None = None
    filter: EventFilter = EventFilter()
    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Ends a subscription."""

    channel: str
    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class Publish:
    """Says something to everyone in a room."""

    channel: str
    payload: Any = field(repr=False)
    reply: ReplyTo | None = None


@dataclass(frozen=True, slots=True)
class Resume:
    """Goes on with the session of a connection that was lost; `pending` are the calls without an end."""

    session: str = field(repr=False)
    pending: tuple[str, ...]
    since: Position | None = None
    reply: ReplyTo | None = None


ServerRequest = ToolCall | ListResources | ReadResource | ListPrompts | GetPrompt | Complete
"""What is asked of servers: each runs beside the others, can be cancelled, and has one end."""

ClientFrame = (
    Ping
    | Auth
    | StatusRequest
    | ListTools
    | ServerRequest
    | InputResponse
    | Cancel
    | Subscribe
    | Unsubscribe
    | Publish
    | Resume
)

CLIENT_TYPES = (
    "ping",
    "auth",
    "status",
    "list_tools",
    "tool_call",
    "list_resources",
    "read_resource",
    "list_prompts",
    "get_prompt",
    "complete",
    "input_response",
    "cancel",
    "subscribe",
    "unsubscribe",
    "publish",
    "resume",
)
"""The types that this gateway answers."""

_CHANNEL_TYPES = frozenset({"subscribe", "unsubscribe", "publish"})

OPEN_TYPES = frozenset({"ping", "auth", "status"})
"""The types that are answered before authentication."""


def split_message(text: str, *, max_batch: int) -> list[object]:
    """The values of one message: a frame by itself, or each of a batch, still to be opened.

    Raises:
        ParseError: the text is not JSON, or an empty batch.
        TooLarge: a batch of more than `max_batch` frames.
    """
    value = strict_json.loads(text)
    if not isinstance(value, list):
        return [value]
    if not value:
        raise ParseError("a batch holds at least one frame")
    if len(value) > max_batch:
        raise TooLarge(f"a batch holds at most {max_batch} frames, this one {len(value)}")
    return value


def decode(envelope: Envelope) -> ClientFrame:
    """Check a frame against the schema of its type and build it.

    Raises:
        UnknownType: no frame type has this name; the message names the nearest one.
        InvalidParams: the data breaks the schema; ``details`` lists every fault.
    """
    kind = envelope.type
    if kind not in CLIENT_TYPES:
        raise UnknownType(f"no frame type {kind[:64]!r}{suggest(kind, CLIENT_TYPES)}")
    frame = _with_channel_inside(envelope.frame) if kind in _CHANNEL_TYPES else envelope.frame
    require(definition_checker("client-frames", kind), frame, what=f"the {kind} frame")
    data = frame.get("data", {})
    reply = envelope.reply
    if kind == "tool_call" and reply is not None:
        return _tool_call(reply, data)
    match kind:
        case "ping":
            return Ping(reply)
        case "auth":
            return Auth(data["token"], reply)
        case "status":
            return StatusRequest(reply)
        case "list_tools":
            return ListTools(data.get("serverId"), reply)
        case "subscribe":
            return Subscribe(data["channel"], _since(data), _filter(data.get("filter", {})), reply)
        case "unsubscribe":
            return Unsubscribe(data["channel"], reply)
        case "publish":
            return Publish(data["channel"], data["payload"], reply)
        case "resume":
            return Resume(data["session"], tuple(data["pending"]), _since(data), reply)
        case "input_response":
            return InputResponse(data["requestId"], data["action"], data.get("content"), reply)
    assert reply is not None, "the schemas of calls and cancels require an id"  # noqa: S101
    return Cancel(reply) if kind == "cancel" else _server_request(kind, reply, data)


def _server_request(kind: str, reply: ReplyTo, data: Mapping[str, Any]) -> ServerRequest:
    match kind:
        case "list_resources":
            return ListResources(reply, data.get("serverId"))
        case "read_resource":
            return ReadResource(reply, data["serverId"], data["uri"], data.get("timeoutMs"))
        case "list_prompts":
            return ListPrompts(reply, data.get("serverId"))
        case "get_prompt":
            arguments = data.get("arguments", {})
            return GetPrompt(reply, data["serverId"], data["name"], arguments, data.get("timeoutMs"))
        case "complete":
            return Complete(reply, data["serverId"], data["ref"], data["argument"], data.get("context"))
    return _tool_call(reply, data)


def _tool_call(reply: ReplyTo, data: Mapping[str, Any]) -> ToolCall:
    return ToolCall(
        reply,
        data["serverId"],
        data["toolName"],
        data.get("params", {}),
        data.get("timeoutMs"),
        data.get("onDisconnect"),
    )


def _with_channel_inside(frame: Mapping[str, Any]) -> Mapping[str, Any]:
    """The frame with ``channel`` in its data: the older route has it beside the type."""
    if "channel" not in frame:
        return frame
    data = frame.get("data", {})
    if data.get("channel", frame["channel"]) != frame["channel"]:
        raise InvalidParams(
            "the frame: channel and data.channel differ",
            details=[
                {"path": "/channel", "reason": "is another place for data.channel and must be the same"}
            ],
        )
    return {**frame, "data": {**data, "channel": frame["channel"]}}


def _since(data: Mapping[str, Any]) -> Position | None:
    """The position that the schema has let through; one that is none names no place in any log."""
    text = data.get("since")
    return None if text is None else Position.parse(text) or Position("", 0)


def _filter(data: Mapping[str, Any]) -> EventFilter:
    return EventFilter(
        types=frozenset(data["types"]) if "types" in data else None,
        servers=frozenset(data["servers"]) if "servers" in data else None,
        min_level=data.get("minLevel"),
        resources=frozenset((one["serverId"], one["uri"]) for one in data["resources"])
        if "resources" in data
        else None,
    )


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "something else")


def prepare() -> None:
    """Compile every schema of a client's frame now, so that no first frame waits for it, or fails for it."""
    for definition in ("envelope", *CLIENT_TYPES):
        definition_checker("client-frames", definition)
