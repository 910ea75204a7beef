"""What the gateway asks an identity provider behind a login: tokens for a code, and claims of a person."""

import asyncio
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final
from urllib.parse import quote_plus

import httpx2

from mcpgw.access.discovery import MAXIMUM_DOCUMENT_SIZE, Discovery, IssuerFault, shown_error
from mcpgw.errors import AuthFailed
from mcpgw.issuer_settings import IssuerSettings

_OK: Final = 200
_REFUSALS: Final = (400, 401)


@dataclass(frozen=True, slots=True)
class TokenAnswer:
    """What the provider gives for a code: an id token and, for its own endpoints, an access token or none."""

    id_token: str = field(repr=False)
    access_token: str = field(repr=False)


async def exchange_code(
    discovery: Discovery, settings: IssuerSettings, form: Mapping[str, str], *, seconds: float
) -> TokenAnswer:
    """Ask the token endpoint (RFC 6749 section 4.1.3), within `seconds`.

    A secret goes into the header (``client_secret_basic``) unless the provider takes it in the form alone;
    without a secret the client names itself.

    Raises:
        AuthFailed: the provider refuses the code, or its answer has no id token.
        IssuerFault: it cannot be reached, or answers nonsense.
    """
    if discovery.token_endpoint is None:
        raise IssuerFault("its discovery document names no token_endpoint")
    methods, secret = discovery.token_endpoint_auth_methods, settings.client_secret
    header, fields = None, dict(form)
    if secret and ("client_secret_basic" in methods or "client_secret_post" not in methods):
        # RFC 6749 section 2.3.1: both are encoded as in a form before they become a header.
        header = httpx2.BasicAuth(quote_plus(settings.client_id), quote_plus(secret))
    else:
        fields |= {"client_id": settings.client_id} | ({"client_secret": secret} if secret else {})
    request = httpx2.Request("POST", discovery.token_endpoint, data=fields)
    status, answer = await _ask(request, header, seconds)
    if status in _REFUSALS:
        raise AuthFailed(f"the identity provider refuses the login: {shown_error(answer.get('error'))}")
    id_token, access_token = answer.get("id_token"), answer.get("access_token", "")
    if status != _OK or not isinstance(access_token, str):
        raise IssuerFault(f"its token endpoint answered {status}, and no tokens")
    if not isinstance(id_token, str):
        raise AuthFailed("the identity provider gives no id token")
    return TokenAnswer(id_token, access_token)


async def user_claims(endpoint: str, access_token: str, subject: str, *, seconds: float) -> dict[str, Any]:
    """What the provider says of the person `subject` (OpenID Connect Core 1.0 section 5.3), within `seconds`.

    Raises:
        AuthFailed: it speaks of somebody else.
        IssuerFault: it cannot be reached, or answers nonsense.
    """
    request = httpx2.Request("GET", endpoint, headers={"Authorization": f"Bearer {access_token}"})
    status, claims = await _ask(request, None, seconds)
    if status != _OK:
        raise IssuerFault(f"its userinfo endpoint answered {status}")
    if claims.get("sub") != subject:  # section 5.3.2: tokens could have been changed for another person's
        raise AuthFailed("the identity provider speaks of somebody else ('sub')")
    return claims


async def _ask(
    request: httpx2.Request, header: httpx2.Auth | None, seconds: float
) -> tuple[int, dict[str, Any]]:
    request.headers |= {"Accept": "application/json", "Accept-Encoding": "identity"}
    content = bytearray()
    try:
        async with (
            asyncio.timeout(seconds),
            httpx2.AsyncClient(verify=await asyncio.to_thread(_certificates), timeout=seconds) as client,
        ):
            answer = await client.send(request, auth=header, stream=True, follow_redirects=False)
            async for part in answer.aiter_raw():
                content += part
                if len(content) > MAXIMUM_DOCUMENT_SIZE:
                    raise IssuerFault(f"its answer is larger than {MAXIMUM_DOCUMENT_SIZE} bytes")
    except (TimeoutError, httpx2.TimeoutException):
        raise IssuerFault(f"did not answer within {seconds:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise IssuerFault(f"could not be reached: {type(error).__name__}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise IssuerFault(f"answered {answer.status_code}, and no JSON object")
    return answer.status_code, document


@cache
def _certificates() -> ssl.SSLContext:
    """Whom to believe that a host is itself; it is read from the disk, once."""
    return httpx2.create_ssl_context()
