"""The vocabulary of events: every type with its channel, its data, and who may read it.

All events form one ordered log; channels are filters on it. A *state* event tells the newest value of
something (its key), so that an older one of the same key is worth nothing any more; a *stream* event stands
for itself. Source: the wire contract, section 4; the seed of the routes ("Event Types Supported").
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from mcpgw.wire import strict_json

_POSITION = re.compile(r"([0-9a-f]{16})-([0-9]{1,15})")
_NAMED_CHANNEL = re.compile(r"(user|room):(.{1,256})", re.DOTALL)
_ROOM: Final = "room:"
_ROOM_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
CHANNELS: Final = ("servers", "gateway", "catalogs", "config", "system", "calls")
"""The channels that are there always; beside them ``user:ID`` and ``room:NAME``."""

LEVELS: Final = ("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency")
"""Levels of logs and alerts, rising (RFC 5424, as MCP has them)."""


class Position(msgspec.Struct, frozen=True, order=True, gc=False):
    """A place in the log: the run of the log (`epoch`, 16 hexadecimal digits) and the `offset` in it."""

    epoch: str
    offset: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> "Position | None":
        """Read what `__str__` writes; None where `text` is no position."""
        match = _POSITION.fullmatch(text)
        return None if match is None else cls(match[1], int(match[2]))


@dataclass(frozen=True, slots=True)
class EventType:
    """One type of event.

    `data` are the members of its data with a JSON Schema each; those in `optional` may be missing. `key`
    names the member whose newest event alone counts, of each worker that is named; empty for a stream.
    `admin_only` hides it from others; one that is `for_approvers` is seen whole by those who may approve
    calls. One that is `in_rooms` is told in a room too, where it is a guest's.
    """

    name: str
    channel: str
    help: str
    data: Mapping[str, Mapping[str, Any]]
    optional: frozenset[str] = frozenset()
    key: str = ""
    admin_only: bool = False
    for_approvers: bool = False
    in_rooms: bool = False

    @property
    def channels(self) -> tuple[str, ...]:
        """The kinds of channels where it may be."""
        return (self.channel, _ROOM) if self.in_rooms else (self.channel,)

    @property
    def kind(self) -> Literal["state", "stream"]:
        """Whether only the newest of a key counts, or each."""
        return "state" if self.key else "stream"

    @property
    def data_schema(self) -> dict[str, Any]:
        """The JSON Schema (2020-12) of the event's ``data``; nothing stands there that it does not name."""
        return {
            "type": "object",
            "properties": {name: dict(schema) for name, schema in self.data.items()},
            "required": [name for name in self.data if name not in self.optional],
            "additionalProperties": False,
        }


_TEXT: Final[Mapping[str, Any]] = {"type": "string"}
_WORKER: Final[Mapping[str, Any]] = {
    "description": "The worker that tells of itself, where the gateway has several.",
    "type": "integer",
    "minimum": 1,
}
_NUMBER: Final[Mapping[str, Any]] = {"type": "number"}
_WHOLE: Final[Mapping[str, Any]] = {"type": "integer"}
_LEVEL: Final[Mapping[str, Any]] = {"enum": list(LEVELS)}
_ANY: Final[Mapping[str, Any]] = {}
_TEXTS: Final[Mapping[str, Any]] = {"type": "array", "items": _TEXT}
_DIFFERENCE: Final[Mapping[str, Any]] = {
    "type": "object",
    "properties": {"added": _TEXTS, "changed": _TEXTS, "removed": _TEXTS},
    "additionalProperties": False,
}


def _server(name: str, help_text: str, *, state: bool = True, **data: Mapping[str, Any]) -> EventType:
    members = {"serverId": _TEXT, **data, "worker": _WORKER}
    optional = frozenset({"reason", "nextTryAt", "failures", "protocolVersion", "worker"}) & members.keys()
    return EventType(
        f"server.{name}", "servers", help_text, members, optional, key="serverId" if state else ""
    )


