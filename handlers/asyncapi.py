"""``/api/v1/asyncapi.json``: the protocol for tools that read AsyncAPI 3.0."""

from mcpgw.wire.asyncapi import asyncapi_document

from .base import ApiHandler


class AsyncApiHandler(ApiHandler):
    """The document, with the address that the request was sent to."""

    def get(self) -> None:
        """Answer with it."""
        self.write_json(asyncapi_document(self.request.host, secure=self.request.protocol == "https"))
