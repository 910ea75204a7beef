"""Every route of the gateway, as requests that can be sent."""

import re
from collections.abc import Iterator

from tornado.web import RequestHandler
from tornado.websocket import WebSocketHandler

import mcpgw.app

VERBS = ("get", "post", "put", "patch", "delete")


def routes() -> Iterator[tuple[str, str, type[RequestHandler]]]:
    """Method, a path, and who handles it: each verb of each route once."""
    found: list[tuple[str, type[RequestHandler]]] = vars(mcpgw.app)["ROUTES"]
    for pattern, handler in found:
        path = re.sub(r"\(([^)]*)\)", _sample, pattern).replace("\\", "")
        for verb in VERBS:
            own = getattr(handler, verb)
            if own is not getattr(RequestHandler, verb):
                yield verb.upper(), path, handler


def upgrade_of(handler: type[RequestHandler]) -> dict[str, str]:
    """The headers that ask for a WebSocket, where the handler is one."""
    if not issubclass(handler, WebSocketHandler):
        return {}
    return {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    }


def _sample(group: re.Match[str]) -> str:
    return "x" if "[" in group[1] or "." in group[1].replace("\\.", "") else group[1].split("|")[-1]
