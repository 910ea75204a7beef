"""Every path of the gateway, on one page."""

from tornado.web import RequestHandler

from .announcements import AlertHandler, MaintenanceHandler, NotificationHandler
from .approvals import ApprovalsHandler, OneApprovalHandler
from .asyncapi import AsyncApiHandler
from .auth import LoginHandler, LogoutHandler, MeHandler, RefreshHandler, TicketHandler
from .catalogs import (
    CatalogEntryHandler,
    CatalogInstallHandler,
    CatalogsHandler,
    CatalogSyncHandler,
    OneCatalogHandler,
)
from .config import ConfigHandler, ConfigReloadHandler
from .docs import DocsHandler
from .echo import EchoSocket
from .events import EventStream, ProtectedEventStream
from .gateway import GatewayHandler, StatisticsHandler
from .keys import KeysHandler, OneKeyHandler
from .mcp import McpHandler
from .metrics import MetricsHandler
from .openapi import OpenApiHandler
from .servers import (
    OneServerHandler,
    ServerActionHandler,
    ServerLogsHandler,
    ServerPromptsHandler,
    ServerResourcesHandler,
    ServersHandler,
    ServerToolsHandler,
)
from .system import HealthHandler, ReadyHandler
from .tools import ToolCallHandler
from .ws import GatewaySocket, ProtectedSocket

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"/ws", GatewaySocket),
    (r"/ws/echo", EchoSocket),
    (r"/api/v1/ws", ProtectedSocket),
    (r"/api/v1/events", EventStream),
    (r"/api/v1/sse", ProtectedEventStream),
    (r"/api/v1/auth/login", LoginHandler),
    (r"/api/v1/auth/refresh", RefreshHandler),
    (r"/api/v1/auth/logout", LogoutHandler),
    (r"/api/v1/auth/me", MeHandler),
    (r"/api/v1/auth/ticket", TicketHandler),
    (r"/api/v1/keys", KeysHandler),
    (r"/api/v1/keys/([^/]{1,64})", OneKeyHandler),
    (r"/api/v1/servers", ServersHandler),
    (r"/api/v1/servers/([^/]{1,192})", OneServerHandler),
    (r"/api/v1/servers/([^/]{1,192})/(start|stop|restart|enable|disable)", ServerActionHandler),
    (r"/api/v1/servers/([^/]{1,192})/tools", ServerToolsHandler),
    (r"/api/v1/servers/([^/]{1,192})/tools/([^/]{1,1024})", ToolCallHandler),
    (r"/api/v1/servers/([^/]{1,192})/resources", ServerResourcesHandler),
    (r"/api/v1/servers/([^/]{1,192})/prompts", ServerPromptsHandler),
    (r"/api/v1/servers/([^/]{1,192})/logs", ServerLogsHandler),
    (r"/api/v1/config", ConfigHandler),
    (r"/api/v1/config/reload", ConfigReloadHandler),
    (r"/api/v1/catalogs", CatalogsHandler),
    (r"/api/v1/catalogs/([^/]{1,192})", OneCatalogHandler),
    (r"/api/v1/catalogs/([^/]{1,192})/sync", CatalogSyncHandler),
    # Names of entries hold a slash, which a client or a proxy may send as it is.
    (r"/api/v1/catalogs/([^/]{1,192})/entries/(.{1,1024})/install", CatalogInstallHandler),
    (r"/api/v1/catalogs/([^/]{1,192})/entries/(.{1,1024})", CatalogEntryHandler),
    (r"/api/v1/approvals", ApprovalsHandler),
    (r"/api/v1/approvals/([^/]{1,64})", OneApprovalHandler),
    (r"/api/v1/asyncapi.json", AsyncApiHandler),
    (r"/api/v1/openapi.json", OpenApiHandler),
    (r"/api/v1/gateway", GatewayHandler),
    (r"/api/v1/gateway/stats", StatisticsHandler),
    (r"/api/v1/system/alerts", AlertHandler),
    (r"/api/v1/system/maintenance", MaintenanceHandler),
    (r"/api/v1/users/([^/]{1,256})/notifications", NotificationHandler),
    (r"/mcp", McpHandler),
    (r"/mcp/([A-Za-z0-9_.-]{1,64})", McpHandler),
    (r"/docs", DocsHandler),
    (r"/docs/(|api\.css|api\.js)", DocsHandler),
    (r"/metrics", MetricsHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
]
