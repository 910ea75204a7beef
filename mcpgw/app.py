"""The Tornado application: made, listening, and ended without losing what is in flight."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from mcpgw.config import Config
from mcpgw.config_watch import Seen
from mcpgw.errors import ConfigError
from mcpgw.logs import log_event
from mcpgw.running import RunningGateway, forget_running, remember_running
from mcpgw.services import Services, running_services

if TYPE_CHECKING:
    from handlers.base import NotFoundHandler
    from handlers.body_limit import LimitedBodies
    from handlers.forwarding import ForwardedRequests
    from handlers.published_keys import KeyedRequests
    from handlers.routes import ROUTES
    from mcpgw.tls import Certificate
else:
    from mcpgw.handlers.base import NotFoundHandler
    from mcpgw.handlers.body_limit import LimitedBodies
    from mcpgw.handlers.forwarding import ForwardedRequests
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
        metrics=services.metrics,
        default_handler_class=NotFoundHandler,
        log_function=_log_request,
    )


def make_server(
    application: Application, config: Config, certificate: "Certificate | None" = None
) -> HTTPServer:
    """A server whose every connection is bounded in size and, until its request is there, in time.

    With a `certificate` it speaks TLS, and nothing else.
    """
    services: Services = application.settings["services"]
    forwarded = ForwardedRequests(application, lambda: services.config.server)
    return SparingServer(
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
        max_buffer_size=max(config.websocket.max_message_size, config.server.max_body_size) + _MOST_HEADERS,
    )


class SparingServer(HTTPServer):
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


async def serve(
    config: Config,
    on_listening: Callable[[str, Services], None],
    on_stopping: Callable[[Services], None] = lambda _services: None,
) -> None:
    """Run the gateway until SIGTERM or SIGINT, then end it gracefully.

    `on_listening` is called with the gateway's URL once clients can connect and the first start of every
    backend is over (or ten seconds have gone), `on_stopping` when the first signal has come. A second signal
    cuts the grace short.

    Raises:
        ConfigError: the address cannot be bound, or something else cannot be used on this machine.
    """
    loop = asyncio.get_running_loop()
    ending, hurry = asyncio.Event(), asyncio.Event()

    def end() -> None:
        (hurry if ending.is_set() else ending).set()

    seen, certificate = await _certificate(config)
    with _bound_sockets(config) as (sockets, url):
        for number in _SIGNALS:
            loop.add_signal_handler(number, end)
        try:
            async with running_services(config) as services:
                server = make_server(make_application(services), config, certificate)
                server.add_sockets(sockets)
                async with _watched_certificate(server, services, certificate, seen):
                    with _note_of(config, _running(url, config)):
                        if await _started(services, ending):
                            _settle_garbage()
                            log_event(_LOGGER, logging.INFO, "listening", url=url)
                            on_listening(url, services)
                        await ending.wait()
                        on_stopping(services)
                        await _drain(server, services, hurry)
        finally:
            for number in _SIGNALS:
                loop.remove_signal_handler(number)
    log_event(_LOGGER, logging.INFO, "ended")


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
    waits = {
        asyncio.create_task(_ready_for_calls(services)),
        asyncio.create_task(ending.wait()),
    }
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


def _running(url: str, config: Config) -> RunningGateway:
    certificate = config.server.tls_certificate
    return RunningGateway.here(url, str(Path(certificate).absolute()) if certificate else "")


@contextmanager
def _note_of(config: Config, running: RunningGateway) -> Iterator[None]:
    try:
        remember_running(config.data.dir, running)
    except OSError as error:
        raise ConfigError(
            [f"cannot write to the data folder {config.data.dir}: {error.strerror or error}"]
        ) from None
    try:
        yield
    finally:
        forget_running(config.data.dir, running)


async def _drain(server: HTTPServer, services: Services, hurry: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    log_event(_LOGGER, logging.INFO, "draining", connections=len(services.hub))
    drain_timeout = services.config.server.drain_timeout
    services.gateway.begin_draining(drain_timeout)
    services.bus.publish("gateway.draining", {"state": "draining"})
    server.stop()
    drained = asyncio.create_task(services.hub.drain(loop.time() + drain_timeout))
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


@contextmanager
def _bound_sockets(config: Config) -> Iterator[tuple[list[socket.socket], str]]:
    """The listening sockets and the gateway's URL; bound before anything is started in vain."""
    host, port = config.server.host, config.server.port
    try:
        sockets = bind_sockets(port, host)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(
            [f"cannot listen on {host}:{port}: {reason}; choose another with --host or --port"]
        ) from None
    try:
        bound = sockets[0].getsockname()[1]
        shown = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
        scheme = "https" if config.server.tls_certificate else "http"
        yield sockets, f"{scheme}://{f'[{shown}]' if ':' in shown else shown}:{bound}"
    finally:
        for listening in sockets:
            listening.close()


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
