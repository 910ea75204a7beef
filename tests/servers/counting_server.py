"""An MCP server over stdio that counts, in a file, how often each of its calls has run.

    python counting_server.py RECORD

`count` adds the line KEY to the file RECORD when it begins. `chatter` writes numbered lines to stderr.
"""

import asyncio
import sys
import time
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("counting")
_record = Path(sys.argv[1])


@server.tool()
async def count(key: str, seconds: float = 0.0, size: int = 0) -> str:
    """Note that the call with this key has run, wait, and answer with the key and `size` more characters."""
    with _record.open("a", encoding="utf-8") as record:
        record.write(f"{key}\n")
    if seconds:
        await asyncio.sleep(seconds)
    return key + "." * size


@server.tool()
async def chatter(lines: int, per_second: float, size: int) -> str:
    """Write lines of `size` characters to stderr, each with its number, and answer when all are written."""
    started = time.monotonic()
    for number in range(lines):
        sys.stderr.write(f"line {number} ".ljust(size, ".") + "\n")
        ahead = number / per_second - (time.monotonic() - started)
        if ahead > 0.01:
            sys.stderr.flush()
            await asyncio.sleep(ahead)
    sys.stderr.flush()
    return "said"


if __name__ == "__main__":
    server.run("stdio")
