"""``/healthz`` and ``/readyz``: for whoever watches over the process."""

from .base import BaseHandler


class HealthHandler(BaseHandler):
    """Whether the process serves at all."""

    def get(self) -> None:
        """Answer 200 as long as the event loop turns."""
        self.write_json({"status": "ok"})

    def head(self) -> None:
        """The same without its body (RFC 9110 section 9.3.2)."""
        self.get()


class ReadyHandler(BaseHandler):
    """Whether new work may be sent here."""

    def get(self) -> None:
        """Answer 200, or 503 from the moment that the gateway is ending."""
        draining = self.services.gateway.draining
        self.set_status(503 if draining else 200)
        self.write_json({"status": "draining" if draining else "ready"})

    def head(self) -> None:
        """The same without its body (RFC 9110 section 9.3.2)."""
        self.get()
