"""Who may read which channel, what they see of it, and how a reader gets from a place in the log to now."""

import json
from typing import Any

import pytest

from mcpgw.access.tokens import Principal
from mcpgw.bus import LocalBus
from mcpgw.errors import PermissionDenied, UnknownChannel
from mcpgw.event_reader import CatchUp, EventReader, LogMovedOnError
from mcpgw.subscriptions import Subscription, may_read_channel, readable_channels, require_channel
from mcpgw.wire.deliveries import Delivery
from mcpgw.wire.events import CHANNELS, Event, Position
from mcpgw.wire.frames import EventFilter

CALL = {"callId": "1", "user": "ann", "serverId": "s", "toolName": "t"}


def principal(*scopes: str, user: str = "ann") -> Principal:
    return Principal(user=user, scopes=frozenset(scopes), expires_at=2**40, token_id="t")


NOBODY = principal()
CALLER = principal("tools:call", "servers:read")
READER = principal("events:read")
MEMBER = principal("rooms:join:ops")
GUEST = principal("rooms:join")
ADMIN = principal("admin", user="root")
OPERATOR = principal("calls:read", user="olga")


class Reader:
    """What one subscriber is given."""

    def __init__(self, bus: LocalBus, who: Principal, channel: str, **wanted: Any) -> None:
        self.frames: list[dict[str, Any]] = []
        self.subscription = Subscription(who, channel, EventFilter(**wanted), self._take)
        self.stop = bus.listen(channel, self.subscription.take)

    def _take(self, event: Event, text: str) -> None:
        self.frames.append(json.loads(text))

    @property
    def types(self) -> list[str]:
        return [frame["type"] for frame in self.frames]


@pytest.mark.parametrize("channel", CHANNELS)
@pytest.mark.parametrize(
    ("who", "may"), [(NOBODY, False), (CALLER, False), (GUEST, False), (READER, True), (ADMIN, True)]
)
def test_the_common_channels_need_the_scope_for_events(channel: str, who: Principal, *, may: bool) -> None:
    assert may_read_channel(who, channel) is may


@pytest.mark.parametrize(
    ("who", "channel", "may"),
    [
        (READER, "user:ann", True),
        (READER, "user:bob", False),
        (READER, "user:", False),
        (CALLER, "user:ann", False),
        (ADMIN, "user:bob", True),
        (READER, "room:ops", False),
        (MEMBER, "room:ops", True),
        (MEMBER, "room:ops2", False),
        (MEMBER, "servers", False),
        (GUEST, "room:any", True),
        (GUEST, "room:no room", False),
        (ADMIN, "room:ops", True),
        (ADMIN, "nosuch", False),
        (ADMIN, "", False),
    ],
)
def test_users_and_rooms_are_for_those_whose_they_are(who: Principal, channel: str, *, may: bool) -> None:
    assert may_read_channel(who, channel) is may
    if may:
        require_channel(who, channel)
    else:
        with pytest.raises((PermissionDenied, UnknownChannel)):
            require_channel(who, channel)


@pytest.mark.parametrize(
    ("channel", "nearest"),
    [("server", "servers"), ("user", "user:ann"), ("Calls", "calls"), ("sistem", "system")],
)
def test_a_channel_that_is_none_is_told_with_the_nearest_one(channel: str, nearest: str) -> None:
    with pytest.raises(UnknownChannel, match=f"no channel '{channel}'.*'{nearest}'"):
        require_channel(READER, channel)


def test_who_names_no_channel_is_given_all_that_they_may_read_but_no_room() -> None:
    assert readable_channels(READER) == (*CHANNELS, "user:ann")
    assert readable_channels(ADMIN) == (*CHANNELS, "user:root")
    assert readable_channels(GUEST) == readable_channels(NOBODY) == ()


