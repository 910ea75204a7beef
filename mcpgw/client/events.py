"""The gateway's stream of events, as Server-Sent Events (WHATWG HTML, section 9.2)."""

import asyncio
import codecs
import ssl
import sys
from collections.abc import AsyncGenerator, Awaitable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

from tornado.http1connection import HTTP1Connection, HTTP1ConnectionParameters
from tornado.httputil import (
    HTTPHeaders,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.iostream import IOStream, StreamClosedError
from tornado.tcpclient import TCPClient

from mcpgw.client.address import GatewayAddress, authorization
from mcpgw.client.errors import ConnectionLost, NotAGateway, NotReachable
from mcpgw.client.rest import error_from_response, reason_of
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

_LARGEST_EVENT: Final = 16 * 1024 * 1024
_LARGEST_ERROR: Final = 64 * 1024


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its `type`, such as ``heartbeat``, and all of its JSON in `data`.

    `id` is the position in the stream; give it as `last_event_id` to go on from there. `retry` is how many
    seconds the gateway wants one to wait before coming back, where it has said so.
    """

    type: str
    id: str
    data: dict[str, Any]
    retry: float | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One event of the stream, before its data is read; `id` is the last that was seen, empty for none."""

    event: str
    data: str
    id: str


class EventParser:
    """Takes bytes cut anywhere and gives whole messages.

    `retry` is the reconnection time in seconds, once the stream has named one. The rules are those of
    "Parsing an event stream" and "Interpreting an event stream" (WHATWG HTML, sections 9.2.5 and 9.2.6).
    """

    def __init__(self, last_event_id: str = "", *, limit: int = _LARGEST_EVENT) -> None:
        self.retry: float | None = None
        self._id = last_event_id
        self._limit = limit
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._at_start = True
        self._after_return = False
        self._rest: list[str] = []
        self._rest_size = 0
        self._data: list[str] = []
        self._event = ""
        self._size = 0

    def feed(self, chunk: bytes) -> list[Message]:
        """The messages that are whole with `chunk`.

        Raises:
            ValueError: one message is larger than the limit, in characters.
        """
        text = self._decoder.decode(chunk)
        if not text:
            return []
        if self._at_start:
            self._at_start = False
            text = text.removeprefix("\ufeff")
        if self._after_return:  # a CRLF that was cut in two
            text = text.removeprefix("\n")
        self._after_return = text.endswith("\r")
        *lines, rest = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
        messages = []
        for end in lines:
            line = "".join((*self._rest, end))
            self._rest, self._rest_size = [], 0
            if (message := self._take(line)) is not None:
                messages.append(message)
        if rest:
            self._rest.append(rest)
            self._rest_size += len(rest)
        if self._size + self._rest_size > self._limit:
            raise ValueError(f"an event is larger than {self._limit} characters")
        return messages

    def _take(self, line: str) -> Message | None:
        if not line:
            return self._dispatch()
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "data":
                self._data.append(value)
                self._size += len(value) + 1
            case "event":
                self._event = value
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isascii() and value.isdigit():
                self.retry = int(value[:18]) / 1000
        return None

    def _dispatch(self) -> Message | None:
        data, event = self._data, self._event
        self._data, self._event, self._size = [], "", 0
        return Message(event or "message", "\n".join(data), self._id) if data else None


async def events(
    url: str,
    token: str | None,
    *,
    last_event_id: str | None = None,
    connect_timeout: float = 10.0,
    channels: tuple[str, ...] = (),
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[Event, None]:
    """Follow the gateway's events for as long as it sends them; there is no limit of time.

    `last_event_id` goes on after that event, `channels` chooses among those the caller may read.
    `connect_timeout` is in seconds; `tls` says whose certificates are believed, see `trusting`. The stream is
    read no faster than the events are taken. End it by leaving the loop and closing the iterator
    (``contextlib.aclosing``).

    Raises:
        NotReachable: no gateway answers.
        Refused: the credentials do not hold, or do not allow it.
        ConnectionLost: the stream ended.
        ValueError: `url`, `token` or `last_event_id` cannot be used.
    """
    address = GatewayAddress.parse(url)
    headers = HTTPHeaders({"Accept": "text/event-stream", "Cache-Control": "no-store"})
    headers.update(authorization(token))
    if last_event_id is not None:
        if not last_event_id.isascii() or not last_event_id.isprintable():
            raise ValueError("the id of an event holds letters, digits and '-' alone")
        headers["Last-Event-ID"] = last_event_id
    target = address.endpoint("/api/v1/events")
    if channels:
        target += "?" + urlencode({"channels": ",".join(channels)})
    response = _Response()
    parser = EventParser(last_event_id or "")
    try:
        async with asyncio.timeout(connect_timeout):
            stream = await _open(address, tls)
            reading = _request(stream, target, headers, response)
            try:
                status, content_type = await response.head
            except BaseException:
                await response.end(stream, reading)
                raise
    except TimeoutError:
        raise NotReachable(address.base, f"nothing came within {connect_timeout:g} s") from None
    except StreamClosedError as error:
        raise NotReachable(address.base, reason_of(error)) from None
    try:
        if status != 200:  # noqa: PLR2004
            body = await _read_error(response, connect_timeout)
            raise error_from_response(address, status, body)
        if content_type.partition(";")[0].strip().lower() != "text/event-stream":
            raise NotAGateway(address.base, "it does not send events")
        while (chunk := await response.chunks.get()) is not None:
            for message in _messages(parser, chunk):
                yield _event(message, parser.retry, address)
        raise ConnectionLost("the gateway ended the stream of events")
    finally:
        await response.end(stream, reading)


async def _open(address: GatewayAddress, tls: ssl.SSLContext | None) -> IOStream:
    context = (tls or ssl.create_default_context()) if address.is_encrypted else None
    client = TCPClient()
    try:
        return await client.connect(address.host, address.port, ssl_options=context)
    except (OSError, StreamClosedError) as error:
        real = getattr(error, "real_error", None)
        raise NotReachable(address.base, reason_of(real or error)) from None
    finally:
        client.close()


def _request(
    stream: IOStream, target: str, headers: HTTPHeaders, response: "_Response"
) -> "asyncio.Future[bool]":
    """Send the request and begin to read; Tornado's own connection, since its client cannot end a stream."""
    parts = urlsplit(target)
    headers["Host"] = parts.netloc
    path = parts.path + (f"?{parts.query}" if parts.query else "")
    connection = HTTP1Connection(stream, True, HTTP1ConnectionParameters(max_body_size=sys.maxsize))
    sent = connection.write_headers(RequestStartLine("GET", path, "HTTP/1.1"), headers)
    sent.add_done_callback(_forget_closed)
    connection.finish()
    return asyncio.ensure_future(response.read(connection))


class _Response(HTTPMessageDelegate):
    """The answer as it comes: `head` is its status and content type, `chunks` its body and then None."""

    def __init__(self) -> None:
        self.head: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self.chunks: asyncio.Queue[bytes | None] = asyncio.Queue(1)
        self._over = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> None:
        if isinstance(start_line, ResponseStartLine) and not self.head.done():
            self.head.set_result((start_line.code, headers.get("Content-Type", "")))

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        # Tornado reads on when this is done: a slow reader slows the gateway down, and no memory grows.
        return None if self._over else self.chunks.put(chunk)

    async def read(self, connection: HTTP1Connection) -> bool:
        """Read until the connection ends, whatever the way."""
        try:
            with suppress(StreamClosedError):
                return await connection.read_response(self)
            return False
        finally:
            if not self.head.done():
                self.head.set_exception(StreamClosedError())
            if not self._over:
                await self.chunks.put(None)

    async def end(self, stream: IOStream, reading: "asyncio.Future[bool]") -> None:
        """Close the connection and wait until nothing reads any more."""
        self._over = True
        while not self.chunks.empty():
            self.chunks.get_nowait()
        stream.close()
        await asyncio.wait({reading})
        if self.head.done() and not self.head.cancelled():
            self.head.exception()
        reading.result()


async def _read_error(response: _Response, limit: float) -> bytes:
    body = b""
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            while len(body) < _LARGEST_ERROR and (chunk := await response.chunks.get()) is not None:
                body += chunk
    return body


def _messages(parser: EventParser, chunk: bytes) -> list[Message]:
    try:
        return parser.feed(chunk)
    except ValueError as error:
        raise ConnectionLost(f"the stream was left: {error}", temporary=False) from None


def _event(message: Message, retry: float | None, address: GatewayAddress) -> Event:
    try:
        data = strict_json.loads(message.data)
    except ParseError:
        data = None
    if not isinstance(data, dict) or not isinstance(data.get("type"), str):
        raise NotAGateway(address.base, "it sent an event that is none")
    return Event(type=data["type"], id=message.id, data=data, retry=retry)


def _forget_closed(written: "asyncio.Future[Any]") -> None:
    if not written.cancelled() and not isinstance(written.exception(), StreamClosedError | None):
        written.result()
