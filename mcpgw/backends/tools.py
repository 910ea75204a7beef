"""The tools of a backend and their answers, in the JSON that the backend sent."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mcp.client import Client

from mcpgw.errors import ToolExecutionError

_MOST_PAGES = 100


@dataclass(frozen=True, eq=False)
class Tool:
    """A tool as its backend lists it; schemas and annotations are the backend's own JSON."""

    name: str
    title: str | None
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    annotations: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class ToolResult:
    """What a tool answered, in the JSON of MCP's ``CallToolResult``, nothing added and nothing dropped."""

    content: list[dict[str, Any]]
    structured_content: Any
    has_structured_content: bool
    is_error: bool
    meta: Mapping[str, Any] | None

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ToolResult":
        """Read a result whose shape the SDK has checked.

        Raises:
            ToolExecutionError: it is no final result but a request for input (MCP 2026-07-28), which is not
                passed on.
        """
        kind = raw.get("resultType", "complete")
        if kind != "complete":
            raise ToolExecutionError(
                f"the tool asks for further input ({kind}), which is not passed on",
                details={"resultType": kind},
            )
        return cls(
            content=raw.get("content", []),
            structured_content=raw.get("structuredContent"),
            has_structured_content="structuredContent" in raw,
            is_error=raw.get("isError") is True,
            meta=raw.get("_meta"),
        )


async def list_tools(client: Client) -> dict[str, Tool]:
    """Every tool of a connected server, page by page; 100 pages at most, so that none pages for ever."""
    tools: dict[str, Tool] = {}
    if client.server_capabilities.tools is None:
        return tools
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        for tool in page.tools:
            listed = tool.model_dump(by_alias=True, mode="json", exclude_unset=True)
            tools[tool.name] = Tool(
                name=tool.name,
                title=tool.title,
                description=tool.description or "",
                input_schema=listed.get("inputSchema", {"type": "object"}),
                output_schema=listed.get("outputSchema"),
                annotations=listed.get("annotations"),
            )
        cursor = page.next_cursor
        if cursor is None:
            break
    return tools
