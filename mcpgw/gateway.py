"""Tool calls and the life of servers: who may call what, with which arguments, for how long.

The gateway knows the backends by their ids and nothing of sockets or frames. Every way in (WebSocket, REST,
MCP) calls the same two methods.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

from mcpgw.access.permissions import (
    may_call,
    may_call_any,
    may_read_servers,
    require_call,
    require_call_any,
    require_read_servers,
)
from mcpgw.access.tokens import Principal
from mcpgw.backends.backend import Backend, LogCallback, ProgressCallback
from mcpgw.backends.slots import QueuedCallback, Slots
from mcpgw.backends.status import BackendState, BackendStatus
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.errors import (
    CallTimeout,
    Cancelled,
    Draining,
    GatewayError,
    InternalError,
    InvalidParams,
    ServerNotFound,
    ToolNotFound,
    suggest,
)
from mcpgw.logs import log_event
from mcpgw.metrics import OK, TOOL_ERROR, Metrics
from mcpgw.settings import BackendSettings, CallSettings
from mcpgw.tracing import CallerTrace, Tracing
from mcpgw.wire.validation import SchemaChecker, SlowCheckError, UnusableSchemaError, require

_LOGGER = logging.getLogger("mcpgw.gateway")
_CHECK_SECONDS = 0.05
"""Most processor time of one check of arguments; what takes longer is left to the backend."""
_SLOW_CHECKS = 3
"""Checks of one tool that may take too long before its schema is used no more."""


@dataclass(slots=True)
class CallCounts:
    """Calls since the start, by how they ended (``ok``, or the code of their error)."""

    open: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    def to_json(self) -> dict[str, Any]:
        """For the statistics."""
        return {"open": self.open, "ended": dict(self.ended)}


class Gateway:
    """The backends under one roof.

    `draining` is set when the gateway is ending: open calls go on, new ones are refused.
    """

    def __init__(
        self,
        backends: Iterable[Backend],
        settings: CallSettings,
        backend_settings: BackendSettings,
        *,
        metrics: Metrics,
        tracing: Tracing,
    ) -> None:
        self._backends: Mapping[str, Backend] = {backend.id: backend for backend in backends}
        self._slots = {
            name: Slots(backend_settings.max_calls, backend_settings.max_waiting) for name in self._backends
        }
        self._settings = settings
        self._checkers: WeakKeyDictionary[Tool, SchemaChecker | None] = WeakKeyDictionary()
        self._slow: WeakKeyDictionary[Tool, int] = WeakKeyDictionary()
        self.draining = False
        self._drained_at = 0.0
        self.counts = CallCounts()
        self._metrics = metrics
        self._tracing = tracing

    def start(self) -> None:
        """Begin to start every backend; returns at once."""
        for backend in self._backends.values():
            backend.start()

    def begin_draining(self, seconds: float) -> None:
        """Take no new calls; those that are open have `seconds` to come to their end."""
        self.draining = True
        self._drained_at = time.monotonic() + seconds

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
            if not may_read_servers(principal):
                require_call_any(principal, server_id)
            self._require_ready(principal, backend)
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
        on_started: Callable[[], None],
        on_queued: QueuedCallback,
        on_progress: ProgressCallback,
        on_log: LogCallback,
        trace: CallerTrace | None = None,
    ) -> ToolResult:
        """Call one tool for `principal`; cancelling the awaiting task tells the backend to stop.

        `timeout_ms` (milliseconds) takes the place of the server's or the gateway's default. `on_started` is
        called when the call is sent, `on_queued` while it waits for its turn. `trace` is where the caller is.

        Raises:
            GatewayError: with the code of what went wrong; see the tree in `mcpgw.errors`.
        """
        started, outcome = time.monotonic(), InternalError.code
        self._metrics.call_started(server_id)
        self.counts.open += 1
        try:
            with self._tracing.call(
                server=server_id, tool=tool_name, user=principal.user, parent=trace
            ) as span:
                self._refuse_while_draining()
                result = await self._call_tool(
                    principal,
                    server_id,
                    tool_name,
                    arguments,
                    timeout_ms,
                    on_started,
                    on_queued,
                    on_progress,
                    on_log,
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

    def _refuse_while_draining(self) -> None:
        if self.draining:
            left = max(0.0, self._drained_at - time.monotonic())
            raise Draining(
                "the gateway is ending and takes no new calls", retry_after_ms=round(left * 1000) + 1000
            )

    async def _call_tool(  # noqa: PLR0917 - called in one place
        self,
        principal: Principal,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        timeout_ms: int | None,
        on_started: Callable[[], None],
        on_queued: QueuedCallback,
        on_progress: ProgressCallback,
        on_log: LogCallback,
    ) -> ToolResult:
        limit = self._limit(server_id, timeout_ms)
        backend = self._backend(principal, server_id)
        require_call(principal, server_id, tool_name)
        self._require_ready(principal, backend)
        tool = backend.tools.get(tool_name)
        if tool is None:
            visible = [name for name in backend.tools if may_call(principal, server_id, name)]
            raise ToolNotFound(
                f"the server {server_id!r} has no tool {tool_name[:128]!r}{suggest(tool_name, visible)}"
            )
        self._check_arguments(backend, tool, arguments)
        try:
            async with asyncio.timeout(limit), self._slots[server_id].hold(principal.user, on_queued):
                on_started()
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

    def _require_ready(self, principal: Principal, backend: Backend) -> None:
        if backend.status.state is BackendState.READY:
            return
        error = backend.unavailable()
        if not may_read_servers(principal) and isinstance(error.details, dict):
            error.details.pop("reason", None)  # what an operator has configured is for operators
        raise error

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
        except SlowCheckError as error:
            # The value may be to blame, or a busy machine: the schema has more than one chance.
            self._slow[tool] = self._slow.get(tool, 0) + 1
            if self._slow[tool] >= _SLOW_CHECKS:
                self._checkers[tool] = None
            self._warn(backend, tool, error)
        except UnusableSchemaError as error:
            self._checkers[tool] = None
            self._warn(backend, tool, error)

    def _checker(self, backend: Backend, tool: Tool) -> SchemaChecker | None:
        try:
            return SchemaChecker(tool.input_schema, budget=_CHECK_SECONDS)
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
