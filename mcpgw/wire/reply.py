"""What every frame has, whoever sends it: the clock of its timestamp, and the id that answers carry."""

import time

import msgspec

PROTOCOL = "mcpgw.v1"
"""The name of the protocol, as the WebSocket handshake and every status have it."""
_LONGEST_ID = 128


def now_ms() -> int:
    """The wall clock in milliseconds since the epoch, as every ``timestamp`` of the wire."""
    return time.time_ns() // 1_000_000


class ReplyTo(msgspec.Struct, frozen=True, gc=False):
    """The id that an answer carries; `alternative` where the request spelled it ``request_id``."""

    id: str
    alternative: bool = False

    @classmethod
    def of(cls, value: object) -> "ReplyTo | None":
        """Whom to answer about `value`, also where it is no frame; None where it has no id to use."""
        if not isinstance(value, dict):
            return None
        is_alternative = "request_id" in value
        found = value["request_id"] if is_alternative else value.get("id")
        if not isinstance(found, str) or not 0 < len(found) <= _LONGEST_ID:
            return None
        if is_alternative and value.get("id", found) != found:
            return None
        return cls(found, is_alternative)
