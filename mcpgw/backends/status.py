"""The states of a backend's life, and what is known of a server at one moment."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, Literal

ListKind = Literal["resources", "templates", "prompts"]
"""What a server may list beside its tools."""


class BackendState(StrEnum):
    """Where a backend is in its life.

    disabled     it is switched off by its definition
    idle         it was not needed yet, is not needed any more, or was stopped by an operator
    starting     process or connection, handshake, first list of tools
    ready        calls go through
    degraded     calls go through, but it has not answered the last probe of its health
    retrying     it ended or could not be started; the next try has a time
    failed       as before, several times in a row; it is still tried, now and then
    stopping     it is being ended
    stopped      … and has ended for good
    """

    DISABLED = "disabled"
    IDLE = "idle"
    STARTING = "starting"
    READY = "ready"
    DEGRADED = "degraded"
    RETRYING = "retrying"
    FAILED = "failed"
    STOPPING = "stopping"
    STOPPED = "stopped"

    @property
    def takes_calls(self) -> bool:
        """Whether calls go through."""
        return self in (BackendState.READY, BackendState.DEGRADED)


BEST_FIRST: Final = tuple(
    BackendState(name)
    for name in (
        "ready",
        "degraded",
        "starting",
        "retrying",
        "failed",
        "stopping",
        "idle",
        "stopped",
        "disabled",
    )
)
"""The states of several instances of one server: the server as a whole has the first that one of them has."""


@dataclass(frozen=True, slots=True)
class InstanceStatus:
    """One instance of a server at one moment: `user` is whose it is, where it is one user's."""

    state: BackendState
    since: float
    user: str | None
    calls: int

    def to_json(self) -> dict[str, Any]:
        """The REST form: time in milliseconds since the epoch."""
        members: dict[str, Any] = {"state": self.state.value, "since": round(self.since * 1000)}
        return members | ({"user": self.user} if self.user is not None else {}) | {"calls": self.calls}


@dataclass(frozen=True, slots=True)
class Offer:
    """What a server offers beside its tools, as it said last."""

    capabilities: Mapping[str, Any]
    instructions: str | None
    protocol_version: str | None
    server_name: str | None
    server_version: str | None


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """One server at one moment; `since` and `next_try_at` in seconds since the epoch.

    `failures` counts tries in a row that failed, `last_lines` are the last of its stderr, without secrets.
    `full_reason` is the reason with what is for operators alone.
    """

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
    isolation: str = "shared"
    instances: tuple[InstanceStatus, ...] = ()
    capabilities: Mapping[str, Any] = field(default_factory=dict)
    last_lines: tuple[str, ...] = ()
    full_reason: str | None = None

    def to_state(self, *, detail: bool = False) -> dict[str, Any]:
        """What of the REST form may be another one in each process of a gateway, in short."""
        members = self.to_json(detail=detail)
        names = ("state", "since", "tools", "failures", "nextTryAt", "reason")
        return {name: members[name] for name in names if name in members}

    def to_json(self, *, detail: bool = False) -> dict[str, Any]:
        """The REST form: times in milliseconds since the epoch, what is unknown left out.

        With `detail` also its instances, its capabilities, and the last lines of its stderr, which are for
        operators alone.
        """
        server_info = {"name": self.server_name, "version": self.server_version}
        members: dict[str, Any] = {
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
        if detail:
            members |= {
                "reason": self.full_reason or self.reason,
                "isolation": self.isolation,
                "instances": [instance.to_json() for instance in self.instances],
                "capabilities": dict(self.capabilities),
                "log": list(self.last_lines),
            }
        return {name: value for name, value in members.items() if value is not None}