def _call(name: str, help_text: str, optional: tuple[str, ...] = (), **data: Mapping[str, Any]) -> EventType:
    common = {"callId": _TEXT, "user": _TEXT, "serverId": _TEXT, "toolName": _TEXT}
    return EventType(f"call.{name}", "calls", help_text, common | data, frozenset(optional), in_rooms=True)


def _approval(
    name: str, help_text: str, optional: tuple[str, ...] = (), **data: Mapping[str, Any]
) -> EventType:
    common = {"requestId": _TEXT, "user": _TEXT, "serverId": _TEXT, "toolName": _TEXT}
    return EventType(
        f"call.{name}", "calls", help_text, common | data, frozenset(optional), for_approvers=True
    )


_TABLE: Final = (
    _server("enabled", "A server was switched on.", state=True),
    _server("disabled", "A server was switched off.", state=True),
    _server("starting", "A server's process or connection is being started."),
    _server("started", "A server takes calls.", tools=_WHOLE, protocolVersion=_TEXT),
    _server("stopped", "A server was stopped."),
    _server(
        "restarted", "A server takes calls again after it had ended.", tools=_WHOLE, protocolVersion=_TEXT
    ),
    _server(
        "retrying",
        "A server ended or could not be started; it is tried again at `nextTryAt`.",
        reason=_TEXT,
        nextTryAt=_WHOLE,
        failures=_WHOLE,
    ),
    _server("error", "A server has failed, or did what is no MCP.", state=False, reason=_TEXT),
    EventType(
        "server.status_update",
        "servers",
        "A server is in a state that has no event of its own (`idle`, `degraded`, `failed`), or is `ready` "
        "again without having ended.",
        {"serverId": _TEXT, "state": _TEXT, "reason": _TEXT, "worker": _WORKER},
        frozenset({"reason", "worker"}),
        key="serverId",
    ),
    _server("log", "A line of a server's stderr.", state=False, level=_LEVEL, line=_TEXT),
    _server("tools_changed", "A server lists other tools than before.", state=False, tools=_WHOLE),
    _server("resource_updated", "A resource of a server has changed.", state=False, uri=_TEXT),
    EventType("gateway.started", "gateway", "The gateway takes clients.", {"state": _TEXT}, key="state"),
    EventType(
        "gateway.stopped",
        "gateway",
        "The gateway has ended: every call is over and every connection was told.",
        {"state": _TEXT},
        key="state",
    ),
    EventType("gateway.restarted", "gateway", "The gateway runs again.", {"state": _TEXT}, key="state"),
    EventType(
        "gateway.draining",
        "gateway",
        "The gateway is ending: open calls go on, new ones are refused.",
        {"state": _TEXT},
        key="state",
    ),
    EventType("gateway.error", "gateway", "A fault of the gateway.", {"faultId": _TEXT}),
    EventType(
        "gateway.health_update",
        "gateway",
        "How many servers take calls.",
        {"state": _TEXT, "ready": _WHOLE, "servers": _WHOLE, "worker": _WORKER},
        frozenset({"worker"}),
        key="state",
    ),
    *(
        EventType(f"catalog.{name}", "catalogs", help_text, {"catalogId": _TEXT, "reason": _TEXT}, optional)
        for name, help_text, optional in (
            ("synced", "A catalog was read again.", frozenset({"reason"})),
            ("imported", "A catalog was added.", frozenset({"reason"})),
            ("updated", "A catalog has other entries.", frozenset({"reason"})),
            ("error", "A catalog could not be read.", frozenset[str]()),
        )
    ),
    EventType(
        "config.updated",
        "config",
        "Servers were added, changed, switched or removed while the gateway ran.",
        {"source": _TEXT, "servers": _DIFFERENCE},
    ),
    EventType(
        "config.applied",
        "config",
        "The configuration is in force: at the `start`, or anew from its `file` or by `rest`.",
        {"source": _TEXT, "servers": _DIFFERENCE, "settings": _TEXTS, "needsRestart": _TEXTS},
        frozenset({"servers", "settings", "needsRestart"}),
    ),
    EventType(
        "config.error",
        "config",
        "The new configuration has faults; the old one is in force.",
        {"faults": _TEXTS},
    ),
    EventType("system.alert", "system", "A word of an operator to all.", {"level": _LEVEL, "message": _TEXT}),
    EventType(
        "system.maintenance",
        "system",
        "Maintenance that is to come; times in milliseconds since the epoch.",
        {"message": _TEXT, "from": _WHOLE, "until": _WHOLE},
        frozenset({"from", "until"}),
    ),
    EventType(
        "system.log",
        "system",
        "A warning or an error of the gateway's own log, while somebody reads `system`.",
        {"level": _LEVEL, "logger": _TEXT, "message": _TEXT, "worker": _WORKER},
        frozenset({"worker"}),
        admin_only=True,
    ),
    _call("started", "A call was sent to its server.", ("arguments",), arguments=_ANY),
    _call(
        "progress",
        "How far a call is.",
        ("total", "message"),
        progress=_NUMBER,
        total=_NUMBER,
        message=_TEXT,
    ),
    _call(
        "finished",
        "A call was answered.",
        ("result",),
        success={"type": "boolean"},
        durationMs=_WHOLE,
        result=_ANY,
    ),
    _call("failed", "A call ended with an error.", (), code=_TEXT, durationMs=_WHOLE),
    _call("cancelled", "A call was cancelled.", (), durationMs=_WHOLE),
    _approval(
        "approval_requested",
        "A call waits until somebody approves it.",
        ("arguments", "hidden"),
        arguments=_ANY,
        hidden=_TEXTS,
        argumentsHash=_TEXT,
        expiresAt=_WHOLE,
    ),
    _approval("approved", "A call that waited was approved, and is sent.", by=_TEXT),
    _approval(
        "declined",
        "A call that waited is not sent: it was `declined`, has `expired`, or was `withdrawn`.",
        ("by",),
        reason=_TEXT,
        by=_TEXT,
    ),
    EventType(
        "user.connected", "user:", "A user has opened a connection.", {"clientId": _TEXT, "kind": _TEXT}
    ),
    EventType(
        "user.disconnected", "user:", "A user's connection has ended.", {"clientId": _TEXT, "kind": _TEXT}
    ),
    EventType("user.notification", "user:", "A word to one user.", {"level": _LEVEL, "message": _TEXT}),
    EventType("room.joined", "room:", "Somebody has come into the room.", {"user": _TEXT, "clientId": _TEXT}),
    EventType("room.left", "room:", "Somebody has left the room.", {"user": _TEXT, "clientId": _TEXT}),
    EventType(
        "room.message",
        "room:",
        "What a member of the room has published.",
        {"user": _TEXT, "clientId": _TEXT, "payload": _ANY},
    ),
    *(
        EventType(f"room.{name}", "room:", help_text, data)
        for name, help_text, data in (
            ("muted", "The host has muted a guest, who may read and nothing more.", {"user": _TEXT}),
            ("unmuted", "A guest may call and publish again.", {"user": _TEXT}),
            ("kicked", "The host has removed a guest.", {"user": _TEXT}),
            ("frozen", "No guest of the room may call or publish.", {"room": _TEXT}),
            ("thawed", "The guests may call and publish again.", {"room": _TEXT}),
            ("ended", "The room has ended: by its `host`, or because its `time` is over.", {"reason": _TEXT}),
        )
    ),
)

