"""The vocabulary of events: names, positions, schemas and texts."""

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mcpgw.wire.events import CHANNELS, EVENT_TYPES, LEVELS, Event, Position, channel_base, checked_data
from mcpgw.wire.validation import SchemaChecker
from tests.support.schemas import assert_valid_event, assert_valid_event_frame

EPOCH = "0123456789abcdef"
OF_THE_CONTRACT = {
    "servers": (
        "server.enabled server.disabled server.starting server.started server.stopped server.restarted "
        "server.retrying server.error server.status_update server.log server.tools_changed "
        "server.resource_updated"
    ),
    "gateway": (
        "gateway.started gateway.stopped gateway.restarted gateway.draining gateway.error "
        "gateway.health_update"
    ),
    "catalogs": "catalog.synced catalog.imported catalog.updated catalog.error",
    "config": "config.updated config.applied config.error",
    "system": "system.alert system.maintenance system.log",
    "calls": "call.started call.progress call.finished call.failed call.cancelled "
    "call.approval_requested call.approved call.declined",
    "user:": "user.connected user.disconnected user.notification",
    "room:": "room.joined room.left room.message room.muted room.unmuted room.kicked room.frozen room.thawed"
    " room.ended",
}


def event(name: str, data: dict[str, object], **options: object) -> Event:
    event_type = EVENT_TYPES[name]
    channel = event_type.channel + ("x" if event_type.channel.endswith(":") else "")
    return Event(event_type, channel, data, 1, Position(EPOCH, 7), **options)  # type: ignore[arg-type]


def test_every_event_of_the_contract_is_there_and_no_other() -> None:
    found: dict[str, set[str]] = {}
    for row in EVENT_TYPES.values():
        found.setdefault(row.channel, set()).add(row.name)
    assert found == {channel: set(names.split()) for channel, names in OF_THE_CONTRACT.items()}


@pytest.mark.parametrize("name", sorted(EVENT_TYPES))
def test_the_schema_of_an_event_is_one_and_refuses_what_it_does_not_name(name: str) -> None:
    row = EVENT_TYPES[name]
    assert row.help.endswith(".")
    assert row.optional <= row.data.keys()
    assert not row.key or (row.key in row.data and row.key not in row.optional)
    assert row.kind == ("state" if row.key else "stream")
    faults = SchemaChecker(row.data_schema).faults({"noSuchMember": 1})
    required = row.data.keys() - row.optional
    assert len(faults) == len(required) + 1, faults


def test_only_the_log_of_the_gateway_is_for_admins_alone() -> None:
    assert [row.name for row in EVENT_TYPES.values() if row.admin_only] == ["system.log"]


def test_an_event_is_a_frame_with_its_position_as_id() -> None:
    started = event("server.started", {"serverId": "memory", "tools": 9, "protocolVersion": "2025-11-25"})
    frame = json.loads(started.text())
    assert frame == {
        "type": "server.started",
        "id": f"{EPOCH}-7",
        "channel": "servers",
        "data": {"serverId": "memory", "tools": 9, "protocolVersion": "2025-11-25"},
        "timestamp": 1,
    }
    assert_valid_event_frame(frame)
    assert started.text() is started.text(), "the text is made once"
    assert started.text(full=False) is started.text()
    assert started.key == "servers memory"


def test_others_see_the_masked_data() -> None:
    data = {"callId": "c", "user": "ann", "serverId": "s", "toolName": "t"}
    call = event("call.started", data | {"arguments": {"secret": 1}}, owner="ann", masked=data)
    assert_valid_event(call)
    assert "secret" in call.text()
    assert "secret" not in call.text(full=False)
    assert call.key == ""


def test_an_event_of_another_shape_is_found() -> None:
    with pytest.raises(AssertionError, match="serverId"):
        assert_valid_event(event("server.starting", {"server": "memory"}))


@pytest.mark.parametrize("value", [float("nan"), "\udfff"])
def test_data_that_is_no_json_has_no_text(value: object) -> None:
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        event("config.error", {"faults": value}).text()


def test_a_position_is_read_as_it_is_written() -> None:
    position = Position(EPOCH, 12)
    assert str(position) == f"{EPOCH}-12"
    assert Position.parse(str(position)) == position
    assert re.fullmatch(r"[A-Za-z0-9-]+", str(position)), "browsers ask permission again for other ids"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12",
        "-12",
        f"{EPOCH}",
        f"{EPOCH}-",
        f"{EPOCH}--1",
        f"{EPOCH}-1x",
        f"{EPOCH}-1\n",
        f" {EPOCH}-1",
        f"{EPOCH.upper()}-1",
        f"{EPOCH}-٣",
        f"{EPOCH}-{'9' * 16}",
        f"{EPOCH}0-1",
    ],
)
def test_what_is_no_position_is_none(text: str) -> None:
    assert Position.parse(text) is None


@pytest.mark.parametrize(
    ("channel", "base"),
    [
        *((name, name) for name in CHANNELS),
        ("user:ann", "user:"),
        ("user:ann: the first\n", "user:"),
        ("room:ops", "room:"),
        ("room:a.b-c_1", "room:"),
        ("room:", None),
        ("room:a b", None),
        ("room:-a", None),
        ("room:" + "a" * 65, None),
        ("user:", None),
        ("user:" + "a" * 256, "user:"),
        ("user:" + "a" * 257, None),
        ("server", None),
        ("Servers", None),
        ("servers ", None),
        ("", None),
        ("group:a", None),
    ],
)
def test_a_channel_has_a_base_or_is_none(channel: str, base: str | None) -> None:
    assert channel_base(channel) == base


def test_levels_rise() -> None:
    assert LEVELS.index("debug") < LEVELS.index("warning") < LEVELS.index("emergency")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text('aä"\\', max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["user", "clientId", "payload", "more"]), JSON), st.booleans())
def test_the_text_of_an_event_is_its_data_whatever_was_encoded_before(
    data: dict[str, object], before: bool
) -> None:
    known = {"payload": json.dumps(data["payload"])} if before and "payload" in data else None
    encoded, size = checked_data(data, known)
    said = Event(EVENT_TYPES["room.message"], 'user:"ä\n', data, 1, Position(EPOCH, 7), encoded=encoded)
    frame = json.loads(said.text())
    assert (frame["data"], frame["channel"]) == (data, 'user:"ä\n')
    length = len(said.text().encode())
    assert length / 7 - 150 <= size <= length + 100, "about what its text has"


@given(
    st.dictionaries(st.sampled_from("abc"), JSON),
    st.sampled_from([float("inf"), "\udfff", "ä\ud800", 10**5000]),
)
def test_data_with_what_is_no_json_is_found_wherever_it_is(data: dict[str, object], broken: object) -> None:
    for place in (broken, [broken], {"in": {"side": broken}}):
        with pytest.raises(ValueError, match=r"JSON|surrogates|digits"):
            checked_data(data | {"b": place})
