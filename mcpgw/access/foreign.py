"""Whom the token of another issuer speaks for, and what that is worth here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mcpgw.issuer_settings import IssuerSettings

_MOST_VALUES: Final = 1000


@dataclass(frozen=True, slots=True)
class Foreign:
    """Somebody whom another issuer knows: `subject` is the ``sub`` of its token, `issuer` the ``iss``.

    `name` is the issuer's name in the configuration. `scopes` and `roles` are those of the issuer's own words
    that the configuration knew when the token was looked at. `server` is the one server that the token is
    for, empty where it is for all.
    """

    name: str
    issuer: str
    subject: str
    scopes: frozenset[str] = frozenset()
    roles: frozenset[str] = frozenset()
    server: str = ""

    @property
    def identity(self) -> tuple[str, str]:
        """What no other one has: by this a user of the store is linked."""
        return self.issuer, self.subject

    @property
    def user(self) -> str:
        """The name of one who is no user of the store: no such user's can have the colon."""
        return f"{self.name}:{self.subject}"


def foreign_of(settings: IssuerSettings, claims: Mapping[str, Any], *, server: str = "") -> Foreign:
    """Whom `claims`, which have been verified, speak for."""
    scopes = values_of(claims, settings.scope_claim, is_split=True)
    roles = values_of(claims, settings.role_claim, is_split=settings.role_claim == settings.scope_claim)
    return Foreign(
        settings.name,
        settings.issuer,
        claims["sub"],
        scopes.intersection(settings.scopes),
        roles.intersection(settings.roles),
        server,
    )


def values_of(claims: Mapping[str, Any], name: str, *, is_split: bool = False) -> frozenset[str]:
    """The values of a claim: a text, split at spaces where `is_split`, or a list of texts.

    A name with dots leads into objects, as ``realm_access.roles``, where no claim has it as a whole. What is
    neither text nor a list of texts has no values.
    """
    value = claim_of(claims, name)
    if isinstance(value, str):
        texts = value.split() if is_split else [value]
    elif isinstance(value, list):
        texts = [text for text in value[:_MOST_VALUES] if isinstance(text, str)]
    else:
        texts = []
    return frozenset(texts[:_MOST_VALUES])


def claim_of(claims: Mapping[str, Any], name: str) -> Any:
    """The value of a claim by its name or, with dots, by the way to it; None where there is none."""
    if name in claims:
        return claims[name]
    value: Any = claims
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value
