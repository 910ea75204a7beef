"""Tool calls and the life of servers: who may call what, with which arguments, for how long.

The gateway knows the backends by their ids and nothing of sockets or frames. Every way in (WebSocket, REST,
MCP) calls the same two methods.
"""

import asyncio
import logging
from collections.abc import Iterable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from mcpgw.access.permissions import may_call, may_call_any, require_call, require_read_servers
from mcpgw.access.tokens import Principal
from mcpgw.backends.backend import Backend, LogCallback, ProgressCallback
from mcpgw.backends.status import BackendState, BackendStatus
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.errors import CallTimeout, Draining, InvalidParams, ServerNotFound, ToolNotFound, suggest
from mcpgw.logs import log_event
from mcpgw.settings import CallSettings
from mcpgw.wire.validation import SchemaChecker, UnusableSchemaError, require

_LOGGER = logging.getLogger("mcpgw.gateway")


class Gateway:
    """The backends under one roof.

    `draining` is set when the gateway is ending: open calls go on, new ones are refused.
    """

    def __init__(self, backends: Iterable[Backend], settings: CallSettings) -> None:
        self._backends: Mapping[str, Backend] = {backend.id: backend for backend in backends}
        self._settings = settings
        self._checkers: WeakKeyDictionary[Tool, SchemaChecker | None] = WeakKeyDictionary()
        self.draining = False

    def start(self) -> None:
        """Begin to start every backend; returns at once."""
        for backend in self._backends.values():
            backend.start()

    async def stop(self) -> None:
        """End every backend, side by side."""
        self.draining = True
        await asyncio.gather(*(backend.stop() for backend in self._backends.values()))

    async def wait_started(self, timeout: float) -> None:  # noqa: ASYNC109 - a bound, not a failure
        """Wait until no backend is in its first start any more, at most `timeout` seconds."""
        waits = [asyncio.create_task(backend.wait_started()) for backend in self._backends.values()]
        try:
            if waits:
                await asyncio.wait(waits, timeout=timeout)
        finally:
            for wait in waits:
                wait.cancel()

    def server_statuses(self, principal: Principal) -> list[BackendStatus]:
        """The present state of every server.

        Raises:
            PermissionDenied: the caller may not read servers.
        """
        require_read_servers(principal)
        return [backend.status for backend in self._backends.values()]

    def list_tools(self, principal: Principal, server_id: str | None = None) -> list[tuple[str, Tool]]:
        """The tools that the caller may call, with the ids of their servers; of one server or of all.

        Raises:
            ServerNotFound: no server has this id.
            ServerUnavailable: the one server that was named is not ready.
        """
        if server_id is not None:
            backend = self._backend(principal, server_id)
            if backend.status.state is not BackendState.READY:
                raise backend.unavailable()
            chosen = [backend]
        else:
            chosen = [b for b in self._backends.values() if b.status.state is BackendState.READY]
        return [
            (backend.id, tool)
            for backend in chosen
            for tool in backend.tools.values()
            if may_call(principal, backend.id, tool.name)
        ]

    async def call_tool(
        self,
        principal: Principal,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_ms: int | None = None,
        on_progress: ProgressCallback,
        on_log: LogCallback,
    ) -> ToolResult:
        """Call one tool for `principal`; cancelling the awaiting task tells the backend to stop.

        `timeout_ms` (milliseconds) takes the place of the server's or the gateway's default.

        Raises:
            GatewayError: with the code of what went wrong; see the tree in `mcpgw.errors`.
        """
        if self.draining:
            raise Draining("the gateway is ending and takes no new calls")
        limit = self._limit(server_id, timeout_ms)
        backend = self._backend(principal, server_id)
        require_call(principal, server_id, tool_name)
        if backend.status.state is not BackendState.READY:
            raise backend.unavailable()
        tool = backend.tools.get(tool_name)
        if tool is None:
            visible = [name for name in backend.tools if may_call(principal, server_id, name)]
            raise ToolNotFound(
                f"the server {server_id!r} has no tool {tool_name[:128]!r}{suggest(tool_name, visible)}"
            )
        self._check_arguments(backend, tool, arguments)
        try:
            async with asyncio.timeout(limit):
                return await backend.call_tool(tool_name, arguments, on_progress=on_progress, on_log=on_log)
        except TimeoutError:
            raise CallTimeout(
                f"the call took longer than {limit:g} s; the server {server_id!r} was told to stop"
            ) from None

    def _backend(self, principal: Principal, server_id: str) -> Backend:
        backend = self._backends.get(server_id)
        if backend is None:
            visible = [name for name in self._backends if may_call_any(principal, name)]
            raise ServerNotFound(f"no server {server_id[:64]!r}{suggest(server_id, visible)}")
        return backend

    def _limit(self, server_id: str, timeout_ms: int | None) -> float:
        longest = self._settings.max_timeout
        if timeout_ms is None:
            backend = self._backends.get(server_id)
            default = None if backend is None else backend.definition.timeout
            return min(default or self._settings.timeout, longest)
        if timeout_ms > longest * 1000:
            reason = f"must be at most {int(longest * 1000)}"
            raise InvalidParams(
                f"timeoutMs {reason}", details=[{"path": "/data/timeoutMs", "reason": reason}]
            )
        return timeout_ms / 1000

    def _check_arguments(self, backend: Backend, tool: Tool, arguments: Mapping[str, Any]) -> None:
        if tool not in self._checkers:
            self._checkers[tool] = self._checker(backend, tool)
        checker = self._checkers[tool]
        if checker is None:
            return
        try:
            require(checker, arguments, what=f"the arguments of {tool.name!r}", root=("data", "params"))
        except UnusableSchemaError as error:
            self._checkers[tool] = None
            self._warn(backend, tool, error)

    def _checker(self, backend: Backend, tool: Tool) -> SchemaChecker | None:
        try:
            return SchemaChecker(tool.input_schema)
        except UnusableSchemaError as error:
            self._warn(backend, tool, error)
            return None

    def _warn(self, backend: Backend, tool: Tool, error: UnusableSchemaError) -> None:
        # Such a tool can still be called: its backend checks the arguments itself, as it must anyway.
        log_event(
            _LOGGER,
            logging.WARNING,
            "unusable input schema",
            server=backend.id,
            tool=tool.name,
            reason=str(error),
        )
