"""The live connections: every conversation and every event stream that is open now, counted and bounded.

A transport reserves a `Place` before it waits for anything, so that no number of connections that arrive at
once comes past a limit; it adds what drains with `Hub.add`, and gives the place back when the client is gone.

Who comes back from a cut finds its own dead connections in its way, because nobody has told the gateway that
they are dead. So a connection above its user's limit *waits* for a moment: the user's other connections are
asked for a sign of life, and whichever is given up leaves its place to the one that waits. There are at most
as many that wait, and as many that are being closed, as a user may have: nobody holds more than three times
that number, and all of them count among all.
"""

import asyncio
import logging
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Literal, Protocol, TypeAlias

from mcpgw.deadlines import Deadlines
from mcpgw.logs import log_event
from mcpgw.settings import ServerSettings

_LOGGER = logging.getLogger("mcpgw.hub")
# So many refused sockets may be open at once to be told why; those above it are refused before the upgrade.
_MOST_REFUSED = 100
# Between a reservation and its connection lies an upgrade, which is over at once, or a goodbye.
_STALE_SECONDS = 60.0
_NOWHERE = (0, 0, 0)

Kind: TypeAlias = Literal["websocket", "sse", "echo"]
State: TypeAlias = Literal["counted", "waiting", "refused", "leaving", "gone"]


