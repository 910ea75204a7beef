"""What has happened, as far as it is remembered: every kind of channel has a share of its own.

Much traffic in one place must not make the gateway forget what happened in another: a flood of a user's
words in a room costs older words of rooms, and nothing else.
"""

from bisect import bisect_right
from collections.abc import Collection, Iterator, Mapping
from heapq import merge
from itertools import islice
from operator import attrgetter
from typing import Final

import msgspec

from mcpgw.wire.events import EVENT_TYPES, Event, Position, channel_base

EVENT_BYTES: Final = 512
"""What an event costs beside its text: the object, its position, its members."""
_KINDS: Final = tuple(dict.fromkeys(row.channel for row in EVENT_TYPES.values()))
_MOST_QUIET: Final = 10_000
_SWEEPS_IN_AN_AGE: Final = 8
_FEW: Final = 64


class _Entry(msgspec.Struct, eq=False, gc=False):
    """An event in the log: when it came (seconds of the log's clock) and what it costs in bytes."""

    event: Event
    offset: int
    size: int
    born: float


_OFFSET: Final = attrgetter("offset")
_GONE: Final = _Entry(Event(EVENT_TYPES["gateway.started"], "gateway", {}, 0, Position("", 0)), 0, 0, 0.0)
"""Stands where an event was that is forgotten, until the place itself goes."""


class _ChannelLog:
    """The events of one channel, in order; `forgotten` is the offset of the newest that was dropped."""

    __slots__ = ("_entries", "_first", "bytes", "forgotten", "name", "size_class")

    def __init__(self, name: str, forgotten: int) -> None:
        self.name = name
        self.forgotten = forgotten
        self.bytes = 0
        self.size_class = 0
        # A list with a place where it begins: unlike a deque it can be searched by halves.
        self._entries: list[_Entry] = []
        self._first = 0

    def __len__(self) -> int:
        return len(self._entries) - self._first

    @property
    def oldest(self) -> _Entry:
        return self._entries[self._first]

    def append(self, entry: _Entry) -> None:
        self._entries.append(entry)
        self.bytes += entry.size

    def drop(self) -> _Entry:
        entries, first = self._entries, self._first
        entry = entries[first]
        entries[first] = _GONE
        self._first = first = first + 1
        if first >= _FEW and first * 2 >= len(entries):
            del entries[:first]
            self._first = 0
        self.bytes -= entry.size
        self.forgotten = entry.offset
        return entry

    def newest_first(self) -> Iterator[_Entry]:
        return (self._entries[index] for index in range(len(self._entries) - 1, self._first - 1, -1))

    def behind(self, offset: int, limit: int | None) -> Iterator[Event]:
        first = bisect_right(self._entries, offset, lo=self._first, key=_OFFSET)
        last = None if limit is None else first + limit
        return (entry.event for entry in self._entries[first:last])


class _Kind:
    """All channels of one kind (``servers``, or all rooms), which share what is the kind's."""

    __slots__ = ("_by_size", "_floor", "_quiet", "bytes", "count", "logs")

    def __init__(self) -> None:
        self.logs: dict[str, _ChannelLog] = {}
        self.count = 0
        self.bytes = 0
        # Channels by the number of binary digits of their bytes: the largest but for a factor of two are
        # found at once, however many there are.
        self._by_size: dict[int, dict[_ChannelLog, None]] = {}
        # What channels without an event in the log have lost. There may be any number of rooms: of the
        # channels that have been quiet for longest only the newest loss of all is known.
        self._quiet: dict[str, int] = {}
        self._floor = 0

    def append(self, name: str, entry: _Entry) -> None:
        log = self.logs.get(name)
        if log is None:
            log = self.logs[name] = _ChannelLog(name, self._quiet.pop(name, self._floor))
        log.append(entry)
        self.count += 1
        self.bytes += entry.size
        if log.bytes.bit_length() != log.size_class:
            self._sort(log)

    def largest(self) -> _ChannelLog:
        logs = self.logs
        if len(logs) == 1:
            (only,) = logs.values()
            return only
        sizes = self._by_size
        return next(iter(sizes[max(sizes) if len(sizes) > 1 else next(iter(sizes))]))

    def drop(self, log: _ChannelLog) -> int:
        """Forget the oldest event of `log`; returns the bytes of it."""
        entry = log.drop()
        self.count -= 1
        self.bytes -= entry.size
        if log.bytes.bit_length() != log.size_class:
            self._sort(log)
        if not log.bytes:  # each event has a size
            del self.logs[log.name]
            self._quiet[log.name] = log.forgotten
            if len(self._quiet) > _MOST_QUIET:
                self._floor = max(self._floor, self._quiet.pop(next(iter(self._quiet))))
        return entry.size

    def forgotten(self, name: str) -> int:
        log = self.logs.get(name)
        return self._quiet.get(name, self._floor) if log is None else log.forgotten

    def newest_forgotten(self) -> int:
        """The offset of the newest event of any channel of the kind that is forgotten."""
        here = (log.forgotten for log in self.logs.values())
        return max(self._floor, *self._quiet.values(), *here, 0)

    def forget_until(self, offset: int) -> None:
        """Take what came up to `offset` for forgotten; nothing was appended yet."""
        self._floor = max(self._floor, offset)

    def _sort(self, log: _ChannelLog) -> None:
        size_class = log.bytes.bit_length()
        if log.size_class:
            old = self._by_size[log.size_class]
            del old[log]
            if not old:
                del self._by_size[log.size_class]
        if size_class:
            self._by_size.setdefault(size_class, {})[log] = None
        log.size_class = size_class


