"""``/ws/echo``: says what it is told, so that conformance suites can test the wire (``websocket.echo``)."""

from collections.abc import Awaitable

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError

from mcpgw.errors import CloseCode, ConnectionLimit
from mcpgw.hub import Place

from .ws import BareSocket


class EchoSocket(BareSocket):
    """Text and binary messages, sent back as they came; no JSON, no credentials, off by default.

    It has its place among all connections. Nothing is told in a message of the gateway's own: one connection
    too many gets 503, and the end of the gateway closes with 1001.
    """

    _place: Place | None = None

    def prepare(self) -> None:
        """There is nothing here unless the configuration says so."""
        super().prepare()
        if not self.services.config.websocket.echo:
            raise HTTPError(404)
        self.refuse_while_draining()
        if self.request.method == "GET":
            self.check_handshake()
            place = self.services.hub.reserve("websocket", None)
            if place.refusal is not None:
                place.release()
                raise ConnectionLimit(place.refusal.reason)
            self._place = place

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Be known, to be ended with the others."""
        self.set_nodelay(True)
        self.services.hub.add(self, self._place)

    async def drain(self, deadline: float) -> None:  # noqa: ARG002 - nothing is open that could finish
        """Say goodbye."""
        self.close(CloseCode.GOING_AWAY, "the gateway is ending")

    def on_close(self) -> None:
        """Give the place back."""
        self.services.hub.remove(self)

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
        return self._echo(message)
