"""``/api/v1/servers``: the backend servers."""

from .base import ApiHandler


class ServersHandler(ApiHandler):
    """All servers, each with its present state."""

    def get(self) -> None:
        """List them."""
        statuses = self.services.gateway.server_statuses(self.caller)
        self.write_json({"servers": [status.to_json() for status in statuses]})
