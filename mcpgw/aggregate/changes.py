"""What has changed, for whoever listens: sessions of the handshake revisions, and ``subscriptions/listen``.

What a follower is told is a level ("this has changed, read it again"), never the change itself, so that many
changes in a moment are told as one.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from mcp.shared.subscriptions import (
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
    ServerEvent,
    ToolsListChanged,
)

from mcpgw.gateway import Gateway

_PAUSE_SECONDS = 0.05
_MOST_WAITING = 1000

LISTS: Final = (ToolsListChanged(), PromptsListChanged(), ResourcesListChanged())
"""What a server that comes or goes changes."""

_CHANGES: Final[Mapping[str, tuple[ServerEvent, ...]]] = {
    "started": LISTS,
    "restarted": LISTS,
    "stopped": LISTS,
    "disabled": LISTS,
    "retrying": LISTS,
    "tools_changed": (ToolsListChanged(),),
    "prompts_changed": (PromptsListChanged(),),
    "resources_changed": (ResourcesListChanged(),),
}


@dataclass(eq=False)
class Follower:
    """Somebody who is told of changes: a client of `user`.

    `may_see` says whether a server is one of theirs; `addresses` are the resources that they follow: server
    and its own URI, and the address that they know it by. `tell` must not wait and must not raise.
    """

    user: str
    tell: Callable[[ServerEvent], None]
    may_see: Callable[[str], bool]
    addresses: dict[tuple[str, str], str] = field(default_factory=dict)
    _waiting: dict[ServerEvent, None] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None

    def notice(self, event: ServerEvent) -> None:
        """Be told of it soon, with what comes meanwhile."""
        if len(self._waiting) < _MOST_WAITING:
            self._waiting[event] = None
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_PAUSE_SECONDS, self._flush)

    def notice_lists(self) -> None:
        """Be told that all lists may be others: another role shows other servers."""
        for event in LISTS:
            self.notice(event)

    def stop(self) -> None:
        """Be told nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        self._waiting.clear()

    def _flush(self) -> None:
        self._timer = None
        waiting, self._waiting = self._waiting, {}
        for event in waiting:
            self.tell(event)


class Changes:
    """Hears what happens to the servers of `gateway`, and tells the followers."""

    def __init__(self, gateway: Gateway) -> None:
        self._followers: set[Follower] = set()
        self._stop = gateway.listen(self._on_change)

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Have `follower` told from now on; call the answer to end that."""
        self._followers.add(follower)

        def leave() -> None:
            self._followers.discard(follower)
            follower.stop()

        return leave

    def close(self) -> None:
        """Tell nobody any more."""
        self._stop()
        for follower in self._followers:
            follower.stop()
        self._followers.clear()

    def _on_change(self, server: str, name: str, data: Mapping[str, Any], user: str | None) -> None:
        events = _CHANGES.get(name, ())
        for follower in self._followers:
            if user is not None and user != follower.user:
                continue  # it happened to an instance that is another user's
            if name == "resource_updated":
                address = follower.addresses.get((server, str(data.get("uri"))))
                if address is not None and follower.may_see(server):
                    follower.notice(ResourceUpdated(address))
            elif events and follower.may_see(server):
                for event in events:
                    follower.notice(event)
