"""The resources of a backend that somebody watches, in either protocol era, from one session to the next.

Handshake revisions subscribe to each resource (``resources/subscribe``). From 2026-07-28 on one stream
(``subscriptions/listen``) tells of everything that was asked for, and is opened anew when that changes; it
also tells of lists that change.
"""

import asyncio
from collections.abc import Callable, Collection

import mcp_types as types
from mcp.shared.exceptions import MCPError
from pydantic import ValidationError

from mcpgw.backends.connection import RAW_RESULT, Change, Connection
from mcpgw.backends.failures import LocalFault, in_words, local_error

_LISTEN_PAUSE = 5.0
_ANSWER_SECONDS = 15.0
_EXPECTED = (OSError, MCPError, RuntimeError, ValidationError)

Fault = MCPError | ValidationError


class WatchedResources:
    """The addresses (URIs) that are watched in each session of one backend; one task `keep`s them."""

    def __init__(self) -> None:
        self._wanted: frozenset[str] = frozenset()
        self._standing: set[str] = set()
        self._changed = asyncio.Event()
        self._reading: asyncio.Timeout | None = None
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}

    @property
    def uris(self) -> tuple[str, ...]:
        """What is to be watched."""
        return tuple(sorted(self._wanted))

    def want(self, uris: frozenset[str]) -> None:
        """Watch these and no others from now on."""
        if uris != self._wanted:
            self._wanted = uris
            self._change()

    async def watching(self, uri: str) -> None:
        """Wait until the present session watches one that is wanted. What changes then is told.

        Raises:
            MCPError, ValidationError: the server does not allow it, or the session has ended.
        """
        if uri in self._standing:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(uri, set()).add(waiter)
        self._change()
        try:
            await waiter
        finally:
            waiters = self._waiting.get(uri, set())
            waiters.discard(waiter)
            if not waiters:
                self._waiting.pop(uri, None)

    async def keep(
        self, connection: Connection, on_fault: Callable[[str], None], on_missed: Callable[[Change], None]
    ) -> None:
        """Have a session watch what is wanted; goes on until cancelled.

        `on_missed` is told of each list whose changes may have been missed.
        """
        self._standing.clear()
        try:
            if connection.is_modern:
                await self._listen(connection, on_fault, on_missed)
            else:
                await self._subscribe(connection, on_fault)
        finally:
            self._standing.clear()
            ended = MCPError.from_error_data(local_error(LocalFault.NOT_SENT, "its session ended"))
            for uri in list(self._waiting):
                self._tell(uri, ended)

    # --- handshake revisions -------------------------------------------------------------------------------

    async def _subscribe(self, connection: Connection, on_fault: Callable[[str], None]) -> None:
        refused: set[str] = set()
        while True:
            self._changed.clear()
            # What was refused is asked for again where somebody new wants it.
            refused &= self._wanted - self._waiting.keys()
            for uri in sorted(self._wanted - self._standing - refused):
                try:
                    await _ask(
                        connection, types.SubscribeRequest(params=types.SubscribeRequestParams(uri=uri))
                    )
                except _EXPECTED as error:
                    refused.add(uri)
                    if not self._tell(uri, _as_fault(error)):
                        on_fault(f"a resource cannot be watched any more: {in_words(error)}")
                else:
                    self._standing.add(uri)
                    self._tell(uri, None)
            for uri in sorted(self._standing - self._wanted):
                self._standing.discard(uri)
                try:
                    await _ask(
                        connection, types.UnsubscribeRequest(params=types.UnsubscribeRequestParams(uri=uri))
                    )
                except _EXPECTED as error:
                    on_fault(f"a resource is still watched: {in_words(error)}")
            self._tell_unwanted()
            await self._changed.wait()

    # --- 2026-07-28 and later ------------------------------------------------------------------------------

    async def _listen(
        self, connection: Connection, on_fault: Callable[[str], None], on_missed: Callable[[Change], None]
    ) -> None:
        can = connection.capabilities
        lists: dict[Change, bool] = {
            "tools": can.tools is not None and bool(can.tools.list_changed),
            "prompts": can.prompts is not None and bool(can.prompts.list_changed),
            "resources": can.resources is not None and bool(can.resources.list_changed),
        }
        has_missed = False
        while True:
            self._changed.clear()
            asked = self.uris
            if asked or any(lists.values()):
                try:
                    async with connection.client.listen(
                        tools_list_changed=lists["tools"],
                        prompts_list_changed=lists["prompts"],
                        resources_list_changed=lists["resources"],
                        resource_subscriptions=asked,
                    ) as subscription:
                        self._listening_to(asked)
                        _tell_missed(lists if has_missed else {}, on_missed)
                        has_missed = False
                        if not self._changed.is_set():
                            async with asyncio.timeout(None) as self._reading:
                                async for _ in subscription:
                                    pass  # the events themselves come to the session's handler too
                except _EXPECTED as error:
                    if not self._changed.is_set():
                        on_fault(f"it tells of no changes now: {in_words(error)}")
                    self._refuse(asked, _as_fault(error))
                finally:
                    self._reading = None
            self._tell_unwanted()
            if self._changed.is_set():
                continue
            self._standing.clear()
            try:
                async with asyncio.timeout(_LISTEN_PAUSE if asked or any(lists.values()) else None):
                    await self._changed.wait()
            except TimeoutError:
                has_missed = True
                if lists["tools"]:
                    on_missed("tools")  # calls go by them, also where the server never takes the stream

    def _listening_to(self, uris: Collection[str]) -> None:
        self._standing = set(uris)
        for uri in uris:
            self._tell(uri, None)

    def _refuse(self, uris: Collection[str], fault: Fault) -> None:
        for uri in uris:
            if uri not in self._standing:
                self._tell(uri, fault)

    # --- those who wait ------------------------------------------------------------------------------------

    def _tell(self, uri: str, fault: Fault | None) -> bool:
        """End the wait for one; false where nobody waits."""
        waiters = [waiter for waiter in self._waiting.pop(uri, ()) if not waiter.done()]
        for waiter in waiters:
            if fault is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(fault)
        return bool(waiters)

    def _tell_unwanted(self) -> None:
        """Nobody needs to wait for what is wanted no more."""
        for uri in self._waiting.keys() - self._wanted:
            self._tell(uri, None)

    def _change(self) -> None:
        self._changed.set()
        if self._reading is not None and not self._reading.expired():
            self._reading.reschedule(asyncio.get_running_loop().time())


async def _ask(connection: Connection, request: types.ClientRequest) -> None:
    try:
        async with asyncio.timeout(_ANSWER_SECONDS):
            await connection.client.session.send_request(request, RAW_RESULT)
    except TimeoutError:
        error = local_error(LocalFault.MAYBE_SENT, "it did not answer in time")
        raise MCPError.from_error_data(error) from None


def _tell_missed(lists: dict[Change, bool], on_missed: Callable[[Change], None]) -> None:
    for change, is_told in lists.items():
        if is_told:
            on_missed(change)


def _as_fault(error: BaseException) -> Fault:
    if isinstance(error, MCPError | ValidationError):
        return error
    return MCPError(code=types.INTERNAL_ERROR, message=in_words(error))
