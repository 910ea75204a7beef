"""A worker's side of the link: what comes from the supervisor, and to whom it goes."""

import asyncio
import logging
import os
import struct
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from mcpgw.logs import log_event
from mcpgw.workers.link import Kind, Link
from mcpgw.workers.peers import Peers
from mcpgw.workers.place import Place

_LOGGER = logging.getLogger("mcpgw.workers")
_PUBLISHED: Final = struct.Struct("!QI")
"""The offset of the first of some events, and how many they are."""

OnHandedOver = Callable[[bytes, int], None]
"""Takes what is said of a client's connection, and its descriptor, which is then the taker's to close."""


class SupervisorGoneError(Exception):
    """The supervisor ended before it had said anything."""


class Welcome(msgspec.Struct, array_like=True):
    """What a worker is told first: which run of the log this is, where it stands, and who is there.

    With `has_past` another worker tells what the log holds; else it is taken to hold nothing. `speaker` is
    the number of the worker that tells what is to be told once.
    """

    epoch: str
    offset: int
    present: list[int]
    has_past: bool
    speaker: int


class Log(Protocol):
    """A log of events that all workers have together."""

    def take_events(self, sender: int, first: int, count: int, body: bytes) -> None:
        """Take `count` events, the first at the offset `first`; without a body they are this worker's own."""

    def flush(self) -> None:
        """Send what was published and still waits for more."""

    def take_past(self, past: bytes) -> None:
        """Take what another worker has told of the past; empty where nobody could."""

    def tell_past(self) -> bytes:
        """What a newcomer is to know of the past."""


class LogLink:
    """What a shared log of events needs of the link; see `mcpgw.bus.shared`."""

    def __init__(self, membership: "Membership") -> None:
        self._membership = membership
        self._log: Log | None = None
        self._early: list[tuple[int, int, int, bytes]] = []
        self._early_past: bytes | None = None

    def attach(self, log: Log) -> None:
        """Give what comes to `log`, and what has come already."""
        self._log = log
        if self._early_past is not None:
            log.take_past(self._early_past)
        for early in self._early:
            log.take_events(*early)
        self._early.clear()

    def take_events(self, sender: int, first: int, count: int, body: bytes) -> None:
        """Events have come; see `Log`."""
        if self._log is None:
            self._early.append((sender, first, count, body))
        else:
            self._log.take_events(sender, first, count, body)

    def take_past(self, past: bytes) -> None:
        """The past has come; see `Log`."""
        if self._log is None:
            self._early_past = past
        else:
            self._log.take_past(past)

    def tell_past(self) -> bytes:
        """What a newcomer is to know; see `Log`."""
        return b"" if self._log is None else self._log.tell_past()

    def flush(self) -> None:
        """Have told what was published so far, before anything else is said."""
        if self._log is not None:
            self._log.flush()

    def send(self, count: int, body: bytes) -> None:
        """Have so many events told to all, this worker too, in one order."""
        self._membership.send(Kind.PUBLISH, 0, _PUBLISHED.pack(0, count) + body)


class Membership(Peers):
    """This worker among the others, by its link to the supervisor.

    `on_end` is called where the gateway is to end: with true where it is not to wait for anybody.
    """

    def __init__(self, place: Place, on_end: Callable[[bool], None]) -> None:
        super().__init__(place.number, place.count)
        self._on_end = on_end
        self._is_over = False
        self._handed_over: list[tuple[bytes, int]] = []
        self._on_handed_over: OnHandedOver | None = None
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.go = asyncio.Event()
        self.settled = asyncio.Event()
        self.log = LogLink(self)
        self._takers: dict[Kind, Callable[[int, bytes], None]] = {
            Kind.NOTE: self.take_note,
            Kind.PUBLISH: self._take_events,
            Kind.WELCOME: self._take_welcome,
            Kind.CAME: lambda worker, _: self.has_come(worker),
            Kind.GONE: lambda worker, _: self.has_gone(worker),
            Kind.SPEAKER: lambda worker, _: self.speaks(worker),
            Kind.SNAPSHOT_WANTED: self._tell_past,
            Kind.SNAPSHOT: lambda _, past: self.log.take_past(past),
            Kind.GO: lambda *_: self.go.set(),
            Kind.SETTLED: lambda *_: self.settled.set(),
            Kind.END: lambda _, at_once: self._on_end(bool(at_once)),
        }
        self._link = Link(place.link_socket(), self._take, self._lost)

    def send(self, kind: Kind, to: int = 0, body: bytes = b"", descriptor: int | None = None) -> None:
        """Send a message; see `Link.send`."""
        self._link.send(kind, to, body, descriptor)

    def send_note(self, to: int, body: bytes) -> None:
        """See `Peers.send_note`."""
        self.log.flush()
        self.send(Kind.NOTE, to, body)

    def hand_over(self, to: int, body: bytes, descriptor: int) -> None:
        """Give a client's connection to another worker; the `descriptor` stays the caller's to close."""
        self.log.flush()
        self.send(Kind.HAND_OVER, to, body, descriptor)

    def take_connections(self, taker: OnHandedOver) -> None:
        """Have `taker` given the connections that others hand over, those that came before too."""
        self._on_handed_over = taker
        waiting, self._handed_over = self._handed_over, []
        for body, descriptor in waiting:
            taker(body, descriptor)

    def ready(self) -> None:
        """Everything is built."""
        self.send(Kind.READY)

    def servers_started(self) -> None:
        """Clients can connect, and the first start of every server is over."""
        self.send(Kind.SETTLED)

    def close(self) -> None:
        """Leave the others."""
        self._is_over = True
        self.log.flush()
        self._link.close()
        for _, descriptor in self._handed_over:
            os.close(descriptor)
        self._handed_over.clear()

    def _lost(self) -> None:
        """The supervisor is gone, and with it all that the others say: nothing can go on as it was."""
        if not self._is_over:
            log_event(_LOGGER, logging.ERROR, "supervisor gone")
            if not self.welcome.done():
                self.welcome.set_exception(SupervisorGoneError)
            self._on_end(False)

    def _take(self, kind: Kind, worker: int, body: bytes, descriptor: int | None) -> None:
        if descriptor is not None:
            self._take_connection(body, descriptor)
        elif kind in self._takers:
            self._takers[kind](worker, body)
        else:
            log_event(_LOGGER, logging.ERROR, "message unknown", kind=int(kind))

    def _take_connection(self, body: bytes, descriptor: int) -> None:
        if self._on_handed_over is None:
            self._handed_over.append((body, descriptor))
        else:
            self._on_handed_over(body, descriptor)

    def _take_events(self, worker: int, body: bytes) -> None:
        first, count = _PUBLISHED.unpack_from(body)
        self.log.take_events(worker, first, count, body[_PUBLISHED.size :])

    def _take_welcome(self, _: int, body: bytes) -> None:
        welcome = msgspec.msgpack.decode(body, type=Welcome)
        self.present.update(welcome.present)
        self._speaker = welcome.speaker
        self.welcome.set_result(welcome)

    def _tell_past(self, newcomer: int, request: bytes) -> None:
        self.send(Kind.SNAPSHOT, newcomer, request + self.log.tell_past())
