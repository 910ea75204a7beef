"""What an operator says to all, or to one user: it becomes an event."""

import asyncio
from typing import Any

from mcpgw.services import require_publish_events
from mcpgw.wire.events import Position

from .base import ApiHandler


class AnnouncementHandler(ApiHandler):
    """A word of an operator; `definition` is its schema in ``rest-bodies``, `event` what it becomes."""

    definition = ""
    event = ""

    async def post(self, *path: str) -> None:
        """Publish it; 202, for it is on its way to whoever listens.

        Raises:
            PermissionDenied: the caller has not the scope `events:publish`.
        """
        require_publish_events(self.caller)
        body: dict[str, Any] = self.read_body(self.definition)
        self.services.audit.admin(self.actor(), action=self.event, target="/".join(path))
        published: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
        self.services.bus.publish(
            self.event, body, channel=self.channel(*path), on_published=published.set_result
        )
        position = await published
        self.set_status(202)
        self.write_json({"published": self.event, "offset": position.offset})

    def channel(self, *_path: str) -> str | None:
        """The channel that it goes to; None is the one of its type."""
        return None


class AlertHandler(AnnouncementHandler):
    """``system.alert``."""

    definition = "alert"
    event = "system.alert"


class MaintenanceHandler(AnnouncementHandler):
    """``system.maintenance``."""

    definition = "maintenance"
    event = "system.maintenance"


class NotificationHandler(AnnouncementHandler):
    """``user.notification``: a word to one user."""

    definition = "alert"
    event = "user.notification"

    def channel(self, *path: str) -> str | None:
        """That user's own."""
        return f"user:{path[0]}"
