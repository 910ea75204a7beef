"""An MCP server over stdio, of the handshake revisions, whose tools have unusual input schemas.

Each call is answered with the arguments as they came, as JSON text; ``never`` is not answered at all.
"""

import json
import sys
from typing import Any

SCHEMAS: dict[str, dict[str, Any]] = {
    "plain": {
        "type": "object",
        "properties": {
            "count": {"type": "integer", "minimum": 1},
            "name": {"type": "string", "maxLength": 5},
        },
        "required": ["count"],
        "additionalProperties": False,
    },
    "draft_7": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {"pair": {"type": "array", "items": [{"type": "string"}, {"type": "integer"}]}},
    },
    "no_schema_at_all": {"type": "object", "minProperties": "many"},
    "remote_reference": {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:9/schema.json"}}},
    "endless_reference": {"type": "object", "$ref": "#"},
    "broken_pattern": {"type": "object", "properties": {"a": {"pattern": "("}}},
    "slow_pattern": {"type": "object", "properties": {"a": {"pattern": "^(a+)+$"}}},
    "slow_names": {"type": "object", "patternProperties": {"^(a+)+$": False}, "additionalProperties": False},
    "fan_out": {
        "type": "object",
        "$ref": "#/$defs/d0",
        "$defs": {
            **{f"d{n}": {"allOf": [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(24)},
            "d24": {"type": "object"},
        },
    },
    "huge": {"type": "object", "enum": [{"n": n} for n in range(30_000)]},
    "never": {"type": "object"},
}
TOOLS = [{"name": name, "inputSchema": schema} for name, schema in SCHEMAS.items()]


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """The result of one request; None where the method is not known."""
    if method == "tools/call":
        return {"content": [{"type": "text", "text": json.dumps(params.get("arguments"))}]}
    if method == "tools/list":
        return {"tools": TOOLS}
    if method == "initialize":
        version = params["protocolVersion"]
        info = {"name": "odd", "version": "1"}
        return {"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}
    return None


for line in sys.stdin:
    message = json.loads(line)
    if "id" not in message or message.get("params", {}).get("name") == "never":
        continue
    result = answer(message["method"], message.get("params", {}))
    reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
    reply |= {"error": {"code": -32601, "message": "no"}} if result is None else {"result": result}
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
