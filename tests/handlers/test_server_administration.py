"""``/api/v1/servers`` and ``/api/v1/config``: what is answered, and to whom."""

import json
from pathlib import Path
from typing import Any

import pytest
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from tests.conftest import LiveGateway, StartGateway
from tests.support.administered import program, toml

ADMIN = ("admin",)
OPERATOR = ("servers:write", "servers:read")
READER = ("servers:read", "tools:call")
SECRETS = {"env": {"API_KEY": "hunter2"}}


async def send(
    gateway: LiveGateway,
    method: str,
    path: str,
    body: object = None,
    *,
    scopes: tuple[str, ...] = ADMIN,
    headers: dict[str, str] | None = None,
) -> HTTPResponse:
    """The answer to one request below ``/api/v1``."""
    return await AsyncHTTPClient().fetch(
        f"{gateway.url}/api/v1/{path}",
        method=method,
        body=None if body is None else body if isinstance(body, str) else json.dumps(body),
        headers={"Authorization": f"Bearer {gateway.token('ann', scopes)}", **(headers or {})},
        allow_nonstandard_methods=True,
        raise_error=False,
    )


async def ask(
    gateway: LiveGateway, method: str, path: str, body: object = None, *, scopes: tuple[str, ...] = ADMIN
) -> tuple[int, Any]:
    """Status and JSON of one request below ``/api/v1``."""
    answer = await send(gateway, method, path, body, scopes=scopes)
    assert "hunter2" not in answer.body.decode()
    return answer.code, json.loads(answer.body) if answer.body else None


@pytest.mark.gen_test
async def test_a_server_is_added_shown_changed_and_removed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    answer = await send(gateway, "POST", "servers", {"id": "a", "definition": program(**SECRETS)})
    assert (answer.code, answer.headers["Location"]) == (201, "/api/v1/servers/a")
    assert json.loads(answer.body)["definition"]["env"] == {"API_KEY": "[redacted]"}
    await gateway.services.gateway.wait_started(10)
    answer = await send(gateway, "GET", "servers/a")
    shown = json.loads(answer.body)
    assert (shown["state"], shown["origin"], shown["enabled"]) == ("ready", "store", True)
    assert (shown["createdBy"], shown["updatedBy"], shown["isolation"]) == ("ann", "ann", "shared")
    tag = answer.headers["ETag"]
    for if_match, status in (('"other"', 412), ("a", 400), (tag, 200), (tag, 412), ("*", 200)):
        changed = await send(
            gateway,
            "PATCH",
            "servers/a",
            {"definition": {**shown["definition"], "timeout": 5 if if_match == tag else 6}},
            headers={"If-Match": if_match},
        )
        assert changed.code == status, if_match
    assert gateway.services.gateway.definition("a").env == SECRETS["env"]
    assert gateway.services.gateway.definition("a").timeout == 6
    again = await send(gateway, "GET", "servers/a")
    not_changed = await send(gateway, "GET", "servers/a", headers={"If-None-Match": again.headers["ETag"]})
    assert not_changed.code == 200  # its state may be another one
    assert await ask(gateway, "DELETE", "servers/a") == (204, None)
    assert await ask(gateway, "GET", "servers") == (200, {"servers": []})
    status, error = await ask(gateway, "GET", "servers/a")
    assert (status, error["error"]["code"]) == (404, "server_not_found")


