"""One event to thousands of readers: deliveries a second, delay, and what the server pays for each.

An event is published when the one before has reached everybody. Deliveries a second are the readers divided
by the time from publish to the last receipt; the delay is that of each receipt, by the clock that all
processes of a machine share. Readers are WebSockets of other processes, without compression. The gateway's
are one user each and have subscribed with a filter; only its limits of connections and of a user's frames
are raised. The servers are up at the same time and their rounds take turns, so that a machine whose speed
drifts drifts for all; what is to be quoted is the ratio. Linux only.
"""

import argparse
import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.installations import UnavailableError
from benchmarks.processes import processor_seconds
from benchmarks.readers import Readers
from benchmarks.report import Section, Table, show
from benchmarks.support import (
    UNBOUND,
    GatewayProcess,
    ServerProcess,
    bare_tornado,
    gateway,
    medians,
    nchan,
    node_ws,
    raise_file_limit,
    versions,
)
from benchmarks.websocket import Publisher

CHANNEL = "room:bench"
EVENT = "room.message"
TEXT = "x" * 100
REFERENCE = "node ws"
_DELIVERY_SECONDS = 60
_COLUMNS = ("server", "deliveries/s", "p99 ms", "CPU µs a delivery", f"to {REFERENCE}")


@dataclass
class Side:
    """A server with its readers; `rounds` are deliveries a second, p99 in ms and CPU µs a delivery."""

    name: str
    server: ServerProcess
    readers: list[Readers]
    publisher: Publisher
    rounds: list[tuple[float, float, float]] = field(default_factory=list)

    def measure(self, readers: int, events: int, after_each: Callable[[], None]) -> None:
        """One round; `after_each` event is not part of it."""
        busy, before = 0, processor_seconds(self.server.pid)
        for number in range(events):
            for part in self.readers:
                part.expect(1)
            sent = time.monotonic_ns()
            self._publish(number, sent)
            busy += max(part.received(_DELIVERY_SECONDS) for part in self.readers) - sent
            after_each()
        used = processor_seconds(self.server.pid) - before
        delays = array("Q")
        for part in self.readers:
            delays.extend(part.delays())
        deliveries = readers * events
        assert len(delays) == deliveries
        p99 = sorted(delays)[len(delays) * 99 // 100]
        self.rounds.append((deliveries / busy * 1e9, p99 / 1e6, used / deliveries * 1e6))

    def _publish(self, number: int, sent: int) -> None:
        payload = {"sent": sent, "text": TEXT}
        if isinstance(self.server, GatewayProcess):
            request = f"publish-{number}"
            data = {"channel": CHANNEL, "payload": payload}
            self.publisher.send(json.dumps({"type": "publish", "id": request, "data": data}))
            self.publisher.read_until(rf'"{request}"')
            return
        # The frame that the gateway makes of it, so that all send the same bytes.
        event = {
            "type": EVENT,
            "id": f"0123456789abcdef-{number}",
            "channel": CHANNEL,
            "data": {"user": "publisher", "clientId": "0123456789ab", "payload": payload},
            "timestamp": time.time_ns() // 1_000_000,
        }
        self.publisher.send(json.dumps(event, separators=(",", ":")))


def starters(readers: int) -> dict[str, Callable[[], AbstractContextManager[ServerProcess]]]:
    """How each server is started."""
    limits = {
        "server.max_connections": readers + 100,
        "websocket.frames_rate": UNBOUND,
        "websocket.frames_burst": UNBOUND,
    }
    return {
        "gateway": lambda: gateway(limits),
        REFERENCE: node_ws,
        "nchan": nchan,
        "bare Tornado": bare_tornado,
    }


@contextmanager
def opened(
    name: str,
    start: Callable[[], AbstractContextManager[ServerProcess]],
    readers: int,
    options: argparse.Namespace,
    others: Sequence[Side],
) -> Iterator[Side]:
    """The server `name` with its readers and its publisher. Meanwhile the `others` stay alive."""
    processes = options.processes
    with ExitStack() as stack:
        server = stack.enter_context(start())
        headers = server.headers(readers)
        parts = []
        for first in range(processes):
            part = Readers(server.port, server.path, headers[first::processes])
            parts.append(stack.enter_context(closing(part)))
            _answer_pings(others)
        if isinstance(server, GatewayProcess):
            token = server.token("publisher", "admin", "rooms:join")
            publisher = Publisher(server.port, server.path, {"Authorization": f"Bearer {token}"})
            stack.enter_context(closing(publisher))
            data = {"channel": CHANNEL, "filter": {"types": [EVENT]}}
            subscribe = json.dumps({"type": "subscribe", "id": "subscribe-1", "data": data})
            publisher.send(subscribe)  # only members speak in a room
            publisher.read_until('"subscribed"')
            for part in parts:
                part.exchange(subscribe, '"subscribed"')
                publisher.answer_pings()
        else:
            publisher = Publisher(server.port, "/publish", {})
            stack.enter_context(closing(publisher))
        yield Side(name, server, parts, publisher)


def _answer_pings(sides: Sequence[Side]) -> None:
    """Keep the publishers alive while it is not their turn. The readers keep themselves alive."""
    for side in sides:
        side.publisher.answer_pings()


def measure_fanout(options: argparse.Namespace) -> Section:
    """All numbers of readers."""
    raise_file_limit(max(options.readers) + 1000)
    section = Section(
        "fanout",
        "One event to many readers",
        notes=[
            (
                f"Medians of {options.rounds} rounds; the next event is published when the one before has "
                "reached everybody. p99 is the delay of a delivery, CPU the server's own."
            )
        ],
        versions=versions(with_nchan=True),
        limits=[
            "The readers share the machine's cores with the server: each receipt costs them some 3 µs.",
            "mcpgw's readers are one user each and have a filter; the others send to whoever is there.",
        ],
    )
    for readers in options.readers:
        section.tables.append(_compare(readers, options, section))
        show(section.tables[-1])
    return section


def _compare(readers: int, options: argparse.Namespace, section: Section) -> Table:
    """Measure all servers with so many readers."""
    with ExitStack() as stack:
        sides: list[Side] = []
        for name, start in starters(readers).items():
            try:
                sides.append(stack.enter_context(opened(name, start, readers, options, sides)))
            except UnavailableError as reason:
                section.leave_out(str(reason))
        events = max(3, options.deliveries // readers)
        for side in sides:
            side.measure(readers, 2, partial(_answer_pings, sides))
            side.rounds.clear()
        for _ in range(options.rounds):
            for side in sides:
                side.measure(readers, events, partial(_answer_pings, sides))
    reference = next((side for side in sides if side.name == REFERENCE), None)
    rows = []
    for side in sides:
        rate, p99, cost = medians(side.rounds)
        ratio = "-"
        if reference is not None:
            pairs = zip(side.rounds, reference.rounds, strict=True)
            ratio = f"{medians([[own[0] / other[0]] for own, other in pairs])[0]:.2f}"
        rows.append([side.name, f"{rate:,.0f}", f"{p99:.1f}", f"{cost:.1f}", ratio])
    return Table(_COLUMNS, rows, f"{readers:,} readers")
