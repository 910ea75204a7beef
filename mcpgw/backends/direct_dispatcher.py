"""JSON-RPC with a server, without a stream or a task between its pipes and those who wait.

`DirectDispatcher` is a dispatcher as the SDK's public protocol has it (`mcp.shared.dispatcher`): the SDK's
session on top of it stays in charge of the handshake, of notifications and of what the child asks. Calls of
tools go past that session by `begin_call`, whose answer comes as a callback, in the same turn of the loop in
which it was read. How messages get out is said for stdio here, and for HTTP in `mcpgw.backends.direct_http`.
"""

import asyncio
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Protocol, TypeGuard

import anyio
import anyio.abc
import mcp_types as types
import msgspec
from mcp.shared.dispatcher import (
    CallOptions,
    OnNotify,
    OnNotifyIntercept,
    OnRequest,
    ProgressFnT,
    coerce_request_id,
    run_notify_intercept,
)
from mcp.shared.exceptions import MCPError, NoBackChannelError
from mcp.shared.jsonrpc_dispatcher import cancelled_request_id_from_params, handler_exception_to_error_data
from mcp.shared.transport_context import TransportContext
from opentelemetry import context as contexts
from opentelemetry import trace
from opentelemetry.propagate import inject
from opentelemetry.trace import Span, SpanKind, StatusCode

from mcpgw.backends.tap import CALLERS_CAPABILITIES, Tap

_LOGGER = logging.getLogger("mcpgw.backend")
_TRACER = trace.get_tracer("mcpgw.backend")
_CLOSED: Final = types.ErrorData(code=types.CONNECTION_CLOSED, message="Connection closed")
_TRANSPORT: Final = TransportContext(kind="stdio", can_send_request=True)
_LAST_ANSWERS_SECONDS = 1.0
_RESERVED_META = "io.modelcontextprotocol/"

OnEnd = Callable[[dict[str, Any] | None, types.ErrorData | None], None]
"""Takes the result of a request, or the error that it ended with. Must not wait or raise."""
OnProgress = Callable[[float, float | None, str | None], None]
"""Takes how far a call is. Must not wait or raise."""


_End = tuple[types.RequestId, dict[str, Any] | None, types.ErrorData | None]


class LineWriter(Protocol):
    """Where messages are written."""

    def write(self, line: bytes, request_id: types.RequestId | None = None) -> None:
        """Write one message, without waiting.

        Raises:
            MCPError: it was not written, and will not be.
        """


@dataclass(slots=True, eq=False)
class DirectCall:
    """A call that waits for its answer."""

    id: int
    on_end: OnEnd
    on_progress: OnProgress
    span: Span | None = None

    def end(self, result: dict[str, Any] | None, error: types.ErrorData | None) -> None:
        """Its answer is there, or will never be."""
        if self.span is not None:
            if error is not None:
                self.span.set_attribute("error.type", str(error.code))
                self.span.set_status(StatusCode.ERROR, error.message)
            self.span.end()
        try:
            self.on_end(result, error)
        except Exception:
            # It must not cost the lines that were read with this one.
            _LOGGER.exception("a message of a server could not be dealt with")


@dataclass(slots=True, eq=False)
class _Request:
    """A request of the SDK's session."""

    answered: "asyncio.Future[dict[str, Any]]"
    on_progress: ProgressFnT | None

    def end(self, result: dict[str, Any] | None, error: types.ErrorData | None) -> None:
        """Its answer is there, or will never be."""
        if self.answered.done():
            return
        if error is not None:
            self.answered.set_exception(MCPError.from_error_data(error))
        else:
            self.answered.set_result(result or {})


