"""Who may read which channel, and one reader's view of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from mcpgw.access.permissions import (
    EVERYTHING,
    Sight,
    is_admin,
    may_approve,
    may_join_room,
    may_read_calls,
    may_read_events,
)
from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus
from mcpgw.errors import PermissionDenied, UnknownChannel, suggest
from mcpgw.wire.deliveries import Delivery, Encoding, LiveReader
from mcpgw.wire.events import CHANNELS, LEVELS, Event, Position, channel_base
from mcpgw.wire.frames import EventFilter

ROOM = "room:"
RESOURCE_UPDATED = "server.resource_updated"
_HEALTH = "gateway.health_update"
_USER = "user:"
_CONFIG = "config"
_OF_SERVERS = frozenset({"servers", "calls", "gateway", _CONFIG})
_FAULTY = "the new configuration has faults"
_OWNED = frozenset({"calls"})  # an event without an owner is nobody's there: only who sees all sees it


def require_channel(principal: Principal, channel: str) -> None:
    """Refuse a channel that is none, or that the caller may not read; the default is no.

    Raises:
        UnknownChannel: names the nearest one.
        PermissionDenied: no scope allows it.
    """
    if channel_base(channel) is None:
        known = (*CHANNELS, f"{_USER}{principal.user}", f"{ROOM}NAME")
        raise UnknownChannel(f"no channel {channel[:64]!r}{suggest(channel, known)}")
    if not may_read_channel(principal, channel):
        raise PermissionDenied(f"the channel {channel[:64]!r} is not for this token")


def may_read_channel(principal: Principal, channel: str) -> bool:
    """Whether some event of `channel` may be read by `principal`."""
    base = channel_base(channel)
    if base == ROOM:
        return may_join_room(principal, channel.removeprefix(ROOM))
    if base == _USER:
        is_own = channel == f"{_USER}{principal.user}"
        return is_admin(principal) or (is_own and (may_read_events(principal) or bool(principal.guest)))
    if base in _OWNED and (principal.guest or may_read_calls(principal) or may_approve(principal)):
        return True
    return base is not None and may_read_events(principal)


def readable_channels(principal: Principal) -> tuple[str, ...]:
    """The channels that a reader who names none is given: all but the rooms, which one joins by name."""
    named = (*CHANNELS, f"{_USER}{principal.user}")
    return tuple(channel for channel in named if may_read_channel(principal, channel))


@dataclass(frozen=True, slots=True)
class View:
    """What decides which events of one channel a reader may see, and how much of them.

    `user` is whose events are seen whole, on channels whose events have owners; `sees_all` whether those of
    the others are seen too, without what only their owners may see. `approves` tells whether what waits for
    an approval is seen whole. `sight` says of which servers and tools something is seen.
    """

    is_admin: bool
    sees_all: bool
    user: str | None
    approves: bool = False
    owned: bool = False
    sight: Sight = EVERYTHING

    @classmethod
    def of(cls, principal: Principal, channel: str, *, watches: bool = False) -> "View":
        """The view that `principal` has of `channel`.

        Who `watches` resources is told of those of their own instances of servers, too; others are not, so
        that all of them are one audience.
        """
        # Rules are looked at here, once for all whose rules are the same, and not for each reader and event.
        sight = Sight.of(principal) if channel in _OF_SERVERS else EVERYTHING
        if channel in _OWNED:
            approves, reads = may_approve(principal), may_read_calls(principal)
            return cls(is_admin(principal), reads, principal.user, approves, owned=True, sight=sight)
        user = principal.user if watches else None
        return cls(is_admin(principal), is_admin(principal), user, sight=sight)

    def text(self, event: Event) -> str | None:
        """The event as it may be seen; None where it may not be seen at all."""
        if event.type.admin_only and not self.is_admin:
            return None
        if self.sight is not EVERYTHING:
            if event.channel == _CONFIG:
                return event.text_with(self._of_config(event.data))
            if not self._is_in_sight(event):
                return None
        if event.owner is None and event.channel not in _OWNED:
            return event.text()
        if event.owner is not None and event.owner == self.user:
            return event.text()
        if self.approves and event.type.for_approvers:
            return event.text()
        return event.text(full=False) if self.sees_all else None

    def _is_in_sight(self, event: Event) -> bool:
        """Whether an event is of a server, or a tool, that is shown; of calls one's own are."""
        if event.type.name == _HEALTH:  # it counts those that are not shown, too
            return False
        server = event.data.get("serverId")
        if server is None or (event.channel in _OWNED and event.owner == self.user):
            return True
        if event.channel in _OWNED:
            return self.sight.shows_tool(server, event.data.get("toolName", ""))
        if event.type.name == RESOURCE_UPDATED:
            return self.sight.shows_all_of(server)
        return self.sight.shows_server(server)

    def _of_config(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What is told of the configuration, without the names of servers that are not shown."""
        seen = dict(data)
        if (servers := seen.get("servers")) is not None:
            shows = self.sight.shows_server
            seen["servers"] = {how: [one for one in names if shows(one)] for how, names in servers.items()}
        if "faults" in seen:  # in words, which may be of any server
            seen["faults"] = [_FAULTY]
        return seen


def _uncounted(_type_name: str, _count: int) -> None:
    """Nobody counts what these readers are given."""


@dataclass(frozen=True, slots=True)
class SameView:
    """The audience of all who see the same of a channel, want the same of it, and are written to alike.

    `count` is told the type of each event and to how many readers it went.
    """

    view: View
    filter: EventFilter
    encoding: Encoding
    count: Callable[[str, int], None] = field(default=_uncounted, compare=False)

    @property
    def owner(self) -> str | None:
        """Whose events alone are seen."""
        view = self.view
        return view.user if view.owned and not (view.sees_all or view.approves) else None

    def prepare(self, event: Event) -> Delivery | None:
        """The event as these readers are given it; None where they do not want it or may not see it."""
        if not is_wanted(self.filter, event) or (text := self.view.text(event)) is None:
            return None
        return Delivery(event, text, self.encoding.encode(event, text))

    def delivered(self, event: Event, count: int) -> None:
        """Count what was given."""
        self.count(event.type.name, count)


_NOWHERE = Position("", 0)


@dataclass(slots=True)
class Beginning:
    """From where a subscription was led to what happens live: what its reader's position means depends on it.

    `position` is where it began, with the present state where `with_state`; where `is_lost`, its reader was
    told that something was missing. `told` are the offsets that the reader may name without having been given
    an event there. `is_mixed` says whether it may have been given newer events of others before the end was
    reached, which was at the offset `live_at` (None before).
    """

    position: Position
    with_state: bool
    is_lost: bool
    told: frozenset[int] = frozenset()
    is_mixed: bool = False
    live_at: int | None = None

    def behind(self, seen: Position) -> tuple[Position, bool]:
        """From where a reader that saw `seen` last is led anew, and whether with the present state.

        Newer than the end of what it was led through means that all of that has come, since it was written
        before. Else it is known only where all that was led came in one order; where it is not, it begins
        again: something may come twice, and nothing is missing.
        """
        if seen.epoch != self.position.epoch or self._is_told_by(seen.offset):
            return seen, False
        if self.is_lost:
            return _NOWHERE, True  # it may not have heard of that
        return (min(seen, self.position), True) if self.with_state else (self.position, False)

    def _is_told_by(self, offset: int) -> bool:
        if self.live_at is not None and offset > self.live_at:
            return True
        return not self.is_mixed and offset > self.position.offset and offset not in self.told


class Subscription:
    """One reader's view of one channel.

    `deliver` is given each event with its text, in order. Once the subscription listens, `reader` is given
    them in its place, where there is one: it shares what is prepared with all whose view is the same.
    Of what was missed, nothing up to the offset `begins` is given: nobody hears what was said in a room
    before they came in. `beginning` is set by what leads it to what happens live.
    """

    __slots__ = (
        "_bus",
        "_count",
        "_deliver",
        "_end",
        "_principal",
        "_reader",
        "_view",
        "beginning",
        "begins",
        "channel",
        "filter",
        "stop",
    )

    def __init__(
        self,
        principal: Principal,
        channel: str,
        event_filter: EventFilter,
        deliver: Callable[[Event, str], None],
        *,
        reader: LiveReader | None = None,
        count: Callable[[str, int], None] = _uncounted,
    ) -> None:
        self.channel = channel
        self.beginning: Beginning | None = None
        self.begins = 0
        self.filter = event_filter
        self.stop: Callable[[], None] = _nothing
        self._principal = principal
        self._view = View.of(principal, channel, watches=bool(event_filter.resources))
        self._deliver = deliver
        self._reader = reader
        self._count = count
        self._bus: Bus | None = None
        self._end: Callable[[], None] = _nothing

    @property
    def principal(self) -> Principal:
        """Who reads; a newer token of theirs may let them see more or less from then on."""
        return self._principal

    @principal.setter
    def principal(self, principal: Principal) -> None:
        self._principal = principal
        view = View.of(principal, self.channel, watches=bool(self.filter.resources))
        if view != self._view:
            self._view = view
            if self._bus is not None:
                self.listen(self._bus)

    def through(self, reader: LiveReader | None) -> None:
        """Give events that happen to another reader, as soon as the subscription listens again."""
        self._reader = reader

    def take(self, event: Event) -> None:
        """Pass an event on, where the reader wants it and may see it."""
        if event.position.offset <= self.begins:
            return
        if is_wanted(self.filter, event) and (text := self._view.text(event)) is not None:
            self._deliver(event, text)

    def listen(self, bus: Bus) -> None:
        """Pass on what happens from now on, until `stop` is called."""
        self._end()
        if self._reader is None:
            self._end = bus.listen(self.channel, self.take)
        else:
            audience = SameView(self._view, self.filter, self._reader.encoding, self._count)
            self._end = bus.listen(self.channel, self._reader.send_event, audience)
        self._bus = bus
        self.stop = self._stop_listening

    def _stop_listening(self) -> None:
        self._bus = None
        self._end()
        # What leads back to the reader, or here, would keep both.
        self._end = self.stop = _nothing


def is_wanted(wanted: EventFilter, event: Event) -> bool:
    """Whether a filter lets an event pass."""
    if wanted.types is not None and event.type.name not in wanted.types:
        return False
    if wanted.servers is not None and event.data.get("serverId", "") not in wanted.servers:
        return False
    if wanted.resources is not None and event.type.name == RESOURCE_UPDATED:
        return (event.data["serverId"], event.data["uri"]) in wanted.resources
    level = event.data.get("level")
    return wanted.min_level is None or level is None or level in _levels_from(wanted.min_level)


@cache
def _levels_from(lowest: str) -> frozenset[str]:
    return frozenset(LEVELS[LEVELS.index(lowest) :])


def _nothing() -> None:
    """Before it is known how to stop, there is nothing to stop."""
