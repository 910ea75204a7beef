"""Rooms for guests, for tests."""

import asyncio
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpgw.store import OpenRoom, StoredRoom
from tests.conftest import LiveGateway
from tests.support.logins import send
from tests.support.socket_client import Frame, SocketClient

SCRIPTED = Path(__file__).parent.parent / "servers" / "scripted.py"
SERVERS = "".join(
    f'[servers.{name}]\ncommand = "{sys.executable}"\nargs = ["-S", "{SCRIPTED}"]\n'
    for name in ("one", "two")
)
HOST_ROLE = (
    '[roles.teacher]\nscopes = ["tools:call", "rooms:host", "events:read"]\n'
    '[roles.patterned]\nscopes = ["tools:call:two", "rooms:host"]\nallow = ["one"]\n'
)
ROOMS = "/api/v1/rooms"


@dataclass(frozen=True)
class Guest:
    """Somebody who has joined."""

    gateway: LiveGateway
    answer: dict[str, Any]

    @property
    def token(self) -> str:
        """What a guest shows."""
        return str(self.answer["accessToken"])

    @property
    def user(self) -> str:
        """The guest's name in events."""
        return str(self.answer["user"])

    async def connect(self) -> SocketClient:
        """A socket that has read its first status."""
        client = await SocketClient.connect(self.gateway.socket_url, token=self.token)
        assert (await client.receive())["data"]["user"] == self.user
        return client

    async def enter(self, room: str = "demo") -> SocketClient:
        """A socket that is in the room."""
        client = await self.connect()
        answer = await client.request(subscribe(f"room:{room}"))
        assert answer["type"] == "subscribed", answer
        return client

    async def status(self) -> int:
        """What the gateway says to the token."""
        return (await send(self.gateway, "GET", "/api/v1/auth/me", token=self.token)).status


async def open_room(gateway: LiveGateway, token: str, **members: object) -> dict[str, Any]:
    """A new room, for the tools of the server `one`."""
    body = {"name": "demo", "scopes": ["tools:call:one"], **members}
    answer = await send(gateway, "POST", ROOMS, body, token=token)
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.json()
    return made


async def join(gateway: LiveGateway, code: str, name: str) -> Guest:
    """Somebody who joins."""
    answer = await send(gateway, "POST", f"{ROOMS}/join", {"code": code, "name": name})
    assert answer.status == 201, answer.body
    return Guest(gateway, answer.json())


def subscribe(channel: str) -> Frame:
    """The frame that subscribes to a channel."""
    return {"type": "subscribe", "id": f"to {channel}", "data": {"channel": channel}}


async def events(client: SocketClient, until: str, seconds: float = 5.0) -> list[Frame]:
    """What a socket is told up to the first event, or frame, of the type `until`."""
    heard: list[Frame] = []
    async with asyncio.timeout(seconds):
        while not heard or heard[-1]["type"] != until:
            heard.append(await client.receive())
    return heard


def names(frames: Iterable[Frame], channel: str = "room:demo") -> list[str]:
    """The types of the events of one channel."""
    return [
        frame["type"] for frame in frames if frame["data"].get("channel", frame.get("channel")) == channel
    ]


def of_guests(**members: Any) -> OpenRoom:
    """A room of guests of the host `tess`, which ends in `seconds`."""
    ends_at = round(time.time() * 1000) + members.pop("seconds", 60) * 1000
    stored = StoredRoom(
        id="1",
        name="ops",
        host="tess",
        scopes=("tools:call",),
        quota_calls=5,
        quota_ms=10_000,
        max_guests=9,
        code_hash="",
        created_by="tess",
        created_at=0,
        ends_at=ends_at,
        frozen=members.pop("frozen", False),
    )
    return OpenRoom(stored, **members)
