"""What a conversation is made with: who it speaks to, where, within which limits, and with whose help."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from mcpgw.access.tokens import Verifier
from mcpgw.audit import Audit
from mcpgw.bus import Bus
from mcpgw.call_record import CallRecords
from mcpgw.deadlines import Deadlines
from mcpgw.errors import CloseCode
from mcpgw.gateway import Gateway
from mcpgw.metrics import Metrics
from mcpgw.rate_limit import UserLimits
from mcpgw.rooms import Rooms
from mcpgw.session_store import SessionStore
from mcpgw.settings import AuthSettings, SessionSettings, WebSocketSettings
from mcpgw.tracing import CallerTrace
from mcpgw.wire.deliveries import LiveReader
from mcpgw.workers.peers import Peers


class Sink(Protocol):
    """Where a conversation speaks to: a transport that only writes."""

    @property
    def frames_out(self) -> int:
        """How many frames were written so far."""

    @property
    def live_reader(self) -> LiveReader:
        """What takes events as they happen, until the connection is closed."""

    @property
    def has_room(self) -> bool:
        """Whether nothing waits to be written."""

    def send_result(self, text: str) -> None:
        """Send what must not be lost; never waits and never fails because the client is gone."""

    def send_stream(self, source: str, text: str) -> None:
        """Send what may be dropped where the reader is too slow."""

    @property
    def has_place(self) -> bool:
        """Whether the connection may stay; else it waits, and `Conversation.admitted` tells when it may."""

    def identify(self, user: str) -> str | None:
        """The connection is `user`'s; answers why it is one too many where it is.

        Where it only waits for a place, the answer is None and `has_place` is false.
        """

    def come_first(self) -> None:
        """A place of this user is about to come free, and is meant for this connection."""

    def probe(self, seconds: float) -> None:
        """Ask the client for a sign of life; the connection ends where none comes in time."""

    def leave(self, home: int, values: Sequence[object]) -> None:
        """Hand the connection over to another worker, which is given these frames first."""

    def close(self, code: CloseCode, reason: str) -> None:
        """End the connection."""


@dataclass(frozen=True, slots=True)
class ClientInfo:
    """What is known of a client from how it connected; `credentials` names the way, never the secret.

    One that `is_greeted` was told the status of its connection by another worker, and has the id from there.
    """

    client_id: str
    remote: str
    user_agent: str
    path: str
    credentials: str
    trace: CallerTrace | None = None
    is_greeted: bool = False


@dataclass(frozen=True, slots=True)
class ConversationSettings:
    """The limits that a conversation keeps."""

    auth: AuthSettings
    websocket: WebSocketSettings
    sessions: SessionSettings


@dataclass(frozen=True, slots=True)
class ConversationParts:
    """What every conversation works with."""

    gateway: Gateway
    tokens: Verifier
    bus: Bus
    rooms: Rooms
    sessions: SessionStore
    limits: UserLimits
    metrics: Metrics
    audit: Audit
    deadlines: Deadlines = field(default_factory=Deadlines)
    peers: Peers = field(default_factory=Peers)

    @property
    def records(self) -> CallRecords:
        """Where calls are recorded."""
        return CallRecords(self.bus, self.audit, self.metrics)
