"""The servers that a gateway has, and their lives: added, changed, started, stopped, removed, at any time.

Permission is the business of those who call: nothing here asks for it.
"""

import asyncio
import gc
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from mcpgw.backends.child import Program
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.errors import InvalidParams, ServerNotFound, suggest
from mcpgw.metrics import Metrics
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings, CallSettings
from mcpgw.workers.peers import Peers

if TYPE_CHECKING:
    from mcpgw.backends.remote_server import RemoteServer
    from mcpgw.backends.server import Server
    from mcpgw.backends.single_notes import Act
    from mcpgw.backends.status import BackendStatus

    AnyServer: TypeAlias = Server | RemoteServer
    """A server that runs in this process, or in another worker."""

GatewayListener = Callable[[str, str, Mapping[str, Any], str | None], None]
"""Takes the id of a server, what happened to it (``started``, ``tools_changed``, ``resources_changed`` …),
the data of that event, and the one user whom it concerns, where it concerns one alone.
"""


_MODULE_OF_SERVERS: Final = "mcpgw.backends.server"


def owner_of(definition: ServerDefinition, peers: Peers) -> int:
    """The number of the worker that a server runs in, as the present one sees it."""
    return peers.home_of(f"server {definition.name}") if definition.single else peers.number


async def start_ahead(definitions: Iterable[ServerDefinition], reaper: ProcessReaper, peers: Peers) -> None:
    """Start the processes of all that start here with the gateway, and load meanwhile what speaks with them.

    The MCP SDK takes half a second to import, which such a process needs to start as well; the loop does not
    wait. They are for `Servers` with the same `reaper`, whose `close` ends those that nobody has taken.
    """
    definitions = list(definitions)
    if not definitions:
        return
    reaper.start_ahead(
        Program((each.command, *each.args), each.env, each.cwd)
        for each in definitions
        if each.command is not None
        and each.enabled
        and not each.lazy
        and owner_of(each, peers) == peers.number
    )
    await asyncio.to_thread(_import_servers)


def _import_servers() -> None:
    # Next to nothing of so much code is garbage; looking for it takes a fifth of the time.
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        import_module(_MODULE_OF_SERVERS)
    finally:
        if was_enabled:
            gc.enable()


