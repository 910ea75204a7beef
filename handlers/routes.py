"""Every path of the gateway, on one page."""

from tornado.web import RequestHandler

from .announcements import AlertHandler, MaintenanceHandler, NotificationHandler
from .approvals import ApprovalsHandler, OneApprovalHandler
from .asyncapi import AsyncApiHandler
from .auth import MeHandler, RefreshHandler, TicketHandler
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
from .guests import (
    GuestActionHandler,
    JoinHandler,
    JoinPageHandler,
    OneRoomHandler,
    RoomActionHandler,
    RoomGuestsHandler,
    RoomsHandler,
)
from .keys import KeysHandler, OneKeyHandler
from .mcp import McpHandler
from .metrics import MetricsHandler
from .oidc import CallbackHandler, ProviderLoginHandler, ProviderLogoutHandler
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
from .well_known import ProtectedResourceHandler
from .ws import GatewaySocket, ProtectedSocket

ROUTES: list[tuple[str, type[RequestHandler]]] = [
    (r"/ws", GatewaySocket),
    (r"/ws/echo", EchoSocket),
    (r"/api/v1/ws", ProtectedSocket),
    (r"/api/v1/events", EventStream),
    (r"/api/v1/sse", ProtectedEventStream),
    (r"/api/v1/auth/login", ProviderLoginHandler),
    (r"/api/v1/auth/callback", CallbackHandler),
    (r"/api/v1/auth/refresh", RefreshHandler),
    (r"/api/v1/auth/logout", ProviderLogoutHandler),
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
    (r"/api/v1/rooms", RoomsHandler),
    (r"/api/v1/rooms/join", JoinHandler),
    (r"/api/v1/rooms/([^/]{1,192})", OneRoomHandler),
    (r"/api/v1/rooms/([^/]{1,192})/(freeze|thaw|code)", RoomActionHandler),
    (r"/api/v1/rooms/([^/]{1,192})/guests", RoomGuestsHandler),
    (r"/api/v1/rooms/([^/]{1,192})/guests/([^/]{1,384})/(mute|unmute|kick)", GuestActionHandler),
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
    (r"/.well-known/oauth-protected-resource", ProtectedResourceHandler),
    (r"/.well-known/oauth-protected-resource/mcp", ProtectedResourceHandler),
    (r"/.well-known/oauth-protected-resource/mcp/([A-Za-z0-9_.-]{1,64})", ProtectedResourceHandler),
    (r"/join", JoinPageHandler),
    (r"/join/(join\.css|join\.js)", JoinPageHandler),
    (r"/docs", DocsHandler),
    (r"/docs/(|api\.css|api\.js)", DocsHandler),
    (r"/metrics", MetricsHandler),
    (r"/healthz", HealthHandler),
    (r"/readyz", ReadyHandler),
]
