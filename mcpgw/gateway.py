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
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary, ref

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
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.requests import Asker, Observer, SilentObserver
from mcpgw.backends.status import BackendState, BackendStatus, ListKind, Offer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.call_time import CallTime, TimedObserver, WheelTime
from mcpgw.deadlines import Deadlines
from mcpgw.errors import (
    CallTimeout,
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
from mcpgw.workers.peers import Peers

if TYPE_CHECKING:  # the MCP SDK is imported with the first server: see `Servers`
    from mcpgw.backends.backend import Backend
    from mcpgw.backends.direct_call import DirectToolCall, OnToolEnd
    from mcpgw.backends.mcp_requests import Maker
    from mcpgw.servers import AnyServer

__all__ = ["BegunCall", "CallCounts", "Gateway", "GatewayListener"]

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
    """What became of the tools of a server, or of one instance of it, by its definition."""

    speaker: "ref[AnyServer | Backend]"
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
        reaper: ProcessReaper | None = None,
        peers: Peers | None = None,
    ) -> None:
        super().__init__(definitions, settings, backend_settings, metrics=metrics, reaper=reaper, peers=peers)
        self._tracing = tracing
        self._checks = ArgumentChecks()
        self._served: WeakKeyDictionary[AnyServer | Backend, _Served] = WeakKeyDictionary()
        self._last_served: dict[str, _Served] = {}
        self._deadlines = Deadlines()
        self._drained_at = 0.0
        self.draining = False
        self.counts = CallCounts()
        self.approvals: Approvals | None = None

    # --- its end -------------------------------------------------------------------------------------------

    def begin_draining(self, seconds: float) -> None:
        """Take no new calls; those that are open have `seconds` to come to their end."""
        self.draining = True
        self._drained_at = time.monotonic() + seconds
        self.begin_to_serve_none()

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
            for name, entry in self._served_tools(server, server.speaker(asker)).items()
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
        self, caller: Caller, kind: ListKind, server: "AnyServer"
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
            self.count_end(server_id, outcome, started)

    def begin_call(
        self,
        caller: Caller,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_ms: int | None,
        observer: Observer,
        on_end: "OnToolEnd",
    ) -> "BegunCall | None":
        """Call one tool without a task, where all it takes is to send it now; else None, and nothing done.

        What would be refused is not done here either: `call_tool` does it, and has the words. `on_end` is
        told once how the call ended, as `call_tool` would, unless it is cancelled.
        """
        if caller.trace is not None or self._tracing.is_configured:
            return None
        principal, asker = caller.principal, _asker(caller)
        try:
            server = self._admitted(principal, server_id, tool_name, timeout_ms)
            if server.offer is None:
                return None
            speaker = server.speaker(asker)
            entry = self._served_tools(server, speaker).get(tool_name)
            if entry is None or entry.needs_approval:
                return None
            completed = self._completed(server_id, entry, arguments)
        except GatewayError:
            return None
        limit = WheelTime(*self._call_seconds(server, timeout_ms))
        begun = BegunCall(self, server_id, principal, limit, on_end)
        begun.call = server.begin_call(
            asker,
            speaker.tools[entry.own_name],
            completed,
            observer=TimedObserver(observer, limit),
            on_end=begun.ended,
        )
        if begun.call is None:
            return None
        limit.start(self._deadlines, begun.timed_out)
        self._metrics.call_started(server_id)
        self.counts.open += 1
        return begun

    def count_end(self, server_id: str, outcome: str, started: float) -> None:
        """A call that was begun at `started` (monotonic clock) has ended."""
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
        server = self._admitted(principal, server_id, tool_name, timeout_ms)
        async with CallTime(*self._call_seconds(server, timeout_ms)) as limit:
            tools = await self._with_reason(principal, server.known_tools(asker))
            served = self._served_tools(server, server.speaker(asker))
            entry = served.get(tool_name)
            if entry is None:
                visible = [
                    name for name in served if served[name].is_listed and may_call(principal, server_id, name)
                ]
                raise ToolNotFound(
                    f"the server {server_id!r} has no tool {tool_name[:128]!r}{suggest(tool_name, visible)}"
                )
            completed = self._completed(server_id, entry, arguments)
            timed = TimedObserver(observer, limit)
            own = tools[entry.own_name]
            if entry.needs_approval:
                await self._approved(caller, server, entry, arguments, completed, observer=timed, limit=limit)
            calling = server.call_tool(asker, own, completed, observer=timed, meta=meta)
            return await self._with_reason(principal, calling)

    async def _approved(
        self,
        caller: Caller,
        server: "AnyServer",
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
        speaker = server.speaker(_asker(caller))
        present = self._served_tools(server, speaker).get(name) if is_there else None
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
        make = self._requests(caller, server_id).read_resource(uri, meta)
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
        make = self._requests(caller, server_id).get_prompt(name, arguments, meta)
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
        make = self._requests(caller, server_id).complete(ref, argument, context)
        return await self._request(caller, server_id, make, None, None)

    def _requests(self, caller: Caller, server_id: str) -> ModuleType:
        """What makes requests for a server, once it is known that there is one, and so the MCP SDK."""
        self._refuse_while_draining()
        self._usable_server(caller.principal, server_id)
        from mcpgw.backends import mcp_requests  # noqa: PLC0415 - imported with the first server

        return mcp_requests

    async def _request(
        self,
        caller: Caller,
        server_id: str,
        make: "Maker",
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

    def _served_tools(self, server: "AnyServer", speaker: "AnyServer | Backend") -> Mapping[str, ServedTool]:
        """The tools that `speaker` tells of, as the policy of their server has them for callers, by name."""
        tools, kept = speaker.tools, self._last_served.get(server.id)
        if kept is None or kept.speaker() is not speaker:
            kept = self._served.get(speaker)
            if kept is not None:
                self._last_served[server.id] = kept
        if kept is None or kept.tools is not tools or kept.definition is not server.definition:
            served = serve_tools(server.definition, tools.values())
            kept = self._served[speaker] = _Served(ref(speaker), tools, server.definition, served)
            if (
                server.id not in self._last_served
            ):  # a new one: those that are gone need not be known any more
                self._last_served = {
                    name: one for name, one in self._last_served.items() if name in self._servers
                }
            self._last_served[server.id] = kept
        return kept.served

    # --- rules ---------------------------------------------------------------------------------------------

    def _admitted(
        self, principal: Principal, server_id: str, tool_name: str, timeout_ms: int | None
    ) -> "AnyServer":
        """The server of a call that `principal` may make now: what both ways of calling a tool ask first.

        Raises:
            GatewayError: the call may not be made.
        """
        self._refuse_while_draining()
        require_free(principal)
        self._require_time(timeout_ms)
        server = self._visible_server(principal, server_id)
        require_call(principal, server_id, tool_name)
        return server

    def _completed(
        self, server_id: str, entry: ServedTool, arguments: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """What the server is sent where a caller gives `arguments`, which fit the tool.

        Raises:
            InvalidParams: they do not.
        """
        completed = entry.arguments(arguments)
        self._checks.check(server_id, entry.tool, arguments)
        return completed

    def _refuse_while_draining(self) -> None:
        if self.draining:
            left = max(0.0, self._drained_at - time.monotonic())
            raise Draining(
                "the gateway is ending and takes no new calls", retry_after_ms=round(left * 1000) + 1000
            )

    def _visible_server(self, principal: Principal, server_id: str) -> "AnyServer":
        server = self._servers.get(server_id)
        if server is None:
            visible = [name for name in self._servers if may_call_any(principal, name)]
            raise ServerNotFound(f"no server {server_id[:64]!r}{suggest(server_id, visible)}")
        return server

    def _usable_server(self, principal: Principal, server_id: str) -> "AnyServer":
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

    def _unavailable(self, principal: Principal, server: "AnyServer") -> ServerUnavailable:
        return _discreet(principal, server.unavailable())

    def _call_seconds(self, server: "AnyServer | None", timeout_ms: int | None) -> tuple[float, float, float]:
        """The most seconds of silence, of all, and of an input."""
        settings = self._settings
        if timeout_ms is not None:
            return timeout_ms / 1000, timeout_ms / 1000, settings.input_timeout
        default = None if server is None else server.definition.timeout
        return default or settings.timeout, settings.max_timeout, settings.input_timeout

    def _require_time(self, timeout_ms: int | None) -> None:
        longest = self._settings.max_timeout * 1000
        if timeout_ms is not None and timeout_ms > longest:
            reason = f"must be at most {int(longest)}"
            raise InvalidParams(
                f"timeoutMs {reason}", details=[{"path": "/data/timeoutMs", "reason": reason}]
            )

    def _call_time(self, server_id: str, timeout_ms: int | None) -> CallTime:
        self._require_time(timeout_ms)
        return CallTime(*self._call_seconds(self._servers.get(server_id), timeout_ms))


class BegunCall:
    """A call that goes on without a task; made by `Gateway.begin_call`."""

    __slots__ = ("_gateway", "_limit", "_on_end", "_principal", "_server_id", "_started", "call")

    def __init__(
        self, gateway: Gateway, server_id: str, principal: Principal, limit: WheelTime, on_end: "OnToolEnd"
    ) -> None:
        self._gateway = gateway
        self._server_id = server_id
        self._principal = principal
        self._limit = limit
        self._on_end: OnToolEnd | None = on_end
        self._started = time.monotonic()
        self.call: DirectToolCall | None = None

    def cancel(self) -> None:
        """Tell the server to stop; nothing happens where the call has ended."""
        if self._on_end is not None:
            self._end(Cancelled.code)
            if self.call is not None:
                self.call.cancel()

    def timed_out(self, error: CallTimeout) -> None:
        """Its time is over."""
        if (on_end := self._end(error.code)) is not None:
            if self.call is not None:
                self.call.cancel()
            on_end(None, error)

    def ended(self, result: ToolResult | None, error: Exception | None) -> None:
        """Its server has answered, or never will."""
        if isinstance(error, ServerUnavailable):
            error = _discreet(self._principal, error)
        if result is not None:
            outcome = TOOL_ERROR if result.is_error else OK
        else:
            outcome = error.code if isinstance(error, GatewayError) else InternalError.code
        if (on_end := self._end(outcome)) is not None:
            on_end(result, error)

    def _end(self, outcome: str) -> "OnToolEnd | None":
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._limit.stop()
            self._gateway.count_end(self._server_id, outcome, self._started)
        return on_end


def _asker(caller: Caller) -> Asker:
    return Asker(caller.principal.user, caller.connection)


def _discreet(principal: Principal, error: ServerUnavailable) -> ServerUnavailable:
    if not may_read_servers(principal) and isinstance(error.details, dict):
        error.details.pop("reason", None)  # what an operator has configured is for operators
    return error
