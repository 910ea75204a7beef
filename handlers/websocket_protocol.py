"""Tornado's WebSocket protocol, where RFC 6455 asks for more than it does.

This is the one file that touches what is not public in Tornado. Tornado takes frames without a mask, echoes
close codes that no frame may carry, forgets that a message is compressed when a ping comes between its
fragments, passes over parameters of permessage-deflate, and drops a client whose offer it cannot take. Every
fault makes it drop the TCP connection at once, so that a close frame is lost with it whenever unread bytes
wait in the socket (the kernel then sends a reset). Here each fault has its close code; the frame is sent,
what still comes is read and thrown away for a moment, and only then the connection ends (RFC 6455 sections
5, 7.1.1, 7.1.7, 7.4 and 8.1; RFC 7692 sections 5 to 7).
"""

import asyncio
import socket
import struct
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import IOStream, StreamClosedError
from tornado.util import _websocket_mask
from tornado.websocket import WebSocketProtocol13, _DecompressTooLargeError

from mcpgw.errors import CloseCode

_CONTINUATION = 0x0
_TEXT = 0x1
_BINARY = 0x2
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
_HANDSHAKE_SECONDS = 0.05
_DISCARD_CHUNK = 65536
_PING_TIMED_OUT = "ping timed out"
"""The reason that Tornado's own pinging gives."""


class GatewayWebSocketProtocol(WebSocketProtocol13):
    """A server's side of RFC 6455 that tells a client why it is closed."""

    compression_minimum = 0
    _discard: "asyncio.Task[None] | None" = None
    _failing = False
    _last_write: "asyncio.Future[None] | None" = None
    _frame_compressed = False
    _opcode = _CONTINUATION
    _compressed = False
    _fragments: bytearray | None = None
    client_left = False
    """Whether the client began to close, by a close frame with any code or none."""

    @property
    def bytes_taken(self) -> int:
        """How many bytes the kernel has taken so far: they grow as long as the client reads."""
        return int(self.stream._total_write_done_index)  # noqa: SLF001

    def when_written(self, callback: Callable[[], None]) -> None:
        """Call back when the kernel has taken all that was written so far, or never will."""
        if self._last_write is None or self._last_write.done():
            # What is still being written is then the handshake.
            asyncio.get_running_loop().call_later(_HANDSHAKE_SECONDS, callback)
        else:
            self._last_write.add_done_callback(lambda _: callback())

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

    def takes_plain(self, size: int) -> bool:
        """Whether a text of `size` bytes would be sent as it is, so that a prepared frame can be."""
        return self._compressor is None or size < self.compression_minimum

    def write_plain(self, frame: bytes) -> "asyncio.Future[None] | None":
        """Write a frame that `plain_text_frame` has made; None where all of it has gone already.

        What the kernel takes at once costs neither a future nor a task, which `write_message` needs for each.
        """
        stream = self.stream
        if self.is_closing():
            return None
        if type(stream) is IOStream and not stream.writing():
            try:
                sent = stream.socket.send(frame)
            except OSError:
                sent = 0  # full, or broken: the stream finds out which
            if sent == len(frame):
                return None
            frame = frame[sent:]
        try:
            self._last_write = stream.write(frame)
        except StreamClosedError:
            return None
        return self._last_write

    def close(self, code: int | None = None, reason: str | None = None) -> None:
        """Close; a ping that was not answered has a close code of its own, which the handler gives."""
        if reason == _PING_TIMED_OUT and code is None:
            self.handler.on_ping_timeout()  # type: ignore[attr-defined]
        else:
            super().close(code, reason)

    def _parse_extensions_header(self, headers: HTTPHeaders) -> list[tuple[str, dict[str, str]]]:
        offers = [_parsed_offer(offer) for offer in headers.get("Sec-WebSocket-Extensions", "").split(",")]
        # Nothing is kept between messages, in either direction: an idle connection then holds no window.
        return [(name, parameters | _NO_CONTEXT) for name, parameters in offers if _can_be_taken(parameters)]

    async def _receive_frame(self) -> None:
        first, second = await self._read_bytes(2)
        opcode, length = first & self.OPCODE_MASK, second & 0x7F
        if (fault := self._fault_of_header(first, second)) is not None:
            self._fail(CloseCode.PROTOCOL_ERROR, fault)
            return
        if length > _LONGEST_CONTROL:
            form, size = ("!H", 2) if length == 126 else ("!Q", 8)  # noqa: PLR2004 - RFC 6455 section 5.2
            (length,) = struct.unpack(form, await self._read_bytes(size))
        waiting = 0 if self._fragments is None or opcode & _CONTROL else len(self._fragments)
        if waiting + length > self.params.max_message_size:
            self._fail(CloseCode.MESSAGE_TOO_BIG, "message too big")
            return
        mask = await self._read_bytes(4)
        data = _websocket_mask(mask, await self._read_bytes(length))
        if opcode & _CONTROL:
            self._take_control(opcode, data)
            return
        if opcode != _CONTINUATION:
            self._opcode, self._compressed = opcode, bool(first & self.RSV1)
        if self._fragments is not None:
            self._fragments.extend(data)
        elif not first & self.FIN:
            self._fragments = bytearray(data)
        if first & self.FIN:
            message = data if self._fragments is None else bytes(self._fragments)
            self._fragments = None
            if (handled := self._take_message(message)) is not None:
                await handled

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
        self._last_write = super()._write_frame(fin, opcode, data, flags)
        return self._last_write

    def _fail(self, code: CloseCode, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7), so that the client still reads why."""
        self._failing = True
        self.close_code = code.value
        self.close(code.value, reason)
        self._abort()

    def _abort(self) -> None:
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


def plain_text_frame(text: str) -> bytes:
    """A whole server frame with one text message (RFC 6455 section 5.2): final, no mask, not compressed."""
    data = text.encode()
    size = len(data)
    if size <= _LONGEST_CONTROL:
        return bytes((0x80 | _TEXT, size)) + data
    if size < 65536:  # noqa: PLR2004 - RFC 6455 section 5.2
        return struct.pack("!BBH", 0x80 | _TEXT, 126, size) + data
    return struct.pack("!BBQ", 0x80 | _TEXT, 127, size) + data


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
