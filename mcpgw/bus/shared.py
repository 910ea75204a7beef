"""A bus that the workers of a gateway have together: each holds the whole log, in the one order of all.

An event that is published here is sent to the supervisor, which numbers it and tells all; only then it is in
the log, here too. So every worker has the same events at the same positions, and whoever comes back to
another one goes on from where they were.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from mcpgw.bus.local import LocalBus
from mcpgw.wire.events import EVENT_TYPES, Event, Position, event_texts
from mcpgw.workers.membership import LogLink, Welcome

_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of events that a newcomer is told; what is older counts as forgotten there."""
_GATHER_SECONDS: Final = 0.003
"""Events go out at once, but for those that come within so many seconds of the last: they go together."""
_OF_ONE: Final = frozenset({"gateway.started", "config.error"})
_OF_EACH: Final = frozenset({"gateway.draining", "gateway.stopped"})
_FROM_CALLER: Final = "rest"

OnForeign = Callable[[int, Event], None]
"""Takes the number of the worker that an event comes from, and the event."""


class _Told(msgspec.Struct, array_like=True, gc=False):
    """An event on its way: `masked` is null where there is none; `size` is what the log counts for both."""

    type: str
    channel: str
    timestamp: int
    owner: str | None
    data: msgspec.Raw
    masked: msgspec.Raw
    size: int
    offset: int = 0


class _Past(msgspec.Struct, array_like=True):
    """What a newcomer is told: how far it goes, what is forgotten of each kind of channel, and events."""

    offset: int
    forgotten: dict[str, int]
    events: list[_Told]
    latest: list[_Told]
    more: dict[str, msgspec.Raw]


_ENCODE = msgspec.json.Encoder().encode
_DECODE_EVENTS = msgspec.json.Decoder(list[_Told]).decode
_DECODE_PAST = msgspec.json.Decoder(_Past).decode


