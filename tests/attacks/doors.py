"""Every way into the gateway, tried in the same way: show a credential, then do what changes something.

That is one call of the tool that saves something in the embedded memory server; of a stream of events, the
stream itself is what is asked for.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.support.raw_socket import TEXT, RawAnswer, RawSocket

IN: Final = "in"
"""The door was open, and what was asked for was done."""

SAVE: Final = {"project": "attacks", "content": "somebody was here"}
Headers = Mapping[str, str]


@dataclass(frozen=True)
class Outcome:
    """What came of a try: the status (101 of a socket that opened), and the code of the error."""

    status: int
    code: str
    headers: Headers


@dataclass(frozen=True)
class Door:
    """One way in. `takes_tickets` says that the credential is shown as ``?ticket=``.

    `status` is what the refusal of a credential has.
    """

    name: str
    knock: Callable[[str, str | None, Headers], Awaitable[Outcome]]
    status: int
    takes_tickets: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def done(self) -> str:
        """The event of the audit log when somebody has come in and has what was asked for."""
        return "connect" if self.name.startswith("stream") else "call"


def _bearer(credential: str | None) -> dict[str, str]:
    return {} if credential is None else {"Authorization": f"Bearer {credential}"}


def _refused(answer: RawAnswer) -> Outcome:
    return Outcome(answer.status, answer.json()["error"]["code"], answer.headers)


async def _talk(client: RawSocket, opened: RawAnswer, *, shown: bool, credential: str | None) -> Outcome:
    """Go on with a socket that opened: show the `credential`, unless one was `shown` before; then call."""
    status = await client.read_json()
    refusal = ""
    if credential is not None:
        await client.send_frame(TEXT, _frame("auth", {"token": credential}))
        status = await client.read_json()
        refusal = status["data"].get("code", "")
    elif not status["data"]["authenticated"] and shown:
        refusal = (await client.read_json())["data"]["code"]
    call = {"serverId": "memory", "toolName": "memory_save", "params": SAVE}
    await client.send_frame(TEXT, _frame("tool_call", call))
    while True:
        answer = await client.read_json()
        if answer["type"] == "tool_response" or answer["type"] == "error":
            break
    if answer["type"] == "tool_response":
        assert not refusal
        return Outcome(opened.status, IN, opened.headers)
    code = answer["data"]["code"]
    if refusal:
        assert code == "auth_required", "a refused credential is none"
    return Outcome(opened.status, refusal or code, opened.headers)


def _frame(frame_type: str, data: Mapping[str, Any]) -> bytes:
    return json.dumps({"type": frame_type, "id": frame_type, "data": data}).encode()


async def _socket(
    url: str, headers: Headers, *, path: str, shown: bool, credential: str | None = None
) -> Outcome:
    async with await RawSocket.connect(url) as client:
        answer = await client.upgrade(headers=headers, path=path)
        if answer.status != 101:
            return _refused(answer)
        return await _talk(client, answer, shown=shown, credential=credential)


async def _socket_header(url: str, credential: str | None, headers: Headers, path: str = "/ws") -> Outcome:
    return await _socket(url, {**_bearer(credential), **headers}, path=path, shown=credential is not None)


async def _socket_subprotocol(
    url: str, credential: str | None, headers: Headers, path: str = "/ws"
) -> Outcome:
    offered = "mcpgw.v1" if credential is None else f"mcpgw.v1, bearer.{credential}"
    all_headers = {"Sec-WebSocket-Protocol": offered, **headers}
    outcome = await _socket(url, all_headers, path=path, shown=credential is not None)
    assert "bearer" not in outcome.headers.get("sec-websocket-protocol", "")
    return outcome


async def _socket_frame(url: str, credential: str | None, headers: Headers) -> Outcome:
    return await _socket(url, headers, path="/ws", shown=False, credential=credential)


async def _socket_ticket(url: str, credential: str | None, headers: Headers) -> Outcome:
    path = "/ws" if credential is None else f"/ws?ticket={credential}"
    return await _socket(url, headers, path=path, shown=credential is not None)


async def _protected_socket(url: str, credential: str | None, headers: Headers) -> Outcome:
    return await _socket_header(url, credential, headers, path="/api/v1/ws")


async def _protected_subprotocol(url: str, credential: str | None, headers: Headers) -> Outcome:
    return await _socket_subprotocol(url, credential, headers, path="/api/v1/ws")


async def _stream(url: str, path: str, headers: Headers) -> Outcome:
    async with await RawSocket.connect(url) as client:
        await client.request("GET", path, {"Accept": "text/event-stream", **headers})
        head = await client.read_head()
        if head.status == 200:
            assert b"connected" in await client.read_chunk()
            return Outcome(200, IN, head.headers)
        body = await client.reader.readexactly(int(head.headers["content-length"]))
        return _refused(RawAnswer(head.status, head.headers, body))


async def _stream_header(url: str, credential: str | None, headers: Headers) -> Outcome:
    return await _stream(url, "/api/v1/sse", {**_bearer(credential), **headers})


async def _stream_ticket(url: str, credential: str | None, headers: Headers) -> Outcome:
    path = "/api/v1/sse" if credential is None else f"/api/v1/sse?ticket={credential}"
    return await _stream(url, path, headers)


async def _post(url: str, path: str, body: object, headers: Headers) -> Outcome:
    async with await RawSocket.connect(url) as client:
        types = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
        await client.request("POST", path, {**types, **headers}, json.dumps(body).encode())
        answer = await client.read_answer()
    if answer.status == 200:
        return Outcome(200, IN, answer.headers)
    return _refused(answer)


async def _rest(url: str, credential: str | None, headers: Headers) -> Outcome:
    path = "/api/v1/servers/memory/tools/memory_save"
    return await _post(url, path, {"params": SAVE}, {**_bearer(credential), **headers})


def _mcp(path: str, tool: str) -> Callable[[str, str | None, Headers], Awaitable[Outcome]]:
    async def knock(url: str, credential: str | None, headers: Headers) -> Outcome:
        meta = {
            "io.modelcontextprotocol/protocolVersion": "2026-07-28",
            "io.modelcontextprotocol/clientCapabilities": {},
        }
        params = {"name": tool, "arguments": SAVE, "_meta": meta}
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        named = {"Mcp-Protocol-Version": "2026-07-28", "Mcp-Method": "tools/call", "Mcp-Name": tool}
        return await _post(url, path, request, {**named, **_bearer(credential), **headers})

    return knock


DOORS: Final = (
    Door("socket header", _socket_header, 101),
    Door("socket subprotocol", _socket_subprotocol, 101),
    Door("socket frame", _socket_frame, 101),
    Door("socket ticket", _socket_ticket, 101, takes_tickets=True),
    Door("protected socket header", _protected_socket, 401),
    Door("protected socket subprotocol", _protected_subprotocol, 401),
    Door("stream header", _stream_header, 401),
    Door("stream ticket", _stream_ticket, 401, takes_tickets=True),
    Door("rest", _rest, 401),
    Door("mcp", _mcp("/mcp", "memory__memory_save"), 401),
    Door("mcp of one server", _mcp("/mcp/memory", "memory_save"), 401),
)
