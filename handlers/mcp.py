"""``/mcp`` and ``/mcp/SERVER``: MCP's Streamable HTTP, by a bridge between Tornado and ASGI.

The SDK serves MCP as an ASGI application. Here a Tornado request becomes its ``scope``, and what it sends
becomes the answer. Who may come in at all is decided before. Source: ASGI 3.0, "HTTP & WebSocket"; MCP
2025-11-25 and 2026-07-28, "Streamable HTTP".
"""

import asyncio
import re
import time
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import nullcontext, suppress
from typing import Any

from tornado.iostream import StreamClosedError
from tornado.web import HTTPError

from mcpgw.errors import GatewayError, PermissionDenied, RateLimited
from mcpgw.rate_limit import retry_after_ms
from mcpgw.services import Principal, Visit

from .base import ApiHandler

_LONGEST_STREAM = 30 * 86_400.0
_ALLOWED_HEADERS = "Accept, Authorization, Content-Type, Last-Event-ID, Mcp-Method, Mcp-Name"
_EXPOSED_HEADERS = "Mcp-Session-Id, Mcp-Protocol-Version, Retry-After, WWW-Authenticate"
_PARAMETER_HEADER = re.compile(r"mcp-[a-z0-9-]{1,100}", re.IGNORECASE)
_NOT_HANDED_ON = frozenset({"authorization", "cookie"})
"""What the SDK has no need of: it may keep a request, or log it."""
_OWN_HEADERS = frozenset({"connection", "cache-control", "server", "date", "x-content-type-options"})
"""What the gateway says itself in every answer."""
_SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,256}")
"""RFC 6749 section 3.3: nothing that would end the quotes it stands in."""
_MOST_PREFLIGHT = 2000
_LAST_WORD_SECONDS = 1.0


