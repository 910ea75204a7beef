"""``/api/v1/openapi.json``: valid, whole, true of the routes, and of each caller's own tools."""

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

import mcpgw.app
from mcpgw import __version__
from mcpgw.access.tokens import Principal
from mcpgw.errors import codes
from mcpgw.wire.foreign_schemas import moved
from mcpgw.wire.openapi import HTTP_CODES, openapi_document, tool_path
from mcpgw.wire.rest_operations import OPERATIONS
from mcpgw.wire.validation import UnusableSchemaError
from tests.conftest import LiveGateway, StartGateway
from tests.support.gateway_process import GatewayProcess
from tests.support.logins import GOOD, add_user
from tests.support.raw_socket import RawAnswer, fetch

SERVERS = Path(__file__).parent.parent / "servers"
DOCUMENT = openapi_document()
NOT_REST = {"/ws", "/ws/echo", "/api/v1/ws", "/mcp", "/mcp/*", "/docs", "/docs/*", "/join", "/join/*"}
"""Other protocols, which have documents of their own, and pages for people."""
VERBS = ("get", "head", "post", "put", "patch", "delete")


@dataclass(eq=False)
class ATool:
    """A tool as a server may list it."""

    name: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None = None
    title: str | None = None
    description: str = ""
    annotations: Mapping[str, Any] | None = None


def faults(document: Mapping[str, Any]) -> list[str]:
    """What is wrong with a document."""
    return [str(error)[:300] for error in OpenAPIV31SpecValidator(dict(document)).iter_errors()]


def checker(document: Mapping[str, Any], name: str) -> Draft202012Validator:
    """Checks a value against a schema of the document, as a client's library does."""
    resource = Resource.from_contents(dict(document), default_specification=DRAFT202012)
    registry: Any = Registry().with_resource("urn:document", resource)
    return Draft202012Validator({"$ref": f"urn:document#/components/schemas/{name}"}, registry=registry)


def routes() -> set[str]:
    """Every verb and path that the gateway routes, alternatives one by one, with ``*`` for what varies."""
    found = set()
    every: list[tuple[str, type]] = vars(mcpgw.app)["ROUTES"]
    for pattern, handler in every:
        choices = re.search(r"\(([a-z]+(?:\|[a-z]+)+)\)", pattern)
        for choice in choices[1].split("|") if choices else [""]:
            path = re.sub(r"\([^)]*\)", "*", pattern.replace(choices[0], choice) if choices else pattern)
            if path in NOT_REST:
                continue
            for verb in VERBS:
                if not getattr(handler, verb).__qualname__.startswith("RequestHandler."):
                    found.add(f"{verb} {path}")
    return found


def test_it_is_valid() -> None:
    assert faults(DOCUMENT) == []
    assert faults({**DOCUMENT, "paths": {"/x": {"get": {"responses": {"200": {}}}}}}) != []


def test_every_route_is_in_it_and_nothing_else() -> None:
    documented = {
        f"{verb} {re.sub(r'{[^}]*}', '*', path)}"
        for path, item in DOCUMENT["paths"].items()
        for verb in item
        if verb in VERBS
    }
    assert documented == routes()


def test_every_operation_has_a_name_of_its_own_and_says_what_it_may_be_refused_with() -> None:
    names = [operation.name for operation in OPERATIONS]
    assert len(set(names)) == len(names)
    for operation in OPERATIONS:
        made = DOCUMENT["paths"][operation.path][operation.method]
        assert {"400", "403", "500", str(operation.status)} <= set(made["responses"])
        assert ("401" in made["responses"]) is (operation.scope is not None or 401 in operation.errors)


def test_every_code_of_an_error_is_in_it_with_its_status() -> None:
    members = DOCUMENT["components"]["schemas"]["error"]["properties"]["error"]["properties"]
    assert set(members["code"]["enum"]) == {*codes(), *HTTP_CODES}
    told = {
        (code.strip(), int(status))
        for status, refusal in DOCUMENT["components"]["responses"].items()
        for code in refusal["description"].partition(":")[2].split(",")
    }
    # A call over REST cannot be cancelled by anything but its connection's end; nobody is told then.
    expected = {(code, error.http_status) for code, error in codes().items() if code != "cancelled"}
    assert expected <= told


