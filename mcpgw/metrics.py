"""Everything that the gateway counts for Prometheus, declared in one table.

    metrics = Metrics(servers=["memory"], frame_types=["ping", "tool_call"], channels=["servers", "user"])
    metrics.call_started("memory")
    metrics.call_ended("memory", "ok", 0.012)
    body, content_type = metrics.render(request.headers.get("Accept", ""))

Labels are bounded: a value that nobody announced (a server, a frame type, a channel, a code, which all come
from clients) is counted under one common label. Methods are for the event loop's thread, and cost about a
microsecond; `render` may run in any thread. Sources: Prometheus text format 0.0.4, OpenMetrics 1.0.
"""

import re
from bisect import bisect_left
from collections import Counter as TallyByCode
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from threading import Lock
from typing import Final, Literal

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Metric,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.metrics_core import HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from mcpgw.errors import (
    CallTimeout,
    Cancelled,
    CloseCode,
    InternalError,
    OutcomeUnknown,
    TooLarge,
    ToolExecutionError,
    codes,
)

# A second series for each counter, that tells when it began, would double what is scraped.
disable_created_metrics()  # type: ignore[no-untyped-call]

OTHER: Final = "other"
"""The label of frame types, channels, codes, outcomes and reasons that are not known."""

OTHER_SERVER: Final = "_other"
"""The label of servers that are not known; no server's name begins with an underscore."""

OK: Final = "ok"
"""The outcome of a call whose tool answered."""

TOOL_ERROR: Final = "tool_error"
"""The outcome of a call whose tool answered that it failed."""

CONNECTION_KINDS: Final = ("websocket", "sse")

DROP_REASONS: Final = ("state", "stream", "result", "notification")
"""What may be dropped: state events and stream items for a slow reader, results that were kept for a resume
and not fetched, notifications of a backend above its rate.
"""

CALL_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the histogram of call time, in seconds."""

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS_CONTENT_TYPE: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

_ABNORMAL = 1006  # RFC 6455 section 7.1.5: the connection ended without a close frame
_REFUSED = re.compile(r"q=0(?:\.0{0,3})?")  # RFC 9110 section 12.4.2: not acceptable
_PROTOCOL_CODES = range(1000, 1016)  # RFC 6455 section 11.7, the registered ones
_REACHED = frozenset(
    {OK, TOOL_ERROR}
    | {error.code for error in (CallTimeout, Cancelled, OutcomeUnknown, ToolExecutionError, TooLarge)}
    | {InternalError.code}
)


@dataclass(frozen=True, slots=True)
class Declaration:
    """One metric: its full name, its kind, what it says, and its labels."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()


CONNECTIONS: Final = Declaration("mcpgw_connections", "gauge", "Connections that are open.", ("kind",))
CONNECTIONS_OPENED: Final = Declaration(
    "mcpgw_connections_opened_total", "counter", "Connections that were opened.", ("kind",)
)
CLOSES: Final = Declaration(
    "mcpgw_closes_total", "counter", "WebSockets that were closed, by close code.", ("code",)
)
SESSIONS: Final = Declaration(
    "mcpgw_sessions", "gauge", "Sessions that are connected or can still be resumed."
)
FRAMES: Final = Declaration(
    "mcpgw_frames_total",
    "counter",
    "Frames from clients (in) and to clients (out), by type.",
    ("direction", "type"),
)
ERRORS: Final = Declaration("mcpgw_errors_total", "counter", "Errors that clients were told.", ("code",))
CALLS: Final = Declaration(
    "mcpgw_calls_total",
    "counter",
    "Tool calls that have ended: ok, tool_error, or the code of their error.",
    ("server", "outcome"),
)
CALLS_OPEN: Final = Declaration(
    "mcpgw_calls_open", "gauge", "Tool calls that have not ended yet.", ("server",)
)
CALL_TIME: Final = Declaration(
    "mcpgw_call_seconds",
    "histogram",
    "Time from a call to its end; calls that were refused before they reached the server are left out.",
    ("server",),
)
EVENTS: Final = Declaration("mcpgw_events_total", "counter", "Events that were published.", ("channel",))
SUBSCRIPTIONS: Final = Declaration(
    "mcpgw_subscriptions", "gauge", "Subscriptions of connections to channels.", ("channel",)
)
DROPPED: Final = Declaration(
    "mcpgw_dropped_total",
    "counter",
    "What was dropped because a limit was reached: state events and stream items for a slow reader, kept "
    "results, notifications of backends.",
    ("reason",),
)
BACKEND_UP: Final = Declaration(
    "mcpgw_backend_up", "gauge", "Whether calls to the server go through (1) or not (0).", ("server",)
)
BACKEND_RESTARTS: Final = Declaration(
    "mcpgw_backend_restarts_total", "counter", "Times that the server was started again.", ("server",)
)

