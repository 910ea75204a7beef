"""The workers of one gateway inside a test's own loop: real links between them, over pairs of sockets."""

import socket
import time
from collections.abc import Callable
from typing import Any

from mcpgw.bus import SharedBus
from mcpgw.wire.events import Event
from mcpgw.workers.membership import Membership
from mcpgw.workers.place import Place
from mcpgw.workers.switchboard import Switchboard
from tests.support.waiting import until


class Member:
    """One worker: its `peers`, its `bus`, and what it `heard` of the channel ``servers``."""

    def __init__(self, number: int, count: int, link: int, clock: Callable[[], float]) -> None:
        self.ended: list[bool] = []
        self.peers = Membership(Place(number, count, link, ()), self.ended.append)
        self.heard: list[Event] = []
        self._clock = clock
        self.bus: SharedBus

    async def make_bus(self, **bounds: Any) -> SharedBus:
        """The log, which has not begun."""
        self.bus = SharedBus(
            self.peers.log,
            await self.peers.welcome,
            is_speaker=lambda: self.peers.is_speaker,
            **({"max_events": 1000, "max_age": 300, "max_bytes": 2**26} | bounds),
            clock=self._clock,
        )
        self.bus.listen("servers", self.heard.append)
        return self.bus

    def log_line(self, line: object, server: str = "a") -> None:
        """Publish an event."""
        self.bus.publish("server.log", {"serverId": server, "level": "info", "line": str(line)})

    @property
    def lines(self) -> list[str]:
        """The lines that were heard."""
        return [event.data["line"] for event in self.heard]

    def past(self) -> list[tuple[int, str]]:
        """What the log has of the channel ``servers``: offsets and lines."""
        events = (event for event, _, _ in self.bus._log.newest_first())
        return [(event.position.offset, event.data.get("line", "")) for event in events][::-1]


class Gathering:
    """A switchboard with those workers that have come."""

    def __init__(self, count: int = 3, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = count
        self.changed: list[int] = []
        self.lost: list[int] = []
        self.switchboard = Switchboard(count, self.changed.append, self.lost.append)
        self.members: dict[int, Member] = {}
        self._clock = clock

    def start(self, number: int) -> Member:
        """A worker that has a link and nothing else."""
        own, its = socket.socketpair()
        self.switchboard.connect(number, own)
        member = self.members[number] = Member(number, self.count, its.detach(), self._clock)
        return member

    async def come(self, number: int, **bounds: Any) -> Member:
        """A worker that is ready."""
        member = self.start(number)
        await member.make_bus(**bounds)
        await member.bus.begin()
        await self.be_ready(number)
        return member

    async def be_ready(self, number: int) -> None:
        """A worker that has begun is ready."""
        self.members[number].peers.ready()
        others = [other for other in self.members if other != number]
        await until(lambda: number in self.switchboard.ready)
        ready = [other for other in others if other in self.switchboard.ready]
        await until(lambda: all(number in self.members[other].peers.present for other in ready))

    def die(self, number: int) -> None:
        """A worker has ended, as the supervisor sees it when the process is gone."""
        self.members.pop(number).peers.close()
        self.switchboard.disconnect(number)

    async def agree(self, offset: int) -> None:
        """Wait until all are at this offset."""
        members = self.members.values()
        await until(lambda: all(member.bus.position.offset == offset for member in members), what="agreeing")

    def close(self) -> None:
        """End all."""
        for member in self.members.values():
            member.peers.close()
        self.switchboard.close()
