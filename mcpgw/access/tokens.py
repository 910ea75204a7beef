"""Access tokens: signed JSON Web Tokens (RFC 7519) made and read with one pinned algorithm.

The rules are those of RFC 8725 (best current practices): one algorithm, chosen by the operator and never by
the token; issuer, audience, subject and times always checked; everything bounded before it is looked at.

PyJWT takes `cryptography` with it, 9 MiB, and is not imported before the first token is looked at. A gateway
does that in a thread, when the first client comes (`mcpgw.preparation`).
"""

import hmac
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

from mcpgw.access.claims import LAST_SECOND, MAXIMUM_NAME, check_times, is_name, seconds, token_id
from mcpgw.access.foreign import Foreign
from mcpgw.access.permissions import check_scope
from mcpgw.errors import AuthFailed, ConfigError, suggest
from mcpgw.roles import NO_RULES, ToolRules

if TYPE_CHECKING:
    import jwt

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")
"""Signature algorithms (RFC 7518 section 3.1, RFC 8037): HS256 has a shared secret, the others a key pair."""

MAXIMUM_TOKEN_SIZE: Final = 8 * 1024
"""Longest token that is looked at, in bytes."""

MAXIMUM_SCOPES: Final = 100

_SYMMETRIC = "HS256"
_LOGIN = "mcpgw_login"
_GUEST = "mcpgw_guest"
_PLAIN_SECRET: Final = re.compile(r"[A-Za-z0-9_]{64,}", re.ASCII)
"""A secret that surely is long enough, and neither PEM nor a key of SSH: as the gateway makes its own."""
_REQUIRED_CLAIMS = ("exp", "iat", "sub", "iss", "aud")


@dataclass(frozen=True)
class Principal:
    """Who a good token speaks for.

    `user` is its ``sub``; `scopes` are as they stand in the token, unknown ones too (they grant nothing);
    `expires_at` is its ``exp`` in seconds since the epoch, without leeway; `token_id` is its ``jti`` or,
    where it has none, a digest of its claims. `login` is the login that it was made for, `key` the id of an
    API key; both are empty where it is neither. Of a user of the store `role` is the role and `rules` what
    that role says of tools, and `scopes` are no more than the role has; `granted` are then those of the
    credential itself, and `limit` those of the role. `issued_at` is when the credential was made, in seconds
    since the epoch, where that is known: one that is older than a user is not that user's. `foreign` is whom
    the token of another issuer speaks for. `guest` is the claim of a guest of a room, and `held` why a guest
    may only read for now.
    """

    user: str
    scopes: frozenset[str]
    expires_at: float
    token_id: str
    login: str = ""
    key: str = ""
    role: str = ""
    rules: ToolRules = NO_RULES
    granted: frozenset[str] | None = None
    limit: frozenset[str] | None = None
    issued_at: float = math.inf
    foreign: Foreign | None = None
    guest: str = ""
    held: str = ""


class Verifier(Protocol):
    """Who tells whom a credential proves."""

    def verify(self, token: str, /) -> Principal:
        """Who `token` speaks for.

        Raises:
            AuthFailed: it does not hold; `TokenExpired` where its time is over.
        """

    def fetching_keys(self, token: str, /) -> Awaitable[None] | None:
        """What to wait for before `token` can be verified; None where there is nothing."""


