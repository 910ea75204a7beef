"""Calls of tools over Streamable HTTP, on kept connections, past the SDK's transport.

A call is one POST on a connection of aiohttp's pool. What most answers are is dealt with here: a result, an
error, or an event stream with one of them at its end. Whatever else comes is handed over to the SDK's
transport together with what has come of it: refusals, redirects, streams that are to be resumed. It knows
what they mean, and so they mean the same. A call is never sent twice. Source: MCP 2025-11-25 and 2026-07-28,
"Transports: Streamable HTTP".
"""

import asyncio
import io
import logging
import ssl
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Literal, Protocol

import aiohttp
import httpx2
import mcp_types as types
import msgspec
from multidict import CIMultiDict
from pydantic import ValidationError
from yarl import URL

from mcpgw.backends.event_streams import Event, EventReader, EventTooLargeError
from mcpgw.backends.failures import LocalFault, local_error
from mcpgw.backends.http_layer import HttpBackendTransport

_LOGGER = logging.getLogger("mcpgw.backend")
_JSON_TYPE: Final = "application/json"
_EVENT_TYPE: Final = "text/event-stream"
# Many servers close a connection that was idle for five seconds; a call must not meet that.
_IDLE_SECONDS: Final = 4.0
_LONGEST_HEADER: Final = 64 * 1024
_MOST_HEADERS: Final = 256
# What may stand behind the answer in an event stream, before its connection can be used again.
_REST_SECONDS: Final = 1.0
_LONGEST_REST: Final = 64 * 1024
_LONGEST_PIECE: Final = 512 * 1024
_TOO_LARGE: Final = local_error(LocalFault.TOO_LARGE, "the answer is over the limit of one message")
_FAULTS: Final = (aiohttp.ClientError, OSError, TimeoutError)
_NO_ANSWER: Final = (msgspec.MsgspecError, RecursionError, UnicodeDecodeError)
_SUCCESSES: Final = range(200, 300)
_ACCEPTED: Final = 202


