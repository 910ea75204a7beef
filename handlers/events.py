"""``/api/v1/events``: the stream of Server-Sent Events (WHATWG HTML, section 9.2)."""

import asyncio
import logging
import secrets
import time

from tornado.iostream import StreamClosedError

from mcpgw.logs import log_event
from mcpgw.wire import strict_json
from mcpgw.wire.frames import now_ms

from .base import BaseHandler, client_user_agent

_LOGGER = logging.getLogger("mcpgw.sse")
_WRITE_SECONDS = 10.0


class EventStream(BaseHandler):
    """``connected`` at once, then a ``heartbeat`` at an interval, each written only when the last has gone.

    Events are unnamed, so that a browser's ``onmessage`` sees them.
    """

    logger = _LOGGER

    def initialize(self) -> None:
        """Not ended yet."""
        self._ended = asyncio.Event()

    def prepare(self) -> None:
        """Check as every handler does; a gateway that is ending begins no stream."""
        super().prepare()
        self.refuse_while_draining()

    async def get(self) -> None:
        """Stream until the client or the gateway ends it."""
        config = self.services.config.events
        client_id, started, events = secrets.token_hex(6), time.monotonic(), 0
        user = None if self.principal is None else self.principal.user
        log_event(
            _LOGGER,
            logging.INFO,
            "connected",
            client=client_id,
            user=user,
            remote=self.request.remote_ip,
            agent=client_user_agent(self.request),
            credentials=self.credentials,
            refused=None if self.refused is None else self.refused.code,
        )
        self.set_header("Content-Type", "text/event-stream")
        self.set_header("X-Accel-Buffering", "no")
        self.services.hub.add(self)
        try:
            self.write(f"retry: {round(config.retry * 1000)}\n")
            # The id is there for a reader to come back with, before the first event of the log has one.
            self.write(f"id: {self.services.epoch}-0\n")
            await self._send({"type": "connected", "message": "Connected to MCP Gateway events"})
            events += 1
            while not await self._ended_within(config.heartbeat):
                await self._send({"type": "heartbeat"})
                events += 1
        except StreamClosedError:
            pass  # the client has gone; the line below says so
        except TimeoutError:
            # Nothing was read for the write timeout (the wire contract, section 6): there is no way to end
            # such a stream whole.
            log_event(_LOGGER, logging.WARNING, "reader does not read", client=client_id, user=user)
            self.detach().close()
        finally:
            self.services.hub.remove(self)
            log_event(
                _LOGGER,
                logging.INFO,
                "disconnected",
                client=client_id,
                user=user,
                seconds=round(time.monotonic() - started, 3),
                events=events,
            )

    def on_connection_close(self) -> None:
        """The client has gone."""
        self._ended.set()
        super().on_connection_close()

    async def drain(self, deadline: float) -> None:  # noqa: ARG002 - a stream has nothing to finish
        """End the stream; browsers come back after the time that ``retry`` told them."""
        self._ended.set()

    async def _send(self, event: dict[str, object]) -> None:
        self.write(f"data: {strict_json.dumps(event | {'timestamp': now_ms()})}\n\n")
        async with asyncio.timeout(_WRITE_SECONDS):
            await self.flush()

    async def _ended_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._ended.wait()
        except TimeoutError:
            return False
        return True
