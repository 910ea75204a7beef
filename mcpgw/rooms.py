"""Rooms: who is in them. Whoever subscribes to ``room:NAME`` comes in; the last to leave closes the room.

A room that was opened for guests is for them, its host and admins alone; what its host does is told in it.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Any, Final

from mcpgw.access.guest_names import room_of
from mcpgw.access.permissions import is_admin, may_host_rooms
from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus, SharedBus
from mcpgw.errors import PermissionDenied
from mcpgw.room_news import RoomNews
from mcpgw.store import OpenRoom
from mcpgw.subscriptions import ROOM, may_read_channel, require_channel
from mcpgw.wire.events import Event
from mcpgw.workers.peers import Peers

_MOST_PRESENT = 500
_NOBODY: Final = 0
"""The worker of a member whose own has ended."""


class Rooms:
    """The members of every room: one for each connection, so that a user may be there twice.

    Those of other workers are known by their events. When a worker has ended, one of the others, the speaker,
    says that its members have left.
    """

    def __init__(self, bus: Bus, peers: Peers | None = None) -> None:
        self._bus = bus
        self._peers = peers = peers or Peers()
        # By channel and client id: the user, and the number of the worker that has the connection.
        self._members: dict[str, dict[str, tuple[str, int]]] = {}
        self._by_channel: dict[str, OpenRoom] = {}
        self.news = RoomNews(bus, lambda: peers.is_speaker)
        if isinstance(bus, SharedBus):
            bus.on_foreign(self._hear)
            bus.share_state("rooms", self._state, self._take_state)
            bus.share_state("room news", self.news.state, self.news.take_state)
            peers.on_gone(self._worker_gone)
            peers.on_speaker(lambda _: self._tell_left())

    def join(self, channel: str, client_id: str, user: str) -> None:
        """Come in; the others are told."""
        members = self._members.setdefault(channel, {})
        if client_id not in members:
            members[client_id] = user, self._peers.number
            self._bus.publish("room.joined", {"user": user, "clientId": client_id}, channel=channel)

    def leave(self, channel: str, client_id: str) -> None:
        """Go; the others are told."""
        user = self._remove(channel, client_id)
        if user is not None:
            self._bus.publish("room.left", {"user": user, "clientId": client_id}, channel=channel)

    def present(self, channel: str) -> tuple[Mapping[str, str], ...]:
        """Who is there, the last to come at the end; the newest 500 where there are more."""
        members = self._members.get(channel, {})
        newest = list(islice(reversed(members.items()), _MOST_PRESENT))
        return tuple({"user": user, "clientId": client_id} for client_id, (user, _) in reversed(newest))

    def _remove(self, channel: str, client_id: str) -> str | None:
        members = self._members.get(channel, {})
        user, _ = members.pop(client_id, (None, _NOBODY))
        if not members:
            self._members.pop(channel, None)
        return user

    # --- other workers -------------------------------------------------------------------------------------

    def _hear(self, sender: int, event: Event) -> None:
        if not event.channel.startswith(ROOM):
            return
        match event.type.name:
            case "room.joined":
                member = str(event.data["user"]), self._still_there(sender)
                self._members.setdefault(event.channel, {})[event.data["clientId"]] = member
            case "room.left":
                self._remove(event.channel, event.data["clientId"])
            case name if name.startswith("room.") and name != "room.message":
                self.news.hear(event)

    def _still_there(self, worker: int) -> int:
        return worker if worker in self._peers.present else _NOBODY

    def _worker_gone(self, number: int) -> None:
        for members in self._members.values():
            for client_id, (user, worker) in members.items():
                if worker == number:
                    members[client_id] = user, _NOBODY
        if self._peers.is_speaker:
            self._tell_left()

    def _tell_left(self) -> None:
        left = [
            (channel, client_id)
            for channel, members in self._members.items()
            for client_id, (_, worker) in members.items()
            if worker == _NOBODY
        ]
        for channel, client_id in left:
            self.leave(channel, client_id)

    def _state(self) -> Any:
        return self._members

    def _take_state(self, state: Any) -> None:
        for channel, members in state.items():
            known = self._members.setdefault(channel, {})
            for client_id, (user, worker) in members.items():
                known[client_id] = user, self._still_there(worker)

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
        self._by_channel = {f"{ROOM}{found.room.name}": found for found in rooms.values()}
        self.news.follow(rooms)

    def quota_of(self, user: str) -> tuple[int, float] | None:
        """How many calls in how many seconds a guest may make; None where `user` is no guest."""
        room = room_of(user)
        found = None if room is None else self._by_channel.get(f"{ROOM}{room}")
        if found is None:
            return None
        return found.room.quota_calls, found.room.quota_ms / 1000


def _is_for(found: OpenRoom, principal: Principal) -> bool:
    """Whether a room of guests is for `principal`: one of them, its host, or an admin."""
    if principal.guest:
        return principal.guest.partition(".")[0] == found.room.id
    is_host = bool(found.room.host) and principal.user == found.room.host and may_host_rooms(principal)
    return is_host or is_admin(principal)
