"""Connections on their way to the worker where their user is at home.

A request is looked at when its headers are there. Where its user is at home elsewhere, the connection itself
goes there with all that was received of it: the kernel passes the open socket on, and nothing is relayed. An
encrypted one cannot go, since its keys stay here; what goes in its place is one end of a pair of sockets, and
this worker goes on to encrypt what passes through the other.
"""

import asyncio
import select
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, SSLIOStream, StreamClosedError

from mcpgw.workers.handed_over import ENCODE, NO_PLACE, HandedOver

from .passing_on import PassedOn, PassingOn
from .request_tokens import ticket_of, tokens_of

HandOver = Callable[[int, bytes, int], None]
"""Gives the worker of that number what `HandedOver` says, and an open socket that it gets a copy of."""
HomeOf = Callable[[tuple[str, ...], str, str], int | None]
"""Answers which other worker a request belongs to by its tokens, its ticket and its client's address; None
where it belongs here.
"""

_CHUNK = 65536
_END_OF_HEAD = b"\r\n\r\n"
_SWITCHING = b"HTTP/1.1 101 "
_TAKING_TICKETS = frozenset({"/ws", "/api/v1/ws", "/api/v1/events", "/api/v1/sse"})
_STALLED_SECONDS = 10.0
"""How long one side may take nothing of what the other has left when it ended."""


class AdoptedStream(IOStream):
    """A connection that another worker has handed over; what that one had received of it is read first.

    Where the request was answered there already, the head of the answer is made again here, and thrown away.
    One that is refused here is a WebSocket all the same: its client is sent a close frame, and no HTTP.
    """

    def __init__(self, sock: socket.socket, told: HandedOver, *, max_buffer_size: int) -> None:
        super().__init__(sock, max_buffer_size=max_buffer_size)
        self._received = told.received
        self._head_to_skip = bytearray() if told.client_id else None
        self._is_refused = False
        self.client_id = told.client_id
        self.remote = told.remote
        self.scheme = told.scheme
        self.is_judged = False
        """Whether its first request was taken here: it is not sent on, whatever is known of its user here."""

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """See `BaseIOStream.read_from_fd`."""
        return self.read_handed_over(buf) if self._received else super().read_from_fd(buf)

    def read_handed_over(self, buf: bytearray | memoryview) -> int | None:
        """As `read_from_fd`, of what the other worker had received alone; None where that is read."""
        size = min(len(buf), len(self._received))
        buf[:size] = self._received[:size]
        self._received = self._received[size:]
        return size or None

    def write_to_fd(self, data: memoryview) -> int:
        """See `BaseIOStream.write_to_fd`."""
        size = len(data)
        if self._is_refused:
            data.release()
            return size
        if self._head_to_skip is None:
            return super().write_to_fd(data)
        self._head_to_skip += data
        data.release()
        end = self._head_to_skip.find(_END_OF_HEAD)
        if end < 0:
            return size
        behind = len(self._head_to_skip) - end - len(_END_OF_HEAD)
        if not self._head_to_skip.startswith(_SWITCHING):
            self._is_refused = True
            super().write_to_fd(memoryview(NO_PLACE))
        self._head_to_skip = None
        return size if self._is_refused else size - behind


class HomedRequests(PassingOn):
    """Hands requests on to `application` that belong here, and connections to other workers that do not.

    `home_of` says where a request belongs, `hand_over` gives a connection away.
    """

    def __init__(
        self, application: HTTPServerConnectionDelegate, home_of: HomeOf, hand_over: HandOver
    ) -> None:
        super().__init__(application)
        self._home_of = home_of
        self._hand_over = hand_over

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        inner = self._application.start_request(server_conn, request_conn)
        stream = cast("Any", request_conn).stream
        if isinstance(stream, AdoptedStream) and not stream.is_judged:
            stream.is_judged = True
            return inner
        return _HomedRequest(inner, request_conn, self._home_of, self._hand_over)


class _HomedRequest(PassedOn):
    def __init__(
        self, inner: HTTPMessageDelegate, connection: HTTPConnection, home_of: HomeOf, hand_over: HandOver
    ) -> None:
        super().__init__(inner)
        self._connection = cast("Any", connection)
        self._home_of = home_of
        self._hand_over = hand_over

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        assert isinstance(start_line, RequestStartLine), "a server receives requests"  # noqa: S101
        context = self._connection.context
        # Elsewhere a ticket is none: whoever proves nothing is not to choose who counts their requests.
        takes_ticket = start_line.method == "GET" and start_line.path.partition("?")[0] in _TAKING_TICKETS
        ticket = ticket_of(start_line.path) if takes_ticket else ""
        home = self._home_of(tuple(tokens_of(headers)), ticket, context.remote_ip)
        if home is None:
            return self._inner.headers_received(start_line, headers)
        peer = context.address[0] if context.address else context.remote_ip
        stream = self._connection.detach()
        remote = stream.remote if isinstance(stream, AdoptedStream) else peer
        rest = unread(stream)
        told = HandedOver(head_of(start_line, headers) + rest.received, remote, scheme_of(stream))
        give_away(stream, home, told, self._hand_over, rest.waiting)
        return None


