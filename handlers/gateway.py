"""``/api/v1/gateway``: the gateway itself, and what goes on in it."""

import time

from mcpgw import __version__

from .base import ApiHandler


class GatewayHandler(ApiHandler):
    """State, version and age of the gateway; for those who may read servers."""

    def get(self) -> None:
        """Answer them."""
        services = self.services
        statuses = services.gateway.server_statuses(self.caller)
        self.write_json(
            {
                "status": "draining" if services.gateway.draining else "ready",
                "version": __version__,
                "uptimeMs": round((time.monotonic() - services.whole.started) * 1000),
                "epoch": services.bus.position.epoch,
                "servers": {
                    "ready": sum(status.state.takes_calls for status in statuses),
                    "all": len(statuses),
                },
            }
        )


class StatisticsHandler(ApiHandler):
    """Connections, subscriptions, sessions, calls and errors; for admins, since it names every user."""

    async def get(self) -> None:
        """Answer them."""
        self.require_admin()
        self.write_json(await self.services.whole.statistics())
