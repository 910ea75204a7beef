"""The one MCP server: many servers as one, or one of them alone, as the path of the request has it."""

from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import mcp_types as types
from mcp.server.context import CallNext, HandlerResult
from mcp.server.lowlevel.server import Server
from mcp.shared.exceptions import MCPError
from mcp_types.version import MODERN_PROTOCOL_VERSIONS
from pydantic import ValidationError

from mcpgw import __version__
from mcpgw.access.callers import Caller
from mcpgw.access.revocation import Judge
from mcpgw.aggregate.catalogue import Catalogue, caller_of
from mcpgw.aggregate.changes import Changes
from mcpgw.aggregate.envelope import Result, unharmed
from mcpgw.aggregate.failures import as_internal_error, as_mcp_error
from mcpgw.aggregate.offers import EVERYTHING, Offer
from mcpgw.aggregate.relay import Context
from mcpgw.aggregate.requests import Requests
from mcpgw.aggregate.sessions import Session, connection_of, session_of
from mcpgw.aggregate.suspended import Suspended
from mcpgw.aggregate.tokens import Tokens
from mcpgw.aggregate.visits import Visit, current_visit, visit_of
from mcpgw.aggregate.watching import Watching
from mcpgw.call_record import CallRecords
from mcpgw.errors import GatewayError
from mcpgw.gateway import Gateway
from mcpgw.rate_limit import UserLimits
from mcpgw.settings import McpSettings

_NAME = "mcpgw"
_INSTRUCTIONS = "The tools and prompts of several servers; each name begins with that of its server."


