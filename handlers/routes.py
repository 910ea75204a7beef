"""Every path of the gateway, on one page."""

from tornado.web import RequestHandler

from .events import EventStream
from .servers import ServersHandler
from .system import HealthHandler, ReadyHandler
from .ws import GatewaySocket

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"/ws", GatewaySocket),
    (r"/api/v1/events", EventStream),
    (r"/api/v1/servers", ServersHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
]