@pytest.mark.gen_test
async def test_each_caller_sees_of_a_server_what_is_for_them(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(toml("a"))
    _, admin = await ask(gateway, "GET", "servers/a")
    _, operator = await ask(gateway, "GET", "servers/a", scopes=OPERATOR)
    _, reader = await ask(gateway, "GET", "servers/a", scopes=READER)
    assert admin == operator
    assert operator.keys() - reader.keys() == {
        *("place", "definition", "isolation", "instances", "capabilities", "log")
    }
    assert (reader["state"], reader["origin"]) == ("ready", "file")
    _, listed = await ask(gateway, "GET", "servers", scopes=READER)
    assert listed["servers"] == [reader]
    for path, scopes, missing in (
        ("servers/a", ("tools:call",), "servers:read"),
        ("servers/a", ("servers:write",), "servers:read"),
        ("servers/a/logs", READER, "servers:write"),
        ("servers/a/resources", ("servers:read",), "tools:call:a"),
        ("servers/a/prompts", ("servers:read",), "tools:call:a"),
        ("config", OPERATOR, "admin"),
    ):
        status, refused = await ask(gateway, "GET", path, scopes=scopes)
        assert (status, refused["error"]["details"]) == (403, {"missingScope": missing}), path
    for method, path, body, scopes, missing in (
        ("POST", "servers", {"id": "b", "definition": program()}, OPERATOR, "admin"),
        ("POST", "servers/a/stop", None, READER, "servers:write"),
        ("PATCH", "servers/a", {"definition": {}}, READER, "servers:write"),
        ("DELETE", "servers/a", None, READER, "servers:write"),
        ("PATCH", "config", {"settings": {"calls": {"timeout": 1}}}, OPERATOR, "admin"),
        ("POST", "config/reload", None, OPERATOR, "admin"),
    ):
        status, refused = await ask(gateway, method, path, body, scopes=scopes)
        assert (status, refused["error"]["details"]) == (403, {"missingScope": missing}), path
    status, answer = await ask(
        gateway,
        "POST",
        "servers",
        {"id": "c", "definition": {"url": "http://127.0.0.1:9"}},
        scopes=OPERATOR[:1],
    )
    assert (status, "state" in answer, answer["definition"]) == (201, False, {"url": "http://127.0.0.1:9"})


@pytest.mark.gen_test
async def test_what_a_server_offers_is_listed(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(toml("a", more="[servers.a.tools]\nallow = ['pid', 'value_*']\n"))
    status, answer = await ask(gateway, "GET", "servers/a/tools", scopes=READER)
    assert (status, answer["tools"][0]["name"]) == (200, "pid")
    assert answer["tools"][0].keys() >= {"serverId", "name", "description", "inputSchema"}
    assert await ask(gateway, "GET", "servers/a/tools", scopes=("servers:read",)) == (200, {"tools": []})
    empty: dict[str, Any] = {"resources": [], "resourceTemplates": []}
    assert await ask(gateway, "GET", "servers/a/resources", scopes=READER) == (200, empty)
    assert await ask(gateway, "GET", "servers/a/prompts", scopes=READER) == (200, {"prompts": []})
    assert await ask(gateway, "GET", "servers/a/logs") == (200, {"lines": []})
    await ask(gateway, "POST", "servers/a/disable")
    status, refused = await ask(gateway, "GET", "servers/a/tools", scopes=READER)
    assert (status, refused["error"]["code"]) == (503, "server_unavailable")
    for what in ("tools", "resources", "prompts", "logs"):
        status, refused = await ask(gateway, "GET", f"servers/none/{what}")
        assert (status, refused["error"]["code"]) == (404, "server_not_found")


@pytest.mark.gen_test
async def test_a_server_is_switched_and_says_so(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(toml("a"))
    for action, state, enabled in (
        ("stop", "idle", True),
        ("stop", "idle", True),
        ("disable", "disabled", False),
        ("disable", "disabled", False),
        ("enable", "starting", True),
        ("start", "starting", True),
    ):
        status, answer = await ask(gateway, "POST", f"servers/a/{action}", scopes=OPERATOR)
        assert (status, answer["enabled"]) == (200, enabled), action
        assert answer["state"] in (state, "ready") if enabled else answer["state"] == state
    status, _ = await ask(gateway, "POST", "servers/a/destroy")
    assert status == 404
    for method in ("PATCH", "DELETE"):
        status, refused = await ask(gateway, method, "servers/a", {"definition": {"timeout": 3}})
        assert (status, refused["error"]["code"]) == (409, "conflict")
        assert "[servers.a]" in refused["error"]["details"]["place"]


@pytest.mark.gen_test
@pytest.mark.parametrize(
    ("method", "path", "body", "path_of_fault"),
    [
        ("POST", "servers", {}, "/definition"),
        ("POST", "servers", {"id": "a"}, "/definition"),
        ("POST", "servers", {"id": 3, "definition": {}}, "/id"),
        ("POST", "servers", {"id": "a b", "definition": {"url": "http://h"}}, "/id"),
        ("POST", "servers", {"id": "a", "definition": {}, "more": 1}, "/more"),
        ("POST", "servers", {"id": "a", "definition": {"comand": "x"}}, "/definition"),
        (
            "POST",
            "servers",
            {"id": "a", "definition": {"url": "http://h", "timeout": "3"}},
            "/definition/timeout",
        ),
        ("PATCH", "servers/a", {"definition": 3}, "/definition"),
        ("PATCH", "config", {"settings": {}}, "/settings"),
        ("PATCH", "config", {"settings": {"calls": 3}}, "/settings/calls"),
        ("PATCH", "config", {"settings": {"calls": {"timeout": "3"}}}, "/settings/calls/timeout"),
        ("PATCH", "config", {"settings": {"calls": {"timeout": [3]}}}, "/settings/calls/timeout"),
    ],
)
async def test_a_body_with_faults_is_400_and_names_each(
    start_gateway: StartGateway, method: str, path: str, body: object, path_of_fault: str
) -> None:
    gateway = await start_gateway()
    status, refused = await ask(gateway, method, path, body)
    assert (status, refused["error"]["code"]) == (400, "invalid_params")
    assert path_of_fault in [fault["path"] for fault in refused["error"]["details"]]


@pytest.mark.gen_test
@pytest.mark.parametrize("body", ["", "{", "[]", "3", '{"id": NaN}', "\x00"])
async def test_a_body_that_is_no_object_of_json_is_400(start_gateway: StartGateway, body: str) -> None:
    gateway = await start_gateway()
    for method, path in (("POST", "servers"), ("PATCH", "servers/a"), ("PATCH", "config")):
        status, refused = await ask(gateway, method, path, body)
        assert status == 400
        assert refused["error"]["code"] in ("parse_error", "invalid_params")


@pytest.mark.gen_test
async def test_a_server_with_faults_is_listed_as_failed_and_can_be_mended(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway()
    (tmp_path / "data-0" / "secret").write_text("hunter2")
    definition = program(env={"A": "${file:secret}"})
    await ask(gateway, "POST", "servers", {"id": "a", "definition": definition})
    (tmp_path / "data-0" / "secret").unlink()
    # As a restart would find it.
    await gateway.services.store.servers.put("b", definition, enabled=True, by="ann")
    second = await start_gateway(settings={"data.dir": tmp_path / "data-0"})
    status, listed = await ask(second, "GET", "servers")
    assert [(one["id"], one["state"]) for one in listed["servers"]] == [("a", "failed"), ("b", "failed")]
    assert "cannot be read" in listed["servers"][0]["reason"]
    _, listed = await ask(second, "GET", "servers", scopes=READER)
    assert "reason" not in listed["servers"][0]
    _, config = await ask(second, "GET", "config")
    assert len(config["faults"]) == 2
    status, mended = await ask(second, "PATCH", "servers/a", {"definition": {"env": None}})
    assert (status, mended["state"]) == (200, "starting")
    assert await ask(second, "DELETE", "servers/b") == (204, None)


@pytest.mark.gen_test
async def test_the_configuration_is_shown_without_secrets(start_gateway: StartGateway) -> None:
    configuration = (
        toml("a", more="env = {A = 'hunter2'}") + "[auth]\nsecret = 'hunter2 hunter2 hunter2 hunter2 hunter2'"
    )
    gateway = await start_gateway(configuration)
    status, shown = await ask(gateway, "GET", "config")
    assert status == 200
    assert shown["settings"]["auth"]["secret"]["value"] is True
    assert shown["settings"]["auth"]["secret"]["source"].endswith("[auth] secret")
    assert shown["settings"]["calls"]["timeout"] == {
        "value": 60.0,
        "default": 60.0,
        "source": "default",
        "secret": False,
        "live": True,
        "unit": "seconds",
        "help": shown["settings"]["calls"]["timeout"]["help"],
    }
    (server,) = shown["servers"]
    assert (server["id"], server["origin"], server["definition"]["env"]) == ("a", "file", {"A": "[redacted]"})
    assert shown["files"][0].endswith("mcpgw-0.toml")
    assert (shown["needsRestart"], shown["faults"]) == ([], [])


@pytest.mark.gen_test
async def test_the_configuration_is_changed_and_read_again(
    start_gateway: StartGateway, tmp_path: Path
) -> None:
    gateway = await start_gateway(settings={"reload.watch": False})
    status, changed = await ask(gateway, "PATCH", "config", {"settings": {"calls": {"timeout": 7}}})
    assert (status, changed["applied"]) == (200, {"settings": ["calls.timeout"]})
    assert changed["settings"]["calls"]["timeout"]["source"] == "the store (ann)"
    status, refused = await ask(gateway, "PATCH", "config", {"settings": {"server": {"port": 7}}})
    assert (status, refused["error"]["code"]) == (409, "conflict")
    (tmp_path / "mcpgw-0.toml").write_text(toml("a"))
    status, applied = await ask(gateway, "POST", "config/reload")
    assert (status, applied["applied"]) == (200, {"servers": {"added": ["a"]}})
    (tmp_path / "mcpgw-0.toml").write_text("[calls]\ntimeot = 3\n")
    status, refused = await ask(gateway, "POST", "config/reload")
    assert (status, refused["error"]["code"]) == (409, "conflict")
    assert "did you mean 'timeout'?" in refused["error"]["details"][0]
    _, shown = await ask(gateway, "GET", "config")
    assert shown["faults"] == refused["error"]["details"]
    assert [server["id"] for server in shown["servers"]] == ["a"]


@pytest.mark.gen_test
async def test_a_tool_is_called_by_the_name_that_its_policy_gives_and_by_no_other(
    start_gateway: StartGateway,
) -> None:
    more = """
[servers.a.tools]
allow = ["e*", "pid"]
block = ["exit*"]
prefix = "my_"
hidden = ["pid"]
[servers.a.tools.echo]
rename = "say"
fixed = { from = "gateway" }
defaults = { text = "nothing" }
"""
    gateway = await start_gateway(toml("a", more=more))
    scopes = ("tools:call:a/my_say", "tools:call:a/echo", "tools:call:a/pid")
    client = await gateway.connect("ann", scopes)
    listed = await client.request({"type": "list_tools", "id": "l"})
    assert [tool["name"] for tool in listed["data"]["tools"]] == ["my_say"]
    answer = await client.call("a", "my_say", {"text": "hello"})
    assert answer["type"] == "tool_response"
    assert answer["data"]["toolName"] == "my_say"
    assert "gateway" in str(answer["data"]["content"])
    refused = await client.call("a", "my_say", {"from": "me"}, call_id="call-2")
    assert (refused["data"]["code"], refused["data"]["details"][0]["path"]) == (
        "invalid_params",
        "/data/params/from",
    )
    for tool in ("echo", "pid", "say"):
        refused = await client.call("a", tool, {}, call_id=f"call {tool}")
        assert refused["data"]["code"] in ("tool_not_found", "permission_denied")
    await client.leave()
    everything = await gateway.connect("bob", ("tools:call",))
    assert (await everything.call("a", "my_pid"))["type"] == "tool_response"
    listed = await everything.request({"type": "list_tools", "id": "l"})
    assert "my_pid" not in [tool["name"] for tool in listed["data"]["tools"]]
    await everything.leave()


@pytest.mark.gen_test
async def test_a_changed_setting_holds_for_connections_from_then_on(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    before = await gateway.connect("ann")
    changes = {"websocket": {"ping_interval": 7, "pong_timeout": 3, "max_batch": 2}}
    assert (await ask(gateway, "PATCH", "config", {"settings": changes}))[0] == 200
    after = await gateway.connect("ann")
    batch = [{"type": "ping", "id": str(n)} for n in range(3)]
    await before.send(batch)
    assert (await before.receive())["type"] == "pong"
    await after.send(batch)
    assert (await after.receive())["data"]["code"] == "too_large"
    status = await after.request({"type": "status", "id": "s"})
    assert (status["data"]["pingInterval"], status["data"]["pongTimeout"]) == (7000, 3000)
    for client in (before, after):
        client.close()


@pytest.mark.gen_test
async def test_a_log_level_and_allowed_hosts_hold_at_once(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    foreign = {"Host": "gateway.example"}
    assert (await send(gateway, "GET", "servers", headers=foreign)).code == 403
    settings = {"server": {"allowed_hosts": ["gateway.example"]}, "log": {"level": "debug"}}
    assert (await ask(gateway, "PATCH", "config", {"settings": settings}))[0] == 200
    assert (await send(gateway, "GET", "servers", headers=foreign)).code == 200
    back = {"server": {"allowed_hosts": None}, "log": {"level": None}}
    assert (await ask(gateway, "PATCH", "config", {"settings": back}))[0] == 200
    assert (await send(gateway, "GET", "servers", headers=foreign)).code == 403


@pytest.mark.gen_test
async def test_an_entry_of_a_catalog_becomes_a_server_that_runs(start_gateway: StartGateway) -> None:
    gateway = await start_gateway()
    catalog = {"mcpServers": {"a": program()}}
    assert (await ask(gateway, "POST", "catalogs", {"id": "mine", "content": catalog}))[0] == 201
    assert (await ask(gateway, "POST", "catalogs/mine/entries/a/install"))[0] == 201
    await gateway.services.gateway.wait_started(10)
    assert (await ask(gateway, "GET", "servers/a"))[1]["state"] == "ready"
    status, refused = await ask(gateway, "POST", "catalogs/mine/entries/a/install")
    assert (status, refused["error"]["code"]) == (409, "duplicate_id")
