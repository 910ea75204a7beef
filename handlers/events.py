"""``/api/v1/events`` and ``/api/v1/sse``: streams of Server-Sent Events (WHATWG HTML, section 9.2)."""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.iostream import IOStream, StreamClosedError

from mcpgw.audit import Actor
from mcpgw.deadlines import Deadline
from mcpgw.errors import AuthFailed, CloseCode, ConnectionLimit
from mcpgw.event_reader import CatchUp, EventReader, LogMovedOnError
from mcpgw.hub import Place
from mcpgw.logs import log_event
from mcpgw.services import Principal
from mcpgw.wire import strict_json
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import Disconnect, encode, now_ms

from .base import BaseHandler, client_user_agent
from .liveness import Taking
from .stream_writer import StreamWriter

_LOGGER = logging.getLogger("mcpgw.sse")
_STEP = 16


class EventStream(BaseHandler):
    """``connected`` at once, then events and a ``heartbeat`` at an interval, written as the reader reads.

    Events are unnamed, so that a browser's ``onmessage`` sees them. Without credentials that hold there are
    heartbeats alone.
    """

    logger = _LOGGER

    def initialize(self) -> None:
        """Not ended yet, and nothing waits."""
        self._ending = False
        self._gone = False
        self._is_slow = False
        self._waits_for_room = False
        self._wake = asyncio.Event()
        self._writer: StreamWriter | None = None
        self._event_reader: EventReader | None = None
        self._events = 0
        self._heartbeat = 0.0
        self._latest_end = math.inf
        self._client_id = secrets.token_hex(6)
        self._place: Place | None = None
        self._start = self.services.bus.position

    def prepare(self) -> None:
        """Check as every handler does; a gateway that is ending begins no stream."""
        super().prepare()
        self.refuse_while_draining()
        self.take_ticket("events")

    async def get(self) -> None:
        """Stream until the client or the gateway ends it."""
        user = None if self.principal is None else self.principal.user
        with self.services.hub.reserve("sse", user) as place:
            await self._wait_for_place(place)
            if self._gone:
                return  # nobody has to know that they were there
            self.refuse_while_draining()
            if place.refusal is not None:
                raise ConnectionLimit(place.refusal.reason)
            # It may have waited for its place, and nobody looks again at what has not begun.
            if not self.review_principal(self.services.access.authority.review):
                raise AuthFailed("the credentials hold no more")
            # Whatever is wrong with the request is answered before the stream begins.
            self._event_reader = reader = self._reader()
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
                # What waits was not taken in time: there is no way to end such a stream whole.
                self._tell("reader does not read")
                self.detach().close()
            finally:
                if expiry is not None:
                    expiry.cancel()
                if reader is not None:
                    reader.stop()
                if self._writer is not None:
                    self._writer.closing()
                self._events = place.frames_out  # the place forgets them when it is given back
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
        if self.refused is not None:
            outcome = self.refused.code
            self.services.audit.auth(self._actor(), credentials=self.credentials, outcome=outcome)
        self._tell_user("user.connected")

    def _has_ended(self, seconds: float) -> None:
        self._tell("disconnected", seconds=round(seconds, 3), events=self._events)
        self.services.metrics.connection_closed("sse")
        self.services.audit.disconnect(self._actor(), kind="sse", code=None, seconds=seconds)
        self._tell_user("user.disconnected")

    async def _wait_for_place(self, place: Place) -> None:
        """Above its user's limit a stream waits for the place of a connection that is found dead.

        What comes back from a cut is not refused then: a browser does not try again after a refusal.
        """
        if place.is_waiting:
            place.on_admitted = self._wake.set
            try:
                async with asyncio.timeout(self.services.config.server.place_timeout):
                    await self._wake.wait()
            except TimeoutError:
                place.give_up()

    def probe(self, seconds: float) -> None:
        """See whether the client's machine takes a heartbeat; the stream is cut where it does not in time."""
        stream = self._stream_below()
        if not stream.closed():
            self._heartbeat = 0.0
            self._wake.set()
            self.services.deadlines.call_later(seconds, partial(self._judge, Taking(stream)))

    def _judge(self, taking: Taking) -> None:
        if not self._gone and not taking.has_progress:
            self._tell("reader is gone")
            self._stream_below().close()

    def _stream_below(self) -> IOStream:
        return cast("HTTP1Connection", self.request.connection).stream

    def on_connection_close(self) -> None:
        """The client has gone."""
        self._gone = True
        self._end()
        super().on_connection_close()

    def review(self, judge: Callable[[Principal], Principal]) -> None:
        """End the stream where its credentials hold no more; or allow other than they did: it comes back."""
        before = self.principal
        if not self.review_principal(judge):
            self._tell("access ended")
            self._read_no_more()
            if self._writer is not None:
                goodbye = Disconnect(CloseCode.DISCONNECTED, "the credentials hold no more", reconnect=False)
                self._writer.send_text(encode(goodbye))
            self._end()
        elif self.principal != before:
            self._read_no_more()
            self._end()

    def _read_no_more(self) -> None:
        """What the log still has for the reader, and what happens now, is not for these credentials."""
        if self._event_reader is not None:
            self._event_reader.stop()

    async def drain(self, deadline: float) -> None:  # noqa: ARG002 - a stream has nothing to finish
        """End the stream behind what it has; browsers come back after the time that ``retry`` told them."""
        self._end()

    def _reader(self) -> EventReader | None:
        """What reads for the caller; None where nobody knows who that is."""
        if self.principal is None:
            return None
        named = ",".join(self.get_query_arguments("channels")).split(",")
        channels = [name.strip() for name in named if name.strip()]
        return EventReader(self.services.bus, self.principal, channels or None, self._take_missed)

    def _since(self) -> Position | None:
        text = self.request.headers.get("Last-Event-ID") or self.get_query_argument("lastEventId", "")
        return (Position.parse(text) or Position("", 0)) if text else None

    async def _stream(self, reader: EventReader | None) -> None:
        config, loop = self.services.config.events, asyncio.get_running_loop()
        catch_up = None if reader is None else reader.start(self._since())
        self.write(f"retry: {round(config.retry * 1000)}\n{self._connected(catch_up)}")
        async with asyncio.timeout(self.services.config.websocket.write_timeout):
            await self.flush()
        if self._stream_below().closed():
            raise StreamClosedError  # `flush` does not tell
        writer = self._begin_to_write(reader)
        self._heartbeat = loop.time() + config.heartbeat
        while not self._gone:
            self._wake.clear()
            if self._is_slow or loop.time() >= self._latest_end:
                raise TimeoutError
            if loop.time() >= self._heartbeat:
                self._heartbeat = loop.time() + config.heartbeat
                if writer.is_idle:  # else something is on its way, which says as much
                    writer.send_text(strict_json.dumps({"type": "heartbeat", "timestamp": now_ms()}))
            if catch_up is not None and not catch_up.is_live:
                if writer.is_idle:
                    catch_up.step(_STEP)
                    await asyncio.sleep(0)  # let others run
                    continue
            elif self._ending and writer.is_idle:
                break
            self._waits_for_room = self._ending or not (catch_up is None or catch_up.is_live)
            await self._wait(min(self._heartbeat, self._latest_end))

    def _begin_to_write(self, reader: EventReader | None) -> StreamWriter:
        assert self._place is not None, "no stream without a place"  # noqa: S101
        self._place.frames_out += 1
        chunked = self.request.version == "HTTP/1.1"
        parts = self.services.writer_parts
        self._writer = StreamWriter(self._stream_below(), self, self._place, parts, chunked=chunked)
        if reader is not None:
            reader.through(self._writer)
        return self._writer

    def on_room(self) -> None:
        """The client has taken what waited."""
        if self._waits_for_room:
            self._wake.set()

    def on_slow_reader(self) -> None:
        """The client has taken nothing for the write timeout."""
        self._is_slow = True
        self._wake.set()

    def _connected(self, catch_up: CatchUp | None) -> str:
        """The first event. Its id is where the reader is before all that follows."""
        first: dict[str, object] = {"type": "connected", "message": "Connected to MCP Gateway events"}
        self._start = self.services.bus.position if catch_up is None else catch_up.position
        if catch_up is not None and catch_up.recovered is not None:
            first["recovered"] = catch_up.recovered
        return f"id: {self._start}\ndata: {strict_json.dumps(first | {'timestamp': now_ms()})}\n\n"

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout_at(until):
                await self._wake.wait()
        except TimeoutError:
            pass  # it is time for a heartbeat, or for the end

    def _take_missed(self, event: Event, text: str) -> None:
        # The present state comes first, out of order: its ids would move the reader's position back.
        identifier = str(event.position) if event.position.offset > self._start.offset else None
        if self._writer is not None:
            self._writer.send_text(text, identifier)

    def _end_with_the_token(self) -> Deadline | None:
        """A stream ends with the token that began it: nothing can renew it in place."""
        if self.principal is None or math.isinf(self.principal.expires_at):
            return None
        left = self.principal.expires_at + self.services.config.auth.leeway - time.time()
        return self.services.deadlines.call_later(left, self._token_is_over)

    def _token_is_over(self) -> None:
        self._read_no_more()
        self._end()

    def _end(self) -> None:
        """End when what waits is written, in so much time as a reader has who takes nothing."""
        if not self._ending:
            timeout = self.services.config.websocket.write_timeout
            self._latest_end = asyncio.get_running_loop().time() + timeout
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
