"""Everything that the gateway is made of, built in order and ended in the opposite order."""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar, cast

from mcpgw.access.callers import Caller
from mcpgw.access.configured import configured_tokens
from mcpgw.access.configured_scopes import access_faults
from mcpgw.access.guest_names import room_of
from mcpgw.access.issuers import Issuers
from mcpgw.access.keys import described_key
from mcpgw.access.lockout import network_of
from mcpgw.access.logins import Granted, Visitor
from mcpgw.access.oidc import PENDING_SECONDS, ProviderAnswer
from mcpgw.access.oidc_pending import local_path
from mcpgw.access.permissions import (
    may_see_server,
    require_approve,
    require_covered,
    require_host_rooms,
    require_publish_events,
    require_see_server,
)
from mcpgw.access.revocation import Judge
from mcpgw.access.service import AccessService, running_access
from mcpgw.access.tickets import Purpose, worker_of_ticket
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.access.workshops import described_guest, described_room, may_give
from mcpgw.administration import Administration
from mcpgw.aggregate import McpEntrance, Visit
from mcpgw.approvals import Approvals
from mcpgw.audit import Actor, Audit
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.bus import Bus, LocalBus, SharedBus
from mcpgw.bus.log_handler import BusLogHandler
from mcpgw.call_record import CallRecords
from mcpgw.catalogs import CatalogService
from mcpgw.config import Config
from mcpgw.config_watch import Seen, look_at, watch_files
from mcpgw.configuration import Configuration, make_reloader, with_stored
from mcpgw.conversation import Conversation
from mcpgw.conversation_parts import ClientInfo, ConversationParts, ConversationSettings, Sink
from mcpgw.deadlines import Deadlines
from mcpgw.errors import AuthFailed, ConfigError
from mcpgw.gateway import Gateway
from mcpgw.hub import Hub, sweep_every
from mcpgw.logs import change_log_level, log_event
from mcpgw.metrics import Metrics
from mcpgw.preparation import Preparation
from mcpgw.rate_limit import UserLimits
from mcpgw.rest_calls import RestCall, RestCalls
from mcpgw.rooms import Rooms
from mcpgw.roster import Roster, make_roster
from mcpgw.server_news import ServerNews
from mcpgw.servers import start_ahead
from mcpgw.session_store import SessionStore
from mcpgw.store import Store, StoredRoom, StoredServer, StoredSetting, StoreError
from mcpgw.tracing import Tracing
from mcpgw.turns import Turns
from mcpgw.whole_gateway import WholeGateway
from mcpgw.wire.events import CHANNELS, EVENT_TYPES
from mcpgw.wire.frames import CLIENT_TYPES, SERVER_TYPES
from mcpgw.workers.membership import Membership
from mcpgw.workers.peers import Peers
from mcpgw.workers.totals import Totals

__all__ = [
    "PENDING_SECONDS",
    "Actor",
    "Granted",
    "Principal",
    "ProviderAnswer",
    "Purpose",
    "RestCall",
    "Services",
    "StoredRoom",
    "Visit",
    "Visitor",
    "WriterParts",
    "described_guest",
    "described_key",
    "described_room",
    "local_path",
    "may_give",
    "may_see_server",
    "require_approve",
    "require_covered",
    "require_host_rooms",
    "require_publish_events",
    "require_see_server",
    "room_of",
    "running_services",
]

