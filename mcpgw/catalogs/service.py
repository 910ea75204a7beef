"""The catalogs of this gateway: imported, listed, searched, read again, and installed from."""

import asyncio
import re
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final, Protocol

from mcpgw.audit import Actor
from mcpgw.catalogs.addresses import check_url, shown_url
from mcpgw.catalogs.model import CatalogFault, Entry, Option, ReadCatalog
from mcpgw.client_files import fitting_name
from mcpgw.errors import CatalogNotFound, DuplicateId, InvalidParams, suggest
from mcpgw.server_definitions import NAME_RULE, is_server_name
from mcpgw.settings import CatalogSettings
from mcpgw.store import CatalogChanges, Store, StoredCatalog, StoredEntry

if TYPE_CHECKING:
    from mcpgw.catalogs.rendering import Given

__all__ = ["CatalogService", "CatalogSettings", "Page", "ServerAdministration", "Source"]

LARGEST_PAGE: Final = 500

_ID: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_MOST_NOTES: Final = 20
_MERGED: Final = ("env", "headers")
"""Members of a definition to which `settings` of an installation add, rather than take their place."""

Publish = Callable[[str, Mapping[str, Any]], object]
"""Publishes an event; `mcpgw.bus.Bus.publish`."""


class ServerAdministration(Protocol):
    """Who adds servers while the gateway runs."""

    async def add(self, name: str, table: Mapping[str, Any], actor: Actor) -> None:
        """Add the server `name`, defined by `table` as ``[servers.NAME]`` would, keep it, and start it.

        Raises:
            GatewayError: the name is taken, the table has faults, or such servers are forbidden here.
        """