def test_a_call_is_seen_whole_by_its_user_masked_by_admins_and_by_nobody_else() -> None:
    bus = LocalBus(100, 300)
    own, admin = Reader(bus, READER, "calls"), Reader(bus, ADMIN, "calls")
    other = Reader(bus, principal("events:read", user="bob"), "calls")
    bus.publish("call.started", CALL | {"arguments": {"a": 1}}, owner="ann", masked=CALL)
    bus.publish("call.failed", CALL | {"code": "timeout", "durationMs": 5}, owner="ann")
    assert own.types == admin.types == ["call.started", "call.failed"]
    assert own.frames[0]["data"] == CALL | {"arguments": {"a": 1}}
    assert admin.frames[0]["data"] == CALL
    assert other.frames == []


def test_an_operator_sees_that_others_call_and_not_what_they_say() -> None:
    bus = LocalBus(100, 300)
    operator = Reader(bus, OPERATOR, "calls")
    bus.publish("call.started", CALL | {"arguments": {"a": 1}}, owner="ann", masked=CALL)
    bus.publish("call.started", CALL | {"user": "olga", "arguments": {"a": 2}}, owner="olga", masked=CALL)
    assert [frame["data"].get("arguments") for frame in operator.frames] == [None, {"a": 2}]
    assert readable_channels(OPERATOR) == ("calls",)
    with pytest.raises(PermissionDenied):
        require_channel(OPERATOR, "servers")


def test_a_call_of_nobody_is_for_admins_alone() -> None:
    bus = LocalBus(100, 300)
    reader, admin = Reader(bus, READER, "calls"), Reader(bus, ADMIN, "calls")
    bus.publish("call.started", CALL | {"arguments": {"a": 1}}, masked=CALL)
    assert reader.frames == []
    assert [frame["data"] for frame in admin.frames] == [CALL]


def test_the_log_of_the_gateway_is_for_admins_alone() -> None:
    bus = LocalBus(100, 300)
    reader, admin = Reader(bus, READER, "system"), Reader(bus, ADMIN, "system")
    bus.publish("system.log", {"level": "info", "logger": "mcpgw", "message": "x"})
    bus.publish("system.alert", {"level": "alert", "message": "y"})
    assert reader.types == ["system.alert"]
    assert admin.types == ["system.log", "system.alert"]


def test_a_filter_chooses_types_servers_and_levels() -> None:
    bus = LocalBus(100, 300)
    types = Reader(bus, READER, "servers", types=frozenset({"server.stopped"}))
    servers = Reader(bus, READER, "servers", servers=frozenset({"b"}))
    levels = Reader(bus, READER, "servers", min_level="warning")
    both = Reader(bus, READER, "servers", servers=frozenset({"a"}), min_level="error")
    nothing = Reader(bus, READER, "servers", types=frozenset())
    for server in ("a", "b"):
        for level in ("info", "warning", "error"):
            bus.publish("server.log", {"serverId": server, "level": level, "line": "x"})
        bus.publish("server.stopped", {"serverId": server})
    assert types.types == ["server.stopped"] * 2
    assert {frame["data"]["serverId"] for frame in servers.frames} == {"b"}
    assert len(servers.frames) == 4
    assert [frame["data"].get("level") for frame in levels.frames] == ["warning", "error", None] * 2
    assert [frame["data"].get("level") for frame in both.frames] == ["error", None]
    assert nothing.frames == []


# --- from a place in the log to now ------------------------------------------------------------------------


class Stream:
    """A reader that catches up and then listens."""

    def __init__(self, bus: LocalBus, since: Position | None, *channels: str) -> None:
        self.seen: list[str] = []
        self.subscriptions = {
            name: Subscription(READER, name, EventFilter(), self._take) for name in channels or ("servers",)
        }
        self.catch_up = CatchUp(bus, self.subscriptions, since)

    def _take(self, event: Event, text: str) -> None:
        self.seen.append(str(event.data.get("line", event.type.name)))


def say(bus: LocalBus, *numbers: int) -> None:
    for number in numbers:
        bus.publish("server.log", {"serverId": "a", "level": "info", "line": str(number)})


