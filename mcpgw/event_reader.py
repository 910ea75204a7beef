"""Readers of the log: from a place in it to its end, as fast as they read, then live."""

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Final

from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus
from mcpgw.errors import PermissionDenied
from mcpgw.subscriptions import ROOM, Beginning, Subscription, readable_channels, require_channel
from mcpgw.wire.deliveries import LiveReader
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import EventFilter

_OFFSET: Final = attrgetter("position.offset")


class LogMovedOnError(Exception):
    """The reader was so slow that the log no longer holds what it has still to read."""


class CatchUp:
    """Leads subscriptions from a place in the log to its end in steps, then lets them listen.

    What was missed may be far more than may wait for one reader: it stays in the log until the reader has
    room for it, and so does what happens meanwhile. Without `since`, or where the log no longer reaches back
    to it, the present state of each channel comes first. With `again` the reader had these subscriptions
    before, and `since` is what it saw last of any of them: each begins where that tells that it has to.
    `is_mixed` says whether the reader has been given other events before.

    `position` is where the reader is before the first step: coming back from there misses nothing and gives
    nothing twice. `recovered` is None without `since`, else whether all that was missed follows; both are
    given for each channel by `start_of`, which differ with `again` alone.
    `subscriptions` are given by channel; stopping one of them ends its part of this.
    """

    def __init__(
        self,
        bus: Bus,
        subscriptions: Mapping[str, Subscription],
        since: Position | None,
        *,
        again: bool = False,
        is_mixed: bool = False,
    ) -> None:
        self._bus = bus
        self._behind = dict(subscriptions)
        self._begun: dict[str, Beginning] = {}
        self._lost: set[str] = set()
        for part in [[channel] for channel in self._behind] if again else [list(self._behind)]:
            self._begin(part, since, again=again)
        places = {begun.position for begun in self._begun.values()}
        self.position = min(places, default=bus.position)
        self.recovered = None if since is None else not self._lost
        first = (
            event
            for channel, begun in self._begun.items()
            if begun.with_state
            for event in bus.latest(channel)
            if event.position.offset <= begun.position.offset
        )
        self._first = deque(sorted(first, key=_OFFSET))
        # All that follows comes in the order of the log, also where some begin earlier than others.
        is_mixed = is_mixed or any(event.position > self.position for event in self._first)
        told = frozenset(place.offset for place in (*places, *([] if since is None else [since])))
        for begun in self._begun.values():
            begun.told, begun.is_mixed = told, is_mixed
        self._cursor = self.position
        for subscription in self._behind.values():
            subscription.stop = self._forgetting(subscription)

    @property
    def is_live(self) -> bool:
        """Whether the end of the log is reached, and every subscription is given what happens."""
        return not self._behind

    def start_of(self, channel: str) -> tuple[Position, bool | None]:
        """Where a channel begins, and whether all that was missed of it follows (None without `since`)."""
        return self._begun[channel].position, None if self.recovered is None else channel not in self._lost

    def mix(self) -> None:
        """The reader is given other events too before the end is reached."""
        for channel in self._behind:
            self._begun[channel].is_mixed = True

    def step(self, limit: int) -> None:
        """Deliver at most `limit` events; where that reaches the end of the log, listen from there on.

        Raises:
            LogMovedOnError: the log no longer holds what was to be read; the reader has to begin anew.
        """
        while self._first and limit > 0:
            self._take(self._first.popleft())
            limit -= 1
        while limit > 0 and not self._first and self._behind:
            limit -= self._read(limit)
            # Nothing was awaited since the look into the log: what comes now is given to the listeners.
            if self._cursor == self._bus.position:
                for channel, subscription in self._behind.items():
                    self._begun[channel].live_at = self._cursor.offset
                    subscription.listen(self._bus)
                self._behind.clear()

    def _read(self, limit: int) -> int:
        """Deliver at most `limit` events that come next in the log; answers how many there were."""
        offset = self._cursor.offset
        later = [
            begun.position
            for channel, begun in self._begun.items()
            if channel in self._behind and begun.position.offset > offset
        ]
        # What the log has forgotten of a channel before its own beginning does no harm.
        due = [channel for channel in self._behind if self._begun[channel].position.offset <= offset]
        if not due:
            self._cursor = min(later)
            return 0
        replay = self._bus.since(self._cursor, due, limit=limit)
        if not replay.recovered:
            raise LogMovedOnError
        until = min([replay.until, *later])
        count = 0
        for event in replay.events:
            if event.position > until:
                break
            self._cursor = event.position
            self._take(event)
            count += 1
        self._cursor = until
        return count

    def _begin(self, channels: Sequence[str], since: Position | None, *, again: bool) -> None:
        """Find out where channels begin that are recovered together, or not."""
        place, with_state = since, False
        if again and since is not None:
            for channel in channels:
                begun = self._behind[channel].beginning
                if begun is not None:
                    place, with_state = begun.behind(since)
        if place is None or not self._bus.since(place, channels, limit=0).recovered:
            place, with_state = self._bus.position, True
            self._lost.update(channels)
        for channel in channels:
            begun = Beginning(place, with_state, is_lost=since is not None and channel in self._lost)
            self._begun[channel] = self._behind[channel].beginning = begun

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
