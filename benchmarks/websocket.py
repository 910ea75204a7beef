"""RFC 6455 on bare sockets, as little as a benchmark's cheap clients need."""

import base64
import os
import re
import select
import socket
import struct
import zlib
from collections.abc import Iterator, Mapping

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
_NO_MASK = bytes(4)


def upgrade_request(port: int, path: str, headers: Mapping[str, str], *, deflate: bool = False) -> bytes:
    """The request that opens a WebSocket; offers permessage-deflate as browsers do where `deflate`."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{port}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if deflate:
        lines.append("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    return "\r\n".join([*lines, "\r\n"]).encode()


def client_frame(opcode: int, payload: bytes, *, deflate: bool = False, mask: bytes = _NO_MASK) -> bytes:
    """A whole message of a client. A mask of zero leaves the payload as it is (section 5.3)."""
    first = 0x80 | opcode
    if deflate:
        deflater = zlib.compressobj(1, wbits=-9)
        payload = (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH))[:-4]
        first |= 0x40
    size = len(payload)
    if mask != _NO_MASK:
        repeated = (mask * (size // 4 + 1))[:size]
        masked = int.from_bytes(payload, "little") ^ int.from_bytes(repeated, "little")
        payload = masked.to_bytes(size, "little")
    if size < 126:
        return struct.pack("!BB", first, 0x80 | size) + mask + payload
    if size < 65536:
        return struct.pack("!BBH", first, 0x80 | 126, size) + mask + payload
    return struct.pack("!BBQ", first, 0x80 | 127, size) + mask + payload


def frame_at(data: bytes, position: int) -> tuple[int, int, int] | None:
    """First byte, start and end of the payload of the server's frame at `position`; None where it is cut."""
    available = len(data) - position
    if available < 2:
        return None
    size, start = data[position + 1], position + 2
    if size == 126:
        if available < 4:
            return None
        size, start = data[start] << 8 | data[start + 1], position + 4
    elif size == 127:
        if available < 10:
            return None
        size, start = int.from_bytes(data[start : start + 8], "big"), position + 10
    end = start + size
    return None if end > len(data) else (data[position], start, end)


def is_one_text(data: bytes) -> bool:
    """Whether `data` is exactly one text of 126 bytes to 64 KiB, not compressed: what most reads find."""
    return data[:2] == b"\x81\x7e" and len(data) == 4 + (data[2] << 8 | data[3])


def inflated(payload: bytes) -> bytes:
    """The text of a compressed message; empty where it builds on messages before it (RFC 7692, 7.2.3)."""
    try:
        return zlib.decompressobj(wbits=-15).decompress(payload + b"\x00\x00\xff\xff")
    except zlib.error:
        return b""


class Publisher:
    """One blocking WebSocket that publishes."""

    def __init__(self, port: int, path: str, headers: Mapping[str, str]) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.sendall(upgrade_request(port, path, headers))
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            self._receive()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise SystemExit(f"no upgrade for the publisher: {head[:200]!r}")

    def send(self, text: str) -> None:
        """Send one message."""
        self._socket.sendall(client_frame(TEXT, text.encode()))

    def read_until(self, pattern: str) -> None:
        """Read until a message holds `pattern`; a message that is an error ends the benchmark."""
        while not any(re.search(pattern.encode(), message) for message in self._messages()):
            self._receive()

    def answer_pings(self) -> None:
        """Read what is there, and wait for nothing. A server closes a connection that owes it a pong."""
        while select.select([self._socket], [], [], 0)[0]:
            self._receive()
            for _ in self._messages():
                pass

    def close(self) -> None:
        """End it."""
        self._socket.close()

    def _messages(self) -> Iterator[bytes]:
        """The messages that are whole; pings are answered."""
        while (found := frame_at(self._data, 0)) is not None:
            first, start, end = found
            payload, self._data = self._data[start:end], self._data[end:]
            if first & 0xF == PING:
                self._socket.sendall(client_frame(PONG, payload))
            elif first & 0xF == CLOSE or b'"type":"error"' in payload:
                raise SystemExit(f"the publisher was refused: {payload[:500]!r}")
            else:
                yield payload

    def _receive(self) -> None:
        data = self._socket.recv(65536)
        if not data:
            raise SystemExit("the server has closed the publisher's connection")
        self._data += data
