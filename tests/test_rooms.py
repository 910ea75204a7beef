"""Who is in a room, and who is told."""

from typing import Any

import pytest

from mcpgw.access.guest_names import guest_user
from mcpgw.access.tokens import Principal
from mcpgw.bus import LocalBus
from mcpgw.errors import PermissionDenied
from mcpgw.rooms import Rooms
from mcpgw.store import OpenRoom
from mcpgw.wire.events import Event
from tests.support.rooms import of_guests
from tests.support.schemas import assert_valid_event


class Room:
    """A room with an ear at its door."""

    def __init__(self) -> None:
        self.bus = bus = LocalBus(100, 300)
        self.rooms = Rooms(bus)
        self.heard: list[tuple[str, Any, Any]] = []
        bus.listen("room:ops", self._take)

    def _take(self, event: Event) -> None:
        assert_valid_event(event)
        self.heard.append((event.type.name, event.data.get("user"), event.data.get("clientId")))

    @property
    def present(self) -> list[tuple[str, str]]:
        return [(member["user"], member["clientId"]) for member in self.rooms.present("room:ops")]


def test_members_stand_in_the_order_in_which_they_came() -> None:
    room = Room()
    room.rooms.join("room:ops", "c2", "bob")
    room.rooms.join("room:ops", "c1", "ann")
    assert room.present == [("bob", "c2"), ("ann", "c1")]
    assert room.heard == [("room.joined", "bob", "c2"), ("room.joined", "ann", "c1")]


def test_coming_in_twice_is_coming_in_once() -> None:
    room = Room()
    for _ in range(2):
        room.rooms.join("room:ops", "c1", "ann")
    assert len(room.present) == len(room.heard) == 1
    for _ in range(2):
        room.rooms.leave("room:ops", "c1")
    assert room.present == []
    assert room.heard[1:] == [("room.left", "ann", "c1")]


def test_a_user_may_be_there_with_two_connections_and_stays_with_the_other() -> None:
    room = Room()
    room.rooms.join("room:ops", "c1", "ann")
    room.rooms.join("room:ops", "c2", "ann")
    room.rooms.leave("room:ops", "c1")
    assert room.present == [("ann", "c2")]
    assert room.heard[-1] == ("room.left", "ann", "c1")


def test_rooms_know_nothing_of_each_other_and_empty_ones_are_gone() -> None:
    room = Room()
    room.rooms.join("room:ops", "c1", "ann")
    room.rooms.join("room:other", "c1", "ann")
    room.rooms.leave("room:other", "c1")
    room.rooms.leave("room:none", "c1")
    assert room.present == [("ann", "c1")]
    assert room.rooms.present("room:other") == ()
    assert len(room.heard) == 1


def test_of_a_very_full_room_the_newest_members_are_told() -> None:
    rooms = Rooms(LocalBus(10, 300))
    for number in range(600):
        rooms.join("room:full", f"c-{number}", "ann")
    present = rooms.present("room:full")
    assert (len(present), present[0]["clientId"], present[-1]["clientId"]) == (500, "c-100", "c-599")


def test_what_a_host_does_is_told_in_the_room_once() -> None:
    room = Room()
    told: list[tuple[str, Any]] = []
    room.bus.listen("room:ops", lambda event: told.append((event.type.name, dict(event.data))))
    ann, bob = guest_user("ops", "Ann", "a"), guest_user("ops", "Bob", "b")
    steps: tuple[tuple[OpenRoom, list[tuple[str, Any]]], ...] = (
        (of_guests(frozen=True), []),  # as it was when the gateway started
        (of_guests(), [("room.thawed", {"room": "ops"})]),
        (of_guests(frozen=True), [("room.frozen", {"room": "ops"})]),
        (of_guests(frozen=True, muted={"a": "Ann"}), [("room.muted", {"user": ann})]),
        (of_guests(frozen=True, removed={"a": "Ann"}), [("room.kicked", {"user": ann})]),
        (
            of_guests(frozen=True, removed={"a": "Ann"}, muted={"b": "Bob"}),
            [("room.muted", {"user": bob})],
        ),
        (of_guests(frozen=True, removed={"a": "Ann"}), [("room.unmuted", {"user": bob})]),
    )
    for state, expected in steps:
        told.clear()
        room.rooms.follow({"1": state})
        room.rooms.follow({"1": state})
        assert told == expected
    told.clear()
    room.rooms.follow({})
    assert told == [("room.ended", {"reason": "host"})]
    room.rooms.follow({"1": of_guests(seconds=-1)})
    room.rooms.follow({})
    assert told[-1] == ("room.ended", {"reason": "time"})


def test_a_room_of_guests_is_closed_to_everybody_else_while_it_is_open() -> None:
    rooms = Room().rooms
    everywhere = Principal("olga", frozenset({"rooms:join"}), 0.0, "t")
    tess = Principal("tess", frozenset({"rooms:host"}), 0.0, "t")
    keyed = Principal("tess", frozenset({"tools:call"}), 0.0, "t", key="k")
    root = Principal("root", frozenset({"admin"}), 0.0, "t")
    ann = Principal("guest:ops:Ann:a", frozenset({"rooms:join:ops"}), 0.0, "t", guest="1.a")
    old = Principal("guest:ops:Ann:a", frozenset({"rooms:join:ops"}), 0.0, "t", guest="0.a")
    assert rooms.may_read(everywhere, "room:ops")
    assert not rooms.may_read(tess, "room:ops")
    assert rooms.quota_of("guest:ops:Ann:a") is None
    rooms.follow({"1": of_guests()})
    readers = {name: rooms.may_read(name, "room:ops") for name in (everywhere, tess, keyed, root, ann, old)}
    assert [who.user for who, may in readers.items() if may] == ["tess", "root", "guest:ops:Ann:a"]
    assert not readers[old], "a guest of an earlier room of that name is none of this"
    with pytest.raises(PermissionDenied, match="room of guests"):
        rooms.require(everywhere, "room:ops")
    assert rooms.quota_of("guest:ops:Ann:a") == (5, 10.0)
    assert rooms.quota_of("guest:other:Ann:a") is None
    assert rooms.quota_of("ops") is None
    rooms.follow({})
    assert rooms.may_read(everywhere, "room:ops")
