"""Tool calls through mcpgw, through other gateways, and without one: calls a second, latency, what they cost.

All stand before the same echo server and run at the same time; their rounds take turns, so that a machine
whose speed drifts drifts for all. Every call carries a text of its own, and every answer is held against it.
"""

import argparse
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial

from benchmarks.connections import LoadError
from benchmarks.installations import UnavailableError
from benchmarks.load import Load
from benchmarks.report import Section, Table, show
from benchmarks.targets import (
    BARE,
    GATEWAY,
    RELAY,
    SDK_CLIENT,
    TARGETS,
    Backend,
    Running,
    Target,
    http_backend,
    stdio_backend,
)

BASES = (SDK_CLIENT, RELAY)
"""Whom the others are held against."""

_WARM_UP = 0.2
_HTTP_IN_FLIGHT = 16
_COLUMNS_MEAN = (
    "CPU is the processor time of the target's own processes, without the backend's; of the SDK client it is "
    "that of its process, which is caller and client in one; without a gateway, the backend's. The last "
    "column is what the load generator itself used. An answer that is not its own call's, an error, or none "
    "at all counts as wrong."
)
_CALLS_LIMITS = (
    (
        "Generator, target and backend share the machine's cores. Where these are too few, a fast target "
        "waits for the processor time of the others, and its ratios come out lower than on more cores."
    ),
    (
        "The other gateways neither authenticate nor limit, audit or count here, and write no log of calls; "
        "mcpgw does as its defaults have it. Only its limits of one user's calls and frames a second, and of "
        "calls on one socket, are raised. With a connection for each call, each is a user of its own."
    ),
    (
        "Loopback, calls of some 130 bytes, a tool that does nothing, no TLS. Beside a tool that takes "
        "milliseconds little of this is felt."
    ),
    (
        "HTTP/1.1 carries one call at a time on a connection, so those targets stand where each call has "
        "one. The SDK client has one pipe to its server in any case."
    ),
    "Processor time is told in steps of 10 ms: rounds of less than a second make it rough.",
)
_HTTP_LIMITS = (
    "Answers as event streams, and servers that keep sessions.",
    (
        "Without a gateway, the generator sends bare requests on kept connections: that is what the server "
        "itself can do, not what an MCP client can."
    ),
    (
        "mcpo speaks the handshake revisions alone. fastmcp begins a session with the server for each call; "
        "the others keep theirs."
    ),
)


@dataclass(frozen=True)
class Round:
    """One round of one target. `cost` is processor time of the target a call, in µs; where there is
    none, that of the backend, or of the SDK's client. `load_cost` is the generator's."""

    rate: float
    median: float
    p99: float
    cost: float
    load_cost: float


@dataclass
class Cell:
    """The rounds of one target in one place of the tables; a `fault` ends them."""

    target: str
    running: Running
    in_flight: int
    connections: int
    rounds: list[Round] = field(default_factory=list)
    wrong: int = 0
    fault: str = ""

    def measure(self, seconds: float) -> None:
        """One round more."""
        used = self.running.backend_seconds if self.target == BARE else self.running.processor_seconds
        try:
            with Load(self.running.endpoint, in_flight=self.in_flight, connections=self.connections) as load:
                warm = load.run(seconds * _WARM_UP)
                before = used()
                outcome = load.run(seconds)
                spent = used() - before
        except LoadError as fault:
            self.fault = str(fault)
            return
        self.wrong += warm.wrong + warm.lost + outcome.wrong + outcome.lost
        if sample := warm.sample or outcome.sample:
            print(f"{self.target}, {self.in_flight} in flight, a wrong answer: {sample}", file=sys.stderr)
        calls = len(outcome.latencies)
        if not calls:
            self.fault = "no right answer"
            return
        own = outcome.processor_seconds / calls * 1e6
        cost = own if self.running.endpoint.kind == "sdk" else spent / calls * 1e6
        self.rounds.append(Round(outcome.rate, outcome.percentile(50), outcome.percentile(99), cost, own))

    def median(self, of: Callable[[Round], float]) -> float:
        """The median over its rounds."""
        return statistics.median(map(of, self.rounds))

    def ratio(self, base: "Cell") -> str:
        """Calls a second to those of `base` in the same round, the median."""
        if base.fault or self.fault:
            return "-"
        pairs = zip(self.rounds, base.rounds, strict=True)
        return f"{statistics.median(own.rate / other.rate for own, other in pairs):.2f}"


