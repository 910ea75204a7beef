"""The echo server over Streamable HTTP, on bare asyncio: one JSON answer a request, no session, no stream.

    python -m benchmarks.echo_http_server [modern]

With ``modern`` it speaks revision 2026-07-28 beside the handshake revisions: it answers ``server/discover``,
and who knows the newer one takes that. The port is printed.
"""

import asyncio
import json
import re
import sys
from typing import Any

from benchmarks.echo_server import answer

MODERN = "2026-07-28"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_OF_THE_ERA = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
_STATUS = {200: "OK", 202: "Accepted", 405: "Method Not Allowed"}


class EchoProtocol(asyncio.Protocol):
    """One connection."""

    def __init__(self, *, modern: bool) -> None:
        self._modern = modern
        self._data = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Answer every request that is whole."""
        assert self._transport is not None
        self._data += data
        while (end := self._data.find(b"\r\n\r\n")) >= 0:
            length = _LENGTH.search(self._data, 0, end)
            whole = end + 4 + (int(length[1]) if length else 0)
            if len(self._data) < whole:
                return
            head, body = self._data[:end], self._data[end + 4 : whole]
            self._data = self._data[whole:]
            self._transport.write(self._response(head, body))

    def _response(self, head: bytes, body: bytes) -> bytes:
        if head.startswith(b"DELETE"):
            return _http(200)
        if not head.startswith(b"POST"):
            return _http(405)
        message = json.loads(body)
        if "id" not in message:
            return _http(202)
        reply: dict[str, Any] = {"jsonrpc": "2.0", "id": message["id"]}
        if self._modern and message["method"] == "server/discover":
            result: dict[str, Any] | None = {"supportedVersions": [MODERN], "capabilities": {"tools": {}}}
        else:
            result = answer(message["method"], message.get("params", {}))
        if result is None:
            reply["error"] = {"code": -32601, "message": "Method not found"}
        else:
            reply["result"] = result | _OF_THE_ERA if MODERN.encode() in head else result
        return _http(200, json.dumps(reply).encode())


def _http(status: int, body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} {_STATUS[status]}\r\nContent-Length: {len(body)}\r\n"
    kind = "Content-Type: application/json\r\n" if body else ""
    return f"{head}{kind}\r\n".encode() + body


async def main() -> None:
    """Serve until the process is ended."""
    modern = sys.argv[1:] == ["modern"]
    server = await asyncio.get_running_loop().create_server(
        lambda: EchoProtocol(modern=modern), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
