"""Events of the gateway's channels, without a gap and without doubles, over any number of connections."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Mapping
from types import TracebackType
from typing import Any, Final, Self
from weakref import WeakSet

from mcpgw.client.errors import error_from, renewed
from mcpgw.client.feed import LAGGED, ChannelEvent, Feed, Handshake, union
from mcpgw.client.link import Frame
from mcpgw.wire.events import Position

_PREFIX: Final = "subscription-"
_RETRY_SECONDS: Final = 1.0

Send = Callable[[str, str, Mapping[str, Any]], bool]
"""Sends a frame of a type, an id and data; false where there is no connection."""


class Subscription(AsyncIterator[ChannelEvent]):
    """The events of one channel, as an async iterator; made by `Gateway.subscribe`.

    It begins with ``async with`` (which waits until it stands) or with the first event that is asked for. On
    a channel of states the present ones come first, unless `since` was given. At most `queue_size` events
    wait for a reader; then the oldest are dropped, and an event of the type `LAGGED` says how many. Where
    some are missing for good, because the gateway's log no longer has them, an event of the type `GAP` stands
    in their place, and the present states follow.
    """

    def __init__(self, owner: "Subscriptions", feed: Feed) -> None:
        self._owner = owner
        self._feed = feed

    def __repr__(self) -> str:
        return f"Subscription({self.channel!r})"

    @property
    def channel(self) -> str:
        """Whose events these are."""
        return self._feed.channel

    @property
    def position(self) -> str | None:
        """The place of the newest event that has come, as `since` takes it; None before there is one.

        A reader's own place is the `id` of the last event that it was given.
        """
        return None if self._feed.place is None else str(self._feed.place)

    @property
    def recovered(self) -> bool | None:
        """Whether all that was missed came when it last began; None before it stands."""
        return self._feed.recovered

    @property
    def present(self) -> tuple[Mapping[str, str], ...]:
        """Who was in a room when it last began: ``user`` and ``clientId`` of each."""
        return self._feed.present

    async def __aenter__(self) -> Self:
        """Wait until the subscription stands.

        Raises:
            ClientError: the gateway refuses it, or cannot be reached any more.
        """
        self._owner.add(self._feed)
        try:
            while self._feed.recovered is None and self._feed.fault is None:
                await self._feed.change()
        except BaseException:
            await self.aclose()
            raise
        if self._feed.recovered is None and self._feed.fault is not None:
            raise renewed(self._feed.fault)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the subscription."""
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ChannelEvent:
        """The next event, in the order of the log.

        Raises:
            ClientError: the gateway refuses the subscription, or cannot be reached any more.
        """
        self._owner.add(self._feed)
        while (event := self._feed.pop()) is None:
            if self._feed.is_closed:
                raise StopAsyncIteration
            if self._feed.fault is not None:
                raise renewed(self._feed.fault)
            await self._feed.change()
        return event

    async def aclose(self) -> None:
        """End the subscription; what waits is dropped."""
        self._feed.close()
        self._owner.remove(self._feed)