def test_what_happens_while_a_reader_catches_up_comes_after_what_it_missed() -> None:
    bus = LocalBus(100, 300)
    say(bus, 1, 2, 3, 4, 5)
    stream = Stream(bus, Position(bus.position.epoch, 2))
    assert (stream.catch_up.recovered, stream.catch_up.position.offset) == (True, 2)
    stream.catch_up.step(2)
    say(bus, 6)
    assert stream.seen == ["3", "4"]
    assert not stream.catch_up.is_live
    stream.catch_up.step(2)
    stream.catch_up.step(2)
    assert stream.catch_up.is_live
    say(bus, 7)
    stream.catch_up.step(2)
    assert stream.seen == ["3", "4", "5", "6", "7"]


def test_without_a_position_the_present_state_comes_first_and_then_what_happened_meanwhile() -> None:
    bus = LocalBus(100, 300)
    bus.publish("server.starting", {"serverId": "a"})
    bus.publish("gateway.started", {"state": "started"})
    bus.publish("server.stopped", {"serverId": "a"})
    say(bus, 1)
    stream = Stream(bus, None, "servers", "gateway")
    assert (stream.catch_up.recovered, stream.catch_up.position) == (None, bus.position)
    say(bus, 2)
    while not stream.catch_up.is_live:
        stream.catch_up.step(1)
    assert stream.seen == ["gateway.started", "server.stopped", "2"]


def test_a_reader_from_before_the_log_is_given_the_present_state() -> None:
    bus = LocalBus(2, 300)
    bus.publish("server.stopped", {"serverId": "a"})
    say(bus, 1, 2, 3)
    for since in (Position(bus.position.epoch, 0), Position("0" * 16, 3), Position(bus.position.epoch, 5)):
        stream = Stream(bus, since)
        assert (stream.catch_up.recovered, stream.catch_up.position) == (False, bus.position)
        stream.catch_up.step(64)
        assert stream.seen == ["server.stopped"]
        stream.subscriptions["servers"].stop()


def test_a_reader_too_slow_for_the_log_is_told_and_never_skips() -> None:
    bus = LocalBus(4, 300)
    say(bus, 1, 2, 3, 4)
    stream = Stream(bus, Position(bus.position.epoch, 0))
    stream.catch_up.step(1)
    say(bus, 5, 6, 7)
    with pytest.raises(LogMovedOnError):
        stream.catch_up.step(1)
    assert stream.seen == ["1"]


def test_a_subscription_that_is_stopped_on_the_way_hears_nothing_more() -> None:
    bus = LocalBus(100, 300)
    say(bus, 1, 2)
    stream = Stream(bus, Position(bus.position.epoch, 0), "servers", "config")
    stream.catch_up.step(1)
    stream.subscriptions["servers"].stop()
    bus.publish("config.updated", {"source": "file"})
    stream.catch_up.step(64)
    say(bus, 3)
    assert stream.catch_up.is_live
    assert stream.seen == ["1", "config.updated"]
    stream.subscriptions["config"].stop()
    bus.publish("config.updated", {"source": "file"})
    assert len(stream.seen) == 2


def test_a_stream_reads_no_room_and_nothing_that_it_may_not() -> None:
    bus = LocalBus(100, 300)

    def take(event: Event, text: str) -> None:
        raise AssertionError("nothing is to be delivered")

    with pytest.raises(PermissionDenied, match="WebSocket"):
        EventReader(bus, ADMIN, ["room:ops"], take)
    with pytest.raises(PermissionDenied, match="not for this token"):
        EventReader(bus, READER, ["servers", "user:bob"], take)
    with pytest.raises(UnknownChannel, match="'servers'"):
        EventReader(bus, READER, ["servrs"], take)
    reader = EventReader(bus, NOBODY, None, take)
    reader.start(None).step(1)
    say(bus, 1)
    reader.stop()


# --- readers of one view -----------------------------------------------------------------------------------


class Connection:
    """Takes events as they happen; `encoded` has the texts that were encoded for its kind."""

    def __init__(self, kind: str, encoded: list[str]) -> None:
        self.kind = kind
        self.encoded = encoded
        self.given: list[Delivery] = []
        self.encoding = _Encoding(kind, encoded)

    def send_event(self, delivery: Delivery) -> None:
        self.given.append(delivery)

    @property
    def types(self) -> list[str]:
        return [delivery.event.type.name for delivery in self.given]


