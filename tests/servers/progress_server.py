"""An MCP server over stdio whose tools report progress, log, fail, wait, and answer what is no good to print.

``python progress_server.py FOLDER``: `wait` leaves the files ``started`` and ``cancelled`` in FOLDER.
"""

import asyncio
import sys
import warnings
from pathlib import Path
from typing import Any

from mcp.server.mcpserver import Context, MCPServer

HOSTILE_TEXT = "before\x1b]0;owned\x07\x1b[2J\u202eafter\nsecond line"

server = MCPServer("progress")
folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path()
warnings.simplefilter("ignore")  # logging is deprecated in the newest revision and still in wide use


@server.tool()
async def count(context: Context, steps: int, pause: float = 0.0) -> str:
    """Count to `steps` and report each one."""
    for step in range(1, steps + 1):
        await context.report_progress(step, steps, f"step {step} \x1b[31mred")
        await context.info(f"counted {step}", logger_name="counter")
        await asyncio.sleep(pause)
    return f"counted to {steps}"


@server.tool()
async def wait() -> str:
    """Wait until the call is cancelled."""
    (folder / "cancelled").unlink(missing_ok=True)
    (folder / "started").touch()
    try:
        await asyncio.sleep(600)
    finally:
        (folder / "started").unlink()
        (folder / "cancelled").touch()
    return "nobody cancelled"


@server.tool()
async def fail() -> str:
    """Fail, as a tool does.\x1b[2J"""
    raise RuntimeError("the disk is on fire")


@server.tool(structured_output=False)
async def hostile() -> str:
    """Answer with what would take over a terminal."""
    return HOSTILE_TEXT


@server.tool(structured_output=False)
async def echo(value: Any) -> Any:
    """Answer with the type of the value, and the value."""
    return f"{type(value).__name__} {value}"


if __name__ == "__main__":
    server.run("stdio")
