"""Rooms: who is in them. Whoever subscribes to ``room:NAME`` comes in; the last to leave closes the room.

A room that was opened for guests is for them, its host and admins alone; what its host does is told in it.
"""

import time
from collections.abc import Mapping
from itertools import islice

from mcpgw.access.guest_names import guest_user, room_of
from mcpgw.access.permissions import is_admin, may_host_rooms
from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus
from mcpgw.errors import PermissionDenied
from mcpgw.store import OpenRoom
from mcpgw.subscriptions import ROOM, may_read_channel, require_channel

_MOST_PRESENT = 500


class Rooms:
    """The members of every room: one for each connection, so that a user may be there twice."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._members: dict[str, dict[str, str]] = {}
        self._of_guests: Mapping[str, OpenRoom] | None = None
        self._by_channel: dict[str, OpenRoom] = {}

    def join(self, channel: str, client_id: str, user: str) -> None:
        """Come in; the others are told."""
        members = self._members.setdefault(channel, {})
        if client_id not in members:
            members[client_id] = user
            self._bus.publish("room.joined", {"user": user, "clientId": client_id}, channel=channel)

    def leave(self, channel: str, client_id: str) -> None:
        """Go; the others are told."""
        members = self._members.get(channel, {})
        user = members.pop(client_id, None)
        if user is None:
            return
        if not members:
            del self._members[channel]
        self._bus.publish("room.left", {"user": user, "clientId": client_id}, channel=channel)

    def present(self, channel: str) -> tuple[Mapping[str, str], ...]:
        """Who is there, the last to come at the end; the newest 500 where there are more."""
        members = self._members.get(channel, {})
        newest = list(islice(reversed(members.items()), _MOST_PRESENT))
        return tuple({"user": user, "clientId": client_id} for client_id, user in reversed(newest))

    # --- rooms of guests -----------------------------------------------------------------------------------

    def require(self, principal: Principal, channel: str) -> None:
        """Refuse a channel that is none, or that the caller may not read; the default is no.

        Raises:
            UnknownChannel: names the nearest one.
            PermissionDenied: no scope allows it, or it is a room of others' guests.
        """
        found = self._by_channel.get(channel)
        if found is None:
            require_channel(principal, channel)
        elif not _is_for(found, principal):
            raise PermissionDenied(f"the channel {channel[:64]!r} is a room of guests, and you are not in it")

    def may_read(self, principal: Principal, channel: str) -> bool:
        """Whether some event of `channel` may be read by `principal`."""
        found = self._by_channel.get(channel)
        return may_read_channel(principal, channel) if found is None else _is_for(found, principal)

    def follow(self, rooms: Mapping[str, OpenRoom]) -> None:
        """These rooms are open to guests now, by their ids; what has changed is told in them."""
        before, self._of_guests = self._of_guests, rooms
        self._by_channel = {f"{ROOM}{found.room.name}": found for found in rooms.values()}
        for room_id, old in (before or {}).items():
            present = rooms.get(room_id)
            if present is not None:
                self._tell(old, present)
                continue
            reason = "time" if old.room.ends_at <= time.time() * 1000 else "host"
            self._bus.publish("room.ended", {"reason": reason}, channel=f"{ROOM}{old.room.name}")

    def quota_of(self, user: str) -> tuple[int, float] | None:
        """How many calls in how many seconds a guest may make; None where `user` is no guest."""
        room = room_of(user)
        found = None if room is None else self._by_channel.get(f"{ROOM}{room}")
        if found is None:
            return None
        return found.room.quota_calls, found.room.quota_ms / 1000

    def _tell(self, old: OpenRoom, present: OpenRoom) -> None:
        name = present.room.name
        channel = f"{ROOM}{name}"
        if old.room.frozen != present.room.frozen:
            type_name = "room.frozen" if present.room.frozen else "room.thawed"
            self._bus.publish(type_name, {"room": name}, channel=channel)
        for type_name, marked, unmarked in (
            ("room.kicked", present.removed, old.removed),
            ("room.muted", present.muted, old.muted),
            ("room.unmuted", old.muted, {**present.muted, **present.removed}),
        ):
            for guest_id in marked.keys() - unmarked.keys():
                user = guest_user(name, marked[guest_id], guest_id)
                self._bus.publish(type_name, {"user": user}, channel=channel)


def _is_for(found: OpenRoom, principal: Principal) -> bool:
    """Whether a room of guests is for `principal`: one of them, its host, or an admin."""
    if principal.guest:
        return principal.guest.partition(".")[0] == found.room.id
    is_host = bool(found.room.host) and principal.user == found.room.host and may_host_rooms(principal)
    return is_host or is_admin(principal)
