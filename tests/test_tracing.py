"""Tracing: one span a call where a tracer provider is configured, and the caller's trace for the backend."""

import asyncio
import sys
import timeit
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tornado.httputil import HTTPHeaders

from mcpgw.errors import InvalidParams, OutcomeUnknown
from mcpgw.server_definitions import ServerDefinition
from mcpgw.tracing import SPAN_NAME, CallSpan, Tracing, user_hash
from tests.support.backends import SERVERS, call, recorded, running

TRACE_ID, SPAN_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE_ID}-{SPAN_ID}-01"


def ann_calls(tracing: Tracing, parent: Context | None = None) -> AbstractContextManager[CallSpan]:
    """The span of one call of Ann's."""
    return tracing.call(server="memory", tool="memory_search", user="ann", parent=parent)


class Exported:
    """A real provider of the OpenTelemetry SDK that keeps its spans in memory."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))

    def spans(self) -> tuple[ReadableSpan, ...]:
        """The spans that have ended."""
        return self._exporter.get_finished_spans()

    def only(self) -> ReadableSpan:
        """The one span."""
        (span,) = self.spans()
        return span


@pytest.fixture
def exported() -> Iterator[Exported]:
    found = Exported()
    yield found
    found.provider.shutdown()


def attributes(span: ReadableSpan) -> dict[str, Any]:
    """The attributes of a span."""
    return dict(span.attributes or {})


def test_a_call_is_a_span_with_server_tool_outcome_and_no_name_of_a_user(exported: Exported) -> None:
    tracing = Tracing(exported.provider)
    assert tracing.is_configured
    with ann_calls(tracing):
        assert trace.get_current_span().is_recording()
    assert not trace.get_current_span().get_span_context().is_valid
    span = exported.only()
    assert (span.name, span.kind, span.parent) == (SPAN_NAME, SpanKind.SERVER, None)
    assert span.status.status_code is StatusCode.UNSET
    assert attributes(span) == {
        "mcpgw.server": "memory",
        "mcpgw.tool": "memory_search",
        "mcpgw.outcome": "ok",
        "user.hash": user_hash("ann"),
    }


def test_the_hash_tells_users_apart_and_does_not_hold_the_name() -> None:
    assert user_hash("ann") == user_hash("ann") != user_hash("bob")
    assert len(user_hash("a" * 1000)) == 16
    assert len(user_hash("\ud800")) == 16


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (InvalidParams("the query 'hunter2' is too long"), "invalid_params"),
        (OutcomeUnknown("hunter2"), "outcome_unknown"),
        (ValueError("hunter2"), "internal_error"),
    ],
)
def test_an_error_is_the_outcome_by_its_code_and_its_text_stays_out(
    exported: Exported, error: Exception, outcome: str
) -> None:
    with pytest.raises(type(error)), ann_calls(Tracing(exported.provider)):
        raise error
    span = exported.only()
    assert attributes(span)["mcpgw.outcome"] == attributes(span)["error.type"] == outcome
    assert span.status.status_code is StatusCode.ERROR
    assert "hunter2" not in span.to_json()


def test_a_tool_that_answers_with_an_error_is_an_outcome_of_its_own(exported: Exported) -> None:
    with ann_calls(Tracing(exported.provider)) as span:
        span.is_error = True
    assert attributes(exported.only())["mcpgw.outcome"] == "tool_error"
    assert exported.only().status.status_code is StatusCode.ERROR


@pytest.mark.gen_test
async def test_calls_side_by_side_have_spans_of_their_own_and_a_cancelled_one_says_so(
    exported: Exported,
) -> None:
    tracing, begun = Tracing(exported.provider), asyncio.Event()

    async def wait() -> None:
        with tracing.call(server="memory", tool="wait", user="ann"):
            begun.set()
            await asyncio.Event().wait()

    waiting = asyncio.create_task(wait())
    async with asyncio.timeout(5):
        await begun.wait()
    with tracing.call(server="memory", tool="fast", user="ann"):
        await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    outcomes = {
        attributes(span)["mcpgw.tool"]: attributes(span)["mcpgw.outcome"] for span in exported.spans()
    }
    assert outcomes == {"fast": "ok", "wait": "cancelled"}
    assert all(span.parent is None for span in exported.spans())
    assert all(span.status.status_code is StatusCode.UNSET for span in exported.spans())


@pytest.mark.parametrize("carrier", [{"traceparent": TRACEPARENT}, HTTPHeaders({"Traceparent": TRACEPARENT})])
def test_the_callers_trace_goes_on_in_the_span(exported: Exported, carrier: Any) -> None:
    tracing = Tracing(exported.provider)
    with ann_calls(tracing, tracing.parent(carrier)):
        pass
    span = exported.only()
    assert span.parent is not None
    assert trace.format_trace_id(span.context.trace_id) == TRACE_ID
    assert trace.format_span_id(span.parent.span_id) == SPAN_ID


@pytest.mark.parametrize(
    "carrier",
    [
        {},
        {"traceparent": ""},
        {"traceparent": 7},
        {"traceparent": None},
        {"traceparent": "00-0000"},
        {"traceparent": f"00-{'0' * 32}-{SPAN_ID}-01"},
        {"traceparent": f"ff-{TRACE_ID}-{SPAN_ID}-01"},
        {"traceparent": f"01-{TRACE_ID}-{SPAN_ID}-01-{'x' * 100}"},
        {"tracestate": "a=b", "baggage": "user=ann"},
    ],
)
def test_a_trace_that_is_not_well_formed_is_none(carrier: dict[str, Any]) -> None:
    assert Tracing().parent(carrier) is None


@given(st.dictionaries(st.sampled_from(["traceparent", "tracestate"]), st.text() | st.integers()))
def test_whatever_a_client_sends_as_its_trace_breaks_nothing(carrier: dict[str, object]) -> None:
    tracing = Tracing()
    with ann_calls(tracing, tracing.parent(carrier)):
        pass
    assert tracing.parent({**carrier, "traceparent": TRACEPARENT}) is not None


def test_without_a_provider_a_call_costs_next_to_nothing_and_makes_no_span() -> None:
    tracing = Tracing()
    assert not tracing.is_configured
    assert not Tracing(trace.NoOpTracerProvider()).is_configured

    def one() -> None:
        with tracing.call(server="memory", tool="t", user="ann") as span:
            span.is_error = True

    assert ann_calls(tracing) is ann_calls(tracing)
    assert min(timeit.repeat(one, number=2_000, repeat=5)) / 2_000 < 10e-6


def recording_server(record: Path) -> ServerDefinition:
    """The server on the MCP SDK, with every line that it reads kept in `record`."""
    server = ("-u", str(SERVERS / "scripted.py"), "--name", "traced")
    arguments = (str(SERVERS / "recorder.py"), str(record), sys.executable, *server)
    return ServerDefinition(name="traced", transport="stdio", command=sys.executable, args=arguments)


def sent_meta(record: Path) -> dict[str, Any]:
    """``_meta`` of the one tool call that the server has read."""
    (request,) = [message for message in recorded(record) if message.get("method") == "tools/call"]
    meta: dict[str, Any] = request["params"]["_meta"]
    return meta


@pytest.mark.gen_test
async def test_without_a_provider_the_backend_gets_the_callers_trace_as_it_came(tmp_path: Path) -> None:
    tracing, record = Tracing(), tmp_path / "record"
    carrier = {"traceparent": TRACEPARENT, "tracestate": "vendor=1", "baggage": "secret=hunter2"}
    async with running(recording_server(record)) as [backend]:
        with tracing.call(server="traced", tool="echo", user="ann", parent=tracing.parent(carrier)):
            await call(backend, "echo", {"text": "hello"})
    meta = sent_meta(record)
    assert meta["traceparent"] == TRACEPARENT
    assert meta["tracestate"] == "vendor=1"
    assert "hunter2" not in record.read_text()


@pytest.mark.gen_test
async def test_with_a_provider_the_backend_gets_the_span_of_the_call(
    tmp_path: Path, exported: Exported
) -> None:
    tracing, record = Tracing(exported.provider), tmp_path / "record"
    parent = tracing.parent({"traceparent": TRACEPARENT})
    async with running(recording_server(record)) as [backend]:
        with tracing.call(server="traced", tool="echo", user="ann", parent=parent):
            await call(backend, "echo", {"text": "hello"})
    span_id = trace.format_span_id(exported.only().context.span_id)
    assert sent_meta(record)["traceparent"] == f"00-{TRACE_ID}-{span_id}-01"


@pytest.mark.gen_test
async def test_a_call_without_a_trace_sends_none(tmp_path: Path) -> None:
    record = tmp_path / "record"
    async with running(recording_server(record)) as [backend]:
        with Tracing().call(server="traced", tool="echo", user="ann"):
            await call(backend, "echo", {"text": "hello"})
    assert "traceparent" not in sent_meta(record)
