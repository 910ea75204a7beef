"""Catalogs of servers, with their entries as they were published."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, insert, select, update

from mcpgw.store.runner import Runner, now
from mcpgw.store.tables import CATALOGS, ENTRIES

_LONGEST_SEARCHED = 2000


@dataclass(frozen=True, slots=True)
class StoredEntry:
    """One entry: `document` is the JSON that was published, `searched` what a search looks through."""

    catalog_id: str
    name: str
    title: str
    description: str
    version: str
    document: Mapping[str, Any] = field(repr=False)
    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StoredCatalog:
    """One catalog; times are milliseconds since the epoch.

    `source_kind` is ``url``, ``file`` or ``upload``, and `source` the address, the path, or nothing.
    `failure` is why it could not be read the last time, empty where it could; `notes` are what is wrong with
    single entries; `entries` is how many there are.
    """

    id: str
    title: str
    format: str
    source_kind: str
    source: str = field(repr=False)
    imported_by: str = ""
    imported_at: int = 0
    synced_at: int = 0
    failure: str = ""
    notes: tuple[str, ...] = ()
    entries: int = 0


@dataclass(frozen=True, slots=True)
class CatalogChanges:
    """How many entries a catalog has gained, changed and lost; `is_new` where it was not there before."""

    is_new: bool
    added: int
    changed: int
    removed: int

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class CatalogTable:
    """The stored catalogs; each method is a transaction, and raises StoreError where that fails."""

    def __init__(self, run: Runner) -> None:
        self._run = run

    async def list(self) -> list[StoredCatalog]:
        """All of them, by id."""
        return await self._run(lambda c: [_catalog(row) for row in c.execute(_catalogs())], reads=True)

    async def get(self, catalog_id: str) -> StoredCatalog | None:
        """The one of this id."""
        query = _catalogs(CATALOGS.c.id == catalog_id)

        def read(connection: Connection) -> StoredCatalog | None:
            row = connection.execute(query).first()
            return None if row is None else _catalog(row)

        return await self._run(read, reads=True)

    async def put(
        self, catalog: StoredCatalog, entries: Sequence[StoredEntry], *, replace: bool = True
    ) -> CatalogChanges | None:
        """Add the catalog with its entries, or put it in the place of the one of this id.

        Who imported it and when is kept. None where `replace` is false and the id is taken.
        """
        moment = now()
        values = {
            "title": catalog.title,
            "format": catalog.format,
            "source_kind": catalog.source_kind,
            "source": catalog.source,
            "synced_at": moment,
            "failure": "",
            "notes": json.dumps(catalog.notes),
        }
        rows = [_entry_row(entry, catalog.id, place) for place, entry in enumerate(entries)]

        def write(connection: Connection) -> CatalogChanges | None:
            mine = CATALOGS.c.id == catalog.id
            is_new = connection.execute(select(CATALOGS.c.id).where(mine)).first() is None
            if is_new:
                first = {"id": catalog.id, "imported_by": catalog.imported_by, "imported_at": moment}
                connection.execute(insert(CATALOGS).values(**first, **values))
            elif not replace:
                return None
            else:
                connection.execute(update(CATALOGS).where(mine).values(**values))
            before = _documents(connection, catalog.id)
            connection.execute(delete(ENTRIES).where(ENTRIES.c.catalog_id == catalog.id))
            if rows:
                connection.execute(insert(ENTRIES), rows)
            return _changes(is_new, before, {row["name"]: row["document"] for row in rows})

        return await self._run(write)

    async def note_failure(self, catalog_id: str, reason: str) -> None:
        """Keep why a catalog could not be read; its entries stay."""
        query = update(CATALOGS).where(CATALOGS.c.id == catalog_id).values(failure=reason)
        await self._run(lambda c: c.execute(query))

    async def delete(self, catalog_id: str) -> bool:
        """Remove one with its entries; whether there was one of this id."""

        def write(connection: Connection) -> bool:
            connection.execute(delete(ENTRIES).where(ENTRIES.c.catalog_id == catalog_id))
            return connection.execute(delete(CATALOGS).where(CATALOGS.c.id == catalog_id)).rowcount > 0

        return await self._run(write)

    async def search(
        self, words: Sequence[str], *, catalog_id: str | None = None, limit: int, offset: int = 0
    ) -> tuple[int, Sequence[StoredEntry]]:
        """How many entries hold each of `words`, in any case, and `limit` of them from `offset` on."""
        where = [ENTRIES.c.searched.contains(word.casefold(), autoescape=True) for word in words]
        if catalog_id is not None:
            where.append(ENTRIES.c.catalog_id == catalog_id)
        counting = select(func.count()).select_from(ENTRIES).where(*where)
        order = (ENTRIES.c.catalog_id, ENTRIES.c.position)
        finding = select(ENTRIES).where(*where).order_by(*order).limit(limit).offset(offset)
        work: Callable[[Connection], tuple[int, Sequence[StoredEntry]]] = lambda c: (  # noqa: E731
            c.execute(counting).scalar_one(),
            [_entry(row) for row in c.execute(finding)],
        )
        return await self._run(work, reads=True)

    async def entry(self, catalog_id: str, name: str) -> StoredEntry | None:
        """The entry of this name."""
        query = select(ENTRIES).where(ENTRIES.c.catalog_id == catalog_id, ENTRIES.c.name == name)

        def read(connection: Connection) -> StoredEntry | None:
            row = connection.execute(query).first()
            return None if row is None else _entry(row)

        return await self._run(read, reads=True)

    async def names(self, catalog_id: str) -> Sequence[str]:
        """The names of a catalog's entries."""
        query = select(ENTRIES.c.name).where(ENTRIES.c.catalog_id == catalog_id).order_by(ENTRIES.c.position)
        return await self._run(lambda c: list(c.execute(query).scalars()), reads=True)


