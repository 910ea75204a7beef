"""One WebSocket to a gateway, from the handshake to its close. Knows frames, and no request."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from ssl import SSLContext
from typing import Any, Final

from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.iostream import IOStream
from tornado.websocket import (
    WebSocketClientConnection,
    WebSocketClosedError,
    WebSocketError,
    websocket_connect,
)

from mcpgw.client.address import GatewayAddress, authorization
from mcpgw.client.errors import ConnectionLost, NotAGateway, NotReachable, error_from
from mcpgw.client.rest import reason_of
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

_CLOSE_SECONDS: Final = 2.0
_PING_SECONDS: Final = 30.0
_PONG_SECONDS: Final = 10.0
_LATE_SECONDS: Final = 1.0
_NO_ANSWER: Final = 599  # Tornado's status for "there was none"
_TOO_MANY: Final = 429
_SERVER_FAULT: Final = 500
_OUR_FAULT: Final = frozenset({1002, 1003, 1007, 1008, 1009, 1010})
"""Close codes for what the client itself has done: it would do it again (RFC 6455 section 7.4.1)."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of the gateway; `channel` is there for an event alone."""

    type: str
    id: str | None
    data: Mapping[str, Any]
    channel: str | None
    timestamp: int | None


class Link:
    """An open connection; made by `open`. `status` is what the gateway has greeted with."""

    def __init__(self, address: GatewayAddress, connection: WebSocketClientConnection) -> None:
        self._address = address
        self._connection = connection
        self._stream = _stream_of(connection)
        self._goodbye: Mapping[str, Any] = {}
        self._loop = asyncio.get_running_loop()
        self._heard = self._loop.time()
        self._asked_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._interval, self._timeout = _PING_SECONDS, _PONG_SECONDS
        self._is_dead = False
        self.status: Mapping[str, Any] = {}

    @classmethod
    async def open(
        cls,
        address: GatewayAddress,
        token: str | None,
        *,
        limit: float,
        max_message_size: int,
        tls: SSLContext | None = None,
    ) -> "Link":
        """Connect within `limit` seconds and read the greeting; bound that in time from outside.

        Raises:
            NotReachable: no gateway answers.
            Refused: the token does not hold.
            ConnectionLost: the gateway closed the connection again.
        """
        link = cls(address, await _connect(address, token, limit, max_message_size, tls))
        try:
            await link._greet(anonymous=token is None)
        except BaseException:
            link.drop()
            raise
        return link

    async def _greet(self, *, anonymous: bool) -> None:
        """Read the status that comes first and, where the token does not hold, why."""
        while (frame := await self.receive()) is not None:
            if frame.type == "error":
                raise error_from(frame.data, frame.data.get("error"))
            if frame.type == "status" and (frame.data.get("authenticated") is True or anonymous):
                self.status = frame.data
                self._interval = _seconds(frame.data.get("pingInterval"), _PING_SECONDS)
                self._timeout = _seconds(frame.data.get("pongTimeout"), _PONG_SECONDS)
                self._watch(self._heard + self._interval)
                return
        raise self.farewell()

    @property
    def max_message_size(self) -> int | None:
        """Bytes of the largest message that the gateway takes, where it has said so."""
        size = self.status.get("maxMessageSize")
        return size if isinstance(size, int) and size > 0 else None

    async def receive(self) -> Frame | None:
        """The next frame; None where the connection has ended, and `farewell` says why.

        Raises:
            NotAGateway: what came is no frame.
        """
        message = await self._connection.read_message()
        if message is None:
            self._unwatch()
            return None
        self._heard = self._loop.time()
        self._asked_at = None
        frame = self._read(message)
        if frame.type == "disconnect":
            self._goodbye = frame.data
        return frame

    def send(self, text: str) -> "asyncio.Future[None] | None":
        """Write a frame; the future ends when it is on its way, and never raises. None: not sent."""
        try:
            written = self._connection.write_message(text)
        except WebSocketClosedError:
            return None
        return asyncio.ensure_future(_sent(written))

    def farewell(self) -> ConnectionLost:
        """Why the connection has ended; `temporary` says whether to come back."""
        code = self._connection.close_code
        reason, reconnect = self._goodbye.get("reason"), self._goodbye.get("reconnect")
        told, retry_after = self._goodbye.get("code"), self._goodbye.get("retryAfterMs")
        if code is None and isinstance(told, int) and not isinstance(told, bool):
            code = told  # the word came, and the close was lost
        message = "the connection to the gateway was lost"
        if isinstance(reason, str):
            message = f"the gateway closed the connection: {reason}"
        elif self._is_dead:
            message = "the connection to the gateway was dead: nothing came, not even a pong"
        return ConnectionLost(
            message,
            close_code=code,
            temporary=reconnect is not False and not _is_final(code),
            retry_after=retry_after / 1000 if isinstance(retry_after, int | float) else None,
        )

    def drop(self) -> None:
        """End the connection without a word; `receive` then gives None."""
        self._unwatch()
        self._connection.close()
        if self._stream is not None:
            self._stream.close()

    async def close(self, reader: "asyncio.Task[None]") -> None:
        """Say goodbye, and wait a little until `reader` has read the gateway's own."""
        self._unwatch()
        self._connection.close(1000)
        try:
            await asyncio.wait({reader}, timeout=_CLOSE_SECONDS)
        finally:
            if self._stream is not None:
                self._stream.close()  # a gateway that does not answer the close

    def _read(self, message: str | bytes) -> Frame:
        try:
            frame = strict_json.loads(message) if isinstance(message, str) else None
        except ParseError:
            frame = None
        if not isinstance(frame, dict) or not isinstance(frame.get("type"), str):
            raise NotAGateway(self._address.base, "it sent what is no frame")
        identifier, data, channel = frame.get("id"), frame.get("data", {}), frame.get("channel")
        if (
            not isinstance(identifier, str | None)
            or not isinstance(data, dict)
            or not isinstance(channel, str | None)
        ):
            raise NotAGateway(self._address.base, "it sent what is no frame")
        moment = frame.get("timestamp")
        return Frame(frame["type"], identifier, data, channel, moment if isinstance(moment, int) else None)

    # --- the sign of life ----------------------------------------------------------------------------------

    def _watch(self, when: float) -> None:
        self._timer = self._loop.call_at(when, self._look, when)

    def _unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self, due: float) -> None:
        """Ask for a sign of life where none has come, and end a connection that gives none."""
        now = self._loop.time()
        if self._asked_at is not None and now - due < _LATE_SECONDS:
            self._is_dead = True
            self.drop()
        elif now < self._heard + self._interval:
            self._watch(self._heard + self._interval)
        else:
            # Also where this program itself slept: what came meanwhile has not been read yet.
            self._asked_at = now
            self.send('{"type":"ping","id":"alive"}')
            self._watch(now + self._timeout)


