"""A broadcast as Tornado has it by itself: every message of /publish to every other client, one by one.

What the others send comes back to them. With the argument ``deflate`` permessage-deflate is on, with
Tornado's defaults. The port is printed.
"""

import asyncio
import sys
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application
from tornado.websocket import WebSocketHandler

_CLIENTS: set["Client"] = set()


class Client(WebSocketHandler):
    """One connection."""

    def get_compression_options(self) -> dict[str, Any] | None:
        """Tornado's defaults, where compression was asked for."""
        return {} if sys.argv[1:] == ["deflate"] else None

    def open(self, *_args: str, **_kwargs: str) -> None:
        """Count it in."""
        self.set_nodelay(True)
        if self.request.path != "/publish":
            _CLIENTS.add(self)

    def on_message(self, message: str | bytes) -> None:
        """Broadcast, or send back."""
        for client in _CLIENTS if self.request.path == "/publish" else (self,):
            client.write_message(message)

    def on_close(self) -> None:
        """Count it out."""
        _CLIENTS.discard(self)


async def main() -> None:
    """Serve until the process is ended."""
    sockets = bind_sockets(0, "127.0.0.1", backlog=4096)
    HTTPServer(Application([("/.*", Client)])).add_sockets(sockets)
    print(sockets[0].getsockname()[1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
