"""What a connection is given of an event: encoded once, for all who are written to in the same way."""

from dataclasses import dataclass
from typing import Protocol

from mcpgw.wire.events import Event


class Encoding(Protocol):
    """How the texts of events become bytes for a kind of connection. Equal ones (``==``, hash) are one."""

    def encode(self, event: Event, text: str) -> bytes:
        """The whole of what is written for an event."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event as all readers of one audience are given it."""

    event: Event
    text: str
    frame: bytes


class LiveReader(Protocol):
    """A connection that takes events as they happen."""

    @property
    def encoding(self) -> Encoding:
        """How they are written for it; the same as long as it is open."""

    def send_event(self, delivery: Delivery) -> None:
        """Send an event; never waits and never fails because the client is gone."""
