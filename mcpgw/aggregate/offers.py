"""What a server offers, as MCP's capabilities: what cannot be handed on is left out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import mcp_types as types

_HANDED_ON: Final = ("completions", "logging", "prompts", "resources", "tools")
"""Not ``tasks``, ``experimental`` and ``extensions``: nobody knows which requests belong to those."""

EVERYTHING: Final[Mapping[str, Any]] = {
    "completions": {},
    "logging": {},
    "prompts": {"listChanged": True},
    "resources": {"subscribe": True, "listChanged": True},
    "tools": {"listChanged": True},
}
"""What many servers together may offer, or one of which nothing is known yet."""

METHODS: Final[Mapping[str, str]] = {
    "completion/complete": "completions",
    "prompts/get": "prompts",
    "prompts/list": "prompts",
    "resources/list": "resources",
    "resources/read": "resources",
    "resources/subscribe": "resources",
    "resources/templates/list": "resources",
    "resources/unsubscribe": "resources",
    "tools/call": "tools",
    "tools/list": "tools",
}
"""Which capability a method needs; those that are not here need none."""


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client is told at its first request; `server_info` is None where it is the gateway's own."""

    capabilities: Mapping[str, Any]
    instructions: str | None = None
    server_info: Mapping[str, Any] | None = None

    @classmethod
    def of_server(
        cls,
        capabilities: Mapping[str, Any],
        instructions: str | None,
        server_info: Mapping[str, Any] | None,
    ) -> "Offer":
        """What one server offers; everything, while it is not known."""
        if not capabilities and server_info is None:
            return cls(EVERYTHING)
        kept = {name: capabilities[name] for name in _HANDED_ON if capabilities.get(name) is not None}
        return cls(kept, instructions, server_info)

    def has(self, method: str) -> bool:
        """Whether `method` is served."""
        needed = METHODS.get(method)
        return needed is None or needed in self.capabilities

    def as_model(self) -> types.ServerCapabilities:
        """The capabilities as the SDK has them."""
        return types.ServerCapabilities.model_validate(self.capabilities)
