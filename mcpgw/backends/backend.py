"""One backend MCP server under supervision: one long-lived client, started again whenever it ends.

One task enters and leaves the SDK's client (anyio's rule for cancel scopes); any task may call through it.
Whatever happens to the backend stays inside this object: its calls end with an error of their own, the task
pauses with growing, jittered delays and starts it again.

Source of the state names: the seed of the routes (``server.started`` and so on); of the pauses: Brooker,
"Exponential Backoff And Jitter", 2015 (full jitter).
"""

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import httpx2
import mcp_types as types
from mcp.client import Client, ClientSession, IncomingMessage
from mcp.shared.exceptions import MCPError
from pydantic import TypeAdapter, ValidationError

from mcpgw import __version__
from mcpgw.backends.failures import in_words, is_never_sent, origin_of, translate
from mcpgw.backends.http import http_transport
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.status import BackendState, BackendStatus
from mcpgw.backends.stdio import PROCESS_ENDED, StdioTransport
from mcpgw.backends.tools import Tool, ToolResult, list_tools
from mcpgw.errors import GatewayError, ServerUnavailable, ToolExecutionError
from mcpgw.logs import log_event
from mcpgw.rate_limit import RateLimit
from mcpgw.redaction import redact
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings

_LOGGER = logging.getLogger("mcpgw.backend")
# The SDK types its result adapters for models alone and works with any.
_RAW_RESULT: TypeAdapter[Any] = TypeAdapter(dict[str, Any])
_REFRESH_PAUSE = 0.25
_LISTEN_PAUSE = 5.0
_LAST_WORDS = 200
_EXPECTED = (OSError, MCPError, RuntimeError, ValidationError, ExceptionGroup, httpx2.HTTPError)

ProgressCallback = Callable[[float, float | None, str | None], None]
"""Takes progress, total and message of one ``notifications/progress``."""

AnnounceCallback = Callable[[str, Mapping[str, Any]], None]
"""Takes what has happened to a backend (``started``, ``log`` …) and the data of its event."""

LogCallback = Callable[[str, str | None, Any], None]
"""Takes level, logger and data of one ``notifications/message``."""


@dataclass(slots=True)
class _Connection:
    """One session with the backend, from its handshake to its end."""

    client: Client
    log_callbacks: set[LogCallback] = field(default_factory=set)
    quiet_until: float = 0.0


_LONGEST_LINE = 500
"""Characters of a line of stderr in an event."""
_ABANDONED_LOGS = 5.0
"""Seconds in which a server may still log what a call that nobody waits for any more has done."""

_current_log: ContextVar[LogCallback | None] = ContextVar("mcpgw_current_log", default=None)


