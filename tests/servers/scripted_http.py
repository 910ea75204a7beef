"""A small MCP server over HTTP, inside the test's own loop, that behaves as its tools are told to.

It is written on bare sockets, for no library would answer as badly as it does.
"""

import asyncio
import gzip
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any

HEADER_MISMATCH = -32020
Json = dict[str, Any]
Headers = Mapping[str, str]


def text(value: object) -> Json:
    """A tool result with one text block."""
    return {"content": [{"type": "text", "text": str(value)}]}


class ScriptedHttpServer:
    """Streamable HTTP at ``/mcp``, of MCP 2025-11-25, or of 2026-07-28 where `modern`; ``/sse`` is the older.

    `received` holds every JSON-RPC message, `let_go` the ids of the calls whose connection was closed by the
    gateway, `connections` how many were ever made. With `deaf_to_notifications` those are read and never
    answered; `lost` is the status for a session that is not known. `schemas` are those of tools whose
    arguments are not just any. With `redirects` calls are sent on to another path (307). `cookies` are
    set with the answers to a method.
    """

    def __init__(self, *, modern: bool = False, deaf_to_notifications: bool = False, lost: int = 404) -> None:
        self.modern = modern
        self.deaf_to_notifications = deaf_to_notifications
        self.lost = lost
        self.received: list[Json] = []
        self.request_headers: list[Headers] = []
        self.let_go: list[object] = []
        self.sessions: set[str] = set()
        self.hang_deletes = False
        self.late_tools: list[str] = []
        self.resets_pings = False
        self.schemas: dict[str, Json] = {}
        self.redirects = False
        self.cookies: dict[str, str] = {}
        self.connections = 0
        self.answered_twice = 0
        self._resumable: dict[str, object] = {}
        self.port = 0
        self._legacy: _Exchange | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The address of its endpoint."""
        return f"http://127.0.0.1:{self.port}/mcp?key=very-secret"

    async def start(self) -> None:
        """Listen, on the port it had before where it had one."""
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Close every connection and forget every session."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)
        self.sessions.clear()

    def methods(self) -> list[object]:
        """The methods of what it has received."""
        return [message.get("method") for message in self.received]

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        self.connections += 1
        task.add_done_callback(self._connections.discard)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                await self._exchange(_Exchange(reader, writer))
        writer.close()

    async def _exchange(self, exchange: "_Exchange") -> None:
        method, headers, body = await exchange.read()
        self.request_headers.append(headers)
        if method != "POST":
            return await self._without_message(exchange, method, headers)
        message: Json = json.loads(body)
        if self.redirects and message.get("method") == "tools/call" and exchange.path == "/mcp":
            return await exchange.answer(307, headers={"Location": "/moved"})
        self.received.append(message)
        if exchange.path == "/messages":
            return await self._legacy_message(exchange, message)
        name, request_id = message.get("method"), message.get("id")
        if name == "server/discover":
            return await self._discover(exchange, request_id)
        if name == "initialize":
            return await self._initialize(exchange, message)
        if not self.modern and headers.get("mcp-session-id") not in self.sessions:
            error = {"code": -32000, "message": "Bad Request: No valid session ID provided"}
            return await exchange.json({"jsonrpc": "2.0", "id": None, "error": error}, status=self.lost)
        if request_id is None:
            if self.deaf_to_notifications and name != "notifications/initialized":
                await exchange.closed()
            return await exchange.answer(202)
        if name == "ping":
            return exchange.reset() if self.resets_pings else await exchange.result(request_id, {})
        if name == "tools/list":
            tools = [
                {"name": name, "inputSchema": self.schemas.get(name, {"type": "object"})}
                for attribute in dir(self)
                if attribute.startswith("_tool_")
                for name in [attribute.removeprefix("_tool_")]
            ]
            tools += [{"name": name, "inputSchema": {"type": "object"}} for name in self.late_tools]
            answer = {"jsonrpc": "2.0", "id": request_id, "result": {"tools": tools} | self._era()}
            return await exchange.json(answer, headers=self._cookie("tools/list"))
        assert name == "tools/call", name
        run = getattr(self, "_tool_" + message["params"]["name"])
        await run(exchange, request_id, message["params"].get("arguments", {}), message)
        return None

    async def _without_message(self, exchange: "_Exchange", method: str, headers: Headers) -> None:
        if method == "DELETE":
            if self.hang_deletes:
                await exchange.closed()
            self.sessions.discard(headers.get("mcp-session-id", ""))
            return await exchange.answer(204)
        if exchange.path == "/sse":
            return await self._legacy_stream(exchange)
        if headers.get("last-event-id") in self._resumable:
            return await self._resume(exchange, headers["last-event-id"])
        return await exchange.answer(405)

    async def _legacy_stream(self, exchange: "_Exchange") -> None:
        """HTTP with SSE: every answer comes on this stream."""
        await exchange.begin_stream()
        await exchange.write(b"event: endpoint\ndata: /messages?session_id=1\n\n")
        self._legacy = exchange
        await exchange.closed()

    async def _legacy_message(self, exchange: "_Exchange", message: Json) -> None:
        name, params = message.get("method"), message.get("params", {})
        tool, arguments = params.get("name"), params.get("arguments", {})
        if tool == "status":
            return await exchange.answer(arguments["status"])
        if tool == "hang_post":
            await exchange.closed()
            self.let_go.append(message["id"])
        await exchange.answer(202)
        result: Json
        match name, tool:
            case "initialize", _:
                result = {
                    "protocolVersion": params["protocolVersion"],
                    "capabilities": {"tools": {}},
                    "serverInfo": {"name": "legacy", "version": "1"},
                }
            case "tools/list", _:
                result = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
            case "tools/call", "big":
                result = text("x" * arguments["size"])
            case "tools/call", "echo":
                result = text(json.dumps(arguments))
            case "tools/call", "end":
                assert self._legacy is not None
                self._legacy.reset()
            case "server/discover", _:
                return await self._legacy_send(
                    {"error": {"code": -32601, "message": "no"}, "id": message["id"]}
                )
            case _:
                return None
        return await self._legacy_send({"id": message["id"], "result": result})

    async def _legacy_send(self, answer: Json) -> None:
        assert self._legacy is not None
        data = json.dumps({"jsonrpc": "2.0", **answer}).encode()
        await self._legacy.write(b"event: message\ndata: " + data + b"\n\n")

    def _cookie(self, method: str) -> Headers:
        return {"Set-Cookie": self.cookies[method]} if method in self.cookies else {}

    def _era(self) -> Json:
        return {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"} if self.modern else {}

    async def _discover(self, exchange: "_Exchange", request_id: object) -> None:
        if not self.modern:
            error = {"code": -32601, "message": "no such method"}
            return await exchange.json({"jsonrpc": "2.0", "id": request_id, "error": error})
        result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}, **self._era()}
        answer = {"jsonrpc": "2.0", "id": request_id, "result": result}
        return await exchange.json(answer, headers=self._cookie("server/discover"))

    async def _initialize(self, exchange: "_Exchange", message: Json) -> None:
        session = secrets.token_hex(8)
        self.sessions.add(session)
        result = {
            "protocolVersion": message["params"]["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "scripted", "version": "1"},
        }
        answer = {"jsonrpc": "2.0", "id": message["id"], "result": result}
        await exchange.json(answer, headers={"Mcp-Session-Id": session, **self._cookie("initialize")})

    async def _tool_echo(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.result(request_id, text(json.dumps(arguments)) | self._era())

    async def _tool_stream(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        """Answer in an event stream that ends without its connection, in pieces of `size` bytes."""
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text(arguments["text"]) | self._era()}
        size = arguments.get("size", 1_000_000)
        data = b": hello\r\n\r\nevent: message\r\ndata: " + json.dumps(answer).encode() + b"\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        pieces = [data[start : start + size] for start in range(0, len(data), size)]
        chunks = [b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""]]
        for each in [head, *chunks]:
            await exchange.write(each)

    async def _tool_break_off(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        """Break an event stream off behind an id; who resumes it from there has the answer."""
        self._resumable["event 7"] = request_id
        await exchange.begin_stream()
        await exchange.write(b"id: event 7\nretry: 10\ndata:\n\n")
        exchange.finish()

    async def _resume(self, exchange: "_Exchange", event_id: str) -> None:
        answer = {"jsonrpc": "2.0", "id": self._resumable.pop(event_id), "result": text("resumed")}
        await exchange.begin_stream()
        await exchange.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
        exchange.finish()

    async def _tool_close_behind(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        """Answer, and close the connection without a word of that."""
        await exchange.result(request_id, text("closed") | self._era())
        exchange.finish()

    async def _tool_twice(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        """Answer, and once more when the connection is idle."""
        await exchange.result(request_id, text(arguments["text"]) | self._era())
        await asyncio.sleep(0.02)
        await exchange.result(request_id, text("once more") | self._era())
        self.answered_twice += 1

    async def _tool_stay(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        """Answer in an event stream that is left open."""
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text("there") | self._era()}
        await exchange.begin_stream()
        await exchange.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
        await exchange.closed()

    async def _tool_cookie(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text("set") | self._era()}
        await exchange.json(answer, headers={"Set-Cookie": arguments["cookie"]})

    async def _tool_hang(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.closed()
        self.let_go.append(request_id)

    async def _tool_hang_in_stream(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        await exchange.begin_stream()
        await exchange.write(b"id: 1\ndata: \n\n: comment\n\n" if arguments.get("ids") else b": comment\n\n")
        await exchange.closed()
        self.let_go.append(request_id)

    async def _tool_reset(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"
        )
        exchange.reset()

    async def _tool_reset_at_once(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        exchange.reset()

    async def _tool_status(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.answer(arguments["status"], b"<h1>sorry</h1>", {"Content-Type": "text/html"})

    async def _tool_bad_request(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        error = {"code": arguments.get("code", -32000), "message": arguments["message"]}
        own = None if arguments["anonymous"] else request_id
        await exchange.json({"jsonrpc": "2.0", "id": own, "error": error}, status=400)

    async def _tool_mismatch(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        """Refuse the first call, since its headers do not fit, and have another tool from then on."""
        if self.late_tools:
            return await exchange.result(request_id, text("fits") | self._era())
        self.late_tools.append("late")
        error = {"code": HEADER_MISMATCH, "message": "the headers do not fit"}
        return await exchange.json({"jsonrpc": "2.0", "id": request_id, "error": error}, status=400)

    async def _tool_drip(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n"
        )
        while True:
            await exchange.write(b" ")
            await asyncio.sleep(1)

    async def _tool_big(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text("x" * arguments["size"]) | self._era()}
        if arguments.get("stream"):
            await exchange.begin_stream()
            await exchange.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
            exchange.finish()
        else:
            await exchange.json(answer)

    async def _tool_bomb(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text("x" * 20_000_000) | self._era()}
        headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
        await exchange.answer(200, gzip.compress(json.dumps(answer).encode()), headers)

    async def _tool_end_stream(
        self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json
    ) -> None:
        await exchange.begin_stream()
        await exchange.write(b": no response\n\n")
        exchange.finish()

    async def _tool_progress(
        self, exchange: "_Exchange", request_id: object, arguments: Json, message: Json
    ) -> None:
        token = message["params"]["_meta"]["progressToken"]
        steps = arguments["steps"]
        await exchange.begin_stream()
        for step in range(1, steps + 1):
            params = {"progressToken": token, "progress": step, "total": steps}
            note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": params}
            await exchange.write(b"data: " + json.dumps(note).encode() + b"\n\n")
        answer = {"jsonrpc": "2.0", "id": request_id, "result": text("done") | self._era()}
        await exchange.write(b"data: " + json.dumps(answer).encode() + b"\n\n")
        exchange.finish()

    async def _tool_raw(self, exchange: "_Exchange", request_id: object, arguments: Json, _: Json) -> None:
        await exchange.answer(200, arguments["body"].encode(), {"Content-Type": "application/json"})


class _Exchange:
    """One HTTP request and its answer."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.path = ""

    async def read(self) -> tuple[str, Headers, bytes]:
        head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip()
            for name, _, value in (line.partition(":") for line in head[1:] if line)
        }
        body = await self._reader.readexactly(int(headers.get("content-length", 0)))
        method, target, _ = head[0].split()
        self.path = target.partition("?")[0]
        return method, headers, body

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def answer(self, status: int, body: bytes = b"", headers: Headers | None = None) -> None:
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in (headers or {}).items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        await self.write(head.encode() + body)

    async def json(self, message: Json, *, status: int = 200, headers: Headers | None = None) -> None:
        content = {"Content-Type": "application/json", **(headers or {})}
        await self.answer(status, json.dumps(message).encode(), content)

    async def result(self, request_id: object, result: Json) -> None:
        await self.json({"jsonrpc": "2.0", "id": request_id, "result": result})

    async def begin_stream(self) -> None:
        await self.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")

    def finish(self) -> None:
        """End an answer that ends with its connection."""
        self._writer.close()
        raise ConnectionError

    def reset(self) -> None:
        """Cut the connection without an end."""
        self._writer.transport.abort()
        raise ConnectionError

    async def closed(self) -> None:
        """Wait until the other side closes the connection."""
        with suppress(ConnectionError):
            await self._reader.read(1)


@asynccontextmanager
async def scripted_http(**options: Any) -> AsyncIterator[ScriptedHttpServer]:
    """A server that listens while the block runs."""
    server = ScriptedHttpServer(**options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()
