"""Backend MCP servers: transports, supervision, and the embedded memory server."""
