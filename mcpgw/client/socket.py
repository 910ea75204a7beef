"""One WebSocket connection to a gateway: many calls side by side, each with one end."""

import asyncio
import itertools
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import IOStream
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    websocket_connect,
)

from mcpgw.client.address import GatewayAddress, authorization
from mcpgw.client.errors import (
    ConnectionLost,
    NotAGateway,
    NotReachable,
    RequestFailed,
    error_from,
)
from mcpgw.client.rest import reason_of
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

_ANSWER_SECONDS: Final = 30.0
_GRACE_SECONDS: Final = 5.0
_CLOSE_SECONDS: Final = 2.0
_PING_SECONDS: Final = 30.0
_PONG_SECONDS: Final = 10.0
_NO_ANSWER: Final = 599  # Tornado's status for "there was none"


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answered; `success` is false where the tool itself says that it failed.

    `result` is what a caller most likely wants of it, `content` the MCP content blocks as the backend sent
    them, `structured_content` None where there is none. `data` is the whole answer as it came.
    """

    server: str
    tool: str
    success: bool
    result: Any
    content: list[dict[str, Any]]
    structured_content: Any
    duration_ms: int
    meta: Mapping[str, Any] | None
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is; `total` in the unit of `progress`, where the backend knows it."""

    progress: float
    total: float | None
    message: str | None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the backend logged while it worked on a call; `data` is any JSON value."""

    level: str
    logger: str | None
    data: Any


@dataclass(slots=True, eq=False)
class _Request:
    """A request that waits; `answered` once the gateway has given it its end."""

    kind: str
    answer_type: str
    future: "asyncio.Future[Mapping[str, Any]]"
    on_progress: Callable[[Progress], None] | None = None
    on_log: Callable[[LogLine], None] | None = None
    answered: bool = False


class Gateway:
    """A connection to the gateway at `url`, open inside ``async with``.

    `token` None opens a connection that may only `ping` and ask for its `status`. `connect_timeout` (seconds)
    bounds everything until the gateway's first frame, `max_message_size` (bytes) each of its messages.
    Methods may be called from many tasks at once; each raises `ClientError`, and `ConnectionLost` where the
    connection ends first.
    """

    def __init__(
        self,
        url: str,
        token: str | None,
        *,
        connect_timeout: float = 10.0,
        max_message_size: int = 64 * 1024 * 1024,
    ) -> None:
        self._address = GatewayAddress.parse(url)
        self._headers = authorization(token)
        self._connect_timeout = connect_timeout
        self._max_message_size = max_message_size
        self._requests: dict[str, _Request] = {}
        self._numbers = itertools.count(1)
        self._connection: WebSocketClientConnection | None = None
        self._reader: asyncio.Task[None] | None = None
        self._lost: ConnectionLost | None = None
        self._goodbye: Mapping[str, Any] = {}

    def __repr__(self) -> str:
        return f"Gateway({self._address.socket!r})"

    async def __aenter__(self) -> Self:
        """Connect, and read who the gateway says we are.

        Raises:
            NotReachable: no gateway answers.
            Refused: the token does not hold.
        """
        if self._reader is not None:
            raise RuntimeError("this connection has been used: make a new Gateway")
        try:
            async with asyncio.timeout(self._connect_timeout):
                connection = await self._connect()
                try:
                    await self._greet(connection)
                except BaseException:
                    _drop(connection)
                    raise
        except TimeoutError:
            raise NotReachable(
                self._address.base, f"nothing came within {self._connect_timeout:g} s"
            ) from None
        self._connection = connection
        self._reader = asyncio.create_task(self._read(connection), name=f"reader of {self!r}")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close; the gateway then cancels what is still open."""
        connection, reader = self._connection, self._reader
        assert connection is not None, "entered before"  # noqa: S101
        assert reader is not None, "entered before"  # noqa: S101
        stream = _stream_of(connection)
        connection.close(1000)
        try:
            await asyncio.wait({reader}, timeout=_CLOSE_SECONDS)
        finally:
            if stream is not None:
                stream.close()  # a gateway that does not answer the close
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader

    async def call(
        self,
        server: str,
        tool: str,
        params: Mapping[str, Any] | None = None,
        *,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogLine], None] | None = None,
        timeout: float | None = None,  # noqa: ASYNC109 - the gateway keeps it and tells the backend
    ) -> ToolAnswer:
        """Call a tool and wait for its answer, at most `timeout` seconds (None: the gateway's default).

        Cancelling the awaiting task cancels the call. So does an exception of a callback, which is raised
        here.

        Raises:
            ClientError: the call has no answer; a tool that says it failed is an answer.
            ValueError: `timeout` is no positive number, or `params` is no JSON.
        """
        data: dict[str, Any] = {"serverId": server, "toolName": tool, "params": dict(params or {})}
        limit = None
        if timeout is not None:
            if not 0 < timeout < math.inf:
                raise ValueError("the timeout of a call is a number of seconds above 0")
            data["timeoutMs"] = math.ceil(timeout * 1000)
            limit = timeout + _GRACE_SECONDS
        answer = await self._request(
            "tool_call", "tool_response", data, limit=limit, on_progress=on_progress, on_log=on_log
        )
        return ToolAnswer(
            server=server,
            tool=tool,
            success=self._member(answer, "success") is True,
            result=self._member(answer, "result"),
            content=self._member(answer, "content"),
            structured_content=answer.get("structuredContent"),
            duration_ms=self._member(answer, "durationMs"),
            meta=answer.get("meta"),
            data=answer,
        )

    async def list_tools(self, server: str | None = None) -> list[dict[str, Any]]:
        """The tools of one server, or of all, as section 3 of the wire contract has them."""
        data = {} if server is None else {"serverId": server}
        answer = await self._request("list_tools", "tools", data, limit=_ANSWER_SECONDS)
        tools: list[dict[str, Any]] = self._member(answer, "tools")
        return tools

    async def status(self) -> dict[str, Any]:
        """What this connection is and may do, as section 4 of the wire contract has it."""
        return dict(await self._request("status", "status", {}, limit=_ANSWER_SECONDS))

    async def ping(self) -> float:
        """How long the gateway takes to answer, in seconds."""
        started = time.perf_counter()
        await self._request("ping", "pong", {}, limit=_ANSWER_SECONDS)
        return time.perf_counter() - started

    # --- the connection ------------------------------------------------------------------------------------

    async def _connect(self) -> WebSocketClientConnection:
        request = HTTPRequest(
            self._address.socket,
            headers=self._headers,
            connect_timeout=self._connect_timeout,
            request_timeout=self._connect_timeout,
        )
        base = self._address.base
        connecting = asyncio.ensure_future(
            websocket_connect(
                request,
                compression_options={},
                ping_interval=_PING_SECONDS,
                ping_timeout=_PONG_SECONDS,
                max_message_size=self._max_message_size,
            )
        )
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            connecting.add_done_callback(_drop_late)  # Tornado goes on connecting
            raise
        except HTTPClientError as error:
            if error.code == _NO_ANSWER:
                raise NotReachable(base, reason_of(error)) from None
            raise NotAGateway(base, f"HTTP {error.code}") from None
        except WebSocketError as error:
            raise NotAGateway(base, reason_of(error)) from None
        except OSError as error:
            raise NotReachable(base, reason_of(error)) from None

    async def _greet(self, connection: WebSocketClientConnection) -> None:
        """Read the status that comes first and, where the token does not hold, why."""
        while True:
            message = await connection.read_message()
            if message is None:
                code = connection.close_code
                raise ConnectionLost("the gateway closed the connection at once", close_code=code)
            kind, _, data = self._open(message)
            if kind == "error":
                raise error_from(data, data.get("error"))
            if kind == "status" and (data.get("authenticated") is True or not self._headers):
                return

    def _open(self, message: str | bytes) -> tuple[str, str | None, Mapping[str, Any]]:
        """Type, id and data of one message.

        Raises:
            NotAGateway: it is no frame.
        """
        try:
            frame = strict_json.loads(message) if isinstance(message, str) else None
        except ParseError:
            frame = None
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            raise NotAGateway(self._address.base, "it sent what is no frame")
        identifier, data = frame.get("id"), frame.get("data", {})
        if not isinstance(identifier, str | None) or not isinstance(data, dict):
            raise NotAGateway(self._address.base, "it sent what is no frame")
        return frame["type"], identifier, data

    async def _read(self, connection: WebSocketClientConnection) -> None:
        """Hand every frame to the request that it answers, until the connection ends."""
        lost = ConnectionLost("this connection is closed")
        try:
            while (message := await connection.read_message()) is not None:
                self._receive(message)
            lost = self._farewell(connection.close_code)
        except NotAGateway as error:
            lost = ConnectionLost(error.message, temporary=False)
        finally:
            self._lost = lost
            connection.close()
            for request in self._requests.values():
                _settle(request, lost)

    def _receive(self, message: str | bytes) -> None:
        kind, identifier, data = self._open(message)
        if kind == "disconnect":
            self._goodbye = data
        request = self._requests.get(identifier) if identifier is not None else None
        if request is None:
            return  # a push, or the end of a call that nobody waits for any more
        if kind == "error":
            request.answered = True
            _settle(request, error_from(data, data.get("error")))
        elif kind == request.answer_type:
            request.answered = True
            if not request.future.done():
                request.future.set_result(data)
        else:
            self._hand_on(request, kind, data)

    def _hand_on(self, request: _Request, kind: str, data: Mapping[str, Any]) -> None:
        """Call the callback for a frame on the way; what it raises ends the request."""
        try:
            if kind == "tool_progress" and request.on_progress is not None:
                request.on_progress(
                    Progress(self._member(data, "progress"), data.get("total"), data.get("message"))
                )
            elif kind == "tool_log" and request.on_log is not None:
                request.on_log(LogLine(self._member(data, "level"), data.get("logger"), data.get("data")))
        except Exception as fault:  # noqa: BLE001 - not hidden: it is raised by the call that gave the callback
            _settle(request, fault)

    def _member(self, data: Mapping[str, Any], name: str) -> Any:
        if name not in data:
            raise NotAGateway(self._address.base, f"it sent a frame without {name}")
        return data[name]

    def _farewell(self, close_code: int | None) -> ConnectionLost:
        reason, reconnect = self._goodbye.get("reason"), self._goodbye.get("reconnect")
        message = f"the gateway closed the connection: {reason}" if isinstance(reason, str) else None
        return ConnectionLost(
            message or "the connection to the gateway was lost",
            close_code=close_code,
            temporary=reconnect is not False,
        )

    # --- requests ------------------------------------------------------------------------------------------

    async def _request(
        self,
        kind: str,
        answer_type: str,
        data: Mapping[str, Any],
        *,
        limit: float | None,
        on_progress: Callable[[Progress], None] | None = None,
        on_log: Callable[[LogLine], None] | None = None,
    ) -> Mapping[str, Any]:
        """Send one request and wait for the data of its answer, at most `limit` seconds."""
        identifier = f"{kind}-{next(self._numbers)}"
        future: asyncio.Future[Mapping[str, Any]] = asyncio.get_running_loop().create_future()
        request = _Request(kind, answer_type, future, on_progress, on_log)
        text = strict_json.dumps({"type": kind, "id": identifier, "data": data})
        text.encode()  # a lone surrogate fails here (RFC 8259 section 8.2), as ValueError
        self._require_open()
        self._requests[identifier] = request
        scope = asyncio.timeout(limit)
        try:
            async with scope:
                await self._send(text)
                return await future
        except TimeoutError:
            if not scope.expired():  # a callback's own
                raise
            raise RequestFailed(
                f"the gateway did not answer within {limit:g} s", code="timeout", temporary=True
            ) from None
        finally:
            del self._requests[identifier]
            if future.done() and not future.cancelled():
                future.exception()  # seen, also where the task was cancelled in the same moment
            if kind == "tool_call" and not request.answered:
                self._tell_cancelled(identifier)

    def _require_open(self) -> WebSocketClientConnection:
        if self._connection is None:
            raise RuntimeError("the connection is open inside `async with` alone")
        if self._lost is not None:
            raise ConnectionLost(
                self._lost.message, close_code=self._lost.close_code, temporary=self._lost.temporary
            )
        return self._connection

    async def _send(self, text: str) -> None:
        try:
            await self._require_open().write_message(text)
        except WebSocketClosedError:
            raise ConnectionLost("the connection to the gateway was lost") from None

    def _tell_cancelled(self, identifier: str) -> None:
        """Send ``cancel``, without waiting: the awaiting task is itself being cancelled."""
        if self._connection is None or self._lost is not None:
            return
        with suppress(WebSocketClosedError):
            written = self._connection.write_message(
                strict_json.dumps({"type": "cancel", "id": identifier, "data": {}})
            )
            written.add_done_callback(_forget_closed)


def _settle(request: _Request, error: Exception) -> None:
    if not request.future.done():
        # One object for many requests would collect every task's traceback.
        request.future.set_exception(_copied(error) if isinstance(error, ConnectionLost) else error)


def _copied(error: ConnectionLost) -> ConnectionLost:
    return ConnectionLost(error.message, close_code=error.close_code, temporary=error.temporary)


def _drop(connection: WebSocketClientConnection) -> None:
    stream = _stream_of(connection)
    connection.close()
    if stream is not None:
        stream.close()


def _stream_of(connection: WebSocketClientConnection) -> IOStream | None:
    """What the frames are written to, while the connection is open."""
    return connection.protocol.stream if connection.protocol is not None else None


def _drop_late(connecting: "asyncio.Future[WebSocketClientConnection]") -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        _drop(connecting.result())


def _forget_closed(written: "asyncio.Future[None]") -> None:
    if not written.cancelled() and not isinstance(written.exception(), WebSocketClosedError | None):
        written.result()
