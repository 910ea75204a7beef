"""The log of events in one process: one order, a bound, and a replay without a gap or a double."""

import json
import random
from collections.abc import Callable

import pytest

from mcpgw.bus import LocalBus
from mcpgw.wire.events import Event, Position


def log_line(bus: LocalBus, number: int, server: str = "a") -> None:
    bus.publish("server.log", {"serverId": server, "level": "info", "line": str(number)})


def lines(events: tuple[Event, ...] | list[Event]) -> list[int]:
    return [int(event.data["line"]) for event in events]


def filled(count: int, max_events: int = 100) -> LocalBus:
    bus = LocalBus(max_events, 300)
    for number in range(1, count + 1):
        log_line(bus, number)
    return bus


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_offsets_grow_by_one_over_all_channels() -> None:
    bus = LocalBus(100, 300)
    heard: list[Event] = []
    for channel in ("servers", "config", "room:a", "user:ann"):
        bus.listen(channel, heard.append)
    log_line(bus, 1)
    bus.publish("config.updated", {"source": "file"})
    bus.publish("room.joined", {"user": "ann", "clientId": "c"}, channel="room:a")
    bus.publish("user.connected", {"clientId": "c", "kind": "sse"}, channel="user:ann")
    assert [event.position.offset for event in heard] == [1, 2, 3, 4]
    assert {event.position.epoch for event in heard} == {bus.position.epoch}
    assert bus.position.offset == 4


def test_a_listener_hears_its_channel_alone_from_the_moment_it_began_until_it_ends() -> None:
    bus = filled(2)
    heard: list[Event] = []
    stop = bus.listen("servers", heard.append)
    log_line(bus, 3)
    bus.publish("config.updated", {"source": "file"})
    log_line(bus, 4)
    stop()
    stop()
    log_line(bus, 5)
    assert lines(heard) == [3, 4]


def test_replay_and_what_is_heard_from_then_on_have_no_gap_and_nothing_twice() -> None:
    chance = random.Random(7)
    bus = LocalBus(1000, 300)
    count = 0
    for _ in range(200):
        for _ in range(chance.randrange(5)):
            count += 1
            log_line(bus, count)
        since = Position(bus.position.epoch, chance.randrange(bus.position.offset + 1))
        heard = list(bus.since(since, ("servers",)).events)
        stop = bus.listen("servers", heard.append)
        for _ in range(chance.randrange(5)):
            count += 1
            log_line(bus, count)
        stop()
        assert lines(heard) == list(range(since.offset + 1, count + 1))
        if count > 900:
            break


def test_a_replay_can_be_read_in_steps() -> None:
    bus = filled(25)
    read: list[Event] = []
    position, steps = Position(bus.position.epoch, 3), 0
    while position != bus.position:
        replay = bus.since(position, ("servers",), limit=10)
        assert replay.recovered
        read += replay.events
        position, steps = replay.until, steps + 1
    assert lines(read) == list(range(4, 26))
    assert steps == 3


def test_a_step_of_nothing_stays_where_it_is() -> None:
    bus = filled(5)
    position = Position(bus.position.epoch, 3)
    replay = bus.since(position, ("servers",), limit=0)
    assert (replay.events, replay.recovered, replay.until) == ((), True, position)


@pytest.mark.parametrize("offset", [0, 4, 11])
def test_a_position_that_the_log_does_not_hold_is_not_recovered(offset: int) -> None:
    bus = filled(10, max_events=5)
    replay = bus.since(Position(bus.position.epoch, offset), ("servers",))
    assert (replay.events, replay.recovered, replay.until) == ((), False, bus.position)


def test_the_oldest_position_that_can_be_recovered_is_right_before_the_oldest_event() -> None:
    bus = filled(10, max_events=5)
    assert lines(bus.since(Position(bus.position.epoch, 5), ("servers",)).events) == [6, 7, 8, 9, 10]
    replay = bus.since(bus.position, ("servers",))
    assert (replay.events, replay.recovered) == ((), True)


