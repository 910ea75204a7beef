"""The Streamable HTTP transport with calls of tools past it.

The SDK's transport stays in charge of all else: the handshake, the stream of what comes unasked, sessions,
cancellation, streams that are resumed. A `DirectDispatcher` takes the place of the SDK's, so that calls and
all other requests have ids of one series; `mcpgw.backends.http_calls` sends the calls.
"""

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from contextvars import copy_context
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

import anyio
import mcp_types as types
from mcp.shared.dispatcher import CallOptions
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    encode_header_value,
    mcp_param_headers,
    x_mcp_header_map,
)
from mcp.shared.message import ClientMessageMetadata, SessionMessage

from mcpgw.backends.direct_dispatcher import DirectCall, DirectDispatcher
from mcpgw.backends.http import HttpTransport, WatchedReadStream, refusal_of
from mcpgw.backends.tap import Tap

if TYPE_CHECKING:
    from mcpgw.backends.http_calls import HttpCall, HttpCalls

_MOST_HANDLED: Final = 256
_METHOD: Final = "tools/call"
_CLOSED: Final = types.ErrorData(code=types.CONNECTION_CLOSED, message="Connection closed")


class DirectHttp:
    """Enters a transport to a server and gives the dispatcher over it, for the SDK's session."""

    def __init__(self, transport: HttpTransport, tap: Tap) -> None:
        self._transport = transport
        self._pump: asyncio.Task[None] | None = None
        self.dispatcher = HttpDispatcher(transport, tap)

    async def __aenter__(self) -> DirectDispatcher:
        read, write = await self._transport.__aenter__()
        self.dispatcher.use(write)
        self._pump = asyncio.create_task(self._read_all(read))
        return self.dispatcher

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._pump is not None, "it is left after it was entered"  # noqa: S101
        self.dispatcher.close()
        self._pump.cancel()
        try:
            with anyio.CancelScope(shield=True):  # the SDK's transport cancels who leaves it after a fault
                await asyncio.wait({self._pump})
                await self.dispatcher.end()
        finally:
            result = await self._transport.__aexit__(exc_type, exc_value, traceback)
        return result

    async def _read_all(self, read: WatchedReadStream) -> None:
        """Give the dispatcher what comes through the SDK's transport."""
        try:
            with suppress(anyio.ClosedResourceError):
                async for item in read:
                    if isinstance(item, SessionMessage):
                        # Its context is that of the request which it belongs to.
                        context = read.last_context or copy_context()
                        context.run(self.dispatcher.receive, item.message)
                        await self.dispatcher.has_room()
        finally:
            self.dispatcher.close()


