"""Every path of the gateway, on one page."""

from tornado.web import RequestHandler

from .announcements import AlertHandler, MaintenanceHandler, NotificationHandler
from .asyncapi import AsyncApiHandler
from .echo import EchoSocket
from .events import EventStream, ProtectedEventStream
from .gateway import GatewayHandler, StatisticsHandler
from .metrics import MetricsHandler
from .servers import ServersHandler
from .system import HealthHandler, ReadyHandler
from .ws import GatewaySocket, ProtectedSocket

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"/ws", GatewaySocket),
    (r"/ws/echo", EchoSocket),
    (r"/api/v1/ws", ProtectedSocket),
    (r"/api/v1/events", EventStream),
    (r"/api/v1/sse", ProtectedEventStream),
    (r"/api/v1/servers", ServersHandler),
    (r"/api/v1/asyncapi.json", AsyncApiHandler),
    (r"/api/v1/gateway", GatewayHandler),
    (r"/api/v1/gateway/stats", StatisticsHandler),
    (r"/api/v1/system/alerts", AlertHandler),
    (r"/api/v1/system/maintenance", MaintenanceHandler),
    (r"/api/v1/users/([^/]{1,256})/notifications", NotificationHandler),
    (r"/metrics", MetricsHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
]
