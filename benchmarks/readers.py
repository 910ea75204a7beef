"""Thousands of WebSockets in a process of their own, with an epoll loop and as little work as can be.

`Readers` stands in the benchmark's process and speaks to the loop in the other through a pipe. Every sign
of a fault (a refused upgrade, a connection that the server closes) ends the benchmark with a sentence.
"""

import re
import select
import socket
import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from benchmarks.websocket import (
    CLOSE,
    PING,
    PONG,
    TEXT,
    client_frame,
    frame_at,
    inflated,
    is_one_text,
    upgrade_request,
)

SENT = re.compile(rb'"sent":\s?(\d+)')
"""Where a published message says when it was sent, in nanoseconds of the monotonic clock."""

_AT_ONCE = 100  # below the shortest backlog of the servers, which is Tornado's 128
_SOURCES = 4
_NO_PORT_BEFORE_CONNECT = 24  # IP_BIND_ADDRESS_NO_PORT of Linux: one port for many destinations
_RSV1 = 0x40
_ONE_MESSAGE = 8192
_MORE = 1 << 20


class Readers:
    """Connections of one process to one server. All calls wait until the other process has done its part."""

    def __init__(
        self, port: int, path: str, headers: Sequence[dict[str, str]], *, deflate: bool = False
    ) -> None:
        context = get_context("spawn")
        self._pipe, other_end = context.Pipe()
        self._process = context.Process(target=_run, args=(other_end,), daemon=True)
        self._process.start()
        other_end.close()
        requests = [upgrade_request(port, path, each, deflate=deflate) for each in headers]
        self._count = len(requests)
        self._pipe.send(("connect", port, requests))
        self._answer(seconds=30 + self._count / 50)

    def exchange(self, text: str, until: str, *, deflate: bool = False) -> None:
        """Send `text` on every connection, and wait until each had an answer that holds `until`."""
        self._pipe.send(("exchange", client_frame(TEXT, text.encode(), deflate=deflate), until.encode()))
        self._answer(seconds=30 + self._count / 50)

    def expect(self, messages: int) -> None:
        """Count published messages: `messages` more on every connection. `received` waits for them."""
        self._pipe.send(("expect", messages * self._count))

    def received(self, seconds: float) -> int:
        """When the last of the expected messages was there, in nanoseconds of the monotonic clock."""
        return int(self._answer(seconds))

    def delays(self) -> "array[int]":
        """Nanoseconds from publish to receipt of each message since this was last asked."""
        self._pipe.send(("delays",))
        taken: array[int] = self._answer(seconds=60)
        return taken

    def close(self) -> None:
        """Drop every connection and end the process."""
        self._pipe.close()
        self._process.join(20)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _answer(self, seconds: float) -> Any:
        if not self._pipe.poll(seconds):
            self._pipe.send(("state",))
            state = self._pipe.recv() if self._pipe.poll(10) else "the readers hang"
            raise SystemExit(f"no end after {seconds:.0f} s: {state}")
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise SystemExit(f"readers: {answer}")
        return answer


class _Client:
    """One connection."""

    __slots__ = ("data", "request", "socket", "waiting")

    def __init__(self, connection: socket.socket, request: bytes) -> None:
        self.socket = connection
        self.request: bytes | None = request  # until it has been answered
        self.data = b""
        self.waiting = False