CERTIFICATE_ENDS: Final = Declaration(
    "mcpgw_certificate_ends_seconds",
    "gauge",
    "When the certificate's time is over, in seconds since 1970; only where the gateway speaks TLS.",
)

DECLARATIONS: Final = (
    CONNECTIONS,
    CONNECTIONS_OPENED,
    CLOSES,
    SESSIONS,
    FRAMES,
    ERRORS,
    CALLS,
    CALLS_OPEN,
    CALL_TIME,
    EVENTS,
    SUBSCRIPTIONS,
    DROPPED,
    BACKEND_UP,
    BACKEND_RESTARTS,
    CERTIFICATE_ENDS,
)
"""All of the gateway's own metrics; beside them stand those of the process, of Python and of its garbage
collector (``process_…``, ``python_…``).
"""


class _Tally:
    """A number that is counted many times a call; the library's own is told when somebody looks.

    The library takes a lock each time, which here nobody needs: all is counted on one thread.
    """

    __slots__ = ("_counter", "_told", "value")

    def __init__(self, counter: Counter | Gauge) -> None:
        self._counter = counter
        self._told = 0
        self.value = 0

    def tell(self) -> None:
        """Have the library know; one at a time."""
        value = self.value
        if isinstance(self._counter, Gauge):
            self._counter.set(value)
        elif value != self._told:
            self._counter.inc(value - self._told)
        self._told = value


class _Times:
    """How many took how long: a count for each bucket, the last without a bound."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(CALL_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float) -> None:
        """One more."""
        self.counts[bisect_left(CALL_SECONDS, seconds)] += 1
        self.sum += seconds


@dataclass(frozen=True, slots=True)
class _Calls:
    """The calls of one server; `outcomes` are made when the first call has that end."""

    open: _Tally
    seconds: _Times
    outcomes: dict[str, _Tally]


class _CallTimes(Collector):
    """The histogram of the time of calls, by server."""

    def __init__(self, calls: Callable[[], Mapping[str, _Calls]]) -> None:
        self._calls = calls

    def describe(self) -> Iterable[Metric]:
        """See `Collector`."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        family = self._family()
        for server, calls in self._calls().items():
            counts = list(accumulate(calls.seconds.counts))
            bounds = [*map(floatToGoString, CALL_SECONDS), "+Inf"]
            family.add_metric([server], list(zip(bounds, counts, strict=True)), calls.seconds.sum)
        return [family]

    @staticmethod
    def _family() -> HistogramMetricFamily:
        return HistogramMetricFamily(CALL_TIME.name, CALL_TIME.help, labels=CALL_TIME.labels)


