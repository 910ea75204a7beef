"""What outlives the gateway: what was added or changed while it ran, and the catalogs."""

from mcpgw.store.catalogs import CatalogChanges, StoredCatalog, StoredEntry
from mcpgw.store.changes import AccessChange, By
from mcpgw.store.failures import StoreError
from mcpgw.store.identities import StoredIdentity
from mcpgw.store.keys import StoredKey
from mcpgw.store.logins import Rotation, StoredLogin
from mcpgw.store.overrides import StoredSetting
from mcpgw.store.rooms import OpenRoom, StoredGuest, StoredRoom
from mcpgw.store.servers import StoredServer
from mcpgw.store.store import Store
from mcpgw.store.users import StoredUser

__all__ = [
    "AccessChange",
    "By",
    "CatalogChanges",
    "OpenRoom",
    "Rotation",
    "Store",
    "StoreError",
    "StoredCatalog",
    "StoredEntry",
    "StoredGuest",
    "StoredIdentity",
    "StoredKey",
    "StoredLogin",
    "StoredRoom",
    "StoredServer",
    "StoredSetting",
    "StoredUser",
]
