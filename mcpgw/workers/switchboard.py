"""The supervisor's side of all links: what one worker says goes on to another, or to all in one order."""

import logging
import os
import resource
import secrets
import socket
import struct
from collections.abc import Callable
from typing import Final

import msgspec

from mcpgw.logs import log_event
from mcpgw.workers.handed_over import DECODE, NO_PLACE
from mcpgw.workers.link import Kind, Link
from mcpgw.workers.membership import Welcome

_LOGGER = logging.getLogger("mcpgw.workers")
_COUNT: Final = struct.Struct("!QI")
_REQUEST: Final = struct.Struct("!I")
"""Which request a telling of the past answers: one that was meant for a worker that has ended is too old."""
_MOST_HELD: Final = 1000
"""Most connections that wait for one worker; beside this, a quarter of the descriptors of this process."""
_UNAVAILABLE: Final = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
)


class Switchboard:
    """Passes messages between workers, and numbers events, so that all hold them in the same order.

    What is for a worker that is starting again waits for it: connections up to a bound, notes not at all.
    `on_change` is called when a worker has built everything, or has started its servers; `on_lost` with one
    whose link has broken.
    """

    def __init__(self, count: int, on_change: Callable[[int], None], on_lost: Callable[[int], None]) -> None:
        self._count = count
        self._on_change = on_change
        self._on_lost = on_lost
        self._links: dict[int, Link] = {}
        # Those that hear all events; a worker is here from its welcome on.
        self._hearing: set[int] = set()
        self._ready: set[int] = set()
        self._settled: set[int] = set()
        self._epoch = secrets.token_hex(8)
        self._offset = 0
        self._wanting: dict[int, tuple[int, bytes]] = {}
        self._requests = 0
        self._speaker = 0
        self._held: dict[int, list[tuple[bytes, int]]] = {}

    @property
    def ready(self) -> frozenset[int]:
        """The workers that have built everything."""
        return frozenset(self._ready)

    @property
    def settled(self) -> frozenset[int]:
        """The workers whose servers have had their first start."""
        return frozenset(self._settled)

    def connect(self, number: int, sock: socket.socket) -> None:
        """A worker was started; welcome it, and tell the others."""

        def take(kind: Kind, to: int, body: bytes, descriptor: int | None) -> None:
            self._take(number, kind, to, body, descriptor)

        def lost() -> None:
            if self._links.get(number) is link:  # else another one has its place by now
                self._on_lost(number)

        link = self._links[number] = Link(sock, take, lost)
        source = min(self._ready - {number}, default=0)
        if not self._hearing and self._offset:
            # Nobody is left who knows what has happened: a new run of the log begins.
            self._epoch, self._offset = secrets.token_hex(8), 0
        self._speaker = self._speaker or number
        welcome = Welcome(self._epoch, self._offset, sorted(self._ready), bool(source), self._speaker)
        self._send(number, Kind.WELCOME, 0, msgspec.msgpack.encode(welcome))
        self._hearing.add(number)
        if source:
            self._want(number, source)

    def disconnect(self, number: int) -> None:
        """A worker has ended; tell the others, and let nobody wait for it."""
        link = self._links.get(number)
        if link is None:
            return
        link.read_rest()  # what it has told comes before the news of its end
        del self._links[number]
        link.close()
        self._hearing.discard(number)
        self._wanting.pop(number, None)
        was_ready = number in self._ready
        self._ready.discard(number)
        self._settled.discard(number)
        for newcomer, (source, _) in list(self._wanting.items()):
            if source == number:
                self._want_again(newcomer)
        if was_ready:
            for other in self._links:
                self._send(other, Kind.GONE, number)
        if number == self._speaker:
            self._speaker = min(self._ready, default=min(self._links, default=0))
            for other in self._links:
                self._send(other, Kind.SPEAKER, self._speaker)

    def send_all(self, kind: Kind, body: bytes = b"") -> None:
        """Send the same to every worker."""
        for number in self._links:
            self._send(number, kind, 0, body)

    def send(self, number: int, kind: Kind) -> None:
        """Send one worker something."""
        self._send(number, kind)

    def close(self) -> None:
        """End every link."""
        for number in list(self._links):
            self._links.pop(number).close()
        for held in self._held.values():
            for body, descriptor in held:
                _refuse(body, descriptor)
        self._held.clear()

    # --- what workers say ----------------------------------------------------------------------------------

    def _take(self, number: int, kind: Kind, to: int, body: bytes, descriptor: int | None) -> None:
        match kind:
            case Kind.PUBLISH:
                self._publish(number, body)
            case Kind.NOTE:
                for other in [to] if to else [one for one in self._ready if one != number]:
                    self._send(other, Kind.NOTE, number, body)
            case Kind.HAND_OVER if descriptor is not None:
                self._hand_over(to, body, descriptor)
            case Kind.SNAPSHOT:
                if self._wanting.get(to) == (number, body[: _REQUEST.size]):
                    del self._wanting[to]
                    self._send(to, Kind.SNAPSHOT, number, body[_REQUEST.size :])
            case Kind.READY:
                self._become_ready(number)
            case Kind.SETTLED:
                self._settled.add(number)
                self._on_change(number)
            case _:
                log_event(_LOGGER, logging.ERROR, "message unknown", kind=int(kind), worker=number)

    def _publish(self, number: int, body: bytes) -> None:
        _, count = _COUNT.unpack_from(body)
        place = _COUNT.pack(self._offset + 1, count)
        self._offset += count
        told = place + body[_COUNT.size :]
        for other in self._hearing:
            # Whoever published them has them already, and needs only to know where they stand.
            self._send(other, Kind.PUBLISH, number, place if other == number else told)

    def _become_ready(self, number: int) -> None:
        self._ready.add(number)
        for other in self._ready:
            if other != number:
                self._send(other, Kind.CAME, number)
                self._send(number, Kind.CAME, other)
        for body, descriptor in self._held.pop(number, ()):
            self._pass_on(number, body, descriptor)
        self._on_change(number)

    def _hand_over(self, to: int, body: bytes, descriptor: int) -> None:
        most = min(_MOST_HELD, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4 // self._count)
        if to in self._ready:
            if self._links[to].waiting_descriptors < most:
                self._pass_on(to, body, descriptor)
            else:  # it reads nothing
                _refuse(body, descriptor)
        elif 0 < to <= self._count and len(self._held.get(to, ())) < most:
            self._held.setdefault(to, []).append((body, descriptor))
        else:
            _refuse(body, descriptor)

    def _pass_on(self, to: int, body: bytes, descriptor: int) -> None:
        try:
            self._send(to, Kind.HAND_OVER, 0, body, descriptor)
        except OSError:
            _refuse(body, descriptor)
        else:
            os.close(descriptor)

    def _want(self, newcomer: int, source: int) -> None:
        self._requests = (self._requests + 1) % 2**32
        request = _REQUEST.pack(self._requests)
        self._wanting[newcomer] = source, request
        self._send(source, Kind.SNAPSHOT_WANTED, newcomer, request)

    def _want_again(self, newcomer: int) -> None:
        source = min(self._ready - {newcomer}, default=0)
        if source:
            self._want(newcomer, source)
        else:
            del self._wanting[newcomer]
            self._send(newcomer, Kind.SNAPSHOT)

    def _send(
        self, number: int, kind: Kind, worker: int = 0, body: bytes = b"", descriptor: int | None = None
    ) -> None:
        link = self._links.get(number)
        if link is not None:
            link.send(kind, worker, body, descriptor)


def _refuse(body: bytes, descriptor: int) -> None:
    """Tell a client to come back, as far as its connection takes a word at once, and close it."""
    with socket.socket(fileno=descriptor) as connection:
        connection.setblocking(False)
        try:
            connection.send(NO_PLACE if DECODE(body).client_id else _UNAVAILABLE)
        except OSError:
            return  # it is gone, or takes nothing
