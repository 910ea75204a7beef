"""What a session has of events: its subscriptions, its rooms, and the way from what it missed to the present.

Source: the wire contract, sections 3 (`subscribe` to `publish`) and 4.
"""

from collections.abc import Sequence
from typing import Protocol

from mcpgw.access.permissions import require_free
from mcpgw.access.tokens import Principal
from mcpgw.bus import Bus
from mcpgw.errors import PermissionDenied, QueueFull, TooLarge, UnknownChannel, suggest
from mcpgw.event_reader import CatchUp, LogMovedOnError
from mcpgw.metrics import Metrics
from mcpgw.rooms import Rooms
from mcpgw.subscriptions import ROOM, Subscription
from mcpgw.wire import frames
from mcpgw.wire.deliveries import LiveReader
from mcpgw.wire.events import Event, Position
from mcpgw.wire.frames import ReplyTo, ServerFrame

_STEP = 16
_LONGEST_PAYLOAD = 65536
_MOST_CHANNELS = 100


class Outlet(Protocol):
    """The connection that a session speaks through at the moment."""

    @property
    def live_reader(self) -> LiveReader:
        """What takes events as they happen."""

    def say_result(self, text: str) -> None:
        """Send what must not be lost."""

    def say_stream(self, source: str, text: str) -> None:
        """Send what may be dropped where the reader is too slow; `source` is told how much was."""

    @property
    def has_room(self) -> bool:
        """Whether nothing waits: more of what was missed can be sent."""

    def fell_behind(self) -> None:
        """What was missed is no longer in the log: end this connection."""

    def replaced(self) -> None:
        """The session goes on through another connection: end this one."""


