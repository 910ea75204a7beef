"""Import, sync, search and install, with a real store."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from mcpgw.audit import Actor
from mcpgw.catalogs import CatalogService, Source
from mcpgw.errors import CatalogNotFound, DuplicateId, InvalidParams
from mcpgw.settings import CatalogSettings
from mcpgw.store import Store
from mcpgw.wire.events import EVENT_TYPES
from mcpgw.wire.validation import SchemaChecker
from tests.catalogs.web import Answer, web_server

PUBLISHED = Path(__file__).parent / "published"
DOCKER = Source("upload", content=(PUBLISHED / "docker-mcp.yaml").read_text("utf-8"))
ANN = Actor("127.0.0.1", "ann")


class Heard:
    """The events that were published, each held against its schema."""

    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def publish(self, type_name: str, data: Mapping[str, Any]) -> None:
        assert SchemaChecker(EVENT_TYPES[type_name].data_schema).faults(data) == []
        self.events.append((type_name.removeprefix("catalog."), dict(data)))

    def take(self) -> list[tuple[str, str, str]]:
        """What was heard since the last time: name, catalog, reason."""
        taken, self.events = self.events, []
        return [(name, data["catalogId"], data.get("reason", "")) for name, data in taken]


class StoredServers:
    """An administration that keeps what it is given in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, name: str, table: Mapping[str, Any], actor: Actor) -> None:
        await self._store.servers.put(name, table, enabled=True, by=actor.user or "")


@asynccontextmanager
async def service(folder: Path, **settings: Any) -> AsyncIterator[tuple[CatalogService, Heard, Store]]:
    store = await Store.open(folder / "mcpgw.db")
    heard = Heard()
    try:
        yield CatalogService(store, CatalogSettings(**settings), heard.publish), heard, store
    finally:
        await store.close()


@pytest.mark.gen_test
async def test_an_upload_is_imported_listed_searched_and_removed(tmp_path: Path) -> None:
    async with service(tmp_path) as (catalogs, heard, _):
        added = await catalogs.add(DOCKER, by="ann")
        assert (added.id, added.title, added.format) == ("docker-mcp-catalog", "Docker MCP Catalog", "docker")
        assert (added.entries, added.imported_by, added.source_kind) == (7, "ann", "upload")
        assert heard.take() == [("imported", added.id, "")]
        assert await catalogs.list_catalogs() == [added]
        page = await catalogs.search("JIRA tools", catalog_id=added.id)
        assert (page.total, page.entries[0].name) == (1, "atlassian")
        assert (await catalogs.search("", limit=2)).total == 7
        with pytest.raises(DuplicateId):
            await catalogs.add(DOCKER, by="bob")
        assert (await catalogs.add(DOCKER, catalog_id="other", by="bob")).id == "other"
        await catalogs.remove(added.id)
        with pytest.raises(CatalogNotFound, match=r"no catalog 'docker-mcp-catalog'; there is 'other'"):
            await catalogs.get(added.id)
        with pytest.raises(CatalogNotFound):
            await catalogs.remove(added.id)


@pytest.mark.gen_test
async def test_a_sync_tells_what_has_changed_and_only_that(tmp_path: Path) -> None:
    with web_server() as web:
        web.answers["/mine.yaml"] = Answer(b"registry: {a: {image: x}, b: {image: y}}")
        async with service(tmp_path) as (catalogs, heard, _):
            added = await catalogs.add(Source("url", f"{web.url}/mine.yaml"), by="ann")
            assert (added.id, heard.take()) == ("mine", [("imported", "mine", "")])
            _, changes = await catalogs.sync("mine")
            assert not changes
            assert heard.take() == [("synced", "mine", "")]
            web.answers["/mine.yaml"] = Answer(b"registry: {a: {image: z}, c: {image: y}, d: 1}")
            synced, changes = await catalogs.sync("mine")
            assert (changes.added, changes.changed, changes.removed) == (1, 1, 1)
            assert synced.notes == ("d: is no object",)
            assert (synced.imported_by, synced.imported_at) == ("ann", added.imported_at)
            assert heard.take() == [("updated", "mine", "1 new, 1 changed, 1 gone"), ("synced", "mine", "")]
            web.answers["/mine.yaml"] = Answer(status=500)
            with pytest.raises(InvalidParams, match="the answer was 500"):
                await catalogs.sync("mine")
            assert heard.take() == [("error", "mine", "could not be read: the answer was 500")]
            failed = await catalogs.get("mine")
            assert (failed.entries, failed.failure) == (2, "could not be read: the answer was 500")
            web.answers["/mine.yaml"] = Answer(b'{"mcpServers": {"a": {"command": "x"}}}')
            with pytest.raises(InvalidParams, match="is of another format now: client, not docker"):
                await catalogs.sync("mine")
            web.answers["/mine.yaml"] = Answer(b"registry: {a: {image: x}}")
            assert (await catalogs.sync("mine"))[0].failure == ""