def test_a_position_of_another_run_is_not_recovered() -> None:
    bus, other = filled(10), filled(10)
    assert bus.position.epoch != other.position.epoch
    assert not bus.since(other.position, ("servers",)).recovered
    assert not bus.since(Position("", 0), ("servers",)).recovered


def test_what_was_forgotten_of_other_channels_does_no_harm() -> None:
    bus = LocalBus(5, 300)
    bus.publish("config.updated", {"source": "first"})
    position = bus.position
    for number in range(20):
        log_line(bus, number)
    assert not bus.since(position, ("servers",)).recovered
    assert not bus.since(position, ("servers", "config")).recovered
    assert bus.since(position, ("config",)).recovered
    bus.publish("config.updated", {"source": "second"})
    events = bus.since(position, ("config",)).events
    assert [event.data["source"] for event in events] == ["second"]


def test_a_forgotten_event_of_one_room_is_not_taken_for_one_of_another() -> None:
    bus = LocalBus(2, 300)
    position = bus.position
    for name in ("a", "b", "b", "b"):
        bus.publish("room.joined", {"user": "ann", "clientId": "c"}, channel=f"room:{name}")
    assert not bus.since(position, ("room:b",)).recovered
    assert bus.since(position, ("room:a",)).recovered
    assert bus.since(position, ("room:c",)).recovered


def test_who_publishes_is_told_the_place_of_that_event_whatever_its_listeners_publish() -> None:
    bus = LocalBus(100, 300)
    heard: list[Event] = []

    def answering(event: Event) -> None:
        heard.append(event)
        if event.data["line"] == "1":
            log_line(bus, 2)

    bus.listen("servers", answering)
    position = bus.publish("server.log", {"serverId": "a", "level": "info", "line": "1"})
    assert position == heard[0].position == Position(bus.position.epoch, 1)
    assert bus.position.offset == 2


def test_the_log_forgets_by_age_on_a_clock_that_nobody_sets() -> None:
    clock = Clock()
    bus = LocalBus(100, 60, clock=clock)
    start = bus.position
    log_line(bus, 1)
    clock.now += 40
    log_line(bus, 2)
    assert lines(bus.since(start, ("servers",)).events) == [1, 2]
    clock.now += 40
    assert not bus.since(start, ("servers",)).recovered
    assert lines(bus.since(Position(start.epoch, 1), ("servers",)).events) == [2]
    clock.now += 1000
    assert bus.since(bus.position, ("servers",)).recovered
    assert not bus.since(Position(start.epoch, 1), ("servers",)).recovered


def test_the_log_forgets_by_size() -> None:
    bus = LocalBus(1000, 300, 10_000)
    for _ in range(100):
        bus.publish("server.log", {"serverId": "a", "level": "info", "line": "x" * 900})
    assert not bus.since(Position(bus.position.epoch, 93), ("servers",)).recovered
    kept = bus.since(Position(bus.position.epoch, 94), ("servers",))
    assert len(kept.events) == 6, "each is its text and what the log needs beside it"
    heard: list[Event] = []
    bus.listen("servers", heard.append)
    bus.publish("server.log", {"serverId": "a", "level": "info", "line": "ä" * 20_000})
    assert len(heard) == 1, "what is too large for the log is still delivered"
    assert not bus.since(Position(bus.position.epoch, 100), ("servers",)).recovered


def test_the_newest_state_of_each_key_outlives_the_log() -> None:
    bus = LocalBus(3, 300)
    bus.publish("server.starting", {"serverId": "a"})
    bus.publish("server.starting", {"serverId": "b"})
    bus.publish("server.started", {"serverId": "a", "tools": 3, "protocolVersion": "2025-11-25"})
    for number in range(10):
        log_line(bus, number)
    assert [(event.type.name, event.data["serverId"]) for event in bus.latest("servers")] == [
        ("server.starting", "b"),
        ("server.started", "a"),
    ]
    assert bus.latest("config") == ()


