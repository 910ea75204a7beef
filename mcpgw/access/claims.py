"""Claims that every token has, whoever issued it: names, times, the token's id."""

import hashlib
import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from mcpgw.errors import AuthFailed, TokenExpired

MAXIMUM_NAME: Final = 256
"""Longest ``sub`` and ``jti``, in characters."""

LAST_SECOND: Final = 253_402_300_799
"""9999-12-31T23:59:59Z, the last that datetime can tell."""

_UNSEEN: Final = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Controls, invisible signs, lone surrogates, line and paragraph ends."""


def is_name(value: object) -> bool:
    """Whether `value` can name somebody: 1 to 256 characters that can be seen, not all of them spaces."""
    return (
        isinstance(value, str)
        and 0 < len(value) <= MAXIMUM_NAME
        and not value.isspace()
        and not any(unicodedata.category(character) in _UNSEEN for character in value)
    )


def seconds(claims: Mapping[str, Any], name: str) -> float:
    """The NumericDate `name` (RFC 7519 section 2) in seconds since the epoch.

    Raises:
        AuthFailed: it is none.
    """
    value = claims[name]
    # NaN fails every comparison, so the bounds refuse it too; huge whole numbers compare without overflow.
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LAST_SECOND:
        raise AuthFailed(f"the token's {name!r} is not a time in seconds since 1970")
    return float(value)


def check_times(claims: Mapping[str, Any], *, now: float, leeway: float) -> float:
    """Check ``exp`` and, where they are there, ``iat`` and ``nbf`` (RFC 7519 section 4.1); returns ``exp``.

    Raises:
        TokenExpired: it was good once.
        AuthFailed: it does not hold yet, or a time is none.
    """
    expires_at = seconds(claims, "exp")
    issued_at = seconds(claims, "iat") if "iat" in claims else 0.0
    if now >= expires_at + leeway:
        raise TokenExpired("the token has expired; get a new one")
    if issued_at > now + leeway:
        raise AuthFailed("the token was issued in the future; compare the clocks of issuer and gateway")
    if "nbf" in claims and seconds(claims, "nbf") > now + leeway:
        raise AuthFailed("the token is not valid yet")
    return expires_at


def token_id(claims: Mapping[str, Any], token: str) -> str:
    """The ``jti`` or, where there is none, a digest of what was signed.

    Raises:
        AuthFailed: the ``jti`` is no name.
    """
    if "jti" not in claims:
        # Without the signature: an ECDSA signature can be changed into another good one by anybody.
        return hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest()[:32]
    if not is_name(claims["jti"]):
        raise AuthFailed(
            f"the token's 'jti' must be 1 to {MAXIMUM_NAME} characters without control characters"
        )
    return str(claims["jti"])
