"""``/ws``: the WebSocket of a conversation. Knows sockets and close codes, and no type of frame."""

import asyncio
import base64
import logging
import secrets
import sys
import time
from collections.abc import Awaitable
from typing import Any

from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol13

from mcpgw.conversation import ClientInfo, Conversation
from mcpgw.errors import AuthRequired, CloseCode, ConnectionLimit
from mcpgw.hub import Place
from mcpgw.outbox import Outbox
from mcpgw.session import CALL_SOURCE
from mcpgw.wire.frames import PROTOCOL, Lagged, ReplyTo, encode

from .base import BaseHandler, client_user_agent
from .websocket_protocol import GatewayWebSocketProtocol, plain_text_frame

_BEARER = "bearer."
_KEY_BYTES = 16
_CHUNK = 65536
_FRAMES_WITHOUT_PAUSE = 32
_A_LITTLE = 0.01


class BareSocket(WebSocketHandler, BaseHandler):
    """What every WebSocket has: the protocol, its limits, and the checks of its handshake."""

    logger = logging.getLogger("mcpgw.websocket")

    def check_handshake(self) -> None:
        """What RFC 6455 section 4.2.1 asks of a request, answered in the one shape of errors."""
        headers = self.request.headers
        connection = [option.strip().lower() for option in headers.get("Connection", "").split(",")]
        upgrades = headers.get("Upgrade", "").lower() == "websocket" and "upgrade" in connection
        if not upgrades or headers.get("Sec-WebSocket-Version") != "13":
            raise HTTPError(426)
        try:
            key = base64.b64decode(headers.get("Sec-WebSocket-Key", ""), validate=True)
        except ValueError:
            key = b""
        if len(key) != _KEY_BYTES:
            raise HTTPError(400)

    def check_origin(self, origin: str) -> bool:  # noqa: ARG002 - Tornado's signature
        """`prepare` has checked it, for every handler in the same way."""
        return True

    def get_compression_options(self) -> dict[str, Any] | None:
        """permessage-deflate (RFC 7692) with small buffers, where the configuration has it."""
        if not self.services.config.websocket.compression:
            return None
        return {"compression_level": 1, "mem_level": 4}

    def get_websocket_protocol(self) -> GatewayWebSocketProtocol | None:
        """The protocol object, where the client speaks version 13."""
        protocol = super().get_websocket_protocol()
        if not isinstance(protocol, WebSocketProtocol13):
            return None
        own = GatewayWebSocketProtocol(self, mask_outgoing=False, params=protocol.params)
        own.compression_minimum = self.services.config.websocket.compression_minimum
        return own

    def select_subprotocol(self, subprotocols: list[str]) -> str | None:
        """Never the one that carries the token: it would be sent back in the clear of a header."""
        return PROTOCOL if PROTOCOL in subprotocols else None

    @property
    def ping_interval(self) -> float:
        """Seconds between two pings."""
        return self.services.config.websocket.ping_interval

    @property
    def ping_timeout(self) -> float:
        """Seconds that a pong may take."""
        return self.services.config.websocket.pong_timeout

    @property
    def max_message_size(self) -> int:
        """Bytes of the largest message, after decompression too."""
        return self.services.config.websocket.max_message_size

    def on_ping_timeout(self) -> None:
        """The client has not answered a ping in time."""
        self.close(CloseCode.NO_PONG, "no pong in time")