class SessionEvents:
    """The subscriptions of one client; `outlet` and `client_id` are those of its present connection."""

    __slots__ = (
        "_bus",
        "_catching_up",
        "_is_stepping",
        "_metrics",
        "_rooms",
        "_subscriptions",
        "client_id",
        "has_subscribed",
        "outlet",
    )

    def __init__(self, bus: Bus, rooms: Rooms, *, client_id: str, metrics: Metrics) -> None:
        self.client_id = client_id
        self.outlet: Outlet | None = None
        self.has_subscribed = False
        self._bus = bus
        self._rooms = rooms
        self._metrics = metrics
        self._subscriptions: dict[str, Subscription] = {}
        self._catching_up: list[CatchUp] = []
        self._is_stepping = False

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels that are subscribed."""
        return tuple(self._subscriptions)

    def subscribe(self, frame: frames.Subscribe, principal: Principal) -> None:
        """Answer, then send what was missed or the present state, then all that comes.

        Raises:
            UnknownChannel: there is no such channel.
            PermissionDenied: the caller may not read it.
        """
        self._rooms.require(principal, frame.channel)
        if frame.channel not in self._subscriptions and len(self._subscriptions) >= _MOST_CHANNELS:
            raise QueueFull(f"{_MOST_CHANNELS} channels are subscribed: unsubscribe from one first")
        begins = self._come_in(frame.channel, principal.user)
        old = self._subscriptions.pop(frame.channel, None)
        if old is not None:
            old.stop()
        else:
            self._metrics.subscribed(frame.channel)
        is_first, self.has_subscribed = not self.has_subscribed, True
        subscription = Subscription(
            principal,
            frame.channel,
            frame.filter,
            self._deliver_missed,
            reader=None if self.outlet is None else self.outlet.live_reader,
            count=self._metrics.frame_sent,
        )
        self._subscriptions[frame.channel] = subscription
        subscription.begins = begins
        since, reaches_back = frame.since, True
        if since is not None and since.epoch == self._bus.position.epoch and since.offset < begins - 1:
            # What was said before is not for this reader, who is told that something is missing.
            since, reaches_back = Position(since.epoch, begins), False
        for other in self._catching_up:
            other.mix()
        catch_up = CatchUp(self._bus, {frame.channel: subscription}, since, is_mixed=not is_first)
        self._begin(catch_up, (frame.channel,), frame.reply, reaches_back=reaches_back)

    def _come_in(self, channel: str, user: str) -> int:
        """Join a room, where `channel` is one; answers the offset behind which the client may read it."""
        if not channel.startswith(ROOM):
            return 0
        self._rooms.join(channel, self.client_id, user)
        # A member from before, this session's earlier connections counting, stays one.
        member = self._subscriptions.get(channel)
        return self._bus.position.offset if member is None else member.begins

    def unsubscribe(self, frame: frames.Unsubscribe) -> None:
        """End a subscription, and answer.

        Raises:
            UnknownChannel: it is not subscribed.
        """
        if frame.channel not in self._subscriptions:
            raise UnknownChannel(
                f"the channel {frame.channel[:64]!r} is not subscribed{suggest(frame.channel, self.channels)}"
            )
        self._leave(frame.channel)
        self._say(frames.Unsubscribed(frame.channel), frame.reply)

    def publish(self, frame: frames.Publish, principal: Principal) -> None:
        """Say something in a room that the client is in, and answer.

        Raises:
            UnknownChannel: there is no such channel, or it is no room.
            PermissionDenied: the client is not in the room, or may only read there for now.
        """
        self._rooms.require(principal, frame.channel)
        require_free(principal)
        if not frame.channel.startswith(ROOM):
            raise UnknownChannel("only rooms can be published to: room:NAME")
        if frame.channel not in self._subscriptions:
            raise PermissionDenied(
                f"subscribe to {frame.channel!r} first: a room's members alone speak in it"
            )
        payload = frames.dumps(frame.payload)
        if len(payload) > _LONGEST_PAYLOAD:
            raise TooLarge(f"a room takes payloads of at most {_LONGEST_PAYLOAD} characters")
        self._bus.publish(
            "room.message",
            {"user": principal.user, "clientId": self.client_id, "payload": frame.payload},
            channel=frame.channel,
            encoded={"payload": payload},
            on_published=lambda position: self._say(
                frames.Published(frame.channel, position.offset), frame.reply
            ),
        )

    def belong_to(self, principal: Principal) -> None:
        """Go on with another token of the same user, which may grant less than the one that subscribed."""
        for subscription in self._subscriptions.values():
            subscription.principal = principal
        self.leave_forbidden(principal)

    def leave_forbidden(self, principal: Principal) -> None:
        """Leave the channels that are not for `principal` now: a room may have become one of guests."""
        for channel in self.channels:
            if not self._rooms.may_read(principal, channel):
                self._leave(channel)
                self._say(frames.Unsubscribed(channel), None)

    def catch_up(self) -> None:
        """Go on with what was missed while the outlet has room for it; it calls again when it has."""
        if self._is_stepping:
            return  # the outlet has told of its room while it was given something; the loop below goes on
        self._is_stepping = True
        try:
            while self._catching_up and self.outlet is not None and self.outlet.has_room:
                catch_up = self._catching_up[0]
                catch_up.step(_STEP)
                if catch_up.is_live and catch_up in self._catching_up:
                    self._catching_up.remove(catch_up)
        except LogMovedOnError:
            if self.outlet is not None:
                self.outlet.fell_behind()
        finally:
            self._is_stepping = False

    def silence(self) -> None:
        """Deliver nothing more; what is subscribed stays known, for `replay`."""
        self._catching_up.clear()
        for subscription in self._subscriptions.values():
            subscription.stop()

    def go_away(self) -> None:
        """Deliver nothing more, let the connection's reader go, and leave the rooms."""
        self.silence()
        for channel, subscription in self._subscriptions.items():
            subscription.through(None)
            if channel.startswith(ROOM):
                self._rooms.leave(channel, self.client_id)

    def come_back(self, outlet: Outlet, client_id: str) -> None:
        """Speak through another connection, as another member of the rooms."""
        self.client_id = client_id
        self.outlet = outlet
        for subscription in self._subscriptions.values():
            subscription.through(outlet.live_reader)

    def replay(self, since: Position | None, user: str | None) -> None:
        """Send every subscribed channel's events behind `since`, in the order of the log.

        A channel that had not reached the present, as far as `since` tells, goes on from an earlier place.
        """
        for channel in self._subscriptions:
            if channel.startswith(ROOM) and user is not None:
                self._rooms.join(channel, self.client_id, user)
        if self._subscriptions:
            # Without a position it is not known what was missed: it may be anything.
            catch_up = CatchUp(self._bus, self._subscriptions, since or Position("", 0), again=True)
            self._begin(catch_up, self.channels, None)

    def end(self) -> None:
        """The client will not come back: leave every channel."""
        self.go_away()
        for channel in self._subscriptions:
            self._metrics.unsubscribed(channel)
        self._subscriptions.clear()

    def _leave(self, channel: str) -> None:
        self._subscriptions.pop(channel).stop()
        self._metrics.unsubscribed(channel)
        if channel.startswith(ROOM):
            self._rooms.leave(channel, self.client_id)

    def _begin(
        self,
        catch_up: CatchUp,
        channels: Sequence[str],
        reply: ReplyTo | None,
        *,
        reaches_back: bool = True,
    ) -> None:
        """Answer for each channel, then begin to send what was missed or the present state."""
        for channel in channels:
            present = self._rooms.present(channel) if channel.startswith(ROOM) else None
            position, recovered = catch_up.start_of(channel)
            told = frames.Subscribed(channel, position, recovered is not False and reaches_back, present)
            self._say(told, reply)
        self._catching_up.append(catch_up)
        self.catch_up()

    def _deliver_missed(self, _event: Event, text: str) -> None:
        if self.outlet is not None:
            self.outlet.say_result(text)  # asked for when there was room: nothing of it may be dropped

    def _say(self, frame: ServerFrame, reply: ReplyTo | None) -> None:
        if self.outlet is not None:
            self.outlet.say_result(frames.encode(frame, reply))
