"""Where the client's token comes from, and when it wants a new one."""

import base64
import binascii
import inspect
from collections.abc import Awaitable, Callable
from typing import Final

from mcpgw.client.address import authorization
from mcpgw.client.errors import TokenUnavailable
from mcpgw.errors import ParseError
from mcpgw.wire import strict_json

Token = str | Callable[[], str | Awaitable[str]] | None
"""A token, something that makes a fresh one each time (an async function too), or None for no credentials."""

_EARLIEST: Final = 60.0
_SHARE: Final = 0.2


class TokenSource:
    """Gives the token; a fresh one where `token` can be called. Never shows it."""

    def __init__(self, token: Token) -> None:
        """Raises ValueError where `token` is a text that cannot stand in a header."""
        if isinstance(token, str):
            authorization(token)
        self._token = token

    @property
    def is_renewable(self) -> bool:
        """Whether there can be another token than the first."""
        return callable(self._token)

    @property
    def is_anonymous(self) -> bool:
        """Whether there is none, and never will be."""
        return self._token is None

    async def get(self) -> str | None:
        """The token to show now.

        Raises:
            TokenUnavailable: there is none; its cause is what the callable has raised.
        """
        if not callable(self._token):
            return self._token
        try:
            made = self._token()
            token = await made if inspect.isawaitable(made) else made
            authorization(token)
        except Exception as error:
            temporary = isinstance(error, OSError | TimeoutError)
            raise TokenUnavailable(type(error).__name__, temporary=temporary) from error
        return token


def expires_at(token: str) -> float | None:
    """When a JSON Web Token ends, in seconds since the epoch (RFC 7519 section 4.1.4).

    None where it is none, or does not say. Nothing is verified: this only tells when to ask for a new one.
    """
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - header, claims, signature (RFC 7515 section 3.1)
        return None
    try:
        padded = parts[1] + "=" * (-len(parts[1]) % 4)
        claims = strict_json.loads(base64.urlsafe_b64decode(padded).decode())
    except (binascii.Error, UnicodeDecodeError, ParseError, ValueError):
        return None
    expiry = claims.get("exp") if isinstance(claims, dict) else None
    return float(expiry) if isinstance(expiry, int | float) and not isinstance(expiry, bool) else None


def renewal_delay(remaining: float) -> float:
    """In how many seconds to renew a token that holds `remaining` more: well before its end."""
    return max(1.0, remaining - min(_EARLIEST, remaining * _SHARE))
