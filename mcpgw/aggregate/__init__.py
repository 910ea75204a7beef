"""Every backend's tools, prompts and resources as one MCP server, and each backend alone under its own names.

entrance.py    where the door is, which is built when somebody comes
door.py        the way in: requests of known users, handed to the SDK's session manager
server.py      what the one MCP server answers
offers.py      what a server offers to a caller, as MCP's capabilities
names.py       the names and addresses under which many servers are one
relay.py       what a caller is told while a request is open, and what it is asked
tokens.py      whose requests without a session are one client's, and when that is over
suspended.py   requests of revision 2026-07-28 that wait for their caller's next word
changes.py     what has changed, for whoever listens
failures.py    the gateway's errors as those of JSON-RPC
"""

from mcpgw.aggregate.entrance import McpEntrance
from mcpgw.aggregate.visits import Visit

__all__ = ["McpEntrance", "Visit"]
