"""Everything that the gateway is made of, built in order and ended in the opposite order."""

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from mcpgw.access.configured import configured_tokens
from mcpgw.access.permissions import require_publish_events
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.audit import Actor, Audit
from mcpgw.backends.backend import Backend
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.bus import Bus, LocalBus
from mcpgw.bus.log_handler import BusLogHandler
from mcpgw.config import Config
from mcpgw.conversation import Conversation
from mcpgw.conversation_parts import ClientInfo, ConversationParts, ConversationSettings, Sink
from mcpgw.deadlines import Deadlines
from mcpgw.errors import AuthFailed
from mcpgw.gateway import Gateway
from mcpgw.hub import Hub, sweep_every
from mcpgw.memory_use import resident_bytes
from mcpgw.metrics import Metrics
from mcpgw.rate_limit import UserLimits
from mcpgw.rooms import Rooms
from mcpgw.server_definitions import MEMORY_SERVER, ServerDefinition
from mcpgw.session_store import SessionStore
from mcpgw.tracing import Tracing
from mcpgw.turns import Turns
from mcpgw.wire import frames
from mcpgw.wire.events import CHANNELS, EVENT_TYPES
from mcpgw.wire.frames import CLIENT_TYPES, SERVER_TYPES

__all__ = [
    "Actor",
    "Principal",
    "Services",
    "WriterParts",
    "require_publish_events",
    "running_services",
    "server_definitions",
]


@dataclass(frozen=True, slots=True)
class WriterParts:
    """What those who write to readers share.

    `max_waiting` and `max_waiting_size` are the frames and bytes that may wait for one reader;
    `write_timeout` the seconds in which a reader for whom something waits has to take something.
    """

    max_waiting: int
    max_waiting_size: int
    write_timeout: float
    metrics: Metrics
    turns: Turns


@dataclass(frozen=True)
class Services:
    """What the handlers work with."""

    config: Config
    gateway: Gateway
    tokens: Tokens
    hub: Hub
    bus: Bus
    rooms: Rooms
    sessions: SessionStore
    limits: UserLimits
    metrics: Metrics
    audit: Audit
    tracing: Tracing
    deadlines: Deadlines = field(default_factory=Deadlines)
    started: float = field(default_factory=time.monotonic)

    def statistics(self) -> dict[str, Any]:
        """What goes on, as JSON; ages in milliseconds, memory in bytes."""
        hub = self.hub.statistics()
        return {
            "uptimeMs": round((time.monotonic() - self.started) * 1000),
            "connections": {
                "all": hub.connections,
                "byKind": dict(hub.by_kind),
                "byUser": dict(hub.by_user),
                "unidentified": hub.unidentified,
                "waiting": hub.waiting,
                "closing": hub.closing,
                "newestAgeMs": round(hub.newest_age * 1000),
                "medianAgeMs": round(hub.median_age * 1000),
                "oldestAgeMs": round(hub.oldest_age * 1000),
                "accepted": hub.accepted,
                "refused": hub.refused,
            },
            "frames": {"in": hub.frames_in, "out": hub.frames_out},
            "events": {
                "epoch": self.bus.position.epoch,
                "published": self.bus.position.offset,
                "subscriptions": dict(self.bus.listeners()),
            },
            "sessions": len(self.sessions),
            "calls": self.gateway.counts.to_json(),
            "errors": self.metrics.errors(),
            "memory": {"residentBytes": resident_bytes()},
        }

    def authenticate(self, token: str | None) -> tuple[Principal | None, AuthFailed | None]:
        """Who a token proves; and where it does not hold, why. Neither where there is no token."""
        if token is None:
            return None, None
        try:
            return self.tokens.verify(token), None
        except AuthFailed as refused:
            return None, refused

    def converse(
        self, sink: Sink, client: ClientInfo, principal: Principal | None, refused: AuthFailed | None
    ) -> Conversation:
        """A conversation with a client that has just connected."""
        parts, settings = self._conversations
        return Conversation(parts, settings, sink, client, principal=principal, refused=refused)

    @cached_property
    def writer_parts(self) -> WriterParts:
        """What those who write to readers share."""
        events, timeout = self.config.events, self.config.websocket.write_timeout
        return WriterParts(events.max_waiting, events.max_waiting_size, timeout, self.metrics, Turns())

    @cached_property
    def _conversations(self) -> tuple[ConversationParts, ConversationSettings]:
        """What all conversations share."""
        settings = ConversationSettings(self.config.auth, self.config.websocket, self.config.sessions)
        parts = ConversationParts(
            self.gateway,
            self.tokens,
            self.bus,
            self.rooms,
            self.sessions,
            self.limits,
            self.metrics,
            self.audit,
            self.deadlines,
        )
        return parts, settings