def head_of(start_line: RequestStartLine, headers: HTTPHeaders) -> bytes:
    """The head of a request as it goes over the wire (RFC 9112 section 2.1), no longer than it came."""
    lines = [f"{start_line.method} {start_line.path} {start_line.version}"]
    lines += [f"{name}:{value}" for name, value in headers.get_all()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


@dataclass(frozen=True, slots=True)
class Unread:
    """What a stream has received and nobody has read; and who waits for more of it, where somebody does."""

    received: bytes
    waiting: "asyncio.Future[bytes] | None" = None


def unread(stream: IOStream) -> Unread:
    """Take all that a stream has; nobody else may read it any more.

    What still waits in its socket goes with that: a client who sends faster than this reads would else keep
    this process here, and fill its memory.
    """
    if stream.reading():
        return Unread(b"")
    source = cast("Any", stream)
    source.read_from_fd = stream.read_handed_over if isinstance(stream, AdoptedStream) else _read_nothing
    pieces: list[bytes] = []
    try:
        with suppress(StreamClosedError):
            while True:
                reading = cast("asyncio.Future[bytes]", stream.read_bytes(_CHUNK, partial=True))
                if not reading.done():
                    return Unread(b"".join(pieces), reading)
                pieces.append(reading.result())
    finally:
        del source.read_from_fd
    return Unread(b"".join(pieces))


def _read_nothing(_: bytearray | memoryview) -> None:
    """There is nothing to read for now; see `BaseIOStream.read_from_fd`."""


def scheme_of(stream: IOStream) -> str:
    """``https`` where what goes over the stream is encrypted, here or by whoever has handed it over."""
    if isinstance(stream, AdoptedStream):
        return stream.scheme
    return "https" if isinstance(stream, SSLIOStream) else "http"


def give_away(
    stream: IOStream,
    home: int,
    told: HandedOver,
    hand_over: HandOver,
    waiting: "asyncio.Future[bytes] | None" = None,
) -> None:
    """Give a connection to another worker; here it is closed, or encrypted on behalf of that one.

    `waiting` is the read that is under way, where there is one. Of a stream that is closed here it takes
    nothing.
    """
    if waiting is not None:
        waiting.add_done_callback(_look_away)
    if stream.closed():
        return
    body = ENCODE(told)
    if not isinstance(stream, SSLIOStream):
        try:
            hand_over(home, body, stream.socket.fileno())
        finally:
            stream.close()
        return
    try:
        own, its = socket.socketpair()
    except OSError:
        stream.close()
        raise
    plain = IOStream(own)
    with its:
        try:
            hand_over(home, body, its.fileno())
        except OSError:
            plain.close()
            stream.close()
            raise
    for passing in (pass_on(stream, plain, waiting), pass_on(plain, stream)):
        task = asyncio.create_task(passing, name="encryption")
        _PASSING_ON.add(task)
        task.add_done_callback(_PASSING_ON.discard)


_PASSING_ON: set[asyncio.Task[None]] = set()


async def until_passed_on() -> None:
    """Wait until nothing is encrypted on behalf of another worker any more."""
    while _PASSING_ON:
        await asyncio.wait(_PASSING_ON)


def _look_away(reading: "asyncio.Future[Any]") -> None:
    """Nobody is told that what was waited for never came."""
    if not reading.cancelled():
        reading.exception()


async def pass_on(source: IOStream, target: IOStream, waiting: "asyncio.Future[bytes] | None" = None) -> None:
    """Write what is read, no faster than it is taken, until one side ends; then the other does."""
    with suppress(StreamClosedError):
        if waiting is not None:
            await _write(target, await waiting, source)
        while True:
            await _write(target, await source.read_bytes(_CHUNK, partial=True), source)
    target.close()
    source.close()


async def _write(target: IOStream, data: bytes, source: IOStream) -> None:
    """Write, and do not wait for ever for one who takes nothing when the source has ended.

    Raises:
        StreamClosedError: the target is closed, or takes nothing, and the source has ended.
    """
    writing = target.write(data)
    while not writing.done():
        await asyncio.wait({writing}, timeout=_STALLED_SECONDS)
        if not writing.done() and _has_ended(source):
            writing.add_done_callback(_look_away)
            raise StreamClosedError
    await writing


def _has_ended(stream: IOStream) -> bool:
    """Whether the other side of a socket is gone, whatever of its bytes still waits to be read."""
    if stream.closed():
        return True
    poll = select.poll()
    poll.register(stream.socket.fileno(), 0)
    return bool(poll.poll(0))