@dataclass(frozen=True, slots=True)
class Source:
    """Where a catalog comes from: `kind` is ``url``, ``file`` (of the gateway's machine) or ``upload``.

    `place` is the address or the path; `content` the text of an upload.
    """

    kind: str
    place: str = ""
    content: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the entries that were looked for, and how many there are."""

    total: int
    entries: tuple[StoredEntry, ...]


class CatalogService:
    """The catalogs; whoever calls has checked that the caller may.

    Every method raises StoreError where the store refuses.
    """

    def __init__(
        self, store: Store, settings: CatalogSettings, publish: Publish, *, user_agent: str = "mcpgw"
    ) -> None:
        self._table = store.catalogs
        self._settings = settings
        self._publish = publish
        self._user_agent = user_agent
        self._locks: dict[str, asyncio.Lock] = {}
        self._waiting: Counter[str] = Counter()

    async def list_catalogs(self) -> list[StoredCatalog]:
        """All catalogs, by id."""
        return await self._table.list()

    async def get(self, catalog_id: str) -> StoredCatalog:
        """One catalog.

        Raises:
            CatalogNotFound: there is none of this id.
        """
        found = await self._table.get(catalog_id)
        if found is None:
            known = [catalog.id for catalog in await self._table.list()]
            raise CatalogNotFound(f"no catalog {catalog_id[:128]!r}{suggest(catalog_id, known)}")
        return found

    async def search(
        self, words: str, *, catalog_id: str | None = None, limit: int = 50, offset: int = 0
    ) -> Page:
        """The entries that hold every one of `words` in name, title, description or tags, in any case."""
        total, entries = await self._table.search(
            words.split()[:16], catalog_id=catalog_id, limit=min(limit, LARGEST_PAGE), offset=offset
        )
        return Page(total, tuple(entries))

    async def entry(self, catalog_id: str, name: str) -> tuple[StoredEntry, list[Option]]:
        """An entry, with what it can be installed from.

        Raises:
            CatalogNotFound: there is no such catalog, or no such entry in it.
        """
        catalog = await self.get(catalog_id)
        found = await self._table.entry(catalog_id, name)
        if found is None:
            known = await self._table.names(catalog_id)
            raise CatalogNotFound(f"no entry {name[:128]!r} in {catalog_id!r}{suggest(name, known)}")
        options: list[Option] = (await _late("formats")).options_of(catalog.format, found.document)
        return found, options

    async def add(self, source: Source, *, catalog_id: str = "", title: str = "", by: str) -> StoredCatalog:
        """Import a catalog; its id is made of its title or place where none is given.

        Raises:
            InvalidParams: it cannot be read, or is none, or its id cannot be one.
            DuplicateId: the id is taken.
        """
        if catalog_id and not _ID.fullmatch(catalog_id):
            raise InvalidParams(f"{catalog_id[:64]!r} is no id of a catalog: {_ID_RULE}")
        try:
            read = await self._read(source)
        except CatalogFault as fault:
            self._announce("error", catalog_id or _made_id(title or source.place), reason=str(fault))
            raise InvalidParams(f"the catalog {fault}") from None
        chosen = catalog_id or _made_id(title or read.title or source.place or read.entries[0].name)
        catalog = StoredCatalog(
            chosen,
            title or read.title or chosen,
            read.format,
            source.kind,
            source.place,
            imported_by=by,
            notes=_bounded(read.notes),
        )
        async with self._in_turn(chosen):
            changes = await self._table.put(catalog, _rows(chosen, read.entries), replace=False)
        if changes is None:
            raise DuplicateId(f"there is a catalog {chosen!r} already; give another id, or sync that one")
        self._announce("imported", chosen)
        return await self.get(chosen)

    async def sync(self, catalog_id: str, *, content: str = "") -> tuple[StoredCatalog, CatalogChanges]:
        """Read a catalog again from where it came; one that was uploaded, from `content`.

        Where it cannot be read, its entries stay, and the reason is kept with it.

        Raises:
            CatalogNotFound: there is none of this id.
            InvalidParams: it cannot be read, or is no catalog any more.
        """
        # From the reading on: what an older sync has read must not replace what a newer one has.
        async with self._in_turn(catalog_id):
            changes = await self._sync(await self.get(catalog_id), content)
        if changes:
            words = f"{changes.added} new, {changes.changed} changed, {changes.removed} gone"
            self._announce("updated", catalog_id, reason=words)
        self._announce("synced", catalog_id)
        return await self.get(catalog_id), changes

    async def _sync(self, catalog: StoredCatalog, content: str) -> CatalogChanges:
        if (catalog.source_kind == "upload") != bool(content):
            words = "is read from where it came" if content else "was uploaded: send its new content"
            raise InvalidParams(f"the catalog {words}")
        source = Source("upload", catalog.source, content) if content else None
        try:
            read = await self._read(source or Source(catalog.source_kind, catalog.source), catalog.format)
        except CatalogFault as fault:
            await self._table.note_failure(catalog.id, str(fault))
            self._announce("error", catalog.id, reason=str(fault))
            raise InvalidParams(f"the catalog {fault}") from None
        renewed = StoredCatalog(
            catalog.id,
            catalog.title,
            catalog.format,
            catalog.source_kind,
            catalog.source,
            catalog.imported_by,
            notes=_bounded(read.notes),
        )
        changes = await self._table.put(renewed, _rows(catalog.id, read.entries))
        assert changes is not None, "put replaces"  # noqa: S101
        return changes

    async def remove(self, catalog_id: str) -> None:
        """Remove a catalog; the servers that were installed from it stay.

        Raises:
            CatalogNotFound: there is none of this id.
        """
        async with self._in_turn(catalog_id):
            await self.get(catalog_id)
            await self._table.delete(catalog_id)

    async def prepare(
        self,
        catalog_id: str,
        entry_name: str,
        *,
        option_id: str = "",
        server_name: str = "",
        values: Mapping[str, "Given"],
        settings: Mapping[str, Any] | None = None,
    ) -> tuple[str, dict[str, Any]]:
        """The name and the table of the server that an entry makes with `values`.

        `settings` are further members of the definition (such as ``isolation``), which have the last word.

        Raises:
            CatalogNotFound: there is no such catalog, entry or option.
            InvalidParams: something that it needs is missing or wrong; ``details`` has every fault.
        """
        _, options = await self.entry(catalog_id, entry_name)
        option = _chosen(options, option_id, entry_name)
        name = server_name or _server_name(entry_name)
        if not is_server_name(name):
            raise InvalidParams(f"{name[:128]!r} cannot be the name of a server ({NAME_RULE})")
        table: dict[str, Any] = (await _late("rendering")).make_table(option, values)
        for key, value in (settings or {}).items():
            if key in _MERGED and isinstance(value, dict) and isinstance(table.get(key), dict):
                table[key] = {**table[key], **value}
            else:
                table[key] = value
        return name, table

    async def install(
        self,
        administration: ServerAdministration,
        catalog_id: str,
        entry_name: str,
        *,
        option_id: str = "",
        server_name: str = "",
        values: Mapping[str, "Given"],
        settings: Mapping[str, Any] | None = None,
        permit: Callable[[str], None],
        actor: Actor,
    ) -> str:
        """Add an entry as a server, and answer its name; see `prepare` for the rest and what it raises.

        `permit` is asked whether a server may have that name, and raises where it may not.
        """
        name, table = await self.prepare(
            catalog_id,
            entry_name,
            option_id=option_id,
            server_name=server_name,
            values=values,
            settings=settings,
        )
        permit(name)
        await administration.add(name, table, actor)
        return name

    async def _read(self, source: Source, format_name: str = "") -> ReadCatalog:
        read: ReadCatalog
        limit = self._settings.max_size
        if source.kind == "url":
            check_url(source.place)
            read = await (await _late("fetching")).fetch_catalog(
                source.place, max_size=limit, timeout=self._settings.timeout, user_agent=self._user_agent
            )
        elif source.kind == "file":
            path = Path(source.place)
            if not path.is_absolute():
                raise CatalogFault("is no absolute path")
            read = await (await _late("fetching")).read_file(path, max_size=limit)
        else:
            if len(source.content.encode("utf-8", "surrogatepass")) > limit:
                raise CatalogFault(f"is larger than {limit} bytes: see catalogs.max_size")
            read = await asyncio.to_thread((await _late("formats")).read_catalog, source.content)
        if len(read.entries) > self._settings.max_entries:
            most = self._settings.max_entries
            raise CatalogFault(f"has more than {most} entries: see catalogs.max_entries")
        if not read.entries:
            raise CatalogFault("has no entries")
        if format_name not in ("", read.format):
            raise CatalogFault(f"is of another format now: {read.format}, not {format_name}")
        return read

    @asynccontextmanager
    async def _in_turn(self, catalog_id: str) -> AsyncIterator[None]:
        """One thing at a time happens to a catalog."""
        lock = self._locks.setdefault(catalog_id, asyncio.Lock())
        self._waiting[catalog_id] += 1
        try:
            async with lock:
                yield
        finally:
            self._waiting[catalog_id] -= 1
            if not self._waiting[catalog_id]:
                del self._waiting[catalog_id], self._locks[catalog_id]

    def _announce(self, name: str, catalog_id: str, *, reason: str = "") -> None:
        self._publish(f"catalog.{name}", {"catalogId": catalog_id} | ({"reason": reason} if reason else {}))


async def _late(name: str) -> ModuleType:
    """A module of this package that is not imported before it is needed: few gateways ever have a catalog."""
    return await asyncio.to_thread(import_module, f"mcpgw.catalogs.{name}")


_ID_RULE: Final = "lower-case letters, digits, '_', '.' and '-', at most 64, a letter or digit first"


def catalog_json(catalog: StoredCatalog, *, with_place: bool) -> dict[str, Any]:
    """A catalog as REST answers it; an address without its query, a path only for whom `with_place` is."""
    source: dict[str, Any] = {"kind": catalog.source_kind}
    if catalog.source_kind == "url":
        source["url"] = shown_url(catalog.source)
    elif with_place and catalog.source:
        source["file"] = catalog.source
    shown: dict[str, Any] = {
        "id": catalog.id,
        "title": catalog.title,
        "format": catalog.format,
        "source": source,
        "entries": catalog.entries,
        "importedBy": catalog.imported_by,
        "importedAt": catalog.imported_at,
        "syncedAt": catalog.synced_at,
    }
    if catalog.failure:
        shown["failure"] = catalog.failure
    if catalog.notes:
        shown["notes"] = list(catalog.notes)
    return shown


def entry_json(entry: StoredEntry) -> dict[str, Any]:
    """The cover of an entry as REST answers it."""
    cover = {"title": entry.title, "description": entry.description, "version": entry.version}
    return {"catalogId": entry.catalog_id, "name": entry.name} | {k: v for k, v in cover.items() if v}


def _rows(catalog_id: str, entries: tuple[Entry, ...]) -> list[StoredEntry]:
    return [
        StoredEntry(
            catalog_id,
            entry.name,
            entry.title,
            entry.description,
            entry.version,
            entry.document,
            tags=entry.tags,
        )
        for entry in entries
    ]


def _bounded(notes: tuple[str, ...]) -> tuple[str, ...]:
    kept = tuple(note[:500] for note in notes[:_MOST_NOTES])
    return kept if len(notes) <= _MOST_NOTES else (*kept, f"… and {len(notes) - _MOST_NOTES} more")


def _made_id(text: str) -> str:
    """An id out of a title, an address or a path."""
    last = text.rstrip("/").rpartition("/")[2].partition("?")[0]
    stem = re.sub(r"\.(?:ya?ml|json)$", "", last.lower())
    return re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:64].rstrip("-") or "catalog"


def _server_name(entry_name: str) -> str:
    """The name of a server: of ``io.github.ann/weather`` it is ``weather``."""
    return fitting_name(entry_name.rpartition("/")[2] or entry_name)


def _chosen(options: list[Option], option_id: str, entry_name: str) -> Option:
    if not options:
        raise InvalidParams(f"the entry {entry_name[:128]!r} has neither a package nor an address")
    if option_id:
        for option in options:
            if option.id == option_id:
                return option
        known = [option.id for option in options]
        raise CatalogNotFound(f"no option {option_id[:128]!r}{suggest(option_id, known)}")
    # The first that can be installed, as the publisher has them in order.
    return next((option for option in options if not option.refused), options[0])
