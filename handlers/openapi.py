"""``/api/v1/openapi.json``: REST and every tool that the caller may call, for programs that read OpenAPI."""

import asyncio
from typing import Any

from mcpgw.wire import strict_json

from .base import ApiHandler


class OpenApiHandler(ApiHandler):
    """The document as the caller has it; with an ETag, since it is large and seldom another."""

    async def get(self) -> None:
        """Answer with it, or 304 where the caller has it already."""
        tools, longest = self.services.gateway.list_tools(self.caller), self.services.config.calls.max_timeout
        # A server may list any number of tools, with schemas of any size.
        text = await asyncio.to_thread(_text, tools, longest)
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "private, no-cache")
        self.add_header("Vary", "Authorization")
        self.finish(text)


def _text(tools: Any, longest: float) -> str:
    from mcpgw.wire.openapi import openapi_document  # noqa: PLC0415 - for those who ask for it

    return strict_json.dumps(openapi_document(tools, longest_call=longest))
