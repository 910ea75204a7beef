"""``/api/v1/auth``: in by password or link, on by refresh tokens, out again; tickets; and who one is."""

import math
from typing import Any

from mcpgw.errors import AuthFailed, AuthRequired, PermissionDenied
from mcpgw.services import Granted, Principal, Visitor

from .base import ApiHandler, JsonBodies, client_user_agent
from .login_page import PAGE, SECURITY_POLICY

COOKIE = "mcpgw_refresh"
_PATH = "/api/v1/auth"
_SAME_SITE = ("same-origin", "none")


class AuthHandler(JsonBodies):
    """What those have in common who are at the door."""

    @property
    def visitor(self) -> Visitor:
        """Who is there."""
        return Visitor(self.request.remote_ip or "", client_user_agent(self.request))

    def prepare(self) -> None:
        """Check where the request comes from, and how many came from there."""
        super().prepare()
        if self.request.method == "POST":
            self.services.access.logins.require_rate(self.visitor)
            # What Origin does not tell of a page of another site (W3C Fetch Metadata).
            if self.request.headers.get("Sec-Fetch-Site", "none") not in _SAME_SITE and not self._is_listed():
                raise PermissionDenied("a page of another site may not do this")

    def grant(self, granted: Granted, *, in_body: bool) -> None:
        """Answer what a login is given, the refresh token in a cookie or in the body."""
        principal = granted.principal
        members: dict[str, Any] = {
            "accessToken": granted.access_token,
            "tokenType": "Bearer",
            "expiresIn": granted.expires_in,
            **described(principal),
        }
        if in_body:
            members["refreshToken"] = granted.refresh_token
        else:
            self.set_cookie(
                COOKIE,
                granted.refresh_token,
                path=_PATH,
                max_age=granted.login_seconds,
                expires_days=None,
                httponly=True,
                secure=self.request.protocol == "https",
                samesite="Strict",
            )
        self.write_json(members)

    def forget_cookie(self) -> None:
        """Have the browser forget a refresh token that holds no more."""
        if self.get_cookie(COOKIE) is not None:
            self.clear_cookie(COOKIE, path=_PATH, httponly=True, samesite="Strict")

    def _is_listed(self) -> bool:
        return "Access-Control-Allow-Origin" in self._headers


class LoginHandler(AuthHandler):
    """The page, and what it sends."""

    def get(self) -> None:
        """The page on which a person logs in."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", SECURITY_POLICY)
        self.set_header("X-Frame-Options", "DENY")
        self.set_header("Referrer-Policy", "no-referrer")
        self.finish(PAGE)

    async def post(self) -> None:
        """Let in by name and password, or by a link.

        Raises:
            AuthFailed: they do not hold.
            RateLimited: there were too many requests, or too many failures.
        """
        body = self.read_body("login")
        in_body = body.get("refresh", "cookie") == "body"
        if in_body and ("Origin" in self.request.headers or "Sec-Fetch-Mode" in self.request.headers):
            raise PermissionDenied("a page has its refresh token in a cookie, where no script can read it")
        logins = self.services.access.logins
        if "link" in body:
            granted = await logins.with_link(body["link"], self.visitor, password=body.get("password"))
        else:
            granted = await logins.with_password(body["user"], body["password"], self.visitor)
        self.grant(granted, in_body=in_body)


class RefreshHandler(AuthHandler):
    """The next tokens."""

    async def post(self) -> None:
        """Give them for a refresh token, which is used up.

        Raises:
            AuthRequired: there is none.
            AuthFailed: it does not hold; one that was used before ends its login.
        """
        body = self.read_body("refresh") if self.request.body else {}
        given = body.get("refreshToken") or self.get_cookie(COOKIE)
        if not given:
            raise AuthRequired("send a refresh token: in the cookie of a login, or as refreshToken")
        try:
            granted = await self.services.access.logins.renew(given, self.visitor)
        except AuthFailed:
            self.forget_cookie()
            raise
        self.grant(granted, in_body="refreshToken" in body)


class LogoutHandler(AuthHandler):
    """The end of a login."""

    async def post(self) -> None:
        """End the login of the access token or of the refresh token; 204 whether it held or not."""
        body = self.read_body("refresh") if self.request.body else {}
        given = body.get("refreshToken") or self.get_cookie(COOKIE) or ""
        await self.services.access.logins.end(self.principal, given, self.visitor)
        self.forget_cookie()
        self.set_status(204)
        self.finish()


class MeHandler(ApiHandler):
    """Who one is."""

    def get(self) -> None:
        """The user, the role, and what may be done."""
        self.write_json(described(self.caller))


class TicketHandler(ApiHandler):
    """Tickets for sockets and streams of pages, which can send no headers."""

    def post(self) -> None:
        """Give one; it is good for one connection of its purpose, for some seconds.

        Raises:
            QueueFull: too many were not used yet.
        """
        purpose = self.read_body("ticket")["purpose"]
        ticket = self.services.access.ticket(self.caller, purpose, self.request.remote_ip or "")
        seconds = self.services.config.auth.ticket_time
        self.write_json({"ticket": ticket, "purpose": purpose, "expiresIn": seconds})


def described(principal: Principal) -> dict[str, Any]:
    """A caller as JSON."""
    credentials = "login" if principal.login else "key" if principal.key else "token"
    members: dict[str, Any] = {
        "user": principal.user,
        "scopes": sorted(principal.scopes),
        "credentials": credentials,
    }
    if principal.role:
        members["role"] = principal.role
    if principal.login:
        members["loginId"] = principal.login
    if not math.isinf(principal.expires_at):
        members["expiresAt"] = round(principal.expires_at * 1000)
    return members