class EventLog:
    """The newest events of every channel, none older than `max_age` seconds.

    Of each kind of channel at most `max_events` are held: where there are more, the room (or user) that has
    most gives up its oldest. All together have at most `max_bytes`: where there are more, the kind that has
    most gives way in the same manner. So each kind has what it needs up to its even share of the bytes, and
    within rooms each room up to half of its even share of theirs, whatever the others do.
    """

    def __init__(self, max_events: int, max_age: float, max_bytes: int) -> None:
        self._max_events = max_events
        self._max_age = max_age
        self._max_bytes = max_bytes
        self._bytes = 0
        self._kinds = {name: _Kind() for name in _KINDS}
        self._next_sweep = 0.0

    def append(self, event: Event, size: int, now: float) -> None:
        """Add the newest event; `size` is about what its texts have, in bytes, and `now` grows."""
        if now >= self._next_sweep:
            self.forget_old(now)
        kind = self._kinds[event.type.channel]
        size += EVENT_BYTES
        kind.append(event.channel, _Entry(event, event.position.offset, size, now))
        self._bytes += size
        if kind.count > self._max_events:
            self._bytes -= kind.drop(kind.largest())
        while self._bytes > self._max_bytes:
            most = max(self._kinds.values(), key=_BYTES)
            self._bytes -= most.drop(most.largest())

    def forgotten(self, channels: Collection[str], now: float) -> int:
        """The offset of the newest event that was one of `channels` and is forgotten; 0 where none is."""
        newest = 0
        for channel in channels:
            base = channel_base(channel)
            if base is not None:
                kind = self._kinds[base]
                if (log := kind.logs.get(channel)) is not None:
                    self._forget_old(kind, log, now)
                newest = max(newest, kind.forgotten(channel))
        return newest

    def behind(self, offset: int, channels: Collection[str], limit: int | None) -> list[Event]:
        """The events of `channels` behind `offset`, in order; the oldest `limit` of them where there is one.

        Costs the logarithm of what each channel holds, and what is given.
        """
        logs = []
        for channel in channels:
            base = channel_base(channel)
            if base is not None and (log := self._kinds[base].logs.get(channel)) is not None:
                logs.append(log.behind(offset, limit))
        if len(logs) == 1:
            return list(logs[0])
        return list(islice(merge(*logs, key=_POSITION), limit))

    def newest_forgotten(self) -> dict[str, int]:
        """Of each kind of channel, the offset of the newest event that is forgotten."""
        return {name: kind.newest_forgotten() for name, kind in self._kinds.items()}

    def forget_until(self, offsets: Mapping[str, int]) -> None:
        """Take what came up to these offsets, by kinds of channels, for forgotten; nothing is here yet."""
        for name, offset in offsets.items():
            if name in self._kinds:
                self._kinds[name].forget_until(offset)

    def forget_old(self, now: float) -> None:
        """Forget every event that is too old at `now`."""
        self._next_sweep = now + self._max_age / _SWEEPS_IN_AN_AGE
        for each in self._kinds.values():
            for log in list(each.logs.values()):
                self._forget_old(each, log, now)

    def newest_first(self) -> Iterator[tuple[Event, int, float]]:
        """Every event, the newest first, with the size and the time that it was appended with."""
        logs = (log.newest_first() for kind in self._kinds.values() for log in kind.logs.values())
        for entry in merge(*logs, key=_OFFSET, reverse=True):
            yield entry.event, entry.size - EVENT_BYTES, entry.born

    def _forget_old(self, kind: _Kind, log: _ChannelLog, now: float) -> None:
        oldest = now - self._max_age
        while log and log.oldest.born < oldest:
            self._bytes -= kind.drop(log)


_BYTES: Final = attrgetter("bytes")
_POSITION: Final = attrgetter("position.offset")
