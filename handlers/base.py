"""What every handler has: the services, who is asking, the checks of Host and Origin, one shape of error."""

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import responses
from typing import Any, ClassVar, Literal

from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler

from mcpgw.audit import OK
from mcpgw.errors import (
    AuthFailed,
    AuthRequired,
    Draining,
    GatewayError,
    InternalError,
    ParseError,
    PermissionDenied,
)
from mcpgw.logs import log_event
from mcpgw.services import Actor, Principal, Purpose, Services, Visitor
from mcpgw.wire import strict_json
from mcpgw.wire.validation import definition_checker, require

from .hosts import host_is_allowed, is_foreign_request, origin_is_allowed, origin_is_listed
from .request_tokens import bearer_token
from .security_headers import SECURITY_HEADERS, transport_security

_HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "too_large", 426: "upgrade_required"}
_PREFLIGHT_SECONDS = 600
_AUDITED = ("auth_required", "auth_failed", "token_expired", "permission_denied", "rate_limited")
"""Refused requests that the audit log has; faults of form are for the client alone."""
_WHAT_IS_WHERE = "; the WebSocket is at /ws, events at /api/v1/events, health at /healthz: docs/protocol.md"


class BaseHandler(RequestHandler):
    """A resource that anybody may ask for, from an allowed host and origin.

    `principal` is who the request's credentials prove, `refused` why they do not hold, and `credentials` the
    way they came (``none``, ``header`` …). `logger` is where its events are logged; `fault` is what is told
    of a fault of the gateway that the log has. `rate` says whose requests are counted, where the resource has
    to do with credentials: those of an ``address``, or of a ``user`` where one is proved.
    """

    logger: ClassVar[logging.Logger] = logging.getLogger("mcpgw.http")
    rate: ClassVar[Literal["", "address", "user"]] = ""
    principal: Principal | None = None
    refused: AuthFailed | None = None
    credentials = "none"
    fault: InternalError | None = None
    _is_foreign_page = False

    @property
    def services(self) -> Services:
        """Everything the gateway is made of."""
        services: Services = self.settings["services"]
        return services

    def set_default_headers(self) -> None:
        """Nothing that tells of the software, nothing that a browser may guess, keep or embed; and for pages
        of a listed origin the leave to read the answer (WHATWG Fetch, CORS), errors too.
        """
        self.clear_header("Server")
        for name, value in SECURITY_HEADERS.items():
            self.set_header(name, value)
        if self.is_encrypted:
            lasting = transport_security(self.services.config.server.hsts_time, self.request.host)
            if lasting:
                self.set_header("Strict-Transport-Security", lasting)
        self.set_header("Vary", "Origin")
        origin = self.request.headers.get("Origin", "")
        if origin and origin_is_listed(origin, self.services.config.server):
            self.set_header("Access-Control-Allow-Origin", origin)
            self.set_header("Access-Control-Expose-Headers", "ETag, Location, Retry-After, WWW-Authenticate")

    @property
    def is_encrypted(self) -> bool:
        """Whether the client came by TLS: to the gateway, or to a trusted proxy that says so."""
        return bool(self.request.protocol == "https")

    @property
    def public_url(self) -> str:
        """The address under which clients reach the gateway, without a slash at its end."""
        configured = self.services.config.server.public_url.rstrip("/")
        return configured or f"{self.request.protocol}://{self.request.host}"

    @property
    def visitor(self) -> Visitor:
        """Who is there, before it is known who that is."""
        return Visitor(self.request.remote_ip or "", client_user_agent(self.request))

    def prepare(self) -> None:
        """Check where the request comes from and how many came from there, then who makes it."""
        self.check_host_and_origin()
        if self.rate == "address":
            self._require_rate(None)
        self._authenticate()
        # Who proves nothing is refused for that, and is given nothing that would have to be counted.
        if self.rate == "user" and self.principal is not None:
            self._require_rate(self.principal)

    def _require_rate(self, principal: Principal | None) -> None:
        if self.request.method != "OPTIONS":
            self.services.access.logins.require_rate(self.visitor, principal)

    def _authenticate(self) -> None:
        token = self.bearer_token()
        if token is not None:
            self.credentials = "header"
            self.principal, self.refused = self.services.authenticate(token)

    def take_ticket(self, purpose: Purpose) -> None:
        """Look at ``?ticket=``, where no other credentials came; it is used up."""
        if self.request.method != "GET" or self.principal is not None or self.refused is not None:
            return
        ticket = self.get_query_argument("ticket", "")
        if ticket:
            self.credentials = "ticket"
            self.principal, self.refused = self.services.take_ticket(ticket, purpose)

    def review_principal(self, judge: Callable[[Principal], Principal]) -> bool:
        """Look again at who is asking; false where the credentials hold no more."""
        if self.principal is not None:
            try:
                self.principal = judge(self.principal)
            except AuthFailed:
                return False
        return True

    def check_host_and_origin(self) -> None:
        """Refuse a request to a foreign host name (DNS rebinding) or from a foreign page.

        Raises:
            PermissionDenied: names the host or the origin, and the setting that allows it.
        """
        server = self.services.config.server
        host = self.request.host
        if not host_is_allowed(host, server):
            raise PermissionDenied(f"the host {host[:128]!r} is not allowed: see server.allowed_hosts")
        origin = self.request.headers.get("Origin")
        if origin is not None and not origin_is_allowed(origin, host, server):
            self._is_foreign_page = True
            raise PermissionDenied(f"the origin {origin[:128]!r} is not allowed: see server.allowed_origins")
        if origin is None and is_foreign_request(self.request.method or "", self.request.headers):
            self._is_foreign_page = True
            raise PermissionDenied("a page of another site may not load this")

    def bearer_token(self) -> str | None:
        """The token of the request's header, where there is one."""
        return bearer_token(self.request.headers)

    def allowed_request_headers(self) -> str:
        """The headers that a page of a listed origin may send."""
        return "Authorization, Content-Type, If-Match, Last-Event-ID"

    def options(self, *_path: str) -> None:
        """Tell a browser which requests a page of a listed origin may send (WHATWG Fetch, preflight)."""
        self.set_status(204)
        self.set_header("Allow", self._allowed_methods())
        if "Access-Control-Allow-Origin" in self._headers:
            self.set_header("Access-Control-Allow-Methods", self._allowed_methods())
            self.set_header("Access-Control-Allow-Headers", self.allowed_request_headers())
            self.set_header("Access-Control-Max-Age", str(_PREFLIGHT_SECONDS))
        self.finish()

    def refuse_while_draining(self) -> None:
        """Send what would stay open elsewhere while the gateway is ending.

        Raises:
            Draining: the gateway takes no new connections.
        """
        if self.services.gateway.draining:
            raise Draining("the gateway is ending and takes no new connections", retry_after_ms=1000)

    def refuse_without_credentials(self) -> None:
        """Refuse whoever brings no credentials that hold; a browser's preflight never brings any.

        Raises:
            AuthRequired: there are none.
            AuthFailed: they do not hold.
        """
        if self.request.method == "OPTIONS":
            return
        if self.refused is not None:
            raise self.refused
        if self.principal is None:
            raise AuthRequired("send credentials: Authorization: Bearer TOKEN")

    def write_json(self, value: Any) -> None:
        """Answer with `value` as JSON."""
        self.set_header("Content-Type", "application/json")
        self.finish(strict_json.dumps(value))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Answer every failure in the one shape of errors, whatever raised it."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        if not isinstance(error, GatewayError) and self.fault is not None:
            error = self.fault
        if isinstance(error, GatewayError):
            data = error.to_data()
            data["message"] = data.pop("error")
            if error.http_status == 401:  # noqa: PLR2004
                self.set_header("WWW-Authenticate", self.challenge(error))
            if error.retry_after_ms is not None:
                self.set_header("Retry-After", str(-(-error.retry_after_ms // 1000)))
        else:
            default = "internal_error" if status_code >= 500 else "bad_request"  # noqa: PLR2004
            code, message = _HTTP_CODES.get(status_code, default), responses.get(status_code, "error")
            if status_code == 404:  # noqa: PLR2004
                message = f"nothing is at {self.request.path[:128]}"
                if self.request.path == "/":
                    message += _WHAT_IS_WHERE
            elif status_code == 405:  # noqa: PLR2004
                self.set_header("Allow", self._allowed_methods())  # RFC 9110 section 15.5.6
                message = (
                    f"there is no {(self.request.method or '')[:32]} here, only {self._allowed_methods()}"
                )
            elif status_code == 426:  # noqa: PLR2004
                self.set_header("Upgrade", "websocket")
                self.set_header("Sec-WebSocket-Version", "13")
                message = "this is a WebSocket: connect with ws:// or wss:// (RFC 6455, version 13)"
            data = {"code": code, "message": message, "temporary": status_code >= 500}  # noqa: PLR2004
        self.count_error(data["code"])
        self.write_json({"error": data})

    def challenge(self, error: GatewayError) -> str:
        """What is asked for in ``WWW-Authenticate`` (RFC 6750 section 3): without credentials only the scheme
        is named.
        """
        return "Bearer" if isinstance(error, AuthRequired) else 'Bearer error="invalid_token"'

    def count_error(self, code: str) -> None:
        """An error is sent."""
        self.services.metrics.error_sent(code)

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Log a refusal as one line; what is unexpected, with its traceback and the id that is answered."""
        if isinstance(value, GatewayError):
            log_event(
                self.logger,
                # An operator whose own page is refused sees nothing of the reason in the browser.
                logging.WARNING if self._is_foreign_page else logging.INFO,
                "refused",
                code=value.code,
                reason=value.message,
                path=self.request.path,
                remote=self.request.remote_ip,
            )
            if value.code in _AUDITED and not value.is_audited:
                self._audit_refusal(value)
        elif not isinstance(value, HTTPError):
            fault = secrets.token_hex(4)
            self.fault = InternalError(f"a fault of the gateway; its log has it under the id {fault}")
            self.logger.error("internal error %s", fault, exc_info=(typ, value, tb))

    def _audit_refusal(self, error: GatewayError) -> None:
        known = self.principal
        user, token_id = (None, None) if known is None else (known.user, known.token_id)
        actor = Actor(self.request.remote_ip or "", user, token_id)
        action = f"{self.request.method} {self.request.path[:128]}"
        self.services.audit.refused(actor, action=action, code=error.code, reason=error.message)

    def send_error(self, status_code: int = 500, **kwargs: Any) -> None:
        """Send the status that belongs to a `GatewayError`; see `RequestHandler.send_error`."""
        error = kwargs.get("exc_info", (None, None, None))[1]
        super().send_error(error.http_status if isinstance(error, GatewayError) else status_code, **kwargs)

    def _allowed_methods(self) -> str:
        absent = RequestHandler._unimplemented_method  # noqa: SLF001 - the one sign of a verb that is not there
        return ", ".join(
            method
            for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower(), absent) is not absent
        )


class JsonBodies(BaseHandler):
    """A resource that takes JSON."""

    def read_body(self, definition: str) -> dict[str, Any]:
        """The JSON body, held against a definition of ``rest-bodies``.

        Raises:
            ParseError: it is not JSON.
            InvalidParams: it breaks the schema.
        """
        try:
            text = self.request.body.decode("utf-8")
        except UnicodeDecodeError:
            raise ParseError("the body is not UTF-8") from None
        body = strict_json.loads(text)
        require(definition_checker("rest-bodies", definition), body, what="the body")
        return dict(body)


class ApiHandler(JsonBodies):
    """A resource for those alone who prove who they are: 401 before anything else."""

    def prepare(self) -> None:
        """Refuse whoever brings no credentials that hold; a browser's preflight never brings any."""
        super().prepare()
        self.refuse_without_credentials()

    def actor(self) -> Actor:
        """Who is asking, as the audit log has it."""
        caller = self.caller
        return Actor(self.request.remote_ip or "", caller.user, caller.token_id, scopes=caller.scopes)

    @contextmanager
    def audited(self, action: str, target: str = "") -> Iterator["AuditedAction"]:
        """Write into the audit log what came of an action that is done inside the block."""
        done, outcome = AuditedAction(target), InternalError.code
        try:
            yield done
            outcome = OK
        except GatewayError as error:
            outcome = error.code
            raise
        finally:
            self.services.audit.admin(self.actor(), action=action, target=done.target, outcome=outcome)

    def require_admin(self) -> None:
        """Refuse whoever may not do everything.

        Raises:
            PermissionDenied: the caller has not the scope `admin`.
        """
        if "admin" not in self.caller.scopes:
            raise PermissionDenied("the token lacks the scope 'admin'", details={"missingScope": "admin"})

    @property
    def caller(self) -> Principal:
        """Who is asking."""
        assert self.principal is not None, "prepare() has refused everybody else"  # noqa: S101
        return self.principal


@dataclass(slots=True)
class AuditedAction:
    """An action that the audit log has; what it was done to may be known only when it is done."""

    target: str


class NotFoundHandler(BaseHandler):
    """Every path that is none."""

    def prepare(self) -> None:
        """Answer 404 whatever the method."""
        self.check_host_and_origin()
        raise HTTPError(404)


def client_user_agent(request: HTTPServerRequest) -> str:
    """What the client says it is, empty where it says nothing."""
    agent: str = request.headers.get("User-Agent", "")
    return agent