def test_a_listener_that_raises_keeps_an_event_from_nobody(caplog: pytest.LogCaptureFixture) -> None:
    bus = LocalBus(100, 300)
    heard: list[Event] = []

    def faulty(event: Event) -> None:
        raise RuntimeError("a reader's fault")

    bus.listen("servers", faulty)
    bus.listen("servers", heard.append)
    log_line(bus, 1)
    assert lines(heard) == [1]
    assert "a listener of servers raised" in caplog.text


def test_what_a_listener_publishes_comes_after_what_all_are_being_given() -> None:
    bus = LocalBus(100, 300)
    first: list[int] = []
    second: list[int] = []

    def answering(event: Event) -> None:
        first.append(event.position.offset)
        if event.data["line"] == "1":
            log_line(bus, 2)
            log_line(bus, 3)

    bus.listen("servers", answering)
    bus.listen("servers", lambda event: second.append(event.position.offset))
    log_line(bus, 1)
    assert first == second == [1, 2, 3]


def test_a_listener_that_another_ends_or_begins_meanwhile_hears_what_it_should() -> None:
    bus = LocalBus(100, 300)
    late: list[int] = []
    ended: list[int] = []
    stops: list[Callable[[], None]] = []

    def meddling(event: Event) -> None:
        if event.data["line"] == "1":
            stops[0]()
            log_line(bus, 2)
            replay = bus.since(Position(bus.position.epoch, 0), ("servers",))
            late.extend(lines(replay.events))
            bus.listen("servers", lambda later: late.append(int(later.data["line"])))

    bus.listen("servers", meddling)
    stops.append(bus.listen("servers", lambda event: ended.append(event.position.offset)))
    log_line(bus, 1)
    log_line(bus, 3)
    assert late == [1, 2, 3]
    assert ended == []


@pytest.mark.parametrize("broken", [float("nan"), "\ud800", float("inf")])
def test_data_that_is_no_json_never_gets_into_the_log(broken: object) -> None:
    bus = LocalBus(100, 300)
    with pytest.raises(ValueError, match=r"JSON|surrogates"):
        bus.publish("room.message", {"user": "ann", "clientId": "c", "payload": broken}, channel="room:a")
    assert bus.position.offset == 0


@pytest.mark.parametrize(
    "broken", [float("nan"), "\ud800", {"deep": ["\ud800"]}, pytest.param(10**5000, id="long")]
)
def test_no_event_is_published_whose_masked_data_is_no_json(broken: object) -> None:
    bus = LocalBus(100, 300)
    with pytest.raises(ValueError, match=r"JSON|surrogates|digits"):
        bus.publish("call.started", {"callId": "1"}, owner="ann", masked={"callId": broken})
    assert bus.position.offset == 0


def test_what_is_encoded_already_is_not_encoded_again() -> None:
    bus = LocalBus(100, 300)
    heard: list[Event] = []
    bus.listen("room:a", heard.append)
    data = {"user": "ann", "clientId": "c", "payload": {"said": ["ä"]}}
    bus.publish("room.message", data, channel="room:a", encoded={"payload": '{"said":  ["ä"]}'})
    assert '"payload":{"said":  ["ä"]}}' in heard[0].text()
    assert json.loads(heard[0].text())["data"] == heard[0].data == data


def test_masked_data_takes_the_place_of_what_is_no_json() -> None:
    bus = LocalBus(100, 300)
    data = {"callId": "1", "user": "ann", "serverId": "s", "toolName": "t", "success": True, "durationMs": 1}
    bus.publish("call.finished", data | {"result": float("nan")}, owner="ann", masked=data)
    [event] = bus.since(Position(bus.position.epoch, 0), ("calls",)).events
    assert "result" not in event.text()
    assert event.owner == "ann"


def test_an_event_stands_only_in_a_channel_of_its_type() -> None:
    bus = LocalBus(100, 300)
    with pytest.raises(ValueError, match="belongs to the channel 'room:', not 'servers'"):
        bus.publish("room.left", {"user": "ann", "clientId": "c"}, channel="servers")
    with pytest.raises(ValueError, match="belongs to the channel 'user:', not 'user:'"):
        bus.publish("user.notification", {"level": "info", "message": "x"})
