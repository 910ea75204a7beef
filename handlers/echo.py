"""``/ws/echo``: says what it is told, so that conformance suites can test the wire (``websocket.echo``)."""

import time
from collections.abc import Awaitable

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError

from mcpgw.deadlines import Deadline
from mcpgw.errors import CloseCode, ConnectionLimit
from mcpgw.hub import Place

from .ws import BareSocket


class EchoSocket(BareSocket):
    """Text and binary messages, sent back as they came; no JSON, no credentials, off by default.

    It has its place among all connections, and among those of echo (`server.max_echo`). Who says nothing for
    `websocket.read_timeout` is closed with 3012, pongs or not. Nothing is told in a message of the gateway's
    own: one connection too many gets 503, and the end of the gateway closes with 1001.
    """

    __slots__ = ("_place", "_said_at", "_silence")

    def initialize(self) -> None:
        """There is no place yet."""
        self._place: Place | None = None
        self._said_at = 0.0
        self._silence: Deadline | None = None

    def prepare(self) -> None:
        """There is nothing here unless the configuration says so."""
        super().prepare()
        if not self.services.config.websocket.echo:
            raise HTTPError(404)
        self.refuse_while_draining()
        if self.request.method == "GET":
            self.check_handshake()
            place = self.services.hub.reserve("echo", None)
            if place.refusal is not None:
                place.release()
                raise ConnectionLimit(place.refusal.reason)
            self._place = place

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Be known, to be ended with the others."""
        self.set_nodelay(True)
        self.services.hub.add(self, self._place)
        self._said_at = time.monotonic()
        self._look_for_words()

    def _look_for_words(self) -> None:
        timeout = self.services.config.websocket.read_timeout
        silent = time.monotonic() - self._said_at
        if silent >= timeout:
            self.close(CloseCode.NO_PONG, "nothing was said")
        else:
            self._silence = self.services.deadlines.call_later(timeout - silent, self._look_for_words)

    def probe(self, seconds: float) -> None:
        """Nobody's connections are asked for their lives: an echo is no user's."""

    def review(self, judge: object) -> None:
        """Nobody has proved anything here, and nothing is to be looked at again."""

    async def drain(self, deadline: float) -> None:  # noqa: ARG002 - nothing is open that could finish
        """Say goodbye."""
        self.close(CloseCode.GOING_AWAY, "the gateway is ending")

    def on_close(self) -> None:
        """Give the place back."""
        if self._silence is not None:
            self._silence.cancel()
        self.services.hub.remove(self)
        if self._place is not None:
            self._place.release()  # where a fault kept the socket from being known

    def on_finish(self) -> None:
        """Give the place back where no socket came to be."""
        if self._place is not None and self.get_status() != 101:  # noqa: PLR2004 - Switching Protocols
            self._place.release()

    async def _echo(self, message: str | bytes) -> None:
        try:
            await self.write_message(message, binary=isinstance(message, bytes))
        except WebSocketClosedError:
            return

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Say it; the next message is read when this one is written."""
        self._said_at = time.monotonic()
        return self._echo(message)
