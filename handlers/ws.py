"""``/ws``: the WebSocket of a conversation. Knows sockets and close codes, and no type of frame."""

import asyncio
import base64
import logging
import secrets
import time
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from tornado.httputil import HTTPServerRequest, RequestStartLine
from tornado.iostream import IOStream
from tornado.web import Application, HTTPError
from tornado.websocket import WebSocketHandler, WebSocketProtocol13

from mcpgw.conversation import Conversation
from mcpgw.conversation_parts import ClientInfo
from mcpgw.deadlines import Deadline
from mcpgw.errors import AuthRequired, CloseCode, ConnectionLimit
from mcpgw.hub import Place
from mcpgw.services import Principal
from mcpgw.wire import strict_json
from mcpgw.wire.frames import PROTOCOL
from mcpgw.workers.handed_over import HandedOver
from mcpgw.workers.membership import Membership

from .base import BaseHandler, client_user_agent
from .frame_encoding import COMPRESSION_LEVEL, MEMORY_LEVEL
from .handing_over import AdoptedStream, give_away, head_of, scheme_of
from .liveness import Taking
from .request_tokens import subprotocol_token
from .socket_writer import SocketWriter
from .websocket_protocol import GatewayWebSocketProtocol, text_message

_KEY_BYTES = 16
_FRAMES_WITHOUT_PAUSE = 32
_HANDSHAKE_ALONE = (
    "_headers",
    "_headers_written",
    "_reason",
    "_transforms",
    "_write_buffer",
    "credentials",
    "open_args",
    "open_kwargs",
    "path_args",
    "path_kwargs",
    "refused",
)
"""Attributes of a handler, most of them Tornado's, that nobody looks at after the upgrade."""


@dataclass(frozen=True, slots=True)
class PastRequest:
    """What is still told of a request when its upgrade is over."""

    path: str
    remote_ip: str


class BareSocket(WebSocketHandler, BaseHandler):
    """What every WebSocket has: the protocol, its limits, and the checks of its handshake.

    What is needed for as long as the socket is open has a slot, also what Tornado sets; what only the
    handshake needs has none, and is forgotten when the upgrade is over.
    """

    __slots__ = (
        "_auto_finish",
        "_finished",
        "_on_close_called",
        "_prepared_future",
        "_status_code",
        "application",
        "close_code",
        "close_reason",
        "principal",
        "request",
        "ui",
        "ws_connection",
    )
    logger = logging.getLogger("mcpgw.websocket")

    def __init__(self, application: Application, request: HTTPServerRequest, **settings: Any) -> None:
        """See `RequestHandler`; nobody has proved to be anybody yet."""
        self.principal: Principal | None = None
        super().__init__(application, request, **settings)

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
        return {"compression_level": COMPRESSION_LEVEL, "mem_level": MEMORY_LEVEL}

    def get_websocket_protocol(self) -> GatewayWebSocketProtocol | None:
        """The protocol object, where the client speaks version 13."""
        protocol = super().get_websocket_protocol()
        if not isinstance(protocol, WebSocketProtocol13):
            return None
        minimum = self.services.config.websocket.compression_minimum
        return GatewayWebSocketProtocol(self, protocol.params, self.services.deadlines, minimum)

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

    @property
    def is_held_back(self) -> bool:
        """Whether nothing is read from the client for now, though it is there."""
        return False

    def on_ping_timeout(self) -> None:
        """The client has not answered a ping in time."""
        self.close(CloseCode.NO_PONG, "no pong in time")

    def forget_handshake(self) -> None:
        """Let go what only the handshake needed: ten thousand connections would keep it."""
        request = self.request
        self.request = cast("HTTPServerRequest", PastRequest(request.path, request.remote_ip or ""))
        self.ui = None  # type: ignore[assignment]  # as Tornado does it when a request is over
        # A new dictionary, because one that has grown does not shrink.
        self.__dict__ = {name: value for name, value in vars(self).items() if name not in _HANDSHAKE_ALONE}

    def _detach_stream(self) -> IOStream:
        # Tornado puts seven functions into each handler here, which only say that they are not to be called.
        return self.detach()


class _WaitForPlace:
    """What a connection above its user's limit waits with."""

    __slots__ = ("_is_over", "_timer")

    def __init__(self, timer: Deadline) -> None:
        self._timer = timer
        self._is_over = asyncio.Event()

    async def until_over(self) -> None:
        """Wait until it is decided whether the connection may stay."""
        await self._is_over.wait()

    def end(self) -> None:
        """It is decided."""
        self._timer.cancel()
        self._is_over.set()


