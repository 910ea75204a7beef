"""The servers that a gateway has, and their lives: added, changed, started, stopped, removed, at any time.

Permission is the business of those who call: nothing here asks for it.
"""

import asyncio
import gc
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from mcpgw.backends.child import Program
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.errors import InvalidParams, ServerNotFound, suggest
from mcpgw.metrics import Metrics
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings, CallSettings

if TYPE_CHECKING:
    from mcpgw.backends.server import Server
    from mcpgw.backends.status import BackendStatus

GatewayListener = Callable[[str, str, Mapping[str, Any], str | None], None]
"""Takes the id of a server, what happened to it (``started``, ``tools_changed``, ``resources_changed`` …),
the data of that event, and the one user whom it concerns, where it concerns one alone.
"""


_MODULE_OF_SERVERS: Final = "mcpgw.backends.server"


async def start_ahead(definitions: Iterable[ServerDefinition], reaper: ProcessReaper) -> None:
    """Start the processes of all that start with the gateway, and load meanwhile what speaks with them.

    The MCP SDK takes half a second to import, which such a process needs to start as well; the loop does not
    wait. They are for `Servers` with the same `reaper`, whose `close` ends those that nobody has taken.
    """
    definitions = list(definitions)
    if not definitions:
        return
    reaper.start_ahead(
        Program((each.command, *each.args), each.env, each.cwd)
        for each in definitions
        if each.command is not None and each.enabled and not each.lazy
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
    ) -> None:
        self._settings = settings
        self._backend_settings = backend_settings
        self._metrics = metrics
        self._reaper = reaper or ProcessReaper()
        self._listeners: dict[GatewayListener, None] = {}
        self._has_started = False
        self._servers: dict[str, Server] = {}
        for definition in definitions:
            self._add(definition)

    @property
    def server_ids(self) -> tuple[str, ...]:
        """The ids of all servers."""
        return tuple(self._servers)

    def listen(self, listener: GatewayListener) -> Callable[[], None]:
        """Have `listener` told what happens to the servers, until what is answered is called."""
        self._listeners[listener] = None

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
        server = self._add(definition)
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
        server.start()
        server.wake()

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
        """The last lines that a server wrote to its stderr; none of one that is not there."""
        server = self._servers.get(server_id)
        return () if server is None else server.status.last_lines

    def statuses(self) -> list["BackendStatus"]:
        """The present state of every server."""
        return [server.status for server in self._servers.values()]

    def change_call_settings(self, settings: CallSettings) -> None:
        """Have other limits of time hold for calls from now on."""
        self._settings = settings
        for server in self._servers.values():
            server.change_call_settings(settings)

    def connection_ended(self, connection: str) -> None:
        """A client is gone for good: instances that were its own end, and nothing is watched for it."""
        for server in self._servers.values():
            server.connection_ended(connection)

    def _add(self, definition: ServerDefinition) -> "Server":
        from mcpgw.backends.server import Server  # noqa: PLC0415 - see `add_server`

        server_id = definition.name

        def announce(name: str, data: Mapping[str, Any], user: str | None) -> None:
            for listener in tuple(self._listeners):
                listener(server_id, name, data, user)

        server = Server(
            definition, self._backend_settings, self._settings, reaper=self._reaper, announce=announce
        )
        self._metrics.add_server(server_id)
        self._servers[server_id] = server
        return server

    def _server(self, server_id: str) -> "Server":
        server = self._servers.get(server_id)
        if server is None:
            raise ServerNotFound(f"no server {server_id[:64]!r}{suggest(server_id, self._servers)}")
        return server
