"""mcpgw: a real-time gateway to MCP tools over WebSocket, SSE and HTTP."""

from pathlib import Path

# In a checkout ``handlers/`` and ``schemas/`` stand beside this folder; installed, they are inside it.
if not (Path(__file__).parent / "handlers").is_dir():
    __path__.append(str(Path(__file__).parent.parent))

__version__ = "0.1.0"