class McpHandler(ApiHandler):
    """Every server as one MCP server, or the one that the path names."""

    def initialize(self) -> None:
        """Nothing has been sent yet."""
        self._gone = asyncio.Event()
        self._ending = asyncio.Event()
        self._served = asyncio.Event()
        self._is_stream = False

    def set_default_headers(self) -> None:
        """As everywhere, with what a browser's MCP client must be able to read."""
        super().set_default_headers()
        if "Access-Control-Expose-Headers" in self._headers:
            self.set_header("Access-Control-Expose-Headers", _EXPOSED_HEADERS)

    def prepare(self) -> None:
        """Check as every handler does."""
        if not self.services.config.mcp.enabled:
            raise HTTPError(404)
        super().prepare()

    def challenge(self, error: GatewayError) -> str:
        """As everywhere, with where tokens of others are told of (RFC 9728 section 5.1)."""
        asked = super().challenge(error)
        if not self.services.access.issuers.authorization_servers:
            return asked
        where = f'resource_metadata="{self.public_url}/.well-known/oauth-protected-resource{self._resource}"'
        return f"{asked} {where}" if asked == "Bearer" else f"{asked}, {where}"

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """As everywhere; who lacks a scope is told the word for it of whom the token comes from (RFC 6750,
        section 3.1).
        """
        error = kwargs.get("exc_info", (None, None, None))[1]
        if isinstance(error, PermissionDenied) and isinstance(error.details, dict):
            missing = str(error.details.get("missingScope", ""))
            foreign = None if self.principal is None else self.principal.foreign
            name = "" if foreign is None else foreign.name
            word = self.services.access.issuers.word_for(missing, name=name) if missing else ""
            if _SCOPE_TOKEN.fullmatch(word):
                told = 'Bearer error="insufficient_scope"'
                challenge = self.challenge(error).replace('Bearer error="invalid_token"', told)
                self.set_header("WWW-Authenticate", f'{challenge}, scope="{word}"')
        super().write_error(status_code, **kwargs)

    @property
    def _resource(self) -> str:
        """The path of the resource that is asked for."""
        return f"/mcp/{self.path_args[0]}" if self.path_args else "/mcp"

    def allowed_request_headers(self) -> str:
        """Those of the protocol, and the arguments that a tool wants as headers."""
        asked = self.request.headers.get("Access-Control-Request-Headers", "")[:_MOST_PREFLIGHT]
        own = [name.strip() for name in asked.split(",") if _PARAMETER_HEADER.fullmatch(name.strip())]
        return ", ".join([_ALLOWED_HEADERS, *own])

    async def get(self, server_id: str | None = None) -> None:
        """A stream of what the gateway says unasked in a session, until its token's time is over."""
        self._is_stream = True
        # A key may have no end.
        left = min(self.caller.expires_at + self.services.config.auth.leeway - time.time(), _LONGEST_STREAM)
        expiry = self.services.deadlines.call_later(left, self._ending.set)
        try:
            await self._serve(server_id)
        finally:
            expiry.cancel()

    async def post(self, server_id: str | None = None) -> None:
        """One message of a client."""
        wait = self.services.limits.try_frame(self.caller.user)
        if wait:
            raise RateLimited("too many messages in too short a time", retry_after_ms=retry_after_ms(wait))
        door = await self.services.mcp.door()
        self._is_stream = door.is_stream(self.request.headers)
        await self._serve(server_id)

    async def delete(self, server_id: str | None = None) -> None:
        """The client ends its session."""
        await self._serve(server_id)

    async def _serve(self, server_id: str | None) -> None:
        if self._is_stream:
            self.refuse_while_draining()
        door = await self.services.mcp.door()
        headers = self.request.headers
        visit = Visit(self.caller, server_id, self.actor(), headers, self.services.tracing, self._gone)
        door.admit(
            visit,
            session_id=headers.get("Mcp-Session-Id"),
            version=headers.get("Mcp-Protocol-Version"),
            method=self.request.method or "",
        )
        # It takes no place of the hub's: sessions and streams have limits of their own.
        hub = self.services.hub
        hub.add(self)
        try:
            with nullcontext() if self._is_stream else door.counted(visit):
                await door.serve(visit, self._scope(), self._receiver(), self._send)
        finally:
            self._served.set()
            hub.remove(self)
        if not self._finished and not self._gone.is_set():
            self.finish()

    def probe(self, seconds: float) -> None:
        """Nothing: it holds no place that a newcomer could be given."""

    def review(self, judge: Callable[[Principal], Principal]) -> None:
        """End a stream whose credentials hold no more; the door itself holds to them what it has open."""
        if not self.review_principal(judge) and self._is_stream:
            self._ending.set()

    async def drain(self, deadline: float) -> None:
        """End a stream at once; give a request until `deadline` to be answered."""
        if self._is_stream:
            self.services.mcp.end_streams()
            deadline = min(deadline, asyncio.get_running_loop().time() + _LAST_WORD_SECONDS)
        if self.request.method != "GET":
            with suppress(TimeoutError):
                async with asyncio.timeout_at(deadline):
                    await self._served.wait()
        self._ending.set()

    def on_connection_close(self) -> None:
        """The client has gone."""
        self._gone.set()
        super().on_connection_close()

    # --- ASGI ----------------------------------------------------------------------------------------------

    def _scope(self) -> dict[str, Any]:
        request = self.request
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": request.protocol,
            "path": request.path,
            "raw_path": request.path.encode("latin-1", "replace"),
            "query_string": request.query.encode("latin-1", "replace"),
            "root_path": "",
            "headers": [
                (name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace"))
                for name, value in request.headers.get_all()
                if name.lower() not in _NOT_HANDED_ON
            ],
            "client": (request.remote_ip, 0),
            "server": None,
        }

    def _receiver(self) -> Any:
        body: list[bytes] = [self.request.body]

        async def receive() -> MutableMapping[str, Any]:
            if body:
                return {"type": "http.request", "body": body.pop(), "more_body": False}
            waits = {asyncio.create_task(event.wait()) for event in (self._gone, self._ending)}
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()
            return {"type": "http.disconnect"}

        return receive

    async def _send(self, message: MutableMapping[str, Any]) -> None:
        """Write one message of ASGI; nothing to a client that has gone or has its whole answer."""
        if self._gone.is_set() or self._finished:
            return
        if message["type"] == "http.response.start":
            self._begin(message)
            if self._headers.get("Content-Type", "").startswith("text/event-stream"):
                await self._flush()
        elif message["type"] == "http.response.body":
            if body := message.get("body", b""):
                self.write(body)
            if message.get("more_body", False):
                await self._flush()
            else:
                self.finish()

    def _begin(self, message: Mapping[str, Any]) -> None:
        self.set_status(message["status"])
        self.clear_header("Content-Type")
        for raw_name, raw_value in message.get("headers", ()):
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            if name.lower() not in _OWN_HEADERS:
                self.set_header(name, value)

    async def _flush(self) -> None:
        try:
            async with asyncio.timeout(self.services.config.websocket.write_timeout):
                await self.flush()
        except StreamClosedError:
            self._gone.set()
        except TimeoutError:
            # It takes nothing: there is no way to end such an answer whole.
            self._gone.set()
            self.detach().close()
