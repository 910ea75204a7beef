"""Those who listen to a bus: who shares an audience is given an event that was prepared once."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from mcpgw.bus.bus import Audience
from mcpgw.wire.events import Event

_LOGGER = logging.getLogger("mcpgw.bus")
_Key: TypeAlias = tuple[str, str | None]


class _Listening:
    """One listener with the offset behind which it began; `ended` once it wants no more."""

    __slots__ = ("_all", "began", "ended", "group", "listener")

    def __init__(
        self, listeners: "Listeners", group: "_Group", listener: Callable[[Any], None], began: int
    ) -> None:
        self._all = listeners
        self.group = group
        self.listener = listener
        self.began = began
        self.ended = False

    def stop(self) -> None:
        """Want no more, from the next listener on; nothing happens the second time."""
        if not self.ended:
            self.ended = True
            self._all.remove(self)


class _Group:
    """The listeners of one channel that share an audience; None has those who are given the event itself."""

    __slots__ = ("audience", "channel", "key", "members", "newest")

    def __init__(self, channel: str, audience: Audience | None) -> None:
        self.channel = channel
        self.audience = audience
        self.key: _Key = (channel, None if audience is None else audience.owner)
        self.members: dict[_Listening, None] = {}
        self.newest = 0


class Listeners:
    """Gives events to listeners, in the order in which `deliver` is called; all on one thread."""

    def __init__(self) -> None:
        # By channel and owner: where events have owners, an event looks at its owner's audiences alone.
        self._groups: dict[_Key, dict[Audience | None, _Group]] = {}
        self._counts: dict[str, int] = {}

    def add(
        self, channel: str, listener: Callable[[Any], None], audience: Audience | None, began: int
    ) -> Callable[[], None]:
        """Give `listener` every event of `channel` above the offset `began`; call the answer to end that."""
        group = _Group(channel, audience)
        group = self._groups.setdefault(group.key, {}).setdefault(audience, group)
        listening = _Listening(self, group, listener, began)
        group.members[listening] = None
        group.newest = max(group.newest, began)
        self._counts[channel] = self._counts.get(channel, 0) + 1
        return listening.stop

    def remove(self, listening: _Listening) -> None:
        """Forget one who has ended, and its audience with the last of it."""
        group = listening.group
        del group.members[listening]
        if not group.members:
            groups = self._groups[group.key]
            del groups[group.audience]
            if not groups:
                del self._groups[group.key]
        self._counts[group.channel] -= 1
        if not self._counts[group.channel]:
            del self._counts[group.channel]

    def has_any(self, channel: str) -> bool:
        """Whether somebody listens to a channel."""
        return channel in self._counts

    def counts(self) -> Mapping[str, int]:
        """How many listen to each channel that anybody listens to."""
        return dict(self._counts)

    def deliver(self, event: Event, *, to_all: bool = False) -> None:
        """Give an event to all who listen. A fault of one stands in the log, and the others are served.

        With `to_all` also to those who began at its offset, or behind it.
        """
        channel, owner = event.channel, event.owner
        if channel not in self._counts:
            return
        groups = list(self._groups.get((channel, None), {}).values())
        if owner is not None:
            groups += self._groups.get((channel, owner), {}).values()
        for group in groups:
            try:
                self._give(group, event, to_all=to_all)
            except Exception:
                # A fault in preparing for some must keep the event from nobody else, nor stop the publisher.
                _LOGGER.exception("an event of %s could not be prepared", channel)

    def _give(self, group: _Group, event: Event, *, to_all: bool) -> None:
        given = event if group.audience is None else group.audience.prepare(event)
        if given is None:
            return
        offset = event.position.offset
        members = list(group.members)
        missed = 0
        if group.newest >= offset and not to_all:  # somebody has come since the event was published
            members = [listening for listening in members if listening.began < offset]
        for listening in members:
            if listening.ended:
                missed += 1
                continue
            try:
                listening.listener(given)
            except Exception:
                # A fault of one reader's code must keep the event from nobody else, nor stop the publisher.
                _LOGGER.exception("a listener of %s raised", group.channel)
        if group.audience is not None:
            group.audience.delivered(event, len(members) - missed)
