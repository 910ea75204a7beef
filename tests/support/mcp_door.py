"""MCP clients at the ``/mcp`` of a gateway in the test's own loop."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import mcp_types as types
from mcp.client import Client, ClientRequestContext, IncomingMessage
from mcp.client.streamable_http import streamable_http_client

from tests.conftest import LiveGateway
from tests.support.gateway_process import ALL_SCOPES

MODERN = "2026-07-28"
HANDSHAKE = "2025-11-25"
Era = Literal["auto", "legacy"]
ERAS: tuple[Era, Era] = ("auto", "legacy")
_TYPES = {"Accept": "application/json, text/event-stream", "Content-Type": "application/json"}


@dataclass
class Heard:
    """What came to a client beside its answers."""

    messages: list[IncomingMessage] = field(default_factory=list)
    logs: list[Any] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def count(self, kind: type[Any]) -> int:
        """How many messages of a kind have come."""
        return sum(isinstance(message, kind) for message in self.messages)


@asynccontextmanager
async def mcp_client(
    gateway: LiveGateway,
    path: str = "/mcp",
    *,
    mode: Era = "auto",
    user: str = "ann",
    scopes: Iterable[str] = ALL_SCOPES,
    answer: Mapping[str, Any] | None = None,
    log_level: Any = None,
) -> AsyncIterator[tuple[Client, Heard]]:
    """A client that has connected; it fills every form with `answer`, or declines where there is none."""
    heard = Heard()

    async def on_message(message: IncomingMessage) -> None:
        heard.messages.append(message)

    async def on_log(params: types.LoggingMessageNotificationParams) -> None:
        heard.logs.append(params.data)

    async def on_elicitation(
        context: ClientRequestContext, params: types.ElicitRequestParams
    ) -> types.ElicitResult | types.ErrorData:
        heard.asked.append(params.message)
        if answer is None:
            return types.ElicitResult(action="decline")
        return types.ElicitResult(action="accept", content=dict(answer))

    headers = {"Authorization": f"Bearer {gateway.token(user, scopes)}"}
    async with httpx2.AsyncClient(headers=headers, timeout=20) as http:
        transport = streamable_http_client(gateway.url + path, http_client=http)
        async with Client(
            transport,
            mode=mode,
            message_handler=on_message,
            logging_callback=on_log,
            log_level=log_level,
            elicitation_callback=on_elicitation,
            cache=None,
        ) as client:
            yield client, heard


class Door:
    """The HTTP of ``/mcp``, request by request."""

    def __init__(self, gateway: LiveGateway, path: str = "/mcp", token: str | None = None) -> None:
        self.url = gateway.url + path
        self.token = gateway.token() if token is None else token

    async def send(
        self, method: str, content: Any = None, headers: Mapping[str, str] | None = None
    ) -> httpx2.Response:
        """One request, answered whole."""
        sent = {
            **_TYPES,
            **({"Authorization": f"Bearer {self.token}"} if self.token else {}),
            **(headers or {}),
        }
        async with httpx2.AsyncClient(timeout=20) as http:
            body = content if isinstance(content, bytes | None) else json.dumps(content).encode()
            return await http.request(method, self.url, content=body, headers=sent)

    async def modern(
        self,
        method: str,
        params: Mapping[str, Any] | None = None,
        *,
        capabilities: Any = None,
        **headers: str,
    ) -> httpx2.Response:
        """One request of revision 2026-07-28."""
        meta = {
            types.PROTOCOL_VERSION_META_KEY: MODERN,
            types.CLIENT_CAPABILITIES_META_KEY: capabilities or {},
        }
        name = (params or {}).get("name") or (params or {}).get("uri")
        named = {"Mcp-Name": str(name)} if name else {}
        return await self.send(
            "POST",
            {"jsonrpc": "2.0", "id": 1, "method": method, "params": {**(params or {}), "_meta": meta}},
            {"Mcp-Protocol-Version": MODERN, "Mcp-Method": method, **named, **headers},
        )

    async def begin(self) -> str:
        """Begin a session of the handshake revisions; its id."""
        params = {
            "protocolVersion": HANDSHAKE,
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        }
        request = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params}
        answer = await self.send("POST", request)
        assert answer.status_code == 200, answer.text
        session = str(answer.headers["mcp-session-id"])
        noted = await self.in_session(session, {"jsonrpc": "2.0", "method": "notifications/initialized"})
        assert noted.status_code == 202
        return session

    async def in_session(self, session: str, content: Any, method: str = "POST") -> httpx2.Response:
        """One message of a session."""
        headers = {"Mcp-Session-Id": session, "Mcp-Protocol-Version": HANDSHAKE}
        return await self.send(method, content, headers)


def result_of(answer: httpx2.Response) -> dict[str, Any]:
    """The JSON-RPC message of an answer, whether it came as JSON or as an event."""
    text = answer.text
    if answer.headers["content-type"].startswith("text/event-stream"):
        text = [line for line in text.splitlines() if line.startswith("data: ")][-1].removeprefix("data: ")
    message: dict[str, Any] = json.loads(text)
    return message


async def soon(work: Any, seconds: float = 10.0) -> Any:
    """Await, at most so long."""
    async with asyncio.timeout(seconds):
        return await work
