"""The HTTP transports to one backend: Streamable HTTP, and the older HTTP with SSE.

Both are the SDK's, over the HTTP layer of `mcpgw.backends.http_layer`. Source: MCP 2025-11-25 and 2026-07-28,
"Transports: Streamable HTTP"; MCP 2024-11-05, "Transports: HTTP with SSE".
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Self

import anyio
import httpx2
import mcp_types as types
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.message import SessionMessage

from mcpgw.backends.failures import too_many
from mcpgw.backends.http_layer import HttpBackendTransport
from mcpgw.rate_limit import RateLimit


@asynccontextmanager
async def http_transport(
    url: str,
    headers: Mapping[str, str],
    *,
    legacy_sse: bool,
    connect_timeout: float,
    read_timeout: float,
    max_message_size: int,
    notification_rate: int,
    on_fault: Callable[[str], None],
    on_end: Callable[[str], None],
) -> AsyncIterator[tuple[Any, Any]]:
    """A transport to the MCP endpoint at `url`; `legacy_sse` chooses the transport of MCP 2024-11-05.

    `on_end` is called when no more messages can come, with the reason; `on_fault` with a sentence about what
    the backend did that is not taken. Times are in seconds, sizes in bytes, `notification_rate` in
    notifications a second.
    """
    failed = _Failed()
    # A compressed answer could be a thousand times as long as what the limit counts.
    all_headers = {"accept-encoding": "identity", **headers}

    def client(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        transport = HttpBackendTransport(max_message_size, on_end, failed.add if legacy_sse else None)
        return httpx2.AsyncClient(transport=transport, headers=headers, timeout=timeout, auth=auth)

    def watched(read: Any, write: Any) -> "WatchedReadStream":
        return WatchedReadStream(
            read, write, on_end=on_end, on_fault=on_fault, unasked=RateLimit(notification_rate), failed=failed
        )

    streams: AbstractAsyncContextManager[tuple[Any, Any]]
    if legacy_sse:
        streams = sse_client(
            url,
            all_headers,
            timeout=connect_timeout,
            sse_read_timeout=read_timeout,
            httpx_client_factory=client,
        )
        async with streams as (read, write):
            yield watched(read, write), write
    else:
        timeout = httpx2.Timeout(connect_timeout, read=read_timeout)
        async with client(all_headers, timeout) as http_client:
            streams = streamable_http_client(
                url, http_client=http_client, max_sse_event_size=max_message_size
            )
            async with streams as (read, write):
                yield watched(read, write), write


class _Failed:
    """Errors made here for requests that were not taken; read together with what the server sends."""

    def __init__(self) -> None:
        self._waiting: deque[SessionMessage] = deque()
        self._reader: anyio.CancelScope | None = None

    def add(self, request_id: types.RequestId, error: types.ErrorData) -> None:
        self._waiting.append(SessionMessage(types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)))
        if self._reader is not None:
            self._reader.cancel()

    async def or_next(self, stream: Any) -> SessionMessage | Exception:
        """The next of these errors, or what `stream` gives."""
        while not self._waiting:
            with anyio.CancelScope() as self._reader:
                message: SessionMessage | Exception = await stream.receive()
                return message
        return self._waiting.popleft()


class WatchedReadStream:
    """A read stream of the SDK that tells when it has ended and bounds what a server sends unasked."""

    def __init__(
        self,
        stream: Any,
        write: Any,
        *,
        on_end: Callable[[str], None],
        on_fault: Callable[[str], None],
        unasked: RateLimit,
        failed: _Failed,
    ) -> None:
        self._stream = stream
        self._write = write
        self._on_end = on_end
        self._on_fault = on_fault
        self._unasked = unasked
        self._failed = failed

    @property
    def last_context(self) -> Any:
        """The context of the request that the last message answers; the SDK runs callbacks in it."""
        return getattr(self._stream, "last_context", None)

    async def receive(self) -> SessionMessage | Exception:
        """The next message, as the stream gives it.

        Raises:
            anyio.EndOfStream: the connection was closed.
        """
        try:
            message = await self._failed.or_next(self._stream)
            while not self._is_taken(message):
                await self._refuse(message)
                message = await self._failed.or_next(self._stream)
        except (anyio.EndOfStream, anyio.ClosedResourceError):
            self._on_end("its connection was closed")
            raise
        return message

    async def aclose(self) -> None:
        """Close the stream."""
        await self._stream.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> SessionMessage | Exception:
        try:
            return await self.receive()
        except anyio.EndOfStream:
            raise StopAsyncIteration from None

    async def __aenter__(self) -> Self:
        await self._stream.__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> bool | None:
        result: bool | None = await self._stream.__aexit__(*exc_info)
        return result

    async def _refuse(self, message: SessionMessage | Exception) -> None:
        """Answer a request that is not taken; what tells of something is dropped."""
        if isinstance(message, SessionMessage) and isinstance(message.message, types.JSONRPCRequest):
            answer = types.JSONRPCError(jsonrpc="2.0", id=message.message.id, error=too_many())
            await self._write.send(SessionMessage(answer))

    def _is_taken(self, message: SessionMessage | Exception) -> bool:
        if isinstance(message, Exception) or isinstance(
            message.message, types.JSONRPCResponse | types.JSONRPCError
        ):
            return True
        if not self._unasked.admit():
            return False
        if dropped := self._unasked.take_refused():
            self._on_fault(f"it sent notifications or requests faster than the limit: {dropped} were dropped")
        return True
