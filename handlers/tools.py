"""``POST /api/v1/servers/ID/tools/TOOL``: a tool called by one request, answered with JSON or as a stream."""

import asyncio
import re
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream

from mcpgw.errors import GatewayError, InternalError, OutcomeUnknown
from mcpgw.hub import Place
from mcpgw.services import Principal, RestCall
from mcpgw.session import CALL_SOURCE
from mcpgw.wire import frames
from mcpgw.wire.frames import Lagged, ReplyTo, ServerFrame

from .base import ApiHandler
from .stream_writer import StreamWriter

_STREAM = "text/event-stream"
_JSON = ("application/json", "application/*", "*/*")
_QUALITY = re.compile(r"[01](\.[0-9]{0,3})?")
_MOST_TYPES = 32
_LAST_WORD_SECONDS = 1.0
_STOPPED = "the call was stopped inside the gateway; it may have run in part"


class ToolCallHandler(ApiHandler):
    """A call. Where ``Accept`` prefers an event stream, it is answered with the frames of the WebSocket.

    The stream begins when the call waits or is sent: what is refused before has its HTTP status, either way.
    A client that goes away cancels its call.
    """

    def initialize(self) -> None:
        """Nothing has been sent yet."""
        self._wake = asyncio.Event()
        self._served = asyncio.Event()
        self._gone = False
        self._call: RestCall | None = None
        self._task: asyncio.Task[str] | None = None
        self._writer: _CallWriter | None = None

    async def post(self, server: str, tool: str) -> None:
        """Call it, and answer when it has ended."""
        body = self.read_body("tool_call") if self.request.body else {}
        is_stream = prefers_stream(self.request.headers.get("Accept", ""))
        services = self.services
        call = services.rest_calls.begin(
            self.caller,
            self.actor(),
            trace=services.tracing.parent(self.request.headers),
            listener=self if is_stream else None,
        )
        self._call = call
        timeout = body.get("timeoutMs")
        running = call.run(
            server,
            tool,
            body.get("params", {}),
            timeout_ms=None if timeout is None else int(timeout),
            write=self._frame if is_stream else _data,
        )
        self._task = task = asyncio.create_task(running, name=f"call {call.reply.id}")
        # It takes no place of the hub's: how many calls a user has open has a limit of its own.
        services.hub.add(self)
        try:
            await self._wait_for(task)
            if self._gone:
                _look_at(task)
            elif self._writer is None:
                text = _result(task)
                self.set_header("Content-Type", "application/json")
                self.finish(text)
            else:
                await self._end_stream(self._writer, task)
        finally:
            if self._writer is not None:
                self._writer.closing()
            services.hub.remove(self)
            self._served.set()

    def probe(self, seconds: float) -> None:
        """Nothing: it holds no place that a newcomer could be given."""

    def review(self, judge: Callable[[Principal], Principal]) -> None:
        """Stop the call where its caller may not make it any more."""
        if self._task is not None and self._call is not None and self._call.is_denied(judge):
            self._task.cancel()

    async def drain(self, deadline: float) -> None:
        """Give the call until `deadline` to come to its end, then stop it."""
        task = self._task
        if task is None or self._call is None:
            return
        await asyncio.wait({task}, timeout=max(0.0, deadline - asyncio.get_running_loop().time()))
        if not task.done():
            self._call.has_to_end()
            task.cancel()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORD_SECONDS):
                await self._served.wait()

    def count_error(self, code: str) -> None:
        """An error is sent; that of a call is counted where the call is recorded."""
        if self._call is None or not self._call.is_recorded:
            super().count_error(code)

    def on_connection_close(self) -> None:
        """The client has gone: nobody can be given the result."""
        self._gone = True
        self._wake.set()
        if self._task is not None:
            self._task.cancel()
        super().on_connection_close()

    # --- the stream ----------------------------------------------------------------------------------------

    def begun(self) -> None:
        """The call was not refused: the stream begins."""
        if self._writer is not None or self._gone:
            return
        self.set_header("Content-Type", _STREAM)
        self.set_header("X-Accel-Buffering", "no")
        self.flush()
        stream = cast("HTTP1Connection", self.request.connection).stream
        place = Place(self.services.hub, "sse", self.caller.user, 0.0)
        assert self._call is not None, "the call has begun"  # noqa: S101
        chunked = self.request.version == "HTTP/1.1"
        self._writer = _CallWriter(stream, self, place, self._call.reply, chunked=chunked)

    def say(self, text: str) -> None:
        """Send a frame that may be dropped for a slow reader."""
        if self._writer is not None:
            self._writer.send_frame(text)

    def on_room(self) -> None:
        """The client has taken what waited."""
        self._wake.set()

    def on_slow_reader(self) -> None:
        """The client has taken nothing for the write timeout: there is no way to end such a stream whole."""
        self.detach().close()
        self.on_connection_close()

    async def _wait_for(self, task: "asyncio.Task[str]") -> None:
        """Wait for the end of the call; what stands between may take a stream without a word for dead."""
        while not task.done():
            await asyncio.wait({task}, timeout=self.services.config.events.heartbeat)
            if not task.done() and self._writer is not None and self._writer.is_idle:
                self._writer.send_comment()

    async def _end_stream(self, writer: "_CallWriter", task: "asyncio.Task[str]") -> None:
        writer.send(writer.encoding.frame(self._last_frame(task)))
        while not (writer.is_idle or self._gone):
            self._wake.clear()
            await self._wake.wait()

    def _last_frame(self, task: "asyncio.Task[str]") -> str:
        error = OutcomeUnknown(_STOPPED) if task.cancelled() else task.exception()
        if error is None:
            return task.result()
        self.log_exception(type(error), error, error.__traceback__)
        shown = error if isinstance(error, GatewayError) else self.fault
        return self._frame(frames.Error(shown or InternalError("a fault of the gateway")))

    def _frame(self, frame: ServerFrame) -> str:
        assert self._call is not None, "frames are of a call"  # noqa: S101
        return frames.encode(frame, self._call.reply)


