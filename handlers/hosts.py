"""Which Host and Origin headers the gateway accepts.

A page of a foreign site can make a browser send requests to a gateway on the same machine or network, under
its own Origin, or, by DNS rebinding, under a Host of its own. Both checks together stop that. An IP address
is never a rebound name. Source: the wire contract, section 2; MCP "Transports: Security Warning".

Listed names and origins may begin with ``*.``, which stands for one or more whole labels: never for none,
never for a part of one, and never for a port.
"""

import re
from collections.abc import Iterable, Mapping
from ipaddress import ip_address
from urllib.parse import urlsplit

from mcpgw.settings import ServerSettings

# RFC 9110 section 7.2: a host and, perhaps, a port; no user, no path, nothing that a parser would drop.
_HOST = re.compile(
    r"(?:\[(?P<bracketed>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(?::(?P<port>[0-9]{1,5}))?"
)
_LABELS = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_STAR = "*."
_DEFAULT_PORTS = {"http": "80", "https": "443"}
# Three spellings of this machine: whoever opened the page by one of them may speak to the gateway by another.
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


def host_is_allowed(host: str, server: ServerSettings) -> bool:
    """Whether a Host header names this gateway: localhost, an IP address, its own name, its public one, or a
    listed one.
    """
    match = _HOST.fullmatch(host)
    if match is None:
        return False
    name = _name(match)
    own = {"localhost", server.host.lower(), urlsplit(server.public_url).hostname}
    if name in own or _is_listed(name, server.allowed_hosts):
        return True
    return _is_address(name)


def origin_is_listed(origin: str, server: ServerSettings) -> bool:
    """Whether `origin` is one of ``server.allowed_origins``, so that its pages may read answers (CORS)."""
    return _is_listed(origin.lower(), server.allowed_origins)


def origin_is_allowed(origin: str, host: str, server: ServerSettings) -> bool:
    """Whether a page from `origin` may speak to the gateway under `host`: its own pages, and listed ones.

    On this machine localhost, 127.0.0.1 and [::1] with the same port are one origin; another port is a
    foreign one. ``null`` (a sandboxed frame, a page from a file) is never its own.
    """
    return origin_is_listed(origin, server) or _is_own(origin, host) or _is_public(origin, server.public_url)


def is_foreign_request(method: str, headers: Mapping[str, str]) -> bool:
    """Whether a browser says that a page of another site wants this as a part of itself.

    Such requests (images, scripts, forms) may have no Origin. A link that is followed is none of them.
    Source: W3C, Fetch Metadata Request Headers, section 5.
    """
    if headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin"):
        return False
    is_link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return not (is_link and method in ("GET", "HEAD"))


def _is_listed(text: str, patterns: Iterable[str]) -> bool:
    """Whether `text`, in lower case, is one of `patterns`, or what one of them with a star stands for."""
    return any(_fits(text, pattern.lower()) for pattern in patterns)


def _fits(text: str, pattern: str) -> bool:
    before, star, name = pattern.partition(_STAR)
    if not star:
        return text == pattern
    behind = f".{name}"
    if not text.startswith(before) or not text.endswith(behind):
        return False
    # Nothing but labels: a user, a path or another scheme's separator would make it another site's name.
    return _LABELS.fullmatch(text[len(before) : -len(behind)]) is not None


def _is_public(origin: str, public_url: str) -> bool:
    """Whether a page is one of the gateway's under its public address, which a proxy may not have told."""
    parts = urlsplit(public_url)
    own = f"{parts.scheme}://{parts.netloc}".lower()
    return bool(parts.netloc) and origin.lower() in {
        own,
        own.removesuffix(f":{_DEFAULT_PORTS.get(parts.scheme)}"),
    }


def _is_own(origin: str, host: str) -> bool:
    # The scheme is not compared: a proxy in front may speak TLS where the gateway does not.
    try:
        parts = urlsplit(origin)
    except ValueError:
        return False
    port = _DEFAULT_PORTS.get(parts.scheme)
    if port is None:
        return False
    own = host.lower()
    if own == "":
        return False
    if parts.netloc.lower() in {own, own.removesuffix(f":{port}")}:
        return True
    pages, ours = _HOST.fullmatch(parts.netloc), _HOST.fullmatch(host)
    if pages is None or ours is None or not {_name(pages), _name(ours)} <= _THIS_MACHINE:
        return False
    return (pages["port"] or port) == (ours["port"] or port)


def _name(host: re.Match[str]) -> str:
    name: str = host["bracketed"] or host["name"]
    return name.lower()


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
