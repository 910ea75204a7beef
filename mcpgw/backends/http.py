"""The HTTP transports to one backend: Streamable HTTP, and the older HTTP with SSE.

Both are the SDK's, over the HTTP layer of `mcpgw.backends.http_layer`. Source: MCP 2025-11-25 and 2026-07-28,
"Transports: Streamable HTTP"; MCP 2024-11-05, "Transports: HTTP with SSE".
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import KW_ONLY, dataclass, field
from types import TracebackType
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


@dataclass(eq=False)
class HttpTransport:
    """A transport to the MCP endpoint at `url`; `is_legacy` chooses the transport of MCP 2024-11-05.

    `on_end` is called when no more messages can come, with the reason; `on_fault` with a sentence about what
    the backend did that is not taken. Times are in seconds, sizes in bytes, `notification_rate` in
    notifications a second, `most_connections` in connections that calls may have open. Enter it once.

    `layer` is what all messages of the SDK go through, `unasked` the limit of what comes unasked.
    """

    url: str = field(repr=False)
    headers: Mapping[str, str] = field(repr=False)
    _: KW_ONLY
    is_legacy: bool
    connect_timeout: float
    read_timeout: float
    max_message_size: int
    notification_rate: int
    most_connections: int
    on_fault: Callable[[str], None]
    on_end: Callable[[str], None]

    def __post_init__(self) -> None:
        self._failed = _Failed()
        self.ssl_context = httpx2.create_ssl_context()
        self.layer = HttpBackendTransport(
            self.max_message_size,
            self.on_end,
            self._failed.add if self.is_legacy else None,
            tls=self.ssl_context,
        )
        self.unasked = Unasked(RateLimit(self.notification_rate), self.on_fault)
        self._entered: AbstractAsyncContextManager[tuple[Any, Any]] | None = None

    async def __aenter__(self) -> tuple["WatchedReadStream", Any]:
        self._entered = self._streams()
        return await self._entered.__aenter__()

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._entered is not None, "it is left after it was entered"  # noqa: S101
        return await self._entered.__aexit__(exc_type, exc_value, traceback)

    @asynccontextmanager
    async def _streams(self) -> AsyncIterator[tuple["WatchedReadStream", Any]]:
        # A compressed answer could be a thousand times as long as what the limit counts.
        headers = {"accept-encoding": "identity", **self.headers}
        streams: AbstractAsyncContextManager[tuple[Any, Any]]
        if self.is_legacy:
            streams = sse_client(
                self.url,
                headers,
                timeout=self.connect_timeout,
                sse_read_timeout=self.read_timeout,
                httpx_client_factory=self._client,
            )
            async with streams as (read, write):
                yield self._watched(read, write), write
        else:
            timeout = httpx2.Timeout(self.connect_timeout, read=self.read_timeout)
            async with self._client(headers, timeout) as http_client:
                streams = streamable_http_client(
                    self.url, http_client=http_client, max_sse_event_size=self.max_message_size
                )
                async with streams as (read, write):
                    yield self._watched(read, write), write

    def _client(
        self,
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        client = httpx2.AsyncClient(transport=self.layer, headers=headers, timeout=timeout, auth=auth)
        if "cookie" not in client.headers:
            self.layer.cookies = client.cookies
        return client

    def _watched(self, read: Any, write: Any) -> "WatchedReadStream":
        return WatchedReadStream(read, write, on_end=self.on_end, unasked=self.unasked, failed=self._failed)


class Unasked:
    """Bounds what a server sends unasked: notifications and requests, over all of its streams."""

    def __init__(self, limit: RateLimit, on_fault: Callable[[str], None]) -> None:
        self._limit = limit
        self._on_fault = on_fault

    def takes(self, message: types.JSONRPCMessage) -> bool:
        """Whether a message is to be dealt with; where it is not, `refusal_of` says what to answer."""
        if isinstance(message, types.JSONRPCResponse | types.JSONRPCError):
            return True
        if not self._limit.admit():
            return False
        if dropped := self._limit.take_refused():
            self._on_fault(f"it sent notifications or requests faster than the limit: {dropped} were dropped")
        return True


def refusal_of(message: types.JSONRPCMessage) -> types.JSONRPCError | None:
    """The answer to a request that is not taken; what tells of something has none."""
    if isinstance(message, types.JSONRPCRequest):
        return types.JSONRPCError(jsonrpc="2.0", id=message.id, error=too_many())
    return None


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
        unasked: Unasked,
        failed: _Failed,
    ) -> None:
        self._stream = stream
        self._write = write
        self._on_end = on_end
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
        answer = refusal_of(message.message) if isinstance(message, SessionMessage) else None
        if answer is not None:
            await self._write.send(SessionMessage(answer))

    def _is_taken(self, message: SessionMessage | Exception) -> bool:
        return isinstance(message, Exception) or self._unasked.takes(message.message)