class GatewaySocket(BareSocket):
    """One WebSocket: hands texts to its conversation, and writes what the conversation says."""

    conversation: Conversation | None = None
    _place: Place | None = None

    def initialize(self) -> None:
        """Nothing waits yet."""
        events = self.services.config.events
        self._outbox = Outbox(events.max_waiting, events.max_waiting_size, _lagged)
        self._in_flight = 0
        self._is_called_back = False
        self._protocol: GatewayWebSocketProtocol | None = None
        self._paused_at = 0
        self._room: asyncio.Event | None = None
        self._slow: asyncio.TimerHandle | None = None
        self._life: asyncio.TimerHandle | None = None
        self._alive_at = 0.0

    def prepare(self) -> None:
        """Look at the credentials; those that do not hold open a socket that asks for better ones."""
        super().prepare()
        self.refuse_while_draining()
        if self.request.method == "GET":
            self.check_handshake()
        token = self._subprotocol_token()
        if self.principal is None and self.refused is None and token is not None:
            self.credentials = "subprotocol"
            self.principal, self.refused = self.services.authenticate(token)
        self.require_credentials()
        if self.request.method == "GET":
            user = None if self.principal is None else self.principal.user
            self._place = self.services.hub.reserve("websocket", user)
            refusal = self._place.refusal
            if refusal is not None and not refusal.can_be_told:
                raise ConnectionLimit(refusal.reason)

    def require_credentials(self) -> None:
        """None are required here: the conversation asks for them."""

    def get_websocket_protocol(self) -> GatewayWebSocketProtocol | None:
        """The protocol object, which tells how far the client reads."""
        self._protocol = super().get_websocket_protocol()
        return self._protocol

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Begin the conversation."""
        self.set_nodelay(True)
        client = ClientInfo(
            client_id=secrets.token_hex(6),
            remote=self.request.remote_ip or "",
            user_agent=client_user_agent(self.request),
            path=self.request.path,
            credentials=self.credentials,
            trace=self.services.tracing.parent(self.request.headers),
        )
        self._alive_at = time.monotonic()
        self._look_for_life()
        self.services.metrics.connection_opened("websocket")
        self.conversation = self.services.converse(self, client, self.principal, self.refused)
        # What the handshake needed is of no use any more, and ten thousand connections would keep it.
        self.request.headers = HTTPHeaders()
        self.services.hub.add(self.conversation, self._place)
        self.conversation.start()
        if self._place is not None and self._place.refusal is not None:
            self.conversation.disconnect(CloseCode.CONNECTION_LIMIT, self._place.refusal.reason)

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Hand a message on; returns before any call has ended, so that the next one is read at once.

        Who does not read is not read from either, and a flood of small frames gives way to others now and
        then: Tornado would else work through all that it has received without a pause.
        """
        if self.conversation is None:
            return None
        self._alive_at = time.monotonic()
        self.conversation.receive(message)
        self._count_frames()
        if self._outbox.is_full:
            return self._until_room()
        if self.conversation.frames_in - self._paused_at >= _FRAMES_WITHOUT_PAUSE:
            self._paused_at = self.conversation.frames_in
            return asyncio.sleep(0)
        return None

    def on_pong(self, data: bytes) -> None:  # noqa: ARG002 - Tornado's signature
        """A sign of life."""
        self._alive_at = time.monotonic()

    def _count_frames(self) -> None:
        if self._place is not None and self.conversation is not None:
            self._place.frames_in = self.conversation.frames_in

    def _look_for_life(self) -> None:
        """Close a connection that has given no sign of life for too long (close code 3012)."""
        timeout = self.services.config.websocket.read_timeout
        silent = time.monotonic() - self._alive_at
        if silent >= timeout:
            self.on_ping_timeout()
        else:
            loop = asyncio.get_running_loop()
            self._life = loop.call_later(timeout - silent + _A_LITTLE, self._look_for_life)

    async def _until_room(self) -> None:
        while self._outbox.is_full:
            self._room = asyncio.Event()
            await self._room.wait()
        self._room = None

    def on_close(self) -> None:
        """Tell the conversation that its socket is gone."""
        if self._outbox.dropped:
            self.services.metrics.dropped("stream", self._outbox.dropped)
        self._outbox = Outbox(1, 1, _lagged)
        if self._room is not None:
            self._room.set()
        for timer in (self._slow, self._life):
            if timer is not None:
                timer.cancel()
        self._count_frames()
        if self.conversation is not None:
            self.services.hub.remove(self.conversation)
            # A browser's close() sends no code (RFC 6455 section 7.1.5 calls that 1005).
            left = self._protocol is not None and self._protocol.client_left and self.close_code is None
            self.conversation.lost(CloseCode.NORMAL if left else self.close_code)
            self.services.metrics.connection_closed("websocket")
            self.services.metrics.socket_closed(self.close_code)
        elif self._place is not None:
            self._place.release()

    def on_finish(self) -> None:
        """Give the place back where no conversation came to be."""
        if self._place is not None and self.get_status() != 101:  # noqa: PLR2004 - Switching Protocols
            self._place.release()

    def on_ping_timeout(self) -> None:
        """The client has not answered a ping in time."""
        if self.conversation is not None:
            self.conversation.disconnect(CloseCode.NO_PONG, "no pong in time")

    def identify(self, user: str) -> str | None:
        """Count the connection as `user`'s; answers why it is one too many where it is."""
        if self._place is None or self._place.identify(user) or self._place.refusal is None:
            return None
        return self._place.refusal.reason

    # --- what the conversation says ------------------------------------------------------------------------

    def send_result(self, text: str) -> None:
        """Send what must not be lost."""
        if self._is_idle():
            self._write(text)
        else:
            self._outbox.put_result(text)
            self._empty_later()

    def send_state(self, key: str, text: str, source: str) -> None:
        """Send what a newer text of the same key makes worthless."""
        if self._is_idle():
            self._write(text)
        else:
            self._outbox.put_state(key, text, source=source)
            self._empty_later()

    def send_stream(self, source: str, text: str) -> None:
        """Send what may be dropped where the reader is too slow."""
        if self._is_idle():
            self._write(text)
        else:
            self._outbox.put_stream(source, text)
            self._empty_later()

    @property
    def has_room(self) -> bool:
        """Whether nothing waits to be written."""
        return self._is_idle()

    def _is_idle(self) -> bool:
        return not self._outbox and not self._is_writing()

    def _is_writing(self) -> bool:
        return self._protocol is not None and self._protocol.stream.writing()

    def _write(self, text: str) -> None:
        """Write a frame; a client that has gone is noticed by `on_close`."""
        written: asyncio.Future[None] | None
        if self._place is not None:
            self._place.frames_out += 1
        if self._protocol is not None and self._protocol.takes_plain(len(text)):
            written = self._protocol.write_plain(_shared_frame(text))
            if written is None:
                return
        else:
            try:
                written = self.write_message(text)
            except WebSocketClosedError:
                return
        self._in_flight += 1
        written.add_done_callback(self._on_written)
        if self._is_writing():
            self._watch()

    def _on_written(self, written: "asyncio.Future[None]") -> None:
        self._in_flight -= 1
        if not written.cancelled() and not isinstance(
            written.exception(), WebSocketClosedError | StreamClosedError | None
        ):
            written.result()
        self._empty()

    def _empty(self) -> None:
        """Write what waits, as far as the client takes it."""
        while self._outbox and not self._is_writing():
            for text in self._outbox.take(_CHUNK):
                self._write(text)
        if self._outbox:
            self._empty_later()
        if self._room is not None and not self._outbox.is_full:
            self._room.set()
        if self.conversation is not None and self._is_idle():
            self.conversation.catch_up()

    def _empty_later(self) -> None:
        """Something waits: see to it that it is written in time, or the reader comes to an end."""
        if not self._in_flight and not self._is_called_back and self._protocol is not None:
            # A control frame is being written, and nobody else tells when that is over.
            self._is_called_back = True
            self._protocol.when_written(self._on_control_written)
        self._watch()

    def _on_control_written(self) -> None:
        self._is_called_back = False
        self._empty()

    def _watch(self) -> None:
        """See to it that a reader who takes nothing comes to an end (close code 3008)."""
        if self._slow is None and self._protocol is not None:
            timeout = self.services.config.websocket.write_timeout
            taken = self._protocol.bytes_taken
            self._slow = asyncio.get_running_loop().call_later(timeout, self._look_again, taken)

    def _look_again(self, taken: int) -> None:
        self._slow = None
        if self._protocol is None or self.conversation is None or self._is_idle():
            return
        if self._protocol.bytes_taken == taken:
            self.conversation.disconnect(CloseCode.SLOW_READER, "the client does not read")
        else:
            self._watch()

    def close(self, code: CloseCode | int | None = None, reason: str | None = None) -> None:
        """Close the socket with a code of the contract and a reason of the gateway's own words.

        What waits is written first; the last of it says goodbye. A reader who does not read is given that
        alone: the session keeps the ends of calls, and the log the events.
        """
        waiting = self._outbox.take(sys.maxsize)
        for text in waiting[-1:] if code == CloseCode.SLOW_READER else waiting:
            self._write(text)
        super().close(None if code is None else int(code), reason)

    def _subprotocol_token(self) -> str | None:
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        for name in map(str.strip, offered.split(",")):
            if name.startswith(_BEARER):
                return name.removeprefix(_BEARER)
        return None


class _LastFrame:
    """The frame made last: an event goes to all its readers one after the other, and is framed once."""

    text = ""
    frame = plain_text_frame("")


def _shared_frame(text: str) -> bytes:
    if text is not _LastFrame.text:
        _LastFrame.text, _LastFrame.frame = text, plain_text_frame(text)
    return _LastFrame.frame


def _lagged(source: str, dropped: int) -> str:
    """The frame that tells of a gap: for a call's progress with the call's id, else for a channel."""
    if source.startswith(CALL_SOURCE):
        return encode(Lagged(source, dropped), ReplyTo(source.removeprefix(CALL_SOURCE)))
    return encode(Lagged(source, dropped))


class ProtectedSocket(GatewaySocket):
    """``/api/v1/ws``: the same for those alone who prove who they are; 401 before the upgrade."""

    def require_credentials(self) -> None:
        """Refuse whoever brings none that hold."""
        if self.refused is not None:
            raise self.refused
        if self.principal is None and self.request.method == "GET":
            raise AuthRequired("send credentials: Authorization: Bearer TOKEN")
