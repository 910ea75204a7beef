"""The way in to the one MCP server: requests of known users, handed to the SDK's session manager.

A session belongs to the user who began it and to the path where it began: to everybody else it is not there.
"""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.version import HANDSHAKE_PROTOCOL_VERSIONS, MODERN_PROTOCOL_VERSIONS

from mcpgw.access.permissions import may_call_any, require_call_any
from mcpgw.access.revocation import Judge
from mcpgw.access.tokens import Principal
from mcpgw.aggregate.server import Aggregate
from mcpgw.aggregate.sessions import Session
from mcpgw.aggregate.visits import SCOPE_KEY, Visit, current_visit
from mcpgw.call_record import CallRecords
from mcpgw.errors import ConnectionLimit, Draining, QueueFull, ServerNotFound, suggest
from mcpgw.gateway import Gateway
from mcpgw.rate_limit import UserLimits
from mcpgw.settings import McpSettings

__all__ = ["McpDoor", "Visit"]

Message: TypeAlias = MutableMapping[str, Any]
"""A message of ASGI 3.0."""
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]


class McpDoor:
    """Serves MCP's Streamable HTTP; `max_body_size` is in bytes. Works inside `running` alone."""

    def __init__(
        self,
        gateway: Gateway,
        limits: UserLimits,
        records: CallRecords,
        settings: McpSettings,
        *,
        max_body_size: int,
    ) -> None:
        self._gateway = gateway
        self._settings = settings
        self._open: Counter[str] = Counter()
        self._ending: set[asyncio.Task[None]] = set()
        self._aggregate = Aggregate(gateway, limits, records, settings, end_session=self._end_session)
        self._manager = StreamableHTTPSessionManager(
            self._aggregate.server,
            session_idle_timeout=settings.session_idle,
            max_request_body_size=max_body_size,
            max_sessions=settings.max_sessions,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator["McpDoor"]:
        """Serve inside the block; every session ends with it."""
        ready, ending = asyncio.Event(), asyncio.Event()

        async def run() -> None:
            # In a task of its own: anyio wants a task group left by whoever entered it.
            async with self._manager.run():
                ready.set()
                await ending.wait()

        task = asyncio.create_task(run(), name="mcp sessions")
        try:
            waiting = asyncio.create_task(ready.wait())
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            yield self
        finally:
            await self._aggregate.close()
            ending.set()
            await task
            _end_watchers()

    @property
    def sessions(self) -> int:
        """How many sessions of the handshake revisions are open."""
        return self._aggregate.sessions.total()

    @staticmethod
    def is_stream(headers: Mapping[str, str]) -> bool:
        """Whether a POST with these headers asks for a stream that ends with its client or its token."""
        # From 2026-07-28 on the SDK refuses a request whose header and body differ; before, it looks at the
        # body alone, so that the header could be any.
        return (
            headers.get("Mcp-Method") == "subscriptions/listen"
            and headers.get("Mcp-Protocol-Version") in MODERN_PROTOCOL_VERSIONS
            and headers.get("Mcp-Session-Id") is None
        )

    def review(self, judge: Judge) -> None:
        """Hold what is open to what its users may do by now: sessions whose credentials hold no more end."""
        self._aggregate.review(judge)

    def end_streams(self) -> None:
        """End the streams that never end by themselves."""
        self._aggregate.end_streams()

    @contextlib.contextmanager
    def counted(self, visit: Visit) -> Iterator[None]:
        """Count a request of the visit's user as open inside the block.

        Raises:
            QueueFull: the user has as many open as may be.
        """
        user, most = visit.principal.user, self._settings.max_requests_per_user
        if self._open[user] >= most:
            raise QueueFull(
                f"{most} requests of this user are open: wait for one to end", retry_after_ms=1000
            )
        self._open[user] += 1
        try:
            yield
        finally:
            self._open[user] -= 1
            if not self._open[user]:
                del self._open[user]

    def admit(self, visit: Visit, *, session_id: str | None, version: str | None, method: str) -> None:
        """Refuse a visit before it is served.

        Raises:
            ServerNotFound: there is no such server.
            PermissionDenied: the user may call no tool of it.
            Draining: it would begin a session, and the gateway is ending.
            ConnectionLimit: the user has as many sessions as may be.
        """
        servers = self._gateway.server_ids
        if visit.server_id is not None:
            if visit.server_id not in servers:
                visible = [name for name in servers if may_call_any(visit.principal, name)]
                raise ServerNotFound(f"no server {visit.server_id[:64]!r}{suggest(visit.server_id, visible)}")
            require_call_any(visit.principal, visit.server_id)
        begins = method == "POST" and session_id is None
        begins = begins and (version is None or version in HANDSHAKE_PROTOCOL_VERSIONS)
        if begins and self._gateway.draining:
            raise Draining("the gateway is ending and begins no new sessions", retry_after_ms=1000)
        most = self._settings.max_sessions_per_user
        if begins and self._aggregate.sessions[visit.principal.user] >= most:
            raise ConnectionLimit(f"this user has {most} MCP sessions: close one first", retry_after_ms=1000)

    async def serve(self, visit: Visit, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one request of a visit that was admitted: an ASGI application."""
        current_visit.set(visit)
        user = _owner(visit.principal, visit.server_id)
        await self._manager.handle_request({**scope, "user": user, SCOPE_KEY: visit}, receive, send)

    def _end_session(self, session: Session) -> None:
        """End a session as its client would: the SDK has no other way to end one of several."""
        headers = [(b"mcp-session-id", session.id.encode("ascii", "replace"))]
        scope: dict[str, Any] = {"type": "http", "method": "DELETE", "path": "/mcp", "headers": headers}
        scope |= {"query_string": b"", "user": _owner(session.principal, session.server_id)}
        task = asyncio.create_task(self._manager.handle_request(scope, _receive_nothing, _send_nowhere))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _receive_nothing() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send_nowhere(_message: Message) -> None:
    """Nobody waits for the answer."""


def _owner(principal: Principal, server_id: str | None) -> AuthenticatedUser:
    """Whose a session is: the SDK compares it with who began it. The token itself stays outside."""
    return AuthenticatedUser(
        AccessToken(token="", client_id=server_id or "", scopes=[], subject=principal.user)
    )


def _end_watchers() -> None:
    """sse-starlette leaves a task behind that watches for the end of a server of another make."""
    for task in asyncio.all_tasks():
        coroutine: Any = task.get_coro()
        if getattr(coroutine, "__qualname__", "") == "_shutdown_watcher":
            task.cancel()
