"""The servers under one roof: who may call what, with which arguments, for how long; and the servers' lives.

The gateway knows the servers by their ids and nothing of sockets or frames. Every way in (WebSocket, REST,
MCP) calls the same methods.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from mcpgw.access.callers import Caller
from mcpgw.access.permissions import (
    Sight,
    may_call,
    may_call_any,
    may_read_servers,
    may_use_server,
    require_call,
    require_call_any,
    require_free,
    require_read_servers,
    require_see_server,
    require_use_server,
)
from mcpgw.access.tokens import Principal
from mcpgw.approvals import Approvals
from mcpgw.arguments import ArgumentChecks
from mcpgw.backends import mcp_requests
from mcpgw.backends.backend import Backend
from mcpgw.backends.lists import ListKind
from mcpgw.backends.requests import Asker, Observer, SilentObserver
from mcpgw.backends.server import Server
from mcpgw.backends.status import BackendState, BackendStatus, Offer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.call_time import CallTime, TimedObserver
from mcpgw.errors import (
    Cancelled,
    Draining,
    GatewayError,
    InternalError,
    InvalidParams,
    PermissionDenied,
    ServerNotFound,
    ServerUnavailable,
    ToolNotFound,
    suggest,
)
from mcpgw.metrics import OK, TOOL_ERROR, Metrics
from mcpgw.server_definitions import ServerDefinition
from mcpgw.servers import GatewayListener, Servers
from mcpgw.settings import BackendSettings, CallSettings
from mcpgw.tool_policy import ServedTool, serve_tools
from mcpgw.tracing import Tracing

__all__ = ["CallCounts", "Gateway", "GatewayListener"]

T = TypeVar("T")

_LISTING_SECONDS = 5.0
"""How long one server may keep a list of all servers from its reader."""


@dataclass(slots=True)
class CallCounts:
    """Calls since the start, by how they ended (``ok``, or the code of their error)."""

    open: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """For the statistics."""
        return {"open": self.open, "ended": dict(self.ended)}


@dataclass(frozen=True, slots=True)
class _Served:
    """What became of the tools of a server by its definition."""

    tools: Mapping[str, Tool]
    definition: ServerDefinition
    served: Mapping[str, ServedTool]


class Gateway(Servers):
    """The servers under one roof, and every way to use them.

    `draining` is set when the gateway is ending: open calls go on, new ones are refused. Without `approvals`
    what needs one is refused.
    """

    def __init__(
        self,
        definitions: Iterable[ServerDefinition],
        settings: CallSettings,
        backend_settings: BackendSettings,
        *,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        super().__init__(definitions, settings, backend_settings, metrics=metrics)
        self._tracing = tracing
        self._checks = ArgumentChecks()
        self._served: WeakKeyDictionary[Server | Backend, _Served] = WeakKeyDictionary()
        self._drained_at = 0.0
        self.draining = False
        self.counts = CallCounts()
        self.approvals: Approvals | None = None

    # --- its end -------------------------------------------------------------------------------------------

    def begin_draining(self, seconds: float) -> None:
        """Take no new calls; those that are open have `seconds` to come to their end."""
        self.draining = True
        self._drained_at = time.monotonic() + seconds

    async def stop(self) -> None:
        """End every server, side by side."""
        self.draining = True
        await super().stop()

    # --- what there is -------------------------------------------------------------------------------------

    def server_statuses(self, principal: Principal) -> list[BackendStatus]:
        """The present state of every server that the caller is shown.

        Raises:
            PermissionDenied: the caller may not read servers.
        """
        require_read_servers(principal)
        sight = Sight.of(principal)
        return [server.status for server in self._servers.values() if sight.shows_server(server.id)]

    def server_status(self, principal: Principal, server_id: str) -> BackendStatus:
        """The present state of one server; its `last_lines` are the last of its stderr.

        Raises:
            PermissionDenied: the caller may not read servers, or not this one.
            ServerNotFound: no server has this id.
        """
        require_read_servers(principal)
        server = self._visible_server(principal, server_id)
        require_see_server(principal, server_id)
        return server.status

    def definition(self, server_id: str) -> ServerDefinition:
        """The definition of a server. Raises ServerNotFound."""
        return self._server(server_id).definition

    def offer(self, principal: Principal, server_id: str, *, connection: str = "") -> Offer | None:
        """What a server offers beside its tools; None where it never said so. `connection` is the caller's.

        Raises:
            ServerNotFound: no server has this id.
            PermissionDenied: the caller may use nothing of it.
        """
        server = self._visible_server(principal, server_id)
        require_call_any(principal, server_id)
        return server.speaker(Asker(principal.user, connection)).offer

    def list_tools(
        self, principal: Principal, server_id: str | None = None, *, connection: str = ""
    ) -> list[tuple[str, Tool]]:
        """The tools that the caller may call, with the ids of their servers; of one server or of all.

        `connection` is the caller's, where it has one: their own instance may have tools of its own. A server
        that was not started yet is started by that; its tools are there a moment later.

        Raises:
            ServerNotFound: no server has this id.
            PermissionDenied: the one server that was named is not for this caller.
            ServerUnavailable: the one server that was named is not ready.
        """
        asker = Asker(principal.user, connection)
        if server_id is not None:
            server = self._visible_server(principal, server_id)
            if may_read_servers(principal):
                require_see_server(principal, server_id)
            else:
                require_call_any(principal, server_id)
            if server.offer is None:
                server.wake()
            if not server.is_open or server.offer is None:
                raise self._unavailable(principal, server)
            chosen = [server]
        else:
            chosen = [one for one in self._servers.values() if one.is_open]
            for one in chosen:
                if one.offer is None and may_call_any(principal, one.id):
                    one.wake()
        return [
            (server.id, entry.tool)
            for server in chosen
            for name, entry in self._served_tools(server, asker).items()
            if entry.is_listed and may_call(principal, server.id, name)
        ]

    async def list_resources(
        self, caller: Caller, server_id: str | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """The resources of one server or of all, as MCP has them, with the ids of their servers.

        Raises:
            GatewayError: with the code of what went wrong, for the one server that was named.
        """
        return await self._list(caller, "resources", server_id)

    async def list_resource_templates(
        self, caller: Caller, server_id: str | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """The templates of resources; otherwise as `list_resources`."""
        return await self._list(caller, "templates", server_id)

    async def list_prompts(
        self, caller: Caller, server_id: str | None = None
    ) -> list[tuple[str, dict[str, Any]]]:
        """The prompts; otherwise as `list_resources`."""
        return await self._list(caller, "prompts", server_id)

    async def _list(
        self, caller: Caller, kind: ListKind, server_id: str | None
    ) -> list[tuple[str, dict[str, Any]]]:
        principal, asker = caller.principal, _asker(caller)
        if server_id is not None:
            server = self._usable_server(principal, server_id)
            async with CallTime(self._settings.timeout, self._settings.max_timeout, 0.0):
                entries = await self._with_reason(principal, server.list(asker, kind))
            return [(server_id, entry) for entry in entries]
        chosen = [one for one in self._servers.values() if one.is_open and may_use_server(principal, one.id)]
        # What one server cannot list at the moment must not keep the others' from their readers.
        lists = await asyncio.gather(
            *(self._list_soon(caller, kind, server) for server in chosen), return_exceptions=True
        )
        found: list[tuple[str, dict[str, Any]]] = []
        for listed in lists:
            if isinstance(listed, list):
                found += listed
            elif not isinstance(listed, GatewayError):
                raise listed
        return found

    async def _list_soon(
        self, caller: Caller, kind: ListKind, server: Server
    ) -> list[tuple[str, dict[str, Any]]]:
        """The list of one server among others; where it does not come soon, the last that is known."""
        if server.state is not BackendState.DEGRADED:
            with suppress(TimeoutError):
                async with asyncio.timeout(_LISTING_SECONDS):
                    return await self._list(caller, kind, server.id)
        return [(server.id, entry) for entry in server.last_listed(_asker(caller), kind)]

    # --- requests ------------------------------------------------------------------------------------------

    async def call_tool(
        self,
        caller: Caller,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_ms: int | None = None,
        observer: Observer,
        meta: Mapping[str, Any] | None = None,
    ) -> ToolResult:
        """Call one tool; cancelling the awaiting task tells its server to stop.

        `timeout_ms` (milliseconds) takes the place of the server's or the gateway's default, and then is the
        most that the call takes, whatever its progress. `meta` is the caller's ``_meta``.

        Raises:
            GatewayError: with the code of what went wrong; see the tree in `mcpgw.errors`.
        """
        started, outcome = time.monotonic(), InternalError.code
        self._metrics.call_started(server_id)
        self.counts.open += 1
        try:
            with self._tracing.call(
                server=server_id, tool=tool_name, user=caller.principal.user, parent=caller.trace
            ) as span:
                self._refuse_while_draining()
                result = await self._call_tool(
                    caller, server_id, tool_name, arguments, timeout_ms, observer, meta
                )
                span.is_error = result.is_error
                outcome = TOOL_ERROR if result.is_error else OK
                return result
        except GatewayError as error:
            outcome = error.code
            raise
        except asyncio.CancelledError:
            outcome = Cancelled.code
            raise
        finally:
            self.counts.open -= 1
            self.counts.ended[outcome] += 1
            self._metrics.call_ended(server_id, outcome, time.monotonic() - started)

    async def _call_tool(  # noqa: PLR0917 - called in one place
        self,
        caller: Caller,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        timeout_ms: int | None,
        observer: Observer,
        meta: Mapping[str, Any] | None,
    ) -> ToolResult:
        principal, asker = caller.principal, _asker(caller)
        require_free(principal)
        call_time = self._call_time(server_id, timeout_ms)
        server = self._visible_server(principal, server_id)
        require_call(principal, server_id, tool_name)
        async with call_time as limit:
            tools = await self._with_reason(principal, server.known_tools(asker))
            served = self._served_tools(server, asker)
            entry = served.get(tool_name)
            if entry is None:
                visible = [
                    name for name in served if served[name].is_listed and may_call(principal, server_id, name)
                ]
                raise ToolNotFound(
                    f"the server {server_id!r} has no tool {tool_name[:128]!r}{suggest(tool_name, visible)}"
                )
            completed = entry.arguments(arguments)
            self._checks.check(server_id, entry.tool, arguments)
            timed = TimedObserver(observer, limit)
            own = tools[entry.own_name]
            if entry.needs_approval:
                await self._approved(caller, server, entry, arguments, completed, observer=timed, limit=limit)
            calling = server.call_tool(asker, own, completed, observer=timed, meta=meta)
            return await self._with_reason(principal, calling)

    async def _approved(
        self,
        caller: Caller,
        server: Server,
        entry: ServedTool,
        given: Mapping[str, Any],
        arguments: Mapping[str, Any],
        *,
        observer: Observer,
        limit: CallTime,
    ) -> None:
        """Wait until the call is approved, and make sure that it is still the same call."""
        if self.approvals is None:
            raise PermissionDenied("calls of this tool need an approval, which nobody can give here")
        name, settings = entry.tool.name, self._settings
        with limit.paused(settings.approval_timeout):
            await self.approvals.ask(
                caller,
                server.id,
                name,
                arguments,
                settings=settings,
                observer=observer,
                seconds_left=limit.left,
                secret=entry.added_secrets(given),
                is_private=bool(entry.fixed),
            )
        self._refuse_while_draining()
        is_there = self._servers.get(server.id) is server
        present = self._served_tools(server, _asker(caller)).get(name) if is_there else None
        if present is None or not present.does_the_same(entry):
            raise PermissionDenied(
                f"the tool {name!r} was changed while its call waited for an approval: call it again"
            )

    @property
    def call_settings(self) -> CallSettings:
        """The limits of calls that are in force now."""
        return self._settings

    async def read_resource(
        self,
        caller: Caller,
        server_id: str,
        uri: str,
        *,
        observer: Observer | None = None,
        timeout_ms: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Read a resource; answers MCP's ``ReadResourceResult`` as the server sent it.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        make = mcp_requests.read_resource(uri, meta)
        return await self._request(caller, server_id, make, observer, timeout_ms)

    async def get_prompt(
        self,
        caller: Caller,
        server_id: str,
        name: str,
        arguments: Mapping[str, str] | None = None,
        *,
        observer: Observer | None = None,
        timeout_ms: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Get a prompt; answers MCP's ``GetPromptResult`` as the server sent it.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        make = mcp_requests.get_prompt(name, arguments, meta)
        return await self._request(caller, server_id, make, observer, timeout_ms)

    async def complete(
        self,
        caller: Caller,
        server_id: str,
        ref: Mapping[str, Any],
        argument: Mapping[str, str],
        context: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Complete an argument of a prompt or template; answers MCP's ``CompleteResult`` as it was sent.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        make = mcp_requests.complete(ref, argument, context)
        return await self._request(caller, server_id, make, None, None)

    async def _request(
        self,
        caller: Caller,
        server_id: str,
        make: mcp_requests.Maker,
        observer: Observer | None,
        timeout_ms: int | None,
    ) -> dict[str, Any]:
        self._refuse_while_draining()
        require_free(caller.principal)
        call_time = self._call_time(server_id, timeout_ms)
        server = self._usable_server(caller.principal, server_id)
        parent = caller.trace
        with self._tracing.call(server=server_id, tool="", user=caller.principal.user, parent=parent):
            async with call_time as limit:
                timed = TimedObserver(observer or SilentObserver(), limit)
                sending = server.request(_asker(caller), make, observer=timed)
                return await self._with_reason(caller.principal, sending)

    async def subscribe_resource(self, caller: Caller, server_id: str, uri: str) -> None:
        """Have changes of a resource told (``resource_updated``), until `connection_ended` or told otherwise.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        require_free(caller.principal)
        server = self._usable_server(caller.principal, server_id)
        async with self._call_time(server_id, None):
            await self._with_reason(caller.principal, server.watch_resource(_asker(caller), uri))

    async def unsubscribe_resource(self, caller: Caller, server_id: str, uri: str) -> None:
        """Tell of a resource no more.

        Raises:
            GatewayError: with the code of what went wrong.
        """
        server = self._usable_server(caller.principal, server_id)
        async with self._call_time(server_id, None):
            await server.unwatch_resource(_asker(caller), uri)

    def _served_tools(self, server: Server, asker: Asker) -> Mapping[str, ServedTool]:
        """The tools of a server for `asker` as its policy has them, by the names that callers see."""
        speaker = server.speaker(asker)
        tools, kept = speaker.tools, self._served.get(speaker)
        if kept is None or kept.tools is not tools or kept.definition is not server.definition:
            served = serve_tools(server.definition, tools.values())
            kept = self._served[speaker] = _Served(tools, server.definition, served)
        return kept.served

    # --- rules ---------------------------------------------------------------------------------------------

    def _refuse_while_draining(self) -> None:
        if self.draining:
            left = max(0.0, self._drained_at - time.monotonic())
            raise Draining(
                "the gateway is ending and takes no new calls", retry_after_ms=round(left * 1000) + 1000
            )

    def _visible_server(self, principal: Principal, server_id: str) -> Server:
        server = self._servers.get(server_id)
        if server is None:
            visible = [name for name in self._servers if may_call_any(principal, name)]
            raise ServerNotFound(f"no server {server_id[:64]!r}{suggest(server_id, visible)}")
        return server

    def _usable_server(self, principal: Principal, server_id: str) -> Server:
        """A server all of which the caller may use: what no single tool stands for."""
        server = self._visible_server(principal, server_id)
        require_use_server(principal, server_id)
        return server

    async def _with_reason(self, principal: Principal, work: Awaitable[T]) -> T:
        """Await `work`; why a server is not there is told to those alone who may read servers."""
        try:
            return await work
        except ServerUnavailable as error:
            raise _discreet(principal, error) from error.__cause__

    def _unavailable(self, principal: Principal, server: Server) -> ServerUnavailable:
        return _discreet(principal, server.unavailable())

    def _call_time(self, server_id: str, timeout_ms: int | None) -> CallTime:
        settings = self._settings
        if timeout_ms is None:
            server = self._servers.get(server_id)
            default = None if server is None else server.definition.timeout
            return CallTime(default or settings.timeout, settings.max_timeout, settings.input_timeout)
        if timeout_ms > settings.max_timeout * 1000:
            reason = f"must be at most {int(settings.max_timeout * 1000)}"
            raise InvalidParams(
                f"timeoutMs {reason}", details=[{"path": "/data/timeoutMs", "reason": reason}]
            )
        return CallTime(timeout_ms / 1000, timeout_ms / 1000, settings.input_timeout)


def _asker(caller: Caller) -> Asker:
    return Asker(caller.principal.user, caller.connection)


def _discreet(principal: Principal, error: ServerUnavailable) -> ServerUnavailable:
    if not may_read_servers(principal) and isinstance(error.details, dict):
        error.details.pop("reason", None)  # what an operator has configured is for operators
    return error
