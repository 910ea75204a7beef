"""What outlives the gateway: what was added or changed while it ran, and the catalogs."""

from mcpgw.store.catalogs import CatalogChanges, StoredCatalog, StoredEntry
from mcpgw.store.failures import StoreError
from mcpgw.store.overrides import StoredSetting
from mcpgw.store.servers import StoredServer
from mcpgw.store.store import Store

__all__ = [
    "CatalogChanges",
    "Store",
    "StoreError",
    "StoredCatalog",
    "StoredEntry",
    "StoredServer",
    "StoredSetting",
]
