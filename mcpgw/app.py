"""The Tornado application: made, listening, and ended without losing what is in flight."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from msgspec import DecodeError
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPConnection, HTTPMessageDelegate, HTTPServerConnectionDelegate
from tornado.iostream import IOStream
from tornado.web import Application, RequestHandler

from mcpgw.bus import SharedBus
from mcpgw.config import Config
from mcpgw.config_watch import Seen
from mcpgw.errors import ConfigError
from mcpgw.listening import bound_sockets, noted_in_folder, url_of
from mcpgw.logs import log_event
from mcpgw.services import Services, running_services
from mcpgw.workers.handed_over import DECODE
from mcpgw.workers.membership import Membership, SupervisorGoneError
from mcpgw.workers.peers import Peers
from mcpgw.workers.place import Place

if TYPE_CHECKING:
    from handlers.base import NotFoundHandler
    from handlers.body_limit import LimitedBodies
    from handlers.forwarding import ForwardedRequests
    from handlers.handing_over import AdoptedStream, HomedRequests, until_passed_on
    from handlers.published_keys import KeyedRequests
    from handlers.routes import ROUTES
    from mcpgw.tls import Certificate
else:
    from mcpgw.handlers.base import NotFoundHandler
    from mcpgw.handlers.body_limit import LimitedBodies
    from mcpgw.handlers.forwarding import ForwardedRequests
    from mcpgw.handlers.handing_over import AdoptedStream, HomedRequests, until_passed_on
    from mcpgw.handlers.published_keys import KeyedRequests
    from mcpgw.handlers.routes import ROUTES

_LOGGER = logging.getLogger("mcpgw.http")
_FIRST_START_SECONDS = 10.0
_SPARED = 16
"""File descriptors that are kept for backends, files and logs."""
_TELL_SECONDS = 10.0
_CLOSE_SECONDS = 2.0
_MOST_HEADERS = 65536
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def make_application(services: Services) -> Application:
    """The application with every route of the gateway."""
    return Application(
        list(ROUTES),
        services=services,
        default_handler_class=NotFoundHandler,
        log_function=_log_request,
    )


def make_server(
    application: Application, config: Config, certificate: "Certificate | None" = None
) -> "GatewayServer":
    """A server whose every connection is bounded in size and, until its request is there, in time.

    With a `certificate` it speaks TLS, and nothing else.
    """
    services: Services = application.settings["services"]
    at_home: HTTPServerConnectionDelegate = application
    if isinstance(services.peers, Membership):
        at_home = HomedRequests(application, services.other_home, services.peers.hand_over)
    forwarded = ForwardedRequests(at_home, lambda: services.config.server)
    return GatewayServer(
        LimitedBodies(
            KeyedRequests(forwarded, services.access.authority.fetching_keys, services.preparation.under_way),
            config.server.max_body_size,
        ),
        ssl_options=None if certificate is None else certificate.context,
        idle_connection_timeout=config.server.handshake_timeout,
        body_timeout=config.server.handshake_timeout,
        max_header_size=_MOST_HEADERS,
        # Tornado's own bound answers 400 without a word; `LimitedBodies` keeps none of what is too much.
        max_body_size=sys.maxsize,
        max_buffer_size=_buffer_size(config),
    )


def _buffer_size(config: Config) -> int:
    return max(config.websocket.max_message_size, config.server.max_body_size) + _MOST_HEADERS


class GatewayServer(HTTPServer):
    """A server that turns connections away while some file descriptors are left.

    Without any, accepting would fail again and again and take a whole core, and everything that opens a file
    would fail with it. Descriptors are given out lowest first, so a high one tells that few are left.
    """

    _told_at = 0.0

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, unless its descriptor is one of the last."""
        limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if stream.socket.fileno() >= limit - max(_SPARED, limit // 16):
            stream.close()
            now = time.monotonic()
            if now - self._told_at > _TELL_SECONDS:
                self._told_at = now
                log_event(
                    _LOGGER, logging.WARNING, "no file descriptors left: connections refused", limit=limit
                )
        else:
            super().handle_stream(stream, address)

    def adopt(self, body: bytes, descriptor: int) -> None:
        """Serve a connection that another worker has handed over."""
        sock = socket.socket(fileno=descriptor)
        try:
            told = DECODE(body)
        except DecodeError:
            sock.close()
            raise
        sock.setblocking(False)
        size = self.max_buffer_size or _MOST_HEADERS
        self.handle_stream(AdoptedStream(sock, told, max_buffer_size=size), (told.remote, 0))

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """One request begins; see `HTTPServerConnectionDelegate.start_request`."""
        connection = cast("Any", request_conn)
        if isinstance(connection.stream, AdoptedStream):
            # Its socket may be one end of a pair, which has no address, and may be encrypted elsewhere.
            connection.context.remote_ip = connection.stream.remote
            connection.context.protocol = connection.stream.scheme
        return super().start_request(server_conn, request_conn)


async def serve(
    config: Config,
    on_listening: Callable[[str, Services], None],
    on_stopping: Callable[[Services], None] = lambda _services: None,
    place: Place | None = None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, then end it gracefully; or, with a `place`, one worker of it.

    `on_listening` is called with the gateway's URL once clients can connect and the first start of every
    backend is over (or ten seconds have gone), `on_stopping` when the first signal has come. A second signal
    cuts the grace short. A worker ends when its supervisor says so, or is gone; of several the first calls
    `on_listening`.

    Raises:
        ConfigError: the address cannot be bound, or something else cannot be used on this machine.
    """
    ending = _Ending()
    if place is None:
        with bound_sockets(config) as sockets, ending.by_signals(*_SIGNALS):
            url = url_of(sockets, config)
            await _Serving(config, sockets, url, ending, on_listening, on_stopping).run()
    else:
        # The signal that a terminal sends to all is for the supervisor.
        with ending.by_signals(signal.SIGTERM), ending.unmoved_by(signal.SIGINT):
            membership = Membership(place, ending.told)
            try:
                sockets = place.sockets()
                url = url_of(sockets, config)
                serving = _Serving(config, sockets, url, ending, on_listening, on_stopping)
                await serving.run_as_worker(membership)
            except SupervisorGoneError:
                pass  # it has said so
            finally:
                membership.close()
    log_event(_LOGGER, logging.INFO, "ended")


class _Ending:
    """When the gateway is to end: `ending` with the first signal, `hurry` with the second."""

    def __init__(self) -> None:
        self.ending = asyncio.Event()
        self.hurry = asyncio.Event()
        self._signalled = False

    def take_signal(self) -> None:
        """One more signal has come."""
        if self._signalled:
            self.hurry.set()
        self._signalled = True
        self.ending.set()

    def told(self, at_once: bool) -> None:
        """The supervisor says so, or is gone; where a signal came too, both mean the same end."""
        if at_once:
            self.hurry.set()
        self.ending.set()

    @contextmanager
    def by_signals(self, *numbers: signal.Signals) -> Iterator[None]:
        """Have these signals end it, inside the block."""
        loop = asyncio.get_running_loop()
        for number in numbers:
            loop.add_signal_handler(number, self.take_signal)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    @contextmanager
    def unmoved_by(self, number: signal.Signals) -> Iterator[None]:
        """Have a signal do nothing, inside the block."""
        # A handler, for what is ignored would be so in every server that is started, too.
        before = signal.signal(number, lambda *_: None)
        try:
            yield
        finally:
            signal.signal(number, before)


@dataclass(frozen=True)
class _Serving:
    """One process that serves clients, from its start to its end."""

    config: Config
    sockets: Sequence[socket.socket]
    url: str
    ending: _Ending
    on_listening: Callable[[str, Services], None]
    on_stopping: Callable[[Services], None]

    async def run(self) -> None:
        """Be the whole gateway."""
        async with self._server(Peers()) as (server, services):
            server.add_sockets(self.sockets)
            with noted_in_folder(self.url, self.config):
                if await _started(services, self.ending.ending):
                    self._tell_listening()
                    self.on_listening(self.url, services)
                await self._until_ended(server, services)

    async def run_as_worker(self, membership: Membership) -> None:
        """Be one worker of several."""
        async with self._server(membership) as (server, services):
            membership.take_connections(server.adopt)
            if isinstance(services.bus, SharedBus):
                await services.bus.begin()
            membership.ready()
            if await _before(membership.go.wait(), self.ending.ending):
                server.add_sockets(self.sockets)
                if await _started(services, self.ending.ending):
                    self._tell_listening()
                    membership.servers_started()
                    if membership.is_first and await _before(membership.settled.wait(), self.ending.ending):
                        self.on_listening(self.url, services)
            await self._until_ended(server, services)

    def _tell_listening(self) -> None:
        _settle_garbage()
        log_event(_LOGGER, logging.INFO, "listening", url=self.url)

    @asynccontextmanager
    async def _server(self, peers: Peers) -> AsyncIterator[tuple["GatewayServer", Services]]:
        seen, certificate = await _certificate(self.config)
        async with running_services(self.config, peers) as services:
            server = make_server(make_application(services), self.config, certificate)
            async with _watched_certificate(server, services, certificate, seen):
                yield server, services

    async def _until_ended(self, server: "GatewayServer", services: Services) -> None:
        await self.ending.ending.wait()
        self.on_stopping(services)
        await _drain(server, services, self.ending.hurry)


async def _certificate(config: Config) -> "tuple[Seen, Certificate | None]":
    """What stands in the certificate's files, and what it is; nothing where there is none."""
    if not config.server.tls_key:
        return (), None
    from mcpgw.tls import load_certificate, look_at_certificate  # noqa: PLC0415 - nothing runs yet

    seen = await look_at_certificate(config.server)  # before it is read, so that no change is missed
    return seen, await asyncio.to_thread(load_certificate, config.server)


@asynccontextmanager
async def _watched_certificate(
    server: HTTPServer, services: Services, certificate: "Certificate | None", seen: Seen
) -> AsyncIterator[None]:
    """Have new connections begin with the certificate that is in the files now, inside the block.

    Whatever else of the configuration is watched: a certificate that is not renewed ends.
    """
    if certificate is None:
        yield
        return

    from mcpgw.tls import watch_certificate  # noqa: PLC0415 - it is loaded, for there is one

    def take(renewed: "Certificate") -> None:
        server.ssl_options = renewed.context
        _tell_certificate(services, renewed)
        services.bus.publish("config.applied", {"source": "file", "settings": ["server.tls_certificate"]})

    def refuse(error: ConfigError) -> None:
        for fault in error.faults:
            log_event(_LOGGER, logging.ERROR, "certificate refused", reason=fault)
        services.bus.publish("config.error", {"faults": list(error.faults)})

    _tell_certificate(services, certificate)
    settings = services.config
    watching = watch_certificate(settings.server, take, refuse, seen=seen, interval=settings.reload.interval)
    task = asyncio.create_task(watching, name="certificate")
    quiet = _BrokenEncryption()
    logging.getLogger("tornado.general").addFilter(quiet)
    try:
        yield
    finally:
        logging.getLogger("tornado.general").removeFilter(quiet)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _tell_certificate(services: Services, certificate: "Certificate") -> None:
    services.metrics.certificate_ends(certificate.ends.timestamp())
    names, ends = ", ".join(certificate.names), certificate.ends.isoformat()
    log_event(_LOGGER, logging.INFO, "certificate in force", names=names, ends=ends)
    if warning := certificate.warning():
        log_event(_LOGGER, logging.WARNING, "certificate", reason=f"it {warning}")


class _BrokenEncryption(logging.Filter):
    """Says as quietly as of refused requests what Tornado warns of: anybody can send what is no TLS."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether Tornado's own line is written."""
        message = record.getMessage()
        if not message.startswith(("SSL Error", "error on read")):
            return True
        log_event(_LOGGER, logging.INFO, "encryption failed", reason=message)
        return False


def _settle_garbage() -> None:
    """Spare the collector what was made at start, and let it look less often.

    A full collection with ten thousand connections stops the loop for more than a second. Most of what is let
    go is freed by counting references; what is not can wait for a while.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 10, 20)


async def _started(services: Services, ending: asyncio.Event) -> bool:
    """Wait until the first start of every backend is over; False where the gateway is to end before."""
    return await _before(_ready_for_calls(services), ending)


async def _before(awaited: Coroutine[Any, Any, Any], ending: asyncio.Event) -> bool:
    """Wait for something; false where the gateway is to end before."""
    waits = {asyncio.create_task(awaited), asyncio.create_task(ending.wait())}
    _, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in pending:
        wait.cancel()
    return not ending.is_set()


async def _ready_for_calls(services: Services) -> None:
    # While servers start there is time; without any, clients may never come.
    waits: list[Coroutine[None, None, None]] = [services.gateway.wait_started(_FIRST_START_SECONDS)]
    if services.gateway.server_ids and (prepared := services.preparation.under_way()) is not None:
        waits.append(prepared)
    await asyncio.gather(*waits)


async def _drain(server: HTTPServer, services: Services, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    log_event(_LOGGER, logging.INFO, "draining", connections=len(services.hub))
    drain_timeout = services.config.server.drain_timeout
    deadline = loop.time() + drain_timeout
    services.gateway.begin_draining(drain_timeout)
    services.bus.publish("gateway.draining", {"state": "draining"})
    server.stop()
    drained = asyncio.create_task(_drained(services, deadline))
    hurried = asyncio.create_task(hurry.wait())
    await asyncio.wait({drained, hurried}, return_when=asyncio.FIRST_COMPLETED)
    hurried.cancel()
    if drained.done():
        drained.result()
    else:
        drained.cancel()
        await services.hub.drain(loop.time())
    services.bus.publish("gateway.stopped", {"state": "stopped"})
    for ended in (services.hub.wait_empty(), server.close_all_connections()):
        # Whoever does not answer the goodbye keeps nobody from their end.
        with suppress(TimeoutError):
            async with asyncio.timeout(_CLOSE_SECONDS):
                await ended
    # Last of all: two workers may each encrypt what the other serves, and would wait for each other.
    await _passed_on(max(deadline - loop.time(), _CLOSE_SECONDS), hurry)


async def _passed_on(seconds: float, hurry: asyncio.Event) -> None:
    """Encrypt for other workers until they have said goodbye; not for long where there is a hurry."""
    passed_on, hurried = asyncio.create_task(until_passed_on()), asyncio.create_task(hurry.wait())
    await asyncio.wait({passed_on, hurried}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    if hurried.done():
        await asyncio.wait({passed_on}, timeout=_CLOSE_SECONDS)
    for task in (passed_on, hurried):
        task.cancel()


async def _drained(services: Services, deadline: float) -> None:
    """Let connections end, and what other workers have open here, until `deadline` (of the loop's clock)."""
    await services.hub.drain(deadline)
    await services.gateway.wait_served(deadline - asyncio.get_running_loop().time())


def _log_request(handler: RequestHandler) -> None:
    # The path alone: a query may carry what belongs in no log.
    log_event(
        _LOGGER,
        logging.WARNING if handler.get_status() >= 500 else logging.INFO,  # noqa: PLR2004
        "request",
        method=handler.request.method,
        path=handler.request.path,
        status=handler.get_status(),
        ms=round(handler.request.request_time() * 1000, 1),
        remote=handler.request.remote_ip,
    )