def _catalogs(*where: ColumnElement[bool]) -> Any:
    count = select(func.count()).where(ENTRIES.c.catalog_id == CATALOGS.c.id).scalar_subquery()
    return select(CATALOGS, count.label("entries")).where(*where).order_by(CATALOGS.c.id)


def _documents(connection: Connection, catalog_id: str) -> dict[str, str]:
    query = select(ENTRIES.c.name, ENTRIES.c.document).where(ENTRIES.c.catalog_id == catalog_id)
    return {row.name: row.document for row in connection.execute(query)}


def _changes(is_new: bool, before: Mapping[str, str], after: Mapping[str, str]) -> CatalogChanges:
    kept = before.keys() & after.keys()
    return CatalogChanges(
        is_new,
        added=len(after.keys() - kept),
        changed=sum(before[name] != after[name] for name in kept),
        removed=len(before.keys() - kept),
    )


def _entry_row(entry: StoredEntry, catalog_id: str, position: int) -> dict[str, Any]:
    words = " ".join((entry.name, entry.title, entry.description, *entry.tags))
    return {
        "catalog_id": catalog_id,
        "name": entry.name,
        "position": position,
        "title": entry.title,
        "description": entry.description,
        "version": entry.version,
        "searched": words[:_LONGEST_SEARCHED].casefold(),
        "document": json.dumps(entry.document, allow_nan=False, sort_keys=True),
    }


def _catalog(row: Row[Any]) -> StoredCatalog:
    return StoredCatalog(
        row.id,
        row.title,
        row.format,
        row.source_kind,
        row.source,
        row.imported_by,
        row.imported_at,
        row.synced_at,
        row.failure,
        tuple(json.loads(row.notes)),
        row.entries,
    )


def _entry(row: Row[Any]) -> StoredEntry:
    document = json.loads(row.document)
    return StoredEntry(row.catalog_id, row.name, row.title, row.description, row.version, document)
