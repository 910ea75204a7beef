"""What hosts do in their rooms of guests, told in the room once, whichever worker of the gateway tells it.

All workers read the same store, and each finds the same changes. One of them, the speaker, tells what is new;
the others keep account of what was told, so that one that becomes the speaker tells the rest and nothing
twice.
"""

import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from mcpgw.access.guest_names import guest_user
from mcpgw.bus import Bus
from mcpgw.store import OpenRoom
from mcpgw.subscriptions import ROOM
from mcpgw.wire.events import Event


class _Told(msgspec.Struct):
    """What those in a room know: `muted` and `removed` are guests as events name them."""

    name: str
    ends_at: int
    frozen: bool
    muted: set[str]
    removed: set[str]


class RoomNews:
    """What is new in rooms of guests, published where `is_speaker` says that it is for this process."""

    def __init__(self, bus: Bus, is_speaker: Callable[[], bool]) -> None:
        self._bus = bus
        self._is_speaker = is_speaker
        self._rooms: Mapping[str, OpenRoom] = {}
        self._told: dict[str, _Told] = {}
        # Told by another worker to have ended, while the store as it was read here still has them.
        self._ended: set[str] = set()

    def follow(self, rooms: Mapping[str, OpenRoom]) -> None:
        """These rooms are open now, by their ids."""
        self._rooms = rooms
        self._ended &= rooms.keys()
        for room_id, found in rooms.items():
            if room_id not in self._told and room_id not in self._ended:
                self._told[room_id] = _as_found(found)
        if self._is_speaker():
            self.tell()

    def tell(self) -> None:
        """Publish what was not told yet."""
        for room_id, told in list(self._told.items()):
            found = self._rooms.get(room_id)
            if found is None:
                del self._told[room_id]
                reason = "time" if told.ends_at <= time.time() * 1000 else "host"
                self._publish(told.name, "ended", {"reason": reason})
            else:
                self._told[room_id] = present = _as_found(found)
                self._tell(told, present)

    def hear(self, event: Event) -> None:
        """Another worker has told something in a room."""
        name = event.channel.removeprefix(ROOM)
        of_name = [(room_id, told) for room_id, told in self._told.items() if told.name == name]
        if not of_name:
            return
        if event.type.name == "room.ended":
            room_id, _ = of_name[0]
            del self._told[room_id]
            self._ended.add(room_id)
            return
        _, told = of_name[-1]
        match event.type.name, event.data.get("user"):
            case "room.frozen", _:
                told.frozen = True
            case "room.thawed", _:
                told.frozen = False
            case "room.muted", str(user):
                told.muted.add(user)
            case "room.unmuted", str(user):
                told.muted.discard(user)
            case "room.kicked", str(user):
                told.removed.add(user)
                told.muted.discard(user)

    def state(self) -> Any:
        """What was told so far, as JSON."""
        return msgspec.to_builtins(self._told)

    def take_state(self, state: Any) -> None:
        """Know what others have told so far, as `state` has it."""
        self._told |= msgspec.convert(state, dict[str, _Told])

    def _tell(self, told: _Told, present: _Told) -> None:
        name = present.name
        if told.frozen != present.frozen:
            self._publish(name, "frozen" if present.frozen else "thawed", {"room": name})
        for what, users in (
            ("kicked", present.removed - told.removed),
            ("muted", present.muted - told.muted),
            ("unmuted", told.muted - present.muted - present.removed),
        ):
            for user in users:
                self._publish(name, what, {"user": user})

    def _publish(self, room: str, what: str, data: Mapping[str, str]) -> None:
        self._bus.publish(f"room.{what}", data, channel=f"{ROOM}{room}")


def _as_found(found: OpenRoom) -> _Told:
    room = found.room
    muted, removed = (
        {guest_user(room.name, guest, guest_id) for guest_id, guest in marked.items()}
        for marked in (found.muted, found.removed)
    )
    return _Told(room.name, room.ends_at, room.frozen, muted, removed)
