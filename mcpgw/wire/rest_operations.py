"""The operations of REST as one table: what can be asked for, by whom, with what, and what is answered.

The OpenAPI document is made from it. Bodies and answers are definitions of ``schemas/rest-bodies.json`` and
``schemas/rest-answers.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Method = Literal["get", "post", "patch", "delete", "head"]


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of a path, a query or a header."""

    name: str
    help: str
    schema: Mapping[str, Any]
    place: Literal["path", "query", "header"] = "query"


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation.

    `scope` is what the token must allow, ``""`` where any token will do, None where none is needed. `status`
    and `answer` are those of success; without an answer there is no body, or one of the kind that `media`
    names. `errors` are the statuses of refusals beside those that every operation of its kind has.
    """

    method: Method
    path: str
    name: str
    tag: str
    summary: str
    scope: str | None
    answer: str = ""
    status: int = 200
    body: str = ""
    needs_body: bool = True
    errors: tuple[int, ...] = ()
    parameters: tuple[Parameter, ...] = ()
    media: str = "application/json"
    help: str = ""


def _text(longest: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": longest}


PATH_PARAMETERS: Final[Mapping[str, Parameter]] = {
    parameter.name: parameter
    for parameter in (
        Parameter("server", "The name of a server.", _text(64), "path"),
        Parameter("tool", "The name of one of its tools.", _text(256), "path"),
        Parameter("catalog", "The id of a catalog.", _text(64), "path"),
        Parameter("entry", "The name of one of its entries.", _text(256), "path"),
        Parameter("user", "The name of a user.", _text(256), "path"),
        Parameter("key", "The id of an API key.", _text(64), "path"),
        Parameter("room", "The name of a room for guests.", _text(64), "path"),
        Parameter("guest", "The name of one of its guests, or the id.", _text(64), "path"),
        Parameter("approval", "The id of what is to be approved.", _text(64), "path"),
    )
}
"""What stands in braces in the paths."""

_WORDS = Parameter("q", "Words that an entry has to hold.", {"type": "string"})
_LIMIT = Parameter("limit", "Most entries of an answer.", {"type": "integer", "minimum": 0, "maximum": 500})
_OFFSET = Parameter(
    "offset", "Entries to pass over.", {"type": "integer", "minimum": 0, "maximum": 1_000_000_000}
)
_IF_MATCH = Parameter(
    "If-Match",
    "The ETag of the definition that is to be changed, in its quotes; 412 where it is another by now.",
    {"type": "string", "pattern": '^"[^"]*"$'},
    "header",
)
_IF_NONE_MATCH = Parameter(
    "If-None-Match", "The ETag of what is there already; 304 where it is the same.", _text(128), "header"
)
_CHANNELS = Parameter("channels", "Names of channels, parted by commas.", {"type": "string"})
_ISSUER = Parameter("issuer", "The name of an identity provider of the configuration.", _text(32))
_NEXT = Parameter("next", "The path of the gateway that is wanted behind the login.", _text(512))
_SINCE = Parameter("lastEventId", "As the header Last-Event-ID.", {"type": "string"})

_READ, _WRITE, _ADMIN, _CALL, _SPEAK, _HOST = (
    "servers:read",
    "servers:write",
    "admin",
    "tools:call",
    "events:publish",
    "rooms:host",
)
_CHANGES_SERVER = "servers:write; what decides which program runs, or where requests go, wants admin."
_STREAM = "text/event-stream"

OPERATIONS: Final[tuple[Operation, ...]] = (
    Operation(
        "get",
        "/api/v1/auth/login",
        "getLoginPage",
        "auth",
        "The page on which a person logs in",
        None,
        media="text/html",
        errors=(404, 429, 503),
        parameters=(_ISSUER, _NEXT),
        help="Where an identity provider is named, or is the only way in, the browser is sent there.",
    ),
    Operation(
        "get",
        "/api/v1/auth/callback",
        "finishLogin",
        "auth",
        "Where an identity provider sends the browser back to",
        None,
        status=303,
        media="text/html",
        errors=(401, 429, 503),
        help="Sets the cookies of a login. What it takes in the address comes from the provider.",
    ),
    Operation(
        "post",
        "/api/v1/auth/login",
        "logIn",
        "auth",
        "Log in by name and password, or by a one-use link",
        None,
        "login",
        body="login",
        errors=(401, 403, 409, 429, 503),
        help="The refresh token comes in a cookie, or with refresh: body in the body. A page repeats the "
        "cookie mcpgw_login_xsrf, which the page to log in has set, in the header X-XSRFToken.",
    ),
    Operation(
        "post",
        "/api/v1/auth/refresh",
        "refreshLogin",
        "auth",
        "Get the next access token and the next refresh token",
        None,
        "login",
        body="refresh",
        needs_body=False,
        errors=(401, 403, 409, 429, 503),
        help="A refresh token is good once. One that comes again ends its login. With the cookie comes the "
        "header X-XSRFToken, which repeats the cookie mcpgw_xsrf.",
    ),
    Operation(
        "post",
        "/api/v1/auth/logout",
        "logOut",
        "auth",
        "End the login, with all that is open of it",
        None,
        status=204,
        body="refresh",
        needs_body=False,
        errors=(403, 429, 503),
        help="That of the access token in Authorization, else that of the refresh token; with its cookie "
        "comes the header X-XSRFToken, as for a refresh. Where it came from an identity provider that has a "
        "logout of its own, the answer is 200 and says where.",
    ),
    Operation(
        "get",
        "/api/v1/auth/logout",
        "getLogoutPage",
        "auth",
        "The page behind a logout at an identity provider; it ends nothing",
        None,
        media="text/html",
        errors=(429,),
    ),
    Operation(
        "get", "/api/v1/keys", "listKeys", "auth", "One's own API keys; for an admin all", "", "api_keys"
    ),
    Operation(
        "post",
        "/api/v1/keys",
        "makeKey",
        "auth",
        "Make an API key, which is shown this once",
        "",
        "api_key_made",
        status=201,
        body="key",
        help="It can allow no more than its maker may. For another user: admin.",
    ),
    Operation("delete", "/api/v1/keys/{key}", "revokeKey", "auth", "Revoke an API key", "", status=204),
    Operation("get", "/api/v1/auth/me", "getMe", "auth", "Who the caller is", "", "me"),
    Operation(
        "post",
        "/api/v1/auth/ticket",
        "makeTicket",
        "auth",
        "A ticket for one WebSocket or one stream, for ?ticket=",
        "",
        "ticket",
        body="ticket",
        errors=(429,),
    ),
    Operation(
        "get", "/api/v1/servers", "listServers", "servers", "List servers and states", _READ, "servers"
    ),
    Operation(
        "post",
        "/api/v1/servers",
        "addServer",
        "servers",
        "Add a server and begin to start it",
        _WRITE,
        "server",
        status=201,
        body="server_add",
        errors=(409,),
        help=_CHANGES_SERVER,
    ),
    Operation("get", "/api/v1/servers/{server}", "getServer", "servers", "One server", _READ, "server"),
    Operation(
        "patch",
        "/api/v1/servers/{server}",
        "changeServer",
        "servers",
        "Change the definition of a server",
        _WRITE,
        "server",
        body="server_change",
        errors=(409, 412),
        parameters=(_IF_MATCH,),
        help=f"A JSON Merge Patch (RFC 7396). Scope: {_CHANGES_SERVER}",
    ),
    Operation(
        "delete",
        "/api/v1/servers/{server}",
        "removeServer",
        "servers",
        "Remove a server",
        _WRITE,
        status=204,
        errors=(409, 412),
        parameters=(_IF_MATCH,),
        help=_CHANGES_SERVER,
    ),
    *(
        Operation(
            "post",
            f"/api/v1/servers/{{server}}/{action}",
            f"{action}Server",
            "servers",
            f"{action.capitalize()} a server",
            _WRITE,
            "server",
            errors=(409,),
        )
        for action in ("start", "stop", "restart", "enable", "disable")
    ),
    Operation(
        "get",
        "/api/v1/servers/{server}/tools",
        "listTools",
        "servers",
        "Tools of a server that the caller may call",
        _CALL,
        "tools",
        errors=(503,),
    ),
    Operation(
        "get",
        "/api/v1/servers/{server}/resources",
        "listResources",
        "servers",
        "Resources of a server, and templates",
        _CALL,
        "resources",
        errors=(502, 503, 504),
    ),
    Operation(
        "get",
        "/api/v1/servers/{server}/prompts",
        "listPrompts",
        "servers",
        "Prompts of a server",
        _CALL,
        "prompts",
        errors=(502, 503, 504),
    ),
    Operation(
        "get",
        "/api/v1/servers/{server}/logs",
        "getServerLog",
        "servers",
        "Last lines of a server's stderr",
        _WRITE,
        "lines",
    ),
    Operation(
        "post",
        "/api/v1/servers/{server}/tools/{tool}",
        "callTool",
        "tools",
        "Call a tool",
        _CALL,
        "tool_response",
        body="tool_call",
        needs_body=False,
        errors=(429, 502, 503, 504),
        help="Any tool by its name; each tool that is there now is an operation of its own as well. With "
        "`Accept: text/event-stream` the frames of the WebSocket are streamed. A closed connection cancels "
        "the call.",
    ),
    Operation(
        "get",
        "/api/v1/catalogs",
        "listCatalogs",
        "catalogs",
        "List catalogs, and search in all of them",
        _READ,
        "catalogs",
        parameters=(_WORDS, _LIMIT, _OFFSET),
    ),
    Operation(
        "post",
        "/api/v1/catalogs",
        "importCatalog",
        "catalogs",
        "Import a catalog",
        _ADMIN,
        "catalog",
        status=201,
        body="catalog_import",
        errors=(409,),
    ),
    Operation(
        "get",
        "/api/v1/catalogs/{catalog}",
        "getCatalog",
        "catalogs",
        "One catalog and its entries",
        _READ,
        "catalog_page",
        parameters=(_WORDS, _LIMIT, _OFFSET),
    ),
    Operation(
        "delete",
        "/api/v1/catalogs/{catalog}",
        "removeCatalog",
        "catalogs",
        "Remove a catalog; its servers stay",
        _ADMIN,
        status=204,
    ),
    Operation(
        "post",
        "/api/v1/catalogs/{catalog}/sync",
        "syncCatalog",
        "catalogs",
        "Read a catalog again",
        _ADMIN,
        "catalog_synced",
        body="catalog_sync",
        needs_body=False,
        errors=(409,),
    ),
    Operation(
        "get",
        "/api/v1/catalogs/{catalog}/entries/{entry}",
        "getCatalogEntry",
        "catalogs",
        "What an entry of a catalog needs",
        _READ,
        "catalog_entry_needs",
    ),
    Operation(
        "post",
        "/api/v1/catalogs/{catalog}/entries/{entry}/install",
        "installCatalogEntry",
        "catalogs",
        "Make a server of an entry",
        _ADMIN,
        "installed",
        status=201,
        body="catalog_install",
        needs_body=False,
        errors=(409,),
    ),
    Operation(
        "get",
        "/api/v1/approvals",
        "listApprovals",
        "approvals",
        "The calls that wait until the caller approves them",
        "calls:approve",
        "approvals",
    ),
    Operation(
        "post",
        "/api/v1/approvals/{approval}",
        "decideApproval",
        "approvals",
        "Approve a call that waits, or do not",
        "calls:approve",
        "approval_decided",
        body="approval_decision",
        help="Once; nobody decides on a call of their own, unless `calls.approve_own` is set.",
    ),
    Operation("get", "/api/v1/gateway", "getGateway", "gateway", "State of the gateway", _READ, "gateway"),
    Operation(
        "get", "/api/v1/gateway/stats", "getStatistics", "gateway", "What goes on", _ADMIN, "statistics"
    ),
    Operation(
        "get", "/api/v1/rooms", "listRooms", "rooms", "One's own open rooms; for an admin all", _HOST, "rooms"
    ),
    Operation(
        "post",
        "/api/v1/rooms",
        "openRoom",
        "rooms",
        "Open a room for guests; its code is shown this once",
        _HOST,
        "room_made",
        status=201,
        body="room",
        errors=(503,),
        help="No guest may do more than its host.",
    ),
    Operation(
        "post",
        "/api/v1/rooms/join",
        "joinRoom",
        "rooms",
        "Join a room by its code, for a token that is good until it ends",
        None,
        "joined",
        status=201,
        body="join",
        errors=(401, 409, 429, 503),
    ),
    Operation("get", "/api/v1/rooms/{room}", "getRoom", "rooms", "One room", _HOST, "room"),
    Operation(
        "delete",
        "/api/v1/rooms/{room}",
        "endRoom",
        "rooms",
        "End a room, with its code and its guests' tokens",
        _HOST,
        status=204,
        errors=(503,),
    ),
    *(
        Operation(
            "post",
            f"/api/v1/rooms/{{room}}/{action}",
            f"{action}Room" if action != "code" else "renewRoomCode",
            "rooms",
            summary,
            _HOST,
            "room",
            errors=(503,),
        )
        for action, summary in (
            ("freeze", "Let no guest call or publish"),
            ("thaw", "Let the guests call and publish again"),
            ("code", "Make a new code; the one before is dead"),
        )
    ),
    Operation(
        "get", "/api/v1/rooms/{room}/guests", "listGuests", "rooms", "The guests of a room", _HOST, "guests"
    ),
    *(
        Operation(
            "post",
            f"/api/v1/rooms/{{room}}/guests/{{guest}}/{action}",
            f"{action}Guest",
            "rooms",
            summary,
            _HOST,
            status=204,
            errors=(409, 503),
        )
        for action, summary in (
            ("mute", "Let a guest read and nothing more"),
            ("unmute", "Let a guest call and publish again"),
            ("kick", "Remove a guest, whose name and token are good no more"),
        )
    ),
    Operation("get", "/api/v1/config", "getConfig", "config", "The configuration in force", _ADMIN, "config"),
    Operation(
        "patch",
        "/api/v1/config",
        "changeConfig",
        "config",
        "Change settings",
        _ADMIN,
        "config",
        body="config_change",
        errors=(409,),
    ),
    Operation(
        "post",
        "/api/v1/config/reload",
        "reloadConfig",
        "config",
        "Read the configuration again",
        _ADMIN,
        "config",
        errors=(409,),
    ),
    Operation(
        "post",
        "/api/v1/system/alerts",
        "publishAlert",
        "events",
        "Tell all users (system.alert)",
        _SPEAK,
        "published",
        status=202,
        body="alert",
    ),
    Operation(
        "post",
        "/api/v1/system/maintenance",
        "publishMaintenance",
        "events",
        "Announce maintenance (system.maintenance)",
        _SPEAK,
        "published",
        status=202,
        body="maintenance",
    ),
    Operation(
        "post",
        "/api/v1/users/{user}/notifications",
        "notifyUser",
        "events",
        "Tell one user (user.notification)",
        _SPEAK,
        "published",
        status=202,
        body="alert",
    ),
    Operation(
        "get",
        "/api/v1/events",
        "streamEvents",
        "events",
        "Events as Server-Sent Events",
        None,
        errors=(503,),
        parameters=(_CHANNELS, _SINCE),
        media=_STREAM,
        help="Without credentials `connected` and `heartbeat` alone. Events are in the AsyncAPI document.",
    ),
    Operation(
        "get",
        "/api/v1/sse",
        "streamProtectedEvents",
        "events",
        "The same for those alone who prove who they are",
        "",
        errors=(503,),
        parameters=(_CHANNELS, _SINCE),
        media=_STREAM,
    ),
    Operation(
        "get",
        "/api/v1/openapi.json",
        "getOpenApi",
        "documents",
        "This document, with the tools that the caller may call",
        "",
        "document",
        parameters=(_IF_NONE_MATCH,),
    ),
    Operation(
        "get",
        "/api/v1/asyncapi.json",
        "getAsyncApi",
        "documents",
        "The sockets and streams as AsyncAPI 3.0",
        "",
        "document",
    ),
    *(
        Operation(
            "get",
            f"/.well-known/oauth-protected-resource{path}",
            name,
            "auth",
            summary,
            None,
            "protected_resource",
            errors=(404,),
        )
        for path, name, summary in (
            ("", "getResource", "Where clients of /mcp get tokens (RFC 9728)"),
            ("/mcp", "getMcpResource", "The same"),
            ("/mcp/{server}", "getServerResource", "Where clients of /mcp/SERVER get tokens"),
        )
    ),
    Operation("get", "/healthz", "getHealth", "system", "Whether the process serves", None, "health"),
    Operation("head", "/healthz", "headHealth", "system", "The same without its body", None),
    Operation(
        "get", "/readyz", "getReadiness", "system", "Whether new work may be sent here", None, "readiness"
    ),
    Operation("head", "/readyz", "headReadiness", "system", "The same without its body", None),
    Operation(
        "get",
        "/metrics",
        "getMetrics",
        "system",
        "The numbers, for Prometheus",
        _ADMIN,
        media="text/plain",
        help="On the same machine without a token.",
    ),
    Operation("head", "/metrics", "headMetrics", "system", "The same without its body", _ADMIN),
)
"""Every operation but those of single tools."""
