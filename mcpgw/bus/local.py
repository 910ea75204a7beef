"""A bus inside one process."""

import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, Final

from mcpgw.bus.bus import Audience, Bus, Replay
from mcpgw.bus.event_log import EventLog
from mcpgw.bus.listeners import Listeners
from mcpgw.wire.events import CHANNELS, EVENT_TYPES, Event, Position, channel_base, checked_data
from mcpgw.wire.frames import now_ms

MAXIMUM_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of all events in the log, where nothing else is said."""


_NOWHERE: Final = Position("", 0)


class LocalBus(Bus):
    """See `Bus`. Holds the newest `max_events` of each kind of channel, none older than `max_age` seconds.

    All together have at most `max_bytes`; how these are shared is said at `EventLog`.
    `clock` is monotonic, in seconds: a jump of the wall clock must not empty the log. `on_publish` is told
    the channel of each event, to count them.
    """

    def __init__(
        self,
        max_events: int,
        max_age: float,
        max_bytes: int = MAXIMUM_BYTES,
        *,
        clock: Callable[[], float] = time.monotonic,
        on_publish: Callable[[str], None] | None = None,
    ) -> None:
        self._epoch = secrets.token_hex(8)
        self._offset = 0
        self._clock = clock
        self._on_publish = on_publish
        self._log = EventLog(max_events, max_age, max_bytes)
        self._listeners = Listeners()
        self._latest: dict[str, dict[str, Event]] = {}
        self._undelivered: deque[Event] = deque()
        self._delivering = False

    @property
    def position(self) -> Position:
        """The position of the newest event."""
        return Position(self._epoch, self._offset)

    def publish(
        self,
        type_name: str,
        data: Mapping[str, Any],
        *,
        channel: str | None = None,
        owner: str | None = None,
        masked: Mapping[str, Any] | None = None,
        encoded: Mapping[str, str] | None = None,
        size: int | None = None,
        on_published: Callable[[Position], None] | None = None,
    ) -> Position | None:
        """See `Bus.publish`."""
        event_type = EVENT_TYPES[type_name]
        own = event_type.channel
        name = channel or own
        if (name != own or own not in CHANNELS) and channel_base(name) not in event_type.channels:
            raise ValueError(f"{type_name} belongs to the channel {own!r}, not {name[:64]!r}")
        if size is None:
            size = 0 if masked is None else checked_data(masked)[1]
            try:
                encoded, data_size = checked_data(data, encoded)
            except ValueError:
                if masked is None:
                    raise
                data, encoded, data_size = masked, None, size
            size += data_size
        event = Event(event_type, name, data, now_ms(), _NOWHERE, owner, masked, encoded)
        return self._accept(event, size, on_published)

    def _accept(
        self, event: Event, size: int, on_published: Callable[[Position], None] | None
    ) -> Position | None:
        """Take an event that was published; answers where it stands, as far as that is known."""
        return self._append(event, size, on_published)

    def _append(
        self,
        event: Event,
        size: int,
        on_published: Callable[[Position], None] | None,
        *,
        is_own: bool = True,
    ) -> Position:
        """Put an event at the end of the log, and give it to those who listen."""
        self._offset += 1
        event.position = position = Position(self._epoch, self._offset)
        self._log.append(event, size, self._clock())
        if event.type.key:
            latest = self._latest.setdefault(event.channel, {})
            latest.pop(event.key, None)  # the order of the keys is the order of their newest events
            latest[event.key] = event
        if self._on_publish is not None and is_own:
            self._on_publish(event.channel)
        if self._delivering or self._listeners.has_any(event.channel):
            self._undelivered.append(event)
            # A listener that publishes does so while all are being given another: its event comes after that.
            if not self._delivering:
                self._deliver()
        if on_published is not None:
            on_published(position)
        return position

    def _deliver(self) -> None:
        self._delivering = True
        try:
            while self._undelivered:
                self._listeners.deliver(self._undelivered.popleft())
        finally:
            self._delivering = False

    def listen(
        self, channel: str, listener: Callable[[Any], None], audience: Audience | None = None
    ) -> Callable[[], None]:
        """See `Bus.listen`."""
        return self._listeners.add(channel, listener, audience, self._offset)

    def since(self, position: Position, channels: Collection[str], *, limit: int | None = None) -> Replay:
        """See `Bus.since`. What was forgotten of other channels does no harm."""
        wanted = frozenset(channels)
        forgotten = self._log.forgotten(wanted, self._clock())
        if position.epoch != self._epoch or not forgotten <= position.offset <= self._offset:
            return Replay((), recovered=False, until=self.position)
        missed = tuple(self._log.behind(position.offset, wanted, limit))
        is_all = limit is None or len(missed) < limit
        until = self.position if is_all else missed[-1].position if missed else position
        return Replay(missed, recovered=True, until=until)

    def listeners(self) -> Mapping[str, int]:
        """See `Bus.listeners`."""
        return self._listeners.counts()

    def latest(self, channel: str) -> tuple[Event, ...]:
        """See `Bus.latest`."""
        return tuple(self._latest.get(channel, {}).values())