class Subscriptions:
    """Every subscription of a `Gateway`, on whatever connection it has at the moment.

    The wire has one subscription a channel; here there may be many, each with a filter and a place of its
    own. Each begins with a ``subscribe`` of its own, and leaves out what it has had. `renew` asks for a fresh
    token, and answers whether there can be one.
    """

    def __init__(self, send: Send, renew: Callable[[], bool]) -> None:
        self._send = send
        self._renew = renew
        # Weak: a reader that leaves its loop without a word is forgotten with its iterator.
        self._channels: dict[str, WeakSet[Feed]] = {}
        self._handshakes: dict[str, Handshake] = {}
        self._numbers = itertools.count(1)
        self._fault: Exception | None = None

    def add(self, feed: Feed) -> None:
        """Begin, where it has not begun."""
        if feed.is_closed or feed.fault is not None:
            return
        feeds = self._channels.setdefault(feed.channel, WeakSet())
        if feed in feeds:
            return
        feeds.add(feed)
        if self._fault is not None:
            feed.fail(self._fault)
        else:
            self._shake(feed, refreshing=False)

    def remove(self, feed: Feed) -> None:
        """End; the channel too, where nobody else reads it."""
        feeds = self._channels.get(feed.channel)
        if feeds is None or feed not in feeds:
            return
        feeds.discard(feed)
        if not feeds:
            self._leave(feed.channel)

    def connected(self) -> None:
        """There is a new connection: go on with everything where it was."""
        self._handshakes.clear()
        for feed in self._feeds():
            if feed.fault is None:
                feed.interrupt()
                self._shake(feed, refreshing=False)

    def disconnected(self) -> None:
        """The connection is gone."""
        self._handshakes.clear()
        for feed in self._feeds():
            feed.interrupt()

    def fail(self, fault: Exception) -> None:
        """There will be no other connection."""
        self._fault = fault
        for feed in self._feeds():
            feed.fail(fault)

    def refresh(self) -> None:
        """Ask for the present place of quiet channels: an old one would fall out of the gateway's log."""
        for feed in self._feeds():
            if feed.is_live and not feed.has_moved:
                self._shake(feed, refreshing=True)
            feed.has_moved = False

    def receive(self, frame: Frame) -> None:
        """Take what may be an answer to a subscription, an event, or neither."""
        if frame.id is not None and frame.id.startswith(_PREFIX):
            self._answered(frame.id, frame)
            return
        channel = frame.data.get("channel") if frame.type == LAGGED else frame.channel
        if not isinstance(channel, str) or channel not in self._channels:
            return
        feeds = list(self._channels[channel])
        for feed in feeds:
            feed.take(frame)
        if not feeds:
            self._leave(channel)

    def _feeds(self) -> list[Feed]:
        return [feed for feeds in self._channels.values() for feed in feeds]

    def _answered(self, identifier: str, frame: Frame) -> None:
        handshake = self._handshakes.get(identifier)
        if handshake is None:
            return
        feed = handshake.feed
        if frame.type == "subscribed":
            epoch, offset, present = (frame.data.get(name) for name in ("epoch", "offset", "present"))
            if isinstance(epoch, str) and isinstance(offset, int):
                handshake.base = Position(epoch, offset)
                handshake.recovered = frame.data.get("recovered") is True
                feed.present = tuple(present) if isinstance(present, list) else ()
                if handshake.pings_later:
                    self._send("ping", identifier, {})
                return
        del self._handshakes[identifier]
        if handshake.refreshing:
            feed.stand(handshake)
        elif feed.handshake is handshake:
            if frame.type == "pong":
                feed.stand(handshake)
            else:
                self._refused(feed, frame.data)

    def _refused(self, feed: Feed, data: Mapping[str, Any]) -> None:
        feed.interrupt()
        error = error_from(data, data.get("error", "the gateway's answer to a subscription is none"))
        wait = error.retry_after or _RETRY_SECONDS
        if error.code == "token_expired" and not feed.has_asked_for_token and self._renew():
            feed.has_asked_for_token = True
        elif not error.temporary:
            feed.fail(error)
            self.remove(feed)
            return
        asyncio.get_running_loop().call_later(wait, self._again, feed)

    def _again(self, feed: Feed) -> None:
        if feed in self._channels.get(feed.channel, ()) and not feed.is_live and feed.handshake is None:
            self._shake(feed, refreshing=False)

    def _shake(self, feed: Feed, *, refreshing: bool) -> None:
        identifier = f"{_PREFIX}{next(self._numbers)}"
        data: dict[str, Any] = {"channel": feed.channel}
        if feed.place is not None:
            data["since"] = str(feed.place)
        wanted = union([other.wanted for other in self._channels[feed.channel]]).data()
        if wanted:
            data["filter"] = wanted
        if not self._send("subscribe", identifier, data):
            return  # `connected` begins it
        handshake = self._handshakes[identifier] = Handshake(
            feed, feed.place, refreshing, pings_later="resources" in wanted
        )
        if not refreshing:
            feed.handshake = handshake
        if "resources" not in wanted:  # servers are asked before the gateway answers: see `_answered`
            self._send("ping", identifier, {})

    def _leave(self, channel: str) -> None:
        self._channels.pop(channel, None)
        self._send("unsubscribe", f"{_PREFIX}{next(self._numbers)}", {"channel": channel})
