"""A server that runs in another worker alone, as it is used in this one: the same as `Server`, from afar.

It mirrors what its owner tells of it, and has the owner do what is asked of it. The policy of its tools,
permissions and limits of time are the business of the worker that is called, as with every server.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast

from mcpgw.backends.owners import Happened, NotBegunError, Owners
from mcpgw.backends.requests import Asker, Observer, SilentObserver
from mcpgw.backends.single_notes import ACT, ACT_SECONDS, Act, Asked, Snapshot
from mcpgw.backends.status import BackendState, BackendStatus, ListKind, Offer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.backends.watchers import Watchers
from mcpgw.errors import OutcomeUnknown, ServerUnavailable, error_of
from mcpgw.logs import log_event
from mcpgw.server_definitions import ServerDefinition
from mcpgw.settings import CallSettings
from mcpgw.workers.peers import WorkerGoneError

if TYPE_CHECKING:  # the MCP SDK is not needed here
    from mcpgw.backends.direct_call import DirectToolCall, OnToolEnd
    from mcpgw.backends.mcp_requests import Maker

_LOGGER = logging.getLogger("mcpgw.backend")
_MOST_SENDINGS: Final = 4

Announce = Callable[[str, Mapping[str, Any], str | None], None]
"""As `mcpgw.backends.server.ServerAnnounce`."""


class RemoteServer:
    """See `Server`, whose methods these are. `announce` is told what happens to it, for this worker alone."""

    def __init__(
        self,
        definition: ServerDefinition,
        calls: CallSettings,
        *,
        owner: int,
        owners: Owners,
        announce: Announce,
    ) -> None:
        self.definition = definition
        self.owner = owner
        self.tools: Mapping[str, Tool] = {}
        self._calls = calls
        self._owners = owners
        self._announce = announce
        self.watchers = Watchers(_is_nothing)
        self._watching: set[str] = set()
        self._lists: dict[ListKind, list[dict[str, Any]]] = {}
        self._run = ""
        self._snapshot: Snapshot | None = None
        self._was_known = self._was_ready = False
        self._is_closed = False
        self._since = time.time()
        self._changed = asyncio.Event()

    @property
    def id(self) -> str:
        """The name under which clients call it."""
        return self.definition.name

    @property
    def offer(self) -> Offer | None:
        """What it offers beside its tools; the last that is known, also where its owner is gone."""
        return None if self._snapshot is None else self._snapshot.offer

    @property
    def state(self) -> BackendState:
        """Where it is in its life, as its owner has told."""
        if self._is_closed:
            return BackendState.STOPPED
        if not self.definition.enabled:
            return BackendState.DISABLED
        if self._run and self._snapshot is not None:
            return self._snapshot.status.state
        return BackendState.RETRYING if self._was_known else BackendState.STARTING

    @property
    def status(self) -> BackendStatus:
        """What is known of it at this moment."""
        state = self.state
        if self._snapshot is not None:
            status = replace(self._snapshot.status, state=state)
        else:
            status = BackendStatus(
                id=self.id,
                transport=self.definition.transport,
                state=state,
                since=self._since,
                tools=len(self.tools),
                protocol_version=None,
                server_name=None,
                server_version=None,
                failures=0,
                next_try_at=None,
                reason=None,
            )
        if self._run or self._is_closed or not self.definition.enabled:
            return status
        return replace(status, since=self._since, reason=self._absence, instances=())

    @property
    def _absence(self) -> str:
        return f"worker {self.owner} of the gateway, where it runs, is being started"

    @property
    def is_open(self) -> bool:
        """Whether a call may go through now."""
        return self._is_on and bool(self._run) and self._snapshot is not None and self._snapshot.is_open

    @property
    def is_held(self) -> bool:
        """Whether an operator has stopped it."""
        return self._snapshot is not None and self._snapshot.is_held

    @property
    def _is_on(self) -> bool:
        return self.definition.enabled and not self._is_closed

    def unavailable(self) -> ServerUnavailable:
        """The error of a call while it is not ready."""
        if self._is_on and self._run and self._snapshot is not None and self._snapshot.why is not None:
            error = error_of(self._snapshot.why)
            if isinstance(error, ServerUnavailable):
                return error
        state = self.state
        details = {"state": state.value}
        if self._is_on and not self._run:
            details["reason"] = self._absence
        return ServerUnavailable(f"the server {self.id!r} is {state.value}", details=details)

    # --- life ----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to mirror it. Whether it runs is its owner's business."""
        if not self._is_closed:
            self._owners.add(self)

    def wake(self) -> None:
        """Have it started where there is no instance of it."""
        if self._is_on:
            self._owners.tell(self.owner, "wake", self.id)

    async def wait_started(self) -> None:
        """Wait until it is not in its first start any more."""
        await self._until(lambda: self.state is not BackendState.STARTING)

    def take_over(self, old: Any) -> None:
        """Go on watching what was watched at the server whose place it takes, before `start`."""
        self.watchers.take_over(old.watchers)

    def hold(self) -> None:
        """It is its owner that leaves it unstarted."""

    async def bring_back(self) -> None:
        """Begin to start it at an operator's word. Raises ServerUnavailable."""
        await self._act("start")

    async def stop(self) -> None:
        """End it at an operator's word. Raises ServerUnavailable."""
        await self._act("stop")

    async def restart(self) -> None:
        """End it and begin to start it anew. Raises ServerUnavailable."""
        await self._act("restart")

    async def enable(self) -> None:
        """Take it to be switched on; its owner starts it."""
        self._define(replace(self.definition, enabled=True))

    async def disable(self) -> None:
        """Take it to be switched off; its owner ends it."""
        self._define(replace(self.definition, enabled=False))

    async def close(self) -> None:
        """Mirror it no more; its owner ends it where it is not to be any more."""
        self._is_closed = True
        self._owners.remove(self)
        self._has_changed()

    def update(self, definition: ServerDefinition) -> bool:
        """Take over a definition; false, and nothing done, where it is to run in each worker."""
        if not definition.single:
            return False
        sees_others = self.definition.tools != definition.tools and self.offer is not None
        self._define(definition)
        if sees_others:
            self._announce("tools_changed", {"tools": len(self.tools)}, None)
        return True

    def change_call_settings(self, settings: CallSettings) -> None:
        """Have other limits of time hold for calls from now on."""
        self._calls = settings

    def connection_ended(self, connection: str) -> None:
        """A client is gone: watch nothing for it."""
        if connection in self._watching:
            self._watching.discard(connection)
            self.watchers.remove_connection(connection)
            self._owners.tell(self.owner, "left", connection)

    async def _act(self, act: Act) -> None:
        await self._owners.peers.ask(self.owner, ACT, (self.id, act), seconds=ACT_SECONDS)

    def _define(self, definition: ServerDefinition) -> None:
        self.definition = definition
        self._has_changed()

    # --- what its owner tells ------------------------------------------------------------------------------

    def take_state(
        self, run: str, snapshot: Snapshot | None, tools: Mapping[str, Tool] | None, event: Happened | None
    ) -> None:
        """See `Mirror`."""
        is_new = run != self._run
        if is_new and (snapshot is None or tools is None):
            return  # all of how it is in this life of its owner is still to come
        if snapshot is not None:
            self._snapshot = snapshot
        if tools is not None:
            self.tools = tools
        self._run, self._was_known = run, True
        if is_new:
            for asker, uri in self.watchers.standing():
                self._owners.tell(self.owner, "watched", (self.id, asker.user, asker.connection, uri))
        self._has_changed()
        if event is not None:
            self._announce(*event)
        elif is_new and self.state.takes_calls:
            name = "restarted" if self._was_ready else "started"
            self._announce(name, {"tools": len(self.tools)}, None)
        self._was_ready = self._was_ready or self.state.takes_calls

    def owner_gone(self) -> None:
        """See `Mirror`."""
        had_run, self._run, self._since = self._run, "", time.time()
        self._has_changed()
        if had_run and self._is_on:
            self._announce("retrying", {"reason": self._absence, "failures": 1}, None)

    def _has_changed(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait until something is true of it, at most so long; answers whether it is."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return False
        return True

    # --- use -----------------------------------------------------------------------------------------------

    async def known_tools(self, asker: Asker) -> Mapping[str, Tool]:
        """See `Server.known_tools`."""
        if self.offer is None:
            await self._ask("known", asker, None, SilentObserver(), repeatable=True)
        return self.tools

    def speaker(self, asker: Asker) -> "RemoteServer":  # noqa: ARG002 - all share its one instance
        """Who knows what there is for `asker`."""
        return self

    async def call_tool(
        self,
        asker: Asker,
        tool: Tool,
        arguments: Mapping[str, Any],
        *,
        observer: Observer,
        meta: Mapping[str, Any] | None = None,
    ) -> ToolResult:
        """See `Server.call_tool`. What the owner was told when it ended may have run."""
        given = (tool.name, arguments, None if meta is None else dict(meta))
        raw = await self._ask("call", asker, given, observer, repeatable=tool.is_repeatable)
        return ToolResult.from_json(raw)

    def begin_call(
        self,
        asker: Asker,  # noqa: ARG002 - those of `Server.begin_call`
        tool: Tool,  # noqa: ARG002
        arguments: Mapping[str, Any],  # noqa: ARG002
        *,
        observer: Observer,  # noqa: ARG002
        on_end: "OnToolEnd",  # noqa: ARG002
    ) -> "DirectToolCall | None":
        """None: it needs more than a pipe."""
        return None

    async def request(self, asker: Asker, make: "Maker", *, observer: Observer) -> dict[str, Any]:
        """See `Server.request`."""
        from mcpgw.backends.mcp_requests import to_json  # noqa: PLC0415 - there is a request, and so the SDK

        answered = await self._ask("request", asker, to_json(make()), observer, repeatable=True)
        return cast("dict[str, Any]", answered)

    async def list(self, asker: Asker, kind: ListKind) -> list[dict[str, Any]]:
        """See `Server.list`."""
        listed: list[dict[str, Any]]
        listed = await self._ask("list", asker, kind, SilentObserver(), repeatable=True)
        self._lists[kind] = listed
        return listed

    def last_listed(self, asker: Asker, kind: ListKind) -> Sequence[dict[str, Any]]:  # noqa: ARG002 - shared
        """The last that is known of a list, without asking the server."""
        return self._lists.get(kind, [])

    async def watch_resource(self, asker: Asker, uri: str) -> None:
        """See `Server.watch_resource`."""
        if self.watchers.stands(asker, uri):
            return
        self.watchers.begin(asker, uri)
        self._watching.add(asker.connection)
        try:
            await self._ask("watch", asker, uri, SilentObserver(), repeatable=True)
        except BaseException:
            self.watchers.failed(asker, uri)
            if not self.watchers.wants(asker, uri):
                self._unwatch(asker, uri)
            raise
        self.watchers.fulfilled(asker, uri)

    async def unwatch_resource(self, asker: Asker, uri: str) -> None:
        """Tell of it no more."""
        self.watchers.remove(asker, uri)
        self._unwatch(asker, uri)

    def _unwatch(self, asker: Asker, uri: str) -> None:
        self._owners.tell(self.owner, "unwatch", (self.id, asker.user, asker.connection, uri))

    async def _ask(
        self, asked: Asked, asker: Asker, given: Any, observer: Observer, *, repeatable: bool
    ) -> Any:
        """Have the owner do something, and again where it has ended, by the rules of `Server`."""
        is_repeated = False
        deadline: float | None = None
        failure: ServerUnavailable | OutcomeUnknown | None = None
        for _ in range(_MOST_SENDINGS):
            if not self._is_on:
                raise failure or self.unavailable()
            if not self._run or failure is not None:
                # Once it was waited for, it is to be ready: a server that has just begun to start is not.
                deadline = deadline or time.monotonic() + self._calls.retry_wait
                if not await self._until(lambda: self.is_open, max(0.0, deadline - time.monotonic())):
                    raise failure if isinstance(failure, OutcomeUnknown) else self.unavailable()
            if failure is not None:
                log_event(_LOGGER, logging.INFO, "sent again", server=self.id, reason=failure.message)
            try:
                return await self._owners.ask(self, self._run, asked, asker, given, observer)
            except NotBegunError:
                failure = failure or ServerUnavailable(f"worker {self.owner} does not run {self.id!r} now")
            except WorkerGoneError:
                unknown = OutcomeUnknown(
                    f"worker {self.owner} of the gateway, where the server {self.id!r} runs, ended before it "
                    "answered; the call may have run, it is not run again"
                )
                if is_repeated or not repeatable:
                    raise unknown from None
                is_repeated, failure, deadline = True, unknown, None
            except ServerUnavailable:
                if isinstance(failure, OutcomeUnknown):  # the first time it may have run
                    raise failure from None
                raise
        raise failure or self.unavailable()


def _is_nothing(_asker: Asker) -> None:
    """What is watched follows from what its owner is told."""
