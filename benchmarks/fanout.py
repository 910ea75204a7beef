"""One event to thousands of readers: deliveries a second, delay, and what the server pays for each.

    python -m benchmarks.fanout [--readers 1000 5000 10000] [--rounds 5] [--only gateway]

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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass, field

from benchmarks.readers import Readers
from benchmarks.support import (
    UNBOUND,
    GatewayProcess,
    ServerProcess,
    UnavailableError,
    bare_tornado,
    gateway,
    medians,
    nchan,
    node_ws,
    processor_seconds,
    raise_file_limit,
)
from benchmarks.websocket import Publisher

CHANNEL = "room:bench"
EVENT = "room.message"
TEXT = "x" * 100
REFERENCE = "node ws"
_DELIVERY_SECONDS = 60
_COLUMNS = "readers | server       | deliveries/s | p99 ms | CPU µs a delivery | deliveries/s to node ws"


@dataclass
class Side:
    """A server with its readers; `rounds` are deliveries a second, p99 in ms and CPU µs a delivery."""

    name: str
    server: ServerProcess
    readers: list[Readers]
    publisher: Publisher
    rounds: list[tuple[float, float, float]] = field(default_factory=list)

    def measure(self, readers: int, events: int) -> None:
        """One round."""
        busy, before = 0, processor_seconds(self.server.pid)
        for number in range(events):
            for part in self.readers:
                part.expect(1)
            sent = time.monotonic_ns()
            self._publish(number, sent)
            busy += max(part.received(_DELIVERY_SECONDS) for part in self.readers) - sent
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
    name: str, start: Callable[[], AbstractContextManager[ServerProcess]], readers: int, processes: int
) -> Iterator[Side]:
    """The server `name` with its readers and its publisher."""
    with ExitStack() as stack:
        server = stack.enter_context(start())
        headers = server.headers(readers)
        parts = [
            stack.enter_context(closing(Readers(server.port, server.path, headers[first::processes])))
            for first in range(processes)
        ]
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
        else:
            publisher = Publisher(server.port, "/publish", {})
            stack.enter_context(closing(publisher))
        yield Side(name, server, parts, publisher)


def compare(readers: int, options: argparse.Namespace) -> None:
    """Measure all servers with so many readers, and print their rows."""
    with ExitStack() as stack:
        sides: list[Side] = []
        for name, start in starters(readers).items():
            if options.only in name:
                try:
                    sides.append(stack.enter_context(opened(name, start, readers, options.processes)))
                except UnavailableError as reason:
                    print(f"left out: {reason}")
        events = max(3, options.deliveries // readers)
        for side in sides:
            side.measure(readers, 2)
            side.rounds.clear()
        for _ in range(options.rounds):
            for side in sides:
                side.measure(readers, events)
    reference = next((side for side in sides if side.name == REFERENCE), None)
    for side in sides:
        rate, p99, cost = medians(side.rounds)
        ratio = "-"
        if reference is not None:
            pairs = zip(side.rounds, reference.rounds, strict=True)
            ratio = f"{medians([[own[0] / other[0]] for own, other in pairs])[0]:.2f}"
        print(
            f"{readers:7} | {side.name:12} | {rate:12.0f} | {p99:6.1f} | {cost:17.1f} | {ratio:>8}",
            flush=True,
        )


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--readers", type=int, nargs="+", default=[1000, 5000, 10_000], help="numbers of readers"
    )
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each server; they take turns")
    parser.add_argument(
        "--deliveries", type=int, default=50_000, help="deliveries in one round, at least 3 events"
    )
    parser.add_argument("--processes", type=int, default=1, help="processes that each server's readers share")
    parser.add_argument("--only", default="", help="only the servers whose name holds this")
    options = parser.parse_args()
    raise_file_limit(max(options.readers) + 1000)
    print(_COLUMNS)
    for readers in options.readers:
        compare(readers, options)


if __name__ == "__main__":
    main()
