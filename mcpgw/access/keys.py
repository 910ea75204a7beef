"""API keys for programs: shown once, good until they are revoked or their time is over.

A key reads ``mcpgw_ID_SECRET``. Its id may be shown, and finds it; of all of it the store has a SHA-256,
which is enough for 256 random bits.
"""

import math
import secrets
from collections.abc import Collection
from typing import Final

from mcpgw.access.accounts import check_user_name, digest
from mcpgw.access.permissions import scope_faults
from mcpgw.errors import ConfigError, suggest
from mcpgw.store import By, Store, StoredKey
from mcpgw.store.runner import now

KEY_PREFIX: Final = "mcpgw_"
"""How every key begins, so that searches for lost secrets find it."""

MOST_SCOPES: Final = 100
LONGEST_NAME: Final = 128
LONGEST_SECONDS: Final = 10 * 366 * 86_400


class Keys:
    """Makes, lists and revokes the keys of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(
        self, user: str, name: str, scopes: Collection[str], *, seconds: float | None = None, by: By
    ) -> tuple[str, StoredKey]:
        """A new key of `user`, and what is kept of it. It holds for `seconds`, or until it is revoked.

        A user of the store can do no more with it than the role allows; the name of any other will do too.

        Raises:
            ConfigError: a scope is none, or something else cannot be.
            StoreError: it cannot be kept.
        """
        check_user_name(user)
        if not 0 < len(name) <= LONGEST_NAME or not name.isprintable():
            raise ConfigError([f"the name of a key has 1 to {LONGEST_NAME} characters that can be shown"])
        if not 0 < len(set(scopes)) <= MOST_SCOPES:
            raise ConfigError([f"a key has 1 to {MOST_SCOPES} scopes"])
        faults = scope_faults(scopes)
        if seconds is not None and not (math.isfinite(seconds) and 0 < seconds <= LONGEST_SECONDS):
            faults.append("a key holds for more than no time, and at most ten years")
        if faults:
            raise ConfigError(faults)
        key_id = secrets.token_hex(6)
        secret = f"{KEY_PREFIX}{key_id}_{secrets.token_urlsafe(32)}"
        moment = now()
        end = 0 if seconds is None else moment + round(seconds * 1000)
        kept = StoredKey(key_id, digest(secret), user, name, tuple(sorted(set(scopes))), by.user, moment, end)
        if not await self._store.keys.add(kept, by=by):
            raise ConfigError([f"the user {user!r} has too many keys: revoke one first"])
        return secret, kept

    async def list(self, user: str | None = None) -> list[StoredKey]:
        """The keys that were not revoked, of one user or of all."""
        return await self._store.keys.list(user)

    async def get(self, key_id: str) -> StoredKey | None:
        """What is kept of a key."""
        return await self._store.keys.get(key_id)

    async def revoke(self, key_id: str, *, by: By) -> None:
        """End a key.

        Raises:
            ConfigError: there is none of this id that holds.
            StoreError: it cannot be kept.
        """
        if not await self._store.keys.revoke(key_id, by=by):
            known = [key.id for key in await self._store.keys.list()]
            raise ConfigError([f"there is no key {key_id[:32]!r}{suggest(key_id, known)}"])


def described_key(key: StoredKey) -> dict[str, object]:
    """A key as JSON, without its secret; times that are none are left out."""
    members: dict[str, object] = {
        "id": key.id,
        "prefix": f"{KEY_PREFIX}{key.id}",
        "user": key.user,
        "name": key.name,
        "scopes": list(key.scopes),
        "createdBy": key.created_by,
        "createdAt": key.created_at,
    }
    if key.expires_at:
        members["expiresAt"] = key.expires_at
    if key.used_at:
        members["usedAt"] = key.used_at
    return members
