"""Connections of the load generator to what is measured: how calls are written, and answers found.

All block while they open. Then `fileno` is watched, and `receive` reads what is there: with answers that are
cut by the end of a read, it keeps the beginning.
"""

import json
import os
import re
import select
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.answers import Answers, text_of
from benchmarks.websocket import CLOSE, PING, PONG, TEXT, client_frame, frame_at, upgrade_request

Kind = Literal["gateway", "relay", "pipes", "mcp", "operation", "sdk"]

OPENING_SECONDS = 30.0
_MOST = 1 << 20
_MASK = b"\x5a\xc3\x17\x99"
_REVISION = "2025-06-18"
_INITIALIZE = {
    "protocolVersion": _REVISION,
    "capabilities": {},
    "clientInfo": {"name": "benchmark", "version": "1"},
}
_INITIALIZED = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
_JSON_CALL = (
    b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"echo","arguments":{"text":"%b"}}}'
)
_FRAME_CALL = (
    b'{"type":"tool_call","id":"%d","data":{"serverId":"echo","toolName":"echo","params":{"text":"%b"}}}'
)
_FRAME_END = re.compile(rb'"type":\s*"(?:tool_response|error|disconnect)"')
_CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_SESSION = re.compile(rb"\r\nmcp-session-id: *([^\r]+)", re.IGNORECASE)


class LoadError(Exception):
    """What is measured does not take a connection, or closes it; the message says how."""


@dataclass(frozen=True)
class Endpoint:
    """Where calls go to, and in which manner.

    `gateway`: frames of mcpgw over WebSocket; `relay`: JSON-RPC over WebSocket; `pipes`: JSON-RPC lines with
    a child of the generator; `mcp`: Streamable HTTP; `operation`: an HTTP operation for a tool; `sdk`: the
    client of the MCP SDK, on `command` or `url`. The tool is always ``echo``, of the server ``echo``.
    `headers` are taken in turns by the connections.
    """

    kind: Kind
    port: int = 0
    path: str = "/"
    headers: tuple[Mapping[str, str], ...] = ({},)
    command: tuple[str, ...] = ()
    url: str = ""


class LoadConnection(ABC):
    """One connection, and the calls that are open on it."""

    def __init__(self) -> None:
        self.answers = Answers()
        self._data = b""

    @abstractmethod
    def fileno(self) -> int:
        """What is watched."""

    @abstractmethod
    def request(self, number: int) -> bytes:
        """The bytes of one call."""

    @abstractmethod
    def send(self, data: bytes) -> None:
        """Write all of it."""

    @abstractmethod
    def read(self) -> bytes:
        """What is there; empty at the end."""

    @abstractmethod
    def split(self, data: bytes) -> tuple[list[bytes], int]:
        """The answers in `data`, and where what is not whole begins."""

    @abstractmethod
    def close(self) -> None:
        """End it."""

    def receive(self) -> list[bytes]:
        """The answers that have come.

        Raises:
            LoadError: the connection is closed.
        """
        data = self.read()
        if not data:
            raise LoadError(f"the connection was closed; before that came {self._data[:300]!r}")
        if self._data:
            data = self._data + data
        messages, position = self.split(data)
        self._data = data[position:]
        return messages

    def wait(self) -> list[bytes]:
        """The next answers, within `OPENING_SECONDS`."""
        end = time.monotonic() + OPENING_SECONDS
        while (left := end - time.monotonic()) > 0:
            if select.select([self.fileno()], [], [], left)[0] and (messages := self.receive()):
                return messages
        raise LoadError(f"no answer within {OPENING_SECONDS:.0f} s")


class Pipes(LoadConnection):
    """JSON-RPC lines, with a child."""

    def __init__(self, endpoint: Endpoint) -> None:
        super().__init__()
        self._child = subprocess.Popen(
            endpoint.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._stdin, self._stdout = self._child.stdin, self._child.stdout
        self.send(_json_rpc("initialize", _INITIALIZE) + b"\n")
        self.wait()
        self.send(_INITIALIZED + b"\n")

    def fileno(self) -> int:
        return self._stdout.fileno()

    def request(self, number: int) -> bytes:
        return _JSON_CALL % (number, text_of(number)) + b"\n"

    def send(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._stdin.fileno(), data) :]

    def read(self) -> bytes:
        return os.read(self._stdout.fileno(), _MOST)

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        *lines, rest = data.split(b"\n")
        return lines, len(data) - len(rest)

    def close(self) -> None:
        self._stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        self._stdout.close()


