"""What the log holds: each kind of channel, and among rooms each room, keeps its share whatever others do."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import takewhile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mcpgw.bus import LocalBus
from mcpgw.bus.event_log import EVENT_BYTES
from mcpgw.wire.events import EVENT_TYPES, Event, Position, channel_base

KINDS = len({row.channel for row in EVENT_TYPES.values()})


def placed(position: Position | None) -> Position:
    assert position is not None, "a log of its own knows at once where an event stands"
    return position


def say(bus: LocalBus, room: str, payload: object = "x") -> Position:
    data = {"user": "ann", "clientId": "c", "payload": payload}
    return placed(bus.publish("room.message", data, channel=f"room:{room}"))


def log_line(bus: LocalBus, line: str = "x") -> Position:
    return placed(bus.publish("server.log", {"serverId": "a", "level": "info", "line": line}))


def update(bus: LocalBus, source: str = "x") -> Position:
    return placed(bus.publish("config.updated", {"source": source}))


def greet(bus: LocalBus, user: str) -> Position:
    return placed(bus.publish("user.connected", {"clientId": "c", "kind": "sse"}, channel=f"user:{user}"))


def at(bus: LocalBus, offset: int) -> Position:
    return Position(bus.position.epoch, offset)


def reaches_back_to(bus: LocalBus, channel: str) -> int:
    """The oldest offset behind which all of the channel is known."""
    return next(n for n in range(bus.position.offset + 1) if bus.since(at(bus, n), (channel,)).recovered)


@pytest.mark.parametrize("payload", ["x", "x" * 60_000])
def test_a_flood_in_a_room_makes_the_log_forget_nothing_but_words_of_rooms(payload: str) -> None:
    bus = LocalBus(1000, 300, 8 * 1024 * 1024)
    start = bus.position
    for _ in range(900):
        log_line(bus)
    greet(bus, "ann")
    for _ in range(3000):
        say(bus, "loud", payload)
    for channel, count in (("servers", 900), ("user:ann", 1), ("config", 0)):
        replay = bus.since(start, (channel,))
        assert (replay.recovered, len(replay.events)) == (True, count)
    assert bus.since(start, ("servers", "user:ann", "config")).recovered
    assert not bus.since(start, ("room:loud",)).recovered
    assert not bus.since(start, ("servers", "room:loud")).recovered


def test_a_loud_room_makes_the_log_forget_nothing_of_a_quiet_one() -> None:
    bus = LocalBus(100, 300)
    start = bus.position
    for _ in range(20):
        say(bus, "quiet")
    for _ in range(500):
        say(bus, "loud")
    assert [len(bus.since(start, ("room:quiet",)).events)] == [20]
    assert reaches_back_to(bus, "room:loud") == bus.position.offset - 80


def test_one_user_who_comes_and_goes_makes_the_log_forget_nothing_of_another() -> None:
    bus = LocalBus(100, 300)
    start = bus.position
    greet(bus, "ann")
    for _ in range(500):
        greet(bus, "bob")
    assert bus.since(start, ("user:ann",)).recovered
    assert not bus.since(start, ("user:bob",)).recovered


def test_who_needs_much_has_what_the_others_leave_until_they_need_it() -> None:
    bus = LocalBus(1000, 300, 1024 * 1024)
    for _ in range(1000):
        log_line(bus, "x" * 400)
    assert reaches_back_to(bus, "servers") == 0
    for _ in range(1000):
        say(bus, "loud", "x" * 400)
    held = 1000 - reaches_back_to(bus, "servers")
    assert 1024 * 1024 / KINDS / 1000 < held < 600


def test_what_is_lost_of_very_many_quiet_rooms_is_never_said_to_be_recovered() -> None:
    bus = LocalBus(1, 300)
    for number in range(10_002):
        say(bus, f"r{number}")
    assert not bus.since(at(bus, 0), ("room:r0",)).recovered
    assert bus.since(at(bus, 1), ("room:r0",)).recovered
    assert not bus.since(at(bus, 10_000), ("room:r10000",)).recovered
    assert bus.since(at(bus, 10_001), ("room:r10000",)).recovered
    # Of a room that is not known any more than the oldest, the same is said: it may have been one of them.
    assert not bus.since(at(bus, 0), ("room:other",)).recovered
    assert bus.since(at(bus, 1), ("room:other",)).recovered


def test_ten_thousand_events_are_read_in_steps_from_four_channels_in_their_order() -> None:
    bus = LocalBus(10_000, 300)
    for number in range(10_000):
        (log_line, update, say, greet)[number % 4](bus, "x")
    channels = ("servers", "config", "room:x", "user:x")
    read: list[int] = []
    position = at(bus, 0)
    while position != bus.position:
        replay = bus.since(position, channels, limit=16)
        read += [event.position.offset for event in replay.events]
        position = replay.until
    assert read == list(range(1, 10_001))


# --- against a model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    """What the model remembers of an event; it forgets nothing."""

    offset: int
    channel: str
    cost: int
    born: float


PUBLISHERS: dict[str, Callable[[LocalBus, str], Position]] = {
    "servers": log_line,
    "config": update,
    "room:a": lambda bus, text: say(bus, "a", text),
    "room:b": lambda bus, text: say(bus, "b", text),
    "user:ann": lambda bus, _text: greet(bus, "ann"),
}
CHANNELS = (*PUBLISHERS, "calls", "room:none")
ops = st.one_of(
    st.tuples(st.just("publish"), st.sampled_from(tuple(PUBLISHERS)), st.sampled_from([1, 100, 250, 900])),
    st.tuples(st.just("flood"), st.sampled_from(tuple(PUBLISHERS)), st.integers(1, 12)),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 1.0, 10.0, 60.0]), st.none()),
)
probes = st.lists(
    st.tuples(
        st.floats(0, 1), st.frozensets(st.sampled_from(CHANNELS), min_size=1), st.sampled_from([None, 1, 3])
    ),
    min_size=1,
    max_size=4,
)


class Model:
    """All that was published, and what the log must know of it."""

    def __init__(self, max_events: int, max_bytes: int) -> None:
        self.now = 1000.0
        self.max_events, self.max_bytes, self.max_age = max_events, max_bytes, 50.0
        self.bus = LocalBus(max_events, self.max_age, max_bytes, clock=lambda: self.now)
        self.all: list[Said] = []

    def publish(self, channel: str, length: int) -> None:
        heard: list[Event] = []
        stop = self.bus.listen(channel, heard.append)
        position = PUBLISHERS[channel](self.bus, "x" * length)
        stop()
        [event] = heard
        assert event.position == position == self.bus.position
        assert position.offset == len(self.all) + 1
        # A little more than what the log reckons, which is without the frame around the data.
        self.all.append(Said(position.offset, channel, EVENT_BYTES + len(event.text()), self.now))

    def of(self, *channels: str) -> list[Said]:
        return [said for said in self.all if said.channel in channels]

    def check(self, offset: int, channels: frozenset[str], limit: int | None) -> None:
        replay = self.bus.since(at(self.bus, offset), channels, limit=limit)
        behind = [said.offset for said in self.of(*channels) if said.offset > offset]
        alone = [self.bus.since(at(self.bus, offset), (channel,)).recovered for channel in channels]
        assert replay.recovered is all(alone)
        if replay.recovered:
            assert [event.position.offset for event in replay.events] == behind[:limit]
            is_all = limit is None or len(behind) < limit
            assert replay.until.offset == (len(self.all) if is_all else behind[limit - 1])  # type: ignore[operator]
        else:
            assert (replay.events, replay.until) == ((), self.bus.position)

    def check_memory(self) -> None:
        held: list[Event] = []
        for channel in CHANNELS:
            first = reaches_back_to(self.bus, channel)
            # Not one event further than what was forgotten: the one there is of this channel itself.
            assert first == 0 or self.all[first - 1].channel == channel
            held += self.bus.since(at(self.bus, first), (channel,)).events
            if channel.startswith("room:"):
                self._check_room(channel, first)
            else:
                self._check_kind(channel, first)
        assert sum(len(event.text()) for event in held) <= self.max_bytes
        for kind in map(channel_base, CHANNELS):
            assert sum(channel_base(event.channel) == kind for event in held) <= self.max_events

    def _check_kind(self, channel: str, first: int) -> None:
        young = [said for said in self.of(channel) if said.born >= self.now - self.max_age]
        newest = young[-self.max_events :]
        cost = 0
        certain = []
        for said in reversed(newest):
            cost += said.cost
            if cost > self.max_bytes / KINDS:
                break
            certain.append(said.offset)
        held = [said.offset for said in self.of(channel) if said.offset > first]
        assert held[len(held) - len(certain) :] == certain[::-1]
        assert len(held) <= len(newest)
        if sum(said.cost for said in self.all) <= self.max_bytes:
            assert len(held) == len(newest)

    def _check_room(self, channel: str, first: int) -> None:
        own = self.of(channel)
        held = [said for said in own if said.offset > first]
        young = list(takewhile(lambda said: said.born >= self.now - self.max_age, reversed(own)))
        rooms = len({said.channel for said in self.all if said.channel.startswith("room:")})
        least = min(said.cost for said in self.all) * self.max_events
        share = min(self.max_bytes / KINDS, least) / (2 * max(rooms, 1))
        if sum(said.cost for said in own) <= share:
            assert len(held) == len(young)


@settings(max_examples=150)
@given(
    limits=st.tuples(st.sampled_from([1, 3, 10, 30]), st.sampled_from([2_000, 12_000, 10**6])),
    script=st.lists(ops, min_size=1, max_size=25),
    looks=probes,
)
def test_no_sequence_of_events_leaves_a_gap_or_a_double_or_forgets_without_need(
    limits: tuple[int, int],
    script: list[tuple[str, str | float, int | None]],
    looks: list[tuple[float, frozenset[str], int | None]],
) -> None:
    model = Model(*limits)
    for what, where, number in script:
        if what == "wait":
            model.now += float(where)
        elif what == "publish":
            model.publish(str(where), number or 0)
        else:
            for _ in range(number or 0):
                model.publish(str(where), 1)
        for part, channels, limit in looks:
            model.check(round(part * len(model.all)), channels, limit)
    if model.all:
        model.check_memory()
