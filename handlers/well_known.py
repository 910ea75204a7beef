"""``/.well-known/oauth-protected-resource``: where clients of ``/mcp`` get tokens (RFC 9728)."""

from typing import Any

from tornado.web import HTTPError

from .base import BaseHandler


class ProtectedResourceHandler(BaseHandler):
    """What ``/mcp``, or ``/mcp/SERVER``, is as an OAuth resource; for anybody: nobody has a token yet."""

    def get(self, server_id: str | None = None) -> None:
        """Tell it; 404 where no issuer's tokens are taken. Nobody is told whether there is such a server."""
        issuers = self.services.access.issuers
        servers = issuers.authorization_servers
        if not servers or not self.services.config.mcp.enabled:
            raise HTTPError(404)
        resource = f"{self.public_url}/mcp"
        members: dict[str, Any] = {
            "resource": resource if server_id is None else f"{resource}/{server_id}",
            "authorization_servers": servers,
            "bearer_methods_supported": ["header"],
            "resource_name": "mcpgw" if server_id is None else f"mcpgw: {server_id}",
        }
        if scopes := issuers.scopes_supported:
            members["scopes_supported"] = scopes
        self.write_json(members)
