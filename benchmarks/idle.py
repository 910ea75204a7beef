"""What an idle WebSocket costs: resident memory a connection, with and without permessage-deflate.

    python -m benchmarks.idle [--connections 10000] [--rounds 3] [--only gateway]

Every server is a fresh process that is measured three times, each time once its memory has settled: after a
hundred connections have come and gone, so that what is loaded late is there; with all connections open; and
after each of them has sent one message of 2 KiB and got its answer. The answer is the gateway's list of
tools, and the same text sent back by the others; with permessage-deflate the messages are compressed. The
gateway's connections are one user each, and only its limit of connections is raised. Linux only.
"""

import argparse
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial

from benchmarks.readers import Readers
from benchmarks.support import (
    GatewayProcess,
    ServerProcess,
    UnavailableError,
    bare_tornado,
    gateway,
    medians,
    node_ws,
    raise_file_limit,
    settled_memory,
)

WARM_UP = 100
QUESTION = json.dumps({"type": "list_tools", "id": "question-1", "data": {}, "note": "a word, " * 240})


@dataclass(frozen=True)
class Side:
    """One server, and whether its connections offer permessage-deflate."""

    name: str
    start: Callable[[], AbstractContextManager[ServerProcess]]
    deflate: bool

    def measure(self, connections: int) -> tuple[float, float]:
        """KiB a connection: open, and after a question and its answer."""
        with self.start() as server:
            headers = server.headers(connections + WARM_UP)
            path, deflate = server.path, self.deflate
            warm_up = Readers(server.port, path, headers[:WARM_UP], deflate=deflate)
            warm_up.exchange(QUESTION, "question-1", deflate=deflate)
            warm_up.close()
            before = settled_memory(server.pid)
            readers = Readers(server.port, path, headers[WARM_UP:], deflate=deflate)
            opened = settled_memory(server.pid)
            readers.exchange(QUESTION, "question-1", deflate=deflate)
            answered = settled_memory(server.pid)
            readers.close()
        return (opened - before) / connections, (answered - before) / connections


def sides(connections: int) -> list[Side]:
    """All that can be measured; the gateway first."""

    def start_gateway() -> AbstractContextManager[GatewayProcess]:
        return gateway({"server.max_connections": connections + 2 * WARM_UP})

    return [
        Side("gateway", start_gateway, deflate=False),
        Side("gateway, deflate", start_gateway, deflate=True),
        Side("node ws", partial(node_ws, deflate=False), deflate=False),
        Side("node ws, deflate", partial(node_ws, deflate=True), deflate=True),
        Side("bare Tornado", partial(bare_tornado, deflate=False), deflate=False),
        Side("bare Tornado, deflate", partial(bare_tornado, deflate=True), deflate=True),
    ]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=10_000, help="connections to one server")
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each side; they take turns")
    parser.add_argument("--only", default="", help="only the sides whose name holds this")
    options = parser.parse_args()
    raise_file_limit(options.connections + 1000)
    measured: dict[str, list[tuple[float, float]]] = {}
    chosen = [side for side in sides(options.connections) if options.only in side.name]
    for number in range(options.rounds):
        for side in list(chosen):
            try:
                measured.setdefault(side.name, []).append(side.measure(options.connections))
            except UnavailableError as reason:
                print(f"left out: {reason}")
                chosen.remove(side)
                del measured[side.name]
            else:
                opened, answered = measured[side.name][-1]
                print(f"round {number + 1}  {side.name:21}  {opened:7.1f} {answered:7.1f}", flush=True)
    print(f"\n{options.connections} connections      | KiB each, open | after one question")
    for name, rounds in measured.items():
        opened, answered = medians(rounds)
        print(f"{name:21} | {opened:14.1f} | {answered:18.1f}")


if __name__ == "__main__":
    main()
