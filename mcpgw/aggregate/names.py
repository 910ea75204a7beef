"""The names under which many servers are one.

A tool or prompt is called ``server__name``; the separator is a setting. A name that can be
split in more than one way belongs to the server that has something of this name; where several have, to none.

A resource keeps its URI. Where several servers list the same one, each of them has it as
``mcpgw://SERVER/URI``: the server's name, and behind the slash the URI as it is, so that it also holds the
expressions of a template (RFC 6570). Every resource can be read under this form.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

_SCHEME = "mcpgw://"


class Names:
    """Joins and splits names; with `server` there is this one alone, and nothing is joined."""

    def __init__(self, separator: str, server: str | None = None) -> None:
        self._separator = separator
        self.server = server

    def joined(self, server: str, name: str) -> str:
        """The name for callers."""
        return name if self.server is not None else f"{server}{self._separator}{name}"

    def splits(self, name: str, servers: Collection[str]) -> list[tuple[str, str]]:
        """Each server of `servers` whose name stands first, and its own name for it; the longest first."""
        if self.server is not None:
            return [(self.server, name)]
        found: list[tuple[str, str]] = []
        at = len(name)
        while (at := name.rfind(self._separator, 0, at)) > 0:
            if name[:at] in servers:
                found.append((name[:at], name[at + len(self._separator) :]))
            at += len(self._separator) - 1
        return found


def with_own_addresses(
    found: Iterable[tuple[str, Mapping[str, Any]]], member: str
) -> Iterator[dict[str, Any]]:
    """Resources or templates of several servers, no two with the same `member` (``uri``, ``uriTemplate``)."""
    listed = list(found)
    times = Counter(uri for _, uri in {(server, str(entry.get(member))) for server, entry in listed})
    for server, entry in listed:
        uri = str(entry.get(member))
        yield {**entry, member: address_at(server, uri) if times[uri] > 1 else uri}


def address_at(server: str, uri: str) -> str:
    """The address of a resource that says which server has it."""
    return f"{_SCHEME}{server}/{uri}"


def split_address(address: str, servers: Collection[str]) -> tuple[str, str] | None:
    """The server and its own URI, where `address` says the server."""
    if not address.lower().startswith(_SCHEME):
        return None
    server, slash, uri = address[len(_SCHEME) :].partition("/")
    if not slash:
        return None
    if server not in servers:  # a client may write the host of a URI in lower case (RFC 3986, 6.2.2.1)
        same = [name for name in servers if name.lower() == server.lower()]
        if len(same) != 1:
            return None
        server = same[0]
    return server, uri
