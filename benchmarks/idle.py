"""What an idle WebSocket costs: resident memory a connection, with and without permessage-deflate.

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

from benchmarks.installations import UnavailableError
from benchmarks.processes import settled_memory
from benchmarks.readers import Readers
from benchmarks.report import Section, Table, show
from benchmarks.support import (
    GatewayProcess,
    ServerProcess,
    bare_tornado,
    gateway,
    medians,
    node_ws,
    raise_file_limit,
    versions,
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


def measure_idle(options: argparse.Namespace) -> Section:
    """All numbers of connections."""
    raise_file_limit(max(options.connections) + 1000)
    section = Section(
        "idle",
        "Idle WebSockets",
        notes=[
            (
                f"KiB of resident memory for each connection, medians of {options.idle_rounds} rounds: open, "
                "and after each has sent a message of 2 KiB and got one."
            )
        ],
        versions=versions(),
        limits=[
            "The kernel's socket buffers.",
            "Where there are few connections, what a server takes in pages at a time makes the figure rough.",
        ],
    )
    for connections in options.connections:
        measured = _measure(connections, options.idle_rounds, section)
        rows = []
        for name, rounds in measured.items():
            opened, answered = medians(rounds)
            rows.append([name, f"{opened:.1f}", f"{answered:.1f}"])
        title = f"{connections:,} connections"
        section.tables.append(Table(["server", "open", "after one question"], rows, title))
        show(section.tables[-1])
    return section


def _measure(connections: int, rounds: int, section: Section) -> dict[str, list[tuple[float, float]]]:
    measured: dict[str, list[tuple[float, float]]] = {}
    chosen = sides(connections)
    for _ in range(rounds):
        for side in list(chosen):
            try:
                measured.setdefault(side.name, []).append(side.measure(connections))
            except UnavailableError as reason:
                chosen.remove(side)
                del measured[side.name]
                section.leave_out(str(reason))
    return measured