class _Encoding:
    def __init__(self, kind: str, encoded: list[str]) -> None:
        self.kind = kind
        self.encoded = encoded

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Encoding) and self.kind == other.kind

    def __hash__(self) -> int:
        return hash(self.kind)

    def encode(self, event: Event, text: str) -> bytes:
        self.encoded.append(text)
        return f"{self.kind} {event.position.offset}".encode()


def live(bus: LocalBus, who: Principal, connection: Connection, channel: str, **wanted: Any) -> Subscription:
    def missed(event: Event, _text: str) -> None:
        raise AssertionError(f"nothing was missed, and {event.type.name} least of all")

    subscription = Subscription(
        who, channel, EventFilter(**wanted), missed, reader=connection, count=COUNTS.append_pair
    )
    subscription.listen(bus)
    return subscription


class _Counts(list[tuple[str, int]]):
    def append_pair(self, type_name: str, count: int) -> None:
        self.append((type_name, count))


COUNTS = _Counts()


def test_an_event_is_encoded_once_for_all_who_see_the_same_and_are_written_to_alike() -> None:
    bus, encoded = LocalBus(100, 300), list[str]()
    COUNTS.clear()
    readers = [Connection("plain", encoded) for _ in range(50)]
    for number, reader in enumerate(readers):
        live(bus, principal("events:read", user=f"user-{number}"), reader, "servers")
    packed = Connection("packed", encoded)
    live(bus, READER, packed, "servers")
    warned = Connection("plain", encoded)
    live(bus, READER, warned, "servers", min_level="warning")
    say(bus, 1)
    assert len(encoded) == 2
    assert {delivery.frame for reader in readers for delivery in reader.given} == {b"plain 1"}
    assert [delivery.frame for delivery in packed.given] == [b"packed 1"]
    assert warned.given == []
    assert sorted(COUNTS) == [("server.log", 1), ("server.log", 50)]


def test_live_readers_of_calls_see_what_their_views_allow() -> None:
    bus = LocalBus(100, 300)
    own, other, admin = (Connection("plain", []) for _ in range(3))
    live(bus, READER, own, "calls")
    live(bus, principal("events:read", user="bob"), other, "calls")
    live(bus, ADMIN, admin, "calls")
    bus.publish("call.started", CALL | {"arguments": {"a": 1}}, owner="ann", masked=CALL)
    bus.publish("call.failed", CALL | {"code": "timeout", "durationMs": 5})
    assert [json.loads(delivery.text)["data"] for delivery in own.given] == [CALL | {"arguments": {"a": 1}}]
    assert other.given == []
    assert admin.types == ["call.started", "call.failed"]
    assert json.loads(admin.given[0].text)["data"] == CALL


def test_a_live_reader_sees_more_or_less_from_the_moment_on_in_which_its_token_changes() -> None:
    bus, reader = LocalBus(100, 300), Connection("plain", [])
    subscription = live(bus, READER, reader, "system")
    line = {"level": "info", "logger": "mcpgw", "message": "m"}
    bus.publish("system.log", line)
    subscription.principal = principal("admin")
    bus.publish("system.log", line)
    bus.publish("system.alert", {"level": "info", "message": "m"})
    subscription.principal = READER
    bus.publish("system.log", line)
    bus.publish("system.alert", {"level": "info", "message": "m"})
    assert reader.types == ["system.log", "system.alert", "system.alert"]
    subscription.stop()
    subscription.principal = principal("admin")
    bus.publish("system.log", line)
    assert len(reader.given) == 3, "who has stopped stays silent"
    assert bus.listeners() == {}


def test_a_subscription_goes_on_through_another_connection() -> None:
    bus, old, new = LocalBus(100, 300), Connection("plain", []), Connection("packed", [])
    subscription = live(bus, READER, old, "servers")
    say(bus, 1)
    subscription.stop()
    say(bus, 2)
    subscription.through(new)
    subscription.listen(bus)
    say(bus, 3)
    assert [delivery.frame for delivery in (*old.given, *new.given)] == [b"plain 1", b"packed 3"]