class Servers:
    """The servers by their ids. Their processes are started by `reaper`, which is ended with them."""

    def __init__(
        self,
        definitions: Iterable[ServerDefinition],
        settings: CallSettings,
        backend_settings: BackendSettings,
        *,
        metrics: Metrics,
        reaper: ProcessReaper | None = None,
        peers: Peers | None = None,
    ) -> None:
        self._settings = settings
        self._backend_settings = backend_settings
        self._metrics = metrics
        self._reaper = reaper or ProcessReaper()
        # Whether each is told of servers that run here, and in other workers.
        self._listeners: dict[GatewayListener, tuple[bool, bool]] = {}
        self._has_started = False
        self._servers: dict[str, AnyServer] = {}
        self._peers = peers or Peers()
        if not self._peers.is_alone:
            from mcpgw.backends.singles import Singles  # noqa: PLC0415 - one process alone needs none of it

            self._singles = Singles(self._peers, self._act)
        for definition in definitions:
            self._add(definition)

    @property
    def server_ids(self) -> tuple[str, ...]:
        """The ids of all servers."""
        return tuple(self._servers)

    def listen(
        self, listener: GatewayListener, *, here: bool = True, elsewhere: bool = True
    ) -> Callable[[], None]:
        """Have `listener` told what happens to the servers, until what is answered is called.

        To those that run `here`, and to those that this one reaches `elsewhere`, in another worker.
        """
        self._listeners[listener] = here, elsewhere

        def stop() -> None:
            self._listeners.pop(listener, None)

        return stop

    def start(self) -> None:
        """Begin to start every server; returns at once."""
        self._has_started = True
        for server in self._servers.values():
            server.start()

    async def stop(self) -> None:
        """End every server, side by side."""
        await asyncio.gather(*(server.close() for server in self._servers.values()))
        self._reaper.close()

    async def wait_started(self, timeout: float) -> None:  # noqa: ASYNC109 - a bound, not a failure
        """Wait until no server is in its first start any more, at most `timeout` seconds."""
        waits = [asyncio.create_task(server.wait_started()) for server in self._servers.values()]
        try:
            if waits:
                await asyncio.wait(waits, timeout=timeout)
        finally:
            for wait in waits:
                wait.cancel()
            self._reaper.discard_ahead()

    async def add_server(self, definition: ServerDefinition) -> None:
        """Add a server, and begin to start it.

        Raises:
            InvalidParams: there is one of that name.
        """
        if definition.name in self._servers:
            raise InvalidParams(f"there is a server {definition.name!r} already")
        # The MCP SDK takes half a second to import: without a server it is not, and the loop must not wait.
        if owner_of(definition, self._peers) == self._peers.number:
            await asyncio.to_thread(import_module, _MODULE_OF_SERVERS)
        server = self._add(definition)
        if self._has_started:
            server.start()

    async def replace_server(self, definition: ServerDefinition) -> None:
        """Have a server go by another definition; it is started again only where that is needed.

        Raises:
            ServerNotFound: there is none of that name.
        """
        old = self._server(definition.name)
        if old.definition == definition or old.update(definition):
            return
        await old.close()
        if old.definition.single:  # it may have run in another worker
            await asyncio.to_thread(import_module, _MODULE_OF_SERVERS)
        server = self._add(definition)
        if old.definition.single and not definition.single:
            self._share_no_more(old)
        server.take_over(old)
        if old.is_held and old.definition.enabled:
            server.hold()
        elif self._has_started:
            server.start()

    async def remove_server(self, server_id: str) -> None:
        """Remove a server, and end it.

        Raises:
            ServerNotFound: there is none of that name.
        """
        server = self._server(server_id)
        del self._servers[server_id]
        self._share_no_more(server)
        await server.close()
        self._metrics.remove_server(server_id)

    async def enable_server(self, server_id: str) -> None:
        """Switch a server on, and begin to start it. Raises ServerNotFound."""
        await self._server(server_id).enable()

    async def disable_server(self, server_id: str) -> None:
        """Switch a server off; returns when it has ended. Raises ServerNotFound."""
        await self._server(server_id).disable()

    async def start_server(self, server_id: str) -> None:
        """Begin to start a server that is idle. Raises ServerNotFound, ServerUnavailable (disabled)."""
        server = self._server(server_id)
        if not server.definition.enabled:
            raise server.unavailable()
        await server.bring_back()

    async def stop_server(self, server_id: str) -> None:
        """End a server until `start_server`. Raises ServerNotFound."""
        await self._server(server_id).stop()

    async def restart_server(self, server_id: str) -> None:
        """End a server, and begin to start it anew. Raises ServerNotFound, ServerUnavailable."""
        server = self._server(server_id)
        if not server.definition.enabled:
            raise server.unavailable()
        await server.restart()

    def last_lines(self, server_id: str) -> tuple[str, ...]:
        """The last lines that a server of this worker wrote to its stderr; none of one that is not here."""
        server = self._servers.get(server_id)
        if server is None or owner_of(server.definition, self._peers) != self._peers.number:
            return ()
        return server.status.last_lines

    def statuses(self) -> list["BackendStatus"]:
        """The present state of every server."""
        return [server.status for server in self._servers.values()]

    def begin_to_serve_none(self) -> None:
        """Do nothing new for other workers: this one is ending."""
        if not self._peers.is_alone:
            self._singles.host.begin_draining()

    async def wait_served(self, seconds: float) -> None:
        """Wait until nothing is open here for other workers, at most so long."""
        if not self._peers.is_alone:
            await self._singles.host.wait_idle(seconds)

    def change_call_settings(self, settings: CallSettings) -> None:
        """Have other limits of time hold for calls from now on."""
        self._settings = settings
        for server in self._servers.values():
            server.change_call_settings(settings)

    def connection_ended(self, connection: str) -> None:
        """A client is gone for good: instances that were its own end, and nothing is watched for it."""
        for server in self._servers.values():
            server.connection_ended(connection)

    def _add(self, definition: ServerDefinition) -> "AnyServer":
        owner = owner_of(definition, self._peers)
        server = self._local(definition) if owner == self._peers.number else self._remote(definition, owner)
        self._metrics.add_server(server.id)
        self._servers[server.id] = server
        return server

    def _local(self, definition: ServerDefinition) -> "Server":
        from mcpgw.backends.server import Server  # noqa: PLC0415 - see `add_server`

        is_shared = definition.single and not self._peers.is_alone

        def announce(name: str, data: Mapping[str, Any], user: str | None) -> None:
            if is_shared:
                self._singles.host.happened(server, name, data, user)
            for listener, (here, _) in tuple(self._listeners.items()):
                if here:
                    listener(definition.name, name, data, user)

        def on_change() -> None:
            if is_shared:
                self._singles.host.changed(server)

        server = Server(
            definition,
            self._backend_settings,
            self._settings,
            reaper=self._reaper,
            announce=announce,
            on_change=on_change,
        )
        if is_shared:
            self._singles.host.add(server)
        return server

    def _remote(self, definition: ServerDefinition, owner: int) -> "RemoteServer":
        def announce(name: str, data: Mapping[str, Any], user: str | None) -> None:
            for listener, (_, elsewhere) in tuple(self._listeners.items()):
                if elsewhere:
                    listener(definition.name, name, data, user)

        return self._singles.mirror(definition, self._settings, owner, announce)

    def _share_no_more(self, server: "AnyServer") -> None:
        if server.definition.single and not self._peers.is_alone:
            self._singles.host.remove(server)

    async def _act(self, server_id: str, act: "Act") -> None:
        """Do at a server of this worker what an operator has said in another one."""
        acts = {"start": self.start_server, "stop": self.stop_server, "restart": self.restart_server}
        await acts[act](server_id)

    def _server(self, server_id: str) -> "AnyServer":
        server = self._servers.get(server_id)
        if server is None:
            raise ServerNotFound(f"no server {server_id[:64]!r}{suggest(server_id, self._servers)}")
        return server
