"""A call of a tool that needs no task: it holds its slot, and its answer comes as a callback.

Most calls find their server ready and a slot free, and have one answer. What is more than that (the server
asks for input in between, or ends and the call may be sent again) goes on in a task, in the ordinary way.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, Protocol

from mcp.shared.exceptions import MCPError

from mcpgw.backends.backend import Backend
from mcpgw.backends.connection import Connection, OpenToolCall
from mcpgw.backends.instances import Instance, Instances
from mcpgw.backends.requests import Asker, Observer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.errors import GatewayError, InternalError, OutcomeUnknown, ServerUnavailable

OnToolEnd = Callable[[ToolResult | None, Exception | None], None]
"""Takes the result of a call, or why there is none: mostly a `GatewayError`. Must not wait or raise."""


class Resending(Protocol):
    """Who sends a call again."""

    def go_on(
        self,
        instance: Instance,
        send: Callable[[Backend], Awaitable[ToolResult]],
        *,
        repeatable: bool,
        failed: ServerUnavailable | OutcomeUnknown,
        session: Connection,
    ) -> Coroutine[Any, Any, ToolResult]:
        """See `Server.go_on`."""


class DirectToolCall:
    """One call at an instance whose slot was taken for it; made by `Server.begin_call`."""

    __slots__ = (
        "_call",
        "_connection",
        "_instance",
        "_instances",
        "_on_end",
        "_request",
        "_server",
        "_started",
        "_task",
    )

    def __init__(
        self,
        server: Resending,
        instances: Instances,
        instance: Instance,
        connection: Connection,
        on_end: OnToolEnd,
    ) -> None:
        self._server = server
        self._instances = instances
        self._instance = instance
        self._connection = connection
        self._on_end: OnToolEnd | None = on_end
        self._call: OpenToolCall | None = None
        self._task: asyncio.Task[ToolResult] | None = None
        self._started = time.monotonic()

    def send(self, asker: Asker, tool: Tool, arguments: Mapping[str, Any], observer: Observer) -> bool:
        """Send it; false, and the slot given back, where the pipe does not take it."""
        self._request = (asker, tool, arguments, observer)
        self._instances.begin_use(self._instance)
        try:
            self._call = self._connection.begin_call(
                tool.name, arguments, None, asker=asker, observer=observer, on_end=self._answered
            )
        except MCPError:
            self._leave()
            return False
        except BaseException:
            self._leave()
            raise
        return True

    def cancel(self) -> None:
        """Tell the server to stop; nothing happens where the call has ended."""
        if self._on_end is None:
            return
        self._on_end = None
        if self._task is not None:
            self._task.cancel()  # it leaves when the server was told
            return
        if self._call is not None:
            self._call.cancel()
        self._leave()

    def _leave(self) -> None:
        self._instance.slots.give_back(self._started)
        self._instances.end_use(self._instance)

    def _end(self, result: ToolResult | None, error: Exception | None) -> None:
        on_end, self._on_end = self._on_end, None
        self._leave()
        if on_end is not None:
            on_end(result, error)

    def _answered(self, raw: dict[str, Any] | None, error: Exception | None) -> None:
        try:
            self._take_answer(raw, error)
        except Exception as fault:  # a callback: nobody else would give the call its end
            if self._on_end is None:
                raise
            self._end(None, fault)

    def _take_answer(self, raw: dict[str, Any] | None, error: Exception | None) -> None:
        if isinstance(error, MCPError) and self._connection.has_old_list(error):
            self._go_on(self._continued(error))
        elif error is not None:
            self._failed(error)
        elif raw is not None and raw.get("resultType") == "input_required":
            self._go_on(self._continued(raw))
        else:
            try:
                result = ToolResult.from_json(raw or {})
            except GatewayError as unknown_kind:
                self._end(None, unknown_kind)
            else:
                self._end(result, None)

    def _failed(self, error: Exception) -> None:
        failure = self._instance.backend.translated(error, self._connection)
        is_repeatable = self._request[1].is_repeatable
        if isinstance(failure, ServerUnavailable) or (isinstance(failure, OutcomeUnknown) and is_repeatable):
            self._go_on(
                self._server.go_on(
                    self._instance,
                    self._send_again,
                    repeatable=is_repeatable,
                    failed=failure,
                    session=self._connection,
                )
            )
        else:
            self._end(None, failure)

    def _send_again(self, backend: Backend) -> Awaitable[ToolResult]:
        asker, tool, arguments, observer = self._request
        return backend.call_tool(tool.name, arguments, observer=observer, asker=asker)

    def _continued(self, first: dict[str, Any] | MCPError) -> Coroutine[Any, Any, ToolResult]:
        asker, tool, arguments, observer = self._request
        return self._instance.backend.continue_call(
            self._connection, tool.name, arguments, first, observer=observer, asker=asker
        )

    def _go_on(self, work: Coroutine[Any, Any, ToolResult]) -> None:
        self._task = asyncio.get_running_loop().create_task(work)
        self._task.add_done_callback(self._went_on)

    def _went_on(self, task: asyncio.Task[ToolResult]) -> None:
        if task.cancelled():
            stopped = OutcomeUnknown("the call was stopped inside the gateway; it may have run in part")
            self._end(None, stopped)
        elif (error := task.exception()) is not None:
            self._end(None, error if isinstance(error, Exception) else InternalError(str(error)))
        else:
            self._end(task.result(), None)
