"""The frames that the gateway sends, as frozen dataclasses, and writing them in one step: `encode`.

Source: the wire contract, section 4; the older frames document.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, get_args

import msgspec

from mcpgw.errors import GatewayError, ParseError
from mcpgw.wire import strict_json
from mcpgw.wire.events import Position
from mcpgw.wire.reply import PROTOCOL, ReplyTo, now_ms

_DEEPEST_RESULT = 256
_NOT_LOOKED_FOR: Final = object()


@dataclass(frozen=True, slots=True)
class Status:
    """What the socket is and may do: sent first on every connection, and as the answer to status and auth.

    `ping_interval` and `pong_timeout` are in milliseconds, `max_message_size` in bytes, `server_time` and
    `expires_at` (of the token) in milliseconds since the epoch.
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
    expires_at: int | None = None

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
        if self.expires_at is not None:
            data["expiresAt"] = self.expires_at
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


class ToolResponse(msgspec.Struct, frozen=True, gc=False):
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
    _found: Any = _NOT_LOOKED_FOR

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
        """What a caller most likely wants of the answer; the rule is in section 4 of the contract.

        Looked for once, since a text may have to be read as JSON for it.
        """
        if self._found is _NOT_LOOKED_FOR:
            msgspec.structs.force_setattr(self, "_found", self._result())
        return self._found

    def _result(self) -> Any:
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
class Resources:
    """The answer to `ListResources`: MCP's own JSON of each, with the id of its server."""

    type: ClassVar[str] = "resources"
    resources: tuple[Mapping[str, Any], ...]
    templates: tuple[Mapping[str, Any], ...]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"resources": list(self.resources), "resourceTemplates": list(self.templates)}


@dataclass(frozen=True, slots=True)
class Prompts:
    """The answer to `ListPrompts`: MCP's own JSON of each, with the id of its server."""

    type: ClassVar[str] = "prompts"
    prompts: tuple[Mapping[str, Any], ...]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"prompts": list(self.prompts)}


@dataclass(frozen=True, slots=True)
class Resource:
    """The answer to `ReadResource`; `result` is MCP's ``ReadResourceResult`` as its server sent it."""

    type: ClassVar[str] = "resource"
    server_id: str
    uri: str
    result: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        return {"serverId": self.server_id, "uri": self.uri} | _of_result(self.result, "contents")


@dataclass(frozen=True, slots=True)
class Prompt:
    """The answer to `GetPrompt`; `result` is MCP's ``GetPromptResult`` as its server sent it."""

    type: ClassVar[str] = "prompt"
    server_id: str
    name: str
    result: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        result = _of_result(self.result, "description", "messages")
        return {"serverId": self.server_id, "name": self.name} | result


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to `Complete`; `result` is MCP's ``CompleteResult`` as its server sent it."""

    type: ClassVar[str] = "completion"
    server_id: str
    result: Mapping[str, Any]

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        found = self.result.get("completion")
        members = _of_result(found, "values", "total", "hasMore") if isinstance(found, Mapping) else {}
        return {"serverId": self.server_id, "values": []} | members


def _of_result(result: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """These members of a result of MCP, and its ``_meta`` as `ToolResponse` has it."""
    data = {name: result[name] for name in names if result.get(name) is not None}
    return data | ({"meta": result["_meta"]} if result.get("_meta") else {})


@dataclass(frozen=True, slots=True)
class InputRequest:
    """Asks the client for something that a call needs; answered by an ``input_response``.

    With the id of the call that caused it; an approval of somebody else's call has none. `members` are what
    the kind has beside: the ``schema`` of an elicitation, the ``params`` of a sampling, of an approval what
    is to be approved. `expires_at` is in milliseconds since the epoch.
    """

    type: ClassVar[str] = "input_request"
    request_id: str
    kind: str
    message: str
    members: Mapping[str, Any]
    expires_at: int | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data = {"requestId": self.request_id, "kind": self.kind, "message": self.message, **self.members}
        return data if self.expires_at is None else data | {"expiresAt": self.expires_at}


@dataclass(frozen=True, slots=True)
class Error:
    """A request that cannot be answered otherwise; with the id of the request where it had one.

    Where an ``input_response`` is refused, `request_id` is its own: the id is that of a call which goes on.
    """

    type: ClassVar[str] = "error"
    error: GatewayError
    request_id: str | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data = self.error.to_data()
        return data if self.request_id is None else data | {"requestId": self.request_id}


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
    """Told while a call waits: for its turn at a busy server, or until somebody approves it.

    `retry_after_ms` is how long the wait may be. `approval` is the id of what is asked for, and `expires_at`
    (milliseconds since the epoch) when nobody is waited for any longer.
    """

    type: ClassVar[str] = "queued"
    position: int
    retry_after_ms: int | None = None
    approval: str | None = None
    expires_at: int | None = None

    def data(self) -> dict[str, Any]:
        """The members of the frame's ``data``."""
        data: dict[str, Any] = {"position": self.position}
        if self.retry_after_ms is not None:
            data["retryAfterMs"] = self.retry_after_ms
        if self.approval is not None:
            data |= {"reason": "approval", "requestId": self.approval, "expiresAt": self.expires_at}
        return data


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
    | Resources
    | Resource
    | Prompts
    | Prompt
    | Completion
    | InputRequest
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
