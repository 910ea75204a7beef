"""Tokens against forged requests (XSRF) that a browser would send with its cookies.

A page of the gateway's own can read the cookie and repeat it in a header; a page of another site can do
neither. The signature keeps out whoever can plant cookies (another program on the same host, a name below the
same domain), and the login in it, whoever would plant the token of a login of their own. Source: OWASP
Cross-Site Request Forgery Prevention Cheat Sheet, "Signed Double-Submit Cookie".
"""

import hmac
import re
import secrets
from typing import Final

_SHAPE: Final = re.compile(r"[0-9a-f]{0,64}\.[A-Za-z0-9_-]{22}\.[0-9a-f]{64}")


class XsrfTokens:
    """Makes and checks them with `key`; nothing is kept."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def __repr__(self) -> str:
        return "XsrfTokens()"

    def make(self, login: str = "") -> str:
        """A new token for a login (its id, in hexadecimal), or for a page on which somebody is to log in."""
        text = f"{login}.{secrets.token_urlsafe(16)}"
        return f"{text}.{self._sign(text)}"

    def is_good(self, token: str, login: str | None = None) -> bool:
        """Whether this gateway has made `token`; and, where a `login` is named, for that one."""
        if not _SHAPE.fullmatch(token):
            return False
        text, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature, self._sign(text)):
            return False
        return login is None or hmac.compare_digest(text.partition(".")[0], login)

    def _sign(self, text: str) -> str:
        return hmac.digest(self._key, text.encode(), "sha256").hex()
