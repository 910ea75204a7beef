"""``/api/v1/catalogs``: lists of servers that others publish, and what is installed from them."""

import json
from functools import partial
from typing import Any

from mcpgw.catalogs import LARGEST_PAGE, Source, catalog_json, entry_json
from mcpgw.errors import InvalidParams, PermissionDenied, ServerUnavailable
from mcpgw.services import require_see_server

from .base import ApiHandler

_LARGEST_OFFSET = 10**9


class CatalogHandler(ApiHandler):
    """What all resources here have in common."""

    def require_reader(self) -> None:
        """Refuse whoever may not read what servers there are.

        Raises:
            PermissionDenied: the caller has neither `servers:read` nor `admin`.
        """
        if not self.caller.scopes & {"servers:read", "admin"}:
            raise PermissionDenied(
                "the token lacks the scope 'servers:read'", details={"missingScope": "servers:read"}
            )

    @property
    def is_admin(self) -> bool:
        """Whether the caller may see what an entry would run, and change anything."""
        return "admin" in self.caller.scopes

    def whole_number(self, name: str, default: int, maximum: int) -> int:
        """A number of the query.

        Raises:
            InvalidParams: it is none, or not between 0 and `maximum`.
        """
        given = self.get_query_argument(name, str(default))
        if not (given.isascii() and given.isdecimal() and len(given) <= 10 and int(given) <= maximum):  # noqa: PLR2004
            reason = f"must be a whole number from 0 to {maximum}"
            raise InvalidParams(f"{name}: {reason}", details=[{"path": f"/{name}", "reason": reason}])
        return int(given)

    def page(self) -> tuple[int, int]:
        """How many entries the query asks for, and how many of them are to be passed over.

        Raises:
            InvalidParams: one of them is no number, or out of bounds.
        """
        limit = self.whole_number("limit", 50, LARGEST_PAGE)
        return limit, self.whole_number("offset", 0, _LARGEST_OFFSET)

    async def found(self, catalog_id: str | None) -> dict[str, Any]:
        """The entries that the query asks for, as members of an answer."""
        limit, offset = self.page()
        words = self.get_query_argument("q", "")[:256]
        page = await self.services.catalogs.search(words, catalog_id=catalog_id, limit=limit, offset=offset)
        return {
            "total": page.total,
            "offset": offset,
            "entries": [entry_json(entry) for entry in page.entries],
        }


class CatalogsHandler(CatalogHandler):
    """All catalogs."""

    async def get(self) -> None:
        """List them; with ``q`` also the entries of all of them that hold its words."""
        self.require_reader()
        self.page()
        catalogs = await self.services.catalogs.list_catalogs()
        answer: dict[str, Any] = {"catalogs": [catalog_json(c, with_place=self.is_admin) for c in catalogs]}
        if self.get_query_argument("q", ""):
            answer |= await self.found(None)
        self.write_json(answer)

    async def post(self) -> None:
        """Import one; 201."""
        with self.audited("catalogs.import") as done:
            self.require_admin()
            body = self.read_body("catalog_import")
            done.target = body.get("id", "")
            added = await self.services.catalogs.add(
                _source(body), catalog_id=body.get("id", ""), title=body.get("title", ""), by=self.caller.user
            )
            done.target = added.id
        self.set_status(201)
        self.set_header("Location", f"/api/v1/catalogs/{added.id}")
        self.write_json(catalog_json(added, with_place=True))


class OneCatalogHandler(CatalogHandler):
    """One catalog."""

    async def get(self, catalog_id: str) -> None:
        """What it is, and those of its entries that the query asks for."""
        self.require_reader()
        catalog = await self.services.catalogs.get(catalog_id)
        found = await self.found(catalog_id)
        self.write_json({"catalog": catalog_json(catalog, with_place=self.is_admin), **found})

    async def delete(self, catalog_id: str) -> None:
        """Remove it; 204."""
        with self.audited("catalogs.remove", catalog_id):
            self.require_admin()
            await self.services.catalogs.remove(catalog_id)
        self.set_status(204)
        self.finish()


class CatalogSyncHandler(CatalogHandler):
    """Reading a catalog again."""

    async def post(self, catalog_id: str) -> None:
        """Do it, and answer what has changed."""
        with self.audited("catalogs.sync", catalog_id):
            self.require_admin()
            content = self.read_body("catalog_sync").get("content", "") if self.request.body else ""
            catalog, changes = await self.services.catalogs.sync(catalog_id, content=_text(content))
        numbers = {"added": changes.added, "changed": changes.changed, "removed": changes.removed}
        self.write_json({"catalog": catalog_json(catalog, with_place=True), "changes": numbers})


class CatalogEntryHandler(CatalogHandler):
    """One entry of a catalog."""

    async def get(self, catalog_id: str, name: str) -> None:
        """What it needs; for an admin, also what it would run or reach."""
        self.require_reader()
        entry, options = await self.services.catalogs.entry(catalog_id, name)
        shown = [option.to_json() if self.is_admin else option.needs() for option in options]
        self.write_json({**entry_json(entry), "options": shown})


class CatalogInstallHandler(CatalogHandler):
    """Making a server of an entry."""

    async def post(self, catalog_id: str, name: str) -> None:
        """Add it; 201."""
        with self.audited("catalogs.install", f"{catalog_id} {name}"):
            self.require_admin()
            body = self.read_body("catalog_install") if self.request.body else {}
            administration = self.services.administration
            if administration is None:
                raise ServerUnavailable("this gateway takes no servers while it runs")
            server = await self.services.catalogs.install(
                administration,
                catalog_id,
                name,
                option_id=body.get("option", ""),
                server_name=body.get("server", ""),
                values=body.get("values", {}),
                settings=body.get("settings", {}),
                permit=partial(require_see_server, self.caller),
                actor=self.actor(),
            )
        self.set_status(201)
        self.set_header("Location", f"/api/v1/servers/{server}")
        self.write_json({"server": server})


def _source(body: dict[str, Any]) -> Source:
    if "url" in body:
        return Source("url", body["url"])
    if "file" in body:
        return Source("file", body["file"])
    return Source("upload", content=_text(body["content"]))


def _text(content: Any) -> str:
    """An upload is the text of a file, or the JSON itself."""
    return content if isinstance(content, str) else json.dumps(content)
