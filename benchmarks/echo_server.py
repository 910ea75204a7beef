"""A stdio MCP server that costs next to nothing, so that what stands before it is measured.

    python echo_server.py [FOLDER]

Plain JSON on pipes. It speaks the handshake revisions of MCP and has one tool, ``echo``. In FOLDER it leaves
an empty file named by its process id, so that what it costs is not taken for a gateway's.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

ECHO = {
    "name": "echo",
    "description": "Says what it is told.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of one request; None where the method is not known."""
    if method == "tools/call":
        return {"content": [{"type": "text", "text": params["arguments"]["text"]}]}
    if method == "tools/list":
        return {"tools": [ECHO]}
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "echo", "version": "1"},
        }
    return {} if method == "ping" else None


def main() -> None:
    """Answer line by line until stdin ends."""
    for folder in sys.argv[1:]:
        (Path(folder) / str(os.getpid())).touch()
    for line in sys.stdin:
        message = json.loads(line)
        if "id" not in message:
            continue
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        result = answer(message["method"], message.get("params", {}))
        if result is None:
            reply["error"] = {"code": -32601, "message": "Method not found"}
        else:
            reply["result"] = result
        sys.stdout.write(json.dumps(reply) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
