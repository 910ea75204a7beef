"""An MCP server over stdio whose tools take their time; what it was told to stop stands in a file.

    python slow_server.py RECORD

Each call adds ``started MARK`` to the file RECORD, and ``ended MARK`` or ``cancelled MARK``.
"""

import asyncio
import sys
from pathlib import Path

from mcp.server.mcpserver import MCPServer

server = MCPServer("slow")
_record = Path(sys.argv[1])


def _note(line: str) -> None:
    with _record.open("a", encoding="utf-8") as record:
        record.write(line + "\n")


@server.tool()
async def wait(seconds: float, mark: str) -> str:
    """Answer with the mark after that many seconds."""
    _note(f"started {mark}")
    try:
        await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        _note(f"cancelled {mark}")
        raise
    _note(f"ended {mark}")
    return mark


@server.tool()
async def other(mark: str) -> str:
    """Answer with the mark at once."""
    return mark


@server.tool()
async def deep(levels: int) -> str:
    """Answer with a text that is JSON of that many levels."""
    return "[" * levels + "]" * levels


if __name__ == "__main__":
    server.run("stdio")
