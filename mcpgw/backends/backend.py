"""One instance of a backend MCP server under supervision: it is started again whenever it ends.

One task enters and leaves the SDK's client (anyio's rule for cancel scopes); any task may call through it.
Whatever happens to the backend stays inside this object: its calls end with an error of their own, the task
pauses (see `Retries`) and starts it again. After several failures in a row it is `failed`; it is tried all
the same, so that a server that comes back needs nobody.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any, ParamSpec, TypeVar

import httpx2
import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcpgw.backends.connection import Change, Connection
from mcpgw.backends.failures import SESSION_ENDED, in_words, is_never_sent, origin_of, translate
from mcpgw.backends.health import watch_health
from mcpgw.backends.notes import AnnounceCallback, BackendNotes
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.requests import NOBODY, Asker, Observer, SilentObserver
from mcpgw.backends.retries import Retries
from mcpgw.backends.status import BackendState, BackendStatus, Offer
from mcpgw.backends.stdio import PROCESS_ENDED
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.backends.transports import transport_to
from mcpgw.backends.watch import WatchedResources
from mcpgw.errors import GatewayError, ServerUnavailable, ToolExecutionError
from mcpgw.logs import log_event
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings

T = TypeVar("T")
P = ParamSpec("P")

_LOGGER = logging.getLogger("mcpgw.backend")
_REFRESH_PAUSE = 0.25
_EXPECTED = (OSError, MCPError, RuntimeError, ValidationError, ExceptionGroup, httpx2.HTTPError)


class Backend:
    """Supervises one instance of a server, from `start` to `stop`; then it is not started again.

    `definition` says how to reach it; `reaper` ends its process if the gateway is killed; `longest_call` is
    how long an answer over HTTP may take, in seconds. `announce` is told what it does, `on_state` of every
    change of its state.

    `was_ready` says that it ever had a session, `reached_session` that it has one, or had with its last try.
    """

    def __init__(
        self,
        definition: ServerDefinition,
        settings: BackendSettings,
        *,
        reaper: ProcessReaper,
        longest_call: float,
        announce: AnnounceCallback | None = None,
        on_state: Callable[[], None] | None = None,
    ) -> None:
        self.definition = definition
        self.tools: Mapping[str, Tool] = {}
        self.was_ready = False
        self.reached_session = False
        self.resources = WatchedResources()
        self._settings = settings
        self._reaper = reaper
        self._longest_call = longest_call
        self._announce = _unharmed(announce or _tell_nobody)
        self._on_state = _unharmed(on_state or _nothing)
        self._state = BackendState.IDLE if definition.enabled else BackendState.DISABLED
        self._since = time.time()
        self._retries = Retries(settings)
        self._ready_at: float | None = None
        self._reason: str | None = None
        self._connection: Connection | None = None
        self._changed = asyncio.Event()
        self._protocol_version: str | None = None
        self._server_info: types.Implementation | None = None
        self._capabilities: Mapping[str, Any] = {}
        self.instructions: str | None = None
        self._tried = asyncio.Event()
        self._ended = asyncio.Event()
        self._tools_changed = asyncio.Event()
        self._stopping = asyncio.Event()
        self._connect_deadline: asyncio.Timeout | None = None
        self._task: asyncio.Task[None] | None = None
        self._notes = BackendNotes(definition.name, settings.log_lines_per_second, self._announce)

    @property
    def id(self) -> str:
        """The name under which clients call this backend."""
        return self.definition.name

    @property
    def state(self) -> BackendState:
        """Where it is in its life."""
        return self._state

    @property
    def failures(self) -> int:
        """Tries in a row that failed."""
        return self._retries.failures

    @property
    def offer(self) -> Offer | None:
        """What it offers beside its tools; None where it never had a session."""
        if not self.was_ready:
            return None
        info = self._server_info
        return Offer(
            self._capabilities,
            self.instructions,
            self._protocol_version,
            info.name if info is not None else None,
            info.version if info is not None else None,
        )

    @property
    def last_lines(self) -> tuple[str, ...]:
        """The last lines of its stderr, without secrets."""
        return tuple(self._notes.last_lines)

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
            failures=self._retries.failures,
            next_try_at=self._retries.next_try_at,
            reason=self._reason,
            full_reason=self.full_reason(),
            capabilities=self._capabilities,
            last_lines=self.last_lines,
        )

    # --- life ----------------------------------------------------------------------------------------------

    def start(self, after: Awaitable[None] | None = None) -> None:
        """Begin to supervise; returns at once, whatever the backend does.

        `after` is waited for first: the instance that this one takes the place of, on its way out.
        """
        if self._state is BackendState.IDLE and self._task is None:
            self._task = asyncio.create_task(self._supervise(after), name=f"backend {self.id}")
            self._set_state(BackendState.STARTING)

    async def wait_started(self) -> None:
        """Wait until the first try to start it is over, whatever came of it."""
        if self._state is BackendState.STARTING:
            await self._tried.wait()

    async def stop(self) -> None:
        """End the backend and its supervision; its process is gone when this returns.

        Bounded by the steps of stopping a process, whatever the backend does.
        """
        self._stopping.set()
        if self._task is None:
            if self._state is not BackendState.DISABLED:
                self._set_state(BackendState.STOPPED)
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

    async def _supervise(self, after: Awaitable[None] | None) -> None:
        try:
            if after is not None:
                await self._wait_for(after)
            while not self._stopping.is_set():
                await self._live_once()
                if not self._stopping.is_set():
                    await self._pause()
        finally:
            self._connection = None
            self._set_state(BackendState.STOPPED)

    async def _wait_for(self, after: Awaitable[None]) -> None:
        """Wait for it, unless this is to be stopped before it was started."""
        waits = {asyncio.ensure_future(after), asyncio.create_task(self._stopping.wait())}
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _live_once(self) -> None:
        """Start it, and hold the session to its end; whatever happens stays in here."""
        self._ready_at = None
        self._notes.begin()
        self._ended = asyncio.Event()
        self._tools_changed = asyncio.Event()
        # A failed one is only looked after: it is called starting when there is hope.
        if self._state not in (BackendState.STARTING, BackendState.FAILED):
            self._set_state(BackendState.STARTING)
        try:
            async with self._connected() as connection:
                if not self._ended.is_set():
                    self._ready_at = time.monotonic()
                    self._connection = connection
                    self._reason = None
                    self.was_ready = self.reached_session = True
                    self._set_state(BackendState.READY)
                    try:
                        await self._hold(connection)
                    except BaseException as error:
                        self._end_connection(in_words(error))  # at once: leaving the client takes its time
                        raise
        # The bulkhead between one backend and everything else: whatever an SDK client can raise ends
        # this try and no more, and stands in the log and in the state. Also a cancellation that nobody has
        # asked for: one that has slipped out of a library would end the supervision for good.
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt | SystemExit) or self._is_cancelled():
                raise
            if not isinstance(error, _EXPECTED):
                _LOGGER.exception("unexpected end of %s", self.id)
            self._end_connection(in_words(error, self.definition))
        finally:
            self._connect_deadline = None
        # A transport that said why it ended has ended the session before the client could be left.
        self._end_connection("its session ended")
        self._leave()

    def _is_cancelled(self) -> bool:
        """Whether somebody has cancelled the supervision: a stop that took too long, or the loop's end."""
        task = asyncio.current_task()
        return task is not None and bool(task.cancelling())

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
        elif self._retries.next_try_at is None:
            self._plan_retry()

    def _plan_retry(self) -> None:
        held = None if self._ready_at is None else time.monotonic() - self._ready_at
        self.reached_session = held is not None
        # One that has ended our session is there, and has only forgotten us.
        self._retries.plan(held=held, at_once=self._reason == SESSION_ENDED)
        self._set_state(BackendState.FAILED if self._retries.has_failed else BackendState.RETRYING)

    async def _pause(self) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._retries.seconds_left):
                await self._stopping.wait()
        self._retries.begin()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Connection]:
        """A session that has shaken hands and listed its tools, all within the connect timeout."""
        async with asyncio.timeout(self._settings.connect_timeout) as deadline:
            self._connect_deadline = deadline
            async with Connection(self._transport(), self) as connection:
                tools, before = await connection.list_tools(), self.tools
                self.tools = tools
                client = connection.client
                self._protocol_version = client.protocol_version
                self._server_info = client.server_info
                self.instructions = client.instructions
                self._capabilities = client.server_capabilities.model_dump(
                    by_alias=True, mode="json", exclude_none=True
                )
                if self.was_ready and not _are_same(before, tools):
                    self._announce("tools_changed", {"tools": len(tools)})
                self._connect_deadline = None
                deadline.reschedule(None)
                yield connection

    def _transport(self) -> AbstractAsyncContextManager[Any]:
        return transport_to(
            self.definition,
            self._settings,
            reaper=self._reaper,
            longest_call=self._longest_call,
            on_stderr=self._notes.stderr,
            on_fault=self.on_fault,
            on_end=self._end_connection,
        )

    async def _hold(self, connection: Connection) -> None:
        """Hold the session until it ends or is to end, and look after what changes meanwhile."""
        health = watch_health(
            connection, self._settings, on_health=self._on_health, on_lost=self._end_connection
        )
        watched = self.resources.keep(connection, self.on_fault, self.on_change)
        helpers = {
            asyncio.create_task(self._keep_tools(connection), name=f"tools of {self.id}"),
            asyncio.create_task(watched, name=f"changes of {self.id}"),
            asyncio.create_task(health, name=f"health of {self.id}"),
        }
        try:
            await self._ended.wait()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.wait(helpers)

    async def _keep_tools(self, connection: Connection) -> None:
        """List the tools again whenever they change; where that fails, those known before stay."""
        while True:
            await self._tools_changed.wait()
            self._tools_changed.clear()
            try:
                async with asyncio.timeout(self._settings.connect_timeout):
                    tools = await connection.list_tools()
            except _EXPECTED as error:
                self.on_fault(f"its tools have changed and could not be listed: {in_words(error)}")
            else:
                self._take_tools(tools)
            # A server may announce a change with every list that it gives.
            await asyncio.sleep(_REFRESH_PAUSE)

    def _take_tools(self, tools: Mapping[str, Tool]) -> None:
        before, self.tools = self.tools, tools
        if not _are_same(before, tools):
            log_event(_LOGGER, logging.INFO, "tools changed", server=self.id, tools=len(tools))
            self._announce("tools_changed", {"tools": len(tools)})

    # --- use -----------------------------------------------------------------------------------------------

    def unavailable(self) -> ServerUnavailable:
        """The error that a call ends with while the backend is not ready."""
        retry_after: int | None = None
        details: dict[str, Any] = {"state": self._state.value}
        if (next_try_at := self._retries.next_try_at) is not None:
            details["nextTryAt"] = int(next_try_at * 1000)
            retry_after = max(0, int((next_try_at - time.time()) * 1000))
        if self._reason is not None:
            details["reason"] = self._reason
        return ServerUnavailable(
            f"the server {self.id!r} is {self._state.value}", details=details, retry_after_ms=retry_after
        )

    @property
    def session(self) -> Connection | None:
        """The present session, where there is one."""
        return self._connection

    async def connection(self, patience: float, *, after: Connection | None = None) -> Connection:
        """The present session; where there is none, the next, if there is hope that it comes in time.

        `patience` is in seconds. `after` is a session that takes nothing any more: its end may not have been
        seen yet.

        Raises:
            ServerUnavailable: there is none, and none that is waited for.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + patience
        while (present := self._connection) is None or present is after:
            left = deadline - loop.time()
            has_hope = (
                present is not None
                or self._state is BackendState.STARTING
                or (
                    self._state is BackendState.RETRYING
                    and self.was_ready
                    and self._retries.seconds_left < left
                )
            )
            if left <= 0 or not has_hope:
                raise self.unavailable()
            changed = self._changed
            try:
                async with asyncio.timeout(left):
                    await changed.wait()
            except TimeoutError:
                raise self.unavailable() from None
        return present

    @property
    def direct_connection(self) -> Connection | None:
        """The present session, where calls can be sent on it without waiting for anything."""
        connection = self._connection
        return connection if connection is not None and connection.is_direct else None

    async def call_tool(
        self,
        tool: str,
        arguments: Mapping[str, Any],
        *,
        observer: Observer | None = None,
        asker: Asker = NOBODY,
        meta: Any = None,
    ) -> ToolResult:
        """Call one tool. Cancelling the awaiting task tells the backend to stop.

        Raises:
            ServerUnavailable: the backend is not ready, or the call did not reach it: it has not run.
            OutcomeUnknown: the call was sent, and the backend ended before it answered.
            ToolExecutionError: the backend answered with a protocol error, or with what is no result.
            TooLarge: the answer is over the limit of one message.
        """
        connection = await self.connection(0)
        return await self.continue_call(
            connection, tool, arguments, None, observer=observer or SilentObserver(), asker=asker, meta=meta
        )

    async def continue_call(
        self,
        connection: Connection,
        tool: str,
        arguments: Mapping[str, Any],
        first: dict[str, Any] | MCPError | None,
        *,
        observer: Observer,
        asker: Asker,
        meta: Any = None,
    ) -> ToolResult:
        """As `call_tool`, of a call that was sent already on `connection` and has its `first` answer."""

        async def list_again() -> None:
            self._take_tools(await connection.list_tools())

        sending = connection.call_tool(
            tool, arguments, meta, asker=asker, observer=observer, list_again=list_again, first=first
        )
        return ToolResult.from_json(await self.guarded(connection, sending))

    async def request(
        self, request: types.ClientRequest, *, observer: Observer | None = None, asker: Asker = NOBODY
    ) -> dict[str, Any]:
        """Send one request and answer its result, as the backend sent it.

        Raises:
            ServerUnavailable, OutcomeUnknown, ToolExecutionError, TooLarge: as `call_tool`.
        """
        connection = await self.connection(0)
        sending = connection.request(request, asker=asker, observer=observer or SilentObserver())
        return await self.guarded(connection, sending)

    async def guarded(self, connection: Connection, work: Awaitable[T]) -> T:
        """Await `work` on `connection`, with the SDK's errors as the gateway's."""
        try:
            return await work
        except MCPError as error:
            raise self._translated(error, connection) from error
        except ValidationError as error:
            raise self.translated(error, connection) from None

    def translated(self, error: Exception, connection: Connection) -> GatewayError:
        """The gateway's error for an `MCPError` or a `ValidationError` on `connection`.

        Raises:
            Exception: `error`, where it is neither.
        """
        if isinstance(error, MCPError):
            return self._translated(error, connection)
        if isinstance(error, ValidationError):
            return ToolExecutionError(
                f"the server {self.id!r} answered with what is not as the protocol has it",
                details={"faults": error.error_count()},
            )
        raise error

    def _translated(self, error: MCPError, connection: Connection) -> GatewayError:
        if is_never_sent(error):
            return self.unavailable()
        ended = connection is not self._connection
        return translate(error, server=self.id, ended=ended, reason=self._reason)

    # --- what it does beside its answers -------------------------------------------------------------------

    def on_change(self, change: Change) -> None:
        """A list of the server's is not what it was."""
        if change == "tools":
            self._tools_changed.set()
        else:
            self._announce(f"{change}_changed", {})

    def on_resource_updated(self, uri: str) -> None:
        """A resource has changed."""
        self._announce("resource_updated", {"uri": uri})

    def on_fault(self, fault: str) -> None:
        """It did what is not as the protocol has it."""
        self._notes.fault(fault)

    def _on_health(self, is_well: bool) -> None:
        if self._connection is None or self._ended.is_set():
            return
        state = BackendState.READY if is_well else BackendState.DEGRADED
        if state is not self._state:
            self._reason = None if is_well else "it did not answer a probe of its health in time"
            self._set_state(state)

    def full_reason(self) -> str | None:
        """The reason with what is for operators alone: the address's origin, a dead process's last words."""
        if self._reason is None:
            return None
        if self.definition.url is not None:
            return f"{self._reason} ({origin_of(self.definition.url)})"
        if self._reason.startswith(PROCESS_ENDED) and (words := self._notes.last_words):
            return f"{self._reason}: {words}"
        return self._reason

    @property
    def reason(self) -> str | None:
        """Why it ended last, for everybody."""
        return self._reason

    @property
    def next_try_at(self) -> float | None:
        """When it is tried again, in seconds since the epoch."""
        return self._retries.next_try_at

    def _set_state(self, state: BackendState) -> None:
        if state is not self._state:
            self._since = time.time()
        self._state = state
        if state is not BackendState.STARTING:
            self._tried.set()
        fields: dict[str, Any] = {"server": self.id}
        if state is BackendState.READY:
            fields |= {"tools": len(self.tools), "protocol": self._protocol_version}
        if (next_try_at := self._retries.next_try_at) is not None:
            wait = round(next_try_at - time.time(), 1)
            fields |= {"reason": self.full_reason(), "failures": self._retries.failures, "next_try_s": wait}
        bad = (BackendState.RETRYING, BackendState.FAILED, BackendState.DEGRADED)
        log_event(_LOGGER, logging.WARNING if state in bad else logging.INFO, state.value, **fields)
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_state()


def _are_same(before: Mapping[str, Tool], after: Mapping[str, Tool]) -> bool:
    return before.keys() == after.keys() and all(before[name].raw == after[name].raw for name in after)


def _unharmed(listener: Callable[P, None]) -> Callable[P, None]:
    """`listener`, whose own faults stand in the log and harm nobody who tells it something."""

    def tell(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            listener(*args, **kwargs)
        except Exception:
            _LOGGER.exception("a listener failed")

    return tell


def _tell_nobody(_name: str, _data: Mapping[str, Any]) -> None:
    """Nobody asked to be told."""


def _nothing() -> None:
    """Nobody asked to be told."""
