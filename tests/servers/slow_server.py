"""An MCP server over stdio whose tools take their time and run side by side; what they did stands in a file.

It speaks the handshake revisions of the protocol and is written without the SDK, so that it starts quickly.

    python slow_server.py RECORD

`wait` adds ``started MARK`` to the file RECORD, and ``ended MARK`` or ``cancelled MARK``; `count` adds KEY.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

Json = dict[str, Any]


def inputs(required: dict[str, str], optional: dict[str, str] | None = None) -> Json:
    """The schema of arguments, each a name and its type."""
    properties = {name: {"type": kind} for name, kind in {**required, **(optional or {})}.items()}
    return {"type": "object", "properties": properties, "required": list(required)}


class Stopped(Exception):
    """Nobody waits for this call any more."""


class Server:
    """The tools, each of which runs in a thread of its own; each takes its arguments and what stops it."""

    def __init__(self, record: str) -> None:
        self._record = record
        self._writing = threading.Lock()
        self._open: dict[object, tuple[threading.Thread, threading.Event]] = {}
        self.tools: dict[str, tuple[Callable[[Json, threading.Event], str], Json]] = {
            "wait": (self.wait, inputs({"seconds": "number", "mark": "string"})),
            "other": (self.other, inputs({"mark": "string"})),
            "deep": (self.deep, inputs({"levels": "integer"})),
            "count": (self.count, inputs({"key": "string"}, {"seconds": "number", "size": "integer"})),
            "chatter": (
                self.chatter,
                inputs({"lines": "integer", "per_second": "number", "size": "integer"}),
            ),
        }

    def note(self, line: str) -> None:
        """Add a line to the record."""
        with open(self._record, "a", encoding="utf-8") as record:  # noqa: PTH123 - pathlib is one more import
            record.write(line + "\n")

    def wait(self, arguments: Json, stop: threading.Event) -> str:
        """Answer with the mark after that many seconds."""
        mark: str = arguments["mark"]
        self.note(f"started {mark}")
        if stop.wait(arguments["seconds"]):
            self.note(f"cancelled {mark}")
            raise Stopped
        self.note(f"ended {mark}")
        return mark

    def other(self, arguments: Json, stop: threading.Event) -> str:
        """Answer with the mark at once."""
        mark: str = arguments["mark"]
        return mark

    def deep(self, arguments: Json, stop: threading.Event) -> str:
        """Answer with a text that is JSON of that many levels."""
        levels: int = arguments["levels"]
        return "[" * levels + "]" * levels

    def count(self, arguments: Json, stop: threading.Event) -> str:
        """Note that the call with this key has run, wait, and answer with the key and `size` characters."""
        key: str = arguments["key"]
        self.note(key)
        if stop.wait(arguments.get("seconds", 0)):
            raise Stopped
        size: int = arguments.get("size", 0)
        return key + "." * size

    def chatter(self, arguments: Json, stop: threading.Event) -> str:
        """Write lines of `size` characters to stderr, each with its number, and answer after the last."""
        started = time.monotonic()
        for number in range(arguments["lines"]):
            sys.stderr.write(f"line {number} ".ljust(arguments["size"], ".") + "\n")
            ahead = number / arguments["per_second"] - (time.monotonic() - started)
            if ahead > 0.01:
                sys.stderr.flush()
                if stop.wait(ahead):
                    raise Stopped
        sys.stderr.flush()
        return "said"

    def run(self, request_id: object, name: str, arguments: Json, stop: threading.Event) -> None:
        """Run a tool to its end, and answer."""
        try:
            text = self.tools[name][0](arguments, stop)
        except Stopped:
            return
        finally:
            self._open.pop(request_id, None)
        content = [{"type": "text", "text": text}]
        self.answer(request_id, {"content": content, "structuredContent": {"result": text}})

    def answer(self, request_id: object, result: Json | None) -> None:
        """Answer a request; None says that there is no such method."""
        message: Json = {"jsonrpc": "2.0", "id": request_id}
        message |= (
            {"error": {"code": -32601, "message": "no such method"}} if result is None else {"result": result}
        )
        data = json.dumps(message, separators=(",", ":")).encode() + b"\n"
        with self._writing:
            while data:
                data = data[os.write(1, data) :]

    def handle(self, message: Json) -> None:
        """Do what one message asks."""
        method, params = message.get("method"), message.get("params", {})
        if method == "notifications/cancelled":
            if (found := self._open.get(params["requestId"])) is not None:
                found[1].set()
        elif "id" not in message:
            return
        elif method == "tools/call":
            stop = threading.Event()
            arguments = (message["id"], params["name"], params.get("arguments", {}), stop)
            thread = threading.Thread(target=self.run, args=arguments, daemon=True)
            self._open[message["id"]] = thread, stop
            thread.start()
        elif method == "tools/list":
            output = inputs({"result": "string"})
            tools = [
                {"name": name, "description": run.__doc__, "inputSchema": schema, "outputSchema": output}
                for name, (run, schema) in self.tools.items()
            ]
            self.answer(message["id"], {"tools": tools})
        elif method == "initialize":
            info = {"name": "slow", "version": "1"}
            version = params["protocolVersion"]
            self.answer(
                message["id"],
                {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info},
            )
        else:
            self.answer(message["id"], None)

    def stop(self) -> None:
        """Stop every call that still runs."""
        for thread, stop in list(self._open.values()):
            stop.set()
            thread.join(1)


def main() -> None:
    """Serve until stdin ends."""
    server = Server(sys.argv[1])
    for line in sys.stdin.buffer:
        server.handle(json.loads(line))
    server.stop()


if __name__ == "__main__":
    main()