class DirectDispatcher:
    """The requests of one connection, in both directions. Belongs to one event loop.

    `tap` looks at what passes. `on_handled` is told each time that a message of the child's was dealt with.
    """

    def __init__(self, tap: Tap, on_handled: Callable[[], None]) -> None:
        self._tap = tap
        self._on_handled = on_handled
        self._writer: LineWriter | None = None
        self._pending: dict[types.RequestId, DirectCall | _Request] = {}
        self._handlers: dict[asyncio.Task[None], types.RequestId | None] = {}
        self._handlers_of: dict[types.RequestId, tuple[asyncio.Task[None], DirectContext]] = {}
        self._early: list[types.JSONRPCMessage] = []
        self._ends: deque[_End] = deque()
        self._next_id = 0
        self._is_running = False
        self._closed = asyncio.Event()
        self._on_request: OnRequest | None = None
        self._on_notify: OnNotify | None = None
        self._intercept: OnNotifyIntercept | None = None
        self._stamp: dict[str, Any] | None = None
        # Asked once: without a provider, asking costs more than all else of sending a call.
        self._makes_spans = _makes_spans()

    def attach(self, writer: LineWriter) -> None:
        """Name the writer; nothing can be sent before."""
        self._writer = writer

    @property
    def handling(self) -> int:
        """How many messages of the child's are being dealt with, or wait for that."""
        return len(self._handlers) + len(self._early)

    # --- calls ---------------------------------------------------------------------------------------------

    @property
    def takes_calls(self) -> bool:
        """Whether it is known what the SDK says of the client in each request; from the first list on."""
        return self._stamp is not None

    def begin_call(
        self, params: dict[str, Any], on_end: OnEnd, on_progress: OnProgress, *, is_traced: bool
    ) -> DirectCall:
        """Send a ``tools/call``; `on_end` is called once, unless `cancel` comes first.

        `params` are sent with what the SDK says of the client in each request (from 2026-07-28 on), with a
        progress token, and with the present trace where it `is_traced`.

        Raises:
            MCPError: the call was not sent.
        """
        call_id = self._new_id()
        meta = self._stamped(params.get("_meta"))
        meta["progressToken"] = call_id
        call = DirectCall(call_id, on_end, on_progress)
        if self._makes_spans:
            attributes = {"mcp.method.name": "tools/call", "jsonrpc.request.id": str(call_id)}
            name = f"MCP send tools/call {params['name']}"
            call.span = _TRACER.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)
            inject(meta, context=trace.set_span_in_context(call.span))
        elif is_traced and contexts.get_current():
            inject(meta)
        params["_meta"] = meta
        message = {"jsonrpc": "2.0", "id": call_id, "method": "tools/call", "params": params}
        try:
            self._send_call(call, message)
        except BaseException:
            if call.span is not None:
                call.span.end()
            raise
        self._pending[call_id] = call
        return call

    def cancel(self, call: DirectCall) -> None:
        """Wait no more, and tell the child to stop."""
        if self._pending.pop(call.id, None) is not None:
            if call.span is not None:
                call.span.end()
            self._say_cancelled(call.id, "caller cancelled")

    def take_result(self, request_id: int, result: dict[str, Any]) -> bool:
        """The result of a call has come; false where no call waits for it."""
        call = self._pending.get(request_id)
        if type(call) is not DirectCall:
            return False
        self._tap.heard()
        self._end(request_id, result, None)
        return True

    def not_sent(self, request_id: types.RequestId, error: types.ErrorData) -> None:
        """What was given to the writer was not written after all, or gets no answer for another reason."""
        waiting = self._pending.pop(coerce_request_id(request_id), None)
        if waiting is not None:
            waiting.end(None, error)

    def tools_listed(self, tools: Iterable[types.Tool]) -> None:
        """The server has listed these tools, maybe among others."""

    def _stamped(self, meta: Mapping[str, Any] | None) -> dict[str, Any]:
        """The ``_meta`` of a call: the stamp of the session's own requests, and what the caller says.

        As `Tap.sent` has it: what the client can do is what the caller can.
        """
        stamp = self._stamp or {}
        if not meta:
            return dict(stamp)
        stamped = {**stamp, **meta}
        can = stamped.pop(CALLERS_CAPABILITIES, None)
        if can is not None and types.CLIENT_CAPABILITIES_META_KEY in stamp:
            stamped[types.CLIENT_CAPABILITIES_META_KEY] = can
        return stamped

    # --- the SDK's protocol --------------------------------------------------------------------------------

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """See `mcp.shared.dispatcher.Outbound`."""
        if self._closed.is_set():
            raise MCPError.from_error_data(_CLOSED)
        if not self._is_running:
            raise RuntimeError("a request before the dispatcher runs")
        options = opts or {}
        request_id: types.RequestId | None = options.get("request_id")
        if request_id is None:
            request_id = self._new_id()
        elif coerce_request_id(request_id) in self._pending:
            raise ValueError(f"request id {request_id!r} is already in flight")
        on_progress = options.get("on_progress")
        request = _Request(asyncio.get_running_loop().create_future(), on_progress)
        sent: dict[str, Any] = dict(params or {})
        meta = dict(sent.pop("_meta", None) or {})
        if method == "tools/list":
            # The gateway asks for it by itself, before any call. Others may have wishes of their callers'.
            self._stamp = {name: value for name, value in meta.items() if name.startswith(_RESERVED_META)}
        if on_progress is not None:
            meta["progressToken"] = request_id
        target = sent.get("name")
        name = f"MCP send {method} {target}" if isinstance(target, str) else f"MCP send {method}"
        attributes = {"mcp.method.name": method, "jsonrpc.request.id": str(request_id)}
        with _TRACER.start_as_current_span(name, kind=SpanKind.CLIENT, attributes=attributes):
            inject(meta)
            if meta:
                sent["_meta"] = meta
            given = {"params": sent} if sent else {}  # JSON-RPC 2.0 has no `"params": null`
            message = types.JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, **given)
            self._tap.sent(message)
            self._pending[coerce_request_id(request_id)] = request
            try:
                self._send(message, request_id, options)
                async with asyncio.timeout(options.get("timeout")):
                    return await request.answered
            except TimeoutError:
                if options.get("cancel_on_abandon", True):
                    self._say_cancelled(request_id, f"timed out after {options.get('timeout')}s")
                raise MCPError(code=types.REQUEST_TIMEOUT, message=f"Request {method!r} timed out") from None
            except asyncio.CancelledError:
                if options.get("cancel_on_abandon", True):
                    self._say_cancelled(request_id, "caller cancelled")
                raise
            finally:
                self._pending.pop(coerce_request_id(request_id), None)

    async def notify(
        self,
        method: str,
        params: Mapping[str, Any] | None,
        opts: CallOptions | None = None,
    ) -> None:
        """See `mcp.shared.dispatcher.Outbound`."""
        self._notify(method, params, opts)

    async def run(
        self,
        on_request: OnRequest,
        on_notify: OnNotify,
        on_notify_intercept: OnNotifyIntercept | None = None,
        *,
        task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
    ) -> None:
        """See `mcp.shared.dispatcher.Dispatcher`."""
        self._on_request, self._on_notify, self._intercept = on_request, on_notify, on_notify_intercept
        self._is_running = True
        task_status.started()
        early, self._early = self._early, []
        try:
            for message in early:
                self.receive(message)
            await self._closed.wait()
        finally:
            self._is_running = False
            self.close()
            handlers = set(self._handlers)
            for handler in handlers:
                handler.cancel()
            if handlers:
                with anyio.CancelScope(shield=True):
                    await asyncio.wait(handlers, timeout=_LAST_ANSWERS_SECONDS)

    # --- what comes ----------------------------------------------------------------------------------------

    def receive(self, message: types.JSONRPCMessage) -> None:
        """Take a message of the child's; answers reach those who wait for them at once."""
        if self._closed.is_set():
            return
        self._tap.received(message)
        match message:
            case types.JSONRPCResponse(id=request_id, result=result):
                self._end(coerce_request_id(request_id), result, None)
            case types.JSONRPCError(id=request_id, error=error):
                if request_id is not None:
                    self._end(coerce_request_id(request_id), None, error)
            case _ if not self._is_running:
                self._early.append(message)
            case types.JSONRPCRequest():
                self._take_request(message)
            case types.JSONRPCNotification():
                self._take_notification(message)

    def close(self) -> None:
        """No message comes any more; whoever waits for one is told."""
        if self._closed.is_set():
            return
        while self._ends:
            self._end_next()
        self._closed.set()
        pending, self._pending = self._pending, {}
        for waiting in pending.values():
            waiting.end(None, _CLOSED)

    def _end(
        self, key: types.RequestId, result: dict[str, Any] | None, error: types.ErrorData | None
    ) -> None:
        """End a request, in its place among all that the child has said.

        A log or a question goes to a call by which calls are open. Its handler is a task that begins in the
        next turn of the loop: an answer behind it must not end its call before that.
        """
        if self._handlers or self._ends:
            self._ends.append((key, result, error))
            asyncio.get_running_loop().call_soon(self._end_next)
        elif (waiting := self._pending.pop(key, None)) is not None:
            waiting.end(result, error)

    def _end_next(self) -> None:
        if self._ends:
            key, result, error = self._ends.popleft()
            if (waiting := self._pending.pop(key, None)) is not None:
                waiting.end(result, error)

    def _take_request(self, request: types.JSONRPCRequest) -> None:
        context = DirectContext(self, request.id)
        task = self._handle(self._answer(request, context), request.id)
        self._handlers_of[coerce_request_id(request.id)] = task, context

    def _take_notification(self, message: types.JSONRPCNotification) -> None:
        method, params = message.method, message.params
        if method == "notifications/cancelled":
            cancelled = cancelled_request_id_from_params(params)
            found = None if cancelled is None else self._handlers_of.get(coerce_request_id(cancelled))
            if found is not None:
                task, context = found
                context.cancel_requested.set()
                task.cancel()
        elif method == "notifications/progress" and self._progress(params or {}):
            return
        if not run_notify_intercept(self._intercept, method, params):
            self._handle(self._notified(method, params), None)

    def _progress(self, params: Mapping[str, Any]) -> bool:
        """Tell of progress; true where a call alone wanted to know."""
        token, progress = params.get("progressToken"), params.get("progress")
        if not isinstance(token, str | int) or isinstance(token, bool) or not _is_number(progress):
            return False
        waiting = self._pending.get(coerce_request_id(token))
        if waiting is None or waiting.on_progress is None:
            return False
        total, text = params.get("total"), params.get("message")
        said = (
            float(progress),
            float(total) if _is_number(total) else None,
            text if isinstance(text, str) else None,
        )
        if isinstance(waiting, DirectCall):
            try:
                waiting.on_progress(*said)
            except Exception:
                # What goes wrong in telling a caller must not cost the lines that were read with this one.
                _LOGGER.exception("a message of a server could not be dealt with")
            return True
        self._handle(waiting.on_progress(*said), None)
        return False

    def _handle(
        self, work: Coroutine[Any, Any, None], request_id: types.RequestId | None
    ) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(_contained(work))
        # A task that is cancelled before it begins has not begun its work either, and Python complains.
        task.add_done_callback(lambda _: work.close())
        self._handlers[task] = request_id
        task.add_done_callback(self._handled)
        return task

    def _handled(self, task: asyncio.Task[None]) -> None:
        request_id = self._handlers.pop(task)
        if request_id is not None:
            key = coerce_request_id(request_id)
            if (found := self._handlers_of.get(key)) is not None and found[0] is task:
                del self._handlers_of[key]
        self._on_handled()

    async def _notified(self, method: str, params: Mapping[str, Any] | None) -> None:
        assert self._on_notify is not None, "messages are handed on while it runs"  # noqa: S101
        await self._on_notify(DirectContext(self, None), method, params)

    async def _answer(self, request: types.JSONRPCRequest, context: "DirectContext") -> None:
        assert self._on_request is not None, "messages are handed on while it runs"  # noqa: S101
        answer: types.JSONRPCResponse | types.JSONRPCError
        try:
            result = await self._on_request(context, request.method, request.params)
            answer = types.JSONRPCResponse(jsonrpc="2.0", id=request.id, result=result)
        except asyncio.CancelledError:
            if context.cancel_requested.is_set():
                return
            answer = types.JSONRPCError(jsonrpc="2.0", id=request.id, error=_CLOSED)
        except Exception as fault:
            error = handler_exception_to_error_data(fault)
            if error is None:
                _LOGGER.exception("a handler of %s failed", request.method[:64])
                error = types.ErrorData(code=types.INTERNAL_ERROR, message="the gateway has a fault")
            answer = types.JSONRPCError(jsonrpc="2.0", id=request.id, error=error)
        finally:
            context.is_over = True
        if not context.cancel_requested.is_set():
            with suppress(MCPError):  # its pipe is closed: it does not wait any more
                self._send(answer)

    # --- what goes -----------------------------------------------------------------------------------------

    def _new_id(self) -> int:
        self._next_id += 1
        while self._next_id in self._pending:
            self._next_id += 1
        return self._next_id

    def _say_cancelled(self, request_id: types.RequestId, reason: str) -> None:
        self._notify("notifications/cancelled", {"requestId": request_id, "reason": reason})

    def _notify(
        self, method: str, params: Mapping[str, Any] | None, options: CallOptions | None = None
    ) -> None:
        given = {} if params is None else {"params": dict(params)}
        message = types.JSONRPCNotification(jsonrpc="2.0", method=method, **given)
        with suppress(MCPError):  # nobody is there who could hear it
            self._send(message, options=options)

    def _send_call(self, call: DirectCall, message: dict[str, Any]) -> None:
        """Send a ``tools/call``."""
        self._write(msgspec.json.encode(message), call.id)

    def _send(
        self,
        message: types.JSONRPCMessage,
        request_id: types.RequestId | None = None,
        options: CallOptions | None = None,  # noqa: ARG002 - they are meant for HTTP
    ) -> None:
        """Send any other message."""
        self._write(message.model_dump_json(by_alias=True, exclude_unset=True).encode(), request_id)

    def _write(self, line: bytes, request_id: types.RequestId | None) -> None:
        if self._writer is None or self._closed.is_set():
            raise MCPError.from_error_data(_CLOSED)
        self._writer.write(line + b"\n", request_id)


