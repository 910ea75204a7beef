"""What has come of one channel for one reader: in order, once, and bounded."""

import asyncio
from collections import deque
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcpgw.client.link import Frame
from mcpgw.wire.events import LEVELS, Position

_RESOURCE_UPDATED: Final = "server.resource_updated"
GAP: Final = "recovered_false"
"""The type of the event that stands where some are missing for good: load your state anew."""
LAGGED: Final = "lagged"
"""The type of the event that stands where `data["dropped"]` events were dropped for a slow reader."""


@dataclass(frozen=True, slots=True)
class ChannelEvent:
    """One event of a channel: its `type`, such as ``server.started``, and its own `data`.

    `id` is its place in the log; give it as `since` to go on from there. It is empty for `GAP` and `LAGGED`,
    which the client makes itself. `timestamp` is in milliseconds since the epoch.
    """

    type: str
    id: str
    channel: str
    data: Mapping[str, Any]
    timestamp: int | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a reader wants of a channel; None is all."""

    types: frozenset[str] | None = None
    servers: frozenset[str] | None = None
    min_level: str | None = None
    resources: frozenset[tuple[str, str]] | None = None

    def admits(self, frame: Frame) -> bool:
        """Whether the reader wants this event."""
        if self.types is not None and frame.type not in self.types:
            return False
        if self.servers is not None and frame.data.get("serverId", "") not in self.servers:
            return False
        if self.resources is not None and frame.type == _RESOURCE_UPDATED:
            return (frame.data.get("serverId"), frame.data.get("uri")) in self.resources
        level = frame.data.get("level")
        if self.min_level is None or level not in LEVELS:
            return True
        return LEVELS.index(level) >= LEVELS.index(self.min_level)

    def data(self) -> dict[str, Any]:
        """The ``filter`` of a ``subscribe`` frame."""
        told: dict[str, Any] = {}
        if self.types is not None:
            told["types"] = sorted(self.types)
        if self.servers is not None:
            told["servers"] = sorted(self.servers)
        if self.min_level is not None:
            told["minLevel"] = self.min_level
        if self.resources is not None:
            told["resources"] = [{"serverId": server, "uri": uri} for server, uri in sorted(self.resources)]
        return told


@dataclass(slots=True, eq=False)
class Handshake:
    """A ``subscribe`` with a ``ping`` behind it: the pong says that all that was missed has come.

    The ping waits for the answer where that takes longer (`pings_later`). `base` is the place that the
    gateway has answered with, `waiting` what has come since.
    """

    feed: "Feed"
    since: Position | None
    refreshing: bool
    pings_later: bool = False
    base: Position | None = None
    recovered: bool = True
    waiting: list[Frame] = field(default_factory=list)


class Feed:
    """The events that wait for one reader, and the place that it has come to.

    `place` is the newest event that came, `fault` why there will be no more. While `is_live`, events are
    handed on as they come; before that, `handshake` keeps them.
    """

    def __init__(self, channel: str, wanted: Wanted, since: Position | None, queue_size: int) -> None:
        self.channel = channel
        self.wanted = wanted
        self.place = since
        self.recovered: bool | None = None
        self.present: tuple[Mapping[str, str], ...] = ()
        self.handshake: Handshake | None = None
        self.fault: Exception | None = None
        self.is_live = False
        self.is_closed = False
        self.has_moved = False
        self.has_asked_for_token = False
        self._queue: deque[ChannelEvent] = deque()
        self._queue_size = queue_size
        self._dropped = 0
        self._changed = asyncio.Event()

    # --- the reader's side ---------------------------------------------------------------------------------

    def pop(self) -> ChannelEvent | None:
        """The next event; None where none waits."""
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            return self._own(LAGGED, {"dropped": dropped})
        return self._queue.popleft() if self._queue else None

    async def change(self) -> None:
        """Wait until something has come, or has ended."""
        self._changed.clear()
        await self._changed.wait()

    def close(self) -> None:
        """The reader wants no more; what waits is dropped."""
        self.is_closed = True
        self.handshake = None
        self._queue.clear()
        self._dropped = 0
        self._changed.set()

    # --- the gateway's side --------------------------------------------------------------------------------

    def fail(self, fault: Exception) -> None:
        """Nothing more will come; what waits can still be read."""
        if self.fault is None:
            self.fault = fault
        self.interrupt()
        self._changed.set()

    def interrupt(self) -> None:
        """The connection is gone: what comes next must not be taken for what follows."""
        self.is_live = False
        self.handshake = None

    def take(self, frame: Frame) -> None:
        """An event, or a ``lagged``; those that have come before are left out."""
        if self.is_live:
            self._deliver(frame)
        elif self.handshake is not None and self.handshake.base is not None:
            self.handshake.waiting.append(frame)

    def stand(self, handshake: Handshake) -> None:
        """All that was missed has come: hand it on, and go on with what comes."""
        base = handshake.base
        if base is None:
            return
        if handshake.refreshing:
            self._pass(base)
            return
        self.handshake = None
        self.is_live = True
        if handshake.since is None or not handshake.recovered:
            if handshake.since is not None:
                self._put(self._own(GAP, {"since": str(handshake.since)}))
            for frame in handshake.waiting:
                if _is_before(frame, base):
                    self._pass_on(frame)
            self.place = base
        for frame in handshake.waiting:
            self._deliver(frame)
        self._pass(base)
        self.recovered = handshake.recovered
        self._changed.set()

    def _deliver(self, frame: Frame) -> None:
        if frame.type == LAGGED:
            dropped = frame.data.get("dropped")
            self._put(self._own(LAGGED, {"dropped": dropped if isinstance(dropped, int) else 1}))
            return
        place = None if frame.id is None else Position.parse(frame.id)
        if place is None or self._has_passed(place):
            return
        self.place = place
        self.has_moved = True
        self._pass_on(frame)

    def _pass_on(self, frame: Frame) -> None:
        if self.wanted.admits(frame):
            self._put(ChannelEvent(frame.type, frame.id or "", self.channel, frame.data, frame.timestamp))

    def _pass(self, place: Position) -> None:
        if not self._has_passed(place):
            self.place = place

    def _has_passed(self, place: Position) -> bool:
        own = self.place
        return own is not None and own.epoch == place.epoch and place.offset <= own.offset

    def _own(self, kind: str, data: Mapping[str, Any]) -> ChannelEvent:
        return ChannelEvent(kind, "", self.channel, {"channel": self.channel, **data}, None)

    def _put(self, event: ChannelEvent) -> None:
        self._queue.append(event)
        if len(self._queue) > self._queue_size:
            self._queue.popleft()
            self._dropped += 1
        self._changed.set()


def wanted_of(
    types: Collection[str] | None,
    servers: Collection[str] | None,
    min_level: str | None,
    resources: Collection[tuple[str, str]] | None = None,
) -> Wanted:
    """What a reader wants.

    Raises:
        ValueError: `types`, `servers` or `resources` is a text or empty, or `min_level` is no level.
    """
    for name, values in (("types", types), ("servers", servers), ("resources", resources)):
        if values is not None and (isinstance(values, str) or not values):
            raise ValueError(f"{name} is a list of names with at least one; leave it out for all")
    if min_level is not None and min_level not in LEVELS:
        raise ValueError(f"min_level is one of {', '.join(LEVELS)}")
    return Wanted(
        None if types is None else frozenset(types),
        None if servers is None else frozenset(servers),
        min_level,
        None if resources is None else frozenset(resources),
    )


def union(all_wanted: Collection[Wanted]) -> Wanted:
    """What holds all that any of them wants; each then takes its own part.

    But where one names resources, nobody is told of others.
    """
    types = [wanted.types for wanted in all_wanted]
    servers = [wanted.servers for wanted in all_wanted]
    levels = [wanted.min_level for wanted in all_wanted]
    resources = [wanted.resources for wanted in all_wanted if wanted.resources is not None]
    return Wanted(
        None if None in types else frozenset[str]().union(*(names for names in types if names is not None)),
        None
        if None in servers
        else frozenset[str]().union(*(names for names in servers if names is not None)),
        None if None in levels else min((level for level in levels if level is not None), key=LEVELS.index),
        frozenset[tuple[str, str]]().union(*resources) if resources else None,
    )


def _is_before(frame: Frame, base: Position) -> bool:
    place = None if frame.id is None else Position.parse(frame.id)
    return place is not None and (place.epoch != base.epoch or place.offset <= base.offset)
