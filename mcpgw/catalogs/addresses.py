"""Addresses of catalogs: which may be one, and how they are shown."""

from urllib.parse import urlsplit, urlunsplit

from mcpgw.catalogs.model import CatalogFault


def check_url(url: str) -> None:
    """Refuse an address that is none of ``http`` and ``https``, or that holds credentials.

    Raises:
        CatalogFault: says which.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise CatalogFault("is not a complete address") from None
    if parts.scheme not in ("http", "https") or not host:
        raise CatalogFault("is not an http:// or https:// address")
    if parts.username is not None or parts.password is not None:
        raise CatalogFault("holds credentials, which would be shown and logged; a catalog is public")


def shown_url(url: str) -> str:
    """`url` without what may be a secret: its query and fragment."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "…" if parts.query else "", ""))
