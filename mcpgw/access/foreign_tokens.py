"""Tokens of others before and beside their signature: what is in them, and why they are refused."""

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from mcpgw.access.tokens import MAXIMUM_TOKEN_SIZE
from mcpgw.errors import AuthFailed

if TYPE_CHECKING:
    import jwt

_LONGEST_ECHO: Final = 4096
"""Longest ``nonce`` and hashes of an id token that are looked at, in characters."""
_HASHES: Final = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}


def unverified(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and claims of a token, of which nothing is verified.

    Raises:
        AuthFailed: it is no signed JSON Web Token, or too long.
    """
    if len(token) > MAXIMUM_TOKEN_SIZE or not token.isascii():
        raise AuthFailed("this is not a JSON Web Token")
    parts = token.split(".")
    if len(parts) != 3:  # noqa: PLR2004 - RFC 7515 section 3.1
        raise AuthFailed("this is not a JSON Web Token")
    header, claims = (_object(part) for part in parts[:2])
    return header, claims


def _object(part: str) -> dict[str, Any]:
    try:
        value = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    except (ValueError, RecursionError, binascii.Error):
        raise AuthFailed("this is not a JSON Web Token") from None
    if not isinstance(value, dict):
        raise AuthFailed("this is not a JSON Web Token")
    return value


def kind_of(header: Mapping[str, Any]) -> str:
    """The ``typ`` of a token in small letters; empty where it has none."""
    return str(header.get("typ") or "").lower()


def audiences_of(claim: object) -> list[str]:
    """The values of ``aud`` (RFC 7519 section 4.1.3): a text or a list of texts.

    Raises:
        AuthFailed: it is neither.
    """
    values = [claim] if isinstance(claim, str) else claim
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise AuthFailed("the token's 'aud' is neither text nor a list of texts")
    return values


def is_same(given: object, wanted: str) -> bool:
    """Whether a claim is the text that is wanted; an empty one is never."""
    if not isinstance(given, str) or len(given) > _LONGEST_ECHO or not wanted:
        return False
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), wanted.encode())


def half_hash(secret: str, algorithm: str) -> str:
    """OpenID Connect Core 1.0 section 3.1.3.6; EdDSA with Ed25519 hashes with SHA-512."""
    digest = _HASHES.get(algorithm[-3:], hashlib.sha512)(secret.encode("ascii", "replace")).digest()
    return base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()


def reason_of(fault: "jwt.PyJWTError") -> str:
    """Why PyJWT refused, in own words: its texts may repeat parts of the token."""
    import jwt  # noqa: PLC0415 - see `mcpgw.access.tokens`

    match fault:
        case jwt.InvalidSignatureError():
            return "the token's signature does not hold: another key made it, or it was changed"
        case jwt.InvalidAlgorithmError():
            return "the token is not signed with an algorithm that its issuer may use"
        case jwt.MissingRequiredClaimError():
            return f"the token lacks the claim {fault.claim!r}"
        case jwt.InvalidIssuerError():
            return "the token does not come from this issuer ('iss')"
        case _:
            return "this is not a JSON Web Token"