class Aggregate:
    """The MCP server in front of `gateway`.

    `server` is what the SDK runs; `sessions` counts the open sessions of each user. `end_session` ends one
    in the background.
    """

    def __init__(
        self,
        gateway: Gateway,
        limits: UserLimits,
        records: CallRecords,
        settings: McpSettings,
        *,
        end_session: Callable[[Session], None],
    ) -> None:
        self._gateway = gateway
        self._end_session = end_session
        self._known: set[Session] = set()
        self._changes = Changes(gateway)
        self._catalogue = catalogue = Catalogue(gateway, settings.separator, records.audit)
        self._suspended = Suspended(
            settings.max_suspended, settings.max_suspended_per_user, settings.suspend_time
        )
        self._requests = requests = Requests(
            gateway, catalogue, self._suspended, limits=limits, records=records
        )
        self._watching = Watching(gateway, catalogue, self._changes, settings.max_sessions_per_user)
        self._tokens = Tokens(self._forget)
        self.sessions: Counter[str] = Counter()
        self.server: Server[Any] = Server(
            _NAME,
            version=__version__,
            # Else the SDK would list all tools for each call, to see which of its arguments are headers too.
            get_tool_input_schema=self._input_schema,
            on_list_tools=catalogue.list_tools,
            on_call_tool=requests.call_tool,
            on_list_resources=catalogue.list_resources,
            on_list_resource_templates=catalogue.list_templates,
            on_read_resource=requests.read_resource,
            on_subscribe_resource=self._watching.subscribe,
            on_unsubscribe_resource=self._watching.unsubscribe,
            on_subscriptions_listen=self._watching.listen,
            on_list_prompts=catalogue.list_prompts,
            on_get_prompt=requests.get_prompt,
            on_completion=requests.complete,
        )
        self.server.add_request_handler("server/discover", types.RequestParams, self._discover)
        self.server.add_request_handler("logging/setLevel", types.SetLevelRequestParams, _set_level)
        # Without the SDK's own: the gateway makes the span of each call, and hands the caller's trace on.
        self.server.middleware[:] = [self._answered, unharmed]

    def review(self, judge: Judge) -> None:
        """Hold requests that are open, and sessions, to what their users may do by now."""
        self._requests.open.review(judge)
        self._watching.review(judge)
        for session in list(self._known):
            session.review(judge)

    def end_streams(self) -> None:
        """End what never ends by itself, with a last word to each client."""
        self._watching.end()

    async def close(self) -> None:
        """End what waits for its callers."""
        self.end_streams()
        self._changes.close()
        self._tokens.close()
        await self._suspended.close()

    async def _answered(self, ctx: Context, call_next: CallNext) -> HandlerResult:
        """Refuse what is not offered, say what is, and give errors the form of JSON-RPC."""
        try:
            visit = visit_of(ctx)
            if (session := session_of(ctx)) is not None:
                session.principal = visit.principal
            if ctx.request_id is not None:
                self._require_offered(ctx.method, visit)
            has_session = connection_of(ctx).session_id is not None
            with nullcontext() if has_session else self._tokens.open(caller_of(ctx)):
                result = await call_next(ctx)
            if isinstance(result, dict):
                return self._introduced(ctx, visit, result)
        except GatewayError as error:
            raise as_mcp_error(error) from None
        except (MCPError, ValidationError):
            raise
        except Exception as fault:
            raise as_internal_error(fault) from fault
        return result

    def _require_offered(self, method: str, visit: Visit) -> None:
        if not self.offer(visit).has(method):
            raise MCPError(code=types.METHOD_NOT_FOUND, message="Method not found", data=method)

    def offer(self, visit: Visit) -> Offer:
        """What is offered at the door where the visit has come in."""
        if visit.server_id is None:
            return Offer(EVERYTHING, _INSTRUCTIONS)
        known = self._gateway.offer(visit.principal, visit.server_id)
        if known is None:
            return Offer(EVERYTHING)
        info = None
        if known.server_name is not None:
            info = {"name": known.server_name, "version": known.server_version or ""}
        return Offer.of_server(known.capabilities, known.instructions, info)

    def _introduced(self, context: Context, visit: Visit, result: Result) -> Result:
        """Have one server that is visited alone bear its own name."""
        offer = self.offer(visit)
        if context.method == "initialize":
            if session_of(context) is None:  # a client may say it again
                self._begin(context, visit)
            result = {**result, "capabilities": dict(offer.capabilities)}
            if offer.instructions:
                result["instructions"] = offer.instructions
            if offer.server_info is not None:
                result["serverInfo"] = dict(offer.server_info)
        elif offer.server_info is not None and types.SERVER_INFO_META_KEY in (result.get("_meta") or {}):
            result["_meta"] = {**result["_meta"], types.SERVER_INFO_META_KEY: dict(offer.server_info)}
        return result

    async def _discover(self, context: Context, _params: types.RequestParams) -> types.DiscoverResult:
        offer = self.offer(visit_of(context))
        return types.DiscoverResult(
            supported_versions=list(MODERN_PROTOCOL_VERSIONS),
            capabilities=offer.as_model(),
            instructions=offer.instructions,
        )

    def _input_schema(self, name: str) -> Mapping[str, Any] | None:
        try:
            return self._catalogue.input_schema(current_visit.get(), name)
        except GatewayError:
            return None  # the call itself is told why

    def _begin(self, context: Context, visit: Visit) -> None:
        connection = connection_of(context)
        session = Session(visit.principal, visit.server_id, connection, self._changes, self._end_session)
        self._known.add(session)
        self.sessions[session.user] += 1
        connection.exit_stack.push_async_callback(self._end, session, caller_of(context))

    async def _end(self, session: Session, caller: Caller) -> None:
        session.close()
        self._known.discard(session)
        self.sessions[session.user] -= 1
        if not self.sessions[session.user]:
            del self.sessions[session.user]
        self._forget(caller)

    def _forget(self, caller: Caller) -> None:
        """A client is gone for good."""
        self._watching.forget_all(caller)
        self._gateway.connection_ended(caller.connection)


async def _set_level(context: Context, params: types.SetLevelRequestParams) -> types.EmptyResult:
    session = session_of(context)
    if session is not None:
        session.set_level(params.level)
    return types.EmptyResult()
