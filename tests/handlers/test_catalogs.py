"""``/api/v1/catalogs``: who may read, who may change, and what is answered."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tornado.httpclient import AsyncHTTPClient

from mcpgw.audit import Actor
from mcpgw.store import Store
from tests.conftest import LiveGateway, StartGateway
from tests.support.waiting import until

PUBLISHED = Path(__file__).parents[1] / "catalogs" / "published"
DOCKER = (PUBLISHED / "docker-mcp.yaml").read_text("utf-8")
GITHUB = json.loads((PUBLISHED / "registry-github.json").read_text("utf-8"))
CLIENT = (PUBLISHED / "client-claude.json").read_text("utf-8")
ADMIN = ("admin",)
READER = ("servers:read",)


class StoredServers:
    """An administration that keeps what it is given in the store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, name: str, table: Mapping[str, Any], actor: Actor) -> None:
        await self._store.servers.put(name, table, enabled=True, by=actor.user or "")


async def ask(
    gateway: LiveGateway, method: str, path: str, body: object = None, scopes: tuple[str, ...] = ADMIN
) -> tuple[int, Any]:
    """Status and JSON of one request below ``/api/v1/catalogs``."""
    answer = await AsyncHTTPClient().fetch(
        f"{gateway.url}/api/v1/catalogs{path}",
        method=method,
        body=None if body is None else json.dumps(body),
        headers={"Authorization": f"Bearer {gateway.token('ann', scopes)}"},
        allow_nonstandard_methods=True,
        raise_error=False,
    )
    return answer.code, json.loads(answer.body) if answer.body else None


@pytest.mark.gen_test
async def test_a_catalog_is_imported_read_searched_synced_and_removed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    assert await ask(gateway, "GET", "") == (200, {"catalogs": []})
    status, added = await ask(gateway, "POST", "", {"id": "docker", "content": DOCKER})
    assert (status, added["id"], added["entries"], added["importedBy"]) == (201, "docker", 7, "ann")
    assert added["source"] == {"kind": "upload"}
    status, listed = await ask(gateway, "GET", "?q=jira", scopes=READER)
    assert (status, listed["catalogs"], listed["total"]) == (200, [added], 1)
    assert listed["entries"][0]["name"] == "atlassian"
    status, one = await ask(gateway, "GET", "/docker?limit=2&offset=6", scopes=READER)
    assert (status, one["total"], [entry["name"] for entry in one["entries"]]) == (200, 7, ["aks"])
    status, synced = await ask(gateway, "POST", "/docker/sync", {"content": "registry: {a: {image: x}}"})
    assert (status, synced["changes"]) == (200, {"added": 1, "changed": 0, "removed": 7})
    assert await ask(gateway, "DELETE", "/docker") == (204, None)
    status, refused = await ask(gateway, "GET", "/docker", scopes=READER)
    assert (status, refused["error"]["code"]) == (404, "not_found")
    assert "no catalog 'docker'" in refused["error"]["message"]


