"""Who is in a room, and who is told."""

from typing import Any

from mcpgw.bus import LocalBus
from mcpgw.rooms import Rooms
from mcpgw.wire.events import Event
from tests.support.schemas import assert_valid_event


class Room:
    """A room with an ear at its door."""

    def __init__(self) -> None:
        bus = LocalBus(100, 300)
        self.rooms = Rooms(bus)
        self.heard: list[tuple[str, Any, Any]] = []
        bus.listen("room:ops", self._take)

    def _take(self, event: Event) -> None:
        assert_valid_event(event)
        self.heard.append((event.type.name, event.data["user"], event.data["clientId"]))

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
