"""A server on the MCP SDK, over stdio: of both protocol eras, or with ``--handshake`` of the older alone.

``--record FILE`` gets a line for each call that was begun, finished or cancelled.
"""

import argparse
import warnings
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import InMemorySubscriptionBus, ListenHandler, ToolsListChanged
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError

warnings.simplefilter("ignore", MCPDeprecationWarning)  # logs are still part of the protocol

Context = ServerRequestContext[Any]
Arguments = dict[str, Any]


def text(value: object) -> types.CallToolResult:
    """A result with one text block."""
    return types.CallToolResult(content=[types.TextContent(type="text", text=str(value))])


class Tools:
    """The tools of the server."""

    def __init__(self, record: Path, bus: InMemorySubscriptionBus) -> None:
        self._record = record
        self._bus = bus
        self._extra: list[str] = []

    def note(self, line: str) -> None:
        """Add a line to the record."""
        with self._record.open("a") as record:
            record.write(line + "\n")

    async def list(
        self, context: Context, params: types.PaginatedRequestParams | None
    ) -> types.ListToolsResult:
        """Every method `tool_NAME`, on pages of three."""
        names = [name.removeprefix("tool_") for name in dir(self) if name.startswith("tool_")] + self._extra
        start = int(params.cursor) if params is not None and params.cursor is not None else 0
        page = [types.Tool(name=name, input_schema={"type": "object"}) for name in names[start : start + 3]]
        following = str(start + 3) if start + 3 < len(names) else None
        return types.ListToolsResult(tools=page, next_cursor=following)

    async def call(self, context: Context, params: types.CallToolRequestParams) -> Any:
        """Run one tool."""
        run: Callable[[Context, Arguments], Coroutine[Any, Any, Any]] = getattr(self, "tool_" + params.name)
        return await run(context, params.arguments or {})

    async def tool_wait(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Report progress and wait for ever."""
        self.note("begun")
        try:
            for step in (1, 2, 3):
                await context.session.report_progress(step, 3, f"step {step}")
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            self.note("cancelled")
            raise
        return text("never")

    async def tool_count(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Report progress, log, and answer."""
        for step in (1, 2, 3):
            await context.session.report_progress(step, 3, f"step {step}")
        await context.session.send_log_message("warning", {"counted": 3}, logger="counter")
        return text("counted")

    async def tool_raises(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Fail as a program does."""
        raise RuntimeError("it is broken")

    async def tool_refuses(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Fail as the protocol does."""
        raise MCPError(code=-32042, message="not like this", data={"why": [1]})

    async def tool_is_error(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Answer that it failed."""
        return types.CallToolResult(content=text("it failed").content, is_error=True)

    async def tool_scalar(self, context: Context, arguments: Arguments) -> Any:
        """Answer with structured content that is no object."""
        return {"content": [], "structuredContent": arguments["value"], "resultType": "complete"}

    async def tool_arguments(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Answer with the arguments."""
        return types.CallToolResult(content=[], structured_content=arguments)

    async def tool_grow(self, context: Context, arguments: Arguments) -> types.CallToolResult:
        """Have one more tool."""
        self._extra.append(arguments["name"])
        await self._bus.publish(ToolsListChanged())
        await context.session.send_tool_list_changed()
        return text("grown")


async def serve(record: Path, *, handshake: bool) -> None:
    """Serve stdin and stdout."""
    bus = InMemorySubscriptionBus()
    tools = Tools(record, bus)
    server = Server(
        "sdk",
        version="1",
        on_list_tools=tools.list,
        on_call_tool=tools.call,
        on_subscriptions_listen=ListenHandler(bus),
    )
    options = server.create_initialization_options(NotificationOptions(tools_changed=True))
    async with stdio_server() as (read, write):
        if handshake:
            await serve_loop(server, read, write, lifespan_state={}, init_options=options)
        else:
            await server.run(read, write, options)


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--handshake", action="store_true")
    options = parser.parse_args()
    anyio.run(partial(serve, options.record, handshake=options.handshake))


if __name__ == "__main__":
    main()
