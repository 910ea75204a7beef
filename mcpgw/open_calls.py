"""A call that has not had its end yet, and what its client is told of it meanwhile."""

import asyncio
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from mcpgw.access.tokens import Principal
from mcpgw.backends.requests import InputAnswer, InputRequest
from mcpgw.call_record import CallRecord
from mcpgw.gateway import BegunCall
from mcpgw.wire import frames
from mcpgw.wire.frames import ReplyTo, ServerFrame


@dataclass(slots=True, eq=False)
class OpenCall:
    """A call, or another request to a server, that has not had its end yet; a call alone has a `record`."""

    reply: ReplyTo
    server_id: str
    tool_name: str
    on_disconnect: Literal["keep", "cancel"] | None
    principal: Principal
    record: CallRecord | None = None
    task: asyncio.Task[None] | None = None
    begun: BegunCall | None = None
    """What goes on without a task, where it does."""
    on_ended: asyncio.Future[None] | None = None
    """Who waits for its end, where it has no task."""
    ended: bool = False
    hidden: bool = False
    """Whether the token that the session goes on with may not know of it; it goes on all the same."""

    @property
    def scopes(self) -> frozenset[str]:
        """What its caller was allowed when it began."""
        return self.principal.scopes

    def until_ended(self) -> "asyncio.Future[None]":
        """What is done when the call has ended, or soon after."""
        if self.task is not None:
            return self.task
        if self.on_ended is None:
            self.on_ended = asyncio.get_running_loop().create_future()
        return self.on_ended


class Teller(Protocol):
    """Who speaks to the client."""

    def tell(self, call: OpenCall, frame: ServerFrame) -> bool:
        """Say something about a call that goes on; false where it cannot be said."""

    async def ask(self, call: OpenCall, request: InputRequest) -> InputAnswer:
        """Have the client answer what a server asks in mid-call."""


class CallObserver:
    """Says in frames what happens to a call, and records it."""

    def __init__(self, teller: Teller, call: OpenCall) -> None:
        self._teller = teller
        self._call = call

    def started(self) -> None:
        """It is sent."""
        if self._call.record is not None:
            self._call.record.started()

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """It waits for its turn."""
        self._teller.tell(self._call, frames.Queued(position, retry_after_ms))

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        """It waits for an approval."""
        self._teller.tell(self._call, frames.Queued(1, approval=request_id, expires_at=expires_at))

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is; of tools alone."""
        call = self._call
        if call.record is None:
            return
        update = frames.ToolProgress(call.server_id, call.tool_name, progress, total, message)
        if self._teller.tell(call, update):
            call.record.progress(progress, total, message)

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """What its server says meanwhile."""
        self._teller.tell(self._call, frames.ToolLog(level, data, logger))

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """What its server asks for."""
        return await self._teller.ask(self._call, request)