class _Loop:
    """The loop of the other process."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._poll = select.epoll()
        self._poll.register(pipe.fileno(), select.EPOLLIN)
        self._clients: dict[int, _Client] = {}
        self._to_do: deque[Callable[[], None]] = deque()
        self._under_way = 0
        self._until = b""
        self._received = 0
        self._expected = 0
        self._last = 0
        self._delays = array("Q")
        self._open = True

    def run(self) -> None:
        """Serve the pipe and the sockets until the pipe's other end is closed."""
        pipe = self._pipe.fileno()
        while self._open:
            for number, events in self._poll.poll():
                if number == pipe:
                    self._take_command()
                elif events & select.EPOLLOUT:
                    self._send_request(self._clients[number])
                else:
                    self._read(self._clients[number])

    def close(self) -> None:
        """Drop all connections at once, so that no port stays taken."""
        for client in self._clients.values():
            client.socket.close()

    def _take_command(self) -> None:
        try:
            command, *arguments = self._pipe.recv()
        except EOFError:
            self._open = False
            return
        match command:
            case "connect":
                port, requests = arguments
                self._to_do.extend(self._connects(port, requests))
                self._start_next()
            case "exchange":
                frame, self._until = arguments
                self._to_do.extend(self._sends(frame))
                self._start_next()
            case "expect":
                self._expected += arguments[0]
                self._tell_received()
            case "delays":
                self._pipe.send(self._delays)
                self._delays = array("Q")
            case "state":
                unanswered = len(self._to_do) + self._under_way
                self._pipe.send(
                    f"{len(self._clients)} connections, {unanswered} without an answer, "
                    f"{self._received} messages of {self._expected}"
                )

    def _connects(self, port: int, requests: list[bytes]) -> Iterator[Callable[[], None]]:
        for number, request in enumerate(requests):
            source = f"127.0.0.{2 + number % _SOURCES}"
            yield partial(self._connect, port, source, request)

    def _sends(self, frame: bytes) -> Iterator[Callable[[], None]]:
        for client in self._clients.values():
            yield partial(self._exchange, client, frame)

    def _start_next(self) -> None:
        while self._to_do and self._under_way < _AT_ONCE:
            self._under_way += 1
            self._to_do.popleft()()

    def _one_done(self) -> None:
        self._under_way -= 1
        if self._to_do:
            self._start_next()
        elif not self._under_way:
            self._pipe.send(True)

    def _connect(self, port: int, source: str, request: bytes) -> None:
        connection = socket.socket()
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_IP, _NO_PORT_BEFORE_CONNECT, 1)
        # Closed with a reset: no port waits in TIME_WAIT for the next round.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        connection.bind((source, 0))
        connection.connect_ex(("127.0.0.1", port))
        self._clients[connection.fileno()] = _Client(connection, request)
        self._poll.register(connection.fileno(), select.EPOLLOUT)

    def _send_request(self, client: _Client) -> None:
        if fault := client.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(fault, "cannot connect")
        assert client.request is not None
        self._send(client, client.request)
        self._poll.modify(client.socket.fileno(), select.EPOLLIN)

    def _exchange(self, client: _Client, frame: bytes) -> None:
        client.waiting = True
        self._send(client, frame)

    def _send(self, client: _Client, data: bytes) -> None:
        if client.socket.send(data) != len(data):
            raise OSError("the server does not read")

    def _read(self, client: _Client) -> None:
        data = client.socket.recv(_MORE if client.data else _ONE_MESSAGE)
        now = time.monotonic_ns()
        if not data:
            raise ConnectionError("the server has closed a connection")
        if client.data:
            data = client.data + data
        elif is_one_text(data) and not client.waiting and (sent := SENT.search(data)) is not None:
            self._count(sent, now)  # the same as below, only shorter
            return
        if client.request is not None:
            head, end, data = data.partition(b"\r\n\r\n")
            if not end:
                client.data = head
                return
            if b" 101 " not in head.partition(b"\r\n")[0]:
                raise ConnectionError(f"no upgrade: {head[:300]!r} {data[:300]!r}")
            client.request = None
            self._one_done()
        position = 0
        while (found := frame_at(data, position)) is not None:
            first, start, position = found
            if first & 0xF == TEXT:
                self._take_text(client, data, start, position, now, compressed=bool(first & _RSV1))
            elif first & 0xF == PING:
                self._send(client, client_frame(PONG, data[start:position]))
            elif first & 0xF == CLOSE:
                raise ConnectionError(f"the server closes a connection: {data[start:position]!r}")
        client.data = data[position:]

    def _take_text(
        self, client: _Client, data: bytes, start: int, end: int, now: int, *, compressed: bool
    ) -> None:
        if client.waiting:
            # The greeting is the first message; one that builds on it can only be the answer.
            text = (inflated(data[start:end]) or self._until) if compressed else data[start:end]
            if b'"type":"error"' in text:
                raise ConnectionError(f"refused: {text[:500]!r}")
            if self._until in text:
                client.waiting = False
                self._one_done()
                return
        if (sent := SENT.search(data, start, end)) is not None:
            self._count(sent, now)

    def _count(self, sent: re.Match[bytes], now: int) -> None:
        self._delays.append(now - int(sent[1]))
        self._received += 1
        self._last = now
        if self._received == self._expected:
            self._tell_received()

    def _tell_received(self) -> None:
        if self._received == self._expected:
            self._pipe.send(self._last)


def _run(pipe: Connection) -> None:
    loop = _Loop(pipe)
    try:
        loop.run()
    except OSError as fault:
        pipe.send(fault)
    finally:
        loop.close()
