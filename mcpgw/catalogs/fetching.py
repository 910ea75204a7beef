"""Reading a catalog from where it is published: an address or a file. Bounded in size and time.

An address is an admin's word, and may lead anywhere by ``http`` or ``https``. Where it redirects to is a
stranger's word: not from ``https`` to ``http``, and not to another host that is not on the public internet.
The connection then goes to the very address that was looked at, whatever the name says a moment later.
"""

import asyncio
import ipaddress
import os
import socket
import stat
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx2

from mcpgw.catalogs.addresses import check_url
from mcpgw.catalogs.formats import read_catalog
from mcpgw.catalogs.model import CatalogFault, ReadCatalog

_MOST_REDIRECTS: Final = 5
_MOST_PAGES: Final = 500
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_OK: Final = 200
_TRANSLATED: Final = ipaddress.ip_network("64:ff9b::/96")
"""NAT64 (RFC 6052): its last 32 bits are the IPv4 address that is reached."""
_COMPATIBLE: Final = ipaddress.ip_network("::/96")
"""IPv4-compatible (RFC 4291, 2.5.5.1)."""
_TO_ANYWHERE: Final = (ipaddress.ip_network("2002::/16"), ipaddress.ip_network("64:ff9b:1::/48"))
"""6to4 (RFC 3056) and NAT64 of a site's own (RFC 8215), which lead to IPv4 addresses."""


async def fetch_catalog(url: str, *, max_size: int, timeout: float, user_agent: str) -> ReadCatalog:  # noqa: ASYNC109 - of the whole
    """The catalog at `url`, of at most `max_size` bytes, within `timeout` seconds.

    Where a registry's API answers in pages, all of them are read, within the same bounds.

    Raises:
        CatalogFault: it cannot be had, or is no catalog; the reason holds nothing of the query of `url`.
    """
    try:
        async with asyncio.timeout(timeout), httpx2.AsyncClient(timeout=timeout) as client:
            client.headers["User-Agent"] = user_agent
            return await _pages(_Fetching(client, max_size), url)
    except TimeoutError:
        raise CatalogFault(f"could not be read within {timeout:g} seconds") from None
    except httpx2.TimeoutException:
        raise CatalogFault(f"could not be read within {timeout:g} seconds") from None
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise CatalogFault(f"could not be read: {_shown(error)}") from None


async def read_file(path: Path, *, max_size: int) -> ReadCatalog:
    """The catalog in the file `path`.

    Raises:
        CatalogFault: it cannot be read, or is no catalog; the reason holds nothing of the file.
    """
    return await asyncio.to_thread(lambda: read_catalog(_text_of_file(path, max_size)))


async def _pages(fetching: "_Fetching", url: str) -> ReadCatalog:
    text = await fetching.text(url)
    read = await asyncio.to_thread(read_catalog, text)
    entries = {entry.name: entry for entry in read.entries}
    notes = list(read.notes)
    cursors = {""}
    page = read
    while page.next_cursor not in cursors:
        if len(cursors) > _MOST_PAGES:
            raise CatalogFault(f"has more than {_MOST_PAGES} pages")
        cursors.add(page.next_cursor)
        text = await fetching.text(_with_cursor(url, page.next_cursor))
        page = await asyncio.to_thread(read_catalog, text)
        entries |= {entry.name: entry for entry in page.entries}
        notes += page.notes
    return ReadCatalog(read.format, tuple(entries.values()), title=read.title, notes=tuple(notes))


def _with_cursor(url: str, cursor: str) -> str:
    parts = urlsplit(url)
    query = [
        (name, value) for name, value in parse_qsl(parts.query, keep_blank_values=True) if name != "cursor"
    ]
    return urlunsplit(parts._replace(query=urlencode([*query, ("cursor", cursor)])))


