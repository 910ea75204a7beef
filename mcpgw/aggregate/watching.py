"""Resources that a client follows, and the streams of what changes (``subscriptions/listen``, 2026-07-28)."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress

import mcp_types as types
from mcp.server.subscriptions import ListenHandler
from mcp.shared.exceptions import MCPError
from mcp.shared.subscriptions import ServerEvent

from mcpgw.access.callers import Caller
from mcpgw.access.permissions import Sight
from mcpgw.access.revocation import Judge
from mcpgw.aggregate.catalogue import Catalogue, caller_of
from mcpgw.aggregate.changes import Changes, Follower
from mcpgw.aggregate.relay import Context
from mcpgw.aggregate.sessions import session_of
from mcpgw.aggregate.visits import Visit, visit_of
from mcpgw.errors import AuthFailed, GatewayError, QueueFull
from mcpgw.gateway import Gateway
from mcpgw.logs import log_event

_LOGGER = logging.getLogger("mcpgw.mcp")
_MOST_FOLLOWED = 1000
"""Resources that one client may follow."""


class Watching:
    """Tells clients of `changes`, and has `gateway` watch the resources that they follow."""

    def __init__(
        self, gateway: Gateway, catalogue: Catalogue, changes: Changes, most_streams_of_user: int
    ) -> None:
        self._most_streams = most_streams_of_user
        self._streams: Counter[str] = Counter()
        self._gateway = gateway
        self._catalogue = catalogue
        self._changes = changes
        self._listening: dict[ListenHandler, tuple[Visit, Follower]] = {}
        # Several streams of one connection may follow the same resource.
        self._followed: Counter[tuple[str, str, str]] = Counter()

    async def subscribe(self, context: Context, params: types.SubscribeRequestParams) -> types.EmptyResult:
        """Follow a resource in a session."""
        session = session_of(context)
        if session is not None:
            await self._follow(context, session.follower, params.uri)
        return types.EmptyResult()

    async def unsubscribe(
        self, context: Context, params: types.UnsubscribeRequestParams
    ) -> types.EmptyResult:
        """Follow a resource no more."""
        session = session_of(context)
        if session is not None:
            addresses = session.follower.addresses
            for place in [place for place, address in addresses.items() if address == params.uri]:
                del addresses[place]
                await self._let_go(caller_of(context), place)
        return types.EmptyResult()

    async def listen(
        self, context: Context, params: types.SubscriptionsListenRequestParams
    ) -> types.SubscriptionsListenResult:
        """Tell of changes on this request's stream until its client leaves, or its token's time is over."""
        visit = visit_of(context)
        caller = caller_of(context)
        user = visit.principal.user
        if self._streams[user] >= self._most_streams:
            raise QueueFull(f"this user listens {self._most_streams} times: close a stream first")
        follower = Follower(user, _tell_nobody, visit.may_see)
        handler = ListenHandler(_OneFollower(follower, self._changes))
        left = visit.principal.expires_at - time.time()
        expiry = asyncio.get_running_loop().call_later(max(0.0, left), handler.close)
        self._listening[handler] = visit, follower
        self._streams[user] += 1
        try:
            for address in params.notifications.resource_subscriptions or ():
                # What cannot be followed is never told of, as the specification has it.
                with suppress(GatewayError, MCPError):
                    await self._follow(context, follower, address)
            return await handler(context, params)
        finally:
            expiry.cancel()
            del self._listening[handler]
            self._streams[user] -= 1
            if not self._streams[user]:
                del self._streams[user]
            await asyncio.shield(self.forget(caller, follower))

    def review(self, judge: Judge) -> None:
        """Hold every stream to what its user may do by now; end those whose credentials hold no more."""
        for handler, (visit, follower) in list(self._listening.items()):
            before = visit.principal
            try:
                visit.principal = judge(before)
            except AuthFailed:
                handler.close()
                continue
            if Sight.of(visit.principal) != Sight.of(before):
                follower.notice_lists()

    def end(self) -> None:
        """End every stream, with a last word to its client."""
        for handler in list(self._listening):
            handler.close()

    def forget_all(self, caller: Caller) -> None:
        """A connection has ended, and with it all that the gateway watches for it."""
        for key in [key for key in self._followed if key[0] == caller.connection]:
            del self._followed[key]

    async def forget(self, caller: Caller, follower: Follower) -> None:
        """Have nothing watched any more that `follower` follows."""
        while follower.addresses:
            place, _ = follower.addresses.popitem()
            try:
                await self._let_go(caller, place)
            except GatewayError as error:
                log_event(_LOGGER, logging.INFO, "a resource stays watched", server=place[0], code=error.code)

    async def _follow(self, context: Context, follower: Follower, address: str) -> None:
        if len(follower.addresses) >= _MOST_FOLLOWED:
            raise QueueFull(f"{_MOST_FOLLOWED} resources are followed: let go of one first")
        place = await self._catalogue.locate(context, address)
        if place in follower.addresses:
            return
        caller = caller_of(context)
        await self._gateway.subscribe_resource(caller, *place)
        follower.addresses[place] = address
        self._followed[caller.connection, *place] += 1

    async def _let_go(self, caller: Caller, place: tuple[str, str]) -> None:
        key = (caller.connection, *place)
        self._followed[key] -= 1
        if self._followed[key] <= 0:
            del self._followed[key]
            await self._gateway.unsubscribe_resource(caller, *place)


class _OneFollower:
    """The SDK's bus of events, for one stream."""

    def __init__(self, follower: Follower, changes: Changes) -> None:
        self._follower = follower
        self._changes = changes

    async def publish(self, event: ServerEvent) -> None:
        """Tell this stream alone."""
        self._follower.tell(event)

    def subscribe(self, listener: Callable[[ServerEvent], None]) -> Callable[[], None]:
        """Tell `listener` of what changes; call the answer to end that."""
        self._follower.tell = listener
        return self._changes.follow(self._follower)


def _tell_nobody(_event: ServerEvent) -> None:
    """Nobody listens yet."""
