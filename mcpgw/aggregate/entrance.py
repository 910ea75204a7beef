"""Where the one MCP server is, which is built when the first request comes.

What the SDK needs to serve takes some 30 MiB and half a second to import, and many gateways are never asked.
"""

import asyncio
from contextlib import AsyncExitStack
from contextvars import copy_context
from importlib import import_module
from typing import TYPE_CHECKING

from mcpgw.access.revocation import Judge
from mcpgw.call_record import CallRecords
from mcpgw.gateway import Gateway
from mcpgw.rate_limit import UserLimits
from mcpgw.settings import McpSettings

if TYPE_CHECKING:
    from mcpgw.aggregate.door import McpDoor


class McpEntrance:
    """Leads to the `McpDoor` that is made of the same arguments; `close` ends it and all of its sessions."""

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
        self._limits = limits
        self._records = records
        self._settings = settings
        self._max_body_size = max_body_size
        # What belongs to no request: tasks of the door live longer than the first who comes.
        self._context = copy_context()
        self._stack = AsyncExitStack()
        self._opening: asyncio.Task[McpDoor] | None = None
        self._door: McpDoor | None = None

    async def door(self) -> "McpDoor":
        """The door, once it is there."""
        if self._door is not None:
            return self._door
        if self._opening is None:
            self._opening = asyncio.create_task(self._open(), name="mcp door", context=self._context)
        return await asyncio.shield(self._opening)

    async def _open(self) -> "McpDoor":
        module = await asyncio.to_thread(import_module, "mcpgw.aggregate.door")
        door: McpDoor = module.McpDoor(
            self._gateway, self._limits, self._records, self._settings, max_body_size=self._max_body_size
        )
        self._door = await self._stack.enter_async_context(door.running())
        return self._door

    async def close(self) -> None:
        """End it, where it was opened."""
        if self._opening is not None:
            await asyncio.wait({self._opening})
        await self._stack.aclose()

    @property
    def sessions(self) -> int:
        """How many sessions of the handshake revisions are open."""
        return 0 if self._door is None else self._door.sessions

    def review(self, judge: Judge) -> None:
        """Hold what is open to what its users may do by now."""
        if self._door is not None:
            self._door.review(judge)

    def end_streams(self) -> None:
        """End the streams that never end by themselves."""
        if self._door is not None:
            self._door.end_streams()
