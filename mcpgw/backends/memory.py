"""The embedded ``memory`` MCP server: what a project should remember, kept over sessions and restarts.

    python -m mcpgw.backends.memory --database PATH

It is run over stdio like any other server, and answers in both protocol eras (MCP 2026-07-28 and the older
handshake). It is built on the SDK's low-level `Server`: the high-level one reads a text argument that looks
like JSON as JSON (a search for ``[1]`` would be refused), and passes over unknown arguments.

Wrong arguments are answered by a tool's error and not by the protocol's, so that the model that made them can
mend them (MCP 2025-11-25, tools, "Error Handling").
"""

import argparse
import json
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import quote, unquote

import anyio
import anyio.to_thread
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError

from mcpgw import __version__
from mcpgw.backends import memory_store as bounds
from mcpgw.backends.memory_store import MemoryStore, MemoryStoreError
from mcpgw.backends.memory_tools import (
    TOOLS,
    InvalidArgumentsError,
    JsonObject,
    check_arguments,
    memory_data,
    truncation,
)
from mcpgw.errors import suggest

DATABASE_VARIABLE: Final = "MCPGW_MEMORY_DATABASE"
URI_PREFIX: Final = "memory://"
RESOURCE_MEMORIES: Final = 100
RESOURCES_IN_PAGE: Final = 100
READS_AT_ONCE: Final = 8
WRITES_AT_ONCE: Final = 32
"""Database calls that run at once. Each kind has a limit of its own, and so has the SDK for stdio: saves
that wait for another process's lock stop neither searches nor the reading of requests."""

_MEGABYTE: Final = 1024**2

_Result = TypeVar("_Result")
_Context = ServerRequestContext[Any]


def build_server(store: MemoryStore) -> Server[Any]:
    """The MCP server over `store`; build it inside the event loop that runs it."""
    reads, writes = anyio.CapacityLimiter(READS_AT_ONCE), anyio.CapacityLimiter(WRITES_AT_ONCE)

    async def in_thread(
        limiter: anyio.CapacityLimiter, call: Callable[..., _Result], *parameters: Any
    ) -> _Result:
        # SQLite waits for the disk and for locks: never on the loop, where every other call would wait too.
        return await anyio.to_thread.run_sync(call, *parameters, limiter=limiter)

    async def read(call: Callable[..., _Result], *parameters: Any) -> _Result:
        try:
            return await in_thread(reads, call, *parameters)
        except MemoryStoreError as error:
            raise MCPError(types.INTERNAL_ERROR, str(error)) from error

    async def list_tools(
        _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[tool.listed for tool in TOOLS.values()])

    async def call_tool(_context: _Context, params: types.CallToolRequestParams) -> types.CallToolResult:
        if params.name not in TOOLS:
            raise MCPError(
                types.INVALID_PARAMS, f"no tool {params.name[:128]!r}{suggest(params.name, TOOLS)}"
            )
        limiter = writes if TOOLS[params.name].writes else reads
        try:
            data, text = await in_thread(limiter, _answer, store, params.name, params.arguments or {})
        except (InvalidArgumentsError, MemoryStoreError) as error:
            return types.CallToolResult(content=[types.TextContent(text=str(error))], is_error=True)
        return types.CallToolResult(content=[types.TextContent(text=text)], structured_content=data)

    async def list_resources(
        _context: _Context, params: types.PaginatedRequestParams | None
    ) -> types.ListResourcesResult:
        after = _unquoted(params.cursor, "cursor") if params and params.cursor else ""
        projects = await read(store.projects_by_name, RESOURCES_IN_PAGE + 1, after)
        page = projects[:RESOURCES_IN_PAGE]
        return types.ListResourcesResult(
            resources=[
                types.Resource(
                    uri=URI_PREFIX + quote(project.name, safe=""),
                    name=project.name,
                    description=f"The newest memories of this project, which has {project.memories}.",
                    mime_type="application/json",
                )
                for project in page
            ],
            next_cursor=quote(page[-1].name, safe="") if len(projects) > len(page) else None,
        )

    async def list_resource_templates(
        _context: _Context, _params: types.PaginatedRequestParams | None
    ) -> types.ListResourceTemplatesResult:
        template = types.ResourceTemplate(
            uri_template=URI_PREFIX + "{project}",
            name="project",
            title="Memories of a project",
            description=f"The newest {RESOURCE_MEMORIES} memories of a project; its name is percent-encoded.",
            mime_type="application/json",
        )
        return types.ListResourceTemplatesResult(resource_templates=[template])

    async def read_resource(
        _context: _Context, params: types.ReadResourceRequestParams
    ) -> types.ReadResourceResult:
        text = await read(_resource, store, params.uri)
        contents = types.TextResourceContents(uri=params.uri, mime_type="application/json", text=text)
        return types.ReadResourceResult(contents=[contents])

    return Server(
        "memory",
        version=__version__,
        title="Project memory",
        instructions="Search before you work on a project, and save what should be known the next time.",
        on_list_tools=list_tools,
        on_call_tool=call_tool,
        on_list_resources=list_resources,
        on_list_resource_templates=list_resource_templates,
        on_read_resource=read_resource,
    )