class SharedBus(LocalBus):
    """See `Bus` and `LocalBus`. Events are sent at once; where many come, some milliseconds' worth together.

    What each worker sees for itself of the same thing is published by one alone (`is_first`), or kept by each
    for its own readers.
    """

    def __init__(
        self,
        link: LogLink,
        welcome: Welcome,
        *,
        is_first: bool,
        max_events: int,
        max_age: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_publish: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(max_events, max_age, max_bytes, clock=clock, on_publish=on_publish)
        self._link = link
        self._is_first = is_first
        self._epoch = welcome.epoch
        self._sending: list[bytes] = []
        self._flushing: asyncio.TimerHandle | None = None
        self._flushed = 0.0
        self._own: deque[tuple[Event, int, Callable[[Position], None] | None]] = deque()
        # What comes before the past is known waits for it.
        self._early: list[tuple[int, int, int, bytes]] | None = [] if welcome.has_past else None
        self._on_foreign: list[OnForeign] = []
        self._more: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        if not welcome.has_past:
            self._begin_at(welcome.offset)
        link.attach(self)

    def on_foreign(self, listener: OnForeign) -> None:
        """Have `listener` told of every event of another worker, when it is in the log."""
        self._on_foreign.append(listener)

    def share_state(self, name: str, tell: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Have a newcomer told, with the past, what `tell` answers (JSON): there `take` is given it."""
        self._more[name] = tell, take

    def _append(
        self,
        event: Event,
        size: int,
        on_published: Callable[[Position], None] | None,
        *,
        is_own: bool = True,
    ) -> Position | None:
        name = event.type.name
        if not self._is_first and (
            name in _OF_ONE or (name == "config.applied" and event.data.get("source") != _FROM_CALLER)
        ):
            return None
        if name in _OF_EACH:
            return super()._append(event, size, on_published, is_own=is_own)
        self._own.append((event, size, on_published))
        if not self._sending:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_at(self._flushed + _GATHER_SECONDS, self.flush)
        self._sending.append(_ENCODE(_told(event, size)))
        return None

    def flush(self) -> None:
        """Send what was published and still waits for more."""
        if not self._sending:
            return
        if self._flushing is not None:
            self._flushing.cancel()
        self._flushed = asyncio.get_running_loop().time()
        events, self._sending = self._sending, []
        self._link.send(len(events), b"[" + b",".join(events) + b"]")

    # --- what comes ----------------------------------------------------------------------------------------

    def take_events(self, sender: int, first: int, count: int, body: bytes) -> None:
        """See `SharedLog.take_events`."""
        if self._early is not None:
            self._early.append((sender, first, count, body))
            return
        if not body:
            for _ in range(count):
                event, size, on_published = self._own.popleft()
                self._offset = max(self._offset, first - 1)
                first += 1
                super()._append(event, size, on_published)
            return
        for told in _DECODE_EVENTS(body):
            event = _event(told, Position(self._epoch, first))
            self._offset = max(self._offset, first - 1)
            first += 1
            super()._append(event, told.size, None, is_own=False)
            for listener in self._on_foreign:
                listener(sender, event)

    def tell_past(self) -> bytes:
        """See `SharedLog.tell_past`."""
        forgotten = self._log.newest_forgotten()
        events: list[_Told] = []
        left = _SNAPSHOT_BYTES
        for event, size in self._log.newest_first():
            left -= size
            if left < 0:
                forgotten = {kind: max(offset, event.position.offset) for kind, offset in forgotten.items()}
                break
            events.append(_told(event, size, event.position.offset))
        latest = [
            _told(event, 0, event.position.offset)
            for by_key in self._latest.values()
            for event in by_key.values()
        ]
        more = {name: msgspec.Raw(_ENCODE(tell())) for name, (tell, _) in self._more.items()}
        return _ENCODE(_Past(self._offset, forgotten, events[::-1], latest, more))

    def take_past(self, body: bytes) -> None:
        """See `SharedLog.take_past`."""
        early, self._early = self._early or [], None
        if body:
            past = _DECODE_PAST(body)
            self._log.forget_until(past.forgotten)
            for told in past.events:
                self._log.append(_event(told, Position(self._epoch, told.offset)), told.size, self._clock())
            for event in _in_order(past.latest, self._epoch):
                self._latest.setdefault(event.channel, {})[event.key] = event
            self._offset = past.offset
            for name, raw in past.more.items():
                if name in self._more:
                    self._more[name][1](msgspec.json.decode(raw))
        elif early:
            self._begin_at(early[0][1] - 1)
        for sender, first, count, events in early:
            if first > self._offset:
                self.take_events(sender, first, count, events)
            elif not events:  # published here, and told by the one who told the past
                for offset in range(first, first + count):
                    _, _, on_published = self._own.popleft()
                    if on_published is not None:
                        on_published(Position(self._epoch, offset))

    def _begin_at(self, offset: int) -> None:
        """Hold nothing of what came up to `offset`."""
        self._offset = offset
        self._log.forget_until(dict.fromkeys(self._log.newest_forgotten(), offset))


def _told(event: Event, size: int, offset: int = 0) -> _Told:
    data, masked = event_texts(event)
    return _Told(
        event.type.name,
        event.channel,
        event.timestamp,
        event.owner,
        msgspec.Raw(data.encode()),
        msgspec.Raw(b"null" if masked is None else masked.encode()),
        size,
        offset,
    )


def _event(told: _Told, position: Position) -> Event:
    masked = msgspec.json.decode(told.masked)
    data: Mapping[str, Any] = msgspec.json.decode(told.data)
    return Event(EVENT_TYPES[told.type], told.channel, data, told.timestamp, position, told.owner, masked)


def _in_order(told: Iterable[_Told], epoch: str) -> list[Event]:
    ordered = sorted(told, key=lambda one: one.offset)
    return [_event(one, Position(epoch, one.offset)) for one in ordered]
