"""What is written from the table of events: ``schemas/events.json``, and the tables of ``docs/events.md``.

``python -m mcpgw.wire.event_texts`` in a checkout writes both anew, as ``make docs`` does; a test holds them.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mcpgw.wire.events import EVENT_TYPES, EventType

BEGIN_MARK: Final = "<!-- events: written by `python -m mcpgw.wire.event_texts` -->"
END_MARK: Final = "<!-- end of events -->"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, slots=True)
class ChannelText:
    """A channel in words: its name as a reader writes it, what it tells of, and who may read it."""

    name: str
    help: str
    readers: str


CHANNEL_TEXTS: Final[Mapping[str, ChannelText]] = {
    "servers": ChannelText("servers", "What happens to the backend servers.", "`events:read`"),
    "gateway": ChannelText("gateway", "What happens to the gateway itself.", "`events:read`"),
    "catalogs": ChannelText("catalogs", "What happens to catalogs of servers.", "`events:read`"),
    "config": ChannelText("config", "What happens to the configuration.", "`events:read`"),
    "system": ChannelText(
        "system", "Words of the operator, and the gateway's log.", "`events:read`; `system.log` `admin` alone"
    ),
    "calls": ChannelText(
        "calls",
        "Tool calls, as they begin, go on and end.",
        "`events:read` for one's own calls; `calls:approve` for what waits for an approval; `calls:read` for "
        "those of all, other users' without arguments "
        "and results",
    ),
    "user:": ChannelText(
        "user:ID", "What concerns one user.", "`events:read` for one's own; `admin` for every user's"
    ),
    "room:": ChannelText(
        "room:NAME",
        "Who is in a room, and what they say there. In a [room of guests](workshops.md) also what they call: "
        "`call.started`, `.progress`, `.finished`, `.failed`, `.cancelled`, without arguments and results.",
        "its members: `rooms:join` or `rooms:join:NAME`; a room of guests they, its host and admins alone",
    ),
}
"""Every channel by its base; the rules themselves are in `mcpgw.subscriptions`."""


def event_schema(event_type: EventType) -> dict[str, Any]:
    """The JSON Schema of one type of event, as the frame that a client reads."""
    base = event_type.channel
    channel: dict[str, Any]
    channel = {"type": "string", "pattern": f"^{base}"} if base.endswith(":") else {"const": base}
    if event_type.in_rooms:
        channel = {"anyOf": [channel, {"type": "string", "pattern": "^room:"}]}
    return {
        "description": event_type.help,
        "type": "object",
        "properties": {
            "type": {"const": event_type.name},
            "id": {
                "description": "The event's position in the log, as EPOCH-OFFSET.",
                "type": "string",
                "pattern": "^[0-9a-f]{16}-[0-9]{1,15}$",
            },
            "channel": channel,
            "data": {
                "type": "object",
                # A member that may hold anything is `true`: the schema that everything fulfils.
                "properties": {name: dict(schema) or True for name, schema in event_type.data.items()},
                "required": [name for name in event_type.data if name not in event_type.optional],
                "additionalProperties": False,
            },
            "timestamp": {"description": "Milliseconds since the epoch.", "type": "integer", "minimum": 0},
        },
        "required": ["type", "id", "channel", "data", "timestamp"],
        "additionalProperties": False,
    }


def events_schema() -> dict[str, Any]:
    """The JSON Schema of all events: what ``schemas/events.json`` holds."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": "urn:mcpgw:events",
        "title": "Events that the gateway sends to those who may read them",
        "oneOf": [{"$ref": f"#/$defs/{name}"} for name in EVENT_TYPES],
        "$defs": {name: event_schema(event_type) for name, event_type in EVENT_TYPES.items()},
    }


def events_markdown() -> str:
    """The events as Markdown: a heading, who may read, and a table for each channel."""
    lines: list[str] = []
    for base, text in CHANNEL_TEXTS.items():
        lines += [f"### {text.name}", "", f"{text.help} Who may read it: {text.readers}.", ""]
        lines += ["| type | kind | when | data |", "|---|---|---|---|"]
        lines += [
            f"| `{row.name}` | {row.kind} | {row.help} | {_members(row)} |"
            for row in EVENT_TYPES.values()
            if row.channel == base
        ]
        lines.append("")
    return "\n".join(lines)


def with_events_block(page: str) -> str:
    """`page` (Markdown) with the text between the two marks replaced by the events.

    Raises ValueError where the marks are not there.
    """
    before, begin, rest = page.partition(BEGIN_MARK)
    _, end, after = rest.partition(END_MARK)
    if not begin or not end:
        raise ValueError(f"the page lacks {BEGIN_MARK!r} or {END_MARK!r}")
    return f"{before}{begin}\n\n{events_markdown()}\n{end}{after}"


def schema_text() -> str:
    """The text of ``schemas/events.json``."""
    return json.dumps(events_schema(), indent=2) + "\n"


def write_texts(root: Path) -> None:
    """Write the schema and the page of the checkout at `root` anew."""
    page = root / "docs" / "events.md"
    page.write_text(with_events_block(page.read_text("utf-8")), "utf-8")
    (root / "schemas" / "events.json").write_text(schema_text(), "utf-8")


def _members(event_type: EventType) -> str:
    return ", ".join(f"`{name}{'?' * (name in event_type.optional)}`" for name in event_type.data)


if __name__ == "__main__":
    write_texts(_ROOT)
