"""``/api/v1/auth``: in by password or link, on by refresh tokens, out again; tickets; and who one is."""

import hmac
import math
from collections.abc import Mapping
from typing import Any

from mcpgw.errors import AuthFailed, AuthRequired, PermissionDenied
from mcpgw.services import Granted, Principal, room_of

from .base import ApiHandler, JsonBodies
from .login_page import SECURITY_POLICY, login_page

COOKIE = "mcpgw_refresh"
XSRF_COOKIE = "mcpgw_xsrf"
"""What a page repeats in `XSRF_HEADER` for a request that the refresh cookie goes with."""
LOGIN_XSRF_COOKIE = "mcpgw_login_xsrf"
"""The same for the request that logs in."""
XSRF_HEADER = "X-XSRFToken"
PATH = "/api/v1/auth"
"""Where the cookies of a login go."""
_SAME_SITE = ("same-origin", "none")


class AuthHandler(JsonBodies):
    """What those have in common who are at the door."""

    rate = "address"

    def prepare(self) -> None:
        """Check where the request comes from, and how many came from there."""
        super().prepare()
        # What Origin does not tell of a page of another site (W3C Fetch Metadata).
        is_own = self.request.headers.get("Sec-Fetch-Site", "none") in _SAME_SITE
        if self.request.method == "POST" and not is_own and not self._is_listed():
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
            self.set_login_cookies(granted)
        self.write_json(members)

    def set_login_cookies(self, granted: Granted) -> None:
        """Give the browser the refresh token, and what its pages show beside it."""
        self.set_cookie(
            COOKIE,
            granted.refresh_token,
            path=PATH,
            max_age=granted.login_seconds,
            expires_days=None,
            httponly=True,
            secure=self.is_encrypted,
            samesite="Strict",
        )
        token = self.services.access.xsrf.make(granted.principal.login)
        self._set_xsrf_cookie(XSRF_COOKIE, token, granted.login_seconds)

    def offer_login(self) -> None:
        """Give the browser what a page has to show when it logs in."""
        xsrf = self.services.access.xsrf
        if not xsrf.is_good(self.get_cookie(LOGIN_XSRF_COOKIE, ""), ""):
            self._set_xsrf_cookie(LOGIN_XSRF_COOKIE, xsrf.make(), None)

    def require_xsrf(self, cookie: str, login: str) -> None:
        """Refuse a request that a browser may have sent for a page that cannot read its cookies.

        Raises:
            PermissionDenied: the header does not repeat the cookie, or the token is none of this login.
        """
        kept = (self.get_cookie(cookie, "") or "").encode(errors="replace")
        shown = self.request.headers.get(XSRF_HEADER, "").encode(errors="replace")
        is_same = hmac.compare_digest(kept, shown)
        if not (is_same and self.services.access.xsrf.is_good(shown.decode(errors="replace"), login)):
            raise PermissionDenied(f"repeat the cookie {cookie} of this login in the header {XSRF_HEADER}")

    async def refresh_cookie(self) -> str:
        """The refresh token that came in the cookie, and from a page that may send it; empty where none came.

        Raises:
            PermissionDenied: the page does not show that it may.
            StoreError: the store cannot be used.
        """
        token = self.get_cookie(COOKIE, "") or ""
        if token:
            login = await self.services.access.logins.login_of(token)
            if login:  # a token that is nobody's does nothing
                self.require_xsrf(XSRF_COOKIE, login)
        return token

    def forget_cookies(self) -> None:
        """Have the browser forget a login that holds no more."""
        if self.get_cookie(COOKIE) is not None:
            self.clear_cookie(COOKIE, path=PATH, httponly=True, samesite="Strict")
            self.clear_cookie(XSRF_COOKIE, samesite="Strict")

    def _set_xsrf_cookie(self, name: str, token: str, seconds: int | None) -> None:
        self.set_cookie(
            name, token, max_age=seconds, expires_days=None, secure=self.is_encrypted, samesite="Strict"
        )

    @property
    def _is_of_browser(self) -> bool:
        # Node's fetch says Sec-Fetch-Mode, and is none; a browser never sends a POST without one of these.
        return "Origin" in self.request.headers or "Sec-Fetch-Site" in self.request.headers

    def _is_listed(self) -> bool:
        return "Access-Control-Allow-Origin" in self._headers


class LoginHandler(AuthHandler):
    """The page, and what it sends."""

    async def get(self) -> None:
        """The page on which a person logs in."""
        self.write_login_page({}, has_passwords=True)

    def write_login_page(self, providers: Mapping[str, str], *, has_passwords: bool) -> None:
        """Answer with that page; `providers` are others who know people, and the links to them, as HTML."""
        self.offer_login()
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", SECURITY_POLICY)
        self.finish(login_page(providers, has_passwords=has_passwords))

    async def post(self) -> None:
        """Let in by name and password, or by a link.

        Raises:
            AuthFailed: they do not hold.
            PermissionDenied: a page of another site may have sent this.
            RateLimited: there were too many requests, or too many failures.
        """
        body = self.read_body("login")
        in_body = body.get("refresh", "cookie") == "body"
        if self._is_of_browser:
            if in_body:
                raise PermissionDenied(
                    "a page has its refresh token in a cookie, where no script can read it"
                )
            if not self._is_listed():  # their pages are believed, and cannot read a cookie of this host
                self.require_xsrf(LOGIN_XSRF_COOKIE, "")
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
        given = body.get("refreshToken") or await self.refresh_cookie()
        if not given:
            raise AuthRequired("send a refresh token: in the cookie of a login, or as refreshToken")
        try:
            # A browser says so by itself (W3C Fetch Metadata), and shares the cookie among its tabs.
            has_tabs = "refreshToken" not in body and "Sec-Fetch-Site" in self.request.headers
            granted = await self.services.access.logins.renew(given, self.visitor, has_tabs=has_tabs)
        except AuthFailed:
            self.forget_cookies()
            raise
        self.grant(granted, in_body="refreshToken" in body)


class LogoutHandler(AuthHandler):
    """The end of a login."""

    async def post(self) -> None:
        """End the login of the access token or of the refresh token; 204 whether it held or not."""
        body = self.read_body("refresh") if self.request.body else {}
        given = body.get("refreshToken", "")
        if not given and not (self.principal and self.principal.login):
            given = await self.refresh_cookie()
        await self.services.access.logins.end(self.principal, given, self.visitor)
        self.forget_cookies()
        await self.answer_end()

    async def answer_end(self) -> None:
        """Answer that the login has ended."""
        self.set_status(204)
        self.finish()


class MeHandler(ApiHandler):
    """Who one is."""

    def get(self) -> None:
        """The user, the role, and what may be done."""
        self.write_json(described(self.caller))


class TicketHandler(ApiHandler):
    """Tickets for sockets and streams of pages, which can send no headers."""

    rate = "user"

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
    if principal.guest:
        credentials = "guest"
    members: dict[str, Any] = {
        "user": principal.user,
        "scopes": sorted(principal.scopes),
        "credentials": credentials,
    }
    if principal.role:
        members["role"] = principal.role
    if principal.login:
        members["loginId"] = principal.login
    if principal.guest:
        members["room"] = room_of(principal.user)
    if principal.held:
        members["held"] = principal.held
    if not math.isinf(principal.expires_at):
        members["expiresAt"] = round(principal.expires_at * 1000)
    return members
