"""Tornado's WebSocket protocol, where RFC 6455 asks for more than it does.

Nearly all that touches what is not public in Tornado is here. The rest: the attributes that `ws.py` keeps or
lets go, a count of bytes in `direct_writer.py`, and the sign of a missing method in `base.py`. Tornado takes
frames without a mask, echoes close codes that no frame may carry, forgets that a message is compressed when a
ping comes between its fragments, passes over parameters of permessage-deflate, and drops a client whose offer
it cannot take. Every fault makes it drop the TCP connection at once, so that a close frame is lost with it
whenever unread bytes wait in the socket (the kernel then sends a reset). Here each fault has its close code;
the frame is sent, what still comes is read and thrown away for a moment, and only then the connection ends
(RFC 6455 sections 5, 7.1.1, 7.1.7, 7.4 and 8.1; RFC 7692 sections 5 to 7).

And it costs some 20 KiB for each connection, most of which an idle one does not need: a chain of seven
suspended coroutines in two tasks, two deques with room for 64 entries, the whole HTTP request, and tables of
attributes that have grown too large to be shared. So nothing runs here while nothing is read, one timer
serves all pings, and what only the handshake needed is let go.
"""

import asyncio
import socket
import struct
import zlib
from collections.abc import Awaitable, Mapping
from contextlib import suppress
from typing import Any, Protocol

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import (
    WebSocketHandler,
    WebSocketProtocol13,
    _DecompressTooLargeError,
    _WebSocketDelegate,
    _WebSocketParams,
)

from mcpgw.deadlines import Deadline, Deadlines
from mcpgw.errors import CloseCode
from mcpgw.turns import in_batch

from .handing_over import Unread, unread

_CONTINUATION = 0x0
_TEXT = 0x1
_BINARY = 0x2
_WHOLE_TEXT = 0x81
_CLOSE = 0x8
_CONTROL = 0x8
_KNOWN = (_CONTINUATION, _TEXT, _BINARY, _CLOSE, 0x9, 0xA)
_LONGEST_CONTROL = 125
# zlib has no raw deflate with a window of 8 bits.
_TAKEN: Mapping[str, tuple[str | None, ...]] = {
    "server_no_context_takeover": (None,),
    "client_no_context_takeover": (None,),
    "server_max_window_bits": ("9", "10", "11", "12", "13", "14", "15"),
    "client_max_window_bits": (None, "8", "9", "10", "11", "12", "13", "14", "15"),
}
_NO_CONTEXT = {"server_no_context_takeover": None, "client_no_context_takeover": None}
_DISCARD_SECONDS = 2.0
_DISCARD_CHUNK = 65536
_READ_CHUNK = 16384
_FRAME_WORK = 1024
_WORK_WITHOUT_PAUSE = 256 * 1024
"""Bytes after which others have their turn; a frame counts for some bytes more. Both are Tornado's own."""
_SET_BY_TORNADO = (
    "_compression_options",
    "_compressor",
    "_decompressor",
    "_final_frame",
    "_fragmented_message_buffer",
    "_fragmented_message_opcode",
    "_frame_compressed",
    "_frame_length",
    "_frame_mask",
    "_frame_opcode",
    "_masked_frame",
    "_message_bytes_in",
    "_message_bytes_out",
    "_pending_pong",
    "_ping_coroutine",
    "_pong_future",
    "_received_pong",
    "_selected_subprotocol",
    "_waiting",
    "_wire_bytes_in",
    "_wire_bytes_out",
    "client_terminated",
    "close_code",
    "close_reason",
    "handler",
    "mask_outgoing",
    "params",
    "server_terminated",
    "stream",
)
"""Attributes of Tornado's protocol. A slot takes 8 bytes; more than 30 in a dictionary take 1.6 KiB."""


class UpgradedHandler(_WebSocketDelegate, Protocol):
    """What the protocol tells of a connection."""

    @property
    def is_held_back(self) -> bool:
        """Whether nothing is read from the client for now, so that no pong can be seen."""

    def on_ping_timeout(self) -> None:
        """The client has not answered a ping in time."""

    def forget_handshake(self) -> None:
        """The upgrade is over: let go what only it needed."""