def test_each_tool_is_an_operation_with_its_own_schemas() -> None:
    point = {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    tool = ATool(
        "move",
        {
            "type": "object",
            "properties": {"to": {"$ref": "#/$defs/point"}},
            "required": ["to"],
            "$defs": {"point": point},
        },
        {"type": "object", "properties": {"at": {"$ref": "#/definitions/p"}}, "definitions": {"p": point}},
        title="Move it",
        description="Moves it there.",
        annotations={"readOnlyHint": False},
    )
    document = openapi_document([("robot", tool)])
    assert faults(document) == []
    operation = document["paths"]["/api/v1/servers/robot/tools/move"]["post"]
    assert (operation["operationId"], operation["summary"]) == ("robot__move", "Move it")
    assert operation["security"] == [{"bearer": ["tools:call:robot/move"]}]
    assert operation["x-mcp-annotations"] == {"readOnlyHint": False}
    body = operation["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["params"]
    given = checker(document, body["properties"]["params"]["$ref"].rpartition("/")[2])
    assert given.is_valid({"to": {"x": 1}})
    assert not given.is_valid({"to": {"x": "1"}})
    answer = checker(document, "tool.robot__move.answer")
    common = {"content": [], "serverId": "robot", "toolName": "move", "durationMs": 1}
    at = {"at": {"x": 2}}
    assert answer.is_valid(common | {"success": True, "result": at, "structuredContent": at})
    assert not answer.is_valid(common | {"success": True, "result": at, "structuredContent": {"at": {}}})
    assert answer.is_valid(common | {"success": False, "isError": True, "result": "no"})
    assert "robot" not in json.dumps(DOCUMENT)


def test_names_that_programs_cannot_have_are_made_ones_and_none_is_there_twice() -> None:
    tools = [("s", ATool(name, {"type": "object"})) for name in ("a b", "a/b", "a_b", "ü{x}", "callTool")]
    document = openapi_document(tools)
    assert faults(document) == []
    names = [item["post"]["operationId"] for path, item in document["paths"].items() if "/servers/s/" in path]
    assert len(set(names)) == len(names) == 5
    assert all(re.fullmatch(r"\w+", name, re.ASCII) for name in names)
    assert tool_path("s", "a/b {x}") == "/api/v1/servers/s/tools/a%2Fb%20%7Bx%7D"


def test_a_tool_that_no_path_can_name_is_left_out() -> None:
    tools = [("s", ATool(name, {"type": "object"})) for name in (".", "..", "...")]
    document = openapi_document(tools)
    assert faults(document) == []
    assert [path for path in document["paths"] if "/servers/s/" in path] == ["/api/v1/servers/s/tools/..."]
    assert [tag for tag in document["tags"] if tag["name"] == "server s"] == [{"name": "server s"}]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "object", "properties": {"x": {"$ref": "http://evil.example/schema"}}},
        {"type": "object", "properties": {"x": {"$ref": "#/nowhere"}}},
        {"type": "object", "properties": {"x": {"$ref": "#name"}}, "$defs": {"a": {"$anchor": "name"}}},
        {"type": "object", "properties": {"x": {"$id": "http://x/", "type": "string"}}},
        {"type": "object", "properties": {"x": {"type": "no such type"}}},
        {"type": "object", "properties": {"x": {"minimum": 1, "exclusiveMinimum": True}}},
        {"type": "object", "properties": []},
        {"type": "object", "allOf": {}},
        {"type": "object", "properties": {"x": {"$ref": 1}}},
        {"type": "object", "properties": {f"p{number}": {} for number in range(6000)}},
    ],
)
def test_a_schema_that_cannot_stand_there_allows_everything_and_the_document_is_valid(
    schema: Mapping[str, Any],
) -> None:
    with pytest.raises(UnusableSchemaError):
        moved(schema, "#/components/schemas/x")
    document = openapi_document([("s", ATool("t", schema, schema))])
    assert faults(document) == []
    made = document["components"]["schemas"]["tool.s__t.input"]
    assert made["type"] == "object"
    assert "cannot stand here" in made["description"]


