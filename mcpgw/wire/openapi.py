"""The OpenAPI 3.1 document of this gateway: the table of REST operations, and each tool as one of its own.

Source: OpenAPI 3.1.1. Its schemas are JSON Schema 2020-12, as those of the gateway are.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from http.client import responses
from typing import Any, Final, Protocol
from urllib.parse import quote
from weakref import WeakKeyDictionary

from mcpgw import __version__
from mcpgw.errors import codes
from mcpgw.wire.foreign_schemas import moved
from mcpgw.wire.rest_operations import OPERATIONS, PATH_PARAMETERS, Operation, Parameter
from mcpgw.wire.validation import UnusableSchemaError, load_schema

VERSION: Final = "3.1.1"

HTTP_CODES: Final[Mapping[str, tuple[int, ...]]] = {
    "bad_request": (400,),
    "not_found": (404,),
    "method_not_allowed": (405,),
    "conflict": (409, 412),
    "too_large": (413,),
    "upgrade_required": (426,),
}
"""The codes of errors that HTTP alone has, or has by itself, with their statuses."""

_SCHEMAS: Final = "#/components/schemas/"
_TAGS: Final[Mapping[str, str]] = {
    "tools": "Calling tools.",
    "servers": "The backend servers and their lives.",
    "approvals": "Calls that wait until somebody approves them.",
    "auth": "Logging in and out.",
    "rooms": "Rooms that are opened to guests, such as for a workshop.",
    "catalogs": "Lists of servers that others publish.",
    "gateway": "The gateway itself.",
    "config": "Its configuration.",
    "events": "What happens, and what operators say.",
    "documents": "What can be done here, for programs.",
    "system": "For whoever watches over the process.",
}
_HEADERS: Final[Mapping[int, Mapping[str, str]]] = {
    401: {"WWW-Authenticate": 'RFC 6750: Bearer, with error="invalid_token" where a token does not hold.'},
    405: {"Allow": "The methods that are there."},
    429: {"Retry-After": "Seconds to wait."},
    503: {"Retry-After": "Seconds to wait, where that is known."},
}
_LONGEST_NAME = 200
_DOTS: Final = (".", "..")
"""Names of tools that no path can have, for clients resolve them before they ask (RFC 3986 section 5.2.4)."""


class ListedTool(Protocol):
    """A tool as callers see it; schemas and annotations are the JSON of its server."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def title(self) -> str | None:
        """Its name for people."""

    @property
    def description(self) -> str:
        """What it does."""

    @property
    def input_schema(self) -> Mapping[str, Any]:
        """What its arguments are."""

    @property
    def output_schema(self) -> Mapping[str, Any] | None:
        """What its structured result is."""

    @property
    def annotations(self) -> Mapping[str, Any] | None:
        """What it says of itself."""


def openapi_document(
    tools: Iterable[tuple[str, ListedTool]] = (), *, longest_call: float | None = None
) -> dict[str, Any]:
    """The document with `tools`, each with the name of its server; `longest_call` is in seconds.

    May take some time where there are many tools that were not seen before: not for the event loop.
    """
    shared = _shared()
    document = dict(shared)
    paths, schemas = dict(shared["paths"]), dict(shared["components"]["schemas"])
    if longest_call is not None:
        schemas["body.timeout_ms"] = schemas["body.timeout_ms"] | {"maximum": int(longest_call * 1000)}
    servers: dict[str, None] = {}
    for server, name, tool in _named(tools):
        servers[server] = None
        described = _described(server, name, tool)
        paths[tool_path(server, tool.name)] = described["path"]
        schemas |= described["schemas"]
    document["paths"] = paths
    document["components"] = {**shared["components"], "schemas": schemas}
    document["tags"] = [*shared["tags"], *({"name": f"server {server}"} for server in servers)]
    return document


def tool_path(server: str, tool: str) -> str:
    """The path at which a tool is called."""
    return f"/api/v1/servers/{quote(server, safe='')}/tools/{quote(tool, safe='')}"


# --- tools -------------------------------------------------------------------------------------------------


def _named(tools: Iterable[tuple[str, ListedTool]]) -> Iterator[tuple[str, str, ListedTool]]:
    """Each tool with a name that no other operation has, of the letters that programs take in names."""
    taken = {operation.name for operation in OPERATIONS}
    for server, tool in tools:
        if tool.name in _DOTS:
            continue
        wished = re.sub(r"[^A-Za-z0-9_]", "_", f"{server}__{tool.name}")[:_LONGEST_NAME]
        name, number = wished, 2
        while name in taken:
            name, number = f"{wished}_{number}", number + 1
        taken.add(name)
        yield server, name, tool


