"""Rooms: who is in them. Whoever subscribes to ``room:NAME`` comes in; the last to leave closes the room."""

from collections.abc import Mapping
from itertools import islice

from mcpgw.bus import Bus

_MOST_PRESENT = 500


class Rooms:
    """The members of every room: one for each connection, so that a user may be there twice."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._members: dict[str, dict[str, str]] = {}

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
