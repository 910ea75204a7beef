"""Catalogs of MCP servers: lists that others publish, read in, searched, and installed from."""

from mcpgw.catalogs.service import (
    LARGEST_PAGE,
    CatalogService,
    Page,
    ServerAdministration,
    Source,
    catalog_json,
    entry_json,
)

__all__ = [
    "LARGEST_PAGE",
    "CatalogService",
    "Page",
    "ServerAdministration",
    "Source",
    "catalog_json",
    "entry_json",
]
