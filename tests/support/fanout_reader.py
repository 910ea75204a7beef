"""Reads many streams and sockets at once, in a process of its own so that it takes no time from the gateway.

The arguments are a JSON object: url, token, sse, websocket (how many readers of each), cut (how many of each
are cut in the middle and come back), last (the line that ends a reader). It prints ``ready`` once all are
subscribed, and at the end one JSON object: for each reader the lines that it was given, as text "first-last"
where they are whole and in order, else what is wrong.
"""

import asyncio
import base64
import json
import os
import re
import sys
from urllib.parse import urlsplit

SAID = re.compile(
    rb'"type":"server\.log","id":"([0-9a-f]{16}-[0-9]+)"[^{]*\{[^}]*"line":"(\d+)"'
    rb'|"type":"(subscribed|connected)"|"recovered":(true|false)'
)
LONGEST = 1024
HEAD = b"\r\n\r\n"


class Reader:
    """One reader; takes the events out of the bytes as they come, whatever stands around them."""

    def __init__(self, kind: str, options: dict[str, object], *, cut: bool) -> None:
        self.kind = kind
        self.options = options
        self.cut = cut
        self.lines: list[int] = []
        self.position = ""
        self.told: list[bool] = []
        self.subscribed = asyncio.Event()

    async def run(self) -> None:
        """Read to the last line, with one cut in the middle where there is one."""
        half = int(str(self.options["last"])) // 2 if self.cut else None
        await self._read(until=half)
        if half is not None:
            await self._read(until=None)

    async def _read(self, until: int | None) -> None:
        parts = urlsplit(str(self.options["url"]))
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        last = int(str(self.options["last"])) if until is None else until
        try:
            writer.write(self._request(f"{parts.hostname}:{parts.port}"))
            head = await reader.readuntil(HEAD)
            assert head.split()[1] in (b"200", b"101"), head
            if self.kind == "websocket":
                data: dict[str, str] = {"channel": "servers"}
                if self.position:
                    data["since"] = self.position
                writer.write(masked(json.dumps({"type": "subscribe", "data": data}).encode()))
            rest = b""
            while not self.lines or self.lines[-1] < last:
                chunk = await reader.read(1 << 18)
                assert chunk, "the gateway has ended the stream"
                rest = self._take(rest + chunk, last)
        finally:
            writer.transport.abort()

    def _request(self, host: str) -> bytes:
        path = "/api/v1/sse?channels=servers" if self.kind == "sse" else "/api/v1/ws"
        lines = [f"GET {path} HTTP/1.1", f"Host: {host}", f"Authorization: Bearer {self.options['token']}"]
        if self.kind == "websocket":
            key = base64.b64encode(os.urandom(16)).decode()
            lines += ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
            lines += [f"Sec-WebSocket-Key: {key}"]
        elif self.position:
            lines.append(f"Last-Event-ID: {self.position}")
        return "\r\n".join([*lines, "", ""]).encode()

    def _take(self, data: bytes, last: int) -> bytes:
        end = 0
        for said in SAID.finditer(data):
            end = said.end()
            if said[2] is not None:
                if self.lines and self.lines[-1] >= last:
                    break
                self.position = said[1].decode()
                self.lines.append(int(said[2]))
            elif said[3] is not None:
                self.subscribed.set()
            else:
                self.told.append(said[4] == b"true")
        # What may be the beginning of more is kept; what has been told is not told again.
        return data[max(end, len(data) - LONGEST) :]

    def report(self) -> str:
        """What came, in few words."""
        lines = self.lines
        if lines != list(range(1, len(lines) + 1)):
            wrong = next(i for i, line in enumerate(lines) if line != i + 1)
            return f"{self.kind}: after {lines[max(0, wrong - 3) : wrong]} came {lines[wrong : wrong + 3]}"
        # A socket's first subscription tells that all is there, too.
        recovered = "" if all(self.told) else ", not recovered"
        return f"{self.kind} 1-{lines[-1]}{recovered}"


def masked(payload: bytes) -> bytes:
    """A text frame of a client (RFC 6455 section 5.2) with a mask of zeros."""
    length = len(payload)
    size = bytes([0x80 | length]) if length < 126 else b"\xfe" + length.to_bytes(2, "big")
    return b"\x81" + size + bytes(4) + payload


async def main() -> None:
    """Read, and print what came."""
    options = json.loads(sys.argv[1])
    readers = [
        Reader(kind, options, cut=number < options["cut"])
        for kind in ("sse", "websocket")
        for number in range(options[kind])
    ]
    tasks = [asyncio.create_task(reader.run()) for reader in readers]
    for reader, task in zip(readers, tasks, strict=True):
        waiting = asyncio.create_task(reader.subscribed.wait())
        await asyncio.wait((waiting, task), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
    print("ready", flush=True)  # noqa: T201 - the test reads it
    await asyncio.gather(*tasks)
    print(json.dumps([reader.report() for reader in readers]))  # noqa: T201


if __name__ == "__main__":
    asyncio.run(main())
