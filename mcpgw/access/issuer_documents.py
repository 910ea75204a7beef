"""What an issuer publishes of itself: its discovery document and its keys. All of it blocks.

OpenID Connect Discovery 1.0 section 4 and RFC 8414 section 3 for where they are, RFC 7517 for the keys.
Everything is bounded in size and time, and no redirect is followed: an issuer is where it says that it is.
"""

import asyncio
import json
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

import httpx2
from jwt import PyJWK, PyJWKClient, PyJWKSet, PyJWTError

from mcpgw.access.discovery import MAXIMUM_DOCUMENT_SIZE, Discovery, IssuerFault
from mcpgw.issuer_settings import ASYMMETRIC, is_fit_url

MOST_KEYS: Final = 100
_OK: Final = 200
_NOT_THERE: Final = (404, 405, 410)
_KINDS: Final = ("RSA", "EC", "OKP")


class _NothingThereError(IssuerFault):
    """The address is right, and nothing is there."""


def read_discovery(issuer: str, *, timeout: float) -> Discovery:
    """The discovery document of `issuer`, got within `timeout` seconds for each place that it may be at.

    Raises:
        IssuerFault: there is none, or it is another issuer's.
    """
    parts = urlsplit(issuer)
    path = parts.path.rstrip("/")
    openid = urlunsplit((parts.scheme, parts.netloc, f"{path}/.well-known/openid-configuration", "", ""))
    oauth = urlunsplit((parts.scheme, parts.netloc, f"/.well-known/oauth-authorization-server{path}", "", ""))
    try:
        document = fetch_document(openid, timeout=timeout)
    except _NothingThereError:
        document = fetch_document(oauth, timeout=timeout)
    if document.get("issuer") != issuer:
        raise IssuerFault("its discovery document is that of another issuer")
    jwks_uri = _endpoint(document, "jwks_uri")
    if jwks_uri is None:
        raise IssuerFault("its discovery document names no jwks_uri")
    return Discovery(
        issuer,
        jwks_uri,
        _endpoint(document, "authorization_endpoint"),
        _endpoint(document, "token_endpoint"),
        _endpoint(document, "userinfo_endpoint"),
        _endpoint(document, "end_session_endpoint"),
        _texts(document, "token_endpoint_auth_methods_supported") or ("client_secret_basic",),
        _texts(document, "code_challenge_methods_supported"),
        document.get("authorization_response_iss_parameter_supported") is True,
    )


class KeyClient(PyJWKClient):
    """PyJWT's client of published keys, with bounds of its own. It keeps nothing: its caller does."""

    def __init__(self, uri: str, *, timeout: float) -> None:
        super().__init__(uri, cache_jwk_set=False, timeout=timeout)

    def fetch_data(self) -> dict[str, Any]:
        """The document at the address.

        Raises:
            IssuerFault: it cannot be had.
        """
        document = fetch_document(self.uri, timeout=self.timeout)
        keys = document.get("keys")
        if not isinstance(keys, list) or len(keys) > MOST_KEYS:
            raise IssuerFault(f"its keys are no list of at most {MOST_KEYS}")
        return {"keys": [key for key in keys if _is_public_key(key)]}


def read_keys(uri: str, *, timeout: float) -> list[PyJWK]:
    """The keys at `uri` that signatures are made with, got within `timeout` seconds.

    A key that does not say its algorithm is for RS256, for the one of its curve, or for EdDSA.

    Raises:
        IssuerFault: they cannot be had, or none can be used.
    """
    try:
        published: PyJWKSet = KeyClient(uri, timeout=timeout).get_jwk_set(refresh=True)
    except PyJWTError:
        raise IssuerFault("its keys cannot be used") from None
    return [
        key
        for key in published.keys
        if key.public_key_use in ("sig", None) and not key.Algorithm.check_key_length(key.key)
    ]


def fetch_document(url: str, *, timeout: float) -> dict[str, Any]:
    """The JSON object at `url`, got within `timeout` seconds.

    Raises:
        IssuerFault: it cannot be had, is too large, or is none.
    """
    try:
        content = asyncio.run(_content(url, timeout))
    except (TimeoutError, httpx2.TimeoutException):
        raise IssuerFault(f"{_shown(url)} could not be read within {timeout:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise IssuerFault(f"{_shown(url)} could not be read: {type(error).__name__}") from None
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        raise IssuerFault(f"{_shown(url)} is no JSON") from None
    if not isinstance(document, dict):
        raise IssuerFault(f"{_shown(url)} is no JSON object")
    return document


async def _content(url: str, seconds: float) -> bytes:
    content = bytearray()
    # A loop of its own, since the client that blocks is bounded only between one byte and the next.
    async with (
        asyncio.timeout(seconds),
        httpx2.AsyncClient(timeout=seconds, follow_redirects=False) as client,
        client.stream(
            "GET", url, headers={"Accept": "application/json", "Accept-Encoding": "identity"}
        ) as answer,
    ):
        if answer.status_code in _NOT_THERE:
            raise _NothingThereError(f"{_shown(url)} answered {answer.status_code}")
        if answer.status_code != _OK:
            raise IssuerFault(f"{_shown(url)} answered {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            raise IssuerFault(f"{_shown(url)} is compressed, although that was not asked for")
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > MAXIMUM_DOCUMENT_SIZE:
                raise IssuerFault(f"{_shown(url)} is larger than {MAXIMUM_DOCUMENT_SIZE} bytes")
    return bytes(content)


def _endpoint(document: dict[str, Any], name: str) -> str | None:
    url = document.get(name)
    if url is None:
        return None
    if not isinstance(url, str) or not is_fit_url(url):
        raise IssuerFault(f"its {name} is no https:// address")
    return url


def _texts(document: dict[str, Any], name: str) -> tuple[str, ...]:
    value = document.get(name)
    return tuple(text for text in value if isinstance(text, str)) if isinstance(value, list) else ()


def _is_public_key(key: object) -> bool:
    """Whether an entry says of itself what a public key does (RFC 7517 section 4); others are passed over.

    A shared secret among public keys would be one that everybody knows. And PyJWT fails of more than it says
    where a name is no text, or where an algorithm has no keys.
    """
    if not isinstance(key, dict) or key.get("kty") not in _KINDS:
        return False
    algorithm, name = key.get("alg"), key.get("kid")
    return (algorithm is None or algorithm in ASYMMETRIC) and (name is None or isinstance(name, str))


def _shown(url: str) -> str:
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))