class Tokens:
    """Reads tokens, and with a shared secret issues them.

    `key` is the secret of at least 32 bytes for ``HS256``, else the issuer's public key as PEM text.
    `leeway` is the difference of clocks that is forgiven, in seconds; `clock` gives the time in seconds since
    the epoch. A `Tokens` can be shared by threads.
    Raises `ConfigError` where algorithm, key, issuer or audience cannot be used.
    """

    def __init__(
        self,
        *,
        algorithm: str,
        key: str,
        issuer: str = "mcpgw",
        audience: str = "mcpgw",
        leeway: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if algorithm not in ALGORITHMS:
            raise ConfigError(
                [f"token algorithm {algorithm!r} is not supported{suggest(algorithm, ALGORITHMS)}"]
            )
        if not issuer or not audience:
            raise ConfigError(["tokens need an issuer and an audience that are not empty"])
        if not 0 <= leeway < math.inf:
            raise ConfigError([f"the leeway of tokens is {leeway} s; it must be 0 s or more"])
        self._algorithm = algorithm
        self._key = _usable_key(algorithm, key)
        self._issuer = issuer
        self._audience = audience
        self._leeway = leeway
        self._clock = clock

    @cached_property
    def _reader(self) -> "jwt.PyJWT":
        import jwt  # noqa: PLC0415 - see above

        # It does not check the times: it takes booleans and text for a time, and has a clock of its own.
        return jwt.PyJWT(
            {
                "require": list(_REQUIRED_CLAIMS),
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
                "enforce_minimum_key_length": True,
            }
        )

    def __repr__(self) -> str:
        return f"Tokens(algorithm={self._algorithm!r}, issuer={self._issuer!r}, audience={self._audience!r})"

    def verify(self, token: str) -> Principal:
        """Who `token` speaks for.

        Raises `TokenExpired` where it was good once, and `AuthFailed` where it is not a token of this issuer
        for this audience that holds now. The message says why and never holds any part of the token.
        """
        if not token:
            raise AuthFailed("no token was given")
        if len(token) > MAXIMUM_TOKEN_SIZE:
            raise AuthFailed(f"the token is longer than {MAXIMUM_TOKEN_SIZE} bytes")
        if not token.isascii():
            raise AuthFailed("this is not a JSON Web Token")
        import jwt  # noqa: PLC0415 - see above

        try:
            decoded = self._reader.decode_complete(
                token,
                self._key,
                algorithms=[self._algorithm],
                audience=self._audience,
                issuer=self._issuer,
            )
        except jwt.PyJWTError as fault:
            self._refuse(fault)
        if "crit" in decoded["header"]:  # RFC 7515 section 4.1.11: refuse the extensions one does not have
            raise AuthFailed("the token asks for an extension that is not supported ('crit')")
        claims: dict[str, Any] = decoded["payload"]
        expires_at = check_times(claims, now=self._clock(), leeway=self._leeway)
        user = claims["sub"]
        if not is_name(user):
            raise AuthFailed(
                f"the token's 'sub' must be 1 to {MAXIMUM_NAME} characters without control characters"
            )
        return Principal(
            user=user,
            scopes=_scopes(claims),
            expires_at=expires_at,
            token_id=token_id(claims, token),
            login=_of_ours(claims, _LOGIN) if self.can_issue else "",
            guest=_of_ours(claims, _GUEST) if self.can_issue else "",
            issued_at=seconds(claims, "iat"),
        )

    def fetching_keys(self, token: str) -> None:
        """There is nothing to wait for: the key is here."""

    @property
    def can_issue(self) -> bool:
        """Whether tokens are issued here; else they come from elsewhere."""
        return self._algorithm == _SYMMETRIC

    def derived_key(self, purpose: str) -> bytes:
        """A key of 32 bytes for another `purpose` than tokens, which tells nothing of theirs.

        The same after a restart, and on every gateway with the same secret; where tokens come from elsewhere
        there is none to derive it from, and it is new each time.
        """
        if not self.can_issue:
            return secrets.token_bytes(32)
        return hmac.digest(self._key, f"mcpgw {purpose}".encode(), "sha256")

    def issue(self, *, user: str, scopes: Iterable[str], ttl: float, login: str = "", guest: str = "") -> str:
        """A new token that lets `user` do what `scopes` say for `ttl` seconds; for a `login`, as long as
        that holds and what the user's role says; for a `guest` of a room, what that says.

        Raises `ConfigError` where tokens are issued elsewhere (any algorithm but HS256), where a scope is not
        known, where `user` or `ttl` cannot be used, and where the token would be longer than is accepted.
        """
        if self._algorithm != _SYMMETRIC:
            raise ConfigError(
                [
                    (
                        f"tokens signed with {self._algorithm} come from the issuer {self._issuer!r}, who "
                        f"has the private key; to issue tokens here, set auth.algorithm to {_SYMMETRIC!r}"
                    )
                ]
            )
        if not is_name(user):
            raise ConfigError(
                [f"the user of a token must be 1 to {MAXIMUM_NAME} characters without control characters"]
            )
        granted = sorted(set(scopes))
        if len(granted) > MAXIMUM_SCOPES:
            raise ConfigError([f"a token holds at most {MAXIMUM_SCOPES} scopes, not {len(granted)}"])
        for scope in granted:
            check_scope(scope)
        now = self._clock()
        if not 0 < ttl <= LAST_SECOND - now:
            raise ConfigError([f"a token cannot hold for {ttl} s; name a number of seconds above 0"])
        claims = {
            "iss": self._issuer,
            "aud": self._audience,
            "sub": user,
            # RFC 8693 section 4.2 has one text; only a list can name a tool that has a space in it.
            "scope": granted if any(" " in scope for scope in granted) else " ".join(granted),
            "iat": int(now),
            "exp": math.ceil(now + ttl),
            "jti": secrets.token_hex(16),
            **({_LOGIN: login} if login else {}),
            **({_GUEST: guest} if guest else {}),
        }
        token = self._reader.encode(claims, self._key, algorithm=self._algorithm)
        if len(token) > MAXIMUM_TOKEN_SIZE:
            raise ConfigError(
                [f"the token would be longer than {MAXIMUM_TOKEN_SIZE} bytes; grant fewer scopes"]
            )
        return token

    def _refuse(self, fault: "jwt.PyJWTError") -> NoReturn:
        """Say in own words why PyJWT refused: its own texts may repeat parts of the token."""
        import jwt  # noqa: PLC0415 - see above
        from jwt.exceptions import InvalidJTIError, InvalidSubjectError  # noqa: PLC0415

        match fault:
            case jwt.InvalidSignatureError():
                message = "the token's signature does not hold: another key made it, or it was changed"
            case jwt.InvalidAlgorithmError():
                message = f"the token is not signed with {self._algorithm}"
            case jwt.MissingRequiredClaimError():
                message = f"the token lacks the claim {fault.claim!r}"
            case jwt.InvalidAudienceError():
                message = f"the token is not for {self._audience!r} ('aud')"
            case jwt.InvalidIssuerError():
                message = f"the token does not come from {self._issuer!r} ('iss')"
            case InvalidSubjectError():
                message = "the token's 'sub' must be text"
            case InvalidJTIError():
                message = "the token's 'jti' must be text"
            case _:
                message = "this is not a JSON Web Token"
        raise AuthFailed(message) from None


def _usable_key(algorithm: str, key: str) -> Any:
    """`key` as PyJWT wants it, parsed and checked once. Messages never hold the key."""
    if algorithm == _SYMMETRIC and _PLAIN_SECRET.fullmatch(key):
        return key.encode()
    import jwt  # noqa: PLC0415 - see above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415

    method = jwt.get_algorithm_by_name(algorithm)
    if algorithm != _SYMMETRIC and "PRIVATE KEY-----" in key:
        raise ConfigError(
            [f"{algorithm} wants the issuer's public key, and this is a private one: keep it with the issuer"]
        )
    try:
        prepared = method.prepare_key(key)
    except (jwt.PyJWTError, ValueError, TypeError, UnsupportedAlgorithm):
        wanted = (
            "a secret of at least 32 random bytes, not a key pair's half"
            if algorithm == _SYMMETRIC
            else f"a public key in PEM form (-----BEGIN PUBLIC KEY-----) that fits {algorithm}"
        )
        raise ConfigError([f"the key of tokens cannot be used: {algorithm} wants {wanted}"]) from None
    if short := method.check_key_length(prepared):
        raise ConfigError([f"the key of tokens is too short: {short}"])
    return prepared


def _scopes(claims: dict[str, Any]) -> frozenset[str]:
    """The ``scope`` claim: text split at spaces (RFC 8693 section 4.2, RFC 9068) or a list of text."""
    value = claims.get("scope", "")
    if isinstance(value, str):
        value = value.split(" ")
    if not isinstance(value, list) or not all(isinstance(scope, str) for scope in value):
        raise AuthFailed("the token's 'scope' must be text or a list of texts")
    scopes = frozenset(scope for scope in value if scope)
    if len(scopes) > MAXIMUM_SCOPES:
        raise AuthFailed(f"the token has more than {MAXIMUM_SCOPES} scopes")
    return scopes


def _of_ours(claims: dict[str, Any], name: str) -> str:
    """A claim that the gateway's own tokens may have."""
    value = claims.get(name, "")
    if not isinstance(value, str) or len(value) > MAXIMUM_NAME:
        raise AuthFailed(f"the token's {name!r} must be text")
    return value