class HttpDispatcher(DirectDispatcher):
    """The requests of one session over HTTP. Belongs to one event loop."""

    def __init__(self, transport: HttpTransport, tap: Tap) -> None:
        super().__init__(tap, self._on_one_handled)
        self._transport = transport
        self._calls: HttpCalls | None = None
        self._sdk: Any = None
        self._sending: set[asyncio.Task[None]] = set()
        self._list_headers: dict[str, str] = {}
        self._headers: dict[str | None, dict[str, str]] = {}
        self._parameters: dict[str, dict[tuple[str, ...], str]] = {}
        self._room = asyncio.Event()
        self._room.set()

    def use(self, sdk: Any) -> None:
        """Name the stream on which the SDK's transport takes messages."""
        # Not before a server is spoken to over HTTP: a gateway without one is smaller and starts sooner.
        from mcpgw.backends.http_calls import HttpCalls  # noqa: PLC0415

        self._sdk = sdk
        transport = self._transport
        self._calls = HttpCalls(
            transport.url,
            transport.layer,
            self,
            ssl_context=transport.ssl_context,
            connect_timeout=transport.connect_timeout,
            read_timeout=transport.read_timeout,
            max_message_size=transport.max_message_size,
            most_connections=transport.most_connections,
        )

    async def end(self) -> None:
        """Let go what is on its way, and every connection."""
        for task in self._sending:
            task.cancel()
        if self._sending:
            await asyncio.wait(self._sending)
        if self._calls is not None:
            await self._calls.close()

    # --- calls ---------------------------------------------------------------------------------------------

    @property
    def takes_calls(self) -> bool:
        """Whether it is known what the SDK says in the headers of each request; and nothing is redirected."""
        calls = self._calls
        return (
            calls is not None
            and not calls.is_redirected
            and super().takes_calls
            and self._transport.layer.list_headers is not None
        )

    def tools_listed(self, tools: Iterable[types.Tool]) -> None:
        """Keep which arguments stand in headers too (MCP 2026-07-28, "Custom headers")."""
        if not self._is_modern:
            return
        for tool in tools:
            if parameters := x_mcp_header_map(tool.input_schema):
                self._parameters[tool.name] = parameters
            else:
                self._parameters.pop(tool.name, None)

    def cancel(self, call: DirectCall) -> None:
        """Wait no more, and have the server stop."""
        assert self._calls is not None, "a call was begun"  # noqa: S101
        if self._calls.withdraw(call.id):
            if self._pending.pop(call.id, None) is not None and call.span is not None:
                call.span.end()
            return
        super().cancel(call)  # the SDK's transport keeps the word to itself from 2026-07-28 on
        if self._is_modern:
            self._calls.abort(call.id)

    def _send_call(self, call: DirectCall, message: dict[str, Any]) -> None:
        from mcpgw.backends.http_calls import HttpCall  # noqa: PLC0415 - as in `use`

        if self._calls is None or self._closed.is_set():
            raise MCPError.from_error_data(_CLOSED)
        headers = self._headers_of(message["params"])
        self._calls.begin(HttpCall(call.id, message, headers, copy_context()))

    def _headers_of(self, params: dict[str, Any]) -> dict[str, str]:
        """What the SDK's session says of a call in its headers."""
        name = params["name"] if self._is_modern else None
        if (headers := self._headers.get(name)) is None:
            headers = self._headers[name] = self._lasting_headers(name)
        if name is not None and (parameters := self._parameters.get(name)) is not None:
            headers = headers | mcp_param_headers(parameters, params["arguments"])
        return headers

    def _lasting_headers(self, name: str | None) -> dict[str, str]:
        """What all calls of a tool have in common; without a name, those of a handshake revision."""
        headers = {}
        if (version := self._list_headers.get(MCP_PROTOCOL_VERSION_HEADER)) is not None:
            headers[MCP_PROTOCOL_VERSION_HEADER] = version
        if name is not None:
            headers |= {MCP_METHOD_HEADER: _METHOD, MCP_NAME_HEADER: encode_header_value(name)}
        return headers

    @property
    def _is_modern(self) -> bool:
        return MCP_METHOD_HEADER in self._list_headers

    # --- what comes of them --------------------------------------------------------------------------------

    def admit(self, message: types.JSONRPCMessage) -> bool:
        """Whether what comes unasked is taken; a request that is not is refused."""
        if self._transport.unasked.takes(message):
            return True
        if (answer := refusal_of(message)) is not None:
            with suppress(MCPError):
                self._send(answer)
        return False

    async def has_room(self) -> None:
        """Wait while too many messages of the server's are being dealt with."""
        if self.handling > _MOST_HANDLED:
            self._room.clear()
            await self._room.wait()

    def ask_sdk(self, call: "HttpCall") -> bool:
        """Have the SDK's transport deal with the answer to a call; false where nobody waits for it."""
        if call.id not in self._pending:
            return False
        request = types.JSONRPCRequest(
            jsonrpc="2.0", id=call.id, method=_METHOD, params=dict(call.message["params"])
        )
        options: CallOptions = {"headers": dict(call.headers)}
        call.context.run(self._send, request, call.id, options)
        return True

    def _on_one_handled(self) -> None:
        if self.handling <= _MOST_HANDLED // 2:
            self._room.set()

    # --- all else, through the SDK's transport -------------------------------------------------------------

    def _send(
        self,
        message: types.JSONRPCMessage,
        request_id: types.RequestId | None = None,
        options: CallOptions | None = None,
    ) -> None:
        if self._closed.is_set():
            raise MCPError.from_error_data(_CLOSED)
        options = options or {}
        headers = options.get("headers")
        if headers and isinstance(message, types.JSONRPCRequest) and message.method == "tools/list":
            self._list_headers = headers
            self._headers.clear()
        token, on_token = options.get("resumption_token"), options.get("on_resumption_token")
        metadata = None
        if headers or token is not None or on_token is not None:
            metadata = ClientMessageMetadata(
                resumption_token=token, on_resumption_token_update=on_token, headers=headers
            )
        work = self._give_sdk(SessionMessage(message, metadata), request_id)
        task = asyncio.get_running_loop().create_task(work)
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)

    async def _give_sdk(self, message: SessionMessage, request_id: types.RequestId | None) -> None:
        try:
            await self._sdk.send(message)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            if request_id is not None:
                self.not_sent(request_id, _CLOSED)
