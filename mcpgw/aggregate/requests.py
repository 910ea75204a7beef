"""Requests that are open at a backend for a while: calls, resources that are read, prompts, completions."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeAlias, TypeVar

import mcp_types as types
from mcp.server.connection import allowed_log_levels
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

from mcpgw.aggregate.catalogue import Catalogue, caller_of
from mcpgw.aggregate.envelope import Result, for_nobody_else, give
from mcpgw.aggregate.open_requests import OpenRequests
from mcpgw.aggregate.relay import WAITS_FOR_APPROVAL, Context, Relay
from mcpgw.aggregate.sessions import session_of
from mcpgw.aggregate.suspended import Binding, OpenRequest, Suspended
from mcpgw.aggregate.visits import Visit, visit_of
from mcpgw.backends.requests import InputAnswer, InputRequest, Observer, SilentObserver
from mcpgw.call_record import CallRecord, CallRecords, outcome_of
from mcpgw.errors import QueueFull, RateLimited
from mcpgw.gateway import Gateway
from mcpgw.rate_limit import UserLimits, retry_after_ms

_CANCELLED = -32800
"""What the SDK answers for a cancelled request, up to 2025-11-25."""
_OF_A_RETRY = frozenset({"_meta", "inputResponses", "requestState"})

T = TypeVar("T")
Work: TypeAlias = Callable[[Observer], Awaitable[Result]]


class Requests:
    """Sends what visitors ask for to `gateway`, and keeps with `suspended` what waits for them.

    `open` are the requests that are at a backend now, those that wait for their visitors among them.
    """

    def __init__(
        self,
        gateway: Gateway,
        catalogue: Catalogue,
        suspended: Suspended,
        *,
        limits: UserLimits,
        records: CallRecords,
    ) -> None:
        self._gateway = gateway
        self._catalogue = catalogue
        self._suspended = suspended
        self._limits = limits
        self._records = records
        self.open = OpenRequests()

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Call a tool."""
        visit = visit_of(context)
        server, tool = self._catalogue.find_tool(visit, params.name)
        caller = caller_of(context)
        arguments: dict[str, Any] = (context.params or {}).get("arguments") or {}

        async def work(observer: Observer) -> Result:
            self._take_token(visit)
            record = self._records.begin(
                visit.actor,
                call_id=f"mcp-{secrets.token_hex(6)}",
                server=server,
                tool=tool,
                arguments=arguments,
            )
            try:
                calling = self._gateway.call_tool(
                    caller,
                    server,
                    tool,
                    arguments,
                    observer=_Recorded(observer, record),
                    meta=_meta_of(context),
                )
                result = await self.open.run(calling, caller.principal, server, tool)
            except BaseException as error:
                record.failed(outcome_of(error))
                raise
            record.answered(is_error=result.is_error)
            return dict(result.raw)

        return give(await self._follow(context, work), types.CallToolResult(content=[]))

    async def read_resource(
        self, context: Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        """Read a resource."""
        server, uri = await self._catalogue.locate(context, params.uri)
        caller = caller_of(context)

        async def work(observer: Observer) -> Result:
            self._take_token_of_guest(visit_of(context))
            reading = self._gateway.read_resource(
                caller, server, uri, observer=observer, meta=_meta_of(context)
            )
            read = await self.open.run(reading, caller.principal, server)
            return for_nobody_else(context.protocol_version, read)

        return give(await self._follow(context, work), types.ReadResourceResult(contents=[]))

    async def get_prompt(
        self, context: Context, params: types.GetPromptRequestParams
    ) -> types.GetPromptResult:
        """Get a prompt."""
        server, name = await self._catalogue.find_prompt(context, params.name)
        caller = caller_of(context)

        async def work(observer: Observer) -> Result:
            arguments = params.arguments or {}
            self._take_token_of_guest(visit_of(context))
            getting = self._gateway.get_prompt(
                caller, server, name, arguments, observer=observer, meta=_meta_of(context)
            )
            return await self.open.run(getting, caller.principal, server)

        return give(await self._follow(context, work), types.GetPromptResult(messages=[]))

    async def complete(self, context: Context, params: types.CompleteRequestParams) -> types.CompleteResult:
        """Complete an argument of a prompt, or a variable of a template of resources."""
        raw = context.params or {}
        ref = dict(raw["ref"])
        if isinstance(params.ref, types.PromptReference):
            server, ref["name"] = await self._catalogue.find_prompt(context, params.ref.name)
        else:
            server, ref["uri"] = await self._catalogue.locate(context, params.ref.uri)
        caller = caller_of(context)
        self._take_token_of_guest(visit_of(context))
        sending = self._gateway.complete(caller, server, ref, raw["argument"], raw.get("context"))
        completing = self.open.run(sending, caller.principal, server)
        result = await _until_gone(visit_of(context), completing)
        return give(result, types.CompleteResult(completion=types.Completion(values=[])))

    # --- following -----------------------------------------------------------------------------------------

    async def _follow(self, context: Context, work: Work) -> Result:
        """Send a request, tell its caller what happens to it, and wait for its end, or for its questions."""
        levels: frozenset[str] = allowed_log_levels(context.protocol_version, context.meta)
        session = session_of(context)
        if session is not None:
            levels &= session.levels
        async with Relay(context, levels) as relay:
            if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
                return await self._until_it_asks(context, work, relay)
            return await _until_gone(visit_of(context), work(_Direct(relay)))

    async def _until_it_asks(self, context: Context, work: Work, relay: Relay) -> Result:
        params = context.params or {}
        visit = visit_of(context)
        request = {name: value for name, value in params.items() if name not in _OF_A_RETRY}
        binding = Binding(visit.principal.user, visit.server_id, context.method, request)
        state, answers = params.get("requestState"), params.get("inputResponses") or {}
        if state is None:
            opened = OpenRequest(work, answers)
        else:
            opened = self._suspended.take(state, binding)
            opened.answer(answers)
        result, questions = await opened.next(relay)
        if result is not None:
            return result
        try:
            state = self._suspended.park(opened, binding)
        except QueueFull:
            opened.cancel()
            raise
        return {"resultType": "input_required", "inputRequests": dict(questions), "requestState": state}

    def _take_token_of_guest(self, visit: Visit) -> None:
        """What a guest asks of servers counts as a call, whatever it is."""
        if visit.principal.guest:
            self._take_token(visit)

    def _take_token(self, visit: Visit) -> None:
        wait = self._limits.try_call(visit.principal.user)
        if wait:
            raise RateLimited("too many calls in too short a time", retry_after_ms=retry_after_ms(wait))


async def _until_gone(visit: Visit, work: Awaitable[T]) -> T:
    """Await `work`; where the client leaves before, nobody can be given its result: cancel it.

    Raises:
        MCPError: the client has left.
    """
    task = asyncio.ensure_future(work)
    task.add_done_callback(_look_at)
    gone = asyncio.create_task(visit.gone.wait())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise MCPError(code=_CANCELLED, message="the client has left")
    finally:
        gone.cancel()
        task.cancel()


def _look_at(task: asyncio.Future[Any]) -> None:
    """What an abandoned request ends with is no fault that nobody has seen."""
    if not task.cancelled():
        task.exception()


def _meta_of(context: Context) -> Mapping[str, Any] | None:
    """What the caller says beside its request, and what it can do itself, in the words of 2026-07-28."""
    meta = dict((context.params or {}).get("_meta") or {})
    capabilities = context.session.client_capabilities
    if capabilities is not None:
        meta[types.CLIENT_CAPABILITIES_META_KEY] = capabilities.model_dump(
            by_alias=True, mode="json", exclude_none=True
        )
    return meta


class _Direct(SilentObserver):
    """Tells and asks the caller on the stream of its request (the handshake revisions)."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def approval_asked(self, request_id: str, expires_at: int) -> None:  # noqa: ARG002 - MCP has no place
        """Told as progress: there are no other words for it."""
        self._relay.progress(0, None, WAITS_FOR_APPROVAL)

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Told."""
        self._relay.progress(progress, total, message)

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """Told."""
        self._relay.log(level, logger, data)

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Asked, where the caller has said that it can answer such."""
        return await self._relay.ask(request) if self._relay.can_answer(request) else InputAnswer("decline")


class _Recorded:
    """An observer, and the record that is told when the call is sent."""

    def __init__(self, observer: Observer, record: CallRecord) -> None:
        self._observer = observer
        self._record = record
        self.queued = observer.queued
        self.approval_asked = observer.approval_asked
        self.log = observer.log
        self.input_required = observer.input_required

    def started(self) -> None:
        """It is sent."""
        self._record.started()
        self._observer.started()

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Told to both."""
        self._record.progress(progress, total, message)
        self._observer.progress(progress, total, message)