class _Fetching:
    """Requests that share one bound of bytes."""

    def __init__(self, client: httpx2.AsyncClient, max_size: int) -> None:
        self._client = client
        self._max_size = max_size
        self._left = max_size

    async def text(self, url: str) -> str:
        check_url(url)
        asked, pinned = url, ""
        for _ in range(_MOST_REDIRECTS + 1):
            async with self._client.stream(
                "GET",
                request_address(asked, pinned),
                headers=request_headers(asked),
                extensions=request_extensions(asked, pinned),
            ) as answer:
                if answer.status_code not in _REDIRECTS:
                    return await self._body(answer)
                location = answer.headers.get("location", "")
            target = str(httpx2.URL(asked).join(location))
            pinned = await _check_redirect(asked, target, first=url)
            asked = target
        raise CatalogFault(f"redirects more than {_MOST_REDIRECTS} times")

    async def _body(self, answer: httpx2.Response) -> str:
        if answer.status_code != _OK:
            raise CatalogFault(f"could not be read: the answer was {answer.status_code}")
        if answer.headers.get("content-encoding", "identity") != "identity":
            # A small compressed answer can stand for a huge one; none was asked for.
            raise CatalogFault("is compressed, although that was not asked for")
        content = bytearray()
        async for chunk in answer.aiter_raw():
            content += chunk
            if len(content) > self._left:
                raise CatalogFault(f"is larger than {self._max_size} bytes: see catalogs.max_size")
        self._left -= len(content)
        return _decoded(bytes(content))


def request_address(url: str, pinned: str) -> httpx2.URL:
    """`url` with its host replaced by the IP address that was looked at, where there is one."""
    return httpx2.URL(url).copy_with(host=pinned) if pinned else httpx2.URL(url)


def request_headers(url: str) -> dict[str, str]:
    """What is asked for, in the name of the host of `url`."""
    return {
        "Host": httpx2.URL(url).netloc.decode("ascii"),
        "Accept": "application/json, application/yaml, text/plain, */*",
        "Accept-Encoding": "identity",
    }


def request_extensions(url: str, pinned: str) -> dict[str, str]:
    """The certificate is that of the name, whatever IP address is connected to."""
    return {"sni_hostname": httpx2.URL(url).host} if pinned else {}


async def _check_redirect(source: str, target: str, *, first: str) -> str:
    """The IP address to go to for a redirect to another host; nothing where it is the first host still.

    Raises:
        CatalogFault: the redirect leads where a stranger must not lead.
    """
    try:
        check_url(target)
    except CatalogFault as fault:
        raise CatalogFault(f"redirects to what {fault}") from None
    parts, origin = urlsplit(target), urlsplit(first)
    if parts.scheme == "http" and urlsplit(source).scheme == "https":
        raise CatalogFault("redirects from https to http")
    if _end(parts.hostname, parts.port, parts.scheme) == _end(origin.hostname, origin.port, origin.scheme):
        return ""
    found = await _addresses(str(parts.hostname), parts.port or 443)
    if not all(is_public_address(address) for address in found):
        raise CatalogFault("redirects to a host that is not on the public internet; name that one instead")
    return found[0]


def is_public_address(text: str) -> bool:
    """Whether an IP address is one of the public internet, the IPv4 address inside of one included."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public_address(str(address.ipv4_mapped))
        if address in _TRANSLATED or (address in _COMPATIBLE and int(address) > 1):
            return is_public_address(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
        if address.is_site_local or any(address in network for network in _TO_ANYWHERE):
            return False
    return address.is_global and not address.is_multicast


def _end(host: str | None, port: int | None, scheme: str) -> tuple[str | None, int]:
    return host, port or (443 if scheme == "https" else 80)


async def _addresses(host: str, port: int) -> list[str]:
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        raise CatalogFault("redirects to a host that is not known") from None
    # A scope (fe80::1%eth0) is no part of the address that ipaddress judges.
    return [str(row[4][0]).partition("%")[0] for row in rows]


def _text_of_file(path: Path, max_size: int) -> str:
    try:
        # O_NONBLOCK: to open a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CatalogFault("is not a regular file")
            content = file.read(max_size + 1)
    except (OSError, ValueError) as error:
        if isinstance(error, CatalogFault):
            raise
        reason = error.strerror if isinstance(error, OSError) else "its name cannot be one"
        raise CatalogFault(f"cannot be read: {reason}") from None
    if len(content) > max_size:
        raise CatalogFault(f"is larger than {max_size} bytes: see catalogs.max_size")
    return _decoded(content)


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise CatalogFault("is not UTF-8") from None


def _shown(error: Exception) -> str:
    # The text of an error of the library may hold the address with its query.
    return {
        "ConnectError": "no connection can be made",
        "RemoteProtocolError": "the answer is no HTTP",
        "InvalidURL": "it is not a complete address",
        "UnsupportedProtocol": "it is not an http:// or https:// address",
    }.get(type(error).__name__, type(error).__name__)
