"""A WebSocket client for tests: every frame it sees is held against the published schema."""

import asyncio
import json
import time
from typing import Any

from tornado.httpclient import HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

from tests.support.schemas import assert_valid_server_frame

Frame = dict[str, Any]


class SocketClient:
    """One connection to ``/ws``; reads are bounded in time."""

    def __init__(self, connection: WebSocketClientConnection) -> None:
        self.connection = connection

    @classmethod
    async def connect(
        cls,
        url: str,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        subprotocols: list[str] | None = None,
    ) -> "SocketClient":
        """Open a connection, with `token` in the Authorization header where there is one."""
        all_headers = dict(headers or {})
        if token is not None:
            all_headers["Authorization"] = f"Bearer {token}"
        request = HTTPRequest(url, headers=all_headers, connect_timeout=10, request_timeout=10)
        connection = await websocket_connect(
            request, subprotocols=subprotocols, max_message_size=64 * 1024 * 1024
        )
        return cls(connection)

    async def send(self, frame: object) -> None:
        """Send a frame, or a text as it is."""
        await self.connection.write_message(frame if isinstance(frame, str) else json.dumps(frame))

    async def receive(self, seconds: float = 10.0) -> Frame:
        """The next frame, held against its schema.

        Raises:
            AssertionError: none came in time, or the connection was closed.
        """
        message = await self.receive_message(seconds)
        assert isinstance(message, str), f"closed with {self.connection.close_code} instead of a frame"
        frame: Frame = json.loads(message)
        assert_valid_server_frame(frame)
        return frame

    async def receive_message(self, seconds: float = 10.0) -> str | bytes | None:
        """The next message as it came; None where the connection was closed."""
        async with asyncio.timeout(seconds):
            return await self.connection.read_message()

    async def request(self, frame: object) -> Frame:
        """Send one frame and take the next that comes."""
        await self.send(frame)
        return await self.receive()

    async def call(
        self, server: str, tool: str, params: object = None, *, call_id: str = "call-1", **data: object
    ) -> Frame:
        """Call a tool and take the frame that ends the call."""
        await self.send(tool_call(server, tool, params, call_id=call_id, **data))
        return await self.end_of(call_id)

    async def end_of(self, call_id: str, seconds: float = 15.0) -> Frame:
        """Read on until the call has its end; what comes for others is passed over."""
        deadline = time.monotonic() + seconds
        while True:
            frame = await self.receive(max(0.01, deadline - time.monotonic()))
            if frame.get("id") == call_id and frame["type"] in ("tool_response", "error"):
                return frame

    async def closed(self, seconds: float = 10.0) -> int | None:
        """Read to the end; answers the close code."""
        while await self.receive_message(seconds) is not None:
            pass
        self.connection.close()  # it warns of a connection that only the gateway has closed
        code: int | None = self.connection.close_code
        return code

    def close(self, code: int | None = None) -> None:
        """Close cleanly."""
        self.connection.close(code)

    async def leave(self) -> None:
        """Close cleanly, and wait until the gateway has closed too."""
        self.close(1000)
        await self.closed()

    def drop(self) -> None:
        """Cut the TCP connection without a word."""
        protocol = self.connection.protocol
        assert protocol is not None
        assert protocol.stream is not None
        protocol.stream.close()


def tool_call(
    server: str, tool: str, params: object = None, *, call_id: str = "call-1", **data: object
) -> Frame:
    """The frame that calls a tool."""
    body: Frame = {"serverId": server, "toolName": tool, **data}
    if params is not None:
        body["params"] = params
    return {"type": "tool_call", "id": call_id, "data": body}