class Metrics:
    """The numbers of one gateway, in a registry of its own.

    `frame_types` are the types of frames and events of either direction; `channels` the names of channels up
    to their colon (``user``, not ``user:ann``).
    """

    def __init__(
        self, *, servers: Iterable[str], frame_types: Iterable[str], channels: Iterable[str]
    ) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

        def counter(row: Declaration) -> Counter:
            return Counter(row.name, row.help, row.labels, registry=registry)

        def gauge(row: Declaration) -> Gauge:
            return Gauge(row.name, row.help, row.labels, registry=registry)

        connections, opened = gauge(CONNECTIONS), counter(CONNECTIONS_OPENED)
        kinds = (*CONNECTION_KINDS, OTHER)
        self._connections = {kind: connections.labels(kind) for kind in kinds}
        self._opened = {kind: opened.labels(kind) for kind in kinds}
        closes = counter(CLOSES)
        self._closes = {code: closes.labels(code) for code in {*_PROTOCOL_CODES, *map(int, CloseCode)}}
        self._closes_other = closes.labels(OTHER)
        self._sessions = gauge(SESSIONS)
        frames, types = counter(FRAMES), sorted({*frame_types, OTHER})
        self._frames_in = {name: _Tally(frames.labels("in", name)) for name in types}
        self._frames_out = {name: _Tally(frames.labels("out", name)) for name in types}
        errors = counter(ERRORS)
        self._errors_told: TallyByCode[str] = TallyByCode()
        self._errors = {code: errors.labels(code) for code in (*codes(), OTHER)}
        events, subscriptions, channels = counter(EVENTS), gauge(SUBSCRIPTIONS), {*channels, OTHER}
        self._events = {name: _Tally(events.labels(name)) for name in sorted(channels)}
        self._subscriptions = {name: subscriptions.labels(name) for name in sorted(channels)}
        dropped = counter(DROPPED)
        self._dropped = {reason: dropped.labels(reason) for reason in (*DROP_REASONS, OTHER)}

        self._calls = counter(CALLS)
        self._calls_open = gauge(CALLS_OPEN)
        self._backend_up = gauge(BACKEND_UP)
        self._backend_restarts = counter(BACKEND_RESTARTS)
        self._outcomes = frozenset({OK, TOOL_ERROR, *codes()})
        self._certificate_ends: Gauge | None = None
        self._up: dict[str, Gauge] = {}
        self._restarts: dict[str, Counter] = {}
        self._servers: dict[str, _Calls] = {}
        self._other_server: _Calls | None = None
        self._telling = Lock()
        registry.register(_CallTimes(self._counted))
        for server in servers:
            self.add_server(server)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All numbers, and the content type of how they are written.

        `accept` is the ``Accept`` header: OpenMetrics where it names it, else the text format of Prometheus.
        Reads files of ``/proc``: with thousands of connections better not on the event loop.
        """
        self._tell()
        return written(self._registry, accept)

    def families(self) -> list[Metric]:
        """All numbers as the library has them; may run in any thread, as `render`."""
        self._tell()
        return list(self._registry.collect())

    def _counted(self) -> dict[str, _Calls]:
        """The calls by the label of their server; also asked for from other threads."""
        other = {} if self._other_server is None else {OTHER_SERVER: self._other_server}
        return {**self._servers, **other}

    def _tell(self) -> None:
        with self._telling:
            for tallies in (self._frames_in, self._frames_out, self._events):
                for tally in tallies.values():
                    tally.tell()
            for calls in self._counted().values():
                for tally in (calls.open, *list(calls.outcomes.values())):
                    tally.tell()

    # --- connections ---------------------------------------------------------------------------------------

    def connection_opened(self, kind: str) -> None:
        """A connection of one of `CONNECTION_KINDS` is open."""
        kind = kind if kind in self._connections else OTHER
        self._connections[kind].inc()
        self._opened[kind].inc()

    def connection_closed(self, kind: str) -> None:
        """A connection that was opened has ended."""
        self._connections[kind if kind in self._connections else OTHER].dec()

    def socket_closed(self, code: int | None) -> None:
        """A WebSocket was closed with `code`; None where there was no close frame."""
        self._closes.get(_ABNORMAL if code is None else code, self._closes_other).inc()

    def certificate_ends(self, moment: float) -> None:
        """The gateway speaks TLS with a certificate that holds until `moment`, in seconds since the epoch."""
        if self._certificate_ends is None:
            row = CERTIFICATE_ENDS
            self._certificate_ends = Gauge(row.name, row.help, row.labels, registry=self._registry)
        self._certificate_ends.set(moment)

    def count_sessions(self, count: Callable[[], int]) -> None:
        """Ask `count` at each scrape, perhaps from another thread, how many sessions there are."""
        self._sessions.set_function(count)

    # --- frames --------------------------------------------------------------------------------------------

    def frame_received(self, frame_type: str) -> None:
        """A client has sent a frame."""
        (self._frames_in.get(frame_type) or self._frames_in[OTHER]).value += 1

    def frame_sent(self, frame_type: str, count: int = 1) -> None:
        """A frame was given to `count` connections."""
        (self._frames_out.get(frame_type) or self._frames_out[OTHER]).value += count

    def error_sent(self, code: str) -> None:
        """A client was told an error, in a frame or in the body of an answer."""
        (self._errors.get(code) or self._errors[OTHER]).inc()
        self._errors_told[code if code in self._errors else OTHER] += 1

    def errors(self) -> dict[str, int]:
        """How many errors were told since the start, by their code."""
        return dict(self._errors_told)

    # --- calls ---------------------------------------------------------------------------------------------

    def call_started(self, server: str) -> None:
        """A call has begun."""
        (self._servers.get(server) or self._unknown()).open.value += 1

    def call_ended(self, server: str, outcome: str, seconds: float) -> None:
        """A call that was started has ended; `outcome` is `OK`, `TOOL_ERROR` or the code of its error."""
        counted = self._servers.get(server) or self._unknown()
        counted.open.value -= 1
        (counted.outcomes.get(outcome) or self._outcome(server, counted, outcome)).value += 1
        if outcome in _REACHED:
            counted.seconds.observe(seconds)

    # --- events --------------------------------------------------------------------------------------------

    def event_published(self, channel: str) -> None:
        """An event stands in the log."""
        (self._events.get(channel) or self._events[self._base(channel)]).value += 1

    def subscribed(self, channel: str) -> None:
        """A connection reads a channel that it did not read before."""
        self._subscriptions[self._base(channel)].inc()

    def unsubscribed(self, channel: str) -> None:
        """A connection that was subscribed reads the channel no more; also when it is gone."""
        self._subscriptions[self._base(channel)].dec()

    def dropped(self, reason: str, count: int = 1) -> None:
        """Something was dropped for one of `DROP_REASONS`."""
        (self._dropped.get(reason) or self._dropped[OTHER]).inc(count)

    # --- backends ------------------------------------------------------------------------------------------

    def add_server(self, server: str) -> None:
        """Count a server under its own name from now on; nothing happens where that is done already."""
        if server not in self._servers:
            self._servers[server] = self._calls_of(server)
            self._up[server] = self._backend_up.labels(server)
            self._restarts[server] = self._backend_restarts.labels(server)

    def remove_server(self, server: str) -> None:
        """Forget a server that is no more, after its last call has ended."""
        counted = self._servers.pop(server, None)
        if counted is None:
            return
        del self._up[server], self._restarts[server]
        with self._telling:
            for metric in (self._backend_up, self._backend_restarts, self._calls_open):
                metric.remove(server)
            for outcome in counted.outcomes:
                self._calls.remove(server, outcome)

    def backend_up(self, server: str, up: bool) -> None:
        """Whether calls to `server` go through now."""
        if server in self._up:
            self._up[server].set(up)

    def backend_restarted(self, server: str) -> None:
        """`server` is being started again."""
        if server in self._restarts:
            self._restarts[server].inc()

    # --- labels --------------------------------------------------------------------------------------------

    def _calls_of(self, server: str) -> _Calls:
        return _Calls(
            open=_Tally(self._calls_open.labels(server)),
            seconds=_Times(),
            outcomes={OK: _Tally(self._calls.labels(server, OK))},
        )

    def _unknown(self) -> _Calls:
        if self._other_server is None:
            self._other_server = self._calls_of(OTHER_SERVER)
        return self._other_server

    def _outcome(self, server: str, counted: _Calls, outcome: str) -> _Tally:
        label = outcome if outcome in self._outcomes else OTHER
        if label not in counted.outcomes:
            name = server if server in self._servers else OTHER_SERVER
            counted.outcomes[label] = _Tally(self._calls.labels(name, label))
        return counted.outcomes[label]

    def _base(self, channel: str) -> str:
        base = channel.partition(":")[0]
        return base if base in self._events else OTHER


def written(registry: CollectorRegistry, accept: str) -> tuple[bytes, str]:
    """What a registry has, as `Metrics.render` writes it."""
    # The library's own choice raises for versions that are no numbers, and repeats what was sent.
    if _accepts_openmetrics(accept):
        body: bytes = openmetrics.generate_latest(registry)  # type: ignore[no-untyped-call]
        return body, OPENMETRICS_CONTENT_TYPE
    return generate_latest(registry), CONTENT_TYPE


def _accepts_openmetrics(accept: str) -> bool:
    """Whether an ``Accept`` header (RFC 9110 section 12.5.1) names OpenMetrics, whatever its version."""
    for accepted in accept.split(","):
        name, *parameters = (part.strip().lower() for part in accepted.split(";"))
        if name == "application/openmetrics-text":
            return not any(map(_REFUSED.fullmatch, parameters))
    return False
