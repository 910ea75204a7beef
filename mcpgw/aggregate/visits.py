"""One HTTP request at the door, and who makes it."""

import asyncio
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from mcpgw.access.callers import Caller
from mcpgw.access.permissions import may_call, may_call_any
from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.tracing import Tracing

if TYPE_CHECKING:  # what serves MCP takes long to import
    from mcpgw.aggregate.relay import Context

current_visit: ContextVar["Visit"] = ContextVar("mcpgw_current_visit")
"""The visit that is served now, for what the SDK asks before it makes a context."""
SCOPE_KEY: Final = "mcpgw.visit"
"""Where an ASGI scope has the visit."""


@dataclass(slots=True)
class Visit:
    """A request of a known user: at one server alone, or at all of them where `server_id` is None.

    `gone` is set when the client has left before it was answered.
    """

    principal: Principal
    server_id: str | None
    actor: Actor
    headers: Mapping[str, str] = field(repr=False)
    tracing: Tracing = field(repr=False)
    gone: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def caller(self, session_id: str | None, meta: Mapping[str, Any]) -> Caller:
        """Who asks; without a session the token is what one client's requests have in common.

        `meta` is the request's ``_meta``, which may name the trace that it belongs to (SEP-414).
        """
        principal = self.principal
        own = f"session {session_id}" if session_id else f"token {principal.token_id} of {principal.user}"
        trace = self.tracing.parent(meta) or self.tracing.parent(self.headers)
        return Caller(principal, f"mcp {own}", trace)

    def may_see(self, server_id: str) -> bool:
        """Whether a server is one of those that are visited, and the user may call some tool of it."""
        return self.server_id in (None, server_id) and may_call_any(self.principal, server_id)

    def may_call(self, server_id: str, tool: str) -> bool:
        """Whether the user may call a tool."""
        return may_call(self.principal, server_id, tool)


def visit_of(context: "Context") -> Visit:
    """The visit that a request belongs to."""
    request: Any = context.request
    visit: Visit = request.scope[SCOPE_KEY]
    return visit
