"""Sessions of the handshake revisions: what each has asked to be told."""

import asyncio
from collections.abc import Callable
from typing import Final, get_args

import mcp_types as types
from mcp.server.connection import Connection
from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from mcpgw.access.permissions import Sight, may_call_any
from mcpgw.access.revocation import Judge
from mcpgw.access.tokens import Principal
from mcpgw.aggregate.changes import Changes, Follower
from mcpgw.aggregate.relay import Context
from mcpgw.errors import AuthFailed

_KEY = "mcpgw.session"
LEVELS: Final[tuple[str, ...]] = get_args(types.LoggingLevel)
"""The levels of log messages, rising."""


class Session:
    """One session: the level of its logs, the resources it follows, and a task that tells it of changes.

    `principal` is who has come last, with what they may do by now; `server_id` the one server at whose door
    that was, None at the door of all. `end` ends the session.
    """

    def __init__(
        self,
        principal: Principal,
        server_id: str | None,
        connection: Connection,
        changes: Changes,
        end: Callable[["Session"], None],
    ) -> None:
        self.principal = principal
        self.server_id = server_id
        self._connection = connection
        self._end = end
        self._level = LEVELS[0]
        self._waiting: dict[ServerEvent, None] = {}
        self._wake = asyncio.Event()
        self.follower = Follower(principal.user, self._tell, self._may_see)
        self._leave = changes.follow(self.follower)
        # Not in the loop of the session: a client that does not read its stream holds up itself alone.
        self._writer = asyncio.create_task(self._write(), name="mcp session")
        connection.state[_KEY] = self

    @property
    def id(self) -> str:
        """What its requests name it by: a secret."""
        return self._connection.session_id or ""

    @property
    def user(self) -> str:
        """Whose it is."""
        return self.principal.user

    def review(self, judge: Judge) -> None:
        """Go on with what its user may do by now; or end, where the credentials hold no more."""
        before = self.principal
        try:
            self.principal = judge(before)
        except AuthFailed:
            self._end(self)
            return
        if Sight.of(self.principal) != Sight.of(before):
            self.follower.notice_lists()

    def _may_see(self, server: str) -> bool:
        return self.server_id in (None, server) and may_call_any(self.principal, server)

    def close(self) -> None:
        """It is over."""
        self._leave()
        self._writer.cancel()

    def set_level(self, level: str) -> None:
        """Pass on log messages from `level` on (``logging/setLevel``)."""
        self._level = level

    @property
    def levels(self) -> frozenset[str]:
        """The levels of log messages that are passed on; all, where none was set."""
        return frozenset(LEVELS[LEVELS.index(self._level) :])

    def _tell(self, event: ServerEvent) -> None:
        self._waiting[event] = None
        self._wake.set()

    async def _write(self) -> None:
        connection = self._connection
        await connection.initialized.wait()
        while True:
            await self._wake.wait()
            self._wake.clear()
            waiting, self._waiting = self._waiting, {}
            for event in waiting:
                match event:
                    case ToolsListChanged():
                        await connection.send_tool_list_changed()
                    case PromptsListChanged():
                        await connection.send_prompt_list_changed()
                    case ResourcesListChanged():
                        await connection.send_resource_list_changed()
                    case ResourceUpdated(uri=uri):
                        await connection.send_resource_updated(uri)


def connection_of(context: Context) -> Connection:
    """The connection of a request: its state lasts as long as its session, its exit stack ends with it."""
    # The SDK hands it to nobody, and has no other way to learn of a session's end.
    return context.session._connection  # noqa: SLF001


def session_of(context: Context) -> Session | None:
    """The session of a request; None from revision 2026-07-28 on, which has none."""
    session = connection_of(context).state.get(_KEY)
    return session if isinstance(session, Session) else None
