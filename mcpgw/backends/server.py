"""One server as callers know it: its instances, what it offers, and requests that reach it.

A request goes to the instance of its caller, which is started where that is needed. Where the session ends
under it, it is sent again on the next one if that can do no harm.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

import mcp_types as types

from mcpgw.backends.backend import Backend
from mcpgw.backends.connection import Connection, forwarded_meta
from mcpgw.backends.direct_call import DirectToolCall, OnToolEnd
from mcpgw.backends.instances import Instance, Instances
from mcpgw.backends.lists import KeptLists, capability_of
from mcpgw.backends.reaper import ProcessReaper
from mcpgw.backends.requests import NOBODY, Asker, Observer
from mcpgw.backends.slots import Slots
from mcpgw.backends.state_events import StateEvents
from mcpgw.backends.status import BEST_FIRST, BackendState, BackendStatus, ListKind, Offer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.backends.watchers import Watchers
from mcpgw.errors import OutcomeUnknown, QueueFull, ServerUnavailable
from mcpgw.logs import log_event
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import BackendSettings, CallSettings

if TYPE_CHECKING:
    from mcpgw.backends.remote_server import RemoteServer

T = TypeVar("T")

_LOGGER = logging.getLogger("mcpgw.backend")

ServerAnnounce = Callable[[str, Mapping[str, Any], str | None], None]
"""Takes what happened to a server (``started``, ``log`` …), its data, and the one user whom it concerns."""


class Server:
    """One server: from `start` until `close`.

    `announce` is told what happens to it; see `ServerAnnounce`. `on_change` is called where `status` may be
    another one. `tools` and `offer` are those of its one instance, or, where each has one, as an instance
    lists them before anybody has used it; see `speaker`. `watchers` are those who want to be told of
    resources.
    """

    def __init__(
        self,
        definition: ServerDefinition,
        settings: BackendSettings,
        calls: CallSettings,
        *,
        reaper: ProcessReaper,
        announce: ServerAnnounce | None = None,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.definition = definition
        self.tools: Mapping[str, Tool] = {}
        self.offer: Offer | None = None
        self._settings = settings
        self._calls = calls
        self._reaper = reaper
        self._announce = announce or _tell_nobody
        self._on_change = on_change
        self._instances = Instances(
            definition, self._make, on_owned=self._tell_watched, on_change=self._tell_state
        )
        self.watchers = Watchers(self._on_watchers)
        self._lists = KeptLists()
        self._is_held = False
        self._is_restarting = False
        self._is_closed = False
        self._events = StateEvents()
        self._since = time.time()
        self._last_lines: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """The name under which clients call it."""
        return self.definition.name

    @property
    def state(self) -> BackendState:
        """Where it is in its life: as its best instance is."""
        return self._present()[0]

    @property
    def status(self) -> BackendStatus:
        """What is known of it at this moment."""
        state, instance = self._present()
        instances = tuple(one.status for one in self._instances)
        if instance is not None:
            status = replace(instance.backend.status, state=state, tools=len(self.tools))
        else:
            offer = self.offer
            status = BackendStatus(
                id=self.id,
                transport=self.definition.transport,
                state=state,
                since=self._since,
                tools=len(self.tools),
                protocol_version=offer.protocol_version if offer is not None else None,
                server_name=offer.server_name if offer is not None else None,
                server_version=offer.server_version if offer is not None else None,
                failures=0,
                next_try_at=None,
                reason="an operator has stopped it" if self._is_held else None,
                capabilities=offer.capabilities if offer is not None else {},
                last_lines=self._last_lines,
            )
        return replace(status, isolation=self.definition.isolation, instances=instances)

    @property
    def is_open(self) -> bool:
        """Whether a call may go through now, if need be by starting it."""
        state = self.state
        return state.takes_calls or (state is BackendState.IDLE and not self._is_held)

    def unavailable(self) -> ServerUnavailable:
        """The error of a call while it is not ready."""
        state, instance = self._present()
        if instance is not None and instance.backend.state is state:
            return instance.backend.unavailable()
        details: dict[str, Any] = {"state": state.value}
        if self._is_held:
            details["reason"] = "an operator has stopped it"
        return ServerUnavailable(f"the server {self.id!r} is {state.value}", details=details)

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start it, unless the first call is to do so; returns at once."""
        if self._is_closed:
            return
        self._is_held = False
        if not self.definition.lazy:
            self.wake()
        self._resume_watching()
        self._tell_state()

    def wake(self) -> None:
        """Begin to start an instance where there is none, so that its tools become known."""
        if not self.definition.enabled or self._is_held or self._is_closed or len(self._instances):
            return
        if self._instances.is_shared:
            # Nobody waits for the start with the gateway; a lazy server is started where somebody wants it.
            self._instances.claim(NOBODY).on_demand = self.definition.lazy
        else:
            # One that nobody owns tells what the server offers; the first who needs one gets it.
            self._instances.fill(least=1)

    async def wait_started(self) -> None:
        """Wait until no instance is in its first start any more."""
        await asyncio.gather(*(instance.backend.wait_started() for instance in self._instances))

    @property
    def is_held(self) -> bool:
        """Whether an operator has stopped it."""
        return self._is_held

    def take_over(self, old: "Server | RemoteServer") -> None:
        """Go on watching what was watched at the one whose place it takes, before `start`."""
        self.watchers.take_over(old.watchers)

    def hold(self) -> None:
        """Leave it unstarted until `start`: an operator had stopped the one whose place it takes."""
        self._is_held = True
        self._tell_state()

    async def bring_back(self) -> None:
        """Begin to start it at an operator's word."""
        self.start()
        self.wake()

    async def stop(self) -> None:
        """End it at an operator's word; only `start` brings it back."""
        self._is_held = True
        await self._end_instances()

    async def restart(self) -> None:
        """End every instance and begin to start anew."""
        self._is_restarting = True
        try:
            await self._instances.drop_all()
        finally:
            self._is_restarting = False
        self._is_held = False
        self.wake()
        self._resume_watching()
        self._tell_state()

    async def enable(self) -> None:
        """Switch it on, and begin to start it."""
        if not self.definition.enabled:
            self._define(replace(self.definition, enabled=True))
            self._announce("enabled", {}, None)
            self.start()

    async def disable(self) -> None:
        """Switch it off; returns when it has ended."""
        self._define(replace(self.definition, enabled=False))
        await self._end_instances()

    async def close(self) -> None:
        """End it for good."""
        self._is_closed = True
        await self._instances.close()
        self._tell_state()

    def update(self, definition: ServerDefinition) -> bool:
        """Take over a definition that needs no other process; false, and nothing done, where it does."""
        if any(getattr(self.definition, name) != getattr(definition, name) for name in _OF_THE_PROCESS):
            return False
        sees_others = self.definition.tools != definition.tools and self.offer is not None
        self._define(definition)
        if sees_others:  # its callers see other tools than before, or see them otherwise
            self._announce("tools_changed", {"tools": len(self.tools)}, None)
        return True

    def change_call_settings(self, settings: CallSettings) -> None:
        """Have other limits of time hold for calls from now on."""
        self._calls = settings

    def connection_ended(self, connection: str) -> None:
        """A client is gone: end the instance that was its own, and watch nothing for it."""
        self.watchers.remove_connection(connection)
        self._instances.drop_connection(connection)

    def _define(self, definition: ServerDefinition) -> None:
        self.definition = definition
        self._instances.define(definition)

    async def _end_instances(self) -> None:
        await self._instances.drop_all()
        self._tell_state()

    # --- instances -----------------------------------------------------------------------------------------

    def _make(self) -> Instance:
        def announce(name: str, data: Mapping[str, Any]) -> None:
            self._on_backend(instance, name, data)

        def on_state() -> None:
            self._on_state(instance)

        backend = Backend(
            self.definition,
            self._settings,
            reaper=self._reaper,
            longest_call=self._calls.max_timeout,
            announce=announce,
            on_state=on_state,
        )
        instance = Instance(backend, Slots(self._settings.max_calls, self._settings.max_waiting))
        return instance

    def _on_backend(self, instance: Instance, name: str, data: Mapping[str, Any]) -> None:
        if name == "tools_changed":
            if self._instances.is_shared:
                self.tools = instance.backend.tools
        elif name.endswith("_changed"):
            self._lists.drop(instance.backend)
        self._announce(name, data, instance.user)

    def _on_state(self, instance: Instance) -> None:
        backend = instance.backend
        self._last_lines = tuple(backend.last_lines)
        self._lists.drop(backend)
        if backend.state is BackendState.READY:
            # What an isolated instance says later may come from what its owner has done in it.
            if self._instances.is_shared or not instance.has_listed:
                self.tools, self.offer = backend.tools, backend.offer
            instance.has_listed = True
        self._tell_state()

    def _present(self) -> tuple[BackendState, Instance | None]:
        """The state of the server, and the instance that has it."""
        leaving = self._is_closed or self._is_held or self._is_restarting or not self.definition.enabled
        if leaving and self._instances.is_ending:
            return BackendState.STOPPING, None
        if self._is_closed:
            return BackendState.STOPPED, None
        if not self.definition.enabled:
            return BackendState.DISABLED, None
        best = min(self._instances, key=lambda one: BEST_FIRST.index(one.backend.state), default=None)
        return (BackendState.IDLE, None) if best is None else (best.backend.state, best)

    def _tell_state(self) -> None:
        """Make an event of a change of the state."""
        self._on_change()
        state, instance = self._present()
        backend = None if instance is None else instance.backend
        for name, data in self._events.of(state, backend, len(self.tools), is_held=self._is_held):
            self._since = time.time()
            self._announce(name, data, None)

    # --- use -----------------------------------------------------------------------------------------------

    async def known_tools(self, asker: Asker) -> Mapping[str, Tool]:
        """Its tools as `asker` sees them; where it never listed them, it is started for `asker`.

        Raises:
            ServerUnavailable: it never did, and cannot now.
            QueueFull: it has as many instances as it may have.
        """
        if self.offer is None:
            instance = self._claim(asker)
            with self._instances.in_use(instance):
                await instance.backend.connection(self._patience(instance))
        return self.speaker(asker).tools

    def speaker(self, asker: Asker) -> "Server | Backend":
        """Who knows what there is for `asker`: their own instance, or the server for all who have none."""
        instance = None if self._instances.is_shared else self._instances.find(asker)
        return self if instance is None or instance.backend.offer is None else instance.backend

    async def call_tool(
        self,
        asker: Asker,
        tool: Tool,
        arguments: Mapping[str, Any],
        *,
        observer: Observer,
        meta: Mapping[str, Any] | None = None,
    ) -> ToolResult:
        """Call one tool for `asker`; cancelling the awaiting task tells the server to stop.

        A call that did not reach the server is sent again; one that did only where the tool says that it
        reads or is idempotent, and once.

        Raises:
            ServerUnavailable, QueueFull, OutcomeUnknown, ToolExecutionError, TooLarge: how it ended.
        """
        kept = forwarded_meta(meta)

        def send(backend: Backend) -> Awaitable[ToolResult]:
            return backend.call_tool(tool.name, arguments, observer=observer, asker=asker, meta=kept)

        return await self._run(asker, observer, send, repeatable=tool.is_repeatable)

    def begin_call(
        self,
        asker: Asker,
        tool: Tool,
        arguments: Mapping[str, Any],
        *,
        observer: Observer,
        on_end: OnToolEnd,
    ) -> DirectToolCall | None:
        """Call a tool at once, without a task; None, and nothing done, where that needs more than a pipe.

        `on_end` is told how it ended, as `call_tool` would, unless it is cancelled.
        """
        if self._is_held or self._is_closed or self._is_restarting or not self.definition.enabled:
            return None
        instance = self._instances.find(asker)
        connection = None if instance is None else instance.backend.direct_connection
        if instance is None or connection is None or not instance.slots.try_take():
            return None
        call = DirectToolCall(self, self._instances, instance, connection, on_end)
        if not call.send(asker, tool, arguments, observer):
            return None
        observer.started()
        return call

    async def go_on(
        self,
        instance: Instance,
        send: Callable[[Backend], Awaitable[ToolResult]],
        *,
        repeatable: bool,
        failed: ServerUnavailable | OutcomeUnknown,
        session: Connection,
    ) -> ToolResult:
        """Send a call again that has `failed` on a `session` already, where that may be."""
        first = _FirstTry(session, failed)
        return await self._send(instance.backend, send, repeatable=repeatable, first=first)

    async def request(
        self, asker: Asker, make: Callable[[], types.ClientRequest], *, observer: Observer
    ) -> dict[str, Any]:
        """Send a request that changes nothing, such as the reading of a resource; answers the raw result.

        `make` makes the request, which is another object for each time that it is sent.

        Raises:
            ServerUnavailable, QueueFull, OutcomeUnknown, ToolExecutionError, TooLarge: how it ended.
        """

        def send(backend: Backend) -> Awaitable[dict[str, Any]]:
            return backend.request(make(), observer=observer, asker=asker)

        return await self._run(asker, observer, send, repeatable=True)

    async def list(self, asker: Asker, kind: ListKind) -> list[dict[str, Any]]:
        """Its ``resources``, ``templates`` or ``prompts``, as it lists them; kept until they change.

        Raises:
            ServerUnavailable, QueueFull, OutcomeUnknown, ToolExecutionError, TooLarge: why not.
        """
        offer = self.speaker(asker).offer
        if offer is not None and capability_of(kind) not in offer.capabilities:
            return []

        def send(backend: Backend) -> Awaitable[list[dict[str, Any]]]:
            return self._lists.get(backend, kind)

        instance = self._claim(asker)
        with self._instances.in_use(instance):
            await instance.backend.connection(self._patience(instance))
            return await self._send(instance.backend, send, repeatable=True)

    def last_listed(self, asker: Asker, kind: ListKind) -> Sequence[dict[str, Any]]:
        """The last that is known of a list, without asking the server."""
        instance = self._instances.find(asker)
        return [] if instance is None else self._lists.last(instance.backend, kind)

    async def watch_resource(self, asker: Asker, uri: str) -> None:
        """Have its changes told as ``resource_updated``, until the same connection ends or wants no more.

        Raises:
            ServerUnavailable, QueueFull, ToolExecutionError: why not.
        """
        if self.watchers.stands(asker, uri):
            return
        # Before the first wait: what happens meanwhile finds it, and nothing is left of it by mistake.
        self.watchers.begin(asker, uri)
        try:
            instance = self._claim(asker)
            backend = instance.backend
            with self._instances.in_use(instance):
                connection = await backend.connection(self._patience(instance))
                await backend.guarded(connection, backend.resources.watching(uri))
        except BaseException:
            self.watchers.failed(asker, uri)
            raise
        self.watchers.fulfilled(asker, uri)

    async def unwatch_resource(self, asker: Asker, uri: str) -> None:
        """Tell of it no more."""
        self.watchers.remove(asker, uri)

    def _tell_watched(self, instance: Instance) -> None:
        """Have an instance watch what those want whose instance it is."""
        uris = self.watchers.uris(lambda asker: self._instances.key(asker) == instance.key)
        instance.backend.resources.want(uris)

    def _on_watchers(self, asker: Asker) -> None:
        if (instance := self._instances.find(asker)) is not None:
            self._tell_watched(instance)

    def _resume_watching(self) -> None:
        """Start the instances that have something to watch."""
        if self.definition.enabled and not self._is_held and not self._is_closed:
            for asker in tuple(self.watchers):
                with suppress(QueueFull):
                    self._instances.claim(asker)

    def _claim(self, asker: Asker) -> Instance:
        if self._is_held or self._is_closed or self._is_restarting or not self.definition.enabled:
            raise self.unavailable()
        return self._instances.claim(asker)

    def _patience(self, instance: Instance) -> float:
        """How long a call may wait for a session, in seconds.

        For a start that it has caused itself, and in the gap between two sessions; but nobody waits for a
        server whose last start has failed.
        """
        backend = instance.backend
        if backend.was_ready:
            return self._calls.retry_wait if backend.reached_session else 0.0
        return self._settings.connect_timeout if instance.on_demand and not backend.failures else 0.0

    async def _run(
        self, asker: Asker, observer: Observer, send: Callable[[Backend], Awaitable[T]], *, repeatable: bool
    ) -> T:
        instance = self._claim(asker)
        with self._instances.in_use(instance):
            await instance.backend.connection(self._patience(instance))
            async with instance.slots.hold(asker.user, observer.queued):
                observer.started()
                return await self._send(instance.backend, send, repeatable=repeatable)

    async def _send(
        self,
        backend: Backend,
        send: Callable[[Backend], Awaitable[T]],
        *,
        repeatable: bool,
        first: "_FirstTry | None" = None,
    ) -> T:
        """Send, and again on the next session where one has not taken it; `first` is a try that was made."""
        deadline: float | None = None
        is_repeated = False
        for _ in range(_MOST_SENDINGS):
            failure: ServerUnavailable | OutcomeUnknown
            session = backend.session if first is None else first.session
            try:
                if first is not None:
                    failure, first = first.failure, None
                    raise failure
                return await send(backend)
            except ServerUnavailable as error:  # it cannot have run
                failure = error
            except OutcomeUnknown as error:
                if is_repeated or not repeatable:
                    raise
                is_repeated, failure, deadline = True, error, None
            deadline = deadline or time.monotonic() + self._calls.retry_wait
            try:
                await backend.connection(max(0.0, deadline - time.monotonic()), after=session)
            except ServerUnavailable as error:
                raise (error if isinstance(failure, ServerUnavailable) else failure) from None
            log_event(_LOGGER, logging.INFO, "sent again", server=self.id, reason=failure.message)
        raise failure


@dataclass(frozen=True, slots=True)
class _FirstTry:
    """A call that was sent, and has failed."""

    session: Connection
    failure: ServerUnavailable | OutcomeUnknown


_MOST_SENDINGS = 4
_OF_THE_PROCESS = (
    "name",
    "transport",
    "command",
    "args",
    "env",
    "cwd",
    "url",
    "headers",
    "enabled",
    "isolation",
    "warm",
    "lazy",
    "single",
)
"""The members of a definition that a running instance cannot take over."""


def _tell_nobody(_name: str, _data: Mapping[str, Any], _user: str | None) -> None:
    """Nobody asked to be told."""