class Connection(Protocol):
    """Something a client holds open."""

    def review(self, judge: Callable[[Any], Any]) -> None:
        """What its user may do has changed, or may have: `judge` the principal again, which may refuse it."""

    async def drain(self, deadline: float) -> None:
        """Finish what is open until `deadline` (of the loop's clock), say goodbye, and close."""

    def probe(self, seconds: float) -> None:
        """Ask the client for a sign of life, and close the connection where none comes in time."""


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

    `by_user` counts those whose user is known, `waiting` those above their user's limit, `closing` those that
    were told goodbye or are about to be, `unidentified` the others. Ages are seconds, 0 where nobody is
    connected. Frames, `accepted` and `refused` are counted since the gateway started.
    """

    connections: int
    by_kind: Mapping[str, int]
    by_user: Mapping[str, int]
    waiting: int
    closing: int
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

    Where `refusal` is set, the connection is one too many: tell it so and close it. Where `is_waiting`, it is
    above its user's limit for the moment: set `on_admitted`, and `give_up` after `server.place_timeout`.
    `frames_in` and `frames_out` are counted by whoever reads and writes the frames. As a context manager it
    is released when the block is left.
    """

    __slots__ = (
        "_hub",
        "frames_in",
        "frames_out",
        "kind",
        "on_admitted",
        "refusal",
        "since",
        "state",
        "user",
    )

    def __init__(self, hub: "Hub", kind: Kind, user: str | None, since: float) -> None:
        self._hub = hub
        self.kind = kind
        self.user = user
        self.state: State = "counted"
        self.refusal: Refusal | None = None
        self.on_admitted: Callable[[], None] | None = None
        self.since = since
        self.frames_in = 0
        self.frames_out = 0

    def __enter__(self) -> "Place":
        return self

    def __exit__(
        self, typ: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    @property
    def is_waiting(self) -> bool:
        """Whether the connection is above its user's limit, and a place of that user may still come free."""
        return self.state == "waiting"

    def identify(self, user: str) -> bool:
        """The connection has proved that it is `user`'s; false where that user has too many.

        It then waits for a place, or has its `refusal`.
        """
        return self._hub.identify(self, user)

    def come_first(self) -> None:
        """Of those of its user that wait, be the first that is given a place."""
        self._hub.come_first(self)

    def give_up(self) -> Refusal:
        """No place has come free: answers what the client is told."""
        return self._hub.give_up(self)

    def leave(self) -> bool:
        """The gateway closes the connection: it holds no place of its user any more.

        False where so many of the user's are being closed that this one must not wait for a goodbye.
        """
        return self._hub.leave(self)

    def release(self) -> None:
        """Give the place back; nothing happens where it is given back already."""
        self._hub.release(self)


class Hub:
    """Knows who is connected: bounds how many, tells all when the gateway ends, and counts.

    `settings` has the limits of connections in all and of one user; `limit_of` answers that of a user who
    has another, else None. `clock` is monotonic, in seconds, and `call_later` calls back so many seconds
    later; by default by the event loop that runs.
    """

    def __init__(
        self,
        settings: ServerSettings | None = None,
        *,
        limit_of: Callable[[str], int | None] = lambda _user: None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._settings = settings or ServerSettings()
        self._limit_of = limit_of
        self._clock = clock
        self._call_later = call_later or Deadlines().call_later
        self._connections: dict[Connection, Place | None] = {}
        self._empty = asyncio.Event()
        self._empty.set()
        self._admitted: set[Place] = set()
        self._turned_away: set[Place] = set()
        self._by_user: Counter[str] = Counter()
        self._leaving: Counter[str] = Counter()
        self._waiting: dict[str, deque[Place]] = {}
        self._probed: dict[str, float] = {}
        self._to_probe: set[str] = set()
        self._unidentified = 0
        self._echoes = 0
        self._accepted = 0
        self._refused = 0
        self._frames_in = 0
        self._frames_out = 0
        self._elsewhere: Callable[[], Sequence[int]] = lambda: _NOWHERE
        self._on_change: Callable[[], None] = _ignore

    def share(self, elsewhere: Callable[[], Sequence[int]], on_change: Callable[[], None]) -> None:
        """Have the limits of all hold for several processes: `elsewhere` sums up the `counts` of the others,
        and `on_change` is called when those here are others.
        """
        self._elsewhere, self._on_change = elsewhere, on_change

    def counts(self) -> tuple[int, int, int]:
        """What is bounded in all: connections, those without credentials, those of echo."""
        return len(self._admitted), self._unidentified, self._echoes

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    # --- places --------------------------------------------------------------------------------------------

    def reserve(self, kind: Kind, user: str | None) -> Place:
        """Count a connection before its upgrade is awaited; `user` is None where nobody is proved yet.

        The place must be released, also where the connection never comes to be. One that is too many gets a
        place too, with its `refusal`, and takes nobody else's; one above its user's limit may wait.
        """
        place = Place(self, kind, user, self._clock())
        reason = self._fault(kind, user)
        if reason is not None:
            self._refuse(place, reason)
            if place.refusal is not None and place.refusal.can_be_told:
                self._turned_away.add(place)
            return place
        self._admitted.add(place)
        self._accepted += 1
        self._on_change()
        if user is None or self._by_user[user] < self._most_of(user):
            self._count(place)
        else:
            self._let_wait(place, user)
        return place

    def identify(self, place: Place, user: str) -> bool:
        """Count a place as `user`'s; false where that user has too many."""
        if place not in self._admitted or place.state != "counted":
            return False
        if place.user == user:
            return True
        former = place.user
        self._forget_user(place)
        place.user = user
        if former is not None:
            self._admit_next(former)
        if self._by_user[user] < self._most_of(user):
            self._by_user[user] += 1
            return True
        if len(self._waiting.get(user, ())) < self._most_of(user):
            self._let_wait(place, user)
        else:
            self._refuse(place, self._too_many_of_user(user))
        return False

    def come_first(self, place: Place) -> None:
        """Of those of its user that wait, let `place` be the first that is admitted."""
        if place.is_waiting and place.user is not None:
            line = self._waiting[place.user]
            line.remove(place)
            line.appendleft(place)

    def give_up(self, place: Place) -> Refusal:
        """No place has come free for one that waits; until it is closed it is one of all."""
        self._wait_no_longer(place)
        if place.refusal is None:
            self._refuse(place, self._too_many_of_user(place.user or ""))
        assert place.refusal is not None, "it was refused just now"  # noqa: S101
        return place.refusal

    def leave(self, place: Place) -> bool:
        """The gateway closes this connection: another of its user may have the place at once.

        Until it is gone it is one of all. False where the user has so many of these that it must go at once.
        """
        user = place.user
        self._wait_no_longer(place)
        if user is None or place not in self._admitted or place.state == "leaving":
            return True
        self._forget_user(place)
        place.state = "leaving"
        self._leaving[user] += 1
        self._admit_next(user)
        return self._leaving[user] <= self._most_of(user)

    def release(self, place: Place) -> None:
        """Count a place out; nothing happens where it is out already."""
        self._turned_away.discard(place)
        self._wait_no_longer(place)
        self._frames_in += place.frames_in
        self._frames_out += place.frames_out
        place.frames_in = place.frames_out = 0
        if place not in self._admitted:
            return
        self._admitted.discard(place)
        self._on_change()
        self._forget_user(place)
        if place.user is not None:
            if place.state == "leaving":
                self._leaving[place.user] -= 1
                if not self._leaving[place.user]:
                    del self._leaving[place.user]
            place.state = "gone"
            self._admit_next(place.user)

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
        states = Counter(place.state for place in self._admitted)
        return HubStatistics(
            connections=len(self._admitted),
            by_kind={"websocket": kinds["websocket"] + kinds["echo"], "sse": kinds["sse"]},
            by_user=dict(self._by_user),
            waiting=states["waiting"],
            closing=states["leaving"] + states["refused"],
            unidentified=self._unidentified,
            newest_age=ages[0] if ages else 0.0,
            median_age=_middle(ages),
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

    def review(self, judge: Callable[[Any], Any]) -> None:
        """Have every connection look again at who it is for.

        A fault of one stands in the log and keeps none of the others from it.
        """
        for connection in list(self._connections):
            try:
                connection.review(judge)
            except Exception:
                _LOGGER.exception("a connection could not be looked at again")

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

    def _fault(self, kind: Kind, user: str | None) -> str | None:
        """Why a connection is one too many, whoever else goes; None where it is not."""
        settings = self._settings
        connections, unidentified, echoes = self._elsewhere()
        if len(self._admitted) + connections >= settings.max_connections:
            return f"the gateway has its {_connections(settings.max_connections)}"
        if user is None and self._unidentified + unidentified >= settings.max_unidentified:
            return f"the gateway has its {_connections(settings.max_unidentified)} without credentials"
        if kind == "echo" and self._echoes + echoes >= settings.max_echo:
            return f"the gateway has its {_connections(settings.max_echo)} of echo"
        if user is not None and len(self._waiting.get(user, ())) >= self._most_of(user):
            return self._too_many_of_user(user)
        return None

    def _refuse(self, place: Place, reason: str) -> None:
        place.state = "refused"
        place.refusal = Refusal(reason, can_be_told=len(self._turned_away) < _MOST_REFUSED)
        self._refused += 1

    def _count(self, place: Place) -> None:
        place.state = "counted"
        if place.kind == "echo":
            self._echoes += 1
        if place.user is None:
            self._unidentified += 1
        else:
            self._by_user[place.user] += 1

    def _let_wait(self, place: Place, user: str) -> None:
        place.state = "waiting"
        self._waiting.setdefault(user, deque()).append(place)
        self._probe(user)

    def _wait_no_longer(self, place: Place) -> None:
        if place.is_waiting and place.user is not None:
            line = self._waiting[place.user]
            line.remove(place)
            if not line:
                del self._waiting[place.user]
            place.state = "refused"

    def _admit_next(self, user: str) -> None:
        """Give a place of `user` that has come free to the first of those that wait for one."""
        line = self._waiting.get(user)
        if line is None or self._by_user[user] >= self._most_of(user):
            return
        place = line[0]
        self._wait_no_longer(place)
        self._count(place)
        if place.on_admitted is not None:
            place.on_admitted()

    def _probe(self, user: str) -> None:
        """Ask every connection of `user` for a sign of life, once in the time that each has to give one.

        Where that is not over they are asked once more when it is: one may have died since it was asked.
        """
        now = self._clock()
        left = self._probed.get(user, -math.inf) + self._settings.probe_timeout - now
        if left > 0:
            if user not in self._to_probe:
                self._to_probe.add(user)
                self._call_later(left, partial(self._probe_again, user))
            return
        self._probed[user] = now
        for connection, place in list(self._connections.items()):
            if place is not None and place.user == user and place.state == "counted":
                connection.probe(self._settings.probe_timeout)

    def _probe_again(self, user: str) -> None:
        self._to_probe.discard(user)
        if user in self._waiting:
            self._probe(user)

    def _too_many_of_user(self, user: str) -> str:
        return f"this user has {_connections(self._most_of(user))}: close one first"

    def _most_of(self, user: str) -> int:
        """How many connections a user may have."""
        limit = self._limit_of(user)
        return self._settings.max_connections_per_user if limit is None else limit

    def _forget_user(self, place: Place) -> None:
        if place.state != "counted":
            return
        self._on_change()
        if place.kind == "echo":
            self._echoes -= 1
        if place.user is None:
            self._unidentified -= 1
            return
        self._by_user[place.user] -= 1
        if not self._by_user[place.user]:
            del self._by_user[place.user]
            self._probed.pop(place.user, None)

    def _live(self) -> set[Place]:
        return self._admitted | self._turned_away


def _ignore() -> None:
    """Nobody shares the limits."""


def _connections(number: int) -> str:
    return f"{number} connection{'s' * (number != 1)}"


async def sweep_every(seconds: float, *sweeps: Callable[[], object]) -> None:
    """Call every one of `sweeps` again and again, `seconds` apart, until cancelled."""
    while True:
        await asyncio.sleep(seconds)
        for sweep in sweeps:
            sweep()


def _middle(values: Sequence[float]) -> float:
    """The median; 0 of nothing. `statistics` is 0.3 MiB, with fractions and decimals."""
    ordered, count = sorted(values), len(values)
    return (ordered[(count - 1) // 2] + ordered[count // 2]) / 2 if count else 0.0