T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.config")


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

    configuration: Configuration
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
    mcp: McpEntrance
    store: Store
    catalogs: CatalogService
    administration: Administration
    access: AccessService
    whole: WholeGateway
    peers: Peers
    deadlines: Deadlines = field(default_factory=Deadlines)
    turns: Turns = field(default_factory=Turns)
    preparation: Preparation = field(default_factory=Preparation)
    _made: dict[str, tuple[Config, object]] = field(default_factory=dict, repr=False)

    @property
    def config(self) -> Config:
        """The configuration that is in force now."""
        return self.configuration.in_force

    @property
    def approvals(self) -> Approvals:
        """The calls that wait for an approval."""
        assert self.gateway.approvals is not None, "given when all of this was built"  # noqa: S101
        return self.gateway.approvals

    @contextmanager
    def visiting(self, principal: Principal) -> Iterator[Caller]:
        """One who asks for a moment, and keeps no instance of a server: a REST request."""
        caller = Caller(principal, f"request {secrets.token_hex(8)}")
        try:
            yield caller
        finally:
            self.gateway.connection_ended(caller.connection)

    def authenticate(self, token: str | None) -> tuple[Principal | None, AuthFailed | None]:
        """Who a token proves; and where it does not hold, why. Neither where there is no token."""
        if token is None:
            return None, None
        try:
            return self.access.authority.verify(token), None
        except AuthFailed as refused:
            return None, refused

    def other_home(self, tokens: tuple[str, ...], ticket: str, remote: str) -> int | None:
        """The other worker that a request belongs to, by whom it proves; None where it is this one.

        Whoever proves nothing belongs where the network is at home that they come from.
        """
        home = None
        for token in tokens:
            principal, _ = self.authenticate(token)
            if principal is not None:
                home = self.peers.home_of(principal.user)
                break
        else:
            number = worker_of_ticket(ticket) if ticket else None
            is_there = number == self.peers.number or number in self.peers.present
            home = number if is_there else self.peers.home_of(network_of(remote))
        return None if home == self.peers.number else home

    def take_ticket(self, ticket: str, purpose: Purpose) -> tuple[Principal | None, AuthFailed | None]:
        """Who a ticket is for; and where it does not hold, why."""
        try:
            return self.access.take_ticket(ticket, purpose), None
        except AuthFailed as refused:
            return None, refused

    def converse(
        self, sink: Sink, client: ClientInfo, principal: Principal | None, refused: AuthFailed | None
    ) -> Conversation:
        """A conversation with a client that has just connected."""
        parts, settings = self._of_config("conversations", self._conversations)
        return Conversation(parts, settings, sink, client, principal=principal, refused=refused)

    @cached_property
    def rest_calls(self) -> RestCalls:
        """Calls of tools that come one by one, each in a request of its own."""
        records = CallRecords(self.bus, self.audit, self.metrics)
        return RestCalls(self.gateway, records, self.limits, max_open=self.config.websocket.max_calls)

    @property
    def writer_parts(self) -> WriterParts:
        """What those who write to readers share."""
        return self._of_config("writers", self._writer_parts)

    def _writer_parts(self) -> WriterParts:
        events, timeout = self.config.events, self.config.websocket.write_timeout
        return WriterParts(events.max_waiting, events.max_waiting_size, timeout, self.metrics, self.turns)

    def _of_config(self, name: str, make: Callable[[], T]) -> T:
        """What `make` makes of the configuration in force, made once for each."""
        config, kept = self._made.get(name, (None, None))
        if config is not self.config:
            kept = make()
            self._made[name] = (self.config, kept)
        return cast("T", kept)

    def _conversations(self) -> tuple[ConversationParts, ConversationSettings]:
        """What all conversations share."""
        settings = ConversationSettings(self.config.auth, self.config.websocket, self.config.sessions)
        parts = ConversationParts(
            self.gateway,
            self.access.authority,
            self.bus,
            self.rooms,
            self.sessions,
            self.limits,
            self.metrics,
            self.audit,
            self.deadlines,
            self.peers,
        )
        return parts, settings


def _review(judge: Judge, hub: Hub, sessions: SessionStore, mcp: McpEntrance) -> None:
    """Hold all that is open to what its users may do by now; sessions after their connections are closed."""
    hub.review(judge)
    sessions.review(judge)
    mcp.review(judge)


@asynccontextmanager
async def _told_rooms(access: AccessService, rooms: Rooms, peers: Peers) -> AsyncIterator[None]:
    """Inside the block, tell what is new in rooms whenever it is for this worker to tell.

    At the end it may be that for a moment, when all others have ended: nothing is read for that any more.
    """
    telling: set[asyncio.Task[None]] = set()
    is_over = False

    def begin(_: int) -> None:
        if not is_over:
            task = asyncio.create_task(_tell_rooms(access, rooms))
            telling.add(task)
            task.add_done_callback(telling.discard)

    peers.on_speaker(begin)
    try:
        yield
    finally:
        is_over = True
        for task in tuple(telling):
            task.cancel()
        await asyncio.gather(*telling, return_exceptions=True)