@dataclass(slots=True, eq=False)
class DirectContext:
    """What the SDK's session is told of a message of the child's: a `DispatchContext` of its protocol."""

    dispatcher: DirectDispatcher
    request_id: types.RequestId | None
    cancel_requested: anyio.Event = field(default_factory=anyio.Event)
    is_over: bool = False
    transport: TransportContext = _TRANSPORT
    message_metadata: None = None

    @property
    def can_send_request(self) -> bool:
        """Whether the child can still be asked in its context."""
        return not self.is_over

    async def send_raw_request(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> dict[str, Any]:
        """See `mcp.shared.dispatcher.Outbound`."""
        if self.is_over:
            raise NoBackChannelError(method)
        return await self.dispatcher.send_raw_request(method, params, opts)

    async def notify(
        self, method: str, params: Mapping[str, Any] | None, opts: CallOptions | None = None
    ) -> None:
        """See `mcp.shared.dispatcher.Outbound`."""
        await self.dispatcher.notify(method, params, opts)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        """Nothing: no callback of the gateway's tells a server how far it is."""


async def _contained(work: Any) -> None:
    """Await `work`; a fault of it ends nothing else."""
    try:
        await work
    except Exception:
        _LOGGER.exception("a message of a server could not be dealt with")


def _is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number that a double can hold."""
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _makes_spans() -> bool:
    """Whether spans go anywhere: whether a provider is configured."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider | trace.NoOpTracerProvider)
