"""API keys: what is kept of them is a hash, and the part that may be shown."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Row, func, insert, select, update

from mcpgw.store.changes import By, note_change
from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import API_KEYS

MOST_OF_A_USER: Final = 100
"""Keys of one user that are not revoked."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key. Times are in ms since the epoch; 0 is no end, not revoked, never used."""

    id: str
    hash: str = field(repr=False)
    user: str
    name: str
    scopes: tuple[str, ...]
    created_by: str
    created_at: int
    expires_at: int = 0
    revoked_at: int = 0
    used_at: int = 0


class KeyTable:
    """The stored keys; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def list(self, user: str | None = None) -> list[StoredKey]:
        """Those that are not revoked, of one user or of all, the oldest first."""
        query = select(API_KEYS).where(API_KEYS.c.revoked_at == 0)
        if user is not None:
            query = query.where(API_KEYS.c.user_name == user)
        query = query.order_by(API_KEYS.c.created_at, API_KEYS.c.id)
        return await self._run(lambda c: [_key(row) for row in c.execute(query)], reads=True)

    async def get(self, key_id: str) -> StoredKey | None:
        """The one of this id, revoked or not."""
        query = select(API_KEYS).where(API_KEYS.c.id == key_id)

        def read(connection: Connection) -> StoredKey | None:
            row = connection.execute(query).first()
            return None if row is None else _key(row)

        return await self._run(read, reads=True)

    async def add(self, key: StoredKey, *, by: By) -> bool:
        """Keep a new one; false where its user has too many."""
        mine = (API_KEYS.c.user_name == key.user, API_KEYS.c.revoked_at == 0)

        def write(connection: Connection) -> bool:
            if connection.execute(select(func.count()).where(*mine)).scalar_one() >= MOST_OF_A_USER:
                return False
            row = {"user_name": key.user, "scopes": json.dumps(key.scopes)}
            row |= {name: getattr(key, name) for name in ("id", "hash", "name", "created_by", "created_at")}
            times = {name: getattr(key, name) for name in ("expires_at", "revoked_at", "used_at")}
            connection.execute(insert(API_KEYS).values(**row, **times))
            note_change(connection, by, "keys.create", key.id)
            return True

        return await self._run(write)

    async def revoke(self, key_id: str, *, by: By) -> bool:
        """End one; whether it held until now."""
        query = update(API_KEYS).where(API_KEYS.c.id == key_id, API_KEYS.c.revoked_at == 0)

        def write(connection: Connection) -> bool:
            if connection.execute(query.values(revoked_at=now())).rowcount == 0:
                return False
            note_change(connection, by, "keys.revoke", key_id)
            return True

        return await self._run(write)

    async def note_used(self, moments: Mapping[str, int]) -> None:
        """Keep when keys were used last, by id."""

        def write(connection: Connection) -> None:
            for key_id, moment in moments.items():
                mine = update(API_KEYS).where(API_KEYS.c.id == key_id, API_KEYS.c.used_at < moment)
                connection.execute(mine.values(used_at=moment))

        if moments:
            await self._run(write)


def good_keys(connection: Connection) -> list[StoredKey]:
    """The keys that hold now."""
    moment = now()
    query = select(API_KEYS).where(API_KEYS.c.revoked_at == 0)
    found = (_key(row) for row in connection.execute(query))
    return [key for key in found if not key.expires_at or key.expires_at > moment]


def _key(row: Row[Any]) -> StoredKey:
    return StoredKey(
        row.id,
        row.hash,
        row.user_name,
        row.name,
        tuple(json.loads(row.scopes)),
        row.created_by,
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.used_at,
    )