async def _tell_rooms(access: AccessService, rooms: Rooms) -> None:
    """Tell what is new in rooms of guests, and was not told by the worker that has ended."""
    await access.take_over()  # what that one had read is read here too
    rooms.news.tell()


@dataclass(frozen=True)
class _Stored:
    """What the store has, and what becomes of it together with what was `loaded`."""

    loaded: Config
    config: Config
    settings: Mapping[str, StoredSetting]
    servers: list[StoredServer]
    switches: Mapping[str, bool]
    roster: Roster
    faults: tuple[str, ...]
    seen: Seen

    @classmethod
    async def read(cls, loaded: Config, store: Store) -> "_Stored":
        """Settings of the store that do not go with the others are left out: the gateway must start."""
        settings = await store.settings.all()
        faults: tuple[str, ...] = ()
        try:
            config = with_stored(loaded, settings)
        except ConfigError as error:
            config, faults = loaded, error.faults
        servers, switches = await store.servers.list(), await store.switches.all()
        roster = await asyncio.to_thread(make_roster, config, servers, switches)
        seen = await look_at(loaded.files)
        return cls(loaded, config, settings, servers, switches, roster, faults, seen)

    def tell(self, bus: Bus) -> None:
        """Say what is in force, and what is not."""
        if self.config.log.level != self.loaded.log.level:
            change_log_level(self.config.log.level)
        bus.publish("config.applied", {"source": "start"})
        if faults := [*self.faults, *self.roster.faults]:
            for fault in faults:
                log_event(_LOGGER, logging.ERROR, "fault", reason=fault)
            bus.publish("config.error", {"faults": faults})


@asynccontextmanager
async def _watched(configuration: Configuration, seen: Seen) -> AsyncIterator[None]:
    """Have changes of the configuration's files taken over inside the block, where that is wanted.

    `seen` is what stood in them at the start.
    """
    settings = configuration.in_force.reload
    task: asyncio.Task[None] | None = None
    if settings.watch:
        watching = watch_files(
            configuration.files, make_reloader(configuration), seen=seen, interval=settings.interval
        )
        task = asyncio.create_task(watching, name="configuration")
    try:
        yield
    finally:
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        await configuration.close()


@asynccontextmanager
async def _followed(
    peers: Peers, administration: Administration, configuration: Configuration
) -> AsyncIterator[None]:
    """Inside the block, look at the store again when a worker has come or gone: one that has just come may
    have read it before a change, and one that has gone may have told nobody of its last.
    """
    if peers.is_alone:
        yield
        return
    stirred = asyncio.Event()
    peers.on_came(lambda _: stirred.set())
    peers.on_gone(lambda _: stirred.set())

    async def follow() -> None:
        while True:
            await stirred.wait()
            stirred.clear()
            with suppress(StoreError):  # it is in the log
                await administration.follow()
                await configuration.follow()

    task = asyncio.create_task(follow(), name="follow")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def running_services(loaded: Config, peers: Peers | None = None) -> AsyncIterator[Services]:
    """Build everything, start the backends, and end them when left; `peers` are the other processes.

    Raises:
        ConfigError: something of the configuration cannot be used on this machine.
    """
    if faults := access_faults(loaded.roles, loaded.issuers):
        raise ConfigError(faults)
    tokens = configured_tokens(loaded, create_key=True)
    store = await Store.open(
        loaded.store.url or loaded.data.dir / "mcpgw.db", busy_timeout=loaded.store.busy_timeout
    )
    try:
        stored = await _Stored.read(loaded, store)
        reaper = ProcessReaper()
        try:
            peers = peers or Peers()
            await start_ahead(stored.roster.definitions, reaper, peers)
            async with _built(stored, tokens, store, reaper, peers) as services:
                yield services
        finally:
            reaper.close()
    finally:
        await store.close()


async def _bus(config: Config, metrics: Metrics, peers: Peers) -> LocalBus:
    """The log of events: this process's own, or the one that all workers have together."""
    events = config.events
    if not isinstance(peers, Membership):
        return LocalBus(events.log_size, events.log_age, events.log_bytes, on_publish=metrics.event_published)
    return SharedBus(
        peers.log,
        await peers.welcome,
        is_speaker=lambda: peers.is_speaker,
        max_events=events.log_size,
        max_age=events.log_age,
        max_bytes=events.log_bytes,
        on_publish=metrics.event_published,
    )