def measure_calls(options: argparse.Namespace) -> Section:
    """Calls to a stdio server."""
    section = Section(
        "calls",
        "Tool calls to a stdio server",
        notes=[f"Medians of {options.rounds} rounds of {options.seconds:g} s. {_COLUMNS_MEAN}"],
        limits=list(_CALLS_LIMITS),
    )
    with ExitStack() as stack:
        up = _started(stack, stdio_backend, section, options)
        memory = _memory(up)
        for in_flight in options.in_flight:
            alone = [Cell(target.name, running, in_flight, 1) for target, running in up if target.multiplexed]
            each = [
                Cell(target.name, running, in_flight, in_flight)
                for target, running in up
                if target.name != BARE
            ]
            if in_flight == 1:
                places = {"1 in flight": alone + [cell for cell in each if cell.target not in _names(alone)]}
            else:
                places = {
                    f"{in_flight} in flight, one connection": alone,
                    f"{in_flight} in flight, a connection for each": each,
                }
            for title, cells in places.items():
                _compare(title, cells, section, options)
        section.tables.append(Table(["target", "MiB"], memory, "Resident memory, before the first round"))
        show(section.tables[-1])
    return section


def measure_http(options: argparse.Namespace) -> Section:
    """Calls to a server over Streamable HTTP, in both eras of MCP."""
    rounds = f"medians of {options.rounds} rounds of {options.seconds:g} s"
    section = Section(
        "http",
        "Tool calls to a Streamable HTTP server",
        notes=[
            (
                f"{_HTTP_IN_FLIGHT} in flight, {rounds}. The server answers with JSON and keeps no session. "
                "The columns are those of calls to a stdio server."
            )
        ],
        limits=list(_HTTP_LIMITS),
    )
    for era, modern in (("the handshake revisions", False), ("revision 2026-07-28 as well", True)):
        with ExitStack() as stack:
            up = _started(stack, partial(http_backend, modern=modern), section, options)
            cells = [
                Cell(target.name, running, _HTTP_IN_FLIGHT, 1 if target.name == GATEWAY else _HTTP_IN_FLIGHT)
                for target, running in up
            ]
            _compare(f"The server speaks {era}", cells, section, options)
    return section


def _started(
    stack: ExitStack,
    backend: Callable[[], AbstractContextManager[Backend]],
    section: Section,
    options: argparse.Namespace,
) -> list[tuple[Target, Running]]:
    """All targets that start and answer a call, each before a backend of its own."""
    up = []
    for target in TARGETS:
        if options.only and target.name not in options.only:
            continue
        try:
            running = stack.enter_context(_answering(target, backend))
        except (UnavailableError, LoadError) as reason:
            section.leave_out(f"{target.name}: {reason}")
        else:
            up.append((target, running))
            line = f"{target.name}: {target.versions()}"
            if line not in section.versions:
                section.versions.append(line)
    return up


@contextmanager
def _answering(target: Target, backend: Callable[[], AbstractContextManager[Backend]]) -> Iterator[Running]:
    """`target` before a backend of its own, once it has answered a call.

    Raises:
        UnavailableError, LoadError: it does not.
    """
    with backend() as started, target.start(started) as running:
        with Load(running.endpoint, in_flight=1) as load:
            first = load.run(0)
        if first.wrong or first.lost:
            raise UnavailableError(f"the first call was not answered as it should be: {first.sample}")
        yield running


def _compare(title: str, cells: list[Cell], section: Section, options: argparse.Namespace) -> None:
    """Measure the cells by turns, and add their table."""
    for number in range(options.rounds):
        first = number % len(cells) if cells else 0
        for cell in cells[first:] + cells[:first]:  # so that nobody always comes behind the same one
            if not cell.fault:
                cell.measure(options.seconds)
    bases = {cell.target: cell for cell in cells if cell.target in options.bases}
    columns = ["target", "calls/s", "p50 ms", "p99 ms", "CPU µs a call", "wrong"]
    columns += [*(f"to {name}" for name in bases), "generator µs"]
    rows = []
    for cell in cells:
        section.wrong += cell.wrong
        if cell.fault:
            section.leave_out(f"{cell.target}, {title}: {cell.fault}")
            rows.append([cell.target, "failed", *["-"] * 3, str(cell.wrong), *["-"] * len(bases), "-"])
            continue
        rows.append(
            [
                cell.target,
                f"{cell.median(lambda each: each.rate):,.0f}",
                f"{cell.median(lambda each: each.median):.2f}",
                f"{cell.median(lambda each: each.p99):.2f}",
                f"{cell.median(lambda each: each.cost):.0f}",
                str(cell.wrong),
                *(cell.ratio(base) for base in bases.values()),
                f"{cell.median(lambda each: each.load_cost):.0f}",
            ]
        )
    section.tables.append(Table(columns, rows, title))
    show(section.tables[-1])


def _memory(up: Sequence[tuple[Target, Running]]) -> list[list[str]]:
    """Resident memory of the targets, in MiB."""
    rows = []
    for target, running in up:
        if running.pid is not None:
            rows.append([target.name, f"{running.memory() / 1024:.0f}"])
            if target.name == GATEWAY:
                row = [
                    f"beside {GATEWAY}, its embedded memory server",
                    f"{running.embedded_memory() / 1024:.0f}",
                ]
                rows.append(row)
    return rows


def _names(cells: Sequence[Cell]) -> set[str]:
    return {cell.target for cell in cells}
