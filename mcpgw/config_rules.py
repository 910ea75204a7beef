"""Rules between settings, and of texts whose form matters: origins, host names, keys."""

import re
from collections.abc import Callable, Iterator
from typing import Final
from urllib.parse import urlsplit

from mcpgw.proxies import network_fault
from mcpgw.settings import AuthSettings, BackendSettings, CallSettings, ServerSettings, WebSocketSettings

MINIMUM_SECRET_BYTES: Final = 32
"""RFC 7518, section 3.2: a key of HS256 is at least as long as its hash."""

# A star is the whole first label, and what follows is a name: its last label begins with a letter, so that it
# is no address (WHATWG URL, "ends in a number").
_STARRED: Final = r"\*\.(?:[a-z0-9_-]+\.)*[a-z][a-z0-9_-]*"
_ORIGIN: Final = re.compile(
    rf"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9_.-]+|{_STARRED})(?::[0-9]{{1,5}})?"
)
_HOST_NAME: Final = re.compile(rf"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{{0,251}}[A-Za-z0-9_])?|(?i:{_STARRED})")


def check_rules(
    *,
    server: ServerSettings,
    auth: AuthSettings,
    websocket: WebSocketSettings,
    calls: CallSettings,
    backends: BackendSettings,
    place: Callable[[str], str],
) -> Iterator[str]:
    """Every fault that type and bounds of one setting do not show; `place` names where a setting was set."""
    yield from _origins(server, place)
    yield from _public_url(server, place)
    yield from _encryption(server, place)
    yield from _keys(auth, place)
    if websocket.pong_timeout > websocket.ping_interval:
        yield (
            f"{place('websocket.pong_timeout')}: {websocket.pong_timeout:g} seconds is longer than "
            f"websocket.ping_interval ({websocket.ping_interval:g} seconds)"
        )
    if server.probe_timeout > server.place_timeout:
        yield (
            f"{place('server.probe_timeout')}: {server.probe_timeout:g} seconds is longer than "
            f"server.place_timeout ({server.place_timeout:g} seconds)"
        )
    if backends.retry_initial > backends.retry_maximum:
        yield (
            f"{place('backends.retry_initial')}: {backends.retry_initial:g} seconds is longer than "
            f"backends.retry_maximum ({backends.retry_maximum:g} seconds)"
        )
    if calls.timeout > calls.max_timeout:
        yield (
            f"{place('calls.timeout')}: {calls.timeout:g} seconds is longer than "
            f"calls.max_timeout ({calls.max_timeout:g} seconds)"
        )


def _origins(server: ServerSettings, place: Callable[[str], str]) -> Iterator[str]:
    for origin in server.allowed_origins:
        if not _ORIGIN.fullmatch(origin):
            yield (
                f"{place('server.allowed_origins')}: {origin!r} is not an origin: scheme://host or "
                "scheme://host:port, in lower case, with no path and no * but for the whole first label "
                "(https://*.example.org)"
            )
    for name in server.allowed_hosts:
        if not _HOST_NAME.fullmatch(name):
            yield (
                f"{place('server.allowed_hosts')}: {name!r} is not a host name: no scheme, no port, "
                "no path and no * but for the whole first label (*.example.org)"
            )


def _public_url(server: ServerSettings, place: Callable[[str], str]) -> Iterator[str]:
    if not server.public_url:
        return
    try:
        parts = urlsplit(server.public_url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in ("http", "https") or parts.username or parts.query or parts.fragment:
        yield (
            f"{place('server.public_url')}: is not an address such as https://gateway.example.org: no user, "
            "no query, no fragment"
        )


def _encryption(server: ServerSettings, place: Callable[[str], str]) -> Iterator[str]:
    if server.tls_certificate and not server.tls_key:
        yield f"{place('server.tls_certificate')}: needs server.tls_key, the file with its key"
    if server.tls_key and not server.tls_certificate:
        yield f"{place('server.tls_key')}: needs server.tls_certificate, the file with its certificate"
    for proxy in server.trusted_proxies:
        if fault := network_fault(proxy):
            yield f"{place('server.trusted_proxies')}: {proxy!r} {fault}"


def _keys(auth: AuthSettings, place: Callable[[str], str]) -> Iterator[str]:
    if auth.secret and len(auth.secret.encode()) < MINIMUM_SECRET_BYTES:
        yield (
            f"{place('auth.secret')}: has {len(auth.secret.encode())} bytes; "
            f"HS256 needs at least {MINIMUM_SECRET_BYTES}"
        )
    if auth.algorithm == "HS256":
        if auth.public_key:
            yield f"{place('auth.public_key')}: goes with RS256, ES256 and EdDSA, not with HS256"
        return
    if auth.secret:
        yield f"{place('auth.secret')}: goes with HS256, not with {auth.algorithm}"
    if not auth.public_key:
        yield f"{place('auth.algorithm')}: {auth.algorithm} needs auth.public_key"
    elif "PRIVATE KEY" in auth.public_key:
        yield f"{place('auth.public_key')}: is a private key; the gateway needs the public one alone"
    elif "-----BEGIN" not in auth.public_key:
        yield f"{place('auth.public_key')}: is not PEM text; ${{file:PATH}} puts in the text of a file"
