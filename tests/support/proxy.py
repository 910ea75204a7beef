"""A TCP proxy that fails as networks do: it cuts, stalls, and cuts after so many bytes of one direction."""

import asyncio
import socket
import struct
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit

_CHUNK = 65536


class Direction:
    """What passes one way through every connection; `passed` counts its bytes."""

    def __init__(self) -> None:
        self.passed = 0
        self._flows = asyncio.Event()
        self._flows.set()
        self._left: int | None = None

    def hold(self) -> None:
        """Let nothing more pass; the connections stay open."""
        self._flows.clear()

    def release(self) -> None:
        """Let everything pass again."""
        self._left = None
        self._flows.set()

    def cut_after(self, size: int) -> None:
        """Let `size` more bytes pass, then cut their connection."""
        self._left = size

    async def admit(self, size: int) -> int:
        """How many of `size` bytes may pass; fewer where the connection is to be cut behind them."""
        await self._flows.wait()
        admitted = size if self._left is None else min(size, self._left)
        if self._left is not None:
            self._left -= admitted
        self.passed += admitted
        return admitted


class Proxy:
    """Listens on a port of its own and passes everything on to `target` (a URL); a context manager.

    `url` takes the place of `target`. A cut resets both sides, so that what was not read is lost.
    """

    def __init__(self, target: str) -> None:
        self._target = target
        self.to_gateway = Direction()
        self.to_client = Direction()
        self._pairs: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self.url = ""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, limit=_CHUNK)
        port = self._server.sockets[0].getsockname()[1]
        self.url = urlunsplit(urlsplit(self._target)._replace(netloc=f"127.0.0.1:{port}"))
        return self

    async def __aexit__(
        self, typ: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()

    def __len__(self) -> int:
        """How many connections are open."""
        return len(self._pairs)

    def cut(self) -> None:
        """Reset every connection that is open now."""
        for pair in list(self._pairs):
            self._cut(pair)

    def renew(self) -> None:
        """Give connections that are yet to come directions of their own; open ones stay as they are."""
        self.to_gateway, self.to_client = Direction(), Direction()

    def _cut(self, pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter]) -> None:
        self._pairs.discard(pair)
        for writer in pair:
            raw: socket.socket = writer.get_extra_info("socket")
            if raw.fileno() >= 0:
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        parts = urlsplit(self._target)
        try:
            far_reader, far_writer = await asyncio.open_connection(parts.hostname, parts.port, limit=_CHUNK)
        except OSError:
            writer.transport.abort()
            return
        pair = (writer, far_writer)
        self._pairs.add(pair)
        passing = [
            asyncio.ensure_future(self._pass(reader, far_writer, self.to_gateway)),
            asyncio.ensure_future(self._pass(far_reader, writer, self.to_client)),
        ]
        try:
            await asyncio.wait(passing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in passing:
                one.cancel()
            await asyncio.gather(*passing, return_exceptions=True)
            if pair in self._pairs:
                self._cut(pair)

    @staticmethod
    async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Direction) -> None:
        try:
            while data := await reader.read(_CHUNK):
                admitted = await way.admit(len(data))
                writer.write(data[:admitted])
                await writer.drain()
                if admitted < len(data):
                    return
        except OSError:
            return
        # One side has said that no more comes: what it wrote before must still arrive.
        writer.write_eof()
        await asyncio.Event().wait()
