"""A bus inside one process: the log is a bounded queue."""

import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final

from mcpgw.bus.bus import Bus, Listener, Replay
from mcpgw.wire.events import EVENT_TYPES, Event, Position, channel_base
from mcpgw.wire.frames import now_ms

_LOGGER = logging.getLogger("mcpgw.bus")
MAXIMUM_BYTES: Final = 64 * 1024 * 1024
"""Most bytes of the texts of all events in the log, where nothing else is said."""


@dataclass(slots=True, eq=False)
class _Listening:
    """One listener with the offset behind which it began; `ended` once it wants no more."""

    listener: Listener
    began: int
    ended: bool = False


class LocalBus(Bus):
    """See `Bus`. Holds the newest `max_events`, none older than `max_age` seconds, all within `max_bytes`.

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
        self._max_events = max_events
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._clock = clock
        self._on_publish = on_publish
        # Offsets in the log have no gap, so that an event's place follows from its offset.
        self._log: deque[Event] = deque()
        self._ages: deque[tuple[float, int]] = deque()
        self._bytes = 0
        self._forgotten: dict[str | None, int] = {}
        self._listeners: dict[str, dict[_Listening, None]] = {}
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
    ) -> None:
        """See `Bus.publish`."""
        event = self._event(type_name, data, channel, owner, masked)
        self._offset = event.position.offset
        size = sum(_length(event.text(full=full)) for full in ((True,) if masked is None else (True, False)))
        self._log.append(event)
        self._ages.append((self._clock(), size))
        self._bytes += size
        self._forget()
        if event.type.key:
            latest = self._latest.setdefault(event.channel, {})
            latest.pop(event.key, None)  # the order of the keys is the order of their newest events
            latest[event.key] = event
        self._undelivered.append(event)
        if self._on_publish is not None:
            self._on_publish(event.channel)
        if self._delivering:
            return  # a listener has published: its event comes after the one that all are being given
        self._delivering = True
        try:
            while self._undelivered:
                self._deliver(self._undelivered.popleft())
        finally:
            self._delivering = False

    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        """See `Bus.listen`."""
        listening = _Listening(listener, self._offset)
        self._listeners.setdefault(channel, {})[listening] = None

        def stop() -> None:
            listening.ended = True
            listeners = self._listeners.get(channel, {})
            listeners.pop(listening, None)
            if not listeners:
                self._listeners.pop(channel, None)

        return stop

    def since(self, position: Position, channels: Collection[str], *, limit: int | None = None) -> Replay:
        """See `Bus.since`. What was forgotten of other channels does no harm."""
        self._forget()
        wanted = frozenset(channels)
        forgotten = max((self._forgotten.get(channel_base(channel), 0) for channel in wanted), default=0)
        if position.epoch != self._epoch or not forgotten <= position.offset <= self._offset:
            return Replay((), recovered=False, until=self.position)
        first = self._offset - len(self._log) + 1
        behind = islice(self._log, max(0, position.offset + 1 - first), None)
        missed = tuple(islice((event for event in behind if event.channel in wanted), limit))
        is_all = limit is None or len(missed) < limit
        until = self.position if is_all else missed[-1].position if missed else position
        return Replay(missed, recovered=True, until=until)

    def listeners(self) -> Mapping[str, int]:
        """See `Bus.listeners`."""
        return {channel: len(listeners) for channel, listeners in self._listeners.items()}

    def latest(self, channel: str) -> tuple[Event, ...]:
        """See `Bus.latest`."""
        return tuple(self._latest.get(channel, {}).values())

    def _event(
        self,
        type_name: str,
        data: Mapping[str, Any],
        channel: str | None,
        owner: str | None,
        masked: Mapping[str, Any] | None,
    ) -> Event:
        event_type = EVENT_TYPES[type_name]
        name = channel or event_type.channel
        if channel_base(name) != event_type.channel:
            raise ValueError(f"{type_name} belongs to the channel {event_type.channel!r}, not {name[:64]!r}")
        position = Position(self._epoch, self._offset + 1)
        event = Event(event_type, name, data, now_ms(), position, owner, masked)
        try:
            event.text()
        except ValueError:
            if masked is None:
                raise
            event = Event(event_type, name, masked, event.timestamp, position, owner, masked)
            event.text()
        event.text(full=False)
        return event

    def _deliver(self, event: Event) -> None:
        offset = event.position.offset
        for listening in tuple(self._listeners.get(event.channel, ())):
            if listening.ended or listening.began >= offset:
                continue
            try:
                listening.listener(event)
            except Exception:
                # A fault of one reader's code must keep the event from nobody else, nor stop the publisher.
                _LOGGER.exception("a listener of %s raised", event.channel)

    def _forget(self) -> None:
        oldest = self._clock() - self._max_age
        while self._log and (
            len(self._log) > self._max_events or self._bytes > self._max_bytes or self._ages[0][0] < oldest
        ):
            event = self._log.popleft()
            self._bytes -= self._ages.popleft()[1]
            # By kind of channel, because there may be any number of users and rooms.
            self._forgotten[channel_base(event.channel)] = event.position.offset


def _length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
