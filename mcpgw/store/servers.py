"""Definitions of servers that were added while the gateway ran."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import SERVERS


@dataclass(frozen=True, slots=True)
class StoredServer:
    """One definition: `table` is what would stand in ``[servers.NAME]``, its references as they were written.

    Times are milliseconds since the epoch; `created_by` and `updated_by` name users.
    """

    name: str
    table: Mapping[str, Any] = field(repr=False)
    enabled: bool
    created_by: str
    created_at: int
    updated_by: str
    updated_at: int


class ServerTable:
    """The stored definitions; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def list(self) -> list[StoredServer]:
        """All of them, by name."""
        query = select(SERVERS).order_by(SERVERS.c.name)
        return await self._run(lambda c: [_server(row) for row in c.execute(query)], reads=True)

    async def get(self, name: str) -> StoredServer | None:
        """The one of this name."""
        query = select(SERVERS).where(SERVERS.c.name == name)

        def read(connection: Connection) -> StoredServer | None:
            row = connection.execute(query).first()
            return None if row is None else _server(row)

        return await self._run(read, reads=True)

    async def put(self, name: str, table: Mapping[str, Any], *, enabled: bool, by: str) -> StoredServer:
        """Add the definition, or put it in the place of the one of this name.

        Raises ValueError where `table` is no JSON.
        """
        write = _writer(name, table, enabled=enabled, by=by)
        return await self._run(write)

    async def put_after(
        self, known: StoredServer | None, name: str, table: Mapping[str, Any], *, enabled: bool, by: str
    ) -> StoredServer | None:
        """As `put`, if what is there is `known`; else nothing is done, and the answer is None."""
        write = _writer(name, table, enabled=enabled, by=by)
        return await self._run(lambda c: write(c) if _present(c, name) == known else None)

    async def delete_after(self, known: StoredServer) -> bool:
        """Remove one, if it is as `known`; else nothing is done, and the answer is false."""
        query = delete(SERVERS).where(SERVERS.c.name == known.name)
        return await self._run(lambda c: _present(c, known.name) == known and c.execute(query).rowcount > 0)

    async def set_enabled(self, name: str, enabled: bool, *, by: str) -> bool:
        """Switch one on or off; whether there is one of this name."""
        values = {"enabled": enabled, "updated_by": by, "updated_at": now()}
        query = update(SERVERS).where(SERVERS.c.name == name).values(**values)
        return await self._run(lambda c: c.execute(query).rowcount > 0)

    async def delete(self, name: str) -> bool:
        """Remove one; whether there was one of this name."""
        query = delete(SERVERS).where(SERVERS.c.name == name)
        return await self._run(lambda c: c.execute(query).rowcount > 0)


def _writer(
    name: str, table: Mapping[str, Any], *, enabled: bool, by: str
) -> Callable[[Connection], StoredServer]:
    content = json.dumps(dict(table), allow_nan=False)
    moment = now()
    changed = {"definition": content, "enabled": enabled, "updated_by": by, "updated_at": moment}

    def write(connection: Connection) -> StoredServer:
        known = connection.execute(update(SERVERS).where(SERVERS.c.name == name).values(**changed))
        if known.rowcount == 0:
            added = {"name": name, "created_by": by, "created_at": moment, **changed}
            connection.execute(insert(SERVERS).values(**added))
        return _server(connection.execute(select(SERVERS).where(SERVERS.c.name == name)).one())

    return write


def _present(connection: Connection, name: str) -> StoredServer | None:
    """What is there, and stays so until the transaction ends."""
    row = connection.execute(select(SERVERS).where(SERVERS.c.name == name).with_for_update()).first()
    return None if row is None else _server(row)


def _server(row: Row[Any]) -> StoredServer:
    return StoredServer(
        row.name,
        json.loads(row.definition),
        bool(row.enabled),
        row.created_by,
        row.created_at,
        row.updated_by,
        row.updated_at,
    )