async def _connect(
    address: GatewayAddress, token: str | None, limit: float, max_message_size: int, tls: SSLContext | None
) -> WebSocketClientConnection:
    request = HTTPRequest(
        address.socket,
        headers=authorization(token),
        connect_timeout=limit,
        request_timeout=limit,
        ssl_options=tls,
    )
    base = address.base
    # No compression: Tornado's client overlooks extension parameters without a value, and so would keep its
    # window although the gateway has answered client_no_context_takeover (RFC 7692 section 7.1.1.2).
    connecting = asyncio.ensure_future(websocket_connect(request, max_message_size=max_message_size))
    try:
        return await asyncio.shield(connecting)
    except asyncio.CancelledError:
        connecting.add_done_callback(_drop_late)  # Tornado goes on connecting
        raise
    except HTTPClientError as error:
        if error.code == _NO_ANSWER:
            raise NotReachable(base, reason_of(error)) from None
        if error.code == _TOO_MANY or error.code >= _SERVER_FAULT:  # a gateway or its proxy, not ready now
            raise NotReachable(base, f"HTTP {error.code}", retry_after=_retry_after(error)) from None
        raise NotAGateway(base, f"HTTP {error.code}") from None
    except WebSocketError as error:
        raise NotAGateway(base, reason_of(error)) from None
    except OSError as error:
        raise NotReachable(base, reason_of(error)) from None


async def _sent(written: "asyncio.Future[None]") -> None:
    try:
        await written
    except WebSocketClosedError:
        return  # the reader notices too, and knows what to do


def _is_final(code: int | None) -> bool:
    """Whether a client must not come back by itself (the wire contract, section 5)."""
    return code is not None and (3500 <= code < 4000 or code in _OUR_FAULT)  # noqa: PLR2004


def _seconds(milliseconds: object, default: float) -> float:
    if isinstance(milliseconds, int | float) and milliseconds > 0:
        return milliseconds / 1000
    return default


def _retry_after(error: HTTPClientError) -> float | None:
    text = error.response.headers.get("Retry-After", "") if error.response is not None else ""
    return float(text[:9]) if text.isascii() and text.isdigit() else None


def _drop_late(connecting: "asyncio.Future[WebSocketClientConnection]") -> None:
    if not connecting.cancelled() and connecting.exception() is None:
        connection = connecting.result()
        stream = _stream_of(connection)
        connection.close()
        if stream is not None:
            stream.close()


def _stream_of(connection: WebSocketClientConnection) -> IOStream | None:
    """What the frames are written to, while the connection is open."""
    return connection.protocol.stream if connection.protocol is not None else None