class Backend:
    """Supervises one backend server.

    `definition` says how to reach it; `reaper` ends its process if the gateway is killed; `longest_call` is
    how long an answer over HTTP may take, in seconds.
    """

    def __init__(
        self,
        definition: ServerDefinition,
        settings: BackendSettings,
        *,
        reaper: ProcessReaper,
        longest_call: float,
        announce: AnnounceCallback | None = None,
    ) -> None:
        self.definition = definition
        self.tools: Mapping[str, Tool] = {}
        self._settings = settings
        self._reaper = reaper
        self._longest_call = longest_call
        self._announce = announce or _tell_nobody
        self._was_ready = False
        self._state = BackendState.STARTING if definition.enabled else BackendState.DISABLED
        self._since = time.time()
        self._failures = 0
        self._next_try_at: float | None = None
        self._retry_at = 0.0
        self._ready_at: float | None = None
        self._reason: str | None = None
        self._last_words = ""
        self._connection: _Connection | None = None
        self._protocol_version: str | None = None
        self._server_info: types.Implementation | None = None
        self._tried = asyncio.Event()
        self._ended = asyncio.Event()
        self._tools_changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._connect_deadline: asyncio.Timeout | None = None
        self._task: asyncio.Task[None] | None = None
        self._log_share = RateLimit(settings.log_lines_per_second)

    @property
    def id(self) -> str:
        """The name under which clients call this backend."""
        return self.definition.name

    @property
    def status(self) -> BackendStatus:
        """The present state."""
        info = self._server_info
        return BackendStatus(
            id=self.id,
            transport=self.definition.transport,
            state=self._state,
            since=self._since,
            tools=len(self.tools),
            protocol_version=self._protocol_version,
            server_name=info.name if info is not None else None,
            server_version=info.version if info is not None else None,
            failures=self._failures,
            next_try_at=self._next_try_at,
            reason=self._full_reason(),
        )

    def start(self) -> None:
        """Begin to supervise; returns at once, whatever the backend does."""
        if self._state is not BackendState.DISABLED:
            self._task = asyncio.create_task(self._supervise(), name=f"backend {self.id}")
        else:
            self._announce("disabled", {})

    async def wait_started(self) -> None:
        """Wait until the first try to start it is over, whatever came of it."""
        if self._state is not BackendState.DISABLED:
            await self._tried.wait()

    async def stop(self) -> None:
        """End the backend and its supervision; its process is gone when this returns.

        Bounded by the steps of stopping a process, whatever the backend does.
        """
        self._stopping.set()
        if self._task is None:
            return
        self._end_connection("it was stopped")
        deadline = self._connect_deadline
        if deadline is not None and not deadline.expired():  # it may hang in its handshake
            deadline.reschedule(asyncio.get_running_loop().time())
        limit = 3 * self._settings.stop_timeout + 1
        _, pending = await asyncio.wait({self._task}, timeout=limit)
        for task in pending:  # an HTTP backend that does not let go
            task.cancel()
            await asyncio.wait({task}, timeout=limit)

    def unavailable(self) -> ServerUnavailable:
        """The error that a call ends with while the backend is not ready."""
        details: dict[str, Any] = {"state": self._state.value}
        retry_after: int | None = None
        if self._next_try_at is not None:
            details["nextTryAt"] = int(self._next_try_at * 1000)
            retry_after = max(0, int((self._next_try_at - time.time()) * 1000))
        if (reason := self._full_reason()) is not None:
            details["reason"] = reason
        return ServerUnavailable(
            f"the server {self.id!r} is {self._state.value}", details=details, retry_after_ms=retry_after
        )

    async def call_tool(
        self, tool: str, arguments: Mapping[str, Any], *, on_progress: ProgressCallback, on_log: LogCallback
    ) -> ToolResult:
        """Call one tool. Cancelling the awaiting task tells the backend to stop.

        Raises:
            ServerUnavailable: the backend is not ready, or the call never reached it.
            OutcomeUnknown: the call was sent, and the backend ended before it answered.
            ToolExecutionError: the backend answered with a protocol error, or with what is no result.
            TooLarge: the answer is over the limit of one message.
        """
        connection = self._connection
        if connection is None:
            raise self.unavailable()

        async def report(progress: float, total: float | None, message: str | None) -> None:
            on_progress(progress, total, message)

        request = types.CallToolRequest(
            params=types.CallToolRequestParams(name=tool, arguments=dict(arguments))
        )
        connection.log_callbacks.add(on_log)
        token = _current_log.set(on_log)
        try:
            # A raw result keeps every member that the backend sent; the SDK still checks its shape.
            raw: dict[str, Any] = await connection.client.session.send_request(
                request, _RAW_RESULT, progress_callback=report
            )
        except asyncio.CancelledError:
            connection.quiet_until = time.monotonic() + _ABANDONED_LOGS
            raise
        except MCPError as error:
            raise self._translated(error, connection) from error
        except ValidationError as error:
            raise ToolExecutionError(
                f"the server {self.id!r} answered with what is no tool result",
                details={"faults": error.error_count()},
            ) from None
        finally:
            _current_log.reset(token)
            connection.log_callbacks.discard(on_log)
        return ToolResult.from_json(raw)

    def _translated(self, error: MCPError, connection: _Connection) -> GatewayError:
        if is_never_sent(error):
            return self.unavailable()
        ended = connection is not self._connection
        return translate(error, server=self.id, ended=ended, reason=self._reason)

    async def _supervise(self) -> None:
        try:
            while not self._stopping.is_set():
                await self._live_once()
                if not self._stopping.is_set():
                    await self._pause()
        finally:
            self._connection = None
            self._set_state(BackendState.STOPPED)

    async def _live_once(self) -> None:
        """Start it, and hold the session to its end; whatever happens stays in here."""
        self._ready_at = None
        self._last_words = ""
        self._ended = asyncio.Event()
        self._tools_changed = asyncio.Event()
        self._set_state(BackendState.STARTING)
        try:
            async with self._connected() as connection:
                if not self._ended.is_set():
                    self._ready_at = time.monotonic()
                    self._connection = connection
                    self._set_state(BackendState.READY)
                    await self._hold(connection)
        # The bulkhead between one backend and everything else: whatever an SDK client can raise ends
        # this try and no more, and stands in the log and in the state.
        except Exception as error:
            if not isinstance(error, _EXPECTED):
                _LOGGER.exception("unexpected end of %s", self.id)
            self._end_connection(in_words(error, self.definition))
        finally:
            self._connect_deadline = None
        # A transport that said why it ended has ended the session before the client could be left.
        self._end_connection("its session ended")
        self._leave()

    def _end_connection(self, reason: str) -> None:
        """No call can go through any more; the first reason that is given stands."""
        if not self._ended.is_set():
            self._ended.set()
            self._reason = reason
            if self._connection is not None:
                self._leave()

    def _leave(self) -> None:
        """Say at once what comes next, for leaving the client may take as long as stopping a process."""
        self._connection = None
        if self._stopping.is_set():
            if self._state is not BackendState.STOPPING:
                self._set_state(BackendState.STOPPING)
        elif self._state is not BackendState.RETRYING:
            self._plan_retry()

    def _plan_retry(self) -> None:
        # A server that held for longer than its last longest pause has recovered.
        if self._ready_at is not None and time.monotonic() - self._ready_at > self._longest_pause():
            self._failures = 0
        self._failures += 1
        delay = random.uniform(0, self._longest_pause())  # noqa: S311 - jitter, no secret
        self._retry_at = time.monotonic() + delay
        self._next_try_at = time.time() + delay
        self._set_state(BackendState.RETRYING)

    def _longest_pause(self) -> float:
        settings = self._settings
        doublings = min(max(self._failures - 1, 0), 32)
        return min(settings.retry_maximum, settings.retry_initial * 2.0**doublings)

    async def _pause(self) -> None:
        try:
            async with asyncio.timeout(self._retry_at - time.monotonic()):
                await self._stopping.wait()
        except TimeoutError:
            pass
        self._next_try_at = None

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[_Connection]:
        """A session that has shaken hands and listed its tools, all within the connect timeout."""
        async with asyncio.timeout(self._settings.connect_timeout) as deadline:
            self._connect_deadline = deadline
            client = Client(
                self._transport(),
                mode="auto",
                client_info=types.Implementation(name="mcpgw", version=__version__),
                logging_callback=self._on_log,
                log_level="info",
                message_handler=self._on_message,
                cache=None,
            )
            async with client:
                connection = _Connection(client)
                await self._ask_for_logs(client.session)
                self.tools = await list_tools(client)
                self._protocol_version = client.protocol_version
                self._server_info = client.server_info
                self._connect_deadline = None
                deadline.reschedule(None)
                yield connection

    def _transport(self) -> AbstractAsyncContextManager[Any]:
        definition, settings = self.definition, self._settings
        if definition.transport == "stdio":
            assert definition.command is not None, "a stdio definition has a command"  # noqa: S101
            return StdioTransport(
                definition.command,
                definition.args,
                env=definition.env,
                cwd=definition.cwd,
                max_message_size=settings.max_message_size,
                notification_rate=settings.notifications_per_second,
                stop_timeout=settings.stop_timeout,
                reaper=self._reaper,
                on_stderr=self._on_stderr,
                on_fault=self._on_fault,
                on_end=self._end_connection,
            )
        assert definition.url is not None, "a definition over HTTP has a url"  # noqa: S101
        return http_transport(
            definition.url,
            definition.headers,
            legacy_sse=definition.transport == "sse",
            connect_timeout=settings.connect_timeout,
            read_timeout=self._longest_call,
            max_message_size=settings.max_message_size,
            notification_rate=settings.notifications_per_second,
            on_fault=self._on_fault,
            on_end=self._end_connection,
        )

    async def _hold(self, connection: _Connection) -> None:
        """Hold the session until it ends or is to end; list the tools again when they change."""
        helpers = {asyncio.create_task(self._keep_tools(connection), name=f"tools of {self.id}")}
        tools = connection.client.server_capabilities.tools
        if connection.client.session.discover_result is not None and tools is not None and tools.list_changed:
            helpers.add(asyncio.create_task(self._listen(connection), name=f"changes of {self.id}"))
        try:
            await self._ended.wait()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)

    async def _listen(self, connection: _Connection) -> None:
        """From 2026-07-28 on a server tells of changes only where it is asked to (subscriptions/listen)."""
        while True:
            try:
                async with connection.client.listen(tools_list_changed=True) as subscription:
                    async for _ in subscription:
                        self._tools_changed.set()
            except _EXPECTED as error:
                self._on_fault(f"it tells of no changes now: {in_words(error)}")
            await asyncio.sleep(_LISTEN_PAUSE)
            self._tools_changed.set()  # what changed meanwhile was not heard of

    async def _keep_tools(self, connection: _Connection) -> None:
        """List the tools again whenever they change; where that fails, those known before stay."""
        while True:
            await self._tools_changed.wait()
            self._tools_changed.clear()
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    self.tools = await list_tools(connection.client)
            except _EXPECTED as error:
                self._on_fault(f"its tools have changed and could not be listed: {in_words(error)}")
            else:
                log_event(_LOGGER, logging.INFO, "tools changed", server=self.id, tools=len(self.tools))
                self._announce("tools_changed", {"tools": len(self.tools)})
            # A server may announce a change with every list that it gives.
            await asyncio.sleep(_REFRESH_PAUSE)

    async def _ask_for_logs(self, session: ClientSession) -> None:
        """Servers of the handshake revisions log from a level on; later ones are asked with each call."""
        result = session.initialize_result
        if result is not None and result.capabilities.logging is not None:
            request = types.SetLevelRequest(params=types.SetLevelRequestParams(level="info"))
            try:
                await session.send_request(request, types.EmptyResult)
            except (MCPError, ValidationError) as error:  # a server without logs is still a server
                self._on_fault(f"it does not take the level of its logs: {in_words(error)}")

    async def _on_log(self, params: types.LoggingMessageNotificationParams) -> None:
        # Over HTTP the SDK runs this in the context of the call. Over stdio a message names no call: it is
        # passed on only where one call is open and none was just abandoned, for it could be another user's.
        callback, connection = _current_log.get(), self._connection
        if (
            callback is None
            and connection is not None
            and len(connection.log_callbacks) == 1
            and time.monotonic() > connection.quiet_until
        ):
            (callback,) = connection.log_callbacks
        if callback is not None:
            callback(params.level, params.logger, params.data)

    async def _on_message(self, message: IncomingMessage) -> None:
        if isinstance(message, types.ToolListChangedNotification):
            self._tools_changed.set()
        elif isinstance(message, types.ResourceUpdatedNotification):
            self._announce("resource_updated", {"uri": str(message.params.uri)})

    def _full_reason(self) -> str | None:
        """The reason with what is for operators alone: the address's origin, a dead process's last words."""
        if self._reason is None:
            return None
        if self.definition.url is not None:
            return f"{self._reason} ({origin_of(self.definition.url)})"
        if self._last_words and self._reason.startswith(PROCESS_ENDED):
            return f"{self._reason}: {redact(self._last_words)}"
        return self._reason

    def _on_stderr(self, line: str) -> None:
        if words := line.strip():
            self._last_words = words if len(words) <= _LAST_WORDS else f"{words[:_LAST_WORDS]}…"
        if self._log_line(logging.INFO, "stderr", line=line):
            self._announce("log", {"level": "info", "line": redact(line)[:_LONGEST_LINE]})

    def _on_fault(self, fault: str) -> None:
        if self._log_line(logging.WARNING, "protocol fault", fault=fault):
            self._announce("error", {"reason": fault})

    def _log_line(self, level: int, event: str, **fields: Any) -> bool:
        """Log what the backend did; false where that is beyond its share of the log."""
        admitted = self._log_share.admit()
        if admitted:
            log_event(_LOGGER, level, event, server=self.id, **fields)
            if dropped := self._log_share.take_refused():
                log_event(_LOGGER, logging.WARNING, "lines dropped", server=self.id, lines=dropped)
        return admitted

    def _set_state(self, state: BackendState) -> None:
        self._state = state
        self._since = time.time()
        if state is not BackendState.STARTING:
            self._tried.set()
        fields: dict[str, Any] = {"server": self.id}
        if state is BackendState.READY:
            self._reason = None
            fields |= {"tools": len(self.tools), "protocol": self._protocol_version}
        if state is BackendState.RETRYING and self._next_try_at is not None:
            wait = round(self._next_try_at - time.time(), 1)
            fields |= {"reason": self._full_reason(), "failures": self._failures, "next_try_s": wait}
        level = logging.WARNING if state is BackendState.RETRYING else logging.INFO
        log_event(_LOGGER, level, state.value, **fields)
        self._announce_state(state)

    def _announce_state(self, state: BackendState) -> None:
        data: dict[str, Any] = {}
        name = state.value
        if state is BackendState.READY:
            name = "restarted" if self._was_ready else "started"
            self._was_ready = True
            data = {"tools": len(self.tools), "protocolVersion": self._protocol_version}
        elif state is BackendState.RETRYING:
            data = {"reason": self._reason or "", "failures": self._failures}
            if self._next_try_at is not None:
                data["nextTryAt"] = round(self._next_try_at * 1000)
        elif state is BackendState.STOPPING:
            return  # it has an event of its own when it has stopped
        self._announce(name, data)


def _tell_nobody(_name: str, _data: Mapping[str, Any]) -> None:
    """Nobody asked to be told."""
