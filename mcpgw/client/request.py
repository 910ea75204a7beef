"""One request of the client, from the asking to its end."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcpgw.client.answers import LogLine, Progress, Queued
from mcpgw.client.errors import NotAGateway, renewed
from mcpgw.client.inputs import OnInput
from mcpgw.client.link import Frame

_ANSWERS: Final = {
    "tool_call": "tool_response",
    "list_tools": "tools",
    "list_resources": "resources",
    "read_resource": "resource",
    "list_prompts": "prompts",
    "get_prompt": "prompt",
    "complete": "completion",
    "status": "status",
    "ping": "pong",
    "auth": "status",
    "publish": "published",
}
_CALLS: Final = frozenset(
    {"tool_call", "list_resources", "read_resource", "list_prompts", "get_prompt", "complete"}
)
_HARMLESS: Final = frozenset({"list_tools", "status", "ping"})


@dataclass(slots=True, eq=False)
class Request:
    """A request that waits for `future`, which gives the data of its answer.

    `is_sent` says whether it may have reached the gateway, `answered` whether the gateway has ended it.
    """

    url: str
    kind: str
    text: str = field(repr=False)
    future: "asyncio.Future[Mapping[str, Any]]"
    on_progress: Callable[[Progress], None] | None = None
    on_log: Callable[[LogLine], None] | None = None
    on_queued: Callable[[Queued], None] | None = None
    on_input: OnInput | None = None
    is_sent: bool = False
    answered: bool = False
    waits_for_token: bool = False

    @property
    def answer_type(self) -> str:
        """The type of the frame that answers it."""
        return _ANSWERS[self.kind]

    @property
    def is_call(self) -> bool:
        """Whether it runs at a server: it outlives its connection, and can be cancelled."""
        return self.kind in _CALLS

    @property
    def is_harmless(self) -> bool:
        """Whether it may be asked twice."""
        return self.kind in _HARMLESS

    def answer(self, data: Mapping[str, Any]) -> None:
        """The gateway has answered."""
        self.answered = True
        if not self.future.done():
            self.future.set_result(data)

    def settle(self, error: Exception) -> None:
        """It has no answer, where it has none yet."""
        if not self.future.done():
            self.future.set_exception(renewed(error))

    def hand_on(self, frame: Frame) -> None:
        """Call the callback for a frame on the way; what it raises ends the request."""
        data = frame.data
        try:
            if frame.type == "tool_progress" and self.on_progress is not None:
                self.on_progress(
                    Progress(member(data, "progress", self.url), data.get("total"), data.get("message"))
                )
            elif frame.type == "tool_log" and self.on_log is not None:
                self.on_log(LogLine(member(data, "level", self.url), data.get("logger"), data.get("data")))
            elif frame.type == "queued" and self.on_queued is not None:
                self.on_queued(_queued(data, self.url))
        except Exception as fault:  # noqa: BLE001 - not hidden: it is raised by the call that gave the callback
            self.settle(fault)


def _queued(data: Mapping[str, Any], url: str) -> Queued:
    wait, expires_at = data.get("retryAfterMs"), data.get("expiresAt")
    reason, request_id = data.get("reason"), data.get("requestId")
    return Queued(
        position=member(data, "position", url),
        retry_after=wait / 1000 if isinstance(wait, int | float) else None,
        reason=reason if isinstance(reason, str) else None,
        request_id=request_id if isinstance(request_id, str) else None,
        expires_at=expires_at if isinstance(expires_at, int) else None,
    )


def member(data: Mapping[str, Any], name: str, url: str) -> Any:
    """The member that a frame must have.

    Raises:
        NotAGateway: it has not; what speaks at `url` is none.
    """
    if name not in data:
        raise NotAGateway(url, f"it sent a frame without {name}")
    return data[name]
