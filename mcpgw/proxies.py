"""Who the client of a request is, where trusted proxies have passed it on.

A header that says so is worth no more than whoever has sent it. Only the connection itself tells a peer's
address for certain; where that is a trusted proxy's, the last entry of the list is what that proxy has seen,
and so on from right to left, until an address is no trusted proxy's: that is the client, and whatever stands
further left is its own invention. Source: RFC 7239, sections 4 to 6 and 8.1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final, TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

_MOST_HOPS: Final = 32
_LONGEST_HEADER: Final = 8192
_SCHEMES: Final = ("http", "https")
# RFC 7239 section 4: parameters of one element; a value is a token or a quoted string.
_PAIR: Final = re.compile(
    r'\s*(?P<name>[!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"(?P<quoted>(?:[^"\\]|\\.)*)"|(?P<token>[^\s",;]*))\s*'
)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request comes from: the client's `address`; `scheme` and `host` where a proxy has told them."""

    address: str
    scheme: str | None = None
    host: str | None = None


def network_fault(text: str) -> str:
    """Why `text` is no address or network of proxies, as the end of a sentence; empty where it is one."""
    try:
        network = ip_network(text)
    except ValueError:
        return "is neither an IP address nor a network such as 10.0.0.0/8 (the bits behind its prefix are 0)"
    return "is everybody: name your own proxies" if network.prefixlen == 0 else ""


def client_of(peer: str, headers: Mapping[str, str], proxies: tuple[str, ...], kind: str) -> Origin:
    """Where a request with `headers` comes from that `peer` has sent.

    `proxies` are those that are trusted, `kind` is ``x-forwarded`` or ``forwarded``. Of a peer that is not
    one of them, no header is looked at.
    """
    networks = _networks(proxies)
    if not networks or not _is_trusted(_address(peer), networks):
        return Origin(peer)
    if kind == "forwarded":
        return _by_forwarded(peer, headers.get("Forwarded", ""), networks)
    addresses = _split(headers.get("X-Forwarded-For", ""))
    # The last of each is what the proxy itself has said.
    scheme = next(reversed(_split(headers.get("X-Forwarded-Proto", ""))), "").lower()
    host = next(reversed(_split(headers.get("X-Forwarded-Host", ""))), "")
    client, _ = _walk(peer, addresses, networks)
    return Origin(client, scheme if scheme in _SCHEMES else None, host or None)


def _by_forwarded(peer: str, header: str, networks: tuple[Network, ...]) -> Origin:
    elements = [_pairs(element) for element in _split_quoted(header, ",")]
    client, hop = _walk(peer, [element.get("for", "") for element in elements], networks)
    if hop is None:
        return Origin(client)
    scheme = elements[hop].get("proto", "").lower()
    return Origin(client, scheme if scheme in _SCHEMES else None, elements[hop].get("host") or None)


def _walk(peer: str, hops: list[str], networks: tuple[Network, ...]) -> tuple[str, int | None]:
    """The first address from the right that is no proxy's, and which of `hops` had it.

    What is no address (``unknown``, a hidden name, nonsense) ends the way: the last that is known counts.
    """
    client, place = peer, None
    for index in range(len(hops) - 1, max(-1, len(hops) - 1 - _MOST_HOPS), -1):
        address = _address(hops[index])
        if address is None:
            break
        client, place = str(address), index
        if not _is_trusted(address, networks):
            break
    return client, place


def _address(text: str) -> Address | None:
    """An address with or without brackets and a port (RFC 7239, section 6); one inside IPv6 as IPv4."""
    node = text.strip().partition("%")[0]
    if node.startswith("["):
        node = node[1:].partition("]")[0]
    elif node.count(":") == 1:
        node = node.partition(":")[0]
    try:
        address = ip_address(node)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _is_trusted(address: Address | None, networks: tuple[Network, ...]) -> bool:
    return address is not None and any(address in network for network in networks)


@lru_cache(maxsize=8)
def _networks(proxies: tuple[str, ...]) -> tuple[Network, ...]:
    return tuple(ip_network(proxy) for proxy in proxies)


def _split(header: str) -> list[str]:
    entries = (entry.strip() for entry in header[-_LONGEST_HEADER:].split(","))
    return [entry for entry in entries if entry]


def _split_quoted(header: str, separator: str) -> list[str]:
    """Split where `separator` is not inside quotes; nothing of a header that is too long to be honest."""
    if len(header) > _LONGEST_HEADER:
        return []
    parts, begin, quoted, escaped = [], 0, False, False
    for index, sign in enumerate(header):
        if escaped:
            escaped = False
        elif quoted and sign == "\\":
            escaped = True
        elif sign == '"':
            quoted = not quoted
        elif sign == separator and not quoted:
            parts.append(header[begin:index])
            begin = index + 1
    parts.append(header[begin:])
    return [part for part in parts if part.strip()]


def _pairs(element: str) -> dict[str, str]:
    """The parameters of one element, names in lower case; none where it is malformed."""
    found: dict[str, str] = {}
    for part in _split_quoted(element, ";"):
        match = _PAIR.fullmatch(part)
        if match is None or match["name"].lower() in found:
            return {}
        quoted = match["quoted"]
        value = match["token"] if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        found[match["name"].lower()] = value
    return found
