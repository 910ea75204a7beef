"""A server on the SDK that offers all that MCP has: over stdio, or with ``--http`` on a port that it prints.

It is of both protocol eras, or with ``--handshake`` of the older alone. `touch` changes a resource, `grow` a
list; `elicit`, `sample`, `roots` ask the caller; ``--record FILE`` gets a line for some of what happens.
"""

import argparse
import asyncio
import json
import socket
import warnings
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel import Server
from mcp.server.lowlevel.server import NotificationOptions
from mcp.server.runner import serve_loop
from mcp.server.stdio import stdio_server
from mcp.server.subscriptions import (
    InMemorySubscriptionBus,
    ListenHandler,
    PromptsListChanged,
    ResourcesListChanged,
    ResourceUpdated,
)
from mcp.shared.exceptions import MCPDeprecationWarning, MCPError
from mcp.shared.message import ServerMessageMetadata
from mcp_types.version import MODERN_PROTOCOL_VERSIONS

warnings.simplefilter("ignore", MCPDeprecationWarning)  # sampling, roots and logs are still used

Context = ServerRequestContext[Any, Any]
Json = dict[str, Any]
FORM = {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg=="
RICH: Json = {
    "content": [
        {"type": "image", "data": PIXEL, "mimeType": "image/png", "annotations": {"priority": 0.5}},
        {"type": "audio", "data": "UklGRg==", "mimeType": "audio/wav"},
        {"type": "resource", "resource": {"uri": "note:one", "mimeType": "text/plain", "text": "in it"}},
        {"type": "resource_link", "uri": "note:one", "name": "one", "_meta": {"example.org/kept": [1, None]}},
    ],
    "structuredContent": {"kept": {"null": None}},
    "_meta": {"example.org/trace": "kept"},
}
QUESTIONS: dict[str, Json] = {
    "elicit": {"method": "elicitation/create", "params": {"message": "Who?", "requestedSchema": FORM}},
    "sample": {
        "method": "sampling/createMessage",
        "params": {
            "messages": [{"role": "user", "content": {"type": "text", "text": "Say something"}}],
            "maxTokens": 10,
        },
    },
    "roots": {"method": "roots/list", "params": {}},
}
REQUESTS: dict[str, Any] = {
    "elicit": (types.ElicitRequest, types.ElicitResult),
    "sample": (types.CreateMessageRequest, types.CreateMessageResult),
    "roots": (types.ListRootsRequest, types.ListRootsResult),
}


class Offering:
    """The server, and what changes in it."""

    def __init__(self, record: Path | None) -> None:
        self._record = record
        self.bus = InMemorySubscriptionBus()
        self.notes = {"note:one": "first", "note:two": "second"}
        self.prompts = ["greet"]
        self.server: Server[Any] = Server(
            "offering",
            version="1",
            instructions="Ask me anything.",
            on_list_tools=self.list_tools,
            on_call_tool=self.call_tool,
            on_list_resources=self.list_resources,
            on_list_resource_templates=self.list_templates,
            on_read_resource=self.read_resource,
            on_subscribe_resource=self.subscribe,
            on_unsubscribe_resource=self.subscribe,
            on_subscriptions_listen=ListenHandler(self.bus),
            on_list_prompts=self.list_prompts,
            on_get_prompt=self.get_prompt,
            on_completion=self.complete,
        )
        self.options = self.server.create_initialization_options(
            NotificationOptions(tools_changed=True, prompts_changed=True, resources_changed=True)
        )

    def note(self, line: str) -> None:
        """Add a line to the record."""
        if self._record is not None:
            with self._record.open("a") as record:
                record.write(line + "\n")

    async def list_tools(self, context: Context, params: Any) -> Any:
        """Every method ``tool_NAME``."""
        names = [name.removeprefix("tool_") for name in dir(self) if name.startswith("tool_")]
        return cacheable({"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]})

    async def call_tool(self, context: Context, params: types.CallToolRequestParams) -> Any:
        """Run one tool."""
        run: Callable[[Context, Json], Awaitable[Any]] = getattr(self, f"tool_{params.name}")
        answer = await run(context, dict(context.params or {}))
        return complete(answer if isinstance(answer, dict) else {"content": [block(str(answer))]})

    async def tool_rich(self, context: Context, params: Json) -> Any:
        return RICH

    async def tool_meta(self, context: Context, params: Json) -> Any:
        return json.dumps(sorted(name for name in params["_meta"] if "modelcontextprotocol" not in name))

    async def tool_log_level(self, context: Context, params: Json) -> Any:
        return params["_meta"].get(types.LOG_LEVEL_META_KEY, "none")

    async def tool_wait(self, context: Context, params: Json) -> Any:
        self.note("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.note("cancelled")
            raise

    async def tool_count(self, context: Context, params: Json) -> Any:
        for step in (1, 2, 3):
            await context.session.report_progress(step, 3, f"step {step}")
        return "counted"

    async def tool_elicit(self, context: Context, params: Json) -> Any:
        return await self.ask(context, params, "elicit")

    async def tool_sample(self, context: Context, params: Json) -> Any:
        return await self.ask(context, params, "sample")

    async def tool_roots(self, context: Context, params: Json) -> Any:
        return await self.ask(context, params, "roots")

    async def tool_ask_on_and_on(self, context: Context, params: Json) -> Any:
        return {"resultType": "input_required", "inputRequests": {"again": QUESTIONS["elicit"]}}

    async def tool_touch(self, context: Context, params: Json) -> Any:
        uri = params["arguments"]["uri"]
        await self.bus.publish(ResourceUpdated(uri))
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            await context.session.send_resource_updated(uri)
        return "touched"

    async def tool_grow(self, context: Context, params: Json) -> Any:
        self.notes["note:three"] = "third"
        self.prompts.append("part")
        await self.bus.publish(ResourcesListChanged())
        await self.bus.publish(PromptsListChanged())
        if context.protocol_version not in MODERN_PROTOCOL_VERSIONS:
            await context.session.send_resource_list_changed()
            await context.session.send_prompt_list_changed()
        return "grown"

    async def ask(self, context: Context, params: Json, key: str) -> Any:
        """Ask the caller, in the way of the era, and answer with the answer."""
        if context.protocol_version in MODERN_PROTOCOL_VERSIONS:
            answer = (params.get("inputResponses") or {}).get("key")
            if answer is None:
                return {"resultType": "input_required", "inputRequests": {"key": QUESTIONS[key]}}
            return json.dumps(answer)
        request, result = REQUESTS[key]
        asked = request.model_validate(QUESTIONS[key], by_name=False)
        related = ServerMessageMetadata(related_request_id=context.request_id)
        try:
            got = await context.session.send_request(asked, result, metadata=related)
        except MCPError as error:
            return f"refused: {error.message}"
        return got.model_dump_json(by_alias=True, exclude_none=True)

    async def list_resources(self, context: Context, params: Any) -> Any:
        """One on each page."""
        uris = list(self.notes)
        start = int(params.cursor) if params is not None and params.cursor else 0
        self.note("resources listed")
        page: Json = {
            "resources": [{"uri": uris[start], "name": uris[start], "_meta": {"example.org/kept": start}}]
        }
        return cacheable(page | ({"nextCursor": str(start + 1)} if start + 1 < len(uris) else {}))

    async def list_templates(self, context: Context, params: Any) -> Any:
        """The one template."""
        return cacheable({"resourceTemplates": [{"uriTemplate": "note:{name}", "name": "note"}]})

    async def read_resource(self, context: Context, params: types.ReadResourceRequestParams) -> Any:
        """One note."""
        if params.uri not in self.notes:
            raise MCPError(code=-32002, message="Resource not found", data={"uri": params.uri})
        content = {"uri": params.uri, "mimeType": "text/plain", "text": self.notes[params.uri]}
        return cacheable({"contents": [content, {"uri": params.uri, "mimeType": "image/png", "blob": PIXEL}]})

    async def subscribe(self, context: Context, params: Any) -> types.EmptyResult:
        """Say yes."""
        self.note(f"subscribe {params.uri}")
        return types.EmptyResult()

    async def list_prompts(self, context: Context, params: Any) -> Any:
        """All of them."""
        prompts = [{"name": name, "arguments": [{"name": "who"}]} for name in self.prompts]
        return cacheable({"prompts": prompts})

    async def get_prompt(self, context: Context, params: types.GetPromptRequestParams) -> Any:
        """One of them, with the answer of the caller where it is `asked`."""
        raw = dict(context.params or {})
        if params.name == "asked":
            answer = await self.ask(context, raw, "elicit")
            if isinstance(answer, dict):
                return answer
            return complete({"messages": [{"role": "user", "content": block(answer)}]})
        words = block(f"Hello {(params.arguments or {}).get('who')}")
        return complete({"description": "A greeting", "messages": [{"role": "user", "content": words}]})

    async def complete(self, context: Context, params: types.CompleteRequestParams) -> Any:
        """What begins as the argument does."""
        context_arguments = params.context.arguments if params.context is not None else None
        values = [f"{params.argument.value}{ending}" for ending in ("a", "b")] + list(context_arguments or ())
        return complete({"completion": {"values": values, "total": len(values)}})


def block(words: str) -> Json:
    """A block of text."""
    return {"type": "text", "text": words}


def complete(result: Json) -> Json:
    """A final result of 2026-07-28; the older revisions leave the mark unread."""
    return {"resultType": "complete"} | result


def cacheable(result: Json) -> Json:
    """One that may be kept."""
    return complete({"ttlMs": 0, "cacheScope": "private"} | result)


def without_discovery(app: Any) -> Any:
    """An application that does not know ``server/discover``, as those of the handshake revisions."""

    async def refusing(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await app(scope, receive, send)
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        asked = json.loads(body)
        if asked.get("method") == "server/discover":
            error = {"jsonrpc": "2.0", "id": asked["id"], "error": {"code": -32601, "message": "no"}}
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 400, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps(error).encode()})
            return
        replayed = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_again() -> Any:
            return replayed.pop() if replayed else await receive()

        await app(scope, receive_again, send)

    return refusing


async def serve_http(offering: Offering, *, handshake: bool, port: int) -> None:
    """Serve on a port of this machine, a free one for 0, and print it."""
    listening = socket.create_server(("127.0.0.1", port), reuse_port=port != 0)
    app: Any = offering.server.streamable_http_app(host="127.0.0.1")
    config = uvicorn.Config(
        without_discovery(app) if handshake else app, log_level="warning", timeout_graceful_shutdown=1
    )
    print(listening.getsockname()[1], flush=True)  # noqa: T201 - this is how it is found
    await uvicorn.Server(config).serve(sockets=[listening])


async def serve_stdio(offering: Offering, *, handshake: bool) -> None:
    """Serve stdin and stdout."""
    async with stdio_server() as (read, write):
        if handshake:
            await serve_loop(offering.server, read, write, lifespan_state={}, init_options=offering.options)
        else:
            await offering.server.run(read, write, offering.options)


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    parser.add_argument("--http", action="store_true")
    parser.add_argument("--handshake", action="store_true")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    offering = Offering(options.record)
    if options.http:
        asyncio.run(serve_http(offering, handshake=options.handshake, port=options.port))
    else:
        asyncio.run(serve_stdio(offering, handshake=options.handshake))


if __name__ == "__main__":
    main()
