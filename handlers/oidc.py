"""Logins at an identity provider: out from ``/api/v1/auth/login``, and back to ``/api/v1/auth/callback``."""

from collections.abc import Mapping
from html import escape
from typing import Any
from urllib.parse import urlencode

from mcpgw.errors import IssuerNotFound
from mcpgw.services import PENDING_SECONDS, Granted, ProviderAnswer, local_path

from .auth import PATH, AuthHandler, LoginHandler, LogoutHandler
from .oidc_pages import LOGGED_IN, LOGGED_OUT, PAGE_POLICY, error_page

PENDING_COOKIE = "mcpgw_openid"
"""What a browser keeps while somebody is at the provider."""
ISSUER_COOKIE = "mcpgw_issuer"
"""The name of the provider that a login came from."""
_CALLBACK = f"{PATH}/callback"


class _Pages(AuthHandler):
    """Answers people with pages, and programs with JSON."""

    def write_page(self, page: str) -> None:
        """Answer with one of the pages of this login."""
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", PAGE_POLICY)
        self.finish(page)

    def write_json(self, value: Any) -> None:
        """Answer with `value`; where it is an error and a person looks at it, with a page."""
        if "error" in value and "text/html" in self.request.headers.get("Accept", ""):
            self.write_page(error_page(value["error"]["message"]))
        else:
            super().write_json(value)

    def forget_issuer(self) -> None:
        """Have the browser forget which provider a login came from."""
        if self.get_cookie(ISSUER_COOKIE) is not None:
            self.clear_cookie(ISSUER_COOKIE, path=PATH, httponly=True, samesite="Strict")


class ProviderLoginHandler(_Pages, LoginHandler):
    """The page on which one chooses how to log in, and the way from there to a provider."""

    async def get(self) -> None:
        """The page, or the way to the provider that is named, or that is the only way in.

        Raises:
            IssuerNotFound: nobody logs in with that provider.
            IssuerUnavailable: it does not answer as it must.
        """
        offered = self.services.access.openid.offered
        name = self.get_query_argument("issuer", "")
        wanted = local_path(self.get_query_argument("next", ""))
        has_passwords = self.services.config.auth.passwords
        if name and name not in offered:
            raise IssuerNotFound(f"nobody logs in with {name[:32]!r} here")
        if "done" in self.request.query_arguments:
            self.write_page(LOGGED_IN)
        elif name:
            await self._leave(name, wanted)
        elif len(offered) == 1 and not has_passwords and "link" not in self.request.query_arguments:
            await self._leave(offered[0], wanted)
        else:
            self.write_login_page(_links(offered, wanted), has_passwords=has_passwords)

    def grant(self, granted: Granted, *, in_body: bool) -> None:
        """Answer what a login with a password or a link is given: it came from no provider."""
        self.forget_issuer()
        super().grant(granted, in_body=in_body)

    async def _leave(self, name: str, wanted: str) -> None:
        redirect_uri = f"{self.public_url}{_CALLBACK}"
        begun = await self.services.access.openid.begin(name, redirect_uri=redirect_uri, return_to=wanted)
        # It comes back from another site, which Strict would not send it to.
        self.set_cookie(
            PENDING_COOKIE,
            begun.sealed,
            path=_CALLBACK,
            max_age=PENDING_SECONDS,
            expires_days=None,
            httponly=True,
            secure=self.is_encrypted,
            samesite="Lax",
        )
        self.redirect(begun.url, status=302)


class CallbackHandler(_Pages):
    """Where the provider sends the browser back to."""

    async def get(self) -> None:
        """Let in whom the provider has recognized, and lead on to the page that was wanted.

        Raises:
            AuthFailed: the answer of the provider does not hold.
            IssuerUnavailable: the provider does not answer as it must.
        """
        sealed = self.get_cookie(PENDING_COOKIE, "") or ""
        self.clear_cookie(PENDING_COOKIE, path=_CALLBACK, httponly=True, samesite="Lax")
        state, code, error, issuer = (
            self.get_query_argument(name, "") for name in ("state", "code", "error", "iss")
        )
        answer = ProviderAnswer(state, code, error, issuer)
        finished = await self.services.access.openid.finish(sealed, answer, self.visitor)
        self.set_login_cookies(finished.granted)
        self.set_cookie(
            ISSUER_COOKIE,
            finished.issuer,
            path=PATH,
            max_age=finished.granted.login_seconds,
            expires_days=None,
            httponly=True,
            secure=self.is_encrypted,
            samesite="Strict",
        )
        self.redirect(finished.return_to or f"{PATH}/login?done", status=303)


class ProviderLogoutHandler(_Pages, LogoutHandler):
    """The end of a login, here and at its provider."""

    def get(self) -> None:
        """The page that a provider leads to behind a logout; it ends nothing."""
        self.write_page(LOGGED_OUT)

    async def answer_end(self) -> None:
        """Tell where to log out at the provider too, where that is offered."""
        name = self.get_cookie(ISSUER_COOKIE, "")
        self.forget_issuer()
        url = None
        if name:
            url = await self.services.access.openid.end_session_url(name, f"{self.public_url}{PATH}/logout")
        if url is None:
            await super().answer_end()
        else:
            self.write_json({"endSessionUrl": url})


def _links(offered: list[str], wanted: str) -> Mapping[str, str]:
    """What the page leads to, by what it calls that."""
    after = {"next": wanted} if wanted else {}
    return {escape(name): escape(f"?{urlencode({'issuer': name, **after})}") for name in offered}
