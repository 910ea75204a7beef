"""What a call gives back, and what it says on the way."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class ToolAnswer:
    """What a tool answered; `success` is false where the tool itself says that it failed.

    `result` is what a caller most likely wants of it, `content` the MCP content blocks as the backend sent
    them, `structured_content` None where there is none. `data` is the whole answer as it came.
    """

    server: str
    tool: str
    success: bool
    result: Any
    content: list[dict[str, Any]]
    structured_content: Any
    duration_ms: int
    meta: Mapping[str, Any] | None
    data: Mapping[str, Any] = field(repr=False)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a call is; `total` in the unit of `progress`, where the backend knows it."""

    progress: float
    total: float | None
    message: str | None


@dataclass(frozen=True, slots=True)
class Queued:
    """A call waits: for its turn at a busy server, at `position` (1 goes next), or to be approved.

    `retry_after` is how long that may take, in seconds. With the `reason` ``approval`` somebody else has to
    consent to `request_id`, until `expires_at` in milliseconds since the epoch.
    """

    position: int
    retry_after: float | None = None
    reason: str | None = None
    request_id: str | None = None
    expires_at: int | None = None


@dataclass(frozen=True, slots=True)
class LogLine:
    """A line that the backend logged while it worked on a call; `data` is any JSON value."""

    level: str
    logger: str | None
    data: Any
