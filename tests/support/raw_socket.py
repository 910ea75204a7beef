"""HTTP and WebSocket by hand, for tests that do what no client library would do."""

import asyncio
import json
import os
import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from tests.support.schemas import assert_valid_server_frame

TEXT, BINARY, CLOSE, PING, PONG, CONTINUATION = 0x1, 0x2, 0x8, 0x9, 0xA, 0x0
COMPRESSED = 0x40
_KEY = "dGhlIHNhbXBsZSBub25jZQ=="


@dataclass(frozen=True)
class RawAnswer:
    """An HTTP answer; the names of `headers` are in lower case, `set_cookies` has every ``Set-Cookie``."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""
    set_cookies: tuple[str, ...] = ()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class RawSocket:
    """One TCP connection to a gateway; every wait is bounded."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, url: str) -> Self:
        """Open a connection to the host and port of `url`."""
        parts = urlsplit(url)
        return cls(*await asyncio.open_connection(parts.hostname, parts.port, limit=2**24))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def send(self, data: bytes) -> None:
        """Write bytes."""
        self.writer.write(data)
        await self.writer.drain()

    async def request(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        """Write a request; ``Host`` is the gateway's own unless `headers` name one (None leaves it out)."""
        host, port = self.writer.get_extra_info("peername")[:2]
        fields = {"Host": f"{host}:{port}", **(headers or {})}
        if body:
            fields.setdefault("Content-Length", str(len(body)))
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
        await self.send("\r\n".join(lines).encode("latin-1") + body)

    async def read_head(self, seconds: float = 10.0) -> RawAnswer:
        """The status line and the headers of the next answer."""
        async with asyncio.timeout(seconds):
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        headers: dict[str, str] = {}
        cookies: list[str] = []
        for line in lines:
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
            if name.lower() == "set-cookie":
                cookies.append(value.strip())
        return RawAnswer(int(first.split()[1]), headers, set_cookies=tuple(cookies))

    async def read_answer(self, seconds: float = 10.0) -> RawAnswer:
        """The next answer, with a body of its Content-Length."""
        head = await self.read_head(seconds)
        async with asyncio.timeout(seconds):
            body = await self.reader.readexactly(int(head.headers.get("content-length", "0")))
        return RawAnswer(head.status, head.headers, body, head.set_cookies)

    async def read_chunk(self, seconds: float = 10.0) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        async with asyncio.timeout(seconds):
            size = int(await self.reader.readuntil(b"\r\n"), 16)
            return (await self.reader.readexactly(size + 2))[:-2]

    async def read_to_end(self, seconds: float = 10.0) -> bytes:
        """Everything until the gateway closes the connection.

        Raises:
            ConnectionResetError: the gateway dropped it instead.
        """
        async with asyncio.timeout(seconds):
            return await self.reader.read()

    def reset(self) -> None:
        """Cut the connection so that the kernel sends a reset."""
        raw: socket.socket = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    # --- WebSocket -----------------------------------------------------------------------------------------

    async def upgrade(
        self, *, token: str | None = None, headers: Mapping[str, str] | None = None, path: str = "/ws"
    ) -> RawAnswer:
        """Ask for a WebSocket (RFC 6455 section 4.1); answers what the gateway said."""
        fields = {
            "Upgrade": "websocket",
            "Connection": "Upgrade",
            "Sec-WebSocket-Key": _KEY,
            "Sec-WebSocket-Version": "13",
            **({} if token is None else {"Authorization": f"Bearer {token}"}),
            **(headers or {}),
        }
        await self.request("GET", path, fields)
        return await self.read_answer()

    async def send_frame(
        self, opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
    ) -> None:
        """Write one frame (RFC 6455 section 5.2), as wrong as the test wants it."""
        await self.send(frame_bytes(opcode, payload, final=final, reserved=reserved, masked=masked))

    async def read_frame(self, seconds: float = 10.0) -> tuple[int, bytes]:
        """Opcode and payload of the next frame; a compressed one is given as it is."""
        async with asyncio.timeout(seconds):
            first, length = await self.reader.readexactly(2)
            if length == 126:
                (length,) = struct.unpack("!H", await self.reader.readexactly(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", await self.reader.readexactly(8))
            return first & 0x0F, await self.reader.readexactly(length)

    async def read_json(self) -> dict[str, Any]:
        """The next text frame, held against its schema."""
        opcode, payload = await self.read_frame()
        assert opcode == TEXT, f"opcode {opcode}: {payload!r}"
        frame: dict[str, Any] = json.loads(payload)
        assert_valid_server_frame(frame)
        return frame

    async def read_close(self) -> tuple[int | None, str]:
        """Code and reason of the close frame; what comes before it is passed over."""
        while True:
            opcode, payload = await self.read_frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2], "big") if payload else None, payload[2:].decode()


def frame_bytes(
    opcode: int, payload: bytes = b"", *, final: bool = True, reserved: int = 0, masked: bool = True
) -> bytes:
    """The bytes of one frame of a client."""
    head = bytes([(0x80 if final else 0) | reserved | opcode])
    bit = 0x80 if masked else 0
    if len(payload) < 126:
        head += bytes([bit | len(payload)])
    elif len(payload) < 65536:
        head += struct.pack("!BH", bit | 126, len(payload))
    else:
        head += struct.pack("!BQ", bit | 127, len(payload))
    if not masked:
        return head + payload
    mask = os.urandom(4)
    whole = mask * (len(payload) // 4 + 1)
    masked_payload = int.from_bytes(payload, "big") ^ int.from_bytes(whole[: len(payload)], "big")
    return head + mask + masked_payload.to_bytes(len(payload), "big")


async def fetch(
    url: str, path: str, *, method: str = "GET", headers: Mapping[str, str] | None = None, body: bytes = b""
) -> RawAnswer:
    """One request and its answer over a connection of its own."""
    async with await RawSocket.connect(url) as connection:
        await connection.request(method, path, headers, body)
        return await connection.read_answer()


class EventReader:
    """Reads a stream of Server-Sent Events, field by field."""

    def __init__(self, connection: RawSocket, head: RawAnswer) -> None:
        self.connection = connection
        self.head = head
        self._waiting: list[str] = []

    @classmethod
    async def open(
        cls, url: str, headers: Mapping[str, str] | None = None, *, path: str = "/api/v1/events"
    ) -> Self:
        """Ask for the stream."""
        connection = await RawSocket.connect(url)
        await connection.request("GET", path, {"Accept": "text/event-stream", **(headers or {})})
        return cls(connection, await connection.read_head())

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.connection.writer.close()

    async def next_event(self, seconds: float = 10.0) -> dict[str, str] | None:
        """The fields of the next event; None at the stream's end."""
        if not self._waiting:
            chunk = await self.connection.read_chunk(seconds)
            if not chunk:
                return None
            assert chunk.endswith(b"\n\n"), chunk
            self._waiting = chunk.decode().removesuffix("\n\n").split("\n\n")
        return dict(line.split(": ", 1) for line in self._waiting.pop(0).split("\n"))

    async def next_frame(self, seconds: float = 10.0) -> dict[str, Any]:
        """The data of the next event that is no heartbeat; one of the log is held against its schema."""
        while True:
            event = await self.next_event(seconds)
            assert event is not None, "the stream ended"
            frame: dict[str, Any] = json.loads(event["data"])
            if frame["type"] == "heartbeat":
                continue
            if "channel" in frame:
                assert_valid_server_frame(frame)
                assert event.get("id", frame["id"]) == frame["id"]
            return frame
