"""Conversations without sockets and without backends: what a client says and hears, as plain dictionaries."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mcpgw.access.callers import Caller
from mcpgw.access.tokens import Principal, Tokens
from mcpgw.backends.requests import Observer
from mcpgw.backends.tools import Tool, ToolResult
from mcpgw.bus import LocalBus
from mcpgw.conversation import Conversation
from mcpgw.conversation_parts import ClientInfo, ConversationParts, ConversationSettings
from mcpgw.errors import AuthFailed, CloseCode, ServerNotFound
from mcpgw.gateway import Gateway
from mcpgw.rooms import Rooms
from mcpgw.session_store import SessionStore
from mcpgw.settings import AuthSettings, BackendSettings, CallSettings, SessionSettings, WebSocketSettings
from mcpgw.wire.deliveries import Delivery
from mcpgw.wire.events import Event
from tests.support.gateway_process import ALL_SCOPES
from tests.support.parts import AUDIT, TRACING, metrics, no_limits
from tests.support.schemas import assert_valid_server_frame

TOKENS = Tokens(algorithm="HS256", key="a key of at least thirty-two bytes, for tests alone")
Frame = dict[str, Any]
ProgressCallback = Callable[[float, float | None, str | None], None]
LogCallback = Callable[[str, str | None, Any], None]


def text_result(text: str) -> ToolResult:
    """The answer of a tool that says one text."""
    return ToolResult([{"type": "text", "text": text}], None, False, False, None)


class ScriptedGateway(Gateway):
    """Answers calls as the test says, without any backend; remembers which were cancelled."""

    def __init__(self) -> None:
        super().__init__([], CallSettings(), BackendSettings(), metrics=metrics(), tracing=TRACING)
        self.released: dict[str, asyncio.Future[ToolResult]] = {}
        self.waiting: list[asyncio.Future[ToolResult]] = []
        self.cancelled: list[str] = []
        self.callbacks: dict[str, tuple[ProgressCallback, LogCallback]] = {}

    def list_tools(
        self, principal: Principal, server_id: str | None = None, *, connection: str = ""
    ) -> list[tuple[str, Tool]]:
        """One tool, on the server ``script``."""
        if server_id not in (None, "script"):
            raise ServerNotFound(f"no server {server_id!r}")
        return [("script", Tool("wait", None, "Waits.", {"type": "object"}, None, {"readOnlyHint": True}))]

    async def call_tool(
        self,
        caller: Caller,
        server_id: str,
        tool_name: str,
        arguments: Mapping[str, Any],
        *,
        timeout_ms: int | None = None,
        observer: Observer,
        meta: Mapping[str, Any] | None = None,
    ) -> ToolResult:
        """``say`` answers at once, ``break`` is a fault, everything else waits for `release`."""
        observer.started()
        if tool_name == "say":
            return text_result(str(arguments.get("text")))
        if tool_name == "break":
            raise ZeroDivisionError("a fault with secret-argument in it")
        key = str(arguments["key"])
        self.callbacks[key] = (observer.progress, observer.log)
        self.released[key] = asyncio.get_running_loop().create_future()
        self.waiting.append(self.released[key])
        try:
            return await self.released[key]
        except asyncio.CancelledError:
            self.cancelled.append(key)
            raise

    async def started(self, key: str) -> None:
        """Wait until the call with this key runs."""
        async with asyncio.timeout(5):
            while key not in self.released:
                await asyncio.sleep(0)

    async def settled(self, key: str) -> None:
        """Let the loop run until what was released has been heard by everybody."""
        async with asyncio.timeout(5):
            while not self.released[key].done():
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)

    def release(self, key: str, text: str = "done") -> None:
        """Let a waiting call answer."""
        self.released[key].set_result(text_result(text))


class Recorder:
    """The sink of a conversation: keeps what was said, and holds it against the schemas."""

    def __init__(self) -> None:
        self.has_place = True
        self.room_for: int | None = None
        """So many frames are taken before there is no more room; any number where it is None."""
        self.frames: list[Frame] = []
        self.closed: tuple[CloseCode, str] | None = None

    @property
    def has_room(self) -> bool:
        """Whether more is taken."""
        return self.room_for is None or self.room_for > 0

    @property
    def frames_out(self) -> int:
        """Nobody asks for it."""
        return len(self.frames)

    @property
    def live_reader(self) -> "Recorder":
        """Itself."""
        return self

    @property
    def encoding(self) -> "Recorder":
        """Itself: texts are kept as they are."""
        return self

    def encode(self, _event: Event, text: str) -> bytes:
        """The text."""
        return text.encode()

    def send_event(self, delivery: Delivery) -> None:
        """Keep a frame."""
        assert delivery.frame == delivery.text.encode()
        self.send_result(delivery.text)

    def send_stream(self, source: str, text: str) -> None:
        """Keep a frame."""
        self.send_result(text)

    def identify(self, user: str) -> str | None:
        """Nobody is one too many."""
        return None

    def leave(self, home: int, values: Sequence[object]) -> None:
        """Nobody is at home elsewhere."""
        raise AssertionError(f"handed over to {home}: {values}")

    def come_first(self) -> None:
        """Nobody else waits."""

    def probe(self, seconds: float) -> None:
        """There is always a sign of life."""

    def send_result(self, text: str) -> None:
        """Keep a frame."""
        assert self.closed is None, "nothing is sent after the close"
        frame = json.loads(text)
        assert_valid_server_frame(frame)
        self.frames.append(frame)
        if self.room_for is not None:
            self.room_for -= 1

    def close(self, code: CloseCode, reason: str) -> None:
        """Keep the close."""
        assert self.closed is None, "closed once"
        self.closed = (code, reason)

    def take(self) -> list[Frame]:
        """What was said since this was last asked."""
        frames, self.frames = self.frames, []
        return frames


class Talk:
    """A conversation with its recorder and its scripted gateway; `again` begins another beside it."""

    def __init__(
        self,
        *,
        user: str | None = "ann",
        refused: AuthFailed | None = None,
        auth: AuthSettings | None = None,
        websocket: WebSocketSettings | None = None,
        sessions: SessionSettings | None = None,
        expires_in: float = 600,
        scopes: tuple[str, ...] = ALL_SCOPES,
        before: "Talk | None" = None,
    ) -> None:
        self.recorder = Recorder()
        principal = None
        if user is not None:
            principal = Principal(user, frozenset(scopes), time.time() + expires_in, "t-1")
        if before is None:
            self.settings = ConversationSettings(
                auth or AuthSettings(), websocket or WebSocketSettings(), sessions or SessionSettings()
            )
            self.gateway, self.bus = ScriptedGateway(), LocalBus(1000, 300)
            self.sessions, self.rooms, self.number = (
                SessionStore(self.settings.sessions),
                Rooms(self.bus),
                1,
            )
        else:
            self.settings, self.gateway, self.bus = before.settings, before.gateway, before.bus
            self.sessions, self.rooms, self.number = before.sessions, before.rooms, before.number + 1
        self.conversation = Conversation(
            ConversationParts(
                self.gateway,
                TOKENS,
                self.bus,
                self.rooms,
                self.sessions,
                no_limits(),
                metrics(),
                AUDIT,
            ),
            self.settings,
            self.recorder,
            ClientInfo(f"c-{self.number}", "127.0.0.1", "test", "/ws", "header" if user else "none"),
            principal=principal,
            refused=refused,
        )
        self.conversation.start()
        self.session: str = self.recorder.frames[0]["data"]["session"]

    def again(self, user: str | None = "ann", scopes: tuple[str, ...] = ALL_SCOPES) -> "Talk":
        """Another connection to the same gateway."""
        return Talk(user=user, scopes=scopes, before=self)

    def resume(self, session: str, *pending: str, since: str | None = None) -> list[Frame]:
        """Go on with a session; answers what came at once, the status first."""
        data: Frame = {"session": session, "pending": list(pending)}
        if since is not None:
            data["since"] = since
        return self.say({"type": "resume", "id": "resume", "data": data})

    def cut(self) -> None:
        """The socket breaks."""
        self.conversation.lost(None)

    def say(self, frame: object) -> list[Frame]:
        """Send one message; answers what came back at once."""
        self.recorder.take()
        self.conversation.receive(frame if isinstance(frame, str | bytes) else json.dumps(frame))
        return self.recorder.take()

    def call(self, key: str, tool: str = "wait", **data: Any) -> list[Frame]:
        """Begin a call whose id is its key."""
        body = {"serverId": "script", "toolName": tool, "params": {"key": key, "text": key}, **data}
        return self.say({"type": "tool_call", "id": key, "data": body})

    async def frames(self, count: int = 1) -> list[Frame]:
        """Wait until `count` frames were said."""
        async with asyncio.timeout(5):
            while len(self.recorder.frames) < count:
                await asyncio.sleep(0)
        return self.recorder.take()


def code_of(frame: Frame) -> str:
    """The code of an error frame."""
    assert frame["type"] == "error", frame
    code: str = frame["data"]["code"]
    return code
