"""A bus that the workers of a gateway have together: each holds the whole log, in the one order of all.

An event that is published here is sent to the supervisor, which numbers it and tells all; only then it is in
the log, here too. So every worker has the same events at the same positions, and whoever comes back to
another one goes on from where they were.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import msgspec

from mcpgw.bus.bus import Audience
from mcpgw.bus.local import LocalBus
from mcpgw.logs import log_event
from mcpgw.wire.events import EVENT_TYPES, Event, Position, event_texts
from mcpgw.workers.membership import LogLink, Welcome

_LOGGER = logging.getLogger("mcpgw.workers")
_GATHER_SECONDS: Final = 0.003
"""Events go out at once, but for those that come within so many seconds of the last: they go together."""
_SNAPSHOT_BYTES: Final = 16 * 1024 * 1024
"""Most bytes of events that a newcomer is told; what is older counts as forgotten there."""
_ENVELOPE_BYTES: Final = 128
PAST_SECONDS: Final = 10.0
"""How long a newcomer waits until it is told the past; whoever was to tell it may hang."""
_OF_ONE: Final = frozenset({"gateway.started", "config.error"})
_OF_EACH: Final = frozenset({"gateway.draining", "gateway.stopped"})
_FROM_CALLER: Final = "rest"

OnForeign = Callable[[int, Event], None]
"""Takes the number of the worker that an event comes from, and the event."""


class _Told(msgspec.Struct, array_like=True, gc=False):
    """An event on its way: `masked` is null where there is none; `size` is what the log counts for both.

    `offset` and `age` (seconds since it was logged) are told of the past alone.
    """

    type: str
    channel: str
    timestamp: int
    owner: str | None
    data: msgspec.Raw
    masked: msgspec.Raw
    size: int
    offset: int = 0
    age: float = 0.0


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

    What each worker sees for itself of the same thing is published by one alone, whose `is_speaker` says so;
    that this worker ends is told to its own readers alone, and stands in no log. Until `begin` nothing that
    comes is taken.
    """

    def __init__(
        self,
        link: LogLink,
        welcome: Welcome,
        *,
        is_speaker: Callable[[], bool],
        max_events: int,
        max_age: float,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        on_publish: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(max_events, max_age, max_bytes, clock=clock, on_publish=on_publish)
        self._link = link
        self._is_speaker = is_speaker
        self._epoch = welcome.epoch
        self._welcome = welcome
        self._sending: list[bytes] = []
        self._flushing: asyncio.TimerHandle | None = None
        self._flushed = 0.0
        self._own: deque[tuple[Event, int, Callable[[Position], None] | None]] = deque()
        # What comes before the past is known, and before all listen who are to, waits for it.
        self._early: list[tuple[int, int, int, bytes]] | None = []
        self._past: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._watched: dict[str, Callable[[], None]] = {}
        self._on_foreign: list[OnForeign] = []
        self._more: dict[str, tuple[Callable[[], Any], Callable[[Any], None]]] = {}
        if not welcome.has_past:
            self._past.set_result(b"")
        link.attach(self)

    async def begin(self) -> None:
        """Take the past, as soon as it is told, and all that has come since; then what comes.

        Whoever wants to hear of other workers' events, or of their state, has to say so before.
        """
        await asyncio.wait({self._past}, timeout=PAST_SECONDS)
        if not self._past.done():
            log_event(_LOGGER, logging.ERROR, "nobody tells what has happened so far")
            self._past.set_result(b"")
        self._take_past(self._past.result())

    def on_foreign(self, listener: OnForeign) -> None:
        """Have `listener` told of every event of another worker, when it is in the log."""
        self._on_foreign.append(listener)

    def share_state(self, name: str, tell: Callable[[], Any], take: Callable[[Any], None]) -> None:
        """Have a newcomer told, with the past, what `tell` answers (JSON): there `take` is given it."""
        self._more[name] = tell, take

    def watch_listeners(self, channel: str, watcher: Callable[[], None]) -> None:
        """Have `watcher` called whenever somebody has begun or ended to listen to `channel`."""
        self._watched[channel] = watcher

    def listen(
        self, channel: str, listener: Callable[[Any], None], audience: Audience | None = None
    ) -> Callable[[], None]:
        """See `Bus.listen`."""
        stop = super().listen(channel, listener, audience)
        watcher = self._watched.get(channel)
        if watcher is None:
            return stop

        def stop_and_tell() -> None:
            stop()
            watcher()

        watcher()
        return stop_and_tell

    def _accept(
        self, event: Event, size: int, on_published: Callable[[Position], None] | None
    ) -> Position | None:
        name = event.type.name
        if name in _OF_EACH:
            # It takes no place in the order of all: whoever goes on from it misses nothing.
            event.position = self.position
            self._listeners.deliver(event, to_all=True)
            return event.position
        if (
            name in _OF_ONE or (name == "config.applied" and event.data.get("source") != _FROM_CALLER)
        ) and not self._is_speaker():
            return None
        self._own.append((event, size, on_published))
        if not self._sending:
            loop = asyncio.get_running_loop()
            self._flushing = loop.call_at(self._flushed + _GATHER_SECONDS, self.flush)
        self._sending.append(_ENCODE(_told(event, size)))
        return None

    def flush(self) -> None:
        """See `Log`."""
        if not self._sending:
            return
        if self._flushing is not None:
            self._flushing.cancel()
        self._flushed = asyncio.get_running_loop().time()
        events, self._sending = self._sending, []
        self._link.send(len(events), b"[" + b",".join(events) + b"]")

    # --- what comes ----------------------------------------------------------------------------------------

    def take_events(self, sender: int, first: int, count: int, body: bytes) -> None:
        """See `Log`."""
        if self._early is not None:
            self._early.append((sender, first, count, body))
            return
        if not body:
            for _ in range(count):
                event, size, on_published = self._own.popleft()
                self._offset = max(self._offset, first - 1)
                first += 1
                self._append(event, size, None)
                _tell_published(on_published, event.position)
            return
        for told in _DECODE_EVENTS(body):
            event = _event(told, Position(self._epoch, first))
            self._offset = max(self._offset, first - 1)
            first += 1
            self._append(event, told.size, None, is_own=False)
            self._tell_foreign(sender, event)

    def _tell_foreign(self, sender: int, event: Event) -> None:
        for listener in self._on_foreign:
            try:
                listener(sender, event)
            except Exception:
                # The events behind it are to be taken in any case.
                _LOGGER.exception("a %s of worker %s could not be taken", event.type.name, sender)

    def tell_past(self) -> bytes:
        """See `Log`."""
        now = self._clock()
        self._log.forget_old(now)
        forgotten = self._log.newest_forgotten()
        events: list[_Told] = []
        left = _SNAPSHOT_BYTES
        for event, size, born in self._log.newest_first():
            left -= size + _ENVELOPE_BYTES
            if left < 0:
                forgotten = {kind: max(offset, event.position.offset) for kind, offset in forgotten.items()}
                break
            events.append(_told(event, size, event.position.offset, now - born))
        latest = [
            _told(event, 0, event.position.offset)
            for by_key in self._latest.values()
            for event in by_key.values()
        ]
        more = {name: msgspec.Raw(_ENCODE(tell())) for name, (tell, _) in self._more.items()}
        return _ENCODE(_Past(self._offset, forgotten, events[::-1], latest, more))

    def take_past(self, past: bytes) -> None:
        """See `Log`. It is taken by `begin`."""
        if not self._past.done():
            self._past.set_result(past)

    def _take_past(self, body: bytes) -> None:
        early, self._early = self._early or [], None
        if body:
            past = _DECODE_PAST(body)
            self._log.forget_until(past.forgotten)
            now = self._clock()
            for told in past.events:
                event = _event(told, Position(self._epoch, told.offset))
                self._log.append(event, told.size, now - told.age)
            for event in _in_order(past.latest, self._epoch):
                self._latest.setdefault(event.channel, {})[event.key] = event
            self._offset = past.offset
            for name, raw in past.more.items():
                if name in self._more:
                    self._more[name][1](msgspec.json.decode(raw))
        else:
            self._begin_at(self._welcome.offset)
        for sender, first, count, events in early:
            if first > self._offset:
                self.take_events(sender, first, count, events)
            elif not events:  # published here, and told by the one who told the past
                for offset in range(first, first + count):
                    event, _, on_published = self._own.popleft()
                    if self._on_publish is not None:
                        self._on_publish(event.channel)
                    _tell_published(on_published, Position(self._epoch, offset))

    def _begin_at(self, offset: int) -> None:
        """Hold nothing of what came up to `offset`."""
        self._offset = offset
        self._log.forget_until(dict.fromkeys(self._log.newest_forgotten(), offset))


def _tell_published(on_published: Callable[[Position], None] | None, position: Position) -> None:
    if on_published is None:
        return
    try:
        on_published(position)
    except Exception:
        # Whoever published is long gone from here; the events behind it are to be taken in any case.
        _LOGGER.exception("whoever published an event could not be told where it stands")


def _told(event: Event, size: int, offset: int = 0, age: float = 0.0) -> _Told:
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
        age,
    )


def _event(told: _Told, position: Position) -> Event:
    masked = msgspec.json.decode(told.masked)
    data: Mapping[str, Any] = msgspec.json.decode(told.data)
    return Event(EVENT_TYPES[told.type], told.channel, data, told.timestamp, position, told.owner, masked)


def _in_order(told: Iterable[_Told], epoch: str) -> list[Event]:
    ordered = sorted(told, key=lambda one: one.offset)
    return [_event(one, Position(epoch, one.offset)) for one in ordered]
