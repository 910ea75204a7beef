"""``/metrics``: the numbers of the gateway, for Prometheus and for whoever reads its formats."""

from ipaddress import ip_address

from mcpgw.errors import AuthRequired, PermissionDenied

from .base import BaseHandler

_ADMIN = "admin"
_FORWARDING_HEADERS = (
    "Forwarded",
    "X-Forwarded-For",
    "X-Forwarded-Host",
    "X-Forwarded-Proto",
    "X-Real-IP",
    "Via",
)


class MetricsHandler(BaseHandler):
    """All metrics, as text or OpenMetrics.

    For clients on this machine and for tokens with the scope ``admin``, unless ``metrics.public`` opens it to
    everybody.
    """

    def prepare(self) -> None:
        """Refuse whoever is neither here nor an administrator."""
        super().prepare()
        if self.request.method == "OPTIONS" or self.services.config.metrics.public or self._is_local():
            return
        if self.refused is not None:
            raise self.refused
        if self.principal is None:
            raise AuthRequired("send credentials of the scope 'admin': Authorization: Bearer TOKEN")
        if _ADMIN not in self.principal.scopes:
            raise PermissionDenied(f"the token lacks the scope {_ADMIN!r}", details={"missingScope": _ADMIN})

    async def get(self) -> None:
        """Answer in the format that ``Accept`` names."""
        accept = self.request.headers.get("Accept", "")
        body, content_type = await self.services.whole.metrics(accept)
        self.set_header("Content-Type", content_type)
        self.add_header("Vary", "Accept")
        self.finish(body)

    async def head(self) -> None:
        """The same without its body (RFC 9110 section 9.3.2)."""
        await self.get()

    def _is_local(self) -> bool:
        """Whether the request was made on this machine; what a proxy here passes on was made elsewhere."""
        if any(name in self.request.headers for name in _FORWARDING_HEADERS):
            return False
        try:
            return ip_address(self.request.remote_ip or "").is_loopback
        except ValueError:
            return False
