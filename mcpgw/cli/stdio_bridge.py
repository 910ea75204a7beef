"""MCP messages from stdin to a gateway's ``/mcp``, and back to stdout.

Messages go through as they are, in both protocol eras. What differs between the two transports is put right:
the HTTP headers that repeat parts of a message (MCP 2026-07-28, "Streamable HTTP"), and the session, which is
begun again where the gateway no longer knows it, as it is after a restart. A request that has not reached the
gateway is sent again; one that may have is not.
"""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import anyio
import httpx2
import mcp_types as types
from mcp.client.streamable_http import streamable_http_client
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    NAME_BEARING_METHODS,
    encode_header_value,
    mcp_param_headers,
    x_mcp_header_map,
)
from mcp.shared.message import ClientMessageMetadata, SessionMessage

from mcpgw.backends.failures import LocalFault, is_never_sent
from mcpgw.backends.http_layer import HttpBackendTransport
from mcpgw.cli.connection import Connection
from mcpgw.cli.output import NoGatewayFault, UsageFault, tell
from mcpgw.client import NotReachable
from mcpgw.errors import ConfigError

Finder = Callable[[], Connection]
"""Finds the gateway, with a token that holds."""

_CONNECT_SECONDS = 10.0
_LONGEST_CALL_SECONDS = 86_400.0
_LARGEST_MESSAGE = 64 * 1024 * 1024
_TOKEN_SECONDS = 120.0
_PATIENCE_SECONDS = 30.0
"""How long a message waits for a gateway that is gone."""
_LAST_SECONDS = 10.0
"""How long answers are waited for once the client has closed its side."""
_MOST_QUEUED = 1000
"""Messages that wait for the gateway before no more are read."""
_ENDLESS: Final = frozenset({"subscriptions/listen"})
"""Requests that are answered when the client has had enough, and so are no reason to stay."""
_PAUSES = (0.1, 0.25, 0.5, 1.0)
_FAULTS = (ConfigError, NoGatewayFault, NotReachable, UsageFault)
"""Why no gateway or no token was found."""
_OWN_ID: Final = "mcpgw-stdio-"


class _Credentials(httpx2.Auth):
    """Shows a token that is found anew before its time is over."""

    def __init__(self, find: Finder) -> None:
        self._find = find
        self._found: Connection | None = None
        self._until = 0.0

    def auth_flow(self, request: httpx2.Request) -> Generator[httpx2.Request, httpx2.Response, None]:
        """Add the header."""
        now = time.monotonic()
        if now > self._until:
            try:
                self._found, self._until = self._find(), now + _TOKEN_SECONDS
            except (
                _FAULTS
            ) as fault:  # the old one may hold for a while; else the gateway says that there is none
                tell(str(fault))
        if self._found is not None:
            request.headers["Authorization"] = f"Bearer {self._found.token}"
        yield request


@dataclass(slots=True)
class _Sent:
    """A request that waits for its answer: since when, over which link, how often it was sent.

    `is_queued` while it is to be sent again.
    """

    message: types.JSONRPCRequest
    since: float
    link: int = 0
    tries: int = 0
    is_queued: bool = False
    is_relisted: bool = False