def test_a_schema_nested_deeper_than_it_can_be_followed_is_no_fault() -> None:
    schema: dict[str, Any] = {"type": "object"}
    for _ in range(5000):
        schema = {"type": "object", "properties": {"x": schema}}
    assert faults(openapi_document([("s", ATool("t", schema))])) == []


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        (
            {
                "$schema": "http://json-schema.org/draft-07/schema#",
                "$id": "http://x/y",
                "type": "object",
                "properties": {
                    "x": {"type": "array", "items": [{"type": "string"}], "additionalItems": False}
                },
            },
            {"x": ["a"]},
            {"x": ["a", "b"]},
        ),
        (
            {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False},
            {"next": {"next": {}}},
            {"next": {"other": 1}},
        ),
        (
            {
                "type": "object",
                "properties": {"$ref": {"type": "string"}, "a/b~": {"$ref": "#/properties/$ref"}},
            },
            {"$ref": "x", "a/b~": "y"},
            {"a/b~": 1},
        ),
        (
            {
                "type": "object",
                "properties": {"x": {"type": "integer", "default": "ten"}},
                "default": {"x": 1},
            },
            {"x": 1},
            {"x": "ten"},
        ),
        (
            {"type": "object", "properties": {"x": {"const": {"$ref": "#/kept"}}}},
            {"x": {"$ref": "#/kept"}},
            {"x": {}},
        ),
    ],
)
def test_a_schema_means_there_what_it_meant(schema: Mapping[str, Any], good: object, bad: object) -> None:
    document = openapi_document([("s", ATool("t", schema))])
    assert faults(document) == []
    check = checker(document, "tool.s__t.input")
    assert check.is_valid(good)
    assert not check.is_valid(bad)


def configured(*names: str) -> str:
    """The scripted server under several names."""
    return "".join(
        f'[servers.{name}]\ncommand = "{sys.executable}"\nargs = ["-S", "{SERVERS / "scripted.py"}"]\n'
        for name in names
    )


def admin_of(gateway: LiveGateway) -> Principal:
    """Somebody who may do everything."""
    return gateway.services.tokens.verify(gateway.token("root", ["admin"]))


async def ask(gateway: LiveGateway, scopes: Iterable[str], **headers: str) -> RawAnswer:
    """The document for a caller."""
    bearer = {"Authorization": f"Bearer {gateway.token('ann', scopes)}"}
    return await fetch(gateway.url, "/api/v1/openapi.json", headers={**bearer, **headers})


def tools_of(document: Mapping[str, Any]) -> set[str]:
    """The tools that are operations of their own."""
    found = (re.fullmatch(r"/api/v1/servers/([^/{}]+)/tools/([^/{}]+)", path) for path in document["paths"])
    return {f"{match[1]}/{match[2]}" for match in found if match}


