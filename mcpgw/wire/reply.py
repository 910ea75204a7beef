"""What every frame has, whoever sends it: the clock of its timestamp, and the id that answers carry."""

import time
from dataclasses import dataclass

PROTOCOL = "mcpgw.v1"
"""The name of the protocol, as the WebSocket handshake and every status have it."""
_LONGEST_ID = 128


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch, as every ``timestamp`` of the wire."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class ReplyTo:
    """The id that an answer carries; `alternative` where the request spelled it ``request_id``."""

    id: str
    alternative: bool = False

    @classmethod
    def of(cls, value: object) -> "ReplyTo | None":
        """Whom to answer about `value`, also where it is no frame; None where it has no id to use."""
        if not isinstance(value, dict):
            return None
        found = [value[name] for name in ("id", "request_id") if name in value]
        if not found or found[0] != found[-1] or not isinstance(found[0], str):
            return None
        return cls(found[0], alternative="request_id" in value) if 0 < len(found[0]) <= _LONGEST_ID else None