@pytest.mark.gen_test
async def test_an_entry_tells_what_it_needs_and_an_admin_what_it_runs(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    await ask(gateway, "POST", "", {"id": "registry", "content": GITHUB})
    path = "/registry/entries/" + quote("io.github.github/github-mcp-server", safe="")
    status, entry = await ask(gateway, "GET", path, scopes=READER)
    (option,) = entry["options"]
    assert (status, entry["title"]) == (200, "GitHub MCP Server")
    assert option["inputs"] == [{"name": "token", "required": True, "secret": True, "repeated": False}]
    assert "command" not in option
    # A proxy may have decoded the slash.
    status, entry = await ask(gateway, "GET", path.replace("%2F", "/"))
    assert entry["options"][0]["command"][:2] == ["docker", "run"]
    await ask(gateway, "POST", "", {"id": "mine", "content": CLIENT})
    for scopes in (ADMIN, READER):
        assert "YOUR_GITHUB_PAT" not in str(await ask(gateway, "GET", "/mine/entries/github", scopes=scopes))


@pytest.mark.gen_test
async def test_a_reader_sees_no_default_of_somebody_s_own_configuration(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    env = {"API_KEY": "${API_KEY:-sk-live-realsecret123456}", "PLACE": "${PLACE:-of-mine}"}
    content = {"mcpServers": {"x": {"command": "npx", "args": ["y"], "env": env}}}
    await ask(gateway, "POST", "", {"id": "mine", "content": content})
    _, seen = await ask(gateway, "GET", "/mine/entries/x", scopes=READER)
    assert {one["name"] for one in seen["options"][0]["inputs"]} == {"API_KEY", "PLACE"}
    assert "realsecret" not in str(seen)
    assert "of-mine" not in str(seen)


@pytest.mark.gen_test
async def test_what_came_of_every_action_stands_in_the_audit_log(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    content = {"mcpServers": {"x": {"url": "http://127.0.0.1:9", "lazy": True}}}
    await ask(gateway, "POST", "", {"title": "Mine", "content": content})
    await ask(gateway, "POST", "", {"id": "mine", "content": content})
    await ask(gateway, "POST", "", {"content": "{}"}, READER)
    await ask(gateway, "POST", "/mine/entries/y/install")
    await ask(gateway, "POST", "/mine/sync")
    await ask(gateway, "DELETE", "/mine", scopes=READER)
    await ask(gateway, "DELETE", "/mine")
    await ask(gateway, "DELETE", "/mine")
    log = gateway.services.config.audit.file

    def told() -> list[tuple[str, str, str]]:
        lines = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
        lines = [line for line in lines if line["event"] == "admin"]
        return [(*line["what"].values(), line["outcome"]) for line in lines]

    await until(lambda: len(told()) == 8, what="the lines")
    assert told() == [
        ("catalogs.import", "mine", "ok"),
        ("catalogs.import", "mine", "duplicate_id"),
        ("catalogs.import", "permission_denied"),
        ("catalogs.install", "mine y", "not_found"),
        ("catalogs.sync", "mine", "invalid_params"),
        ("catalogs.remove", "mine", "permission_denied"),
        ("catalogs.remove", "mine", "ok"),
        ("catalogs.remove", "mine", "not_found"),
    ]


@pytest.mark.gen_test
async def test_an_entry_is_installed_as_a_server(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    store = gateway.services.store
    object.__setattr__(gateway.services, "administration", StoredServers(store))
    await ask(gateway, "POST", "", {"id": "docker", "content": DOCKER})
    install = "/docker/entries/git/install"
    status, refused = await ask(gateway, "POST", install)
    assert (status, refused["error"]["code"]) == (400, "invalid_params")
    assert refused["error"]["details"] == [{"path": "/values/git.paths", "reason": "is required"}]
    body = {"server": "my-git", "values": {"git.paths": ["/a"]}, "settings": {"lazy": True}}
    assert await ask(gateway, "POST", install, body) == (201, {"server": "my-git"})
    (stored,) = await store.servers.list()
    assert (stored.name, stored.created_by, stored.table["lazy"]) == ("my-git", "ann", True)
    assert stored.table["args"][-3:] == ["-v", "/a:/a", "mcp/git"]


@pytest.mark.gen_test
async def test_an_import_is_an_event_and_a_line_of_the_audit_log(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    client = await gateway.connect("bob", ("events:read",))
    await client.request({"type": "subscribe", "id": "s", "data": {"channel": "catalogs"}})
    await ask(gateway, "POST", "", {"id": "docker", "content": DOCKER})
    event = await client.receive()
    assert (event["type"], event["data"]) == ("catalog.imported", {"catalogId": "docker"})
    await client.leave()
    log = gateway.services.config.audit.file
    await until(lambda: '"action": "catalogs.import", "target": "docker"' in log.read_text("utf-8"))


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "", {"content": DOCKER}),
        ("DELETE", "/docker", None),
        ("POST", "/docker/sync", None),
        ("POST", "/docker/entries/git/install", None),
    ],
)
async def test_only_an_admin_changes_anything_and_only_a_reader_reads(
    start_gateway: StartGateway, method: str, path: str, body: object
) -> None:
    gateway = await start_gateway()
    for scopes in (READER, ("tools:call",)):
        status, refused = await ask(gateway, method, path, body, scopes)
        assert (status, refused["error"]["details"]) == (403, {"missingScope": "admin"})
    for read in ("", "/docker", "/docker/entries/git"):
        status, refused = await ask(gateway, "GET", read, scopes=("tools:call",))
        assert (status, refused["error"]["details"]) == (403, {"missingScope": "servers:read"})


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        ({}, 400, "oneOf"),
        ({"url": "https://x", "content": "x"}, 400, "oneOf"),
        ({"content": "hello"}, 400, "is no catalog"),
        ({"url": "ftp://x/y"}, 400, "http:// or https://"),
        ({"file": "/nowhere/at/all"}, 400, "cannot be read: No such file"),
        ({"content": DOCKER, "id": "A b"}, 400, "is no id"),
        ({"content": DOCKER, "color": "red"}, 400, "is not known"),
    ],
)
async def test_a_wrong_import_is_told_in_words(
    start_gateway: StartGateway, body: object, status: int, reason: str
) -> None:
    gateway = await start_gateway()
    answered, refused = await ask(gateway, "POST", "", body)
    assert (answered, refused["error"]["code"]) == (status, "invalid_params")
    assert reason in refused["error"]["message"]
    for query in ("?limit=x", "?limit=501", "?offset=-1"):
        assert (await ask(gateway, "GET", "?q=a&" + query[1:]))[0] == 400


@pytest.mark.gen_test
async def test_catalogs_outlive_the_gateway_and_a_taken_id_is_409(start_gateway: StartGateway) -> None:
    first = await start_gateway()
    await ask(first, "POST", "", {"id": "docker", "content": DOCKER})
    status, refused = await ask(first, "POST", "", {"id": "docker", "content": DOCKER})
    assert (status, refused["error"]["code"]) == (409, "duplicate_id")
    second = await start_gateway(settings={"data.dir": first.services.config.data.dir})
    assert (await ask(second, "GET", "/docker"))[1]["catalog"]["entries"] == 7