@pytest.mark.gen_test
async def test_a_caller_sees_the_tools_that_they_may_call(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(configured("a", "b"))
    everything = (await ask(gateway, ["tools:call"])).json()
    assert faults(everything) == []
    assert {"a/echo", "b/echo"} <= tools_of(everything)
    assert {name.partition("/")[0] for name in tools_of((await ask(gateway, ["tools:call:a"])).json())} == {
        "a"
    }
    assert tools_of((await ask(gateway, ["tools:call:b/echo"])).json()) == {"b/echo"}
    nothing = await ask(gateway, [])
    longest = gateway.services.config.calls.max_timeout
    assert nothing.json() == openapi_document(longest_call=longest)
    assert nothing.json()["components"]["schemas"]["body.timeout_ms"]["maximum"] == longest * 1000
    assert nothing.headers["content-type"] == "application/json"


@pytest.mark.gen_test
async def test_the_same_document_is_not_sent_twice(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(configured("a"))
    first = await ask(gateway, ["tools:call"])
    tag = first.headers["etag"]
    again = await ask(gateway, ["tools:call"], **{"If-None-Match": tag})
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
    assert (await ask(gateway, [], **{"If-None-Match": tag})).status == 200
    assert first.headers["cache-control"] == "private, no-cache"
    assert "Authorization" in first.headers["vary"]
    client = await gateway.connect()
    await client.call("a", "grow", {"name": "new"})
    await client.leave()
    while "a/new" not in tools_of((await ask(gateway, ["tools:call"])).json()):
        pass
    assert (await ask(gateway, ["tools:call"], **{"If-None-Match": tag})).status == 200


@pytest.mark.gen_test
async def test_the_document_of_the_memory_server_is_valid_and_for_known_users(
    shared_gateway: GatewayProcess,
) -> None:
    assert (await fetch(shared_gateway.url, "/api/v1/openapi.json")).status == 401
    bearer = {"Authorization": f"Bearer {shared_gateway.token()}"}
    document = (await fetch(shared_gateway.url, "/api/v1/openapi.json", headers=bearer)).json()
    assert faults(document) == []
    assert document["info"]["version"] == __version__
    operation = document["paths"]["/api/v1/servers/memory/tools/memory_search"]["post"]
    assert "tool.memory__memory_search.input" in json.dumps(operation)


class Documented:
    """Sends requests of the document, and holds each answer against it."""

    def __init__(self, gateway: LiveGateway, document: Mapping[str, Any]) -> None:
        self._gateway = gateway
        self._document = document
        self.done: set[str] = set()

    async def send(self, operation: str, body: object = None, *, status: int = 200, **names: str) -> Any:
        """Send one; `names` stand in its path."""
        path, method = next(
            (path, method)
            for path, item in self._document["paths"].items()
            for method in VERBS
            if item.get(method, {}).get("operationId") == operation
        )
        sent = b"" if body is None else json.dumps(body).encode()
        bearer = {"Authorization": f"Bearer {self._gateway.token('root', ['admin'])}"}
        where = re.sub(r"\{(\w+)\}", lambda name: quote(names[name[1]], safe=""), path)
        answer = await fetch(self._gateway.url, where, method=method.upper(), headers=bearer, body=sent)
        assert answer.status == status, (operation, answer)
        documented = self._document["paths"][path][method]["responses"][str(status)]
        if "$ref" in documented:
            documented = self._document["components"]["responses"][documented["$ref"].rpartition("/")[2]]
        schema = documented.get("content", {}).get("application/json", {}).get("schema")
        assert (schema is None) is (not answer.body), operation
        self.done.add(operation)
        if schema is None:
            return None
        check = checker(self._document, schema["$ref"].rpartition("/")[2])
        assert [(error.json_path, error.message[:200]) for error in check.iter_errors(answer.json())] == []
        return answer.json()


@pytest.mark.gen_test(timeout=40)
async def test_what_is_answered_is_what_is_documented(start_gateway: StartGateway) -> None:
    gateway = await start_gateway(configured("a"), memory=True)
    api = Documented(gateway, openapi_document(gateway.services.gateway.list_tools(admin_of(gateway))))
    catalog = {"mcpServers": {"one": {"command": sys.executable, "args": ["-c", "pass"]}}}
    definition = {"command": sys.executable, "args": ["-S", str(SERVERS / "scripted.py")]}
    message = {"level": "info", "message": "hello"}
    await api.send("addServer", {"id": "b", "definition": definition}, status=201)
    await api.send("addServer", {"id": "b", "definition": definition}, status=409)
    await api.send("addServer", {"id": "c", "definition": {}}, status=400)
    for operation in ("disableServer", "enableServer", "stopServer", "startServer", "restartServer"):
        await api.send(operation, server="b")
    await api.send("changeServer", {"definition": {"timeout": 5}}, server="b")
    for operation in ("getServer", "getServerLog", "listTools", "listResources", "listPrompts"):
        await api.send(operation, server="a")
    await api.send("removeServer", server="b", status=204)
    await api.send("removeServer", server="b", status=404)
    await api.send("removeServer", server="a", status=409)
    await api.send("callTool", {"params": {"x": 1}}, server="a", tool="echo")
    await api.send("a__echo", {"params": {"x": 1}})
    await api.send("a__echo", {"parms": 1}, status=400)
    await api.send("memory__memory_search", {"params": {"project": "p", "query": "x"}})
    await api.send("importCatalog", {"id": "mine", "content": catalog}, status=201)
    for operation in ("listCatalogs", "getCatalog"):
        await api.send(operation, catalog="mine")
    await api.send("syncCatalog", {"content": catalog}, catalog="mine")
    await api.send("getCatalogEntry", catalog="mine", entry="one")
    await api.send("installCatalogEntry", {"server": "d"}, catalog="mine", entry="one", status=201)
    await api.send("removeCatalog", catalog="mine", status=204)
    await api.send("getCatalog", catalog="mine", status=404)
    await api.send("changeConfig", {"settings": {"log": {"level": "warning"}}})
    await api.send("changeConfig", {"settings": {"log": {"level": "loud"}}}, status=400)
    for operation in (
        "getConfig",
        "reloadConfig",
        "getGateway",
        "getStatistics",
        "listServers",
        "listApprovals",
    ):
        await api.send(operation)
    await api.send("decideApproval", {"action": "accept"}, approval="none", status=404)
    await api.send("publishAlert", message, status=202)
    await api.send("publishMaintenance", {"message": "soon"}, status=202)
    await api.send("notifyUser", message, status=202, user="ann")
    await add_user(gateway)
    entry = {"user": "ann", "password": GOOD, "refresh": "body"}
    granted = await api.send("logIn", entry)
    granted = await api.send("refreshLogin", {"refreshToken": granted["refreshToken"]})
    await api.send("refreshLogin", {"refreshToken": "none"}, status=401)
    await api.send("logOut", {"refreshToken": granted["refreshToken"]}, status=204)
    await api.send("getMe")
    await api.send("makeTicket", {"purpose": "events"})
    made = await api.send("makeKey", {"name": "x", "scopes": ["servers:read"], "ttl": 60}, status=201)
    await api.send("listKeys")
    await api.send("revokeKey", key=made["id"], status=204)
    opened = await api.send("openRoom", {"name": "demo", "scopes": ["tools:call:a"]}, status=201)
    await api.send("openRoom", {"name": "demo", "scopes": ["admin"]}, status=400)
    await api.send("joinRoom", {"code": opened["code"], "name": "Ann"}, status=201)
    await api.send("joinRoom", {"code": opened["code"], "name": "ann"}, status=409)
    await api.send("joinRoom", {"code": "none", "name": "Bob"}, status=401)
    for operation in ("listRooms", "getRoom", "freezeRoom", "thawRoom", "renewRoomCode", "listGuests"):
        await api.send(operation, room="demo")
    for operation in ("muteGuest", "unmuteGuest", "kickGuest"):
        await api.send(operation, room="demo", guest="Ann", status=204)
    await api.send("kickGuest", room="demo", guest="Ann", status=404)
    await api.send("endRoom", room="demo", status=204)
    for operation in (
        "getOpenApi",
        "getAsyncApi",
        "getHealth",
        "getReadiness",
    ):
        await api.send(operation)
    for operation in ("getResource", "getMcpResource", "getServerResource"):
        await api.send(operation, server="a", status=404)  # no issuer is configured
    endless_or_without_json = {
        "streamEvents",
        "streamProtectedEvents",
        "getMetrics",
        "getLoginPage",
        "getLogoutPage",
        "finishLogin",
    }
    left = {operation.name for operation in OPERATIONS if operation.method != "head"} - api.done
    assert left == endless_or_without_json