EVENT_TYPES: Final[Mapping[str, EventType]] = {row.name: row for row in _TABLE}
"""Every type of event by its name."""

_SHORT: Final = 256
"""Characters of a text that is not worth to be encoded before somebody reads it."""
_LARGE: Final = 10**15
_LONGEST_NUMBER: Final = 16
_LONGEST_WORD: Final = 5
_AROUND_A_MEMBER: Final = 6
"""Two pairs of quotation marks, a colon and a comma."""


class Event(msgspec.Struct, eq=False, gc=False):
    """One entry of the log.

    `owner` is the user whose doing it tells of, where only that user may see all of it; `masked` is the data
    that others see in its place. `encoded` has the JSON of those members of `data` that are encoded already.
    Each text is made when it is first asked for, and once, however many read it.
    """

    type: EventType
    channel: str
    data: Mapping[str, Any]
    timestamp: int
    position: Position
    owner: str | None = None
    masked: Mapping[str, Any] | None = None
    encoded: Mapping[str, str] | None = None
    _text: str | None = None
    _masked_text: str | None = None

    def __repr__(self) -> str:
        return f"Event({self.type.name!r}, {self.channel!r}, {self.position})"

    @property
    def key(self) -> str:
        """What a state event is the newest of; empty for a stream."""
        if not self.type.key:
            return ""
        worker = self.data.get("worker", "")
        return f"{self.channel} {self.data[self.type.key]}{worker and f' {worker}'}"

    def text(self, *, full: bool = True) -> str:
        """The event as a frame; without what only its owner may see where `full` is false.

        Raises:
            ValueError: the data holds what JSON has not (NaN, half of a surrogate pair), or is too deep.
        """
        if full or self.masked is None:
            if self._text is None:
                self._text = self._frame(self.data, self.encoded)
            return self._text
        if self._masked_text is None:
            self._masked_text = self._frame(self.masked, None)
        return self._masked_text

    def text_with(self, data: Mapping[str, Any]) -> str:
        """The event as a frame with other data, for those who are not to see all of it; made each time."""
        return self._frame(data, None)

    def _frame(self, data: Mapping[str, Any], encoded: Mapping[str, str] | None) -> str:
        channel = f'"{self.channel}"' if self.channel in CHANNELS else strict_json.dumps(self.channel)
        text = (
            f'{{"type":"{self.type.name}","id":"{self.position}","channel":{channel},'
            f'"data":{_data_text(data, encoded)},"timestamp":{self.timestamp}}}'
        )
        if not text.isascii():
            text.encode()  # half of a surrogate pair must fail here, not in the transport of a reader
        return text


