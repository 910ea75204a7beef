"""The tools of a backend and their answers, in the JSON that the backend sent."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

from mcpgw.errors import ToolExecutionError


@dataclass(frozen=True, eq=False)
class Tool:
    """A tool as its backend lists it; schemas and annotations are the backend's own JSON.

    `raw` is all that the backend says of it: the JSON of MCP's ``Tool``.
    """

    name: str
    title: str | None
    description: str
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any] | None
    annotations: Mapping[str, Any] | None
    raw: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "Tool":
        """Read a tool whose shape the SDK has checked."""
        return cls(
            name=raw["name"],
            title=raw.get("title"),
            description=raw.get("description") or "",
            input_schema=raw.get("inputSchema", {"type": "object"}),
            output_schema=raw.get("outputSchema"),
            annotations=raw.get("annotations"),
            raw=raw,
        )

    @property
    def is_read_only(self) -> bool:
        """Whether it says of itself that it changes nothing (``readOnlyHint``)."""
        return self._hint("readOnlyHint")

    @property
    def is_repeatable(self) -> bool:
        """Whether it says of itself that a second call does no more than one (``idempotentHint``)."""
        return self.is_read_only or self._hint("idempotentHint")

    def to_json(self, server_id: str) -> dict[str, Any]:
        """As lists of tools have it, with the id of its server."""
        entry: dict[str, Any] = {"serverId": server_id, "name": self.name}
        if self.title is not None:
            entry["title"] = self.title
        entry |= {"description": self.description, "inputSchema": self.input_schema}
        if self.output_schema is not None:
            entry["outputSchema"] = self.output_schema
        if self.annotations is not None:
            entry["annotations"] = self.annotations
        return entry

    def _hint(self, name: str) -> bool:
        return self.annotations is not None and self.annotations.get(name) is True


class ToolResult(msgspec.Struct, frozen=True, gc=False):
    """What a tool answered, in the JSON of MCP's ``CallToolResult``, nothing added and nothing dropped."""

    content: list[dict[str, Any]]
    structured_content: Any
    has_structured_content: bool
    is_error: bool
    meta: Mapping[str, Any] | None
    raw: Mapping[str, Any] = msgspec.field(default_factory=dict)

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> "ToolResult":
        """Read a result whose shape the SDK has checked.

        Raises:
            ToolExecutionError: it is no final result, but of a kind that is not known.
        """
        kind = raw.get("resultType", "complete")
        if kind != "complete":
            raise ToolExecutionError(
                f"the tool answered with a result of the kind {str(kind)[:64]!r}, which is not known",
                details={"resultType": kind},
            )
        return cls(
            raw.get("content", []),
            raw.get("structuredContent"),
            "structuredContent" in raw,
            raw.get("isError") is True,
            raw.get("_meta"),
            raw,
        )