@asynccontextmanager
async def _built(
    stored: _Stored, tokens: Tokens, store: Store, reaper: ProcessReaper, peers: Peers
) -> AsyncIterator[Services]:
    config = stored.config
    sessions = SessionStore(config.sessions)
    metrics = Metrics(
        servers=list(stored.roster.entries),
        frame_types=[*CLIENT_TYPES, *SERVER_TYPES, *EVENT_TYPES],
        channels=[*CHANNELS, "user", "room"],
    )
    bus = await _bus(config, metrics, peers)
    metrics.count_sessions(lambda: len(sessions))
    tracing = Tracing()
    catalogs = CatalogService(store, config.catalogs, bus.publish)
    gateway = Gateway(
        stored.roster.definitions,
        config.calls,
        config.backends,
        metrics=metrics,
        tracing=tracing,
        reaper=reaper,
        peers=peers,
    )
    # What happens to a server of another worker is told by that one.
    gateway.listen(ServerNews(bus, metrics, gateway, peers).tell, elsewhere=False)
    try:
        gateway.start()
        stored.tell(bus)
        bus.publish("gateway.started", {"state": "started"})
        rooms = Rooms(bus, peers)
        most = min(config.rooms.max_connections_per_guest, config.server.max_connections_per_user)
        hub = Hub(config.server, limit_of=lambda user: most if room_of(user) is not None else None)
        connections = Totals(peers, "connections", hub.counts)
        hub.share(connections.elsewhere, connections.changed)
        whole = WholeGateway(
            gateway=gateway, hub=hub, bus=bus, sessions=sessions, metrics=metrics, peers=peers
        )
        limits = UserLimits(
            config.calls.rate, config.calls.burst, config.websocket.frames_rate, config.websocket.frames_burst
        )
        limits.quota_of = rooms.quota_of
        sweeping = asyncio.create_task(
            sweep_every(config.server.sweep_interval, hub.sweep, limits.sweep, sessions.sweep), name="sweep"
        )
        log_handler = BusLogHandler(bus, peers)
        logging.getLogger("mcpgw").addHandler(log_handler)
        try:
            with Audit(config.audit) as audit:
                administration = Administration(
                    gateway,
                    store,
                    audit,
                    bus.publish,
                    config=config,
                    stored=stored.servers,
                    switches=stored.switches,
                    roster=stored.roster,
                    peers=peers,
                )
                configuration = Configuration(
                    stored.loaded,
                    config,
                    stored.settings,
                    store=store,
                    gateway=gateway,
                    administration=administration,
                    audit=audit,
                    publish=bus.publish,
                    faults=stored.faults,
                    peers=peers,
                )
                records = CallRecords(bus, audit, metrics)
                gateway.approvals = Approvals(bus, audit, peers)
                mcp = McpEntrance(
                    gateway, limits, records, config.mcp, max_body_size=config.server.max_body_size
                )
                access = AccessService(
                    store,
                    tokens,
                    audit=audit,
                    settings=config.auth,
                    roles=lambda: configuration.in_force.roles,
                    issuers=Issuers(
                        lambda: configuration.in_force.issuers,
                        config.auth,
                        public_url=lambda: configuration.in_force.server.public_url,
                    ),
                    on_change=lambda judge: _review(judge, hub, sessions, mcp),
                    on_rooms=rooms.follow,
                    max_rooms=config.rooms.max_open,
                    peers=peers,
                )
                try:
                    async with (
                        _told_rooms(access, rooms, peers),
                        _watched(configuration, stored.seen),
                        _followed(peers, administration, configuration),
                        running_access(access, tidy_interval=config.server.sweep_interval),
                    ):
                        yield Services(
                            configuration,
                            gateway,
                            tokens,
                            hub,
                            bus,
                            rooms,
                            sessions,
                            limits,
                            metrics,
                            audit,
                            tracing,
                            mcp,
                            store,
                            catalogs,
                            administration,
                            access,
                            whole,
                            peers,
                        )
                finally:
                    await mcp.close()
                    sessions.close()  # before the audit log, which has the ends of their calls
        finally:
            logging.getLogger("mcpgw").removeHandler(log_handler)
            sweeping.cancel()
    finally:
        await gateway.stop()
