"""What passes between a request that is open at a backend and the one who made it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import msgspec

InputKind = Literal["elicitation", "sampling", "roots"]
"""What a backend may ask its caller for (MCP: ``elicitation/create``, ``sampling/createMessage``,
``roots/list``).
"""


@dataclass(frozen=True, slots=True)
class InputRequest:
    """A backend asks its caller for something; `params` are the JSON params of the MCP request.

    `key` is the backend's own name for the question, where it has one (MCP 2026-07-28, ``inputRequests``).
    """

    kind: InputKind
    message: str
    params: Mapping[str, Any]
    key: str = ""


@dataclass(frozen=True, slots=True)
class InputAnswer:
    """The caller's answer.

    `content` goes with ``accept``: the form of an elicitation, the JSON of a ``CreateMessageResult``, or
    ``{"roots": [...]}``.
    """

    action: Literal["accept", "decline", "cancel"]
    content: Mapping[str, Any] | None = None


class Observer(Protocol):
    """What a caller is told while its request is open. All but `input_required` neither wait nor raise."""

    def started(self) -> None:
        """The request is sent to its server; said once, also where it is sent again."""

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """It waits for its turn: 1 goes next. `retry_after_ms` guesses how long, in milliseconds."""

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        """It waits until somebody approves it; nobody is waited for after `expires_at` (milliseconds)."""

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """How far it is."""

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """A log message that its server sent for it."""

    async def input_required(self, request: InputRequest) -> InputAnswer:
        """Its server asks for something; may take as long as the call has, and is cancelled with it."""


class SilentObserver:
    """Hears everything, says nothing, and declines what it is asked."""

    def started(self) -> None:
        """Nothing."""

    def queued(self, position: int, retry_after_ms: int | None) -> None:
        """Nothing."""

    def approval_asked(self, request_id: str, expires_at: int) -> None:
        """Nothing."""

    def progress(self, progress: float, total: float | None, message: str | None) -> None:
        """Nothing."""

    def log(self, level: str, logger: str | None, data: Any) -> None:
        """Nothing."""

    async def input_required(self, request: InputRequest) -> InputAnswer:  # noqa: ARG002 - the protocol's
        """Decline."""
        return InputAnswer("decline")


class Asker(msgspec.Struct, frozen=True, gc=False):
    """For whom a request is: the keys by which isolated servers keep their instances apart.

    `connection` may be a secret, and is in no log.
    """

    user: str
    connection: str = ""

    def __repr__(self) -> str:
        return f"Asker({self.user!r})"


NOBODY = Asker("")
"""The gateway itself."""