def _answer(store: MemoryStore, name: str, arguments: JsonObject) -> tuple[JsonObject, str]:
    check_arguments(name, arguments)
    data = TOOLS[name].run(store, dict(arguments))
    return data, _json(data)


def _resource(store: MemoryStore, uri: str) -> str:
    if not uri.startswith(URI_PREFIX):
        raise MCPError(types.INVALID_PARAMS, f"uri: must be {URI_PREFIX}PROJECT", {"uri": uri})
    project = _unquoted(uri.removeprefix(URI_PREFIX), "uri")
    found = store.newest(project, RESOURCE_MEMORIES)
    if not found.memories:
        # The code is the one of SEP-2164.
        raise MCPError(types.INVALID_PARAMS, "uri: this project has no memories", {"uri": uri})
    return _json(
        {
            "project": project,
            "memories": [memory_data(memory) for memory in found.memories],
            **truncation(found, RESOURCE_MEMORIES),
        }
    )


def _unquoted(text: str, place: str) -> str:
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError as error:
        raise MCPError(types.INVALID_PARAMS, f"{place}: is not percent-encoded UTF-8 (RFC 3986)") from error


def _json(data: JsonObject) -> str:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":"))


def database_path(option: str | None, environment: Mapping[str, str]) -> Path:
    """The database: the option, else ``MCPGW_MEMORY_DATABASE``, else ``mcpgw/memory.db`` in the user's data.

    The last follows the XDG Base Directory Specification (a relative ``XDG_DATA_HOME`` is to be ignored).
    Raises RuntimeError where a home folder is needed and there is none.
    """
    if named := option or environment.get(DATABASE_VARIABLE):
        return Path(named).expanduser()
    data = Path(environment.get("XDG_DATA_HOME", ""))
    return (data if data.is_absolute() else Path.home() / ".local" / "share") / "mcpgw" / "memory.db"


async def _serve(store: MemoryStore) -> None:
    server = build_server(store)
    async with stdio_server() as (read_stream, write_stream):
        await server.run(read_stream, write_stream, server.create_initialization_options())


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve memories over stdin and stdout until stdin ends; the exit code is 1 for an unusable database."""
    parser = argparse.ArgumentParser(
        prog="mcpgw.backends.memory", description="MCP memory server over stdio."
    )
    parser.add_argument(
        "--database", metavar="PATH", help=f"SQLite file; else the variable {DATABASE_VARIABLE}"
    )
    parser.add_argument(
        "--maximum-megabytes",
        metavar="N",
        type=int,
        default=bounds.MAXIMUM_BYTES // _MEGABYTE,
        help="size that saved memories may fill (default: %(default)s)",
    )
    options = parser.parse_args(arguments)
    # Dying at once loses nothing acknowledged; a thread that waits for stdin would hold up any other end.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s")
    try:
        path = database_path(options.database, os.environ)
        store = MemoryStore(path, maximum_bytes=options.maximum_megabytes * _MEGABYTE)
    except (MemoryStoreError, RuntimeError) as error:
        sys.stderr.write(f"memory server: {error}\n")
        return 1
    with closing(store):
        try:
            anyio.run(_serve, store)
        except* BrokenPipeError:
            logging.getLogger(__name__).warning("the client left while it was being answered")
    return 0


if __name__ == "__main__":
    sys.exit(main())
