"""``/ws``: the WebSocket of a conversation. Knows sockets and close codes, and no type of frame."""

import asyncio
import base64
import logging
import secrets
from typing import Any

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError, WebSocketHandler, WebSocketProtocol13

from mcpgw.conversation import ClientInfo, Conversation
from mcpgw.errors import CloseCode
from mcpgw.wire.frames import PROTOCOL

from .base import BaseHandler, client_user_agent
from .websocket_protocol import GatewayWebSocketProtocol

_BEARER = "bearer."
_KEY_BYTES = 16


class GatewaySocket(WebSocketHandler, BaseHandler):
    """One WebSocket: hands texts to its conversation, and writes what the conversation says."""

    logger = logging.getLogger("mcpgw.websocket")
    conversation: Conversation | None = None

    def prepare(self) -> None:
        """Look at the credentials; those that do not hold open a socket that asks for better ones."""
        super().prepare()
        self.refuse_while_draining()
        if self.request.method == "GET":
            self._check_handshake()
        token = self._subprotocol_token()
        if self.principal is None and self.refused is None and token is not None:
            self.credentials = "subprotocol"
            self.principal, self.refused = self.services.authenticate(token)

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
        return GatewayWebSocketProtocol(self, mask_outgoing=False, params=protocol.params)

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

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Begin the conversation."""
        self.set_nodelay(True)
        client = ClientInfo(
            client_id=secrets.token_hex(6),
            remote=self.request.remote_ip or "",
            user_agent=client_user_agent(self.request),
            credentials=self.credentials,
        )
        self.conversation = self.services.converse(self, client, self.principal, self.refused)
        self.services.hub.add(self.conversation)
        self.conversation.start()

    def on_message(self, message: str | bytes) -> None:
        """Hand a message on; returns before any call has ended, so that the next one is read at once."""
        if self.conversation is not None:
            self.conversation.receive(message)

    def on_close(self) -> None:
        """Tell the conversation that its socket is gone."""
        if self.conversation is not None:
            self.services.hub.remove(self.conversation)
            self.conversation.lost(self.close_code)

    def send(self, text: str) -> None:
        """Write a frame; a client that has gone is noticed by `on_close`."""
        try:
            written = self.write_message(text)
        except WebSocketClosedError:
            return
        written.add_done_callback(_forget_closed)

    def close(self, code: CloseCode | int | None = None, reason: str | None = None) -> None:
        """Close the socket with a code of the contract and a reason of the gateway's own words."""
        super().close(None if code is None else int(code), reason)

    def _check_handshake(self) -> None:
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

    def _subprotocol_token(self) -> str | None:
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "")
        for name in map(str.strip, offered.split(",")):
            if name.startswith(_BEARER):
                return name.removeprefix(_BEARER)
        return None


def _forget_closed(written: "asyncio.Future[None]") -> None:
    if not written.cancelled() and not isinstance(written.exception(), WebSocketClosedError | None):
        written.result()
