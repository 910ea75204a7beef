"""``/ws/echo``: says what it is told, so that conformance suites can test the wire (``websocket.echo``)."""

from collections.abc import Awaitable

from tornado.web import HTTPError
from tornado.websocket import WebSocketClosedError

from .ws import BareSocket


class EchoSocket(BareSocket):
    """Text and binary messages, sent back as they came; no JSON, no credentials, off by default."""

    def prepare(self) -> None:
        """There is nothing here unless the configuration says so."""
        super().prepare()
        if not self.services.config.websocket.echo:
            raise HTTPError(404)
        self.check_handshake()

    async def _echo(self, message: str | bytes) -> None:
        try:
            await self.write_message(message, binary=isinstance(message, bytes))
        except WebSocketClosedError:
            return

    def on_message(self, message: str | bytes) -> Awaitable[None] | None:
        """Say it; the next message is read when this one is written."""
        return self._echo(message)
