"""``/api/v1/events`` and ``/api/v1/sse``: streams of Server-Sent Events (WHATWG HTML, section 9.2)."""

import asyncio
import logging
import secrets
import time
from typing import Any

from tornado.iostream import StreamClosedError

from mcpgw.audit import Actor
from mcpgw.errors import ConnectionLimit
from mcpgw.event_reader import CatchUp, EventReader, LogMovedOnError
from mcpgw.hub import Place
from mcpgw.logs import log_event
from mcpgw.outbox import Outbox
from mcpgw.wire import strict_json
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import Lagged, encode, now_ms

from .base import BaseHandler, client_user_agent

_LOGGER = logging.getLogger("mcpgw.sse")
_CHUNK = 65536
_STEP = 16


class EventStream(BaseHandler):
    """``connected`` at once, then events and a ``heartbeat`` at an interval, written as the reader reads.

    Events are unnamed, so that a browser's ``onmessage`` sees them. Without credentials that hold there are
    heartbeats alone.
    """

    logger = _LOGGER

    def initialize(self) -> None:
        """Not ended yet, and nothing waits."""
        events = self.services.config.events
        self._ending = False
        self._gone = False
        self._wake = asyncio.Event()
        self._outbox = Outbox(events.max_waiting, events.max_waiting_size, _lagged)
        self._events = 0
        self._client_id = secrets.token_hex(6)
        self._place: Place | None = None
        self._start = self.services.bus.position
        self._read: list[str] | None = None

    def prepare(self) -> None:
        """Check as every handler does; a gateway that is ending begins no stream."""
        super().prepare()
        self.refuse_while_draining()

    async def get(self) -> None:
        """Stream until the client or the gateway ends it."""
        user = None if self.principal is None else self.principal.user
        with self.services.hub.reserve("sse", user) as place:
            if place.refusal is not None:
                raise ConnectionLimit(place.refusal.reason)
            # Whatever is wrong with the request is answered before the stream begins.
            reader = self._reader()
            self._place = place
            self.set_header("Content-Type", "text/event-stream")
            self.set_header("X-Accel-Buffering", "no")
            self.services.hub.add(self, place)
            started = time.monotonic()
            self._has_begun()
            expiry = self._end_with_the_token()
            try:
                await self._stream(reader)
            except StreamClosedError:
                pass  # the client has gone; the log says so
            except LogMovedOnError:
                # The stream ends whole; the client comes back and is told that it has to load its state anew.
                self._tell("reader is too slow")
            except TimeoutError:
                # Nothing was read for the write timeout: there is no way to end such a stream whole.
                self._tell("reader does not read")
                self.detach().close()
            finally:
                if expiry is not None:
                    expiry.cancel()
                if reader is not None:
                    reader.stop()
                self.services.hub.remove(self)
                self._has_ended(time.monotonic() - started)

    def _has_begun(self) -> None:
        self._tell(
            "connected",
            remote=self.request.remote_ip,
            agent=client_user_agent(self.request),
            credentials=self.credentials,
            refused=None if self.refused is None else self.refused.code,
        )
        self.services.metrics.connection_opened("sse")
        self.services.audit.connect(
            self._actor(),
            kind="sse",
            path=self.request.path,
            credentials=self.credentials,
            agent=client_user_agent(self.request),
        )
        self._tell_user("user.connected")

    def _has_ended(self, seconds: float) -> None:
        self._tell("disconnected", seconds=round(seconds, 3), events=self._events)
        self.services.metrics.connection_closed("sse")
        self.services.metrics.dropped("stream", self._outbox.dropped)
        self.services.audit.disconnect(self._actor(), kind="sse", code=None, seconds=seconds)
        self._tell_user("user.disconnected")

    def on_connection_close(self) -> None:
        """The client has gone."""
        self._gone = True
        self._end()
        super().on_connection_close()

    async def drain(self, deadline: float) -> None:  # noqa: ARG002 - a stream has nothing to finish
        """End the stream behind what it has; browsers come back after the time that ``retry`` told them."""
        self._end()

    def _reader(self) -> EventReader | None:
        """What reads for the caller; None where nobody knows who that is."""
        if self.principal is None:
            return None
        named = ",".join(self.get_query_arguments("channels")).split(",")
        channels = [name.strip() for name in named if name.strip()]
        return EventReader(self.services.bus, self.principal, channels or None, self._take)

    def _since(self) -> Position | None:
        text = self.request.headers.get("Last-Event-ID") or self.get_query_argument("lastEventId", "")
        return (Position.parse(text) or Position("", 0)) if text else None

    async def _stream(self, reader: EventReader | None) -> None:
        config, loop = self.services.config.events, asyncio.get_running_loop()
        catch_up = None if reader is None else reader.start(self._since())
        await self._send([f"retry: {round(config.retry * 1000)}\n{self._connected(catch_up)}"])
        heartbeat = loop.time() + config.heartbeat
        while not self._gone:
            self._wake.clear()
            texts = self._next_texts(catch_up)
            if loop.time() >= heartbeat:
                texts.append(_event({"type": "heartbeat"}))
                heartbeat = loop.time() + config.heartbeat
            if texts:
                await self._send(texts)
            elif catch_up is None or catch_up.is_live:
                if self._ending:
                    break
                await self._wait(heartbeat)
            else:
                await asyncio.sleep(0)  # whatever was missed, none of it was for this reader: let others run

    def _connected(self, catch_up: CatchUp | None) -> str:
        """The first event. Its id is where the reader is before all that follows."""
        first: dict[str, object] = {"type": "connected", "message": "Connected to MCP Gateway events"}
        self._start = self.services.bus.position if catch_up is None else catch_up.position
        if catch_up is not None and catch_up.recovered is not None:
            first["recovered"] = catch_up.recovered
        return _event(first, str(self._start))

    def _next_texts(self, catch_up: CatchUp | None) -> list[str]:
        """What is to be written next: of the log until its end is reached, then what has come since."""
        if catch_up is None or catch_up.is_live:
            return self._outbox.take(_CHUNK)
        texts: list[str] = []
        self._read = texts
        catch_up.step(_STEP)
        self._read = None
        return texts

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass  # it is time for a heartbeat

    def _take(self, event: Event, text: str) -> None:
        # The present state comes first, out of order: its ids would move the reader's position back.
        head = f"id: {event.position}\n" if event.position.offset > self._start.offset else ""
        framed = f"{head}data: {text}\n\n"
        if self._read is not None:
            self._read.append(framed)
        elif event.key:
            self._outbox.put_state(event.key, framed, source=event.channel)
        else:
            self._outbox.put_stream(event.channel, framed)
        self._wake.set()

    async def _send(self, texts: list[str]) -> None:
        self._events += len(texts)
        if self._place is not None:
            self._place.frames_out += len(texts)
        self.write("".join(texts))
        async with asyncio.timeout(self.services.config.websocket.write_timeout):
            await self.flush()

    def _end_with_the_token(self) -> asyncio.TimerHandle | None:
        """A stream ends with the token that began it: nothing can renew it in place."""
        if self.principal is None:
            return None
        left = self.principal.expires_at + self.services.config.auth.leeway - time.time()
        return asyncio.get_running_loop().call_later(left, self._end)

    def _end(self) -> None:
        self._ending = True
        self._wake.set()

    def _actor(self) -> Actor:
        known = self.principal
        remote = self.request.remote_ip or ""
        if known is None:
            return Actor(remote, client=self._client_id)
        return Actor(remote, known.user, known.token_id, self._client_id)

    def _tell_user(self, type_name: str) -> None:
        if self.principal is not None:
            data = {"clientId": self._client_id, "kind": "sse"}
            self.services.bus.publish(type_name, data, channel=f"user:{self.principal.user}")

    def _tell(self, event: str, **fields: Any) -> None:
        user = None if self.principal is None else self.principal.user
        log_event(_LOGGER, logging.INFO, event, client=self._client_id, user=user, **fields)


class ProtectedEventStream(EventStream):
    """``/api/v1/sse``: the same for those alone who prove who they are; 401 before anything else."""

    def prepare(self) -> None:
        """Refuse whoever brings no credentials that hold."""
        super().prepare()
        self.refuse_without_credentials()


def _event(data: dict[str, object], identifier: str | None = None) -> str:
    head = "" if identifier is None else f"id: {identifier}\n"
    return f"{head}data: {strict_json.dumps(data | {'timestamp': now_ms()})}\n\n"


def _lagged(source: str, dropped: int) -> str:
    return f"data: {encode(Lagged(source, dropped))}\n\n"