_KNOWN: WeakKeyDictionary[ListedTool, tuple[tuple[str, str], Mapping[str, Any]]] = WeakKeyDictionary()
"""What was made of a tool, as long as it is listed, with the names it was made for."""


def _described(server: str, name: str, tool: ListedTool) -> Mapping[str, Any]:
    known = _KNOWN.get(tool)
    if known is None or known[0] != (server, name):
        known = (server, name), _describe(server, name, tool)
        _KNOWN[tool] = known
    return known[1]


def _describe(server: str, name: str, tool: ListedTool) -> Mapping[str, Any]:
    schemas = {
        f"tool.{name}.input": _of_the_tool(tool.input_schema, f"tool.{name}.input", {"type": "object"})
    }
    answer = _schema("tool_response")
    if tool.output_schema is not None:
        output = f"tool.{name}.output"
        schemas[output] = _of_the_tool(tool.output_schema, output, {})
        schemas[f"tool.{name}.answer"] = _answer_with(output)
        answer = _schema(f"tool.{name}.answer")
    needs_arguments = bool(tool.input_schema.get("required"))
    body: dict[str, Any] = {
        "type": "object",
        "properties": {"params": _schema(f"tool.{name}.input"), "timeoutMs": _schema("body.timeout_ms")},
        "additionalProperties": False,
    }
    if needs_arguments:
        body["required"] = ["params"]
    operation = {
        "operationId": name,
        "tags": [f"server {server}"],
        "summary": _line(tool.title or tool.name),
        "description": tool.description,
        "security": [{"bearer": [f"tools:call:{server}/{tool.name}"]}],
        "requestBody": {"required": needs_arguments, "content": {"application/json": {"schema": body}}},
        "responses": _responses(_CALL, answer),
    }
    if tool.annotations is not None:
        operation["x-mcp-annotations"] = tool.annotations
    return {"path": {"post": operation}, "schemas": schemas}


def _of_the_tool(schema: Mapping[str, Any], name: str, fallback: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return moved(schema, _SCHEMAS + name)
    except UnusableSchemaError as error:
        why = f"The server's own schema cannot stand here: {error}. The server checks what it is given."
        return {**fallback, "description": why}


def _answer_with(output: str) -> dict[str, Any]:
    """The answer of a tool that has a structured result, unless the tool says that it failed."""
    plain = load_schema("server-frames")["$defs"]["tool_response"]["properties"]["data"]
    common = {**plain["properties"], "content": _schema("content")}
    good = common | {
        "success": {"const": True},
        "result": _schema(output),
        "structuredContent": _schema(output),
    }
    del good["isError"]
    bad = common | {"success": {"const": False}}
    required = plain["required"]
    return {
        "oneOf": [
            {
                "title": "success",
                "type": "object",
                "properties": good,
                "required": [*required, "structuredContent"],
            },
            {"title": "failure", "type": "object", "properties": bad, "required": [*required, "isError"]},
        ]
    }


def _line(text: str) -> str:
    return " ".join(text.split())[:120]


# --- the table ---------------------------------------------------------------------------------------------


@cache
def _shared() -> Mapping[str, Any]:
    """All but the tools."""
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        item = paths.setdefault(operation.path, {})
        if names := re.findall(r"\{(\w+)\}", operation.path):
            item["parameters"] = [_parameter(PATH_PARAMETERS[name]) for name in names]
        item[operation.method] = _operation(operation)
    return {
        "openapi": VERSION,
        "info": {
            "title": "mcpgw",
            "version": __version__,
            "description": "A gateway to MCP tools. Each tool that the caller may call is an operation of its"
            " own. The WebSocket and its frames are in /api/v1/asyncapi.json; /mcp speaks MCP.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "servers": [{"url": "/", "description": "Where this document is."}],
        "tags": [{"name": name, "description": about} for name, about in _TAGS.items()],
        "paths": paths,
        "components": {
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "What stands beside it is the scope that the token must allow.",
                }
            },
            "responses": {f"{status}": _refusal(status) for status in _STATUSES},
            "schemas": {
                "error": _error_schema(),
                "tool_response": _led(load_schema("server-frames")["$defs"]["tool_response"])["properties"][
                    "data"
                ],
                "content": _led(load_schema("server-frames")["$defs"]["content"]),
                **_definitions("rest-bodies", "body."),
                **_definitions("rest-answers", ""),
            },
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.name,
        "tags": [operation.tag],
        "summary": operation.summary,
        "security": []
        if operation.scope is None
        else [{"bearer": [operation.scope] if operation.scope else []}],
        "responses": _responses(operation, _schema(operation.answer) if operation.answer else None),
    }
    if operation.path == "/metrics":
        made["security"].append({})
    if operation.help:
        made["description"] = operation.help
    if operation.parameters:
        made["parameters"] = [_parameter(parameter) for parameter in operation.parameters]
    if operation.body:
        content = {"application/json": {"schema": _schema(f"body.{operation.body}")}}
        made["requestBody"] = {"required": operation.needs_body, "content": content}
    return made


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.place,
        "required": parameter.place == "path",
        "description": parameter.help,
        "schema": dict(parameter.schema),
    }