class GatewaySocket(BareSocket):
    """One WebSocket: hands texts to its conversation, and writes what the conversation says."""

    __slots__ = (
        "_alive_at",
        "_frames_out",
        "_head",
        "_life",
        "_paused_at",
        "_place",
        "_protocol",
        "_room",
        "_wait",
        "_writer",
        "conversation",
    )

    def initialize(self) -> None:
        """Nothing waits yet."""
        self.conversation: Conversation | None = None
        self._place: Place | None = None
        self._frames_out = 0
        self._head = b""
        self._writer: SocketWriter | None = None
        self._protocol: GatewayWebSocketProtocol | None = None
        self._paused_at = 0
        self._room: asyncio.Event | None = None
        self._life: Deadline | None = None
        self._alive_at = 0.0
        self._wait: _WaitForPlace | None = None

    def prepare(self) -> None:
        """Look at the credentials; those that do not hold open a socket that asks for better ones."""
        super().prepare()
        self.refuse_while_draining()
        if self.request.method == "GET":
            self.check_handshake()
        token = subprotocol_token(self.request.headers)
        if self.principal is None and self.refused is None and token is not None:
            self.credentials = "subprotocol"
            self.principal, self.refused = self.services.authenticate(token)
        self.take_ticket("websocket")
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
        stream = self._stream
        adopted = stream.client_id if isinstance(stream, AdoptedStream) else ""
        if self.principal is None and not adopted and not self.services.peers.is_alone:
            # Who it is shows later, and where they are at home: there the request is looked at again.
            line = RequestStartLine(self.request.method or "", self.request.uri or "", self.request.version)
            self._head = head_of(line, self.request.headers)
        client = ClientInfo(
            client_id=adopted or secrets.token_hex(6),
            remote=self.request.remote_ip or "",
            user_agent=client_user_agent(self.request),
            path=self.request.path,
            credentials=self.credentials,
            trace=self.services.tracing.parent(self.request.headers),
            is_greeted=bool(adopted),
        )
        self._alive_at = time.monotonic()
        self._look_for_life()
        self._begin_to_write()
        self.conversation = self.services.converse(self, client, self.principal, self.refused)
        self.services.metrics.connection_opened("websocket")
        self.services.hub.add(self.conversation, self._place)
        self._wait_for_place()
        self.conversation.start()
        # Between the look at the credentials and this lies the upgrade.
        self.conversation.review(self.services.access.authority.review)
        if self._place is not None and self._place.refusal is not None:
            self.conversation.disconnect(CloseCode.CONNECTION_LIMIT, self._place.refusal.reason)

    def _begin_to_write(self) -> None:
        assert self._protocol is not None, "the socket is open"  # noqa: S101
        assert self._place is not None, "no upgrade without a place"  # noqa: S101
        self._writer = SocketWriter(self._protocol, self, self._place, self.services.writer_parts)

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
        if self._wait is not None and self._holds_request:
            return self._wait.until_over()
        if self.conversation.awaited_keys is not None:
            return self.conversation.awaited_keys.until_over()
        if self._open_writer.is_full:
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
        if self.is_held_back:
            self._life = self.services.deadlines.call_later(timeout, self._look_for_life)
        elif silent >= timeout:
            self.on_ping_timeout()
        else:
            self._life = self.services.deadlines.call_later(timeout - silent, self._look_for_life)

    # --- above the user's limit ----------------------------------------------------------------------------

    @property
    def has_place(self) -> bool:
        """Whether the connection is within its user's limit."""
        return self._place is None or not (self._place.is_waiting or self._place.refusal)

    def come_first(self) -> None:
        """A place of this user is about to come free, and is meant for this connection."""
        if self._place is not None:
            self._place.come_first()

    def probe(self, seconds: float) -> None:
        """Ask for a sign of life; without one in so many seconds the connection is closed with 3012."""
        if self._protocol is not None and not self._protocol.is_closing():
            asked, taking = time.monotonic(), Taking(self._protocol.stream)
            self._protocol.write_ping(b"")
            self.services.deadlines.call_later(seconds, partial(self._judge, asked, taking))

    def _judge(self, asked: float, taking: Taking) -> None:
        # A pong comes late where much is on its way to the client, who takes it all the same.
        if self._alive_at < asked and not (taking.was_under_way and taking.has_progress):
            self.on_ping_timeout()

    def _wait_for_place(self) -> None:
        if self._place is not None and self._place.is_waiting and self._wait is None:
            self._place.on_admitted = self._on_place
            timeout = self.services.config.server.place_timeout
            self._wait = _WaitForPlace(self.services.deadlines.call_later(timeout, self._on_no_place))

    def _on_place(self) -> None:
        if self.conversation is not None:
            self.conversation.admitted()
        self._wait_no_longer()

    def _on_no_place(self) -> None:
        if self._place is not None and self.conversation is not None and self._place.is_waiting:
            self.conversation.disconnect(CloseCode.CONNECTION_LIMIT, self._place.give_up().reason)
        self._wait_no_longer()

    def _wait_no_longer(self) -> None:
        if self._wait is not None:
            self._wait.end()
            self._wait = None

    async def _until_room(self) -> None:
        while self._writer is not None and self._writer.is_full:
            self._room = asyncio.Event()
            await self._room.wait()
        self._room = None

    def on_close(self) -> None:
        """Tell the conversation that its socket is gone."""
        if self._writer is not None:
            self._writer.closing()
        if self._room is not None:
            self._room.set()
        self._wait_no_longer()
        if self._life is not None:
            self._life.cancel()
        self._count_frames()
        self._frames_out = self.frames_out  # the place forgets them when it is given back
        if self.conversation is not None:
            self.services.hub.remove(self.conversation)
            # A browser's close() sends no code (RFC 6455 section 7.1.5 calls that 1005).
            left = self._protocol is not None and self._protocol.client_left and self.close_code is None
            self.conversation.lost(CloseCode.NORMAL if left else self.close_code)
            self.services.metrics.connection_closed("websocket")
            if not self.conversation.has_left:
                self.services.metrics.socket_closed(self.conversation.closed_with or self.close_code)
        if self._place is not None:
            self._place.release()  # where a fault kept the conversation from being known
        # They lead back here. The collector hardly ever looks at what has lived for as long as a connection.
        self.conversation = self._protocol = self._writer = None

    def on_finish(self) -> None:
        """Give the place back where no conversation came to be."""
        if self._place is not None and self.get_status() != 101:  # noqa: PLR2004 - Switching Protocols
            self._place.release()

    @property
    def is_held_back(self) -> bool:
        """Whether the client is not read from until it reads, or has a place for what it has asked for.

        Its pongs wait with all else that it sends.
        """
        awaits_keys = self.conversation is not None and self.conversation.awaited_keys is not None
        return self._room is not None or self._holds_request or awaits_keys

    @property
    def _holds_request(self) -> bool:
        return self._wait is not None and self.conversation is not None and self.conversation.is_holding

    def on_ping_timeout(self) -> None:
        """The client has not answered a ping in time."""
        if self.conversation is not None:
            self.conversation.disconnect(CloseCode.NO_PONG, "no pong in time")

    @property
    def _stream(self) -> IOStream:
        assert self._protocol is not None, "the socket is open"  # noqa: S101
        return self._protocol.stream

    def leave(self, home: int, values: Sequence[object]) -> None:
        """Hand the connection over to another worker, which is given these frames first."""
        if self._protocol is None or self._stream.closed():
            return
        stream = self._stream
        received = b"".join(text_message(strict_json.dumps(value)) for value in values)
        client_id = "" if self.conversation is None else self.conversation.client.client_id
        rest = self._protocol.take_unread()
        told = HandedOver(
            self._head + received + rest.received,
            self.request.remote_ip or "",
            scheme_of(stream),
            client_id,
        )
        peers = self.services.peers
        assert isinstance(peers, Membership), "alone, everybody is at home here"  # noqa: S101
        stream.set_close_callback(None)
        give_away(stream, home, told, peers.hand_over, rest.waiting)
        self._protocol.let_go()

    def identify(self, user: str) -> str | None:
        """Count the connection as `user`'s; answers why it is one too many where it is."""
        if self._place is None or self._place.identify(user):
            return None
        self._wait_for_place()
        return None if self._place.refusal is None else self._place.refusal.reason

    # --- what the conversation says ------------------------------------------------------------------------

    @property
    def live_reader(self) -> SocketWriter:
        """What writes events as they happen."""
        return self._open_writer

    @property
    def frames_out(self) -> int:
        """How many frames were written so far."""
        return self._frames_out if self._place is None else max(self._frames_out, self._place.frames_out)

    def send_result(self, text: str) -> None:
        """Send what must not be lost."""
        self._open_writer.send_text(text)

    def send_stream(self, source: str, text: str) -> None:
        """Send what may be dropped where the reader is too slow."""
        self._open_writer.send_text(text, source)

    @property
    def has_room(self) -> bool:
        """Whether nothing waits to be written."""
        return self._open_writer.is_idle

    def on_room(self) -> None:
        """The client takes again what it is sent."""
        if self._room is not None and not self._open_writer.is_full:
            self._room.set()
        if self.conversation is not None and self._open_writer.is_idle:
            self.conversation.catch_up()

    def on_slow_reader(self) -> None:
        """The client has taken nothing for the write timeout."""
        if self.conversation is not None:
            self.conversation.disconnect(CloseCode.SLOW_READER, "the client does not read")

    @property
    def _open_writer(self) -> SocketWriter:
        assert self._writer is not None, "nothing is said before the socket is open"  # noqa: S101
        return self._writer

    def close(self, code: CloseCode | int | None = None, reason: str | None = None) -> None:
        """Close the socket with a code of the contract and a reason of the gateway's own words.

        What waits is written first; the last of it says goodbye.
        """
        if self._writer is not None:
            self._writer.say_goodbye(the_last_alone=code == CloseCode.SLOW_READER)
        super().close(None if code is None else int(code), reason)
        if self._place is not None and not self._place.leave() and self._protocol is not None:
            self._protocol.stream.close()  # so many of this user's are being closed: no time for goodbyes


class ProtectedSocket(GatewaySocket):
    """``/api/v1/ws``: the same for those alone who prove who they are; 401 before the upgrade."""

    def require_credentials(self) -> None:
        """Refuse whoever brings none that hold."""
        if self.refused is not None:
            raise self.refused
        if self.principal is None and self.request.method == "GET":
            raise AuthRequired("send credentials: Authorization: Bearer TOKEN")
