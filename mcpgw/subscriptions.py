"""Who may read which channel, and one reader's view of it."""

from collections.abc import Callable

from mcpgw.access.permissions import is_admin, may_join_room, may_read_events
from mcpgw.access.tokens import Principal
from mcpgw.errors import PermissionDenied, UnknownChannel, suggest
from mcpgw.wire.events import CHANNELS, LEVELS, Event, channel_base
from mcpgw.wire.frames import EventFilter

ROOM = "room:"
_USER = "user:"
_OWNED = frozenset({"calls"})  # an event without an owner is nobody's there: only admins see it


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
        return is_admin(principal) or (is_own and may_read_events(principal))
    return base is not None and may_read_events(principal)


def readable_channels(principal: Principal) -> tuple[str, ...]:
    """The channels that a reader who names none is given: all but the rooms, which one joins by name."""
    named = (*CHANNELS, f"{_USER}{principal.user}")
    return tuple(channel for channel in named if may_read_channel(principal, channel))


def visible_text(principal: Principal, event: Event) -> str | None:
    """The event as `principal` may see it; None where it may not be seen at all."""
    if event.type.admin_only and not is_admin(principal):
        return None
    if event.owner is None and event.channel not in _OWNED:
        return event.text()
    if event.owner is not None and event.owner == principal.user:
        return event.text()
    return event.text(full=False) if is_admin(principal) else None


class Subscription:
    """One reader's view of one channel; `deliver` is given each event with its text, in order."""

    def __init__(
        self,
        principal: Principal,
        channel: str,
        event_filter: EventFilter,
        deliver: Callable[[Event, str], None],
    ) -> None:
        self.channel = channel
        self.principal = principal
        self.filter = event_filter
        self.stop: Callable[[], None] = _nothing
        self._deliver = deliver
        self._levels = None if event_filter.min_level is None else _levels_from(event_filter.min_level)

    def take(self, event: Event) -> None:
        """Pass an event on, where the reader wants it and may see it."""
        if self._wanted(event) and (text := visible_text(self.principal, event)) is not None:
            self._deliver(event, text)

    def _wanted(self, event: Event) -> bool:
        wanted = self.filter
        if wanted.types is not None and event.type.name not in wanted.types:
            return False
        if wanted.servers is not None and event.data.get("serverId", "") not in wanted.servers:
            return False
        level = event.data.get("level")
        return self._levels is None or level is None or level in self._levels


def _levels_from(lowest: str) -> frozenset[str]:
    return frozenset(LEVELS[LEVELS.index(lowest) :])


def _nothing() -> None:
    """Before it is known how to stop, there is nothing to stop."""