def _responses(operation: Operation, answer: Mapping[str, Any] | None) -> dict[str, Any]:
    success: dict[str, Any] = {"description": responses[operation.status]}
    if answer is not None:
        success["content"] = {operation.media: {"schema": answer}}
    elif operation.media != "application/json" and operation.method != "head":
        success["content"] = {operation.media: {"schema": {"type": "string"}}}
    if operation is _CALL:
        success["content"]["text/event-stream"] = {"schema": {"type": "string"}}
    if operation.status == 201:  # noqa: PLR2004
        success["headers"] = {"Location": _header("Where it is.")}
    made = {f"{operation.status}": success}
    if operation.path == "/api/v1/openapi.json":
        made["304"] = {"description": "It is the same as before."}
    if operation.name == "logOut":
        content = {"application/json": {"schema": _schema("logout")}}
        made["200"] = {"description": "One can log out at the identity provider too.", "content": content}
    if operation.name == "getLoginPage":
        made["302"] = {"description": "The way to an identity provider."}
    if operation.name == "getReadiness":
        made["503"] = {**success, "description": "The gateway is ending."}
    for status in _refusals(operation):
        made.setdefault(f"{status}", {"$ref": f"#/components/responses/{status}"})
    return made


def _refusals(operation: Operation) -> Iterator[int]:
    """The statuses of refusals that an operation may be answered with."""
    yield 400
    if operation.scope is not None:
        yield 401
    yield 403  # the host or the origin, if not the scope
    if "{" in operation.path:
        yield 404
    if operation.body or operation.method in ("post", "patch"):
        yield 413
    yield from operation.errors
    yield 500


_CALL: Final = next(operation for operation in OPERATIONS if operation.name == "callTool")
_STATUSES: Final = (400, 401, 403, 404, 405, 409, 412, 413, 429, 500, 502, 503, 504)


def _refusal(status: int) -> dict[str, Any]:
    told = {code for code, error in codes().items() if error.http_status == status}
    told |= {code for code, statuses in HTTP_CODES.items() if status in statuses}
    made: dict[str, Any] = {
        "description": f"{responses[status]}: {', '.join(sorted(told))}",
        "content": {"application/json": {"schema": _schema("error")}},
    }
    if status in _HEADERS:
        made["headers"] = {name: _header(about) for name, about in _HEADERS[status].items()}
    return made


def _header(about: str) -> dict[str, Any]:
    return {"description": about, "schema": {"type": "string"}}


def _error_schema() -> dict[str, Any]:
    """The shape of every refusal; that of an error frame, but for the name of its words."""
    data = load_schema("server-frames")["$defs"]["errorData"]
    members = {("message" if name == "error" else name): part for name, part in data["properties"].items()}
    members["code"] = {"enum": sorted({*codes(), *HTTP_CODES})}
    inner = {
        "type": "object",
        "properties": members,
        "required": ["code", "message", "temporary"],
        "additionalProperties": False,
    }
    return {
        "type": "object",
        "properties": {"error": inner},
        "required": ["error"],
        "additionalProperties": False,
    }


def _definitions(name: str, prefix: str) -> dict[str, Any]:
    return {f"{prefix}{key}": _led(part, prefix) for key, part in load_schema(name)["$defs"].items()}


def _led(value: Any, prefix: str = "") -> Any:
    """A schema of ours with its references led into the document."""
    if isinstance(value, list):
        return [_led(part, prefix) for part in value]
    if not isinstance(value, dict):
        return value
    return {
        key: _SCHEMAS + prefix + part.rpartition("/")[2] if key == "$ref" else _led(part, prefix)
        for key, part in value.items()
    }


def _schema(name: str) -> dict[str, str]:
    return {"$ref": _SCHEMAS + name}
