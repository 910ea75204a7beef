"""``/api/v1/asyncapi.json``: the protocol for tools that read AsyncAPI 3.0."""

import asyncio
from typing import Any

from .base import ApiHandler


class AsyncApiHandler(ApiHandler):
    """The document, with the address that the request was sent to."""

    async def get(self) -> None:
        """Answer with it."""
        secure = self.request.protocol == "https"
        self.write_json(await asyncio.to_thread(_document, self.request.host, secure))


def _document(host: str, secure: bool) -> dict[str, Any]:
    from mcpgw.wire.asyncapi import asyncapi_document  # noqa: PLC0415 - for those who ask for it

    return asyncapi_document(host, secure=secure)