class _Socket(LoadConnection):
    """TCP to the loopback address."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=OPENING_SECONDS)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def read(self) -> bytes:
        return self._socket.recv(_MOST)

    def close(self) -> None:
        self._socket.close()


class _WebSocket(_Socket):
    """Masked as the frames of real clients are; no compression."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        super().__init__(endpoint.port)
        self.send(upgrade_request(endpoint.port, endpoint.path, headers))
        while b"\r\n\r\n" not in self._data:
            data = self.read()
            if not data:
                break
            self._data += data
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        if b" 101 " not in head.partition(b"\r\n")[0]:
            raise LoadError(f"no upgrade: {head[:300]!r} {self._data[:300]!r}")

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        messages, position = [], 0
        while (found := frame_at(data, position)) is not None:
            first, start, position = found
            opcode = first & 0xF
            if opcode == TEXT:
                messages.append(data[start:position])
            elif opcode == PING:
                self.send(client_frame(PONG, data[start:position]))
            elif opcode == CLOSE:
                raise LoadError(f"the WebSocket was closed: {data[start:position]!r}, after {messages!r}")
        return messages, position


class Gateway(_WebSocket):
    """Frames of mcpgw. What ends no call is passed over."""

    def request(self, number: int) -> bytes:
        return client_frame(TEXT, _FRAME_CALL % (number, text_of(number)), mask=_MASK)

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        messages, position = super().split(data)
        return [each for each in messages if _FRAME_END.search(each)], position


class Relay(_WebSocket):
    """JSON-RPC in WebSocket messages."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        super().__init__(endpoint, headers)
        self.send(client_frame(TEXT, _json_rpc("initialize", _INITIALIZE), mask=_MASK))
        self.wait()
        self.send(client_frame(TEXT, _INITIALIZED, mask=_MASK))

    def request(self, number: int) -> bytes:
        return client_frame(TEXT, _JSON_CALL % (number, text_of(number)), mask=_MASK)


class _Http(_Socket):
    """HTTP/1.1 with keep-alive, one request at a time."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        super().__init__(endpoint.port)
        self._head = _head(endpoint, headers)

    def post(self, body: bytes) -> bytes:
        """The bytes of one request."""
        return b"%b%d\r\n\r\n%b" % (self._head, len(body), body)

    def split(self, data: bytes) -> tuple[list[bytes], int]:
        messages, position = [], 0
        while (end := data.find(b"\r\n\r\n", position)) >= 0:
            start = end + 4
            if (length := _CONTENT_LENGTH.search(data, position, start)) is not None:
                stop = start + int(length[1])
            elif _CHUNKED.search(data, position, start):
                last = data.find(b"\r\n0\r\n\r\n", end)  # neither JSON nor events in lines hold that
                stop = last + 7 if last >= 0 else len(data) + 1
            else:
                stop = start
            if stop > len(data):
                break
            if not data.startswith((b"HTTP/1.1 200", b"HTTP/1.1 202"), position):
                messages.append(b'"error" ' + data[position:stop])
            else:
                messages.append(data[start:stop])
            self._last_head = data[position:start]
            position = stop
        return messages, position


class StreamableHttp(_Http):
    """MCP over Streamable HTTP, a session a connection."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        accept = {"Accept": "application/json, text/event-stream", **headers}
        super().__init__(endpoint, accept)
        self.send(self.post(_json_rpc("initialize", _INITIALIZE)))
        answer = self.wait()[0]
        if b'"error"' in answer:
            raise LoadError(f"no session: {answer[:300]!r}")
        later = {**accept, "MCP-Protocol-Version": _REVISION}
        if (session := _SESSION.search(self._last_head)) is not None:
            later["Mcp-Session-Id"] = session[1].decode()
        self._head = _head(endpoint, later)
        self.send(self.post(_INITIALIZED))
        self.wait()

    def request(self, number: int) -> bytes:
        return self.post(_JSON_CALL % (number, text_of(number)))


class Operation(_Http):
    """An HTTP operation for a tool: its arguments in, the text out."""

    def __init__(self, endpoint: Endpoint, headers: Mapping[str, str]) -> None:
        super().__init__(endpoint, headers)
        self.answers = Answers(with_ids=False)

    def request(self, number: int) -> bytes:
        return self.post(b'{"text":"%b"}' % text_of(number))


def connect(endpoint: Endpoint, connections: int) -> Sequence[LoadConnection]:
    """So many connections to `endpoint`, open.

    Raises:
        LoadError, OSError: one of them cannot be opened.
    """
    if endpoint.kind == "pipes":
        return [Pipes(endpoint)]
    kinds: Mapping[str, Callable[[Endpoint, Mapping[str, str]], LoadConnection]] = {
        "gateway": Gateway,
        "relay": Relay,
        "mcp": StreamableHttp,
        "operation": Operation,
    }
    kind = kinds[endpoint.kind]
    return [kind(endpoint, endpoint.headers[each % len(endpoint.headers)]) for each in range(connections)]


def _json_rpc(method: str, params: Mapping[str, Any]) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 0, "method": method, "params": params}).encode()


def _head(endpoint: Endpoint, headers: Mapping[str, str]) -> bytes:
    lines = [
        f"POST {endpoint.path} HTTP/1.1",
        f"Host: 127.0.0.1:{endpoint.port}",
        "Content-Type: application/json",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Content-Length: ",
    ]
    return "\r\n".join(lines).encode()
