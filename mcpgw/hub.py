"""The live connections: every conversation and every event stream that is open now."""

import asyncio
import logging
from typing import Protocol

from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.hub")


class Connection(Protocol):
    """Something a client holds open."""

    async def drain(self, deadline: float) -> None:
        """Finish what is open until `deadline` (of the loop's clock), say goodbye, and close."""


class Hub:
    """Knows who is connected, so that all can be told when the gateway ends."""

    def __init__(self) -> None:
        self._connections: set[Connection] = set()
        self._empty = asyncio.Event()
        self._empty.set()

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Connection) -> None:
        """Count a connection in."""
        self._connections.add(connection)
        self._empty.clear()

    def remove(self, connection: Connection) -> None:
        """Count a connection out; nothing happens where it is out already."""
        self._connections.discard(connection)
        if not self._connections:
            self._empty.set()

    async def wait_empty(self) -> None:
        """Wait until every connection has been counted out."""
        await self._empty.wait()

    async def drain(self, deadline: float) -> None:
        """End every connection, side by side, each as soon as its own calls have ended.

        A fault in ending one stands in the log and keeps none of the others from their end.
        """
        drains = [connection.drain(deadline) for connection in self._connections]
        for fault in await asyncio.gather(*drains, return_exceptions=True):
            if isinstance(fault, Exception):
                log_event(_LOGGER, logging.ERROR, "a connection could not be ended", exception=fault)
