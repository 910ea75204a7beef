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
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
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
_PROTOCOL_ERROR = 1002
# zlib has no raw deflate with a window of 8 bits.
_TAKEN: Mapping[str, tuple[str | None, ...]] = {
    "server_no_context_takeover": (None,),
    "client_no_context_takeover": (None,),
    "server_max_window_bits": ("9", "10", "11", "12", "13", "14", "15"),
    "client_max_window_bits": (None, "8", "9", "10", "11", "12", "13", "14", "15"),
}
_DISCARD_SECONDS = 2.0
_DISCARD_CHUNK = 65536


class GatewayWebSocketProtocol(WebSocketProtocol13):
    """A server's side of RFC 6455 that tells a client why it is closed."""

    _discard: "asyncio.Task[None] | None" = None
    _failing = False
    _last_write: "asyncio.Future[None] | None" = None
    _frame_compressed = False
    _opcode = _CONTINUATION
    _compressed = False
    _fragments: bytearray | None = None

    def _parse_extensions_header(self, headers: HTTPHeaders) -> list[tuple[str, dict[str, str]]]:
        offers = [_parsed_offer(offer) for offer in headers.get("Sec-WebSocket-Extensions", "").split(",")]
        return [(name, parameters) for name, parameters in offers if _can_be_taken(parameters)]

    async def _receive_frame(self) -> None:
        first, second = await self._read_bytes(2)
        opcode, length = first & self.OPCODE_MASK, second & 0x7F
        if (fault := self._fault_of_header(first, second)) is not None:
            self._fail(_PROTOCOL_ERROR, fault)
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
        if opcode == _CLOSE and data:
            code = int.from_bytes(data[:2], "big")
            if len(data) == 1 or not _may_be_sent(code):
                self._fail(_PROTOCOL_ERROR, "invalid close code")
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

    def _fail(self, code: int, reason: str) -> None:
        """Fail the connection (RFC 6455 section 7.1.7), so that the client still reads why."""
        self._failing = True
        self.close_code = int(code)
        self.close(int(code), reason)
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
