"""What every bus promises, whoever keeps the log."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from mcpgw.wire.events import Event, Position

Listener = Callable[[Event], None]
"""Takes each event of a channel, in order; must not wait and must not raise."""


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
    as long as nothing is awaited between the two calls. `epoch` changes when the log was lost, and a position
    of another epoch is never taken for one of this: a resume is refused rather than silently wrong.

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
    ) -> None:
        """Add an event; those of ``user:`` and ``room:`` need their `channel`. See `Event` for the rest.

        Where `data` holds what JSON has not (a backend's words may), `masked` takes its place for everybody.

        Raises:
            ValueError: there is no `masked`, or it is no JSON either, or the channel is none of the type's.
        """

    @abstractmethod
    def listen(self, channel: str, listener: Listener) -> Callable[[], None]:
        """Have `listener` given every event of `channel` from now on; call the answer to end that."""

    @abstractmethod
    def since(self, position: Position, channels: Collection[str], *, limit: int | None = None) -> Replay:
        """The events of `channels` behind `position`, the oldest `limit` of them where there is one."""

    @abstractmethod
    def listeners(self) -> Mapping[str, int]:
        """How many listen to each channel that anybody listens to."""

    @abstractmethod
    def latest(self, channel: str) -> tuple[Event, ...]:
        """The newest state event of each key of `channel`, in their order."""
