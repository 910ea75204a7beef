"""The states of a backend's life, and what is known of it at one moment."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class BackendState(StrEnum):
    """Where a backend is in its life.

    disabled     it is switched off by its definition
    starting     process or connection, handshake, first list of tools
    ready        calls go through
    retrying     it ended or could not be started; the next try has a time
    stopping     the gateway is ending
    stopped      … and this backend has ended
    """

    DISABLED = "disabled"
    STARTING = "starting"
    READY = "ready"
    RETRYING = "retrying"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One backend at one moment; `since` and `next_try_at` in seconds since the epoch."""

    id: str
    transport: str
    state: BackendState
    since: float
    tools: int
    protocol_version: str | None
    server_name: str | None
    server_version: str | None
    failures: int
    next_try_at: float | None
    reason: str | None

    def to_json(self) -> dict[str, Any]:
        """The REST form: times in milliseconds since the epoch, what is unknown left out."""
        server_info = {"name": self.server_name, "version": self.server_version}
        members = {
            "id": self.id,
            "transport": self.transport,
            "state": self.state.value,
            "since": round(self.since * 1000),
            "tools": self.tools,
            "protocolVersion": self.protocol_version,
            "serverInfo": server_info if self.server_name is not None else None,
            "failures": self.failures,
            "nextTryAt": None if self.next_try_at is None else round(self.next_try_at * 1000),
            "reason": self.reason,
        }
        return {name: value for name, value in members.items() if value is not None}