class FrameWriter(Protocol):
    """Who writes frames past Tornado's `write_message`."""

    def wait_for(self, written: "asyncio.Future[None]") -> None:
        """A frame was written here; it comes before all that is written when this is done."""

    def closing(self) -> None:
        """No frame may be written any more (RFC 6455 section 5.5.1)."""


class GatewayWebSocketProtocol(WebSocketProtocol13):
    """A server's side of RFC 6455 that tells a client why it is closed."""

    __slots__ = (
        *_SET_BY_TORNADO,
        "_compressed",
        "_deadlines",
        "_discard",
        "_failing",
        "_fragments",
        "_has_begun",
        "_input",
        "_is_let_go",
        "_last_write",
        "_opcode",
        "_ping_due",
        "_reading",
        "client_left",
        "compression_minimum",
        "writer",
    )

    def __init__(
        self,
        handler: "UpgradedHandler",
        params: _WebSocketParams,
        deadlines: Deadlines,
        compression_minimum: int,
    ) -> None:
        """Make the protocol of one connection.

        Args:
            handler: what is told of messages and of the end.
            params: intervals, sizes and compression, as Tornado has them.
            deadlines: those of the event loop.
            compression_minimum: bytes of the smallest message that is compressed.
        """
        self._selected_subprotocol: str | None = None
        super().__init__(handler, mask_outgoing=False, params=params)
        self._deadlines = deadlines
        self.compression_minimum = compression_minimum
        self.client_left = False
        """Whether the client began to close, by a close frame with any code or none."""
        self._discard: asyncio.Task[None] | None = None
        self._failing = False
        self._has_begun = False
        self._is_let_go = False
        self._last_write: asyncio.Future[None] | None = None
        self.writer: FrameWriter | None = None
        """Who writes to the stream past this, where somebody does; let go when the close frame is written."""
        self._opcode = _CONTINUATION
        self._compressed = False
        self._fragments: bytearray | None = None
        self._input: bytes | bytearray | None = None
        self._ping_due: Deadline | None = None
        self._reading: asyncio.Future[bytes] | None = None

    @property
    def window_bits(self) -> int | None:
        """The size of the window that messages to the client are compressed with; None where they are not."""
        return None if self._compressor is None else int(self._compressor._max_wbits)  # noqa: SLF001

    def write_message(
        self, message: str | bytes | dict[str, Any], binary: bool = False
    ) -> "asyncio.Future[None]":
        """Write; what is small is not worth compressing (RFC 7692 section 6 leaves that to each message)."""
        compressor = self._compressor
        if compressor is not None and len(message) < self.compression_minimum:
            self._compressor = None
        try:
            return super().write_message(message, binary)
        finally:
            self._compressor = compressor

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close, and ping no more."""
        if self._ping_due is not None:
            self._ping_due.cancel()
            self._ping_due = None
        if self.writer is not None:
            self.writer.closing()
            self.writer = None
        if not self._is_let_go:
            super().close(code, reason)

    def start_pinging(self) -> None:
        """Ping in every interval, where there is one."""
        if self.ping_interval > 0:
            self._ping_due = self._deadlines.call_later(self.ping_interval, self._ping)

    def _ping(self) -> None:
        self._received_pong = False
        try:
            self.write_ping(b"")
        except StreamClosedError:
            return  # whoever reads finds out too, and tells the handler
        self._ping_due = self._deadlines.call_later(self.ping_timeout, self._look_for_pong)

    def _look_for_pong(self) -> None:
        is_held_back = self.handler.is_held_back  # type: ignore[attr-defined]
        if self._received_pong or not self.ping_timeout or is_held_back:
            left = max(0.0, self.ping_interval - self.ping_timeout)
            self._ping_due = self._deadlines.call_later(left, self._ping)
        else:
            self.handler.on_ping_timeout()  # type: ignore[attr-defined]

    def _parse_extensions_header(self, headers: HTTPHeaders) -> list[tuple[str, dict[str, str]]]:
        offers = [_parsed_offer(offer) for offer in headers.get("Sec-WebSocket-Extensions", "").split(",")]
        # Nothing is kept between messages, in either direction: an idle connection then holds no window.
        return [(name, parameters | _NO_CONTEXT) for name, parameters in offers if _can_be_taken(parameters)]

    async def _accept_connection(self, handler: WebSocketHandler) -> None:
        try:
            await super()._accept_connection(handler)
        finally:
            # Tornado tells nobody of the end where something went wrong before the first frame was awaited.
            if not self._has_begun and self.stream is not None:
                self._end_reading()

    async def _receive_frame_loop(self) -> None:
        """Begin to read. Tornado's own loop keeps itself, and all that has led to it, for the whole time."""
        stream = self.stream
        if stream.closed():
            return  # the client has gone since the upgrade, and with the stream all that it is made of
        stream._write_futures = _ShortQueue(stream._write_futures)  # type: ignore[assignment]  # noqa: SLF001
        waiting = stream._write_buffer  # noqa: SLF001
        waiting._buffers = _ShortQueue(waiting._buffers)  # type: ignore[assignment]  # noqa: SLF001
        stream.read_chunk_size = _READ_CHUNK  # Tornado fills as much with zeros before each look for bytes
        self.handler.forget_handshake()  # type: ignore[attr-defined]
        self._has_begun = True
        self._read_on()

    def _read_on(self) -> None:
        """Wait for bytes, however many there are; nothing but a callback does."""
        try:
            reading = _future_bytes(self.stream.read_bytes(_READ_CHUNK, partial=True))
        except StreamClosedError:
            self._end_reading()
        else:
            self._reading = reading
            reading.add_done_callback(self._on_bytes)

    def _on_bytes(self, reading: "asyncio.Future[bytes]") -> None:
        if self._reading is not reading:
            return  # what it has brought was taken already, to go to another worker
        self._reading = None
        # Not raised: a traceback would know this frame, and with it all that belongs to the connection.
        if reading.cancelled() or reading.exception() is not None:
            self._end_reading()
            return
        chunk = reading.result()
        self._wire_bytes_in += len(chunk)
        if self._input is None:
            self._input = chunk
        elif isinstance(self._input, bytearray):
            self._input += chunk
        else:
            self._input = bytearray(self._input + chunk)
        self._take_frames()

    def _take_frames(self, _handled: object = None) -> None:
        """Take every frame that is there as a whole, unless one has to be waited for; then read on."""
        try:
            waited_for = in_batch(self._take_input)
        except BaseException:
            self._end_reading()
            raise  # a fault in this file: what handlers raise is dealt with elsewhere
        if self.client_terminated or self.stream.closed():
            self._end_reading()
        elif waited_for is not None:
            waited_for.add_done_callback(self._take_frames)
        else:
            self._read_on()

    def _take_input(self) -> "asyncio.Future[Any] | None":
        """Take whole frames; answers what has to be done before the next one is looked at."""
        data, position, work = self._input or b"", 0, 0
        handled: asyncio.Future[Any] | None = None
        while not self.client_terminated and handled is None:
            frame = self._frame_at(data, position)
            if frame is None:
                break
            first, payload, length = frame
            end = payload + length
            mask = bytes(data[payload - 4 : payload])
            handled = self._take_frame(first, _websocket_mask(mask, bytes(data[payload:end])))
            work += _FRAME_WORK + end - position
            position = end
            if work >= _WORK_WITHOUT_PAUSE and handled is None:
                handled = asyncio.get_running_loop().create_future()
                handled.set_result(None)  # goes on in the next turn of the loop
        if position == len(data) or self.client_terminated:
            self._input = None
        elif position:
            self._input = data[position:]
        return handled

    def _frame_at(self, data: bytes | bytearray, position: int) -> tuple[int, int, int] | None:
        """The first byte of a frame that is there as a whole, where its payload begins, and how long it is.

        None where some of it is still to come, or where it breaks the protocol and the connection has failed.
        """
        available = len(data) - position
        if available < 2:  # noqa: PLR2004 - RFC 6455 section 5.2, as all numbers here
            return None
        first, second = data[position], data[position + 1]
        is_plain = first == _WHOLE_TEXT and second & 0x80 and self._fragments is None
        if not is_plain and (fault := self._fault_of_header(first, second)) is not None:
            self._fail(CloseCode.PROTOCOL_ERROR, fault)
            return None
        length, head = second & 0x7F, 6
        if length > _LONGEST_CONTROL:
            form, head = ("!H", 8) if length == 126 else ("!Q", 14)  # noqa: PLR2004
            if available < head - 4:
                return None
            (length,) = struct.unpack_from(form, data, position + 2)
        waiting = 0 if self._fragments is None or first & _CONTROL else len(self._fragments)
        if waiting + length > self.params.max_message_size:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "message too big")
            return None
        return (first, position + head, length) if available >= head + length else None

    def _take_frame(self, first: int, data: bytes) -> "asyncio.Future[None] | None":
        opcode = first & self.OPCODE_MASK
        if opcode & _CONTROL:
            self._take_control(opcode, data)
            return None
        if opcode != _CONTINUATION:
            self._opcode, self._compressed = opcode, bool(first & self.RSV1)
        if self._fragments is not None:
            self._fragments.extend(data)
        elif not first & self.FIN:
            self._fragments = bytearray(data)
        if not first & self.FIN:
            return None
        message = data if self._fragments is None else bytes(self._fragments)
        self._fragments = None
        return self._take_message(message)

    def take_unread(self) -> Unread:
        """All that was received of messages that nobody has been given, as it came; no more is to be read."""
        begun = b""
        if self._fragments is not None:
            first = self._opcode | (self.RSV1 if self._compressed else 0)
            begun = masked_frame(first, bytes(self._fragments))
        waiting, self._input = bytes(self._input or b""), None
        reading, self._reading = self._reading, None
        if reading is not None and reading.done():
            if not reading.cancelled() and reading.exception() is None:
                waiting += reading.result()
            reading = None
        rest = unread(self.stream)
        return Unread(begun + waiting + rest.received, reading or rest.waiting)

    def let_go(self) -> None:
        """The stream belongs to somebody else now: nothing is read, written or closed here any more."""
        self._is_let_go = self.client_terminated = self.server_terminated = True
        self._input = None
        self.close()
        self.handler.on_ws_connection_close(None, None)

    def _end_reading(self) -> None:
        self._input = None
        if not self.client_terminated:
            self._abort()
        if self.stream.error is not None:
            self.stream.error.__traceback__ = None  # it knows the frames in which the stream found it
        self.handler.on_ws_connection_close(self.close_code, self.close_reason)

    def _fault_of_header(self, first: int, second: int) -> str | None:
        opcode, final, reserved = first & self.OPCODE_MASK, first & self.FIN, first & self.RSV_MASK
        if opcode not in _KNOWN:
            return "unknown opcode"
        if not second & 0x80:
            return "frame without a mask"
        starts_compressed = self._decompressor is not None and opcode in (_TEXT, _BINARY)
        if reserved & ~(self.RSV1 if starts_compressed else 0):
            return "reserved bit set"
        if opcode & _CONTROL:
            if not final:
                return "fragmented control frame"
            return "control frame too long" if second & 0x7F > _LONGEST_CONTROL else None
        if opcode == _CONTINUATION:
            return "nothing to continue" if self._fragments is None else None
        return "message inside a message" if self._fragments is not None else None

    def _take_control(self, opcode: int, data: bytes) -> None:
        self.client_left = self.client_left or (opcode == _CLOSE and not self.server_terminated)
        if opcode == _CLOSE and data:
            code = int.from_bytes(data[:2], "big")
            if len(data) == 1 or not _may_be_sent(code):
                self._fail(CloseCode.PROTOCOL_ERROR, "invalid close code")
                return
            try:
                data[2:].decode("utf-8")
            except UnicodeDecodeError:
                self._fail(CloseCode.INVALID_PAYLOAD, "invalid UTF-8")
                return
        super()._handle_message(opcode, data)

    def _take_message(self, data: bytes) -> "asyncio.Future[None] | None":
        if self.client_terminated:
            return None
        if self._compressed:
            assert self._decompressor is not None, "compressed frames are taken only where it is agreed on"  # noqa: S101
            try:
                data = self._decompressor.decompress(data)
            except _DecompressTooLargeError:
                self._fail(CloseCode.MESSAGE_TOO_BIG, "message too big after decompression")
                return None
            except zlib.error:
                self._fail(CloseCode.INVALID_PAYLOAD, "no deflate data (RFC 7692)")
                return None
        if self._opcode == _BINARY:
            return self._run_callback(self.handler.on_message, data)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            self._fail(CloseCode.INVALID_PAYLOAD, "invalid UTF-8")
            return None
        return self._run_callback(self.handler.on_message, text)

    def _write_frame(self, fin: bool, opcode: int, data: bytes, flags: int = 0) -> "asyncio.Future[None]":
        written = super()._write_frame(fin, opcode, data, flags)
        self._last_write = None if written.done() else written
        if self.writer is not None:
            self.writer.wait_for(written)
        return written

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7), so that the client still reads why."""
        self._failing = True
        self.close_code = code.value
        self.close(code.value, reason)
        self._abort()

    def _abort(self) -> None:
        if self._is_let_go:
            return
        if not self._failing or self.stream.closed():
            super()._abort()
        elif self._discard is None:
            # Tornado comes by here again, for its handler and for its timer: the first time decides.
            self.client_terminated = True  # ends the loop that reads frames
            self._discard = asyncio.ensure_future(self._discard_input())

    async def _discard_input(self) -> None:
        """Send what waits and say that no more follows; then read until the client has closed too."""
        try:
            with suppress(StreamClosedError, TimeoutError, OSError):
                async with asyncio.timeout(_DISCARD_SECONDS):
                    if self._last_write is not None:
                        await asyncio.shield(self._last_write)
                    self.stream.socket.shutdown(socket.SHUT_WR)
                    while True:
                        await self.stream.read_bytes(_DISCARD_CHUNK, partial=True)
        finally:
            self._failing = False
            self._abort()


def masked_frame(first: int, payload: bytes) -> bytes:
    """A frame as a client sends it (RFC 6455 section 5.2), with a mask that changes nothing."""
    size = len(payload)
    if size <= _LONGEST_CONTROL:
        head = struct.pack("!BB", first, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", first, 0x80 | 127, size)
    return head + b"\0\0\0\0" + payload


def text_message(text: str) -> bytes:
    """A whole message as a client sends it."""
    return masked_frame(WebSocketProtocol13.FIN | _TEXT, text.encode())


class _ShortQueue(list[Any]):
    """A queue that is empty most of the time: 72 bytes, where a deque takes 760 at once."""

    __slots__ = ()

    def popleft(self) -> Any:
        """Take the first; what waits is short, since who writes waits for what was written before."""
        return self.pop(0)


def _future_bytes(reading: Awaitable[bytes]) -> "asyncio.Future[bytes]":
    """What `IOStream.read_bytes` returns, which is declared as something to await."""
    assert isinstance(reading, asyncio.Future), "Tornado reads into futures"  # noqa: S101
    return reading


def _parsed_offer(text: str) -> tuple[str, dict[str, Any]]:
    """Name and parameters of one offered extension; None for a parameter without a value.

    Tornado's own parser forgets such parameters, and so breaks what ``server_no_context_takeover`` asks for.
    """
    name, *parts = (part.strip() for part in text.split(";"))
    parameters: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        parameters[key.strip()] = value.strip().strip('"') if equals else None
    return name, parameters


def _can_be_taken(parameters: Mapping[str, str | None]) -> bool:
    """Whether zlib can do what an offer of permessage-deflate asks for (RFC 7692 section 7.1)."""
    return all(name in _TAKEN and value in _TAKEN[name] for name, value in parameters.items())


def _may_be_sent(code: int) -> bool:
    """Whether a close frame may carry `code` (RFC 6455 section 7.4 and the IANA registry of close codes)."""
    return (1000 <= code <= 1014 and code not in (1004, 1005, 1006)) or 3000 <= code <= 4999  # noqa: PLR2004
