"""Every frame of the wire contract as a frozen dataclass, and the one codec that reads and writes them.

Reading goes in three steps, so that a conversation can look between them: `split_message` makes values of
a text, `Envelope.open` reads who is to be answered, `decode` checks the data and makes the frame.
Writing is one step: `encode`. Source: the wire contract, sections 1, 3 and 4; the older frames document.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, get_args

from mcpgw.errors import GatewayError, InvalidParams, ParseError, TooLarge, UnknownType, suggest
from mcpgw.wire import strict_json
from mcpgw.wire.events import Position
from mcpgw.wire.validation import definition_checker, require

PROTOCOL = "mcpgw.v1"
_LONGEST_ID = 128
_DEEPEST_RESULT = 256


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch, as every ``timestamp`` of the wire."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """The id that an answer carries; `alternative` where the request spelled it ``request_id``."""

    id: str
    alternative: bool = False

    @classmethod
    def of(cls, value: object) -> "ReplyTo | None":
        """Whom to answer about `value`, also where it is no frame; None where it has no id to use."""
        if not isinstance(value, dict):
            return None
        found = [value[name] for name in ("id", "request_id") if name in value]
        if not found or found[0] != found[-1] or not isinstance(found[0], str):
            return None
        return cls(found[0], alternative="request_id" in value) if 0 < len(found[0]) <= _LONGEST_ID else None


@dataclass(frozen=True, slots=True)
class Envelope:
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


# --- client to gateway -------------------------------------------------------------------------------------


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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """Calls a tool: any number of progress frames, then one `ToolResponse` or `Error`, all with its id.

    `timeout_ms` is in milliseconds. `on_disconnect` says whether the call outlives its socket.
    """

    reply: ReplyTo
    server_id: str
    tool_name: str
    params: Mapping[str, Any] = field(repr=False)
    timeout_ms: int | None = None
    on_disconnect: Literal["keep", "cancel"] | None = None


@dataclass(frozen=True, slots=True)
class Cancel:
    """Ends the open call that has the same id; the call itself is then answered ``cancelled``."""

    reply: ReplyTo


@dataclass(frozen=True, slots=True)
class EventFilter:
    """What a subscriber wants of a channel: these types, these servers, this level and above; None is all."""

    types: frozenset[str] | None = None
    servers: frozenset[str] | None = None
    min_level: str | None = None


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


ClientFrame = (
    Ping | Auth | StatusRequest | ListTools | ToolCall | Cancel | Subscribe | Unsubscribe | Publish | Resume
)

CLIENT_TYPES = (
    "ping",
    "auth",
    "status",
    "list_tools",
    "tool_call",
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
    assert reply is not None, "the schemas of calls and cancels require an id"  # noqa: S101
    if kind == "cancel":
        return Cancel(reply)
    return ToolCall(
        reply=reply,
        server_id=data["serverId"],
        tool_name=data["toolName"],
        params=data.get("params", {}),
        timeout_ms=data.get("timeoutMs"),
        on_disconnect=data.get("onDisconnect"),
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
    )


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", list: "an array"}
    return names.get(type(value), "something else")


# --- gateway to client -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    """What the socket is and may do: sent first on every connection, and as the answer to status and auth.

    `ping_interval` and `pong_timeout` are in milliseconds, `max_message_size` in bytes, `server_time` in
    milliseconds since the epoch.
    """

    type: ClassVar[str] = "status"
    message: str
    client_id: str
    session: str
    authenticated: bool
    user: str | None
    ping_interval: int
    pong_timeout: int
    max_message_size: int
    features: tuple[str, ...]
    open_calls: tuple[str, ...] | None = None
    channels: tuple[str, ...] | None = None
    resumed: bool | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {
            "message": self.message,
            "clientId": self.client_id,
            "requiresAuth": not self.authenticated,
            "authenticated": self.authenticated,
            "protocol": PROTOCOL,
            "session": self.session,
            "serverTime": now_ms(),
            "pingInterval": self.ping_interval,
            "pongTimeout": self.pong_timeout,
            "maxMessageSize": self.max_message_size,
            "features": list(self.features),
        }
        if self.user is not None:
            data["user"] = self.user
        if self.open_calls is not None:
            data["openCalls"] = list(self.open_calls)
        if self.channels is not None:
            data["channels"] = list(self.channels)
        if self.resumed is not None:
            data["resumed"] = self.resumed
        return data


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to `Ping`, with the gateway's clock."""

    type: ClassVar[str] = "pong"

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"timestamp": now_ms()}


@dataclass(frozen=True, slots=True)
class Tools:
    """The answer to `ListTools`: one JSON object a tool, as section 3 of the contract has it."""

    type: ClassVar[str] = "tools"
    tools: tuple[Mapping[str, Any], ...]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"tools": list(self.tools)}


@dataclass(frozen=True, slots=True)
class ToolProgress:
    """How far a call is; `total` in the same unit as `progress`, where the backend knows it."""

    type: ClassVar[str] = "tool_progress"
    server_id: str
    tool_name: str
    progress: float
    total: float | None = None
    message: str | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {"progress": _whole(self.progress)}
        if self.total is not None:
            data["total"] = _whole(self.total)
        if self.message is not None:
            data["message"] = self.message
        return data | {"serverId": self.server_id, "toolName": self.tool_name}


