"""The resources whose changes one client wants to hear of, and their servers that are asked to tell.

A server is asked as long as the subscription of the client lasts, its connection aside; what it tells is an
event of the channel ``servers``, ``server.resource_updated``. Source: MCP 2025-11-25, "Resources:
Subscriptions".
"""

import asyncio
import logging
from collections.abc import Awaitable

from mcpgw.access.callers import Caller
from mcpgw.errors import GatewayError, InvalidParams
from mcpgw.gateway import Gateway
from mcpgw.logs import log_event
from mcpgw.wire import frames

_LOGGER = logging.getLogger("mcpgw.websocket")
CHANNEL = "servers"
Resource = tuple[str, str]
"""A server and a uri."""


def require_no_other_channel(frame: frames.Subscribe) -> None:
    """Raise `InvalidParams` where resources are named for a channel that has nothing of them."""
    if frame.filter.resources and frame.channel != CHANNEL:
        reason = f"is for the channel {CHANNEL!r} alone"
        raise InvalidParams(
            f"filter.resources {reason}", details=[{"path": "/data/filter/resources", "reason": reason}]
        )


class SessionResources:
    """What one client watches."""

    __slots__ = ("_gateway", "_pending", "_tasks", "_watched")

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._watched: dict[Resource, Caller] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._pending: list[asyncio.Task[None]] = []

    def watching(self, caller: Caller, resources: frozenset[Resource] | None) -> Awaitable[None] | None:
        """Watch these and no others from now on; what is to be awaited for that, where there is something.

        That is to be a task, known by `begun`. It raises a GatewayError where a resource cannot be watched;
        then all is as before.
        """
        wanted = resources or frozenset()
        if not self._pending and wanted <= self._watched.keys():
            self._keep(wanted)
            return None
        return self._watch(caller, wanted, self._pending[-1:])

    def begun(self, task: asyncio.Task[None]) -> None:
        """This task is about to watch more; what is asked for later comes after it."""
        self._pending.append(task)
        task.add_done_callback(self._pending.remove)

    def keep_none(self) -> None:
        """Watch nothing any more; servers are told in the background."""
        self._stop_pending()
        self._keep(frozenset())

    def end(self) -> None:
        """Forget everything: the gateway itself is told that the client is gone."""
        self._stop_pending()
        self._watched.clear()

    def _stop_pending(self) -> None:
        for task in self._pending:
            task.cancel()

    async def _watch(
        self, caller: Caller, wanted: frozenset[Resource], before: list[asyncio.Task[None]]
    ) -> None:
        if before:
            await asyncio.wait(before)
        added: list[Resource] = []
        try:
            for server_id, uri in sorted(wanted - self._watched.keys()):
                await self._gateway.subscribe_resource(caller, server_id, uri)
                added.append((server_id, uri))
                self._watched[server_id, uri] = caller
        except BaseException:
            self._drop(added)
            raise
        self._keep(wanted)

    def _keep(self, wanted: frozenset[Resource]) -> None:
        self._drop([one for one in self._watched if one not in wanted])

    def _drop(self, gone: list[Resource]) -> None:
        for one in gone:
            caller = self._watched.pop(one, None)
            if caller is not None:
                task = asyncio.create_task(self._unsubscribe(caller, *one))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _unsubscribe(self, caller: Caller, server_id: str, uri: str) -> None:
        try:
            await self._gateway.unsubscribe_resource(caller, server_id, uri)
        except GatewayError as error:  # it is gone, or tells on: nobody here is given it any more
            log_event(_LOGGER, logging.INFO, "still watched", server=server_id, code=error.code)
