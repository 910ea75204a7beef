"""OpenTelemetry: a span for each tool call, and the caller's trace handed on to the backend.

    tracing = Tracing()                                   # once, when the gateway starts
    parent = tracing.parent(request.headers)              # once a connection, or for a frame of its own
    with tracing.call(server="memory", tool="memory_search", user="ann", parent=parent) as span:
        span.is_error = (await backend.call_tool(...)).is_error

Spans are made where a tracer provider is configured, for example by ``opentelemetry-instrument mcpgw serve``;
else a call costs one comparison. The MCP SDK writes the current trace into the ``_meta`` of each request
itself (SEP-414), so nothing here does: a caller's ``traceparent`` that is the current context goes through,
with a provider or without one. Source: W3C Trace Context, OpenTelemetry semantic conventions.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from contextlib import AbstractContextManager
from contextvars import Token
from types import TracebackType
from typing import Final, Protocol, TypeAlias

from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, TracerProvider
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from mcpgw import __version__
from mcpgw.errors import Cancelled, GatewayError, InternalError

SPAN_NAME: Final = "mcpgw.call"

CallerTrace: TypeAlias = Context
"""The trace that a caller's call belongs to, as `Tracing.parent` reads it."""

MAXIMUM_TRACEPARENT: Final = 128
"""Longest ``traceparent`` that is read, in characters; that of version 00 has 55."""

MAXIMUM_TRACESTATE: Final = 512
"""Longest ``tracestate`` that is handed on, in characters (W3C Trace Context, section 3.3.1.5)."""

_LONGEST_ATTRIBUTE = 256
# Not the propagator of the process: it would also hand on the caller's baggage, which may hold anything.
_PROPAGATOR = TraceContextTextMapPropagator()


class CallSpan(Protocol):
    """The span of one call while it is open."""

    is_error: bool
    """Whether the tool answered that it failed."""


class Tracing:
    """Makes the spans of one gateway; `provider` takes the place of the one that the process has."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        provider = provider or trace.get_tracer_provider()
        configured = not isinstance(provider, trace.ProxyTracerProvider | trace.NoOpTracerProvider)
        self._tracer = provider.get_tracer("mcpgw", __version__) if configured else None

    @property
    def is_configured(self) -> bool:
        """Whether spans are made."""
        return self._tracer is not None

    def parent(self, carrier: Mapping[str, object]) -> CallerTrace | None:
        """The caller's trace, from the headers of a request or the members of a frame's envelope.

        `carrier` holds ``traceparent`` and perhaps ``tracestate``. None where there is none, or none that is
        well formed: the call then begins a trace of its own.
        """
        traceparent = carrier.get("traceparent")
        if not isinstance(traceparent, str) or len(traceparent) > MAXIMUM_TRACEPARENT:
            return None
        fields = {"traceparent": traceparent}
        tracestate = carrier.get("tracestate")
        if isinstance(tracestate, str) and len(tracestate) <= MAXIMUM_TRACESTATE:
            fields["tracestate"] = tracestate
        context = _PROPAGATOR.extract(fields, context=Context())
        return context if trace.get_current_span(context).get_span_context().is_valid else None

    def call(
        self, *, server: str, tool: str, user: str, parent: CallerTrace | None = None
    ) -> AbstractContextManager[CallSpan]:
        """A span around one call, that is the current one inside the block.

        Its outcome is that of the block: a result, the code of a `GatewayError`, or ``cancelled``. It holds
        neither arguments nor results nor the user's name.
        """
        if self._tracer is None:
            return _NOTHING if parent is None else _HandedOn(parent)
        return _Recorded(self._tracer, server, tool, user, parent)


def user_hash(user: str) -> str:
    """16 hexadecimal digits that stand for a user (``user.hash`` of the semantic conventions).

    They tell one user from another and hide the name from whoever does not guess it.
    """
    return hashlib.sha256(f"mcpgw user {user}".encode("utf-8", "backslashreplace")).hexdigest()[:16]


class _Nothing:
    """No tracer and no trace: nothing to do."""

    __slots__ = ()

    @property
    def is_error(self) -> bool:
        return False

    @is_error.setter
    def is_error(self, value: bool) -> None:
        pass

    def __enter__(self) -> "_Nothing":
        return self

    def __exit__(self, *_: object) -> None:
        pass


_NOTHING: Final = _Nothing()


class _HandedOn:
    """No tracer: the caller's trace is the current one as it came (W3C Trace Context, section 4.3)."""

    __slots__ = ("_parent", "_token", "is_error")

    def __init__(self, parent: CallerTrace) -> None:
        self.is_error = False
        self._parent = parent
        self._token: Token[Context] | None = None

    def __enter__(self) -> "_HandedOn":
        self._token = contexts.attach(self._parent)
        return self

    def __exit__(self, *_: object) -> None:
        if self._token is not None:
            contexts.detach(self._token)


class _Recorded:
    """A span that is recorded."""

    __slots__ = ("_parent", "_span", "_token", "is_error")

    def __init__(self, tracer: Tracer, server: str, tool: str, user: str, parent: CallerTrace | None) -> None:
        self.is_error = False
        self._parent = parent
        self._token: Token[Context] | None = None
        self._span: Span = tracer.start_span(
            SPAN_NAME,
            context=parent,
            kind=SpanKind.SERVER,
            attributes={
                "mcpgw.server": server[:_LONGEST_ATTRIBUTE],
                "mcpgw.tool": tool[:_LONGEST_ATTRIBUTE],
                "user.hash": user_hash(user),
            },
        )

    def __enter__(self) -> "_Recorded":
        self._token = contexts.attach(trace.set_span_in_context(self._span, self._parent))
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            contexts.detach(self._token)
        outcome = _outcome(error, is_error=self.is_error)
        self._span.set_attribute("mcpgw.outcome", outcome)
        if outcome not in ("ok", Cancelled.code):
            self._span.set_attribute("error.type", outcome)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()


def _outcome(error: BaseException | None, *, is_error: bool) -> str:
    if error is None:
        return "tool_error" if is_error else "ok"
    if isinstance(error, GatewayError):
        return error.code
    return Cancelled.code if isinstance(error, asyncio.CancelledError) else InternalError.code