class _CallWriter(StreamWriter):
    """Writes the frames of one call as events of a stream."""

    __slots__ = ("_comment", "_reply")

    def __init__(
        self, stream: IOStream, owner: ToolCallHandler, place: Place, reply: ReplyTo, *, chunked: bool
    ) -> None:
        self._reply = reply
        self._comment = b"3\r\n:\n\n\r\n" if chunked else b":\n\n"
        super().__init__(stream, owner, place, owner.services.writer_parts, chunked=chunked)

    def send_frame(self, text: str) -> None:
        """Send a frame that may be dropped for a slow reader."""
        self.send(self.encoding.frame(text), f"{CALL_SOURCE}{self._reply.id}")

    def send_comment(self) -> None:
        """Send a sign of life that no reader is told of."""
        self.send(self._comment)

    def lagged(self, source: str, dropped: int) -> bytes:
        """The event that tells of a gap."""
        return self.encoding.frame(frames.encode(Lagged(source, dropped), self._reply))


def prefers_stream(accept: str) -> bool:
    """Whether an ``Accept`` header wants an event stream rather than JSON (RFC 9110 section 12.5.1).

    Of two that are wanted alike, it is the one that is named first.
    """
    stream, json, names_stream_first = 0.0, 0.0, False
    for part in accept.split(",")[:_MOST_TYPES]:
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        weight = next((word[2:] for word in parameters if word.startswith("q=")), "1")
        quality = float(weight) if _QUALITY.fullmatch(weight) else 0.0
        if name == _STREAM:
            stream, names_stream_first = quality, not json
        elif name in _JSON:
            json = max(json, quality)
    return stream > json or (stream == json > 0 and names_stream_first)


def _data(response: ServerFrame) -> str:
    """A call's answer alone, without the envelope of a frame."""
    return frames.dumps(response.data())


def _result(task: "asyncio.Task[str]") -> str:
    if task.cancelled():
        raise OutcomeUnknown(_STOPPED)
    return task.result()


def _look_at(task: "asyncio.Task[str]") -> None:
    """What a call ends with whose client has gone is no fault that nobody has seen."""
    if not task.cancelled():
        task.exception()