@pytest.mark.gen_test
async def test_an_upload_is_synced_with_new_content_and_a_file_with_itself(tmp_path: Path) -> None:
    async with service(tmp_path) as (catalogs, _, _store):
        await catalogs.add(Source("upload", content="registry: {a: {image: x}}"), catalog_id="up", by="ann")
        with pytest.raises(InvalidParams, match="send its new content"):
            await catalogs.sync("up")
        _, changes = await catalogs.sync("up", content="registry: {b: {image: x}}")
        assert (changes.added, changes.removed) == (1, 1)
        file = tmp_path / "list.json"
        file.write_text('{"mcpServers": {"a": {"command": "x"}}}')
        assert (await catalogs.add(Source("file", str(file)), by="ann")).id == "list"
        with pytest.raises(InvalidParams, match="is read from where it came"):
            await catalogs.sync("list", content="{}")
        file.write_text('{"mcpServers": {"a": {"command": "y"}}}')
        assert (await catalogs.sync("list"))[1].changed == 1
        with pytest.raises(InvalidParams, match="is no absolute path"):
            await catalogs.add(Source("file", "list.json"), by="ann")


@pytest.mark.gen_test
async def test_what_cannot_be_imported_leaves_nothing_but_an_event(tmp_path: Path) -> None:
    async with service(tmp_path, max_size=1024, max_entries=2) as (catalogs, heard, _):
        three = json.dumps({"mcpServers": {name: {"command": "x"} for name in "abc"}})
        for content, reason in (
            ("hello", "is no catalog"),
            ("x" * 1025, "is larger than 1024 bytes"),
            (three, "has more than 2 entries"),
            ('{"mcpServers": {}}', "has no entries"),
        ):
            with pytest.raises(InvalidParams, match=reason):
                await catalogs.add(Source("upload", content=content), catalog_id="x", by="ann")
            ((name, catalog_id, told),) = heard.take()
            assert (name, catalog_id) == ("error", "x")
            assert reason in told
        with pytest.raises(InvalidParams, match="is no id of a catalog"):
            await catalogs.add(DOCKER, catalog_id="A b", by="ann")
        assert await catalogs.list_catalogs() == []


@pytest.mark.gen_test
async def test_an_entry_is_installed_with_its_references_as_they_were_given(tmp_path: Path) -> None:
    async with service(tmp_path) as (catalogs, _, store):
        await catalogs.add(DOCKER, catalog_id="docker", by="ann")
        servers, named = StoredServers(store), list[str]()
        name = await catalogs.install(
            servers,
            "docker",
            "elasticsearch",
            values={"elasticsearch.url": "https://es", "elasticsearch.api_key": "${env:ES_KEY}"},
            settings={"isolation": "user", "env": {"TZ": "UTC"}},
            permit=named.append,
            actor=ANN,
        )
        assert named == [name]
        stored = await store.servers.get(name)
        assert stored is not None
        assert (stored.name, stored.created_by) == ("elasticsearch", "ann")
        assert stored.table["env"] == {"ES_API_KEY": "${env:ES_KEY}", "ES_URL": "https://es", "TZ": "UTC"}
        assert (stored.table["command"], stored.table["isolation"]) == ("docker", "user")


@pytest.mark.gen_test
async def test_an_option_is_chosen_by_its_id_else_the_first_that_can_be_installed(tmp_path: Path) -> None:
    document = {
        "name": "io.github.ann/weather",
        "packages": [{"registryType": "mcpb", "identifier": "https://x/y.mcpb"}],
        "remotes": [
            {"type": "streamable-http", "url": "https://x/mcp"},
            {"type": "sse", "url": "https://x/sse"},
        ],
    }
    async with service(tmp_path) as (catalogs, _, _store):
        source = Source("upload", content=json.dumps(document))
        assert (await catalogs.add(source, by="ann")).id == "weather"
        prepared = await catalogs.prepare("weather", "io.github.ann/weather", values={})
        assert prepared == ("weather", {"url": "https://x/mcp", "transport": "http"})
        name, table = await catalogs.prepare(
            "weather", "io.github.ann/weather", option_id="remote:https://x/sse", server_name="w", values={}
        )
        assert (name, table["transport"]) == ("w", "sse")
        with pytest.raises(InvalidParams, match="cannot be installed: a bundle"):
            await catalogs.prepare(
                "weather", "io.github.ann/weather", option_id="mcpb:https://x/y.mcpb", values={}
            )
        with pytest.raises(CatalogNotFound, match="no option 'sse'"):
            await catalogs.prepare("weather", "io.github.ann/weather", option_id="sse", values={})
        with pytest.raises(CatalogNotFound, match="no entry 'weathr'"):
            await catalogs.prepare("weather", "weathr", values={})
        with pytest.raises(InvalidParams, match="cannot be the name of a server"):
            await catalogs.prepare("weather", "io.github.ann/weather", server_name="a b", values={})


@pytest.mark.gen_test
async def test_a_slow_sync_replaces_nothing_that_a_newer_one_has_read(tmp_path: Path) -> None:
    async with service(tmp_path) as (catalogs, _, _store):
        await catalogs.add(DOCKER, catalog_id="c", by="ann")
        older, newer = (json.dumps({"mcpServers": {name: {"command": "x"}}}) for name in ("older", "newer"))
        pipe = asyncio.Event()
        read = catalogs._read

        async def slow_read(source: Source, format_name: str = "") -> Any:
            if "older" in source.content:
                await asyncio.wait_for(pipe.wait(), 10)
            return await read(source)

        catalogs._read = slow_read  # type: ignore[method-assign]
        first = asyncio.create_task(catalogs.sync("c", content=older))
        await asyncio.sleep(0)
        second = asyncio.create_task(catalogs.sync("c", content=newer))
        gone = asyncio.create_task(catalogs.remove("c"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(second), 0.3)
        pipe.set()
        await asyncio.gather(first, second, gone)
        with pytest.raises(CatalogNotFound):
            await catalogs.get("c")
        assert catalogs._locks == {}
