"""What is known of an issuer once it was asked, and that it could not be."""

import re
from dataclasses import dataclass
from typing import Final

MAXIMUM_DOCUMENT_SIZE: Final = 512 * 1024
"""Largest answer of an issuer that is read, in bytes."""
_ERROR: Final = re.compile(r"[A-Za-z0-9_]{1,64}")


class IssuerFault(Exception):
    """An issuer does not answer, or not as it must; `reason` is a sentence without secrets."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Discovery:
    """What an issuer says of itself; endpoints that it has not are None."""

    issuer: str
    jwks_uri: str
    authorization_endpoint: str | None = None
    token_endpoint: str | None = None
    userinfo_endpoint: str | None = None
    end_session_endpoint: str | None = None
    token_endpoint_auth_methods: tuple[str, ...] = ("client_secret_basic",)
    code_challenge_methods: tuple[str, ...] = ()
    names_issuer_in_answers: bool = False
    """Whether the answer to an authorization request carries ``iss`` (RFC 9207)."""


def shown_error(code: object) -> str:
    """An error code of the provider (RFC 6749 section 4.1.2.1), where it can be shown."""
    if isinstance(code, str) and _ERROR.fullmatch(code):
        return code
    return "it does not say why"