class Bridge:
    """Between a client, which reads what `to_client` writes, and the gateway that `find` finds."""

    def __init__(self, find: Finder, server: str | None, to_client: Any) -> None:
        self._find = find
        self._path = "/mcp" if server is None else f"/mcp/{server}"
        self._to_client = to_client
        self._waiting: dict[types.RequestId, _Sent] = {}
        self._own: dict[types.RequestId, asyncio.Future[types.JSONRPCMessage]] = {}
        self._initialize: types.JSONRPCRequest | None = None
        self._is_initialized = False
        self._version: str | None = None
        self._parameters: dict[str, Mapping[tuple[str, ...], str]] = {}
        self._outgoing: asyncio.Queue[tuple[types.JSONRPCMessage, float]] = asyncio.Queue(_MOST_QUEUED)
        self._ending = 0
        self._is_quiet = asyncio.Event()
        self._write: Any = None
        self._link = 0
        self._url = ""
        self._tls: ssl.SSLContext | None = None
        self._ready = asyncio.Event()
        self._relink = asyncio.Event()
        self._made = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, from_client: Any) -> None:
        """Hand on messages until the client closes its side, and what is asked then is answered."""
        links = asyncio.create_task(self._hold_links())
        sending = asyncio.create_task(self._send_queued())
        reading = asyncio.create_task(self._read_client(from_client))
        own = {links, sending, reading}
        try:
            await asyncio.wait(own, return_when=asyncio.FIRST_COMPLETED)
            if reading.done():
                reading.result()
                own.add(asyncio.create_task(self._wait_until_quiet()))
                await asyncio.wait(own - {reading}, return_when=asyncio.FIRST_COMPLETED)
            for task in (links, sending):
                if task.done():
                    task.result()
        finally:
            for task in (*own, *self._tasks):
                task.cancel()
            await asyncio.wait(own)

    async def _wait_until_quiet(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SECONDS):
                while self._ending or any(
                    sent.message.method not in _ENDLESS for sent in self._waiting.values()
                ):
                    self._is_quiet.clear()
                    await self._is_quiet.wait()

    # --- from the client -----------------------------------------------------------------------------------

    async def _read_client(self, from_client: Any) -> None:
        async with from_client:
            async for item in from_client:
                if isinstance(item, Exception):
                    error = types.ErrorData(
                        code=types.PARSE_ERROR, message="this line is no JSON-RPC message"
                    )
                    await self._answer(types.JSONRPCError(jsonrpc="2.0", id=None, error=error))
                    continue
                await self._take(item.message)

    async def _take(self, message: types.JSONRPCMessage) -> None:
        if isinstance(message, types.JSONRPCRequest):
            self._waiting[message.id] = _Sent(message, time.monotonic())
            if message.method == "initialize":
                self._initialize, self._is_initialized, self._version = message, False, None
        elif isinstance(message, types.JSONRPCNotification):
            if message.method == "notifications/initialized":
                self._is_initialized = True
            elif message.method == "notifications/cancelled":
                self._waiting.pop((message.params or {}).get("requestId", ""), None)
                self._is_quiet.set()
        await self._outgoing.put((message, time.monotonic()))

    async def _send_queued(self) -> None:
        """Send what the client said, in its order; what it has cancelled meanwhile is not sent."""
        while True:
            message, since = await self._outgoing.get()
            if not isinstance(message, types.JSONRPCRequest) or message.id in self._waiting:
                await self._send(message, since)

    async def _send(self, message: types.JSONRPCMessage, since: float) -> None:
        """Send a message, once there is a gateway; given up where there was none for too long since then."""
        try:
            async with asyncio.timeout(max(0.0, since + _PATIENCE_SECONDS - time.monotonic())):
                await self._ready.wait()
        except TimeoutError:
            if isinstance(message, types.JSONRPCRequest) and message.id in self._waiting:
                error = types.ErrorData(code=types.CONNECTION_CLOSED, message=_NOT_SENT)
                await self._end(message.id, types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error))
            return
        if isinstance(message, types.JSONRPCRequest) and (sent := self._waiting.get(message.id)) is not None:
            sent.link, sent.is_queued = self._link, False
            sent.tries += 1
        headers = self._headers(message)
        metadata = ClientMessageMetadata(headers=headers) if headers else None
        try:
            await self._write.send(SessionMessage(message, metadata=metadata))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError):
            if isinstance(message, types.JSONRPCRequest) and (sent := self._waiting.get(message.id)):
                self._queue(sent)

    def _headers(self, message: types.JSONRPCMessage) -> dict[str, str]:
        """The headers that go with a message: its revision, and from 2026-07-28 on what it is about."""
        if not isinstance(message, types.JSONRPCRequest | types.JSONRPCNotification):
            return {}
        params = message.params or {}
        version = (params.get("_meta") or {}).get(types.PROTOCOL_VERSION_META_KEY)
        if not isinstance(version, str):
            return {} if self._version is None else {MCP_PROTOCOL_VERSION_HEADER: self._version}
        headers = {MCP_PROTOCOL_VERSION_HEADER: version, MCP_METHOD_HEADER: message.method}
        name = params.get(NAME_BEARING_METHODS.get(message.method, ""))
        if isinstance(name, str):
            headers[MCP_NAME_HEADER] = encode_header_value(name)
            if message.method == "tools/call" and name in self._parameters:
                headers |= mcp_param_headers(self._parameters[name], params.get("arguments") or {})
        return headers

    # --- from the gateway ----------------------------------------------------------------------------------

    async def _read_gateway(self, read: Any) -> None:
        async for item in read:
            if isinstance(item, SessionMessage):
                await self._pass_on(item.message)

    async def _pass_on(self, message: types.JSONRPCMessage) -> None:
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError) and message.id is not None:
            if (own := self._own.get(message.id)) is not None:
                if not own.done():
                    own.set_result(message)
                return
            sent = self._waiting.get(message.id)
            if sent is None:
                return
            if isinstance(message, types.JSONRPCError):
                if self._is_sent_again(sent, message.error):
                    return
                message = types.JSONRPCError(jsonrpc="2.0", id=message.id, error=_own_words(message.error))
            else:
                self._note(sent.message, message.result)
            await self._end(sent.message.id, message)
            return
        await self._answer(message)

    async def _end(self, request_id: types.RequestId, message: types.JSONRPCMessage) -> None:
        """Give a request its end."""
        self._waiting.pop(request_id, None)
        self._ending += 1
        try:
            await self._answer(message)
        finally:
            self._ending -= 1
            self._is_quiet.set()

    def _is_sent_again(self, sent: _Sent, error: types.ErrorData) -> bool:
        """Whether a request that has failed gets another try; it is then queued."""
        if error.code == types.HEADER_MISMATCH and not sent.is_relisted:
            sent.is_relisted = True
            self._in_background(self._list_and_send(sent.message))
            return True
        if not is_never_sent(MCPError.from_error_data(error)):
            return False
        if time.monotonic() - sent.since > _PATIENCE_SECONDS:
            return False
        if error.code == LocalFault.SESSION_LOST and sent.link == self._link:
            self._end_link()
        self._queue(sent)
        return True

    def _queue(self, sent: _Sent) -> None:
        sent.is_queued = True
        self._in_background(self._send_later(sent))

    async def _send_later(self, sent: _Sent) -> None:
        await asyncio.sleep(_PAUSES[min(sent.tries, len(_PAUSES)) - 1])
        with suppress(*_FAULTS):
            if self._find().url != self._url and sent.link == self._link:
                self._end_link()  # it runs again, somewhere else
        await self._send(sent.message, sent.since)

    def _end_link(self) -> None:
        self._ready.clear()
        self._relink.set()

    async def _list_and_send(self, message: types.JSONRPCRequest) -> None:
        """Learn which arguments are headers, as the specification has it for a client that did not know."""
        meta = {"_meta": (message.params or {}).get("_meta") or {}}
        listed = await self._ask("tools/list", meta)
        if isinstance(listed, types.JSONRPCResponse):
            self._note_tools(listed.result)
        await self._send(message, time.monotonic())

    def _note(self, request: types.JSONRPCRequest, result: Mapping[str, Any]) -> None:
        if request.method == "initialize":
            self._version = result.get("protocolVersion")
        elif request.method == "tools/list":
            self._note_tools(result)

    def _note_tools(self, result: Mapping[str, Any]) -> None:
        for tool in result.get("tools") or ():
            if isinstance(tool, dict) and (mapped := x_mcp_header_map(tool.get("inputSchema"))):
                self._parameters[str(tool.get("name"))] = mapped

    async def _answer(self, message: types.JSONRPCMessage) -> None:
        await self._to_client.send(SessionMessage(message))

    # --- links ---------------------------------------------------------------------------------------------

    async def _hold_links(self) -> None:
        """One link to the gateway after another."""
        while True:
            self._relink.clear()
            try:
                found = self._find()
                self._url, self._tls = found.url, found.tls
            except _FAULTS as fault:
                tell(str(fault))
                await asyncio.sleep(_PAUSES[-1])
                continue
            async with self._linked() as (read, write):
                self._link += 1
                self._write = write
                reading = asyncio.create_task(self._read_gateway(read))
                try:
                    if await self._begin_again():
                        self._ready.set()
                        await self._relink.wait()
                    else:
                        await asyncio.sleep(_PAUSES[-1])
                finally:
                    reading.cancel()
            await self._give_up_lost()

    @asynccontextmanager
    async def _linked(self) -> AsyncIterator[tuple[Any, Any]]:
        transport = HttpBackendTransport(_LARGEST_MESSAGE, lambda _reason: None, tls=self._tls)
        timeout = httpx2.Timeout(_CONNECT_SECONDS, read=_LONGEST_CALL_SECONDS)
        credentials = _Credentials(self._find)
        async with (
            httpx2.AsyncClient(transport=transport, timeout=timeout, auth=credentials) as client,
            streamable_http_client(
                self._url + self._path, http_client=client, max_sse_event_size=_LARGEST_MESSAGE
            ) as streams,
        ):
            yield streams

    async def _begin_again(self) -> bool:
        """Begin a session in the place of the one that is lost; false where that did not work."""
        if self._initialize is None or not self._is_initialized:
            return True
        self._version = None
        answer = await self._ask("initialize", self._initialize.params, is_ready=True)
        if not isinstance(answer, types.JSONRPCResponse):
            return False
        self._version = answer.result.get("protocolVersion")
        note = types.JSONRPCNotification(jsonrpc="2.0", method="notifications/initialized")
        headers = self._headers(note)
        await self._write.send(SessionMessage(note, metadata=ClientMessageMetadata(headers=headers)))
        for what in ("tools", "prompts", "resources"):
            changed = types.JSONRPCNotification(jsonrpc="2.0", method=f"notifications/{what}/list_changed")
            await self._answer(changed)
        return True

    async def _ask(
        self, method: str, params: dict[str, Any] | None, *, is_ready: bool = False
    ) -> types.JSONRPCMessage | None:
        """A request of the bridge's own; None where no answer came in time."""
        self._made += 1
        request_id = f"{_OWN_ID}{self._made}"
        own = self._own[request_id] = asyncio.get_running_loop().create_future()
        request = types.JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, params=params)
        try:
            if is_ready:
                headers = self._headers(request)
                await self._write.send(SessionMessage(request, ClientMessageMetadata(headers=headers)))
            else:
                await self._send(request, time.monotonic())
            async with asyncio.timeout(_CONNECT_SECONDS):
                answer: types.JSONRPCMessage = await own
                return answer
        except TimeoutError:
            return None
        finally:
            del self._own[request_id]

    async def _give_up_lost(self) -> None:
        """Answer what was sent over the link that is gone, and may have been carried out."""
        for request_id, sent in list(self._waiting.items()):
            if sent.link == self._link and not sent.is_queued:
                error = types.ErrorData(code=types.CONNECTION_CLOSED, message=_MAY_HAVE_RUN)
                await self._end(request_id, types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error))

    def _in_background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


_NOT_SENT = "the gateway does not answer; the request was not sent"
_MAY_HAVE_RUN = "the gateway went away before it answered; the request may have been carried out"


def _own_words(error: types.ErrorData) -> types.ErrorData:
    """An error that was made on this side has a mark that is nobody else's business."""
    if isinstance(error.data, str) and error.code in set(LocalFault):
        return types.ErrorData(code=types.CONNECTION_CLOSED, message=error.message)
    return error


async def run(find: Finder, server: str | None) -> None:
    """Serve stdin and stdout until stdin is closed."""
    async with stdio_server() as (read, write), write:
        await Bridge(find, server, write).run(read)