class _Answer(msgspec.Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """An answer with a result, and nothing else. Its id is not looked at: its connection says whose it is."""

    jsonrpc: Literal["2.0"]
    id: int | str
    result: dict[str, Any]


_DECODE = msgspec.json.Decoder(_Answer).decode


class CallEnds(Protocol):
    """Who is told what comes of a call. Nothing here may raise."""

    def take_result(self, request_id: int, result: dict[str, Any]) -> bool:
        """The call has a result."""

    def not_sent(self, request_id: types.RequestId, error: types.ErrorData) -> None:
        """It gets no answer."""

    def receive(self, message: types.JSONRPCMessage) -> None:
        """A message has come on the call's stream, or an answer that is no plain result."""

    def admit(self, message: types.JSONRPCMessage) -> bool:
        """Whether what comes unasked is taken; answered as it must be where it is not."""

    async def has_room(self) -> None:
        """Wait while too much that has come is still being dealt with."""

    def ask_sdk(self, call: "HttpCall") -> bool:
        """Have the SDK send the call, whose POST is answered here; false where nobody waits for it."""


@dataclass(slots=True, eq=False)
class HttpCall:
    """A call on its way. What comes on its stream is dealt with in `context`."""

    id: int
    message: Mapping[str, Any] = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    context: Context = field(repr=False)
    task: asyncio.Task[None] | None = None
    is_unsent: bool = True

    def abandon(self) -> None:
        """Let its connection go, whatever the server still has to say."""
        if self.task is not None:
            self.task.cancel()


class HttpCalls:
    """The calls of one session that are open, on the connections of one pool. Belongs to one event loop.

    Times are in seconds, sizes in bytes. More than `most_connections` calls wait for a connection, in order.
    """

    def __init__(
        self,
        url: str,
        layer: HttpBackendTransport,
        ends: CallEnds,
        *,
        ssl_context: ssl.SSLContext,
        connect_timeout: float,
        read_timeout: float,
        max_message_size: int,
        most_connections: int,
    ) -> None:
        address = httpx2.URL(url).copy_with(username=None, password=None, fragment=None)
        self._address = str(address)
        self._url = URL(self._address, encoded=True)
        self._layer = layer
        self._ends = ends
        self._ssl_context = ssl_context
        # Of `connect` too: looking for the host's address is no part of `sock_connect`.
        self._timeout = aiohttp.ClientTimeout(
            total=None, connect=connect_timeout, sock_connect=connect_timeout, sock_read=read_timeout
        )
        self._max_message_size = max_message_size
        self._most_connections = most_connections
        self._session: aiohttp.ClientSession | None = None
        self._known: tuple[tuple[str, str], ...] | None = None
        self._known_headers: CIMultiDict[str] = CIMultiDict()
        self._last_own: Mapping[str, str] | None = None
        self._last_headers = self._known_headers
        self._open: dict[int, HttpCall] = {}
        self._waiting: deque[HttpCall] = deque()
        self._running: dict[asyncio.Task[Any], HttpCall] = {}
        self._lingering: dict[asyncio.Task[Any], None] = {}
        # Connections outlive the calls that open them, and would keep what is in their contexts.
        self._context = Context()
        self.is_redirected = False
        """Whether the server has ever redirected a call; the SDK knows where to."""

    def begin(self, call: HttpCall) -> None:
        """Send a call, or have it wait for a connection."""
        self._open[call.id] = call
        if len(self._running) < self._most_connections:
            self._start(call)
        else:
            self._waiting.append(call)
            if (lingering := next(iter(self._lingering), None)) is not None:
                del self._lingering[lingering]
                lingering.cancel()

    def withdraw(self, call_id: int) -> bool:
        """Give a call up; true where nothing of it was sent, so that the server need not hear of it."""
        call = self._open.get(call_id)
        if call is None:
            return False
        if call.task is None:
            self._waiting.remove(call)
            del self._open[call.id]
            return True
        if call.is_unsent:
            call.task.cancel()
        return call.is_unsent

    def abort(self, call_id: int) -> None:
        """Let the connection of a call go, which is how it is cancelled from 2026-07-28 on."""
        if (call := self._open.get(call_id)) is not None:
            call.abandon()

    async def close(self) -> None:
        """Let every connection go; no call is told."""
        self._waiting.clear()
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)
        self._open.clear()
        if self._session is not None:
            await self._session.close()

    def _start(self, call: HttpCall) -> None:
        work = self._run(call)
        call.task = asyncio.get_running_loop().create_task(work, context=self._context)
        call.task.add_done_callback(partial(self._ended, call))  # it may be cancelled before it begins
        self._running[call.task] = call
        self._layer.watch(call.id, call)

    async def _run(self, call: HttpCall) -> None:
        try:
            await self._exchange(call)
        except Exception:
            _LOGGER.exception("an answer of a server could not be dealt with")
            fault = types.ErrorData(code=types.INTERNAL_ERROR, message="the gateway has a fault")
            self._ends.not_sent(call.id, fault)

    def _ended(self, call: HttpCall, task: asyncio.Task[None]) -> None:
        self._layer.forget(call.id, call)
        self._open.pop(call.id, None)
        del self._running[task]
        self._lingering.pop(task, None)
        call.task = None  # the two would keep each other
        while self._waiting and len(self._running) < self._most_connections:
            self._start(self._waiting.popleft())

    async def _exchange(self, call: HttpCall) -> None:
        headers = self._headers_of(call)
        call.is_unsent = False  # but for as long as it waits for its connection
        try:
            response = await self._pool().post(
                self._url,
                data=_payload(msgspec.json.encode(call.message)),
                headers=headers,
                allow_redirects=False,
            )
        except _FAULTS as error:
            self._fail(call, error)
            return
        is_handed_over = False
        try:
            is_handed_over = await self._take(call, response)
        except _FAULTS as error:
            self._fail(call, error)
        finally:
            if not is_handed_over:
                response.close()  # nothing happens to a connection whose answer was read to its end

    def _headers_of(self, call: HttpCall) -> CIMultiDict[str]:
        """The headers that the SDK's client would give a call; they may be those of the call before."""
        if (known := self._layer.list_headers) is not self._known:
            self._known, self._known_headers, self._last_own = known, CIMultiDict(known or ()), None
        if call.headers is not self._last_own:
            self._last_own, self._last_headers = call.headers, self._known_headers.copy()
            self._last_headers.update(call.headers)
        if not self._layer.has_cookies:
            return self._last_headers
        headers = self._last_headers.copy()
        self._layer.add_cookies(headers, self._address)
        return headers

    def _pool(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=_Connector(
                    self._running,
                    self._most_connections,
                    limit=0,
                    ssl=self._ssl_context,
                    keepalive_timeout=_IDLE_SECONDS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                timeout=self._timeout,
                max_line_size=_LONGEST_HEADER,
                max_field_size=_LONGEST_HEADER,
                max_headers=_MOST_HEADERS,
            )
        return self._session

    def _fail(self, call: HttpCall, error: Exception) -> None:
        """End a call that has met a fault of the network."""
        fault: httpx2.TransportError
        reason = type(error).__name__
        match error:
            case aiohttp.ClientConnectorCertificateError():
                fault = httpx2.ConnectError(str(error.certificate_error))
            case aiohttp.ClientConnectorError():
                fault = httpx2.ConnectError(str(error.os_error))
                fault.__cause__ = error.os_error
            case aiohttp.ConnectionTimeoutError():
                fault = httpx2.ConnectTimeout(reason)
            case TimeoutError():
                fault = httpx2.ReadTimeout(reason)
            case _:
                fault = httpx2.ReadError(reason)
        self._ends.not_sent(call.id, self._layer.fault(fault))

    # --- answers -------------------------------------------------------------------------------------------

    async def _take(self, call: HttpCall, response: aiohttp.ClientResponse) -> bool:
        """Deal with an answer; true where it was handed over."""
        headers = response.headers
        if "set-cookie" in headers:
            self._layer.keep_cookies(response.raw_headers, self._address)
        is_plain = headers.get("content-encoding", "identity").lower() == "identity"
        if is_plain and response.status in _SUCCESSES and response.status != _ACCEPTED:
            content_type = headers.get("content-type", "").lower()
            if content_type.startswith(_JSON_TYPE):
                return await self._take_json(call, response)
            if content_type.startswith(_EVENT_TYPE):
                return await self._follow(call, response)
        if "location" in headers:
            self.is_redirected = True
        return self._hand_over(call, response, b"", response.content)

    async def _take_json(self, call: HttpCall, response: aiohttp.ClientResponse) -> bool:
        content = response.content
        body = b""
        if (response.content_length or 0) <= self._max_message_size:
            body = await content.readany()
            if not content.at_eof():
                pieces, size = [body], len(body)
                while not content.at_eof() and size <= self._max_message_size:
                    pieces.append(await content.readany())
                    size += len(pieces[-1])
                body = b"".join(pieces)
        if not content.at_eof() or len(body) > self._max_message_size:
            self._ends.not_sent(call.id, _TOO_LARGE)
            return False
        with suppress(*_NO_ANSWER):
            self._ends.take_result(call.id, _DECODE(body).result)
            return False
        message = None
        with suppress(ValueError):
            message = types.jsonrpc_message_adapter.validate_json(body, by_name=False)
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._end_with(call, message)
            return False
        return self._hand_over(call, response, body, None)

    def _end_with(self, call: HttpCall, message: types.JSONRPCResponse | types.JSONRPCError) -> None:
        message.id = call.id  # another id would end another caller's request
        self._ends.receive(message)

    async def _follow(self, call: HttpCall, response: aiohttp.ClientResponse) -> bool:
        """Read an event stream to the answer; true where there was none, and it was handed over."""
        events = EventReader(self._max_message_size)
        with suppress(*_FAULTS):  # broken off: it may be resumed
            while chunk := await response.content.readany():
                try:
                    found = events.feed(chunk)
                except EventTooLargeError:
                    self._ends.not_sent(call.id, _TOO_LARGE)
                    return False
                for event in found:
                    if event.type == b"message" and event.data and self._take_event(call, event):
                        await self._read_rest(response.content)
                        return False
                await self._ends.has_room()
        # The SDK resumes the stream, or knows that it cannot be.
        last = f"id: {events.last_id}\n" if events.last_id else ""
        retry = "" if events.retry is None else f"retry: {events.retry}\n"
        return self._hand_over(call, response, f"{last}{retry}data:\n\n".encode() if last else b"", None)

    def _take_event(self, call: HttpCall, event: Event) -> bool:
        """Deal with an event; true where it was the answer."""
        with suppress(*_NO_ANSWER):
            self._ends.take_result(call.id, _DECODE(event.data).result)
            return True
        text = event.data.decode(errors="replace")
        try:
            message = types.jsonrpc_message_adapter.validate_json(text, by_name=False)
        except ValidationError as fault:
            words = f"Failed to parse SSE message: {fault}"
            self._ends.not_sent(call.id, types.ErrorData(code=types.PARSE_ERROR, message=words))
            return True
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            self._end_with(call, message)
            return True
        if self._ends.admit(message):
            call.context.run(self._ends.receive, message)
        return False

    async def _read_rest(self, content: aiohttp.StreamReader) -> None:
        """Read what is behind the answer, if it ends soon: the connection can then be used again."""
        task = asyncio.current_task()
        if content.at_eof() or self._waiting or task is None:
            return
        size = 0
        self._lingering[task] = None  # its connection is the first that another call can have
        with suppress(*_FAULTS):
            async with asyncio.timeout(_REST_SECONDS):
                while not content.at_eof() and size <= _LONGEST_REST:
                    size += len(await content.readany())

    def _hand_over(
        self,
        call: HttpCall,
        response: aiohttp.ClientResponse,
        read: bytes,
        rest: aiohttp.StreamReader | None,
    ) -> bool:
        """Have the SDK deal with an answer of which `read` was read already; its `rest` may follow."""
        if not self._ends.ask_sdk(call):
            return False
        body = _Body(response, read, rest)
        headers = [
            (name, value)
            for name, value in response.raw_headers
            if name.lower() not in (b"content-length", b"transfer-encoding")
        ]
        self._layer.hand_over(call.id, httpx2.Response(response.status, headers=headers, stream=body))
        return True


class _Body(httpx2.AsyncByteStream):
    """The body of an answer, for the SDK."""

    def __init__(
        self, response: aiohttp.ClientResponse, read: bytes, rest: aiohttp.StreamReader | None
    ) -> None:
        self._response = response
        self._read = read
        self._rest = rest

    async def __aiter__(self) -> AsyncIterator[bytes]:
        if self._read:
            yield self._read
        try:
            while self._rest is not None and (chunk := await self._rest.readany()):
                yield chunk
        except _FAULTS as error:
            raise httpx2.ReadError(type(error).__name__) from None

    async def aclose(self) -> None:
        self._response.close()


class _Connector(aiohttp.TCPConnector):
    """Connections of one pool; it is known which calls still wait for theirs."""

    def __init__(
        self, calls: Mapping[asyncio.Task[Any], HttpCall], most_connections: int, **options: Any
    ) -> None:
        super().__init__(**options)
        self._calls = calls
        self._most_connections = most_connections

    async def connect(self, *given: Any, **named: Any) -> Any:
        """See `aiohttp.BaseConnector.connect`; runs in the task of a call."""
        task = asyncio.current_task()
        call = None if task is None else self._calls.get(task)
        if call is None:
            return await self._connect_clean(*given, **named)
        call.is_unsent = True
        try:
            return await self._connect_clean(*given, **named)
        finally:
            call.is_unsent = False

    async def _connect_clean(self, *given: Any, **named: Any) -> Any:
        """A connection on which nothing has come that would be taken for the answer to the next call."""
        for _ in range(self._most_connections + 1):
            connection = await super().connect(*given, **named)
            if connection.protocol is not None and not connection.protocol.should_close:
                return connection
            connection.close()
        raise aiohttp.ServerDisconnectedError


def _payload(body: bytes) -> aiohttp.BytesPayload | io.BytesIO:
    """`body` for aiohttp, which warns of a long one unless it can write it in pieces."""
    return aiohttp.BytesPayload(body) if len(body) <= _LONGEST_PIECE else io.BytesIO(body)