@dataclass(frozen=True, slots=True)
class ToolLog:
    """A line that the backend logged while it worked on a call."""

    type: ClassVar[str] = "tool_log"
    level: str
    log_data: Any
    logger: str | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {"level": self.level}
        if self.logger is not None:
            data["logger"] = self.logger
        return data | {"data": self.log_data}


@dataclass(frozen=True, slots=True)
class ToolResponse:
    """The answer of a tool, also where the tool itself says that it failed (`is_error`).

    `content` are the MCP content blocks as the backend sent them; `has_structured_content` tells a
    structured ``null`` from none; `duration_ms` is in milliseconds.
    """

    type: ClassVar[str] = "tool_response"
    server_id: str
    tool_name: str
    content: list[dict[str, Any]]
    duration_ms: int
    structured_content: Any = None
    has_structured_content: bool = False
    is_error: bool = False
    meta: Mapping[str, Any] | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {
            "success": not self.is_error,
            "result": self.result(),
            "content": self.content,
            "serverId": self.server_id,
            "toolName": self.tool_name,
            "durationMs": self.duration_ms,
        }
        if self.has_structured_content:
            data["structuredContent"] = self.structured_content
        if self.is_error:
            data["isError"] = True
        if self.meta:
            data["meta"] = self.meta
        return data

    def result(self) -> Any:
        """What a caller most likely wants of the answer; the rule is in section 4 of the contract."""
        if self.has_structured_content:
            return self.structured_content
        if len(self.content) != 1 or self.content[0].get("type") != "text":
            return self.content
        text: str = self.content[0].get("text", "")
        if text.lstrip()[:1] in ("{", "["):
            try:
                value = strict_json.loads(text)
            except ParseError:
                return text
            # What a client's reader may not follow stays text, as it came.
            return text if strict_json.is_deeper_than(value, _DEEPEST_RESULT) else value
        return text


@dataclass(frozen=True, slots=True)
class Error:
    """A request that cannot be answered otherwise; with the id of the request where it had one."""

    type: ClassVar[str] = "error"
    error: GatewayError

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return self.error.to_data()


@dataclass(frozen=True, slots=True)
class Subscribed:
    """The answer to `Subscribe`: where the log is, and whether all that was missed follows.

    `present` tells who is in a room.
    """

    type: ClassVar[str] = "subscribed"
    channel: str
    position: Position
    recovered: bool
    present: tuple[Mapping[str, str], ...] | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {
            "channel": self.channel,
            "epoch": self.position.epoch,
            "offset": self.position.offset,
            "recovered": self.recovered,
        }
        if self.present is not None:
            data["present"] = list(self.present)
        return data


@dataclass(frozen=True, slots=True)
class Unsubscribed:
    """The answer to `Unsubscribe`."""

    type: ClassVar[str] = "unsubscribed"
    channel: str

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"channel": self.channel}


@dataclass(frozen=True, slots=True)
class Published:
    """The answer to `Publish`, with the offset of the event that it made."""

    type: ClassVar[str] = "published"
    channel: str
    offset: int

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"channel": self.channel, "offset": self.offset}


@dataclass(frozen=True, slots=True)
class Lagged:
    """Told where events or progress were dropped, because the reader was too slow."""

    type: ClassVar[str] = "lagged"
    channel: str
    dropped: int

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"channel": self.channel, "dropped": self.dropped}


@dataclass(frozen=True, slots=True)
class Queued:
    """Told while a call waits for its turn at a busy server."""

    type: ClassVar[str] = "queued"
    position: int

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"position": self.position}


@dataclass(frozen=True, slots=True)
class Disconnect:
    """The last frame before the gateway closes, with the close code that follows."""

    type: ClassVar[str] = "disconnect"
    code: int
    reason: str
    reconnect: bool
    retry_after_ms: int | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {"code": self.code, "reason": self.reason, "reconnect": self.reconnect}
        if self.retry_after_ms is not None:
            data["retryAfterMs"] = self.retry_after_ms
        return data


ServerFrame = (
    Status
    | Pong
    | Tools
    | ToolProgress
    | ToolLog
    | ToolResponse
    | Error
    | Subscribed
    | Unsubscribed
    | Published
    | Lagged
    | Queued
    | Disconnect
)


SERVER_TYPES = tuple(frame.type for frame in get_args(ServerFrame))
"""The types that this gateway sends, events aside."""


def dumps(value: Any) -> str:
    """A value of a frame as JSON."""
    return strict_json.dumps(value)


def prepare() -> None:
    """Compile every schema of a client's frame now, so that no first frame waits for it, or fails for it."""
    for definition in ("envelope", *CLIENT_TYPES):
        definition_checker("client-frames", definition)


def type_of(text: str) -> str:
    """The type of a frame that `encode` has written: it stands first."""
    return text[9 : text.index('"', 9)]


def encode(frame: ServerFrame, reply: ReplyTo | None = None) -> str:
    """Write a frame as the text of one WebSocket message or SSE event.

    Raises:
        ValueError: the data of a backend holds what JSON has not (NaN, or half of a surrogate pair), or is
            nested deeper than Python can follow.
    """
    envelope: dict[str, Any] = {"type": frame.type}
    if reply is not None:
        envelope["id"] = reply.id
        if reply.alternative:
            envelope["request_id"] = reply.id
    envelope["data"] = frame.data()
    envelope["timestamp"] = now_ms()
    text = strict_json.dumps(envelope)
    if not text.isascii():
        text.encode()  # a lone surrogate must fail here, where the frame can still be replaced
    return text


def _whole(number: float) -> float:
    return int(number) if isinstance(number, float) and number.is_integer() else number
