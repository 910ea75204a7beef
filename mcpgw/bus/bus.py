"""What every bus promises, whoever keeps the log."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from mcpgw.wire.events import Event, Position


class Audience(Protocol):
    """What listeners have in common, so that an event is prepared once for all of them.

    Audiences that are equal (``==``, hash) are one.
    """

    @property
    def owner(self) -> str | None:
        """Whose events alone are for it; None where it is to be asked about every event."""

    def prepare(self, event: Event) -> Any | None:
        """What each of its listeners is given in the place of `event`; None where it is not for them."""

    def delivered(self, event: Event, count: int) -> None:
        """So many listeners were given the event."""


@dataclass(frozen=True, slots=True)
class Replay:
    """What has happened since a position; `recovered` is false where the log no longer reaches back to it.

    `until` is how far the events reach: the end of the log, or the last of them where more are to be read.
    """

    events: tuple[Event, ...]
    recovered: bool
    until: Position


class Bus(ABC):
    """The log of events, and those who listen to it.

    The guarantee: all events have one order, which their offsets tell. Each listener of a channel is given
    every event of that channel that is published after it began to listen, once, and in that order. What
    `since` gives together with what a listener is given from the same moment on has no gap and nothing twice,
    as long as nothing is awaited between the two calls. What is forgotten of one kind of channel (all rooms
    are one kind) makes no other forget, up to a share that each has for itself; `since` says by `recovered`
    whether an event of the channels that it is asked for is missing. `epoch` changes when the log was lost,
    and a position of another epoch is never taken for one of this: a resume is refused rather than silently
    wrong.

    Publishing never waits for a reader and never fails because of one. A listener may publish: that event
    comes after the present one, for everybody. All methods belong to the event loop's thread.
    """

    @property
    @abstractmethod
    def position(self) -> Position:
        """The position of the newest event."""

    @abstractmethod
    def publish(
        self,
        type_name: str,
        data: Mapping[str, Any],
        *,
        channel: str | None = None,
        owner: str | None = None,
        masked: Mapping[str, Any] | None = None,
        encoded: Mapping[str, str] | None = None,
        size: int | None = None,
        on_published: Callable[[Position], None] | None = None,
    ) -> Position | None:
        """Add an event, and answer where it stands; None where that is known later.

        See `Event` for what is given. Those of ``user:`` and ``room:`` need their `channel`. `on_published`
        is told the position in either case; it is that of this event, also where a listener has published
        others since. The data must not be changed any more: its text is made when somebody reads it. Where
        `data` holds what JSON has not (a backend's words may), `masked` takes its place for everybody. With
        a `size`, both are known to be JSON, of about so many bytes together.

        Raises:
            ValueError: there is no `masked`, or it is no JSON either, or the channel is none of the type's.
        """

    @abstractmethod
    def listen(
        self, channel: str, listener: Callable[[Any], None], audience: Audience | None = None
    ) -> Callable[[], None]:
        """Have `listener` given every event of `channel` from now on; call the answer to end that.

        It must not wait. With an `audience` it is given what that one prepares.
        """

    @abstractmethod
    def since(self, position: Position, channels: Collection[str], *, limit: int | None = None) -> Replay:
        """The events of `channels` behind `position`, the oldest `limit` of them where there is one."""

    @abstractmethod
    def listeners(self) -> Mapping[str, int]:
        """How many listen to each channel that anybody listens to."""

    @abstractmethod
    def latest(self, channel: str) -> tuple[Event, ...]:
        """The newest state event of each key of `channel`, in their order."""