def _data_text(data: Mapping[str, Any], encoded: Mapping[str, str] | None) -> str:
    if not encoded:
        return strict_json.dumps(data)
    parts = [f'"{name}":{text}' for name, text in encoded.items()]
    rest = {name: value for name, value in data.items() if name not in encoded}
    if rest:
        parts.insert(0, strict_json.dumps(rest)[1:-1])
    return f"{{{','.join(parts)}}}"


def event_texts(event: Event) -> tuple[str, str | None]:
    """The JSON of an event's data, and of what others see in its place, where there is that."""
    masked = None if event.masked is None else strict_json.dumps(event.masked)
    return _data_text(event.data, event.encoded), masked


def checked_data(
    data: Mapping[str, Any], encoded: Mapping[str, str] | None = None
) -> tuple[Mapping[str, str] | None, int]:
    """Make sure that an event's data is JSON, without writing the whole of it as text.

    Answers the JSON of its members that are long or nested (those in `encoded` are taken as they are), and
    about how many bytes the text of all of it has.

    Raises:
        ValueError: the data holds what JSON has not, or is too deep.
    """
    texts: dict[str, str] = {}
    size = 0
    for name, value in data.items():
        kind = type(value)
        size += len(name) + _AROUND_A_MEMBER
        if kind is str and len(value) <= _SHORT and value.isascii():
            size += len(value)
        elif kind is int and -_LARGE < value < _LARGE:
            size += _LONGEST_NUMBER
        elif value is None or kind is bool:
            size += _LONGEST_WORD
        else:
            text = None if encoded is None else encoded.get(name)
            if text is None:
                text = strict_json.dumps(value)
            size += len(text) if text.isascii() else len(text.encode())
            texts[name] = text
    return texts or None, size


def channel_base(channel: str) -> str | None:
    """The kind of a channel (``servers``, ``user:``, ``room:`` …); None where there is no such channel."""
    if channel in CHANNELS:
        return channel
    match = _NAMED_CHANNEL.fullmatch(channel)
    if match is None or (match[1] == "room" and not _ROOM_NAME.fullmatch(match[2])):
        return None
    return f"{match[1]}:"