class _Announcer:
    """Publishes what happens to the backends."""

    def __init__(self, bus: Bus, metrics: Metrics, servers: int) -> None:
        self._bus = bus
        self._metrics = metrics
        self._servers = servers
        self._ready: set[str] = set()

    def tell(self, server_id: str, name: str, data: Mapping[str, Any]) -> None:
        """Publish one event of a server, and the gateway's health where that has changed."""
        self._bus.publish(f"server.{name}", {"serverId": server_id, **data})
        before = len(self._ready)
        if name in ("started", "restarted"):
            self._ready.add(server_id)
            self._metrics.backend_up(server_id, True)
        elif name in ("retrying", "stopped"):
            self._ready.discard(server_id)
            self._metrics.backend_up(server_id, False)
        if name == "restarted":
            self._metrics.backend_restarted(server_id)
        if len(self._ready) != before:
            health = {"state": "health", "ready": len(self._ready), "servers": self._servers}
            self._bus.publish("gateway.health_update", health)


def server_definitions(config: Config) -> list[ServerDefinition]:
    """The configured servers, with the embedded memory server before them where it is enabled."""
    definitions = list(config.servers.values())
    if config.memory.enabled:
        database = config.data.dir / "memory.db"
        memory = ServerDefinition(
            name=MEMORY_SERVER,
            transport="stdio",
            command=sys.executable,
            # -P: a mcp.py or token.py of the current folder must not stand in for the real one, nor be run.
            args=("-P", "-m", "mcpgw.backends.memory", "--database", str(database)),
        )
        definitions.insert(0, memory)
    return definitions


@asynccontextmanager
async def running_services(config: Config) -> AsyncIterator[Services]:
    """Build everything, start the backends, and end them when left.

    Raises:
        ConfigError: something of the configuration cannot be used on this machine.
    """
    frames.prepare()
    tokens = configured_tokens(config, create_key=True)
    sessions = SessionStore(config.sessions)
    definitions = server_definitions(config)
    metrics = Metrics(
        servers=[definition.name for definition in definitions],
        frame_types=[*CLIENT_TYPES, *SERVER_TYPES, *EVENT_TYPES],
        channels=[*CHANNELS, "user", "room"],
    )
    bus = LocalBus(
        config.events.log_size,
        config.events.log_age,
        config.events.log_bytes,
        on_publish=metrics.event_published,
    )
    metrics.count_sessions(lambda: len(sessions))
    tracing = Tracing()
    announcer = _Announcer(bus, metrics, len(definitions))
    reaper = ProcessReaper()
    try:
        backends = [
            Backend(
                definition,
                config.backends,
                reaper=reaper,
                longest_call=config.calls.max_timeout,
                announce=partial(announcer.tell, definition.name),
            )
            for definition in definitions
        ]
        gateway = Gateway(backends, config.calls, config.backends, metrics=metrics, tracing=tracing)
        gateway.start()
        bus.publish("config.applied", {"source": "start"})
        bus.publish("gateway.started", {"state": "started"})
        hub, rooms = Hub(config.server), Rooms(bus)
        limits = UserLimits(
            config.calls.rate, config.calls.burst, config.websocket.frames_rate, config.websocket.frames_burst
        )
        sweeping = asyncio.create_task(
            sweep_every(config.server.sweep_interval, hub.sweep, limits.sweep, sessions.sweep), name="sweep"
        )
        log_handler = BusLogHandler(bus)
        logging.getLogger("mcpgw").addHandler(log_handler)
        try:
            with Audit(config.audit) as audit:
                try:
                    yield Services(
                        config, gateway, tokens, hub, bus, rooms, sessions, limits, metrics, audit, tracing
                    )
                finally:
                    sessions.close()  # before the audit log, which has the ends of their calls
        finally:
            logging.getLogger("mcpgw").removeHandler(log_handler)
            sweeping.cancel()
            await gateway.stop()
    finally:
        reaper.close()
