"""Gateways whose servers are administered, without HTTP; they can be started again on their data."""

import asyncio
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mcpgw.access.tokens import Principal
from mcpgw.audit import Actor
from mcpgw.backends.status import BackendState, BackendStatus
from mcpgw.config import load_config
from mcpgw.services import Services, running_services
from mcpgw.wire.events import Event
from tests.support.backends import SERVERS
from tests.support.waiting import until

ADMIN = Actor("127.0.0.1", "root", scopes=frozenset({"admin"}))
OPERATOR = Actor("127.0.0.1", "ann", scopes=frozenset({"servers:write", "servers:read"}))
READER = Actor("127.0.0.1", "bob", scopes=frozenset({"servers:read", "tools:call"}))
_EVERYTHING = Principal("root", frozenset({"admin"}), float("inf"), "test")


def program(*options: object, **members: Any) -> dict[str, Any]:
    """The table of a scripted server."""
    arguments = ["-S", str(SERVERS / "scripted.py"), *map(str, options)]
    return {"command": sys.executable, "args": arguments, **members}


def toml(name: str, *options: object, more: str = "") -> str:
    """The same as text for ``mcpgw.toml``."""
    table = program(*options)
    return f"[servers.{name}]\ncommand = {table['command']!r}\nargs = {table['args']!r}\n{more}\n"


@dataclass
class Administered:
    """A gateway with what its test wants to know."""

    services: Services
    file: Path
    events: list[Event]

    def status(self, name: str) -> BackendStatus:
        """The present state of a server."""
        return self.services.gateway.server_status(_EVERYTHING, name)

    def states(self) -> dict[str, str]:
        """The states of all servers."""
        return {one.id: one.state.value for one in self.services.gateway.server_statuses(_EVERYTHING)}

    def started_at(self, name: str) -> float:
        """Since when a server is ready; the same as long as nobody touches it."""
        return self.status(name).since

    async def ready(self, *names: str) -> None:
        """Wait until servers take calls."""

        def all_are() -> bool:
            ids = self.services.gateway.server_ids
            return all(n in ids and self.status(n).state is BackendState.READY for n in names)

        await until(all_are, what=f"{names} ready")

    def told(self, event_type: str) -> list[Mapping[str, Any]]:
        """The data of the events of a type, in order."""
        return [event.data for event in self.events if event.type.name == event_type]


@asynccontextmanager
async def administered(
    folder: Path,
    configuration: str | None = None,
    *,
    memory: bool = False,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> AsyncIterator[Administered]:
    """A gateway with its data and ``mcpgw.toml`` in `folder`, which is written anew where it is given."""
    file = folder / "mcpgw.toml"
    if configuration is not None or not file.exists():
        file.write_text(configuration or "", "utf-8")
    config = load_config(
        file=file,
        environment=environment if environment is not None else {},
        flags={
            "data.dir": folder / "data",
            "audit.file": folder / "audit.jsonl",
            "memory.enabled": memory or None,
            "reload.interval": 0.3,
            **(flags or {}),
        }
        | ({} if memory else {"memory.enabled": False}),
    )
    async with running_services(config) as services:
        events: list[Event] = []
        for channel in ("servers", "config"):
            services.bus.listen(channel, events.append)
        yield Administered(services, file, events)
    await asyncio.sleep(0)
