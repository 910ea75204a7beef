"""Readers of the log: from a place in it to its end, as fast as they read, then live."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence

from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus
from mcpgw.errors import PermissionDenied
from mcpgw.subscriptions import ROOM, Subscription, readable_channels, require_channel
from mcpgw.wire.deliveries import LiveReader
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import EventFilter


class LogMovedOnError(Exception):
    """The reader was so slow that the log no longer holds what it has still to read."""


class CatchUp:
    """Leads subscriptions from a place in the log to its end in steps, then lets them listen.

    What was missed may be far more than may wait for one reader: it stays in the log until the reader has
    room for it, and so does what happens meanwhile. Without `since`, or where the log no longer reaches back
    to it, the present state of each channel comes first.

    `position` is where the reader is before the first step: coming back from there misses nothing and gives
    nothing twice. `recovered` is None without `since`, else whether all that was missed follows.
    `subscriptions` are given by channel; stopping one of them ends its part of this.
    """

    def __init__(self, bus: Bus, subscriptions: Mapping[str, Subscription], since: Position | None) -> None:
        self._bus = bus
        self._behind = dict(subscriptions)
        self._first: deque[Event] = deque()
        self.recovered = None if since is None else bus.since(since, self._behind, limit=0).recovered
        if since is not None and self.recovered:
            self.position = since
        else:
            self.position = bus.position
            latest = (event for channel in self._behind for event in bus.latest(channel))
            self._first.extend(sorted(latest, key=lambda event: event.position.offset))
        self._cursor = self.position
        for subscription in self._behind.values():
            subscription.stop = self._forgetting(subscription)

    @property
    def is_live(self) -> bool:
        """Whether the end of the log is reached, and every subscription is given what happens."""
        return not self._behind

    def step(self, limit: int) -> None:
        """Deliver at most `limit` events; where that reaches the end of the log, listen from there on.

        Raises:
            LogMovedOnError: the log no longer holds what was to be read; the reader has to begin anew.
        """
        while self._first and limit > 0:
            self._take(self._first.popleft())
            limit -= 1
        if self._first or limit <= 0 or not self._behind:
            return
        replay = self._bus.since(self._cursor, self._behind, limit=limit)
        if not replay.recovered:
            raise LogMovedOnError
        self._cursor = replay.until
        for event in replay.events:
            self._take(event)
        # Nothing was awaited since the look into the log: whatever comes now is given to the listeners.
        if len(replay.events) < limit and self._cursor == self._bus.position:
            for subscription in self._behind.values():
                subscription.listen(self._bus)
            self._behind.clear()

    def _take(self, event: Event) -> None:
        subscription = self._behind.get(event.channel)
        if subscription is not None:
            subscription.take(event)

    def _forgetting(self, subscription: Subscription) -> Callable[[], None]:
        def stop() -> None:
            self._behind.pop(subscription.channel, None)

        return stop


class EventReader:
    """The channels that `principal` may read, or those of them that are named.

    Rooms are none of them: whoever reads a room is in it, for the others to see, and a stream is nowhere.

    Raises:
        UnknownChannel: a named channel is none.
        PermissionDenied: a named channel is not for this caller, or is a room.
    """

    def __init__(
        self,
        bus: Bus,
        principal: Principal,
        channels: Sequence[str] | None,
        deliver: Callable[[Event, str], None],
    ) -> None:
        for channel in channels or ():
            require_channel(principal, channel)
            if channel.startswith(ROOM):
                raise PermissionDenied("a room is joined over a WebSocket: a stream of events has no members")
        self._bus = bus
        self._subscriptions = {
            channel: Subscription(principal, channel, EventFilter(), deliver)
            for channel in (readable_channels(principal) if channels is None else channels)
        }

    def start(self, since: Position | None) -> CatchUp:
        """What leads from `since`, or from the present state of each channel, to what happens live.

        What was missed goes to `deliver`, and what happens live too where `through` was not called.
        """
        return CatchUp(self._bus, self._subscriptions, since)

    def through(self, reader: LiveReader) -> None:
        """Give what happens live to `reader`, which is written to like others."""
        for subscription in self._subscriptions.values():
            subscription.through(reader)

    def stop(self) -> None:
        """Deliver nothing more."""
        for subscription in self._subscriptions.values():
            subscription.stop()
