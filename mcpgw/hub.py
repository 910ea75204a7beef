"""The live connections: every conversation and every event stream that is open now, counted and bounded.

A transport reserves a `Place` before it waits for anything, so that no number of connections that arrive at
once comes past a limit; it adds what drains with `Hub.add`, and gives the place back when the client is gone.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from types import TracebackType
from typing import Literal, Protocol, TypeAlias

from mcpgw.logs import log_event
from mcpgw.settings import ServerSettings

_LOGGER = logging.getLogger("mcpgw.hub")
# So many refused sockets may be open at once to be told why; those above it are refused before the upgrade.
_MOST_REFUSED = 100
# Between a reservation and its connection lies an upgrade, which is over at once, or a goodbye.
_STALE_SECONDS = 60.0

Kind: TypeAlias = Literal["websocket", "sse"]


class Connection(Protocol):
    """Something a client holds open."""

    async def drain(self, deadline: float) -> None:
        """Finish what is open until `deadline` (of the loop's clock), say goodbye, and close."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a connection is one too many (close code 3504).

    `reason` is the gateway's own words, short enough for a close frame. `can_be_told` is false where so many
    are being told already that this one is refused without an upgrade (HTTP 503).
    """

    reason: str
    can_be_told: bool


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """The connections at one moment.

    `by_user` counts those whose user is known, `unidentified` the others. Ages are seconds, 0 where nobody is
    connected. Frames, `accepted` and `refused` are counted since the gateway started.
    """

    connections: int
    by_kind: Mapping[str, int]
    by_user: Mapping[str, int]
    unidentified: int
    newest_age: float
    median_age: float
    oldest_age: float
    frames_in: int
    frames_out: int
    accepted: int
    refused: int


class Place:
    """One connection's place in the count, from before its upgrade to its end; made by `Hub.reserve`.

    Where `refusal` is set, the connection is one too many: tell it so and close it. `frames_in` and
    `frames_out` are counted by whoever reads and writes the frames. As a context manager it is released when
    the block is left.
    """

    __slots__ = ("_hub", "frames_in", "frames_out", "kind", "refusal", "since", "user")

    def __init__(
        self, hub: "Hub", kind: Kind, user: str | None, refusal: Refusal | None, since: float
    ) -> None:
        self._hub = hub
        self.kind = kind
        self.user = user
        self.refusal = refusal
        self.since = since
        self.frames_in = 0
        self.frames_out = 0

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, typ: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def identify(self, user: str) -> bool:
        """The connection has proved that it is `user`'s; false where that user has too many (`refusal`)."""
        return self._hub.identify(self, user)

    def release(self) -> None:
        """Give the place back; nothing happens where it is given back already."""
        self._hub.release(self)


class Hub:
    """Knows who is connected: bounds how many, tells all when the gateway ends, and counts.

    `settings` has the limits of connections in all and of one user. `clock` is monotonic, in seconds.
    """

    def __init__(
        self, settings: ServerSettings | None = None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._settings = settings or ServerSettings()
        self._clock = clock
        self._connections: dict[Connection, Place | None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._admitted: set[Place] = set()
        self._turned_away: set[Place] = set()
        self._by_user: Counter[str] = Counter()
        self._accepted = 0
        self._refused = 0
        self._frames_in = 0
        self._frames_out = 0

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    # --- places --------------------------------------------------------------------------------------------

    def reserve(self, kind: Kind, user: str | None) -> Place:
        """Count a connection before its upgrade is awaited; `user` is None where nobody is proved yet.

        The place must be released, also where the connection never comes to be. One that is too many gets a
        place too, with its `refusal`, and takes nobody else's.
        """
        refusal = self._refusal(user)
        place = Place(self, kind, user, refusal, self._clock())
        if refusal is None:
            self._admitted.add(place)
            self._accepted += 1
            if user is not None:
                self._by_user[user] += 1
        else:
            self._refused += 1
            if refusal.can_be_told:
                self._turned_away.add(place)
        return place

    def identify(self, place: Place, user: str) -> bool:
        """Count a place as `user`'s; false where that user has too many, and its `refusal` says so."""
        if place not in self._admitted or place.refusal is not None:
            return False
        if place.user == user:
            return True
        if self._by_user[user] >= self._settings.max_connections_per_user:
            # Until it is closed it is one of all, and not yet one of that user's.
            place.refusal = Refusal(self._too_many_of_user(), can_be_told=True)
            self._refused += 1
            return False
        self._forget_user(place)
        place.user = user
        self._by_user[user] += 1
        return True

    def release(self, place: Place) -> None:
        """Count a place out; nothing happens where it is out already."""
        self._turned_away.discard(place)
        if place in self._admitted:
            self._admitted.discard(place)
            self._forget_user(place)
        self._frames_in += place.frames_in
        self._frames_out += place.frames_out
        place.frames_in = place.frames_out = 0

    def sweep(self) -> int:
        """Release places that were reserved and never given back nor used; returns how many.

        There are none while every transport keeps its word: each one is a fault, and stands in the log.
        """
        oldest = self._clock() - _STALE_SECONDS
        used = set(self._connections.values())
        stale = [
            place
            for place in (*self._admitted, *self._turned_away)
            if place.since < oldest and place not in used
        ]
        for place in stale:
            self.release(place)
        if stale:
            log_event(_LOGGER, logging.WARNING, "stale places released", places=len(stale))
        return len(stale)

    def statistics(self) -> HubStatistics:
        """Who is connected now, and what was counted since the start."""
        now = self._clock()
        ages = sorted(now - place.since for place in self._admitted)
        kinds = Counter(place.kind for place in self._admitted)
        return HubStatistics(
            connections=len(self._admitted),
            by_kind={"websocket": kinds["websocket"], "sse": kinds["sse"]},
            by_user=dict(self._by_user),
            unidentified=len(self._admitted) - self._by_user.total(),
            newest_age=ages[0] if ages else 0.0,
            median_age=median(ages) if ages else 0.0,
            oldest_age=ages[-1] if ages else 0.0,
            frames_in=self._frames_in + sum(place.frames_in for place in self._live()),
            frames_out=self._frames_out + sum(place.frames_out for place in self._live()),
            accepted=self._accepted,
            refused=self._refused,
        )

    # --- connections ---------------------------------------------------------------------------------------

    def add(self, connection: Connection, place: Place | None = None) -> None:
        """Know an open connection, to end it with the others; `place` is released when it is removed."""
        self._connections[connection] = place
        self._empty.clear()

    def remove(self, connection: Connection) -> None:
        """Forget a connection and release its place; nothing happens where it is forgotten already."""
        place = self._connections.pop(connection, None)
        if place is not None:
            place.release()
        if not self._connections:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until every connection has been removed."""
        await self._empty.wait()

    async def drain(self, deadline: float) -> None:
        """End every connection, side by side, each as soon as its own calls have ended.

        A fault in ending one stands in the log and keeps none of the others from their end.
        """
        drains = [connection.drain(deadline) for connection in self._connections]
        for fault in await asyncio.gather(*drains, return_exceptions=True):
            if isinstance(fault, Exception):
                log_event(_LOGGER, logging.ERROR, "a connection could not be ended", exception=fault)

    # --- the count -----------------------------------------------------------------------------------------

    def _refusal(self, user: str | None) -> Refusal | None:
        limit = self._settings.max_connections
        if len(self._admitted) >= limit:
            reason = f"the gateway has its {limit} connections"
        elif user is not None and self._by_user[user] >= self._settings.max_connections_per_user:
            reason = self._too_many_of_user()
        elif user is None and self._unidentified() >= self._settings.max_unidentified:
            reason = f"the gateway has its {self._settings.max_unidentified} connections without credentials"
        else:
            return None
        return Refusal(reason, can_be_told=len(self._turned_away) < _MOST_REFUSED)

    def _unidentified(self) -> int:
        return len(self._admitted) - self._by_user.total()

    def _too_many_of_user(self) -> str:
        return f"this user has {self._settings.max_connections_per_user} connections: close one first"

    def _forget_user(self, place: Place) -> None:
        if place.user is not None:
            self._by_user[place.user] -= 1
            if not self._by_user[place.user]:
                del self._by_user[place.user]

    def _live(self) -> set[Place]:
        return self._admitted | self._turned_away


async def sweep_every(seconds: float, *sweeps: Callable[[], object]) -> None:
    """Call every one of `sweeps` again and again, `seconds` apart, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        for sweep in sweeps:
            sweep()
